"""The ways of writing each factorized layer that `factorized.py` compares.

A variant is `apply(params, x)` on `x[b, t, h, w, c]`; all variants of a group compute the same numbers from the same
parameters. Convolution kernels are [3, 3, c, c] in space and [3, c, c] in time, attention has [4, c, c] for query, key,
value and output, norms have [2, c] for scale and bias, blocks are stacked as [layers, 2, 3, 3, c, c].
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import lax

from jaxvid.nn.conv import convolve_dense
from jaxvid.nn.linear import spread
from jaxvid.nn.norm import group_normalize

Variant = Callable[[Any, jax.Array], jax.Array]
HEAD, LAYERS, NORM_GROUPS = 64, 4, 8


# Space


def fold(conv: Callable[[jax.Array, jax.Array], jax.Array]) -> Variant:
    def apply(kernel, x):
        return conv(x.reshape(-1, *x.shape[2:]), kernel).reshape(x.shape)

    return apply


def conv2d(x, kernel, padding="SAME"):
    return lax.conv_general_dilated(
        x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def rank5(view: Callable[[jax.Array], jax.Array]) -> Variant:
    def apply(kernel, x):
        layouts = ("NDHWC", "DHWIO", "NDHWC")
        return lax.conv_general_dilated(
            x, view(kernel), (1, 1, 1), "SAME", dimension_numbers=layouts
        )

    return apply


def conv_vmap(kernel, x):
    return jax.vmap(lambda frame: conv2d(frame, kernel), in_axes=1, out_axes=1)(x)


@jax.custom_vjp
def conv2d_own_gradients(x, kernel):
    return conv2d(x, kernel)


def _forward(x, kernel):
    return conv2d(x, kernel), (x, kernel)


def _backward(saved, g):
    """Both gradients as NHWC convolutions: of g with the flipped kernel, and of x with g (batch as channels)."""
    x, kernel = saved
    pads = [((n - 1) // 2, n - 1 - (n - 1) // 2) for n in kernel.shape[:2]]
    dx = conv2d(
        g, jnp.swapaxes(jnp.flip(kernel, (0, 1)), 2, 3), [(high, low) for low, high in pads]
    )
    dkernel = conv2d(jnp.transpose(x, (3, 1, 2, 0)), jnp.transpose(g, (1, 2, 0, 3)), pads)
    return dx, jnp.transpose(dkernel, (1, 2, 0, 3))


conv2d_own_gradients.defvjp(_forward, _backward)


RING = ((1, 1), (1, 1))


def torus_padded(x, kernel):
    return conv2d(jnp.pad(x, [(0, 0), *RING, (0, 0)], mode="wrap"), kernel, "VALID")


def torus_own_gradients(x, kernel):
    return convolve_dense(x, kernel, RING, "wrap")


# Time


def time_conv1d(kernel, x):
    b, _, h, w, _ = x.shape
    rows = rearrange(x, "b t h w c -> (b h w) t c")
    y = lax.conv_general_dilated(
        rows, kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
    )
    return rearrange(y, "(b h w) t c -> b t h w c", b=b, h=h, w=w)


def time_conv2d(conv: Callable[[jax.Array, jax.Array], jax.Array]) -> Variant:
    """2-D convolutions: all pixels as the second side, no transposition."""

    def apply(kernel, x):
        b, t, h, w, c = x.shape
        return conv(x.reshape(b, t, h * w, c), kernel[:, None]).reshape(x.shape)

    return apply


def time_rows(conv: Callable[[jax.Array, jax.Array], jax.Array]) -> Variant:
    """2-D convolutions: pixels in the batch, a second side of one."""

    def apply(kernel, x):
        b, _, h, w, _ = x.shape
        rows = rearrange(x, "b t h w c -> (b h w) t 1 c")
        y = conv(rows, kernel[:, None])
        return rearrange(y, "(b h w) t 1 c -> b t h w c", b=b, h=h, w=w)

    return apply


def time_shifts(kernel, x, segment=None):
    """One product a tap; with `segment[b, t]`, taps that enter another segment are masked (outside is segment -1)."""
    frames, half = x.shape[1], kernel.shape[0] // 2
    padded = jnp.pad(x, [(0, 0), (half, half)] + [(0, 0)] * 3)
    taps = [padded[:, i : i + frames] for i in range(kernel.shape[0])]
    if segment is not None:
        around = jnp.pad(segment, [(0, 0), (half, half)], constant_values=-1)
        same = [around[:, i : i + frames] == segment for i in range(kernel.shape[0])]
        zero = jnp.zeros((), x.dtype)
        taps = [
            jnp.where(keep[:, :, None, None, None], tap, zero)
            for keep, tap in zip(same, taps, strict=True)
        ]
    products = [tap @ kernel[i] for i, tap in enumerate(taps)]
    return sum(products[1:], products[0])


def time_shifts_masked(kernel, x):
    return time_shifts(kernel, x, jnp.zeros(x.shape[:2], jnp.int32))


def time_gather_masked(kernel, x):
    """The same by indexing: the compiler cannot see that neighbours are near, and gathers frames split over devices."""
    frames, y = x.shape[1], jnp.zeros_like(x)
    for tap in range(kernel.shape[0]):
        source = jnp.arange(frames) + tap - kernel.shape[0] // 2
        inside = ((source >= 0) & (source < frames))[None, :, None, None, None]
        neighbour = x[:, jnp.clip(source, 0, frames - 1)]
        y = y + jnp.where(inside, neighbour, jnp.zeros((), x.dtype)) @ kernel[tap]
    return y


# Attention: params [4, c, c] are query, key, value, out


def heads(kernels, tokens):
    return [(tokens @ kernel).reshape(*tokens.shape[:-1], -1, HEAD) for kernel in kernels[:3]]


def attend_einsum(kernels, tokens, axes="bind,bjnd->bnij,bind"):
    """Softmax attention by two einsums; `axes` names query, key, scores and output."""
    scored, rest = axes.split("->")
    scores_axes, output_axes = rest.split(",")
    q, k, v = heads(kernels, tokens)
    scores = jnp.einsum(f"{scored}->{scores_axes}", q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores * HEAD**-0.5, axis=-1).astype(tokens.dtype)
    y = jnp.einsum(f"{scores_axes},{scored.split(',')[1]}->{output_axes}", weights, v)
    return y.reshape(tokens.shape) @ kernels[3]


def attend_library(kernels, tokens):
    return jax.nn.dot_product_attention(*heads(kernels, tokens)).reshape(tokens.shape) @ kernels[3]


def over_space(attend) -> Variant:
    def apply(kernels, x):
        b, t, h, w, c = x.shape
        return attend(kernels, x.reshape(b * t, h * w, c)).reshape(x.shape)

    return apply


def over_time(attend) -> Variant:
    def apply(kernels, x):
        b, _, h, w, _ = x.shape
        y = attend(kernels, rearrange(x, "b t h w c -> (b h w) t c"))
        return rearrange(y, "(b h w) t c -> b t h w c", b=b, h=h, w=w)

    return apply


def direct(axes: str) -> Variant:
    def apply(kernels, x):
        b, t, h, w, c = x.shape
        return attend_einsum(kernels, x.reshape(b, t, h * w, c), axes).reshape(x.shape)

    return apply


# Norms


def normed(norm: Variant) -> Variant:
    """Between two SiLUs: in a network neither what comes in nor its gradient is there for nothing."""
    return lambda params, x: jax.nn.silu(norm(params, jax.nn.silu(x)))


def norm_by_groups(params, x):
    """Means over pixels and the channels of a group at once, as the formula says."""
    b, t, h, w, c = x.shape
    grouped = x.astype(jnp.float32).reshape(b, t, h * w, NORM_GROUPS, c // NORM_GROUPS)
    mean = grouped.mean((2, 4), keepdims=True)
    variance = jnp.square(grouped - mean).mean((2, 4), keepdims=True)
    y = ((grouped - mean) * lax.rsqrt(variance + 1e-5)).reshape(x.shape)
    return (y * params[0] + params[1]).astype(x.dtype)


def norm_own_gradients(params, x):
    """Means over pixels first; the gradient written out."""
    gain, offset = (spread(row.astype(jnp.float32), x.shape[:2]) for row in params)
    return group_normalize(x, gain, offset, NORM_GROUPS, 1e-5)


# Blocks


def scanned(layer: Variant) -> Variant:
    """LAYERS residual layers in a loop."""

    def apply(stack, x):
        return lax.scan(lambda x, kernel: (x + layer(kernel, jax.nn.silu(x)), None), x, stack)[0]

    return apply


def blocks(conv, unroll: int, remat: bool = False) -> Variant:
    """LAYERS residual blocks of two convolutions: stacked parameters, scanned or unrolled."""

    def block(x, kernels):
        h = fold(conv)(kernels[0], jax.nn.silu(x))
        return x + fold(conv)(kernels[1], jax.nn.silu(h)), None

    def apply(stack, x):
        body = jax.checkpoint(block) if remat else block
        return lax.scan(body, x, stack, unroll=unroll)[0]

    return apply


GROUPS: dict[str, tuple[tuple[str, ...], dict[str, Variant]]] = {
    "1x3x3 convolution": (
        ("3", "3", "c", "c"),
        {
            "frames in the batch": fold(conv2d),
            "rank 5": rank5(lambda kernel: kernel[None]),
            "vmap over frames": conv_vmap,
            "frames in the batch, own gradients": fold(conv2d_own_gradients),
        },
    ),
    "3x1x1 convolution": (
        ("3", "c", "c"),
        {
            "shifted products": time_shifts,
            "shifted products, masked": time_shifts_masked,
            "indexed products, masked": time_gather_masked,
            "rank 5": rank5(lambda kernel: kernel[:, None, None]),
            "pixels in the batch, 1-D": time_conv1d,
            "pixels in the batch, own gradients": time_rows(conv2d_own_gradients),
            "pixels as one side, 2-D": time_conv2d(conv2d),
            "pixels as one side, 2-D, own gradients": time_conv2d(conv2d_own_gradients),
        },
    ),
    "3x1x1 convolution in a scan": (
        ("L", "3", "c", "c"),
        {
            "shifted products": scanned(time_shifts),
            "shifted products, masked": scanned(time_shifts_masked),
            "indexed products, masked": scanned(time_gather_masked),
            "pixels in the batch, 1-D": scanned(time_conv1d),
            "pixels in the batch, own gradients": scanned(time_rows(conv2d_own_gradients)),
            "pixels as one side, 2-D, own gradients": scanned(time_conv2d(conv2d_own_gradients)),
        },
    ),
    "spatial attention": (
        ("4", "c", "c"),
        {
            "folded, einsum": over_space(attend_einsum),
            "folded, dot_product_attention": over_space(attend_library),
            "not folded, einsum": direct("btind,btjnd->btnij,btind"),
        },
    ),
    "temporal attention": (
        ("4", "c", "c"),
        {
            "folded, einsum": over_time(attend_einsum),
            "folded, dot_product_attention": over_time(attend_library),
            "not folded, einsum": direct("bipnd,bjpnd->bpnij,bipnd"),
        },
    ),
    "group norm": (
        ("2", "c"),
        {
            "over groups, differentiated": normed(norm_by_groups),
            "over pixels, own gradients": normed(norm_own_gradients),
        },
    ),
    "1x3x3 convolution on a torus": (
        ("3", "3", "c", "c"),
        {
            "padded, differentiated": fold(torus_padded),
            "own gradients": fold(torus_own_gradients),
        },
    ),
    "4 blocks": (
        ("L", "2", "3", "3", "c", "c"),
        {
            "unrolled": blocks(conv2d, LAYERS),
            "scan": blocks(conv2d, 1),
            "scan, own gradients": blocks(conv2d_own_gradients, 1),
            "unrolled, remat": blocks(conv2d, LAYERS, remat=True),
            "scan, remat": blocks(conv2d, 1, remat=True),
            "scan, remat, own gradients": blocks(conv2d_own_gradients, 1, remat=True),
        },
    ),
}
