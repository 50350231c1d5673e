"""What a viewer draws: cameras of browsers, pictures of tiles."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from small_views import UP, camera, picture_of, pixels_of

from jaxedit.scene.cameras import pinhole_cameras, project_points
from jaxedit.scene.poses import look_at
from jaxedit.viewer.pictures import (
    FAR,
    TILE,
    Look,
    axis_depth,
    draw,
    first_view,
    picture_size,
    tiles,
    to_browser,
    to_cameras,
    to_image,
)

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
