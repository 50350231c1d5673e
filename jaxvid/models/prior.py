"""unCLIP's prior (Ramesh et al. 2022, section 2.2) as Karlo's weights have it: a causal transformer that denoises CLIP's image vector.

The sequence is the text's tokens, the text's vector, the time, the noised image vector and a learned query, whose output is the
estimate of the clean vector. `ImageConditions` turns vectors into what the decoder's U-Net takes (section 2.1).
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Key, Num

from jaxvid.core.rng import named
from jaxvid.models.blocks import TimeEmbedding
from jaxvid.nn.attention import MultiHeadAttention
from jaxvid.nn.embedding import sinusoidal
from jaxvid.nn.linear import Linear, fan_in
from jaxvid.nn.norm import LayerNorm

EXTRA = 4  # the text's vector, the time, the noised image vector, the query


@dataclass(frozen=True)
class PriorConfig:
    """The defaults are Karlo's. tokens: of the text."""

    heads: int = 32
    head_dim: int = 64
    layers: int = 20
    vector: int = 768
    tokens: int = 77

    @property
    def width(self) -> int:
        """Of the transformer."""
        return self.heads * self.head_dim


class PriorLayer(nnx.Module):
    """Self-attention and feed-forward, each a residual normalised before it."""

    def __init__(self, config: PriorConfig, key: Key[Array, ""]):
        width = config.width
        self.norm1 = LayerNorm(width)
        self.attention = MultiHeadAttention(
            width, config.head_dim, named(key, "attention"), bias=True, out_init=fan_in
        )
        self.norm2 = LayerNorm(width)
        self.expand = Linear(width, 4 * width, named(key, "expand"))
        self.contract = Linear(4 * width, width, named(key, "contract"))

    def __call__(
        self, x: Float[Array, "b n d"], mask: Bool[Array, "b n n"]
    ) -> Float[Array, "b n d"]:
        x = x + self.attention(self.norm1(x), mask=mask)
        hidden = jax.nn.gelu(self.expand(self.norm2(x)), approximate=False)
        return x + self.contract(hidden)


class Prior(nnx.Module):
    """Estimates the clean image vector. `mean` and `deviation` are those of CLIP's image vectors: it works on normalised ones."""

    def __init__(self, config: PriorConfig, key: Key[Array, ""]):
        self.config = config
        width = config.width
        self.time_embedding = TimeEmbedding(width, width, named(key, "time_embedding"))
        self.proj_in = Linear(config.vector, width, named(key, "proj_in"))
        self.embedding_proj = Linear(config.vector, width, named(key, "embedding_proj"))
        self.tokens_proj = Linear(config.vector, width, named(key, "tokens_proj"))
        self.positions = nnx.Param(jnp.zeros((1, config.tokens + EXTRA, width)))
        self.query = nnx.Param(jnp.zeros((1, 1, width)))
        keys = jax.vmap(lambda index: named(key, "layers", index))(jnp.arange(config.layers))
        self.layers = jax.vmap(lambda each: PriorLayer(config, each))(keys)
        self.norm = LayerNorm(width)
        self.proj_out = Linear(width, config.vector, named(key, "proj_out"))
        self.mean = nnx.Param(jnp.zeros((1, config.vector)))
        self.deviation = nnx.Param(jnp.ones((1, config.vector)))

    def __call__(
        self,
        z: Float[Array, "b e"],
        time: Num[Array, "b"],
        vector: Float[Array, "b e"],
        tokens: Float[Array, "b n d"],
        mask: Bool[Array, "b n"],
    ) -> Float[Array, "b e"]:
        """z: the noised image vector. vector, tokens, mask: CLIP's of the text."""
        features = sinusoidal(time, self.config.width, offset=0.0, cosines_first=True)
        sequence = [
            self.tokens_proj(tokens.astype(z.dtype)),
            self.embedding_proj(vector.astype(z.dtype))[:, None],
            self.time_embedding(features.astype(z.dtype))[:, None],
            self.proj_in(z)[:, None],
            jnp.broadcast_to(self.query[...].astype(z.dtype), (len(z), 1, self.config.width)),
        ]
        x = jnp.concatenate(sequence, axis=1) + self.positions[...].astype(z.dtype)
        length = x.shape[1]
        seen = jnp.pad(mask, ((0, 0), (0, EXTRA)), constant_values=True)
        seen = seen[:, None, :] & jnp.tril(jnp.ones((length, length), bool))

        def body(x: Array, layer: PriorLayer) -> tuple[Array, None]:
            return layer(x, seen), None

        x = jax.lax.scan(body, x, self.layers)[0]
        return self.proj_out(self.norm(x)[:, -1])


@dataclass(frozen=True)
class ImageConditionsConfig:
    """The defaults are Karlo's. extra: tokens made of the image vector. embedding: width of the U-Net's time embedding."""

    vector: int = 768
    context: int = 1536
    embedding: int = 1536
    extra: int = 4


class ImageConditions(nnx.Module):
    """An image vector and a text's vector and tokens, to the decoder's context and the vector that joins its time embedding.

    `unconditional` stands for the image vector where the decoder is to be given none.
    """

    def __init__(self, config: ImageConditionsConfig, key: Key[Array, ""]):
        self.config = config
        vector, context, embedding = config.vector, config.context, config.embedding
        self.unconditional = nnx.Param(jnp.zeros(vector))
        self.text = Linear(vector, embedding, named(key, "text"))
        self.image = Linear(vector, embedding, named(key, "image"))
        self.extra = Linear(vector, config.extra * context, named(key, "extra"))
        self.tokens = Linear(vector, context, named(key, "tokens"))
        self.norm = LayerNorm(context)

    def __call__(
        self,
        image: Float[Array, "b e"],
        vector: Float[Array, "b e"],
        tokens: Float[Array, "b n d"],
    ) -> tuple[Float[Array, "b m c"], Float[Array, "b k"]]:
        """The context, the image's tokens first, and what joins the time embedding."""
        # Published with the tokens as the faster axis.
        extra = self.extra(image).reshape(len(image), -1, self.config.extra)
        context = jnp.concatenate(
            [jnp.swapaxes(extra, 1, 2), self.norm(self.tokens(tokens))], axis=1
        )
        return context, self.image(image) + self.text(vector)
