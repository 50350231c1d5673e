"""A folder of captioned videos: 8 frames of 64x64, every second frame, on a laptop.

    jaxvid train configs/vdm/clips.py --data.path FOLDER --run runs/clips

The folder holds mp4, webm or gif files and `captions.json` ({name: caption}) or a `.txt` beside each. One clip is held out
of training; the held-out loss is over random windows of it. Words are hashed, so any caption goes. Differs from
`vdm/shapes` in data, tokenizer, size, patch, widths, no temporal convolutions, borders (not a torus), schedule (not shifted) and stages.

Expected, measured on four real clips (three for training, 429 frames in all): 2,000 steps in 16 minutes on two cores of an
AMD EPYC (Zen 4) beside other work; held-out loss at fixed times and noise 0.270 at the start, 0.267 after 1,000 steps,
0.221 at the end, standard errors 0.004, 0.005 and 0.004. The training loss ends at 0.012: three clips are learned by heart.
So does the sheet say: asked for the held-out clip's "a man is surfing", which it has never seen, the model shows the man
of "a man is skiing", in his yellow jacket on the snow, sharp enough to recognise. In one row of four he stands still for
all frames; in the others he jumps between poses, or between times of the clip. It is a test that the pipeline learns from a
folder, not a model of motion.
"""

from dataclasses import replace

from jaxvid.core.config import load_config
from jaxvid.data.folder import FolderData
from jaxvid.data.tokens import HashTokenizer
from jaxvid.diffusion.schedule import Cosine
from jaxvid.systems.vdm import VDM, Stage
from jaxvid.train.loop import LoopConfig
from jaxvid.train.optimizer import OptimizerConfig


def config() -> VDM:
    """The configuration."""
    shapes: VDM = load_config("vdm/shapes")
    tokenizer = HashTokenizer(buckets=4096, length=32)
    assert shapes.text is not None
    return replace(
        shapes,
        data=FolderData(
            path="data/clips", frames=8, height=64, width=64, stride=2, crop="center", held_out=1
        ),
        schedule=Cosine(),
        model=replace(
            shapes.model,
            channels=64,
            multipliers=(1, 3),
            attention_levels=(0, 1),
            convolution="spatial",
            patch=8,
            padding="zero",
        ),
        text=replace(shapes.text, vocabulary=tokenizer.size, positions=32),
        tokenizer=tokenizer,
        stages=(
            Stage(
                steps=2000,
                batch=8,
                images=0,
                optimizer=OptimizerConfig(learning_rate=5e-4, b2=0.99, warmup_steps=100),
                ema=0.995,
            ),
        ),
        loop=LoopConfig(log_every=50, save_every=250, sample_every=1000),
    )
