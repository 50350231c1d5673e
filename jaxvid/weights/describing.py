"""Our configurations as the published `config.json`: what the readers of this package read, the other way round.

A network that no published class can express is refused: AnimateDiff's modules belong to a folder of their own, and
Make-A-Video's pseudo-3D layers to none.
"""

from collections.abc import Callable, Mapping
from typing import Any

from flax import nnx

from jaxvid.core.errors import UserError
from jaxvid.models.autoencoder import Autoencoder, AutoencoderConfig
from jaxvid.models.clip import (
    ClipImage,
    ClipImageConfig,
    ClipText,
    ClipTextConfig,
    TransformerConfig,
)
from jaxvid.models.conditional_unet import ConditionalUNet, ConditionalUNetConfig
from jaxvid.models.prior import ImageConditions, ImageConditionsConfig, Prior, PriorConfig
from jaxvid.models.t5 import T5Config, T5Encoder
from jaxvid.models.text import TextConfig, TextEncoder
from jaxvid.weights.unets import BLOCKS

Described = dict[str, Any]
DIFFUSERS, TRANSFORMERS = "diffusion_pytorch_model.safetensors", "model.safetensors"
# Ends of the names of the blocks of each class.
_ENDINGS = {
    "UNet2DConditionModel": "2D",
    "UNet2DModel": "2D",
    "UNet3DConditionModel": "3D",
    "UNetSpatioTemporalConditionModel": "SpatioTemporal",
}


def describe(module: nnx.Module) -> tuple[Described, str]:
    """The `config.json` of a module, and the name of its file of tensors. Raises UserError for what has no class."""
    describer = DESCRIBERS[type(module)]
    described = describer(module.config)  # type: ignore[attr-defined]
    return described, DIFFUSERS if "_class_name" in described else TRANSFORMERS


def describe_unet(config: ConditionalUNetConfig) -> Described:
    """Of any of the four classes."""
    if config.temporal == "modelscope":
        return _modelscope(config)
    if config.temporal == "mixed":
        return _stable_video(config)
    if config.temporal != "none":
        raise UserError(
            f"a U-Net with temporal layers {config.temporal!r} has no published class; keep it in this project's format"
        )
    return _conditional(config) if config.context is not None else _unconditional(config)


def _common(config: ConditionalUNetConfig, kind: str) -> Described:
    block, ending = config.block, _ENDINGS[kind]
    down, up = [], []
    for level in config.levels:
        pair = next(
            pair
            for pair, made in BLOCKS.items()
            if made == (level.attention, config.resample) and pair[0].endswith(f"Block{ending}")
        )
        down.append(pair[0])
        up.append(pair[1])
    return {
        "_class_name": kind,
        "in_channels": config.inputs,
        "out_channels": config.outputs,
        "block_out_channels": [level.width for level in config.levels],
        "down_block_types": down,
        "up_block_types": up[::-1],
        "norm_num_groups": block.groups,
        "norm_eps": block.eps,
        "act_fn": block.activation,
    }


def _counts(config: ConditionalUNetConfig) -> list[int]:
    """What diffusers calls head dimension, which is the number of heads but for joint attention."""
    return [
        level.head_dim if level.attention == "joint" else level.width // level.head_dim
        for level in config.levels
    ]


def _conditional(config: ConditionalUNetConfig) -> Described:
    block, levels = config.block, config.levels
    middles = {None: None, "transformer": "UNetMidBlock2DCrossAttn",
               "joint": "UNetMidBlock2DSimpleCrossAttn", "none": "UNetMidBlock2D"}  # fmt: skip
    described = _common(config, "UNet2DConditionModel") | {
        "layers_per_block": [level.blocks for level in levels],
        "attention_head_dim": _counts(config),
        "transformer_layers_per_block": [level.depth for level in levels],
        "only_cross_attention": [level.only_context for level in levels],
        "mid_block_type": middles[config.middle],
        "mid_block_only_cross_attention": config.middle_only_context,
        "cross_attention_dim": config.context,
        "use_linear_projection": config.linear,
        "resnet_time_scale_shift": {"shift": "default"}.get(block.modulation, block.modulation),
        "resnet_skip_time_act": block.raw_embedding,
        "resnet_out_scale_factor": block.divisor,
        "mid_block_scale_factor": block.divisor,
        "time_embedding_act_fn": config.embedding_activation,
        "time_embedding_dim": config.embedding,
        "flip_sin_to_cos": config.cosines_first,
        "freq_shift": config.frequency_offset,
        "cross_attention_norm": {"layer": "layer_norm", "group": "group_norm"}.get(config.context_norm),
        "class_embed_type": {"number": "timestep", "vector": "identity"}.get(config.label),
        "num_class_embeds": config.labels or None,
    }  # fmt: skip
    if config.context_inputs is not None:
        described |= {
            "encoder_hid_dim": config.context_inputs,
            "encoder_hid_dim_type": "text_proj",
        }
    if config.pooled_heads:
        described |= {
            "addition_embed_type": "text",
            "addition_embed_type_num_heads": config.pooled_heads,
        }
    return described


def _alike(kind: str, **values: list[int]) -> dict[str, int]:
    """Numbers that the class has one of for all levels. Raises UserError where the levels differ."""
    for name, each in values.items():
        if len(set(each)) > 1:
            raise UserError(f"a {kind} has one {name} for all levels, not {each}")
    return {name: each[0] for name, each in values.items()}


def _unconditional(config: ConditionalUNetConfig) -> Described:
    kind = "UNet2DModel"
    modulation = config.block.modulation
    return (
        _common(config, kind)
        | _alike(
            kind,
            layers_per_block=[level.blocks for level in config.levels],
            attention_head_dim=[level.head_dim for level in config.levels],
        )
        | {
            "add_attention": False,
            "resnet_time_scale_shift": {"shift": "default"}.get(modulation, modulation),
            "flip_sin_to_cos": config.cosines_first,
            "freq_shift": config.frequency_offset,
        }
    )


def _modelscope(config: ConditionalUNetConfig) -> Described:
    kind = "UNet3DConditionModel"
    return (
        _common(config, kind)
        | _alike(
            kind,
            layers_per_block=[level.blocks for level in config.levels],
            attention_head_dim=[level.head_dim for level in config.levels],
        )
        | {"cross_attention_dim": config.context}
    )


def _stable_video(config: ConditionalUNetConfig) -> Described:
    described = _common(config, "UNetSpatioTemporalConditionModel")
    for name in ("norm_num_groups", "norm_eps", "act_fn"):  # the class has them fixed
        del described[name]
    return described | {
        "layers_per_block": [level.blocks for level in config.levels],
        "transformer_layers_per_block": [level.depth for level in config.levels],
        "num_attention_heads": _counts(config),
        "cross_attention_dim": config.context,
        "addition_time_embed_dim": config.number_width,
        "projection_class_embeddings_input_dim": config.numbers * config.number_width,
    }


def describe_autoencoder(config: AutoencoderConfig) -> Described:
    """Of images, or with the temporal decoder."""
    count = len(config.widths)
    described = {
        "in_channels": config.inputs,
        "out_channels": config.outputs,
        "block_out_channels": list(config.widths),
        "down_block_types": ["DownEncoderBlock2D"] * count,
        "layers_per_block": config.blocks,
        "latent_channels": config.latents,
        "scaling_factor": config.scale,
    }
    if config.temporal:
        return {"_class_name": "AutoencoderKLTemporalDecoder", **described}
    return {
        "_class_name": "AutoencoderKL",
        **described,
        "up_block_types": ["UpDecoderBlock2D"] * count,
        "norm_num_groups": config.groups,
        "mid_block_add_attention": config.attention,
        "use_quant_conv": config.moments,
        "use_post_quant_conv": config.moments,
        "shift_factor": config.shift or None,
        "act_fn": "silu",
    }


def _transformer(config: TransformerConfig) -> Described:
    return {
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.hidden,
        "hidden_act": config.activation,
        "layer_norm_eps": config.eps,
    }


def describe_clip_text(config: ClipTextConfig) -> Described:
    """With its projection or without."""
    projected = config.projection is not None
    return {
        "architectures": ["CLIPTextModelWithProjection" if projected else "CLIPTextModel"],
        "model_type": "clip_text_model",
        **_transformer(config.transformer),
        "vocab_size": config.vocabulary,
        "max_position_embeddings": config.positions,
        "eos_token_id": 2 if config.end is None else config.end,
        "bos_token_id": 0,
        "pad_token_id": 1,
        **({"projection_dim": config.projection} if projected else {}),
    }


def describe_clip_image(config: ClipImageConfig) -> Described:
    """Likewise."""
    projected = config.projection is not None
    return {
        "architectures": ["CLIPVisionModelWithProjection" if projected else "CLIPVisionModel"],
        "model_type": "clip_vision_model",
        **_transformer(config.transformer),
        "image_size": config.size,
        "patch_size": config.patch,
        **({"projection_dim": config.projection} if projected else {}),
    }


def describe_t5(config: T5Config) -> Described:
    """The encoder of v1.1."""
    return {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        "vocab_size": config.vocabulary,
        "d_model": config.width,
        "num_layers": config.layers,
        "num_heads": config.heads,
        "d_kv": config.head_dim,
        "d_ff": config.hidden,
        "relative_attention_num_buckets": config.buckets,
        "relative_attention_max_distance": config.distance,
        "layer_norm_epsilon": config.eps,
        "feed_forward_proj": "gated-gelu",
    }


def describe_bert(config: TextConfig) -> Described:
    """Without a pooler."""
    return {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": config.vocabulary,
        "max_position_embeddings": config.positions,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.hidden,
        "type_vocab_size": 1,
    }


def describe_prior(config: PriorConfig) -> Described:
    """Karlo's."""
    return {
        "_class_name": "PriorTransformer",
        "num_attention_heads": config.heads,
        "attention_head_dim": config.head_dim,
        "num_layers": config.layers,
        "embedding_dim": config.vector,
        "num_embeddings": config.tokens,
    }


def describe_image_conditions(config: ImageConditionsConfig) -> Described:
    """Karlo's."""
    return {
        "_class_name": "UnCLIPTextProjModel",
        "clip_embeddings_dim": config.vector,
        "cross_attention_dim": config.context,
        "time_embed_dim": config.embedding,
        "clip_extra_context_tokens": config.extra,
    }


DESCRIBERS: Mapping[type, Callable[[Any], Described]] = {
    ConditionalUNet: describe_unet,
    Autoencoder: describe_autoencoder,
    ClipText: describe_clip_text,
    ClipImage: describe_clip_image,
    T5Encoder: describe_t5,
    TextEncoder: describe_bert,
    Prior: describe_prior,
    ImageConditions: describe_image_conditions,
}
