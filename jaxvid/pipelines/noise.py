"""The noise of a published model: diffusers' `scheduler_config.json` as one of our tables and the grid that its samplers visit."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from jaxvid.diffusion import grid
from jaxvid.diffusion.parameterization import Target
from jaxvid.diffusion.schedule import (
    BetaTable,
    LinearTable,
    ScaledLinearTable,
    SquaredCosineTable,
)
from jaxvid.weights.fields import read_fields

Spacing = Literal["leading", "trailing", "linspace"]
TARGETS: Mapping[str, Target] = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x"}
SPACINGS: Mapping[str, Spacing] = {
    "leading": "leading",
    "trailing": "trailing",
    "linspace": "linspace",
}


@dataclass(frozen=True)
class PublishedNoise:
    """What the network was trained on and how it is sampled.

    target: what the network's output is. spacing, offset, final: of `grid.table`. clip: the bound of the estimate, None
    for none.
    """

    table: BetaTable
    target: Target = "epsilon"
    spacing: Spacing = "leading"
    offset: int = 0
    final: Literal["clean", "first"] = "clean"
    clip: float | None = None

    def grid(self, steps: int) -> np.ndarray:
        """The log-SNRs that `steps` steps visit."""
        return grid.table(self.table, steps, self.spacing, offset=self.offset, final=self.final)


def read_noise(folder: str | Path) -> PublishedNoise:
    """Of the folder `scheduler` of a pipeline, whichever sampler it names. Raises UserError."""
    _, fields = read_fields(folder, "scheduler_config.json")
    entries = fields.number("num_train_timesteps", 1000)
    start = float(fields.take("beta_start", 0.0001))
    end = float(fields.take("beta_end", 0.02))
    table = fields.choice(
        "beta_schedule",
        {
            "linear": LinearTable(entries, start, end),
            "scaled_linear": ScaledLinearTable(entries, start, end),
            "squaredcos_cap_v2": SquaredCosineTable(entries),
        },
        "linear",
    )
    for name in ("trained_betas", "rescale_betas_zero_snr", "thresholding"):
        value = fields.take(name, None)
        if value:
            raise fields.refusal(name, value, "a model with that cannot be sampled here")
    bound = float(fields.take("clip_sample_range", 1.0))
    return PublishedNoise(
        table=table,
        target=fields.choice("prediction_type", TARGETS, "epsilon"),
        spacing=fields.choice("timestep_spacing", SPACINGS, "leading"),
        offset=int(fields.take("steps_offset", 0)),
        final="clean" if fields.take("set_alpha_to_one", True) else "first",
        clip=bound if fields.take("clip_sample", True) else None,
    )
