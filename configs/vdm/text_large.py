"""Text to video, large: 16x64x64 at frame skips 1 and 4, base width 256 (VDM, section 4.3 and appendix A).

Published: guidance scale 1 / 2 / 5 at skip 1 gives FVD 41.65 / 50.19 / 163.74 and IS 10.80 / 13.22 / 14.80; 64 frames
by reconstruction guidance at scale 2 FVD 136.22 against 451.45 by replacement; 128 TPU-v4 chips, 700,000 steps of 128
clips. Not reproduced by this project.

Differs from `vdm/text_small` in base width, steps and the two frame rates, of which the model is told by a learned vector
added to the condition (the paper does not say how).
"""

from dataclasses import replace

from jaxvid.core.config import load_config
from jaxvid.systems.vdm import VDM


def config() -> VDM:
    """The configuration."""
    small: VDM = load_config("vdm/text_small")
    return replace(
        small,
        data=replace(small.data, skips=(1, 4)),
        model=replace(small.model, channels=256),
        stages=(replace(small.stages[0], steps=700_000),),
    )
