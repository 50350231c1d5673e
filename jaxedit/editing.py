"""`jaxedit edit` and `jaxedit history`: a scene edited by a sentence, in a run of its own that can be interrupted and undone."""

import hashlib
import json
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxedit.history import (
    before_head,
    head,
    new_edit,
    read_history,
    unfinished_edit,
    write_history,
)
from jaxedit.scene.record import FILE, write_record
from jaxedit.systems.instruct_nerf2nerf.config import stages_of
from jaxedit.systems.instruct_nerf2nerf.recipe import Recipe
from jaxedit.systems.instruct_nerf2nerf.report import edit_report
from jaxedit.systems.instruct_nerf2nerf.system import InstructNerf2Nerf, Opened
from jaxedit.systems.reconstruct.report import spread_indices
from jaxedit.systems.reconstruct.stored import Fitted, load_fitted
from jaxvid.core.config import difference, load_config, parse_overrides
from jaxvid.core.config import replace as replace_config
from jaxvid.core.errors import UserError
from jaxvid.core.mesh import MeshConfig, check_batch, make_mesh
from jaxvid.core.paths import flatten
from jaxvid.core.progress import Progress
from jaxvid.core.rng import named
from jaxvid.core.run import RunDirectory
from jaxvid.data.writing import write_image
from jaxvid.pipelines.edit import Told
from jaxvid.pipelines.latent import LatentDiffusion, load_latent_diffusion
from jaxvid.train import loop
from jaxvid.train.phase import Report
from jaxvid.train.state import State
from jaxvid.train.stop import StopRequest

MAY_DIFFER = (
    "loop.log_every",
    "loop.save_every",
    "loop.sample_every",
    "loop.keep",
    "loop.max_steps",
    "mesh",
)
PREVIEWS = 4  # views of a dry run
PREVIEW_LEVELS = (0.5, 0.98)  # noise levels that it shows


class Prepared(NamedTuple):
    """An edit that can begin, or go on, in `path`."""

    system: InstructNerf2Nerf
    opened: Opened
    fitted: Fitted
    path: Path


def shipped_editor() -> Path:
    """The folder of the small editing model that comes with jaxedit. Raises UserError in an installation without it."""
    folder = Path(str(resources.files("jaxedit"))) / "assets" / "instruct_pix2pix"
    if not (folder / "unet" / "config.json").is_file():
        raise UserError(f"{folder} is missing; install jaxedit again, or give --editor FOLDER")
    return folder


def load_editor(folder: str | None) -> LatentDiffusion:
    """InstructPix2Pix from a folder, by default the small one that comes with jaxedit. Raises UserError."""
    return load_latent_diffusion(shipped_editor() if folder is None else folder)


def prepare(run: Path, recipe: Recipe, editor: LatentDiffusion | None = None) -> Prepared:
    """Reads the scene and the editor for the edit that `recipe` describes.

    An interrupted edit of the same settings goes on; otherwise a new one begins. editor: instead of the one that the recipe names.
    Raises UserError before anything is written.
    """
    history = read_history(run)
    if history.strength != 1.0:
        raise UserError(
            f"the last edit of {run} stands at strength {history.strength:g}; set it to 1 (`jaxedit history {run} "
            "--blend 1`) or undo it before you edit further"
        )
    fitted = load_fitted(head(run, history))
    system = recipe.system(fitted)
    check_batch(make_mesh(system.mesh), system.training.patches)
    model = load_editor(system.edit.editor) if editor is None else editor
    cameras = fitted.record.cameras["train"]
    masks = None
    if history.at:
        originals = system.renders(fitted, cameras)
    else:
        views = _views(run, system)
        originals, masks = system.originals(views), views.masks
    opened = system.open(model, cameras, fitted.record.box, originals, masks)
    return Prepared(system, opened, fitted, _place(run, system))


def _views(run: Path, system: InstructNerf2Nerf) -> Any:
    try:
        return system.base.scene().views["train"]
    except UserError as error:
        raise UserError(f"{run} was fitted to images that an edit needs: {error}") from None


def _place(run: Path, system: InstructNerf2Nerf) -> Path:
    begun = unfinished_edit(run, read_history(run))
    if begun is not None:
        saved = RunDirectory.read_config(begun)
        if type(saved) is type(system):
            differing = difference(saved, system)
            if all(name.startswith(MAY_DIFFER) for name in differing):
                return begun
    return new_edit(run, system.edit.instruction)


def run_edit(
    run: Path,
    prepared: Prepared,
    *,
    watch: Callable[[Fitted, int], None] | None = None,
    stop: StopRequest | None = None,
) -> State:
    """Edits, from the newest checkpoint if there is one; the history has the edit once it is done.

    watch: is given the scene as it stands, and the step, every `loop.sample_every` steps. stop: see `jaxvid.train.loop.fit`.
    """
    system, opened, fitted, path = prepared
    phases = []
    for index, phase in enumerate(opened.phases):
        fit = len(system.base.fits) + index
        report = (
            edit_report(system, opened, fit) if watch is None else _watched(prepared, fit, watch)
        )
        phases.append(replace(phase, report=report))
    loop.check_phases(phases, system.loop)
    directory = RunDirectory.open(path, system, MAY_DIFFER)
    if jax.process_index() == 0:
        write_record(fitted.record, path / FILE)
        write_editor_record(path, prepared)
    mesh = make_mesh(system.mesh)
    state = loop.fit(
        directory, phases, system.loop, mesh=mesh, start=opened.start(fitted.state), stop=stop
    )
    done = sum(stage.steps for stage in system.stages)
    reached = system.loop.max_steps is None or system.loop.max_steps >= done
    if reached and jax.process_index() == 0:
        write_history(run, read_history(run).with_edit(path.name))
    return state


def _watched(prepared: Prepared, fit: int, watch: Callable[[Fitted, int], None]) -> Report:
    """A report that hands the scene on: a copy, as the next step gives the state away."""

    def report(state: State, step: int, _: RunDirectory) -> None:
        level = {
            name: state["extra"][name] for name in ("level", "updates") if name in state["extra"]
        }
        own = {path: leaf for path, leaf in state["frozen"].items() if path.startswith("field/")}
        kept = {"trainable": state["trainable"], "frozen": own, "extra": level}
        kept = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), kept)
        whole = replace(prepared.system.reconstruction, mesh=MeshConfig())
        watch(Fitted(whole, prepared.fitted.record, kept, fit), step)

    return report


def write_editor_record(path: Path, prepared: Prepared) -> None:
    """`editor.json`: the sentence as it was used, where the editor was, and a digest of its weights."""
    edit = prepared.system.edit
    record = {
        "instruction": edit.instruction,
        "negative": edit.negative,
        "editor": edit.editor or "the small one of jaxedit",
        "digest": weights_digest(prepared.opened.weights.told),
    }
    (path / "editor.json").write_text(json.dumps(record, indent=1) + "\n")


def weights_digest(told: Told) -> str:
    """SHA-256 over the arrays of the editor's networks, by path."""
    found = hashlib.sha256()
    for name, leaf in sorted(flatten((told.unet, told.autoencoder)).items()):
        array = np.asarray(leaf)
        found.update(f"{name} {array.dtype} {array.shape}\n".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def preview(run: Path, prepared: Prepared, out: Path | None = None) -> Path:
    """A dry run: a few views edited in 2-D, in rows of original, then edits from each of `PREVIEW_LEVELS`."""
    opened = prepared.opened
    chosen = spread_indices(len(opened.originals), PREVIEWS)
    key, rows = jax.random.key(prepared.system.loop.seed), []
    with Progress("views", len(chosen)) as progress:
        for view in chosen:
            original = opened.originals[view]
            edits = [
                opened.edit_view(original, original, named(key, "preview", view), level, level)
                for level in PREVIEW_LEVELS
            ]
            rows.append(np.concatenate([original, *edits], axis=1))
            progress.advance()
            progress.report({})
    out = prepared.path.with_name(f"preview-{prepared.path.name[4:]}.png") if out is None else out
    return write_image(out, np.concatenate(rows))


# --- commands ------------------------------------------------------------------------------------


def edit_command(arguments: Namespace, rest: Sequence[str]) -> None:
    """`jaxedit edit`."""
    recipe = recipe_of(arguments, rest)
    run: Path = arguments.source
    prepared = prepare(run, recipe)
    print(f'instruction "{prepared.system.edit.instruction}"', file=sys.stderr)
    print(prepared.system.estimate(prepared.opened), file=sys.stderr)
    if arguments.dry_run:
        print(preview(run, prepared, arguments.out))
        return
    going_on = (prepared.path / "config.json").exists()
    print(f"{'goes on in' if going_on else 'edit'} {prepared.path}", file=sys.stderr)
    begin = time.monotonic()
    run_edit(run, prepared)
    print(f"done in {time.monotonic() - begin:.0f} s: {prepared.path}")
    print(f"look at it with `jaxedit view {run}`, take it back with `jaxedit history {run} --undo`")


def recipe_of(arguments: Namespace, rest: Sequence[str]) -> Recipe:
    """The preset changed by the options. Raises UserError for one that is no recipe, or an option that does not exist."""
    given = {
        "edit.instruction": arguments.instruction,
        "method": arguments.method,
        "steps": arguments.steps,
        "edit.editor": arguments.editor,
    }
    recipe = load_recipe(arguments.config, given)
    prog = f"jaxedit edit {arguments.source}"
    recipe = parse_overrides(recipe, ["--help"] if arguments.options else rest, prog=prog)
    if not recipe.edit.instruction.strip():
        raise UserError(
            'the instruction is empty; say what to change: --instruction "paint it blue"'
        )
    stages_of(recipe.method, recipe.steps, 1, every=recipe.every)
    return recipe


def load_recipe(config: str, given: Mapping[str, Any]) -> Recipe:
    """The preset of that name, or in that file, with those of the values that are not None. Raises UserError."""
    recipe = load_config(config)
    if not isinstance(recipe, Recipe):
        raise UserError(
            f"config {config} is a {type(recipe).__name__}, which is no way to edit; return a Recipe"
        )
    return replace_config(
        recipe, {name: value for name, value in given.items() if value is not None}
    )


def history_command(arguments: Namespace) -> str:
    """`jaxedit history`: what stands, after the change asked for."""
    run: Path = arguments.source
    load_fitted(run)
    history = read_history(run)
    if arguments.undo:
        history = history.undone()
    if arguments.redo:
        history = history.redone()
    if arguments.blend is not None:
        history = history.blended(arguments.blend)
        load_fitted(before_head(run, history))
    if arguments.undo or arguments.redo or arguments.blend is not None:
        write_history(run, history)
    lines = [f"{'*' if history.at == 0 else ' '} as it was fitted"]
    for number, name in enumerate(history.edits, 1):
        edit = RunDirectory.read_config(run / "edits" / name).edit
        mark = "*" if number == history.at else " " if number < history.at else "-"
        strength = (
            f", strength {history.strength:g}"
            if number == history.at and history.strength < 1
            else ""
        )
        lines.append(f'{mark} {name}: "{edit.instruction}"{strength}')
    return "\n".join(lines)
