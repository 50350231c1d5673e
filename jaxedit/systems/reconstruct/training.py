"""Training of a reconstruction: the loss of rays, and the phases that a run goes through.

`state["extra"]` holds "level", the occupancy grid's, where the configuration keeps one, and "lost", the voxels that did
not fit into a packed grid: a fit does not begin unless that is 0.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any, Literal, NamedTuple, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key

from jaxedit.fields.field import Frame
from jaxedit.fields.normals import NormalField
from jaxedit.fields.packed_grid import PackedGrid
from jaxedit.fields.voxel_grid import VoxelGrid
from jaxedit.render.compositing import Pixels
from jaxedit.render.image import chunked, over_mesh, ray_parts
from jaxedit.render.occupancy import full_level, occupied_cells, updated_level
from jaxedit.render.render import Losses, render_rays
from jaxedit.scene.cameras import Cameras, Rays, image_rays, pixel_rays
from jaxedit.scene.scene import Scene, Views
from jaxedit.systems.reconstruct.batches import RayBatches
from jaxedit.systems.reconstruct.config import Fit, FitConfig
from jaxedit.systems.reconstruct.model import (
    Model,
    background_of,
    grown,
    is_trained,
    make_model,
    stored_cells,
)
from jaxvid.core.errors import UserError
from jaxvid.core.mesh import make_mesh, process_shard
from jaxvid.core.paths import flatten, unflatten
from jaxvid.core.rng import named
from jaxvid.train.optimizer import make_optimizer
from jaxvid.train.phase import Phase, Report
from jaxvid.train.state import Params, State, make_state, weights
from jaxvid.train.step import Loss, Step, Sums, make_step

HUBER = 0.1  # where Huber's loss turns from square to straight (jaxngp's corner)


@lru_cache(maxsize=32)
def abstract_model(config: FitConfig, frame: Frame, index: int) -> Model:
    """The model of fit `index` as shapes."""
    return jax.eval_shape(partial(make_model, config, frame, index), jax.random.key(0))


def frame_of(config: FitConfig, box: Float[np.ndarray, "2 3"] | None) -> Frame:
    """The frame of the field: the scene's box, or the unit box where the scene has none."""
    if box is None:
        return Frame(contraction=config.contraction)
    return Frame.of(box, config.contraction)


def look_at_cells(
    config: FitConfig, model: Model, level: Float[Array, "g g g"] | None
) -> Bool[Array, "x y z"] | None:
    """Where a renderer has to look, or None for everywhere."""
    if isinstance(model.field, PackedGrid):
        return stored_cells(model.field)
    if config.occupancy is None or level is None:
        return None
    return occupied_cells(level, config.occupancy, step_length(config, model.field.frame))


def step_length(config: FitConfig, frame: Frame) -> float:
    """The length of a ray's interval through the whole box."""
    return sum(side**2 for side in frame.size) ** 0.5 / config.render.samples


def render(
    config: FitConfig,
    model: Model,
    rays: Rays,
    keys: Key[Array, "r"] | None = None,
    *,
    occupied: Bool[Array, "x y z"] | None = None,
    anneal: Float[Array, ""] | float = 1.0,
    background: Float[Array, "r 3"] | None = None,
    mesh: Mesh | None = None,
) -> tuple[Pixels, Losses]:
    """Renders rays [r] as the configuration says, spread over the mesh's devices where there is one.

    background: a colour behind each ray instead of the configuration's.
    """
    behind = background_of(config, keys, rays.origin.shape[0]) if background is None else background

    def one(whole: tuple[Model, Any, Any], part: tuple[Rays, Any, Array]) -> tuple[Pixels, Losses]:
        (model, occupied, anneal), (rays, keys, behind) = whole, part
        return render_rays(
            model.field,
            rays,
            config.render,
            background=behind,
            keys=keys,
            occupied=occupied,
            proposals=tuple(model.proposals),
            anneal=anneal,
        )

    spread = one if mesh is None else over_mesh(one, mesh)
    return spread((model, occupied, anneal), (rays, keys, behind))


def render_view(
    config: FitConfig,
    model: Model,
    cameras: Cameras,
    view: Int[Array, ""] | int,
    occupied: Bool[Array, "x y z"] | None,
    chunk: int,
    *,
    normals: bool = False,
    mesh: Mesh | None = None,
) -> Pixels:
    """A whole view [h, w, ...], `chunk` rays at a time on each of the mesh's devices; its gradient renders again."""
    if normals:
        model = Model(NormalField(model.field), list(model.proposals))

    def one(whole: tuple[Model, Any], rays: Rays) -> Pixels:
        model, occupied = whole
        behind = jnp.full((rays.origin.shape[0], 3), 0.5) if normals else None
        return render(config, model, rays, occupied=occupied, background=behind, mesh=mesh)[0]

    parts = ray_parts(mesh)
    whole = chunked(one, chunk * parts, multiple=parts)
    return whole((model, occupied), image_rays(cameras, view))


class Look(NamedTuple):
    """How a step looks at a field: the cells where there may be matter (None: everywhere), and how far proposals sharpened."""

    occupied: Bool[Array, "x y z"] | None = None
    anneal: Float[Array, ""] | float = 1.0


EVERYWHERE = Look()


def rendered(
    config: FitConfig,
    fit: Fit,
    model: Model,
    rays: Rays,
    keys: Key[Array, "r"] | None,
    look: Look,
    *,
    background: Float[Array, "r 3"] | None = None,
    mesh: Mesh | None = None,
) -> tuple[Pixels, Float[Array, "r"], Sums]:
    """Rays as a step of `fit` renders them, its losses of densities, and "blocks_per_ray" where rendering is sparse."""
    pixels, losses = render(
        config,
        model,
        rays,
        keys,
        occupied=look.occupied,
        anneal=look.anneal,
        background=background,
        mesh=mesh,
    )
    total = fit.distortion * losses["distortion"]
    if "interlevel" in losses:
        total = total + fit.interlevel * losses["interlevel"]
    sums: Sums = {}
    if "blocks" in losses:
        sums["blocks_per_ray"] = (jnp.sum(losses["blocks"]), jnp.float32(total.shape[0]))
    return pixels, total, sums


def colour_loss(
    kind: Literal["l2", "l1", "huber"], error: Float[Array, "*n 3"]
) -> Float[Array, "*n"]:
    """The mean over colours of each pixel's error, by the kind of a `Fit`."""
    size = jnp.abs(error)
    if kind == "l2":
        return jnp.mean(error**2, axis=-1)
    if kind == "l1":
        return jnp.mean(size, axis=-1)
    return jnp.mean(jnp.where(size < HUBER, 0.5 * size**2 / HUBER, size - 0.5 * HUBER), axis=-1)


def ray_loss(
    config: FitConfig,
    fit: Fit,
    cameras: Cameras,
    model: Model,
    batch: Mapping[str, Array],
    keys: Key[Array, "r"],
    look: Look = EVERYWHERE,
    *,
    mesh: Mesh | None = None,
) -> tuple[Float[Array, "r"], Sums]:
    """The loss of each ray of a batch, and sums: "mse" and, where it is sparse, "blocks_per_ray"."""
    rays = pixel_rays(cameras, batch["view"], batch["pixel"].astype(jnp.float32) + 0.5)
    pixels, total, sums = rendered(config, fit, model, rays, keys, look, mesh=mesh)
    target = batch["colour"].astype(jnp.float32) / 255.0
    if target.shape[-1] == 4:
        behind = background_of(config, keys, target.shape[0])
        target = target[:, :3] * target[:, 3:] + (1.0 - target[:, 3:]) * behind
    error = pixels.colour - target
    sums["mse"] = (jnp.sum(jnp.mean(error**2, axis=-1)), jnp.float32(target.shape[0]))
    return total + colour_loss(fit.colour_loss, error), sums


def phases(config: FitConfig, scene: Scene, report: Report | None = None) -> list[Phase]:
    """One phase a fit."""
    return [_phase(config, scene, index, report) for index in range(len(config.fits))]


def _phase(config: FitConfig, scene: Scene, index: int, report: Report | None) -> Phase:
    fit, frame = config.fits[index], frame_of(config, scene.box)
    mesh, views = make_mesh(config.mesh), _shrunk(scene.views["train"], fit.shrink)

    def init(previous: State | None, key: Key[Array, ""]) -> State:
        return begin(config, frame, index, previous, key)

    def batches(data_state: Any) -> RayBatches:
        part, count = process_shard(mesh)
        seed = config.loop.seed, index
        return RayBatches(views, fit.rays, seed=seed, index=part, count=count, state=data_state)

    step = make_ray_step(config, frame, index, views.cameras, mesh)
    check = partial(_check_rows, config, index)
    return Phase(fit.name, fit.steps, init, step, batches, report, check)


def _shrunk(views: Views, factor: int) -> Views:
    if factor == 1:
        return views
    sides = views.cameras.width, views.cameras.height
    return views.resized(*(max(1, round(side / factor)) for side in sides))


def _check_rows(config: FitConfig, index: int, state: State) -> None:
    lost = int(state["extra"]["lost"])
    if lost:
        fit, rows = config.fits[index], config.rows_of(index) or 0
        raise UserError(
            f"fits.{index}.rows is {rows}, and {rows + lost} voxels may hold matter: set it to "
            f"{rows + lost} or more, or raise fits.{index}.keep ({fit.keep:g}), and start again to go on"
        )


# The loss of each example from (model, all parameters, batch, keys, look), with sums; "mse" becomes a PSNR.
FieldLoss: TypeAlias = Callable[
    [Model, Params, Mapping[str, Any], Any, Look], tuple[Float[Array, "b"], Sums]
]


def make_ray_step(
    config: FitConfig, frame: Frame, index: int, cameras: Cameras, mesh: Mesh | None
) -> Step:
    """The step of fit `index` on rays of those cameras."""
    fit = config.fits[index]

    def loss(
        model: Model, _: Params, batch: Mapping[str, Any], keys: Any, look: Look
    ) -> tuple[Array, Sums]:
        return ray_loss(config, fit, cameras, model, batch, keys, look, mesh=mesh)

    return make_field_step(config, frame, index, loss)


def make_field_step(config: FitConfig, frame: Frame, index: int, field_loss: FieldLoss) -> Step:
    """The step of fit `index` down a loss of the field; it looks at the occupancy grid again where there is one."""
    optimizer = _optimizer(config, index)

    def step(state: State, batch: Mapping[str, Any], key: Key[Array, ""]) -> tuple[State, Sums]:
        look = look_of(config, frame, index, state)

        def loss(params: Params, batch: Mapping[str, Any], keys: Any) -> tuple[Array, Sums]:
            return field_loss(model_of(config, frame, index, params), params, batch, keys, look)

        state, sums = make_step(cast(Loss, loss), optimizer, ema_decay=None)(state, batch, key)
        if "mse" in sums:
            mse, count = sums.pop("mse")
            sums["psnr"] = (-10.0 * jnp.log10(jnp.maximum(mse / count, 1e-10)), jnp.ones(()))
        level = state["extra"].get("level")
        if level is not None:
            model = model_of(config, frame, index, weights(state))
            state["extra"]["level"] = _looked_again(config, model, state, level, key)
        return state, sums

    return step


def model_of(config: FitConfig, frame: Frame, index: int, params: Params) -> Model:
    """The model of fit `index` from `{path: array}`, which may hold more."""
    abstract = abstract_model(config, frame, index)
    return unflatten(abstract, {path: params[path] for path in flatten(abstract) if path in params})


def look_of(config: FitConfig, frame: Frame, index: int, state: State) -> Look:
    """How fit `index` looks at its field in that state."""
    taken = sum(before.steps for before in config.fits[:index])
    steps = taken + state["extra"]["updates"].astype(jnp.float32)
    model = model_of(config, frame, index, weights(state))
    return Look(
        look_at_cells(config, model, state["extra"].get("level")),
        jnp.minimum(steps / max(config.anneal, 1), 1.0),
    )


def begin(
    config: FitConfig, frame: Frame, index: int, previous: State | None, key: Key[Array, ""]
) -> State:
    """The state before fit `index`: the model before, grown or packed as the fit says, and a fresh optimizer.

    `previous` is a state of the fit before; before the first fit, one of the first fit's own form, or None.
    """
    model, lost = make_model(config, frame, index, key), jnp.zeros((), jnp.int32)
    if previous is not None:
        try:
            model = model_of(config, frame, max(index - 1, 0), weights(previous))
        except ValueError as error:
            raise UserError(
                f"the state to start from is of another field ({error}); start from a state of the first fit's form"
            ) from None
        if index and isinstance(model.field, VoxelGrid | PackedGrid):
            field, lost = grown(config, index, model.field)
            model = Model(field, list(model.proposals))
    extra: dict[str, Any] = {"lost": lost}
    if config.occupancy is not None and not isinstance(model.field, PackedGrid):
        kept = (previous or {}).get("extra", {}).get("level")
        extra["level"] = full_level(config.occupancy) if kept is None else kept
    optimizer = _optimizer(config, index)
    return make_state(flatten(model), optimizer, trainable=is_trained, ema=False, extra=extra)


def _optimizer(config: FitConfig, index: int) -> optax.GradientTransformation:
    return make_optimizer(config.fits[index].optimizer, config.fits[index].steps)


def _looked_again(
    config: FitConfig,
    model: Model,
    state: State,
    level: Float[Array, "g g g"],
    key: Key[Array, ""],
) -> Float[Array, "g g g"]:
    """The occupancy level after a step: looked at again once in `every` steps."""
    assert config.occupancy is not None
    settings, updates = config.occupancy, state["extra"]["updates"]

    def look(level: Array) -> Array:
        turn = updates // settings.every
        return updated_level(level, model.field, settings, named(key, "occupancy"), turn)

    return jax.lax.cond(updates % settings.every == 0, look, lambda level: level, level)
