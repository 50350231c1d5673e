"""The text encoder against BERT written out in numpy."""

import jax
import naive
import numpy as np
import pytest

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
