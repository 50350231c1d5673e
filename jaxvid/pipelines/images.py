"""Resizing as the published pipelines do it, where they differ from `jax.image.resize`: the corner pixels stay corner pixels.

Every step is a matrix along one axis, made on the host: y = M x, [new, old]. Images are `... h w c`.
"""

from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Kind = Literal["linear", "cubic"]


def resize_corners(
    images: Float[Array, "*lead h w c"], size: tuple[int, int], kind: Kind
) -> Float[Array, "*lead y x c"]:
    """The images at `size`, height and width; "cubic" is Keys' kernel with a = -0.75. No antialiasing."""
    rows, columns = (
        corner_matrix(old, new, kind) for old, new in zip(images.shape[-3:-1], size, strict=True)
    )
    return _along_both(images, rows, columns)


def resize_for_clip(
    images: Float[Array, "*lead h w c"], size: tuple[int, int] = (224, 224)
) -> Float[Array, "*lead y x c"]:
    """As Stable Video Diffusion's image encoder wants it: blurred by how much the sides shrink, then resized cubically."""
    rows, columns = (
        corner_matrix(old, new, "cubic") @ blur_matrix(old, max((old / new - 1) / 2, 0.001))
        for old, new in zip(images.shape[-3:-1], size, strict=True)
    )
    return _along_both(images, rows, columns)


def _along_both(
    images: Float[Array, "*lead h w c"], rows: np.ndarray, columns: np.ndarray
) -> Float[Array, "*lead y x c"]:
    first, second = (jnp.asarray(each, images.dtype) for each in (rows, columns))
    return jnp.einsum("yh,...hwc,xw->...yxc", first, images, second)


def corner_matrix(old: int, new: int, kind: Kind) -> Float[np.ndarray, "new old"]:
    """Interpolation at positions that lead from the first to the last of `old` pixels; borders are repeated."""
    place = np.arange(new) * ((old - 1) / (new - 1) if new > 1 else 0.0)
    base = np.floor(place).astype(int)
    matrix = np.zeros((new, old))
    for offset in (0, 1) if kind == "linear" else (-1, 0, 1, 2):
        distance = np.abs(place - base - offset)
        weight = 1 - distance if kind == "linear" else _keys(distance)
        np.add.at(matrix, (np.arange(new), np.clip(base + offset, 0, old - 1)), weight)
    return matrix


def _keys(distance: np.ndarray, a: float = -0.75) -> np.ndarray:
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))


def blur_matrix(pixels: int, sigma: float) -> Float[np.ndarray, "pixels pixels"]:
    """A Gaussian blur over an odd window of about four deviations, three pixels at least; pixels are mirrored at the borders."""
    window = int(max(4 * sigma, 3))
    half = window // 2 if window % 2 else (window + 1) // 2
    reach = np.arange(-half, half + 1)
    weight = np.exp(-(reach**2) / (2 * sigma**2))
    matrix = np.zeros((pixels, pixels))
    for offset, each in zip(reach, weight / weight.sum(), strict=True):
        place = np.abs(np.arange(pixels) + offset)
        place = np.where(place >= pixels, 2 * (pixels - 1) - place, place)
        np.add.at(matrix, (np.arange(pixels), place), each)
    return matrix
