"""What a training run shows while it goes: the held-out loss and a sheet of samples."""

import contextlib
import itertools
from collections.abc import Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, UInt8

from jaxvid.core.errors import UserError
from jaxvid.core.rng import named
from jaxvid.core.run import RunDirectory
from jaxvid.data.media import MediaError
from jaxvid.data.pipeline import PipelineConfig, batches
from jaxvid.data.writing import contact_sheet, write_video
from jaxvid.systems.vdm import sampling
from jaxvid.systems.vdm.config import Tokenizer, VDMConfig
from jaxvid.systems.vdm.training import fixed_losses
from jaxvid.train.phase import Report
from jaxvid.train.state import Params, State, weights

TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)  # of the held-out loss
FPS = 8.0
_PASSED_OVER = 64


def to_uint8(video: Array) -> UInt8[np.ndarray, "b t h w c"]:
    """Samples in [-1, 1] to bytes on the host."""
    if not video.is_fully_addressable:
        video = multihost_utils.process_allgather(video, tiled=True)
    return np.asarray(np.round((np.asarray(video) + 1.0) * 127.5), np.uint8)


def make_report(config: VDMConfig, count: int = 4) -> Report:
    """Returns the phases' report: `samples/step_N_sheet.png` and `.mp4`s, and "heldout/*" in the metrics."""

    def report(state: State, step: int, run: RunDirectory) -> None:
        params = weights(state)
        if config.heldout:
            run.log(step, heldout_loss(config, params))
        if step == 0:
            return
        prompts = heldout_prompts(config, count)
        video = sampling.sample(
            config,
            params,
            named(jax.random.key(config.loop.seed), "report"),
            prompts=prompts,
            count=count,
        )
        if jax.process_index() == 0:
            write_samples(run, step, to_uint8(video), prompts)

    return report


def heldout_prompts(config: VDMConfig, count: int) -> list[str]:
    """Captions of the test split's first examples, cut to what the model reads; none for a model without text.

    Examples that cannot be read or have no words are passed over, and fewer are repeated. Raises UserError if all are such.
    """
    if config.text is None or config.tokenizer is None:
        return []
    source, found = config.data.source("test"), []
    for index in range(min(len(source), count + _PASSED_OVER)):
        with contextlib.suppress(MediaError):
            caption = fitting(config.tokenizer, source[index]["caption"] or "")
            found += [caption] if caption else []
        if len(found) == count:
            return found
    if not found:
        raise UserError("the test split has no caption to sample from; add captions")
    return list(itertools.islice(itertools.cycle(found), count))


def fitting(tokenizer: Tokenizer, caption: str) -> str:
    """The caption, without its last words where it has more tokens than the model reads."""
    while len(tokenizer.identifiers(caption)) > tokenizer.length:
        caption = caption.rpartition(" ")[0]
    return caption if tokenizer.identifiers(caption) else ""


def heldout_batch(config: VDMConfig) -> Mapping[str, np.ndarray]:
    """`config.heldout` clips of the test split, the same at every call."""
    settings = PipelineConfig(batch=config.heldout, shuffle=False, threads=config.threads)
    with batches(config.data.source("test"), config.tokenizer, settings) as iterator:
        return next(iterator)


def heldout_loss(config: VDMConfig, params: Params) -> dict[str, float]:
    """Mean loss over held-out clips at fixed times and noise, and its standard error over the clips."""
    losses = fixed_losses(config, params, heldout_batch(config), np.asarray(TIMES, np.float32))
    per_clip = losses.mean(axis=1)
    error = per_clip.std(ddof=1) / len(per_clip) ** 0.5 if len(per_clip) > 1 else 0.0
    return {"heldout/loss": float(per_clip.mean()), "heldout/standard_error": float(error)}


def write_samples(
    run: RunDirectory, step: int, videos: UInt8[np.ndarray, "b t h w c"], prompts: list[str]
) -> None:
    """Writes the sheet, one mp4 a clip, and the clips to TensorBoard."""
    contact_sheet(videos, prompts or None, run.samples / f"step_{step:08d}_sheet.png")
    for index, video in enumerate(videos):
        write_video(run.samples / f"step_{step:08d}_{index}.mp4", video, FPS)
    run.log_video(step, "samples", videos, FPS)
