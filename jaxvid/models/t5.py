"""T5's encoder (Raffel et al. 2020), version 1.1: gated feed-forward, no bias anywhere, relative positions in buckets.

The bias of positions is the first layer's, shared by all. Scores are not scaled; norms have no mean and no bias. Layers are
kept stacked and scanned.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from jaxvid.core.rng import named
from jaxvid.nn.linear import Embedding, Linear


@dataclass(frozen=True)
class T5Config:
    """The defaults are those of v1.1 XXL, DeepFloyd IF's and Imagen's. The inner width is heads times head_dim."""

    vocabulary: int = 32128
    width: int = 4096
    layers: int = 24
    heads: int = 64
    head_dim: int = 64
    hidden: int = 10240
    buckets: int = 32
    distance: int = 128
    eps: float = 1e-6


class RootMeanSquareNorm(nnx.Module):
    """`x / sqrt(mean(x^2) + eps) * scale`; the mean is float32."""

    def __init__(self, width: int, eps: float):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones(width))

    def __call__(self, x: Float[Array, "*axes d"]) -> Float[Array, "*axes d"]:
        wide = x.astype(jnp.float32)
        rate = jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + self.eps)
        return (wide * rate * self.scale[...].astype(jnp.float32)).astype(x.dtype)


class T5Layer(nnx.Module):
    """Self-attention and gated feed-forward, each a residual normalised before it."""

    def __init__(self, config: T5Config, key: Key[Array, ""]):
        inner = config.heads * config.head_dim
        self.head_dim = config.head_dim
        self.norm1 = RootMeanSquareNorm(config.width, config.eps)
        self.query, self.key, self.value = (
            Linear(config.width, inner, named(key, name), bias=False)
            for name in ("query", "key", "value")
        )
        self.out = Linear(inner, config.width, named(key, "out"), bias=False)
        self.norm2 = RootMeanSquareNorm(config.width, config.eps)
        self.gate = Linear(config.width, config.hidden, named(key, "gate"), bias=False)
        self.expand = Linear(config.width, config.hidden, named(key, "expand"), bias=False)
        self.contract = Linear(config.hidden, config.width, named(key, "contract"), bias=False)

    def __call__(
        self, x: Float[Array, "b n d"], bias: Float[Array, "b h n n"]
    ) -> Float[Array, "b n d"]:
        y = self.norm1(x)
        q, k, v = (
            rearrange(layer(y), "b n (h d) -> b n h d", d=self.head_dim)
            for layer in (self.query, self.key, self.value)
        )
        scores = jnp.einsum("bihd,bjhd->bhij", q, k, preferred_element_type=jnp.float32) + bias
        shares = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
        y = jnp.einsum("bhij,bjhd->bihd", shares, v)
        x = x + self.out(rearrange(y, "b n h d -> b n (h d)"))
        y = self.norm2(x)
        return x + self.contract(jax.nn.gelu(self.gate(y), approximate=True) * self.expand(y))


def bucket(distance: Int[Array, "*axes"], buckets: int, furthest: int) -> Int[Array, "*axes"]:
    """T5's bidirectional buckets of j - i: half for each sign, half of those exact, the others logarithmic."""
    half = buckets // 2
    exact = half // 2
    size = jnp.abs(distance)
    # A distance of 0 is exact, so that its logarithm is not looked at.
    ratio = jnp.log(jnp.maximum(size, 1).astype(jnp.float32) / exact) / math.log(furthest / exact)
    far = jnp.minimum(exact + (ratio * (half - exact)).astype(jnp.int32), half - 1)
    return jnp.where(distance > 0, half, 0) + jnp.where(size < exact, size, far)


class T5Encoder(nnx.Module):
    """Tokens of a text to a vector a token."""

    def __init__(self, config: T5Config, key: Key[Array, ""]):
        self.config = config
        self.words = Embedding(config.vocabulary, config.width, named(key, "words"), scale=1.0)
        self.positions = Embedding(config.buckets, config.heads, named(key, "positions"))
        keys = jax.vmap(lambda index: named(key, "layers", index))(jnp.arange(config.layers))
        self.layers = jax.vmap(lambda each: T5Layer(config, each))(keys)
        self.norm = RootMeanSquareNorm(config.width, config.eps)

    def __call__(
        self, tokens: Int[Array, "b n"], mask: Bool[Array, "b n"] | None = None
    ) -> Float[Array, "b n d"]:
        """mask: the tokens that are text; without one all are. What stands at masked places is to be masked by the reader."""
        config, place = self.config, jnp.arange(tokens.shape[1])
        bias = self.positions(
            bucket(place[None, :] - place[:, None], config.buckets, config.distance)
        )
        bias = rearrange(bias, "i j h -> 1 h i j").astype(jnp.float32)
        if mask is not None:
            bias = jnp.where(mask[:, None, None, :], bias, jnp.finfo(jnp.float32).min)

        def body(x: Array, layer: T5Layer) -> tuple[Array, None]:
            return layer(x, bias), None

        return self.norm(jax.lax.scan(body, self.words(tokens), self.layers)[0])
