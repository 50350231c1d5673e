"""`jaxedit demo`: a toy scene fitted, edited by a sentence, shown before and after, and scored against the true edited scene.

Written into the folder given:

    scene/              the pictures, in NeRF-synthetic's layout
    run/                the fitted scene with its edit: `jaxedit view`, `render`, `history` take it
    before_after.mp4    once around it, before and after side by side
    gallery.png         the edit and four others: a row each of before, after and the truth, from two sides
    figures.json        for each: the sentence, how much nearer the changed part came to the truth, how well the rest was kept
"""

import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from jaxedit.editing import load_editor, prepare, run_edit
from jaxedit.history import load_current, read_history
from jaxedit.scene.cameras import Cameras
from jaxedit.scene.paths import cameras_along, turntable
from jaxedit.scene.scene import Views
from jaxedit.scene.toy import EditKind, ToyEdit, ToyScene, make_edit, toy_scene
from jaxedit.systems.instruct_nerf2nerf.recipe import Recipe
from jaxedit.systems.reconstruct.report import to_bytes, truth_of
from jaxedit.systems.reconstruct.stored import Fitted
from jaxedit.toy_edits import (
    SIZE,
    Summary,
    edit_scene,
    rendered_views,
    score_edit,
    summary,
    toy_capture,
    write_and_fit,
)
from jaxvid.core.config import load_config
from jaxvid.core.config import replace as replace_config
from jaxvid.core.errors import UserError
from jaxvid.data.writing import write_bytes, write_image, write_video
from jaxvid.pipelines.latent import LatentDiffusion

TURNTABLE, TURNTABLE_SIZE = 40, 160  # frames, and pixels a side
SHOWN = (1, 5)  # test views in the gallery
ENLARGED = 4  # times, pixels of the gallery


@dataclass(frozen=True)
class Showcase:
    """A toy scene and its edits, (seed, kind) each; the first is the one that is shown at length."""

    seed: int
    index: int
    edits: tuple[tuple[int, EditKind], ...]

    def scene(self) -> ToyScene:
        """The scene before any edit."""
        return toy_scene(self.seed, self.index)

    def made(self) -> list[ToyEdit]:
        """The edits, each of the scene as it was at first."""
        return [
            make_edit(seed, self.scene(), kind, split="all", phrases="train")
            for seed, kind in self.edits
        ]


SHOWCASE = Showcase(
    0, 5, ((0, "light"), (0, "recolour"), (1, "recolour"), (0, "retexture"), (0, "remove"))
)


def run_demo(out: Path, *, editor: str | None = None, showcase: Showcase = SHOWCASE) -> list[str]:
    """Makes the demo with the editor in that folder (the small one that comes along); returns lines to print. Raises UserError where `out` holds something else."""
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / "run").is_dir())):
        raise UserError(f"--out {out} exists and is no demo; give a new or empty folder")
    model = load_editor(editor)
    begin, edits = time.monotonic(), showcase.made()
    scene = toy_capture(showcase.scene())
    before = write_and_fit(scene, out / "scene", out / "run")
    fitted_after = time.monotonic() - begin
    recipe: Recipe = replace_config(
        load_config("instruct_nerf2nerf/small"), {"edit.editor": editor}
    )
    first = replace(recipe, edit=replace(recipe.edit, instruction=edits[0].instruction))
    if not read_history(out / "run").at:
        run_edit(out / "run", prepare(out / "run", first, model))
    after = load_current(out / "run")
    edited_after = time.monotonic() - begin
    path = write_video(out / "before_after.mp4", side_by_side(before, after), 15.0)
    results = [
        (edits[0], after),
        *gallery_edits(before, scene.views["train"], recipe, model, edits[1:]),
    ]
    rows, figures = [], []
    for edit, fitted in results:
        found = summary(score_edit(before, fitted, edit))
        figures.append(_figure(edit, found))
        rows.append(gallery_row(before, fitted, edit))
    write_image(out / "gallery.png", np.concatenate(rows))
    seconds = {"fitted": fitted_after, "edited": edited_after, "all": time.monotonic() - begin}
    whole = {"seconds": {name: round(value) for name, value in seconds.items()}, "edits": figures}
    write_bytes(out / "figures.json", (json.dumps(whole, indent=1) + "\n").encode())
    return [
        *(
            f'"{figure["instruction"]}": {figure["gain_db"]:+.1f} dB in the changed part, the rest within '
            f"{figure['kept_db']:.1f} dB"
            for figure in figures
        ),
        f"{path}, {out / 'gallery.png'}; fitted after {fitted_after:.0f} s, edited after {edited_after:.0f} s, "
        f"{seconds['all']:.0f} s in all",
    ]


def gallery_edits(
    before: Fitted,
    views: Views,
    recipe: Recipe,
    model: LatentDiffusion,
    edits: Sequence[ToyEdit],
) -> list[tuple[ToyEdit, Fitted]]:
    """Each edit of the same scene, in runs that are not kept."""
    found = []
    for edit in edits:
        told = replace(recipe, edit=replace(recipe.edit, instruction=edit.instruction))
        with tempfile.TemporaryDirectory() as folder:
            found.append(
                (edit, edit_scene(before, views, told, model, Path(folder) / "run").fitted)
            )
    return found


def side_by_side(before: Fitted, after: Fitted) -> UInt8[np.ndarray, "t h w 3"]:
    """Once around the scene, before on the left."""
    cameras = around(before.record.cameras["train"])
    frames = []
    for index in range(len(cameras)):
        pair = [
            to_bytes(
                np.asarray(
                    fitted.system.render_image(
                        fitted.frame, fitted.state, cameras, index, fit=fitted.fit
                    ).colour
                )
            )
            for fitted in (before, after)
        ]
        frames.append(np.concatenate(pair, axis=1))
    return np.stack(frames)


def around(training: Cameras) -> Cameras:
    """The cameras of the turntable."""
    poses = np.asarray(training.pose, np.float64)
    path = cameras_along(turntable(poses, TURNTABLE), training)
    return path.resized(TURNTABLE_SIZE, TURNTABLE_SIZE)


def gallery_row(before: Fitted, after: Fitted, edit: ToyEdit) -> UInt8[np.ndarray, "h w 3"]:
    """Before, after and the truth from the sides of `SHOWN`, enlarged."""
    truth = toy_capture(edit.scene, SIZE).views["test"].select(list(SHOWN))
    columns = []
    pairs = zip(rendered_views(before, truth), rendered_views(after, truth), strict=True)
    for i, (old, new) in enumerate(pairs):
        columns += [old, new, truth_of(truth, i, before.system.background)]
    row = to_bytes(np.concatenate(columns, axis=1))
    return row.repeat(ENLARGED, axis=0).repeat(ENLARGED, axis=1)


def _figure(edit: ToyEdit, found: Summary) -> dict[str, Any]:
    return {
        "instruction": edit.instruction,
        "kind": edit.kind,
        "gain_db": round(found.gain, 2),
        "kept_db": round(found.kept, 2),
        "colour_error": round(found.colour_error, 4),
        "passes": found.passes,
    }
