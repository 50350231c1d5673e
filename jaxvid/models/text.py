"""Text encoders.

`TextEncoder` is BERT's encoder (Devlin et al. 2019): word and position embeddings, layer norm, then layers of
self-attention and a GELU feed-forward block, each followed by a residual and a layer norm. At 24 layers, 1024 wide
with 16 heads it is the BERT-large that Video Diffusion Models conditions on (section 4.3), frozen; at one or two
narrow layers it is trained together with the U-Net on a small vocabulary.

Axes: n tokens, d width. Token 0 is padding and is never attended to.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from jaxvid.core.rng import named
from jaxvid.nn.attention import MultiHeadAttention
from jaxvid.nn.linear import Embedding, Linear, fan_in
from jaxvid.nn.norm import LayerNorm


@dataclass(frozen=True)
class TextConfig:
    """Shape of a text encoder; the defaults are BERT-large uncased. `frozen` encoders get no gradient and must be loaded."""

    vocabulary: int = 30522
    positions: int = 512
    width: int = 1024
    layers: int = 24
    heads: int = 16
    hidden: int = 4096
    frozen: bool = True


class EncoderLayer(nnx.Module):
    """Self-attention and feed-forward, normalised after each residual (the original transformer's order)."""

    def __init__(self, config: TextConfig, key: Key[Array, ""]):
        self.attention = MultiHeadAttention(
            config.width,
            config.width // config.heads,
            named(key, "attention"),
            bias=True,
            out_init=fan_in,
        )
        self.norm1 = LayerNorm(config.width, eps=1e-12)
        self.expand = Linear(config.width, config.hidden, named(key, "expand"))
        self.contract = Linear(config.hidden, config.width, named(key, "contract"))
        self.norm2 = LayerNorm(config.width, eps=1e-12)

    def __call__(
        self, x: Float[Array, "b n d"], mask: Bool[Array, "b n n"]
    ) -> Float[Array, "b n d"]:
        x = self.norm1(x + self.attention(x, mask=mask))
        return self.norm2(x + self.contract(jax.nn.gelu(self.expand(x), approximate=False)))


class TextEncoder(nnx.Module):
    """Tokens to one vector a token. Layers are stored stacked and scanned."""

    def __init__(self, config: TextConfig, key: Key[Array, ""]):
        self.config = config
        self.words = Embedding(config.vocabulary, config.width, named(key, "words"))
        self.places = Embedding(config.positions, config.width, named(key, "places"))
        self.kind = nnx.Param(jnp.zeros(config.width))
        self.norm = LayerNorm(config.width, eps=1e-12)
        keys = jax.vmap(lambda index: named(key, "layers", index))(jnp.arange(config.layers))
        self.layers = jax.vmap(lambda k: EncoderLayer(config, k))(keys)

    def __call__(self, tokens: Int[Array, "b n"]) -> Float[Array, "b n d"]:
        """Encodes padded tokens; what stands at padded places is meaningless and must be masked by the reader."""
        x = self.words(tokens) + self.places(jnp.arange(tokens.shape[1])) + self.kind[...]
        mask = jnp.broadcast_to(
            (tokens != 0)[:, None, :], (tokens.shape[0], tokens.shape[1], tokens.shape[1])
        )

        def body(x: Array, layer: EncoderLayer) -> tuple[Array, None]:
            return layer(x, mask), None

        return jax.lax.scan(body, self.norm(x), self.layers)[0]


def abstract_encoder(config: TextConfig) -> TextEncoder:
    """The encoder's shapes, without values."""
    return jax.eval_shape(lambda key: TextEncoder(config, key), jax.random.key(0))
