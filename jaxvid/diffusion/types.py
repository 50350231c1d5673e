"""What a denoiser takes and gives.

Symbols: `x` clean data, `z` noisy data, `eps` noise, `z = alpha x + sigma eps` with `alpha^2 + sigma^2 = 1`,
`logsnr = log(alpha^2 / sigma^2)`. Arrays begin with the axes `b t` (example, frame); everything after them is
data. A noise level is one number per example, `[b]`, or per frame, `[b, t]`.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

from jax import Array


class Level(NamedTuple):
    """The noise level of `z`, and where in a sampling run it stands.

    Attributes:
      logsnr: [b] or [b, t], float32; finite.
      step: int32 scalar, index of the sampling step, 0 first. None outside of samplers.
      total: int32 scalar, number of sampling steps. None outside of samplers.
    """

    logsnr: Array
    step: Array | None = None
    total: Array | None = None


class Prediction(NamedTuple):
    """What a denoiser says about the clean data behind `z`.

    Attributes:
      x: E[x | z], shape of z, float32.
      log_variance: where the log-variance of the reverse step lies between its bounds: 0 is the posterior's
        variance, 1 the transition's (Nichol & Dhariwal 2021, Eq. 15; the exponent gamma of Video Diffusion Models,
        one per element). Shape of z, or None. The bounds depend on the step and are the sampler's.
      aux: may hold the network's exact output under "epsilon" or "v"; conversions then use it instead of going
        through `x`, which loses digits at extreme levels. Whatever changes `x` must drop it.
    """

    x: Array
    log_variance: Array | None = None
    aux: Mapping[str, Array] = {}


Number: TypeAlias = int | float | Array
Denoise: TypeAlias = Callable[[Array, Level], Prediction]
Hook: TypeAlias = Callable[
    [Array, Level, Array], Array
]  # (z, level, key) -> z, between sampling steps
