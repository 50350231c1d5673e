r"""Samplers: pure functions that know only a denoiser.

A `Sampler` is three functions over a `State`:

    init(z) -> state                                  before the first step
    step(denoise, state, transition, hook) -> state   from log-SNR l_t to the cleaner l_s
    finish(state) -> z                                after the last

Symbols: z_t noisy data at level l_t, x = E[x | z_t] from the denoiser, eps = (z_t - alpha_t x) / sigma_t, s the next level.
l_s = +inf is the clean end; every step then returns x and no noise. Inside a step the denoiser appears once, in a
`lax.scan` over evaluations where an algorithm needs several, so that a network is compiled once; an evaluation at the
clean end is skipped. Data are [b, ...]; the level given to the denoiser is [b].

The driver calls the hook on the start and on the state after every step. A sampler calls it itself only where it
evaluates the denoiser at the new level within a step and the result is kept (the Langevin corrector).

Constructors are cached: the same arguments give the same object, so that compiled programs are found again.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxvid.core.errors import UserError
from jaxvid.core.rng import named
from jaxvid.diffusion.parameterization import as_epsilon
from jaxvid.diffusion.process import (
    alpha_sigma,
    expand,
    interpolated_deviation,
    posterior_mean,
    posterior_variance,
)
from jaxvid.diffusion.types import Denoise, Hook, Level, Prediction


class State(NamedTuple):
    """Where a sampling run stands.

    Attributes:
      z: [b, ...], the data at the current level.
      x: [b, ...], the latest estimate of the clean data, for previews; zeros at first.
      memory: what else the algorithm keeps.
    """

    z: Array
    x: Array
    memory: Any = ()


class Transition(NamedTuple):
    """One step of a grid: from log-SNR `logsnr` to `next_logsnr` (maybe +inf), all scalars; `key` is the step's own."""

    logsnr: Array
    next_logsnr: Array
    step: Array
    total: Array
    key: Array


class Sampler(NamedTuple):
    """The three functions of the module docstring."""

    init: Callable[[Array], State]
    step: Callable[[Denoise, State, Transition, Hook | None], State]
    finish: Callable[[State], Array]


def level_of(z: Array, logsnr: Array, transition: Transition) -> Level:
    """Returns the level `logsnr` (a scalar) for every example of `z`, at the transition's place in the run."""
    return Level(jnp.broadcast_to(logsnr, z.shape[:1]), transition.step, transition.total)


def _begin(z: Array) -> State:
    return State(z, jnp.zeros_like(z))


def _finish(state: State) -> Array:
    return state.z


def _noise(z: Array, transition: Transition, *names: Any) -> Array:
    return jax.random.normal(named(transition.key, "noise", *names), z.shape, z.dtype)


def _fraction(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise UserError(f"{name} {value}: give a number from 0 to 1")


def _ancestral_step(
    prediction: Prediction, z: Array, transition: Transition, gamma: float, noise: Array
) -> Array:
    logsnr_t, logsnr_s = transition.logsnr, transition.next_logsnr
    mean = posterior_mean(z, prediction.x, logsnr_t, logsnr_s)
    place = gamma if prediction.log_variance is None else prediction.log_variance
    return mean + interpolated_deviation(logsnr_t, logsnr_s, place) * noise


@functools.cache
def ancestral(gamma: float = 0.3) -> Sampler:
    """The ancestral sampler with interpolated variance (Video Diffusion Models, Section 2; Ho et al. 2020 if gamma = 0).

    z_s = m(z_t, x) + sqrt(v_low^(1 - gamma) v_up^gamma) noise. A denoiser that predicts `log_variance` overrides gamma.
    """
    _fraction("ancestral sampler's gamma", gamma)

    def step(denoise: Denoise, state: State, transition: Transition, hook: Hook | None) -> State:
        z = state.z
        prediction = denoise(z, level_of(z, transition.logsnr, transition))
        z = _ancestral_step(prediction, z, transition, gamma, _noise(z, transition))
        return State(z, prediction.x)

    return Sampler(_begin, step, _finish)


@functools.cache
def ddim(eta: float = 0.0) -> Sampler:
    """DDIM (Song et al. 2021, Eq. 12 and 16): deterministic for eta = 0, the variance of gamma = 0 for eta = 1.

    z_s = alpha_s x + sqrt(sigma_s^2 - eta^2 v_low) eps + eta sqrt(v_low) noise.
    """
    _fraction("DDIM's eta", eta)

    def step(denoise: Denoise, state: State, transition: Transition, hook: Hook | None) -> State:
        z, logsnr_t, logsnr_s = state.z, transition.logsnr, transition.next_logsnr
        level = level_of(z, logsnr_t, transition)
        prediction = denoise(z, level)
        alpha_s, sigma_s = alpha_sigma(logsnr_s)
        kept = sigma_s * jnp.sqrt(1.0 + eta**2 * jnp.expm1(logsnr_t - logsnr_s))
        moved = alpha_s * prediction.x + kept * as_epsilon(prediction, z, level.logsnr)
        if eta:
            deviation = eta * jnp.sqrt(posterior_variance(logsnr_t, logsnr_s))
            moved += deviation * _noise(z, transition)
        return State(moved, prediction.x)

    return Sampler(_begin, step, _finish)


def langevin_step(
    prediction: Prediction, z: Array, logsnr: Array, delta: float, noise: Array
) -> Array:
    """One Langevin correction at level `logsnr` ([b]) (Video Diffusion Models, Section 2).

    z - (delta / 2) sigma eps + sqrt(delta) sigma noise.
    """
    _, sigma = alpha_sigma(expand(logsnr, z))
    eps = as_epsilon(prediction, z, logsnr)
    return z + sigma * (delta**0.5 * noise - 0.5 * delta * eps)


@functools.cache
def predictor_corrector(gamma: float = 0.3, delta: float = 0.1, corrections: int = 1) -> Sampler:
    """An ancestral step, then Langevin corrections at the new level (Video Diffusion Models, delta = 0.1, one each).

    1 + corrections evaluations a step; the last step, if it ends at the clean end, makes no correction.
    """
    _fraction("predictor-corrector's gamma", gamma)
    _fraction("predictor-corrector's delta", delta)
    if corrections < 1:
        raise UserError(f"predictor-corrector's corrections {corrections}: give 1 or more")

    def step(denoise: Denoise, state: State, transition: Transition, hook: Hook | None) -> State:
        def evaluate(carry: tuple[Array, Array], index: Array) -> tuple[tuple[Array, Array], None]:
            predicting = index == 0
            logsnr = jnp.where(predicting, transition.logsnr, transition.next_logsnr)
            level = level_of(carry[0], logsnr, transition)

            def move(carry: tuple[Array, Array]) -> tuple[Array, Array]:
                z, _ = carry
                if hook is not None:  # the driver has done so for the first evaluation
                    key = named(transition.key, "corrector hook", index)
                    z = jnp.where(predicting, z, hook(z, level, key))
                prediction = denoise(z, level)
                noise = _noise(z, transition, index)
                predicted = _ancestral_step(prediction, z, transition, gamma, noise)
                corrected = langevin_step(prediction, z, level.logsnr, delta, noise)
                return jnp.where(predicting, predicted, corrected), prediction.x

            return jax.lax.cond(jnp.isfinite(logsnr), move, lambda carry: carry, carry), None

        (z, x), _ = jax.lax.scan(evaluate, (state.z, state.x), jnp.arange(1 + corrections))
        return State(z, x)

    return Sampler(_begin, step, _finish)


@functools.cache
def dpm_solver_2m(lower_order_final: bool = True) -> Sampler:
    """DPM-Solver++(2M) (Lu et al. 2022, Alg. 2): multistep, data prediction, one evaluation a step.

    With half log-SNRs, h = (l_s - l_t)/2 and h' the previous step's:
    D = x + h / (2 h') (x - x'),  z_s = (sigma_s / sigma_t) z_t + alpha_s (1 - e^{-h}) D.
    First order (D = x) on the first step, on a step to the clean end, and, as in public code, on the last of fewer
    than 15 steps if `lower_order_final`.
    """

    def init(z: Array) -> State:
        return State(z, jnp.zeros_like(z), jnp.zeros((), z.dtype))

    def step(denoise: Denoise, state: State, transition: Transition, hook: Hook | None) -> State:
        z, logsnr_t, logsnr_s = state.z, transition.logsnr, transition.next_logsnr
        x = denoise(z, level_of(z, logsnr_t, transition)).x
        h, h_previous = 0.5 * (logsnr_s - logsnr_t), state.memory
        first_order = (h_previous <= 0.0) | jnp.isposinf(logsnr_s)
        if lower_order_final:
            last = transition.step == transition.total - 1
            first_order |= last & (transition.total < 15)
        weight = jnp.where(first_order, 0.0, 0.5 * h / jnp.where(first_order, 1.0, h_previous))
        data = x + weight * (x - state.x)
        (_, sigma_t), (alpha_s, sigma_s) = alpha_sigma(logsnr_t), alpha_sigma(logsnr_s)
        moved = (sigma_s / sigma_t) * z - alpha_s * jnp.expm1(-h) * data
        return State(moved, x, h)

    return Sampler(init, step, _finish)


@functools.cache
def heun() -> Sampler:
    """Heun's method on the variance exploding coordinates (Karras et al. 2022, Alg. 1), two evaluations a step.

    y = z / alpha with noise level u = sigma / alpha follows dy/du = (y - x)/u. With r = u_s / u_t:
    y' = r y + (1 - r) x,  y_s = y + ((r - 1)(y - x) + (1 - 1/r)(y' - x')) / 2, and y_s = y' = x at the clean end.
    Made for `grid.karras`: a step over many log-SNRs, as the first of a uniform cosine grid from -20, weights the second
    slope by 1/r and overshoots.
    """

    def step(denoise: Denoise, state: State, transition: Transition, hook: Hook | None) -> State:
        (alpha_t, _), (alpha_s, _) = (
            alpha_sigma(transition.logsnr),
            alpha_sigma(transition.next_logsnr),
        )
        ratio = jnp.exp(0.5 * (transition.logsnr - transition.next_logsnr))
        positive_ratio = jnp.where(ratio > 0, ratio, 1.0)
        y = state.z / alpha_t

        def evaluate(carry: tuple[Array, Array, Array], index: Array) -> tuple[Any, None]:
            predicting = index == 0
            logsnr = jnp.where(predicting, transition.logsnr, transition.next_logsnr)

            def move(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
                z, slope, _ = carry
                x = denoise(z, level_of(z, logsnr, transition)).x
                euler = ratio * y + (1.0 - ratio) * x
                correction = (1.0 - 1.0 / positive_ratio) * (z / alpha_s - x)
                moved = jnp.where(predicting, euler, y + 0.5 * (slope + correction))
                return alpha_s * moved, (ratio - 1.0) * (y - x), x

            return jax.lax.cond(jnp.isfinite(logsnr), move, lambda carry: carry, carry), None

        start = (state.z, jnp.zeros_like(y), state.x)
        (z, _, x), _ = jax.lax.scan(evaluate, start, jnp.arange(2))
        return State(z, x)

    return Sampler(_begin, step, _finish)
