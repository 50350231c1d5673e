"""Cameras, lenses and poses against scalar references, and round trips."""

import itertools
import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxedit.scene.cameras import Cameras, image_rays, pinhole_cameras, pixel_rays, project_points
from jaxedit.scene.lenses import COEFFICIENTS
from jaxedit.scene.poses import (
    Similarity,
    from_llff,
    from_opencv,
    inverted,
    look_at,
    quaternion_of_rotation,
    rotation_of_quaternion,
    to_llff,
    turn,
    upright,
)

MILD = {
    "pinhole": [],
    "opencv": [-0.12, 0.03, 0.002, -0.001, 0.0007, -0.0011],
    "fisheye": [-0.04, 0.01, -0.003, 0.0005],
}


def random_rotations(rng, count):
    return rotation_of_quaternion(rng.normal(size=(count, 4)))


def cameras_of(lens, count=5, seed=0, width=64, height=48):
    rng = np.random.default_rng(seed)
    pose = np.concatenate([random_rotations(rng, count), rng.normal(size=(count, 3, 1))], axis=-1)
    return Cameras(
        pose=pose.astype(np.float32),
        focal=rng.uniform(50, 70, (count, 2)).astype(np.float32),
        centre=rng.uniform(22, 34, (count, 2)).astype(np.float32),
        distortion=np.tile(np.array(MILD[lens], np.float32), (count, 1)).reshape(count, -1),
        lens=lens,
        width=width,
        height=height,
    )


def seen_at(lens, k, focal, centre, pose, point):
    """OpenCV's documentation of its lens models, one point, in float64."""
    x, y, z = np.array(pose[:, :3], np.float64).T @ (point - pose[:, 3])
    y, z = -y, -z
    if lens == "fisheye":
        r = math.hypot(x, y)
        theta = math.atan2(r, z)
        bent = theta * (1 + sum(c * theta ** (2 * i + 2) for i, c in enumerate(k)))
        u, v = x / r * bent, y / r * bent
    else:
        u, v = x / z, y / z
        if lens == "opencv":
            k1, k2, k3, k4, p1, p2 = k
            r2 = u**2 + v**2
            radial = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3 + k4 * r2**4
            u, v = (
                u * radial + 2 * p1 * u * v + p2 * (r2 + 2 * u**2),
                v * radial + 2 * p2 * u * v + p1 * (r2 + 2 * v**2),
            )
    return np.array([focal[0] * u + centre[0], focal[1] * v + centre[1]])


@pytest.mark.parametrize("lens", COEFFICIENTS)
def test_projection_is_opencvs(lens):
    cameras, rng = cameras_of(lens), np.random.default_rng(1)
    view = rng.integers(0, len(cameras), 40)
    local = np.stack([rng.uniform(-1, 1, 40), rng.uniform(-1, 1, 40), -rng.uniform(2, 4, 40)], -1)
    points = (
        np.einsum("nij,nj->ni", cameras.pose[view][..., :3], local) + cameras.pose[view][..., 3]
    )
    pixel, front = project_points(cameras, jnp.asarray(view), jnp.asarray(points, jnp.float32))
    assert np.asarray(front).all()
    for i, v in enumerate(view):
        parts = cameras.distortion[v], cameras.focal[v], cameras.centre[v], cameras.pose[v]
        np.testing.assert_allclose(pixel[i], seen_at(lens, *parts, points[i]), atol=2e-3)


@pytest.mark.parametrize("lens", COEFFICIENTS)
def test_points_along_a_ray_are_seen_at_its_pixel(lens):
    cameras, rng = cameras_of(lens), np.random.default_rng(2)
    view = jnp.asarray(rng.integers(0, len(cameras), 200))
    pixel = jnp.asarray(rng.uniform([0, 0], [64, 48], (200, 2)), jnp.float32)
    rays = pixel_rays(cameras, view, pixel)
    np.testing.assert_allclose(np.linalg.norm(rays.direction, axis=-1), 1.0, atol=1e-6)
    for t in (0.5, 3.0):
        points = rays.at(jnp.full((200, 1), t))[:, 0]
        back, front = project_points(cameras, view, points)
        assert np.asarray(front).all()
        np.testing.assert_allclose(back, pixel, atol=2e-3)


def test_a_fisheye_sees_behind_its_plane():
    cameras = replace(
        cameras_of("fisheye", 1), distortion=np.zeros((1, 4), np.float32),
        pose=np.eye(3, 4, dtype=np.float32)[None], focal=np.full((1, 2), 10, np.float32),
        centre=np.full((1, 2), 32, np.float32),
    )  # fmt: skip
    angle = 2.0  # radians from the axis: more than a right angle
    rays = pixel_rays(cameras, jnp.array(0), jnp.array([32.0 + 10 * angle, 32.0]))
    np.testing.assert_allclose(rays.direction, [math.sin(2.0), 0, -math.cos(2.0)], atol=1e-6)


def test_pixel_centres_and_axes():
    cameras = pinhole_cameras(np.eye(3, 4, dtype=np.float32)[None], 2.0, 4, 2)
    rays = image_rays(cameras, 0)
    assert rays.direction.shape == (2, 4, 3)
    # The first pixel's centre: left of the axis by 1.5 pixels, above it by half of one, looking along -z.
    expected = np.array([-1.5 / 2, 0.5 / 2, -1.0])
    np.testing.assert_allclose(rays.direction[0, 0], expected / np.linalg.norm(expected), atol=1e-6)


def test_half_the_size_is_the_same_view():
    cameras = cameras_of("opencv")
    half = cameras.resized(32, 24)
    view = jnp.arange(5)
    pixel = jnp.asarray(np.random.default_rng(0).uniform(0, 48, (5, 2)), jnp.float32)
    np.testing.assert_allclose(
        pixel_rays(cameras, view, pixel).direction,
        pixel_rays(half, view, pixel / 2).direction,
        atol=1e-6,
    )


@pytest.mark.parametrize("lens", COEFFICIENTS)
def test_rays_have_gradients_in_every_camera_parameter(lens):
    cameras = cameras_of(lens)
    axis = jnp.asarray(cameras.centre)  # the optical axis is where a fisheye divides by zero

    def total(cameras):
        rays = pixel_rays(cameras, jnp.arange(5), axis)
        return jnp.sum(rays.direction[:, 0]) + jnp.sum(rays.origin)

    gradient = jax.grad(total)(jax.tree.map(jnp.asarray, cameras))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert np.abs(gradient.pose).max() > 0.1


def test_pose_conventions_round_trip_in_every_order():
    rng = np.random.default_rng(3)
    poses = np.concatenate([random_rotations(rng, 6), rng.normal(size=(6, 3, 1))], axis=-1)
    there = {
        "opencv": (from_opencv, from_opencv),
        "llff": (to_llff, from_llff),
        "colmap": (lambda p: inverted(from_opencv(p)), lambda p: from_opencv(inverted(p))),
    }
    for first, second in itertools.product(there.values(), there.values()):
        stored = second[0](first[1](first[0](poses)))
        np.testing.assert_allclose(second[1](stored), poses, atol=1e-12)


def test_each_convention_looks_where_it_says():
    position, target = np.array([[3.0, -2.0, 1.0]]), np.array([0.0, 0.5, 0.2])
    pose = look_at(position, target, np.array([0.0, 0.0, 1.0]))
    ahead = (target - position[0]) / np.linalg.norm(target - position[0])
    np.testing.assert_allclose(-pose[0, :, 2], ahead, atol=1e-12)
    assert pose[0, 2, 1] > 0, "the world's up is up in the image"
    assert abs(pose[0, 2, 0]) < 1e-12, "the horizon is level"
    np.testing.assert_allclose(np.linalg.det(pose[0, :, :3]), 1.0, atol=1e-12)
    np.testing.assert_allclose(from_opencv(pose)[0, :, 2], ahead, atol=1e-12)
    np.testing.assert_allclose(to_llff(pose)[0, :, 0], -pose[0, :, 1], atol=1e-12)


def test_look_at_along_up_is_still_a_rotation():
    pose = look_at(np.array([[0.0, 0.0, 2.0]]), np.zeros(3), np.array([0.0, 0.0, 1.0]))
    np.testing.assert_allclose(pose[0, :, :3].T @ pose[0, :, :3], np.eye(3), atol=1e-12)


def test_quaternions_round_trip_with_every_dominant_part():
    rng = np.random.default_rng(4)
    q = np.concatenate([rng.normal(size=(50, 4)), np.eye(4), -np.eye(4)])
    rotation = rotation_of_quaternion(q)
    np.testing.assert_allclose(np.linalg.det(rotation), 1.0, atol=1e-12)
    np.testing.assert_allclose(
        rotation_of_quaternion(quaternion_of_rotation(rotation)), rotation, atol=1e-12
    )
    # A quarter turn around z takes x to y.
    quarter = rotation_of_quaternion(np.array([[math.sqrt(0.5), 0, 0, math.sqrt(0.5)]]))
    np.testing.assert_allclose(quarter[0] @ [1, 0, 0], [0, 1, 0], atol=1e-12)


def test_similarities_compose_and_invert():
    rng = np.random.default_rng(5)
    first, second = (
        Similarity(float(rng.uniform(0.5, 2)), random_rotations(rng, 1)[0], rng.normal(size=3))
        for _ in range(2)
    )
    x = rng.normal(size=(7, 3))
    np.testing.assert_allclose(first.inverse().points(first.points(x)), x, atol=1e-12)
    np.testing.assert_allclose(
        second.after(first).points(x), second.points(first.points(x)), atol=1e-12
    )


def test_a_moved_world_looks_the_same():
    cameras, rng = cameras_of("opencv"), np.random.default_rng(6)
    move = Similarity(1.7, random_rotations(rng, 1)[0], rng.normal(size=3))
    points = rng.normal(size=(5, 3)) * 3
    view = jnp.arange(5)
    before, front = project_points(cameras, view, jnp.asarray(points, jnp.float32))
    after, front_after = project_points(
        move.cameras(cameras), view, jnp.asarray(move.points(points), jnp.float32)
    )
    assert np.asarray(front).any()
    np.testing.assert_array_equal(front, front_after)
    np.testing.assert_allclose(before[front], after[front], rtol=1e-4, atol=2e-3)


def test_upright_does_what_it_says():
    rng = np.random.default_rng(7)
    tilt = random_rotations(rng, 1)[0]
    angle = np.linspace(0, 2 * np.pi, 9)[:-1]
    ring = np.stack([np.cos(angle), np.sin(angle), 0.3 + 0 * angle], -1) * 5
    poses = look_at(ring, np.zeros(3), np.array([0.0, 0.0, 1.0]))
    poses = Similarity(1.0, tilt, rng.normal(size=3)).poses(poses)
    found = upright(poses, radius=2.0).poses(poses)
    np.testing.assert_allclose(found[:, :, 3].mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(found[:, :, 3], axis=-1).max(), 2.0)
    up = found[:, :, 1].mean(axis=0)
    np.testing.assert_allclose(up / np.linalg.norm(up), [0, 0, 1], atol=1e-12)


def test_half_a_turn_is_a_rotation():
    z = np.array([0.0, 0.0, 1.0])
    half = turn(z, -z)
    np.testing.assert_allclose(half @ z, -z, atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(half), 1.0)
