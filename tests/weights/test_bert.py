"""BERT's public weights: its own names, those of the first checkpoints, files that do not fit, and PyTorch's encoder."""

import json

import jax.numpy as jnp
import naive
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxvid.core.errors import UserError
from jaxvid.core.paths import flatten
from jaxvid.models.text import TextConfig, TextEncoder
from jaxvid.weights.bert import load_bert
from jaxvid.weights.loading import published
from jaxvid.weights.registry import load_model, rules_of

SIZES = TextConfig(vocabulary=11, positions=6, width=8, layers=2, heads=2, hidden=12, frozen=True)
TOKENS = np.array([[2, 5, 7, 3, 0], [10, 4, 0, 0, 0], [1, 1, 1, 1, 1]], np.int32)
PUBLIC = {
    "architectures": ["BertForMaskedLM"],
    "model_type": "bert",
    "vocab_size": 11,
    "max_position_embeddings": 6,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "position_embedding_type": "absolute",
    "pad_token_id": 0,
    "gradient_checkpointing": False,
}
PARTS = {
    "attention/query": "attention.self.query",
    "attention/key": "attention.self.key",
    "attention/value": "attention.self.value",
    "attention/out": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "expand": "intermediate.dense",
    "contract": "output.dense",
    "norm2": "output.LayerNorm",
}
QUERY = "encoder.layer.1.attention.self.query.weight"
TYPES = "embeddings.token_type_embeddings.weight"


@pytest.fixture(scope="module")
def encoder():
    return naive.filled(lambda key: TextEncoder(SIZES, key))


def public(p, scale="weight", shift="bias"):
    """The tensors of a checkpoint that holds our values `p`: dense matrices are `[out, in]`."""
    tensors = {
        "embeddings.word_embeddings.weight": p["words/table"],
        "embeddings.position_embeddings.weight": p["places/table"],
        TYPES: np.stack([p["kind"], p["kind"] + 9]),
        f"embeddings.LayerNorm.{scale}": p["norm/scale"],
        f"embeddings.LayerNorm.{shift}": p["norm/bias"],
    }
    for index in range(SIZES.layers):
        for ours, theirs in PARTS.items():
            name, leaves = (
                f"encoder.layer.{index}.{theirs}",
                naive.part(p, f"layers/{ours}", index),
            )
            if "norm" in ours:
                tensors[f"{name}.{scale}"] = leaves["scale"]
                tensors[f"{name}.{shift}"] = leaves["bias"]
            else:
                tensors[f"{name}.weight"] = np.ascontiguousarray(leaves["kernel"].T)
                tensors[f"{name}.bias"] = leaves["bias"]
    return tensors


def beside(prefix=""):
    """What published files hold besides the encoder."""
    return {
        f"{prefix}pooler.dense.weight": np.ones((8, 8), "f4"),
        f"{prefix}embeddings.position_ids": np.arange(6)[None],
        "cls.predictions.bias": np.zeros(11, "f4"),
    }


def stored(folder, tensors):
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("prefix", ["", "bert."])
@pytest.mark.parametrize("names", [("weight", "bias"), ("gamma", "beta")])
def test_public_weights_load(tmp_path, encoder, prefix, names):
    """Under either name of the norms' parameters: those of the first published checkpoints are gamma and beta."""
    _, p = encoder
    tensors = {prefix + name: leaf for name, leaf in public(p, *names).items()}
    loaded = flatten(load_bert(stored(tmp_path, tensors | beside(prefix)), SIZES))
    assert loaded.keys() == p.keys()
    for path, leaf in p.items():
        np.testing.assert_array_equal(loaded[path], leaf, err_msg=path)
        assert loaded[path].dtype == jnp.float32


def test_half_precision_loads_as_float32(tmp_path, encoder):
    _, p = encoder
    half = {name: leaf.astype(np.float16) for name, leaf in public(p).items()}
    loaded = flatten(load_bert(stored(tmp_path, half), SIZES))
    np.testing.assert_array_equal(loaded["words/table"], np.float16(p["words/table"]).astype("f4"))


def test_a_folder_is_read_by_its_class_and_written_back(tmp_path, encoder):
    """Every tensor by its name, bit for bit; of the two token types the first."""
    tensors = public(encoder[1])
    stored(tmp_path, tensors | beside())
    (tmp_path / "config.json").write_text(json.dumps(PUBLIC))
    module = load_model(tmp_path)
    written = published(module, rules_of(module))
    assert written.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(written[name], tensor[:1] if name == TYPES else tensor)
    again = flatten(load_model(stored(tmp_path, written)))
    for path, leaf in encoder[1].items():
        np.testing.assert_array_equal(again[path], leaf)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps is 1e-05"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"pad_token_id": 1}, "pad_token_id is 1"),
        ({"is_decoder": True}, "is_decoder is True"),
        ({"architectures": ["RobertaModel"]}, "RobertaModel cannot be read"),
    ],
)
def test_another_architecture_is_refused(tmp_path, encoder, change, words):
    """Rather than read as BERT."""
    stored(tmp_path, public(encoder[1]))
    (tmp_path / "config.json").write_text(json.dumps(PUBLIC | change))
    with pytest.raises(UserError, match=words) as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value)


def without(tensors, name):
    return {other: leaf for other, leaf in tensors.items() if other != name}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda t: without(t, QUERY), f"no tensor {QUERY}"),
        (lambda t: without(t, "embeddings.LayerNorm.bias"), "no tensor embeddings.LayerNorm.bias"),
        (lambda t: {**t, QUERY: t[QUERY][:5]}, rf"{QUERY} has shape \(5, 8\), .*wants \(8, 8\)"),
        (
            lambda t: {**t, "embeddings.word_embeddings.weight": np.ones((4, 8), "f4")},
            r"word_embeddings.weight has shape \(4, 8\), BERT as configured in text wants \(11, 8\)",
        ),
        (lambda t: {**t, TYPES: np.ones((2, 9), "f4")}, r"shape \(1, 9\), .*wants \(1, 8\)"),
        (lambda t: {**t, TYPES: np.ones(8, "f4")}, r"shape \(8,\), .*wants \(1, 8\)"),
        (lambda t: {**t, QUERY: np.where(np.eye(8) == 1, np.nan, t[QUERY])}, "not finite"),
        (
            lambda t: {**t, QUERY.replace("1", "2"): t[QUERY]},
            r"3 layers, .* has 2; set text.layers",
        ),
        (lambda t: {**t, "encoder.more": np.ones(1, "f4")}, "encoder.more is not of BERT"),
    ],
    ids=["missing", "missing norm", "one layer's shape", "table's shape", "types' shape",
         "types are no table", "nan", "more layers", "more"],
)  # fmt: skip
def test_weights_that_do_not_fit_are_one_line(tmp_path, encoder, spoil, words):
    folder = stored(tmp_path, spoil(public(encoder[1])))
    with pytest.raises(UserError, match=words) as caught:
        load_bert(folder, SIZES)
    assert "\n" not in str(caught.value)
    assert "model.safetensors" in str(caught.value)


@pytest.mark.parametrize("keep", [0, 4, 100, -64])
def test_a_truncated_file_is_one_line(tmp_path, encoder, keep):
    path = tmp_path / "model.safetensors"
    stored(tmp_path, public(encoder[1]))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"model.safetensors cannot be read.*fetch it") as caught:
        load_bert(tmp_path, SIZES)
    assert "\n" not in str(caught.value)


def test_no_file_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"weights of BERT.* holds no .safetensors file"):
        load_bert(tmp_path, SIZES)


@pytest.mark.parity
def test_the_encoder_is_the_public_implementation(tmp_path):
    """The same random weights through transformers' BertModel, which then reads what we write."""
    torch = pytest.importorskip("torch", reason='needs PyTorch: pip install -e ".[parity]"')
    transformers = pytest.importorskip(
        "transformers", reason='needs transformers: pip install -e ".[parity]"'
    )
    sizes = {name: size for name, size in PUBLIC.items() if isinstance(size, int)}
    torch.manual_seed(0)
    model = transformers.BertModel(transformers.BertConfig(**sizes)).eval()
    words = torch.tensor(TOKENS.astype(np.int64))

    def ask(model):
        with torch.no_grad():
            return model(words, attention_mask=(words != 0).long()).last_hidden_state.numpy()

    with torch.no_grad():
        for leaf in model.parameters():
            leaf.add_(0.2 * torch.randn_like(leaf))
    model.save_pretrained(tmp_path)
    module = load_model(tmp_path)
    expected, found = ask(model), np.asarray(naive.call(module, TOKENS))
    np.testing.assert_allclose(found[TOKENS != 0], expected[TOKENS != 0], atol=2e-5)
    pooler = {
        name: tensor
        for name, tensor in load_file(tmp_path / "model.safetensors").items()
        if name.startswith("pooler.")
    }
    save_file(
        published(module, rules_of(module)) | pooler,
        tmp_path / "model.safetensors",
        metadata={"format": "pt"},
    )
    again = transformers.BertModel.from_pretrained(tmp_path, type_vocab_size=1).eval()
    np.testing.assert_array_equal(ask(again), expected)
