"""The analyser on fresh clips, on corrupted ones that it must refuse, and on imperfect ones that it must read."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from jaxvid.data.shapes import (
    COLOURS,
    MOTIONS,
    SHAPES_TINY,
    ShapesConfig,
    caption,
    parse,
    render,
    sample_scene,
)
from jaxvid.data.shapes.world import BACKGROUNDS
from jaxvid.evaluate.shapes_motion import Track, classify
from jaxvid.evaluate.shapes_reader import (
    BACKGROUND_TOLERANCE,
    COLOUR_TOLERANCE,
    ObjectReading,
    Reading,
    agrees,
    read_clip,
)

WORLDS = {
    "one": ShapesConfig(two_objects=0.0, split="all", seed=101),
    "two": ShapesConfig(two_objects=1.0, split="all", seed=102),
    "tiny": replace(SHAPES_TINY, split="all", seed=103),
}


def _clip(config, index):
    scene = sample_scene(config, index)
    return scene, render(scene, config.frames, *config.height_width)


def _truth(scene):
    """Everything about the scene, as if a caption had said it all."""
    keys = ("shape", "colour", "motion", "size")
    return [
        {k: getattr(item, k) for k in keys} | {"background": scene.background}
        for item in scene.objects
    ]


def _accepted(video, scene) -> bool:
    verdict = agrees(read_clip(video), _truth(scene))
    return verdict["colour"] and verdict["shape"] and verdict["motion"]


@pytest.mark.parametrize("world", WORLDS)
def test_reads_everything_in_fresh_clips(world):
    config, right = WORLDS[world], []
    for index in range(200):
        scene, video = _clip(config, index)
        right.append(all(agrees(read_clip(video), _truth(scene)).values()))
    assert np.mean(right) >= 0.99


def test_captions_agree_with_their_clips():
    config = ShapesConfig(seed=104)
    for index in range(80):
        scene, video = _clip(config, index)
        verdict = agrees(read_clip(video), parse(caption(scene, index)))
        assert all(verdict.values()), (caption(scene, index), verdict)


def _blank(video, rng):
    return np.broadcast_to(video[:1, :1, :1], video.shape).copy()


def _noise(video, rng):
    return rng.integers(0, 256, video.shape).astype(np.uint8)


def _blurred(video, rng, pixels=2.5):
    sigma = pixels * video.shape[1] / 32
    return gaussian_filter(video.astype(np.float32), (0, sigma, sigma, 0), mode="wrap").astype(
        np.uint8
    )


def _frozen(video, rng):
    return np.repeat(video[:1], len(video), axis=0)


def _shuffled(video, rng):
    return video[rng.permutation(len(video))]


def _recoloured(video, rng):
    """Channels turned by one place: every colour but white becomes another one."""
    return np.ascontiguousarray(video[..., [2, 0, 1]])


@pytest.mark.parametrize(
    "corrupt", [_blank, _noise, _blurred, _frozen, _shuffled, _recoloured], ids=lambda f: f.__name__
)
def test_refuses_corrupted_clips(corrupt):
    rng = np.random.default_rng(0)
    accepted = []
    for config in WORLDS.values():
        for index in range(70):
            scene, video = _clip(config, index)
            if corrupt is _recoloured and all(i.colour == "white" for i in scene.objects):
                continue
            accepted.append(_accepted(corrupt(video, rng), scene))
    assert len(accepted) > 180
    assert np.mean(accepted) <= 0.01


def _noisy(video, rng):
    return np.clip(video + rng.normal(0, 16, video.shape), 0, 255).astype(np.uint8)


def _wobbling(video, rng):
    gain, shift = (
        rng.uniform(0.88, 1, (len(video), 1, 1, 3)),
        rng.normal(0, 8, (len(video), 1, 1, 3)),
    )
    return np.clip(video * gain + shift, 0, 255).astype(np.uint8)


def _littered(video, rng):
    video = video.copy()
    for frame in video:
        for _ in range(3):
            y, x = rng.integers(0, 30, 2)
            frame[y : y + 2, x : x + 2] = rng.integers(0, 256, 3)
    return video


@pytest.mark.parametrize(
    "spoil",
    [_noisy, partial(_blurred, pixels=0.7), _wobbling, _littered],
    ids=["noisy", "blurred", "wobbling", "littered"],
)
def test_reads_imperfect_clips(spoil):
    rng = np.random.default_rng(0)
    for world in ("one", "two"):
        clips = [_clip(WORLDS[world], index) for index in range(40)]
        assert np.mean([_accepted(spoil(video, rng), scene) for scene, video in clips]) >= 0.94


def test_reversed_clips_read_as_the_opposite_motion():
    opposite = dict(zip(MOTIONS, MOTIONS, strict=True)) | {
        "moves right": "moves left",
        "moves left": "moves right",
        "moves up": "moves down",
        "moves down": "moves up",
        "grows": "shrinks",
        "shrinks": "grows",
    }
    for index in range(40):
        scene, video = _clip(WORLDS["one"], index)
        reading = read_clip(np.ascontiguousarray(video[::-1]))
        assert reading.objects[0].motion == opposite[scene.objects[0].motion]


def test_every_window_of_a_long_clip_reads_the_same():
    """The torus: motion goes on, except for growth, which ends."""
    lasting = tuple(m for m in MOTIONS if m not in ("grows", "shrinks"))
    config = ShapesConfig(two_objects=0.0, motions=lasting, seed=105)
    for index in range(20):
        scene = sample_scene(config, index)
        video = render(scene, 64, 32, 32)
        readings = [read_clip(video[s : s + 16]) for s in (0, 17, 34, 48)]
        assert all(all(agrees(r, _truth(scene)).values()) for r in readings)


def test_floats_and_other_sizes_read_the_same():
    for index in range(10):
        scene, video = _clip(WORLDS["two"], index)
        assert read_clip(video) == read_clip(video.astype(np.float32) / 127.5 - 1)
        large = render(scene, 16, 64, 64)
        assert all(agrees(read_clip(large), _truth(scene)).values())
        still = agrees(read_clip(video[:1]), _truth(scene))
        assert still["colour"]
        assert still["shape"]
        assert not still["motion"]


def test_tolerances_keep_the_palette_apart():
    for palette, tolerance in (
        (COLOURS, COLOUR_TOLERANCE),
        (BACKGROUNDS, BACKGROUND_TOLERANCE / 2),
    ):
        points = np.array(list(palette.values()), float)
        gaps = np.linalg.norm(points[:, None] - points[None], axis=-1) + 1e9 * np.eye(len(points))
        assert gaps.min() >= 2 * tolerance


def test_agreement_matches_objects_in_any_order_and_counts_them():
    one = ObjectReading("circle", "red", "moves up", "small")
    two = ObjectReading("square", "blue", "unknown", None)
    said = parse("a blue square spins while a small red circle moves up on a black background")
    assert agrees(Reading("black", (one, two)), said) == {
        "count": True,
        "colour": True,
        "shape": True,
        "motion": False,
        "size": True,
        "background": True,
    }
    missing = agrees(Reading("white", (one,)), said)
    assert not any(missing.values())
    assert not any(agrees(Reading("unknown", ()), said).values())
    extra = agrees(Reading("black", (two, one)), parse("a red circle"))
    assert not extra.pop("count")
    assert all(extra.values())


def _track(time, x=0.5, y=0.5, radius=0.2, angle=0.0, fold=4):
    full = lambda value: np.broadcast_to(value, time.shape).astype(np.float64)  # noqa: E731
    return Track(time, full(x), full(y), full(radius), full(angle), fold)


@pytest.mark.parametrize("missing", [(), (3,), (0, 7, 8)])
def test_motions_from_exact_tracks_with_missing_frames(missing):
    t = np.array([i for i in range(16) if i not in missing], np.float64)
    hop = (t / 10 + 0.3) % 1
    for want, track in {
        "moves right": _track(t, x=0.03 * t),
        "moves up": _track(t, y=-0.03 * t),
        "spins": _track(t, angle=0.17 * t % (np.pi / 2)),
        "orbits": _track(t, x=0.2 * np.cos(0.4 * t), y=0.2 * np.sin(0.4 * t)),
        "bounces": _track(t, y=-0.2 * 4 * hop * (1 - hop)),
        "grows": _track(t, radius=0.13 * np.exp(0.04 * t)),
        "shrinks": _track(t, radius=0.26 * np.exp(-0.04 * t)),
    }.items():
        assert classify(track) == want
    diagonal = _track(t, x=0.03 * t, y=0.02 * t)
    twitching = _track(t, angle=np.where(t % 2 == 0, 0.0, 0.7))
    round_one = _track(t, angle=0.17 * t, fold=0)
    for track in (diagonal, twitching, round_one, _track(t)):
        assert classify(track) == "unknown"
