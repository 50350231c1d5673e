"""Toy scenes and captures of them: whole, held apart, the same everywhere."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_toys import (
    CAMERAS,
    SIZE,
    SIZES,
    assert_whole,
    distance,
    distances,
    scenes,
    traced,
    view_rays,
)

from jaxedit.scene.scene import composite
from jaxedit.scene.toy import (
    COLOURS,
    KINDS,
    TEMPLATES,
    caption,
    capture,
    held_out,
    render,
    rgba,
    take,
    toy_scene,
)
from jaxedit.scene.toy.world import MAX_PARTS, has_held_out, legal_size, surface_scale
from jaxvid.core.errors import UserError


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


def test_surface_scale_ends_on_the_surface():
    rng = np.random.default_rng(8)
    for kind in set(KINDS) - {"torus"}:
        size = legal_size(kind, np.array(SIZES[kind]))
        np.testing.assert_allclose(size, SIZES[kind], atol=1e-9)
        ways = rng.normal(size=(50, 3)) * size
        points = np.stack([surface_scale(kind, size, way) * way for way in ways])
        assert np.abs(distance(kind, points, size)).max() < 1e-6
