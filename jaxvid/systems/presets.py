"""Systems with their weights: the checkpoints that this project ships, and those of a run.

A shipped checkpoint is a folder of `jaxvid/assets/` with

    config.json           the run's configuration
    weights.safetensors   averaged parameters by path, float16
    README.md             how it was trained, what it cost, what it reaches
    metrics.jsonl         the training log
"""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

import jaxvid
from jaxvid.core.checkpoint import Checkpointer
from jaxvid.core.config import to_json
from jaxvid.core.errors import UserError
from jaxvid.core.paths import flatten, unflatten
from jaxvid.core.run import RunDirectory
from jaxvid.train.state import Params


def assets() -> Path:
    """The folder of shipped checkpoints."""
    return Path(jaxvid.__file__).parent / "assets"


def names() -> list[str]:
    """The presets that have weights, such as "vdm/shapes"."""
    return sorted(
        str(path.parent.relative_to(assets())) for path in assets().rglob("weights.safetensors")
    )


def load(source: str | Path) -> tuple[Any, Params]:
    """The system and its weights: `load("vdm/shapes")` (shipped), or a run directory (its newest good checkpoint).

    Weights are float32 `{path: array}`, averaged where the run kept an average.
    Raises UserError when there is no such preset or run, or its files are damaged.
    """
    folder = assets() / str(source)
    if str(source) in names():
        system = RunDirectory.read_config(folder)
        try:
            stored = load_file(folder / "weights.safetensors")
            params = {path: jnp.asarray(leaf, jnp.float32) for path, leaf in stored.items()}
            return system, flatten(unflatten(system.networks(), params))
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"{folder} is damaged: {error}; install jaxvid anew") from error
    if not Path(source).is_dir():
        raise UserError(
            f"{source} is neither a run directory nor a shipped model; shipped: {', '.join(names()) or 'none'}"
        )
    system = RunDirectory.read_config(source)
    stored, wanted = run_weights(Path(source)), flatten(system.networks())
    if set(wanted) - set(stored):
        raise UserError(
            f"{source} has weights of {len(set(wanted) & set(stored))} of the model's {len(wanted)} arrays: "
            "it is still in a stage that trains a part; train it further"
        )
    return system, {path: stored[path] for path in wanted}


def run_weights(run: Path) -> Params:
    """The averaged parameters of a run's newest good checkpoint, on this process's default device."""
    if not (run / "checkpoints").is_dir():  # reading makes no folders
        raise UserError(f"{run} has no checkpoint yet; train it further")
    with Checkpointer(run / "checkpoints") as checkpoints:
        restored = checkpoints.restore(only=lambda path: path.startswith(("ema/", "frozen/")))
    if restored is None:
        raise UserError(f"{run} has no checkpoint yet; train it further")
    return {path.partition("/")[2]: jnp.asarray(leaf) for path, leaf in restored.tree.items()}


def ship(run: str | Path, name: str) -> Path:
    """Writes a run's config, weights in float16 and log as the preset `name`; returns its folder.

    Its README.md is for the author to write: `ship` knows the numbers, not what they mean.
    """
    system, params = load(run)
    folder = assets() / name
    folder.mkdir(parents=True, exist_ok=True)
    weights = {path: np.asarray(leaf, np.float16) for path, leaf in params.items()}
    # Not `save_file`, whose files only their owner can read.
    (folder / "weights.safetensors").write_bytes(save(weights))
    (folder / "config.json").write_text(json.dumps(to_json(system), indent=1) + "\n")
    (folder / "metrics.jsonl").write_text((Path(run) / "metrics.jsonl").read_text())
    return folder
