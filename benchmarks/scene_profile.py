"""Where our training step of a scene spends its time: its parts, each compiled alone and timed in turn.

The parts' times need not add up to the step's. Compiled together, parts share work and memory traffic; the gradient of
a part computes its forward pass once more. Of the field the parts ask one pass of `slots` blocks; the last part says
how many passes the step takes. What begins with "step" is the program of training itself, cut off at three places.
"""

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from pairs import timed
from programs import Program, compiled
from scene_ours import KEY, Stage

from jaxedit.fields.field import Frame
from jaxedit.fields.hash_grid import HashGrid
from jaxedit.fields.packed_grid import PackedGrid
from jaxedit.fields.rows import cell_corners, flat_index, weighted_rows
from jaxedit.fields.spherical_harmonics import basis
from jaxedit.render.intervals import stratified_edges, to_distance
from jaxedit.render.occupancy import is_occupied, updated_level
from jaxedit.render.render import draw, ray_bounds
from jaxedit.render.sparse import ask_blocks, join_blocks
from jaxedit.scene.cameras import Rays, pixel_rays
from jaxedit.systems.reconstruct.model import Model
from jaxedit.systems.reconstruct.training import Look, abstract_model, look_at_cells, ray_loss
from jaxvid.core.paths import unflatten
from jaxvid.core.rng import named
from jaxvid.train.optimizer import make_optimizer


class Part(NamedTuple):
    """A part of the step: what runs it, and its program where it has one."""

    name: str
    run: Callable[[], Any]
    program: Program | None = None


class Blocks(NamedTuple):
    """The blocks of one pass, as the field is asked about them: rays [slots], edges [slots, b + 1], seen [slots, b]."""

    rays: Rays
    edges: jax.Array
    seen: jax.Array


class Given:
    """A field of known answers, to render without asking."""

    def __init__(self, frame: Frame, density: jax.Array, colour: jax.Array):
        self.frame, self.answer = frame, (density, colour)

    def density(self, points: jax.Array) -> jax.Array:
        del points
        return self.answer[0]

    def query(self, points: jax.Array, directions: jax.Array) -> tuple[jax.Array, jax.Array]:
        del points, directions
        return self.answer


def profile(stage: Stage, count: int) -> list[dict[str, Any]]:
    """Medians of the parts of a stage's step over `count` turns."""
    parts, more = _ray_parts(stage)
    parts += _step_parts(stage, more)
    spent: list[list[dict[str, float]]] = [[] for _ in parts]
    for turn in range(count + 1):  # the first turn warms up
        for times, part in zip(spent, parts, strict=True):
            seconds = timed(part.run)
            if turn > 0:
                times.append(seconds)
    return [
        {
            "part": part.name,
            "wall_s": statistics.median(t["wall"] for t in times),
            "cpu_s": statistics.median(t["cpu"] for t in times),
            "matmul_gflop": part.program.flops.total / 1e9 if part.program else 0.0,
            "other_gflop": part.program.flops.other / 1e9 if part.program else 0.0,
        }
        for part, times in zip(parts, spent, strict=True)
    ]


def _part(name: str, function: Callable[..., Any], *args: Any, loops: int = 0) -> tuple[Part, Any]:
    """The part and its result; `loops` is how often a loop in it turns, for counting."""
    program = compiled(function, *args, while_iterations=loops)

    def run() -> None:
        jax.block_until_ready(program.call(*args))

    return Part(name, run, program), program.call(*args)


def _ray_parts(stage: Stage) -> tuple[list[Part], int]:
    """From pixels to blocks of samples, the field, and back to pixels; how many passes a step takes after the first."""
    fit, config = stage.system.fits[stage.index], stage.system.render
    phase, cameras = (
        stage.system.phases(stage.scene)[stage.index],
        stage.scene.views["train"].cameras,
    )
    model = stage.system.model(stage.frame, stage.state, stage.index)
    drawn = phase.batches(None)
    numbers = jnp.arange(fit.rays)
    slots = max(1, min(round(config.slots * fit.rays), fit.rays * config.samples // config.block))

    def jitter(key: Any) -> jax.Array:
        return draw(jax.vmap(lambda number: named(key, number))(numbers), "edges")

    def cast(view: jax.Array, pixel: jax.Array) -> Rays:
        return pixel_rays(cameras, view, pixel.astype(jnp.float32) + 0.5)

    def spread(field: Any, rays: Rays, jitter: jax.Array) -> jax.Array:
        near, far = ray_bounds(field, rays, config)
        return to_distance(stratified_edges(config.samples, jitter), near, far, config.spacing)

    def find(field: Any, rays: Rays, edges: jax.Array, occupied: jax.Array) -> Any:
        seen = is_occupied(occupied, field.frame, rays.at(0.5 * (edges[:, 1:] + edges[:, :-1])))
        wanted = jnp.any(seen.reshape(fit.rays, -1, config.block), axis=-1).reshape(-1)
        return seen, jnp.nonzero(wanted, size=slots, fill_value=wanted.size)[0], jnp.sum(wanted)

    def gather(rays: Rays, edges: jax.Array, seen: jax.Array, chosen: jax.Array) -> Blocks:
        per_ray = config.samples // config.block
        nowhere = fit.rays * per_ray
        filled = jnp.where(chosen < nowhere, chosen, jnp.arange(slots) % nowhere)
        ray, part = jnp.divmod(filled, per_ray)
        column = part[:, None] * config.block + jnp.arange(config.block + 1)
        rays = Rays(rays.origin[ray], rays.direction[ray])
        return Blocks(rays, edges[ray[:, None], column], seen[ray[:, None], column[:, :-1]])

    field, batch = model.field, stage.batch
    occupied = look_at_cells(stage.system, model, stage.state["extra"].get("level"))
    assert occupied is not None
    parts = [Part("pixels drawn, on the host", partial(next, drawn))]
    part, shift = _part("keys, jitter", jitter, jax.random.key(KEY))
    parts.append(part)
    part, rays = _part("rays of pixels", cast, batch["view"], batch["pixel"])
    parts.append(part)
    part, edges = _part("intervals", spread, field, rays, shift)
    parts.append(part)
    part, (seen, chosen, total) = _part(
        "occupancy looked up, blocks found", find, field, rays, edges, occupied
    )
    parts.append(part)
    part, blocks = _part("samples of blocks gathered", gather, rays, edges, seen, chosen)
    parts.append(part)
    parts += _field_parts(field, blocks) + _composite_parts(field, blocks, chosen, edges)
    return parts, max(-(-int(total) // slots) - 1, 0)


def _field_parts(field: Any, blocks: Blocks) -> list[Part]:
    """The field at the samples of the blocks, alone and with the gradient of its parameters."""
    points = blocks.rays.at(0.5 * (blocks.edges[:, 1:] + blocks.edges[:, :-1]))
    directions = blocks.rays.direction[:, None, :]

    def ask(field: Any, points: jax.Array, directions: jax.Array) -> Any:
        return field.query(points, directions)

    parts = [_part("field asked", ask, field, points, directions)[0]]
    parts.append(_with_gradient("field asked", ask, field, points, directions))
    flat = points.reshape(-1, 3)
    if isinstance(field, HashGrid):
        unit = jnp.clip(field.frame.to_unit(flat), 0.0, 1.0)
        sight = jnp.broadcast_to(directions, points.shape).reshape(-1, 3)
        part, features = _part(
            "  of it: levels encoded", lambda f, u: f.body.encode(u), field, unit
        )
        parts.append(part)
        parts.append(
            _with_gradient("  of it: levels encoded", lambda f, u: f.body.encode(u), field, unit)
        )

        def networks(field: HashGrid, features: jax.Array, sight: jax.Array) -> Any:
            geometry = field.body.network(features)
            seen = jnp.concatenate([basis(field.config.degree, sight), geometry], axis=-1)
            return geometry[:, 0], field.colour(seen)

        parts.append(_with_gradient("  of it: networks", networks, field, features, sight))
    elif isinstance(field, PackedGrid):
        parts += _row_parts(field, flat)
    return parts


def _row_parts(field: PackedGrid, points: jax.Array) -> list[Part]:
    """What a packed grid's query is made of: corners, rows of both tables, and rows scattered into their gradients."""
    resolution = field.config.resolution

    def corners(field: PackedGrid, points: jax.Array) -> Any:
        position = field.frame.to_unit(points) * jnp.array(resolution, points.dtype) - 0.5
        corner, weight = cell_corners(position, resolution)
        row = field.row[...].reshape(-1)[flat_index(corner, resolution)]
        return jnp.maximum(row, 0), weight

    def tables(field: PackedGrid, index: jax.Array, weight: jax.Array) -> Any:
        values = field.density_values[...], field.colour_values[...]
        return tuple(weighted_rows(value, index, weight) for value in values)

    part, (index, weight) = _part("  of it: corners and their rows", corners, field, points)
    summed, out = _part("  of it: rows of both tables summed", tables, field, index, weight)

    def scatter(field: PackedGrid, index: jax.Array, weight: jax.Array, out: Any) -> Any:
        return _moving(jax.vjp(lambda field: tables(field, index, weight), field)[1](out)[0])

    scattered, _ = _part(
        "  of it: gradients scattered into both", scatter, field, index, weight, out
    )
    return [part, summed, scattered]


def _composite_parts(field: Any, blocks: Blocks, chosen: jax.Array, edges: jax.Array) -> list[Part]:
    """Densities and colours to pixels, and the gradient back."""
    rays, per_ray = len(edges), (edges.shape[1] - 1) // blocks.seen.shape[1]
    shape = blocks.seen.shape
    answer = jnp.ones(shape), jnp.full((*shape, 3), 0.5)

    def render(answer: Any, blocks: Blocks, chosen: jax.Array) -> Any:
        asked = ask_blocks(Given(field.frame, *answer), *blocks)

        def spread_out(values: jax.Array) -> jax.Array:
            flat = (
                jnp.zeros((rays * per_ray, *values.shape[1:])).at[chosen].set(values, mode="drop")
            )
            return flat.reshape(rays, per_ray, *values.shape[1:])

        return join_blocks(jax.tree.map(spread_out, asked), jnp.ones(3))[0].colour

    return [_with_gradient("blocks composited", render, answer, blocks, chosen)]


def _with_gradient(name: str, function: Callable[..., Any], first: Any, *rest: Any) -> Part:
    """The function and the gradient of its first argument, for cotangents of ones."""

    def both(first: Any, *rest: Any) -> Any:
        out, pull = jax.vjp(lambda first: function(first, *rest), first)
        return out, _moving(pull(jax.tree.map(jnp.ones_like, out))[0])

    return _part(f"{name}, and its gradient", both, first, *rest)[0]


def _moving(gradient: Any) -> list[jax.Array]:
    """The gradient's arrays without those of integers, which have none."""
    return [leaf for leaf in jax.tree.leaves(gradient) if leaf.dtype != jax.dtypes.float0]


def _step_parts(stage: Stage, more: int) -> list[Part]:
    """The optimizer, the occupancy, and the program of training up to the loss, the gradient, and all.

    more: passes over the blocks after the first.
    """
    system, state, key = stage.system, stage.state, jax.random.key(KEY)
    fit, phase = system.fits[stage.index], system.phases(stage.scene)[stage.index]
    abstract = abstract_model(system, stage.frame, stage.index)
    optimizer = make_optimizer(fit.optimizer, fit.steps)
    cameras, level = stage.scene.views["train"].cameras, state["extra"].get("level")
    frozen, trainable = state["frozen"], state["trainable"]

    def loss(trainable: Any, frozen: Any, batch: Any, key: Any) -> jax.Array:
        model: Model = unflatten(abstract, {**frozen, **trainable})
        keys = jax.vmap(lambda number: named(key, number))(jnp.arange(fit.rays))
        occupied = look_at_cells(system, model, level)
        return jnp.mean(ray_loss(system, fit, cameras, model, batch, keys, Look(occupied))[0])

    def update(gradient: Any, moments: Any, trainable: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            change, moments = optimizer.update(gradient, moments, trainable)
        return jax.tree.map(jnp.add, trainable, change), moments

    args = trainable, frozen, stage.batch, key
    parts = []
    if level is not None:
        settings = system.occupancy
        assert settings is not None
        field = system.model(stage.frame, state, stage.index).field
        name = f"occupancy looked at again, one step in {settings.every}"
        look = partial(updated_level, config=settings, key=key, turn=0)
        parts.append(_part(name, lambda level, field: look(level, field), level, field)[0])
    parts.append(_part("optimizer", update, trainable, state["optimizer"], trainable)[0])
    parts.append(_part("step as far as the loss", loss, *args, loops=more)[0])
    gradient = jax.value_and_grad(loss)
    parts.append(_part("step as far as the gradient", gradient, *args, loops=more)[0])
    step = compiled(phase.step, state, stage.batch, key, donate=(0,), while_iterations=more)
    held = [jax.tree.map(jnp.copy, state)]

    def run() -> None:
        held[0], sums = step.call(held[0], stage.batch, key)
        jax.block_until_ready(sums)

    return [*parts, Part(f"step, passes over blocks: {1 + more}", run, step)]
