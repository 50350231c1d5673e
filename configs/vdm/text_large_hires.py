"""Text to video, large and high-resolution: 9x128x128 (VDM, section 4.3 and appendix A).

The paper samples 64x128x128 clips with it from 16x64x64 clips at frame skip 4, block by block, with reconstruction
guidance on both the low-resolution frames and the frames already made. `VDM.upsample` with rate 4 makes the 61 frames from the
first to the last of the 16; which three frames more the paper makes, it does not say. 128 TPU-v4 chips, 800,000
steps of 128 clips. Not reproduced by this project.

Differs from `vdm/text_small` in size, multipliers, head dimension, learning rate, 7 joint images and steps.
"""

from dataclasses import replace

from jaxvid.core.config import load_config
from jaxvid.systems.vdm import VDM


def config() -> VDM:
    """The configuration."""
    small: VDM = load_config("vdm/text_small")
    stage = small.stages[0]
    return replace(
        small,
        data=replace(small.data, frames=9, height=128, width=128),
        model=replace(
            small.model, multipliers=(1, 2, 4, 8, 16), attention_levels=(2, 3, 4), head_dim=128
        ),
        stages=(
            replace(
                stage,
                steps=800_000,
                images=7,
                optimizer=replace(stage.optimizer, learning_rate=2e-4),
            ),
        ),
    )
