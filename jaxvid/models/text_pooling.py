"""Pooling of a text's tokens into the time embedding, as DeepFloyd IF's (the public relative of Imagen, section 2.2)."""

import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Key

from jaxvid.core.rng import named
from jaxvid.nn.attention import attend
from jaxvid.nn.linear import Linear
from jaxvid.nn.norm import LayerNorm


class MeanQuery(nnx.Module):
    """Attention of the tokens' mean, placed, to itself and the tokens."""

    def __init__(self, width: int, heads: int, key: Key[Array, ""]):
        self.heads = heads
        self.positional_embedding = nnx.Param(jnp.zeros((1, width)))
        self.q_proj = Linear(width, width, named(key, "q_proj"))
        self.k_proj = Linear(width, width, named(key, "k_proj"))
        self.v_proj = Linear(width, width, named(key, "v_proj"))

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b d"]:
        query = x.mean(1, keepdims=True) + self.positional_embedding[...].astype(x.dtype)
        every = jnp.concatenate([query, x], axis=1)
        q, k, v = (
            rearrange(part, "b i (n d) -> b i n d", n=self.heads)
            for part in (self.q_proj(query), self.k_proj(every), self.v_proj(every))
        )
        return rearrange(attend(q, k, v), "b 1 n d -> b (n d)")


class TextPooling(nnx.Module):
    """Norm, pooling, a dense layer, norm. Padding is pooled too, as published."""

    def __init__(self, inputs: int, outputs: int, heads: int, key: Key[Array, ""]):
        self.norm1 = LayerNorm(inputs)
        self.pool = MeanQuery(inputs, heads, named(key, "pool"))
        self.proj = Linear(inputs, outputs, named(key, "proj"))
        self.norm2 = LayerNorm(outputs)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b e"]:
        return self.norm2(self.proj(self.pool(self.norm1(x))))
