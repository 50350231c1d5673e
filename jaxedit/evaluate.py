"""Image quality: PSNR, SSIM and LPIPS. Images are [h, w, 3] in [0, 1]."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxvid.models.lpips import LPIPS

# Wang et al. 2004: an 11 x 11 Gaussian window of standard deviation 1.5; constants (0.01 L)^2 and (0.03 L)^2 with L = 1.
WINDOW, SIGMA = 11, 1.5
C1, C2 = 0.01**2, 0.03**2


def psnr(
    image: Float[np.ndarray, "h w 3"],
    truth: Float[np.ndarray, "h w 3"],
    mask: Bool[np.ndarray, "h w"] | None = None,
) -> float:
    """-10 log10 of the mean squared error over the pixels of `mask` (all without one), in dB; inf for equal images.

    nan for a mask without a pixel.
    """
    square = np.mean((image.astype(np.float64) - truth) ** 2, axis=-1)
    chosen = square if mask is None else square[mask]
    if not chosen.size:
        return float("nan")
    error = float(chosen.mean())
    return float("inf") if error == 0 else float(-10 * np.log10(error))


@jax.jit
def ssim(
    image: Float[Array, "h w 3"],
    truth: Float[Array, "h w 3"],
    mask: Bool[Array, "h w"] | None = None,
) -> Float[Array, ""]:
    """Structural similarity (Wang et al. 2004), the mean over colours and whole windows. Sides of 11 pixels or more.

    mask: only windows whose every pixel counts; nan if there is none.
    """

    def blurred(x: Array) -> Array:
        offset = jnp.arange(WINDOW, dtype=jnp.float32) - (WINDOW - 1) / 2
        kernel = jnp.exp(-(offset**2) / (2 * SIGMA**2))
        kernel = kernel / jnp.sum(kernel)
        channels = jnp.moveaxis(x, -1, 0)
        along = jax.vmap(lambda row: jnp.convolve(row, kernel, mode="valid", precision="highest"))
        rows = jax.vmap(along)(channels)
        return jnp.swapaxes(jax.vmap(along)(jnp.swapaxes(rows, 1, 2)), 1, 2)

    mean_x, mean_y = blurred(image), blurred(truth)
    var_x = blurred(image**2) - mean_x**2
    var_y = blurred(truth**2) - mean_y**2
    both = blurred(image * truth) - mean_x * mean_y
    score = (2 * mean_x * mean_y + C1) * (2 * both + C2)
    score = score / ((mean_x**2 + mean_y**2 + C1) * (var_x + var_y + C2))
    if mask is None:
        return jnp.mean(score)
    window = (WINDOW, WINDOW)
    whole = jax.lax.reduce_window(mask, True, jax.lax.bitwise_and, window, (1, 1), "VALID")
    return jnp.sum(jnp.where(whole, jnp.mean(score, axis=0), 0.0)) / jnp.sum(
        whole.astype(jnp.float32)
    )


@jax.jit
def lpips(
    network: LPIPS,
    image: Float[Array, "h w 3"],
    truth: Float[Array, "h w 3"],
    mask: Bool[Array, "h w"] | None = None,
) -> Float[Array, ""]:
    """Learned perceptual similarity (Zhang et al. 2018), 0 for equal images.

    mask: pixels that do not count are taken from the truth, so that they differ in nothing; the mean is over all.
    """
    if mask is not None:
        image = jnp.where(mask[..., None], image, truth)
    return network(2.0 * image[None] - 1.0, 2.0 * truth[None] - 1.0)[0]
