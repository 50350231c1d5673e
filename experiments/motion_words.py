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
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxvid.core.errors import UserError
from jaxvid.data.shapes.world import DIRECTIONS
from jaxvid.data.shapes_source import ShapesData
from jaxvid.data.tokens import encode_prompt
from jaxvid.systems import presets
from jaxvid.systems.vdm import VDM, Stage
from jaxvid.systems.vdm.training import fixed_losses

# Log-SNRs at which several frames place an object that one does not.
LEVELS = (-5.0, -4.0, -3.0, -2.0, -1.0)
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


def measure(system: VDM, params: Any, clips: int, batch: int = 16) -> dict[str, list[float]]:
    """{words: errors at LEVELS} over the first `clips` test clips, which are made of whole batches."""
    tokenizer = system.tokenizer
    if not isinstance(system.data, ShapesData) or tokenizer is None:
        raise UserError("motion_words: the model is not one of shapes with text; name another")
    if clips < batch or clips % batch:
        raise UserError(f"--clips is {clips}; give a multiple of {batch}")
    world = replace(system.data.world, two_objects=0, motions=tuple(DIRECTIONS))
    source = replace(system.data, world=world).source("test")
    examples = [source[index] for index in range(clips)]
    video = np.stack([example["video"] for example in examples])
    tokens = {
        name: np.stack(
            [
                encode_prompt(tokenizer, changed(example["caption"] or "", words))
                for example in examples
            ]
        )[:, None]
        for name, words in CHANGES.items()
    }
    tokens["none"] = np.zeros_like(tokens["caption"])
    # The error of x itself; a stage may have a range for the weighting that this one has not.
    plain = replace(system, weighting="x", stages=(Stage(),))
    times = np.asarray(system.schedule.time(jnp.asarray(LEVELS)))

    def errors(words: np.ndarray) -> list[float]:
        parts = [slice(start, start + batch) for start in range(0, clips, batch)]
        batches = [{"video": video[part], "tokens": words[part]} for part in parts]
        found = [fixed_losses(plain, params, each, times) for each in batches]
        return np.concatenate(found).mean(axis=0).tolist()

    return {name: errors(words) for name, words in tokens.items()}


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
