"""Text to video on the procedural shapes world: 16 frames of 32x32, the checkpoint that this project ships.

Not the paper's: pixels are folded in squares of 2x2 before the stem, three narrow levels follow, the two coarse ones with
attention, so that it trains on two CPU cores. The world is a torus, and so are the convolutions: at equal images the
held-out loss was 10 to 14% below that with zero padding. In three minutes of images, 2x2 squares with 32 channels came to 0.028 at
time 0.2 where 4x4 squares with 64 came to 0.051, and at times 0.5, 0.65, 0.8 to 0.012, 0.019, 0.036 against 0.016, 0.022, 0.037
(there the text encoder was not frozen). The network predicts x, not epsilon or v, whose pixel noise narrow tokens cannot carry (with 4x4 squares and v the loss above log-SNR 8
stayed at 0.98 of 1 after 45,000 images). Five stages:

captions  The paper conditions on a frozen BERT, which can read. This text encoder is one small layer that begins with nothing, so
          it is taught to read first (`jaxvid.systems.vdm.reading`), and frozen then. While the U-Net trained with it, it
          forgot: after 2,000 steps two captions that differ in nothing but the colour were 0.2 apart, and samples had the
          right colour by chance alone; after reading they are 15 apart. Without reading, 110,000 images had taught the
          background and a little colour.
singles   The image model, on one object. Temporal layers wait, as what they begin with: the identity. The SNR that weights the
          loss is clipped to 0.2 .. 5 instead of 1 .. 5, so that levels at which only an object's place is guessed count less. In
          trials of two minutes that came to squared errors of 0.0039, 0.0059, 0.0097, 0.0177, 0.0384 at times 0.2, 0.35, 0.5, 0.65, 0.8
          instead of 0.0061, 0.0082, 0.0120, 0.0198, 0.0387, though the analyser then named fewer shapes right, 8.3% of 96 stills
          instead of 18.8%. After 5,000 steps (20 minutes) it named 91.7%; a run with the floor of 1, batches of 64 and a cosine
          decay had 37.5% after nearly as many images, so what part of that is the floor's is not known.
images    The same with two objects in every fourth image. Muon needs half the images that AdamW needs for the same held-out loss.
windows   The video model goes on from it. Sixteen windows of 4 frames a step instead of 4 clips of 16: the same cost, four times
          the captions. Each frame has its own noise level (`forcing`, Diffusion Forcing), so that neighbours that are nearly
          clean show what moves where. The SNR range lies low, where several frames together still place the object; two
          minutes of each did not tell it from a floor of 0.08.
clips     All 16 frames, half of the clips at one noise level for all frames, which is what the sampler shows the network.
          Sixteen frames show the same thing, so a clip keeps it through more noise than an image: the cosine schedule is
          shifted by 2 log(1/4) in log-SNR (simple diffusion, Hoogeboom et al. 2023, does so for resolutions). Make-A-Video's
          temporal convolutions stand beside the temporal attention, with which alone objects stood still after 4,984 steps.

Cost and result: this preset was not run in one go. The shipped checkpoint came about in ten pieces, 201 minutes on two cores and
four on a GPU (`vdm/shapes_gpu`), which its README lists: singles and images were without temporal convolutions and with moving temporal
attention, and the windows went on from 9,043 steps of clips. After the minutes on the CPU one object had the right colour in 99.9%, the right
shape in 84%, the right motion in 11% of 672 clips; after those on the GPU in 99.9%, 91%, 75%. At the rates seen there the whole preset
would take about 2.5 hours on two cores; what it reaches is not known.
"""

from dataclasses import replace

from jaxvid.data.shapes import MAX_CAPTION_WORDS, ShapesConfig, vocabulary
from jaxvid.data.shapes_source import ShapesData
from jaxvid.data.tokens import WordTokenizer
from jaxvid.diffusion.schedule import Cosine
from jaxvid.models.text import TextConfig
from jaxvid.models.unet import UNetConfig
from jaxvid.systems.vdm import VDM, Sampling, Stage
from jaxvid.train.loop import LoopConfig
from jaxvid.train.optimizer import OptimizerConfig


def config() -> VDM:
    """The configuration."""
    tokenizer = WordTokenizer(vocabulary(), MAX_CAPTION_WORDS)
    return VDM(
        data=ShapesData(world=ShapesConfig(two_objects=0.25)),
        model=UNetConfig(
            channels=32,
            multipliers=(1, 2, 4),
            blocks=1,
            attention_levels=(1, 2),
            head_dim=32,
            embedding_width=256,
            embedding_layers=2,
            max_distance=15,
            patch=2,
            convolution="pseudo3d",
            modulation="scale_shift",
            groups=8,
            padding="wrap",
            scan=False,
        ),
        text=TextConfig(
            vocabulary=tokenizer.size,
            positions=tokenizer.length,
            width=128,
            layers=1,
            heads=4,
            hidden=256,
            frozen=False,
        ),
        tokenizer=tokenizer,
        target="x",
        schedule=Cosine(shift=1 / 4),
        weighting="clipped_snr",
        snr_range=(0.2, 5.0),
        stages=_stages(),
        sampling=Sampling(sampler="dpm++", steps=24, guidance=2.0),
        loop=LoopConfig(log_every=50, save_every=500, sample_every=2000),
        threads=1,
    )


def _stages() -> tuple[Stage, ...]:
    muon = OptimizerConfig(2.5e-3, b2=0.99, warmup_steps=100, method="muon")
    read = ("^text/", "^pool/")
    still = (*read, "/temporal/")
    single = ShapesData(world=ShapesConfig(two_objects=0))
    pooled = (0.015, 0.32)  # where several frames together place an object that one alone does not
    return (
        Stage(
            "captions",
            task="reading",
            steps=2000,
            batch=128,
            optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=100, decay="cosine"),
            ema=0.99,
        ),
        Stage(
            "singles",
            steps=5000,
            batch=32,
            frames=1,
            optimizer=muon,
            ema=0.995,
            schedule=Cosine(),
            freeze=still,
            data=single,
        ),
        Stage(
            "images",
            steps=4000,
            batch=32,
            frames=1,
            optimizer=replace(muon, decay="cosine"),
            ema=0.998,
            schedule=Cosine(),
            freeze=still,
        ),
        Stage(
            "windows",
            steps=4600,
            batch=16,
            frames=4,
            optimizer=replace(muon, learning_rate=1.2e-3, decay="cosine"),
            ema=0.995,
            snr_range=pooled,
            forcing=1.0,
            freeze=read,
            data=single,
        ),
        Stage(
            "clips",
            steps=7400,
            batch=4,
            optimizer=replace(muon, learning_rate=8e-4, decay="cosine"),
            ema=0.998,
            snr_range=pooled,
            forcing=0.5,
            freeze=read,
            data=ShapesData(world=ShapesConfig(two_objects=0.15)),
        ),
    )
