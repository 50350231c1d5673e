"""The hash grid of instant-ngp (Mueller et al. 2022) at its published size, for an object in a known box.

    jaxedit fit SCENE --config reconstruct/ngp --run runs/scene        (images of 800 pixels; a GPU)

Table 1's grid (16 levels of 2 features, 16 to 2048, 2^19 rows a level) and its networks for NeRF; Huber's loss, random
backgrounds, Adam(0.9, 0.99, 1e-15) at 1e-2.

Not as published: steps of the box's diagonal / 1024 without cascades; a fixed number of rays instead of one that follows
the number of samples; a warm-up and cosine decay instead of steps; no average of weights. 20,000 steps
as in nerfacc's example.

Expected: not measured at this size (the paper reports 36.2 dB on *mic*). `jaxedit plan reconstruct/ngp --topology h200:1`
says what it needs.
"""

from jaxedit.fields.hash_grid import HashGridConfig
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
        field=HashGridConfig(),
        render=RenderConfig(samples=1024, equal_steps=True, slots=6.0),
        occupancy=OccupancyConfig(resolution=128),
        background="random",
        fits=(
            Fit(
                "fit",
                steps=20_000,
                rays=8192,
                colour_loss="huber",
                optimizer=OptimizerConfig(
                    learning_rate=1e-2,
                    b2=0.99,
                    epsilon=1e-15,
                    weight_decay=1e-6,
                    clip_norm=None,
                    warmup_steps=100,
                    decay="cosine",
                ),
            ),
        ),
        loop=LoopConfig(log_every=100, save_every=2000, sample_every=2000),
    )
