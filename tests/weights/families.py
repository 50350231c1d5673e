"""Tiny networks of every public family: how PyTorch makes and asks them, how we load and ask ours.

Sides are odd where the architecture allows, batches hold two different examples, clips three frames.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from jaxvid.weights.loading import WHOLE
from jaxvid.weights.motion import load_motion
from jaxvid.weights.registry import load_model


@dataclass(frozen=True)
class Family:
    """One network.

    library, name: the class in PyTorch. config: its arguments. inputs: name to (shape, kind) as of `fabricate.given`, arrays
    in PyTorch's layout. ask: of the PyTorch model and its inputs, the outputs. load, call: ours, of the folder, and of the
    module and the inputs in PyTorch's layout; outputs in PyTorch's layout too. adapter: arguments of a MotionAdapter beside it.
    """

    library: str
    name: str
    config: dict[str, Any]
    inputs: dict[str, tuple[tuple[int, ...], Any]]
    ask: Callable[..., Any]
    load: Callable[..., Any]
    call: Callable[..., Any]
    adapter: dict[str, Any] | None = None


def last(x):
    """Images `b c h w` to clips of one frame `b 1 h w c`."""
    return x.transpose(0, 2, 3, 1)[:, None]


def first(x):
    """Back."""
    return x[:, 0].transpose(0, 3, 1, 2)


def clip_last(x):
    """`b c t h w` to `b t h w c`."""
    return x.transpose(0, 2, 3, 4, 1)


def clip_first(x):
    """Back."""
    return x.transpose(0, 4, 1, 2, 3)


def frames_first(x):
    """`b t h w c` to `(b t) c h w`."""
    return x.reshape(-1, *x.shape[2:]).transpose(0, 3, 1, 2)


def ask_unet(model, x):
    """Of an image model with whatever it is given."""
    names = {"context": "encoder_hidden_states", "label": "class_labels"}
    more = {new: x[old] for old, new in names.items() if old in x}
    if "mask" in x:
        more["encoder_attention_mask"] = x["mask"]
    return model(x["z"], x["time"], **more).sample


def call_unet(unet, x):
    """Likewise."""
    more = {name: jnp.asarray(x[name]) for name in ("mask", "label") if name in x}
    context = jnp.asarray(x["context"]) if "context" in x else None
    return first(unet(last(x["z"]), jnp.asarray(x["time"]), context, **more))


CROSS = ("CrossAttnDownBlock2D", "DownBlock2D")
CROSS_UP = ("UpBlock2D", "CrossAttnUpBlock2D")
IMAGE: dict[str, Any] = {
    "block_out_channels": (16, 32),
    "norm_num_groups": 8,
    "layers_per_block": 1,
    "down_block_types": CROSS,
    "up_block_types": CROSS_UP,
    "cross_attention_dim": 12,
    "attention_head_dim": 4,
}
INPUTS: dict[str, Any] = {
    "z": ((2, 4, 7, 10), "normal"),
    "time": ((2,), "time"),
    "context": ((2, 5, 12), "normal"),
}


def image(inputs=None, **changes):
    """A UNet2DConditionModel."""
    given = {**INPUTS, **(inputs or {})}
    return Family(
        "diffusers",
        "UNet2DConditionModel",
        {**IMAGE, **changes},
        given,
        ask_unet,
        load_model,
        call_unet,
    )


SIMPLE = {
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "resnet_time_scale_shift": "scale_shift",
    "attention_head_dim": 8,
    "out_channels": 6,
    "in_channels": 3,
}
IF = {
    **SIMPLE,
    "act_fn": "gelu",
    "time_embedding_act_fn": "gelu",
    "resnet_skip_time_act": True,
    "resnet_out_scale_factor": 1.414,
    "mid_block_scale_factor": 1.414,
    "cross_attention_norm": "group_norm",
    "cross_attention_dim": 32,
    "encoder_hid_dim": 12,
    "encoder_hid_dim_type": "text_proj",
    "addition_embed_type": "text",
    "addition_embed_type_num_heads": 4,
}
PIXELS = {"z": ((2, 3, 8, 12), "normal")}

UNETS = {
    "stable diffusion 1": image(),
    "stable diffusion 2": image(
        attention_head_dim=(2, 4), use_linear_projection=True, layers_per_block=2
    ),
    "instruct pix2pix": image({"z": ((2, 8, 7, 10), "normal")}, in_channels=8),
    "upscaler": image(
        {"z": ((2, 7, 7, 10), "normal"), "label": ((2,), 10)},
        in_channels=7,
        num_class_embeds=10,
        block_out_channels=(16, 32, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        only_cross_attention=(True, True, False),
        use_linear_projection=True,
    ),
    "karlo decoder": image(
        {**PIXELS, "label": ((2, 64), "normal"), "mask": ((2, 5), "mask")},
        **SIMPLE,
        class_embed_type="identity",
    ),
    "deepfloyd 1": image({**PIXELS, "mask": ((2, 5), "mask")}, **IF),
    "deepfloyd 2": image(
        {"z": ((2, 6, 8, 12), "normal"), "label": ((2,), "time")},
        **{**IF, "in_channels": 6, "cross_attention_norm": "layer_norm"},
        class_embed_type="timestep",
    ),
    "karlo super-resolution": Family(
        "diffusers",
        "UNet2DModel",
        {
            "block_out_channels": (16, 32),
            "norm_num_groups": 8,
            "layers_per_block": 1,
            "down_block_types": ("ResnetDownsampleBlock2D",) * 2,
            "up_block_types": ("ResnetUpsampleBlock2D",) * 2,
            "resnet_time_scale_shift": "scale_shift",
            "add_attention": False,
            "in_channels": 6,
            "out_channels": 3,
        },
        {"z": ((2, 6, 8, 12), "normal"), "time": ((2,), "time")},
        ask_unet,
        load_model,
        call_unet,
    ),
    "modelscope": Family(
        "diffusers",
        "UNet3DConditionModel",
        {
            **IMAGE,
            "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
            "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
            "attention_head_dim": 8,
        },
        {**INPUTS, "z": ((2, 4, 3, 7, 10), "normal")},
        lambda model, x: model(x["z"], x["time"], x["context"]).sample,
        load_model,
        lambda unet, x: clip_first(
            unet(clip_last(x["z"]), jnp.asarray(x["time"]), jnp.asarray(x["context"]))
        ),
    ),
    "stable video diffusion": Family(
        "diffusers",
        "UNetSpatioTemporalConditionModel",
        {
            "block_out_channels": (32, 64),
            "layers_per_block": 1,
            "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
            "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
            "cross_attention_dim": 12,
            "num_attention_heads": (2, 4),
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 24,
        },
        {
            "z": ((2, 3, 8, 8, 12), "normal"),
            "time": ((2,), "time"),
            "context": ((2, 1, 12), "normal"),
            "numbers": ((2, 3), "normal"),
        },
        lambda model, x: model(x["z"], x["time"], x["context"], x["numbers"]).sample,
        load_model,
        lambda unet, x: jnp.asarray(
            unet(
                jnp.asarray(x["z"]).transpose(0, 1, 3, 4, 2),
                jnp.asarray(x["time"]),
                jnp.asarray(x["context"]),
                numbers=jnp.asarray(x["numbers"]),
            )
        ).transpose(0, 1, 4, 2, 3),
    ),
}

UNETS["animatediff"] = Family(
    "diffusers",
    "UNet2DConditionModel",
    IMAGE,
    {**INPUTS, "z": ((2, 4, 3, 7, 10), "normal")},
    lambda model, x: (
        model(x["z"], x["time"], x["context"].repeat_interleave(x["z"].shape[2], 0)).sample
    ),
    lambda folder, how=WHOLE: load_motion(folder, folder / "adapter", how),
    UNETS["modelscope"].call,
    adapter={
        "block_out_channels": (16, 32),
        "motion_layers_per_block": 1,
        "motion_num_attention_heads": 4,
        "motion_norm_num_groups": 8,
    },
)

VAE = {
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "latent_channels": 4,
}
AUTOENCODERS = {
    "autoencoder": Family(
        "diffusers",
        "AutoencoderKL",
        VAE,
        {"x": ((2, 3, 8, 12), "normal"), "z": ((2, 4, 5, 3), "normal")},
        lambda model, x: (model.encode(x["x"]).latent_dist.mean, model.decode(x["z"]).sample),
        load_model,
        lambda vae, x: (
            first(vae.moments(last(x["x"]))[0]),
            first(vae.decode(last(x["z"]) * vae.config.scale)),
        ),
    ),
    "temporal decoder": Family(
        "diffusers",
        "AutoencoderKLTemporalDecoder",
        {
            "block_out_channels": (32, 64),
            "layers_per_block": 2,
            "down_block_types": ("DownEncoderBlock2D",) * 2,
        },
        {"x": ((2, 3, 8, 12), "normal"), "z": ((2, 3, 4, 5, 3), "normal")},
        lambda model, x: (
            model.encode(x["x"]).latent_dist.mean,
            model.decode(x["z"].flatten(0, 1), num_frames=x["z"].shape[1]).sample,
        ),
        load_model,
        lambda vae, x: (
            first(vae.moments(last(x["x"]))[0]),
            frames_first(
                vae.decode(jnp.asarray(x["z"]).transpose(0, 1, 3, 4, 2) * vae.config.scale)
            ),
        ),
    ),
}


def ask_clip(model, x):
    """Of a text encoder: tokens, and the vector, projected or not."""
    found = model(x["tokens"], attention_mask=x.get("mask"))
    vector = found.text_embeds if "text_embeds" in found else found.pooler_output
    return found.last_hidden_state, vector


def call_clip(clip, x):
    """Likewise."""
    return clip(jnp.asarray(x["tokens"]), mask=jnp.asarray(x["mask"]) if "mask" in x else None)


CLIP = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
TEXT = {**CLIP, "vocab_size": 99, "max_position_embeddings": 20}
ENCODERS = {
    "clip text": Family(
        "transformers",
        "CLIPTextModel",
        {**TEXT, "hidden_act": "quick_gelu", "eos_token_id": 2, "bos_token_id": 0},
        {"tokens": ((2, 9), 98)},
        ask_clip,
        load_model,
        call_clip,
    ),
    "clip text, projected": Family(
        "transformers",
        "CLIPTextModelWithProjection",
        {**TEXT, "hidden_act": "gelu", "eos_token_id": 7, "bos_token_id": 0, "projection_dim": 12},
        {"tokens": ((3, 20), 9), "mask": ((3, 20), "mask")},
        ask_clip,
        load_model,
        call_clip,
    ),
    "clip image": Family(
        "transformers",
        "CLIPVisionModelWithProjection",
        {**CLIP, "hidden_act": "gelu", "image_size": 12, "patch_size": 4, "projection_dim": 12},
        {"images": ((2, 3, 12, 12), "normal")},
        lambda model, x: (
            model(x["images"]).last_hidden_state,
            model(x["images"]).image_embeds,
        ),
        load_model,
        lambda clip, x: clip(jnp.asarray(x["images"]).transpose(0, 2, 3, 1)),
    ),
    "t5": Family(
        "transformers",
        "T5EncoderModel",
        {
            "vocab_size": 99,
            "d_model": 24,
            "d_kv": 8,
            "d_ff": 40,
            "num_layers": 3,
            "num_heads": 4,
            "feed_forward_proj": "gated-gelu",
            "relative_attention_num_buckets": 8,
            "relative_attention_max_distance": 20,
        },
        {"tokens": ((2, 40), 98), "mask": ((2, 40), "mask")},
        lambda model, x: model(x["tokens"], attention_mask=x["mask"]).last_hidden_state,
        load_model,
        lambda t5, x: jnp.asarray(t5(jnp.asarray(x["tokens"]), jnp.asarray(x["mask"]))),
    ),
}

UNCLIP = {
    "karlo prior": Family(
        "diffusers",
        "PriorTransformer",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "num_layers": 3,
            "embedding_dim": 12,
            "num_embeddings": 6,
        },
        {
            "z": ((2, 12), "normal"),
            "time": ((2,), "time"),
            "vector": ((2, 12), "normal"),
            "tokens": ((2, 6, 12), "normal"),
            "mask": ((2, 6), "mask"),
        },
        lambda model, x: (
            model(x["z"], x["time"], x["vector"], x["tokens"], x["mask"]).predicted_image_embedding
        ),
        load_model,
        lambda prior, x: prior(x["z"], x["time"], x["vector"], x["tokens"], x["mask"]),
    ),
    "karlo conditions": Family(
        "diffusers.pipelines.deprecated.unclip.text_proj",
        "UnCLIPTextProjModel",
        {
            "clip_extra_context_tokens": 3,
            "clip_embeddings_dim": 12,
            "time_embed_dim": 20,
            "cross_attention_dim": 16,
        },
        {
            "image": ((2, 12), "normal"),
            "vector": ((2, 12), "normal"),
            "tokens": ((2, 6, 12), "normal"),
        },
        lambda model, x: model(
            image_embeddings=x["image"],
            prompt_embeds=x["vector"],
            text_encoder_hidden_states=x["tokens"],
            do_classifier_free_guidance=False,
        ),
        load_model,
        lambda conditions, x: conditions(x["image"], x["vector"], x["tokens"]),
    ),
}
FAMILIES = {**UNETS, **AUTOENCODERS, **ENCODERS, **UNCLIP}
