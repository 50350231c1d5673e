"""Pictures of a fitted scene, from where a browser looks.

tile    pictures are drawn in squares of TILE pixels, so that all sizes and shapes share one compiled program, and a
        picture that nobody waits for any more is given up between two tiles
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float, UInt8

from jaxedit.render.compositing import Pixels
from jaxedit.scene.cameras import Cameras
from jaxedit.scene.lenses import COEFFICIENTS
from jaxedit.scene.paths import focus_of
from jaxedit.scene.poses import from_opencv, quaternion_of_rotation, rotation_of_quaternion
from jaxedit.systems.reconstruct.report import to_bytes
from jaxedit.systems.reconstruct.stored import Fitted
from jaxedit.systems.reconstruct.videos import colours

TILE = 64
FAR = 1e4  # the z of nothing

Kind: TypeAlias = Literal["colour", "depth", "normals"]
Background: TypeAlias = Literal["white", "black"]


@dataclass(frozen=True)
class Look:
    """What is drawn of a view. resolution: the longest side of a sharp picture, in pixels."""

    kind: Kind = "colour"
    background: Background = "white"
    resolution: int = 512


DEFAULT_LOOK = Look()


@dataclass(frozen=True, eq=False)
class BrowserCamera:
    """A camera as viser gives it: OpenCV axes (right, down, forwards), camera-to-world.

    wxyz: its rotation as a quaternion. fov: from the upper to the lower edge, radians. aspect: width / height.
    """

    wxyz: Float[np.ndarray, "4"]
    position: Float[np.ndarray, "3"]
    fov: float
    aspect: float


class Picture(NamedTuple):
    """image: bytes. z: distance along the camera's axis, FAR where nothing is. tile_seconds: the median tile's time."""

    image: UInt8[np.ndarray, "h w 3"]
    z: Float[np.ndarray, "h w"]
    tile_seconds: float


# --- cameras -------------------------------------------------------------------------------------


def picture_size(aspect: float, longest: int) -> tuple[int, int]:
    """Width and height of that aspect whose longest side is `longest`."""
    shares = (min(1.0, aspect), min(1.0, 1.0 / aspect))
    return max(1, round(shares[0] * longest)), max(1, round(shares[1] * longest))


def to_cameras(camera: BrowserCamera, longest: int) -> Cameras:
    """The camera of a picture that fills the browser's canvas; rounded sides make its pixels slightly oblong."""
    width, height = picture_size(camera.aspect, longest)
    rotation = rotation_of_quaternion(camera.wxyz[None])
    pose = from_opencv(np.concatenate([rotation, camera.position[None, :, None]], axis=-1))
    reach = math.tan(camera.fov / 2)
    focal = [width / 2 / (reach * camera.aspect), height / 2 / reach]
    return Cameras(
        pose=pose.astype(np.float32),
        focal=np.array([focal], np.float32),
        centre=np.array([[width / 2, height / 2]], np.float32),
        distortion=np.zeros((1, COEFFICIENTS["pinhole"]), np.float32),
        lens="pinhole",
        width=width,
        height=height,
    )


def to_browser(cameras: Cameras, index: int) -> BrowserCamera:
    """A camera as viser takes it. Lens distortion and an axis off the image's middle, which viser lacks, are left out."""
    pose = from_opencv(np.asarray(cameras.pose[index], np.float64)[None])
    across, upright = (float(f) for f in cameras.focal[index])
    return BrowserCamera(
        wxyz=quaternion_of_rotation(pose[:, :, :3])[0],
        position=pose[0, :, 3],
        fov=2 * math.atan(cameras.height / 2 / upright),
        aspect=(cameras.width / across) / (cameras.height / upright),
    )


def first_view(cameras: Cameras) -> tuple[BrowserCamera, Float[np.ndarray, "3"]]:
    """Where a browser begins: at the camera of median height, and the point on its axis nearest to all cameras' focus."""
    pose = np.asarray(cameras.pose, np.float64)
    index = int(np.argsort(pose[:, 2, 3])[len(pose) // 2])
    position, forwards = pose[index, :, 3], -pose[index, :, 2]
    distance = max(float((focus_of(pose) - position) @ forwards), 1e-2)
    return to_browser(cameras, index), position + distance * forwards


# --- pictures ------------------------------------------------------------------------------------


def tiles(cameras: Cameras) -> Iterator[tuple[int, int, Cameras]]:
    """(top, left, camera) of the TILE x TILE squares that cover one camera's image; the last ones reach beyond it."""
    for top in range(0, cameras.height, TILE):
        for left in range(0, cameras.width, TILE):
            corner = np.array([[left, top]], np.float32)
            yield top, left, replace(cameras, centre=cameras.centre - corner, width=TILE, height=TILE)  # fmt: skip


def draw(
    fitted: Fitted, cameras: Cameras, look: Look, unwanted: Callable[[], bool] = lambda: False
) -> Picture | None:
    """One camera's picture, or None if `unwanted` before it was finished."""
    height, width = cameras.height, cameras.width
    shape = (-(-height // TILE) * TILE, -(-width // TILE) * TILE)
    colour = np.zeros((*shape, 3), np.float32)
    opacity, depth = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    frame, seconds = fitted.frame, []
    for top, left, tile in tiles(cameras):
        if unwanted():
            return None
        began = time.perf_counter()
        pixels = fitted.system.render_image(
            frame, fitted.state, tile, 0, fit=fitted.fit, normals=look.kind == "normals"
        )
        place = (slice(top, top + TILE), slice(left, left + TILE))
        colour[place], opacity[place], depth[place] = (np.asarray(part) for part in pixels)
        seconds.append(time.perf_counter() - began)
    seen = Pixels(colour[:height, :width], opacity[:height, :width], depth[:height, :width])  # pyright: ignore[reportArgumentType]
    behind = 0.0 if fitted.system.background == "black" else 1.0
    image = to_image(seen, look, 0.5 if look.kind == "normals" else behind)
    # The median leaves out the tile that waited for the compiler.
    return Picture(image, axis_depth(cameras, seen), statistics.median(seconds))


def to_image(pixels: Pixels, look: Look, behind: float) -> UInt8[np.ndarray, "h w 3"]:
    """Rendered pixels as bytes over the look's background; `behind` is the grey that they were rendered over."""
    ground = 0.0 if look.background == "black" else 1.0
    opacity = np.asarray(pixels.opacity)
    if look.kind == "depth":
        return to_bytes(np.where(opacity[..., None] > 0.5, shaded(pixels), np.float32(ground)))
    return to_bytes(np.asarray(pixels.colour) + (1.0 - opacity)[..., None] * (ground - behind))


def shaded(pixels: Pixels) -> Float[np.ndarray, "h w 3"]:
    """Depth in colours, bright at the picture's nearest point and dark at its farthest."""
    depth, seen = np.asarray(pixels.depth), np.asarray(pixels.opacity) > 0.5
    low, high = (float(depth[seen].min()), float(depth[seen].max())) if seen.any() else (0.0, 1.0)
    return colours(1.0 - (depth - low) / max(high - low, 1e-9))


def axis_depth(cameras: Cameras, pixels: Pixels) -> Float[np.ndarray, "h w"]:
    """Distances along rays as distances along the camera's axis, by which browsers sort what hides what."""
    u = (np.arange(cameras.width) + 0.5 - cameras.centre[0, 0]) / cameras.focal[0, 0]
    v = (np.arange(cameras.height) + 0.5 - cameras.centre[0, 1]) / cameras.focal[0, 1]
    length = np.sqrt(1.0 + u[None, :] ** 2 + v[:, None] ** 2)
    seen = np.asarray(pixels.opacity) > 0.5
    return np.where(seen, np.asarray(pixels.depth) / length, FAR).astype(np.float32)
