"""The trained parts of a VDM: the space-time U-Net and, where there is text, its encoder and pooling.

Axes: s segments (the clip, then each appended image), n tokens, e condition embedding.
"""

import math

import jax
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from jaxvid.core.rng import named
from jaxvid.models.text import TextConfig, TextEncoder
from jaxvid.models.unet import UNet, UNetConfig
from jaxvid.nn.attention import AttentionPooling


class Networks(nnx.Module):
    """U-Net, text encoder and attention pooling. Parameter paths begin with "unet", "text" and "pool"."""

    def __init__(self, model: UNetConfig, text: TextConfig | None, key: Key[Array, ""]):
        self.unet = UNet(model, named(key, "unet"))
        self.text = None if text is None else TextEncoder(text, named(key, "text"))
        self.pool = (
            None
            if text is None
            else AttentionPooling(
                text.width, model.embedding_width, text.width // text.heads, named(key, "pool")
            )
        )

    def embed(self, tokens: Int[Array, "b s n"]) -> Float[Array, "b s e"]:
        """Pools each caption to one vector (VDM, section 4.3)."""
        if self.text is None or self.pool is None:
            raise ValueError("this model has no text encoder")
        b, s, n = tokens.shape
        words = self.text(tokens.reshape(b * s, n)).reshape(b, s, n, -1)
        return self.pool(words, tokens != 0)


def abstract_networks(model: UNetConfig, text: TextConfig | None) -> Networks:
    """The networks' shapes without values, for planning and as the template of `paths.unflatten`."""
    return jax.eval_shape(lambda key: Networks(model, text, key), jax.random.key(0))


def parameter_count(networks: Networks) -> int:
    """Number of parameters, of abstract networks too."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(networks))
