# %% [markdown]
# # A scene in five steps
#
# Capture a toy object, fit a voxel grid to its pictures, render new views, look inside the grid, and take a gradient
# through the renderer. On two CPU cores the whole notebook takes less than a minute. Open it as a notebook with
# `jupytext --to notebook scene.py`.

# %%
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from jaxedit.fields.field import Field
from jaxedit.fields.packed_grid import PackedGrid
from jaxedit.fields.voxel_grid import VoxelGridConfig
from jaxedit.render.compositing import Pixels
from jaxedit.render.image import chunked
from jaxedit.render.render import RenderConfig, render_rays
from jaxedit.scene.cameras import Rays, image_rays
from jaxedit.scene.load import SceneConfig
from jaxedit.scene.paths import cameras_along, turntable
from jaxedit.scene.scene import composite
from jaxedit.scene.toy import caption, capture, toy_scene
from jaxedit.systems.reconstruct import Fit, Reconstruct
from jaxvid.core.rng import named
from jaxvid.train.optimizer import OptimizerConfig

# %% [markdown]
# ## 1. A capture
#
# A toy scene is an object of named parts. `capture` photographs it; the result is the same kind of `Scene` that
# `load_scene` makes of a folder. Images are RGBA with straight alpha, cameras have OpenGL axes.

# %%
toy = toy_scene(seed=0, index=3)
scene = capture(toy, views=30, size=48)
print(caption(toy))
print(
    {split: views.images.shape for split, views in scene.views.items()},
    "box",
    np.asarray(scene.box).tolist(),
)

# %% [markdown]
# ## 2. Fit
#
# A system is a frozen dataclass. Each fit is a phase of pure functions, so the loop can be written by hand; on the command
# line it is `jaxedit fit SCENE`. The first fit is coarse; the second interpolates its grid and stores only voxels near matter.

# %%
adam = OptimizerConfig(learning_rate=2e-2, b2=0.99, epsilon=1e-15, clip_norm=None)
system = Reconstruct(
    data=SceneConfig(path="a folder, when the scene comes from disk"),
    field=VoxelGridConfig(
        resolution=(24, 24, 24), gain=20.0, shift=-1.0, initial_density=(0.0, 0.0), initial_colour=(0.0, 0.0)
    ),
    render=RenderConfig(samples=96, equal_steps=True),
    fits=(
        Fit("coarse", steps=120, rays=1024, optimizer=adam),
        Fit("fine", steps=180, rays=1024, resolution=(64, 64, 64), rows=40_000, optimizer=adam),
    ),
)  # fmt: skip
key, curve = jax.random.key(0), []
state: Any = None
for phase in system.phases(scene):
    state = jax.jit(phase.init)(state, named(key, phase.name))
    step, batches = jax.jit(phase.step, donate_argnums=0), phase.batches(None)
    for number in range(phase.steps):
        state, sums = step(state, next(batches), named(key, phase.name, number))
        curve.append(float(sums["psnr"][0]))
    print(f"{phase.name}: training PSNR {np.mean(curve[-20:]):.1f} dB")
plt.plot(curve)
plt.xlabel("step")
plt.ylabel("PSNR of the batch, dB")
plt.show()

# %% [markdown]
# ## 3. New views
#
# `scores` renders the held-out views. `turntable` makes a path around what all cameras look at.

# %%
split, scores = system.scores(state, scene)
print(f"{split}: {scores}")
frame = system.frame(scene.box)
poses = np.asarray(scene.views["train"].cameras.pose, np.float64)
path = cameras_along(turntable(poses, 6), scene.views["train"].cameras)
views = [system.render_image(frame, state, path, index) for index in range(6)]
figure, axes = plt.subplots(2, 6, figsize=(12, 4))
for column, view in zip(axes.T, views, strict=True):
    column[0].imshow(view.colour)
    column[1].imshow(np.where(view.opacity > 0.5, view.depth, np.nan))
    for axis in column:
        axis.axis("off")
plt.show()

# %% [markdown]
# ## 4. Inside
#
# The field answers `query(points, directions)` anywhere. A slice through the middle of the box; beside it, how many of the
# grid's voxels are stored.

# %%
field = system.model(frame, state).field
assert isinstance(field, PackedGrid)
line = jnp.linspace(-1.0, 1.0, 96)
x, z = jnp.meshgrid(line, line, indexing="xy")
points = jnp.stack([x, jnp.zeros_like(x), z], axis=-1)
density, colour = jax.jit(field.query)(points, jnp.array([0.0, 1.0, 0.0]))
stored = float(np.mean(np.asarray(field.row[...]) >= 0))
print(f"{stored:.1%} of the voxels are stored")
alpha = 1.0 - np.exp(-np.asarray(density) * 0.05)[..., None]
plt.imshow(np.asarray(colour) * alpha + 1.0 - alpha, origin="lower", extent=(-1, 1, -1, 1))
plt.title("the slice y = 0, as a sheet 0.05 thick")
plt.show()

# %% [markdown]
# ## 5. A gradient through the renderer
#
# Any loss of a whole image has an exact gradient in the field; `chunked` renders twice, so memory grows with the chunk and
# not with the image. Here: the squared error of one held-out view, and where in space it would add matter or take some away.

# %%
camera = scene.views["test"].cameras.select([0])
truth = jnp.asarray(composite(scene.views["test"].images[0], np.ones(3)), jnp.float32)


def one_chunk(field: Field, rays: Rays) -> Pixels:
    return render_rays(field, rays, system.render, background=jnp.ones(3))[0]


render = chunked(one_chunk, chunk=512)


@jax.jit
def pulled(params):
    """Loss of the view, and its gradient in every parameter, by path."""

    def loss(params):
        field = system.model(frame, {**state, "trainable": params}).field
        return jnp.mean((render(field, image_rays(camera, 0)).colour - truth) ** 2)

    return jax.value_and_grad(loss)(params)


params = state["trainable"]
loss, slope = pulled(params)
slope = slope["field/density_values"]
print(f"loss {float(loss):.6f}, {int(np.sum(np.asarray(slope) != 0))} voxels seen by this view")
moved = params["field/density_values"] - 1e-2 * slope / jnp.abs(slope).max()
better, _ = pulled({**params, "field/density_values": moved})
print(f"loss {float(better):.6f} after a small step against the gradient")
