"""Training of a Video Diffusion Model: the loss, and the phases that a run goes through.

Symbols: b examples, t frames (the clip's, then N images'), s = 1 + N segments, e condition embedding.
"""

import itertools
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Array, Float, Int, Key

from jaxvid.core.errors import UserError
from jaxvid.core.mesh import make_mesh, process_shard
from jaxvid.core.paths import flatten, unflatten
from jaxvid.core.rng import named
from jaxvid.data.pipeline import BatchIterator, PipelineConfig, batches
from jaxvid.diffusion.loss import WEIGHTS, LogWeight, clipped_snr_weight, diffusion_loss
from jaxvid.diffusion.parameterization import to_prediction
from jaxvid.diffusion.types import Level, Prediction
from jaxvid.nn.segments import to_frames
from jaxvid.systems.presets import load
from jaxvid.systems.vdm.config import Stage, VDMConfig, stage_data
from jaxvid.systems.vdm.networks import Networks, abstract_networks, make_networks
from jaxvid.systems.vdm.reading import reading_phase
from jaxvid.train.optimizer import make_optimizer
from jaxvid.train.phase import Phase, Report
from jaxvid.train.state import Params, State, carry, make_state, weights
from jaxvid.train.step import Sums, make_step
from jaxvid.weights.bert import load_bert

BUCKETS = (-20.0, -8.0, -4.0, 0.0, 4.0, 8.0, 20.0)  # log-SNR ranges whose losses are logged apart


def to_float(video: Array) -> Float[Array, "b t h w c"]:
    """uint8 of a batch to float32 in [-1, 1]."""
    return video.astype(jnp.float32) / 127.5 - 1.0


def network_denoise(
    config: VDMConfig,
    networks: Networks,
    z: Float[Array, "b t h w c"],
    level: Level,
    embedding: Float[Array, "b #t e"] | None,
    *,
    segment: Int[Array, "b t"] | None = None,
    keys: Key[Array, "b"] | None = None,
) -> Prediction:
    """Runs the U-Net on the log-SNR of `level` ([b] or [b, t]) and reads its output as `config.target`."""
    logsnr = level.logsnr if level.logsnr.ndim == 2 else level.logsnr[:, None]
    output = networks.unet(z.astype(config.compute), logsnr, embedding, segment=segment, keys=keys)
    return to_prediction(output.astype(jnp.float32), z, level.logsnr, config.target)


def loss(
    config: VDMConfig,
    params: Params,
    batch: Mapping[str, Array],
    keys: Key[Array, "b"],
    *,
    forcing: float = 0.0,
) -> tuple[Float[Array, "b"], Sums]:
    """Mean squared error in the space of `config.weighting`, t uniform (VDM, section 2).

    Every segment has its own noise level and its own chance to lose its caption. `forcing` is that of `Stage`.
    """
    networks = unflatten(abstract_networks(config), params)
    x, segment = to_float(batch["video"]), batch["segment"]
    per_segment = batch.get("tokens", batch.get("rate", segment))
    segments = per_segment.shape[1]

    def draw(key: Key[Array, ""], frames: Int[Array, "t"]) -> tuple[Array, Array, Array]:
        times = jax.random.uniform(named(key, "time"), (segments,))[frames]
        if forcing:
            apart = jax.random.bernoulli(named(key, "forcing"), forcing)
            own = jax.random.uniform(named(key, "frame time"), frames.shape)
            times = jnp.where(apart, own, times)
        keep = jax.random.bernoulli(named(key, "drop"), 1.0 - config.condition_drop, (segments,))
        return times, keep, jax.random.normal(named(key, "noise"), x.shape[1:])

    times, keep, eps = jax.vmap(draw)(keys, segment)
    embedding = None
    if networks.text is not None:
        embedding = networks.embed(batch["tokens"]) * keep[..., None].astype(jnp.float32)
    embedding = with_rate(networks, embedding, batch)
    if embedding is not None:
        embedding = to_frames(embedding, segment)
    dropping = jax.vmap(lambda key: named(key, "dropout"))(keys) if config.model.dropout else None

    each = jnp.broadcast_to(jnp.arange(segment.shape[1]), segment.shape)
    # A clip alone is one segment, whose frames all see each other: nothing to mask.
    masked = segment if segments > 1 else None

    def denoise(z: Array, level: Level) -> Prediction:
        return network_denoise(config, networks, z, level, embedding, segment=masked, keys=dropping)

    per_example, detail = diffusion_loss(
        denoise, x, eps, config.schedule, log_weight(config), times, segment=each
    )
    return per_example, bucket_sums(detail.logsnr, detail.per_frame)


def log_weight(config: VDMConfig) -> LogWeight:
    """The weighting that `config` names."""
    if config.weighting == "clipped_snr":
        return clipped_snr_weight(*config.snr_range)
    return WEIGHTS[config.weighting]


def with_rate(
    networks: Networks, embedding: Float[Array, "b s e"] | None, batch: Mapping[str, Array]
) -> Float[Array, "b s e"] | None:
    """Adds the vector of each segment's frame rate, where the model knows several."""
    if networks.rates is None:
        return embedding
    rate = networks.rates[...][batch["rate"]]
    return rate if embedding is None else embedding + rate


def bucket_sums(logsnr: Float[Array, "b t"], per_frame: Float[Array, "b t"]) -> Sums:
    """Sums and counts of the frames' losses by range of log-SNR, for the log."""
    sums = {}
    for low, high in itertools.pairwise(BUCKETS):
        inside = (logsnr >= low) & (logsnr < high)
        total = jnp.sum(jnp.where(inside, per_frame, 0.0))
        sums[f"loss/logsnr_{low:g}_{high:g}"] = (total, jnp.sum(inside.astype(jnp.float32)))
    return sums


def open_batches(config: VDMConfig, stage: Stage, state: Any) -> BatchIterator:
    """The stage's training batches of this process, continued at `state`."""
    index, count = process_shard(make_mesh(config.mesh))
    settings = PipelineConfig(
        batch=stage.batch,
        seed=stage.data_seed(config.loop.seed),
        images=stage.images,
        threads=config.threads,
        workers=config.workers,
    )
    source = stage_data(config, stage).source("train")
    return batches(source, config.tokenizer, settings, index, count, state)


def phases(config: VDMConfig, report: Report | None = None) -> list[Phase]:
    """One phase a stage; each goes on from the weights of the one before (the average, where there is one)."""
    return [
        reading_phase(config, stage) if stage.task == "reading" else _phase(config, stage, report)
        for stage in config.stages
    ]


def _phase(config: VDMConfig, stage: Stage, report: Report | None) -> Phase:
    _check_freeze(config, stage)
    optimizer = make_optimizer(stage.optimizer, stage.steps)
    own = {name: getattr(stage, name) for name in ("schedule", "snr_range")}
    trained = replace(config, **{name: value for name, value in own.items() if value is not None})

    def moves(path: str) -> bool:
        return is_trainable(config, path) and not stage.freezes(path)

    def init(previous: State | None, key: Key[Array, ""]) -> State:
        fresh = flatten(make_networks(config, key))
        params = fresh if previous is None else carry(weights(previous), fresh)
        return make_state(params, optimizer, trainable=moves)

    return Phase(
        name=stage.name,
        steps=stage.steps,
        init=init,
        step=make_step(
            partial(loss, trained, forcing=stage.forcing),
            optimizer,
            ema_decay=stage.ema,
            accumulate=stage.accumulate,
        ),
        batches=partial(open_batches, config, stage),
        report=report,
    )


def _check_freeze(config: VDMConfig, stage: Stage) -> None:
    """Raises UserError for an expression that finds no parameter, or where nothing is left to train."""
    paths = list(flatten(abstract_networks(config))) if stage.freeze else []
    for pattern in stage.freeze:
        if not any(re.search(pattern, path) for path in paths):
            raise UserError(
                f"stage {stage.name}: freeze has {pattern!r}, which finds no parameter; "
                f"their paths begin with {', '.join(sorted({path.partition('/')[0] + '/' for path in paths}))}"
            )
    if paths and all(map(stage.freezes, paths)):
        raise UserError(f"stage {stage.name}: freeze leaves no parameter to train; take one out")


def pretrained(config: VDMConfig) -> State | None:
    """A state to start from: the frozen text encoder's weights and those of `init`; None where there are neither.

    Raises UserError where the encoder is frozen and its weights are not given, or where `init` has nothing that fits.
    """
    frozen: Params = {}
    if config.text is not None and config.text.frozen:
        if config.text_weights is None:
            raise UserError("text.frozen is True but text_weights is not given; name BERT's folder")
        encoder = load_bert(config.text_weights, config.text)
        frozen = {f"text/{path}": leaf for path, leaf in flatten(encoder).items()}
    given = {} if config.init is None else _matching(config, config.init)
    return {"trainable": given, "frozen": frozen} if given or frozen else None


def _matching(config: VDMConfig, source: str) -> Params:
    """The trainable parameters that a trained model has in the same shape; warns where it does not have them all."""
    wanted = {
        path: leaf
        for path, leaf in flatten(abstract_networks(config)).items()
        if is_trainable(config, path)
    }
    _, stored = load(source)
    found = {
        path: stored[path]
        for path, leaf in wanted.items()
        if path in stored and stored[path].shape == leaf.shape
    }
    if not found:
        raise UserError(
            f"init {source} has none of this model's {len(wanted)} arrays in its shape; train from scratch with --init None"
        )
    if len(found) < len(wanted):
        others = len(wanted) - len(found)
        logging.warning(
            "init %s: %d arrays fit, the other %d begin fresh", source, len(found), others
        )
    return found


def is_trainable(config: VDMConfig, path: str) -> bool:
    """Whether training moves the parameter: all but a frozen text encoder's."""
    return not (config.text is not None and config.text.frozen and path.startswith("text/"))


def fixed_losses(
    config: VDMConfig,
    params: Params,
    batch: Mapping[str, np.ndarray],
    times: Float[np.ndarray, "k"],
    seed: int = 0,
) -> Float[np.ndarray, "b k"]:
    """Losses of a batch of clips at fixed times and fixed noise, without dropout: comparable between checkpoints."""
    results = []
    evaluate = _fixed_loss(config)
    for index, time in enumerate(times):
        key = named(jax.random.key(seed), "fixed", index)
        results.append(np.asarray(evaluate(params, dict(batch), jnp.float32(time), key)))
    return np.stack(results, axis=1)


@lru_cache(maxsize=2)
def _fixed_loss(config: VDMConfig) -> Callable[..., Array]:
    def evaluate(params: Params, batch: Mapping[str, Array], time: Array, key: Array) -> Array:
        networks = unflatten(abstract_networks(config), params)
        x = to_float(batch["video"])
        embedding = None if networks.text is None else networks.embed(batch["tokens"])
        embedding = with_rate(networks, embedding, batch)

        def denoise(z: Array, level: Level) -> Prediction:
            return network_denoise(config, networks, z, level, embedding)

        times = jnp.full(x.shape[0], time)
        eps = jax.random.normal(key, x.shape)
        return diffusion_loss(denoise, x, eps, config.schedule, log_weight(config), times)[0]

    return jax.jit(evaluate)
