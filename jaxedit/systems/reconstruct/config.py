"""The configuration of a reconstruction: a scene, a field, how rays are sampled, and a sequence of fits."""

import dataclasses
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from jaxedit.fields.frequency_mlp import FrequencyMLPConfig
from jaxedit.fields.hash_grid import HashGridConfig
from jaxedit.fields.voxel_grid import Shape, VoxelGridConfig
from jaxedit.render.occupancy import OccupancyConfig
from jaxedit.render.render import RenderConfig
from jaxedit.scene.load import SceneConfig
from jaxvid.core.errors import UserError
from jaxvid.core.mesh import MeshConfig
from jaxvid.train.optimizer import OptimizerConfig
from jaxvid.train.session import LoopConfig

FieldConfig: TypeAlias = VoxelGridConfig | HashGridConfig | FrequencyMLPConfig


@dataclass(frozen=True)
class Fit:
    """One phase of a run. Each goes on from the field of the one before.

    steps, rays: how many steps, and rays a step.
    shrink: train on images of 1/shrink of their sides, by area means.
    resolution: of a voxel grid from here on; the grid before is interpolated to it. None keeps it.
    rows: store a voxel grid packed, in at most that many voxels, or whole for 0; None stores it as the fit before did, at first
        whole.
    keep: a cell is packed if its optical thickness or a neighbour's passes this (1 cell long, before training).
    colour_loss: between rendered and true colours: mean square, mean absolute, or Huber's with its corner at 0.1.
    distortion, interlevel: weights of mip-NeRF 360's losses; interlevel counts only with proposals.
    optimizer: of this phase, begun anew.
    """

    name: str = "fit"
    steps: int = 2000
    rays: int = 4096
    shrink: int = 1
    resolution: Shape | None = None
    rows: int | None = None
    keep: float = 0.01
    colour_loss: Literal["l2", "l1", "huber"] = "l2"
    distortion: float = 0.0
    interlevel: float = 1.0
    optimizer: OptimizerConfig = dataclasses.field(
        default_factory=lambda: OptimizerConfig(
            learning_rate=1e-2, b2=0.99, epsilon=1e-15, clip_norm=None
        )
    )


@dataclass(frozen=True)
class FitConfig:
    """A reconstruction.

    data: the scene. field: what is fitted to it. render: how rays are sampled.
    proposals: density fields asked before the field (one for each of `render.proposal_samples`).
    occupancy: keep a grid of where matter is and look only there; None looks everywhere. A packed voxel grid knows
        itself where it is empty.
    background: what transparent pixels of the images are put on. "random" draws a colour a ray, so that a field
        cannot pass off background as matter; it is shown over white.
    contraction: of space outside the scene's box (for a scene without one, the unit box).
    anneal: steps from the run's first over which the proposals' weights sharpen (nerfacto's 1000).
    heldout: images to score at each report; 0 scores all.
    lpips: a folder or file of LPIPS weights (jaxvid.weights.lpips); scores of held-out views then have it.
    chunk: rays that a device renders at once for an image; None chooses by memory.
    """

    data: SceneConfig
    field: FieldConfig
    render: RenderConfig = dataclasses.field(default_factory=RenderConfig)
    proposals: tuple[HashGridConfig, ...] = ()
    occupancy: OccupancyConfig | None = dataclasses.field(default_factory=OccupancyConfig)
    background: Literal["white", "black", "random"] = "white"
    contraction: Literal["none", "l2", "linf"] = "none"
    fits: tuple[Fit, ...] = (Fit(),)
    anneal: int = 1000
    heldout: int = 4
    lpips: str | None = None
    chunk: int | None = None
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    loop: LoopConfig = dataclasses.field(default_factory=LoopConfig)

    def __post_init__(self) -> None:
        voxels = isinstance(self.field, VoxelGridConfig)
        for fit in self.fits:
            if fit.shrink < 1:
                raise UserError(f"fit {fit.name} has shrink {fit.shrink}; it must be 1 or more")
            if not voxels and (fit.resolution is not None or fit.rows is not None):
                raise UserError(
                    f"fit {fit.name} has resolution {fit.resolution} and rows {fit.rows}, which only a voxel grid has; "
                    "leave them None"
                )
        if len(self.proposals) != len(self.render.proposal_samples):
            raise UserError(
                f"proposals has {len(self.proposals)} fields and render.proposal_samples "
                f"{len(self.render.proposal_samples)} counts; give one each"
            )
        packed = any(fit.rows for fit in self.fits)
        if self.render.last_opaque and (self.occupancy is not None or packed):
            raise UserError(
                "render.last_opaque needs every sample asked; set occupancy to None and rows of fits to None"
            )
        if self.render.spacing != "linear" and (self.occupancy is not None or packed):
            raise UserError(
                f"render.spacing is {self.render.spacing}; only linear goes with an occupancy grid or packed voxels: "
                "set occupancy and rows of fits to None"
            )
        if self.contraction != "none" and self.occupancy is not None:
            # Its threshold takes one step length for all of space, and would call far matter empty.
            raise UserError(
                f"contraction is {self.contraction}; an occupancy grid is for a box: set occupancy to None"
            )
        if self.contraction != "none" and self.render.bounds != "none":
            raise UserError(
                f"contraction is {self.contraction} and render.bounds {self.render.bounds}, which sees nothing outside; "
                "set render.bounds to none"
            )
        if self.proposals and self.occupancy is not None:
            raise UserError("proposals and occupancy both choose samples; set occupancy to None")

    def field_of(self, index: int) -> FieldConfig:
        """The field's configuration in fit `index`: at the resolution reached by then."""
        config = self.field
        for fit in self.fits[: index + 1]:
            if fit.resolution is not None and isinstance(config, VoxelGridConfig):
                config = replace(config, resolution=fit.resolution)
        return config

    def rows_of(self, index: int) -> int | None:
        """The rows of the packed grid in fit `index`; None where the grid is whole."""
        given = [fit.rows for fit in self.fits[: index + 1] if fit.rows is not None]
        return (given[-1] or None) if given else None


@dataclass(frozen=True)
class BlendedConfig(FitConfig):
    """A scene laid over `before`, as it was after its fit number `before_fit`. How much of it is among the parameters."""

    before: FitConfig | None = None
    before_fit: int = 0
