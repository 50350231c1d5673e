"""Instruct-NeRF2NeRF: a scene edited by one sentence, through its images."""

from jaxedit.systems.instruct_nerf2nerf.config import (
    EditConfig,
    Method,
    Stage,
    TrainingConfig,
    stages_of,
)
from jaxedit.systems.instruct_nerf2nerf.recipe import Recipe
from jaxedit.systems.instruct_nerf2nerf.system import InstructNerf2Nerf, Opened

__all__ = [
    "EditConfig",
    "InstructNerf2Nerf",
    "Method",
    "Opened",
    "Recipe",
    "Stage",
    "TrainingConfig",
    "stages_of",
]
