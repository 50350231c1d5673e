"""The factorized space-time U-Net (Ho et al. 2022, figure 1).

    z -> stem -> level 0: [block] x n -> down -> ... -> level K-1: [block] x n -> middle
                    | n skips                              | n skips           v
    out <- head <- level 0: [block] x n <- up <- ... <- level K-1: [block] x n <-

A block is a residual block of per-frame convolutions, then spatial attention, then temporal attention; the two
attentions exist at the levels named in the configuration. Frames mix in temporal attention alone (and in the
temporal half of (2+1)D convolutions where those are chosen), so a clip of one frame is the image model.

The channel count changes in the resampling convolutions and every down block hands its output to the up block at the
same place. All blocks of a level's half then have one shape: they are stored stacked, with a leading layer axis, and
run under `lax.scan`, which keeps the compile time independent of the depth. The paper does not say where its channel
counts change.

Axes: `b t h w c`; e is the width of the condition embedding; s counts segments (see `jaxvid.nn.segments`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from jaxvid.core.errors import UserError
from jaxvid.core.mesh import constrain
from jaxvid.core.rng import named
from jaxvid.nn.attention import SpatialAttention, TemporalAttention
from jaxvid.nn.conv import Padding, Pseudo3DConv, SpatialConv
from jaxvid.nn.dropout import dropout
from jaxvid.nn.embedding import logsnr_features
from jaxvid.nn.linear import MLP, Linear, zeros
from jaxvid.nn.norm import GroupNorm
from jaxvid.nn.resample import Downsample, Upsample
from jaxvid.nn.segments import temporal_mask


@dataclass(frozen=True)
class UNetConfig:
    """Shape of a space-time U-Net.

    `channels` times `multipliers[i]` is level i's width; `blocks` residual blocks run in each half of a level.
    `attention_levels` are the levels (0 is the finest) with spatial and temporal attention. `temporal_attention=False`
    leaves the image model. `convolution="pseudo3d"` puts Make-A-Video's temporal convolution after each spatial one.
    `modulation` says how the condition enters a residual block: added before the second norm (the paper), or as scale and
    shift after it (Dhariwal & Nichol 2021). `padding="wrap"` is for worlds that are tori: convolutions read on at the
    opposite border, so that a shift of z by `patch` pixels (times 2 a level) shifts the output. `groups` are those of the group norms.
    `remat` recomputes each block in the backward pass. `scan=False` unrolls the blocks: a larger program, which a CPU
    runs about a third faster (docs/factorized.md). `patch` is the side of the pixel squares folded into channels before
    the stem (1: the paper). `max_distance` clips Shaw's relative positions.
    """

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4, 8)
    blocks: int = 2
    attention_levels: tuple[int, ...] = (1, 2, 3)
    head_dim: int = 64
    embedding_width: int = 1024
    embedding_layers: int = 4
    temporal_attention: bool = True
    convolution: Literal["spatial", "pseudo3d"] = "spatial"
    padding: Padding = "zero"
    modulation: Literal["add", "scale_shift"] = "add"
    groups: int = 32
    max_distance: int = 16
    dropout: float = 0.0
    patch: int = 1
    input_channels: int = 3
    output_channels: int = 3
    remat: bool = False
    scan: bool = True

    def __post_init__(self):
        for name in ("blocks", "head_dim", "embedding_width", "groups", "max_distance", "patch"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        if self.channels < 2 or self.channels % 2:
            raise UserError(f"channels is {self.channels}; it must be even, 2 or more")
        if self.embedding_layers < 2:
            raise UserError(f"embedding_layers is {self.embedding_layers}; it must be 2 or more")
        if not self.multipliers or min(self.multipliers) < 1:
            raise UserError(f"multipliers is {self.multipliers}; give 1 or more for each level")
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"dropout is {self.dropout}; it must be within 0 and 1")


class ResidualBlock(nnx.Module):
    """Wide-ResNet block: norm, SiLU, convolution, twice; the condition enters between them (VDM, section 3)."""

    def __init__(self, inputs: int, outputs: int, config: UNetConfig, key: Key[Array, ""]):
        self.rate = config.dropout
        self.scales = config.modulation == "scale_shift"
        self.norm1 = GroupNorm(inputs, groups=config.groups)
        self.conv1 = _convolution(config)(inputs, outputs, named(key, "conv1"))
        self.condition = Linear(
            config.embedding_width, outputs * (1 + self.scales), named(key, "condition")
        )
        self.norm2 = GroupNorm(outputs, groups=config.groups)
        self.conv2 = _convolution(config)(outputs, outputs, named(key, "conv2"), init=zeros)
        self.skip = None if inputs == outputs else Linear(inputs, outputs, named(key, "skip"))

    def __call__(
        self,
        x: Float[Array, "b t h w c"],
        embedding: Float[Array, "b t e"],
        segment: Int[Array, "b t"] | None,
        keys: Key[Array, "b"] | None,
    ) -> Float[Array, "b t h w d"]:
        h = _convolve(self.conv1, jax.nn.silu(self.norm1(x)), segment)
        h = constrain(h, "b t h w hidden")
        condition = self.condition(jax.nn.silu(embedding))
        if self.scales:
            scale, shift = jnp.split(condition, 2, axis=-1)
            h = self.norm2(h, (scale, shift))
        else:
            h = self.norm2(h + condition[:, :, None, None, :])
        h = dropout(jax.nn.silu(h), self.rate, keys)
        h = _convolve(self.conv2, h, segment)
        return (x if self.skip is None else self.skip(x)) + h


class Block(nnx.Module):
    """Residual block, then spatial attention, then temporal attention."""

    def __init__(
        self, inputs: int, outputs: int, attend: bool, config: UNetConfig, key: Key[Array, ""]
    ):
        head_dim = min(config.head_dim, outputs)
        self.residual = ResidualBlock(inputs, outputs, config, named(key, "residual"))
        groups = config.groups
        self.spatial = (
            SpatialAttention(outputs, head_dim, named(key, "spatial"), groups=groups)
            if attend
            else None
        )
        self.temporal = (
            TemporalAttention(
                outputs, head_dim, config.max_distance, named(key, "temporal"), groups=groups
            )
            if attend and config.temporal_attention
            else None
        )

    def __call__(
        self,
        x: Float[Array, "b t h w c"],
        embedding: Float[Array, "b t e"],
        segment: Int[Array, "b t"] | None,
        keys: Key[Array, "b"] | None,
    ) -> Float[Array, "b t h w d"]:
        with jax.named_scope("residual"):
            x = self.residual(x, embedding, segment, keys)
        if self.spatial is not None:
            with jax.named_scope("spatial_attention"):
                x = self.spatial(x)
        if self.temporal is not None:
            with jax.named_scope("temporal_attention"):
                x = self.temporal(x, None if segment is None else temporal_mask(segment))
        return constrain(x, "b t h w c")


class UNet(nnx.Module):
    """The network: noisy video, log-SNR and a condition vector in, a video of `output_channels` out.

    The output is raw and float32: what it predicts (epsilon, x, v) is for `jaxvid.diffusion.parameterization`.
    """

    def __init__(self, config: UNetConfig, key: Key[Array, ""]):
        self.config = config
        widths = [config.channels * m for m in config.multipliers]
        levels = range(len(widths))
        pixels = config.patch**2
        attend = [level in config.attention_levels for level in levels]
        self.time = MLP(
            config.channels, config.embedding_width, config.embedding_layers, named(key, "time")
        )
        padding: Padding = config.padding
        self.stem = SpatialConv(
            pixels * config.input_channels, widths[0], named(key, "stem"), padding=padding
        )
        self.down = nnx.List(
            [_stack(widths[i], widths[i], attend[i], config, named(key, "down", i)) for i in levels]
        )
        self.shrink = nnx.List(
            [
                Downsample(widths[i], widths[i + 1], named(key, "shrink", i), padding=padding)
                for i in levels[:-1]
            ]
        )
        self.middle = Block(widths[-1], widths[-1], attend[-1], config, named(key, "middle"))
        self.up = nnx.List(
            [
                _stack(2 * widths[i], widths[i], attend[i], config, named(key, "up", i))
                for i in levels
            ]
        )
        self.grow = nnx.List(
            [
                Upsample(widths[i + 1], widths[i], named(key, "grow", i), padding=padding)
                for i in levels[:-1]
            ]
        )
        self.norm = GroupNorm(widths[0], groups=config.groups)
        self.head = SpatialConv(
            widths[0],
            pixels * config.output_channels,
            named(key, "head"),
            init=zeros,
            padding=padding,
        )

    def __call__(
        self,
        z: Float[Array, "b t h w c"],
        logsnr: Float[Array, "b #t"],
        condition: Float[Array, "b #t e"] | None = None,
        *,
        segment: Int[Array, "b t"] | None = None,
        keys: Key[Array, "b"] | None = None,
    ) -> Float[Array, "b t h w d"]:
        """Runs the network.

        `logsnr` and `condition` have one entry a frame, or one for all. `condition` is added to the features of the
        log-SNR's first dense layer and passes the rest of the condition MLP with it; zeros mean unconditional.
        `segment` separates joint images from the clip; `keys` (one an example) switch dropout on.
        Height and width must be multiples of `config.patch`; after that any size goes.
        """
        frames, dtype = z.shape[1], z.dtype
        embedding = self._embed(logsnr, condition).astype(dtype)
        embedding = jnp.broadcast_to(embedding, (z.shape[0], frames, embedding.shape[-1]))
        run = partial(_run, embedding=embedding, segment=segment, config=self.config)

        patch = self.config.patch
        x = rearrange(z, "b t (h p) (w q) c -> b t h w (p q c)", p=patch, q=patch)
        x = self.stem(x)
        skips, sizes = [], []
        for level, blocks in enumerate(self.down):
            with jax.named_scope(f"down{level}"):
                x, outputs = run(blocks, x, keys=_fold(keys, "down", level))
                skips.append(outputs)
                sizes.append(x.shape[2:4])
                if level < len(self.shrink):
                    x = self.shrink[level](x)
        with jax.named_scope("middle"):
            x = _maybe_remat(Block.__call__, self.config.remat)(
                self.middle, x, embedding, segment, _fold(keys, "middle")
            )
        for level in reversed(range(len(self.up))):
            with jax.named_scope(f"up{level}"):
                if level < len(self.grow):
                    x = self.grow[level](x, *sizes[level])
                x, _ = run(self.up[level], x, skips=skips[level], keys=_fold(keys, "up", level))
        # In float32: an estimate of x divides the rounding of an epsilon prediction by alpha, which is small.
        x = self.head(jax.nn.silu(self.norm(x)).astype(jnp.float32))
        return rearrange(x, "b t h w (p q c) -> b t (h p) (w q) c", p=patch, q=patch)

    def _embed(
        self, logsnr: Float[Array, "b t"], condition: Float[Array, "b u e"] | None
    ) -> Float[Array, "b v e"]:
        """The condition MLP over features of the log-SNR plus the condition vector."""
        first, *rest = self.time.layers
        x = first(logsnr_features(logsnr, self.config.channels))
        if condition is not None:
            x = x + condition.astype(x.dtype)
        for layer in rest:
            x = layer(jax.nn.silu(x))
        return x


def _convolution(config: UNetConfig) -> Callable[..., SpatialConv | Pseudo3DConv]:
    kind = Pseudo3DConv if config.convolution == "pseudo3d" else SpatialConv
    return partial(kind, padding=config.padding)


def _convolve(
    conv: SpatialConv | Pseudo3DConv,
    x: Float[Array, "b t h w c"],
    segment: Int[Array, "b t"] | None,
) -> Float[Array, "b t h w d"]:
    return conv(x, segment) if isinstance(conv, Pseudo3DConv) else conv(x)


def _stack(
    inputs: int, outputs: int, attend: bool, config: UNetConfig, key: Key[Array, ""]
) -> Block:
    """`config.blocks` blocks with a leading layer axis; block i's key is folded from its index."""
    keys = jax.vmap(lambda index: named(key, index))(jnp.arange(config.blocks))
    return jax.vmap(lambda k: Block(inputs, outputs, attend, config, k))(keys)


def _fold(keys: Key[Array, "b"] | None, *names: str | int) -> Key[Array, "b"] | None:
    return None if keys is None else jax.vmap(lambda key: named(key, *names))(keys)


def _maybe_remat(function: Callable, remat: bool) -> Callable:
    return jax.checkpoint(function) if remat else function


def _run(
    blocks: Block,
    x: Float[Array, "b t h w c"],
    *,
    embedding: Float[Array, "b t e"],
    segment: Int[Array, "b t"] | None,
    config: UNetConfig,
    skips: Float[Array, "n b t h w c"] | None = None,
    keys: Key[Array, "b"] | None,
) -> tuple[Float[Array, "b t h w d"], Float[Array, "n b t h w d"]]:
    """Scans stacked blocks over x; returns the last output and all of them. `skips` are concatenated, last one first."""
    count = jax.tree.leaves(blocks)[0].shape[0]

    def body(x: Array, layer: tuple[Block, Array, Array | None]) -> tuple[Array, Array]:
        block, index, skip = layer
        if skip is not None:
            x = jnp.concatenate([x, skip], axis=-1)
        block_keys = None if keys is None else jax.vmap(lambda key: named(key, index))(keys)
        y = _maybe_remat(Block.__call__, config.remat)(block, x, embedding, segment, block_keys)
        return y, y

    layers = blocks, jnp.arange(count), None if skips is None else skips[::-1]
    if config.scan:
        return jax.lax.scan(body, x, layers)
    outputs = []
    for index in range(count):
        x, y = body(x, jax.tree.map(lambda leaf, i=index: leaf[i], layers))
        outputs.append(y)
    return x, jnp.stack(outputs)
