"""The shapes world: determinism, the held-out rule, the torus, the renderer against supersampling, captions."""

import hashlib
import itertools
import json
import runpy
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jaxvid.core.errors import UserError
from jaxvid.data.shapes import (
    COLOURS,
    MAX_CAPTION_WORDS,
    MOTIONS,
    SHAPES,
    SHAPES_TINY,
    Object,
    Scene,
    ShapesConfig,
    caption,
    held_out,
    parse,
    render,
    sample_scene,
    vocabulary,
)
from jaxvid.data.shapes.render import coverage, signed_distance
from jaxvid.data.shapes.world import ROUND, contrasts, poses, wrapped


def _triple(item: Object) -> tuple[str, str, str]:
    return item.shape, item.colour, item.motion


def _digest(config: ShapesConfig, index: int) -> str:
    scene = sample_scene(config, index)
    video = render(scene, config.frames, *config.height_width)
    return hashlib.sha256(video.tobytes() + caption(scene, index).encode()).hexdigest()[:12]


def test_clips_and_captions_are_pinned():
    assert [_digest(ShapesConfig(), i) for i in (0, 1, 2**40)] == PINNED
    assert [_digest(SHAPES_TINY, i) for i in (0, 1)] == PINNED_TINY


PINNED = ["6bf670cd7f66", "b43749cc9d6f", "fdcb69c2f5f0"]
PINNED_TINY = ["32361b36ba26", "bdfd83d79541"]


def test_every_pair_but_no_held_out_triple_is_in_the_train_split():
    allowed = [
        t
        for t in itertools.product(SHAPES, COLOURS, MOTIONS)
        if not (t[0] in ROUND and t[2] == "spins")
    ]
    kept = [t for t in allowed if held_out(*t)]
    assert 0.08 < len(kept) / len(allowed) < 0.12
    train = set(allowed) - set(kept)
    for left, right in ((0, 1), (0, 2), (1, 2)):
        assert {(t[left], t[right]) for t in allowed} == {(t[left], t[right]) for t in train}
    for position in range(3):
        assert {t[position] for t in kept} == {t[position] for t in allowed}
    for split, first in (("train", False), ("heldout", True)):
        config = ShapesConfig(split=split, seed=3)
        for index in range(200):
            one, *two = (held_out(*_triple(item)) for item in sample_scene(config, index).objects)
            assert one == first
            assert not any(two)


def test_attributes_are_balanced_and_scenes_legible():
    config = ShapesConfig(two_objects=0.5, seed=9)
    scenes = [sample_scene(config, i) for i in range(1500)]
    assert 0.46 < np.mean([len(s.objects) == 2 for s in scenes]) < 0.54
    items = [item for s in scenes for item in s.objects]
    for motion in MOTIONS:
        assert abs(np.mean([i.motion == motion for i in items]) - 1 / 9) < 0.03
    for colour in COLOURS:
        assert abs(np.mean([i.colour == colour for i in items]) - 1 / 7) < 0.04
    assert all(contrasts(i.colour, s.background) for s in scenes for i in s.objects)
    pairs = [s.objects for s in scenes if len(s.objects) == 2]
    assert all(a.shape != b.shape and a.colour != b.colour for a, b in pairs)


@pytest.mark.parametrize("shape", SHAPES)
def test_coverage_is_the_area_under_each_pixel(shape):
    """Against 16 x 16 supersampling of the shape's inside, written from its geometry."""
    item = Object(shape, "red", "large", "spins", 0.1, 0.9, 0.22, angle=0.3)
    size, fine = 32, 16
    got = coverage(item, 1, size, size)[0]
    grid = (np.arange(size * fine) + 0.5) / fine
    x, y, r = 3.2, 28.8, 0.22 * size
    dx = (grid - x + size / 2) % size - size / 2
    dy = ((grid - y + size / 2) % size - size / 2)[:, None]
    u, v = np.cos(0.3) * dx + np.sin(0.3) * dy, np.cos(0.3) * dy - np.sin(0.3) * dx
    inside = _inside(shape, u / r, v / r)
    want = inside.reshape(size, fine, size, fine).mean((1, 3))
    assert np.abs(got - want).max() < 0.35  # corners
    assert np.abs(got - want).mean() < 0.004
    assert abs(got.sum() - want.sum()) < 0.02 * want.sum()


def _inside(shape: str, u, v):
    if shape == "circle":
        return np.hypot(u, v) < 1
    if shape == "ring":
        return (np.hypot(u, v) < 1) & (np.hypot(u, v) > 0.52)
    if shape == "square":
        return (abs(u) < 0.88) & (abs(v) < 0.88)
    if shape == "cross":
        return (abs(u) < 0.36) & (abs(v) < 1.06) | (abs(v) < 0.36) & (abs(u) < 1.06)
    return (v < 0.62) & (v > -1.24 + np.sqrt(3) * abs(u))


def test_a_window_of_a_longer_clip_and_a_still_are_the_same_pixels():
    for index in range(20):
        scene = sample_scene(ShapesConfig(seed=4), index)
        long = render(scene, 64, 32, 32)
        np.testing.assert_array_equal(long[37:53], render(scene, 16, 32, 32, start=37))
        np.testing.assert_array_equal(long[5:6], render(scene, 1, 32, 32, start=5))


def test_objects_come_back_on_the_other_side():
    item = Object("circle", "red", "large", "moves right", 0.9, 0.5, 0.2, rate=1 / 32)
    video = render(Scene("black", (item,)), 33, 32, 32)
    np.testing.assert_array_equal(video[0], video[32])
    np.testing.assert_array_equal(np.roll(video[0], 1, axis=1), video[1])


def test_clips_look_the_same_at_every_resolution():
    scene = sample_scene(ShapesConfig(seed=2), 1)
    fine = render(scene, 2, 64, 64).reshape(2, 32, 2, 32, 2, 3).mean((2, 4))
    assert np.abs(fine - render(scene, 2, 32, 32)).mean() < 2
    assert render(scene, 2, 24, 40).shape == (2, 24, 40, 3)


@pytest.mark.parametrize(
    ("motion", "check"),
    [
        ("moves right", lambda x, y, r, a: (np.diff(x) > 0.7).all() and np.ptp(y) == 0),
        ("moves left", lambda x, y, r, a: (np.diff(x) < -0.7).all() and np.ptp(y) == 0),
        ("moves up", lambda x, y, r, a: (np.diff(y) < -0.7).all() and np.ptp(x) == 0),
        ("moves down", lambda x, y, r, a: (np.diff(y) > 0.7).all() and np.ptp(x) == 0),
        ("spins", lambda x, y, r, a: np.ptp(x) == 0 and 2 < np.ptp(a) < 4),
        ("orbits", lambda x, y, r, a: np.ptp(x) > 5 and np.ptp(y) > 5),
        ("bounces", lambda x, y, r, a: np.ptp(x) == 0 and 5 < np.ptp(y) < 9.1),
        ("grows", lambda x, y, r, a: (np.diff(r) > 0).all() and 1.7 < r[-1] / r[0] < 2.2),
        ("shrinks", lambda x, y, r, a: (np.diff(r) < 0).all() and 1.7 < r[0] / r[-1] < 2.2),
    ],
)
def test_motions_do_what_they_are_called(motion, check):
    config = ShapesConfig(motions=(motion,), two_objects=0, seed=8)
    for index in range(50):
        item = sample_scene(config, index).objects[0]
        assert item.motion == motion
        assert check(*poses(item, 16, 32, 32))
        assert poses(item, 64, 32, 32)[2].min() > 0.05 * 32  # for ever: never vanishes


def test_bad_settings_are_one_clear_line():
    for change in (
        {"shapes": ("blob",)},
        {"motions": ()},
        {"two_objects": 1.5},
        {"size": 4},
        {"shapes": ("ring",)},
        {"shapes": ("ring",), "motions": ("spins",), "two_objects": 0.0},
    ):
        with pytest.raises(UserError) as error:
            replace(ShapesConfig(), **change)
        assert "\n" not in str(error.value)


def test_wrapped_is_the_nearest_image():
    offsets = np.array([0.0, 15.9, 16.0, 17.0, -17.0, 64.5])
    np.testing.assert_allclose(wrapped(offsets, 32), [0, 15.9, -16, -15, 15, 0.5])
    with pytest.raises(UserError):
        signed_distance("blob", offsets, offsets, np.ones(6))


def test_captions_use_the_closed_list_and_fit():
    words = set(vocabulary())
    assert len(words) <= 100
    assert list(vocabulary()) == sorted(words)
    seen = set()
    scenes = [sample_scene(ShapesConfig(), index) for index in range(200)]
    for index in range(1500):
        text = caption(scenes[index % 200], index, still=index % 5 == 0)
        seen |= set(text.split())
    assert seen == words
    first = Object("ring", "red", "large", "orbits", 0.5, 0.5, 0.2)
    wordy = Scene("gray", (first, replace(first, shape="cross", colour="blue")))
    assert max(len(caption(wordy, v).split()) for v in range(3000)) == MAX_CAPTION_WORDS


def test_parse_recovers_what_a_caption_says():
    scenes = [sample_scene(ShapesConfig(split="all"), index) for index in range(200)]
    for index in range(1500):
        scene = scenes[index % 200]
        still = index % 5 == 0
        text = caption(scene, index, still=still)
        said = parse(text)
        by_colour = {item.colour: item for item in scene.objects}
        assert {row["colour"] for row in said} == set(by_colour)
        stated = 0
        for row in said:
            item = by_colour[row["colour"]]
            assert row["shape"] == item.shape
            assert row["motion"] == (None if still else item.motion)
            assert row["size"] in (None, item.size)
            stated += row["size"] is not None
            assert row["background"] == (scene.background if "background" in text else None)
        assert stated == sum(text.split().count(w) for w in ("small", "little", "large", "big"))


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("The Red CIRCLE, moving to the right!", [("circle", "red", "moves right", None, None)]),
        ("big grey dog", []),
        ("a tiny blue square", [("square", "blue", None, None, None)]),
        (
            "on a grey background a ring hops up and down and a big white cross is falling",
            [
                ("ring", None, "bounces", None, "gray"),
                ("cross", "white", "moves down", "large", "gray"),
            ],
        ),
        ("spinning yellow triangle", [("triangle", "yellow", "spins", None, None)]),
        ("a green square moves in a circle", [("square", "green", "orbits", None, None)]),
    ],
)
def test_parse_returns_what_it_understands_of_free_text(text, want):
    keys = ("shape", "colour", "motion", "size", "background")
    assert [tuple(row[k] for k in keys) for row in parse(text)] == want


def test_benchmark_captions_are_current_balanced_and_true_to_the_split():
    path = Path(__file__).parents[2] / "benchmarks" / "make_captions.py"
    module = runpy.run_path(str(path))
    entries = module["build"]()
    assert path.with_name("captions.json").read_text() == module["dumps"](entries)
    assert json.loads(module["dumps"](entries)) == entries
    assert [e["id"] for e in entries] == list(range(512))
    assert len({e["caption"] for e in entries}) == 512
    assert {w for e in entries for w in e["caption"].split()} <= set(vocabulary())
    groups = Counter((len(e["objects"]), e["heldout"]) for e in entries)
    assert groups == {(1, False): 224, (1, True): 32, (2, False): 224, (2, True): 32}
    for entry in entries:
        assert entry["heldout"] == any(
            held_out(o["shape"], o["colour"], o["motion"]) for o in entry["objects"]
        )
    items = [o for e in entries for o in e["objects"]]
    for name, values in (("shape", SHAPES), ("colour", tuple(COLOURS)), ("motion", MOTIONS)):
        counts = Counter(o[name] for o in items)
        assert set(counts) == set(values)
        assert max(counts.values()) - min(counts.values()) <= 0.1 * len(items) / len(values)
