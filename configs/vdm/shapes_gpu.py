"""The shipped text-to-video model of the shapes world, trained further on one GPU.

    jaxvid train vdm/shapes_gpu --run runs/shapes_gpu        (one data-centre GPU, a dozen CPU cores)

`vdm/shapes` says what the model is and how two CPU cores began it. This goes on from the shipped weights with whole clips:
batches of 128 instead of 4, bfloat16 inside the network, worker processes that draw the clips.
"""

from dataclasses import replace

from jaxvid.core.config import load_config
from jaxvid.data.shapes import ShapesConfig
from jaxvid.data.shapes_source import ShapesData
from jaxvid.systems.vdm import VDM, Stage
from jaxvid.train.optimizer import OptimizerConfig


def config() -> VDM:
    """The configuration."""
    small: VDM = load_config("vdm/shapes")
    return replace(
        small,
        init="vdm/shapes",
        compute="bfloat16",
        workers=12,
        stages=(
            Stage(
                "gpu",
                steps=5000,
                batch=128,
                optimizer=OptimizerConfig(
                    2e-3, b2=0.99, warmup_steps=100, method="muon", decay="cosine"
                ),
                ema=0.999,
                snr_range=(0.015, 0.32),
                forcing=0.2,
                freeze=("^text/", "^pool/"),
                data=ShapesData(world=ShapesConfig(two_objects=0.25)),
            ),
        ),
        loop=replace(small.loop, save_every=1000, sample_every=0),
    )
