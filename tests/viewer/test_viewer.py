"""The viewer: cameras, pictures of tiles, what is drawn when, snapshots, live reloading, the server, and a browser."""

import base64
import contextlib
import http.client
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from jaxedit import cli
from jaxedit.render.compositing import Pixels
from jaxedit.scene.cameras import pinhole_cameras, project_points
from jaxedit.scene.poses import look_at
from jaxedit.scene.toy import capture, toy_scene
from jaxedit.systems.reconstruct.stored import load_fitted
from jaxedit.viewer import session as module
from jaxedit.viewer.session import (
    FAR,
    TILE,
    BrowserCamera,
    Live,
    Look,
    Pace,
    Picture,
    Session,
    axis_depth,
    draw,
    first_view,
    moving_rung,
    newest_step,
    next_rung,
    picture_size,
    progress_text,
    rungs_of,
    step_of,
    tiles,
    to_browser,
    to_cameras,
    to_image,
)
from jaxvid.core.errors import UserError

UP = np.array([0.0, 0.0, 1.0])
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)  # fmt: skip

CONFIG = """
from jaxedit.fields.voxel_grid import VoxelGridConfig
from jaxedit.render.occupancy import OccupancyConfig
from jaxedit.render.render import RenderConfig
from jaxedit.scene.load import SceneConfig
from jaxedit.systems.reconstruct import Fit, Reconstruct
from jaxvid.train.loop import LoopConfig
from jaxvid.train.optimizer import OptimizerConfig


def config():
    adam = OptimizerConfig(learning_rate=5e-2, b2=0.99, epsilon=1e-15, clip_norm=None)
    return Reconstruct(
        data=SceneConfig(path="unset"),
        field=VoxelGridConfig(resolution=(20, 20, 20), gain=20.0, shift=-1.0, initial_density=(0.0, 0.0)),
        render=RenderConfig(samples=32),
        occupancy=OccupancyConfig(resolution=16, every=4),
        fits=(Fit("coarse", steps=40, rays=512, optimizer=adam), Fit("fine", steps=40, rays=512, optimizer=adam)),
        heldout=1,
        loop=LoopConfig(log_every=20, save_every=40),
    )
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A toy scene fitted by the command line: 2 fits of 40 steps, a checkpoint after each."""
    folder = tmp_path_factory.mktemp("view")
    scene = capture(toy_scene(seed=0, index=3), views=12, size=24, test_views=1)
    for split, views in scene.views.items():
        (folder / "toy" / split).mkdir(parents=True)
        frames = []
        for i, image in enumerate(views.images):
            Image.fromarray(image).save(folder / "toy" / split / f"r_{i}.png")
            pose = np.concatenate([np.asarray(views.cameras.pose[i]), [[0, 0, 0, 1]]])
            frames.append({"file_path": f"./{split}/r_{i}", "transform_matrix": pose.tolist()})
        angle = 2 * np.arctan(views.cameras.width / 2 / float(views.cameras.focal[0, 0]))
        text = json.dumps({"camera_angle_x": angle, "frames": frames})
        (folder / "toy" / f"transforms_{split}.json").write_text(text)
    (folder / "tiny.py").write_text(CONFIG)
    options = ["--config", str(folder / "tiny.py"), "--run", str(folder / "run")]
    assert cli.main(["fit", str(folder / "toy"), *options]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def fitted(run):
    return load_fitted(run)


def camera(angle=0.5, aspect=1.25, fov=0.7, distance=4.0):
    """A browser camera on a ring, looking at the origin; built without the code under test."""
    position = distance * np.array([np.cos(angle), np.sin(angle), 0.6])
    forwards = -position / np.linalg.norm(position)
    right = np.cross(forwards, UP)
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(forwards, right), forwards], axis=1)  # OpenCV axes
    x, y, z, w = Rotation.from_matrix(rotation).as_quat()
    return BrowserCamera(np.array([w, x, y, z]), position, fov, aspect)


def pixels_of(*parts):
    colour, opacity, depth = map(jnp.asarray, parts)
    return Pixels(colour, opacity, depth)


def picture_of(fitted, seen, look, longest):
    picture = draw(fitted, to_cameras(seen, longest), look)
    assert picture is not None
    return picture.image


# --- cameras -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("aspect", "fov"), [(1.0, 0.7), (1.777, 1.3), (0.4, 0.9)])
def test_points_are_seen_where_the_browser_sees_them(aspect, fov):
    """World points on the axis, the edges and the corners of viser's frustum land there in the picture."""
    seen = camera(1.2, aspect, fov)
    w, x, y, z = seen.wxyz
    rotation = Rotation.from_quat([x, y, z, w]).as_matrix()
    cameras = to_cameras(seen, 300)
    for across in (-1.0, 0.0, 1.0):
        for down in (-1.0, 0.0, 1.0):
            local = np.array([np.tan(fov / 2) * aspect * across, np.tan(fov / 2) * down, 1.0])
            point = seen.position + rotation @ (2.5 * local)
            pixel, front = project_points(cameras, jnp.array(0), jnp.asarray(point, jnp.float32))
            assert front
            expected = [cameras.width * (1 + across) / 2, cameras.height * (1 + down) / 2]
            np.testing.assert_allclose(pixel, expected, atol=2e-3)
    behind = seen.position - rotation[:, 2]
    assert not project_points(cameras, jnp.array(0), jnp.asarray(behind, jnp.float32))[1]


def test_cameras_come_back_from_the_browser():
    pose = look_at(np.array([[3.0, 1.0, 2.0], [-1.0, 2.0, -3.0]]), np.zeros(3), UP)
    cameras = pinhole_cameras(pose, 120.0, 200, 150)
    for index in range(2):
        back = to_cameras(to_browser(cameras, index), 200)
        assert (back.width, back.height) == (200, 150)
        np.testing.assert_allclose(back.pose[0], pose[index], atol=3e-6)
        np.testing.assert_allclose(back.focal[0], 120.0, rtol=1e-5)


def test_a_browser_begins_at_a_middle_camera_and_looks_at_the_focus():
    heights = np.array([0.5, 3.0, 1.0, 2.0, 1.5])
    around = np.arange(5) * 1.3
    position = np.stack([3 * np.cos(around), 3 * np.sin(around), heights], axis=-1)
    cameras = pinhole_cameras(look_at(position, np.array([0.1, 0.2, 0.3]), UP), 100.0, 50, 50)
    start, target = first_view(cameras)
    np.testing.assert_allclose(start.position, position[4], atol=1e-6)
    np.testing.assert_allclose(target, [0.1, 0.2, 0.3], atol=1e-5)


@pytest.mark.parametrize(
    ("aspect", "size"), [(1.0, (512, 512)), (2.0, (512, 256)), (0.5, (256, 512)), (1e4, (512, 1))]
)
def test_the_longest_side_is_the_resolution(aspect, size):
    assert picture_size(aspect, 512) == size


# --- pictures ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["colour", "normals"])
def test_tiles_make_the_whole_image(fitted, kind):
    """A picture of tiles, the last of them cut, equals the one rendered at once."""
    cameras = to_cameras(camera(aspect=100 / 70), 100)
    assert (cameras.width, cameras.height) == (100, 70)
    assert [(top, left) for top, left, _ in tiles(cameras)] == [(0, 0), (0, TILE), (TILE, 0), (TILE, TILE)]  # fmt: skip
    image = picture_of(fitted, camera(aspect=100 / 70), Look(kind), 100)
    whole = fitted.system.render_image(
        fitted.frame, fitted.state, cameras, 0, fit=fitted.fit, normals=kind == "normals"
    )
    colour, opacity = np.asarray(whole.colour), np.asarray(whole.opacity)
    if kind == "normals":  # rendered over grey, shown over white
        colour = colour + 0.5 * (1 - opacity[..., None])
    assert 0.05 < (opacity > 0.5).mean() < 0.95, "the object is in the picture, and not alone"
    np.testing.assert_allclose(image / 255.0, np.clip(colour, 0, 1), atol=0.51 / 255 + 1e-4)


def test_a_picture_nobody_wants_is_given_up(fitted):
    answers = iter([False, False, True, False])
    assert draw(fitted, to_cameras(camera(), 128), Look(), lambda: next(answers)) is None
    assert next(answers) is False, "nothing was asked after the refusal"


def test_backgrounds_lie_behind_what_is_seen():
    """A pixel of opacity a and colour c, rendered over white, is a c + (1 - a) over either background."""
    a = np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3)
    c = np.array([0.2, 0.6, 1.0], np.float32)
    pixels = pixels_of(a[..., None] * c + (1 - a[..., None]), a, a)
    for look, ground in ((Look(), 1.0), (Look(background="black"), 0.0)):
        expected = 255 * (a[..., None] * c + (1 - a[..., None]) * ground)
        found = to_image(pixels, look, 1.0)
        np.testing.assert_allclose(found, expected, atol=0.51)


def test_depth_is_brightest_where_it_is_nearest():
    depth = np.array([[2.0, 3.0, 4.0, 0.0]], np.float32)
    pixels = pixels_of(
        np.zeros((1, 4, 3), np.float32), np.array([[1, 1, 1, 0.0]], np.float32), depth
    )
    image = to_image(pixels, Look("depth", "black"), 1.0)[0].astype(int).sum(-1)
    assert image[0] > image[1] > image[2] > 0
    assert image[3] == 0
    assert (to_image(pixels, Look("depth", "white"), 1.0)[0, 3] == 255).all()


def test_a_wall_across_the_view_is_at_one_depth():
    """Rays to a plane 3 ahead are longer towards the corners; along the axis all are 3."""
    cameras = to_cameras(camera(aspect=1.5, fov=1.2), 60)
    u, v = np.meshgrid(np.arange(60) + 0.5 - 30, np.arange(40) + 0.5 - 20)
    local = np.stack([u / cameras.focal[0, 0], v / cameras.focal[0, 1], np.ones_like(u)], axis=-1)
    opacity = np.ones((40, 60), np.float32)
    opacity[0, 0] = 0
    along = (3 * np.linalg.norm(local, axis=-1)).astype(np.float32)
    z = axis_depth(cameras, pixels_of(np.zeros((40, 60, 3), np.float32), opacity, along))
    assert z[0, 0] == FAR
    np.testing.assert_allclose(z[opacity > 0], 3.0, rtol=1e-5)


# --- what comes next -----------------------------------------------------------------------------


def test_views_climb_while_they_rest():
    assert rungs_of(512) == (128, 256, 512)
    assert rungs_of(64) == (64,), "nothing is coarser than a tile"
    pace, rungs = Pace(budget=0.1, rest=0.2), rungs_of(512)
    # At aspect 1 the rungs take 4, 16 and 64 tiles.
    assert moving_rung(rungs, 1.0, None, pace) == 0
    for seconds, rung in ((1.0, 0), (0.1 / 15, 0), (0.1 / 16.5, 1), (0.1 / 63, 1), (0.1 / 64.5, 2)):
        assert moving_rung(rungs, 1.0, seconds, pace) == rung
    assert next_rung(None, 0.0, 1, 2, pace) == 1, "a new view is drawn at once"
    assert next_rung(1, 0.1, 1, 2, pace) is None, "and rests first"
    assert next_rung(1, 0.2, 1, 2, pace) == 2
    assert next_rung(2, 9.0, 1, 2, pace) is None, "there is nothing sharper"


class Easel:
    """A stand-in for `draw` that keeps what it was asked for, and a clock that stands still."""

    def __init__(self, fitted, run=Path("unused"), **options):
        self.now, self.asked, self.shown, self.failures = 0.0, [], [], []
        self.during = lambda number: None
        self.session = Session(
            run,
            fitted,
            lambda client, picture, sharp: self.shown.append((client, sharp)),
            self.failures.append,
            clock=lambda: self.now,
            draw=self.draw,
            **options,
        )

    def draw(self, fitted, cameras, look, unwanted):
        self.asked.append((float(cameras.pose[0, 0, 3]), cameras.width, fitted, look))
        self.during(len(self.asked))
        if unwanted():
            return None
        shape = (cameras.height, cameras.width)
        return Picture(np.full((*shape, 3), 7, np.uint8), np.zeros(shape, np.float32), 0.02)

    def at(self, x, aspect=1.0):
        return BrowserCamera(np.array([1.0, 0, 0, 0]), np.array([x, 0.0, 0.0]), 0.7, aspect)

    def go(self):
        while self.session.draw_next():
            pass


def test_a_resting_view_becomes_sharp_and_stays(fitted):
    easel = Easel(fitted)
    assert not easel.session.draw_next(), "without a client there is nothing to draw"
    easel.session.see(1, easel.at(2.0))
    easel.go()
    assert [asked[1] for asked in easel.asked] == [128]
    easel.now = 0.3
    easel.go()
    assert [asked[1] for asked in easel.asked] == [128, 256, 512]
    assert easel.shown == [(1, False), (1, False), (1, True)]
    easel.now = 100.0
    assert not easel.session.draw_next()
    easel.session.leave(1)
    easel.session.change(look=Look("depth"))
    assert not easel.session.draw_next(), "who has left is not drawn for"


def test_a_move_gives_up_the_sharp_picture_and_the_newest_camera_wins(fitted):
    easel = Easel(fitted)
    easel.session.see(1, easel.at(0.0))
    easel.go()

    def moves(number):
        if number == 2:
            for x in range(1, 20):
                easel.session.see(1, easel.at(float(x)))

    easel.during, easel.now = moves, 1.0
    easel.go()
    assert [asked[:2] for asked in easel.asked] == [(0, 128), (0, 256), (19, 128)]
    assert len(easel.shown) == 2, "the picture that was given up is not shown"


def test_a_camera_that_never_rests_is_still_shown(fitted):
    easel = Easel(fitted)
    easel.session.see(1, easel.at(0.0))
    easel.during = lambda number: easel.session.see(1, easel.at(float(number))) if number < 6 else None  # fmt: skip
    easel.go()
    assert [asked[0] for asked in easel.asked] == [0, 1, 2, 3, 4, 5]
    assert len(easel.shown) == 6


def test_a_new_view_goes_before_a_sharper_one(fitted):
    easel = Easel(fitted)
    easel.session.see(1, easel.at(1.0))
    easel.go()
    easel.now = 1.0
    easel.session.see(2, easel.at(2.0))
    easel.session.draw_next()
    assert easel.asked[-1][:2] == (2, 128)


def test_a_change_draws_every_view_anew(fitted):
    easel = Easel(fitted)
    for client in (1, 2):
        easel.session.see(client, easel.at(float(client)))
    easel.now = 1.0
    easel.go()
    easel.asked.clear()
    other = fitted._replace(fit=0)
    easel.session.change(look=Look("normals", "black", 64), fitted=other)
    easel.go()
    assert [asked[:2] for asked in easel.asked] == [(1, 64), (2, 64)]
    assert all(asked[2] is other and asked[3].kind == "normals" for asked in easel.asked)


def test_a_picture_that_fails_is_told_once_and_the_next_is_drawn(fitted):
    easel = Easel(fitted)

    def fails(number):
        if number == 1:
            raise MemoryError("no room\nfor this")

    easel.during = fails
    easel.session.see(1, easel.at(0.0))
    easel.now = 9.0
    easel.go()
    assert easel.failures == ["MemoryError: no room for this"]
    assert len(easel.asked) == 1
    easel.session.see(1, easel.at(1.0))
    easel.session.draw_next()
    assert easel.shown == [(1, False)]


def test_the_thread_draws_one_picture_at_a_time(fitted, tmp_path):
    """Cameras that come while a picture is drawn wait as one; a snapshot waits for the picture."""
    begun, free, inside, most = threading.Event(), threading.Event(), [], []
    easel = Easel(fitted, tmp_path)

    def during(number):
        inside.append(number)
        most.append(len(inside))
        begun.set()
        assert free.wait(10)
        inside.pop()

    easel.during = during
    easel.session.start()
    easel.session.see(1, easel.at(0.0))
    assert begun.wait(10)
    for x in range(1, 50):
        easel.session.see(1, easel.at(float(x)))
    paths = []
    other = threading.Thread(target=lambda: paths.append(easel.session.snapshot(1)))
    other.start()
    time.sleep(0.1)
    assert len(easel.asked) == 1
    free.set()
    other.join(10)
    until(lambda: len(easel.shown) == 2)
    easel.session.close()
    assert sorted(asked[:2] for asked in easel.asked) == [(0, 128), (49, 128), (49, 512)]
    assert paths[0].exists()
    assert max(most) == 1
    assert not any(thread.name == "drawing" for thread in threading.enumerate())


def until(happens, seconds=30.0):
    limit = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < limit, "it did not happen in time"
        time.sleep(0.02)


# --- files of the run ----------------------------------------------------------------------------


def test_snapshots_are_numbered_pictures_of_the_view(fitted, tmp_path):
    session = Session(tmp_path, fitted, lambda *_: None, print, look=Look("normals", "black", 96))
    with pytest.raises(UserError, match="has not sent its camera"):
        session.snapshot(5)
    session.see(5, camera())
    paths = [session.snapshot(5) for _ in range(2)]
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == [
        "snapshots/step_00000080_normals_001.png",
        "snapshots/step_00000080_normals_002.png",
    ]
    expected = picture_of(fitted, camera(), session.look, 96)
    np.testing.assert_array_equal(np.asarray(Image.open(paths[0])), expected)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["snapshots", paths[0].name, paths[1].name]  # fmt: skip


def without_second_checkpoint(run, folder):
    """A copy of the run as it was after its first fit; returns it and a function that lets the second appear."""
    copy = folder / "copy"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "checkpoints" / "steps" / "80")

    def appear():
        steps = copy / "checkpoints" / "steps"
        shutil.copytree(run / "checkpoints" / "steps" / "80", steps / "80.orbax-checkpoint-tmp-1")
        assert newest_step(copy) == 40, "what is being written does not count"
        (steps / "80.orbax-checkpoint-tmp-1").rename(steps / "80")

    return copy, appear


def test_a_new_checkpoint_is_loaded_and_drawn(run, tmp_path):
    copy, appear = without_second_checkpoint(run, tmp_path)
    pictures = []
    session = Session(copy, load_fitted(copy), lambda _, picture, sharp: pictures.append(picture), print)  # fmt: skip
    live = Live(session)
    session.see(1, camera())
    assert session.draw_next()
    assert not live.look()
    assert (step_of(session.fitted), session.fitted.fit) == (40, 0)
    appear()
    assert live.look()
    assert (step_of(session.fitted), session.fitted.fit) == (80, 1)
    assert not live.look(), "once"
    assert session.draw_next()
    before, after = (picture.image.astype(int) for picture in pictures)
    assert np.abs(before - after).max() > 5, "the newer field is drawn"


def test_a_checkpoint_that_vanishes_while_it_is_read_changes_nothing(run, tmp_path, monkeypatch):
    copy, appear = without_second_checkpoint(run, tmp_path)
    session = Session(copy, load_fitted(copy), lambda *_: None, print)
    live, read = Live(session), module.load_fitted
    appear()

    def gone(_):
        raise UserError("all damaged")

    monkeypatch.setattr(module, "load_fitted", gone)
    assert not live.look()
    monkeypatch.setattr(module, "load_fitted", read)
    assert live.look(), "the next look tries again"


def test_the_text_tells_the_last_psnr_of_each_kind(run, tmp_path):
    lines = [
        {"step": 20, "phase": "a", "psnr": 10.0},
        {"step": 20, "test/psnr": 9.5, "test/psnr_foreground": 5.0},
        {"step": 40, "phase": "a", "psnr": 12.344},
        {"step": 60, "phase": "a", "psnr": None},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 80, "ps'
    (tmp_path / "metrics.jsonl").write_text(text)
    assert progress_text(tmp_path, 20, 100).split("\n\n") == [
        "shown: step 20 of 100",
        "training: PSNR 12.34 dB at step 40",
        "test: PSNR 9.50 dB at step 20",
    ]
    assert progress_text(tmp_path / "none", 20, 100) == "shown: step 20 of 100"
    assert "test: PSNR" in progress_text(run, 80, 80)


# --- the server ----------------------------------------------------------------------------------


def refused(capsys, *options):
    assert cli.main(["view", *map(str, options)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_without_viser_the_line_says_what_to_install(run, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "viser", None)
    assert 'pip install "jaxvid[view]"' in refused(capsys, run)


@pytest.fixture
def viser():
    return pytest.importorskip("viser", reason='needs viser: pip install "jaxvid[view]"')


def test_bad_input_is_one_line(run, viser, capsys, tmp_path):
    assert "--port is 70000" in refused(capsys, run, "--port", 70000)
    assert "--host no.such.host.invalid" in refused(capsys, run, "--host", "no.such.host.invalid")
    assert "no such run directory" in refused(capsys, tmp_path / "none", "--port", 0)
    copy = tmp_path / "copy"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("checkpoints"))
    assert "no checkpoint yet" in refused(capsys, copy, "--port", 0)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"--port {port} of 127.0.0.1 is taken" in refused(capsys, run, "--port", port)


@contextlib.contextmanager
def serving(run, fitted, **options):
    from jaxedit.viewer.server import Viewer

    viewer = Viewer(run, fitted, "127.0.0.1", 0, **options)
    try:
        yield viewer
    finally:
        viewer.close()


def test_the_page_answers_on_this_machine_alone(run, fitted, viser):
    with serving(run, fitted) as viewer:
        port = viewer.server.get_port()
        assert viewer.address == f"http://127.0.0.1:{port}"
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/")
        answer = connection.getresponse()
        assert answer.status == 200
        assert b"<html" in answer.read().lower()
        connection.close()
        # Another address of the machine, which a server on 0.0.0.0 would answer (on Linux all of 127.*.*.*).
        if sys.platform == "linux":
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.2", port), timeout=10).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=10).close()


def test_a_port_taken_at_the_last_moment_is_refused(viser):
    """viser itself would take the next port and say nothing."""
    from jaxedit.viewer.server import start_server

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="is taken"):
            start_server("127.0.0.1", taken.getsockname()[1])


def test_the_panel_changes_the_look_and_live_follows_the_run(run, viser, tmp_path):
    copy, appear = without_second_checkpoint(run, tmp_path)
    with serving(copy, load_fitted(copy), live=True) as viewer:
        assert viewer.session.look == Look("colour", "white", 512)
        viewer._kind.value, viewer._resolution.value = "depth", 128
        until(lambda: viewer.session.look == Look("depth", "white", 128))
        until(lambda: viewer._progress.content.startswith("shown: step 40 of 80"))
        appear()
        until(lambda: viewer._progress.content.startswith("shown: step 80 of 80"))


def test_ctrl_c_ends_cleanly(run, viser):
    """The address is printed, SIGINT ends with code 0, and nothing of it looks like a failure."""
    command = [sys.executable, "-m", "jaxedit.cli", "view", str(run), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert f"{run}, step 80: http://127.0.0.1:" in line
        # What browsers do: a connection without a request. It must not print anything.
        port = int(line.split("http://127.0.0.1:")[1].split()[0])
        socket.create_connection(("127.0.0.1", port), timeout=10).close()
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        rest, error = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0, error
    assert "closed" in rest
    assert "Traceback" not in error
    assert "handshake" not in error


# --- a browser -----------------------------------------------------------------------------------


class Page:
    """A page in a headless Chromium, spoken to by its DevTools protocol."""

    def __init__(self, program, address, folder):
        from websockets.sync.client import connect

        flags = ["--headless=new", "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
                 "--window-size=1000,700", "--remote-debugging-port=0", f"--user-data-dir={folder}"]  # fmt: skip
        self.process = subprocess.Popen([program, *flags, address], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        port = folder / "DevToolsActivePort"
        until(lambda: port.exists() and "\n" in port.read_text(), 60)
        number = int(port.read_text().split()[0])
        until(lambda: self.pages(number), 60)
        self.socket = connect(self.pages(number)[0]["webSocketDebuggerUrl"], max_size=None)
        self.count = 0

    def pages(self, port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/json")
        found = json.loads(connection.getresponse().read())
        return [page for page in found if page["type"] == "page"]

    def call(self, method, **parameters):
        self.count += 1
        self.socket.send(json.dumps({"id": self.count, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self.socket.recv(timeout=60))
            if answer.get("id") == self.count:
                return answer["result"]

    def screenshot(self):
        data = base64.b64decode(self.call("Page.captureScreenshot")["data"])
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))

    def press(self, label):
        find = (
            f"[...document.querySelectorAll('button')].find(b => b.innerText.trim() == '{label}')"
        )
        self.call("Runtime.evaluate", expression=f"{find}.click()")

    def drag(self, start, end):
        def mouse(kind, at, buttons):
            self.call("Input.dispatchMouseEvent", type=kind, x=float(at[0]), y=float(at[1]), button="left", buttons=buttons, clickCount=1)  # fmt: skip

        mouse("mousePressed", start, 1)
        for part in np.linspace(0, 1, 8):
            mouse("mouseMoved", np.array(start) * (1 - part) + np.array(end) * part, 1)
        mouse("mouseReleased", end, 0)

    def close(self):
        self.socket.close()
        self.process.terminate()
        self.process.wait(30)


@pytest.mark.browser
def test_a_browser_shows_the_scene_and_orbits_it(run, fitted, viser, tmp_path):
    """Opens the page in a headless Chromium and looks at it:

        apt-get install chromium; pip install -e ".[view,test]"; pytest -m browser tests/viewer

    VIEWER_SCREENSHOTS=folder keeps the screenshots.
    """
    if CHROMIUM is None:
        pytest.skip("needs a Chromium on the PATH: apt-get install chromium")
    kept = Path(os.environ.get("VIEWER_SCREENSHOTS") or tmp_path)
    with serving(run, fitted) as viewer:
        page = Page(CHROMIUM, viewer.address, tmp_path / "profile")
        try:
            cameras = []
            for name in ("start", "orbited", "frusta"):
                until(lambda: viewer.server.get_clients(), 120)
                time.sleep(1.0)
                until(lambda: sharp(viewer), 120)
                time.sleep(2.0)
                shot = page.screenshot()
                Image.fromarray(shot).save(kept / f"viewer_{name}.png")
                (view,) = viewer.session._views.values()
                cameras.append(view.camera)
                wanted = picture_of(fitted, view.camera, viewer.session.look, 512)
                resized = Image.fromarray(wanted).resize(shot.shape[1::-1])
                # The panel is on the right.
                half = (slice(None), slice(0, int(0.65 * shot.shape[1])))
                error = np.abs(shot[half].astype(int) - np.asarray(resized)[half].astype(int))
                if name != "frusta":
                    assert (np.asarray(resized)[half] < 200).any(axis=-1).mean() > 0.02
                    assert error.mean() < 3.0
                else:
                    assert (error.max(axis=-1) > 60).mean() > 1e-3, "cameras are drawn over it"
                if name == "start":
                    page.drag((300, 350), (420, 380))
                else:
                    viewer._frusta.value = True
            moved = np.linalg.norm(cameras[0].position - cameras[1].position)
            assert moved > 0.3
            page.press("snapshot")
            until(lambda: list((run / "snapshots").glob("*.png")))
            assert "written: " in viewer._message.content
        finally:
            page.close()


def sharp(viewer):
    views = list(viewer.session._views.values())
    return views and all(view.drawn == len(rungs_of(512)) - 1 for view in views)
