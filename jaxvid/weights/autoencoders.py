"""KL autoencoders from folders of diffusers."""

from pathlib import Path

from jaxvid.core.errors import UserError
from jaxvid.models.autoencoder import AutoencoderConfig, abstract_autoencoder
from jaxvid.weights.fields import DEEPEST, read_fields
from jaxvid.weights.loading import Source, tensors_of
from jaxvid.weights.naming import ATTENTION

# Attention in Stable Diffusion's first files, and now.
_OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def autoencoder_source(folder: str | Path, variant: str | None = None) -> Source:
    """The KL autoencoder of images, or the one with a temporal decoder."""
    abstract = abstract_autoencoder(autoencoder_config(folder))
    tensors = tensors_of(folder, "an Autoencoder", variant, modern_attention)
    return Source(abstract, tensors, ATTENTION)


def modern_attention(name: str) -> str:
    """The names of attention in Stable Diffusion's first files, as they are now."""
    head, _, leaf = name.rpartition(".")
    start, _, last = head.rpartition(".")
    return f"{start}.{_OLD[last]}.{leaf}" if last in _OLD and ".attentions." in start else name


def autoencoder_config(folder: str | Path) -> AutoencoderConfig:
    """The configuration of the autoencoder in `folder`."""
    kind, fields = read_fields(folder)
    temporal = kind == "AutoencoderKLTemporalDecoder"
    if not temporal and kind != "AutoencoderKL":
        raise UserError(f"{fields.where}: {kind} is no KL autoencoder; give a folder of one")
    widths = fields.widths((64,))
    for name, block in (
        ("down_block_types", "DownEncoderBlock2D"),
        ("up_block_types", "UpDecoderBlock2D"),
    ):
        given = fields.take(name, [block] * len(widths))
        if not isinstance(given, list) or given != [block] * len(widths):
            raise fields.refusal(name, given, f"{block} for each of {len(widths)} levels is wanted")
    blocks = fields.number("layers_per_block", 1, most=DEEPEST)
    if temporal and blocks != 2:
        raise fields.refusal("layers_per_block", blocks, "a temporal decoder has 2")
    moments = fields.flag("use_quant_conv", True)
    if fields.flag("use_post_quant_conv", moments) != moments:
        raise fields.refusal("use_post_quant_conv", not moments, f"use_quant_conv is {moments}")
    config = AutoencoderConfig(
        inputs=fields.number("in_channels", 3),
        outputs=fields.number("out_channels", 3),
        widths=widths,
        blocks=blocks,
        latents=fields.number("latent_channels", 4),
        groups=fields.groups(widths),
        attention=fields.flag("mid_block_add_attention", True),
        moments=moments,
        temporal=temporal,
        scale=fields.real("scaling_factor", 0.18215, 0.0),
        shift=fields.real("shift_factor", 0.0),
    )
    fields.end({"act_fn": "silu"})
    return config
