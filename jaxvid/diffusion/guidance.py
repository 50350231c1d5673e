r"""Guidance as a table of branches, and wrappers that change a denoiser's estimate.

A guided denoiser evaluates the conditional denoiser once per branch and adds up

    x = sum_i c_i x_i,    x_i = E[x | z, conditions_i]                                            (1)

where the coefficients c_i may depend on the sampling step, the number of steps, the frame and the noise level.
When they sum to 1, (1) is the same combination of epsilon, v or score, because the three are affine in x at a
given z; so classifier-free guidance may be written in any of them. Every coefficient is an array, hence traced: changing a
scale never recompiles.

    classifier-free (Ho & Salimans 2022)       c = (s, 1 - s), s = 1 + w; s = 1 is unguided                 (2)
    InstructPix2Pix (Brooks et al. 2023, Eq. 3)  c = (s_T, s_I - s_T, 1 - s_I) for (image and text, image, none)  (3)

A scale is a number, an array with the leading axes of z ([], [b] or [b, t]), or a function of the level that
returns one.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxvid.diffusion.process import at_least_float32, expand
from jaxvid.diffusion.types import Denoise, Level, Number, Prediction

Scale: TypeAlias = Number | Callable[[Level], Array]
DenoiseConditional: TypeAlias = Callable[[Array, Level, Any], Prediction]  # (z, level, conditions)


class Branch(NamedTuple):
    """One row of a guidance table: conditions (a pytree of arrays [b, ...]) and the coefficient of its estimate."""

    conditions: Any
    coefficient: Scale


def _value(scale: Scale, level: Level) -> Array:
    return at_least_float32(jnp.asarray(scale(level) if callable(scale) else scale))


def _lined_up(*values: Array) -> list[Array]:
    # [b] against [b, t] must meet on b, which numpy's broadcasting from the right would not do.
    rank = max(value.ndim for value in values)
    return [value.reshape(value.shape + (1,) * (rank - value.ndim)) for value in values]


def _position(level: Level) -> tuple[Array, Array]:
    if level.step is None or level.total is None:
        raise ValueError(
            "this scale depends on the sampling step, and the level has none: use it in a sampler"
        )
    return level.step, level.total


def _interleave(branches: Sequence[Any]) -> Any:
    if any(jnp.ndim(leaf) == 0 for leaf in jax.tree.leaves(branches)):
        raise ValueError(
            "a condition has no batch axis: give [b, ...], or evaluate with together=False"
        )
    # Branches of one example stay adjacent, so a batch sharded over devices needs no communication.
    return jax.tree.map(
        lambda *leaves: jnp.stack(leaves, axis=1).reshape((-1, *leaves[0].shape[1:])), *branches
    )


def _evaluate_together(
    denoise: DenoiseConditional, z: Array, level: Level, branches: Sequence[Branch]
) -> list[Prediction]:
    n = len(branches)
    many = level._replace(logsnr=jnp.repeat(level.logsnr, n, axis=0))
    conditions = _interleave([branch.conditions for branch in branches])
    prediction = denoise(jnp.repeat(z, n, axis=0), many, conditions)
    prediction = prediction._replace(aux={})
    split = jax.tree.map(lambda leaf: leaf.reshape((-1, n, *leaf.shape[1:])), prediction)
    return [jax.tree.map(lambda leaf, i=i: leaf[:, i], split) for i in range(n)]


def _evaluate_apart(
    denoise: DenoiseConditional, z: Array, level: Level, branches: Sequence[Branch]
) -> list[Prediction]:
    conditions = [branch.conditions for branch in branches]
    forms = [jax.tree.map(lambda leaf: (jnp.shape(leaf), leaf.dtype), each) for each in conditions]
    if any(form != forms[0] for form in forms[1:]):
        return [denoise(z, level, each) for each in conditions]
    # A loop, since a compiler that is given independent calls may run them side by side, with the memory of all.
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *conditions)
    found = jax.lax.map(lambda each: denoise(z, level, each)._replace(aux={}), stacked)
    return [jax.tree.map(lambda leaf, i=i: leaf[i], found) for i in range(len(branches))]


def guided(
    denoise: DenoiseConditional,
    branches: Sequence[Branch],
    *,
    together: bool = True,
    rescale: Number | None = None,
) -> Denoise:
    """Returns the denoiser (1) over `branches`.

    Args:
      denoise: `(z, level, conditions) -> Prediction`.
      branches: the table. The first branch is the one whose `log_variance` is kept and to which `rescale` refers.
      together: evaluate all branches as one batch of len(branches) * b, which is fastest; False evaluates one at a
        time, for when memory is short. Together, all conditions must have one tree structure and one shape per leaf; one at a time they
        should: others are evaluated in an order, and with the memory, that the compiler chooses.
      rescale: phi in [0, 1] of Lin et al. 2023, Section 3.4: how far to bring the standard deviation of each
        example back to the first branch's. Here it is that of x; public pipelines take that of the raw output.
    """

    def denoiser(z: Array, level: Level) -> Prediction:
        evaluate = _evaluate_together if together else _evaluate_apart
        predictions = evaluate(denoise, z, level, branches)
        x = jnp.zeros((), jnp.float32)
        for branch, prediction in zip(branches, predictions, strict=True):
            estimate = at_least_float32(prediction.x)
            x = x.astype(estimate.dtype) + expand(_value(branch.coefficient, level), z) * estimate
        if rescale is not None:
            x = _rescaled(x, at_least_float32(predictions[0].x), rescale)
        return Prediction(x, predictions[0].log_variance)

    return denoiser


def _rescaled(x: Array, reference: Array, phi: Number) -> Array:
    axes = tuple(range(1, x.ndim))
    wanted, present = jnp.std(reference, axes, keepdims=True), jnp.std(x, axes, keepdims=True)
    ratio = jnp.where(present > 0, wanted / jnp.where(present > 0, present, 1.0), 1.0)
    return (phi * ratio + (1.0 - phi)) * x


# Tables ------------------------------------------------------------------------------------------------------------


def _minus(one: Scale, other: Scale) -> Callable[[Level], Array]:
    def value(level: Level) -> Array:
        first, second = _lined_up(_value(one, level), _value(other, level))
        return first - second

    return value


def classifier_free(conditional: Any, unconditional: Any, scale: Scale) -> list[Branch]:
    """The table (2). `scale` is s: 1 is unguided, the papers' w is s - 1."""
    return [Branch(conditional, scale), Branch(unconditional, _minus(1.0, scale))]


def instruct_pix2pix(
    full: Any, image_only: Any, unconditional: Any, image_scale: Scale, text_scale: Scale
) -> list[Branch]:
    """The table (3); `full` has image and text, `image_only` the image, `unconditional` neither."""
    return [
        Branch(full, text_scale),
        Branch(image_only, _minus(image_scale, text_scale)),
        Branch(unconditional, _minus(1.0, image_scale)),
    ]


# Scales ------------------------------------------------------------------------------------------------------------


def in_logsnr_interval(scale: Scale, low: Number, high: Number) -> Callable[[Level], Array]:
    """`scale` at levels with low <= logsnr <= high, 1 elsewhere (Kynkaanniemi et al. 2024)."""

    def value(level: Level) -> Array:
        inside = (level.logsnr >= low) & (level.logsnr <= high)
        inside, given = _lined_up(inside, _value(scale, level))
        return jnp.where(inside, given, 1.0)

    return value


def in_step_interval(scale: Scale, start: Number, stop: Number) -> Callable[[Level], Array]:
    """`scale` at steps with start <= step / total < stop, 1 elsewhere; 0 is the first (noisiest) step."""

    def value(level: Level) -> Array:
        step, total = _position(level)
        fraction = step.astype(jnp.float32) / total.astype(jnp.float32)
        return jnp.where((fraction >= start) & (fraction < stop), _value(scale, level), 1.0)

    return value


def oscillating(high: Scale, low: Scale, constant_steps: Number) -> Callable[[Level], Array]:
    """`high` for the first `constant_steps` steps, then `low` and `high` in turn, `low` first (Imagen Video).

    Imagen Video alternates w = 15 and w = 1 on its base and first two super-resolution models; its number of constant
    steps is not published. Scales here are s = 1 + w.
    """

    def value(level: Level) -> Array:
        step, _ = _position(level)
        is_high = (step < constant_steps) | ((step - constant_steps) % 2 == 1)
        return jnp.where(is_high, *_lined_up(_value(high, level), _value(low, level)))

    return value


def frame_ramp(first: Number, last: Number, frames: int) -> Callable[[Level], Array]:
    """A scale [b, t] rising linearly from `first` at frame 0 to `last` at the last (Stable Video Diffusion)."""

    def value(level: Level) -> Array:
        place = jnp.arange(frames, dtype=jnp.float32) / max(frames - 1, 1)
        return jnp.broadcast_to(first + (last - first) * place, (level.logsnr.shape[0], frames))

    return value


# Wrappers ----------------------------------------------------------------------------------------------------------


def dynamic_threshold(
    denoise: Denoise, fraction: Number, floor: Number = 1.0, ceiling: Number = jnp.inf
) -> Denoise:
    """Clips the estimate to its own range and scales it back (Saharia et al. 2022, Section 2.3; Imagen Video).

    Per example: r = quantile of |x| at `fraction` over all elements, within floor and ceiling; x = clip(x, -r, r) / r * floor.
    `fraction` is 0.995, not 99.5. The floor is the data's bound, 1. The paper has no ceiling; DeepFloyd IF's is 1.5.
    """

    def denoiser(z: Array, level: Level) -> Prediction:
        prediction = denoise(z, level)
        x = prediction.x
        size = jnp.quantile(jnp.abs(x).reshape(x.shape[0], -1), fraction, axis=1)
        bound = expand(jnp.clip(size, floor, ceiling), x)
        return Prediction(jnp.clip(x, -bound, bound) / bound * floor, prediction.log_variance)

    return denoiser


def static_threshold(denoise: Denoise, low: Number = -1.0, high: Number = 1.0) -> Denoise:
    """Clips the estimate to [low, high]."""

    def denoiser(z: Array, level: Level) -> Prediction:
        prediction = denoise(z, level)
        return Prediction(jnp.clip(prediction.x, low, high), prediction.log_variance)

    return denoiser
