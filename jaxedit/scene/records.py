"""Checked reading of JSON files: every number finite, every shape as expected, else one line that says which.

`where` begins a message: the file and the frame that a value belongs to.
"""

import json
import reprlib
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxvid.core.errors import UserError

JSON_BYTES = 64 << 20
# Beyond this, positions have no digits left for a scene in float32, and squares of lengths overflow.
LARGEST = 1e9

_short = reprlib.Repr()
_short.maxlevel, _short.maxlist, _short.maxdict, _short.maxstring = 2, 4, 2, 60


def brief(value: Any) -> str:
    """A value as messages show it: short, in one line."""
    return _short.repr(value)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of at most 64 MiB; NaN and Infinity, which JSON does not have, are refused."""
    try:
        size = path.stat().st_size
        if size > JSON_BYTES:
            raise UserError(
                f"{path}: {size >> 20} MiB of JSON, at most {JSON_BYTES >> 20} are read; split the scene"
            )
        value = json.loads(path.read_bytes(), parse_constant=_refuse_constant)
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{path}: not valid JSON ({reason}); repair it") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: must hold a JSON object, holds {brief(value)}")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def frame_records(meta: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    """The entries of "frames", each an object."""
    frames = meta.get("frames")
    if not isinstance(frames, list) or not frames:
        raise UserError(f'{path}: "frames" must list the views, is {brief(frames)}')
    for i, frame in enumerate(frames):
        if not isinstance(frame, dict):
            raise UserError(f"{path}: frame {i} must be an object, is {brief(frame)}")
    return frames


def number(record: dict[str, Any], key: str, where: str, default: float | None = None) -> float:
    """A finite number, at most 1e9 in size; `default` (if there is one) stands for an absent key."""
    if key not in record and default is not None:
        return default
    if key not in record:
        raise UserError(f"{where}: {key} is missing; add it")
    return checked_number(record[key], key, where)


def whole(record: dict[str, Any], key: str, where: str) -> int:
    """A whole number; written as 800 or 800.0."""
    value = number(record, key, where)
    if value != int(value):
        raise UserError(f"{where}: {key} is {value:g}; give a whole number")
    return int(value)


def checked_number(value: Any, key: str, where: str) -> float:
    """`value` as a float, if it is a number and at most 1e9 in size."""
    # The comparison is false for nan, and exact for integers that no float can hold.
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{where}: {key} is {brief(value)}; give a number")
    if not -LARGEST <= value <= LARGEST:
        raise UserError(f"{where}: {key} is {brief(value)}; give a finite number up to {LARGEST:g}")
    return float(value)


def matrix(
    value: Any, rows: int, columns: int, key: str, where: str
) -> Float[np.ndarray, "rows columns"]:
    """Nested lists of numbers as an array of that shape."""
    shaped = isinstance(value, list) and len(value) == rows
    if not shaped or not all(isinstance(row, list) and len(row) == columns for row in value):
        raise UserError(f"{where}: {key} is {brief(value)}; give {rows}x{columns} numbers")
    return np.array([[checked_number(x, key, where) for x in row] for row in value], np.float64)
