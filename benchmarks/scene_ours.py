"""Our side of `scene_peers.py`: what the voxel renderer and the hash encoding are asked to do, compiled.

All grids hold the scene: the shipped preset's coarse fit, taken at the start, whose emptiness is what the sparse
variants live on. Three variants of the same preset (`configs/reconstruct/voxels.py`):

    same       the peer's work, number for number: dense grid, no occupancy, the peer's samples and loss, no jitter
    occupancy  the training step of `jaxedit fit` on the dense grid: only blocks of samples near matter are asked
    packed     the same on the grid that stores only the voxels around matter

The peer's samples: at z_i = near + i h with h = (far - near) / (n - 1), each as long as the way to the next, the last
endless. Ours stand in the middle of intervals; so these have their edges at z_i -+ h/2, and `last_opaque`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from programs import Program, compiled

from jaxedit.fields.field import Frame
from jaxedit.fields.hash_grid import HashDensity, HashGridConfig
from jaxedit.fields.voxel_grid import VoxelGrid, VoxelGridConfig, activate, gain
from jaxedit.render.render import RenderConfig, render_rays
from jaxedit.scene.cameras import Rays, pixel_rays
from jaxedit.scene.scene import Scene, composite
from jaxedit.systems.reconstruct import Reconstruct
from jaxedit.systems.reconstruct.training import look_at_cells, render
from jaxvid.train.state import State

KEY = 0
LEARNING_RATE = 0.03  # Vox-E's


@dataclass(frozen=True)
class Ours:
    """Steps by name, each a function that returns when it is done, their programs, and the first losses of training.

    counted: whether the programs' operations are known, for they have no branch or loop whose course run time decides.
    """

    steps: dict[str, Callable[[], Any]]
    programs: dict[str, Program]
    losses: list[float] = field(default_factory=list)
    counted: bool = True


class Stage(NamedTuple):
    """Where the measured steps begin: fit `index` of a system, in that state, about to see that batch."""

    system: Reconstruct
    scene: Scene
    index: int
    state: State
    batch: dict[str, np.ndarray]

    @property
    def frame(self) -> Frame:
        """The frame of its field."""
        return self.system.frame(self.scene.box)

    @property
    def rays(self) -> Rays:
        """The rays of the batch."""
        view, pixel = (jnp.asarray(self.batch[name]) for name in ("view", "pixel"))
        return pixel_rays(self.scene.views["train"].cameras, view, pixel + 0.5)


def begin(system: Reconstruct, scene: Scene, index: int, previous: State | None = None) -> Stage:
    """Fit `index` before its first step, from the state of the fit before."""
    phase = system.phases(scene)[index]
    state = jax.jit(phase.init)(previous, jax.random.key(KEY))
    return Stage(system, scene, index, state, next(phase.batches(None)))


def fitted(stage: Stage, steps: int) -> Stage:
    """The stage after that many steps of training."""
    phase = stage.system.phases(stage.scene)[stage.index]
    step, batches = jax.jit(phase.step, donate_argnums=0), phase.batches(None)
    state = stage.state
    for number in range(steps):
        key = jax.random.fold_in(jax.random.key(KEY), number)
        state, _ = step(state, next(batches), key)
    return stage._replace(state=state, batch=next(batches))


def shipped(stage: Stage) -> Ours:
    """The training step of `jaxedit fit` and the rendering of its rays, as configured."""
    system, key = stage.system, jax.random.key(KEY)
    phase = system.phases(stage.scene)[stage.index]

    def draw(state: State, rays: Rays) -> Any:
        model = system.model(stage.frame, state, stage.index)
        occupied = look_at_cells(system, model, state["extra"].get("level"))
        return render(system, model, rays, occupied=occupied)

    train = compiled(phase.step, stage.state, stage.batch, key, donate=(0,))
    rays = stage.rays
    forward = compiled(draw, stage.state, rays)
    # The step gives its state away; other variants go on from the one that came.
    state = [jax.tree.map(jnp.copy, stage.state)]

    def run_train() -> float:
        state[0], sums = train.call(state[0], stage.batch, key)
        total, count = jax.block_until_ready(sums["loss"])
        return float(total / count)

    def run_forward() -> None:
        jax.block_until_ready(forward.call(state[0], rays))

    steps = {"forward": run_forward, "train": run_train}
    return Ours(steps, {"forward": forward, "train": train}, counted=False)


class SameWork(NamedTuple):
    """What both sides get: a grid of Vox-E's form, rays with their true colours, and how they are sampled."""

    grid: VoxelGrid
    rays: Rays
    target: jax.Array
    near: float
    far: float
    samples: int

    def request(self, compared: int) -> dict[str, Any]:
        """The peer's settings; it is to tell the losses of that many steps of training."""
        frame, config = self.grid.frame, self.grid.config
        return {
            "lowest": frame.lowest,
            "highest": frame.highest,
            "gain": gain(config, frame),
            "near": self.near,
            "far": self.far,
            "samples": self.samples,
            "learning_rate": LEARNING_RATE,
            "compared": compared,
        }

    def arrays(self) -> dict[str, np.ndarray]:
        """The peer's data."""
        found = {
            "density": self.grid.density_values[...],
            "colour": self.grid.colour_values[...],
            "origin": self.rays.origin,
            "direction": self.rays.direction,
            "target": self.target,
        }
        return {name: np.array(array) for name, array in found.items()}


def same_work(stage: Stage) -> SameWork:
    """The stage's dense grid and rays, in the form that both sides can take.

    Rays are sampled over all distances at which one of them may be inside the box, so that none ends there: the peer's
    last sample is all but endless, and would make rays opaque that end in the thinnest fog.
    """
    grid = stage.system.model(stage.frame, stage.state, stage.index).field
    assert isinstance(grid, VoxelGrid)
    frame, rays = grid.frame, stage.rays
    middle = 0.5 * (np.array(frame.lowest) + np.array(frame.highest))
    away = np.linalg.norm(np.asarray(rays.origin) - middle, axis=-1)
    radius = 0.5 * math.hypot(*frame.size)
    return SameWork(
        grid=as_vox_e(grid),
        rays=rays,
        target=jnp.asarray(composite(stage.batch["colour"], np.ones(3))),
        near=max(float(away.min()) - radius, 0.0),
        far=float(away.max()) + radius,
        samples=stage.system.render.samples,
    )


def as_vox_e(grid: VoxelGrid) -> VoxelGrid:
    """A grid of Vox-E's gain and activation, with the same densities at the voxels (1e-8 or more) and colours."""
    before, frame = grid.config, grid.frame
    config = VoxelGridConfig(resolution=before.resolution, degree=before.degree)
    made: VoxelGrid = jax.eval_shape(lambda: VoxelGrid(config, frame, jax.random.key(KEY)))
    density = jnp.maximum(activate(grid.density_values[...], before, frame), 1e-8)
    inverse = density + jnp.log(-jnp.expm1(-density))  # of softplus
    made.density_values = nnx.Param(inverse / gain(config, frame))
    # A copy: the fit's own arrays are given away by its next step.
    made.colour_values = nnx.Param(jnp.copy(grid.colour_values[...]))
    return made


def same(work: SameWork, compared: int) -> Ours:
    """Rendering and training as the peer does; takes the first `compared` steps of training and notes their losses."""
    half = 0.5 * (work.far - work.near) / (work.samples - 1)
    config = RenderConfig(
        samples=work.samples,
        near=work.near - half,
        far=work.far + half,
        bounds="none",
        last_opaque=True,
    )
    optimizer, tree = optax.adam(LEARNING_RATE), partial(cast, Any)  # a module is a plain tree

    def draw(grid: VoxelGrid, rays: Rays) -> Any:
        return render_rays(grid, rays, config, background=jnp.ones(3))[0]

    def loss(grid: VoxelGrid, rays: Rays, target: jax.Array) -> jax.Array:
        return jnp.mean(jnp.abs(draw(grid, rays).colour - target))

    def step(grid: VoxelGrid, moments: Any, rays: Rays, target: jax.Array) -> Any:
        value, gradient = jax.value_and_grad(loss)(grid, rays, target)
        updates, moments = optimizer.update(gradient, moments, tree(grid))
        return optax.apply_updates(tree(grid), updates), moments, value

    state = [work.grid, optimizer.init(tree(work.grid))]
    programs = {
        "forward": compiled(draw, work.grid, work.rays),
        "train": compiled(step, *state, work.rays, work.target, donate=(0, 1)),
    }
    state[0] = jax.tree.map(jnp.copy, work.grid)

    def forward() -> None:
        jax.block_until_ready(programs["forward"].call(state[0], work.rays))

    def train() -> float:
        *state[:], value = programs["train"].call(*state, work.rays, work.target)
        return float(value)

    losses = [train() for _ in range(compared)]
    return Ours({"forward": forward, "train": train}, programs, losses)


def hash_encoding(config: HashGridConfig, points: np.ndarray, cotangent: np.ndarray) -> Ours:
    """The encoding of unit points, and with it the gradient of its table."""
    density = jax.jit(lambda key: HashDensity(config, Frame(), key))(jax.random.key(KEY))
    unit, given = jnp.asarray(points), jnp.asarray(cotangent)

    def backward(density: HashDensity, unit: jax.Array, given: jax.Array) -> Any:
        features, pull = jax.vjp(partial(_encode, unit=unit), density)
        return features, pull(given)[0].table[...]

    programs = {
        "forward": compiled(HashDensity.encode, density, unit),
        "backward": compiled(backward, density, unit, given),
    }

    def run(name: str, *args: Any) -> None:
        jax.block_until_ready(programs[name].call(density, *args))

    steps = {
        "forward": partial(run, "forward", unit),
        "backward": partial(run, "backward", unit, given),
    }
    return Ours(steps, programs)


def _encode(density: HashDensity, unit: jax.Array) -> jax.Array:
    return density.encode(unit)


def dense(system: Reconstruct) -> Reconstruct:
    """The system with its voxel grid stored whole."""
    return replace(system, fits=tuple(replace(fit, rows=None) for fit in system.fits))
