"""Marching cubes: solids against closed forms, every case against what a mesh is."""

import math

import numpy as np
import pytest
from scipy.ndimage import map_coordinates
from small_exports import (
    area_and_volume,
    assert_closed_manifold,
    euler,
    grid_points,
    sphere,
    winding,
)

from jaxedit.export.mesh import large_parts, marching_cubes


def torus(x):
    ring = np.hypot(x[..., 0], x[..., 1]) - 0.6
    return 0.25 - np.hypot(ring, x[..., 2])


@pytest.mark.parametrize(("inside", "area", "volume", "characteristic"), [
    (sphere, 4 * math.pi * 0.7**2, 4 / 3 * math.pi * 0.7**3, 2),
    (torus, 4 * math.pi**2 * 0.6 * 0.25, 2 * math.pi**2 * 0.6 * 0.25**2, 0),
])  # fmt: skip
def test_solids_have_their_area_volume_and_genus(inside, area, volume, characteristic):
    surface = marching_cubes(inside(grid_points(64)), 0.0)
    points = surface.points * 2 / 63 - 1
    assert_closed_manifold(surface.triangles, len(points))
    assert euler(surface.triangles, len(points)) == characteristic
    found = area_and_volume(points, surface.triangles)
    np.testing.assert_allclose(found, [area, volume], rtol=0.01)
    assert found[1] > 0
    np.testing.assert_allclose(inside(points), 0.0, atol=1e-3)


def test_all_cases_fit_together():
    """Random signs make every case meet every other; the surface is a closed manifold all the same."""
    values = np.pad(np.random.default_rng(0).normal(size=(20, 21, 22)), 1, constant_values=-3.0)
    inside = (values > 0.25).astype(int)
    case = sum(
        inside[i : 21 + i, j : 22 + j, k : 23 + k] << (4 * i + 2 * j + k)
        for i in (0, 1)
        for j in (0, 1)
        for k in (0, 1)
    )
    assert len(np.unique(case)) == 256
    surface = marching_cubes(values, 0.25)
    assert_closed_manifold(surface.triangles, len(surface.axis))


def test_the_mesh_parts_what_is_inside_from_what_is_not():
    """Also in ambiguous cases: each point of the grid is wound around once if inside, else never."""
    values = np.pad(np.random.default_rng(1).normal(size=(6, 6, 6)), 1, constant_values=-3.0)
    surface = marching_cubes(values, 0.1)
    at = np.argwhere(np.ones(values.shape))
    found = winding(surface.points, surface.triangles, at.astype(float))
    np.testing.assert_allclose(found, (values > 0.1).reshape(-1), atol=1e-9)


def test_opposite_corners_of_a_face_hold_together():
    values = np.full((4, 4, 4), -1.0)
    values[1, 1, 1] = values[2, 2, 1] = 1.0
    surface = marching_cubes(values, 0.0)
    assert_closed_manifold(surface.triangles, len(surface.axis))
    assert euler(surface.triangles, len(surface.axis)) == 2, "one sphere"
    values[2, 2, 1], values[2, 2, 2] = -1.0, 1.0  # opposite corners of the cell do not
    surface = marching_cubes(values, 0.0)
    assert euler(surface.triangles, len(surface.axis)) == 4, "two spheres"


def test_vertices_are_interpolated_linearly():
    normal, level = np.array([0.3, -0.5, 0.81]), 0.123
    surface = marching_cubes((grid_points(12) @ normal).astype(np.float64), level)
    points = surface.points * 2 / 11 - 1
    np.testing.assert_allclose(points @ normal, level, atol=1e-12)
    a, b, c = np.moveaxis(points[surface.triangles], 1, 0)
    area = np.cross(b - a, c - a)
    big = np.linalg.norm(area, axis=-1) > 1e-6
    np.testing.assert_allclose(
        area[big] / np.linalg.norm(area[big], axis=-1, keepdims=True),
        np.broadcast_to(-normal / np.linalg.norm(normal), area[big].shape),
        atol=1e-6,
    )
    values = np.random.default_rng(2).normal(size=(5, 6, 7))
    surface = marching_cubes(values, 0.3)
    found = map_coordinates(values, surface.points.T, order=1)
    np.testing.assert_allclose(found, 0.3, atol=1e-9)


def test_values_equal_to_the_level_leave_no_hole():
    values = np.random.default_rng(3).integers(-1, 2, (9, 9, 9)).astype(np.float32)
    surface = marching_cubes(np.pad(values, 1, constant_values=-1), 0.0)
    assert np.isfinite(surface.points).all()
    assert_closed_manifold(surface.triangles, len(surface.axis))


def test_small_parts_are_left_out():
    x = grid_points(40)
    values = np.maximum.reduce([
        0.45 - np.linalg.norm(x - [-0.4, 0, 0], axis=-1),
        0.25 - np.linalg.norm(x - [0.5, 0, 0], axis=-1),
        0.08 - np.linalg.norm(x - [0.5, 0.6, 0.6], axis=-1),
    ])  # fmt: skip
    whole = marching_cubes(values, 0.0)
    assert euler(whole.triangles, len(whole.axis)) == 6
    for share, parts in ((0.001, 3), (0.1, 2), (1.0, 1)):
        kept = large_parts(whole, share)
        assert_closed_manifold(kept.triangles, len(kept.axis))
        assert euler(kept.triangles, len(kept.axis)) == 2 * parts
    np.testing.assert_allclose(kept.points.mean(0) * 2 / 39 - 1, [-0.4, 0, 0], atol=0.01)
