"""From a source to batches: one Grain pipeline for every data set.

Symbols: B global batch, P processes, b = B / P rows of this process, t frames a clip, N appended images, n tokens.

The order. Positions p = 0, 1, 2, ... run over a seeded permutation of the source, newly permuted each epoch. Global
batch k is positions `kB .. (k+1)B - 1`, and process i holds its rows `i b .. (i+1) b - 1`: laid end to end in process
order the rows are the same for every number of processes. All randomness of an example (window, crop, mirroring,
caption, which images are appended) comes from (seed, p). So the state of an iterator is one integer, the next
position, and resuming is exact at any batch, also on another number of processes, threads or workers.

Joint training on videos and images (Ho et al. 2022, arXiv 2204.03458, section 3.1): N frames drawn from random other
examples, each with its own caption, are appended to the end of each clip.

Damaged examples are replaced by another one drawn from (seed, p), so shapes and order stay fixed; they are named,
counted, and when their share passes a limit the run stops.
"""

import dataclasses
import itertools
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import grain
import numpy as np
from absl import flags, logging

from jaxvid.core.errors import UserError
from jaxvid.data.media import MediaError
from jaxvid.data.source import Example, Source
from jaxvid.data.tokens import Tokenizer

Batch = dict[str, np.ndarray]
State = dict[str, Any]

_PART = 16  # rows that a worker sends at a time, at most: sent one by one, small clips cost more to receive than to read
_ORDER, _VIEW, _IMAGES, _REPLACE = range(4)  # streams of randomness; the first is Grain's shuffle
_GOOD_AFTER = 100  # examples tried for one position before the data count as unusable


@dataclass(frozen=True)
class PipelineConfig:
    """How a source becomes batches.

    batch: examples a global batch, over all processes. images: N, independent frames appended to each clip.
    epochs: passes over the source; None never ends. The examples that do not fill the last batch are left out.
    threads: examples read at the same time in a process. workers: processes that read; 0 reads in this one (worker
    processes import the caller's main module: keep it free of side effects). prefetch: batches read ahead.
    damaged_share: the run stops when more than this share of the examples, after the first 50, was damaged.
    """

    batch: int = 16
    seed: int = 0
    images: int = 0
    shuffle: bool = True
    epochs: int | None = None
    threads: int = 4
    workers: int = 0
    prefetch: int = 2
    damaged_share: int | float = 0.2

    def __post_init__(self):
        for name, least in (
            ("batch", 1),
            ("seed", 0),
            ("images", 0),
            ("threads", 1),
            ("workers", 0),
            ("prefetch", 1),
        ):
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}; it must be {least} or more")
        if self.epochs is not None and self.epochs < 1:
            raise UserError(f"epochs is {self.epochs}; it must be 1 or more, or None for no end")
        if not 0 <= self.damaged_share <= 1:
            raise UserError(f"damaged_share is {self.damaged_share}; it must be within 0 and 1")


class Counts(NamedTuple):
    """What the pipeline met so far: examples delivered, examples skipped as damaged, captions cut to length."""

    examples: int = 0
    skipped: int = 0
    cut_captions: int = 0


class Row(NamedTuple):
    """One row of a batch: arrays without the batch axis, and what is to be told of it."""

    arrays: Batch
    skipped: tuple[str, ...]
    cut_captions: int


@dataclass(frozen=True)
class RowReader:
    """Position p to row: the pure function that threads and worker processes run.

    Every integer is reproducible from (`config.seed`, p) alone.
    """

    source: Source
    tokenizer: Tokenizer | None
    config: PipelineConfig

    def order(self) -> Any:
        """Position to example, as a Grain data set of integers."""
        order = grain.MapDataset.range(len(self.source))
        if self.config.shuffle:
            order = order.shuffle(seed=self.config.seed)
        return order.repeat(self.config.epochs)

    def __call__(self, position: int, example: int) -> Row:
        """Reads example `example` for position p, with its appended images."""
        clip, skipped = self._read(position, 0, example, None)
        examples, frames = [clip], [clip["video"]]
        draw = self._rng(position, _IMAGES)
        for j in range(1, self.config.images + 1):
            other = int(draw.integers(len(self.source) - 1))
            other += other >= example  # any example but the clip's own
            image, more = self._read(position, j, other, 1)
            examples.append(image)
            frames.append(image["video"])
            skipped += more
        arrays: Batch = {
            "video": np.concatenate(frames),
            "segment": np.repeat(
                np.arange(len(frames), dtype=np.int32), [len(part) for part in frames]
            ),
            "index": np.asarray(position, np.int64),
        }
        cut = 0
        if self.source.captioned and self.tokenizer is not None:
            captions = [example["caption"] or "" for example in examples]
            arrays["tokens"] = np.stack([self.tokenizer.encode(text) for text in captions])
            lengths = (len(self.tokenizer.identifiers(text)) for text in captions)
            cut = sum(length > self.tokenizer.length for length in lengths)
        if "rate" in clip:
            arrays["rate"] = np.asarray([example.get("rate", 0) for example in examples], np.int32)
        if self.source.classes:
            arrays["label"] = np.asarray([example["label"] for example in examples], np.int32)
        return Row(arrays, skipped, cut)

    def _rng(self, position: int, stream: int, slot: int = 0) -> np.random.Generator:
        # A counter generator keyed by (seed, p); streams and slots are far apart in its counter.
        key = np.array([self.config.seed, position], np.uint64)
        counter = np.array([0, 0, slot, stream], np.uint64)
        return np.random.Generator(np.random.Philox(key=key, counter=counter))

    def _read(
        self, position: int, slot: int, example: int, frames: int | None
    ) -> tuple[Example, tuple[str, ...]]:
        """Reads one example; damaged ones give way to others drawn from (seed, p, slot)."""
        tried: dict[int, str] = {}
        draw = None
        while len(tried) < min(len(self.source), _GOOD_AFTER):
            try:
                read = self.source.read(example, self._rng(position, _VIEW, slot), frames)
                return read, tuple(tried.values())
            except MediaError as error:
                tried[example] = str(error)
            draw = self._rng(position, _REPLACE, slot) if draw is None else draw
            example = int(draw.integers(len(self.source)))
            while example in tried and len(tried) < len(self.source):
                example = (example + 1) % len(self.source)
        first = next(iter(tried.values()))
        raise UserError(f"none of {len(tried)} examples could be read; the first: {first}")


class Part(NamedTuple):
    """Consecutive rows of a batch: arrays with the batch axis."""

    arrays: Batch
    rows: int
    skipped: tuple[str, ...]
    cut_captions: int


@dataclass(frozen=True)
class LocalParts:
    """Number q of a part of this process's rows, `together` rows each, to its `Part`."""

    reader: RowReader
    start: int
    rows: int
    process_index: int
    together: int

    def __call__(self, part: int) -> Part | UserError:
        """Reads part q; a fault of the data is returned, not raised, so that it crosses processes as it is."""
        first = part * self.together
        try:
            rows = [self._read(row) for row in range(first, first + self.together)]
        except UserError as error:
            return error
        arrays = {name: np.stack([row.arrays[name] for row in rows]) for name in rows[0].arrays}
        skipped = tuple(itertools.chain.from_iterable(row.skipped for row in rows))
        return Part(arrays, len(rows), skipped, sum(row.cut_captions for row in rows))

    def _read(self, row: int) -> Row:
        batch, offset = divmod(row, self.rows)
        position = self.start + batch * self.reader.config.batch
        position += self.process_index * self.rows + offset
        return self.reader(position, int(self._order[position]))

    @property
    def _order(self) -> Any:
        order = self.__dict__.get("_kept")
        if order is None:
            order = self.reader.order()
            object.__setattr__(self, "_kept", order)
        return order

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


class BatchIterator:
    """Iterates over batches; its state is the next position of the global order. See `batches`."""

    def __init__(
        self,
        source: Source,
        tokenizer: Tokenizer | None,
        config: PipelineConfig,
        process_index: int,
        process_count: int,
    ):
        self.source = source
        self.config = config
        self.counts = Counts()
        self._reader = RowReader(source, tokenizer, config)
        self._process = process_index
        self._rows = config.batch // process_count
        self._position = 0
        self._named: dict[str, None] = {}
        self._parts: Any = None

    def __iter__(self) -> "BatchIterator":
        return self

    def __next__(self) -> Batch:
        try:
            if self._parts is None:
                self._parts = self._open(self._position)
            parts = next(self._parts)
            for part in parts:
                if isinstance(part, UserError):
                    raise part
                self._count(part)
        except BaseException:
            self.close()  # what was read ahead is void: another call starts from this batch again
            raise
        self._position += self.config.batch
        names = parts[0].arrays
        return {name: np.concatenate([part.arrays[name] for part in parts]) for name in names}

    def _open(self, start: int) -> Any:
        config, total = self.config, sys.maxsize
        # Threads share memory, so that they need not read several rows in turn.
        together = _divisor(self._rows, _PART) if config.workers else 1
        parts = self._rows // together
        if config.epochs is not None:
            total = (config.epochs * len(self.source) - start) // config.batch * parts
        read = LocalParts(self._reader, start, self._rows, self._process, together)
        reading = grain.ReadOptions(
            num_threads=config.threads, prefetch_buffer_size=config.prefetch * parts
        )
        data = grain.MapDataset.range(max(total, 0)).map(read).to_iter_dataset(reading)
        if config.workers:
            _parse_flags()
            buffer = -(-config.prefetch * parts // config.workers)
            data = data.mp_prefetch(
                grain.MultiprocessingOptions(config.workers, per_worker_buffer_size=buffer)
            )
        # Parts are joined after the workers, so that the order does not depend on their number.
        return iter(data.batch(parts, drop_remainder=True, batch_fn=list))

    def _count(self, part: Part) -> None:
        delivered, skipped, cut = self.counts
        self.counts = Counts(
            delivered + part.rows, skipped + len(part.skipped), cut + part.cut_captions
        )
        for message in part.skipped:
            if message not in self._named:
                self._named[message] = None
                logging.warning("skipped %s", message)
        tried = self.counts.examples + self.counts.skipped
        if tried > 50 and self.counts.skipped > self.config.damaged_share * tried:
            raise UserError(
                f"{self.counts.skipped} of the first {tried} examples were damaged, more than the allowed share of "
                f"{self.config.damaged_share:g}; repair the data (the last one: {next(reversed(self._named), '')})"
            )

    def get_state(self) -> State:
        """A dictionary of plain values, to be kept in a checkpoint. It is the same on every process."""
        return {
            "position": self._position,
            "seed": self.config.seed,
            "shuffle": self.config.shuffle,
            "source": repr(self.source),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continues at `state`; the batch size and the numbers of processes, threads and workers may differ.

        Raises `UserError` if the source, the seed or the shuffle are not those of the state: the order would differ.
        """
        mine = self.get_state()
        for name in ("source", "seed", "shuffle"):
            if state[name] != mine[name]:
                raise UserError(
                    f"the run's data had {name} {state[name]}, now it is {mine[name]}; restore it or start a new run"
                )
        self.close()
        self._position = int(state["position"])

    def close(self) -> None:
        """Ends threads and worker processes; the iterator may be used again and then goes on where it was."""
        if self._parts is not None:
            self._parts.close()
            self._parts = None

    def __enter__(self) -> "BatchIterator":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def batches(
    source: Source,
    tokenizer: Tokenizer | None,
    config: PipelineConfig,
    process_index: int = 0,
    process_count: int = 1,
    start_state: Mapping[str, Any] | None = None,
) -> BatchIterator:
    """Returns an iterator over this process's rows of the global batches.

    A batch is a dictionary of numpy arrays:
      video   uint8 [b, t + N, h, w, 3]   the clip, then N independent images
      segment int32 [b, t + N]            0 for the clip's frames, 1..N for the images
      tokens  int32 [b, 1 + N, n]         captions of clip and images, 0 is padding; absent without text
      label   int32 [b, 1 + N]            classes; absent without classes
      rate    int32 [b, 1 + N]            which frame skip; absent where the source has one, 0 for the images
      index   int64 [b]                   position in the global order
    `iterator.get_state()` / `set_state(state)` resume exactly. `iterator.counts` tells what was skipped or cut.
    Close the iterator (or use it in a `with`) when it has workers.

    Raises `UserError` if the batch does not divide by the processes or the source is too small, and while iterating
    when too many examples are damaged.
    """
    if config.batch % process_count:
        raise UserError(
            f"batch {config.batch} does not divide by {process_count} processes; choose a multiple"
        )
    if not 0 <= process_index < process_count:
        raise ValueError(f"process {process_index} of {process_count}")
    if config.images and len(source) < 2:
        raise UserError(
            "appended images come from other videos, but there is only one; set images to 0"
        )
    if config.epochs is not None and config.epochs * len(source) < config.batch:
        raise UserError(
            f"{config.epochs} epochs of {len(source)} examples do not fill a batch of {config.batch}; lower the batch"
        )
    iterator = BatchIterator(source, tokenizer, config, process_index, process_count)
    if start_state is not None:
        iterator.set_state(start_state)
    return iterator


def _divisor(number: int, most: int) -> int:
    """The largest divisor that is not above `most`."""
    return next(part for part in range(min(number, most), 0, -1) if number % part == 0)


def _parse_flags() -> None:
    """Grain's worker processes read absl flags, which a notebook or a library never parses."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS([sys.argv[0] if sys.argv else "jaxvid"], known_only=True)
