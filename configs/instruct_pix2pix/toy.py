"""The small InstructPix2Pix that comes with jaxedit: pictures of toy scenes, 48 pixels a side, edited by a sentence.

    jaxedit train instruct_pix2pix/toy --run runs/editor --save my_editor

InstructPix2Pix (Brooks et al. 2023) at the smallest scale: 5.26 million parameters of U-Net and 0.29 million of text encoder, 11.2 MB in
16 bits. What is theirs: the network sees the picture before the edit beside the noised one, text by cross-attention, 5% each of dropped
text, picture and both, guidance by two scales, Stable Diffusion's 1000 noise levels. What is not:

pixels      folded in squares of 2x2 take the place of latents (`jaxvid.models.folding`).
x           is predicted, not epsilon: a network with few channels passes the picture through from the beginning. All noise levels weigh
            alike. With weights that grow with the SNR (0.2 to 5, as in `vdm/shapes`) it knew day and night alone after 60,000 pairs;
            32,000 more with equal weights brought 2.9 dB to recolouring. The two were not compared over equal pairs.
text        the encoder learns to read first: 300 batches of instructions from which it tells kind, part, colours, marks, shape and size (99%
            of all instructions right after 60 batches), and is frozen then.
data        is endless: a scene, an edit of one of seven kinds, a camera and a background are drawn for each pair, and traced.

Expected result and cost: about 20 pairs a second were seen on two idle cores, at which the 640,000 pairs of the preset take nine hours. It was
not run to its end: the shipped one saw 172,000 pairs, and what it reaches stands in its README.
"""

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
