"""The small InstructPix2Pix (draft)."""

from jaxedit.systems.instruct_pix2pix import InstructPix2Pix
from jaxvid.models.blocks import BlockConfig
from jaxvid.models.conditional_unet import ConditionalUNetConfig, Level
from jaxvid.train.loop import LoopConfig


def config() -> InstructPix2Pix:
    """The configuration."""
    unet = ConditionalUNetConfig(
        levels=(
            Level(48, 1, head_dim=24),
            Level(96, 1, attention="transformer", head_dim=32),
            Level(128, 1, attention="transformer", head_dim=32),
        ),
        inputs=24,
        outputs=12,
        context=96,
        linear=True,
        block=BlockConfig(groups=8),
    )
    return InstructPix2Pix(
        unet, loop=LoopConfig(log_every=50, save_every=500, sample_every=1000, keep=2)
    )
