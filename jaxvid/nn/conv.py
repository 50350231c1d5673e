"""Factorized space-time convolution on `b t h w c`.

The paper's 1x3x3 convolution is a 2-D convolution with the frames folded into the batch: the same sums, one
layout fewer for the compiler to choose (measured in `docs/factorized.md`). Kernels are `[kh, kw, in, out]` in
space and `[kt, in, out]` in time.
"""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from jaxvid.core.mesh import per_frame
from jaxvid.core.rng import named
from jaxvid.nn.linear import Initializer, add_bias, fan_in, spread

Pads = tuple[tuple[int, int], tuple[int, int]]
Padding = Literal["zero", "wrap"]


def _convolve(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "kh kw c d"],
    pads: Pads,
    stride: int = 1,
) -> Float[Array, "n h2 w2 d"]:
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), pads, dimension_numbers=layout)


def _pad(x: Float[Array, "n h w c"], pads: Pads, padding: Padding) -> tuple[Array, Pads]:
    """What a convolution is to see of x, and the zeros that it has to add itself."""
    if padding == "zero":
        return x, pads
    return jnp.pad(x, [(0, 0), *pads, (0, 0)], mode="wrap"), ((0, 0), (0, 0))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve_dense(
    x: Float[Array, "n h w c"], kernel: Float[Array, "kh kw c d"], pads: Pads, padding: Padding
) -> Float[Array, "n h w d"]:
    """A stride-1 convolution to the same size whose gradients are written as convolutions in the forward layout.

    The kernel gradient that differentiation makes runs on a slow path of the CPU backend inside a loop: a scanned train
    step cost 39 times an unrolled one, and 1.4 times with these (docs/factorized.md). The numbers are the same. On a torus
    the gradient by x is a convolution on the torus; what differentiation makes convolves a wider array that is mostly
    zeros and adds its borders to the opposite ones.
    """
    x, pads = _pad(x, pads, padding)
    return _convolve(x, kernel, pads)


def _convolve_forward(
    x: Array, kernel: Array, pads: Pads, padding: Padding
) -> tuple[Array, tuple[Array, Array]]:
    return convolve_dense(x, kernel, pads, padding), (x, kernel)


def _convolve_backward(
    pads: Pads, padding: Padding, saved: tuple[Array, Array], g: Array
) -> tuple[Array, Array]:
    """Of g with the flipped kernel, and of x with g where the batch plays the channels."""
    x, kernel = saved
    (top, bottom), (left, right) = pads
    height, width = kernel.shape[0] - 1, kernel.shape[1] - 1
    flipped = jnp.swapaxes(jnp.flip(kernel, (0, 1)), 2, 3)
    around, zeros = _pad(
        g, ((height - top, height - bottom), (width - left, width - right)), padding
    )
    dx = _convolve(around, flipped, zeros)
    x, zeros = _pad(x, pads, padding)
    across = _convolve(jnp.transpose(x, (3, 1, 2, 0)), jnp.transpose(g, (1, 2, 0, 3)), zeros)
    return dx, jnp.transpose(across, (1, 2, 0, 3))


convolve_dense.defvjp(_convolve_forward, _convolve_backward)


def _around(side: int, size: int, stride: int) -> tuple[int, int]:
    """What to add before and after `side` pixels so that `ceil(side / stride)` come out."""
    total = max((-(-side // stride) - 1) * stride + size - side, 0)
    return total // 2, total - total // 2


class SpatialConv(nnx.Module):
    """A `1 x size x size` convolution (VDM, section 3): every frame on its own, output `ceil(side / stride)` wide.

    `padding` is what lies beyond a frame's border: zeros, or with "wrap" the pixels of the opposite border, for
    pictures that are tori. Then there is no border, and a shift of the input shifts the output. `edges` is how many pixels
    are added before and after each side; None adds as many as that output width needs, the odd one after.
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
        padding: Padding = "zero",
        edges: tuple[int, int] | None = None,
    ):
        self.stride = stride
        self.padding: Padding = padding
        self.edges = edges
        self.kernel = nnx.Param(init(named(key, "kernel"), (size, size, inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs))

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h2 w2 d"]:
        y = per_frame(self._fold, x, self.kernel[...].astype(x.dtype))
        return add_bias(y, self.bias[...])

    def _fold(
        self, x: Float[Array, "b t h w c"], kernel: Float[Array, "kh kw c d"]
    ) -> Float[Array, "b t h2 w2 d"]:
        """The convolution without its bias, frames folded into the batch."""
        frames = rearrange(x, "b t h w c -> (b t) h w c")
        vertical, horizontal = (
            self.edges or _around(side, kernel.shape[0], self.stride) for side in x.shape[2:4]
        )
        pads = vertical, horizontal
        if self.stride == 1 and self.edges is None:
            y: Array = convolve_dense(frames, kernel, pads, self.padding)
        else:
            frames, pads = _pad(frames, pads, self.padding)
            y = _convolve(frames, kernel, pads, self.stride)
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
        kernel = self.kernel[...].astype(x.dtype)
        frames, half = x.shape[1], self.size // 2
        around = (half, self.size - 1 - half)
        padded = jnp.pad(x, [(0, 0), around, (0, 0), (0, 0), (0, 0)])
        if segment is not None:
            segments = jnp.pad(segment, [(0, 0), around], constant_values=-1)
        y: Array = spread(self.bias[...].astype(x.dtype), x.shape[:-1])
        # One product a tap on shifted slices, the only form that masks without indexing (docs/factorized.md).
        for tap in range(self.size):
            if abs(tap - half) >= frames:  # beyond the clip whichever frame it starts from
                continue
            neighbour = padded[:, tap : tap + frames]
            if segment is not None:
                same = segments[:, tap : tap + frames] == segment
                neighbour = jnp.where(
                    same[:, :, None, None, None], neighbour, jnp.zeros((), x.dtype)
                )
            y = y + neighbour @ kernel[tap]
        return y


class Pseudo3DConv(SpatialConv):
    """Make-A-Video's (2+1)D convolution (Eq. 2): a 2-D convolution, then a temporal one that starts as the identity.

    At initialisation, and for a clip of one frame whose temporal kernel has not moved, it is the 2-D convolution. Kernel and
    bias of the spatial half have the paths that they have in a `SpatialConv`, so an image model's weights are taken over
    by path.
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
        padding: Padding = "zero",
    ):
        super().__init__(inputs, outputs, key, size=size, init=init, padding=padding)
        self.temporal = TemporalConv(
            outputs, outputs, named(key, "temporal"), size=temporal_size, init=identity_taps
        )

    def __call__(
        self, x: Float[Array, "b t h w c"], segment: Int[Array, "b t"] | None = None
    ) -> Float[Array, "b t h w d"]:
        return self.temporal(super().__call__(x), segment)
