"""The order of examples, exact resume, appended images, damaged examples.

The reference for everything is a source whose pixels spell out which example, and which draw of the generator, made
them: `video[0, 0, 0] = (example // 256, example % 256, draw)`.
"""

import itertools
import json

import numpy as np
import pytest

from jaxvid.core.errors import UserError
from jaxvid.data.media import MediaError
from jaxvid.data.pipeline import PipelineConfig, batches
from jaxvid.data.shapes import MAX_CAPTION_WORDS, vocabulary
from jaxvid.data.shapes_source import ShapesData
from jaxvid.data.source import Example
from jaxvid.data.tokens import HashTokenizer, WordTokenizer

TOKENIZER = HashTokenizer(buckets=1000, length=4)


class Numbered:
    """`size` examples of 3x2x2 clips; those in `damaged` cannot be read."""

    def __init__(
        self, size: int, damaged: tuple[int, ...] = (), captioned: bool = True, classes: int = 5
    ):
        self.size, self.damaged = size, frozenset(damaged)
        self.frames, self.captioned, self.classes = 3, captioned, classes

    def __len__(self):
        return self.size

    def __repr__(self):
        return f"Numbered({self.size})"

    def name(self, index):
        return f"clip {index}"

    def __getitem__(self, index):
        return self.read(index, None)

    def read(self, index, rng, frames=None):
        if index in self.damaged:
            raise MediaError(f"clip {index}: damaged; take it out")
        draw = 0 if rng is None else int(rng.integers(256))
        video = np.zeros((self.frames if frames is None else frames, 2, 2, 3), np.uint8)
        video[:] = index // 256, index % 256, draw
        caption = f"word{index}" if self.captioned else None
        return Example(video=video, caption=caption, label=index % 5 if self.classes else None)


def examples_of(batch):
    """Example numbers [b, t + N] spelled by the pixels."""
    pixels = batch["video"][:, :, 0, 0].astype(int)
    return pixels[..., 0] * 256 + pixels[..., 1]


def take(source, config, count, **options):
    with batches(source, TOKENIZER, config, **options) as iterator:
        return list(itertools.islice(iterator, count))


def assert_equal(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def test_batch_is_as_the_contract_says():
    (batch,) = take(Numbered(10), PipelineConfig(batch=4, images=2), 1)
    shapes = {name: (array.shape, array.dtype.name) for name, array in batch.items()}
    assert shapes == {
        "video": ((4, 5, 2, 2, 3), "uint8"),
        "segment": ((4, 5), "int32"),
        "tokens": ((4, 3, 4), "int32"),
        "label": ((4, 3), "int32"),
        "index": ((4,), "int64"),
    }
    assert batch["segment"].tolist() == [[0, 0, 0, 1, 2]] * 4
    (bare,) = take(Numbered(10, captioned=False, classes=0), PipelineConfig(batch=4), 1)
    assert set(bare) == {"video", "segment", "index"}


def test_an_epoch_holds_every_example_once_and_epochs_differ():
    config = PipelineConfig(batch=4, seed=3)
    order = np.concatenate([examples_of(b)[:, 0] for b in take(Numbered(12), config, 6)])
    assert sorted(order[:12]) == sorted(order[12:]) == list(range(12))
    assert order[:12].tolist() != order[12:].tolist() != sorted(order)
    other = take(Numbered(12), PipelineConfig(batch=4, seed=4), 3)
    assert order[:12].tolist() != np.concatenate([examples_of(b)[:, 0] for b in other]).tolist()
    plain = take(Numbered(12), PipelineConfig(batch=4, shuffle=False), 4)
    plain_order = np.concatenate([examples_of(b)[:, 0] for b in plain])
    assert plain_order.tolist() == [i % 12 for i in range(16)]


@pytest.mark.parametrize("processes", [2, 4])
def test_global_batches_are_the_same_for_any_number_of_processes(processes):
    config = PipelineConfig(batch=8, seed=1, images=2)
    whole = take(Numbered(13), config, 5)  # 13: batches straddle epochs
    parts = [
        take(Numbered(13), config, 5, process_index=i, process_count=processes)
        for i in range(processes)
    ]
    for step, batch in enumerate(whole):
        joined = {name: np.concatenate([part[step][name] for part in parts]) for name in batch}
        assert_equal(joined, batch)
        assert batch["index"].tolist() == list(range(8 * step, 8 * step + 8))


def test_rows_do_not_depend_on_threads_or_batch_size():
    flat = {}
    for batch_size, threads in ((2, 1), (4, 8), (8, 3)):
        config = PipelineConfig(batch=batch_size, images=1, threads=threads, prefetch=3)
        rows = take(Numbered(9), config, 16 // batch_size)
        flat[batch_size] = {name: np.concatenate([b[name] for b in rows]) for name in rows[0]}
    assert_equal(flat[2], flat[4])
    assert_equal(flat[2], flat[8])


def test_resume_at_every_position_of_an_epoch_is_exact():
    source, config = Numbered(24), PipelineConfig(batch=2, seed=5, images=1)
    with batches(source, TOKENIZER, config) as iterator:
        states, whole = [], []
        for _ in range(16):  # a third into the second epoch
            states.append(json.loads(json.dumps(iterator.get_state())))
            whole.append(next(iterator))
    for step, state in enumerate(states[:13]):
        resumed = take(source, config, 3, start_state=state)
        for offset, batch in enumerate(resumed):
            assert_equal(batch, whole[step + offset])


def test_state_moves_between_batch_sizes_and_back_within_one_iterator():
    source = Numbered(20)
    whole = take(source, PipelineConfig(batch=2), 10)
    with batches(source, TOKENIZER, PipelineConfig(batch=6)) as iterator:
        start = iterator.get_state()
        next(iterator)
        state = iterator.get_state()
        assert_equal(take(source, PipelineConfig(batch=2), 1, start_state=state)[0], whole[3])
        iterator.set_state(start)
        assert next(iterator)["index"].tolist() == list(range(6))


def test_state_of_other_data_is_refused():
    state = batches(Numbered(20), TOKENIZER, PipelineConfig()).get_state()
    for source, config in (
        (Numbered(21), PipelineConfig()),
        (Numbered(20), PipelineConfig(seed=1)),
        (Numbered(20), PipelineConfig(shuffle=False)),
    ):
        with pytest.raises(UserError, match="now it is"):
            batches(source, TOKENIZER, config, start_state=state)


def test_appended_images_are_single_frames_of_other_examples_with_their_own_captions():
    words = {tuple(TOKENIZER.encode(f"word{i}")): i for i in range(40)}
    rows = take(Numbered(40), PipelineConfig(batch=8, images=3), 20)
    numbers = np.concatenate([examples_of(batch) for batch in rows])
    draws = np.concatenate([batch["video"][:, :, 0, 0, 2] for batch in rows])
    captions = [[words[tuple(ids)] for ids in row] for b in rows for row in b["tokens"]]
    labels = np.concatenate([batch["label"] for batch in rows])
    assert (numbers[:, :3] == numbers[:, :1]).all()
    assert (numbers[:, 3:] != numbers[:, :1]).all()
    np.testing.assert_array_equal(captions, numbers[:, [0, 3, 4, 5]])
    np.testing.assert_array_equal(labels, numbers[:, [0, 3, 4, 5]] % 5)
    # Independent of the clip, of each other and of the slot: every example comes up, and draws repeat only by chance.
    assert all(len(set(numbers[:, slot])) > 35 for slot in (3, 4, 5))
    assert np.mean(numbers[:, 3] == numbers[:, 4]) < 0.1
    assert np.mean(draws[:, 3] == draws[:, 0]) < 0.05
    assert np.mean(draws[:, 3] == draws[:, 4]) < 0.05


def test_example_randomness_is_new_in_every_epoch():
    rows = take(Numbered(8), PipelineConfig(batch=8, shuffle=False), 2)
    assert rows[0]["video"][:, 0, 0, 0, 2].tolist() != rows[1]["video"][:, 0, 0, 0, 2].tolist()


def test_damaged_examples_are_replaced_counted_and_named(caplog):
    source, config = Numbered(50, damaged=(3, 4, 5)), PipelineConfig(batch=5, images=1)
    with batches(source, TOKENIZER, config) as iterator:
        rows = list(itertools.islice(iterator, 20))
        counts = iterator.counts
    numbers = np.concatenate([examples_of(batch) for batch in rows])
    assert not np.isin(numbers, [3, 4, 5]).any()
    assert counts.examples == 100
    good = np.concatenate([examples_of(b)[:, 0] for b in take(Numbered(50), config, 20)])
    kept = ~np.isin(good, [3, 4, 5])
    np.testing.assert_array_equal(numbers[kept, 0], good[kept])  # the others keep their places
    assert counts.skipped >= (~kept).sum() == 6
    for i in (3, 4, 5):
        assert sum(f"clip {i}: damaged" in message for message in caplog.messages) == 1
    for batch, again in zip(rows, take(source, config, 20), strict=True):
        assert_equal(batch, again)


def test_too_many_damaged_examples_stop_the_run():
    source = Numbered(100, damaged=tuple(range(30)))
    with batches(source, TOKENIZER, PipelineConfig(batch=5)) as iterator:
        with pytest.raises(UserError, match=r"damaged, more than the allowed share of 0\.2"):
            list(itertools.islice(iterator, 40))
        assert 30 < iterator.counts.examples < 100
    lenient = PipelineConfig(batch=5, damaged_share=0.5)
    assert len(take(source, lenient, 40)) == 40


@pytest.mark.parametrize("size", [1, 3, 200])
def test_only_damaged_examples_stop_at_once(size):
    source = Numbered(size, damaged=tuple(range(size)))
    with pytest.raises(
        UserError, match=f"none of {min(size, 100)} examples could be read; the first: clip"
    ):
        take(source, PipelineConfig(batch=2), 1)


def test_after_an_error_the_iterator_stands_where_it_stood():
    source = Numbered(40, damaged=(7,))
    config = PipelineConfig(batch=4, shuffle=False, damaged_share=1.0)
    whole = take(source, config, 5)
    with batches(source, TOKENIZER, config) as iterator:
        next(iterator)
        state, source.damaged = iterator.get_state(), frozenset(range(40))
        iterator.close()
        for _ in range(2):
            with pytest.raises(UserError, match="none of 40"):
                next(iterator)
        assert iterator.get_state() == state
        source.damaged = frozenset((7,))
        assert_equal(next(iterator), whole[1])


def test_one_good_example_among_few_is_found():
    rows = take(Numbered(4, damaged=(0, 1, 3)), PipelineConfig(batch=4, damaged_share=1.0), 3)
    assert {int(i) for batch in rows for i in examples_of(batch).ravel()} == {2}


def test_cut_captions_are_counted():
    class Wordy(Numbered):
        def read(self, index, rng, frames=None):
            example = super().read(index, rng, frames)
            return Example(
                {**example, "caption": "one two three four five" if index % 2 else "one"}
            )

    with batches(Wordy(8), TOKENIZER, PipelineConfig(batch=8)) as iterator:
        next(iterator)
        assert iterator.counts.cut_captions == 4


def test_epochs_end_and_a_resumed_epoch_ends_in_the_same_place():
    config = PipelineConfig(batch=4, epochs=2)
    assert len(take(Numbered(7), config, 99)) == 3  # 14 examples: two are left out
    with batches(Numbered(7), TOKENIZER, config) as iterator:
        next(iterator)
        state = iterator.get_state()
    assert len(take(Numbered(7), config, 99, start_state=state)) == 2


def test_bad_settings_are_user_errors():
    for fields in (
        {"batch": 0},
        {"images": -1},
        {"threads": 0},
        {"epochs": 0},
        {"damaged_share": 2.0},
    ):
        with pytest.raises(UserError, match=next(iter(fields))):
            PipelineConfig(**fields)
    with pytest.raises(UserError, match="does not divide by 3"):
        batches(Numbered(9), TOKENIZER, PipelineConfig(batch=4), 0, 3)
    with pytest.raises(UserError, match="only one"):
        batches(Numbered(1), TOKENIZER, PipelineConfig(batch=4, images=1))
    with pytest.raises(UserError, match="lower the batch"):
        batches(Numbered(3), TOKENIZER, PipelineConfig(batch=4, epochs=1))


def test_shapes_source_gives_clips_stills_and_disjoint_splits():
    data = ShapesData()
    source = data.source()
    assert (data.frames, data.height, data.width, source.classes) == (16, 32, 32, 0)
    clip, again = source.read(5, np.random.default_rng(1)), source.read(5, np.random.default_rng(1))
    assert clip["caption"] == again["caption"]
    np.testing.assert_array_equal(clip["video"], again["video"])
    frames = {frame.tobytes(): i for i, frame in enumerate(clip["video"])}
    stills = [source.read(5, np.random.default_rng(seed), 1) for seed in range(60)]
    assert len({frames[still["video"][0].tobytes()] for still in stills}) > 10
    motions = (
        "mov",
        "slid",
        "drift",
        "spin",
        "turn",
        "rotat",
        "orbit",
        "loop",
        "bounc",
        "hop",
        "get",
        "grow",
        "shrink",
    )
    assert any(word in clip["caption"] for word in motions)
    assert not any(word in still["caption"] for still in stills for word in motions)
    test, heldout = data.source("test"), data.source("heldout")
    assert len({repr(part) for part in (source, test, heldout, ShapesData(length=4).source())}) == 4
    assert (test[0]["video"] != source[0]["video"]).any()
    assert ShapesData(length=40).source()[5]["video"].shape == (40, 32, 32, 3)
    np.testing.assert_array_equal(ShapesData(length=40).source()[5]["video"][:16], clip["video"])


def test_worker_processes_give_the_same_batches():
    source = ShapesData().source()
    tokenizer = WordTokenizer(vocabulary(), MAX_CAPTION_WORDS)
    one, two = PipelineConfig(batch=4, images=1), PipelineConfig(batch=4, images=1, workers=2)
    with batches(source, tokenizer, one) as here:
        next(here)
        state = here.get_state()
        with batches(source, tokenizer, two, start_state=state) as there:
            for _ in range(3):
                assert_equal(next(there), next(here))
            assert there.get_state() == here.get_state()
