"""UCF-101, unconditional, 16x64x64 (VDM, section 4.1 and appendix A).

Published: FID 295 +- 3 and IS 57 +- 0.62 in C3D features over 10,000 samples; 128 TPU-v4 chips, 60,000 steps of 128
clips. Not reproduced by this project yet: `jaxvid plan vdm/ucf101 --topology v5p:4x4x4` tells what a step needs.

Not in the paper, our choice: warm-up over 5,000 steps, gradient norm clipped at 1, bfloat16 compute with float32
parameters, recomputation of blocks in the backward pass, Shaw distances clipped at 16 and one pair of tables a layer,
channel changes in the resampling convolutions, 32 groups of normalisation per frame.
"""

from jaxvid.data.layouts import Ucf101Data
from jaxvid.models.unet import UNetConfig
from jaxvid.systems.vdm import VDM, Sampling, Stage
from jaxvid.train.optimizer import OptimizerConfig


def config() -> VDM:
    """The configuration."""
    return VDM(
        data=Ucf101Data(path="data/ucf101", frames=16, height=64, width=64),
        model=UNetConfig(
            channels=256,
            multipliers=(1, 2, 4, 8),
            blocks=2,
            attention_levels=(1, 2, 3),
            head_dim=64,
            embedding_layers=4,
            dropout=0.1,
            remat=True,
        ),
        target="epsilon",
        weighting="epsilon",
        stages=(
            Stage(
                steps=60_000,
                batch=128,
                images=8,
                optimizer=OptimizerConfig(learning_rate=3e-4, b2=0.99, warmup_steps=5000),
            ),
        ),
        sampling=Sampling(sampler="ancestral", steps=256, gamma=0.1),
        compute="bfloat16",
    )
