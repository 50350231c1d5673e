"""The network of NeRF (Mildenhall et al. 2020): an MLP of encoded positions, for an object in a known box.

    jaxedit fit SCENE --config reconstruct/nerf --run runs/scene        (images of 800 pixels; a GPU)

Appendix A's network, Adam at 5e-4, mean squared error. Not as published: an occupancy grid says where to look instead of a
coarse network with 64 + 128 samples, rays come from all images, softplus stands for ReLU in the density, the rate decays by a
cosine.

Expected: not measured at this size (the paper reports 32.9 dB on *mic*). A sample costs about 600,000 multiply-adds: on
a laptop take `reconstruct/hash`.
"""

from jaxedit.fields.frequency_mlp import FrequencyMLPConfig
from jaxedit.render.occupancy import OccupancyConfig
from jaxedit.render.render import RenderConfig
from jaxedit.scene.load import SceneConfig
from jaxedit.systems.reconstruct import Fit, Reconstruct
from jaxvid.train.loop import LoopConfig
from jaxvid.train.optimizer import OptimizerConfig


def config() -> Reconstruct:
    """The configuration."""
    return Reconstruct(
        data=SceneConfig(path="data/scene"),
        field=FrequencyMLPConfig(),
        render=RenderConfig(samples=512, equal_steps=True, slots=6.0),
        occupancy=OccupancyConfig(resolution=128),
        fits=(
            Fit(
                "fit",
                steps=100_000,
                rays=4096,
                optimizer=OptimizerConfig(
                    learning_rate=5e-4, epsilon=1e-7, clip_norm=None, decay="cosine"
                ),
            ),
        ),
        loop=LoopConfig(log_every=100, save_every=5000, sample_every=5000),
    )
