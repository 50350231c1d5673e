"""Normalisation. Statistics are float32 whatever the input's dtype; the result has the input's dtype.

Group normalisation takes its statistics per frame, over height, width and the channels of a group. A clip's
frames therefore never mix here, which joint image-video training needs and which makes a clip of one frame
the image model.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


class GroupNorm(nnx.Module):
    """Per-frame group normalisation (Wu & He 2018) over `[b, t, h, w, c]`.

    `groups` is lowered to the largest divisor of `channels` not above it.
    """

    def __init__(self, channels: int, *, groups: int = 32, eps: float = 1e-5):
        self.groups = max(g for g in range(1, min(groups, channels) + 1) if channels % g == 0)
        self.eps = eps
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
        b, t, h, w, c = x.shape
        grouped = x.astype(jnp.float32).reshape(b, t, h * w, self.groups, c // self.groups)
        mean = grouped.mean((2, 4), keepdims=True)
        variance = jnp.square(grouped - mean).mean((2, 4), keepdims=True)
        y = ((grouped - mean) * jax.lax.rsqrt(variance + self.eps)).reshape(b, t, h, w, c)
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype)


class LayerNorm(nnx.Module):
    """Layer normalisation (Ba et al. 2016) over the last axis."""

    def __init__(self, channels: int, *, eps: float = 1e-5):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(self, x: Float[Array, "*axes c"]) -> Float[Array, "*axes c"]:
        wide = x.astype(jnp.float32)
        mean = wide.mean(-1, keepdims=True)
        variance = jnp.square(wide - mean).mean(-1, keepdims=True)
        y = (wide - mean) * jax.lax.rsqrt(variance + self.eps)
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype)
