"""A small InstructPix2Pix, trained on toy scenes before and after an edit."""

from jaxedit.systems.instruct_pix2pix.config import PixToPixConfig, Teaching
from jaxedit.systems.instruct_pix2pix.system import InstructPix2Pix

__all__ = ["InstructPix2Pix", "PixToPixConfig", "Teaching"]
