r"""Training losses: a weighted squared error per example, exact at extreme noise levels.

A weighting w(logsnr) multiplies the mean squared error of x. With l = logsnr, the errors of the three targets are

    |eps_hat - eps|^2 = e^l |x_hat - x|^2,        |v_hat - v|^2 = (1 + e^l) |x_hat - x|^2            (1)

so any weighting may be computed in any of the three spaces, and the one in which the network speaks is exact:
where `Prediction.aux` holds the raw output, its error is weighted by w(l) e^{-l} or w(l) / (1 + e^l). Weightings are
therefore given by their logarithm: the weight of the epsilon error under the epsilon weighting is exp(l - l) = 1 exactly.

Times are in [0, 1], one per example [b] or, when a clip carries appended images, one per segment [b, s], gathered to
frames by `segment` [b, t] (Video Diffusion Models, joint image-video training).
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxvid.diffusion.process import alpha_sigma, at_least_float32, expand, q_sample
from jaxvid.diffusion.schedule import Schedule
from jaxvid.diffusion.types import Denoise, Level, Prediction

LogWeight: TypeAlias = Callable[[Array], Array]  # logsnr -> log of the weight on the x error


def epsilon_weight(logsnr: Float[Array, "*level"]) -> Float[Array, "*level"]:
    """Log w of the plain epsilon error: w = SNR (Ho et al. 2020; Video Diffusion Models)."""
    return logsnr


def v_weight(logsnr: Float[Array, "*level"]) -> Float[Array, "*level"]:
    """Log w of the plain v error: w = SNR + 1 (Salimans & Ho 2022)."""
    return jax.nn.softplus(logsnr)


def x_weight(logsnr: Float[Array, "*level"]) -> Float[Array, "*level"]:
    """Log w of the plain x error: w = 1."""
    return jnp.zeros_like(logsnr)


def min_snr_weight(gamma: float = 5.0) -> LogWeight:
    """Log w of min-SNR: w = min(SNR, gamma) (Hang et al. 2023)."""
    log_gamma = math.log(gamma)
    return lambda logsnr: jnp.minimum(logsnr, log_gamma)


def clipped_snr_weight(low: float = 1.0, high: float = 5.0) -> LogWeight:
    """Log w of SNR clipped on both sides: the floor of Salimans & Ho 2022 (section 4), the cap of Hang et al. 2023.

    For networks that predict x: neither pure noise nor nearly clean data take over the loss.
    """
    log_low, log_high = math.log(low), math.log(high)
    return lambda logsnr: jnp.clip(logsnr, log_low, log_high)


def edm_weight(sigma_data: float = 0.5) -> LogWeight:
    """Log w of EDM: w = 1 / sigma_data^2 + SNR (Karras et al. 2022, Table 1)."""
    log_inverse = -2.0 * math.log(sigma_data)
    return lambda logsnr: jnp.logaddexp(logsnr, log_inverse)


WEIGHTS: Mapping[str, LogWeight] = {
    "epsilon": epsilon_weight,
    "v": v_weight,
    "x": x_weight,
    "min_snr": min_snr_weight(),
    "clipped_snr": clipped_snr_weight(),
    "edm": edm_weight(),
}


class LossDetail(NamedTuple):
    """What the loss knows beside its value.

    Attributes:
      logsnr: [b] or [b, t], the noise levels drawn.
      per_frame: [b, t], the weighted error of each frame (mean over its elements).
      prediction: the denoiser's, for auxiliary losses; unused parts cost nothing under jit.
    """

    logsnr: Array
    per_frame: Array
    prediction: Prediction


def uniform_times(key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Returns independent uniform times in [0, 1)."""
    return jax.random.uniform(key, shape)


def low_discrepancy_times(key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Returns times (u + i / n) mod 1, i = 0..n-1 in row order: each uniform in [0, 1), together evenly spread.

    Kingma et al. 2021, Appendix I.1. For a shape [b, s] each column is evenly spread over its b entries too.
    """
    n = math.prod(shape)
    times = (jax.random.uniform(key) + jnp.arange(n) / n) % 1.0
    return times.reshape(shape)


def gather_by_segment(
    values: Float[Array, "b s *rest"], segment: Int[Array, "b t"]
) -> Float[Array, "b t *rest"]:
    """Returns for each frame the value of its segment."""
    index = segment.reshape(segment.shape + (1,) * (values.ndim - 2))
    return jnp.take_along_axis(values, index, axis=1)


def weighted_error(
    prediction: Prediction,
    x: Float[Array, "b t *rest"],
    eps: Float[Array, "b t *rest"],
    logsnr: Float[Array, "..."],
    log_weight: LogWeight,
) -> Float[Array, "b t"]:
    """Returns w(logsnr) |x_hat - x|^2 of each frame, mean over its elements, by (1) in the network's own space."""
    x, eps, logsnr = at_least_float32(x), at_least_float32(eps), at_least_float32(logsnr)
    if "epsilon" in prediction.aux:
        error, log_scale = prediction.aux["epsilon"] - eps, logsnr
    elif "v" in prediction.aux:
        alpha, sigma = alpha_sigma(expand(logsnr, x))
        error = prediction.aux["v"] - (alpha * eps - sigma * x)
        log_scale = jax.nn.softplus(logsnr)
    else:
        error, log_scale = prediction.x - x, jnp.zeros_like(logsnr)
    per_frame = jnp.mean(jnp.square(error), axis=tuple(range(2, x.ndim)))
    return per_frame * expand(jnp.exp(log_weight(logsnr) - log_scale), per_frame)


def mean_over_frames(
    per_frame: Float[Array, "b t"], frame_weights: Float[Array, "b t"] | None
) -> Float[Array, "b"]:
    """Returns the mean over frames, weighted if weights are given; 0 for an example whose weights are all 0."""
    if frame_weights is None:
        return jnp.mean(per_frame, axis=1)
    total = jnp.sum(frame_weights, axis=1)
    # A frame of weight 0 must not contribute even when it is not finite.
    counted = jnp.where(frame_weights > 0, per_frame * frame_weights, 0.0)
    return jnp.sum(counted, axis=1) / jnp.where(total > 0, total, 1.0)


def diffusion_loss(
    denoise: Denoise,
    x: Float[Array, "b t *rest"],
    eps: Float[Array, "b t *rest"],
    schedule: Schedule,
    log_weight: LogWeight,
    times: Float[Array, "..."],
    *,
    segment: Int[Array, "b t"] | None = None,
    frame_weights: Float[Array, "b t"] | None = None,
) -> tuple[Float[Array, "b"], LossDetail]:
    """Returns the denoising loss of each example [b], and details.

    Args:
      denoise: the denoiser.
      x: clean data, [b, t, ...] (a flat embedding [b, d] counts its elements as frames).
      eps: the noise, standard normal; the caller draws it, for each example from its own key.
      schedule: maps times to log-SNR.
      log_weight: one of this module's weightings, or any function of that kind.
      times: [b], or [b, s] with `segment`, in [0, 1].
      segment: [b, t], the segment of each frame, in [0, s).
      frame_weights: [b, t], not negative; what the mean over frames counts. All frames alike if None.
    """
    if (times.ndim == 2) != (segment is not None):
        raise ValueError(
            f"times of shape {times.shape}: [b, s] needs `segment`, [b] must not have it"
        )
    logsnr = schedule.logsnr(times)
    if segment is not None:
        logsnr = gather_by_segment(logsnr, segment)
    x = at_least_float32(x)
    prediction = denoise(q_sample(x, eps, logsnr), Level(logsnr))
    per_frame = weighted_error(prediction, x, eps, logsnr, log_weight)
    detail = LossDetail(logsnr, per_frame, prediction)
    return mean_over_frames(per_frame, frame_weights), detail
