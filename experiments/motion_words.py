"""How much does a model of `shapes` hear which way things move?

Mean squared error of x on test clips of one object that moves right, left, up or down, every frame at one noise level: with
the clip's caption, with its direction turned by 90 degrees, reversed, and without caption. A model that does not hear the
direction has the first three alike; what they differ by is what it can tell before anything moves visibly.

    python experiments/motion_words.py                     # the shipped model
    python experiments/motion_words.py runs/shapes --clips 64
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxvid.core.errors import UserError
from jaxvid.core.paths import unflatten
from jaxvid.core.rng import named
from jaxvid.data.shapes.world import DIRECTIONS
from jaxvid.data.shapes_source import ShapesData
from jaxvid.diffusion.process import q_sample
from jaxvid.diffusion.types import Level
from jaxvid.systems import presets
from jaxvid.systems.vdm import VDM
from jaxvid.systems.vdm.networks import abstract_networks
from jaxvid.systems.vdm.sampling import embed
from jaxvid.systems.vdm.training import network_denoise, to_float

LEVELS = (
    -5.0,
    -4.0,
    -3.0,
    -2.0,
    -1.0,
)  # log-SNR at which several frames place an object that one does not
CHANGES: Mapping[str, Mapping[str, str]] = {
    "caption": {},
    "turned": {
        **{"right": "up", "left": "down", "up": "left", "down": "right"},
        **{"upward": "left", "downward": "right"},
    },
    "reversed": {
        **{"right": "left", "left": "right", "up": "down", "down": "up"},
        **{"upward": "downward", "downward": "upward"},
    },
}


def changed(caption: str, words: Mapping[str, str]) -> str:
    """The caption with some words replaced."""
    return " ".join(words.get(word, word) for word in caption.split())


def error(system: VDM, params: Any, x: Array, embedding: Array, logsnr: Array) -> Float[Array, ""]:
    """Mean squared error of x [b, t, h, w, c] at one log-SNR, the noise always the same."""
    networks = unflatten(abstract_networks(system), params)
    eps = jax.random.normal(named(jax.random.key(0), "motion words"), x.shape)
    level = jnp.broadcast_to(logsnr, x.shape[:2])
    z = q_sample(x, eps, level)
    found = network_denoise(system, networks, z, Level(level), embedding[:, None])
    return jnp.mean(jnp.square(found.x - x))


def _embed(system: VDM, params: Any, captions: Sequence[str]) -> Float[Array, "b e"]:
    """The condition vectors of captions, which this model takes."""
    embedding = embed(system, params, captions)
    assert embedding is not None
    return embedding


def measure(system: VDM, params: Any, clips: int, batch: int = 16) -> dict[str, list[float]]:
    """{words: errors at LEVELS} over the first `clips` test clips, which are made of whole batches."""
    if not isinstance(system.data, ShapesData) or system.tokenizer is None:
        raise UserError("motion_words: the model is not one of shapes with text; name another")
    if clips < batch or clips % batch:
        raise UserError(f"--clips is {clips}; give a multiple of {batch}")
    world = replace(system.data.world, two_objects=0, motions=tuple(DIRECTIONS))
    source = replace(system.data, world=world).source("test")
    examples = [source[index] for index in range(clips)]
    captions = [example["caption"] or "" for example in examples]
    x = to_float(jnp.asarray(np.stack([example["video"] for example in examples])))
    conditions = {
        name: _embed(system, params, [changed(caption, words) for caption in captions])
        for name, words in CHANGES.items()
    }
    conditions["none"] = jnp.zeros_like(conditions["caption"])
    run = jax.jit(partial(error, system))
    parts = [slice(start, start + batch) for start in range(0, clips, batch)]
    return {
        name: [
            float(np.mean([run(params, x[part], e[part], jnp.float32(level)) for part in parts]))
            for level in LEVELS
        ]
        for name, e in conditions.items()
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", nargs="?", default="vdm/shapes", help="shipped model or run")
    parser.add_argument("--clips", type=int, default=32)
    options = parser.parse_args(argv)
    try:
        errors = measure(*presets.load(options.source), options.clips)
    except UserError as problem:
        print(f"motion_words: error: {problem}", file=sys.stderr)
        return 2
    print("log-SNR   " + "".join(f"{level:10g}" for level in LEVELS))
    for name, values in errors.items():
        print(f"{name:10}" + "".join(f"{value:10.5f}" for value in values))
    return 0


if __name__ == "__main__":
    sys.exit(main())
