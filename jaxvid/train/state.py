"""The state of a run: five groups of arrays, each keyed by path.

    trainable   parameters that the optimizer moves
    frozen      parameters that nothing moves (autoencoder, text encoder, teacher, statistics): no gradient, no EMA,
                no optimizer slot, one copy for all checkpoints
    ema         moving average of `trainable`, same paths; empty if the run keeps none
    optimizer   optax state over the `trainable` dictionary
    extra       what else changes; `extra["updates"]` counts the optimizer's updates (int32)

Two states are related by path only: `carry` moves what fits from one phase to the next.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax

from jaxvid.core.paths import split

State: TypeAlias = dict[str, Any]
Params: TypeAlias = dict[str, Any]  # {path: array}


def make_state(
    params: Mapping[str, Any],
    optimizer: optax.GradientTransformation,
    *,
    trainable: Callable[[str], bool] = lambda path: True,
    ema: bool = True,
    extra: Mapping[str, Any] | None = None,
) -> State:
    """The state before the first step.

    params: `{path: array}`; the predicate `trainable` on paths decides which of them the optimizer moves.
    Pure, so that `jax.jit(..., out_shardings=...)` creates every array on its device.
    """
    moving, frozen = split(params, trainable)
    return {
        "trainable": moving,
        "frozen": frozen,
        # A copy: the step donates its state, and one buffer cannot be donated twice.
        "ema": {path: jnp.array(leaf, copy=True) for path, leaf in moving.items()} if ema else {},
        "optimizer": optimizer.init(moving),
        "extra": {"updates": jnp.zeros((), jnp.int32), **(extra or {})},
    }


def weights(state: Mapping[str, Any], *, ema: bool = True) -> Params:
    """All parameters `{path: array}` of a state: the averaged ones where there are any, unless `ema=False`.

    `{"trainable": params}` is state enough: loaded weights to go on from.
    """
    moving = (state.get("ema") if ema else None) or state["trainable"]
    return {**state.get("frozen", {}), **moving}


def carry(previous: Mapping[str, Any] | None, fresh: Mapping[str, Any]) -> Params:
    """`fresh` with every value replaced that `previous` has under the same path in the same shape.

    The rest of `fresh` stays as initialised: new layers of a later phase, or layers whose shape has changed.
    """
    previous = previous or {}
    return {
        path: previous[path].astype(leaf.dtype)
        if path in previous and previous[path].shape == leaf.shape
        else leaf
        for path, leaf in fresh.items()
    }


def abstract(tree: Any) -> Any:
    """`tree` as ShapeDtypeStructs, without the values."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
