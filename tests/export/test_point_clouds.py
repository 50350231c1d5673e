"""Clouds of points: where the light of a fitted scene comes from."""

import jax.numpy as jnp
import numpy as np
import pytest
from small_exports import CONFIG, fitted, record_of

from jaxedit.export.points import cloud_of
from jaxedit.scene.cameras import pinhole_cameras
from jaxedit.scene.poses import look_at
from jaxvid.core.errors import UserError


def test_points_lie_where_the_surface_is():
    scene = fitted()
    cloud = cloud_of(scene, 100_000, seed=0)
    assert len(cloud.points) > 500
    radius = np.linalg.norm(cloud.points, axis=-1)
    # Half of the light is gone 0.02 below the surface.
    assert np.abs(np.median(radius) - 0.6) < 0.05
    assert np.percentile(np.abs(radius - 0.6), 95) < 0.1
    outwards = cloud.points / radius[:, None]
    assert np.median((outwards * cloud.normals).sum(-1)) > 0.97
    np.testing.assert_allclose(np.linalg.norm(cloud.normals, axis=-1), 1.0, atol=1e-6)
    assert cloud.opacity.min() > 0.5
    # Not darkened by the black behind half transparent edges.
    right = cloud.points[:, 0] > 0.15
    assert cloud.colours[right, 0].min() > 240
    assert cloud.colours[right, 2].max() < 15
    few = cloud_of(scene, 200, seed=1)
    assert len(few.points) == 200
    assert len(np.unique(few.points, axis=0)) == 200
    assert (few.points != cloud_of(scene, 200, seed=2).points).any()


def test_points_between_two_surfaces_are_left_out():
    """A thin half transparent sheet before a wall: the mean depth of many rays lies in the empty space between."""
    scene = fitted()
    raw = np.full((20, 20, 20, 1), -50.0, np.float32)
    raw[2] = 50.0  # the wall, at x = -0.75
    raw[13:17] = 1.0  # the sheet, around x = 0.5
    scene.state["trainable"]["field/density_values"] = jnp.asarray(raw)
    pose = look_at(np.array([[4.0, 0.1, 0.1]]), np.zeros(3), np.array([0.0, 0.0, 1.0]))
    record = record_of({"train": pinhole_cameras(pose, 60.0, 20, 24)})
    scene = scene._replace(record=record)
    pixels = CONFIG.render_image(scene.frame, scene.state, record.cameras["train"], 0)
    seen = np.asarray(pixels.opacity) > 0.9
    where = 4.0 - np.asarray(pixels.depth)[seen]
    assert ((where > -0.5) & (where < 0.4)).mean() > 0.9, "the test's premise"
    with pytest.raises(UserError, match="no ray of the training views"):
        cloud_of(scene, 1000, seed=0)


def test_clouds_of_nothing_are_refused():
    scene = fitted()
    scene.state["trainable"]["field/density_values"] = jnp.full((20, 20, 20, 1), -50.0)
    with pytest.raises(
        UserError, match="no ray of the training views ends in matter, more than 50% opaque"
    ):
        cloud_of(scene, 100, seed=0)
