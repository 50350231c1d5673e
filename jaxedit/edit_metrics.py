r"""Scores of an edit: against the truth where it is known, by CLIP where its weights are given, and of 3-D consistency.

Frames o_i before and e_i after the edit, along one camera path. C and E are CLIP's embeddings of images and texts, of length 1.

    direction similarity      mean_i cos( C(e_i) - C(o_i), E(after) - E(before) )                                      (1)
    direction consistency     mean_i cos( C(e_i) - C(o_i), C(e_{i+1}) - C(o_{i+1}) )                                   (2)
    step consistency          mean_i cos( C(o_{i+1}) - C(o_i), C(e_{i+1}) - C(e_i) )                                   (3)

(1) is Gal et al.'s (StyleGAN-NADA, 2021), which InstructPix2Pix and Instruct-NeRF2NeRF report; the texts are captions of both states.
The appendix of Instruct-NeRF2NeRF defines its "direction consistency" with an error; (2) is the reading that its text describes, (3) the one
that users of its code settled on. Vox-E's "directional CLIP" is (1) without the lengths: another quantity, not given here.

    reprojection error        mean |I_a(p) - I_b(q)| over pixels p of view a whose point the field's depth puts at q in view b,
                              where b sees it too                                                                      (4)

(4) needs no weights: images that show one solid scene agree in every point, up to shine and half-covered pixels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxedit.evaluate import psnr
from jaxedit.scene.cameras import Cameras, image_rays, project_points

SEEN = 0.02  # by how much of its distance a point may lie behind what the other view sees there
SOLID = 0.9  # opacity of pixels that are compared
CUBIC = -0.75  # of the bicubic kernel, as PyTorch's


# --- CLIP ----------------------------------------------------------------------------------------


def cosine(a: Float[np.ndarray, "*n d"], b: Float[np.ndarray, "*n d"]) -> Float[np.ndarray, "*n"]:
    """Of the angle between vectors; 0 where one has no length."""
    length = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    product = np.sum(a * b, axis=-1)
    return np.where(length > 0, product / np.where(length > 0, length, 1.0), 0.0)


def unit_length(x: Float[np.ndarray, "*n d"]) -> Float[np.ndarray, "*n d"]:
    """Vectors of length 1."""
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


class ClipScores(NamedTuple):
    """(1), (2) and (3) of the module; the last two are nan for a single frame."""

    direction_similarity: float
    direction_consistency: float
    step_consistency: float


def clip_scores(
    before: Float[np.ndarray, "n d"],
    after: Float[np.ndarray, "n d"],
    text_before: Float[np.ndarray, "d"],
    text_after: Float[np.ndarray, "d"],
) -> ClipScores:
    """Of embeddings, of any length."""
    o, e, a, b = (unit_length(x) for x in (before, after, text_before, text_after))
    change = e - o
    similarity = cosine(change, np.broadcast_to(b - a, change.shape)).mean()
    if len(o) < 2:
        return ClipScores(float(similarity), float("nan"), float("nan"))
    steady = cosine(change[:-1], change[1:]).mean()
    along = cosine(np.diff(o, axis=0), np.diff(e, axis=0)).mean()
    return ClipScores(float(similarity), float(steady), float(along))


def bicubic_weights(size: int, out: int) -> Float[np.ndarray, "out size"]:
    """The matrix that resizes a line as PyTorch's bicubic `interpolate` does: pixel centres aligned, edges repeated, no low-pass."""
    place = (np.arange(out) + 0.5) * size / out - 0.5
    first = np.floor(place).astype(int)
    found = np.zeros((out, size))
    for tap in range(-1, 3):
        x = np.abs(place - (first + tap))
        near = (CUBIC + 2) * x**3 - (CUBIC + 3) * x**2 + 1
        far = CUBIC * (x**3 - 5 * x**2 + 8 * x - 4)
        weight = np.where(x <= 1, near, np.where(x < 2, far, 0.0))
        np.add.at(found, (np.arange(out), np.clip(first + tap, 0, size - 1)), weight)
    return found


def resized_bicubic(
    images: Float[np.ndarray, "n h w 3"], size: int
) -> Float[np.ndarray, "n s s 3"]:
    """Images straight to size x size, without a crop, as the published metrics do."""
    rows, columns = (bicubic_weights(side, size) for side in images.shape[1:3])
    return np.einsum("ih,jw,nhwc->nijc", rows, columns, images).astype(np.float32)


# --- the truth -----------------------------------------------------------------------------------


class TruthScore(NamedTuple):
    """Of one view, in dB. before, after: PSNR of the scene before and after the edit to the truth, over what the true edit changes.

    kept: PSNR over the rest, after the edit. colour_error: mean absolute error of the mean colour of the changed part, 0 to 1. changed:
    its share of the picture.
    """

    before: float
    after: float
    kept: float
    colour_error: float
    changed: float

    @property
    def gain(self) -> float:
        """How much nearer to the truth the changed part has come, in dB."""
        return self.after - self.before


def truth_score(
    before: Float[np.ndarray, "h w 3"],
    after: Float[np.ndarray, "h w 3"],
    truth: Float[np.ndarray, "h w 3"],
    changed: Bool[np.ndarray, "h w"],
) -> TruthScore:
    """The scores of renders of one view; `changed` is where the true edit shows. What has no pixel is nan."""
    shown = (
        np.abs(after[changed].mean(axis=0) - truth[changed].mean(axis=0)).mean()
        if changed.any()
        else np.nan
    )
    return TruthScore(
        psnr(before, truth, changed),
        psnr(after, truth, changed),
        psnr(after, truth, ~changed),
        float(shown),
        float(changed.mean()),
    )


# --- consistency ---------------------------------------------------------------------------------


def reprojected(
    cameras: Cameras,
    a: int,
    b: int,
    depth_a: Float[Array, "h w"],
    opacity_a: Float[Array, "h w"],
    depth_b: Float[Array, "h w"],
    opacity_b: Float[Array, "h w"],
) -> tuple[Float[Array, "h w 2"], Bool[Array, "h w"]]:
    """Where view b sees what view a shows: continuous pixel coordinates, and whether it does.

    depth: distances along the rays. A point counts if both views are solid there and b's depth is its distance from b, within `SEEN`.
    """
    rays = image_rays(cameras, a)
    points = rays.origin + depth_a[..., None] * rays.direction
    view = jnp.full(depth_a.shape, b)
    pixel, front = project_points(cameras, view, points)
    height, width = depth_a.shape
    index = jnp.floor(pixel).astype(jnp.int32)
    x, y = index[..., 0], index[..., 1]
    inside = front & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    x, y = jnp.clip(x, 0, width - 1), jnp.clip(y, 0, height - 1)
    origin = jnp.asarray(cameras.pose)[b, :, 3]
    distance = jnp.linalg.norm(points - origin, axis=-1)
    near = jnp.abs(distance - depth_b[y, x]) <= SEEN * distance
    return pixel, inside & near & (opacity_a > SOLID) & (opacity_b[y, x] > SOLID)


def sampled(image: Float[Array, "h w 3"], pixel: Float[Array, "*n 2"]) -> Float[Array, "*n 3"]:
    """Colours at continuous pixel coordinates, bilinear between pixel centres; edges repeat."""
    channels = [
        jax.scipy.ndimage.map_coordinates(
            image[..., i], [pixel[..., 1] - 0.5, pixel[..., 0] - 0.5], order=1, mode="nearest"
        )
        for i in range(3)
    ]
    return jnp.stack(channels, axis=-1)


def reprojection_error(
    images: Sequence[Float[np.ndarray, "h w 3"]],
    depths: Sequence[Float[np.ndarray, "h w"]],
    opacities: Sequence[Float[np.ndarray, "h w"]],
    cameras: Cameras,
    pairs: Sequence[tuple[int, int]],
) -> tuple[float, int]:
    """(4) over pairs of views, in [0, 1], and how many pixels it is of; nan without one."""
    total, count = 0.0, 0
    for a, b in pairs:
        maps = (jnp.asarray(x) for x in (depths[a], opacities[a], depths[b], opacities[b]))
        pixel, seen = reprojected(cameras, a, b, *maps)
        there = np.asarray(sampled(jnp.asarray(images[b]), pixel))
        error = np.abs(np.asarray(images[a]) - there).mean(axis=-1)
        seen = np.asarray(seen)
        total, count = total + float(error[seen].sum()), count + int(seen.sum())
    return (total / count if count else float("nan")), count


def nearest_pairs(cameras: Cameras) -> list[tuple[int, int]]:
    """Each view with the view whose camera stands nearest."""
    place = np.asarray(cameras.pose)[:, :, 3]
    distance = np.linalg.norm(place[:, None] - place[None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    return [(i, int(j)) for i, j in enumerate(distance.argmin(axis=1))]
