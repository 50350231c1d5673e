"""Does the iterative dataset update beat its alternatives? (Instruct-NeRF2NeRF, section 5 and Table 1.)

    jaxvid ablate experiments/instruct_nerf2nerf/methods.py --dry-run
    jaxvid ablate experiments/instruct_nerf2nerf/methods.py --seeds 3 --run runs/ablations

Four methods edit the same fitted toy scenes with the small editor, a scene and an instruction a seed, neither ever trained on:

    in2n        the iterative dataset update, 600 steps
    per-view    every view edited from pure noise, and no field
    one-time    every view edited once, then 600 steps of fitting
    sds         the editor's score as gradient on renders; 1000 steps, as many as the iterative update makes calls of the editor,
                at noise levels from the upper half, as its

Scored is what a method shows from the 30 training cameras: renders of its field, or the edited views where there is none.

    edit/gain            dB by which the part that the true edit changes has come nearer to the truth: fidelity
    edit/kept            PSNR of the rest, in dB
    reprojection/error   mean difference of colours at the same point of the surface in neighbouring views, found by exact depths: 3-D
                         inconsistency. The paper's measure, by CLIP, needs weights that say nothing of 48 pixels.
    reprojection/truth   the same of the true edited scene: what shading and half-covered pixels leave of it

The edits change colours and light, not shapes: exact depths are those of the scene before, for every method.
"""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from jaxedit.edit_metrics import nearest_pairs, reprojection_error, truth_score
from jaxedit.scene.toy import take
from jaxedit.systems.reconstruct.report import truth_of
from jaxedit.toy_edits import ToyEditing, rendered_views, shown_changes, summary, toy_capture
from jaxvid.core.config import load_config
from jaxvid.evaluate.ablate import Verdict
from jaxvid.train.state import State

QUESTION = "Does the iterative dataset update edit more faithfully and more consistently than its alternatives?"
CLAIM = (
    "Instruct-NeRF2NeRF, Table 1 (CLIP direction similarity / consistency): per-frame .1603 / .8185, one-time update .1157 / .8823, "
    "SDS .0266 / .9160, theirs .1600 / .9191"
)
COST = "not measured yet"
SCENES = 1 << 22  # the editor and the held-out cases have other ones


def base() -> ToyEditing:
    """The laptop's presets on edits of colour and light."""
    recipe = load_config("instruct_nerf2nerf/small")
    return ToyEditing(
        SCENES, ("recolour", "light"), load_config("reconstruct/toy"), recipe, loop=recipe.loop
    )


def images(system: ToyEditing, state: State) -> list[np.ndarray]:
    """What the method shows from the training cameras, in [0, 1]."""
    if system.recipe.method == "per-view":
        return list(np.asarray(state["extra"]["images"]).astype(np.float32) / 255.0)
    return rendered_views(system.edited(state), toy_capture(system.edit.before).views["train"])


def edit(system: ToyEditing, state: State, seed: int) -> Mapping[str, float]:
    """Fidelity: see the module."""
    before, background = system.fitted, system.base.background
    old, new = (
        toy_capture(scene).views["train"] for scene in (system.edit.before, system.edit.scene)
    )
    scores = []
    shown = zip(rendered_views(before, old), images(system, state), strict=True)
    for i, (a, b) in enumerate(shown):
        truth, original = truth_of(new, i, background), truth_of(old, i, background)
        scores.append(truth_score(a, b, truth, shown_changes(original, truth)))
    found = summary(scores)
    return {"gain": found.gain, "kept": found.kept}


def reprojection(system: ToyEditing, state: State, seed: int) -> Mapping[str, float]:
    """Inconsistency: see the module."""
    new, background = toy_capture(system.edit.scene).views["train"], system.base.background
    stage, cameras = system.edit.before.stage(), new.cameras
    pictures = [take(stage, cameras, i) for i in range(len(new))]
    depths = [np.asarray(jnp.where(p.alpha > 0, p.depth, 0.0)) for p in pictures]
    opacities = [np.asarray(picture.alpha) for picture in pictures]
    pairs = nearest_pairs(cameras)
    truth = [truth_of(new, i, background) for i in range(len(new))]

    def error(views: list[np.ndarray]) -> float:
        return reprojection_error(views, depths, opacities, cameras, pairs)[0]

    return {"error": error(images(system, state)), "truth": error(truth)}


BASE = base
VARIANTS = {
    "in2n": {},
    "per-view": {"recipe.method": "per-view", "recipe.every": None},
    "one-time": {"recipe.method": "one-time", "recipe.every": None},
    "sds": {"recipe.method": "sds", "recipe.every": None, "recipe.steps": 1000},
}
METRICS = {"edit": edit, "reprojection": reprojection}
PAIR = "nothing"
VERDICT = (
    Verdict("reprojection/error", "higher", ("per-view",)),
    Verdict("edit/gain", "lower", ("one-time", "sds")),
)
