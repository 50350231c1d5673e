"""`jaxedit edit` and `jaxedit history`: a scene edited, interrupted, gone on with, undone, blended."""

import json
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from small_fits import ADAM, system, toy
from tiny_pix2pix import tiny_model

from jaxedit import cli, editing
from jaxedit.edit_metrics import clip_scores, resized_bicubic
from jaxedit.editing import prepare, preview, run_edit
from jaxedit.fields.blend import BlendField
from jaxedit.history import load_current, read_history, write_history
from jaxedit.scene.load import SceneConfig
from jaxedit.scene.paths import cameras_along, turntable
from jaxedit.scene.writing import write_blender
from jaxedit.scoring import embedded_texts, load_clip
from jaxedit.systems.instruct_nerf2nerf import EditConfig, Recipe, TrainingConfig, training
from jaxedit.systems.reconstruct import system as reconstruct_system
from jaxedit.systems.reconstruct import training as reconstruct_training
from jaxedit.systems.reconstruct.model import make_model
from jaxedit.systems.reconstruct.stored import load_fitted
from jaxedit.toy_edits import fit_scene
from jaxvid.core.errors import UserError
from jaxvid.core.paths import flatten
from jaxvid.models.clip import (
    CLIP_DEVIATION,
    CLIP_MEAN,
    ClipImage,
    ClipImageConfig,
    ClipText,
    ClipTextConfig,
    TransformerConfig,
)
from jaxvid.train.loop import LoopConfig
from jaxvid.weights.convert import save_model

BOX = ((-1.0, -1.0, -1.0), (1.0, 1.0, 1.0))


@pytest.fixture(autouse=True)
def _one_device(monkeypatch):
    one_device(monkeypatch)


def one_device(patch):
    """Eight simulated devices would each run the whole editor on the same few cores."""
    for module in (training, reconstruct_system, reconstruct_training, editing):
        patch.setattr(module, "make_mesh", lambda _: None)
    patch.setattr("jaxedit.toy_edits.make_mesh", lambda _: None)


@pytest.fixture(scope="module")
def fitted_run(tmp_path_factory):
    """The toy scene on disk and fitted shortly; copied by whoever edits it."""
    folder = tmp_path_factory.mktemp("edits")
    scene = toy()
    write_blender(scene, folder / "scene")
    data = SceneConfig(path=str(folder / "scene"), box=BOX, near=scene.near, far=scene.far)
    fits = tuple(replace(fit, steps=20) for fit in system().fits)
    with pytest.MonkeyPatch.context() as patch:
        one_device(patch)
        fit_scene(scene, system(data=data, fits=fits), folder / "run")
    return folder / "run"


@pytest.fixture
def run(fitted_run, tmp_path):
    shutil.copytree(fitted_run, tmp_path / "run")
    return tmp_path / "run"


def recipe(instruction="make it blue", **changes):
    made = Recipe(
        steps=6,
        every=2,
        edit=EditConfig(instruction=instruction, steps=2),
        training=TrainingConfig(patches=2, side=8, optimizer=ADAM),
        loop=LoopConfig(log_every=2, save_every=2),
    )
    return replace(made, **changes)


def bits(fitted):
    return {path: np.asarray(leaf).tobytes() for path, leaf in flatten(fitted.state).items()}


def picture(fitted):
    cameras = fitted.record.cameras["test"]
    found = fitted.system.render_image(fitted.frame, fitted.state, cameras, 0, fit=fitted.fit)
    return np.asarray(found.colour)


def test_an_edit_is_interrupted_gone_on_with_undone_and_made_again(run):
    before = bits(load_current(run))
    stopped = recipe(loop=replace(recipe().loop, max_steps=3))
    prepared = prepare(run, stopped, tiny_model())
    run_edit(run, prepared)
    assert prepared.path.name == "001-make-it-blue"
    assert read_history(run).edits == ()  # not done yet
    assert bits(load_current(run)) == before
    again = prepare(run, recipe(), tiny_model())
    assert again.path == prepared.path
    run_edit(run, again)
    assert read_history(run).edits == ("001-make-it-blue",)
    after = load_current(run)
    assert [fit.name for fit in after.system.fits] == ["coarse", "fine", "edit"]
    record = json.loads((again.path / "editor.json").read_text())
    assert record["instruction"] == "make it blue"
    assert sorted((again.path / "samples").iterdir())
    write_history(run, read_history(run).undone())
    assert bits(load_current(run)) == before
    write_history(run, read_history(run).redone())
    assert bits(load_current(run)) == bits(after)


def test_an_edit_of_an_edit_is_told_the_scene_as_it_is(run):
    run_edit(run, prepare(run, recipe(), tiny_model()))
    first = load_current(run)
    second = prepare(run, recipe("and red"), tiny_model())
    assert second.path.name == "002-and-red"
    assert [stage.name for stage in second.system.stages] == ["edit2"]
    cameras = first.record.cameras["train"]
    shown = first.system.render_image(first.frame, first.state, cameras, 3, fit=first.fit)
    expected = np.round(np.clip(np.asarray(shown.colour), 0, 1) * 255)
    np.testing.assert_allclose(second.opened.originals[3].astype(np.float32), expected, atol=1)
    run_edit(run, second)
    assert read_history(run).edits == ("001-make-it-blue", "002-and-red")
    assert load_current(run).fit == 3


def test_a_blend_lies_between_its_scenes(run):
    run_edit(run, prepare(run, recipe(), tiny_model()))
    after = load_current(run)
    write_history(run, read_history(run).undone())
    before = load_current(run)
    write_history(run, read_history(run).redone())
    shown = {}
    for strength in (0.0, 0.5, 1.0):
        write_history(run, read_history(run).blended(strength))
        shown[strength] = picture(load_current(run))
    np.testing.assert_allclose(shown[1.0], picture(after), atol=1e-6)
    # The earlier scene is stored packed and skips what it does not store; blended it is asked everywhere.
    assert np.abs(shown[0.0] - picture(before)).mean() < 2e-3
    assert np.abs(shown[0.5] - shown[0.0]).max() > 1e-3
    write_history(run, read_history(run).blended(0.5))
    with pytest.raises(UserError, match=r"stands at strength 0\.5; set it to 1"):
        prepare(run, recipe("more"), tiny_model())


def test_blended_queries_are_the_formula():
    """Of two voxel grids with other values everywhere."""
    config = system()
    scene = toy()
    frame = config.frame(scene.box)
    grids = [make_model(config, frame, 0, jax.random.key(seed)).field for seed in (0, 1)]
    for seed, grid in enumerate(grids):
        for values in (grid.density_values, grid.colour_values):
            values[...] = jax.random.normal(jax.random.key(seed), values[...].shape)
    points = jax.random.uniform(jax.random.key(2), (50, 3), minval=-1.0, maxval=1.0)
    (d0, c0), (d1, c1) = (grid.query(points, points) for grid in grids)
    s = 0.25
    field = BlendField(*grids, jnp.float32(s))
    density, colour = field.query(points, points)
    np.testing.assert_allclose(density, (1 - s) * d0 + s * d1, rtol=1e-5)
    total = ((1 - s) * d0 + s * d1)[:, None]
    mixed = ((1 - s) * d0[:, None] * c0 + s * d1[:, None] * c1) / total
    np.testing.assert_allclose(colour, mixed, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(field.density(points), density, rtol=1e-6)
    assert (np.asarray(d0) != np.asarray(d1)).all()
    outside = field.query(points + 5.0, points)
    assert (np.asarray(outside[0]) == 0).all()
    assert np.isfinite(np.asarray(outside[1])).all()


def test_a_dry_run_shows_four_views_and_makes_no_run(run):
    prepared = prepare(run, recipe(), tiny_model())
    path = preview(run, prepared)
    assert path == run / "edits" / "preview-make-it-blue.png"
    assert not prepared.path.exists()
    assert Image.open(path).size == (3 * 24, 4 * 24)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["edit", "RUN"], "the instruction is empty"),
        (["edit", "RUN", "--instruction", "  "], "the instruction is empty"),
        (["edit", "RUN", "--instruction", "x", "--promt", "y"], "unknown option --promt"),
        (["edit", "RUN", "--instruction", "x", "--method", "magic"], "invalid choice: 'magic'"),
        (["edit", "RUN", "--instruction", "x", "--steps", "0"], "has 0 steps"),
        (["edit", "RUN", "--instruction", "x", "--editor", "nowhere"], "nowhere"),
        (
            ["edit", "RUN", "--instruction", "x", "--config", "reconstruct/voxels"],
            "is no way to edit",
        ),
        (["edit", "NOTHING", "--instruction", "x"], "no such run directory"),
        (["edit", "RUN", "--instruction", "x", "--edit.lower", "2"], "lower and upper are 2"),
        (["history", "RUN", "--undo"], "there is no edit to undo"),
        (["history", "RUN", "--redo"], "there is no undone edit"),
        (["history", "RUN", "--blend", "0.5"], "there is no edit whose strength"),
        (["history", "RUN", "--blend", "nan"], "not a finite number"),
        (["history", "RUN", "--undo", "--redo"], "not allowed with"),
        (["history", "NOTHING"], "no such run directory"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(run, words, complaint, capsys):
    words = [str(run) if word == "RUN" else word for word in words]
    assert cli.main(words) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("jaxedit: error:")
    assert complaint in error
    assert not (run / "edits").exists()


def test_history_shows_what_there_is(run, capsys):
    assert cli.main(["history", str(run)]) == 0
    assert capsys.readouterr().out.strip() == "* as it was fitted"
    run_edit(run, prepare(run, recipe(), tiny_model()))
    assert cli.main(["history", str(run), "--blend", "0.5"]) == 0
    assert '* 001-make-it-blue: "make it blue", strength 0.5' in capsys.readouterr().out
    assert cli.main(["history", str(run), "--undo"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["* as it was fitted", '- 001-make-it-blue: "make it blue"']


def test_scores_of_an_edit_against_its_truth(run, tmp_path, capsys):
    """The true scene is the one before with red and blue exchanged."""
    prepared = prepare(run, recipe(), tiny_model())
    run_edit(run, prepared)
    folder = tmp_path / "truth"
    scene = toy()
    turned = {
        split: replace(views, images=views.images[..., [2, 1, 0, 3]])
        for split, views in scene.views.items()
    }
    write_blender(replace(scene, views=turned), folder)
    out = tmp_path / "scores.json"
    assert cli.main(["eval", str(run), "--truth", str(folder), "--json", str(out)]) == 0
    assert "edited images" in capsys.readouterr().out
    found = json.loads(out.read_text())
    assert found["edit"] == "001-make-it-blue"
    assert found["truth"]["views"] == 2
    before, after = (load_fitted(run), load_current(run))
    wanted = toy().views["test"].images[..., [2, 1, 0]] / np.float32(255)
    alpha = toy().views["test"].images[..., 3:] / np.float32(255)
    wanted = wanted * alpha + 1 - alpha
    original = toy().views["test"].images[..., :3] / np.float32(255) * alpha + 1 - alpha
    changed = np.abs(wanted - original).max(axis=-1) > 0.04
    cameras = before.record.cameras["test"]
    errors = []
    for fitted in (before, after):
        shown = [
            np.asarray(
                fitted.system.render_image(
                    fitted.frame, fitted.state, cameras, i, fit=fitted.fit
                ).colour
            )
            for i in range(2)
        ]
        errors.append(((np.stack(shown) - wanted) ** 2).mean(axis=-1)[changed].mean())
    gain = 10 * np.log10(errors[0] / errors[1])
    np.testing.assert_allclose(found["truth"]["gain"], gain, atol=1e-3)
    assert found["consistency"]["renders"] < found["consistency"]["edited images"]
    shutil.rmtree(folder / "test")
    (folder / "transforms_test.json").unlink()
    assert cli.main(["eval", str(run), "--truth", str(folder)]) == 2
    assert "has no split test by the cameras" in capsys.readouterr().err


def test_clip_scores_of_a_run_are_those_of_its_turntable(run, tmp_path):
    transformer = TransformerConfig(8, 1, 2, 16)
    text = ClipText(
        ClipTextConfig(transformer, vocabulary=54, positions=16, projection=6), jax.random.key(0)
    )
    image = ClipImage(
        ClipImageConfig(transformer, size=8, patch=4, projection=6), jax.random.key(1)
    )
    folder = tmp_path / "clip"
    folder.mkdir()
    save_model(text, folder / "text_encoder")
    save_model(image, folder / "image_encoder")
    shutil.copytree(tiny_model().tokenizer.folder, folder / "tokenizer")
    run_edit(run, prepare(run, recipe(), tiny_model()))
    out = tmp_path / "scores.json"
    options = ["--clip", str(folder), "--before", "a hat", "--after", "a blue hat", "--frames", "3"]
    assert cli.main(["eval", str(run), *options, "--json", str(out)]) == 0
    found = json.loads(out.read_text())["clip"]
    clip = load_clip(folder)
    cameras = cameras_along(
        turntable(np.asarray(load_current(run).record.cameras["train"].pose, np.float64), 3),
        load_current(run).record.cameras["train"],
    )
    vectors = []
    for fitted in (load_fitted(run), load_current(run)):
        frames = [
            np.asarray(
                fitted.system.render_image(
                    fitted.frame, fitted.state, cameras, i, fit=fitted.fit
                ).colour
            )
            for i in range(3)
        ]
        small = resized_bicubic(np.stack(frames), 8)
        pixels = (small - np.array(CLIP_MEAN)) / np.array(CLIP_DEVIATION)
        vectors.append(np.asarray(image(jnp.asarray(pixels, jnp.float32)).vector))
    texts = embedded_texts(clip, ["a hat", "a blue hat"])
    expected = clip_scores(*vectors, *texts)
    for name, value in expected._asdict().items():
        np.testing.assert_allclose(found[name], value, atol=1e-4)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--clip", "nowhere"], "--clip needs --before and --after"),
        (["--before", "a hat"], "--clip needs --before and --after"),
        (["--truth", "nowhere"], "has no edit that counts"),
        (["--frames", "0"], "is no number of things"),
    ],
)
def test_scores_that_cannot_be_had_are_refused(run, words, complaint, capsys):
    assert cli.main(["eval", str(run), *words]) == 2
    assert complaint in capsys.readouterr().err


def test_scores_of_a_scene_that_was_not_edited(run, capsys):
    assert cli.main(["eval", str(run)]) == 0
    assert "psnr" in capsys.readouterr().out
