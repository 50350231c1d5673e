"""Toy scenes fitted, edited and scored against the true edited scene: what the demo and the experiments do."""

import dataclasses
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from jaxedit.edit_metrics import TruthScore, truth_score
from jaxedit.editing import load_editor
from jaxedit.scene.record import FILE, SceneRecord, write_record
from jaxedit.scene.scene import Scene, Views
from jaxedit.scene.toy import EditKind, ToyEdit, ToyScene, capture, toy_edit
from jaxedit.scene.toy.capture import BOX
from jaxedit.scene.toy.world import ToySplit
from jaxedit.scene.writing import write_blender
from jaxedit.systems.instruct_nerf2nerf.config import stages_of
from jaxedit.systems.instruct_nerf2nerf.recipe import Recipe
from jaxedit.systems.instruct_nerf2nerf.system import InstructNerf2Nerf, Opened
from jaxedit.systems.instruct_pix2pix.quality import CHANGED
from jaxedit.systems.reconstruct.report import truth_of
from jaxedit.systems.reconstruct.stored import Fitted, load_fitted
from jaxedit.systems.reconstruct.system import Reconstruct
from jaxvid.core.config import load_config, replace
from jaxvid.core.mesh import MeshConfig, make_mesh
from jaxvid.core.run import RunDirectory
from jaxvid.pipelines.latent import LatentDiffusion
from jaxvid.train import loop
from jaxvid.train.phase import Phase
from jaxvid.train.session import LoopConfig
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


def write_and_fit(
    scene: Scene, folder: Path, run: Path, changes: Mapping[str, Any] | None = None
) -> Fitted:
    """Writes a toy scene's pictures to `folder` and fits them as `reconstruct/toy` with those changes says: a run that `jaxedit edit` takes."""
    write_blender(scene, folder)
    low, high = (tuple(map(float, corner)) for corner in BOX)
    known = {"data.path": str(folder), "data.box": (low, high)}
    known |= {"data.near": scene.near, "data.far": scene.far}
    return fit_scene(
        scene, replace(load_config("reconstruct/toy"), {**known, **(changes or {})}), run
    )


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


# --- an edit as a system of its own --------------------------------------------------------------


class Work(NamedTuple):
    """Of a phase: its steps, and the patches of one."""

    steps: int
    batch: int


@dataclass(frozen=True)
class ToyEditing:
    """The edit of a toy scene from the fit on, for ablations: `loop.seed` chooses the scene and its instruction, and everything drawn.

    scenes: added to the seed, so that it names other scenes. kinds: of edits, taken in turn by the seeds. base: how a scene is
    fitted. recipe: how it is edited; its mesh and loop are those of here.
    """

    scenes: int
    kinds: tuple[EditKind, ...]
    base: Reconstruct
    recipe: Recipe
    split: ToySplit = "heldout"
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    loop: LoopConfig = dataclasses.field(default_factory=LoopConfig)

    @property
    def edit(self) -> ToyEdit:
        """What is asked, and what would come of it exactly."""
        number = self.loop.seed
        kind = self.kinds[number % len(self.kinds)]
        return toy_edit(self.scenes, number, kind=kind, split=self.split)

    @property
    def fitted(self) -> Fitted:
        """The scene before the edit; fitted once for all edits of it that this process makes."""
        system = replace(self.base, {"loop.seed": self.loop.seed, "data.path": "toy"})
        return _fitted(self.edit.before, dataclasses.replace(system, mesh=self.mesh))

    @property
    def system(self) -> InstructNerf2Nerf:
        """The edit of `fitted`."""
        changes = {"edit.instruction": self.edit.instruction}
        recipe = replace(self.recipe, changes)
        return dataclasses.replace(recipe, mesh=self.mesh, loop=self.loop).system(self.fitted)

    @property
    def opened(self) -> Opened:
        """The edit with its editor and views."""
        views = toy_capture(self.edit.before).views["train"]
        system, fitted = self.system, self.fitted
        return system.open(
            load_editor(self.recipe.edit.editor),
            views.cameras,
            fitted.record.box,
            system.originals(views),
            views.masks,
        )

    @property
    def stages(self) -> tuple[Work, ...]:
        """Of the recipe's method, for so many views."""
        recipe = self.recipe
        stages = stages_of(recipe.method, recipe.steps, VIEWS, every=recipe.every)
        return tuple(Work(stage.steps, recipe.training.patches) for stage in stages)

    def phases(self) -> list[Phase]:
        """One a stage."""
        return self.opened.phases

    def start(self) -> State:
        """The fitted scene, the views before the edit and the editor."""
        return self.opened.start(self.fitted.state)

    def edited(self, state: State) -> Fitted:
        """The scene in that state."""
        whole, fitted = self.system.reconstruction, self.fitted
        return Fitted(whole, fitted.record, state, len(whole.fits) - 1)


@lru_cache(maxsize=2)
def _fitted(scene: ToyScene, system: Reconstruct) -> Fitted:
    with tempfile.TemporaryDirectory() as folder:
        return fit_scene(toy_capture(scene), system, Path(folder) / "fit")
