"""The noise of a published model: diffusers' `scheduler_config.json` as one of our tables and the grid that its samplers visit.

The class that the file names is the sampler that its publisher chose; here it only says what a field left out means. Any
sampler of ours runs on the grid.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from jaxvid.core.errors import UserError
from jaxvid.diffusion import grid, guidance
from jaxvid.diffusion.parameterization import Target
from jaxvid.diffusion.schedule import (
    EDM,
    BetaTable,
    LinearTable,
    ScaledLinearTable,
    SquaredCosineTable,
)
from jaxvid.diffusion.types import Denoise
from jaxvid.weights.fields import Fields, read_fields

Spacing = Literal["leading", "trailing", "linspace"]
TARGETS: Mapping[str, Target] = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x"}
SPACINGS: Mapping[str, Spacing] = {
    "leading": "leading",
    "trailing": "trailing",
    "linspace": "linspace",
}


class Bound(NamedTuple):
    """How an estimate is kept in range: clipped to `limit`, or, with a fraction, by dynamic thresholding up to it."""

    limit: float
    fraction: float | None = None


@dataclass(frozen=True)
class PublishedNoise:
    """What the network was trained on and how it is sampled.

    table: for `EDM`, the grid is Karras et al.'s between its two noise levels. target: what the network's output is.
    spacing, offset, final: of `grid.table`. bound: of the estimate, None for none. learned: a network with twice the
    channels gives the variance too; else that half is not used.
    """

    table: BetaTable | EDM
    target: Target = "epsilon"
    spacing: Spacing = "leading"
    offset: int = 0
    final: Literal["clean", "first"] = "clean"
    bound: Bound | None = None
    learned: bool = False

    def grid(self, steps: int, end: int | None = None) -> np.ndarray:
        """The log-SNRs that `steps` steps visit; with `end`, as if the table had only that many entries."""
        if isinstance(self.table, EDM):
            if end is not None:
                raise UserError(f"noise level {end}: this model's levels have no numbers")
            return grid.karras(steps, self.table.sigma_min, self.table.sigma_max)
        return grid.table(
            self.table, steps, self.spacing, offset=self.offset, final=self.final, end=end
        )

    def at_index(self, index: int) -> np.float32:
        """The log-SNR of an entry of the table. Raises UserError for one that it does not have."""
        if isinstance(self.table, EDM):
            raise UserError(f"noise level {index}: this model's levels have no numbers")
        if not 0 <= index < self.table.entries:
            raise UserError(f"noise level {index}: give 0 to {self.table.entries - 1}")
        return self.table.logsnr_table[index]

    def bounded(self, denoise: Denoise) -> Denoise:
        """The denoiser with its estimate kept in range."""
        if self.bound is None:
            return denoise
        limit, fraction = self.bound
        if fraction is None:
            return guidance.static_threshold(denoise, -limit, limit)
        return guidance.dynamic_threshold(denoise, fraction, ceiling=limit)


class Defaults(NamedTuple):
    """What a sampler's class means by fields that its file leaves out."""

    spacing: Spacing = "linspace"
    clips: bool = False
    clean: bool = True
    start: float = 0.0001
    end: float = 0.02
    schedule: str = "linear"


_FROM_SIGMA = Defaults(start=0.00085, end=0.012)
DEFAULTS: Mapping[str, Defaults] = {
    "DDIMScheduler": Defaults("leading", clips=True),
    "DDPMScheduler": Defaults("leading", clips=True),
    "PNDMScheduler": Defaults("leading", clean=False),
    "UnCLIPScheduler": Defaults("linspace", clips=True, schedule="squaredcos_cap_v2"),
    "LMSDiscreteScheduler": Defaults(),
    "EulerDiscreteScheduler": Defaults(),
    "EulerAncestralDiscreteScheduler": Defaults(),
    "DPMSolverMultistepScheduler": Defaults(),
    "DPMSolverSinglestepScheduler": Defaults(),
    "DEISMultistepScheduler": Defaults(),
    "UniPCMultistepScheduler": Defaults(),
    "HeunDiscreteScheduler": _FROM_SIGMA,
    "KDPM2DiscreteScheduler": _FROM_SIGMA,
    "KDPM2AncestralDiscreteScheduler": _FROM_SIGMA,
}


def read_noise(folder: str | Path) -> PublishedNoise:
    """Of the folder `scheduler` of a pipeline. Raises UserError for a class or a setting that cannot be expressed."""
    kind, fields = read_fields(folder, "scheduler_config.json")
    if kind not in DEFAULTS:
        raise UserError(f"{fields.where}: {kind} cannot be read; {', '.join(DEFAULTS)} can")
    defaults = DEFAULTS[kind]
    target = fields.choice("prediction_type", TARGETS, "epsilon")
    if fields.take("timestep_type", "discrete") == "continuous":
        return PublishedNoise(_continuous(fields, target), target)
    for name in ("trained_betas", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"):
        value = fields.take(name, None)
        if value:
            raise fields.refusal(name, value, "a model with that cannot be sampled here")
    return PublishedNoise(
        table=_table(fields, defaults),
        target=target,
        spacing=fields.choice("timestep_spacing", SPACINGS, defaults.spacing),
        offset=_offset(fields),
        final="clean" if fields.flag("set_alpha_to_one", defaults.clean) else "first",
        bound=_bound(fields, defaults),
        learned=fields.take("variance_type", "fixed_small") == "learned_range",
    )


def _offset(fields: Fields) -> int:
    value = fields.take("steps_offset", 0)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise fields.refusal("steps_offset", value, "a whole number from 0 is wanted")
    return value


def _table(fields: Fields, defaults: Defaults) -> BetaTable:
    entries = fields.number("num_train_timesteps", 1000)
    start = fields.real("beta_start", defaults.start, 0.0, 1.0)
    end = fields.real("beta_end", defaults.end, 0.0, 1.0)
    zero = fields.flag("rescale_betas_zero_snr", False)
    return fields.choice(
        "beta_schedule",
        {
            "linear": LinearTable(entries, start, end, zero_terminal=zero),
            "scaled_linear": ScaledLinearTable(entries, start, end, zero_terminal=zero),
            "squaredcos_cap_v2": SquaredCosineTable(entries, zero_terminal=zero),
        },
        defaults.schedule,
    )


def _bound(fields: Fields, defaults: Defaults) -> Bound | None:
    clips = fields.flag("clip_sample", defaults.clips)
    limit = fields.real("clip_sample_range", 1.0, 0.0)
    fraction = fields.real("dynamic_thresholding_ratio", 0.995, 0.0, 1.0)
    highest = fields.real("sample_max_value", 1.0, 0.0)
    if fields.flag("thresholding", False):
        return Bound(highest, fraction)
    return Bound(limit) if clips else None


def _continuous(fields: Fields, target: Target) -> EDM:
    """Noise levels without a table, of which the network is told log(sigma) / 4: Stable Video Diffusion's."""
    if target != "v" or not fields.take("use_karras_sigmas", False):
        raise fields.refusal(
            "timestep_type", "continuous", "only with v_prediction and use_karras_sigmas"
        )
    return EDM(
        sigma_min=fields.real("sigma_min", 0.002, 0.0),
        sigma_max=fields.real("sigma_max", 700.0, 0.0),
    )
