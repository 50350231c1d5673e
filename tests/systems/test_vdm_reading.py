"""The stage that teaches the text encoder to read."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import naive
import numpy as np
import pytest
from tiny_vdm import DATA, MODEL, STAGE, system

from jaxvid.core.errors import UserError
from jaxvid.core.paths import flatten
from jaxvid.data.shapes import MAX_CAPTION_WORDS, ShapesConfig, vocabulary
from jaxvid.data.shapes.statements import CHOICES, NOT_ASKED
from jaxvid.data.shapes_source import ShapesData
from jaxvid.data.tokens import WordTokenizer
from jaxvid.models.text import TextConfig
from jaxvid.systems.vdm import Stage, reading
from jaxvid.systems.vdm.networks import make_networks
from jaxvid.train.optimizer import OptimizerConfig
from jaxvid.train.state import weights

TOKENIZER = WordTokenizer(vocabulary(), MAX_CAPTION_WORDS)
TEXT = TextConfig(
    vocabulary=TOKENIZER.size,
    length=TOKENIZER.length,
    positions=TOKENIZER.length,
    width=32,
    layers=1,
    heads=2,
    hidden=32,
    frozen=False,
)
ADAM = OptimizerConfig(learning_rate=3e-3)
READING = Stage("reading", task="reading", steps=250, batch=32, optimizer=ADAM, ema=0.98)
CONFIG = replace(
    system(
        data=ShapesData(world=ShapesConfig(frames=4, size=8, two_objects=0.0)),
        model=replace(MODEL, embedding_width=32),
        stages=(READING, STAGE),
    ),
    text=TEXT,
    tokenizer=TOKENIZER,
)


def test_the_loss_is_the_cross_entropy_of_what_was_asked():
    key = jax.random.key(0)
    batch = next(reading.reading_phase(CONFIG, READING).batches(None))
    batch = {name: jnp.asarray(rows[:3]) for name, rows in batch.items()}
    params = naive.filled(lambda key: make_networks(CONFIG, key), 0)[1]
    params = {path: leaf for path, leaf in params.items() if path.startswith(reading.READ)}
    rng = np.random.default_rng(0)
    kernel = 0.3 * rng.standard_normal((CONFIG.model.embedding_width, sum(CHOICES)))
    params[reading.READOUT] = kernel.astype(np.float32)
    arrays = {path: jnp.asarray(leaf) for path, leaf in params.items()}
    losses, sums = reading.reading_loss(CONFIG, arrays, batch, jax.random.split(key, 3))
    words = naive.bert(TEXT, naive.part(params, "text"), batch["tokens"])
    heads = TEXT.width // TEXT.heads
    mask = batch["tokens"] != 0
    pooled = naive.attention_pooling(naive.part(params, "pool"), words, mask, heads)
    expected, right = np.zeros(3), 0
    for row in range(3):
        all_right, first = True, 0
        for question, choices in enumerate(CHOICES):
            logits = 8 * pooled[row] @ kernel[:, first : first + choices]
            first += choices
            answer = batch["answers"][row, question]
            if answer != NOT_ASKED:
                expected[row] += np.log(np.exp(logits).sum()) - logits[answer]
                all_right &= logits.argmax() == answer
        right += all_right
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    assert [float(part) for part in sums["right"]] == [right, 3]


def test_it_learns_to_read_and_the_next_stage_goes_on_from_there():
    """Most unseen captions are read without any error after 250 steps; text and pooling are carried, the readout is not."""
    first, second = CONFIG.phases()
    batches, state = first.batches(None), jax.jit(first.init)(None, jax.random.key(0))
    step = jax.jit(first.step)
    for number in range(READING.steps):
        state, sums = step(state, next(batches), jax.random.fold_in(jax.random.key(1), number))
    assert float(sums["loss"][0] / sums["loss"][1]) < 2.0
    test = reading.CaptionBatches(CONFIG.data.source("test"), TOKENIZER, 200, seed=5)
    batch, params = next(test), weights(state)
    found = reading.choose(CONFIG, params, jnp.asarray(batch["tokens"]))
    picked = np.stack([np.argmax(logits, axis=-1) for logits in found], axis=1)
    wrong = (picked != batch["answers"]) & (batch["answers"] != NOT_ASKED)
    assert wrong.any(axis=1).mean() < 0.3
    begun = weights(second.init(state, jax.random.key(2)))
    fresh = flatten(make_networks(CONFIG, jax.random.key(2)))
    assert set(begun) == set(fresh)
    for path, leaf in begun.items():
        source = params if path.startswith(reading.READ) else fresh
        np.testing.assert_array_equal(leaf, source[path])


def test_captions_depend_on_seed_and_position_alone():
    """Whatever the number of processes, and after a resumption."""
    source = CONFIG.data.source("train")
    whole = reading.CaptionBatches(source, TOKENIZER, 4, seed=1)
    first, second = next(whole), next(whole)
    halves = [reading.CaptionBatches(source, TOKENIZER, 4, 1, (index, 2)) for index in (0, 1)]
    joined = [next(half) for half in halves]
    for name, rows in first.items():
        np.testing.assert_array_equal(rows, np.concatenate([half[name] for half in joined]))
    resumed = reading.CaptionBatches(source, TOKENIZER, 4, seed=1)
    resumed.set_state(4)
    for name, rows in next(resumed).items():
        np.testing.assert_array_equal(rows, second[name])
    other = reading.CaptionBatches(source, TOKENIZER, 4, seed=2)
    assert not np.array_equal(next(other)["tokens"], first["tokens"])
    with pytest.raises(UserError, match="batch 4 does not divide by 3 processes"):
        reading.CaptionBatches(source, TOKENIZER, 4, 1, (0, 3))


def test_a_reading_stage_needs_captions_whose_truth_is_known():
    with pytest.raises(UserError, match="stage reading is a reading stage"):
        system(data=DATA, stages=(READING,)).phases()
