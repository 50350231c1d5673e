"""Temporal layers of the public video models, on `b t h w c`: what stands after, or inside, an image model's blocks.

    TemporalConvolutions, TemporalTransformer   ModelScope (Wang et al. 2023, arXiv 2308.06571, section 3.2), ZeroScope
    TemporalTransformer with places             AnimateDiff's motion module (Guo et al. 2024, arXiv 2307.04725, section 4.2)
    SpaceTimeBlock, SpaceTimeTransformer        Stable Video Diffusion (Blattmann et al. 2023, arXiv 2311.15127, appendix D)

The last two mix an image layer's output x with a temporal layer's y as `a x + (1 - a) y`, a the sigmoid of a learned number
(Video LDM, Blattmann et al. 2023, Eq. 2), and give the image model's x for frames that are `still`. Norms of temporal
layers take their statistics over the frames too. Submodules have the names of the published checkpoints.
"""

import math

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float, Key

from jaxvid.core.rng import named
from jaxvid.models.blocks import (
    BlockConfig,
    FeedForward,
    ResidualBlock,
    TimeEmbedding,
    TransformerBlock,
    by_frame,
    look,
)
from jaxvid.nn.attention import MultiHeadAttention
from jaxvid.nn.conv import TemporalConv
from jaxvid.nn.embedding import sinusoidal
from jaxvid.nn.linear import Linear, fan_in, zeros
from jaxvid.nn.norm import GroupNorm, LayerNorm


def over_clip(norm: GroupNorm, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
    """Group normalisation with the statistics of all frames together."""
    together = rearrange(x, "b t h w c -> b 1 (t h) w c")
    return norm(together).reshape(x.shape)


class TemporalConvolutions(nnx.Module):
    """Four temporal convolutions with norms before them, with residual; the last begins as zero."""

    def __init__(self, channels: int, key: Key[Array, ""], *, groups: int = 32):
        self.norms = nnx.List([GroupNorm(channels, groups=groups) for _ in range(4)])
        self.convs = nnx.List(
            [
                TemporalConv(
                    channels,
                    channels,
                    named(key, "convs", index),
                    init=zeros if index == 3 else fan_in,
                )
                for index in range(4)
            ]
        )

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
        y = x
        for norm, conv in zip(self.norms, self.convs, strict=True):
            y = conv(jax.nn.silu(over_clip(norm, y)))
        return x + y


def interleaved_sinusoids(length: int, width: int) -> Float[Array, "t c"]:
    """Vaswani et al.'s (2017) positions: sine and cosine of each frequency side by side, frequencies 10000^(-2i/width)."""
    rates = jnp.exp(-math.log(10_000.0) / width * jnp.arange(0, width, 2, dtype=jnp.float32))
    angles = jnp.arange(length, dtype=jnp.float32)[:, None] * rates
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], -1).reshape(length, -1)[:, :width]


class TemporalTransformer(nnx.Module):
    """Transformer blocks over the frames of each pixel, between two dense layers, with residual.

    width: heads times head_dim, which may differ from the channels. places: whether the frames' positions are added to what
    the attentions see. The last layer begins as zero, so that an image model's frames stay what they were.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        head_dim: int,
        key: Key[Array, ""],
        *,
        groups: int = 32,
        places: bool = False,
    ):
        self.places = places
        self.norm = GroupNorm(channels, groups=groups, eps=1e-6)
        self.proj_in = Linear(channels, width, named(key, "proj_in"))
        self.transformer_blocks = nnx.List(
            [TransformerBlock(width, head_dim, named(key, "transformer_blocks", 0), context=None)]
        )
        self.proj_out = Linear(width, channels, named(key, "proj_out"), init=zeros)

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
        b, t, h, w, _ = x.shape
        y = self.proj_in(rearrange(over_clip(self.norm, x), "b t h w c -> (b h w) t c"))
        places = interleaved_sinusoids(t, y.shape[-1]) if self.places else None
        for block in self.transformer_blocks:
            y = block(y, places=places)
        y = rearrange(self.proj_out(y), "(b h w) t c -> b t h w c", b=b, h=h, w=w)
        return x + y


class Mixer(nnx.Module):
    """`a x + (1 - a) y` with `a = sigmoid(mix_factor)`; x where `still`. `turned`: `(1 - a) x + a y`."""

    def __init__(self, initial: float = 0.5, *, turned: bool = False):
        self.turned = turned
        self.mix_factor = nnx.Param(jnp.full(1, initial))

    def __call__(
        self,
        x: Float[Array, "b t h w c"],
        y: Float[Array, "b t h w c"],
        still: Bool[Array, "b t"] | None,
    ) -> Float[Array, "b t h w c"]:
        a = jax.nn.sigmoid(self.mix_factor[...].astype(jnp.float32)).astype(x.dtype)
        a = 1 - a if self.turned else a
        mixed = a * x + (1 - a) * y
        return mixed if still is None else jnp.where(still[:, :, None, None, None], x, mixed)


class TemporalResidualBlock(nnx.Module):
    """A residual block of temporal convolutions."""

    def __init__(
        self,
        channels: int,
        embedding: int | None,
        key: Key[Array, ""],
        *,
        groups: int = 32,
        eps: float = 1e-5,
    ):
        self.norm1 = GroupNorm(channels, groups=groups, eps=eps)
        self.conv1 = TemporalConv(channels, channels, named(key, "conv1"))
        self.time_emb_proj = (
            None if embedding is None else Linear(embedding, channels, named(key, "time_emb_proj"))
        )
        self.norm2 = GroupNorm(channels, groups=groups, eps=eps)
        self.conv2 = TemporalConv(channels, channels, named(key, "conv2"))

    def __call__(
        self, x: Float[Array, "b t h w c"], embedding: Float[Array, "b #t e"] | None = None
    ) -> Float[Array, "b t h w c"]:
        y = self.conv1(jax.nn.silu(over_clip(self.norm1, x)))
        if self.time_emb_proj is not None:
            assert embedding is not None, "this block takes an embedding"
            y = y + self.time_emb_proj(jax.nn.silu(embedding).astype(x.dtype))[:, :, None, None]
        return x + self.conv2(jax.nn.silu(over_clip(self.norm2, y)))


class SpaceTimeBlock(nnx.Module):
    """A residual block of an image model, and a temporal one on its output, mixed.

    turned: the mixture is the other way about, `(1 - a) x + a y`, as in the temporal decoder.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedding: int | None,
        config: BlockConfig,
        key: Key[Array, ""],
        *,
        temporal_eps: float | None = None,
        turned: bool = False,
        initial: float = 0.5,
    ):
        self.spatial_res_block = ResidualBlock(
            inputs, outputs, embedding, config, named(key, "spatial_res_block")
        )
        self.temporal_res_block = TemporalResidualBlock(
            outputs,
            embedding,
            named(key, "temporal_res_block"),
            groups=config.groups,
            eps=config.eps if temporal_eps is None else temporal_eps,
        )
        self.time_mixer = Mixer(initial, turned=turned)

    def __call__(
        self,
        x: Float[Array, "b t h w c"],
        embedding: Float[Array, "b #t e"] | None = None,
        still: Bool[Array, "b t"] | None = None,
    ) -> Float[Array, "b t h w d"]:
        x = self.spatial_res_block(x, embedding)
        y = self.temporal_res_block(x, embedding)
        return self.time_mixer(x, y, still)


class TemporalBlock(nnx.Module):
    """Feed-forward, attention over frames, attention to the context, feed-forward, each a residual normalised before it."""

    def __init__(self, width: int, head_dim: int, context: int, key: Key[Array, ""]):
        self.norm_in = LayerNorm(width)
        self.ff_in = FeedForward(width, named(key, "ff_in"))
        self.norm1 = LayerNorm(width)
        self.attn1 = MultiHeadAttention(width, head_dim, named(key, "attn1"), out_init=fan_in)
        self.norm2 = LayerNorm(width)
        self.attn2 = MultiHeadAttention(
            width, head_dim, named(key, "attn2"), context_channels=context, out_init=fan_in
        )
        self.norm3 = LayerNorm(width)
        self.ff = FeedForward(width, named(key, "ff"))

    def __call__(
        self, x: Float[Array, "m t c"], context: Float[Array, "b n d"]
    ) -> Float[Array, "m t c"]:
        x = x + self.ff_in(self.norm_in(x))
        x = x + self.attn1(self.norm1(x))
        x = x + look(self.attn2, self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpaceTimeTransformer(nnx.Module):
    """Each spatial transformer block followed by a temporal one that knows the frames' numbers, mixed.

    The temporal blocks attend to the context of the first frame, as published.
    """

    def __init__(
        self,
        channels: int,
        head_dim: int,
        depth: int,
        context: int,
        key: Key[Array, ""],
        *,
        groups: int = 32,
    ):
        self.norm = GroupNorm(channels, groups=groups, eps=1e-6)
        self.proj_in = Linear(channels, channels, named(key, "proj_in"))
        self.transformer_blocks = nnx.List(
            [
                TransformerBlock(
                    channels, head_dim, named(key, "transformer_blocks", index), context=context
                )
                for index in range(depth)
            ]
        )
        self.temporal_transformer_blocks = nnx.List(
            [
                TemporalBlock(
                    channels, head_dim, context, named(key, "temporal_transformer_blocks", index)
                )
                for index in range(depth)
            ]
        )
        self.time_pos_embed = TimeEmbedding(
            channels, 4 * channels, named(key, "time_pos_embed"), outputs=channels
        )
        self.time_mixer = Mixer()
        self.proj_out = Linear(channels, channels, named(key, "proj_out"))

    def __call__(
        self,
        x: Float[Array, "b t h w c"],
        context: Float[Array, "b n d"] | Float[Array, "b t n d"],
        mask: Bool[Array, "b n"] | None = None,
        still: Bool[Array, "b t"] | None = None,
    ) -> Float[Array, "b t h w c"]:
        b, t, h, w, c = x.shape
        number = sinusoidal(jnp.arange(t), c, offset=0.0, cosines_first=True).astype(x.dtype)
        number = self.time_pos_embed(number)[None, :, None, None]
        first = context[:, 0] if context.ndim == 4 else context
        y = self.proj_in(self.norm(x))
        pairs = zip(self.transformer_blocks, self.temporal_transformer_blocks, strict=True)
        for spatial, temporal in pairs:
            frames = rearrange(y, "b t h w c -> (b t) (h w) c")
            y = spatial(frames, by_frame(context), mask=mask).reshape(b, t, h, w, c)
            pixels = rearrange(y + number, "b t h w c -> (b h w) t c")
            mixed = rearrange(temporal(pixels, first), "(b h w) t c -> b t h w c", b=b, h=h, w=w)
            y = self.time_mixer(y, mixed, still)
        return x + self.proj_out(y)
