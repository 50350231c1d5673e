"""The optimizer: Adam with decoupled weight decay, a warm-up, a decay and a clipped gradient; and the moving average.

With n = 0, 1, ... the updates made before the present one, w warm-up steps and `steps` in all, the learning rate is

    rate(n) = learning_rate * min(1, (n + 1) / w) * decay(p),    p = clip((n - w) / (steps - w), 0, 1)
    decay(p) = 1 (constant), (1 + cos(pi p)) / 2 (cosine), 1 - p (linear)

and the moving average's decay is min(decay, (1 + n) / (10 + n)) with n the updates including the present one: an
average of few updates is not dominated by the initial values.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, Int

from jaxvid.core.errors import UserError


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov & Hutter, arXiv:1711.05101).

    learning_rate: after the warm-up.
    warmup_steps: steps over which it rises linearly from about 0.
    decay: what becomes of it until the phase's last step.
    weight_decay: for parameters other than biases and norms' scales.
    clip_norm: gradients of a larger global norm are scaled down to it; None clips nothing.
    """

    learning_rate: float = 1e-4
    b1: float = 0.9
    b2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    warmup_steps: int = 0
    decay: Literal["constant", "cosine", "linear"] = "constant"
    clip_norm: float | None = 1.0


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
    return optax.chain(
        clip,
        optax.adamw(
            lambda updates: learning_rate(config, steps, updates),
            b1=config.b1,
            b2=config.b2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            mask=_decayed,
        ),
    )


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
