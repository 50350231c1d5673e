"""LPIPS, the learned perceptual image patch similarity (Zhang et al. 2018), as version 0.1 of its authors' code has it.

Symbols, after their Eq. 1: y_l, features of tap l, of unit length over the channels c; w_l >= 0, weights of channels:

    d(x, x0) = sum_l mean_hw sum_c w_lc (y_lhwc - y0_lhwc)^2                                            (1)

The paper's equation squares w; the code that gave the published weights does not. The features are those of a network
trained to classify, AlexNet ("alex", which the authors advise for scores) or VGG16 ("vgg", often taken as a loss): the
outputs of five of its ReLUs. The weights belong to their authors and are loaded by `jaxvid.weights.lpips`.

Images are in [-1, 1], as everywhere in jaxvid and in that code. All is float32, and a TPU rounds no factor to bfloat16:
close images differ in the last digits of their features.
"""

from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from jaxvid.core.errors import UserError
from jaxvid.core.rng import named
from jaxvid.nn.linear import fan_in

Network: TypeAlias = Literal["alex", "vgg"]

# What the two networks were trained on: the mean and deviation of ImageNet's colours, for images in [-1, 1].
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
EPSILON = 1e-10  # beside the length of a feature vector


class Layer(NamedTuple):
    """A convolution and its ReLU.

    pad: zeros at each border. pool: side of the max pooling before it, which keeps every second place; 0 for none.
    tap: whether its output is compared.
    """

    width: int
    size: int = 3
    stride: int = 1
    pad: int = 1
    pool: int = 0
    tap: bool = False


LAYERS: dict[Network, tuple[Layer, ...]] = {
    "alex": (
        Layer(64, size=11, stride=4, pad=2, tap=True),
        Layer(192, size=5, pad=2, pool=3, tap=True),
        Layer(384, pool=3, tap=True),
        Layer(256, tap=True),
        Layer(256, tap=True),
    ),
    "vgg": (
        *(Layer(64), Layer(64, tap=True)),
        *(Layer(128, pool=2), Layer(128, tap=True)),
        *(Layer(256, pool=2), Layer(256), Layer(256, tap=True)),
        *(Layer(512, pool=2), Layer(512), Layer(512, tap=True)),
        *(Layer(512, pool=2), Layer(512), Layer(512, tap=True)),
    ),
}


def smallest_side(network: Network) -> int:
    """The fewest pixels a side that leave one place at the last tap."""
    side = 1
    for layer in reversed(LAYERS[network]):
        side = max((side - 1) * layer.stride + layer.size - 2 * layer.pad, 1)
        side = (side - 1) * 2 + layer.pool if layer.pool else side
    return side


class Convolution(nnx.Module):
    """The parameters of a `Layer`; kernels are [kh, kw, in, out]."""

    def __init__(self, inputs: int, layer: Layer, key: Key[Array, ""]):
        shape = (layer.size, layer.size, inputs, layer.width)
        self.kernel = nnx.Param(fan_in(named(key, "kernel"), shape))
        self.bias = nnx.Param(jnp.zeros(layer.width))

    def __call__(self, x: Float[Array, "b h w c"], layer: Layer) -> Float[Array, "b h2 w2 d"]:
        y = jax.lax.conv_general_dilated(
            x,
            self.kernel[...],
            (layer.stride, layer.stride),
            [(layer.pad, layer.pad)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision="highest",
        )
        return y + self.bias[...]


class LPIPS(nnx.Module):
    """The distance of two images, >= 0 and 0 for equal ones. The heads start as means over channels."""

    def __init__(self, network: Network, key: Key[Array, ""]):
        self.network: Network = network
        layers = LAYERS[network]
        inputs = [3, *(layer.width for layer in layers)]
        self.convolutions = nnx.List(
            [
                Convolution(inputs[i], layer, named(key, "convolutions", i))
                for i, layer in enumerate(layers)
            ]
        )
        self.heads = nnx.List(
            [nnx.Param(jnp.full(layer.width, 1 / layer.width)) for layer in layers if layer.tap]
        )

    def features(self, images: Float[Array, "b h w 3"]) -> list[Float[Array, "b h2 w2 c"]]:
        """The unit features y_l at the five taps. Raises UserError for images that are too small."""
        _, height, width, _ = images.shape
        least = smallest_side(self.network)
        if min(height, width) < least:
            raise UserError(
                f"images of {width}x{height} pixels are too small for LPIPS on {self.network}; "
                f"give {least} or more a side"
            )
        found = []
        with jax.named_scope(f"lpips_{self.network}"):
            x = (images.astype(jnp.float32) - jnp.array(SHIFT)) / jnp.array(SCALE)
            for layer, convolution in zip(LAYERS[self.network], self.convolutions, strict=True):
                x = jax.nn.relu(convolution(pooled(x, layer.pool) if layer.pool else x, layer))
                if layer.tap:
                    found.append(unit(x))
        return found

    def __call__(
        self, images: Float[Array, "b h w 3"], others: Float[Array, "b h w 3"]
    ) -> Float[Array, "b"]:
        """Eq. 1 for each pair."""
        total = jnp.zeros(images.shape[0])
        pairs = zip(self.features(images), self.features(others), self.heads, strict=True)
        for y, y0, head in pairs:
            total = total + jnp.sum(jnp.mean((y - y0) ** 2, axis=(1, 2)) * head[...], axis=-1)
        return total


def pooled(x: Float[Array, "b h w c"], side: int) -> Float[Array, "b h2 w2 c"]:
    """The largest of each `side x side` window, at every second place; windows beyond the border are left out."""
    return jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, (1, side, side, 1), (1, 2, 2, 1), "VALID"
    )


def unit(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Scales to unit length over the channels: x / (|x| + eps). Where |x| is 0, value and gradient are 0."""
    square = jnp.sum(x**2, axis=-1, keepdims=True)
    some = square > 0
    return jnp.where(some, x / (jnp.sqrt(jnp.where(some, square, 1.0)) + EPSILON), 0.0)
