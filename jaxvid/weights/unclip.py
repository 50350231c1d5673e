"""unCLIP's prior and the decoder's conditions from folders of diffusers (Karlo)."""

from pathlib import Path

import jax

from jaxvid.core.errors import UserError
from jaxvid.models.prior import ImageConditions, ImageConditionsConfig, Prior, PriorConfig
from jaxvid.weights.fields import DEEPEST, read_fields
from jaxvid.weights.loading import Source, tensors_of
from jaxvid.weights.naming import ATTENTION, Rules

PRIOR: Rules = (
    (r"^/tokens_proj/", "/encoder_hidden_states_proj/"),
    (r"^/positions$", "/positional_embedding"),
    (r"^/query$", "/prd_embedding"),
    (r"^/norm/", "/norm_out/"),
    (r"^/proj_out/", "/proj_to_clip_embeddings/"),
    (r"^/mean$", "/clip_mean"),
    (r"^/deviation$", "/clip_std"),
    (r"^/layers/\{\}/norm2/", "/transformer_blocks/{}/norm3/"),
    (r"^/layers/\{\}/attention/", "/transformer_blocks/{}/attn1/"),
    (r"^/layers/\{\}/expand/", "/transformer_blocks/{}/ff/net/0/proj/"),
    (r"^/layers/\{\}/contract/", "/transformer_blocks/{}/ff/net/2/"),
    (r"^/layers/", "/transformer_blocks/"),
    *ATTENTION,
)
IMAGE_CONDITIONS: Rules = (
    (r"^/unconditional$", "/learned_classifier_free_guidance_embeddings"),
    (r"^/text/", "/embedding_proj/"),
    (r"^/image/", "/clip_image_embeddings_project_to_time_embeddings/"),
    (r"^/extra/", "/clip_extra_context_tokens_proj/"),
    (r"^/tokens/", "/encoder_hidden_states_proj/"),
    (r"^/norm/", "/text_encoder_hidden_states_norm/"),
)


def prior_source(folder: str | Path, variant: str | None = None) -> Source:
    """UnCLIP's prior."""
    kind, fields = read_fields(folder)
    if kind != "PriorTransformer":
        raise UserError(f"{fields.where}: {kind} is no PriorTransformer; give a prior's folder")
    config = PriorConfig(
        heads=fields.number("num_attention_heads", 32),
        head_dim=fields.number("attention_head_dim", 64),
        layers=fields.number("num_layers", 20, most=DEEPEST),
        vector=fields.number("embedding_dim", 768),
        tokens=fields.number("num_embeddings", 77),
    )
    fields.end({"additional_embeddings": 4, "time_embed_act_fn": "silu", "norm_in_type": None,
                "encoder_hid_proj_type": "linear", "added_emb_type": "prd"})  # fmt: skip
    abstract = jax.eval_shape(lambda key: Prior(config, key), jax.random.key(0))
    return Source(abstract, tensors_of(folder, "a Prior", variant), PRIOR)


def image_conditions_source(folder: str | Path, variant: str | None = None) -> Source:
    """UnCLIP's projections of vectors and tokens for its decoder."""
    kind, fields = read_fields(folder)
    if kind != "UnCLIPTextProjModel":
        raise UserError(f"{fields.where}: {kind} is no UnCLIPTextProjModel; give its folder")
    config = ImageConditionsConfig(
        vector=fields.number("clip_embeddings_dim", 768),
        context=fields.number("cross_attention_dim"),
        embedding=fields.number("time_embed_dim"),
        extra=fields.number("clip_extra_context_tokens", 4),
    )
    fields.end({})
    abstract = jax.eval_shape(lambda key: ImageConditions(config, key), jax.random.key(0))
    tensors = tensors_of(folder, "an ImageConditions", variant)
    return Source(abstract, tensors, IMAGE_CONDITIONS)
