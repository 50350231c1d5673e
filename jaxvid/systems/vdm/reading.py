"""A stage that teaches the text encoder to read before any picture is seen.

Video Diffusion Models conditions on BERT, which knows language from elsewhere (section 4.3). A small encoder that begins
with the video model learns its words from the gradient of a denoising loss, and slowly: the loss says little about one
word. Where the data know what their captions state, this stage says it plainly. The encoder and its pooling are trained
until a linear readout of the pooled vector answers every question of `jaxvid.data.shapes.statements`; the readout is then
dropped and the stages after it go on from text and pooling.

Symbols: b captions, n tokens, q questions, k choices of all questions together, e condition embedding.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from jaxvid.core.errors import UserError
from jaxvid.core.mesh import make_mesh, process_shard
from jaxvid.core.paths import flatten, unflatten
from jaxvid.data.shapes.statements import CHOICES, NOT_ASKED, answers
from jaxvid.data.shapes_source import ShapesData, ShapesSource
from jaxvid.data.tokens import Tokenizer
from jaxvid.systems.vdm.config import Stage, VDMConfig, stage_data
from jaxvid.systems.vdm.networks import abstract_networks, make_networks
from jaxvid.train.optimizer import make_optimizer
from jaxvid.train.phase import Phase
from jaxvid.train.state import Params, State, carry, make_state, weights
from jaxvid.train.step import Sums, make_step

READOUT = "readout/kernel"
READ = ("text/", "pool/")

# The readout is read times this, so that confident answers do not need a large pooled vector.
_SHARPNESS = 8.0


class CaptionBatches:
    """Captions of a split and what they state, drawn from (seed, position): tokens int32 [b, n], answers int32 [b, q]."""

    def __init__(
        self,
        source: ShapesSource,
        tokenizer: Tokenizer,
        batch: int,
        seed: int,
        process: tuple[int, int] = (0, 1),
    ):
        index, count = process
        if batch % count:
            raise UserError(
                f"batch {batch} does not divide by {count} processes; choose a multiple"
            )
        self._source, self._tokenizer, self._seed = source, tokenizer, seed
        self._batch, self._rows, self._first = batch, batch // count, index * (batch // count)
        self._position = 0

    def __next__(self) -> dict[str, np.ndarray]:
        rows = range(self._position + self._first, self._position + self._first + self._rows)
        captions = [self._caption(position) for position in rows]
        self._position += self._batch
        return {
            "tokens": np.stack([self._tokenizer.encode(caption) for caption in captions]),
            "answers": np.stack([answers(caption) for caption in captions]),
        }

    def _caption(self, position: int) -> str:
        """Half of them are of stills, which state no motion."""
        rng = np.random.Generator(np.random.Philox(key=np.array([self._seed, position], np.uint64)))
        still = bool(rng.integers(2))
        return self._source.wording(int(rng.integers(len(self._source))), rng, still)

    def get_state(self) -> int:
        """The position after the batch last given."""
        return self._position

    def set_state(self, state: int) -> None:
        """Continues at `state`."""
        self._position = int(state)


def reading_loss(
    config: VDMConfig, params: Params, batch: Mapping[str, Array], keys: Key[Array, "b"]
) -> tuple[Float[Array, "b"], Sums]:
    """Cross-entropy of the questions that are asked, summed over a caption; "right" counts captions read without error."""
    del keys
    found = choose(config, params, batch["tokens"])
    asked = batch["answers"] != NOT_ASKED
    losses, right = [], []
    for question, logits in enumerate(found):
        answer = jnp.maximum(batch["answers"][:, question], 0)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, answer)
        losses.append(jnp.where(asked[:, question], loss, 0.0))
        right.append(~asked[:, question] | (jnp.argmax(logits, axis=-1) == answer))
    all_right = jnp.stack(right).all(axis=0).astype(jnp.float32)
    count = jnp.float32(all_right.shape[0])
    return sum(losses, jnp.zeros(())), {"right": (all_right.sum(), count)}


def choose(
    config: VDMConfig, params: Params, tokens: Int[Array, "b n"]
) -> list[Float[Array, "b choices"]]:
    """Logits of each question's answers, read linearly from the pooled captions."""
    abstract = abstract_networks(config)
    read = {path: leaf for path, leaf in params.items() if path.startswith(READ)}
    # What is not read stays a shape without values.
    networks = unflatten(abstract, {**flatten(abstract), **read})
    pooled = networks.embed(tokens[:, None])[:, 0].astype(jnp.float32)
    logits = _SHARPNESS * pooled @ params[READOUT]
    return jnp.split(logits, np.cumsum(CHOICES)[:-1].tolist(), axis=-1)


def reading_phase(config: VDMConfig, stage: Stage) -> Phase:
    """The phase of a stage whose task is "reading". Raises UserError for data whose captions' truth is unknown."""
    data = stage_data(config, stage)
    if not isinstance(data, ShapesData) or config.tokenizer is None:
        raise UserError(
            f"stage {stage.name} is a reading stage, which needs the shapes data with text; take the stage out"
        )
    source, tokenizer = data.source("train"), config.tokenizer
    optimizer = make_optimizer(stage.optimizer, stage.steps)

    def init(previous: State | None, key: Key[Array, ""]) -> State:
        fresh = flatten(make_networks(config, key))
        params = {path: leaf for path, leaf in fresh.items() if path.startswith(READ)}
        params[READOUT] = jnp.zeros((config.model.embedding_width, sum(CHOICES)))
        given = {} if previous is None else weights(previous)
        # Weights that are not read with wait unchanged for the stage after.
        waiting = {path: given[path] for path in fresh if path in given and path not in params}
        everything = {**waiting, **carry(given, params)}
        return make_state(everything, optimizer, trainable=lambda path: path in params)

    def open_captions(state: Any) -> CaptionBatches:
        process = process_shard(make_mesh(config.mesh))
        seed = stage.data_seed(config.loop.seed)
        batches = CaptionBatches(source, tokenizer, stage.batch, seed, process)
        if state is not None:
            batches.set_state(state)
        return batches

    loss = partial(reading_loss, config)
    step = make_step(loss, optimizer, ema_decay=stage.ema, accumulate=stage.accumulate)
    return Phase(stage.name, stage.steps, init, step, open_captions)
