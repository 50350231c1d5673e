"""A recipe: an edit's settings before it is known what scene they are for. Presets in `configs/instruct_nerf2nerf` are such."""

import dataclasses
from dataclasses import dataclass

from jaxedit.systems.instruct_nerf2nerf.config import (
    EditConfig,
    Method,
    TrainingConfig,
    stages_of,
)
from jaxedit.systems.instruct_nerf2nerf.system import InstructNerf2Nerf
from jaxedit.systems.reconstruct.stored import Fitted
from jaxvid.core.mesh import MeshConfig
from jaxvid.train.session import LoopConfig


@dataclass(frozen=True)
class Recipe:
    """How to edit.

    method: see `config`. steps: in which the field follows. every: other steps between edits than the method's own.
    """

    method: Method = "in2n"
    steps: int = 15000
    every: int | None = None
    edit: EditConfig = dataclasses.field(default_factory=EditConfig)
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    loop: LoopConfig = dataclasses.field(default_factory=LoopConfig)

    def system(self, fitted: Fitted) -> InstructNerf2Nerf:
        """The edit of that scene. Raises UserError for an empty instruction, or settings that the method does not have."""
        views = len(fitted.record.names["train"])
        stages = stages_of(self.method, self.steps, views, every=self.every)
        return InstructNerf2Nerf.of(
            fitted, self.edit, stages, self.training, mesh=self.mesh, loop=self.loop
        )
