"""Factorized space-time convolution on `b t h w c`.

The paper's 1x3x3 convolution is a 2-D convolution with the frames folded into the batch: the same sums, one
layout fewer for the compiler to choose (measured in `docs/factorized.md`). Kernels are `[kh, kw, in, out]` in
space and `[kt, in, out]` in time.
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from jaxvid.core.rng import named
from jaxvid.nn.linear import Initializer, fan_in


class SpatialConv(nnx.Module):
    """A `1 x size x size` convolution (VDM, section 3): every frame on its own, zero padding, output
    `ceil(side / stride)` wide.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        key: Key[Array, ""],
        *,
        size: int = 3,
        stride: int = 1,
        init: Initializer = fan_in,
    ):
        self.stride = stride
        self.kernel = nnx.Param(init(named(key, "kernel"), (size, size, inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs))

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h2 w2 d"]:
        y = jax.lax.conv_general_dilated(
            rearrange(x, "b t h w c -> (b t) h w c"),
            self.kernel[...].astype(x.dtype),
            window_strides=(self.stride, self.stride),
            padding="SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        y = y + self.bias[...].astype(x.dtype)
        return rearrange(y, "(b t) h w c -> b t h w c", t=x.shape[1])


def identity_taps(key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "k c d"]:
    """A temporal kernel whose centre tap is the identity matrix and whose other taps are zero."""
    size, inputs, outputs = shape
    if size % 2 == 0 or inputs != outputs:
        raise ValueError(f"identity needs an odd size and equal channels, got {shape}")
    return jnp.zeros(shape).at[size // 2].set(jnp.eye(inputs))


class TemporalConv(nnx.Module):
    """A `size x 1 x 1` convolution over frames that never reads across a segment's border.

    Taps that would leave the clip or enter another segment count as zero padding. `init=identity_taps` gives
    Make-A-Video's Conv1D (Singer et al. 2023, Eq. 2), which starts as the identity.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        key: Key[Array, ""],
        *,
        size: int = 3,
        init: Initializer = fan_in,
    ):
        self.size = size
        self.kernel = nnx.Param(init(named(key, "kernel"), (size, inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs))

    def __call__(
        self, x: Float[Array, "b t h w c"], segment: Int[Array, "b t"] | None = None
    ) -> Float[Array, "b t h w d"]:
        frames = x.shape[1]
        kernel = self.kernel[...].astype(x.dtype)
        y = jnp.broadcast_to(self.bias[...].astype(x.dtype), (*x.shape[:-1], kernel.shape[-1]))
        for tap in range(self.size):
            offset = tap - self.size // 2
            source = jnp.arange(frames) + offset
            inside = (source >= 0) & (source < frames)
            source = jnp.clip(source, 0, frames - 1)
            neighbour = x if offset == 0 else x[:, source]
            if segment is not None:
                inside = inside & (segment[:, source] == segment)
            keep = jnp.broadcast_to(inside, (x.shape[0], frames))[:, :, None, None, None]
            y = y + jnp.where(keep, neighbour, jnp.zeros((), x.dtype)) @ kernel[tap]
        return y


class Pseudo3DConv(nnx.Module):
    """Make-A-Video's (2+1)D convolution (Eq. 2): a 2-D convolution, then a temporal one that starts as the identity.

    At initialisation, and for a clip of one frame whose temporal kernel has not moved, it is the 2-D convolution.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        key: Key[Array, ""],
        *,
        size: int = 3,
        init: Initializer = fan_in,
        temporal_size: int = 3,
    ):
        self.spatial = SpatialConv(inputs, outputs, named(key, "spatial"), size=size, init=init)
        self.temporal = TemporalConv(
            outputs, outputs, named(key, "temporal"), size=temporal_size, init=identity_taps
        )

    def __call__(
        self, x: Float[Array, "b t h w c"], segment: Int[Array, "b t"] | None = None
    ) -> Float[Array, "b t h w d"]:
        return self.temporal(self.spatial(x), segment)
