"""Solids and toy scenes to look at, and what holds for every toy scene."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxedit.scene.cameras import image_rays
from jaxedit.scene.toy import (
    KINDS,
    TEMPLATES,
    Light,
    Solids,
    Stage,
    ToyScene,
    orbit_cameras,
    part_distances,
    toy_scene,
    trace_rays,
)
from jaxedit.scene.toy.sdf import DISTANCES
from jaxedit.scene.toy.trace import shade
from jaxedit.scene.toy.world import MAX_PARTS, ToySplit

SIZE = 32
CAMERAS = orbit_cameras(6, SIZE)
LIGHT = Light(
    direction=np.array([0.0, 0.6, 0.8], np.float32),
    sun=np.array([0.4, 0.3, 0.2], np.float32),
    ambient=np.array([0.5, 0.5, 0.6], np.float32),
    background=np.array([0.3, 0.4, 0.5], np.float32),
)
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
