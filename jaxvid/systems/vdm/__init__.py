"""Video Diffusion Models (Ho et al. 2022, arXiv 2204.03458)."""

from jaxvid.systems.vdm.config import Sampling, Stage, VDMConfig
from jaxvid.systems.vdm.sampling import Known
from jaxvid.systems.vdm.system import VDM

__all__ = ["VDM", "Known", "Sampling", "Stage", "VDMConfig"]
