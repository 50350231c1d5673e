"""AnimateDiff: Stable Diffusion's U-Net with motion modules, which are published in a folder of their own."""

from dataclasses import replace
from pathlib import Path

from jaxvid.core.errors import UserError
from jaxvid.core.paths import flatten, unflatten
from jaxvid.models.conditional_unet import (
    ConditionalUNet,
    ConditionalUNetConfig,
    MotionConfig,
    abstract_unet,
)
from jaxvid.weights.fields import DEEPEST, read_fields
from jaxvid.weights.inflate import temporal_paths
from jaxvid.weights.loading import WHOLE, Loading, claimed, read_leaves, tensors_of
from jaxvid.weights.naming import MOTION
from jaxvid.weights.registry import open_as


def load_motion(unet: str | Path, adapter: str | Path, how: Loading = WHOLE) -> ConditionalUNet:
    """The U-Net in one folder with the motion modules of another. Raises UserError."""
    image = open_as(ConditionalUNet, unet, how.variant)
    wanted = abstract_unet(motion_config(image.abstract.config, adapter))
    tensors = tensors_of(adapter, "motion modules", how.variant, _without_places)
    shapes, motion = flatten(wanted), temporal_paths(wanted)
    claims = claimed({path: shapes[path] for path in motion}, tensors, MOTION)
    tensors.end()
    return unflatten(wanted, read_leaves(shapes, {**image.claims(), **claims}, how))


def _without_places(name: str) -> str | None:
    """The frames' positions are computed."""
    return None if name.endswith(".pos_embed.pe") else name


def motion_config(image: ConditionalUNetConfig, adapter: str | Path) -> ConditionalUNetConfig:
    """The image model's configuration with the adapter's modules. Raises UserError for what does not fit it."""
    kind, fields = read_fields(adapter)
    if kind != "MotionAdapter":
        raise UserError(f"{fields.where}: {kind} is no MotionAdapter; give AnimateDiff's folder")
    widths = tuple(level.width for level in image.levels)
    given = fields.numbers("block_out_channels", len(widths), widths)
    blocks = fields.number("motion_layers_per_block", 2, most=DEEPEST)
    if given != widths or any(level.blocks != blocks for level in image.levels):
        raise fields.refusal(
            "block_out_channels", given, f"the U-Net has {widths}; give its adapter"
        )
    groups = fields.number("motion_norm_num_groups", 32)
    if groups != image.block.groups:
        raise fields.refusal(
            "motion_norm_num_groups", groups, f"the U-Net has {image.block.groups}"
        )
    config = MotionConfig(
        heads=fields.number("motion_num_attention_heads", 8),
        middle=fields.flag("use_motion_mid_block", True),
    )
    fields.take("motion_max_seq_length", 32)
    fields.end({"motion_mid_block_layers_per_block": 1, "motion_transformer_layers_per_block": 1,
                "motion_transformer_layers_per_mid_block": 1})  # fmt: skip
    return replace(image, temporal=config)
