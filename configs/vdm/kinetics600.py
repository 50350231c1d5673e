"""Kinetics-600, 5 frames given, 11 predicted, 64x64 (VDM, section 4.2 and appendix A).

Trained without conditions; at sampling the first 5 frames are given by reconstruction guidance with weight 9.
Published: FVD 18.6 and IS 15.39 with 256 ancestral steps, FVD 16.2 +- 0.34 and IS 15.64 with the Langevin sampler of
128 + 128, over 50,000 test clips; 256 TPU-v4 chips, 220,000 steps of 256 clips. Not reproduced by this project yet.

Not in the paper, our choice: as in `vdm/ucf101`.
"""

from jaxvid.data.layouts import Kinetics600Data
from jaxvid.models.unet import UNetConfig
from jaxvid.systems.vdm import VDM, Sampling, Stage
from jaxvid.train.optimizer import OptimizerConfig


def config() -> VDM:
    """The configuration."""
    return VDM(
        data=Kinetics600Data(path="data/kinetics600", frames=16, height=64, width=64),
        model=UNetConfig(
            channels=256,
            multipliers=(1, 2, 4, 8),
            blocks=2,
            attention_levels=(1, 2, 3),
            head_dim=64,
            embedding_layers=2,
            dropout=0.1,
            remat=True,
        ),
        target="v",
        weighting="v",
        stages=(
            Stage(
                steps=220_000,
                batch=256,
                images=8,
                optimizer=OptimizerConfig(learning_rate=2e-4, b2=0.99, warmup_steps=5000),
            ),
        ),
        sampling=Sampling(sampler="langevin", steps=128, gamma=0.0, reconstruction=9.0),
        compute="bfloat16",
    )
