"""A captured place without bounds, on a laptop: images of 128 pixels, a small hash grid of contracted space.

    jaxedit fit CAPTURE --config reconstruct/capture --run runs/place

For real captures (nerfstudio, COLMAP, LLFF, instant-ngp): what lies beyond the cameras is contracted into the field's box, and
two small density fields say where to look. The scheme is nerfacto's (Tancik et al. 2023): proposals, contraction in the
largest coordinate, piecewise spacing, distortion 0.002, the last sample as the background.

Not as nerfacto: 64, 48 and 32 samples instead of 256, 96 and 48; tables of 2^15 and 2^12 rows instead of 2^19 and 2^17; no
appearance embedding and no pose refinement; proposals at every step; a warm-up and cosine decay. (Without the warm-up the
colour network was seen to die: every unit at 0, all matter grey.)

Expected, measured in one run each, about 8 minutes on two cores beside other work: *mic* of NeRF-synthetic (100 training views on
white, which a box would serve better) PSNR of 25 test views 31.2 dB, 22.6 dB in the foreground, SSIM 0.980. Eleven photographs
of a statue are too few: 35.1 dB on themselves and 16.6 dB on the two held out, with matter right before the cameras.
"""

from jaxedit.fields.hash_grid import HashGridConfig
from jaxedit.render.render import RenderConfig
from jaxedit.scene.load import SceneConfig
from jaxedit.systems.reconstruct import Fit, Reconstruct
from jaxvid.train.loop import LoopConfig
from jaxvid.train.optimizer import OptimizerConfig


def config() -> Reconstruct:
    """The configuration."""
    # nerfacto multiplies its densities by 0.01: a bias of log(0.01).
    thin = -4.6
    proposals = tuple(
        HashGridConfig(levels=5, table=12, finest=finest, width=16, geometry=1, density_bias=thin)
        for finest in (64, 128)
    )
    return Reconstruct(
        data=SceneConfig(path="data/capture", size=128),
        field=HashGridConfig(levels=8, table=15, finest=512, width=32, density_bias=thin),
        render=RenderConfig(
            samples=32,
            proposal_samples=(64, 48),
            spacing="piecewise",
            bounds="none",
            last_opaque=True,
        ),
        proposals=proposals,
        occupancy=None,
        contraction="linf",
        fits=(
            Fit(
                "fit",
                steps=3000,
                rays=512,
                distortion=0.002,
                optimizer=OptimizerConfig(
                    learning_rate=1e-2,
                    b2=0.99,
                    epsilon=1e-15,
                    clip_norm=None,
                    warmup_steps=200,
                    decay="cosine",
                ),
            ),
        ),
        loop=LoopConfig(log_every=50, save_every=500, sample_every=500),
    )
