"""CLIP's and T5's encoders from folders of transformers."""

from pathlib import Path

import jax

from jaxvid.core.errors import UserError
from jaxvid.models.clip import (
    ClipImage,
    ClipImageConfig,
    ClipText,
    ClipTextConfig,
    TransformerConfig,
)
from jaxvid.models.t5 import T5Config, T5Encoder
from jaxvid.weights.fields import DEEPEST, Fields, read_fields
from jaxvid.weights.loading import Source, tensors_of
from jaxvid.weights.naming import Rules

_LAYER: Rules = (
    (r"/norm([12])/", r"/layer_norm\1/"),
    (r"/attention/query/", "/self_attn/q_proj/"),
    (r"/attention/key/", "/self_attn/k_proj/"),
    (r"/attention/value/", "/self_attn/v_proj/"),
    (r"/attention/out/", "/self_attn/out_proj/"),
    (r"/expand/", "/mlp/fc1/"),
    (r"/contract/", "/mlp/fc2/"),
)
CLIP_TEXT: Rules = (
    (r"/words/", "/text_model/embeddings/token_embedding/"),
    (r"/places/", "/text_model/embeddings/position_embedding/"),
    (r"^/layers/", "/text_model/encoder/layers/"),
    (r"^/norm/", "/text_model/final_layer_norm/"),
    (r"^/projection/", "/text_projection/"),
    *_LAYER,
)
CLIP_IMAGE: Rules = (
    (r"^/token$", "/vision_model/embeddings/class_embedding"),
    (r"^/patches/", "/vision_model/embeddings/patch_embedding/"),
    (r"^/places/", "/vision_model/embeddings/position_embedding/"),
    (r"^/norm1/", "/vision_model/pre_layrnorm/"),
    (r"^/norm2/", "/vision_model/post_layernorm/"),
    (r"^/layers/", "/vision_model/encoder/layers/"),
    (r"^/projection/", "/visual_projection/"),
    *_LAYER,
)
T5: Rules = (
    (r"/words/", "/shared/"),
    (r"^/positions/", "/encoder/block/0/layer/0/SelfAttention/relative_attention_bias/"),
    (r"^/norm/", "/encoder/final_layer_norm/"),
    (r"^/layers/\{\}/norm1/", "/encoder/block/{}/layer/0/layer_norm/"),
    (r"^/layers/\{\}/norm2/", "/encoder/block/{}/layer/1/layer_norm/"),
    (r"^/layers/\{\}/query/", "/encoder/block/{}/layer/0/SelfAttention/q/"),
    (r"^/layers/\{\}/key/", "/encoder/block/{}/layer/0/SelfAttention/k/"),
    (r"^/layers/\{\}/value/", "/encoder/block/{}/layer/0/SelfAttention/v/"),
    (r"^/layers/\{\}/out/", "/encoder/block/{}/layer/0/SelfAttention/o/"),
    (r"^/layers/\{\}/gate/", "/encoder/block/{}/layer/1/DenseReluDense/wi_0/"),
    (r"^/layers/\{\}/expand/", "/encoder/block/{}/layer/1/DenseReluDense/wi_1/"),
    (r"^/layers/\{\}/contract/", "/encoder/block/{}/layer/1/DenseReluDense/wo/"),
)

# In a CLIPModel's file, beside the half that is read.
_BESIDE_TEXT = ("vision_model.", "visual_projection.", "logit_scale")
_BESIDE_IMAGE = ("text_model.", "text_projection.", "logit_scale")


# Of generation, and others that both halves of a CLIPModel of transformers 4 have written out.
_GENERATION = {
    "diversity_penalty": 0.0, "encoder_no_repeat_ngram_size": 0, "length_penalty": 1.0, "max_length": 20, "min_length": 0,
    "no_repeat_ngram_size": 0, "num_beam_groups": 1, "num_beams": 1, "num_return_sequences": 1, "repetition_penalty": 1.0,
    "temperature": 1.0, "tie_word_embeddings": True, "top_k": 50, "top_p": 1.0, "typical_p": 1.0, "pruned_heads": {},
}  # fmt: skip


def _half(folder: str | Path, part: str, classes: tuple[str, ...]) -> tuple[bool, Fields]:
    """The fields of an encoder, alone in its folder or a half of a CLIPModel; and whether it has a projection."""
    kind, fields = read_fields(folder)
    if kind != "CLIPModel":
        if kind not in classes:
            raise UserError(f"{fields.where}: {kind} is no CLIP {part} encoder; give one's folder")
        return kind.endswith("WithProjection"), fields
    name = f"{'vision' if part == 'image' else part}_config"
    values = fields.take(name, None)
    if not isinstance(values, dict):
        raise fields.refusal(name, values, "the fields of that half are wanted")
    width = fields.number("projection_dim", 512)
    return True, Fields({**values, "projection_dim": width}, f"{fields.where}, {name}")


def _transformer(fields: Fields, defaults: TransformerConfig) -> TransformerConfig:
    width = fields.number("hidden_size", defaults.width)
    return TransformerConfig(
        width=width,
        layers=fields.number("num_hidden_layers", defaults.layers, most=DEEPEST),
        heads=fields.heads("num_attention_heads", defaults.heads, width),
        hidden=fields.number("intermediate_size", defaults.hidden),
        activation=fields.choice(
            "hidden_act", {"quick_gelu": "quick_gelu", "gelu": "gelu"}, "quick_gelu"
        ),
        eps=fields.real("layer_norm_eps", 1e-5, 0.0),
    )


def clip_text_source(folder: str | Path, variant: str | None = None) -> Source:
    """CLIP's text encoder, with its projection where the class has one; or that of a whole CLIPModel."""
    classes = ("CLIPTextModel", "CLIPTextModelWithProjection")
    projected, fields = _half(folder, "text", classes)
    end = fields.take("eos_token_id", 2)
    projection = fields.number("projection_dim", 512)
    config = ClipTextConfig(
        transformer=_transformer(fields, TransformerConfig(512, 12, 8, 2048)),
        vocabulary=fields.number("vocab_size", 49408),
        positions=fields.number("max_position_embeddings", 77),
        # 2 was written before transformers knew better.
        end=None if end == 2 else end,
        projection=projection if projected else None,
    )
    for name in ("bos_token_id", "pad_token_id"):
        fields.take(name, 0)
    fields.end(_GENERATION)
    abstract = jax.eval_shape(lambda key: ClipText(config, key), jax.random.key(0))
    tensors = tensors_of(folder, "a ClipText", variant, _in_text_model)
    return Source(abstract, tensors, CLIP_TEXT)


def _in_text_model(name: str) -> str | None:
    """Transformers 5 writes the text model's names without its own; older files hold the positions' numbers."""
    if name.endswith(".position_ids") or name.startswith(_BESIDE_TEXT):
        return None
    whole = name.startswith(("text_model.", "text_projection."))
    return name if whole else f"text_model.{name}"


def clip_image_source(folder: str | Path, variant: str | None = None) -> Source:
    """CLIP's image encoder, with its projection where the class has one; or that of a whole CLIPModel."""
    classes = ("CLIPVisionModel", "CLIPVisionModelWithProjection")
    projected, fields = _half(folder, "image", classes)
    projection = fields.number("projection_dim", 512)
    config = ClipImageConfig(
        transformer=_transformer(fields, TransformerConfig(768, 12, 12, 3072)),
        size=fields.number("image_size", 224),
        patch=fields.number("patch_size", 32),
        projection=projection if projected else None,
    )
    fields.end({"num_channels": 3, **_GENERATION})
    abstract = jax.eval_shape(lambda key: ClipImage(config, key), jax.random.key(0))
    tensors = tensors_of(folder, "a ClipImage", variant, _in_vision_model)
    return Source(abstract, tensors, CLIP_IMAGE)


def _in_vision_model(name: str) -> str | None:
    if name.endswith(".position_ids") or name.startswith(_BESIDE_IMAGE):
        return None
    outside = name.startswith(("vision_model.", "visual_projection."))
    return name if outside else f"vision_model.{name}"


def t5_source(folder: str | Path, variant: str | None = None) -> Source:
    """The encoder of T5 v1.1."""
    kind, fields = read_fields(folder)
    if kind not in ("T5EncoderModel", "T5ForConditionalGeneration"):
        raise UserError(f"{fields.where}: {kind} is no T5; give one's folder")
    heads = fields.number("num_heads", 8)
    config = T5Config(
        vocabulary=fields.number("vocab_size", 32128),
        width=fields.number("d_model", 512),
        layers=fields.number("num_layers", 6, most=DEEPEST),
        heads=heads,
        head_dim=fields.number("d_kv", 64),
        hidden=fields.number("d_ff", 2048),
        buckets=fields.number("relative_attention_num_buckets", 32),
        distance=fields.number("relative_attention_max_distance", 128),
        eps=fields.real("layer_norm_epsilon", 1e-6, 0.0),
    )
    fields.choice("feed_forward_proj", {"gated-gelu": True}, "relu")
    for name in ("pad_token_id", "eos_token_id", "decoder_start_token_id", "num_decoder_layers",
                 "tie_word_embeddings", "is_encoder_decoder", "n_positions", "output_past",
                 "task_specific_params", "dense_act_fn", "is_gated_act", "classifier_dropout",
                 "is_decoder", "bos_token_id", "scale_decoder_outputs"):  # fmt: skip
        fields.take(name, 0)
    fields.end({})
    abstract = jax.eval_shape(lambda key: T5Encoder(config, key), jax.random.key(0))
    tensors = tensors_of(folder, "a T5Encoder", variant, _of_encoder)
    # The encoder's table of words is the shared one: some files hold both names, some either.
    tensors.alike("shared.weight", ["encoder.embed_tokens.weight"])
    return Source(abstract, tensors, T5)


def _of_encoder(name: str) -> str | None:
    """A decoder may stand beside the encoder."""
    return None if name.startswith(("decoder.", "lm_head.")) else name
