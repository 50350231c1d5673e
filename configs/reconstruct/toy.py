"""A voxel grid for toy scenes and small pictures: 32^3 voxels for a short time, then 64^3 stored whole.

    jaxedit fit SCENE --config reconstruct/toy --run runs/toy

What `jaxedit demo` fits: 30 pictures of 48 pixels a side. Whole grids have room for what an edit adds.

Expected, seen once on the demo's scene: PSNR of 8 test views 29.29 dB, 23.15 dB in the foreground, SSIM 0.942, after 18 seconds on two
cores of an Intel Xeon.
"""

from dataclasses import replace

from jaxedit.fields.voxel_grid import VoxelGridConfig
from jaxedit.render.occupancy import OccupancyConfig
from jaxedit.render.render import RenderConfig
from jaxedit.scene.load import SceneConfig
from jaxedit.systems.reconstruct import Fit, Reconstruct
from jaxvid.train.loop import LoopConfig
from jaxvid.train.optimizer import OptimizerConfig


def config() -> Reconstruct:
    """The configuration."""
    adam = OptimizerConfig(learning_rate=3e-2, b2=0.99, epsilon=1e-15, clip_norm=None)
    return Reconstruct(
        data=SceneConfig(path="data/scene"),
        field=VoxelGridConfig(
            resolution=(32, 32, 32),
            gain=50.0,
            shift=0.0,
            initial_density=(0.0, 0.0),
            initial_colour=(0.0, 0.0),
        ),
        render=RenderConfig(samples=96, equal_steps=True, slots=1.0),
        occupancy=OccupancyConfig(resolution=32, every=8),
        fits=(
            Fit("coarse", steps=200, rays=1024, optimizer=adam),
            Fit(
                "fine",
                steps=500,
                rays=2048,
                resolution=(64, 64, 64),
                optimizer=replace(adam, decay="cosine"),
            ),
        ),
        loop=LoopConfig(log_every=50, save_every=500),
    )
