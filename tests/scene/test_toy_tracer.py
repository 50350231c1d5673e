"""The tracer of toy scenes: distances against sampled surfaces, pictures against closed forms."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial import KDTree
from small_toys import LIGHT, SIZE, SIZES, distance, distances, stage_of, traced, view_rays

from jaxedit.scene.cameras import Rays, pinhole_cameras
from jaxedit.scene.poses import look_at, rotation_of_quaternion
from jaxedit.scene.toy import COLOURS, KINDS, render, toy_scene
from jaxedit.scene.toy.sdf import DISTANCES
from jaxedit.scene.toy.trace import TEXTURES

# --- distances -----------------------------------------------------------------------------------


def inside(kind, p, size):
    """By each shape's definition."""
    a, b, c = size
    x, y, z = p.T
    rho = np.hypot(x, y)
    return {
        "sphere": x**2 + y**2 + z**2 < a**2,
        "box": (abs(x) < a) & (abs(y) < b) & (abs(z) < c),
        "cylinder": (rho < a) & (abs(z) < c),
        "cone": (z > -c) & (rho < a * (c - z) / (2 * c)),
        "torus": (rho - (a - c)) ** 2 + z**2 < c**2,
        "capsule": rho**2 + np.maximum(abs(z) - (c - a), 0) ** 2 < a**2,
        "dome": (z > -c) & (rho**2 + (z + c) ** 2 < a**2),
        "prism": (z > -c) & (abs(x) < a * (c - z) / (2 * c)) & (abs(y) < b),
    }[kind]


def surface_points(kind, size, count, rng):
    """Points where `inside` changes: bisection on lines from inside points to outside ones."""
    within = rng.uniform(-1, 1, (20 * count, 3)) * size
    within = within[inside(kind, within, size)][:count]
    direction = rng.normal(size=within.shape)
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    low, high = np.zeros(len(within)), np.full(len(within), 2 * np.linalg.norm(size))
    # A torus is left for the first time before its tube is crossed.
    if kind == "torus":
        steps = np.arange(1, 101) / 100 * 2 * size[2]
        path = within[:, None] + steps[:, None] * direction[:, None]
        out = ~inside(kind, path.reshape(-1, 3), size).reshape(len(within), -1)
        high = np.where(out.any(1), steps[out.argmax(1)], high)
    for _ in range(30):
        middle = (low + high) / 2
        still = inside(kind, within + middle[:, None] * direction, size)
        low, high = np.where(still, middle, low), np.where(still, high, middle)
    return within + high[:, None] * direction


@pytest.mark.parametrize("kind", KINDS)
def test_distances_are_those_to_the_nearest_surface_point(kind):
    rng, size = np.random.default_rng(0), np.array(SIZES[kind])
    assert kind != "torus" or size[2] <= 0.4 * size[0]
    surface = surface_points(kind, size, 12_000, rng)
    points = rng.uniform(-0.9, 0.9, (1000, 3))
    f = DISTANCES[KINDS.index(kind)]
    single = jnp.asarray(size, jnp.float32)
    found = distance(kind, points, size).astype(np.float64)
    nearest, _ = KDTree(surface).query(points)
    assert np.all(np.abs(found) <= nearest + 1e-6)
    assert np.all(np.abs(found) >= nearest - 0.06)
    assert np.median(nearest - np.abs(found)) < 2e-3
    clear = np.abs(found) > 1e-5
    np.testing.assert_array_equal((found < 0)[clear], inside(kind, points, size)[clear])
    assert np.abs(distance(kind, surface, size)).max() < 1e-5
    # Of length 1 near the surface and on it, where normals are taken.
    gradient = jax.jit(jax.vmap(jax.grad(lambda p: f(p, single))))
    for where, share in ((points[found > 0], 1.0), (points, 0.99), (surface[:2000], 0.99)):
        length = np.linalg.norm(gradient(where.astype(np.float32)), axis=-1)
        assert np.mean(np.abs(length - 1) < 1e-3) >= share


def test_gradient_is_whole_exactly_on_a_face():
    point = jnp.array([0.5, 0.125, 0.0625])
    for kind, size in (("box", [0.5, 0.25, 0.25]), ("cylinder", [0.25, 0.25, 0.0625])):
        f = DISTANCES[KINDS.index(kind)]
        at = point if kind == "box" else point[1:].at[0].set(0.125)
        at = at if kind == "box" else jnp.array([0.125, 0.0, 0.0625])
        assert float(f(at, jnp.array(size))) == 0.0
        slope = jax.grad(lambda p, f=f, s=size: f(p, jnp.array(s)))(at)
        assert float(jnp.linalg.norm(slope)) == 1.0


# --- rays and shadows ----------------------------------------------------------------------------


def to_sphere(o, d, centre, radius):
    b, c = np.sum((o - centre) * d, -1), np.sum((o - centre) ** 2, -1) - radius**2
    root = b * b - c
    return np.where(root > 0, -b - np.sqrt(np.maximum(root, 0)), np.inf), root


def test_spheres_against_the_quadratic_formula():
    """Depth, mask, label, normal and colour of two balls, one of them with a mirror image, on a turned object."""
    turn = 0.7
    rotate = np.array(
        [[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]]
    )
    stage = stage_of(
        [
            {"kind": "sphere", "size": (0.4, 0.4, 0.4), "centre": (0.0, 0.2, 0.4)},
            {
                "kind": "sphere",
                "size": (0.25, 0.25, 0.25),
                "centre": (0.5, 0.1, -0.3),
                "mirror": (True, False),
                "colour": (0.2, 0.9, 0.3),
            },
        ],
        heading=turn,
    )
    for view in range(3):
        rays = view_rays(view)
        hits, colour = traced(stage, rays)
        o, d = np.asarray(rays.origin, np.float64), np.asarray(rays.direction, np.float64)
        balls = [(0, (0, 0.2, 0.4), 0.4), (1, (0.5, 0.1, -0.3), 0.25), (1, (-0.5, 0.1, -0.3), 0.25)]
        middles = [rotate @ np.array(c) for _, c, _ in balls]
        t, roots = zip(
            *(to_sphere(o, d, m, b[2]) for m, b in zip(middles, balls, strict=True)), strict=True
        )
        first, clear = np.argmin(t, 0), np.all(np.abs(roots) > 1e-3, 0)
        depth = np.min(t, 0)
        np.testing.assert_allclose(np.asarray(hits.depth)[clear], depth[clear], atol=1e-4)
        label = np.where(np.isfinite(depth), np.array([0, 1, 1])[first], -1)
        np.testing.assert_array_equal(np.asarray(hits.label)[clear], label[clear])
        seen = clear & (label >= 0)
        assert seen.sum() > 100
        assert (label[seen] == 1).any()
        normal = o + d * np.where(seen, depth, 0)[..., None] - np.stack(middles)[first]
        normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
        np.testing.assert_allclose(np.asarray(hits.normal)[seen], normal[seen], atol=1e-3)
        albedo = np.where(label[..., None] == 0, [0.8, 0.4, 0.2], [0.2, 0.9, 0.3])
        facing = np.maximum(normal @ LIGHT.direction, 0) * (np.asarray(hits.occluder) < 0)
        light = LIGHT.ambient * (0.85 + 0.15 * normal[..., 2:]) + LIGHT.sun * facing[..., None]
        np.testing.assert_allclose(
            np.asarray(colour)[seen], np.minimum(albedo * light, 1)[seen], atol=2e-3
        )


def test_box_against_slabs():
    rng = np.random.default_rng(3)
    rotation = rotation_of_quaternion(rng.normal(size=(1, 4)))[0]
    size, centre = np.array([0.5, 0.3, 0.07]), np.array([0.1, -0.2, 0.05])
    stage = stage_of([{"kind": "box", "size": size, "centre": centre, "rotation": rotation}])
    for view in range(6):
        rays = view_rays(view)
        hits, _ = traced(stage, rays)
        o = (np.asarray(rays.origin, np.float64) - centre) @ rotation
        d = np.asarray(rays.direction, np.float64) @ rotation
        a, b = (-size - o) / d, (size - o) / d
        low, high = np.minimum(a, b).max(-1), np.maximum(a, b).min(-1)
        depth, clear = np.where(low <= high, low, np.inf), np.abs(high - low) > 1e-3
        assert np.isfinite(depth).sum() > 50
        np.testing.assert_allclose(np.asarray(hits.depth)[clear], depth[clear], atol=1e-4)
        face = np.minimum(a, b).argmax(-1)
        normal = -np.sign(np.take_along_axis(d, face[..., None], -1)) * rotation.T[face]
        edge = np.sort(np.minimum(a, b), -1)
        seen = clear & np.isfinite(depth) & (edge[..., 2] - edge[..., 1] > 1e-3)
        np.testing.assert_allclose(np.asarray(hits.normal)[seen], normal[seen], atol=1e-5)


@pytest.mark.parametrize("mirror", [(False, False), (True, True)])
def test_rays_end_at_the_first_surface_of_every_kind(mirror):
    """By walking along each ray in small steps."""
    rng = np.random.default_rng(5)
    rays = view_rays(1)
    o, d = rays.origin.reshape(-1, 3), rays.direction.reshape(-1, 3)
    for kinds in (KINDS[:4], KINDS[4:]):
        stage = stage_of(
            [
                {
                    "kind": kind,
                    "size": 0.6 * np.array(SIZES[kind]),
                    "centre": rng.uniform(-0.5, 0.5, 3) if not any(mirror) else (0.5, 0.5, z),
                    "rotation": rotation_of_quaternion(rng.normal(size=(1, 4)))[0],
                    "mirror": mirror,
                }
                for kind, z in zip(kinds, (-0.6, -0.2, 0.2, 0.6), strict=True)
            ],
            heading=0.3,
        )
        hits, _ = traced(stage, rays)
        depth, label = np.asarray(hits.depth).ravel(), np.asarray(hits.label).ravel()
        assert set(label) == {-1, 0, 1, 2, 3}
        hit = label >= 0
        at_hit = np.asarray(distances(stage, o + np.where(hit, depth, 0)[:, None] * d))
        off = np.abs(at_hit[hit, label[hit]])
        assert off.max() < 1e-4
        assert np.mean(off < 5e-6) > 0.99  # the others graze the torus
        ends = np.where(hit, depth - 1e-3, 6.0)
        walk = jnp.asarray(2.0 + (ends[:, None] - 2.0) * np.linspace(0, 1, 200), jnp.float32)
        passed = np.asarray(distances(stage, Rays(o, d).at(walk))).min((-1, -2))
        assert passed.min() > -1e-4  # a ray out of steps may graze
        assert np.mean(passed > 0) > 0.995


def test_shadows_are_cast_where_a_ball_hides_the_sun():
    """On a floor under a ball, by the quadratic formula along the ray to the sun."""
    stage = stage_of(
        [
            {"kind": "box", "size": (0.9, 0.9, 0.05), "centre": (0.0, 0.0, -0.5)},
            {"kind": "sphere", "size": (0.3, 0.3, 0.3), "centre": (0.0, 0.2, 0.3)},
        ]
    )
    rays = view_rays(5)
    hits, _ = traced(stage, rays)
    depth = np.where(np.asarray(hits.label) == 0, np.asarray(hits.depth), 0)[..., None]
    point = np.asarray(rays.origin) + depth * np.asarray(rays.direction)
    sun = np.broadcast_to(LIGHT.direction, point.shape).astype(np.float64)
    _, root = to_sphere(point.astype(np.float64), sun, np.array([0, 0.2, 0.3]), 0.3)
    floor = (np.asarray(hits.label) == 0) & (np.asarray(hits.normal)[..., 2] > 0.9)
    clear = floor & (np.abs(root) > 5e-3)
    shaded = np.asarray(hits.occluder) == 1
    np.testing.assert_array_equal(shaded[clear], (root > 0)[clear])
    assert 20 < shaded[clear].sum() < clear.sum() - 20


def test_alpha_of_an_edge_converges_to_its_coverage():
    """A plate that faces the camera and ends at a known place inside a column of pixels."""
    camera = pinhole_cameras(
        look_at(np.array([[0.0, -4.0, 0.0]]), np.zeros(3), np.array([0.0, 0.0, 1.0])),
        2.5 * SIZE,
        SIZE,
        SIZE,
    )
    edge = 0.137
    stage = stage_of([{"kind": "box", "size": (1.0, 0.1, 2.0), "centre": (edge - 1.0, 0.1, 0.0)}])
    at = SIZE / 2 + 2.5 * SIZE * edge / 4.0  # the front is at y = 0
    exact = np.clip(at - np.arange(SIZE), 0, 1)
    background = LIGHT.background
    for supersample in (2, 8):
        picture = render(stage, camera, 0, supersample=supersample)
        alpha = np.asarray(picture.alpha)
        assert np.abs(alpha - exact).max() <= 0.5 / supersample + 1e-6
        np.testing.assert_array_equal(alpha, np.asarray(picture.coverage).sum(-1))
        image, nothing = np.asarray(picture.over(background)), alpha == 0
        np.testing.assert_array_equal(
            image[nothing], np.broadcast_to(background, image.shape)[nothing]
        )
        assert np.all(np.isinf(np.asarray(picture.depth)) == nothing)
        np.testing.assert_array_equal(np.asarray(picture.label), np.where(nothing, -1, 0))
        np.testing.assert_allclose(
            np.asarray(picture.normal)[~nothing], [[0, -1, 0]] * (~nothing).sum(), atol=1e-6
        )


# --- textures and colours ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_texture_shows_both_colours_on_every_solid(kind):
    for texture in range(1, len(TEXTURES)):
        stage = stage_of(
            [{"kind": kind, "size": SIZES[kind], "texture": np.int32(texture)}], heading=0.4
        )
        hits, _ = traced(stage, view_rays(4))
        albedo = np.asarray(hits.albedo)[np.asarray(hits.label) == 0]
        marked = np.all(albedo == np.array([0.1, 0.2, 0.9], np.float32), -1)
        assert np.all(marked | np.all(albedo == np.array([0.8, 0.4, 0.2], np.float32), -1))
        assert 0.12 < marked.mean() < 0.8


def test_colours_look_like_their_names():
    """The mean over a ball, by day and by night, is nearest to a darker shade of its own colour."""
    names, values = zip(*COLOURS.items(), strict=True)
    scene = toy_scene(template="snowman")
    for time, darkest in (("day", 0.6), ("night", 0.3)):
        light = replace(scene, light=time).stage().light
        tint = (light.ambient + 0.3 * light.sun) / np.mean(light.ambient + 0.3 * light.sun)
        shades = np.linspace(darkest, 1, 15)[:, None, None] * tint * np.array(values)
        for name, value in COLOURS.items():
            ball = {"kind": "sphere", "size": (0.7, 0.7, 0.7), "colour": np.array(value)}
            stage = stage_of([ball], light=light)
            hits, colour = traced(stage, view_rays(2))
            shown = np.asarray(colour)[np.asarray(hits.label) == 0].mean(0)
            error = np.linalg.norm(shown - shades, axis=-1).min(0)
            assert names[int(error.argmin())] == name
            assert np.linalg.norm(shown - light.background) > 0.12
