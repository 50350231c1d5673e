"""The KL autoencoder of latent diffusion (Rombach et al. 2022, section 3.1) and its video decoder, on `b t h w c`.

The encoder gives mean and log-variance of a normal distribution of latents, sides 1 / 2^(levels - 1); every frame on its own.
The decoder is as independent of the other frames, or temporal (Stable Video Diffusion, Blattmann et al. 2023, after Video
LDM's section 3.1.1): each residual block is mixed with one over time, and a temporal convolution comes last.

A model works on `scale (z - shift)`, the latents near unit variance; `encode` and `decode` hold the two numbers. Attributes
have the names of the published checkpoints.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float, Key

from jaxvid.core.rng import named
from jaxvid.models.blocks import BlockConfig, ResidualBlock, Upsample
from jaxvid.models.temporal import SpaceTimeBlock
from jaxvid.nn.attention import attend
from jaxvid.nn.conv import SpatialConv, TemporalConv
from jaxvid.nn.linear import Linear
from jaxvid.nn.norm import GroupNorm

LOWEST, HIGHEST = -30.0, 20.0  # bounds of the log-variance, as in the public code


@dataclass(frozen=True)
class AutoencoderConfig:
    """The defaults are those of Stable Diffusion 1.x.

    widths: of the levels, finest first. blocks: residual blocks a level; the decoder has one more. latents: their channels.
    attention: whether the middle has a block of it. moments: a 1x1 convolution stands behind the encoder and before the
    decoder (the temporal one has none before). scale, shift: of the latents that models see.
    """

    inputs: int = 3
    outputs: int = 3
    widths: tuple[int, ...] = (128, 256, 512, 512)
    blocks: int = 2
    latents: int = 4
    groups: int = 32
    attention: bool = True
    moments: bool = True
    temporal: bool = False
    scale: float = 0.18215
    shift: float = 0.0

    @property
    def block(self) -> BlockConfig:
        """What all residual blocks share."""
        return BlockConfig(groups=self.groups, eps=1e-6)

    @property
    def factor(self) -> int:
        """Pixels a side of a latent."""
        return 2 ** (len(self.widths) - 1)


class PixelAttention(nnx.Module):
    """Attention with one head over the pixels of each frame, with residual."""

    def __init__(self, channels: int, key: Key[Array, ""], *, groups: int = 32):
        self.group_norm = GroupNorm(channels, groups=groups, eps=1e-6)
        self.query = Linear(channels, channels, named(key, "query"))
        self.key = Linear(channels, channels, named(key, "key"))
        self.value = Linear(channels, channels, named(key, "value"))
        self.out = Linear(channels, channels, named(key, "out"))

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
        pixels = rearrange(self.group_norm(x), "b t h w c -> (b t) (h w) 1 c")
        y = self.out(attend(self.query(pixels), self.key(pixels), self.value(pixels)))
        return x + y.reshape(x.shape)


class LopsidedDownsample(nnx.Module):
    """Halves the sides with a convolution of stride 2; a pixel of zeros after each side alone."""

    def __init__(self, channels: int, key: Key[Array, ""]):
        self.conv = SpatialConv(channels, channels, named(key, "conv"), stride=2, edges=(0, 1))

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h2 w2 c"]:
        return self.conv(x)


class Blocks(nnx.Module):
    """Residual blocks one after the other, with what follows them: a level, or the middle with its attention."""

    def __init__(
        self,
        config: AutoencoderConfig,
        widths: list[int],
        width: int,
        key: Key[Array, ""],
        *,
        temporal: bool = False,
        attention: bool = False,
        sampler: Callable[[int, Key[Array, ""]], nnx.Module] | None = None,
    ):
        def make(inputs: int, key: Key[Array, ""]) -> ResidualBlock | SpaceTimeBlock:
            if not temporal:
                return ResidualBlock(inputs, width, None, config.block, key)
            return SpaceTimeBlock(
                inputs, width, None, config.block, key, temporal_eps=1e-5, turned=True, initial=0.0
            )

        self.resnets = nnx.List(
            [make(inputs, named(key, "resnets", i)) for i, inputs in enumerate(widths)]
        )
        self.attentions = (
            nnx.List([PixelAttention(width, named(key, "attentions", 0), groups=config.groups)])
            if attention
            else None
        )
        self.downsamplers, self.upsamplers = (
            nnx.List([kind(width, named(key, name, 0))]) if sampler is kind else None
            for name, kind in (("downsamplers", LopsidedDownsample), ("upsamplers", Upsample))
        )

    def __call__(
        self, x: Float[Array, "b t h w c"], still: Bool[Array, "b t"] | None = None
    ) -> Float[Array, "b t h2 w2 d"]:
        for index, resnet in enumerate(self.resnets):
            x = resnet(x, None, still) if isinstance(resnet, SpaceTimeBlock) else resnet(x)
            if index == 0 and self.attentions is not None:
                x = self.attentions[0](x)
        if self.downsamplers is not None:
            x = self.downsamplers[0](x)
        return x if self.upsamplers is None else self.upsamplers[0](x)


def middle(config: AutoencoderConfig, key: Key[Array, ""], *, temporal: bool = False) -> Blocks:
    """Block, attention, block at the coarsest level."""
    width = config.widths[-1]
    return Blocks(config, [width] * 2, width, key, temporal=temporal, attention=config.attention)


class Encoder(nnx.Module):
    """Frames to twice as many channels as latents: means, then log-variances."""

    def __init__(self, config: AutoencoderConfig, key: Key[Array, ""]):
        widths = config.widths
        self.conv_in = SpatialConv(config.inputs, widths[0], named(key, "conv_in"))
        levels, before = [], widths[0]
        for i, width in enumerate(widths):
            inputs = [before] + [width] * (config.blocks - 1)
            sampler = LopsidedDownsample if i + 1 < len(widths) else None
            levels.append(
                Blocks(config, inputs, width, named(key, "down_blocks", i), sampler=sampler)
            )
            before = width
        self.down_blocks = nnx.List(levels)
        self.mid_block = middle(config, named(key, "mid_block"))
        self.conv_norm_out = GroupNorm(before, groups=config.groups, eps=1e-6)
        self.conv_out = SpatialConv(before, 2 * config.latents, named(key, "conv_out"))

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h2 w2 d"]:
        x = self.conv_in(x)
        for level in self.down_blocks:
            x = level(x)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nnx.Module):
    """Latents to frames."""

    def __init__(self, config: AutoencoderConfig, key: Key[Array, ""]):
        widths, temporal = config.widths[::-1], config.temporal
        self.conv_in = SpatialConv(config.latents, widths[0], named(key, "conv_in"))
        self.mid_block = middle(config, named(key, "mid_block"), temporal=temporal)
        levels, before = [], widths[0]
        for i, width in enumerate(widths):
            inputs = [before] + [width] * config.blocks
            sampler = Upsample if i + 1 < len(widths) else None
            place = named(key, "up_blocks", i)
            levels.append(Blocks(config, inputs, width, place, temporal=temporal, sampler=sampler))
            before = width
        self.up_blocks = nnx.List(levels)
        self.conv_norm_out = GroupNorm(before, groups=config.groups, eps=1e-6)
        self.conv_out = SpatialConv(before, config.outputs, named(key, "conv_out"))
        outputs = config.outputs
        self.time_conv_out = (
            TemporalConv(outputs, outputs, named(key, "time_conv_out")) if temporal else None
        )

    def __call__(
        self, z: Float[Array, "b t h w c"], still: Bool[Array, "b t"] | None = None
    ) -> Float[Array, "b t h2 w2 d"]:
        x = self.mid_block(self.conv_in(z), still)
        for level in self.up_blocks:
            x = level(x, still)
        x = self.conv_out(jax.nn.silu(self.conv_norm_out(x)))
        return x if self.time_conv_out is None else self.time_conv_out(x)


class Autoencoder(nnx.Module):
    """See the module. `moments`, `encode` and `decode` are what callers need."""

    def __init__(self, config: AutoencoderConfig, key: Key[Array, ""]):
        self.config = config
        self.encoder = Encoder(config, named(key, "encoder"))
        self.decoder = Decoder(config, named(key, "decoder"))
        channels = {
            "quant_conv": 2 * config.latents if config.moments else 0,
            "post_quant_conv": config.latents if config.moments and not config.temporal else 0,
        }
        self.quant_conv, self.post_quant_conv = (
            SpatialConv(width, width, named(key, name), size=1) if width else None
            for name, width in channels.items()
        )

    def moments(
        self, x: Float[Array, "b t h w c"]
    ) -> tuple[Float[Array, "b t h2 w2 d"], Float[Array, "b t h2 w2 d"]]:
        """Mean and log-variance (within -30 and 20) of the latents of frames in [-1, 1], unscaled."""
        y = self.encoder(x)
        if self.quant_conv is not None:
            y = self.quant_conv(y)
        mean, log_variance = jnp.split(y, 2, axis=-1)
        return mean, jnp.clip(log_variance, LOWEST, HIGHEST)

    def encode(
        self, x: Float[Array, "b t h w c"], key: Key[Array, ""] | None = None
    ) -> Float[Array, "b t h2 w2 d"]:
        """Scaled latents of frames in [-1, 1]: the mean, or with a key a sample."""
        z, log_variance = self.moments(x)
        if key is not None:
            noise = jax.random.normal(key, z.shape, jnp.float32).astype(z.dtype)
            z = z + jnp.exp(0.5 * log_variance) * noise
        return (z - self.config.shift) * self.config.scale

    def decode(
        self, z: Float[Array, "b t h w c"], still: Bool[Array, "b t"] | None = None
    ) -> Float[Array, "b t h2 w2 d"]:
        """Frames of scaled latents, about in [-1, 1] and not clipped. still: frames that a temporal decoder takes as images."""
        z = z / self.config.scale + self.config.shift
        if self.post_quant_conv is not None:
            z = self.post_quant_conv(z)
        return self.decoder(z, still)


def abstract_autoencoder(config: AutoencoderConfig) -> Autoencoder:
    """Shapes without values."""
    return jax.eval_shape(lambda key: Autoencoder(config, key), jax.random.key(0))
