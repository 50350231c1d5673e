"""The hash grid of instant-ngp (Mueller et al. 2022) at its published size, for an object in a known box.

    jaxedit fit SCENE --config reconstruct/ngp --run runs/scene        (images of 800 pixels; a GPU)

Table 1's grid (16 levels of 2 features, 16 to 2048, 2^19 rows a level) and its networks for NeRF; Huber's loss, random
backgrounds, Adam(0.9, 0.99, 1e-15) at 1e-2.

Not as published: steps of the box's diagonal / 1024 without cascades; a fixed number of rays instead of one that follows
the number of samples; a warm-up and cosine decay instead of steps; no average of weights. 20,000 steps
as in nerfacc's example.

Expected, measured once on *mic* at 800x800 (100 training views, 25 test views) on one H200 beside other compilations, with `--fits.0.steps
15000`: 33.97 dB, 24.68 dB in the foreground, SSIM 0.987, after 2.3 minutes in all: 18 seconds to the first step, 80 for the steps (5.2 ms
each), 18 to score. Below the paper's 36.2 dB; training pixels came to 36.1 dB over random colours. 20,000 steps were not run.
`jaxedit plan reconstruct/ngp --topology h200:1`: 2.5 GiB, compiled in 50 s.
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
