"""The trained parts of a VDM: the space-time U-Net and, where there is text, its encoder and pooling.

Axes: s segments (the clip, then each appended image), n tokens, e condition embedding.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from jaxvid.core.rng import named
from jaxvid.models.text import TextConfig, TextEncoder
from jaxvid.models.unet import UNet, UNetConfig
from jaxvid.nn.attention import AttentionPooling
from jaxvid.systems.vdm.config import VDMConfig


class Networks(nnx.Module):
    """U-Net, text encoder, attention pooling, and a vector for each frame rate where there are several.

    Parameter paths begin with "unet", "text", "pool" and "rates".
    """

    def __init__(self, model: UNetConfig, text: TextConfig | None, rates: int, key: Key[Array, ""]):
        self.unet = UNet(model, named(key, "unet"))
        self.text = None if text is None else TextEncoder(text, named(key, "text"))
        self.pool = (
            None
            if text is None
            else AttentionPooling(
                text.width, model.embedding_width, text.width // text.heads, named(key, "pool")
            )
        )

        # Zero at first, so that a model of one rate learns a second one from where it is.
        self.rates = nnx.Param(jnp.zeros((rates, model.embedding_width))) if rates > 1 else None

    def embed(self, tokens: Int[Array, "b s n"]) -> Float[Array, "b s e"]:
        """Pools each caption to one vector (VDM, section 4.3); an empty one to zeros, the unconditional vector."""
        if self.text is None or self.pool is None:
            raise ValueError("this model has no text encoder")
        b, s, n = tokens.shape
        words = self.text(tokens.reshape(b * s, n)).reshape(b, s, n, -1)
        pooled = self.pool(words, tokens != 0)
        return jnp.where((tokens != 0).any(axis=-1, keepdims=True), pooled, 0.0)


def make_networks(config: VDMConfig, key: Key[Array, ""]) -> Networks:
    """The networks of a configuration, freshly initialised."""
    return Networks(config.model, config.text, len(config.data.skips), key)


def abstract_networks(config: VDMConfig) -> Networks:
    """The networks' shapes without values, for planning and as the template of `paths.unflatten`."""
    return jax.eval_shape(partial(make_networks, config), jax.random.key(0))


def parameter_count(networks: nnx.Module) -> int:
    """Number of parameters of a module, abstract or not."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(networks))
