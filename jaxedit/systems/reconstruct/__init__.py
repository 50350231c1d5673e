"""Reconstruction: a field that renders a scene's images, and new views of it."""

from jaxedit.systems.reconstruct.config import Fit, FitConfig
from jaxedit.systems.reconstruct.system import Reconstruct

__all__ = ["Fit", "FitConfig", "Reconstruct"]
