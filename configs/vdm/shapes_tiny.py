"""The small sibling for ablations: 8 frames of 16x16, one object.

Differs from `vdm/shapes` in the data, two levels of twice the channels, both with attention, no temporal convolutions, AdamW,
the unshifted schedule, and one stage that begins with nothing: neither a text encoder that can read nor an image model.
Expected: not run to its end by itself; `experiments/joint_images.py` runs it with half the channels and shows the curve.
"""

from dataclasses import replace

from jaxvid.core.config import load_config
from jaxvid.data.shapes import SHAPES_TINY
from jaxvid.data.shapes_source import ShapesData
from jaxvid.diffusion.schedule import Cosine
from jaxvid.systems.vdm import VDM, Stage
from jaxvid.train.loop import LoopConfig
from jaxvid.train.optimizer import OptimizerConfig


def config() -> VDM:
    """The configuration."""
    shapes: VDM = load_config("vdm/shapes")
    return replace(
        shapes,
        data=ShapesData(world=SHAPES_TINY),
        schedule=Cosine(),
        model=replace(
            shapes.model,
            channels=64,
            multipliers=(1, 2),
            attention_levels=(0, 1),
            convolution="spatial",
        ),
        stages=(
            Stage(
                steps=4000,
                batch=16,
                optimizer=OptimizerConfig(learning_rate=8e-4, b2=0.99, warmup_steps=100),
                ema=0.998,
            ),
        ),
        loop=LoopConfig(log_every=50, save_every=500),
    )
