"""The text encoder against BERT written out in numpy, and public weights in BERT's own layout."""

import jax
import jax.numpy as jnp
import naive
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxvid.core.errors import UserError
from jaxvid.models.bert import load_bert
from jaxvid.models.text import TextConfig, TextEncoder, abstract_encoder

CONFIG = TextConfig(vocabulary=11, positions=6, width=8, layers=2, heads=2, hidden=12, frozen=True)
TOKENS = np.array([[2, 5, 7, 3, 0], [10, 4, 0, 0, 0], [1, 1, 1, 1, 1]], np.int32)


@pytest.fixture(scope="module")
def encoder():
    return naive.filled(lambda key: TextEncoder(CONFIG, key))


def test_the_encoder_is_berts(encoder):
    module, p = encoder
    found, expected = np.asarray(naive.call(module, TOKENS)), naive.bert(CONFIG, p, TOKENS)
    for row, tokens in enumerate(TOKENS):
        counted = tokens != 0
        np.testing.assert_allclose(found[row, counted], expected[row, counted], atol=2e-5)


def test_padding_changes_no_word(encoder):
    module, _ = encoder
    long = naive.call(module, TOKENS)
    short = naive.call(module, TOKENS[1:2, :2])
    np.testing.assert_allclose(short[0], long[1, :2], atol=1e-5)
    nothing = naive.call(module, 0 * TOKENS)  # a caption of padding alone is finite
    assert np.isfinite(nothing).all()


def test_the_defaults_are_bert_large():
    parameters = sum(
        np.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_encoder(TextConfig()))
    )
    # 24 layers of 4 d^2 + 2 d h + 9 d + h, tables of 30522 + 512 + 1 rows and a norm.
    d, h = 1024, 4096
    assert parameters == 24 * (4 * d * d + 2 * d * h + 9 * d + h) + (30522 + 512 + 1 + 2) * d


# Public weights

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


def public(p, scale="weight", shift="bias"):
    """The tensors of a checkpoint that holds our values `p`: dense matrices are `[out, in]`."""
    rng = np.random.default_rng(7)
    tensors = {
        "embeddings.word_embeddings.weight": p["words/table"],
        "embeddings.position_embeddings.weight": p["places/table"],
        "embeddings.token_type_embeddings.weight": np.stack([p["kind"], p["kind"] + 9]),
        f"embeddings.LayerNorm.{scale}": p["norm/scale"],
        f"embeddings.LayerNorm.{shift}": p["norm/bias"],
        "pooler.dense.weight": rng.normal(size=(8, 8)).astype("f4"),
    }
    for index in range(CONFIG.layers):
        for ours, theirs in PARTS.items():
            name, leaves = (
                f"encoder.layer.{index}.{theirs}",
                naive.part(p, f"layers/{ours}", index),
            )
            if "norm" in ours:
                tensors[f"{name}.{scale}"], tensors[f"{name}.{shift}"] = (
                    leaves["scale"],
                    leaves["bias"],
                )
            else:
                tensors[f"{name}.weight"] = np.ascontiguousarray(leaves["kernel"].T)
                tensors[f"{name}.bias"] = leaves["bias"]
    return tensors


def stored(folder, tensors):
    save_file(tensors, folder / "model.safetensors")
    return str(folder)


@pytest.mark.parametrize("prefix", ["", "bert."])
@pytest.mark.parametrize("names", [("weight", "bias"), ("gamma", "beta")])
def test_public_weights_load(tmp_path, encoder, prefix, names):
    """Under either name of the norms' parameters: those of the first published checkpoints are gamma and beta."""
    _, p = encoder
    tensors = {prefix + name: leaf for name, leaf in public(p, *names).items()}
    tensors["cls.predictions.bias"] = np.zeros(11, "f4")
    loaded = load_bert(stored(tmp_path, tensors), CONFIG)
    assert loaded.keys() == p.keys()
    for path, leaf in p.items():
        np.testing.assert_array_equal(loaded[path], leaf, err_msg=path)
        assert loaded[path].dtype == jnp.float32


def test_half_precision_loads_as_float32(tmp_path, encoder):
    _, p = encoder
    half = {name: leaf.astype(np.float16) for name, leaf in public(p).items()}
    loaded = load_bert(stored(tmp_path, half), CONFIG)
    np.testing.assert_array_equal(loaded["words/table"], np.float16(p["words/table"]).astype("f4"))


QUERY = "encoder.layer.1.attention.self.query.weight"


def without(tensors, name):
    return {other: leaf for other, leaf in tensors.items() if other != name}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda t: without(t, QUERY), f"lacks the tensor {QUERY}"),
        (lambda t: without(t, "embeddings.LayerNorm.bias"), "lacks the tensor embeddings.Layer"),
        (lambda t: {**t, QUERY: t[QUERY][:5]}, r"layer.1.attention.self.query.weight .*shape"),
        (lambda t: {**t, "embeddings.word_embeddings.weight": np.ones((4, 8), "f4")}, "shape"),
        (lambda t: {**t, QUERY: np.where(np.eye(8) == 1, np.nan, t[QUERY])}, "not finite"),
        (
            lambda t: {**t, QUERY.replace("1", "2"): t[QUERY]},
            r"3 layers .*text.layers is 2",
        ),
    ],
    ids=["missing", "missing norm", "one layer's shape", "table's shape", "nan", "more layers"],
)
def test_weights_that_do_not_fit_are_one_line(tmp_path, encoder, spoil, words):
    folder = stored(tmp_path, spoil(public(encoder[1])))
    with pytest.raises(UserError, match=words) as caught:
        load_bert(folder, CONFIG)
    assert "\n" not in str(caught.value)
    assert "model.safetensors" in str(caught.value)


@pytest.mark.parametrize("keep", [0, 4, 100, -64])
def test_a_truncated_file_is_one_line(tmp_path, encoder, keep):
    path = tmp_path / "model.safetensors"
    stored(tmp_path, public(encoder[1]))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match="damaged") as caught:
        load_bert(str(tmp_path), CONFIG)
    assert "\n" not in str(caught.value)


def test_no_file_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"model.safetensors does not exist"):
        load_bert(str(tmp_path), CONFIG)


@pytest.mark.parity
def test_the_encoder_is_the_public_implementation(tmp_path):
    """The same random weights through transformers' BertModel."""
    torch = pytest.importorskip("torch", reason='needs PyTorch: pip install -e ".[parity]"')
    transformers = pytest.importorskip(
        "transformers", reason='needs transformers: pip install -e ".[parity]"'
    )
    settings = transformers.BertConfig(
        vocab_size=CONFIG.vocabulary,
        hidden_size=CONFIG.width,
        num_hidden_layers=CONFIG.layers,
        num_attention_heads=CONFIG.heads,
        intermediate_size=CONFIG.hidden,
        max_position_embeddings=CONFIG.positions,
    )
    torch.manual_seed(0)
    model = transformers.BertModel(settings).eval()
    with torch.no_grad():
        for leaf in model.parameters():
            leaf.add_(0.2 * torch.randn_like(leaf))
        words = torch.tensor(TOKENS.astype(np.int64))
        expected = model(words, attention_mask=(words != 0).long()).last_hidden_state.numpy()
    model.save_pretrained(tmp_path, safe_serialization=True)
    module = naive.with_values(abstract_encoder(CONFIG), load_bert(str(tmp_path), CONFIG))
    found = np.asarray(naive.call(module, TOKENS))
    np.testing.assert_allclose(found[TOKENS != 0], expected[TOKENS != 0], atol=2e-5)
