"""A VDM that compiles fast, with values that are not those of its initialisation."""

from dataclasses import replace

import naive
import numpy as np

from jaxvid.data.shapes import MAX_CAPTION_WORDS, ShapesConfig, vocabulary
from jaxvid.data.shapes_source import ShapesData
from jaxvid.data.tokens import WordTokenizer
from jaxvid.models.text import TextConfig
from jaxvid.models.unet import UNetConfig
from jaxvid.systems.vdm import VDM, Sampling, Stage
from jaxvid.systems.vdm.networks import make_networks
from jaxvid.train.optimizer import OptimizerConfig

DATA = ShapesData(world=ShapesConfig(frames=4, size=8))
MODEL = UNetConfig(
    channels=8,
    multipliers=(1,),
    blocks=1,
    attention_levels=(0,),
    head_dim=4,
    embedding_width=8,
    embedding_layers=2,
    max_distance=2,
    groups=4,
)
TOKENIZER = WordTokenizer(("blue", "circle", "red", "square"), length=4)
TEXT = TextConfig(vocabulary=6, positions=4, width=8, layers=1, heads=2, hidden=8, frozen=False)
STAGE = Stage(
    steps=10, batch=8, images=2, optimizer=OptimizerConfig(learning_rate=1e-3, clip_norm=None)
)


def system(*, text=False, **changes):
    """Without text, an unconditional one."""
    conditions = {"text": TEXT, "tokenizer": TOKENIZER} if text else {}
    settings = {"data": DATA, "model": MODEL, "stages": (STAGE,), **conditions}
    settings["sampling"] = Sampling(sampler="ddim", steps=2, threshold="none")
    return VDM(**{**settings, **changes})


def parameters(config, seed=0):
    """`{path: array}`, random."""
    return naive.filled(lambda key: make_networks(config, key), seed)[1]


def joint_batch(config, batch=2, frames=2, images=2, seed=0):
    """Clips and appended images as the pipeline gives them; one caption of the last clip is empty."""
    rng = np.random.default_rng(seed)
    total, side = frames + images, (config.data.height, config.data.width)
    segment = np.array([0] * frames + list(range(1, images + 1)), np.int32)
    arrays = {
        "video": rng.integers(0, 256, (batch, total, *side, 3), np.uint8),
        "segment": np.broadcast_to(segment, (batch, total)),
        "index": np.arange(batch),
    }
    if config.tokenizer is not None:
        tokens = rng.integers(1, 6, (batch, 1 + images, 4)).astype(np.int32)
        tokens[:, :, 3], tokens[-1, -1] = 0, 0
        arrays["tokens"] = tokens
    if len(config.data.skips) > 1:
        rate = rng.integers(0, len(config.data.skips), (batch, 1 + images))
        arrays["rate"] = rate.astype(np.int32)
    return arrays


# A text encoder that is taught to read the captions of shapes before the video model is trained.
WORDS = WordTokenizer(vocabulary(), MAX_CAPTION_WORDS)
TEXT_OF_SHAPES = TextConfig(
    vocabulary=WORDS.size,
    positions=WORDS.length,
    width=32,
    layers=1,
    heads=2,
    hidden=32,
    frozen=False,
)
ADAM = OptimizerConfig(learning_rate=3e-3)
READING = Stage("reading", task="reading", steps=250, batch=32, optimizer=ADAM, ema=0.98)
READER = replace(
    system(
        data=ShapesData(world=ShapesConfig(frames=4, size=8, two_objects=0.0)),
        model=replace(MODEL, embedding_width=32),
        stages=(READING, STAGE),
    ),
    text=TEXT_OF_SHAPES,
    tokenizer=WORDS,
)
