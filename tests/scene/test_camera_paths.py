"""Camera paths: turntables, spirals, key frames."""

import numpy as np
import pytest
from camera_rings import UP, ring

from jaxedit.scene.paths import focus_of, spiral, through, turntable
from jaxedit.scene.poses import look_at
from jaxvid.core.errors import UserError


def test_the_focus_is_where_the_axes_meet():
    np.testing.assert_allclose(focus_of(ring()), [0.2, -0.1, 0.3], atol=1e-9)
    parallel = look_at(np.array([[0.0, -5, 0], [1.0, -5, 0]]), np.array([0.0, 1e9, 0]), UP)
    np.testing.assert_allclose(focus_of(parallel), [0.5, -4, 0], atol=1e-6)


def test_a_turntable_goes_once_around_at_its_height():
    path = turntable(ring(), 12)
    offset = path[:, :, 3] - focus_of(ring())
    np.testing.assert_allclose(offset[:, 2], 1.0, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(offset, axis=-1), np.hypot(3, 1), atol=1e-6)
    turned = np.unwrap(np.arctan2(offset[:, 1], offset[:, 0]))
    np.testing.assert_allclose(np.diff(turned), 2 * np.pi / 12, atol=1e-6)
    np.testing.assert_allclose(focus_of(path), focus_of(ring()), atol=1e-6)
    high = turntable(ring(), 4, elevation=90.0, radius=2.0)
    np.testing.assert_allclose(
        high[:, :, 3] * np.ones((4, 1)),
        np.ones((4, 1)) * focus_of(ring()) + np.array([[0, 0, 2.0]]),
        atol=1e-6,
    )


def test_a_spiral_stays_among_the_cameras_and_looks_at_their_focus():
    rng = np.random.default_rng(0)
    position = np.stack([rng.uniform(-1, 1, 20), np.full(20, -5.0), rng.uniform(-0.5, 0.5, 20)], -1)
    poses = look_at(position, np.zeros(3), UP)
    path = spiral(poses, 40)
    assert np.abs(path[:, 0, 3]).max() <= 1.2
    np.testing.assert_allclose(focus_of(path), 0, atol=1e-3)


def test_key_frames_are_passed_through():
    keys = ring(4)
    path = through(keys, 31)
    np.testing.assert_allclose(path[::10], keys, atol=1e-9)
    closed = through(keys, 40, closed=True)
    np.testing.assert_allclose(closed[::10], keys, atol=1e-9)
    step = np.linalg.norm(np.diff(np.concatenate([closed, closed[:1]])[:, :, 3], axis=0), axis=-1)
    assert step.max() < 1.5 * step.min()
    with pytest.raises(UserError, match="2 key frames"):
        through(keys[:1], 10)
