"""BERT's encoder from a folder of transformers.

Names with or without the leading "bert."; a norm's parameters are weight and bias, or gamma and beta as in the first published
checkpoints. The pooler and the heads are not read. The token type is 0 throughout: of the table of types the first row is our
`kind`, and it is written back as a table of that row (`type_vocab_size` 1).
"""

import re
from pathlib import Path

from jaxvid.core.errors import UserError
from jaxvid.models.text import TextConfig, TextEncoder, abstract_encoder
from jaxvid.weights.fields import DEEPEST, read_fields
from jaxvid.weights.loading import WHOLE, Loading, Source, load, tensors_of
from jaxvid.weights.naming import Rules

KINDS = ("BertModel", "BertForMaskedLM", "BertForPreTraining")
BERT: Rules = (
    (r"^/words/", "/embeddings/word_embeddings/"),
    (r"^/places/", "/embeddings/position_embeddings/"),
    (r"^/kind$", "/embeddings/token_type_embeddings/weight"),
    (r"^/norm/", "/embeddings/LayerNorm/"),
    (r"^/layers/\{\}/attention/out/", "/encoder/layer/{}/attention/output/dense/"),
    (r"^/layers/\{\}/attention/", "/encoder/layer/{}/attention/self/"),
    (r"^/layers/\{\}/norm1/", "/encoder/layer/{}/attention/output/LayerNorm/"),
    (r"^/layers/\{\}/expand/", "/encoder/layer/{}/intermediate/dense/"),
    (r"^/layers/\{\}/contract/", "/encoder/layer/{}/output/dense/"),
    (r"^/layers/\{\}/norm2/", "/encoder/layer/{}/output/LayerNorm/"),
)


def load_bert(folder: str | Path, config: TextConfig, how: Loading = WHOLE) -> TextEncoder:
    """BERT's encoder of the sizes in `config`; no config.json is needed. Raises UserError naming the file and the tensor."""
    return load(_source(folder, config, "BERT as configured in text", how.variant), how)


def bert_source(folder: str | Path, variant: str | None = None) -> Source:
    """The encoder of the BERT in `folder`."""
    return _source(folder, bert_config(folder), "BERT", variant)


def _source(folder: str | Path, config: TextConfig, kind: str, variant: str | None) -> Source:
    tensors = tensors_of(folder, kind, variant, _of_encoder)
    found = [re.match(r"encoder\.layer\.(\d+)\.", name) for name in tensors.shapes]
    depth = max((int(match[1]) + 1 for match in found if match), default=0)
    if depth > config.layers:
        raise UserError(
            f"{tensors.files}: {depth} layers, but {kind} has {config.layers}; set text.layers"
        )
    tensors.cut("embeddings.token_type_embeddings.weight")
    return Source(abstract_encoder(config), tensors, BERT)


def _of_encoder(name: str) -> str | None:
    """The name without its prefix and as it is now; nothing for the pooler, a head, or the positions' numbers."""
    name = name.removeprefix("bert.")
    if not name.startswith(("embeddings.", "encoder.")) or name.endswith(".position_ids"):
        return None
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
        "LayerNorm.beta", "LayerNorm.bias"
    )


def bert_config(folder: str | Path) -> TextConfig:
    """The configuration of the BERT in `folder`. Raises UserError for what cannot be expressed."""
    kind, fields = read_fields(folder)
    if kind not in KINDS:
        raise UserError(f"{fields.where}: {kind} is no BERT; give one's folder")
    width = fields.number("hidden_size", 768)
    config = TextConfig(
        vocabulary=fields.number("vocab_size", 30522),
        positions=fields.number("max_position_embeddings", 512),
        width=width,
        layers=fields.number("num_hidden_layers", 12, most=DEEPEST),
        heads=fields.heads("num_attention_heads", 12, width),
        hidden=fields.number("intermediate_size", 3072),
    )
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout",
                 "type_vocab_size", "bos_token_id", "eos_token_id"):  # fmt: skip
        fields.take(name, 0)
    fields.choice("hidden_act", {"gelu": True}, "gelu")
    fields.end({"layer_norm_eps": 1e-12, "position_embedding_type": "absolute", "pad_token_id": 0,
                "tie_word_embeddings": True})  # fmt: skip
    return config
