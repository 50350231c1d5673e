"""Scenes to pixels: anti-aliased by signed distances.

Law of the file: `sd` is the signed distance to a shape's edge in pixels, negative inside; a pixel's coverage
is clip(0.5 - sd, 0, 1). Arrays are float32 `t h w` while drawing, uint8 `t h w 3` at the end. Pixel i has its
centre at i + 0.5. Distances use the nearest image of the object on the torus, right for any object that
spans less than the frame.
"""

import numpy as np
from jaxtyping import Float, UInt8

from jaxvid.core.errors import UserError
from jaxvid.data.shapes.world import BACKGROUNDS, COLOURS, Object, Scene, poses, wrapped

# Shape proportions in radii, chosen so that all shapes of a radius look about equally big.
SQUARE_HALF = 0.88
TRIANGLE_INNER, TRIANGLE_OUTER = 0.62, 1.24  # distances from the centre to a side and to a corner
CROSS_LENGTH, CROSS_WIDTH = 1.06, 0.36  # half lengths of an arm
RING_INNER = 0.52
TRIANGLE_NORMALS = ((0.0, 1.0), (0.8660254, -0.5), (-0.8660254, -0.5))  # one corner points up


def signed_distance(
    shape: str,
    u: Float[np.ndarray, "*s"],
    v: Float[np.ndarray, "*s"],
    radius: Float[np.ndarray, "*r"],
) -> Float[np.ndarray, "*s"]:
    """Signed distance in pixels at (u, v), pixels from the centre in the shape's own axes (v down).

    Exact along edges; near corners it is the largest of the edge distances, which keeps corners sharp.
    """
    if shape in ("circle", "ring"):
        distance = np.sqrt(u * u + v * v)
        if shape == "circle":
            return distance - radius
        return np.abs(distance - radius * (1 + RING_INNER) / 2) - radius * (1 - RING_INNER) / 2
    if shape == "triangle":
        (ax, ay), (bx, by), (cx, cy) = TRIANGLE_NORMALS
        sides = np.maximum(np.maximum(ax * u + ay * v, bx * u + by * v), cx * u + cy * v)
        return sides - radius * TRIANGLE_INNER
    u, v = np.abs(u), np.abs(v)
    longer, shorter = np.maximum(u, v), np.minimum(u, v)
    if shape == "square":
        return longer - radius * SQUARE_HALF
    if shape == "cross":
        return np.maximum(longer - radius * CROSS_LENGTH, shorter - radius * CROSS_WIDTH)
    raise UserError(f"shapes: unknown shape {shape!r}; see jaxvid.data.shapes.SHAPES")


def coverage(
    item: Object, frames: int, height: int, width: int, start: int = 0
) -> Float[np.ndarray, "t h w"]:
    """The fraction of each pixel that the object covers, in [0, 1]."""
    # A grid of 1/1024 px swallows the last-digit differences of sin and exp between machines.
    x, y, radius, angle = (
        np.round(np.stack(poses(item, frames, height, width, start)) * 1024) / 1024
    )
    dx = wrapped(np.arange(width) + 0.5 - x[:, None], width).astype(np.float32)[:, None, :]
    dy = wrapped(np.arange(height) + 0.5 - y[:, None], height).astype(np.float32)[:, :, None]
    if item.motion == "spins":
        cos = np.round(np.cos(angle) * 4096).astype(np.float32)[:, None, None] / np.float32(4096)
        sin = np.round(np.sin(angle) * 4096).astype(np.float32)[:, None, None] / np.float32(4096)
        u, v = cos * dx + sin * dy, cos * dy - sin * dx
    else:
        u, v = (np.broadcast_to(a, (frames, height, width)) for a in (dx, dy))
    sd = signed_distance(item.shape, u, v, radius.astype(np.float32)[:, None, None])
    return np.clip(np.float32(0.5) - sd, np.float32(0), np.float32(1))


def render(
    scene: Scene, frames: int, height: int, width: int, start: int = 0
) -> UInt8[np.ndarray, "t h w 3"]:
    """Frames start .. start + frames - 1 of the scene. `frames=1` is a still at 1/frames of the cost."""
    video = np.empty((frames, height, width, 3), np.float32)
    video[:] = np.asarray(BACKGROUNDS[scene.background], np.float32)
    for item in scene.objects:
        alpha = coverage(item, frames, height, width, start)
        for channel, value in enumerate(COLOURS[item.colour]):
            plane = video[..., channel]
            plane += alpha * (np.float32(value) - plane)
    return (video + np.float32(0.5)).astype(np.uint8)
