"""The shipped text-to-video model of the shapes world, trained further on one GPU.

    jaxvid train vdm/shapes_gpu --run runs/shapes_gpu        (one data-centre GPU, a dozen CPU cores)

`vdm/shapes` says what the model is and how two CPU cores began it. This goes on from the shipped weights with whole clips:
batches of 128 instead of 4, bfloat16 inside the network, worker processes that draw the clips (one draws about 900 a second, the GPU
takes 5,000).

Expected, measured once, from the checkpoint that two CPU cores had trained: on one H200 with 16 CPU cores 24 to 29 ms a step, 3.7
minutes in all and up to two more to compile; right motions of one object 10.9% before and 74.9% after, all of the caption 10.9% and
74.1% (672 clips). The shipped weights are its result, so that running it again goes on from there.
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
                steps=7500,
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
