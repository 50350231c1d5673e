"""The default step of a phase: one loss, one optimizer, a moving average.

A loss is `loss(params, batch, keys) -> (per_example, sums)`:

    params       {path: array}, trainable and frozen together
    batch        {name: array [b, ...]}
    keys         [b] typed keys, one for each example
    per_example  float32 [b]; the step takes the mean
    sums         {name: (sum, count)} float32 scalars; the loop logs sum / count over an interval

An example's key is `named(key of the step, position)` with its position in the whole batch. So an example sees the same
random numbers whether the batch is taken at once, in parts, or spread over devices.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key

from jaxvid.core.errors import UserError
from jaxvid.core.rng import named
from jaxvid.train.optimizer import update_average
from jaxvid.train.state import Params, State

Sums: TypeAlias = dict[str, tuple[Any, Any]]  # {name: (sum, count)}
Loss: TypeAlias = Callable[[Params, Mapping[str, Any], Any], tuple[Any, Mapping[str, Any]]]
Step: TypeAlias = Callable[[State, Mapping[str, Any], Any], tuple[State, Sums]]


def make_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: float | None = 0.9999,
    accumulate: int = 1,
) -> Step:
    """Returns the pure `step(state, batch, key) -> (state, sums)`.

    Gradients are taken with respect to `state["trainable"]` alone. With `accumulate` = k the batch is taken in k parts
    one after the other (memory of one part) and gives the gradient of the whole. `ema_decay=None` keeps no average
    (make the state with `ema=False`). `sums` are the loss's own with "loss" and "grad_norm" (before clipping) added.
    """

    def step(state: State, batch: Mapping[str, Any], key: Key[Array, ""]) -> tuple[State, Sums]:
        trainable: Params = state["trainable"]
        gradient, sums = mean_gradient(
            loss, trainable, state["frozen"], batch, key, accumulate=accumulate
        )
        # Optax multiplies floats by integer counts, which strict promotion forbids.
        with jax.named_scope("optimizer"), jax.numpy_dtype_promotion("standard"):
            change, optimizer_state = optimizer.update(gradient, state["optimizer"], trainable)
            trainable = cast(Params, optax.apply_updates(trainable, change))
        updates = state["extra"]["updates"] + 1
        average = state["ema"]
        if ema_decay is not None:
            average = update_average(average, trainable, ema_decay, updates)
        sums["grad_norm"] = (optax.tree.norm(gradient), jnp.ones(()))
        return {
            "trainable": trainable,
            "frozen": state["frozen"],
            "ema": average,
            "optimizer": optimizer_state,
            "extra": {**state["extra"], "updates": updates},
        }, sums

    return step


def mean_gradient(
    loss: Loss,
    trainable: Params,
    frozen: Params,
    batch: Mapping[str, Any],
    key: Key[Array, ""],
    *,
    accumulate: int = 1,
) -> tuple[Params, Sums]:
    """The gradient of the batch's mean loss with respect to `trainable`, and the sums with "loss" among them."""
    count = jax.tree.leaves(dict(batch))[0].shape[0]
    if accumulate < 1 or count % accumulate:
        raise UserError(
            f"batch of {count} examples cannot be accumulated in {accumulate} parts; "
            f"accumulate must divide {count}"
        )
    keys = jax.vmap(lambda position: named(key, position))(jnp.arange(count))

    def total(moving: Params, part: Mapping[str, Any], part_keys: Any) -> tuple[Any, Sums]:
        per_example, sums = loss({**frozen, **moving}, part, part_keys)
        summed = jnp.sum(per_example.astype(jnp.float32))
        sums = {name: _float_pair(pair) for name, pair in sums.items()}
        sums["loss"] = (summed, jnp.float32(per_example.shape[0]))
        return summed / count, sums

    gradient = jax.grad(total, has_aux=True)
    if accumulate == 1:
        return gradient(trainable, batch, keys)

    def split_parts(leaf: Any) -> Any:
        # Part j takes the examples j, j + k, j + 2k, ...: of a batch that is sharded by example every part is spread
        # over all devices, and no example moves.
        return jnp.moveaxis(leaf.reshape(count // accumulate, accumulate, *leaf.shape[1:]), 1, 0)

    def add_part(so_far: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, so_far, gradient(trainable, *part)), None

    parts = jax.tree.map(split_parts, (dict(batch), keys))
    first = jax.tree.map(lambda leaf: leaf[0], parts)
    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(gradient, trainable, *first)
    )
    return jax.lax.scan(add_part, zeros, parts)[0]


def _float_pair(pair: tuple[Any, Any]) -> tuple[Any, Any]:
    total, count = pair
    return jnp.asarray(total, jnp.float32), jnp.asarray(count, jnp.float32)
