"""The edits of a fitted scene: which there are, which of them counts, and how much.

    RUN/edits/001-paint-it-blue    the run of an edit, a fitted scene of its own; it began with the one before
    RUN/edits/history.json         {"edits": [names, in order], "at": how many of them count, "strength": of the last that does}

The scene as it stands is the run itself at 0, else the edit of that number; a strength below 1 lays it over the one before
(`jaxedit.fields.blend`). An edit made after an undo drops those that were undone from the list; their folders stay.
"""

import json
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaxedit.systems.reconstruct.blended import blend
from jaxedit.systems.reconstruct.stored import Fitted, load_fitted
from jaxvid.core.errors import UserError

FOLDER, FILE = "edits", "history.json"
LONGEST = 40  # letters of an instruction in a folder's name


@dataclass(frozen=True)
class History:
    """edits: names of folders. at: how many of them count. strength: of the last of those."""

    edits: tuple[str, ...] = ()
    at: int = 0
    strength: float = 1.0

    def undone(self) -> "History":
        """Without the last edit. Raises UserError where there is none."""
        if not self.at:
            raise UserError("there is no edit to undo")
        return replace(self, at=self.at - 1, strength=1.0)

    def redone(self) -> "History":
        """With the edit that was undone last. Raises UserError where there is none."""
        if self.at == len(self.edits):
            raise UserError("there is no undone edit to make again")
        return replace(self, at=self.at + 1, strength=1.0)

    def blended(self, strength: float) -> "History":
        """With another strength of the last edit. Raises UserError without an edit, or outside of 0 to 1."""
        if not 0.0 <= strength <= 1.0:
            raise UserError(f"the strength is {strength:g}; give a number from 0 to 1")
        if not self.at:
            raise UserError("there is no edit whose strength could be set")
        return replace(self, strength=strength)

    def with_edit(self, name: str) -> "History":
        """With a new edit, or one of the list again, as the last that counts."""
        if name in self.edits:
            return replace(self, at=self.edits.index(name) + 1, strength=1.0)
        kept = self.edits[: self.at]
        return History((*kept, name), len(kept) + 1)


def read_history(run: str | Path) -> History:
    """The history of a run; an empty one where nothing was edited. Raises UserError for a damaged file."""
    path = Path(run) / FOLDER / FILE
    try:
        data: Any = json.loads(path.read_text())
        found = History(tuple(map(str, data["edits"])), int(data["at"]), float(data["strength"]))
    except FileNotFoundError:
        return History()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); restore it from a copy") from None
    absent = [name for name in found.edits if not (path.parent / name / "config.json").is_file()]
    if absent or not 0 <= found.at <= len(found.edits) or not 0.0 <= found.strength <= 1.0:
        wrong = f"the edit {absent[0]} is gone" if absent else "its numbers are out of range"
        raise UserError(f"{path} is damaged ({wrong}); restore it from a copy")
    return found


def write_history(run: str | Path, history: History) -> None:
    """Writes it, whole or not at all."""
    path = Path(run) / FOLDER / FILE
    path.parent.mkdir(exist_ok=True)
    data = {"edits": list(history.edits), "at": history.at, "strength": history.strength}
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(data, indent=1) + "\n")
    os.replace(temporary, path)


def head(run: str | Path, history: History) -> Path:
    """The run directory of the last edit that counts, or the run itself."""
    run = Path(run)
    return run / FOLDER / history.edits[history.at - 1] if history.at else run


def before_head(run: str | Path, history: History) -> Path:
    """The run directory that the last edit began with."""
    return head(run, replace(history, at=history.at - 1))


def new_edit(run: str | Path, instruction: str) -> Path:
    """A folder that does not exist, for an edit with that instruction: numbered, with the words of it."""
    folder = Path(run) / FOLDER
    taken = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    numbers = [int(found[1]) for name in taken if (found := re.match(r"(\d+)-", name))]
    words = "-".join(re.findall(r"[a-z0-9]+", instruction.lower()))[:LONGEST].strip("-")
    return folder / f"{max(numbers, default=0) + 1:03d}-{words or 'edit'}"


def unfinished_edit(run: str | Path, history: History) -> Path | None:
    """The newest edit that was begun and is not in the history: one that was interrupted. None if there is none."""
    folder = Path(run) / FOLDER
    if not folder.is_dir():
        return None
    begun = sorted(path for path in folder.iterdir() if (path / "config.json").is_file())
    left = [path for path in begun if path.name not in history.edits]
    return left[-1] if left and left[-1] == begun[-1] else None


def load_current(run: str | Path) -> Fitted:
    """The scene of a run as it stands: with the edits that count, the last one at its strength. Raises UserError."""
    history = read_history(run)
    fitted = load_fitted(head(run, history))
    if history.strength == 1.0:
        return fitted
    return blend(load_fitted(before_head(run, history)), fitted, history.strength)
