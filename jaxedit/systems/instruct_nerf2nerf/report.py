"""What an edit shows while it goes: views before it, as the editor has them now, and as the field renders them."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxedit.systems.instruct_nerf2nerf.system import InstructNerf2Nerf, Opened
from jaxedit.systems.reconstruct.report import SHOWN, spread_indices, to_bytes
from jaxvid.core.run import RunDirectory
from jaxvid.data.writing import write_image
from jaxvid.train.phase import Report
from jaxvid.train.state import State


def edit_report(system: InstructNerf2Nerf, opened: Opened, fit: int) -> Report:
    """Of the stage with that fit's number: `samples/step_N.png`, a column a view."""
    whole, setting = system.reconstruction, opened.setting
    chosen = spread_indices(setting.views, SHOWN)

    def report(state: State, step: int, run: RunDirectory) -> None:
        # Every process renders, one writes.
        columns = []
        for view in chosen:
            pixels = whole.render_image(setting.frame, state, setting.cameras, view, fit=fit)
            image = np.asarray(jnp.asarray(state["extra"]["images"])[view])
            shown = to_bytes(np.asarray(pixels.colour))
            columns.append(np.concatenate([opened.originals[view], image, shown]))
        if jax.process_index() == 0:
            write_image(run.samples / f"step_{step:08d}.png", np.concatenate(columns, axis=1))

    return report
