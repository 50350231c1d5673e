"""BAIR robot pushing, 1 frame given, 15 predicted, 64x64 (VDM, section 4.2 and appendix A).

Trained without conditions; at sampling the first frame is given by reconstruction guidance with weight 50. Published:
FVD 68.19 with 512 ancestral steps, 66.92 with the Langevin sampler of 256 + 256, 100 x 256 samples against the 256
evaluation clips; 128 TPU-v4 chips, 660,000 steps of 128 clips. Not reproduced by this project yet.

Not in the paper, our choice: as in `vdm/ucf101`.
"""

from jaxvid.data.layouts import BairData
from jaxvid.models.unet import UNetConfig
from jaxvid.systems.vdm import VDM, Sampling, Stage
from jaxvid.train.optimizer import OptimizerConfig


def config() -> VDM:
    """The configuration."""
    return VDM(
        data=BairData(path="data/bair", frames=16, height=64, width=64, flip=True),
        model=UNetConfig(
            channels=128,
            multipliers=(1, 2, 3, 4),
            blocks=3,
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
                steps=660_000,
                batch=128,
                images=8,
                optimizer=OptimizerConfig(
                    learning_rate=2e-4, b2=0.999, weight_decay=0.01, warmup_steps=5000
                ),
                ema=0.999,
            ),
        ),
        sampling=Sampling(sampler="langevin", steps=256, gamma=0.0, reconstruction=50.0),
        compute="bfloat16",
    )
