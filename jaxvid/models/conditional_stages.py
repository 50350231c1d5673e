"""The stages of `jaxvid.models.conditional_unet`: its configuration, and what stands at each resolution."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from flax import nnx
from jaxtyping import Array, Bool, Float, Key

from jaxvid.core.errors import UserError
from jaxvid.core.rng import named
from jaxvid.models.blocks import (
    Activation,
    BlockConfig,
    Downsample,
    JointAttention,
    ResidualBlock,
    SpatialTransformer,
    Upsample,
)
from jaxvid.models.temporal import (
    SpaceTimeBlock,
    SpaceTimeTransformer,
    TemporalConvolutions,
    TemporalTransformer,
)
from jaxvid.nn.attention import TemporalAttention

Context = Float[Array, "b n d"] | Float[Array, "b t n d"]


AttentionKind = Literal["none", "transformer", "joint"]
Resample = Literal["convolution", "block"]
Label = Literal["none", "table", "number", "vector"]


@dataclass(frozen=True)
class Level:
    """One resolution of the U-Net.

    blocks: residual blocks on the way down; one more on the way up. attention: after each of them. depth: transformer blocks
    of each attention. only_context: no attention to the pixels themselves. eps, up_eps: of the norms of this level's blocks
    on the way down and on the way up, where they differ from the network's.
    """

    width: int
    blocks: int = 2
    attention: AttentionKind = "none"
    head_dim: int = 64
    depth: int = 1
    only_context: bool = False
    eps: float | None = None
    up_eps: float | None = None


@dataclass(frozen=True)
class MotionConfig:
    """AnimateDiff's modules: heads of each, and whether the middle has one."""

    heads: int = 8
    middle: bool = True


Temporal = Literal["none", "vdm", "modelscope", "mixed", "pseudo3d"] | MotionConfig


@dataclass(frozen=True)
class ConditionalUNetConfig:
    """See `jaxvid.models.conditional_unet`. The defaults are Stable Diffusion 1.x.

    context: width of the tokens attended to; None for a network without. context_inputs: width of the tokens given, where a
    dense layer takes them to `context` first. context_norm: of joint attention. linear: transformers' projections are dense.
    middle: attention of the middle, None for no middle block. middle_only_context as in `Level`.
    resample: by a convolution, or in a residual block. embedding: width of the time embedding, None for four times the first.
    embedding_activation: what it passes at last. cosines_first, frequency_offset: of the time's features.
    label: what joins the time embedding: a table's row ("table", `labels` rows), features of a number as of the time
    ("number"), or a vector given ("vector"). pooled_heads: heads of the pooling by which the given tokens join it; 0 for none.
    numbers: how many numbers join it, each by features of `number_width` (frame rate, motion, noise); 0 for none.
    temporal: the layers between the spatial ones: attention over frames with relative positions after each attention, as in
    Video Diffusion Models (section 3; distances above `frame_distance` count as that); ModelScope's; blocks mixed with
    temporal ones, as in Stable Video Diffusion; Make-A-Video's (2+1)D convolutions in every block, and attention over frames
    after each attention.
    """

    levels: tuple[Level, ...] = (
        Level(320, attention="transformer", head_dim=40),
        Level(640, attention="transformer", head_dim=80),
        Level(1280, attention="transformer", head_dim=160),
        Level(1280, head_dim=160),
    )
    inputs: int = 4
    outputs: int = 4
    context: int | None = 768
    context_inputs: int | None = None
    context_norm: Literal["none", "layer", "group"] = "none"
    linear: bool = False
    middle: AttentionKind | None = "transformer"
    middle_only_context: bool = False
    resample: Resample = "convolution"
    block: BlockConfig = field(default_factory=BlockConfig)
    embedding: int | None = None
    embedding_activation: Activation | None = None
    cosines_first: bool = True
    frequency_offset: float = 0.0
    label: Label = "none"
    labels: int = 0
    pooled_heads: int = 0
    numbers: int = 0
    number_width: int = 256
    temporal: Temporal = "none"
    frame_distance: int = 15

    @property
    def embedding_width(self) -> int:
        """Of the time embedding."""
        return self.embedding or 4 * self.levels[0].width


def listed(
    there: bool, count: int, make: Callable[[Key[Array, ""]], Any], key: Key[Array, ""]
) -> Any:
    """A list of `count` modules, or None where there are to be none."""
    return nnx.List([make(named(key, i)) for i in range(count)]) if there else None


class Stage(nnx.Module):
    """The blocks of one level in one direction, or the middle's, with its resampling.

    widths: inputs of each residual block, whose outputs are `level.width` wide.
    """

    def __init__(
        self,
        config: ConditionalUNetConfig,
        level: Level,
        widths: list[int],
        key: Key[Array, ""],
        *,
        resample: Literal["none", "down", "up"] = "none",
        attentions: int | None = None,
        motion: bool = True,
    ):
        count = len(widths) if attentions is None else attentions
        block = config.block if level.eps is None else replace(config.block, eps=level.eps)
        part = Parts(config, level, block)
        self.resnets = nnx.List(
            [part.resnet(inputs, named(key, "resnets", i)) for i, inputs in enumerate(widths)]
        )
        self.attentions = listed(
            level.attention != "none", count, part.attention, named(key, "attentions")
        )
        self.temp_convs = listed(
            config.temporal == "modelscope",
            len(widths),
            part.convolutions,
            named(key, "temp_convs"),
        )
        self.temp_attentions = listed(
            part.has_temporal and motion, count, part.temporal, named(key, "temp_attentions")
        )
        self.downsamplers = listed(
            resample == "down", 1, part.downsampler, named(key, "downsamplers")
        )
        self.upsamplers = listed(resample == "up", 1, part.upsampler, named(key, "upsamplers"))

    def block(self, index: int, x: Array, given: "Conditions") -> Array:
        """Residual block `index`."""
        resnet = self.resnets[index]
        if isinstance(resnet, SpaceTimeBlock):
            x = resnet(x, given.embedding, given.still)
        else:
            x = resnet(x, given.embedding)
        return x if self.temp_convs is None else self.temp_convs[index](x)

    def attend(self, index: int, x: Array, given: "Conditions") -> Array:
        """The attentions after it, where there are any."""
        if self.attentions is not None:
            attention, context = self.attentions[index], given.context
            assert context is not None, "levels with attention have a context"
            if isinstance(attention, SpaceTimeTransformer):
                x = attention(x, context, given.mask, given.still)
            else:
                x = attention(x, context, given.mask)
        return x if self.temp_attentions is None else self.temp_attentions[index](x)


@dataclass(frozen=True)
class Parts:
    """Makes what a stage consists of."""

    config: ConditionalUNetConfig
    level: Level
    block: BlockConfig

    def resnet(self, inputs: int, key: Key[Array, ""]) -> ResidualBlock | SpaceTimeBlock:
        """A residual block, as the temporal layers want it."""
        width, embedding = self.level.width, self.config.embedding_width
        if self.config.temporal == "mixed":
            return SpaceTimeBlock(inputs, width, embedding, self.block, key)
        pseudo3d = self.config.temporal == "pseudo3d"
        return ResidualBlock(inputs, width, embedding, self.block, key, pseudo3d=pseudo3d)

    def attention(self, key: Key[Array, ""]) -> nnx.Module:
        """What the level says."""
        config, level = self.config, self.level
        if config.context is None:
            raise UserError(
                f"a level has {level.attention} attention, but context is None; give its width"
            )
        if level.attention == "joint":
            return JointAttention(
                level.width,
                level.head_dim,
                config.context,
                key,
                groups=self.block.groups,
                only_context=level.only_context,
                context_norm=config.context_norm,
            )
        if config.temporal == "mixed":
            return SpaceTimeTransformer(
                level.width,
                level.head_dim,
                level.depth,
                config.context,
                key,
                groups=self.block.groups,
            )
        return SpatialTransformer(
            level.width,
            level.head_dim,
            level.depth,
            config.context,
            key,
            groups=self.block.groups,
            linear=config.linear,
            only_context=level.only_context,
        )

    @property
    def has_temporal(self) -> bool:
        """Whether attention over frames follows: after attention, or with AnimateDiff after every block."""
        if self.config.temporal in ("vdm", "modelscope", "pseudo3d"):
            return self.level.attention != "none"
        return isinstance(self.config.temporal, MotionConfig)

    def temporal(self, key: Key[Array, ""]) -> TemporalAttention | TemporalTransformer:
        """Attention over frames, or a transformer over them, of the level's width."""
        width, motion = self.level.width, self.config.temporal
        if motion == "vdm":
            distance = self.config.frame_distance
            return TemporalAttention(
                width, self.level.head_dim, distance, key, groups=self.block.groups
            )
        places = isinstance(motion, MotionConfig)
        head_dim = width // motion.heads if places else self.level.head_dim
        return TemporalTransformer(
            width, width, head_dim, key, groups=self.block.groups, places=places
        )

    def convolutions(self, key: Key[Array, ""]) -> TemporalConvolutions:
        """ModelScope's."""
        return TemporalConvolutions(self.level.width, key, groups=self.block.groups)

    def downsampler(self, key: Key[Array, ""]) -> Downsample | ResidualBlock:
        """To the next level's sides."""
        width = self.level.width
        if self.config.resample == "convolution":
            return Downsample(width, key)
        embedding = self.config.embedding_width
        return ResidualBlock(width, width, embedding, self.block, key, resample="down")

    def upsampler(self, key: Key[Array, ""]) -> Upsample | ResidualBlock:
        """To the level above's sides."""
        width = self.level.width
        if self.config.resample == "convolution":
            return Upsample(width, key)
        embedding = self.config.embedding_width
        return ResidualBlock(width, width, embedding, self.block, key, resample="up")


@dataclass(frozen=True)
class Conditions:
    """What every block is given."""

    embedding: Float[Array, "b #t e"]
    context: Context | None
    mask: Bool[Array, "b n"] | None
    still: Bool[Array, "b t"] | None


def down_stages(config: ConditionalUNetConfig, key: Key[Array, ""]) -> list[Stage]:
    """From the finest level to the coarsest."""
    stages, before = [], config.levels[0].width
    for i, level in enumerate(config.levels):
        widths = [before] + [level.width] * (level.blocks - 1)
        resample = "down" if i + 1 < len(config.levels) else "none"
        stages.append(Stage(config, level, widths, named(key, i), resample=resample))
        before = level.width
    return stages


def middle_stage(config: ConditionalUNetConfig, key: Key[Array, ""]) -> Stage | None:
    """Block, attention, block."""
    if config.middle is None:
        return None
    level = replace(
        config.levels[-1],
        attention=config.middle,
        only_context=config.middle_only_context,
        eps=None,
    )
    motion = not isinstance(config.temporal, MotionConfig) or config.temporal.middle
    return Stage(config, level, [level.width] * 2, key, attentions=1, motion=motion)


def up_stages(config: ConditionalUNetConfig, key: Key[Array, ""]) -> list[Stage]:
    """From the coarsest level to the finest; each block also takes what a block on the way down gave, the latest first."""
    skips = [config.levels[0].width]
    for level in config.levels:
        skips += [level.width] * (level.blocks + 1)
    skips.pop()  # the coarsest level is not halved
    stages, before = [], config.levels[-1].width
    for i, level in enumerate(reversed(config.levels)):
        widths = [inputs + skips.pop() for inputs in [before] + [level.width] * level.blocks]
        resample = "up" if i + 1 < len(config.levels) else "none"
        level = replace(level, eps=level.up_eps)
        stages.append(Stage(config, level, widths, named(key, i), resample=resample))
        before = level.width
    return stages
