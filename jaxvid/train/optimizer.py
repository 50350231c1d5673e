"""The optimizer: AdamW or Muon with a warm-up, a decay and a clipped gradient; and the moving average.

With n = 0, 1, ... the updates made before the present one, w warm-up steps and `steps` in all, the learning rate is

    rate(n) = learning_rate * min(1, (n + 1) / w) * decay(p),    p = clip((n - w) / (steps - w), 0, 1)
    decay(p) = 1 (constant), (1 + cos(pi p)) / 2 (cosine), 1 - p (linear)

and the moving average's decay is min(decay, (1 + n) / (10 + n)) with n the updates including the present one: an
average of few updates is not dominated by the initial values.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import jax.numpy as jnp
import optax
import optax.contrib
from jaxtyping import Array, ArrayLike, Float, Int

from jaxvid.core.errors import UserError

# Muon treats a kernel as one matrix from all its inputs, taps included, to its outputs: the number of tap dimensions by
# path, first match wins. A leading layer axis is a batch of matrices.
_TAPS = (
    (r"conv[12]?/temporal/kernel$", 1),
    (r"conv[12]?/kernel$", 2),
    (r"/kernel$", 0),
)

# What reads or writes data, and the text encoder, stays with Adam, as Muon's author advises.
_ADAMS = r"^(text|pool|readout)/|/(stem|head)/"


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov & Hutter, arXiv:1711.05101), or Muon (Jordan et al. 2024) for the hidden layers' kernels.

    learning_rate: after the warm-up.
    warmup_steps: steps over which it rises linearly from about 0.
    decay: what becomes of it until the phase's last step.
    weight_decay: for parameters other than biases and norms' scales.
    clip_norm: gradients of a larger global norm are scaled down to it; None clips nothing.
    method: "muon" scales its updates to the size of Adam's (Liu et al., arXiv:2502.16982), so that one learning rate serves
        the kernels and the rest, which gets Adam with Nesterov momentum and no weight decay. A
        kernel has one moment, not two, of decay 0.95; `b1` and `b2` are Adam's alone.
    """

    learning_rate: float = 1e-4
    b1: float = 0.9
    b2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    warmup_steps: int = 0
    decay: Literal["constant", "cosine", "linear"] = "constant"
    clip_norm: float | None = 1.0
    method: Literal["adamw", "muon"] = "adamw"


def learning_rate(
    config: OptimizerConfig, steps: int, updates: Int[ArrayLike, ""]
) -> Float[Array, ""]:
    """The learning rate (float32) after `updates` updates, of `steps` in all."""
    n = jnp.asarray(updates, jnp.float32)
    warm = jnp.minimum(1.0, (n + 1.0) / max(config.warmup_steps, 1))
    p = jnp.clip((n - config.warmup_steps) / max(steps - config.warmup_steps, 1), 0.0, 1.0)
    decays = {"constant": jnp.ones(()), "cosine": (1 + jnp.cos(jnp.pi * p)) / 2, "linear": 1 - p}
    return config.learning_rate * warm * decays[config.decay]


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """The optax transformation for a `{path: array}` dictionary and a phase of `steps` steps.

    Raises UserError for settings out of range.
    """
    if not (config.learning_rate > 0 and 0 <= config.b1 < 1 and 0 <= config.b2 < 1):
        raise UserError(
            f"optimizer learning_rate={config.learning_rate} b1={config.b1} b2={config.b2}: "
            "the rate must be positive, b1 and b2 in [0, 1)"
        )
    if config.clip_norm is not None and config.clip_norm <= 0:
        raise UserError(
            f"optimizer.clip_norm is {config.clip_norm}; give a positive norm, or None to clip nothing"
        )
    clip = (
        optax.identity()
        if config.clip_norm is None
        else optax.clip_by_global_norm(config.clip_norm)
    )
    return optax.chain(clip, _method(config, steps))


def _method(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    def schedule(updates: Any) -> Any:
        return learning_rate(config, steps, updates)

    if config.method == "adamw":
        return optax.adamw(
            schedule,
            b1=config.b1,
            b2=config.b2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            mask=_decayed,
        )
    return optax.contrib.muon(
        schedule,
        eps=config.epsilon,
        # Four iterations from this start are as orthogonal as five from the usual one, and cost a fifth less.
        ns_steps=4,
        preconditioning="schatten",
        consistent_rms=0.2,
        muon_weight_dimension_numbers=cast(Any, matrices),
        adam_b1=config.b1,
        adam_b2=config.b2,
        weight_decay=config.weight_decay,
        weight_decay_mask=_decayed,
    )


def matrices(params: Mapping[str, Any]) -> dict[str, Any]:
    """For each path the dimensions that Muon reads as a matrix, or None where AdamW is used."""
    found: dict[str, Any] = {}
    for path, leaf in params.items():
        taps = next((taps for pattern, taps in _TAPS if re.search(pattern, path)), None)
        if taps is None or re.search(_ADAMS, path) or not hasattr(leaf, "ndim"):
            found[path] = None
        else:
            last = leaf.ndim - 1
            inputs = tuple(range(last - 1 - taps, last))
            found[path] = optax.contrib.MuonDimensionNumbers(inputs, (last,))
    return found


def _decayed(params: Mapping[str, Any]) -> dict[str, bool]:
    return {path: path.rpartition("/")[2] not in ("bias", "scale") for path in params}


def update_average(
    average: Mapping[str, Any], values: Mapping[str, Any], decay: float, updates: Int[Array, ""]
) -> dict[str, Any]:
    """The moving average after `updates` updates, the last of which led to `values`."""
    n = updates.astype(jnp.float32)
    keep = jnp.minimum(decay, (1 + n) / (10 + n))
    return {
        path: (
            old.astype(jnp.float32) * keep + values[path].astype(jnp.float32) * (1 - keep)
        ).astype(old.dtype)
        for path, old in average.items()
    }
