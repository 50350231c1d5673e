"""Cameras and pictures of browsers, runs that go on, and servers."""

import contextlib
import shutil
import time

import jax.numpy as jnp
import numpy as np
from scipy.spatial.transform import Rotation

from jaxedit.render.compositing import Pixels
from jaxedit.viewer.following import newest_step
from jaxedit.viewer.pictures import BrowserCamera, draw, to_cameras

UP = np.array([0.0, 0.0, 1.0])


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


def until(happens, seconds=30.0):
    limit = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < limit, "it did not happen in time"
        time.sleep(0.02)


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


@contextlib.contextmanager
def serving(run, fitted, **options):
    from jaxedit.viewer.server import Viewer

    viewer = Viewer(run, fitted, "127.0.0.1", 0, **options)
    try:
        yield viewer
    finally:
        viewer.close()
