"""The iterative dataset update (Instruct-NeRF2NeRF, Haque et al. 2023, section 4.2) and its relatives, as phases.

The state of an edit is that of a reconstruction with

    frozen["originals"]     uint8 [n, h, w, 3], the training views before the edit: what the editor is told, never changed
    frozen["editor/..."]    weights, and the embedded instruction; no checkpoint holds them
    extra["images"]         uint8 [n, h, w, 3], the views as they are now: what the field follows

A step draws its patches from the images, then edits views where it is time to (by renders of the field before the step), then
takes the step on the patches drawn: the order of the public code.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key, UInt8

from jaxedit.fields.field import Frame
from jaxedit.render.image import over_mesh, ray_parts
from jaxedit.scene.cameras import Cameras, pixel_rays
from jaxedit.systems.instruct_nerf2nerf.config import Stage, TrainingConfig
from jaxedit.systems.instruct_nerf2nerf.editor import Editor, Weights, from_pixels, to_pixels
from jaxedit.systems.instruct_nerf2nerf.patches import PatchBatches
from jaxedit.systems.reconstruct.config import FitConfig
from jaxedit.systems.reconstruct.model import Model
from jaxedit.systems.reconstruct.system import Reconstruct
from jaxedit.systems.reconstruct.training import (
    Look,
    begin,
    look_of,
    make_field_step,
    model_of,
    render_view,
    rendered,
)
from jaxvid.core.mesh import make_mesh, process_shard
from jaxvid.core.paths import flatten, unflatten
from jaxvid.core.rng import named
from jaxvid.pipelines.edit import Told
from jaxvid.train.phase import Batches, Phase
from jaxvid.train.state import Params, State, weights
from jaxvid.train.step import Step, Sums

EDITOR = "editor/"  # before the paths of `Weights` among what is frozen


class Setting(NamedTuple):
    """What the phases of an edit share.

    whole: the reconstruction with one fit more for each stage; first: the number of the first stage's. form: the weights as shapes.
    views: how many; masks: of their pixels that count, None for all.
    """

    whole: Reconstruct
    first: int
    frame: Frame
    cameras: Cameras
    editor: Editor
    form: Weights
    training: TrainingConfig
    stages: tuple[Stage, ...]
    views: int
    masks: Bool[np.ndarray, "n h w"] | None = None


def start_state(
    fitted: Mapping[str, Any], originals: UInt8[np.ndarray, "n h w 3"], given: Weights
) -> State:
    """What `fit` starts an edit from: a fitted state, the views before the edit, and the weights."""
    external = {EDITOR + path: leaf for path, leaf in flatten(given).items()}
    frozen = {**fitted.get("frozen", {}), **external, "originals": jnp.asarray(originals)}
    return {
        "trainable": dict(fitted["trainable"]),
        "frozen": frozen,
        "extra": dict(fitted.get("extra", {})),
    }


def weights_of(form: Weights, params: Params) -> Weights:
    """The weights among `{path: array}`."""
    return unflatten(
        form,
        {path[len(EDITOR) :]: leaf for path, leaf in params.items() if path.startswith(EDITOR)},
    )


def stage_phases(of: Setting) -> list[Phase]:
    """One phase a stage; the first begins with `start_state`."""
    return [_phase(of, index) for index in range(len(of.stages))]


def _phase(of: Setting, index: int) -> Phase:
    stage, number = of.stages[index], of.first + index
    mesh, seed = make_mesh(of.whole.mesh), (of.whole.loop.seed, number)

    def init(previous: State | None, key: Key[Array, ""]) -> State:
        assert previous is not None, "an edit begins with a fitted scene"
        state = begin(of.whole, of.frame, number, previous, key)
        kept = {
            path: leaf
            for path, leaf in previous["frozen"].items()
            if path == "originals" or path.startswith(EDITOR)
        }
        images = previous["extra"].get("images", kept["originals"])
        # A copy: the step donates what changes, and must not give away what is frozen.
        extra = {**state["extra"], "images": jnp.array(images, copy=True)}
        return {**state, "frozen": {**state["frozen"], **kept}, "extra": extra}

    def batches(data_state: Any) -> Batches:
        if stage.follows != "images":
            return Turns(data_state)
        part, count = process_shard(mesh)
        height, width, training = of.editor.height, of.editor.width, of.training
        return PatchBatches(
            of.views,
            height,
            width,
            training.patches,
            training.side,
            seed=seed,
            masks=of.masks,
            index=part,
            count=count,
            state=data_state,
        )

    return Phase(
        stage.name,
        stage.steps,
        init,
        make_stage_step(of, index),
        batches,
        external=lambda path: path.startswith(EDITOR),
    )


class Turns:
    """Batches of nothing but their number, for stages without patches: {"turn": [1] int32}."""

    def __init__(self, state: int | None = None):
        self._turn = state or 0

    def __next__(self) -> dict[str, np.ndarray]:
        self._turn += 1
        return {"turn": np.array([self._turn - 1], np.int32)}

    def get_state(self) -> Any:
        """How many batches have been given."""
        return self._turn


def make_stage_step(of: Setting, index: int) -> Step:
    """The step of a stage."""
    stage, number = of.stages[index], of.first + index
    losses = {"images": patch_loss, "score": score_loss}
    follow = losses.get(stage.follows)
    move = (
        None
        if follow is None
        else make_field_step(of.whole, of.frame, number, follow(of, stage, number))
    )

    def step(state: State, batch: Mapping[str, Any], key: Key[Array, ""]) -> tuple[State, Sums]:
        images, before = state["extra"]["images"], state
        if stage.follows == "images":
            batch = {**batch, "target": patches_of(images, batch, of.training.side)}
        if stage.every:
            edit = edit_views(of, stage, number, before, key)
            turn = state["extra"]["updates"]
            images = jax.lax.cond(turn % stage.every == 0, edit, lambda images: images, images)
        if move is None:
            extra = {**state["extra"], "updates": state["extra"]["updates"] + 1}
            state, sums = {**state, "extra": extra}, {}
        else:
            state, sums = move(state, batch, key)
        change = jnp.mean(jnp.abs(from_pixels(images) - from_pixels(before["frozen"]["originals"])))
        return {**state, "extra": {**state["extra"], "images": images}}, {
            **sums,
            "change": (change, jnp.ones(())),
        }

    return step


def edit_views(
    of: Setting, stage: Stage, number: int, state: State, key: Key[Array, ""]
) -> Callable[[Array], Array]:
    """Images -> images with the stage's next views edited, by renders of the field in that state.

    Of several views every device edits its own; a single one is edited by all of them alike.
    """
    mesh = make_mesh(of.whole.mesh)
    lower, upper = levels_of(of, stage)
    originals, turn = state["frozen"]["originals"], state["extra"]["updates"]
    count = min(stage.views, of.views)
    at_once = 1 if count == 1 else ray_parts(mesh)

    def edit_group(group: Array, images: Array) -> Array:
        model = model_of(of.whole, of.frame, number, weights(state))
        look = look_of(of.whole, of.frame, number, state)
        chunk = of.whole.image_chunk(number)

        def show(view: Array) -> Array:
            return render_view(
                of.whole, model, of.cameras, view, look.occupied, chunk, mesh=mesh
            ).colour

        def edit(told: Told, parts: Any) -> Array:
            def one(part: Any) -> Array:
                shown, original, key = part
                edited = of.editor.edited(told, shown, original, key, lower, upper)
                return to_pixels(edited)

            return jax.lax.map(one, parts)

        # A last group that is not full repeats the last view: the same key, the same bits.
        j = jnp.minimum(group * at_once + jnp.arange(at_once), count - 1)
        view = ((turn // stage.every) * stage.views + j) % of.views
        keys = jax.vmap(lambda j: named(key, "edit", j))(j)
        parts = (jax.lax.map(show, view), from_pixels(originals[view]), keys)
        spread = edit if at_once == 1 or mesh is None else over_mesh(edit, mesh)
        told = weights_of(of.form, state["frozen"]).told
        return images.at[view].set(spread(told, parts))

    return lambda images: jax.lax.fori_loop(0, -(-count // at_once), edit_group, images)


def levels_of(of: Setting, stage: Stage) -> tuple[float, float]:
    """The range of noise levels of a stage's edits, in fractions."""
    edit = of.editor.edit
    lower = edit.lower if stage.lower is None else stage.lower
    return lower, edit.upper if stage.upper is None else stage.upper


def patches_of(
    images: UInt8[Array, "n h w 3"], batch: Mapping[str, Any], side: int
) -> Float[Array, "b s s 3"]:
    """The patches of a batch, in [0, 1]."""

    def one(view: Array, corner: Array) -> Array:
        zero = jnp.zeros((), jnp.int32)
        place = (view, corner[1], corner[0], zero)
        return jax.lax.dynamic_slice(images, place, (1, side, side, 3))[0]

    return from_pixels(jax.vmap(one)(batch["view"], batch["corner"]))


@lru_cache(maxsize=4)
def _offsets(side: int) -> np.ndarray:
    row, column = np.mgrid[:side, :side]
    return np.stack([column, row], axis=-1).astype(np.float32) + 0.5


def patch_loss(of: Setting, stage: Stage, number: int) -> Callable[..., tuple[Array, Sums]]:
    """The loss of each patch: l1 |c - c'| + perceptual LPIPS(c, c'), and the losses of densities."""
    fit, mesh, training = of.whole.fits[number], make_mesh(of.whole.mesh), of.training
    side = training.side

    def loss(
        model: Model, params: Params, batch: Mapping[str, Any], keys: Any, look: Look
    ) -> tuple[Array, Sums]:
        count = batch["view"].shape[0]
        pixel = batch["corner"].astype(jnp.float32)[:, None, None] + _offsets(side)
        view = jnp.broadcast_to(batch["view"][:, None, None], pixel.shape[:-1])
        rays = pixel_rays(of.cameras, view.reshape(-1), pixel.reshape(-1, 2))
        ray_keys = jax.vmap(lambda key: jax.random.split(key, side**2))(keys).reshape(-1)
        behind = background(of.whole, count * side**2)
        pixels, dense, sums = rendered(
            of.whole, fit, model, rays, ray_keys, look, background=behind, mesh=mesh
        )
        colour, target = pixels.colour.reshape(count, side, side, 3), batch["target"]
        counts = jnp.ones((count, side, side), bool) if "counts" not in batch else batch["counts"]
        target = jnp.where(counts[..., None], target, jax.lax.stop_gradient(colour))
        error = jnp.where(counts[..., None], colour - target, 0.0)
        total = training.l1 * jnp.mean(jnp.abs(error), axis=(1, 2, 3))
        total = total + jnp.mean(dense.reshape(count, -1), axis=1)
        network = weights_of(of.form, params).lpips
        if network is not None:
            shown = 2.0 * jnp.clip(colour, 0.0, 1.0) - 1.0
            distance = network(shown, 2.0 * target - 1.0)
            sums["lpips"] = (jnp.sum(distance), jnp.float32(count))
            total = total + training.perceptual * distance
        square = jnp.sum(jnp.mean(error**2, axis=-1))
        sums["mse"] = (square, jnp.sum(counts.astype(jnp.float32)))
        return total, sums

    return loss


def score_loss(of: Setting, stage: Stage, number: int) -> Callable[..., tuple[Array, Sums]]:
    """The editor's score on the render of a view drawn at random, in two phases (`jaxedit.render.image`)."""
    mesh, chunk = make_mesh(of.whole.mesh), of.whole.image_chunk(number, "training")
    lower, upper = levels_of(of, stage)

    def loss(
        model: Model, params: Params, batch: Mapping[str, Any], keys: Any, look: Look
    ) -> tuple[Array, Sums]:
        view = jax.random.randint(named(keys[0], "view"), (), 0, of.views, jnp.int32)
        shown = render_view(of.whole, model, of.cameras, view, look.occupied, chunk, mesh=mesh)
        original = from_pixels(params["originals"][view])
        told = weights_of(of.form, params).told
        return of.editor.score_loss(told, shown.colour, original, keys[0], lower, upper), {}

    return loss


def background(config: FitConfig, count: int) -> Float[Array, "r 3"]:
    """Behind rays of edited images: black or white, as the images were laid on it."""
    return jnp.full((count, 3), 0.0 if config.background == "black" else 1.0)
