"""Spatial resampling; the frame axis is never touched (VDM, figure 1)."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from jaxvid.core.rng import named
from jaxvid.nn.conv import Padding, SpatialConv


class Downsample(nnx.Module):
    """Halves height and width (odd sides round up) and changes the channels: a strided 1x3x3 convolution."""

    def __init__(
        self, inputs: int, outputs: int, key: Key[Array, ""], *, padding: Padding = "zero"
    ):
        self.conv = SpatialConv(inputs, outputs, named(key, "conv"), stride=2, padding=padding)

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h2 w2 d"]:
        return self.conv(x)


class Upsample(nnx.Module):
    """Doubles height and width by repetition, cuts to the skip's size and changes the channels by a 1x3x3 convolution.

    `height` and `width` are the sides before the matching `Downsample`, so an odd side returns exactly.
    """

    def __init__(
        self, inputs: int, outputs: int, key: Key[Array, ""], *, padding: Padding = "zero"
    ):
        self.conv = SpatialConv(inputs, outputs, named(key, "conv"), padding=padding)

    def __call__(
        self, x: Float[Array, "b t h2 w2 c"], height: int, width: int
    ) -> Float[Array, "b t h w d"]:
        x = jnp.repeat(jnp.repeat(x, 2, axis=2), 2, axis=3)
        return self.conv(x[:, :, :height, :width])
