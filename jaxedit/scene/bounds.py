"""Where there is anything to see: the box, near and far of a scene, from what its files know.

In this order, each only where the one before is silent:

    the file's own bounds
    sights of reconstructed points: near and far enclose all but 1 in 1,000 at either end, with a margin of a tenth
    the box: from the nearest to the farthest point of it that any camera has
    the cameras: 0.05 and 1,000 times their radius, nerfstudio's range for unbounded scenes (Tancik et al. 2023)

Points also make a box: all but the outermost hundredth on every side, enlarged by a tenth. All of numpy, float64.
"""

from itertools import product

import numpy as np
from jaxtyping import Float

from jaxedit.scene.frames import Capture
from jaxedit.scene.poses import Similarity
from jaxvid.core.errors import UserError

# The least near distance in camera radii, also when cameras stand inside the box.
NEAREST, FARTHEST = 0.05, 1000.0


def known_bounds(
    capture: Capture,
    transform: Similarity,
    position: Float[np.ndarray, "n 3"],
    *,
    box: Float[np.ndarray, "2 3"] | None = None,
    near: float | None = None,
    far: float | None = None,
) -> tuple[Float[np.ndarray, "2 3"] | None, float, float]:
    """Box, near and far in the scene's world; those that are given stay.

    position: of the cameras, in the scene's world. Raises `UserError` for bounds that contradict each other or the
    cameras of an object scene.
    """
    near_is_given = near is not None
    if box is None and capture.box is not None:
        box = _around(transform.points(np.array(list(product(*capture.box.T)))))
    if box is None and capture.points is not None:
        box = _box_of_points(transform.points(capture.points))
    low, high = _range(capture, transform.scale, box, position)
    near, far = low if near is None else near, high if far is None else far
    # As float32, which the renderer computes in.
    if not 0.0 < np.float32(near) < np.float32(far) < np.float32(1e30):
        raise UserError(
            f"{capture.source}: near is {near:g} and far is {far:g}; set near and far so that 0 < near < far"
        )
    if capture.outside and box is not None:
        _check_outside(capture, box, near, far, position, allow_inside=near_is_given)
    return box, float(near), float(far)


def _around(points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "2 3"]:
    return np.stack([points.min(axis=0), points.max(axis=0)])


def _box_of_points(points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "2 3"] | None:
    low, high = np.percentile(points, [1.0, 99.0], axis=0)
    margin = 0.1 * np.maximum(high - low, 0.1 * (high - low).max())
    return np.stack([low - margin, high + margin]) if margin.min() > 1e-9 else None


def _range(
    capture: Capture,
    scale: float,
    box: Float[np.ndarray, "2 3"] | None,
    position: Float[np.ndarray, "n 3"],
) -> tuple[float, float]:
    if capture.near is not None and capture.far is not None:
        return capture.near * scale, capture.far * scale
    radius = float(np.linalg.norm(position - position.mean(axis=0), axis=-1).max())
    radius = radius if radius > 1e-9 else 1.0  # cameras in one place
    if capture.distances is not None:
        low, high = np.percentile(capture.distances, [0.1, 99.9]) * scale
        return float(max(0.9 * low, 1e-3 * high)), float(1.1 * high)
    if box is not None:
        nearest, farthest = _distances(box, position)
        return max(float(nearest.min()), NEAREST * radius), float(farthest.max())
    return NEAREST * radius, FARTHEST * radius


def _distances(
    box: Float[np.ndarray, "2 3"], position: Float[np.ndarray, "n 3"]
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """From each position to the nearest point of the box (0 inside it) and to its farthest."""
    below, above = box[0] - position, position - box[1]
    nearest = np.linalg.norm(np.maximum(0.0, np.maximum(below, above)), axis=-1)
    return nearest, np.linalg.norm(np.maximum(-below, -above), axis=-1)


def _check_outside(
    capture: Capture,
    box: Float[np.ndarray, "2 3"],
    near: float,
    far: float,
    position: Float[np.ndarray, "n 3"],
    *,
    allow_inside: bool,
) -> None:
    """Refuses cameras in the object's box (unless near was set, which decides what they see), or that miss it."""
    nearest, farthest = _distances(box, position)
    for i, frame in enumerate(capture.frames):
        where = f"{capture.source}: {frame.name}"
        at = ", ".join(f"{x:.3g}" for x in position[i])
        if nearest[i] == 0.0 and not allow_inside:
            raise UserError(
                f"{where}: the camera at ({at}) is inside the object's box; set a smaller box, or near and far"
            )
        if nearest[i] >= far or farthest[i] <= near:
            raise UserError(
                f"{where}: from the camera at ({at}) the box lies between {nearest[i]:.3g} and {farthest[i]:.3g}, "
                f"outside near {near:g} and far {far:g}; set near and far"
            )
