"""Toy scenes fitted, edited and scored against the true edited scene: what the demo and the experiments do."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from jaxedit.edit_metrics import TruthScore, truth_score
from jaxedit.scene.record import FILE, SceneRecord, write_record
from jaxedit.scene.scene import Scene, Views
from jaxedit.scene.toy import ToyEdit, ToyScene, capture
from jaxedit.systems.instruct_nerf2nerf.recipe import Recipe
from jaxedit.systems.instruct_nerf2nerf.system import InstructNerf2Nerf
from jaxedit.systems.instruct_pix2pix.quality import CHANGED
from jaxedit.systems.reconstruct.report import truth_of
from jaxedit.systems.reconstruct.stored import Fitted, load_fitted
from jaxedit.systems.reconstruct.system import Reconstruct
from jaxvid.core.mesh import make_mesh
from jaxvid.core.run import RunDirectory
from jaxvid.pipelines.latent import LatentDiffusion
from jaxvid.train import loop
from jaxvid.train.state import State

VIEWS, TEST_VIEWS, SIZE = 30, 8, 48


def toy_capture(scene: ToyScene, size: int = SIZE) -> Scene:
    """The scene as it is photographed for edits."""
    return capture(scene, views=VIEWS, size=size, test_views=TEST_VIEWS)


def fit_scene(scene: Scene, system: Reconstruct, folder: Path) -> Fitted:
    """Fits a scene in memory; the run is in `folder`, and goes on where it was if it is there."""
    system = system.seeing(scene)
    run = RunDirectory.open(folder, system)
    write_record(SceneRecord.of(scene), folder / FILE)
    loop.fit(run, system.phases(scene), system.loop, mesh=make_mesh(system.mesh))
    return load_fitted(folder)


class Edited(NamedTuple):
    """An edit that was made: the scene after it, and the last state of its run."""

    fitted: Fitted
    state: State


def edit_scene(
    fitted: Fitted, views: Views, recipe: Recipe, model: LatentDiffusion, folder: Path
) -> Edited:
    """Edits a fitted scene as `recipe` says; the run is in `folder`, and goes on where it was if it is there."""
    system: InstructNerf2Nerf = recipe.system(fitted)
    cameras, box = fitted.record.cameras["train"], fitted.record.box
    opened = system.open(model, cameras, box, system.originals(views), views.masks)
    run = RunDirectory.open(folder, system)
    write_record(fitted.record, folder / FILE)
    state = loop.fit(
        run,
        opened.phases,
        system.loop,
        mesh=make_mesh(system.mesh),
        start=opened.start(fitted.state),
    )
    return Edited(load_fitted(folder), state)


def rendered_views(fitted: Fitted, views: Views) -> list[Float[np.ndarray, "h w 3"]]:
    """The scene as those cameras see it, in [0, 1]."""
    return [
        np.asarray(
            fitted.system.render_image(
                fitted.frame, fitted.state, views.cameras, i, fit=fitted.fit
            ).colour
        )
        for i in range(len(views))
    ]


def shown_changes(
    before: Float[np.ndarray, "h w 3"], after: Float[np.ndarray, "h w 3"]
) -> Bool[np.ndarray, "h w"]:
    """Where two pictures differ visibly, by more than `CHANGED` in any colour."""
    return np.abs(after - before).max(axis=-1) > CHANGED


def score_edit(before: Fitted, after: Fitted, edit: ToyEdit, size: int = SIZE) -> list[TruthScore]:
    """The edit's scores in the test views, against the true edited scene."""
    old, new = (toy_capture(scene, size).views["test"] for scene in (edit.before, edit.scene))
    background = before.system.background
    scores = []
    for i, (a, b) in enumerate(
        zip(rendered_views(before, old), rendered_views(after, old), strict=True)
    ):
        truth, original = truth_of(new, i, background), truth_of(old, i, background)
        scores.append(truth_score(a, b, truth, shown_changes(original, truth)))
    return scores


class Summary(NamedTuple):
    """Means over the views of one edit: gain and kept in dB, and the error of the changed part's colour."""

    gain: float
    kept: float
    colour_error: float

    @property
    def passes(self) -> bool:
        """Whether the changed part came 3 dB nearer to the truth and the rest stayed within 26 dB of it."""
        return self.gain >= 3.0 and self.kept >= 26.0


def summary(scores: list[TruthScore]) -> Summary:
    """PSNRs of pooled squared errors, weighed by how many pixels each view has of the part."""

    def pooled(values: list[float], weights: list[float]) -> float:
        errors = [w * 10 ** (-v / 10) for v, w in zip(values, weights, strict=True) if w > 0]
        return -10 * float(np.log10(sum(errors) / sum(w for w in weights if w > 0)))

    changed = [score.changed for score in scores]
    if not any(changed):
        return Summary(float("nan"), float("nan"), float("nan"))
    gain = pooled([s.after for s in scores], changed) - pooled([s.before for s in scores], changed)
    kept = pooled([s.kept for s in scores], [1.0 - share for share in changed])
    return Summary(gain, kept, float(np.nanmean([score.colour_error for score in scores])))
