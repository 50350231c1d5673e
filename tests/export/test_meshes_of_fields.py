"""Meshes of known fields: their shape, normals, colours and level."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from small_exports import Solid, area_and_volume, assert_closed_manifold, ball, facing

from jaxedit.export.mesh import marching_cubes, mean_normals
from jaxedit.export.sampling import Lattice, check_resolution, density_on
from jaxedit.export.surface import REACH, chosen_level, mesh_of
from jaxedit.fields.field import Frame
from jaxvid.core.errors import UserError


def halves(points, directions):
    return jnp.where(points[..., :1] > 0, jnp.array([1.0, 0.0, 0.0]), jnp.array([0.0, 0.0, 1.0]))


def test_a_ball_becomes_a_round_mesh():
    mesh, level = mesh_of(Solid(ball, facing), 24, level=50.0)
    assert level == 50.0
    assert_closed_manifold(mesh.triangles, len(mesh.points))
    radius = np.linalg.norm(mesh.points, axis=-1)
    # Ten times nearer than where straight lines between points 1/12 apart meet the level.
    np.testing.assert_allclose(radius, 0.6, atol=2e-4)
    lattice = Lattice.of(Frame(), 24)
    straight = marching_cubes(density_on(Solid(ball, facing), lattice), 50.0)
    straight = np.linalg.norm(lattice.world(straight.points), axis=-1)
    assert np.abs(straight - 0.6).max() > 2e-3
    outwards = mesh.points / radius[:, None]
    np.testing.assert_allclose(mesh.normals, outwards, atol=1e-3)
    np.testing.assert_allclose(mesh.colours / 255, 0.5 * (1 - outwards), atol=3 / 255)
    area, volume = area_and_volume(mesh.points, mesh.triangles)
    np.testing.assert_allclose([area, volume], [4 * math.pi * 0.36, 4 / 3 * math.pi * 0.216], rtol=0.02)  # fmt: skip
    assert (mean_normals(mesh.points, mesh.triangles) * outwards).sum(-1).min() > 0.9


def test_colours_are_those_of_their_side():
    mesh, _ = mesh_of(Solid(ball, halves), 16)
    right = mesh.points[:, 0] > 0.02
    left = mesh.points[:, 0] < -0.02
    np.testing.assert_array_equal(mesh.colours[right], np.tile([255, 0, 0], (right.sum(), 1)))
    np.testing.assert_array_equal(mesh.colours[left], np.tile([0, 0, 255], (left.sum(), 1)))


@pytest.mark.parametrize("top", [15.0, 40.0, 1000.0])
def test_colours_are_what_light_brings_from_the_matter(top):
    """A green skin over white: how much white comes through follows from the skin's optical thickness."""

    def skin(points, directions):
        return jnp.where(ball(points)[..., None] > -0.02, jnp.array([0.0, 1.0, 0.0]), jnp.ones(3))

    mesh, _ = mesh_of(Solid(ball, skin, top=top), 24, level=0.05 * top)
    through = math.exp(-top / 50 * math.log(1 + math.exp(50 * 0.02)))
    np.testing.assert_allclose(mesh.colours[:, 0] / 255, through, atol=0.1)
    np.testing.assert_array_equal(mesh.colours[:, 1], 255)


def test_matter_at_the_box_is_closed_at_the_box():
    frame = Frame((-0.5, -1.0, -1.0), (0.3, 1.0, 1.0))
    mesh, _ = mesh_of(Solid(ball, facing, frame), 20, level=50.0)
    assert_closed_manifold(mesh.triangles, len(mesh.points))
    low, high = mesh.points.min(0), mesh.points.max(0)
    np.testing.assert_allclose([low[0], high[0]], [-0.5, 0.3], atol=1e-12)
    np.testing.assert_allclose([low[1:], high[1:]], [[-0.6, -0.6], [0.6, 0.6]], atol=1e-2)
    flat = np.isclose(mesh.points[:, 0], 0.3, atol=1e-12)
    inner = flat & (np.hypot(*mesh.points[:, 1:].T) < 0.4)
    assert inner.sum() > 20
    np.testing.assert_allclose(mesh.normals[inner], np.tile([1.0, 0, 0], (inner.sum(), 1)), atol=0.02)  # fmt: skip
    # Ball between the planes: pi (r^2 x - x^3 / 3).
    volume = math.pi * (0.36 * 0.8 - (0.3**3 + 0.5**3) / 3)
    np.testing.assert_allclose(area_and_volume(mesh.points, mesh.triangles)[1], volume, rtol=0.02)


def test_the_lattice_follows_the_box():
    frame = Frame((0.0, 0.0, 0.0), (2.0, 1.0, 0.5))
    lattice = Lattice.of(frame, 16)
    assert lattice.shape == (16, 8, 4)
    np.testing.assert_allclose(lattice.world(np.array([[0.0, 0.0, 3.0]])), [[1 / 16, 1 / 16, 7 / 16]])  # fmt: skip

    def linear(points):
        return -jnp.log(jnp.sum(points * jnp.array([1.0, 10.0, 0.1]), axis=-1)) / 50.0

    # top sigmoid(log s) = top s / (1 + s)
    found = density_on(Solid(linear, facing, frame), lattice)
    index = np.stack(np.meshgrid(*map(np.arange, lattice.shape), indexing="ij"), -1)
    s = (index + 0.5) / 8 @ [1.0, 10.0, 0.1]
    np.testing.assert_allclose(found, 100 * s / (1 + s), rtol=1e-4)


def test_the_level_is_chosen_between_empty_and_full():
    rng = np.random.default_rng(0)
    density = np.zeros((20, 20, 20), np.float32)
    density[5:15, 5:15, 5:15] = 1e6
    np.testing.assert_allclose(chosen_level(density, 0.02), math.log(2) / 0.02, rtol=1e-2)
    density = rng.exponential(0.1, density.shape).astype(np.float32)
    density[5:15, 5:15, 5:15] = rng.uniform(80, 2000, (10, 10, 10))
    level = chosen_level(density, 0.02)
    assert density[:5].max() < level < 80
    # Otsu's definition: no other threshold parts the opacities into classes of less spread.
    opacity = np.floor(256 * (1 - np.exp(-0.02 * density.astype(np.float64).reshape(-1)))) / 256
    spread = [
        sum(len(part) * part.var() for part in (opacity[opacity < t], opacity[opacity >= t]) if len(part))
        for t in np.arange(1, 256) / 256
    ]  # fmt: skip
    at = round(256 * (1 - math.exp(-0.02 * level))) - 1
    np.testing.assert_allclose(spread[at], min(spread), rtol=1e-6)
    with pytest.raises(UserError, match="too alike to choose a level"):
        chosen_level(np.full((4, 4, 4), 3.0, np.float32), 0.02)
    mesh, level = mesh_of(Solid(ball, facing), 16)
    full = 1 - math.exp(-100 * REACH * 2)
    assert 0 < level < -math.log(1 - full) / (REACH * 2)
    np.testing.assert_allclose(np.linalg.norm(mesh.points, axis=-1), 0.6, atol=0.05)


@pytest.mark.parametrize(
    ("level", "message"),
    [
        (1e4, "empty at level 10000; densities reach from .* to 100; choose --level"),
        (100.0 * (1 - 1e-12), "empty at level 100;"),
        (1e-30, "full at level"),
    ],
)
def test_levels_that_no_cell_crosses(level, message):
    def wide(points):
        return 0.5 * ball(points) - 0.5

    with pytest.raises(UserError, match=message):
        mesh_of(Solid(wide, facing), 8, level=level)


@pytest.mark.parametrize("resolution", [-3, 0, 1, 1025])
def test_resolutions_are_bounded(resolution):
    with pytest.raises(UserError, match=f"--resolution is {resolution}; give 2 to 1024 .*GiB"):
        check_resolution(resolution, 16)
    with pytest.raises(UserError, match=r"may need .* GiB, this machine has .*; give .* or less"):
        check_resolution(1024, 1 << 20)
