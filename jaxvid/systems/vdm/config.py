"""The configuration of a Video Diffusion Model: everything that a run needs, as one frozen dataclass.

A paper's name for a value stands in its comment where it differs from ours.
"""

import re
import zlib
from dataclasses import dataclass, field, replace
from typing import Literal

from jaxvid.core.errors import UserError
from jaxvid.core.mesh import MeshConfig
from jaxvid.data.folder import FolderData
from jaxvid.data.layouts import BairData, Kinetics600Data, Ucf101Data
from jaxvid.data.shapes_source import ShapesData
from jaxvid.data.tfds import TfdsData
from jaxvid.data.tokens import BertTokenizer, HashTokenizer, WordTokenizer
from jaxvid.diffusion.schedule import Cosine, LinearTable, ScaledLinearTable, Sigmoid
from jaxvid.models.text import TextConfig
from jaxvid.models.unet import UNetConfig
from jaxvid.train.loop import LoopConfig
from jaxvid.train.optimizer import OptimizerConfig

Data = ShapesData | FolderData | TfdsData | Ucf101Data | BairData | Kinetics600Data
Tokenizer = WordTokenizer | HashTokenizer | BertTokenizer
Schedule = Cosine | Sigmoid | LinearTable | ScaledLinearTable


@dataclass(frozen=True)
class Stage:
    """One stretch of training.

    task: "video" trains the diffusion model, "reading" the text encoder alone (jaxvid.systems.vdm.reading).
    frames: length of the clips; None takes the data's. 1 trains the image model, from which the next stage goes on.
    images: N, independent frames appended to each clip (VDM, section 3.1). accumulate: parts a batch is taken in.
    schedule, snr_range: None takes the configuration's. An image needs less noise than a clip, whose frames repeat what
        they show.
    forcing: share of the clips whose frames each have a noise level of their own (Diffusion Forcing, Chen et al. 2024): a
        frame of pure noise beside clean ones teaches how things move before all frames are equally hard to see.
    freeze: regular expressions; a parameter in whose path one is found does not move in this stage, such as
        ("^text/", "/temporal/").
    data: None takes the configuration's; of the same size, captions and frame skips, as it is the same model's.
    """

    name: str = "video"
    task: Literal["video", "reading"] = "video"
    steps: int = 100_000
    batch: int = 128
    frames: int | None = None
    images: int = 0
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    ema: float = 0.9999
    accumulate: int = 1
    schedule: Schedule | None = None
    snr_range: tuple[float, float] | None = None
    forcing: float = 0.0
    freeze: tuple[str, ...] = ()
    data: Data | None = None

    def __post_init__(self):
        for name, least in (("steps", 1), ("batch", 1), ("accumulate", 1), ("images", 0)):
            if getattr(self, name) < least:
                value = getattr(self, name)
                raise UserError(f"stage {self.name}: {name} is {value}; it must be {least} or more")
        if self.frames is not None and self.frames < 1:
            raise UserError(f"stage {self.name}: frames is {self.frames}; it must be 1 or more")
        if self.task == "reading":
            self._check_reading()
        for pattern in self.freeze:
            try:
                re.compile(pattern)
            except re.error as error:
                raise UserError(
                    f"stage {self.name}: freeze has {pattern!r}, which is no regular expression: {error}; escape it"
                ) from None
        if self.snr_range is not None:
            _check_range(f"stage {self.name}: snr_range", self.snr_range)
        if not 0.0 <= self.forcing <= 1.0:
            raise UserError(
                f"stage {self.name}: forcing is {self.forcing}; it must be within 0 and 1"
            )
        if not 0.0 <= self.ema < 1.0:
            raise UserError(f"stage {self.name}: ema is {self.ema}; it must be within 0 and 1")

    def _check_reading(self) -> None:
        for name in ("frames", "images", "schedule", "snr_range", "forcing", "freeze"):
            value = getattr(self, name)
            if value not in (None, 0, ()):
                raise UserError(
                    f"stage {self.name}: {name} is {value}, but a stage that reads sees captions alone; take it out"
                )

    def freezes(self, path: str) -> bool:
        """Whether the parameter at `path` does not move in this stage."""
        return any(re.search(pattern, path) for pattern in self.freeze)

    def data_seed(self, seed: int) -> int:
        """Of the order and draws of the data: each stage has its own, or a later one would see again what the first saw."""
        return zlib.crc32(f"{seed} {self.name}".encode())


@dataclass(frozen=True)
class Sampling:
    """How samples are drawn unless the caller says otherwise.

    gamma: the ancestral sampler's place between the variance's lower (0) and upper (1) bound. guidance: scale of
    classifier-free guidance, 1 is unguided (the papers' w is this minus 1). reconstruction: w_r of reconstruction
    guidance. threshold: the estimate is clipped to [-1, 1] (Ho et al. 2020) or scaled by a percentile.
    """

    sampler: Literal["ancestral", "ddim", "langevin", "dpm++", "heun"] = "ancestral"
    steps: int = 256
    gamma: float = 0.3
    guidance: float = 1.0
    reconstruction: float = 2.0
    threshold: Literal["none", "static", "dynamic"] = "static"
    percentile: float = 0.995

    def __post_init__(self):
        if self.steps < 1:
            raise UserError(f"sampling.steps is {self.steps}; it must be 1 or more")
        for name in ("gamma", "percentile"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(
                    f"sampling.{name} is {getattr(self, name)}; it must be within 0 and 1"
                )


@dataclass(frozen=True)
class VDMConfig:
    """A Video Diffusion Model and its training.

    snr_range: the bounds that the weighting "clipped_snr" clips the SNR to. The floor of 1 is Salimans & Ho's; a lower one
        gives less of the loss to high noise.
    condition_drop: share of examples trained with a zero condition vector, for classifier-free guidance.
    text_weights: folder of the frozen text encoder; needed when `text.frozen`.
    init: a shipped model or a run directory, whose weights training begins with where path and shape are the same.
    heldout: clips of the test split whose loss, at fixed times and noise, is logged with the samples.
    threads, workers: of each process that trains, to read data with. With workers, that many processes read, each with
        these threads: an accelerator can be faster than one Python process draws or decodes clips.
    """

    data: Data = field(default_factory=ShapesData)
    model: UNetConfig = field(default_factory=UNetConfig)
    text: TextConfig | None = None
    tokenizer: Tokenizer | None = None
    text_weights: str | None = None
    init: str | None = None
    schedule: Schedule = field(default_factory=Cosine)
    target: Literal["epsilon", "v", "x"] = "epsilon"
    weighting: Literal["epsilon", "v", "x", "min_snr", "clipped_snr", "edm"] = "epsilon"
    snr_range: tuple[float, float] = (1.0, 5.0)
    condition_drop: float = 0.1
    stages: tuple[Stage, ...] = (Stage(),)
    sampling: Sampling = field(default_factory=Sampling)
    compute: Literal["float32", "bfloat16"] = "float32"
    mesh: MeshConfig = field(default_factory=MeshConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    heldout: int = 32
    threads: int = 4
    workers: int = 0

    def __post_init__(self):
        if not self.stages:
            raise UserError("stages is empty; give at least one")
        _check_range("snr_range", self.snr_range)
        for stage in self.stages:
            if stage.snr_range is not None and self.weighting != "clipped_snr":
                raise UserError(
                    f"stage {stage.name} has a snr_range but weighting is {self.weighting}, which clips nothing; "
                    "take it out or choose clipped_snr"
                )
        if not 0.0 <= self.condition_drop <= 1.0:
            raise UserError(f"condition_drop is {self.condition_drop}; it must be within 0 and 1")
        for name, least in (("heldout", 0), ("threads", 1), ("workers", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}; it must be {least} or more")
        patch, height, width = self.model.patch, self.data.height, self.data.width
        if height % patch or width % patch:
            raise UserError(
                f"data.height x data.width is {height} x {width}; both must be multiples of model.patch {patch}"
            )
        for stage in self.stages:
            _check_stage_data(stage, self.data)
        if (self.text is None) != (self.tokenizer is None):
            raise UserError("text and tokenizer must both be given, or neither")
        if self.text is not None and self.tokenizer is not None:
            _check_text(self.text, self.tokenizer)
        for level in range(len(self.model.multipliers)):
            channels = self.model.channels * self.model.multipliers[level]
            head = min(self.model.head_dim, channels)
            if level in self.model.attention_levels and channels % head:
                raise UserError(
                    f"level {level} has {channels} channels, not a multiple of model.head_dim {head}; change either"
                )


def _check_range(name: str, bounds: tuple[float, float]) -> None:
    low, high = bounds
    if not 0.0 < low <= high:
        raise UserError(f"{name} is {low} to {high}; give two positive numbers, the lower first")


def stage_data(config: VDMConfig, stage: Stage) -> Data:
    """The data of a stage, in clips of its length."""
    data = config.data if stage.data is None else stage.data
    if stage.frames is None:
        return data
    if isinstance(data, ShapesData):
        return replace(data, length=stage.frames)
    return replace(data, frames=stage.frames)


def _check_stage_data(stage: Stage, data: Data) -> None:
    """Raises UserError for a stage's own data that the model of `data` does not fit."""
    if stage.data is None:
        return
    for name in ("height", "width", "skips"):
        own, model = getattr(stage.data, name), getattr(data, name)
        if own != model:
            raise UserError(
                f"stage {stage.name}: data.{name} is {own} but the model's data has {model}; they must be equal"
            )


def _check_text(text: TextConfig, tokenizer: Tokenizer) -> None:
    """Raises UserError for identifiers or places that the encoder has no row for; a lookup would take another's."""
    if tokenizer.length > text.positions:
        raise UserError(
            f"tokenizer.length is {tokenizer.length} tokens but text.positions is {text.positions}; raise it"
        )
    # BERT's vocabulary is a file, which need not be here yet.
    if not isinstance(tokenizer, BertTokenizer) and tokenizer.size > text.vocabulary:
        raise UserError(
            f"the tokenizer has {tokenizer.size} words but text.vocabulary is {text.vocabulary}; raise it"
        )
