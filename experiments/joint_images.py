"""Do image frames appended to each clip make a better video model? (VDM, section 3.1 and Table 4.)

    jaxvid ablate experiments/joint_images.py --dry-run
    jaxvid ablate experiments/joint_images.py --seeds 3 --run runs/ablations

A larger setting, for a GPU: the same command with `--stages.0.steps 40000 --stages.0.batch 64 --model.channels 128`.

The paper's three models took equally many steps. An image frame costs about as much as a frame of the clip, so here
the arms have equal counted training FLOPs, and the arm without images takes twice as many steps as that with 8; the
curves are also compared at equal steps, the paper's way.

The verdict is by the held-out loss of pure clips, the only score here that is precise enough for differences of few
percent: of 128 sampled clips one standard error is up to 4 points of accuracy. The samples' scores are shown beside it.

Found (three seeds, 900 / 530 / 374 steps of 16 clips, 9.47 TFLOP an arm; held-out loss, lower is better, with the paired
95% interval of the difference from no images):

    equal FLOPs       0 images 0.0269   4 images 0.0310, +0.0040 [-0.0008, +0.0088]   8 images 0.0363, +0.0093 [+0.0080, +0.0107]
    equal steps, 374  0 images 0.0444   4 images 0.0403, -0.0041 [-0.0092, +0.0010]   8 images 0.0363, -0.0081 [-0.0103, -0.0058]

So at equal steps, the paper's comparison, more images are better (surely with 8; 4 lie between); at equal FLOPs they are
worse: here their frames do not pay for the clips that they replace. All arms are far from converged (their curves still
fall, and no sampled clip shows its whole caption), so this says nothing about long training.
"""

from collections.abc import Mapping
from dataclasses import replace

import jax
import numpy as np

from jaxvid.core.config import load_config
from jaxvid.core.rng import named
from jaxvid.evaluate.ablate import Verdict
from jaxvid.evaluate.captions import score
from jaxvid.systems.vdm import VDM
from jaxvid.systems.vdm.report import heldout_loss, heldout_prompts, to_uint8
from jaxvid.train.loop import LoopConfig
from jaxvid.train.state import State, weights

QUESTION = "Do joint image frames make a better video model?"
CLAIM = (
    "VDM, Table 4 (16x64x64, text): 0, 4 and 8 image frames give FVD 202, 68, 58, FID 37.5, 18.6, 15.6 and "
    "IS 7.9, 9.0, 9.3"
)
COST = "9 runs of 2.6 minutes each, 23 minutes in all, on two cores of an AMD EPYC (Zen 4)"

CLIPS = 128  # sampled for a score
CELLS = 4  # frames are averaged over CELLS x CELLS squares for the Frechet distance
REFERENCES = 1024  # real clips that samples are compared with


def base() -> VDM:
    """`vdm/shapes_tiny` with half the channels, few steps, and a warm-up that is short beside the shortest arm."""
    tiny: VDM = load_config("vdm/shapes_tiny")
    stage = tiny.stages[0]
    return replace(
        tiny,
        model=replace(tiny.model, channels=32),
        stages=(replace(stage, steps=900, optimizer=replace(stage.optimizer, warmup_steps=30)),),
        sampling=replace(tiny.sampling, sampler="dpm++", steps=10),
        heldout=64,
        loop=LoopConfig(log_every=25, save_every=200, sample_every=100),
    )


def heldout(system: VDM, state: State, seed: int) -> float:
    """Loss of pure clips of the test split at fixed times and noise."""
    return heldout_loss(system, weights(state))["heldout/loss"]


def samples(system: VDM, state: State, seed: int) -> Mapping[str, float]:
    """Clips of test captions: the share that shows colour, shape, motion and count as asked, and their distance."""
    captions = heldout_prompts(system, CLIPS)
    key = named(jax.random.key(seed), "ablation")
    videos = to_uint8(system.sample(weights(state), key, captions))
    right = [score(video, caption) for video, caption in zip(videos, captions, strict=True)]
    source = system.data.source("test")
    real = np.stack([source[CLIPS + i]["video"] for i in range(REFERENCES)])
    return {
        "captions": float(np.mean([each["all"] for each in right])),
        "motion": float(np.mean([each["motion"] for each in right])),
        "frechet": frechet(features(videos), features(real)),
    }


def features(videos: np.ndarray) -> np.ndarray:
    """uint8 [b, t, h, w, 3] to the mean colours of coarse squares of each frame, [b t, features] in [0, 1]."""
    b, t, h, w, c = videos.shape
    cells = videos.reshape(b * t, CELLS, h // CELLS, CELLS, w // CELLS, c).mean(axis=(2, 4))
    return cells.reshape(b * t, -1) / 255


def frechet(first: np.ndarray, second: np.ndarray) -> float:
    """Frechet distance of two sets of features taken as Gaussian (Heusel et al. 2017, Eq. 6); needs no network.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2).
    """
    values, vectors = np.linalg.eigh(np.cov(first, rowvar=False))
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    other = np.cov(second, rowvar=False)
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ other @ root), 0)).sum()
    gap = first.mean(axis=0) - second.mean(axis=0)
    return float(gap @ gap + values.sum() + np.trace(other) - 2 * cross)


BASE = base
VARIANTS = {f"images_{count}": {"stages.0.images": count} for count in (0, 4, 8)}
METRICS = {"heldout": heldout, "samples": samples}
CURVE = ("heldout",)
PAIR = "flops"
VERDICT = Verdict("heldout", "lower", ("images_4", "images_8"))
