"""Blocks of the text-to-image U-Nets whose weights are public, on `b t h w c`: every frame on its own.

`ResidualBlock` is Dhariwal & Nichol's (2021); `SpatialTransformer` latent diffusion's (Rombach et al. 2022, appendix E.2.1);
`JointAttention` GLIDE's and Imagen's, where the text's tokens have keys and values of their own beside the pixels'. Submodules
have the names of the published checkpoints, from which `jaxvid.weights` reads them.

Symbols: e embedding of time and labels, n tokens of a context (a text, an image), d their width. A context `b n d` serves
all frames of its example, one of `b t n d` has its own tokens for each frame.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float, Key

from jaxvid.core.rng import named
from jaxvid.nn.attention import MultiHeadAttention, attend
from jaxvid.nn.conv import Pseudo3DConv, SpatialConv
from jaxvid.nn.linear import Linear, fan_in
from jaxvid.nn.norm import GroupNorm, LayerNorm

Activation = Literal["silu", "gelu"]
Resampling = Literal["none", "down", "up"]


@dataclass(frozen=True)
class BlockConfig:
    """What all residual blocks of a network share.

    groups, eps: of the group norms. modulation: the embedding is added before the second norm ("shift"), or scales and
    shifts what leaves it ("scale_shift"). raw_embedding: the embedding enters without the activation. divisor: the sum of a
    block's input and output is divided by it.
    """

    groups: int = 32
    eps: float = 1e-5
    activation: Activation = "silu"
    modulation: Literal["shift", "scale_shift"] = "shift"
    raw_embedding: bool = False
    divisor: float = 1.0


def activate(x: Array, kind: Activation) -> Array:
    """SiLU, or GELU with the exact normal distribution."""
    return jax.nn.silu(x) if kind == "silu" else jax.nn.gelu(x, approximate=False)


def halve(x: Float[Array, "b t h w c"]) -> Float[Array, "b t h2 w2 c"]:
    """The mean of each 2x2 square; an odd side loses its last row."""
    height, width = x.shape[2] // 2 * 2, x.shape[3] // 2 * 2
    squares = rearrange(x[:, :, :height, :width], "b t (h y) (w x) c -> b t h w (y x) c", y=2, x=2)
    return squares.mean(-2)


def double(
    x: Float[Array, "b t h w c"], size: tuple[int, int] | None = None
) -> Float[Array, "b t h2 w2 c"]:
    """Each pixel four times, cut to `size` (height, width)."""
    x = jnp.repeat(jnp.repeat(x, 2, axis=2), 2, axis=3)
    return x if size is None else x[:, :, : size[0], : size[1]]


class ResidualBlock(nnx.Module):
    """Norm, activation, convolution, twice, with the embedding in between; `resample` halves or doubles the sides first.

    pseudo3d: a temporal convolution follows each spatial one (Make-A-Video, Eq. 2).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedding: int | None,
        config: BlockConfig,
        key: Key[Array, ""],
        *,
        resample: Resampling = "none",
        pseudo3d: bool = False,
    ):
        conv = Pseudo3DConv if pseudo3d else SpatialConv
        self.config = config
        self.resample: Resampling = resample
        self.norm1 = GroupNorm(inputs, groups=config.groups, eps=config.eps)
        self.conv1 = conv(inputs, outputs, named(key, "conv1"))
        wide = outputs * (2 if config.modulation == "scale_shift" else 1)
        self.time_emb_proj = (
            None if embedding is None else Linear(embedding, wide, named(key, "time_emb_proj"))
        )
        self.norm2 = GroupNorm(outputs, groups=config.groups, eps=config.eps)
        self.conv2 = conv(outputs, outputs, named(key, "conv2"))
        self.conv_shortcut = (
            None
            if inputs == outputs
            else SpatialConv(inputs, outputs, named(key, "conv_shortcut"), size=1)
        )

    def __call__(
        self,
        x: Float[Array, "b t h w c"],
        embedding: Float[Array, "b #t e"] | None = None,
        size: tuple[int, int] | None = None,
    ) -> Float[Array, "b t h2 w2 d"]:
        """`size` is what to cut a doubled side to."""
        kind, modulation = self.config.activation, None
        y = activate(self.norm1(x), kind)
        if self.resample == "down":
            x, y = halve(x), halve(y)
        elif self.resample == "up":
            x, y = double(x, size), double(y, size)
        y = self.conv1(y)
        if self.time_emb_proj is not None:
            assert embedding is not None, "this block takes an embedding"
            e = embedding if self.config.raw_embedding else activate(embedding, kind)
            e = self.time_emb_proj(e.astype(x.dtype))
            if self.config.modulation == "shift":
                y = y + e[:, :, None, None]
            else:
                scale, shift = jnp.split(e, 2, axis=-1)
                modulation = scale, shift
        y = self.conv2(activate(self.norm2(y, modulation), kind))
        if self.conv_shortcut is not None:
            x = self.conv_shortcut(x)
        return (x + y) / self.config.divisor


class Downsample(nnx.Module):
    """Halves the sides with a convolution of stride 2; a pixel of zeros before and after each side."""

    def __init__(self, channels: int, key: Key[Array, ""]):
        self.conv = SpatialConv(channels, channels, named(key, "conv"), stride=2, edges=(1, 1))

    def __call__(
        self, x: Float[Array, "b t h w c"], embedding: Float[Array, "b #t e"] | None = None
    ) -> Float[Array, "b t h2 w2 c"]:
        return self.conv(x)


class Upsample(nnx.Module):
    """Doubles the sides by repetition, then a convolution."""

    def __init__(self, channels: int, key: Key[Array, ""]):
        self.conv = SpatialConv(channels, channels, named(key, "conv"))

    def __call__(
        self,
        x: Float[Array, "b t h w c"],
        embedding: Float[Array, "b #t e"] | None = None,
        size: tuple[int, int] | None = None,
    ) -> Float[Array, "b t h2 w2 c"]:
        return self.conv(double(x, size))


class FeedForward(nnx.Module):
    """A hidden layer four times as wide, gated by GELU (Shazeer 2020, GEGLU)."""

    def __init__(self, inputs: int, key: Key[Array, ""], *, outputs: int | None = None):
        hidden = 4 * inputs
        self.expand = Linear(inputs, 2 * hidden, named(key, "expand"))
        self.contract = Linear(hidden, outputs or inputs, named(key, "contract"))

    def __call__(self, x: Float[Array, "*axes c"]) -> Float[Array, "*axes d"]:
        value, gate = jnp.split(self.expand(x), 2, axis=-1)
        return self.contract(value * jax.nn.gelu(gate, approximate=False))


class TransformerBlock(nnx.Module):
    """Attention, attention, feed-forward, each a residual normalised before it.

    attn1 looks at the sequence itself, or with `only_context` at the context; attn2 at the context, or without one
    (`context` None) at the sequence again.
    """

    def __init__(
        self,
        width: int,
        head_dim: int,
        key: Key[Array, ""],
        *,
        context: int | None,
        only_context: bool = False,
    ):
        self.only_context = only_context
        self.norm1 = LayerNorm(width)
        self.attn1 = MultiHeadAttention(
            width,
            head_dim,
            named(key, "attn1"),
            context_channels=context if only_context else None,
            out_init=fan_in,
        )
        self.norm2 = LayerNorm(width)
        self.attn2 = MultiHeadAttention(
            width, head_dim, named(key, "attn2"), context_channels=context, out_init=fan_in
        )
        self.norm3 = LayerNorm(width)
        self.ff = FeedForward(width, named(key, "ff"))

    def __call__(
        self,
        x: Float[Array, "m i c"],
        context: Float[Array, "b n d"] | None = None,
        *,
        mask: Bool[Array, "b n"] | None = None,
        places: Float[Array, "i c"] | None = None,
    ) -> Float[Array, "m i c"]:
        """M is a multiple of b: consecutive sequences share a context. `places` is added to what the attentions see."""
        y = _placed(self.norm1(x), places)
        x = x + look(self.attn1, y, context if self.only_context else None, mask)
        x = x + look(self.attn2, _placed(self.norm2(x), places), context, mask)
        return x + self.ff(self.norm3(x))


def _placed(x: Array, places: Array | None) -> Array:
    return x if places is None else x + places.astype(x.dtype)


def look(
    attention: MultiHeadAttention,
    x: Float[Array, "m i c"],
    context: Float[Array, "b n d"] | None,
    mask: Bool[Array, "b n"] | None = None,
) -> Float[Array, "m i c"]:
    """Attention of sequences to contexts that several consecutive ones share, without repeating them; without one, to themselves."""
    if context is None:
        return attention(x)
    together = x.reshape(context.shape[0], -1, x.shape[-1])
    y = attention(
        together, context.astype(x.dtype), mask=None if mask is None else mask[:, None, :]
    )
    return y.reshape(x.shape)


def by_frame(
    context: Float[Array, "b n d"] | Float[Array, "b t n d"],
) -> Float[Array, "m n d"]:
    """The contexts as rows: one an example, or one a frame."""
    return rearrange(context, "b t n d -> (b t) n d") if context.ndim == 4 else context


class SpatialTransformer(nnx.Module):
    """Transformer blocks over the pixels of each frame, between two projections, with residual.

    linear: the projections are dense layers on tokens (Stable Diffusion 2) instead of 1x1 convolutions: the same
    mathematics, stored in another shape.
    """

    def __init__(
        self,
        channels: int,
        head_dim: int,
        depth: int,
        context: int | None,
        key: Key[Array, ""],
        *,
        groups: int = 32,
        linear: bool = False,
        only_context: bool = False,
    ):
        self.norm = GroupNorm(channels, groups=groups, eps=1e-6)
        self.proj_in = projection(channels, linear, named(key, "proj_in"))
        self.transformer_blocks = nnx.List(
            [
                TransformerBlock(
                    channels,
                    head_dim,
                    named(key, "transformer_blocks", index),
                    context=context,
                    only_context=only_context,
                )
                for index in range(depth)
            ]
        )
        self.proj_out = projection(channels, linear, named(key, "proj_out"))

    def __call__(
        self,
        x: Float[Array, "b t h w c"],
        context: Float[Array, "b n d"] | Float[Array, "b t n d"] | None = None,
        mask: Bool[Array, "b n"] | None = None,
    ) -> Float[Array, "b t h w c"]:
        b, t, h, w, _ = x.shape
        y = rearrange(self.proj_in(self.norm(x)), "b t h w c -> (b t) (h w) c")
        rows = None if context is None else by_frame(context)
        for block in self.transformer_blocks:
            y = block(y, rows, mask=mask)
        y = rearrange(y, "(b t) (h w) c -> b t h w c", b=b, t=t, h=h, w=w)
        return x + self.proj_out(y)


def projection(channels: int, linear: bool, key: Key[Array, ""]) -> Linear | SpatialConv:
    """A dense layer over channels, stored as one or as a 1x1 convolution."""
    if linear:
        return Linear(channels, channels, key)
    return SpatialConv(channels, channels, key, size=1)


class JointAttention(nnx.Module):
    """Attention of a frame's pixels to the context's tokens and, unless `only_context`, to themselves, with residual.

    context_norm: what the tokens pass first; "group" takes its statistics over the tokens too.
    """

    def __init__(
        self,
        channels: int,
        head_dim: int,
        context: int,
        key: Key[Array, ""],
        *,
        groups: int = 32,
        only_context: bool = False,
        context_norm: Literal["none", "layer", "group"] = "none",
    ):
        self.head_dim = head_dim
        self.only_context = only_context
        self.group_norm = GroupNorm(channels, groups=groups)
        norms = {"none": lambda _: None, "layer": LayerNorm, "group": GroupNorm}
        self.norm_cross = norms[context_norm](context)
        self.query = Linear(channels, channels, named(key, "query"))
        self.key, self.value = (
            None if only_context else Linear(channels, channels, named(key, name))
            for name in ("key", "value")
        )
        self.context_key = Linear(context, channels, named(key, "context_key"))
        self.context_value = Linear(context, channels, named(key, "context_value"))
        self.out = Linear(channels, channels, named(key, "out"))

    def __call__(
        self,
        x: Float[Array, "b t h w c"],
        context: Float[Array, "b n d"],
        mask: Bool[Array, "b n"] | None = None,
    ) -> Float[Array, "b t h w c"]:
        b, t, h, w, _ = x.shape
        heads = "b i (n d) -> b i n d"
        pixels = rearrange(self.group_norm(x), "b t h w c -> (b t) (h w) c")
        tokens = self._normalized(context.astype(x.dtype))
        keys, values = (
            jnp.repeat(rearrange(layer(tokens), heads, d=self.head_dim), t, axis=0)
            for layer in (self.context_key, self.context_value)
        )
        seen = None
        if mask is not None:
            seen = jnp.repeat(mask, t, axis=0)
        if self.key is not None and self.value is not None:
            own = (
                rearrange(layer(pixels), heads, d=self.head_dim) for layer in (self.key, self.value)
            )
            keys, values = (
                jnp.concatenate(pair, axis=1) for pair in zip((keys, values), own, strict=True)
            )
            if seen is not None:
                seen = jnp.pad(seen, ((0, 0), (0, h * w)), constant_values=True)
        query = rearrange(self.query(pixels), heads, d=self.head_dim)
        y = attend(query, keys, values, mask=None if seen is None else seen[:, None, :])
        y = self.out(rearrange(y, "b i n d -> b i (n d)"))
        return x + rearrange(y, "(b t) (h w) c -> b t h w c", b=b, t=t, h=h, w=w)

    def _normalized(self, context: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        if isinstance(self.norm_cross, GroupNorm):
            return self.norm_cross(context[:, None, :, None, :])[:, 0, :, 0]
        return context if self.norm_cross is None else self.norm_cross(context)


class TimeEmbedding(nnx.Module):
    """Two dense layers on features of a number."""

    def __init__(
        self,
        inputs: int,
        width: int,
        key: Key[Array, ""],
        *,
        outputs: int | None = None,
        activation: Activation = "silu",
    ):
        self.activation: Activation = activation
        self.linear_1 = Linear(inputs, width, named(key, "linear_1"))
        self.linear_2 = Linear(width, outputs or width, named(key, "linear_2"))

    def __call__(self, x: Float[Array, "*axes c"]) -> Float[Array, "*axes e"]:
        return self.linear_2(activate(self.linear_1(x), self.activation))
