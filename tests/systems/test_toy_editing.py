"""Edits of toy scenes as a system for ablations, and what `experiments/instruct_nerf2nerf/methods.py` scores."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from experiment_files import load_experiment_file
from small_fits import ADAM, system
from tiny_pix2pix import tiny_model

from jaxedit import toy_edits
from jaxedit.scene.toy import toy_edit
from jaxedit.systems.instruct_nerf2nerf import EditConfig, Recipe, TrainingConfig, training
from jaxedit.systems.reconstruct import system as reconstruct_system
from jaxedit.systems.reconstruct import training as reconstruct_training
from jaxedit.systems.reconstruct.report import truth_of
from jaxedit.toy_edits import VIEWS, ToyEditing, toy_capture
from jaxvid.core.config import replace as replace_config
from jaxvid.core.mesh import make_mesh
from jaxvid.core.paths import flatten
from jaxvid.core.run import RunDirectory
from jaxvid.train import loop
from jaxvid.train.loop import LoopConfig

METHODS = load_experiment_file("instruct_nerf2nerf/methods")


@pytest.fixture(autouse=True)
def _one_device(monkeypatch):
    """Eight simulated devices would each run the whole editor on the same few cores."""
    for module in (training, reconstruct_system, reconstruct_training, toy_edits):
        monkeypatch.setattr(module, "make_mesh", lambda _: None)
    monkeypatch.setattr(toy_edits, "load_editor", lambda _: tiny_model())


def editing(method="in2n", **changes):
    recipe = Recipe(
        method=method,
        steps=4,
        every=2 if method == "in2n" else None,
        edit=EditConfig(steps=2),
        training=TrainingConfig(patches=2, side=8, optimizer=ADAM),
    )
    fits = tuple(replace(fit, steps=20) for fit in system().fits)
    made = ToyEditing(
        7, ("recolour", "light"), system(fits=fits), recipe, loop=LoopConfig(log_every=2)
    )
    return replace(made, **changes)


def test_the_seed_chooses_scene_and_instruction():
    first, second = editing(), editing(loop=LoopConfig(seed=1))
    assert first.edit == toy_edit(7, 0, kind="recolour", split="heldout")
    assert second.edit == toy_edit(7, 1, kind="light", split="heldout")
    assert second.system.edit.instruction == second.edit.instruction
    assert second.fitted.system.loop.seed == 1
    assert [stage.steps for stage in editing("one-time").stages] == [VIEWS, 4]


def test_a_start_is_the_same_in_every_process():
    given = editing()
    first = flatten(given.start())
    toy_edits._fitted.cache_clear()
    again = flatten(given.start())
    assert first.keys() == again.keys()
    assert all(np.array_equal(first[path], again[path]) for path in first)


def test_an_edit_is_run_by_the_loop_and_scored(tmp_path):
    given = editing()
    run = RunDirectory.open(tmp_path / "run", given)
    assert RunDirectory.read_config(tmp_path / "run") == given
    state = loop.fit(
        run, given.phases(), given.loop, mesh=make_mesh(given.mesh), start=given.start()
    )
    edited = given.edited(state)
    assert edited.fit == len(given.base.fits)
    assert int(state["extra"]["updates"]) == 4
    shown = METHODS.images(given, state)
    assert len(shown) == VIEWS
    found = METHODS.edit(given, state, 0)
    assert np.isfinite(list(found.values())).all()
    # Two edits by an editor of random numbers and four steps of fitting move the field, and it is the moved one that is scored.
    views = toy_capture(given.edit.before).views["train"]
    unedited = toy_edits.rendered_views(given.fitted, views)
    assert max(np.abs(a - b).max() for a, b in zip(shown, unedited, strict=True)) > 1e-3


def test_scores_of_views_that_are_known():
    given = editing("per-view")
    new = toy_capture(given.edit.scene).views["train"]
    truth = np.stack([truth_of(new, i, given.base.background) for i in range(VIEWS)])
    noise = np.random.default_rng(0).normal(0.0, 0.1, truth.shape)

    def scored(images):
        state = given.start()
        pixels = np.round(255 * np.clip(images, 0, 1)).astype(np.uint8)
        state = {**state, "extra": {**state["extra"], "images": jax.numpy.asarray(pixels)}}
        return METHODS.edit(given, state, 0) | METHODS.reprojection(given, state, 0)

    exact, noisy = scored(truth), scored(truth + noise)
    assert exact["gain"] > 20.0
    assert exact["kept"] > 50.0
    np.testing.assert_allclose(exact["error"], exact["truth"], atol=2e-3)
    assert noisy["truth"] == exact["truth"]
    assert 18.0 < noisy["kept"] < 26.0  # white is clipped: less noise than -20 log10(0.1)
    # Of independent noise of deviation 0.1 and its bilinear mean, the difference is about 0.1 in the mean.
    assert 0.05 < noisy["error"] - exact["error"] < 0.12


def test_methods_differ_in_what_they_say():
    systems = {
        name: replace_config(METHODS.BASE(), changes) for name, changes in METHODS.VARIANTS.items()
    }
    assert [system.recipe.method for system in systems.values()] == list(systems)
    recipe = systems["in2n"].recipe
    calls = recipe.steps // recipe.every * recipe.edit.steps
    assert sum(work.steps for work in systems["sds"].stages) == calls
