"""The voxel grid of Vox-E (Sella et al. 2023), as its released code reconstructs a scene before an edit.

    jaxedit fit SCENE --config reconstruct/relu_field --run runs/scene        (images of 800 pixels; a GPU)

Four fits of 500 steps with grids of 20, 40, 80 and 160 voxels a side and images of 1/8, 1/4, 1/2 and all of their sides;
32,768 rays of 256 samples from near to far, the last one opaque; softplus (its default; the paper says ReLU) of densities
with its gain; colours without direction; mean absolute error; Adam anew in each fit.

Not as published: its learning rate falls to a tenth after 400 of a fit's 500 steps, here linearly over all of them. Its loss counts
colours without direction a second time, which for degree 0 is the same loss twice, so once here.

Expected: not measured at this size. `jaxedit plan reconstruct/relu_field --topology h200:1` says what it needs.
"""

from jaxedit.fields.voxel_grid import VoxelGridConfig
from jaxedit.render.render import RenderConfig
from jaxedit.scene.load import SceneConfig
from jaxedit.systems.reconstruct import Fit, Reconstruct
from jaxvid.train.loop import LoopConfig
from jaxvid.train.optimizer import OptimizerConfig

STAGES = 4


def config() -> Reconstruct:
    """The configuration."""
    fits = tuple(
        Fit(
            f"stage {stage + 1}",
            steps=500,
            rays=32_768,
            shrink=2 ** (STAGES - 1 - stage),
            resolution=(20 * 2**stage,) * 3,
            colour_loss="l1",
            optimizer=OptimizerConfig(
                learning_rate=0.03 * 0.9**stage, clip_norm=None, decay="linear"
            ),
        )
        for stage in range(STAGES)
    )
    return Reconstruct(
        data=SceneConfig(path="data/scene"),
        field=VoxelGridConfig(resolution=(20, 20, 20)),
        render=RenderConfig(samples=256, bounds="none", last_opaque=True),
        occupancy=None,
        fits=fits,
        loop=LoopConfig(log_every=50, save_every=500, sample_every=500),
    )
