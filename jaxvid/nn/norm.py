"""Normalisation. Statistics are float32 whatever the input's dtype; the result has the input's dtype.

Group normalisation takes its statistics per frame, over height, width and the channels of a group. A clip's
frames therefore never mix here, which joint image-video training needs and which makes a clip of one frame
the image model.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxvid.nn.linear import spread

# What the backward pass of `group_normalize` keeps: x, gain, and of every frame and channel the mean and 1 / deviation.
_Kept = tuple[Array, Array, Array, Array]


def _group_mean(values: Float[Array, "b t c"], groups: int) -> Float[Array, "b t c"]:
    """The mean over the channels of each group, at each of its channels."""
    b, t, c = values.shape
    means = values.reshape(b, t, groups, c // groups).mean(-1, keepdims=True)
    return jnp.broadcast_to(means, (b, t, groups, c // groups)).reshape(b, t, c)


def _over_pixels(values: Float[Array, "b t h w c"]) -> Float[Array, "b t c"]:
    return values.mean((2, 3))


def _at_pixels(values: Float[Array, "b t c"]) -> Float[Array, "b t 1 1 c"]:
    return values[:, :, None, None, :]


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def group_normalize(
    x: Float[Array, "b t h w c"],
    gain: Float[Array, "b t c"],
    offset: Float[Array, "b t c"],
    groups: int,
    eps: float,
) -> Float[Array, "b t h w c"]:
    """`(x - mean) / deviation * gain + offset` with the statistics of each frame's groups.

    `gain` and `offset` are float32. The gradient is written out because differentiation makes one that sums over frames,
    pixels and groups in ways that the CPU backend computes slowly and several times over (docs/factorized.md). Here all large
    sums are over the pixels of one frame's channel, two in each direction.
    """
    return _forward(x, gain, offset, groups, eps)[0]


def _forward(x: Array, gain: Array, offset: Array, groups: int, eps: float) -> tuple[Array, _Kept]:
    wide = x.astype(jnp.float32)
    mean = _group_mean(_over_pixels(wide), groups)
    centred = wide - _at_pixels(mean)
    rate = jax.lax.rsqrt(_group_mean(_over_pixels(jnp.square(centred)), groups) + eps)
    y = centred * _at_pixels(rate * gain) + _at_pixels(offset)
    return y.astype(x.dtype), (x, gain, mean, rate)


def _backward(groups: int, eps: float, kept: _Kept, g: Array) -> tuple[Array, ...]:
    """With u = (x - mean) rate: du = g gain, dx = rate (du - <du> - u <du u>), where <> is the mean over the group."""
    del eps
    x, gain, mean, rate = kept
    wide = g.astype(jnp.float32)
    u = (x.astype(jnp.float32) - _at_pixels(mean)) * _at_pixels(rate)
    pixels = x.shape[2] * x.shape[3]
    along, level = _over_pixels(wide * u), _over_pixels(wide)
    dx = wide * _at_pixels(rate * gain) - (
        _at_pixels(rate * _group_mean(gain * level, groups))
        + u * _at_pixels(rate * _group_mean(gain * along, groups))
    )
    return dx.astype(x.dtype), pixels * along, pixels * level


group_normalize.defvjp(_forward, _backward)


class GroupNorm(nnx.Module):
    """Per-frame group normalisation (Wu & He 2018) over `[b, t, h, w, c]`.

    `groups` is lowered to the largest divisor of `channels` not above it. `modulation` is a pair (s, d) of a scale and a
    shift for each frame and channel, `y (1 + s) + d` (Dhariwal & Nichol 2021, AdaGN).
    """

    def __init__(self, channels: int, *, groups: int = 32, eps: float = 1e-5):
        self.groups = max(g for g in range(1, min(groups, channels) + 1) if channels % g == 0)
        self.eps = eps
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(
        self,
        x: Float[Array, "b t h w c"],
        modulation: tuple[Float[Array, "b t c"], Float[Array, "b t c"]] | None = None,
    ) -> Float[Array, "b t h w c"]:
        gain: Array = spread(self.scale[...].astype(jnp.float32), x.shape[:2])
        offset: Array = spread(self.bias[...].astype(jnp.float32), x.shape[:2])
        if modulation is not None:
            scale, shift = (part.astype(jnp.float32) for part in modulation)
            gain, offset = gain * (1.0 + scale), offset * (1.0 + scale) + shift
        return group_normalize(x, gain, offset, self.groups, self.eps)


class LayerNorm(nnx.Module):
    """Layer normalisation (Ba et al. 2016) over the last axis."""

    def __init__(self, channels: int, *, eps: float = 1e-5):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(self, x: Float[Array, "*axes c"]) -> Float[Array, "*axes c"]:
        wide = x.astype(jnp.float32)
        mean = wide.mean(-1, keepdims=True)
        variance = jnp.square(wide - mean).mean(-1, keepdims=True)
        y = (wide - mean) * jax.lax.rsqrt(variance + self.eps)
        scale, bias = (each[...].astype(jnp.float32) for each in (self.scale, self.bias))
        return (y * scale + bias).astype(x.dtype)
