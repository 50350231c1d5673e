"""The configuration of a small InstructPix2Pix that learns from toy scenes."""

import dataclasses
from dataclasses import dataclass

from jaxedit.scene.toy.edits import EditKind
from jaxedit.systems.instruct_pix2pix.words import POSITIONS, vocabulary_size
from jaxvid.core.errors import UserError
from jaxvid.core.mesh import MeshConfig
from jaxvid.diffusion.schedule import ScaledLinearTable
from jaxvid.models.clip import ClipTextConfig, TransformerConfig
from jaxvid.models.conditional_stages import ConditionalUNetConfig
from jaxvid.models.folding import FoldingConfig
from jaxvid.train.optimizer import OptimizerConfig
from jaxvid.train.session import LoopConfig

KINDS: tuple[EditKind, ...] = (
    "recolour",
    "retexture",
    "resize",
    "add",
    "remove",
    "reshape",
    "light",
)


@dataclass(frozen=True)
class Teaching:
    """A phase: steps, examples a step, its optimizer, the decay of the average (None: none)."""

    steps: int
    batch: int
    optimizer: OptimizerConfig
    ema: float | None = None


@dataclass(frozen=True)
class PixToPixConfig:
    """What is trained, on what.

    size: of the pictures, pixels a side. folding: of pixels into the channels that the U-Net sees; its inputs are twice as many.
    kinds: of edits, equally likely. white: the share of white backgrounds; the others have a random colour.
    drop: conditioning is left out for this share of the examples: the text, the picture, and both, each (Brooks et al. 2023,
        section 3.2.1: 0.05).
    snr_range: bounds of the weight of the squared error of x, which is else the signal-to-noise ratio; equal ones weigh all noise
        levels alike.
    reading: the text encoder learns to tell what an instruction says, and is frozen then. editing: the U-Net.
    shown: held-out pairs that reports score.
    """

    unet: ConditionalUNetConfig
    text: ClipTextConfig = dataclasses.field(
        default_factory=lambda: ClipTextConfig(
            TransformerConfig(96, 2, 4, 384, activation="gelu"), vocabulary_size(), POSITIONS
        )
    )
    folding: FoldingConfig = dataclasses.field(default_factory=FoldingConfig)
    size: int = 48
    kinds: tuple[EditKind, ...] = KINDS
    white: float = 0.5
    drop: float = 0.05
    table: ScaledLinearTable = dataclasses.field(
        default_factory=lambda: ScaledLinearTable(1000, 0.00085, 0.012)
    )
    snr_range: tuple[float, float] = (1.0, 1.0)
    reading: Teaching = dataclasses.field(
        default_factory=lambda: Teaching(300, 128, OptimizerConfig(2e-3, decay="cosine"))
    )
    editing: Teaching = dataclasses.field(
        default_factory=lambda: Teaching(
            20000,
            32,
            OptimizerConfig(2.5e-3, b2=0.99, warmup_steps=100, method="muon", decay="linear"),
            0.998,
        )
    )
    shown: int = 28
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    loop: LoopConfig = dataclasses.field(default_factory=LoopConfig)

    def __post_init__(self) -> None:
        if self.size % self.folding.side:
            raise UserError(
                f"size is {self.size}; it must be a multiple of folding.side, {self.folding.side}"
            )
        latents = self.folding.latents
        if (self.unet.inputs, self.unet.outputs) != (2 * latents, latents):
            raise UserError(
                f"unet.inputs and unet.outputs are {self.unet.inputs} and {self.unet.outputs}; set them to "
                f"{2 * latents} and {latents}, as squares of {self.folding.side} pixels need"
            )
        if self.unet.context != self.text.transformer.width:
            raise UserError(
                f"unet.context is {self.unet.context} and text.transformer.width {self.text.transformer.width}; "
                "make them equal"
            )
        if not 0 <= self.drop <= 1 / 3:
            raise UserError(f"drop is {self.drop}; three such shares must fit into 1")
        if not self.kinds:
            raise UserError("kinds is empty; name at least one kind of edit")
