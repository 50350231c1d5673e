"""Edits from the viewer: one at a time, on a thread of its own, watched while it goes, compared with what was before."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from jaxedit.editing import prepare, run_edit
from jaxedit.history import before_head, load_current, read_history, write_history
from jaxedit.scene.cameras import Cameras
from jaxedit.systems.instruct_nerf2nerf.recipe import Recipe
from jaxedit.systems.reconstruct.stored import Fitted, load_fitted
from jaxedit.viewer.pictures import Look, Picture, draw
from jaxedit.viewer.session import Session
from jaxvid.core.errors import UserError
from jaxvid.train.loop import InterruptedRunError, NonFiniteError
from jaxvid.train.stop import StopRequest

SEEN_EVERY = 10  # steps of an edit between two looks at it


@dataclass
class Comparison:
    """Draws the scene, and left of `split` (a share of the width) the scene before the edit, where there is one."""

    before: Fitted | None = None
    split: float = 0.0

    def __call__(
        self, fitted: Fitted, cameras: Cameras, look: Look, unwanted: Callable[[], bool]
    ) -> Picture | None:
        """See `jaxedit.viewer.pictures.draw`."""
        after = draw(fitted, cameras, look, unwanted)
        columns = round(self.split * cameras.width)
        if after is None or self.before is None or not columns:
            return after
        before = draw(self.before, cameras, look, unwanted)
        if before is None:
            return None
        image, z = after.image.copy(), after.z.copy()
        image[:, :columns], z[:, :columns] = before.image[:, :columns], before.z[:, :columns]
        edge = min(columns, cameras.width - 1)
        image[:, edge] = np.array([230, 120, 20], np.uint8)
        return Picture(image, z, after.tile_seconds + before.tile_seconds)


class Desk:
    """Makes edits of a run and shows them in a session.

    say: is told, in a line, what happens. recipe: how to edit; the instruction comes with `edit`. The methods may be called from any
    thread; those that cannot do what they are asked raise UserError.
    """

    def __init__(
        self,
        run: Path,
        session: Session,
        comparison: Comparison,
        recipe: Recipe,
        say: Callable[[str], None],
    ):
        self._run, self._session, self._comparison = run, session, comparison
        loop = replace(recipe.loop, sample_every=SEEN_EVERY)
        self._recipe, self._say = replace(recipe, loop=loop), say
        self._stop = StopRequest()
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        """Whether an edit is under way."""
        return self._thread is not None and self._thread.is_alive()

    def edit(self, instruction: str) -> None:
        """Begins an edit, or goes on with one of the same sentence that was stopped."""
        self._check_idle()
        if not instruction.strip():
            raise UserError("the instruction is empty; say what to change")
        self._stop = StopRequest()
        self._thread = threading.Thread(
            target=self._work, args=(instruction,), name="editing", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Asks the edit to stop after its step; it is saved."""
        if not self.busy:
            raise UserError("no edit is under way")
        self._stop.ask()
        self._say("stopping after this step")

    def undo(self) -> None:
        """Shows the scene before its last edit."""
        self._check_idle()
        write_history(self._run, read_history(self._run).undone())
        self._show_current("undone")

    def redo(self) -> None:
        """Shows the edit again that was undone last."""
        self._check_idle()
        write_history(self._run, read_history(self._run).redone())
        self._show_current("made again")

    def close(self) -> None:
        """Stops an edit and waits for it."""
        if self._thread is not None and self._thread.is_alive():
            self._stop.ask()
            self._thread.join()

    def _check_idle(self) -> None:
        if self.busy:
            raise UserError("an edit is under way; wait for it or stop it")

    def _show_current(self, what: str) -> None:
        history = read_history(self._run)
        fitted = load_current(self._run)
        self._comparison.before = (
            load_fitted(before_head(self._run, history)) if history.at else None
        )
        self._session.change(fitted=fitted)
        name = history.edits[history.at - 1] if history.at else "as it was fitted"
        self._say(f"{what}; shown: {name}")

    def _work(self, instruction: str) -> None:
        recipe = replace(self._recipe, edit=replace(self._recipe.edit, instruction=instruction))
        total = [0]

        def watch(fitted: Fitted, step: int) -> None:
            self._session.change(fitted=fitted)
            self._say(f'"{instruction}": step {step} of {total[0]}')

        try:
            self._say(f'"{instruction}": begins')
            prepared = prepare(self._run, recipe)
            total[0] = sum(stage.steps for stage in prepared.system.stages)
            self._comparison.before = prepared.fitted
            run_edit(self._run, prepared, watch=watch, stop=self._stop)
            self._show_current(f'"{instruction}": done')
        except InterruptedRunError:
            self._say(f'"{instruction}": stopped and saved; the same sentence goes on with it')
        except (UserError, NonFiniteError) as error:
            self._say(str(error))
        except Exception as error:  # a viewer outlives an edit that breaks
            self._say(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
