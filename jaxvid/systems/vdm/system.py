"""Video Diffusion Models (Ho et al. 2022, arXiv 2204.03458) as a system: a configuration that trains and samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Array, Float, Key

from jaxvid.core.errors import UserError
from jaxvid.systems.vdm import sampling, training
from jaxvid.systems.vdm.config import VDMConfig, stage_data
from jaxvid.systems.vdm.networks import Networks, abstract_networks
from jaxvid.systems.vdm.report import heldout_batch, heldout_prompts, make_report
from jaxvid.train.phase import Phase
from jaxvid.train.state import Params, State
from jaxvid.train.step import Sums


@dataclass(frozen=True)
class VDM(VDMConfig):
    """A `VDMConfig` with the functions of a system; each is short for the function that it names.

    Example:
        vdm, params = jaxvid.load("vdm/shapes")
        video = vdm.sample(params, jax.random.key(0), prompts=["a red circle moves right"])
    """

    def phases(self, *, with_reports: bool = False) -> list[Phase]:
        """`training.phases`; the reports are those of `report.make_report`."""
        return training.phases(self, make_report(self) if with_reports else None)

    def check(self) -> None:
        """Raises UserError if the data cannot be opened or do not fit the model: before a run directory is made."""
        used = {self.data, *(stage_data(self, stage) for stage in self.stages)}
        captioned = [data.source("train").captioned for data in used]
        if self.text is not None and not all(captioned):
            raise UserError(
                "the model is conditioned on text but the data have no captions; add them, or give "
                "--text None --tokenizer None"
            )
        if self.heldout:
            heldout_batch(self)
            heldout_prompts(self, 1)

    def start(self) -> State | None:
        """What the first phase begins with besides fresh parameters: weights of the frozen text encoder and of `init`."""
        return training.pretrained(self)

    def loss(
        self, params: Params, batch: Mapping[str, Array], keys: Key[Array, "b"]
    ) -> tuple[Float[Array, "b"], Sums]:
        """`training.loss`."""
        return training.loss(self, params, batch, keys)

    def networks(self) -> Networks:
        """The networks' shapes, without values."""
        return abstract_networks(self)

    def sample(
        self, params: Params, key: Key[Array, ""], prompts: Sequence[str] = (), **options: Any
    ) -> Float[Array, "b t h w c"]:
        """`sampling.sample`."""
        return sampling.sample(self, params, key, prompts=prompts, **options)

    def extend(
        self, params: Params, key: Key[Array, ""], video: Array, frames: int, **options: Any
    ) -> Float[Array, "b T h w c"]:
        """`sampling.extend`."""
        return sampling.extend(self, params, key, video, frames, **options)

    def fill(
        self, params: Params, key: Key[Array, ""], video: Array, rate: int, **options: Any
    ) -> Float[Array, "b T h w c"]:
        """`sampling.fill`."""
        return sampling.fill(self, params, key, video, rate, **options)

    def upsample(
        self, params: Params, key: Key[Array, ""], video: Array, **options: Any
    ) -> Float[Array, "b T H W c"]:
        """`sampling.upsample`."""
        return sampling.upsample(self, params, key, video, **options)
