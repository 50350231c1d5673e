"""The stage that teaches the text encoder to read."""

import jax
import jax.numpy as jnp
import naive
import numpy as np
import pytest
from tiny_vdm import DATA, READER, READING, TEXT_OF_SHAPES, WORDS, system

from jaxvid.core.errors import UserError
from jaxvid.core.paths import flatten
from jaxvid.data.shapes.statements import CHOICES, NOT_ASKED
from jaxvid.systems.vdm import reading
from jaxvid.systems.vdm.networks import make_networks
from jaxvid.train.state import weights


def test_the_loss_is_the_cross_entropy_of_what_was_asked():
    key = jax.random.key(0)
    batch = next(reading.reading_phase(READER, READING).batches(None))
    batch = {name: jnp.asarray(rows[:3]) for name, rows in batch.items()}
    params = naive.filled(lambda key: make_networks(READER, key), 0)[1]
    params = {path: leaf for path, leaf in params.items() if path.startswith(reading.READ)}
    rng = np.random.default_rng(0)
    kernel = 0.3 * rng.standard_normal((READER.model.embedding_width, sum(CHOICES)))
    params[reading.READOUT] = kernel.astype(np.float32)
    arrays = {path: jnp.asarray(leaf) for path, leaf in params.items()}
    losses, sums = reading.reading_loss(READER, arrays, batch, jax.random.split(key, 3))
    words = naive.bert(TEXT_OF_SHAPES, naive.part(params, "text"), batch["tokens"])
    heads = TEXT_OF_SHAPES.width // TEXT_OF_SHAPES.heads
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
                all_right &= bool(np.asarray(logits).argmax() == answer)
        right += all_right
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    assert [float(part) for part in sums["right"]] == [right, 3]


def test_it_learns_to_read_and_the_next_stage_goes_on_from_there():
    """Most unseen captions are read without any error after 250 steps; text and pooling are carried, the readout is not."""
    first, second = READER.phases()
    batches, state = first.batches(None), jax.jit(first.init)(None, jax.random.key(0))
    step = jax.jit(first.step)
    for number in range(READING.steps):
        state, sums = step(state, next(batches), jax.random.fold_in(jax.random.key(1), number))
    assert float(sums["loss"][0] / sums["loss"][1]) < 2.0
    test = reading.CaptionBatches(READER.data.source("test"), WORDS, 200, seed=5)
    batch, params = next(test), weights(state)
    found = reading.choose(READER, params, jnp.asarray(batch["tokens"]))
    picked = np.stack([np.argmax(logits, axis=-1) for logits in found], axis=1)
    wrong = (picked != batch["answers"]) & (batch["answers"] != NOT_ASKED)
    assert wrong.any(axis=1).mean() < 0.3
    begun = weights(second.init(state, jax.random.key(2)))
    fresh = flatten(make_networks(READER, jax.random.key(2)))
    assert set(begun) == set(fresh)
    for path, leaf in begun.items():
        source = params if path.startswith(reading.READ) else fresh
        np.testing.assert_array_equal(leaf, source[path])


def test_what_is_not_read_with_waits_for_the_next_stage():
    """A model that is taught to read once more keeps the rest of its weights."""
    first, second = READER.phases()
    params = naive.filled(lambda key: make_networks(READER, key), 3)[1]
    state = first.init({"trainable": params}, jax.random.key(0))
    rest = {path for path in params if not path.startswith(reading.READ)}
    assert set(state["frozen"]) == rest
    assert set(state["trainable"]) == {*params} - rest | {reading.READOUT}
    begun = weights(second.init(state, jax.random.key(2)))
    assert set(begun) == set(params)
    for path, leaf in begun.items():
        np.testing.assert_array_equal(leaf, params[path])


def test_captions_depend_on_seed_and_position_alone():
    """Whatever the number of processes, and after a resumption."""
    source = READER.data.source("train")
    whole = reading.CaptionBatches(source, WORDS, 4, seed=1)
    first, second = next(whole), next(whole)
    halves = [reading.CaptionBatches(source, WORDS, 4, 1, (index, 2)) for index in (0, 1)]
    joined = [next(half) for half in halves]
    for name, rows in first.items():
        np.testing.assert_array_equal(rows, np.concatenate([half[name] for half in joined]))
    resumed = reading.CaptionBatches(source, WORDS, 4, seed=1)
    resumed.set_state(4)
    for name, rows in next(resumed).items():
        np.testing.assert_array_equal(rows, second[name])
    other = reading.CaptionBatches(source, WORDS, 4, seed=2)
    assert not np.array_equal(next(other)["tokens"], first["tokens"])
    with pytest.raises(UserError, match="batch 4 does not divide by 3 processes"):
        reading.CaptionBatches(source, WORDS, 4, 1, (0, 3))


def test_a_reading_stage_needs_captions_whose_truth_is_known():
    with pytest.raises(UserError, match="stage reading is a reading stage"):
        system(data=DATA, stages=(READING,)).phases()
