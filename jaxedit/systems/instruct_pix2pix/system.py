"""A small InstructPix2Pix as a system: it trains on toy scenes, and becomes a folder like the public ones."""

import json
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxedit.systems.instruct_pix2pix.config import PixToPixConfig
from jaxedit.systems.instruct_pix2pix.pairs import Pair, toy_pair
from jaxedit.systems.instruct_pix2pix.quality import edit_pairs, score_pair, sheet, table
from jaxedit.systems.instruct_pix2pix.training import (
    Networks,
    abstract_networks,
    noise_of,
    phases_of,
)
from jaxedit.systems.instruct_pix2pix.words import toy_tokenizer, write_tokenizer
from jaxvid.core.errors import UserError
from jaxvid.core.paths import flatten, unflatten
from jaxvid.core.run import RunDirectory
from jaxvid.data.writing import write_image
from jaxvid.models.folding import PixelFolding
from jaxvid.pipelines.latent import LatentDiffusion, load_latent_diffusion
from jaxvid.train.phase import Phase, Report
from jaxvid.train.state import State, weights
from jaxvid.weights.convert import save_model

HELD_OUT_SEED = 1 << 20  # of pairs for scores; none of them is trained on
SHOWN = 14  # columns of a report's sheet


@dataclass(frozen=True)
class InstructPix2Pix(PixToPixConfig):
    """A `PixToPixConfig` with the functions of a system.

    Example:
        system = jaxvid.load_config("instruct_pix2pix/toy")
        state = fit(run, system.phases(with_reports=True), system.loop)
        system.save(state, "my_editor")
        edited = edit_image(load_latent_diffusion("my_editor"), images, ["make the hat red"], key)
    """

    def phases(self, *, with_reports: bool = False) -> list[Phase]:
        """Reading and editing; with reports the second scores and shows held-out pairs."""
        return phases_of(self, self._report() if with_reports else None)

    def start_from(self, folder: str | Path) -> State:
        """The state to begin editing with: the networks of a saved pipeline. Raises UserError for one of other networks."""
        model = load_latent_diffusion(folder)
        if (model.unet.config, model.text.config) != (self.unet, self.text):
            raise UserError(f"{folder} holds other networks than this configuration; give its own")
        parts = {"unet": model.unet, "text": model.text}
        params = {
            f"{name}/{path}": leaf
            for name, part in parts.items()
            for path, leaf in flatten(part).items()
        }
        return {"trainable": params}

    def networks(self, state: State) -> Networks:
        """The networks of a state; of the U-Net the average where there is one."""
        return unflatten(abstract_networks(self), weights(state))

    def model(self, state: State) -> LatentDiffusion:
        """The pipeline that `edit_image` and Instruct-NeRF2NeRF take."""
        networks = self.networks(state)
        side = self.size // self.folding.side
        return LatentDiffusion(
            networks.unet,
            PixelFolding(self.folding, jax.random.key(0)),
            networks.text,
            toy_tokenizer(),
            noise_of(self),
            (side, side),
        )

    def heldout_pairs(self, count: int) -> list[Pair]:
        """Pairs of scenes, colours and phrasings that are not trained on."""
        return [toy_pair(self, HELD_OUT_SEED, i, "heldout") for i in range(count)]

    def save(self, state: State, folder: str | Path, dtype: str | None = None) -> None:
        """Writes the pipeline as a folder for `load_latent_diffusion`, which must not exist. Raises UserError.

        dtype: of the parameters, such as "bfloat16"; None keeps theirs.
        """
        kind = None if dtype is None else jnp.dtype(dtype)
        folder = Path(folder)
        self.check_new(folder)
        model = self.model(state)
        (folder / "scheduler").mkdir(parents=True)
        save_model(model.unet, folder / "unet", dtype=kind)
        save_model(model.text, folder / "text_encoder", dtype=kind)
        save_model(model.autoencoder, folder / "vae")
        write_tokenizer(folder / "tokenizer")
        unet = json.loads((folder / "unet" / "config.json").read_text())
        unet["sample_size"] = self.size // self.folding.side
        (folder / "unet" / "config.json").write_text(json.dumps(unet, indent=1) + "\n")
        scheduler = {
            "_class_name": "DDIMScheduler",
            "num_train_timesteps": self.table.entries,
            "beta_start": self.table.beta_start,
            "beta_end": self.table.beta_end,
            "beta_schedule": "scaled_linear",
            "prediction_type": "sample",
            "clip_sample": True,
            "set_alpha_to_one": False,
            "steps_offset": 1,
        }
        path = folder / "scheduler" / "scheduler_config.json"
        path.write_text(json.dumps(scheduler, indent=1) + "\n")

    @staticmethod
    def check_new(folder: str | Path) -> None:
        """Raises UserError for a folder that `save` would not write to."""
        if Path(folder).exists():
            raise UserError(f"{folder} exists; choose another folder")

    def _report(self) -> Report:
        pairs: list[Pair] = []

        def report(state: State, step: int, run: RunDirectory) -> None:
            if not pairs:
                pairs.extend(self.heldout_pairs(self.shown))
            edited = edit_pairs(self.model(state), pairs)
            scores = [score_pair(pair, image) for pair, image in zip(pairs, edited, strict=True)]
            for kind, (_, gain, share, kept) in table(scores).items():
                run.log(
                    step, {f"{kind}/gain": gain, f"{kind}/share_3db": share, f"{kind}/kept": kept}
                )
            if jax.process_index() == 0:
                write_image(
                    run.samples / f"step_{step:08d}.png",
                    np.asarray(sheet(pairs[:SHOWN], edited[:SHOWN])),
                )

        return report
