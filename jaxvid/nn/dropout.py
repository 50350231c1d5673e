"""Dropout as a function of explicit keys."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


def dropout(
    x: Float[Array, "b *axes"], rate: float, keys: Key[Array, "b"] | None
) -> Float[Array, "b *axes"]:
    """Zeroes entries with probability `rate` and scales the rest by `1 / (1 - rate)`.

    One key an example, so the mask of an example does not depend on what else is in the batch or on how the batch
    is cut into microbatches. `keys=None` or a rate of 0 is the identity.
    """
    if keys is None or rate == 0.0:
        return x
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros((), x.dtype))
