"""The loss written out in numpy from the data to the number, and what is trained."""

import itertools
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import naive
import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny_vdm import DATA, MODEL, READING, STAGE, TEXT, TOKENIZER, joint_batch, parameters, system

from jaxvid.core.config import to_json
from jaxvid.core.errors import UserError
from jaxvid.core.paths import flatten
from jaxvid.core.rng import named
from jaxvid.data.shapes import ShapesConfig
from jaxvid.data.shapes_source import ShapesData
from jaxvid.data.tokens import HashTokenizer
from jaxvid.systems import presets
from jaxvid.systems.vdm import training
from jaxvid.systems.vdm.networks import parameter_count
from jaxvid.train.state import weights

KEY = jax.random.key(11)
KEYS = jax.vmap(lambda index: named(KEY, index))(np.arange(2))


def cosine(t):
    """Truncated to [-20, 20]: VDM, appendix A."""
    low, high = np.arctan(np.exp(-10.0)), np.arctan(np.exp(10.0))
    return -2 * np.log(np.tan(low + (high - low) * np.float64(t)))


def embeddings(config, p, batch, keep):
    """The vector of each segment: the pooled caption where it is kept, and the frame rate's."""
    vectors = np.zeros((*keep.shape, config.model.embedding_width))
    for place in np.ndindex(*keep.shape):
        # An empty caption is unconditional.
        if config.text is not None and keep[place] and batch["tokens"][place].any():
            tokens = batch["tokens"][place][None]
            words = naive.bert(config.text, naive.part(p, "text"), tokens)
            head = config.text.width // config.text.heads
            vectors[place] += naive.attention_pooling(
                naive.part(p, "pool"), words, tokens != 0, head
            )[0]
        if "rate" in batch:
            vectors[place] += p["rates"][batch["rate"][place]]
    return vectors


def naive_loss(config, p, batch, weight, frame_times=None):
    """Per example and per frame, and the log-SNR of each frame; `weight(logsnr)` multiplies the error of x.

    The frames of a segment share a time, or each has its own of `frame_times`.
    """
    segments, shape = batch["tokens"].shape[1], batch["video"].shape[1:]
    x = batch["video"] / 127.5 - 1.0
    times = [np.asarray(jax.random.uniform(named(key, "time"), (segments,))) for key in KEYS]
    share = 1.0 - config.condition_drop
    keep = [jax.random.bernoulli(named(key, "drop"), share, (segments,)) for key in KEYS]
    eps = [np.asarray(jax.random.normal(named(key, "noise"), shape), np.float64) for key in KEYS]
    vectors = embeddings(config, p, batch, np.stack(keep))
    eps, logsnr, condition = np.stack(eps), np.empty(x.shape[:2]), np.empty((*x.shape[:2], 8))
    for b, i in np.ndindex(*x.shape[:2]):
        time = times[b][batch["segment"][b, i]] if frame_times is None else frame_times[b][i]
        logsnr[b, i] = cosine(time)
        condition[b, i] = vectors[b, batch["segment"][b, i]]
    wide = logsnr[..., None, None, None]
    alpha, sigma = np.sqrt(1 / (1 + np.exp(-wide))), np.sqrt(1 / (1 + np.exp(wide)))
    z = alpha * x + sigma * eps
    y = naive.unet(config.model, naive.part(p, "unet"), z, logsnr, condition, batch["segment"])
    estimate = {
        "epsilon": (z - sigma * y) / alpha,
        "v": alpha * z - sigma * y,
    }[config.target]
    per_frame = weight(logsnr) * np.square(estimate - x).mean((2, 3, 4))
    return per_frame.mean(1), per_frame, logsnr


def run(config, p, batch):
    loss = naive.compiled(lambda p, batch: training.loss(config, p, batch, KEYS))
    per_example, sums = loss(p, batch)
    return np.asarray(per_example), {name: np.asarray(pair) for name, pair in sums.items()}


EPSILON = system(text=True, condition_drop=0.5)
ALWAYS_DROPPED = system(
    text=True,
    condition_drop=1.0,
    target="v",
    weighting="v",
    data=replace(DATA, skips=(1, 4)),
)


def test_the_loss_is_the_papers():
    """Of a joint batch: every segment has its noise level, its caption and its chance to lose it."""
    p, batch = parameters(EPSILON), joint_batch(EPSILON)
    per_example, sums = run(EPSILON, p, batch)
    expected, per_frame, logsnr = naive_loss(EPSILON, p, batch, np.exp)
    assert len(np.unique(logsnr)) == 6
    np.testing.assert_allclose(per_example, expected, rtol=1e-4)
    counted = 0
    for low, high in itertools.pairwise(training.BUCKETS):
        inside = (logsnr >= low) & (logsnr < high)
        total, count = sums[f"loss/logsnr_{low:g}_{high:g}"]
        np.testing.assert_allclose(total, per_frame[inside].sum(), rtol=1e-4)
        counted += count
        assert count == inside.sum()
    assert counted == logsnr.size


def test_the_loss_without_conditions_and_with_frame_rates():
    """Captions that are always dropped have no influence; the frame rate stays."""
    p, batch = parameters(ALWAYS_DROPPED), joint_batch(ALWAYS_DROPPED)
    run_loss = naive.compiled(lambda p, batch: training.loss(ALWAYS_DROPPED, p, batch, KEYS)[0])
    per_example = run_loss(p, batch)
    expected, *_ = naive_loss(ALWAYS_DROPPED, p, batch, lambda logsnr: 1 + np.exp(logsnr))
    np.testing.assert_allclose(per_example, expected, rtol=1e-4)
    others = {**batch, "tokens": 5 - batch["tokens"]}
    np.testing.assert_array_equal(run_loss(p, others), per_example)
    other_rate = {**batch, "rate": 1 - batch["rate"]}
    assert np.all(np.abs(run_loss(p, other_rate) / per_example - 1) > 1e-4)


def test_the_snr_range_bounds_the_weight():
    """Clipped SNR on the error of x; a stage may have bounds of its own."""
    config = system(text=True, target="v", weighting="clipped_snr", snr_range=(0.5, 2.0))
    p, batch = parameters(config), joint_batch(config)
    per_example, _ = run(config, p, batch)
    expected, _, logsnr = naive_loss(
        config, p, batch, lambda level: np.clip(np.exp(level), 0.5, 2.0)
    )
    assert (logsnr < np.log(0.5)).any()
    assert (logsnr > np.log(2.0)).any()
    np.testing.assert_allclose(per_example, expected, rtol=1e-4)

    own = replace(STAGE, snr_range=(0.25, 4.0))
    key = jax.random.key(0)
    losses = {}
    for name, changes in {
        "stage": {"stages": (own,)},
        "config": {"snr_range": (0.25, 4.0)},
        "other": {},
    }.items():
        (phase,) = replace(config, **changes).phases()
        state = phase.init({"trainable": {n: jnp.asarray(leaf) for n, leaf in p.items()}}, key)
        total, count = naive.compiled(phase.step)(state, batch, key)[1]["loss"]
        losses[name] = float(total / count)
    assert losses["stage"] == losses["config"] != losses["other"]


def test_forcing_gives_each_frame_a_noise_level_of_its_own():
    """All clips or none of them; a share between takes some, each as a whole."""
    config = system(text=True)
    p, batch = parameters(config), joint_batch(config, images=0, frames=4)

    def forced(share):
        loss = naive.compiled(
            lambda p, batch: training.loss(config, p, batch, KEYS, forcing=share)[0]
        )
        return np.asarray(loss(p, batch))

    times = [np.asarray(jax.random.uniform(named(key, "frame time"), (4,))) for key in KEYS]
    expected, _, logsnr = naive_loss(config, p, batch, np.exp, times)
    assert len(np.unique(logsnr)) == 8
    np.testing.assert_allclose(forced(1.0), expected, rtol=1e-4)
    together = forced(0.0)
    np.testing.assert_allclose(together, naive_loss(config, p, batch, np.exp)[0], rtol=1e-4)
    taken = [bool(jax.random.bernoulli(named(key, "forcing"), 0.5)) for key in KEYS]
    np.testing.assert_allclose(forced(0.5), np.where(taken, expected, together), rtol=1e-4)
    with pytest.raises(UserError, match=r"forcing is 1\.5; it must be within 0 and 1"):
        replace(STAGE, forcing=1.5)


@pytest.mark.parametrize(
    "change", [{"frames": 4}, {"images": 1}, {"forcing": 0.5}, {"freeze": ("^text/",)}]
)
def test_a_reading_stage_refuses_what_is_for_videos(change):
    (name,) = change
    with pytest.raises(UserError, match=f"stage reading: {name} is .*captions alone; take it out"):
        replace(READING, **change)


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (2.0, 1.0)])
def test_an_snr_range_out_of_order_is_refused(bounds):
    with pytest.raises(UserError, match=r"snr_range is .*give two positive numbers"):
        system(snr_range=bounds)
    with pytest.raises(UserError, match="stage video: snr_range is"):
        replace(STAGE, snr_range=bounds)


def test_a_stage_has_no_snr_range_where_the_weighting_has_none():
    with pytest.raises(UserError, match="stage video has a snr_range but weighting is epsilon"):
        system(stages=(replace(STAGE, snr_range=(0.5, 2.0)),))


def test_fixed_losses_are_those_of_a_time_and_a_noise():
    config = system(text=True)
    p, batch = parameters(config), joint_batch(config, frames=4, images=0)
    times = np.array([0.2, 0.7], np.float32)
    found = training.fixed_losses(config, p, batch, times, seed=3)
    x, vectors = batch["video"] / 127.5 - 1, embeddings(config, p, batch, np.ones((2, 1), bool))
    for index, time in enumerate(times):
        key = named(jax.random.key(3), "fixed", index)
        eps, logsnr = np.asarray(jax.random.normal(key, x.shape)), np.full((2, 4), cosine(time))
        z = x / np.sqrt(1 + np.exp(-logsnr[0, 0])) + eps / np.sqrt(1 + np.exp(logsnr[0, 0]))
        condition = np.repeat(vectors, 4, axis=1)
        y = naive.unet(config.model, naive.part(p, "unet"), z, logsnr, condition)
        np.testing.assert_allclose(
            found[:, index], np.square(y - eps).mean((1, 2, 3, 4)), rtol=1e-4
        )


def test_pixels_become_numbers_from_minus_one_to_one():
    video = jnp.asarray([0, 255, 51], jnp.uint8).reshape(1, 1, 1, 1, 3)
    np.testing.assert_allclose(training.to_float(video).ravel(), [-1, 1, -0.6], atol=1e-6)


# What is trained


def frozen(weights=None):
    """The system with a text encoder that is not trained."""
    return replace(system(text=True), text=replace(TEXT, frozen=True), text_weights=weights)


@pytest.mark.parametrize("config", [frozen(), system(text=True)], ids=["frozen", "trained along"])
def test_a_frozen_text_encoder_is_not_trained(config):
    phase = config.phases()[0]
    state = jax.eval_shape(lambda key: phase.init(None, key), KEY)
    text = {path for path in flatten(config.networks()) if path.startswith("text/")}
    assert text
    assert set(state["frozen"]) == (text if config.text.frozen else set())
    assert set(state["trainable"]) == set(flatten(config.networks())) - set(state["frozen"])
    assert set(state["ema"]) == set(state["trainable"])
    slots = [path for path in flatten(state["optimizer"]) if "text/" in path]
    assert bool(slots) != config.text.frozen
    assert "pool/query" in state["trainable"]


def test_a_run_begins_with_the_frozen_encoders_weights(tmp_path):
    with pytest.raises(UserError, match=r"text_weights is not given") as caught:
        frozen().start()
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"text: .* holds no .safetensors file"):
        frozen(str(tmp_path)).start()
    assert system(text=True).start() is None
    assert system().start() is None

    shapes = {
        "embeddings.word_embeddings.weight": (6, 8),
        "embeddings.position_embeddings.weight": (4, 8),
        "embeddings.token_type_embeddings.weight": (2, 8),
    }
    dense = ("attention.self.query", "attention.self.key", "attention.self.value")
    for name in (*dense, "attention.output.dense", "intermediate.dense", "output.dense"):
        shapes[f"encoder.layer.0.{name}.weight"] = (8, 8)
        shapes[f"encoder.layer.0.{name}.bias"] = (8,)
    for name in ("embeddings", "encoder.layer.0.attention.output", "encoder.layer.0.output"):
        shapes[f"{name}.LayerNorm.weight"] = shapes[f"{name}.LayerNorm.bias"] = (8,)
    tensors = {name: naive.normal(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}
    save_file(tensors, tmp_path / "model.safetensors")
    start = frozen(str(tmp_path)).start()
    assert not start["trainable"]
    wanted = {
        path: leaf.shape
        for path, leaf in flatten(frozen().networks()).items()
        if path.startswith("text/")
    }
    assert {path: leaf.shape for path, leaf in start["frozen"].items()} == wanted


def test_a_run_may_begin_with_another_models_weights(tmp_path, monkeypatch):
    """Those of the same path and shape; the model need not be the same."""
    trained, folder = system(text=True), tmp_path / "vdm" / "trained"
    folder.mkdir(parents=True)
    stored = parameters(trained, seed=5)
    save_file(stored, folder / "weights.safetensors")
    (folder / "config.json").write_text(json.dumps(to_json(trained)))
    monkeypatch.setattr(presets, "assets", lambda: tmp_path)
    wider = replace(TEXT, positions=6)
    config = replace(trained, init="vdm/trained", text=wider)
    state = config.phases()[0].init(config.start(), KEY)
    fresh = flatten(config.networks())
    differing = {path for path, leaf in fresh.items() if leaf.shape != stored[path].shape}
    assert differing == {"text/places/table"}
    for path, leaf in weights(state).items():
        same = path not in differing
        assert same == (leaf.shape == stored[path].shape and bool((leaf == stored[path]).all()))
    other = replace(MODEL, channels=16, patch=2, head_dim=8, embedding_width=16)
    with pytest.raises(UserError, match="init vdm/trained has none of this model's"):
        system(model=other, init="vdm/trained").start()
    with pytest.raises(UserError, match="vdm/other is neither a run directory nor a shipped"):
        system(init="vdm/other").start()


def test_a_stage_of_images_goes_on_as_one_of_clips():
    images = replace(STAGE, name="images", frames=1, images=0)
    config = system(stages=(images, replace(STAGE, name="clips", images=0)))
    first, second = config.phases()
    state = jax.eval_shape(lambda key: first.init(None, key), KEY)
    after = jax.eval_shape(lambda state, key: second.init(state, key), state, KEY)
    assert {path: leaf.shape for path, leaf in flatten(state).items()} == {
        path: leaf.shape for path, leaf in flatten(after).items()
    }
    assert next(first.batches(None))["video"].shape == (8, 1, 8, 8, 3)
    clips = next(second.batches(None))
    assert clips["video"].shape == (8, 4, 8, 8, 3)
    assert "tokens" not in clips


def test_a_stage_moves_what_it_does_not_freeze():
    """What it freezes has no slot, no average, and goes on to the next stage with the rest."""
    config = system(text=True)
    first = replace(STAGE, name="first", freeze=("^text/", "^pool/", "/temporal/"))
    fixed, free = replace(config, stages=(first, STAGE)).phases()
    params = {path: jnp.asarray(leaf) for path, leaf in parameters(config).items()}
    state = fixed.init({"trainable": params}, KEY)
    still = {path for path in params if path.startswith(("text/", "pool/")) or "/temporal/" in path}
    assert 0 < len(still) < len(params)
    assert set(state["frozen"]) == still
    assert set(state["trainable"]) == set(state["ema"]) == set(params) - still
    batch = joint_batch(config, frames=4)
    after, _ = jax.jit(fixed.step)(state, batch, KEY)
    moved = {
        path for path, leaf in weights(after, ema=False).items() if (leaf != params[path]).any()
    }
    assert moved
    assert not moved & still
    everything = free.init(after, KEY)["trainable"]
    assert set(everything) == set(params)
    for path in still:
        np.testing.assert_array_equal(everything[path], params[path])


@pytest.mark.parametrize(
    ("freeze", "words"),
    [
        (("^text/", "^polo/"), "freeze has '.polo/', .* paths begin with pool/, text/, unet/"),
        (("^text/", "^pool/", "^unet/"), "freeze leaves no parameter to train"),
        (("(",), "freeze has '.', which is no regular expression: .*; escape it"),
    ],
)
def test_a_stage_cannot_freeze_nothing_or_everything(freeze, words):
    with pytest.raises(UserError, match=words):
        system(text=True, stages=(replace(STAGE, freeze=freeze),)).phases()


def test_a_stage_may_have_data_of_its_own():
    """Of which its clips are taken, in the stage's length; the others keep the configuration's."""
    alone = replace(DATA, world=replace(DATA.world, two_objects=0))
    own = replace(STAGE, name="own", frames=2, images=0, data=alone)
    first, second = system(stages=(own, replace(STAGE, images=0))).phases()
    assert next(first.batches(None))["video"].shape == (8, 2, 8, 8, 3)
    assert next(second.batches(None))["video"].shape == (8, 4, 8, 8, 3)
    same = system(data=alone, stages=(replace(own, data=None),)).phases()[0]
    np.testing.assert_equal(next(first.batches(None)), next(same.batches(None)))
    other = system(stages=(replace(own, data=None),)).phases()[0]
    assert (next(first.batches(None))["video"] != next(other.batches(None))["video"]).any()


def test_worker_processes_read_the_same_batches():
    alone, worker = (system(workers=count).phases()[0].batches(None) for count in (0, 1))
    try:
        for _ in range(2):
            np.testing.assert_equal(next(worker), next(alone))
    finally:
        worker.close()


def test_parameters_are_counted():
    assert parameter_count(system(text=True).networks()) == sum(
        leaf.size for leaf in parameters(system(text=True)).values()
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": replace(system().model, patch=3)}, r"8 x 8; .*model.patch 3"),
        ({"text": TEXT}, "text and tokenizer"),
        ({"tokenizer": TOKENIZER}, "text and tokenizer"),
        ({"model": replace(system().model, head_dim=5)}, r"8 channels, .* model.head_dim 5"),
        (
            {"text": TEXT, "tokenizer": HashTokenizer(buckets=9, length=4)},
            "11 words but text.vocabulary is 6",
        ),
        (
            {"stages": (replace(STAGE, data=ShapesData(world=ShapesConfig(size=(8, 16)))),)},
            "stage video: data.width is 16 but the model's data has 8",
        ),
        (
            {"stages": (replace(STAGE, data=replace(DATA, skips=(1, 2))),)},
            r"stage video: data.skips is \(1, 2\) but the model's data has \(1,\)",
        ),
        (
            {"text": TEXT, "tokenizer": replace(TOKENIZER, length=5)},
            "5 tokens but text.positions is 4",
        ),
        ({"workers": -1}, "workers is -1; it must be 0 or more"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(changes, words):
    with pytest.raises(UserError, match=words) as caught:
        replace(system(), **changes)
    assert "\n" not in str(caught.value)
