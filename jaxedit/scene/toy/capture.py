"""A toy scene seen by many cameras: a `Scene` as if it had been loaded from files.

Cameras stand on a sphere around the origin and look at it, +z upwards in their images. Training cameras are spread
evenly (a Fibonacci lattice) between the lowest and the highest elevation, test cameras likewise, between them.
"""

import math

import numpy as np
from jaxtyping import UInt8

from jaxedit.scene.cameras import Cameras, pinhole_cameras
from jaxedit.scene.poses import look_at
from jaxedit.scene.scene import Scene, Split, Views
from jaxedit.scene.toy.trace import Picture, Stage, render
from jaxedit.scene.toy.world import ToyScene
from jaxvid.core.errors import UserError

BOX = np.array([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]])
RADIUS = 4.0
ANGLE = 0.6  # of view over the image's width, radians: RADIUS sin(ANGLE / 2) is `world.FAR`
ELEVATION = (math.radians(-20.0), math.radians(70.0))
_GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0  # of a turn between one camera and the next


def capture(
    scene: ToyScene,
    views: int = 24,
    size: int = 64,
    *,
    test_views: int = 8,
    supersample: int = 2,
    shadows: bool = False,
) -> Scene:
    """Pictures of the scene, size x size, straight-alpha RGBA; splits "train" (`views`) and "test".

    The background is left out: over which colour an object stands is for the user to say.
    """
    if min(views, size, supersample) < 1 or test_views < 0:
        raise UserError(
            f"toy capture: views {views}, size {size}, supersample {supersample}, test_views {test_views}; "
            "give 1 or more (test_views 0 or more)"
        )
    stage = scene.stage()
    found: dict[Split, Views] = {}
    counts: tuple[tuple[Split, int, float], ...] = (
        ("train", views, 0.0),
        ("test", test_views, 0.5),
    )
    for split, count, phase in counts:
        if count:
            cameras = orbit_cameras(count, size, phase=phase)
            images = [
                rgba(take(stage, cameras, i, supersample=supersample, shadows=shadows))
                for i in range(count)
            ]
            names = tuple(f"{split}/{i:03d}.png" for i in range(count))
            found[split] = Views(cameras, np.stack(images), names)
    reach = math.sqrt(3.0)
    return Scene(found, BOX, near=RADIUS - reach, far=RADIUS + reach, format="toy")


def orbit_cameras(count: int, size: int, *, phase: float = 0.0) -> Cameras:
    """Cameras around the origin for images of size x size; another phase gives others."""
    i = np.arange(count)
    lowest, highest = (math.sin(angle) for angle in ELEVATION)
    up = lowest + (highest - lowest) * (i + 0.5) / count  # equal areas of the sphere
    turn = 2 * math.pi * ((i + phase) * _GOLDEN + phase)
    flat = np.sqrt(1.0 - up * up)
    position = RADIUS * np.stack([flat * np.cos(turn), flat * np.sin(turn), up], axis=-1)
    pose = look_at(position, np.zeros(3), np.array([0.0, 0.0, 1.0]))
    return pinhole_cameras(pose, size / 2 / math.tan(ANGLE / 2), size, size)


def take(
    stage: Stage, cameras: Cameras, view: int, *, supersample: int = 2, shadows: bool = False
) -> Picture:
    """One of the cameras' pictures; all cameras of one image size share a compiled program."""
    return render(stage, cameras.select([view]), 0, supersample=supersample, shadows=shadows)


def rgba(picture: Picture) -> UInt8[np.ndarray, "h w 4"]:
    """Straight-alpha bytes."""
    values = np.concatenate([picture.colour, np.asarray(picture.alpha)[..., None]], axis=-1)
    return np.round(255.0 * values).astype(np.uint8)
