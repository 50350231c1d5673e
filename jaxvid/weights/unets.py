"""U-Nets in folders of diffusers: `config.json` as `ConditionalUNetConfig`, and the tensors."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxvid.core.errors import UserError
from jaxvid.models.blocks import Activation, BlockConfig
from jaxvid.models.conditional_stages import AttentionKind, Label, Resample
from jaxvid.models.conditional_unet import (
    ConditionalUNetConfig,
    Level,
    abstract_unet,
)
from jaxvid.weights.fields import DEEPEST, Fields, read_fields
from jaxvid.weights.loading import Source, tensors_of
from jaxvid.weights.naming import UNET

ACTIVATIONS: Mapping[str, Activation] = {"silu": "silu", "swish": "silu", "gelu": "gelu"}
# Attention of a level and how it is resampled, by the names of its block on the way down and up.
BLOCKS: Mapping[tuple[str, str], tuple[AttentionKind, Resample]] = {
    ("DownBlock2D", "UpBlock2D"): ("none", "convolution"),
    ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D"): ("transformer", "convolution"),
    ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"): ("none", "block"),
    ("SimpleCrossAttnDownBlock2D", "SimpleCrossAttnUpBlock2D"): ("joint", "block"),
    ("DownBlock3D", "UpBlock3D"): ("none", "convolution"),
    ("CrossAttnDownBlock3D", "CrossAttnUpBlock3D"): ("transformer", "convolution"),
    ("DownBlockSpatioTemporal", "UpBlockSpatioTemporal"): ("none", "convolution"),
    ("CrossAttnDownBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"): ("transformer", "convolution"),
}  # fmt: skip
UNUSED: Mapping[str, Any] = {
    "downsample_padding": 1,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "time_embedding_type": "positional",
    "mid_block_scale_factor": 1,
    "downsample_type": "conv",
    "attention_type": "default",
    "upsample_type": "conv",
    "addition_embed_type_num_heads": 64,
    "num_attention_heads": None,
    "addition_time_embed_dim": 256,
}


def unet_source(folder: str | Path, variant: str | None = None) -> Source:
    """The U-Net in `folder`. Raises UserError for what cannot be expressed."""
    abstract = abstract_unet(unet_config(folder))
    return Source(abstract, tensors_of(folder, "a U-Net", variant), UNET)


def unet_config(folder: str | Path) -> ConditionalUNetConfig:
    """The configuration of the U-Net in `folder`. Raises UserError for what cannot be expressed."""
    kind, fields = read_fields(folder)
    readers: Mapping[str, Callable[[Fields], ConditionalUNetConfig]] = {
        "UNet2DConditionModel": _conditional,
        "UNet2DModel": _unconditional,
        "UNet3DConditionModel": _modelscope,
        "UNetSpatioTemporalConditionModel": _stable_video,
    }
    if kind not in readers:
        raise UserError(
            f"{fields.where}: {kind} is no U-Net that can be read; {', '.join(readers)} are"
        )
    config = readers[kind](fields)
    fields.end(UNUSED)
    return config


def _levels(
    fields: Fields,
    heads: Callable[[str, int, int], int],
    default: Any = None,
    only: bool | Sequence[bool] = False,
) -> tuple[tuple[Level, ...], Resample]:
    """The levels and their resampling. `heads` gives a level's head dimension of (attention, width, the field's number)."""
    widths = fields.widths((320, 640, 1280, 1280))
    count = len(widths)
    down, up = (fields.take(name, ()) for name in ("down_block_types", "up_block_types"))
    blocks = fields.numbers("layers_per_block", count, 2, most=DEEPEST)
    sizes = fields.numbers("attention_head_dim", count, default)
    depths = fields.numbers("transformer_layers_per_block", count, 1, most=DEEPEST)
    onlys = tuple(only) if isinstance(only, list | tuple) else (only,) * count
    listed = all(isinstance(each, list | tuple) and len(each) == count for each in (down, up))
    if not listed or len(onlys) != count or not all(isinstance(each, str) for each in (*down, *up)):
        raise fields.refusal("down_block_types", down, f"{count} levels need a block type each way")
    if sum(map(math.prod, zip(blocks, depths, strict=True))) > DEEPEST:
        raise fields.refusal("layers_per_block", blocks, f"{DEEPEST} layers in all can be read")
    levels, resamplings = [], set()
    for i, pair in enumerate(zip(down, reversed(up), strict=True)):
        if pair not in BLOCKS:
            raise fields.refusal("down_block_types", pair[0], f"with {pair[1]} it cannot be read")
        attention, resampling = BLOCKS[pair]
        resamplings.add(resampling)
        # Written into these classes, whatever the config says.
        eps_down = 1e-6 if pair[0] == "CrossAttnDownBlockSpatioTemporal" else None
        eps_up = 1e-6 if pair[1].endswith("SpatioTemporal") else None
        size = heads(attention, widths[i], sizes[i])
        if attention != "none" and (size < 1 or widths[i] % size):
            raise fields.refusal(
                "attention_head_dim", sizes[i], f"width {widths[i]} does not divide"
            )
        eps = eps_down, eps_up
        levels.append(Level(widths[i], blocks[i], attention, size, depths[i], bool(onlys[i]), *eps))
    if len(resamplings) > 1:
        raise fields.refusal("down_block_types", down, "all must halve the sides in the same way")
    return tuple(levels), resamplings.pop()


def _by_count(attention: str, width: int, number: int) -> int:
    """Diffusers' `attention_head_dim` is the number of heads, where the level is a transformer."""
    if attention == "transformer" and width % number:
        return 0
    return number if attention == "joint" else max(width // number, 1)


def _by_size(attention: str, width: int, number: int) -> int:
    return number


def _block(fields: Fields, levels: Sequence[Level]) -> BlockConfig:
    return BlockConfig(
        groups=fields.groups([level.width for level in levels]),
        eps=fields.real("norm_eps", 1e-5, 0.0),
        activation=fields.choice("act_fn", ACTIVATIONS, "silu"),
        modulation=fields.choice(
            "resnet_time_scale_shift", {"default": "shift", "scale_shift": "scale_shift"}, "default"
        ),
        raw_embedding=fields.flag("resnet_skip_time_act", False),
        divisor=fields.real("resnet_out_scale_factor", 1.0, 0.0),
    )


def _conditional(fields: Fields) -> ConditionalUNetConfig:
    only = fields.take("only_cross_attention", False)
    levels, resample = _levels(fields, _by_count, 8, only)
    block, label = _block(fields, levels), _label(fields)
    plain = block.divisor == 1 and not block.raw_embedding
    if resample == "convolution" and not plain:
        raise fields.refusal(
            "resnet_out_scale_factor", block.divisor, "blocks with convolutions ignore it"
        )
    scale = fields.take("mid_block_scale_factor", 1.0)
    if scale != block.divisor:
        raise fields.refusal("mid_block_scale_factor", scale, "the middle must divide as the rest")
    inner = fields.maybe("encoder_hid_dim")
    fields.choice("encoder_hid_dim_type", {None: 0, "text_proj": 0}, None)
    pooled = fields.choice("addition_embed_type", {None: 0, "text": 1}, None)
    heads = fields.number("addition_embed_type_num_heads", 64)
    middle = fields.take("mid_block_type", "UNetMidBlock2DCrossAttn")
    kinds: Mapping[str, AttentionKind] = {"UNetMidBlock2DCrossAttn": "transformer", "UNetMidBlock2DSimpleCrossAttn": "joint",
             "UNetMidBlock2D": "none"}  # fmt: skip
    if middle not in kinds:
        raise fields.refusal("mid_block_type", middle, f"{', '.join(kinds)} can be read")
    return ConditionalUNetConfig(
        levels=levels,
        inputs=fields.number("in_channels", 4),
        outputs=fields.number("out_channels", 4),
        context=fields.number("cross_attention_dim", 1280),
        context_inputs=inner,
        context_norm=fields.choice(
            "cross_attention_norm",
            {None: "none", "layer_norm": "layer", "group_norm": "group"},
            None,
        ),
        linear=fields.flag("use_linear_projection", False),
        middle=kinds[middle],
        middle_only_context=bool(
            fields.take("mid_block_only_cross_attention", only if isinstance(only, bool) else False)
        ),
        resample=resample,
        block=block,
        embedding=fields.maybe("time_embedding_dim"),
        embedding_activation=fields.choice(
            "time_embedding_act_fn", {None: None, **ACTIVATIONS}, None
        ),
        cosines_first=fields.flag("flip_sin_to_cos", True),
        frequency_offset=fields.real("freq_shift", 0.0),
        label=label[0],
        labels=label[1],
        pooled_heads=heads if pooled else 0,
    )


def _label(fields: Fields) -> tuple[Label, int]:
    """The kind of label, and the rows of its table."""
    rows = fields.maybe("num_class_embeds")
    kinds: Mapping[str | None, Label] = {None: "none", "timestep": "number", "identity": "vector"}
    kind = fields.choice("class_embed_type", kinds, None)
    if kind == "none" and rows:
        return "table", rows
    return kind, 0


def _unconditional(fields: Fields) -> ConditionalUNetConfig:
    levels, resample = _levels(fields, _by_size, 8)
    fields.choice("mid_block_type", {"UNetMidBlock2D": True}, "UNetMidBlock2D")
    if fields.take("add_attention", True):
        raise fields.refusal(
            "add_attention", True, "only super-resolution networks without are read"
        )
    return ConditionalUNetConfig(
        levels=levels,
        inputs=fields.number("in_channels", 3),
        outputs=fields.number("out_channels", 3),
        context=None,
        middle="none",
        resample=resample,
        block=_block(fields, levels),
        cosines_first=fields.flag("flip_sin_to_cos", True),
        frequency_offset=fields.real("freq_shift", 0.0),
    )


def _modelscope(fields: Fields) -> ConditionalUNetConfig:
    levels, resample = _levels(fields, _by_size, 64)
    return ConditionalUNetConfig(
        levels=levels,
        inputs=fields.number("in_channels", 4),
        outputs=fields.number("out_channels", 4),
        context=fields.number("cross_attention_dim", 1024),
        linear=True,
        resample=resample,
        block=_block(fields, levels),
        temporal="modelscope",
    )


def _stable_video(fields: Fields) -> ConditionalUNetConfig:
    heads = fields.take("num_attention_heads", (5, 10, 20, 20))
    levels, resample = _levels(fields, _by_count, heads)
    width = fields.number("addition_time_embed_dim", 256)
    joined = fields.number("projection_class_embeddings_input_dim", 768)
    if joined % width:
        raise fields.refusal(
            "projection_class_embeddings_input_dim", joined, f"a multiple of {width} is wanted"
        )
    return ConditionalUNetConfig(
        levels=levels,
        inputs=fields.number("in_channels", 8),
        outputs=fields.number("out_channels", 4),
        context=fields.number("cross_attention_dim", 1024),
        linear=True,
        resample=resample,
        numbers=joined // width,
        number_width=width,
        temporal="mixed",
    )
