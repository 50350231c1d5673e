"""When a viewer draws what, and its snapshots."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_views import camera, picture_of, until

from jaxedit.viewer.pictures import BrowserCamera, Look, Picture
from jaxedit.viewer.session import Pace, Session, moving_rung, next_rung, rungs_of
from jaxvid.core.errors import UserError


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
