r"""Noise schedules: time t in [0, 1] to log-SNR and back, and the time that a network wants.

t = 0 is the clean end and t = 1 the noisy end; log-SNR falls strictly with t. Every schedule has

    logsnr(t)             t in [0, 1]  ->  log-SNR
    time(logsnr)          its inverse, clipped to [0, 1]
    network_time(logsnr)  the time input of networks trained with it: log-SNR, table index or c_noise

elementwise over arrays of any shape, in float32 at least. Both ends keep their digits: near t = 1 the formulas are
written in 1 - t, which is exact in floating point for t >= 1/2. The half is chosen before the transcendental function, so
gradients have no infinite unselected side. What limits the round trip
logsnr -> t -> logsnr is the spacing of float32 numbers near t = 1, about 6e-8 |d logsnr / dt|.

Cosine (Nichol & Dhariwal 2021, continuous and truncated as in Salimans & Ho 2022; Video Diffusion Models uses
log-SNR in [-20, 20]), with the resolution shift of Hoogeboom et al. 2023 (shift = 64 / resolution there):

    l(t) = -2 log tan(a t + b) + 2 log shift,   b = atan(e^{-l_max/2}),  a = atan(e^{-l_min/2}) - b         (1)
    pi/2 - (a t + b) = a (1 - t) + c,           c = atan(e^{l_min/2})                                       (2)

Sigmoid (Jabri et al. 2022; Chen 2023), alpha^2 remapped to the log-SNR range instead of clipped at 1e-9:

    g(t) = (sigmoid(E) - sigmoid(u)) / (sigmoid(E) - sigmoid(S)),  u = S + (E - S) t,  S = start/tau, E = end/tau   (3)
         = sinh(D (1 - t)) cosh(S/2) / (cosh(u/2) sinh(D)),        D = (E - S)/2                            (4)
    1 - g = sinh(D t) cosh(E/2) / (cosh(u/2) sinh(D))                                                       (5)
    tanh(D t) = sinh(D) (1-g) cosh(S/2) / (g cosh(E/2) + (1-g) cosh(S/2) cosh(D))                           (6)

Beta tables (Ho et al. 2020 and the public Stable Diffusion and unCLIP models): alpha^2_k = prod_{i<=k} (1 - beta_i),
k = 0..n-1; t = k / (n - 1), linear in log-SNR between entries. With zero terminal SNR (Lin et al. 2024, Algorithm 1):

    alpha'_k = (alpha_k - alpha_{n-1}) alpha_0 / (alpha_0 - alpha_{n-1})                                       (7)

whose last log-SNR, -inf, is ZERO_TERMINAL here: such a network predicts v, which needs no division by alpha.

EDM (Karras et al. 2022, Table 1): log sigma ~ N(p_mean, p_std^2) for uniform t, l = -2 log sigma. Their variance
exploding z_ve = x + sigma eps is ours by z = z_ve / sqrt(1 + sigma^2), which leaves the SNR alone.
"""

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr, ndtri
from jaxtyping import Array, Float

from jaxvid.diffusion.process import at_least_float32

Values: TypeAlias = Float[Array, "*shape"]


@runtime_checkable
class Schedule(Protocol):
    """The three functions above; any object with them will do."""

    def logsnr(self, t: Values) -> Values:
        """Returns the log-SNR at t in [0, 1]."""
        ...

    def time(self, logsnr: Values) -> Values:
        """Returns t in [0, 1]."""
        ...

    def network_time(self, logsnr: Values) -> Values:
        """Returns the network's time input."""
        ...


@dataclass(frozen=True)
class Cosine:
    """The truncated cosine schedule (1), log-SNR in [logsnr_min, logsnr_max] + 2 log shift; the network gets log-SNR."""

    logsnr_min: float = -20.0
    logsnr_max: float = 20.0
    shift: float = 1.0

    def _angles(self) -> tuple[float, float, float]:
        b, c = (
            math.atan(math.exp(-0.5 * self.logsnr_max)),
            math.atan(math.exp(0.5 * self.logsnr_min)),
        )
        return math.pi / 2 - b - c, b, c

    def logsnr(self, t: Values) -> Values:
        """Returns l(t) of (1), through (2) on the noisy half."""
        a, b, c = self._angles()
        t = at_least_float32(t)
        clean = a * t + b < math.pi / 4
        log_tangent = jnp.log(jnp.tan(jnp.where(clean, a * t + b, a * (1.0 - t) + c)))
        return jnp.where(clean, -2.0, 2.0) * log_tangent + 2.0 * math.log(self.shift)

    def time(self, logsnr: Values) -> Values:
        """Returns t in [0, 1]; log-SNR beyond the range gives the nearer end."""
        a, b, c = self._angles()
        logsnr = at_least_float32(logsnr) - 2.0 * math.log(self.shift)
        clean = logsnr > 0
        angle = jnp.arctan(jnp.exp(-0.5 * jnp.where(clean, logsnr, -logsnr)))
        t = jnp.where(clean, (angle - b) / a, 1.0 - (angle - c) / a)
        return jnp.clip(t, 0.0, 1.0)

    def network_time(self, logsnr: Values) -> Values:
        """Returns log-SNR itself."""
        return at_least_float32(logsnr)


@dataclass(frozen=True)
class Sigmoid:
    """The sigmoid schedule (3), log-SNR in [logsnr_min, logsnr_max]; the network gets log-SNR."""

    start: float = -3.0
    end: float = 3.0
    tau: float = 1.0
    logsnr_min: float = -20.0
    logsnr_max: float = 20.0

    def _constants(self) -> tuple[float, float, float, float, float, float]:
        start, end = self.start / self.tau, self.end / self.tau
        low = 1.0 / (1.0 + math.exp(-self.logsnr_min))
        high_complement = 1.0 / (1.0 + math.exp(self.logsnr_max))
        return start, end, low, high_complement, math.cosh(start / 2), math.cosh(end / 2)

    def logsnr(self, t: Values) -> Values:
        """Returns log(alpha^2 / sigma^2) with g of (4) and 1 - g of (5)."""
        start, end, low, high_complement, cosh_start, cosh_end = self._constants()
        half = (end - start) / 2
        t = at_least_float32(t)
        scale = math.sinh(half) * jnp.cosh(0.5 * (start + (end - start) * t))
        g = jnp.sinh(half * (1.0 - t)) * cosh_start / scale
        g_complement = jnp.sinh(half * t) * cosh_end / scale
        span = 1.0 - low - high_complement
        return jnp.log(low + span * g) - jnp.log(high_complement + span * g_complement)

    def time(self, logsnr: Values) -> Values:
        """Returns t in [0, 1] by (6) and its mirror image; log-SNR beyond the range gives the nearer end."""
        start, end, low, high_complement, cosh_start, cosh_end = self._constants()
        half = (end - start) / 2
        logsnr = at_least_float32(logsnr)
        span = 1.0 - low - high_complement
        g = jnp.clip((jax.nn.sigmoid(logsnr) - low) / span, 0.0, 1.0) * cosh_end
        g_complement = (
            jnp.clip((jax.nn.sigmoid(-logsnr) - high_complement) / span, 0.0, 1.0) * cosh_start
        )
        toward_clean = math.sinh(half) * g_complement / (g + math.cosh(half) * g_complement)
        toward_noisy = math.sinh(half) * g / (g_complement + math.cosh(half) * g)
        clean = toward_clean < toward_noisy
        distance = jnp.arctanh(jnp.where(clean, toward_clean, toward_noisy)) / half
        return jnp.clip(jnp.where(clean, distance, 1.0 - distance), 0.0, 1.0)

    def network_time(self, logsnr: Values) -> Values:
        """Returns log-SNR itself."""
        return at_least_float32(logsnr)


ZERO_TERMINAL = -40.0  # log-SNR; alpha is 2e-9


@dataclass(frozen=True)
class BetaTable:
    """A published table of betas; the network gets the index, fractional between entries, exact at entries.

    Subclasses give `betas()`; t = index / (entries - 1). zero_terminal: rescaled by (7).
    """

    entries: int = 1000
    zero_terminal: bool = field(default=False, kw_only=True)

    def betas(self) -> np.ndarray:
        """Returns the table [entries], float64, noise added per step."""
        raise NotImplementedError

    @cached_property
    def logsnr_table(self) -> np.ndarray:
        """log-SNR by index, [entries], float32, falling; computed in float64."""
        log_alpha2 = np.cumsum(np.log1p(-self.betas()))
        if not self.zero_terminal:
            return (log_alpha2 - np.log(-np.expm1(log_alpha2))).astype(np.float32)
        alpha = np.exp(0.5 * log_alpha2)
        alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
        logsnr = np.log(alpha[:-1] ** 2) - np.log1p(-(alpha[:-1] ** 2))
        return np.append(logsnr, ZERO_TERMINAL).astype(np.float32)

    def logsnr(self, t: Values) -> Values:
        """Returns the interpolated log-SNR at t."""
        t = at_least_float32(t)
        table = jnp.asarray(self.logsnr_table, t.dtype)
        return jnp.interp(t * (self.entries - 1.0), jnp.arange(self.entries, dtype=t.dtype), table)

    def at_index(self, index: Values) -> Values:
        """Returns the log-SNR of a table index in [0, entries - 1]; exact at whole numbers."""
        index = at_least_float32(index)
        table = jnp.asarray(self.logsnr_table, index.dtype)
        return jnp.interp(index, jnp.arange(self.entries, dtype=index.dtype), table)

    def on_table(self, t: Values) -> Values:
        """Moves uniform t in [0, 1) to uniform entries of the table, for training at whole indices as published."""
        index = jnp.floor(at_least_float32(t) * self.entries)
        return jnp.clip(index, 0, self.entries - 1) / (self.entries - 1.0)

    def time(self, logsnr: Values) -> Values:
        """Returns t in [0, 1]; log-SNR beyond the table gives the nearer end."""
        return self.network_time(logsnr) / (self.entries - 1.0)

    def network_time(self, logsnr: Values) -> Values:
        """Returns the table index as a float; a whole number for log-SNRs of the table."""
        logsnr = at_least_float32(logsnr)
        rising = jnp.asarray(self.logsnr_table[::-1], logsnr.dtype)
        index = jnp.arange(self.entries, dtype=logsnr.dtype)[::-1]
        return jnp.interp(logsnr, rising, index)


@dataclass(frozen=True)
class LinearTable(BetaTable):
    """Betas linear in the index (Ho et al. 2020)."""

    beta_start: float = 1e-4
    beta_end: float = 0.02

    def betas(self) -> np.ndarray:
        """Returns the table [entries]."""
        return np.linspace(self.beta_start, self.beta_end, self.entries)


@dataclass(frozen=True)
class ScaledLinearTable(BetaTable):
    """Square roots of betas linear in the index: Stable Diffusion's, which its own code calls "linear"."""

    beta_start: float = 0.00085
    beta_end: float = 0.012

    def betas(self) -> np.ndarray:
        """Returns the table [entries]."""
        return np.linspace(self.beta_start**0.5, self.beta_end**0.5, self.entries) ** 2


@dataclass(frozen=True)
class SquaredCosineTable(BetaTable):
    """The discrete cosine table (Nichol & Dhariwal 2021, Eq. 17), betas capped at 0.999; unCLIP's."""

    offset: float = 0.008
    beta_max: float = 0.999

    def betas(self) -> np.ndarray:
        """Returns the table [entries]."""
        t = np.arange(self.entries + 1) / self.entries
        alpha2 = np.cos((t + self.offset) / (1.0 + self.offset) * np.pi / 2) ** 2
        return np.minimum(1.0 - alpha2[1:] / alpha2[:-1], self.beta_max)


@dataclass(frozen=True)
class EDM:
    """Log-normal noise of Karras et al. 2022, truncated to [sigma_min, sigma_max]; the network gets c_noise = log(sigma)/4.

    Uniform t gives training noise levels. Sampling uses its own grid (`grid.karras`).
    """

    p_mean: float = -1.2
    p_std: float = 1.2
    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def _tails(self) -> tuple[float, float, float]:
        below, above = (
            0.5 * math.erfc(sign * (math.log(sigma) - self.p_mean) / self.p_std / math.sqrt(2))
            for sign, sigma in ((-1, self.sigma_min), (1, self.sigma_max))
        )
        return below, above, 1.0 - below - above

    def logsnr(self, t: Values) -> Values:
        """Returns -2 log sigma at the quantile t of the truncated log-normal."""
        below, above, mass = self._tails()
        t = at_least_float32(t)
        clean = below + mass * t < 0.5
        tail = ndtri(jnp.where(clean, below + mass * t, above + mass * (1.0 - t)))
        return -2.0 * (self.p_mean + self.p_std * jnp.where(clean, tail, -tail))

    def time(self, logsnr: Values) -> Values:
        """Returns the quantile t in [0, 1]; levels beyond the sigma range give the nearer end."""
        below, above, mass = self._tails()
        normal = (-0.5 * at_least_float32(logsnr) - self.p_mean) / self.p_std
        clean = normal < 0
        tail = ndtr(jnp.where(clean, normal, -normal))
        t = jnp.where(clean, (tail - below) / mass, 1.0 - (tail - above) / mass)
        return jnp.clip(t, 0.0, 1.0)

    def network_time(self, logsnr: Values) -> Values:
        """Returns c_noise = log(sigma) / 4 = -logsnr / 8."""
        return -0.125 * at_least_float32(logsnr)
