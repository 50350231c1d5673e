"""A toy scene and small reconstructions of it."""

from dataclasses import replace
from functools import lru_cache

import jax

from jaxedit.fields.hash_grid import HashGridConfig
from jaxedit.fields.voxel_grid import VoxelGridConfig
from jaxedit.render.occupancy import OccupancyConfig
from jaxedit.render.render import RenderConfig
from jaxedit.scene.load import SceneConfig
from jaxedit.scene.scene import Scene
from jaxedit.scene.toy import capture, toy_scene
from jaxedit.systems.reconstruct import Fit, Reconstruct
from jaxvid.core.rng import named
from jaxvid.train.loop import LoopConfig
from jaxvid.train.optimizer import OptimizerConfig

ADAM = OptimizerConfig(learning_rate=3e-2, b2=0.99, epsilon=1e-15, clip_norm=None)


@lru_cache
def toy() -> Scene:
    return capture(toy_scene(seed=0, index=3), views=12, size=24, test_views=2)


def system(**changes):
    fits = (
        Fit("coarse", steps=60, rays=512, optimizer=ADAM),
        Fit("fine", steps=40, rays=512, resolution=(24, 24, 24), rows=8000, optimizer=ADAM),
    )
    base = Reconstruct(
        data=SceneConfig(path="unused"),
        field=VoxelGridConfig(
            resolution=(16, 16, 16), gain=20.0, shift=-1.0, initial_density=(0.0, 0.0), initial_colour=(0.0, 0.0)
        ),
        render=RenderConfig(samples=48, equal_steps=True),
        occupancy=OccupancyConfig(resolution=16, every=4),
        fits=fits,
        heldout=1,
        loop=LoopConfig(log_every=20, save_every=30),
    )  # fmt: skip
    return replace(base, **changes)


def hash_system(**changes):
    return system(
        field=HashGridConfig(levels=4, table=10, base=8, finest=32, width=16, geometry=8),
        fits=(Fit("fit", steps=20, rays=256, optimizer=ADAM),),
        **changes,
    )


def run_fits(config, steps=None):
    """States after each fit, by hand."""
    scene, state, found = toy(), None, []
    for phase in config.phases(scene):
        state = jax.jit(phase.init)(state, named(jax.random.key(0), phase.name))
        step, batches = jax.jit(phase.step), phase.batches(None)
        for number in range(steps or phase.steps):
            state, sums = step(state, next(batches), named(jax.random.key(0), phase.name, number))
        found.append((state, sums))
    return found
