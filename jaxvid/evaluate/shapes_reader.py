"""Reads a clip of the `shapes` world back into words: what is there, and how it moves.

The yardstick of text-to-video experiments on `shapes`: it scores GENERATED clips against their captions, so
it tolerates slight blur, wobbling colours and small artefacts, and says "unknown" rather than guess.

Law of the file: video is `t h w 3`, either uint8 or float in [-1, 1]; inside, RGB is float32 in 0..255.
`alpha` is an object's coverage of a pixel in [0, 1], `t h w`. Frames are a torus. Lengths are pixels until
tracks are handed to `shapes_motion`, which takes fractions of the shorter side.

Method: the background is the palette entry nearest to most pixels. Object colours are those palette entries
that enough pixels come close to. Each pixel is then explained as a mixture of the background and one object
colour, which gives alpha. Moments of alpha give centre, area and orientation, hence for each shape one
rendered template without any search; the best soft IoU over frames names the shape, and frames that no
template fits (overlaps) are left out of the track whose motion is classified.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from scipy.optimize import linear_sum_assignment

from jaxvid.core.errors import UserError
from jaxvid.data.shapes.render import (
    CROSS_LENGTH,
    CROSS_WIDTH,
    RING_INNER,
    SQUARE_HALF,
    TRIANGLE_INNER,
    signed_distance,
)
from jaxvid.data.shapes.world import BACKGROUNDS, COLOURS, SHAPES, SIZES, contrasts, wrapped
from jaxvid.evaluate.shapes_motion import UNKNOWN, Track, classify

BACKGROUND_TOLERANCE = 60.0  # RGB distance
COLOUR_TOLERANCE = 75.0  # half the smallest distance between two object colours
MIN_BACKGROUND = 0.4  # share of the clip's pixels
MIN_OBJECT = 0.004  # share of a frame's pixels that are purely of an object's colour
MIN_IOU = 0.7  # of a frame's best template
MIN_BODY = 0.7  # share of a colour's area that lies in one place
CUT = 0.2  # coverage below it counts as none, above 1 - CUT as full
MUST_FIT_ALONE, MUST_FIT_BESIDE = (
    0.85,
    0.55,
)  # share of frames that a template fits: others may overlap
MIN_SHARPNESS = 0.165  # mean edge slope, per pixel at 32 pixels
SIZE_BORDER = (SIZES["small"][1] + SIZES["large"][0]) / 2

FOLD = {"circle": 0, "square": 4, "triangle": 3, "cross": 4, "ring": 0}
AREA = {  # in squared radii
    "circle": math.pi,
    "square": 4 * SQUARE_HALF**2,
    "triangle": 3 * math.sqrt(3) * TRIANGLE_INNER**2,
    "cross": 4 * CROSS_WIDTH * (2 * CROSS_LENGTH - CROSS_WIDTH),
    "ring": math.pi * (1 - RING_INNER**2),
}


@dataclass(frozen=True)
class ObjectReading:
    """One object; shape, colour and motion may be "unknown". `size` is None if it changes or is unsure."""

    shape: str
    colour: str
    motion: str
    size: str | None


@dataclass(frozen=True)
class Reading:
    """What a clip shows. `background` may be "unknown", and then there are no objects."""

    background: str
    objects: tuple[ObjectReading, ...]


@dataclass(frozen=True)
class _Moments:
    """Per frame, `t`: centre, area, orientation by assumed shape, in pixels and radians."""

    x: np.ndarray
    y: np.ndarray
    area: np.ndarray
    angles: dict[str, np.ndarray]


def read_clip(video: UInt8[np.ndarray, "t h w 3"] | Float[np.ndarray, "t h w 3"]) -> Reading:
    """What the clip shows, for a clip of about 16 frames (read longer ones in windows).

    Raises UserError if the array is neither uint8 nor float.
    """
    if video.dtype == np.uint8:
        rgb = video.astype(np.float32)
    elif np.issubdtype(video.dtype, np.floating):
        rgb = (np.clip(np.nan_to_num(video.astype(np.float32), nan=-1.0), -1, 1) + 1) * 127.5
    else:
        raise UserError(f"shapes reader: video is {video.dtype}; give uint8 or float in [-1, 1]")
    name, background = _find_background(rgb)
    if name == UNKNOWN:
        return Reading(UNKNOWN, ())
    found = _find_colours(rgb, name, background)
    if not found:
        return Reading(name, ())
    alphas = _coverages(rgb, background, [colour for _, colour in found])
    must_fit = MUST_FIT_ALONE if len(found) == 1 else MUST_FIT_BESIDE
    objects = (
        _read_object(colour, alpha, must_fit)
        for (colour, _), alpha in zip(found, alphas, strict=True)
    )
    return Reading(name, tuple(objects))


def _squared_distances(rgb: np.ndarray, palette: Sequence) -> np.ndarray:
    """[pixels, colours]"""
    pixels, points = rgb.reshape(-1, 3), np.asarray(palette, np.float32)
    return (pixels**2).sum(1)[:, None] - 2 * pixels @ points.T + (points**2).sum(1)


def _find_background(rgb: np.ndarray) -> tuple[str, np.ndarray]:
    """Name and measured colour of the background, "unknown" if no palette entry fills enough."""
    near = _squared_distances(rgb, list(BACKGROUNDS.values())) < BACKGROUND_TOLERANCE**2
    share = near.mean(0)
    best = int(share.argmax())
    if share[best] < MIN_BACKGROUND:
        return UNKNOWN, np.zeros(3)
    pixels = rgb.reshape(-1, 3)[near[:, best]]
    return tuple(BACKGROUNDS)[best], np.median(pixels[:: max(1, len(pixels) // 4096)], axis=0)


def _find_colours(
    rgb: np.ndarray, name: str, background: np.ndarray
) -> list[tuple[str, np.ndarray]]:
    """Palette colours with enough nearly pure pixels in most frames, with the colour as measured."""
    names = [c for c in COLOURS if contrasts(c, name)]
    distances = _squared_distances(rgb, [*(COLOURS[c] for c in names), background])
    # A background that strayed towards an object's colour is still the background.
    near = (distances[:, :-1] < COLOUR_TOLERANCE**2) & (distances[:, :-1] < distances[:, -1:])
    share = near.reshape(len(rgb), -1, len(names)).mean(1)  # [t, colours]
    often = (share > MIN_OBJECT).mean(0) > 0.6
    pixels = rgb.reshape(-1, 3)
    return [
        (colour, np.median(pixels[near[:, i]], axis=0))
        for i, colour in enumerate(names)
        if often[i]
    ]


def _coverages(rgb: np.ndarray, background: np.ndarray, colours: list) -> list[np.ndarray]:
    """Alpha of each object: every pixel goes to the mixture line (background to colour) nearest to it."""
    offset = rgb - background
    alphas, residuals = [], []
    for colour in colours:
        line = (colour - background).astype(np.float32)
        alpha = np.clip(offset @ line / (line @ line), 0, 1)
        alphas.append(alpha)
        residuals.append(((offset - alpha[..., None] * line) ** 2).sum(-1))
    owner = np.argmin(residuals, axis=0)
    return [np.where(owner == i, alpha, np.float32(0)) for i, alpha in enumerate(alphas)]


def _centre(weight: np.ndarray, axis: int) -> np.ndarray:
    """Circular mean along one spatial axis (1 = y, 2 = x) of `t h w` weights, in pixels."""
    side = weight.shape[axis]
    profile = weight.sum(3 - axis)
    turn = 2 * np.pi * (np.arange(side) + 0.5) / side
    return np.arctan2(profile @ np.sin(turn), profile @ np.cos(turn)) * side / (2 * np.pi)


def _measure(alpha: np.ndarray) -> tuple[_Moments, np.ndarray]:
    """Moments of alpha about its own centre on the torus, and which pixels near it they are taken from."""
    _, height, width = alpha.shape
    weight, within = alpha, np.ones_like(alpha, bool)
    x, y = _centre(alpha, 2), _centre(alpha, 1)
    for reach in (3.0, 2.0, 1.8):  # the farthest corner of any shape is at 1.56 sqrt(area / pi)
        dx, dy = _offsets(x, y, height, width)
        area = weight.sum((1, 2)) + 1e-6
        within = (dx**2 + dy**2) < reach**2 * (area / math.pi)[:, None, None]
        weight = np.where(within, alpha, np.float32(0))
        area = weight.sum((1, 2)) + 1e-6
        x = x + (weight.sum(1) * dx[:, 0]).sum(1) / area
        y = y + (weight.sum(2) * dy[:, :, 0]).sum(1) / area
    dx, dy = _offsets(x, y, height, width)
    z = dx + 1j * dy
    square = z * z
    third, fourth = ((weight * m).sum((1, 2)) for m in (square * z, square * square))
    angles = {
        "triangle": (np.angle(third) - np.pi / 2) / 3,  # a corner points up, at -90 degrees
        "cross": np.angle(fourth) / 4,  # arms along the axes
        "square": np.angle(-fourth) / 4,  # corners on the diagonals
    }
    angles["circle"] = angles["ring"] = np.zeros_like(x)
    return _Moments(x, y, area, angles), within


def _offsets(
    x: np.ndarray, y: np.ndarray, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pixel centres from (x, y), nearest image: dx [t, 1, w], dy [t, h, 1], float32."""
    dx = wrapped(np.arange(width) + 0.5 - x[:, None], width).astype(np.float32)
    dy = wrapped(np.arange(height) + 0.5 - y[:, None], height).astype(np.float32)
    return dx[:, None, :], dy[:, :, None]


def _template_overlaps(alpha: np.ndarray, m: _Moments) -> np.ndarray:
    """Soft IoU of alpha with each shape rendered at its moments, [shapes, t]."""
    dx, dy = _offsets(m.x, m.y, *alpha.shape[1:])
    full_x, full_y = np.broadcast_arrays(dx, dy)
    mass = alpha.sum((1, 2))
    rows = []
    for shape in SHAPES:
        u, v = full_x, full_y
        if FOLD[shape]:
            cos = np.cos(m.angles[shape]).astype(np.float32)[:, None, None]
            sin = np.sin(m.angles[shape]).astype(np.float32)[:, None, None]
            u, v = cos * dx + sin * dy, cos * dy - sin * dx
        radius = np.sqrt(m.area / AREA[shape]).astype(np.float32)[:, None, None]
        template = _stretched(np.float32(0.5) - signed_distance(shape, u, v, radius))
        both = np.minimum(template, alpha).sum((1, 2))
        rows.append(both / (mass + template.sum((1, 2)) - both + 1e-6))
    return np.stack(rows)


def _stretched(alpha: np.ndarray) -> np.ndarray:
    """Coverage with its noisy ends cut off on both sides, which leaves areas as they are."""
    return np.clip((alpha - np.float32(CUT)) / np.float32(1 - 2 * CUT), 0, 1)


def _sharpness(alpha: np.ndarray) -> float:
    """Mean slope of alpha, weighted by itself, per pixel of a 32-pixel frame: 0.28 / blur sigma."""
    down = np.diff(alpha, axis=1, append=alpha[:, :1])
    right = np.diff(alpha, axis=2, append=alpha[:, :, :1])
    slope = np.sqrt(down**2 + right**2)
    return float((slope**2).sum() / (slope.sum() + 1e-6)) * min(alpha.shape[1:]) / 32


def _read_object(colour: str, alpha: np.ndarray, must_fit: float) -> ObjectReading:
    """Shape, motion and size of the object whose coverage is alpha."""
    solid = _stretched(alpha)
    m, within = _measure(solid)
    body = np.where(within, solid, np.float32(0))
    overlaps = _template_overlaps(body, m)
    whole = body.sum((1, 2)) > MIN_BODY * solid.sum((1, 2))
    good = whole & (overlaps.max(0) > MIN_IOU)
    if good.mean() < must_fit or _sharpness(alpha[good]) < MIN_SHARPNESS:
        return ObjectReading(UNKNOWN, colour, UNKNOWN, None)
    shape = SHAPES[int(overlaps[:, good].mean(1).argmax())]
    agreeing = (overlaps[:, good].argmax(0) == SHAPES.index(shape)).mean()
    if agreeing < 0.6:
        shape = UNKNOWN
    fold = FOLD.get(shape, 0)
    height, width = alpha.shape[1:]
    side = min(height, width)
    area = np.where(within, alpha, np.float32(0)).sum((1, 2))  # uncut: exact under slow growth
    radius = np.sqrt(area / AREA.get(shape, math.pi))[good] / side
    track = Track(
        time=np.flatnonzero(good).astype(np.float64),
        x=_unwrap(m.x[good], width) / side,
        y=_unwrap(m.y[good], height) / side,
        radius=radius.astype(np.float64),
        angle=m.angles[shape if fold else "circle"][good].astype(np.float64),
        fold=fold,
    )
    motion = classify(track)
    size = None
    if shape != UNKNOWN and motion not in ("grows", "shrinks", UNKNOWN):
        size = "small" if np.median(radius) < SIZE_BORDER else "large"
    return ObjectReading(shape, colour, motion, size)


def _unwrap(position: np.ndarray, side: int) -> np.ndarray:
    """A path on a circle of length `side` laid out on the line, by shortest steps; float64."""
    steps = wrapped(np.diff(position.astype(np.float64)), side)
    return position[0] + np.concatenate([[0.0], np.cumsum(steps)])


def agrees(reading: Reading, parsed: Sequence[dict[str, str | None]]) -> dict[str, bool]:
    """Which attributes of a parsed caption the reading confirms, for all objects together.

    Keys: count, colour, shape, motion, size, background. Objects are matched so that most attributes
    agree. What the caption leaves unsaid agrees with everything; a missing object agrees with nothing.
    """
    names = ("colour", "shape", "motion", "size")
    right = np.array(  # [said, read, attribute]
        [
            [[_says(item, said, name) for name in names] for item in reading.objects]
            for said in parsed
        ],
        dtype=bool,
    ).reshape(len(parsed), len(reading.objects), len(names))
    rows, columns = linear_sum_assignment(right.sum(-1), maximize=True)
    missing = len(reading.objects) < len(parsed)
    each = np.logical_and.reduce(right[rows, columns], axis=0).tolist()
    wanted = parsed[0]["background"] if parsed else None
    return {
        "count": len(reading.objects) == len(parsed),
        **{name: ok and not missing for name, ok in zip(names, each, strict=True)},
        "background": wanted is None or wanted == reading.background,
    }


def _says(item: ObjectReading, said: dict[str, str | None], name: str) -> bool:
    return said[name] in (None, getattr(item, name))
