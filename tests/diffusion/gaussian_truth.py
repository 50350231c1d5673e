"""Gaussian data, for which everything is known: the exact denoiser, the exact flow, the exact conditional.

x ~ N(mean, covariance) over the d elements of an example of shape `shape`. With one level for all elements,
z ~ N(alpha mean, alpha^2 C + sigma^2 I) and

    E[x | z] = mean + alpha C (alpha^2 C + sigma^2 I)^{-1} (z - alpha mean)
    the flow z_t -> z_s keeps (alpha^2 C + sigma^2 I)^{-1/2} (z - alpha mean)
"""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from jaxvid.diffusion.types import Prediction


def alpha_sigma(logsnr):
    logsnr = np.asarray(logsnr, np.float64)
    with np.errstate(over="ignore"):
        return np.sqrt(1 / (1 + np.exp(-logsnr))), np.sqrt(1 / (1 + np.exp(logsnr)))


@dataclass
class Gaussian:
    mean: np.ndarray  # [d]
    covariance: np.ndarray  # [d, d]
    shape: tuple[int, ...]

    def __post_init__(self):
        self.mean, self.covariance = (
            np.asarray(self.mean, float),
            np.asarray(self.covariance, float),
        )
        self.values, self.vectors = np.linalg.eigh(self.covariance)

    def noisy_covariance(self, logsnr):
        alpha, sigma = alpha_sigma(logsnr)
        return alpha**2 * self.covariance + sigma**2 * np.eye(len(self.mean))

    def gain(self, logsnr):
        """K with E[x | z] = mean + K (z - alpha mean)."""
        alpha, _ = alpha_sigma(logsnr)
        return alpha * self.covariance @ np.linalg.inv(self.noisy_covariance(logsnr))

    def expectation(self, z, logsnr):
        """E[x | z] in numpy; z is [b, d], logsnr a number."""
        alpha, _ = alpha_sigma(logsnr)
        return self.mean + (z - alpha * self.mean) @ self.gain(logsnr).T

    def denoise(self, z, level):
        """The exact denoiser in jax, level [b]; in the eigenbasis, so that it is cheap and accurate."""
        mean, values, vectors = (
            jnp.asarray(a, z.dtype) for a in (self.mean, self.values, self.vectors)
        )
        alpha, sigma = (jnp.sqrt(1 / (1 + jnp.exp(-s * level.logsnr)))[:, None] for s in (1, -1))
        centred = (z.reshape(z.shape[0], -1) - alpha * mean) @ vectors
        shrunk = centred * alpha * values / (alpha**2 * values + sigma**2)
        return Prediction((mean + shrunk @ vectors.T).reshape(z.shape))

    def flow(self, z, logsnr_t, logsnr_s):
        """Where the probability flow carries z [b, ...] from one level to another."""
        (alpha_t, sigma_t), (alpha_s, sigma_s) = alpha_sigma(logsnr_t), alpha_sigma(logsnr_s)
        centred = (np.asarray(z, float).reshape(len(z), -1) - alpha_t * self.mean) @ self.vectors
        scale = np.sqrt(
            (alpha_s**2 * self.values + sigma_s**2) / (alpha_t**2 * self.values + sigma_t**2)
        )
        return (alpha_s * self.mean + (centred * scale) @ self.vectors.T).reshape(z.shape)

    def conditional(self, known, value):
        """Mean and covariance of the unknown elements given `value` at the elements where `known` [d] is True."""
        c = self.covariance
        regression = c[np.ix_(~known, known)] @ np.linalg.inv(c[np.ix_(known, known)])
        mean = self.mean[~known] + (value - self.mean[known]) @ regression.T
        return mean, c[np.ix_(~known, ~known)] - regression @ c[np.ix_(known, ~known)]


def frames(t=4, correlation=0.8, scale=0.5):
    """Frames of one pixel that correlate as correlation^distance, an example [t, 1, 1, 1]."""
    index = np.arange(t)
    covariance = scale**2 * correlation ** np.abs(index[:, None] - index)
    return Gaussian(0.3 * np.cos(index), covariance, (t, 1, 1, 1))


def plane():
    """Two correlated numbers of unequal variance, an example [2, 1]."""
    return Gaussian([0.4, -0.3], [[0.6, 0.25], [0.25, 0.2]], (2, 1))
