"""Instruct-NeRF2NeRF on a laptop: the small editor that comes with jaxedit, a few hundred steps.

    jaxedit edit runs/scene --instruction "make the hat red"

The algorithm is the published one (`instruct_nerf2nerf/published` has its numbers); what differs follows from the small editor and
from two CPU cores: fewer steps and patches, an edit every 3 steps and not every 10, 10 DDIM steps an edit and not 20, weaker
guidance by the text, no LPIPS. An edit of the demo's scene takes about 45 seconds on two cores of an Intel Xeon; what comes of it is up to the
editor, whose README says what it can do. A voxel grid is stored whole while it is edited, with 64 voxels a side.
"""

from jaxedit.systems.instruct_nerf2nerf import EditConfig, Recipe, TrainingConfig
from jaxvid.train.loop import LoopConfig
from jaxvid.train.optimizer import OptimizerConfig


def config() -> Recipe:
    """The configuration."""
    return Recipe(
        steps=300,
        every=3,
        edit=EditConfig(text_scale=3.0, image_scale=1.3, steps=10, size=48),
        training=TrainingConfig(
            patches=8,
            side=16,
            resolution=(64, 64, 64),
            optimizer=OptimizerConfig(
                learning_rate=2e-2, b2=0.99, epsilon=1e-15, clip_norm=None, decay="cosine"
            ),
        ),
        loop=LoopConfig(log_every=25, save_every=100, sample_every=100, keep=1),
    )
