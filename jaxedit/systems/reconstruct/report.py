"""What a reconstruction shows while it goes: PSNR of held-out views, and those views beside the truth."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from jaxedit.evaluate import WINDOW, lpips, psnr, ssim
from jaxedit.scene.scene import Scene, Views, composite
from jaxvid.core.run import RunDirectory
from jaxvid.data.writing import write_image
from jaxvid.models.lpips import LPIPS
from jaxvid.train.phase import Report
from jaxvid.train.state import State

# Renders view `index` of a split: [h, w, 3] in [0, 1].
RenderView = Callable[[State, Views, int], np.ndarray]
SHOWN = 4


class Scores(NamedTuple):
    """Means over views, of what masks let count. foreground: PSNR over the pixels whose alpha is above 0.

    A view without such pixels, or without a window for SSIM, is left out of that mean; nan if all are.
    lpips: nan without a network.
    """

    psnr: float
    foreground: float
    ssim: float
    lpips: float
    views: int

    def __str__(self) -> str:
        foreground = (
            "" if np.isnan(self.foreground) else f" ({self.foreground:.2f} dB in the foreground)"
        )
        perceptual = "" if np.isnan(self.lpips) else f", LPIPS {self.lpips:.4f}"
        similar = f"SSIM {self.ssim:.4f}{perceptual}"
        return f"PSNR {self.psnr:.2f} dB{foreground}, {similar}, {self.views} views"


def scored_views(scene: Scene) -> tuple[str, Views]:
    """The split that scores are of: test, else val, else the training views themselves."""
    for split in ("test", "val", "train"):
        if split in scene.views:
            return split, scene.views[split]
    raise AssertionError("a scene has a split")


def truth_of(views: Views, index: int, background: str) -> Float[np.ndarray, "h w 3"]:
    """The true image over black, or white for all other backgrounds."""
    return composite(views.images[index], np.full(3, 0.0 if background == "black" else 1.0))


def score(
    render: Callable[[Views, int], np.ndarray],
    views: Views,
    background: str,
    indices: Sequence[int],
    seen: Callable[[int, np.ndarray, np.ndarray], None] = lambda index, image, truth: None,
    network: LPIPS | None = None,
) -> Scores:
    """Scores of the views of those indices; `seen` is shown each rendered image and its truth. network: LPIPS's."""
    found = []
    for index in indices:
        image, truth = render(views, index), truth_of(views, index, background)
        mask = None if views.masks is None else views.masks[index]
        foreground = similar = perceptual = float("nan")
        if views.images.shape[-1] == 4:
            matter = views.images[index][..., 3] > 0
            foreground = psnr(image, truth, matter if mask is None else matter & mask)
        if min(image.shape[:2]) >= WINDOW:
            similar = float(ssim(jnp.asarray(image), jnp.asarray(truth), mask))
        if network is not None:
            perceptual = float(lpips(network, jnp.asarray(image), jnp.asarray(truth), mask))
        found.append((psnr(image, truth, mask), foreground, similar, perceptual))
        seen(index, image, truth)
    return Scores(*(_mean(column) for column in zip(*found, strict=True)), views=len(found))


def _mean(values: Sequence[float]) -> float:
    """The mean over the views that have a value."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def spread_indices(count: int, wanted: int) -> list[int]:
    """`wanted` indices spread over `count`; all of them for 0."""
    if not wanted or wanted >= count:
        return list(range(count))
    return [int(i) for i in np.linspace(0, count - 1, wanted).round()]


def make_report(
    scene: Scene, render: RenderView, background: str, heldout: int, network: LPIPS | None = None
) -> Report:
    """Returns the phases' report: "test/psnr" and such in the metrics, `samples/step_N.png` of truth above render."""
    split, views = scored_views(scene)

    def report(state: State, step: int, run: RunDirectory) -> None:
        columns: list[np.ndarray] = []

        def keep(index: int, image: np.ndarray, truth: np.ndarray) -> None:
            if len(columns) < SHOWN:
                columns.append(np.concatenate([truth, image]))

        scores = score(
            lambda views, index: render(state, views, index),
            views,
            background,
            spread_indices(len(views), heldout),
            keep,
            network,
        )
        values = {
            "psnr": scores.psnr,
            "psnr_foreground": scores.foreground,
            "ssim": scores.ssim,
            "lpips": scores.lpips,
        }
        known = {name: value for name, value in values.items() if not np.isnan(value)}
        run.log(step, {f"{split}/{name}": value for name, value in known.items()})
        if jax.process_index() == 0:
            write_image(run.samples / f"step_{step:08d}.png", to_bytes(np.concatenate(columns, 1)))

    return report


def to_bytes(image: Float[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """[0, 1] to bytes."""
    return np.round(np.clip(image, 0.0, 1.0) * 255.0).astype(np.uint8)
