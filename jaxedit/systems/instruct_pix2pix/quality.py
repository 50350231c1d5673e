"""How well an editing model edits pictures of toy scenes whose true edit is known.

Of each held-out pair: the pixels that the true edit changes (by more than `CHANGED` of the range in any colour), and the others.
"gain" is how much nearer to the truth the changed pixels are after the model's edit than before it, in dB; "kept" is the PSNR of
the others.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

from jaxedit.evaluate import psnr
from jaxedit.systems.instruct_pix2pix.pairs import Pair
from jaxvid.pipelines.edit import edit_image
from jaxvid.pipelines.latent import LatentDiffusion

CHANGED = 0.04
BATCH = 28


class PairScore(NamedTuple):
    """Of one pair: what was edited, and the two figures in dB."""

    kind: str
    gain: float
    kept: float


def changed_pixels(
    before: UInt8[np.ndarray, "h w 3"], after: UInt8[np.ndarray, "h w 3"]
) -> Bool[np.ndarray, "h w"]:
    """Where the true edit shows."""
    difference = np.abs(before.astype(np.int32) - after.astype(np.int32)).max(axis=-1)
    return difference > 255 * CHANGED


def edit_pairs(
    model: LatentDiffusion,
    pairs: Sequence[Pair],
    *,
    steps: int = 20,
    text_scale: float = 3.0,
    image_scale: float = 1.3,
    seed: int = 0,
) -> list[Float[np.ndarray, "h w 3"]]:
    """The model's edits of the pictures before, from pure noise, in [0, 1]."""
    found: list[np.ndarray] = []
    for first in range(0, len(pairs), BATCH):
        part = list(pairs[first : first + BATCH])
        filled = part + [part[0]] * (min(BATCH, len(pairs)) - len(part))  # one compile
        images = jnp.asarray(np.stack([pair.before for pair in filled]), jnp.float32)
        edited: Array = edit_image(
            model,
            images / 127.5 - 1.0,
            [pair.edit.instruction for pair in filled],
            jax.random.fold_in(jax.random.key(seed), first),
            steps=steps,
            text_scale=text_scale,
            image_scale=image_scale,
        )
        shown = np.clip(np.asarray(edited[:, 0]) * 0.5 + 0.5, 0.0, 1.0)
        found += list(shown[: len(part)])
    return found


def score_pair(pair: Pair, edited: Float[np.ndarray, "h w 3"]) -> PairScore:
    """The module's figures; nan where the edit shows nowhere, or everywhere."""
    mask = changed_pixels(pair.before, pair.after)
    before, after = (picture.astype(np.float32) / 255.0 for picture in (pair.before, pair.after))
    gain = psnr(edited, after, mask) - psnr(before, after, mask)
    return PairScore(pair.edit.kind, gain, psnr(edited, before, ~mask))


def table(scores: Sequence[PairScore]) -> dict[str, tuple[int, float, float, float]]:
    """By kind, and "all": pairs, median gain, share with a gain of 3 dB or more, median kept."""
    kinds = sorted({score.kind for score in scores})
    groups = {kind: [score for score in scores if score.kind == kind] for kind in kinds}
    groups["all"] = list(scores)
    found = {}
    for name, group in groups.items():
        gains = np.array([score.gain for score in group if np.isfinite(score.gain)])
        kept = np.array([score.kept for score in group if np.isfinite(score.kept)])
        if len(gains) and len(kept):
            share = float(np.mean(gains >= 3.0))
            found[name] = (len(gains), float(np.median(gains)), share, float(np.median(kept)))
    return found


def sheet(pairs: Sequence[Pair], edited: Sequence[Float[np.ndarray, "h w 3"]]) -> np.ndarray:
    """A column a pair: before, edited, truth; bytes."""
    columns = [
        np.concatenate([pair.before, np.round(255 * image).astype(np.uint8), pair.after], axis=0)
        for pair, image in zip(pairs, edited, strict=True)
    ]
    return np.concatenate(columns, axis=1)
