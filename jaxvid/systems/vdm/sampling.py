"""Sampling from a Video Diffusion Model: from text, around known frames, and from a low-resolution video.

Everything is one conditional sampler: an unconditional denoiser (guided by text), to which observations of the
clean clip are added by reconstruction guidance (VDM, Eq. 7 and 8) or by replacement alone (section 3.1, the
baseline). Longer clips are made on a canvas: `complete` sweeps windows of the model's length over it and fills what is
not known yet from what is. Extension begins with a known start, hierarchical sampling with known key frames.

Axes: b t h w c, float32 in [-1, 1]; e condition embedding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Array, Bool, Float, Key

from jaxvid.core.errors import UserError
from jaxvid.core.paths import unflatten
from jaxvid.core.rng import named
from jaxvid.data.tokens import WordTokenizer, encode_prompt
from jaxvid.diffusion import driver, grid, guidance, reconstruction, samplers
from jaxvid.diffusion.driver import Progress
from jaxvid.diffusion.process import expand
from jaxvid.diffusion.types import Denoise, Hook, Level, Prediction
from jaxvid.systems.vdm.config import Sampling, VDMConfig
from jaxvid.systems.vdm.networks import abstract_networks
from jaxvid.systems.vdm.training import network_denoise
from jaxvid.train.state import Params

Method = Literal["reconstruction", "replacement"]


class Known(NamedTuple):
    """Frames of the clip that are given: `video` [b, t, h, w, c], `frames` [b, t] true where it counts."""

    video: Array
    frames: Array


@dataclass(frozen=True)
class Plan:
    """What is compiled into a sampling program; everything else is traced."""

    guided: bool
    known: bool
    low: bool
    method: Method


def make_sampler(sampling: Sampling) -> samplers.Sampler:
    """The sampler that `sampling` names."""
    match sampling.sampler:
        case "ancestral":
            return samplers.ancestral(sampling.gamma)
        case "ddim":
            return samplers.ddim()
        case "langevin":
            return samplers.predictor_corrector(sampling.gamma)
        case "dpm++":
            return samplers.dpm_solver_2m()
        case "heun":
            return samplers.heun()


def make_levels(config: VDMConfig, sampling: Sampling) -> np.ndarray:
    """The log-SNRs that a sampler passes: evenly spaced times of the schedule (VDM), for Heun those of Karras et al. 2022.

    From the cosine schedule's first levels, where alpha nearly vanishes, Heun's correction overshoots.
    """
    if sampling.sampler == "heun":
        return grid.karras(sampling.steps)
    return grid.uniform(config.schedule, sampling.steps)


def make_denoise(config: VDMConfig, threshold: str, plan: Plan, args: dict[str, Any]) -> Denoise:
    """The denoiser of one sampling run: text guidance, then observations, then the threshold."""
    networks = unflatten(abstract_networks(config), args["params"])
    width = config.model.embedding_width

    def conditional(z: Array, level: Level, embedding: Array | None) -> Prediction:
        per_frame = None if embedding is None else embedding[:, None]
        if networks.rates is not None:
            rate = jnp.broadcast_to(networks.rates[...][args["rate"]], (len(z), 1, width))
            per_frame = rate if per_frame is None else per_frame + rate
        return network_denoise(config, networks, z, level, per_frame)

    embedding = args["embedding"]
    if plan.guided:
        table = guidance.classifier_free(embedding, jnp.zeros_like(embedding), args["guidance"])
        denoise = guidance.guided(conditional, table)
    else:
        denoise = partial(conditional, embedding=embedding)

    observations, free = [], None
    if plan.known and plan.method == "reconstruction":
        known = args["known"]
        observations.append(
            reconstruction.known_parts(known.video, known.frames, args["reconstruction"])
        )
        free = ~known.frames
    if plan.low:
        observations.append(low_observation(args["low"], args["reconstruction"]))
    if observations:
        denoise = reconstruction.reconstruction(denoise, *observations, free=free)

    if threshold == "static":
        return guidance.static_threshold(denoise)
    if threshold == "dynamic":
        return guidance.dynamic_threshold(denoise, args["percentile"])
    return denoise


def low_observation(low: Known, weight: Array) -> reconstruction.Observation:
    """The observation of some frames at low resolution (VDM, Eq. 8), by the mean over pixels: how data are made small.

    The paper names bilinear downsampling as an example. It disagrees with averaged pixels at every edge.
    """

    def operator(x: Array) -> Array:
        small = reconstruction.area(x, low.video.shape)
        return jnp.where(expand(low.frames, small), small, 0.0)

    value = jnp.where(expand(low.frames, low.video), low.video, 0.0)
    return reconstruction.Observation(value, operator, weight)


def make_hook(args: dict[str, Any]) -> Hook:
    """Replacement of the known frames between sampling steps."""
    return reconstruction.replacement(args["known"].video, args["known"].frames)


@lru_cache(maxsize=16)
def _program(config: VDMConfig, sampler: samplers.Sampler, threshold: str, plan: Plan) -> Any:
    return driver.program(
        sampler,
        partial(make_denoise, config, threshold, plan),
        make_hook if plan.known else None,
    )


@lru_cache(maxsize=4)
def _embedder(config: VDMConfig) -> Callable[[Params, Array], Array]:
    def embed(params: Params, tokens: Array) -> Array:
        networks = unflatten(abstract_networks(config), params)
        return networks.embed(tokens[:, None])[:, 0]

    return jax.jit(embed)


def embed(config: VDMConfig, params: Params, prompts: Sequence[str]) -> Float[Array, "b e"] | None:
    """The condition vectors of `prompts`; None for a model without text.

    Raises UserError for an empty prompt, one that is too long, or a model that takes none.
    """
    if config.tokenizer is None:
        if any(prompts):
            raise UserError(
                f"prompt {prompts[0]!r}: this model was trained without text; leave the prompt out"
            )
        return None
    tokens = np.stack([encode_prompt(config.tokenizer, prompt) for prompt in prompts])
    if isinstance(config.tokenizer, WordTokenizer):
        unknown = {word: None for prompt in prompts for word in config.tokenizer.unknown(prompt)}
        if unknown:
            logging.warning("this model does not know the words: %s", ", ".join(unknown))
    return _embedder(config)(params, jnp.asarray(tokens))


def sample(
    config: VDMConfig,
    params: Params,
    key: Key[Array, ""],
    *,
    prompts: Sequence[str] = (),
    count: int = 1,
    frames: int | None = None,
    size: tuple[int, int] | None = None,
    sampling: Sampling | None = None,
    known: Known | None = None,
    low: Known | None = None,
    method: Method = "reconstruction",
    skip: int | None = None,
    progress: Progress | None = None,
) -> Float[Array, "b t h w c"]:
    """Draws clips.

    Args:
      params: `{path: array}`, such as a run's averaged weights.
      prompts: one a clip; without any, `count` unconditional clips are drawn.
      frames, size: length and (height, width); the data's if None. The network is convolutional in space and its
        temporal attention takes any length, so both may differ from training, with what quality one must see.
      known: given frames of the clip's shape, by `method`; the result has them exactly.
      low: frames given at low resolution, `video` [b, t, h', w', c].
      skip: the frame skip to sample at, one of the data's `skips`; the first if None.

    Raises UserError for prompts, a size, a number of frames, a skip or sampler settings that do not fit the model.
    """
    settings = sampling or config.sampling
    height, width = size or (config.data.height, config.data.width)
    _check_size(config, frames, height, width)
    _check_prompts(prompts, count)
    b = len(prompts) or count
    shape = (b, frames or config.data.frames, height, width, config.model.input_channels)
    embedding = embed(config, params, prompts) if prompts else None
    if known is not None and known.video.shape != shape:
        raise ValueError(f"known frames have shape {known.video.shape}, the clip {shape}")
    plan = Plan(
        guided=embedding is not None and settings.guidance != 1.0,
        known=known is not None,
        low=low is not None,
        method=method,
    )
    args = {
        "params": params,
        "embedding": embedding,
        "guidance": jnp.float32(settings.guidance),
        "percentile": jnp.float32(settings.percentile),
        "reconstruction": jnp.float32(settings.reconstruction),
        "known": known,
        "low": low,
        "rate": jnp.int32(_rate(config, skip)),
    }
    run = _program(config, make_sampler(settings), settings.threshold, plan)
    levels = make_levels(config, settings)
    z = jax.random.normal(named(key, "start"), shape)
    video = run(args, z, levels, named(key, "steps"), progress=progress)
    return jnp.clip(video, -1.0, 1.0)


def _rate(config: VDMConfig, skip: int | None) -> int:
    if skip is None:
        return 0
    if skip not in config.data.skips:
        raise UserError(f"skip is {skip}; this model was trained at skips {config.data.skips}")
    return config.data.skips.index(skip)


def _check_prompts(prompts: Sequence[str], count: int) -> None:
    if isinstance(prompts, str):
        raise UserError(f"prompts is the text {prompts[:60]!r}; give a list of texts")
    if count < 1:
        raise UserError(f"count is {count}; it must be 1 or more")


def _check_size(config: VDMConfig, frames: int | None, height: int, width: int) -> None:
    patch = config.model.patch
    if height < 1 or width < 1 or height % patch or width % patch:
        raise UserError(
            f"size {height}x{width}: height and width must be positive multiples of {patch} for this model"
        )
    if frames is not None and frames < 1:
        raise UserError(f"frames is {frames}; it must be 1 or more")


def windows(length: int, window: int, overlap: int) -> list[int]:
    """Starts of the windows that cover `length` frames, each sharing at least `overlap` frames with the one before."""
    if not 0 <= overlap < window:
        raise UserError(
            f"overlap is {overlap}; it must be within 0 and {window - 1}, below the window"
        )
    if length <= window:
        return [0]
    starts = list(range(0, length - window, window - overlap))
    return [*starts, length - window]


def complete(
    config: VDMConfig,
    params: Params,
    key: Key[Array, ""],
    canvas: Float[Array, "b t h w c"],
    known: Bool[np.ndarray, "t"],
    *,
    overlap: int | None = None,
    prompts: Sequence[str] = (),
    window: int | None = None,
    low: Known | None = None,
    sampling: Sampling | None = None,
    method: Method = "reconstruction",
    skip: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Float[Array, "b t h w c"]:
    """Fills the frames of `canvas` that are not `known`, window by window, each from all that is known by then.

    window: frames sampled at a time, the data's clip length if None. overlap: frames that a window shares with the one
    before it, half of them if None (the paper does not say how many). low: the whole canvas, or some of its frames, at low
    resolution. skip: as in `sample`. progress: called with (windows done, windows in all).
    """
    b, t, h, w, _ = canvas.shape
    if prompts and len(prompts) != b:
        raise UserError(f"{len(prompts)} prompts for {b} clips; give one a clip")
    window = config.data.frames if window is None else window
    starts = windows(t, window, window // 2 if overlap is None else overlap)
    window, known = min(window, t), known.copy()
    for index, start in enumerate(starts):
        span = slice(start, start + window)
        if not known[span].all():
            given = None
            if known[span].any():
                frames = jnp.broadcast_to(jnp.asarray(known[span]), (b, window))
                given = Known(canvas[:, span], frames)
            part = None if low is None else Known(low.video[:, span], low.frames[:, span])
            clip = sample(
                config,
                params,
                named(key, "window", index),
                prompts=prompts,
                count=b,
                frames=window,
                size=(h, w),
                sampling=sampling,
                known=given,
                low=part,
                method=method,
                skip=skip,
            )
            canvas = canvas.at[:, span].set(clip)
            known[span] = True
        if progress is not None:
            progress(index + 1, len(starts))
    return canvas


def extend(
    config: VDMConfig,
    params: Params,
    key: Key[Array, ""],
    video: Float[Array, "b t h w c"],
    frames: int,
    **options: Any,
) -> Float[Array, "b T h w c"]:
    """Continues `video` to `frames` frames in blocks (VDM, section 3.1); options as in `complete`."""
    b, t, h, w, c = video.shape
    if frames <= t:
        raise UserError(f"frames is {frames}, the video has {t} already; ask for more")
    canvas = jnp.concatenate([video, jnp.zeros((b, frames - t, h, w, c))], axis=1)
    return complete(config, params, key, canvas, np.arange(frames) < t, **options)


def fill(
    config: VDMConfig,
    params: Params,
    key: Key[Array, ""],
    video: Float[Array, "b t h w c"],
    rate: int,
    **options: Any,
) -> Float[Array, "b T h w c"]:
    """Fills `rate - 1` frames between each two of `video`; the result has `(t - 1) rate + 1` frames.

    Options as in `complete`; every window begins and ends on a key frame.
    """
    b, t, h, w, c = video.shape
    if rate < 2 or t < 2:
        raise UserError(f"rate is {rate} for {t} key frames; both must be at least 2")
    length = (t - 1) * rate + 1
    canvas = jnp.zeros((b, length, h, w, c)).at[:, ::rate].set(video)
    known = np.arange(length) % rate == 0
    return complete(config, params, key, canvas, known, **_on_keys(config, rate, options))


def _on_keys(config: VDMConfig, rate: int, options: dict[str, Any]) -> dict[str, Any]:
    """Options of `complete` whose windows begin and end on key frames, every `rate`-th: no frame is made without the next
    key frame in sight.
    """
    window = options.get("window") or config.data.frames
    if rate == 1:
        return options
    gaps = (window - 1) // rate
    if gaps == 0:
        raise UserError(f"rate is {rate}; it must be below the {window} frames sampled at a time")
    overlap = options.get("overlap")
    overlap = gaps // 2 * rate + 1 if overlap is None else overlap
    if overlap % rate != 1 % rate:
        raise UserError(
            f"overlap is {overlap}; windows that begin and end on key frames share 1, {1 + rate}, {1 + 2 * rate}, "
            "... frames"
        )
    return {**options, "overlap": overlap, "window": gaps * rate + 1}


def upsample(
    config: VDMConfig,
    params: Params,
    key: Key[Array, ""],
    video: Float[Array, "b t h w c"],
    *,
    rate: int = 1,
    **options: Any,
) -> Float[Array, "b T H W c"]:
    """Spatial (and with `rate` > 1 also temporal) super-resolution of `video` to the model's size by Eq. 8.

    The video's frames are observed at low resolution at every `rate`-th place of a canvas of `(t - 1) rate + 1` frames,
    which is sampled window by window with the frames already made as known ones. Options as in `complete`.
    """
    b, t, h, w, c = video.shape
    height, width = config.data.height, config.data.width
    if rate < 1:
        raise UserError(f"rate is {rate}; it must be 1 or more")
    if height % h or width % w or h > height:
        raise UserError(
            f"video of {h}x{w} cannot be upsampled to {height}x{width}; the factors must be whole numbers"
        )
    length = (t - 1) * rate + 1
    frames = jnp.broadcast_to(jnp.arange(length) % rate == 0, (b, length))
    low = Known(jnp.zeros((b, length, h, w, c)).at[:, ::rate].set(video), frames)
    canvas = jnp.zeros((b, length, height, width, c))
    known, options = np.zeros(length, bool), _on_keys(config, rate, options)
    return complete(config, params, key, canvas, known, low=low, **options)
