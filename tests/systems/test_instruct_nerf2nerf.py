"""Instruct-NeRF2NeRF: stages, patches, the order of a step, single edits, whole edits, resuming."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from small_fits import ADAM, toy
from tiny_editor import (
    EXCHANGED,
    as_bytes,
    as_numbers,
    edit_of,
    fitted,
    opened,
    swapping,
    to_jax,
)
from tiny_pix2pix import tiny_model

from jaxedit.evaluate import psnr
from jaxedit.systems.instruct_nerf2nerf import (
    EditConfig,
    InstructNerf2Nerf,
    Stage,
    TrainingConfig,
    stages_of,
    training,
)
from jaxedit.systems.instruct_nerf2nerf.editor import Editor
from jaxedit.systems.instruct_nerf2nerf.patches import PatchBatches
from jaxedit.systems.instruct_nerf2nerf.training import patches_of
from jaxedit.systems.reconstruct import system as reconstruct_system
from jaxvid.core.checkpoint import Checkpointer
from jaxvid.core.config import from_json, load_config, to_json
from jaxvid.core.errors import UserError
from jaxvid.core.mesh import MeshConfig, make_mesh, replicated
from jaxvid.core.paths import flatten
from jaxvid.core.rng import named
from jaxvid.core.run import RunDirectory
from jaxvid.pipelines import Revision, revise_image, tell
from jaxvid.train.loop import LoopConfig, fit

ROOT = jax.random.key(0)


@pytest.fixture(autouse=True)
def _one_device(monkeypatch):
    """Eight simulated devices would each run the whole editor on the same few cores."""
    for module in (training, reconstruct_system):
        monkeypatch.setattr(module, "make_mesh", lambda _: None)


def walk(given, steps=None, start=None):
    """The states of an edit's last stage after each step, by hand; and the first."""
    state = start if start is not None else given.start(fitted_state(given))
    for phase in given.phases:
        state = jax.jit(phase.init)(state, named(ROOT, phase.name, "init"))
        found, batches, step = [state], phase.batches(None), jax.jit(phase.step)
        for number in range(steps or phase.steps):
            state, _ = step(state, next(batches), named(ROOT, phase.name, number))
            found.append(state)
    return found


def fitted_state(given):
    return fitted("voxels" if given.setting.whole.occupancy else "hash").state


# --- what is asked -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("in2n", [("edit", 70, 10, 1, "images")]),
        ("intervals", [("edit", 70, 2500, 12, "images")]),
        ("one-time", [("edit", 12, 1, 1, "nothing"), ("follow", 70, 0, 1, "images")]),
        ("per-view", [("edit", 12, 1, 1, "nothing")]),
        ("sds", [("distill", 70, 0, 1, "score")]),
    ],
)
def test_methods_are_sequences_of_stages(method, expected):
    stages = stages_of(method, 70, 12)
    assert [(s.name, s.steps, s.every, s.views, s.follows) for s in stages] == expected


def test_what_cannot_be_asked_is_refused():
    with pytest.raises(UserError, match="method 'magic'; give one of in2n"):
        stages_of("magic", 70, 12)
    with pytest.raises(UserError, match="every is 5, and sds"):
        stages_of("sds", 70, 12, every=5)
    with pytest.raises(UserError, match=r"lower and upper are 0\.9 and 0\.2"):
        EditConfig(lower=0.9, upper=0.2)
    with pytest.raises(UserError, match="the instruction is empty"):
        edit_of(stages_of("in2n", 5, 12), instruction="  ")
    given = opened(edit_of(stages_of("in2n", 5, 12), training=TrainingConfig(side=80)))
    with pytest.raises(UserError, match=r"training\.side is 80, and the images are 24x24"):
        given.phases[0].batches(None)


def test_an_edit_of_an_edit_gets_names_of_its_own():
    base = fitted()
    twice = replace(
        base.system, fits=(*base.system.fits, replace(base.system.fits[-1], name="edit"))
    )
    again = base._replace(system=twice, fit=2)
    edit = InstructNerf2Nerf.of(again, EditConfig("more"), stages_of("in2n", 5, 12))
    assert [stage.name for stage in edit.stages] == ["edit2"]
    assert [fit.name for fit in edit.reconstruction.fits] == ["coarse", "fine", "edit", "edit2"]


# --- patches -------------------------------------------------------------------------------------


def test_patches_are_a_function_of_seed_and_step():
    def make(state, **parts):
        return PatchBatches(5, 20, 30, 8, 6, seed=(3, 1), state=state, **parts)

    first = make(None)
    third = [next(first) for _ in range(3)][-1]
    assert first.get_state() == 3
    again = next(make(2))
    halves = [next(make(2, index=i, count=2)) for i in (0, 1)]
    for name, value in third.items():
        np.testing.assert_array_equal(value, again[name])
        np.testing.assert_array_equal(value, np.concatenate([half[name] for half in halves]))
    many = next(PatchBatches(5, 20, 30, 20000, 6, seed=(0,)))
    assert many["view"].min() == 0
    assert many["view"].max() == 4
    np.testing.assert_array_equal(many["corner"].min(0), [0, 0])
    np.testing.assert_array_equal(many["corner"].max(0), [24, 14])


def test_patches_are_the_pixels_at_their_places():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 20, 30, 3), np.uint8)
    masks = rng.uniform(size=(5, 20, 30)) < 0.5
    batch = next(PatchBatches(5, 20, 30, 8, 6, seed=(3, 1), masks=masks))
    found = patches_of(jnp.asarray(images), batch, 6)
    for i, (view, (column, row)) in enumerate(zip(batch["view"], batch["corner"], strict=True)):
        place = view, slice(row, row + 6), slice(column, column + 6)
        np.testing.assert_allclose(found[i], images[place] / 255.0, atol=1e-6)
        np.testing.assert_array_equal(batch["counts"][i], masks[place])


# --- one edit ------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [20, 500, 980])
def test_the_pure_revision_is_the_pipelines(level):
    model, key = tiny_model(), jax.random.key(3)
    views = toy().views["train"].images[:2, ..., :3]
    images, originals = (
        jnp.concatenate([to_jax(views[i]) for i in order]) for order in ((0, 1), (1, 0))
    )
    settings = {"text_scale": 5.0, "image_scale": 1.2}
    truth = revise_image(
        model, images, originals, ["make it blue"] * 2, key, level=level, steps=20, **settings
    )[:, 0]
    for together in (True, False):
        revision = Revision(model.noise, 20, 20, 990, together)
        told = tell(model, "make it blue", **settings)
        found = jax.jit(revision)(told, images, originals, jnp.int32(level), key)
        np.testing.assert_allclose(found, truth, atol=2e-4 * float(jnp.abs(truth).max()))
    assert float(jnp.abs(truth - images).mean()) > 0.05  # it is an edit


def test_an_edited_view_is_the_pipelines_at_the_editors_sides():
    config = edit_of(stages_of("in2n", 5, 12), lower=0.5, upper=0.5, steps=4, size=16)
    given = opened(config)
    editor = given.setting.editor
    assert editor.sides == (16, 16)
    image, original = (as_numbers(given.originals[i]) for i in (2, 5))
    key = jax.random.key(9)
    found = given.edit_view(given.originals[2], given.originals[5], key, 0.5, 0.5)
    small = [2 * jax.image.resize(x, (16, 16, 3), "linear")[None] - 1 for x in (image, original)]
    truth = revise_image(tiny_model(), *small, ["make it blue"], key, level=500, steps=4)[0, 0]
    truth = jax.image.resize(jnp.clip(truth / 2 + 0.5, 0, 1), (24, 24, 3), "linear")
    assert np.abs(found.astype(int) - as_bytes(truth).astype(int)).max() <= 1


def test_noise_levels_are_drawn_from_the_whole_range():
    given = opened(edit_of(stages_of("in2n", 5, 12), steps=20))
    editor = given.setting.editor
    assert editor.levels(0.02, 0.98) == (20, 980)
    assert editor.levels(1.0, 1.0) == (1000, 1000)
    assert editor.levels(0.001, 0.5) == (20, 500)  # as many levels as steps are needed
    np.testing.assert_array_equal(
        editor.revision(0.02, 0.98).grids()[[0, 480, 960]],
        np.stack([tiny_model().noise.grid(20, level) for level in (20, 500, 980)]),
    )


# --- a step --------------------------------------------------------------------------------------


def test_views_are_edited_in_cyclic_order_by_the_field_before_the_step():
    config = edit_of((Stage("edit", 6, every=2, views=5),))
    given = swapping(opened(config))
    states = walk(given)
    edited = given.originals[..., EXCHANGED]
    for step, state in enumerate(states):
        done = 5 * ((step + 1) // 2)
        images = np.asarray(state["extra"]["images"])
        expected = given.originals.copy()
        expected[: min(done, 12)] = edited[: min(done, 12)]
        np.testing.assert_array_equal(images, expected)
        np.testing.assert_array_equal(state["frozen"]["originals"], given.originals)


@pytest.mark.parametrize("views", [3, 1])
def test_devices_share_the_views_of_an_edit(views, monkeypatch):
    """On two devices three views are edited two at once, to what one device makes of them; a single one by both alike."""
    config = edit_of(
        (Stage("edit", 1, every=1, views=views, follows="nothing", lower=0.5, upper=0.5),)
    )
    given = opened(config)
    start, end = walk(given)
    alone, inside = end["extra"]["images"], []

    class Watched(Editor):
        def edited(self, *told):
            inside.append(AxisType.Manual in jax.sharding.get_abstract_mesh().axis_types)
            return super().edited(*told)

    mesh = make_mesh(MeshConfig(), jax.devices()[:2])
    monkeypatch.setattr(training, "make_mesh", lambda _: mesh)
    old = given.setting.editor
    editor = Watched(old.noise, old.factor, old.edit, old.height, old.width)
    given = replace(given, setting=given.setting._replace(editor=editor))
    phase, start = given.phases[0], jax.device_put(start, replicated(mesh))
    key = named(ROOT, "edit", 0)
    shared = jax.jit(phase.step)(start, next(phase.batches(None)), key)[0]["extra"]["images"]
    assert set(inside) == {views > 1}
    difference = np.asarray(shared).astype(int) - np.asarray(alone)
    assert np.abs(difference).max() <= 2
    changed = np.any(np.asarray(shared) != given.originals, axis=(1, 2, 3))
    np.testing.assert_array_equal(changed, np.arange(12) < views)


def test_a_step_edits_a_render_of_the_field_before_it():
    """The new image is the tiny editor's of the earlier field's render, told the original."""
    config = edit_of((Stage("edit", 4, every=1, lower=0.5, upper=0.5),))
    given = opened(config)
    states = walk(given, 2)
    for step in (0, 1):
        before, after = states[step], states[step + 1]
        shown = config.reconstruction.render_image(
            given.setting.frame, before, given.setting.cameras, step
        )
        key = named(named(ROOT, "edit", step), "edit", jnp.int32(0))
        truth = given.setting.editor.edited(
            given.weights.told,
            shown.colour,
            jnp.asarray(as_numbers(given.originals[step])),
            key,
            0.5,
            0.5,
        )
        found = np.asarray(after["extra"]["images"][step]).astype(int)
        assert np.abs(found - as_bytes(truth).astype(int)).max() <= 1
        others = np.delete(np.arange(12), step)
        np.testing.assert_array_equal(
            after["extra"]["images"][others], before["extra"]["images"][others]
        )


def test_patches_of_a_step_are_those_before_its_edit():
    """An edit of all views in the first step shows in the loss of the second only."""
    config = edit_of((Stage("edit", 4, every=100, views=12),))
    given = swapping(opened(config))
    phase = given.phases[0]
    state = jax.jit(phase.init)(given.start(fitted().state), ROOT)
    untouched = jax.jit(phase.step)(
        {**state, "extra": {**state["extra"], "updates": jnp.int32(1)}},
        next(phase.batches(None)),
        named(ROOT, "step"),
    )[1]
    first, sums = jax.jit(phase.step)(state, next(phase.batches(None)), named(ROOT, "step"))
    np.testing.assert_allclose(sums["loss"][0], untouched["loss"][0], rtol=1e-6)
    later = jax.jit(phase.step)(first, next(phase.batches(None)), named(ROOT, "step"))[1]
    assert later["loss"][0] > 1.1 * sums["loss"][0]
    assert float(sums["change"][0]) > 0.01
    assert float(untouched["change"][0]) == 0.0


def test_masked_pixels_teach_nothing():
    config = edit_of((Stage("edit", 4, every=100, views=12),))
    masks = np.zeros((12, 24, 24), bool)
    given = swapping(opened(config, masks))
    states = walk(given, 3)
    for path, leaf in states[0]["trainable"].items():
        np.testing.assert_array_equal(leaf, states[-1]["trainable"][path])


# --- whole edits ---------------------------------------------------------------------------------


def test_a_field_follows_a_consistent_edit():
    training = TrainingConfig(patches=8, side=8, optimizer=ADAM)
    config = edit_of((Stage("edit", 200, every=1),), training=training)
    given = swapping(opened(config))
    last = walk(given)[-1]
    views = toy().views["test"]
    truths = config.originals(views)[..., EXCHANGED] / np.float32(255)
    old, new = [], []
    for i, truth in enumerate(truths):
        frame, base = given.setting.frame, fitted()
        before = base.system.render_image(frame, base.state, views.cameras, i)
        after = config.reconstruction.render_image(frame, last, views.cameras, i)
        old.append(psnr(np.asarray(before.colour), truth))
        new.append(psnr(np.asarray(after.colour), truth))
    assert np.mean(new) > np.mean(old) + 3.0, (old, new)


def test_a_packed_scene_stored_whole_shows_no_haze():
    """Voxels that were not stored get a little density to grow on: too little to be seen."""
    base, config = fitted(), edit_of(stages_of("in2n", 5, 12))
    given = opened(config)
    state = walk(given, 1)[0]
    views = toy().views["test"]
    for i in range(2):
        before = base.system.render_image(given.setting.frame, base.state, views.cameras, i)
        after = config.reconstruction.render_image(given.setting.frame, state, views.cameras, i)
        difference = np.abs(np.asarray(after.colour) - np.asarray(before.colour))
        assert difference.mean() < 1e-3
        assert np.quantile(difference, 0.99) < 5e-3


def test_edited_one_by_one_and_not_followed():
    """The per-view method leaves the field as it is."""
    config = edit_of(stages_of("per-view", 5, 12))
    given = swapping(opened(config))
    states = walk(given)
    np.testing.assert_array_equal(states[-1]["extra"]["images"], given.originals[..., EXCHANGED])
    for path, leaf in states[0]["trainable"].items():
        np.testing.assert_array_equal(leaf, states[-1]["trainable"][path])


def test_a_one_time_update_follows_what_was_edited_once():
    config = edit_of(stages_of("one-time", 3, 12))
    given = swapping(opened(config))
    states = walk(given)
    for state in states:
        np.testing.assert_array_equal(state["extra"]["images"], given.originals[..., EXCHANGED])
    moved = [
        path
        for path, leaf in states[0]["trainable"].items()
        if (np.asarray(leaf) != np.asarray(states[-1]["trainable"][path])).any()
    ]
    assert moved


def test_distillation_moves_the_field_and_leaves_the_images():
    config = edit_of(stages_of("sds", 2, 12))
    given = opened(config)
    states = walk(given)
    np.testing.assert_array_equal(states[-1]["extra"]["images"], given.originals)
    path = next(path for path in states[0]["trainable"] if "colour" in path)
    assert (
        np.asarray(states[0]["trainable"][path]) != np.asarray(states[-1]["trainable"][path])
    ).any()


# --- runs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["voxels", "hash"])
def test_an_edit_resumes_to_the_same_bits_and_stores_no_editor(tmp_path, kind):
    stages = (Stage("edit", 6, every=2, views=2),)
    config = replace(edit_of(stages, kind), loop=LoopConfig(log_every=2, save_every=2))
    given, state = opened(config), fitted(kind).state

    def train(folder, loop):
        run = RunDirectory.open(folder, config, ("loop",))
        return flatten(fit(run, given.phases, loop, start=given.start(state)))

    whole = train(tmp_path / "whole", config.loop)
    train(tmp_path / "parts", replace(config.loop, max_steps=3))
    parts = train(tmp_path / "parts", config.loop)
    assert whole.keys() == parts.keys()
    for path, leaf in whole.items():
        assert np.asarray(leaf).tobytes() == np.asarray(parts[path]).tobytes(), path
    assert (np.asarray(whole["extra/images"]) != given.originals).any()
    with Checkpointer(tmp_path / "parts" / "checkpoints") as checkpoints:
        stored = checkpoints.restore().tree
    assert not [path for path in stored if "editor" in path]
    assert {"extra/images", "frozen/originals"} <= stored.keys()


# --- presets -------------------------------------------------------------------------------------


def test_the_published_preset_has_the_published_numbers():
    """`in2n_config.py` of the authors' code, which calls this one "in2n"."""
    recipe = load_config("instruct_nerf2nerf/published")
    edit, training = recipe.edit, recipe.training
    assert (recipe.method, recipe.steps) == ("in2n", 15000)
    assert (edit.text_scale, edit.image_scale, edit.steps) == (7.5, 1.5, 20)
    assert (edit.lower, edit.upper) == (0.02, 0.98)
    assert training.patches * training.side**2 == 16384
    assert (training.side, training.l1, training.perceptual) == (32, 1.0, 1.0)
    assert (training.optimizer.learning_rate, training.optimizer.epsilon) == (1e-2, 1e-15)
    (stage,) = stages_of(recipe.method, recipe.steps, 100, every=recipe.every)
    assert (stage.every, stage.views) == (10, 1)


@pytest.mark.parametrize("name", ["instruct_nerf2nerf/published", "instruct_nerf2nerf/small"])
def test_a_preset_survives_json_and_wants_a_sentence(name):
    recipe = load_config(name)
    assert from_json(type(recipe), json.loads(json.dumps(to_json(recipe)))) == recipe
    with pytest.raises(UserError, match="the instruction is empty"):
        recipe.system(fitted())
    told = replace(recipe, edit=replace(recipe.edit, instruction="make it blue"))
    system = told.system(fitted())
    assert from_json(type(system), json.loads(json.dumps(to_json(system)))) == system
