"""`jaxedit fit` and `jaxedit render` on a toy scene on disk, and the record that a run keeps of its scene."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from camera_rings import ring
from PIL import Image
from small_fits import system, toy

from jaxedit import cli
from jaxedit.scene.poses import Similarity
from jaxedit.scene.record import SceneRecord, read_record, write_record
from jaxedit.scene.writing import write_blender
from jaxedit.systems.reconstruct import training
from jaxedit.systems.reconstruct.stored import load_fitted
from jaxvid.core.errors import UserError


def test_records_survive_json(tmp_path):
    turned = Similarity(2.5, np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]), np.arange(3.0))
    record = SceneRecord.of(replace(toy().moved(turned), applied=turned.inverse()))
    write_record(record, tmp_path / "scene.json")
    back = read_record(tmp_path / "scene.json")
    np.testing.assert_array_equal(back.box, record.box)
    for a, b in ((back.transform, record.transform), (back.applied, record.applied)):
        assert a.scale == b.scale
        np.testing.assert_array_equal(a.rotation, b.rotation)
        np.testing.assert_array_equal(a.translation, b.translation)
    assert back.transform.scale * back.applied.scale == 1.0
    for split, cameras in record.cameras.items():
        for a, b in zip(
            jax.tree.leaves(cameras), jax.tree.leaves(back.cameras[split]), strict=True
        ):
            np.testing.assert_array_equal(a, b)
    (tmp_path / "scene.json").write_text("{}")
    with pytest.raises(UserError, match="damaged"):
        read_record(tmp_path / "scene.json")


@pytest.fixture(scope="module")
def commanded(tmp_path_factory):
    """A toy scene on disk, fitted by the command line."""
    folder = tmp_path_factory.mktemp("fit")
    write_blender(toy(), folder / "toy")
    (folder / "tiny.py").write_text(CONFIG)
    code = cli.main(
        [
            "fit",
            str(folder / "toy"),
            "--config",
            str(folder / "tiny.py"),
            "--run",
            str(folder / "run"),
        ]
    )
    assert code == 0
    return folder


CONFIG = """
from jaxedit.fields.voxel_grid import VoxelGridConfig
from jaxedit.render.render import RenderConfig
from jaxedit.scene.load import SceneConfig
from jaxedit.systems.reconstruct import Fit, Reconstruct, training
from jaxvid.train.loop import LoopConfig


def config():
    return Reconstruct(
        data=SceneConfig(path="unset"),
        field=VoxelGridConfig(resolution=(8, 8, 8), gain=20.0),
        render=RenderConfig(samples=16),
        fits=(Fit(steps=3, rays=64),),
        heldout=1,
        loop=LoopConfig(log_every=1, save_every=2),
    )
"""


def test_fit_leaves_a_run_that_says_what_it_is(commanded, capsys):
    run = commanded / "run"
    assert (run / "samples" / "step_00000003.png").exists()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any("test/psnr" in line for line in lines)
    assert any("psnr" in line for line in lines)
    saved = load_fitted(run)
    assert (saved.system.render.near, saved.system.render.far) == (2.0, 6.0), "the scene's"
    again = [
        "fit",
        str(commanded / "toy"),
        "--config",
        str(commanded / "tiny.py"),
        "--run",
        str(run),
    ]
    assert cli.main(again) == 0
    assert "test: PSNR" in capsys.readouterr().out
    assert cli.main([*again, "--render.samples", "24"]) == 2
    assert "choose another --run" in capsys.readouterr().err


def test_a_batch_without_an_error_is_no_breakdown(monkeypatch):
    monkeypatch.setattr(training, "make_mesh", lambda _: None)
    config = system(field=replace(system().field, shift=-1e3), occupancy=None)
    phase = config.phases(toy())[0]
    state = jax.jit(phase.init)(None, jax.random.key(0))
    batch = {name: values.copy() for name, values in next(phase.batches(None)).items()}
    batch["colour"][:, 3] = 0
    _, sums = jax.jit(phase.step)(state, batch, jax.random.key(1))
    np.testing.assert_allclose(sums["psnr"][0], 100.0)


def test_a_run_cut_short_in_its_first_fit_is_scored_as_such(commanded, capsys):
    text = CONFIG.replace(
        "fits=(Fit(steps=3, rays=64),)",
        'fits=(Fit("a", steps=3, rays=64), Fit("b", steps=3, rays=64, resolution=(12, 12, 12)))',
    )
    (commanded / "two.py").write_text(text)
    call = ["fit", str(commanded / "toy"), "--config", str(commanded / "two.py"), "--run"]
    assert cli.main([*call, str(commanded / "short"), "--loop.max-steps", "2"]) == 0
    assert "test: PSNR" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["colour", "depth", "normal"])
def test_render_writes_pictures_and_videos(commanded, kind, capsys):
    out = commanded / f"{kind}.mp4"
    options = ["--frames", "3", "--kind", kind]
    assert cli.main(["render", str(commanded / "run"), "--out", str(out), *options]) == 0
    assert out.stat().st_size > 500
    folder = commanded / f"{kind}_views"
    assert (
        cli.main(
            [
                "render",
                str(commanded / "run"),
                "--out",
                str(folder),
                "--path",
                "views",
                "--kind",
                kind,
            ]
        )
        == 0
    )
    assert sorted(path.name for path in folder.iterdir()) == ["r_0.png", "r_1.png"]
    assert Image.open(folder / "r_0.png").size == (24, 24)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "x.avi"], "--out is x.avi"),
        (["--out", "x.mp4", "--frames", "0"], "--frames is 0"),
        (["--out", "x.mp4", "--path", "circle"], "--path circle: no such file"),
        (["--out", "x.mp4", "--path", "views", "--split", "val"], "--split is val; the scene has"),
        (["--out", "x.mp4", "--size", "0"], "--size is 0"),
        (["--out", "x.mp4", "--kind", "z"], "invalid choice: 'z'"),
    ],
)
def test_render_refuses(commanded, options, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["render", str(commanded / "run"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_key_frames_are_read_and_refused(commanded, tmp_path, capsys):
    keys = [np.concatenate([pose, [[0, 0, 0, 1]]]).tolist() for pose in ring(3)]
    (tmp_path / "keys.json").write_text(json.dumps({"keys": keys, "closed": True}))
    call = [
        "render",
        str(commanded / "run"),
        "--path",
        str(tmp_path / "keys.json"),
        "--frames",
        "2",
        "--out",
    ]
    assert cli.main([*call, str(tmp_path / "frames")]) == 0
    capsys.readouterr()
    for bad in (
        "{}",
        "[1]",
        '{"keys": [[[2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0]]]}',
        '{"keys": 3}',
        '{"keys": [[[-1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]], [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]]}',
    ):
        (tmp_path / "keys.json").write_text(bad)
        assert cli.main([*call, str(tmp_path / "other")]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "other").exists()
