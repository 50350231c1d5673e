"""Text to video, small: 16x64x64, base width 128 (VDM, section 4.3 and appendix A).

Published (10 million captioned videos that are not public): with 8 joint images a clip FVD 57.84 / 60.72 and FID
15.57 over frames, with 4 images 68.11 / 70.74, with none 202.28 / 205.42, against train / validation; 64 TPU-v4 chips,
200,000 steps of 128 clips. Not reproduced by this project; `experiments/joint_images.py` asks the same of `shapes_tiny`.

`data.name` is any captioned data set that `jaxvid data prepare` has written; `text_weights` and `tokenizer.path` are
folders of BERT-large (uncased) in the transformers layout. Not in the paper, our choice: the encoder's case, 77 tokens, captions
dropped from a tenth of the examples, and what `vdm/ucf101` lists.
"""

from jaxvid.data.tfds import TfdsData
from jaxvid.data.tokens import BertTokenizer
from jaxvid.models.text import TextConfig
from jaxvid.models.unet import UNetConfig
from jaxvid.systems.vdm import VDM, Sampling, Stage
from jaxvid.train.optimizer import OptimizerConfig


def config() -> VDM:
    """The configuration."""
    return VDM(
        data=TfdsData(name="data/captioned", frames=16, height=64, width=64),
        model=UNetConfig(
            channels=128,
            multipliers=(1, 2, 4, 8),
            blocks=2,
            attention_levels=(1, 2, 3),
            head_dim=64,
            embedding_layers=4,
            remat=True,
        ),
        text=TextConfig(),
        tokenizer=BertTokenizer(path="data/bert-large-uncased", length=77),
        text_weights="data/bert-large-uncased",
        target="epsilon",
        weighting="epsilon",
        stages=(
            Stage(
                steps=200_000,
                batch=128,
                images=8,
                optimizer=OptimizerConfig(learning_rate=3e-4, b2=0.99, warmup_steps=5000),
            ),
        ),
        sampling=Sampling(sampler="ancestral", steps=256, gamma=0.3, guidance=2.0),
        compute="bfloat16",
    )
