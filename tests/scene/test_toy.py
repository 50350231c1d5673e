"""Toy scenes: distances against sampled surfaces, pictures against closed forms, edits against their own words."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial import KDTree

from jaxedit.scene.cameras import Rays, image_rays, pinhole_cameras
from jaxedit.scene.poses import look_at, rotation_of_quaternion
from jaxedit.scene.scene import composite
from jaxedit.scene.toy import (
    COLOURS,
    EDITS,
    KINDS,
    TEMPLATES,
    Light,
    Solids,
    Stage,
    ToyScene,
    caption,
    capture,
    held_out,
    make_edit,
    orbit_cameras,
    part_distances,
    render,
    rgba,
    take,
    toy_edit,
    toy_scene,
    trace_rays,
)
from jaxedit.scene.toy.sdf import DISTANCES
from jaxedit.scene.toy.trace import TEXTURES, shade
from jaxedit.scene.toy.words import HELD_OUT_PHRASES, PHRASES, noun
from jaxedit.scene.toy.world import (
    MAX_PARTS,
    ToySplit,
    check_draw,
    has_held_out,
    legal_size,
    surface_scale,
)
from jaxvid.core.errors import UserError

SIZE = 32
CAMERAS = orbit_cameras(6, SIZE)
LIGHT = Light(
    direction=np.array([0.0, 0.6, 0.8], np.float32),
    sun=np.array([0.4, 0.3, 0.2], np.float32),
    ambient=np.array([0.5, 0.5, 0.6], np.float32),
    background=np.array([0.3, 0.4, 0.5], np.float32),
)


@jax.jit
def traced(stage, rays):
    hits = trace_rays(stage, rays, shadows=True)
    return hits, shade(hits, stage.light)


distances = jax.jit(part_distances)


def distance(kind, points, size):
    f = DISTANCES[KINDS.index(kind)]
    return np.asarray(jax.jit(f)(jnp.asarray(points, jnp.float32), jnp.asarray(size, jnp.float32)))


def view_rays(view):
    return image_rays(CAMERAS.select([view]), 0)


def stage_of(rows, heading=0.0, light=LIGHT):
    """A stage of solids given by their fields; the other fields take a plain value."""
    usual = {
        "centre": np.zeros(3, np.float32),
        "rotation": np.eye(3, dtype=np.float32),
        "mirror": np.array([False, False]),
        "colour": np.array([0.8, 0.4, 0.2], np.float32),
        "second": np.array([0.1, 0.2, 0.9], np.float32),
        "texture": np.int32(0),
        "present": np.array(True),
    }
    rows = [usual | row for row in rows]
    rows += [rows[0] | {"present": np.array(False)}] * (MAX_PARTS - len(rows))
    columns = {name: np.stack([np.asarray(row[name]) for row in rows]) for name in rows[0]}
    columns["kind"] = np.array([KINDS.index(kind) for kind in columns["kind"]], np.int32)
    columns = {
        name: x.astype(np.float32) if x.dtype == np.float64 else x for name, x in columns.items()
    }
    return Stage(Solids(**columns), light, np.array([np.cos(heading), np.sin(heading)], np.float32))


SIZES = {
    "sphere": (0.5, 0.5, 0.5),
    "box": (0.5, 0.3, 0.2),
    "cylinder": (0.3, 0.3, 0.5),
    "cone": (0.4, 0.4, 0.5),
    "torus": (0.5, 0.5, 0.15),
    "capsule": (0.2, 0.2, 0.5),
    "dome": (0.5, 0.5, 0.25),
    "prism": (0.4, 0.5, 0.3),
}


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


def scenes(count, split: ToySplit = "train"):
    names = tuple(TEMPLATES)
    return [toy_scene(7, i, split=split, template=names[i % len(names)]) for i in range(count)]


def assert_whole(scene: ToyScene):
    """In the box, and every part in touch with the one that carries it."""
    stage, shown = scene.stage(), scene.names
    assert np.abs(scene.bounds()).max() <= 0.99 + 1e-6
    solids = stage.solids
    cos, sin = stage.heading
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]], np.float32)
    for i, rule in enumerate(scene.rules):
        if rule.parent is None or rule.name not in shown:
            continue
        assert rule.parent in shown
        parent = scene.label(rule.parent)
        size, rotation = solids.size[i], solids.rotation[i]
        if KINDS[solids.kind[i]] == "torus":  # the circle in its tube
            angle = np.linspace(0, 2 * np.pi, 64)
            ring = np.stack([np.cos(angle), np.sin(angle), 0 * angle], -1) * (size[0] - size[2])
            points, reach = ring, size[2]
        else:
            points, reach = np.tile(np.array(rule.by) * size, (64, 1)), 0.0
        points = (solids.centre[i] + points @ rotation.T) @ turn.T
        near = np.asarray(distances(stage, points.astype(np.float32)))
        assert near[:, parent].min() <= reach + 1e-5, (scene.template, rule.name)
        if reach == 0.0:
            assert near[0, i] <= 1e-5, (scene.template, rule.name)


def test_scenes_are_whole_and_depend_on_their_number_alone():
    drawn = scenes(36)
    assert len({scene.parts for scene in drawn}) == 36
    for i, scene in enumerate(drawn):
        assert_whole(scene)
        assert scene == toy_scene(7, i, template=scene.template)
        assert 2 <= len(scene.names) <= len(scene.parts) <= MAX_PARTS
        for rule in scene.rules:
            if rule.name in scene.names and rule.parent:
                assert scene.part(rule.name).colour != scene.part(rule.parent).colour
    # The same on every machine and release.
    scene = toy_scene(0, 3)
    assert caption(scene) == CAPTION
    np.testing.assert_allclose([scene.scale, scene.lift, scene.heading], PLACE, rtol=1e-9)
    assert caption(toy_scene(1, 0, split="all")) == OTHER_CAPTION


CAPTION = (
    "a tree with a red trunk and green and orange checkered leaves "
    "and blue apples and an orange ornament"
)
PLACE = (1.182944270456124, -0.3761710815665682, 3.0657027416626574)
OTHER_CAPTION = (
    "a mushroom with a pink stem and a blue and yellow dotted cap and a white and "
    "purple dotted knob and a red collar and a blue door and an orange and red striped mound"
)


def test_held_out_triples_are_one_in_ten_of_each_part_and_of_no_split_but_their_own():
    for template, rules in TEMPLATES.items():
        held = {(r.name, c) for r in rules for c in COLOURS if held_out(template, r.name, c)}
        assert (
            len(held) == len({name for name, _ in held}) == len({c for _, c in held}) == len(rules)
        )
    assert not any(has_held_out(scene) for scene in scenes(45))
    assert all(has_held_out(scene) for scene in scenes(45, "heldout"))
    mixed = [has_held_out(scene) for scene in scenes(45, "all")]
    assert any(mixed)
    assert not all(mixed)


def test_one_program_renders_every_scene_and_batches_of_scenes():
    stages = [scene.stage() for scene in scenes(3)]
    camera = CAMERAS.select([2])
    alone = [render(stages[0], camera, 0)]
    jitted: Any = render
    programs = jitted._cache_size()
    alone += [render(stage, camera, 0) for stage in stages[1:]]
    assert jitted._cache_size() == programs
    again = render(stages[0], camera, 0)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(alone[0]), strict=True):
        np.testing.assert_array_equal(a, b)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *stages)
    batch = jax.vmap(lambda stage: render(stage, camera, 0))(stacked)
    for i, picture in enumerate(alone):
        np.testing.assert_allclose(batch.alpha[i], picture.alpha, atol=1e-6)
        np.testing.assert_array_equal(batch.label[i], picture.label)
        shown = np.asarray(picture.label) >= 0
        np.testing.assert_allclose(
            np.asarray(batch.depth[i])[shown], np.asarray(picture.depth)[shown], atol=1e-4
        )
        assert (
            np.mean(np.abs(batch.colour[i] - picture.colour) < 1e-4) > 0.99
        )  # of textures at their edges


def test_a_capture_is_a_scene():
    scene = toy_scene(0, 3)
    loaded = capture(scene, views=4, size=SIZE, test_views=2)
    assert (set(loaded.views), loaded.format) == ({"train", "test"}, "toy")
    train, test = loaded.views["train"], loaded.views["test"]
    assert (len(train), len(test)) == (4, 2)
    assert train.images.shape == (4, SIZE, SIZE, 4)
    assert train.names == ("train/000.png", "train/001.png", "train/002.png", "train/003.png")
    place = np.concatenate([train.cameras.pose[..., 3], test.cameras.pose[..., 3]])
    apart = np.linalg.norm(place[:, None] - place, axis=-1)[~np.eye(6, dtype=bool)]
    assert apart.min() > 0.5
    stage = scene.stage()
    for i in range(4):
        picture = take(stage, train.cameras, i)
        np.testing.assert_array_equal(train.images[i], rgba(picture))
        sky = np.asarray(stage.light.background)
        error = composite(train.images[i], sky) - np.asarray(picture.over(sky))
        assert np.abs(error).max() < 1.01 / 255
        depth = np.asarray(picture.depth)
        seen = np.isfinite(depth)
        assert loaded.near < depth[seen].min()
        assert depth[seen].max() < loaded.far
    with pytest.raises(UserError, match="views 0"):
        capture(scene, views=0)


def test_depth_and_labels_agree_with_the_distances_of_parts():
    scene = toy_scene(0, 5, template="house")
    stage = scene.stage()
    for view in range(3):
        rays = view_rays(view)
        hits, _ = traced(stage, rays)
        seen = np.asarray(hits.label) >= 0
        depth = jnp.where(seen, hits.depth, 0.0)[..., None]
        points = (rays.origin + depth * rays.direction).reshape(-1, 3)
        near = np.asarray(distances(stage, points)).reshape(SIZE, SIZE, -1)
        own = np.take_along_axis(near, np.maximum(hits.label, 0)[..., None], -1)[..., 0]
        assert np.abs(own[seen]).max() < 1e-5
        assert near[seen].min() > -1e-5


def test_new_objects_stay_inside_the_picture():
    for scene in scenes(9):
        for view in (0, 2, 4):
            alpha = np.asarray(take(scene.stage(), CAMERAS, view).alpha)
            border = np.concatenate([alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]])
            assert border.max() == 0
            assert alpha.mean() > 0.05


def parts_alike(a: ToyScene, b: ToyScene, name):
    """Fields of a part in which two scenes differ."""
    x, y = a.part(name), b.part(name)
    return {field for field in vars(x) if getattr(x, field) != getattr(y, field)}


ALLOWED = {
    "recolour": {"colour"},
    "retexture": {"texture", "second"},
    "resize": {"factor"},
    "add": {"present", "colour"},
    "remove": {"present"},
    "reshape": {"kind"},
}


@pytest.mark.parametrize("kind", EDITS)
def test_edits_do_what_they_say(kind):
    spoken = set()
    for i in range(16):
        edit = toy_edit(3, i, kind=kind)
        again = toy_edit(3, i, kind=kind)
        assert again == edit
        before, after, part = edit.before, edit.scene, edit.part
        assert_whole(after)
        assert edit.caption_before != edit.caption_after
        text = f"{edit.instruction} {edit.caption_before} {edit.caption_after}"
        assert text == " ".join(text.lower().split())
        assert text.replace(" ", "").isalpha()
        spoken.add(edit.instruction)
        if kind == "light":
            assert edit.changed == ()
            assert {before.light, after.light} == {"day", "night"}
            assert replace(after, light=before.light) == before
            assert edit.caption_before.endswith(
                f"{'at night' if before.light == 'night' else 'in daylight'}"
            )
            continue
        if kind == "become":
            assert after.template in edit.instruction
            assert f"{after.template}" in edit.caption_after
            assert set(edit.changed) >= {after.label(name) for name in after.names}
            continue
        assert part is not None
        assert parts_alike(before, after, part) <= ALLOWED[kind]
        assert before.label(part) in edit.changed
        others = set(before.names) - {part}
        assert not any(parts_alike(before, after, name) for name in others)
        if kind in ("recolour", "retexture", "add", "remove"):
            assert edit.changed == (before.label(part),)
        if kind != "add":
            assert part in edit.instruction
            assert noun(before, part) in edit.caption_before
        if kind != "remove":
            assert noun(after, part) in edit.caption_after
        if kind == "recolour":
            assert after.part(part).colour in edit.instruction
        if kind == "resize":
            grows = after.part(part).factor > 1
            assert (
                any(w in edit.instruction for w in ("bigger", "larger", "enlarge", "increase"))
                == grows
            )
        if kind == "remove":
            assert f" {part}" not in edit.caption_after
    assert len(spoken) > 9 or kind == "light"


def test_phrasings_are_many_and_held_out_ones_are_kept_apart():
    for kind, trained in PHRASES.items():
        held = HELD_OUT_PHRASES[kind]
        assert len(set(trained)) >= 5
        assert len(held) >= 2
        assert not set(trained) & set(held)
    scene = toy_scene(0, 0, template="car")
    trained, held = set(), set()
    for i in range(40):
        trained.add(make_edit(i, scene, "light").instruction)
        held.add(make_edit(i, scene, "light", phrases="heldout").instruction)
    light = "night" if scene.light == "day" else "day"
    assert (trained, held) == (set(PHRASES[light]), set(HELD_OUT_PHRASES[light]))


def test_splits_of_edits():
    for i in range(40):
        train = toy_edit(4, i)
        assert not has_held_out(train.before)
        assert not has_held_out(train.scene)
        held = toy_edit(4, i, split="heldout")
        if held.kind != "light":
            shown = held.before if held.kind == "remove" else held.scene
            names = [held.part] if held.part else shown.names
            assert any(held_out(shown.template, n, shown.part(n).colour) for n in names)
    assert {toy_edit(4, i).kind for i in range(40)} == set(EDITS)


@pytest.mark.parametrize("kind", EDITS)
def test_pairs_differ_only_where_changed_parts_or_their_shadows_are(kind):
    """Bit-equal elsewhere, cast shadows included; and every edit shows."""
    for i in range(4):
        edit = toy_edit(5, i, kind=kind)
        differing = 0
        for view in (1, 3, 5):
            rays = view_rays(view)
            a, colour_a = traced(edit.before.stage(), rays)
            b, colour_b = traced(edit.scene.stage(), rays)
            changed = np.array(edit.changed, int)
            involved = np.zeros((SIZE, SIZE), bool)
            for hits in (a, b):
                involved |= np.isin(hits.label, changed) | np.isin(hits.occluder, changed)
            rest = ~involved
            for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
                np.testing.assert_array_equal(np.asarray(x)[rest], np.asarray(y)[rest])
            differs = np.any(np.asarray(colour_a) != np.asarray(colour_b), -1)
            if kind == "light":
                np.testing.assert_array_equal(differs, np.asarray(a.label) >= 0)
            else:
                assert not differs[rest].any()
            differing += differs.sum()
        assert differing > 0


def test_pictures_of_pairs_differ_only_where_changed_parts_cover():
    for kind in ("recolour", "resize", "remove", "reshape"):
        edit = toy_edit(6, 1, kind=kind)
        changed = list(edit.changed)
        a, b = (take(s.stage(), CAMERAS, 3) for s in (edit.before, edit.scene))
        covered = (np.asarray(a.coverage)[..., changed] + np.asarray(b.coverage)[..., changed]).sum(
            -1
        )
        rest = covered == 0
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            np.testing.assert_array_equal(np.asarray(x)[rest], np.asarray(y)[rest])
        assert (~rest).any()


def test_nothing_is_left_floating():
    """A vase that holds a flower cannot be taken away, and no flower put where there is no vase."""
    full = toy_scene(0, 0, template="table").with_part("vase", present=True)
    full = full.with_part("flower", present=True)
    bare = full.with_part("flower", present=False).with_part("vase", present=False)
    removed = {make_edit(i, full, "remove", split="all").part for i in range(20)}
    assert "flower" in removed
    assert "vase" not in removed
    added = {make_edit(i, bare, "add", split="all").part for i in range(20)}
    assert "vase" in added
    assert "flower" not in added


def test_repeated_edits_stay_whole():
    """Bigger, smaller and reshaped again and again."""
    for scene in scenes(9):
        for step in range(6):
            scene = make_edit(step, scene, ("resize", "reshape")[step % 2]).scene
        assert_whole(scene)


def test_surface_scale_ends_on_the_surface():
    rng = np.random.default_rng(8)
    for kind in set(KINDS) - {"torus"}:
        size = legal_size(kind, np.array(SIZES[kind]))
        np.testing.assert_allclose(size, SIZES[kind], atol=1e-9)
        ways = rng.normal(size=(50, 3)) * size
        points = np.stack([surface_scale(kind, size, way) * way for way in ways])
        assert np.abs(distance(kind, points, size)).max() < 1e-6


def test_bad_requests_name_the_value():
    scene = toy_scene(0, 1)
    for call, words in (
        (lambda: toy_scene(-1, 0), "seed -1"),
        (lambda: toy_scene(0, 0, template="boat"), "boat"),
        (lambda: scene.part("wings"), "wings"),
    ):
        with pytest.raises(UserError, match=words):
            call()

    def strip(bare):
        for _ in range(MAX_PARTS):
            bare = make_edit(0, bare, "remove", split="all").scene

    with pytest.raises(UserError, match="no part to remove"):
        strip(scene)
    with pytest.raises(UserError, match="split 'test'"):
        check_draw("test", 0)
