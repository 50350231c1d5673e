r"""The Gaussian noising process, variance preserving, with log-SNR as its time.

Symbols: x clean, z noisy, eps ~ N(0, I), l = logsnr; t is the noisier and s the cleaner of two levels, l_t <= l_s.

    z_t = alpha_t x + sigma_t eps                                                       (1)
    alpha^2 = sigmoid(l),  sigma^2 = sigmoid(-l)                                        (2)
    q(z_t | z_s) = N(alpha_t / alpha_s z_s, v_up I),  v_up = (1 - e^{l_t - l_s}) sigma_t^2                  (3)
    q(z_s | z_t, x) = N(m, v_low I),  v_low = (1 - e^{l_t - l_s}) sigma_s^2                                 (4)
    m = e^{l_t - l_s} (alpha_s / alpha_t) z_t + (1 - e^{l_t - l_s}) alpha_s x
      = (alpha_t / alpha_s) (sigma_s / sigma_t)^2 z_t + (1 - e^{l_t - l_s}) alpha_s x                       (5)

(Video Diffusion Models, Section 2; the second form of (5) follows from e^l = alpha^2 / sigma^2 and divides by nothing
small when s is cleaner.) `1 - e^{l_t - l_s}` is always computed as `-expm1(l_t - l_s)`. l_s = +inf is the
clean end: alpha_s = 1, sigma_s = 0, m = x, v_low = 0.

Arithmetic is in float32 at least, whatever the inputs are. A level has the leading axes of the data it belongs
to: [], [b] or [b, t] against [b, t, ...]. `expand` is the only place where the two are lined up.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num, Shaped


def at_least_float32(x: Num[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns `x` in float32, or as it is if it is float64."""
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def expand(level: Shaped[Array, "..."], like: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    """Gives `level` trailing axes of size 1 so that it multiplies `like`; its axes must lead those of `like`."""
    if level.shape != like.shape[: level.ndim]:
        raise ValueError(
            f"level of shape {level.shape} does not lead the axes of an array of shape {like.shape}"
        )
    return level.reshape(level.shape + (1,) * (like.ndim - level.ndim))


@jax.custom_jvp
def _alpha(logsnr: Array) -> Array:
    return jax.lax.rsqrt(1.0 + jnp.exp(-logsnr))


@_alpha.defjvp
def _alpha_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    # The automatic rule is 0 * inf where exp overflows.
    alpha, sigma = _alpha(primals[0]), _alpha(-primals[0])
    return alpha, 0.5 * alpha * sigma * sigma * tangents[0]


def alpha_sigma(
    logsnr: Float[Array, "*level"],
) -> tuple[Float[Array, "*level"], Float[Array, "*level"]]:
    """Returns (alpha, sigma) of (2), each to a relative 1e-6 for logsnr in [-80, 80]; +-inf gives exactly 0 and 1."""
    logsnr = at_least_float32(logsnr)
    return _alpha(logsnr), _alpha(-logsnr)


def q_sample(
    x: Float[Array, "*shape"], eps: Float[Array, "*shape"], logsnr: Float[Array, "..."]
) -> Float[Array, "*shape"]:
    """Returns z of (1) at `logsnr` ([], [b] or [b, t]); +inf gives `x` itself."""
    x, eps = at_least_float32(x), at_least_float32(eps)
    alpha, sigma = alpha_sigma(expand(logsnr, x))
    return alpha * x + sigma * eps


def transition_variance(
    logsnr_t: Float[Array, "*level"], logsnr_s: Float[Array, "*level"]
) -> Float[Array, "*level"]:
    """Returns v_up of (3), the variance of q(z_t | z_s): the upper bound of the reverse step's."""
    _, sigma_t = alpha_sigma(logsnr_t)
    return -jnp.expm1(at_least_float32(logsnr_t) - at_least_float32(logsnr_s)) * sigma_t**2


def posterior_variance(
    logsnr_t: Float[Array, "*level"], logsnr_s: Float[Array, "*level"]
) -> Float[Array, "*level"]:
    """Returns v_low of (4), the variance of q(z_s | z_t, x): the lower bound of the reverse step's."""
    _, sigma_s = alpha_sigma(logsnr_s)
    return -jnp.expm1(at_least_float32(logsnr_t) - at_least_float32(logsnr_s)) * sigma_s**2


def posterior_mean(
    z: Float[Array, "*shape"],
    x: Float[Array, "*shape"],
    logsnr_t: Float[Array, "*level"],
    logsnr_s: Float[Array, "*level"],
) -> Float[Array, "*shape"]:
    """Returns m of (5), the mean of q(z_s | z_t, x); levels are [], [b] or [b, t]."""
    z, x = at_least_float32(z), at_least_float32(x)
    logsnr_t = at_least_float32(expand(logsnr_t, z))
    logsnr_s = at_least_float32(expand(logsnr_s, z))
    alpha_t, sigma_t = alpha_sigma(logsnr_t)
    alpha_s, sigma_s = alpha_sigma(logsnr_s)
    ratio = sigma_s / sigma_t
    return (alpha_t / alpha_s) * ratio**2 * z - jnp.expm1(logsnr_t - logsnr_s) * alpha_s * x


def interpolated_deviation(
    logsnr_t: Float[Array, "*level"],
    logsnr_s: Float[Array, "*level"],
    gamma: Float[Array, "..."] | float,
) -> Float[Array, "..."]:
    """Returns sqrt(v_low^(1 - gamma) v_up^gamma), the reverse step's standard deviation; 0 if s is the clean end.

    Video Diffusion Models, ancestral sampler. `gamma` is a number or an array that broadcasts with the levels
    (Nichol & Dhariwal 2021 predict one per element).
    """
    logsnr_t, logsnr_s = at_least_float32(logsnr_t), at_least_float32(logsnr_s)
    clean = jnp.isposinf(logsnr_s)
    gamma = at_least_float32(jnp.asarray(gamma))
    finite_s = jnp.where(clean, logsnr_t + 1.0, logsnr_s)  # gamma = 1 would give 0 * inf below
    lower, upper = jax.nn.log_sigmoid(-finite_s), jax.nn.log_sigmoid(-logsnr_t)
    gap = jnp.log(-jnp.expm1(logsnr_t - finite_s))
    return jnp.where(clean, 0.0, jnp.exp(0.5 * (gap + (1.0 - gamma) * lower + gamma * upper)))
