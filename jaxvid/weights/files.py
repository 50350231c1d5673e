"""Which files hold a published model: one file of safetensors, or shards that an index lists, of the variant asked for."""

import json
import re
from pathlib import Path

from jaxvid.core.errors import UserError
from jaxvid.weights.tensors import files_of

# `model.safetensors.index.json`; of a variant also `model.safetensors.index.fp16.json`, as the libraries write it.
INDEX = re.compile(r"[^.]*(?:\.([^.]+))?\.safetensors\.index(?:\.([^.]+))?\.json")
LARGEST = 1 << 26  # bytes of an index


def model_files(folder: str | Path, kind: str, variant: str | None = None) -> list[Path]:
    """The files of one model in `folder` (or one file). Raises UserError where there is none, or more than one model.

    variant: the middle of `model.fp16.safetensors`; None takes the files without one.
    """
    found = files_of(folder, kind)
    if Path(folder).is_file():
        return found
    chosen = [file for file in found if _variant(file) == variant]
    if not chosen:
        known = sorted({_named(_variant(file)) for file in found})
        raise UserError(
            f"{folder} has no files {_named(variant)}; it has files {' and '.join(known)}"
        )
    named = [(file, INDEX.fullmatch(file.name)) for file in sorted(Path(folder).iterdir())]
    indices = [file for file, match in named if match and (match[1] or match[2]) == variant]
    if len(indices) > 1:
        raise UserError(f"{folder} has {len(indices)} indices of one variant; keep one")
    if indices:
        return _shards(indices[0])
    if len(chosen) > 1:
        names = ", ".join(file.name for file in chosen)
        raise UserError(f"{folder} has several models ({names}) and no index; keep one")
    return chosen


def _named(variant: str | None) -> str:
    return "without a variant" if variant is None else f"of variant {variant}"


def _variant(file: Path) -> str | None:
    """The variant in a file's name: `model.fp16.safetensors`, `model.fp16-00001-of-00002.safetensors`."""
    parts = file.name.removesuffix(".safetensors").split(".")
    return parts[1].partition("-")[0] or None if len(parts) > 1 else None


def _shards(index: Path) -> list[Path]:
    """The files that an index names, all in its folder."""
    try:
        if index.stat().st_size > LARGEST:
            raise UserError(f"{index} has {index.stat().st_size} bytes; an index has fewer")
        names = set(json.loads(index.read_text())["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{index} is no index of safetensors ({error!r}); fetch it again") from None
    files = []
    for name in sorted(map(str, names)):
        file = index.parent / name
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise UserError(f"{index} names the file {name!r}; only files beside it are read")
        if not file.is_file():
            raise UserError(f"{index} names {name}, which is not there; fetch it")
        files.append(file)
    return files
