"""CLIP's text and image encoders (Radford et al. 2021), as OpenAI's and OpenCLIP's weights have them.

Both are pre-norm transformers of equal layers, kept stacked and scanned. The text's is causal, and its vector is what stands at
the end-of-text token; the image's sees patches and a class token, whose output is its vector. A projection without bias takes
either vector to the common space, where the cosine is CLIP's score.

Axes: n tokens, d width.
"""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from jaxvid.core.errors import UserError
from jaxvid.core.rng import named
from jaxvid.nn.attention import MultiHeadAttention
from jaxvid.nn.linear import Embedding, Linear, fan_in
from jaxvid.nn.norm import LayerNorm

Activation = Literal["quick_gelu", "gelu"]


@dataclass(frozen=True)
class TransformerConfig:
    """Shape of an encoder's layers. "quick_gelu" is `x sigmoid(1.702 x)`, OpenAI's."""

    width: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int = 3072
    activation: Activation = "quick_gelu"
    eps: float = 1e-5


@dataclass(frozen=True)
class ClipTextConfig:
    """The defaults are those of ViT-L/14, Stable Diffusion 1.x.

    end: the end-of-text token, of which the first counts; None takes the highest number in the text, which it was in
    the first checkpoints, whose config does not say. projection: width of the common space, None without.
    """

    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    vocabulary: int = 49408
    positions: int = 77
    end: int | None = None
    projection: int | None = None


@dataclass(frozen=True)
class ClipImageConfig:
    """The defaults are those of ViT-L/14."""

    transformer: TransformerConfig = field(
        default_factory=lambda: TransformerConfig(1024, 24, 16, 4096)
    )
    size: int = 224
    patch: int = 14
    projection: int | None = 768


class Encoded(NamedTuple):
    """tokens: the last layer's output, a text's after the last norm. vector: of the whole, projected where there is a projection."""

    tokens: Float[Array, "b n d"]
    vector: Float[Array, "b e"]


class ClipLayer(nnx.Module):
    """Self-attention and feed-forward, each a residual normalised before it."""

    def __init__(self, config: TransformerConfig, key: Key[Array, ""]):
        self.activation: Activation = config.activation
        self.norm1 = LayerNorm(config.width, eps=config.eps)
        self.attention = MultiHeadAttention(
            config.width,
            config.width // config.heads,
            named(key, "attention"),
            bias=True,
            out_init=fan_in,
        )
        self.norm2 = LayerNorm(config.width, eps=config.eps)
        self.expand = Linear(config.width, config.hidden, named(key, "expand"))
        self.contract = Linear(config.hidden, config.width, named(key, "contract"))

    def __call__(
        self, x: Float[Array, "b n d"], mask: Bool[Array, "#b n n"] | None
    ) -> Float[Array, "b n d"]:
        x = x + self.attention(self.norm1(x), mask=mask)
        y = self.expand(self.norm2(x))
        if self.activation == "quick_gelu":
            y = y * jax.nn.sigmoid(1.702 * y)
        else:
            y = jax.nn.gelu(y, approximate=False)
        return x + self.contract(y)


def stacked(config: TransformerConfig, key: Key[Array, ""]) -> ClipLayer:
    """All layers in one, each leaf with a leading axis."""
    keys = jax.vmap(lambda index: named(key, "layers", index))(jnp.arange(config.layers))
    return jax.vmap(lambda each: ClipLayer(config, each))(keys)


def through(
    layers: ClipLayer, x: Float[Array, "b n d"], mask: Bool[Array, "#b n n"] | None
) -> tuple[Float[Array, "b n d"], Float[Array, "l b n d"]]:
    """The last layer's output, and the input of each layer."""

    def body(x: Array, layer: ClipLayer) -> tuple[Array, Array]:
        return layer(x, mask), x

    return jax.lax.scan(body, x, layers)


def projection(width: int, common: int | None, key: Key[Array, ""]) -> Linear | None:
    """To the common space, where there is one."""
    return None if common is None else Linear(width, common, key, bias=False)


class ClipText(nnx.Module):
    """Tokens of a text to a vector a token and one for the whole."""

    def __init__(self, config: ClipTextConfig, key: Key[Array, ""]):
        self.config = config
        width = config.transformer.width
        self.words = Embedding(config.vocabulary, width, named(key, "words"))
        self.places = Embedding(config.positions, width, named(key, "places"), scale=0.01)
        self.layers = stacked(config.transformer, key)
        self.norm = LayerNorm(width, eps=config.transformer.eps)
        self.projection = projection(width, config.projection, named(key, "projection"))

    def __call__(
        self, tokens: Int[Array, "b n"], *, mask: Bool[Array, "b n"] | None = None
    ) -> Encoded:
        """mask: tokens that may be seen; the diffusion models see all, padding too. Raises UserError for too long texts."""
        length = tokens.shape[1]
        if length > self.config.positions:
            raise UserError(
                f"a text has {length} tokens, this encoder takes {self.config.positions}; cut it"
            )
        causal = jnp.tril(jnp.ones((length, length), bool))[None]
        seen = causal if mask is None else causal & mask[:, None, :]
        x = self.words(tokens) + self.places(jnp.arange(length))
        x = self.norm(through(self.layers, x, seen)[0])
        if self.config.end is None:
            last = jnp.argmax(tokens, axis=1)
        else:
            last = jnp.argmax(tokens == self.config.end, axis=1)
        vector = jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0]
        return Encoded(x, vector if self.projection is None else self.projection(vector))


class ClipImage(nnx.Module):
    """An image, `size` pixels a side and normalised with CLIP's mean and deviation, to patches and a vector."""

    def __init__(self, config: ClipImageConfig, key: Key[Array, ""]):
        self.config = config
        width, patch = config.transformer.width, config.patch
        self.token = nnx.Param(width**-0.5 * jax.random.normal(named(key, "token"), (width,)))
        self.patches = Patches(patch, width, named(key, "patches"))
        count = (config.size // patch) ** 2 + 1
        self.places = Embedding(count, width, named(key, "places"))
        self.norm1 = LayerNorm(width, eps=config.transformer.eps)
        self.layers = stacked(config.transformer, key)
        self.norm2 = LayerNorm(width, eps=config.transformer.eps)
        self.projection = projection(width, config.projection, named(key, "projection"))

    def __call__(self, images: Float[Array, "b h w 3"]) -> Encoded:
        """Raises UserError for images of another size."""
        size = self.config.size
        if images.shape[1:3] != (size, size):
            height, width = images.shape[1:3]
            raise UserError(
                f"images of {width}x{height} pixels for an encoder of {size}x{size}; resize them"
            )
        patches = self.patches(images)
        token = jnp.broadcast_to(
            self.token[...].astype(patches.dtype), (len(images), 1, patches.shape[-1])
        )
        x = jnp.concatenate([token, patches], axis=1)
        x = x + self.places(jnp.arange(x.shape[1])).astype(x.dtype)
        x = through(self.layers, self.norm1(x), None)[0]
        vector = self.norm2(x[:, 0])
        return Encoded(x, vector if self.projection is None else self.projection(vector))


class Patches(nnx.Module):
    """Squares of pixels to vectors: a convolution whose stride is its size, without bias."""

    def __init__(self, side: int, width: int, key: Key[Array, ""]):
        self.side = side
        self.kernel = nnx.Param(fan_in(named(key, "kernel"), (side, side, 3, width)))

    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b n d"]:
        squares = rearrange(images, "b (y p) (x q) c -> b (y x) (p q c)", p=self.side, q=self.side)
        kernel = self.kernel[...].astype(images.dtype)
        return squares @ kernel.reshape(-1, kernel.shape[-1])


CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_DEVIATION = (0.26862954, 0.26130258, 0.27577711)


def normalized(images: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """Images in [-1, 1] as the encoder was trained to see them."""
    return ((images + 1) / 2 - jnp.array(CLIP_MEAN)) / jnp.array(CLIP_DEVIATION)
