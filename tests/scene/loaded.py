"""Scenes from their folders, and what tests ask of them."""

import json
from pathlib import Path

import jax
import numpy as np

from jaxedit.scene.cameras import pixel_rays
from jaxedit.scene.load import SceneConfig, load_scene


def load(root, **fields):
    return load_scene(SceneConfig(path=str(root), **fields))


rays_of = jax.jit(pixel_rays)


def every_view(scene):
    """Image and mask by the stem of the name, and the cameras in the file's world, all in the order of the stems."""
    to_file, found, cameras = scene.transform.inverse(), {}, {}
    for views in scene.views.values():
        moved = to_file.cameras(views.cameras)
        for i, name in enumerate(views.names):
            cameras[Path(name).stem] = moved.select([i])
            mask = None if views.masks is None else views.masks[i]
            found[Path(name).stem] = views.images[i], mask
    stems = sorted(found)
    joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *[cameras[s] for s in stems])
    return {stem: found[stem] for stem in stems}, joined


def assert_same(scene, truth, scale=1.0):
    """The rays through the same points of the images, and the pixels where nothing was resized."""
    found, cameras = every_view(scene)
    assert list(found) == sorted(truth.stems)
    order = np.argsort(truth.stems)
    view = np.repeat(np.arange(len(truth)), 20)
    size = [truth.cameras.width, truth.cameras.height]
    pixel = np.random.default_rng(0).uniform([0, 0], size, (len(view), 2)).astype(np.float32)
    rays = rays_of(cameras, view, pixel * np.float32(scale))
    expected = rays_of(in_float32(truth.cameras.select(order)), view, pixel)
    np.testing.assert_allclose(rays.origin, expected.origin, atol=1e-5)
    np.testing.assert_allclose(rays.direction, expected.direction, atol=1e-5)
    if scale == 1.0:
        for i in order:
            np.testing.assert_array_equal(found[truth.stems[i]][0], truth.images[i])


def in_float32(cameras):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), cameras)


def one_line(error):
    """The message, if it is what a person at a terminal should get."""
    text = str(error)
    assert text.isprintable(), text
    assert 10 < len(text) < 500, text
    return text


def edited(path, change):
    """Changes the JSON file in place."""
    meta = json.loads(path.read_text())
    change(meta)
    path.write_text(json.dumps(meta))
