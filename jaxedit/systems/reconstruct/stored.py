"""A fitted scene from its run directory: what renders, exports and edits begin with."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxedit.fields.field import Frame
from jaxedit.scene.record import FILE, SceneRecord, read_record
from jaxedit.systems.reconstruct.model import Model
from jaxedit.systems.reconstruct.system import Reconstruct
from jaxvid.core.checkpoint import Checkpointer
from jaxvid.core.errors import UserError
from jaxvid.core.mesh import MeshConfig
from jaxvid.core.run import RunDirectory
from jaxvid.train.state import State


class Fitted(NamedTuple):
    """The system, its scene's record, the state of its newest good checkpoint and the number of the fit that it is in."""

    system: Reconstruct
    record: SceneRecord
    state: State
    fit: int

    @property
    def frame(self) -> Frame:
        """The frame of its field."""
        return self.system.frame(self.record.box)

    @property
    def model(self) -> Model:
        """Its field and proposals."""
        return self.system.model(self.frame, self.state, self.fit)


def load_fitted(run: str | Path) -> Fitted:
    """The fitted scene of a run directory. Raises UserError when there is none, or no checkpoint yet."""
    run = Path(run)
    if not run.is_dir():
        raise UserError(f"{run}: no such run directory; give one that `jaxedit fit` has written")
    config = RunDirectory.read_config(run)
    system = getattr(config, "reconstruction", None)
    if not isinstance(system, Reconstruct):
        raise UserError(
            f"{run} is a run of {type(config).__name__}, which has no scene; give one of jaxedit"
        )
    record = read_record(run / FILE)
    restored = None
    if (run / "checkpoints").is_dir():  # reading makes no folders
        with Checkpointer(run / "checkpoints") as checkpoints:
            restored = checkpoints.restore(only=lambda path: not path.startswith("optimizer/"))
    if restored is None:
        raise UserError(f"{run} has no checkpoint yet; fit it further")
    state: dict[str, Any] = {"trainable": {}, "frozen": {}, "extra": {}}
    for path, leaf in restored.tree.items():
        group, _, name = path.partition("/")
        state.setdefault(group, {})[name] = jnp.asarray(np.asarray(leaf))  # bound to no device
    names = [fit.name for fit in system.fits]
    if restored.meta["phase"] not in names:
        raise UserError(
            f"{run} has no fit named {restored.meta['phase']}; its config.json was changed"
        )
    # Whatever the run was fitted on, it is looked at with the devices that are here.
    system = replace(system, mesh=MeshConfig())
    return Fitted(system, record, state, names.index(restored.meta["phase"]))
