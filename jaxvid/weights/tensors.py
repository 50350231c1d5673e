"""Tensors of safetensors files by name, for importers: each name is taken exactly once, with its shape, finite.

An importer takes every tensor that its module needs and then calls `end`, which refuses names that nobody took. All
complaints are one line that names the file and the tensor.
"""

import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Shaped
from safetensors import SafetensorError, safe_open

from jaxvid.core.errors import UserError

FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}
PICKLES = (".pth", ".pt", ".ckpt", ".bin", ".pkl")


def files_of(source: str | Path | Sequence[str | Path], kind: str) -> list[Path]:
    """The safetensors files of a folder, or the files given. `kind` says in complaints what they are to hold."""
    found: list[Path] = []
    for path in [Path(source)] if isinstance(source, str | Path) else map(Path, source):
        if not path.exists():
            raise UserError(
                f"weights of {kind}: {path} does not exist; give a folder or files of safetensors"
            )
        inside = sorted(path.iterdir()) if path.is_dir() else [path]
        files = [file for file in inside if file.suffix == ".safetensors"]
        pickles = [file for file in inside if file.suffix in PICKLES]
        if not files and pickles:
            raise UserError(
                f"weights of {kind}: {pickles[0]} is a pickle, which could run code and is not read; "
                "convert it with safetensors.torch.save_file(torch.load(...), ...)"
            )
        if not files:
            raise UserError(
                f"weights of {kind}: {path} holds no .safetensors file; give one that does"
            )
        found += files
    return found


Rename = Callable[[str], str | None]


class Tensors:
    """The tensors of `files`, as float32. `rename` gives the name to claim a tensor by; None where it is not to be read."""

    def __init__(self, files: Sequence[Path], kind: str, rename: Rename | None = None):
        self.kind = kind
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._left: dict[str, Entry] = {}
        self._files = files
        for file in files:
            for entry in entries_of(file):
                name = entry.name if rename is None else rename(entry.name)
                if name is None:
                    continue
                if name in self._left:
                    raise UserError(f"{name} is in {self._left[name].file} and in {file}; give one")
                self._left[name] = entry
                self.shapes[name] = entry.shape

    @property
    def files(self) -> str:
        """Their names, for complaints."""
        return ", ".join(str(file) for file in self._files)

    def alike(self, name: str, copies: Sequence[str]) -> None:
        """Says that `name` and `copies` are one tensor, of which the first that is there is claimed as `name`."""
        names = [each for each in (name, *copies) if each in self._left]
        places = [self._left.pop(each) for each in names]
        shapes = [self.shapes.pop(each) for each in names]
        if names:
            self._left[name], self.shapes[name] = places[0], shapes[0]

    def cut(self, name: str) -> None:
        """Of the table of that name, if it is there, its first row is to be claimed, as a table of one row."""
        if len(self.shapes.get(name, ())) == 2:
            self.shapes[name] = (1, *self.shapes[name][1:])

    def claim(self, name: str, shape: tuple[int, ...]) -> "Reader":
        """The tensor of that name, which nobody has claimed before, to be read later."""
        if name not in self._left:
            raise UserError(
                f"{self.files}: no tensor {name}, which {self.kind} needs; add its file"
            )
        entry = self._left.pop(name)
        if self.shapes[name] != shape:
            raise UserError(
                f"{entry.file}: {name} has shape {self.shapes[name]}, {self.kind} wants {shape}; "
                "give that network's weights"
            )
        if entry.kind not in FLOATS:
            raise UserError(
                f"{entry.file}: {name} is of type {entry.kind}; give floating point numbers"
            )
        return Reader(entry)

    def take(self, name: str, shape: tuple[int, ...]) -> Float32[np.ndarray, "..."]:
        """The tensor of that name, which nobody has taken before, whole."""
        return self.claim(name, shape)()

    def end(self) -> None:
        """Refuses names that were not taken."""
        for name, entry in self._left.items():
            raise UserError(f"{entry.file}: {name} is not of {self.kind}; give a file without it")


class Entry(NamedTuple):
    """A tensor of a file: its name and type there, its shape, and its first byte."""

    file: Path
    name: str
    kind: str
    shape: tuple[int, ...]
    start: int


def entries_of(file: Path) -> list[Entry]:
    """The tensors of a file, whose header the library of safetensors has found good. Raises UserError where it has not."""
    try:
        with safe_open(file, framework="np"), file.open("rb") as stream:
            (size,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(size))
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} cannot be read: {error}; fetch it again") from None
    header.pop("__metadata__", None)
    return [
        Entry(
            file, name, about["dtype"], tuple(about["shape"]), 8 + size + about["data_offsets"][0]
        )
        for name, about in header.items()
    ]


class Reader:
    """A tensor in a file."""

    def __init__(self, entry: Entry):
        self.name = entry.name
        self._entry = entry

    @property
    def dtype(self) -> np.dtype:
        """The type of the numbers in the file; float32 where that is wider."""
        stored = np.dtype(FLOATS[self._entry.kind])
        return np.dtype(np.float32) if stored == np.float64 else stored

    def __call__(
        self, index: tuple[slice, ...] = (), dtype: Any = np.float32
    ) -> Shaped[np.ndarray, "..."]:
        """The tensor or a slice of it, as `dtype`: a view of the file where it is that already.

        Raises UserError for numbers that are not finite, there or as `dtype`.
        """
        stored = self._mapped()[index]
        with np.errstate(over="ignore"):  # becomes inf, and is refused
            tensor = stored.astype(dtype, copy=False)
        if not np.isfinite(tensor).all():
            file = self._entry.file
            if np.dtype(dtype) == np.float16 and np.isfinite(stored).all():
                raise UserError(
                    f"{file}: {self.name} holds numbers beyond float16; take bfloat16 or float32"
                )
            raise UserError(
                f"{file}: {self.name} holds numbers that are not finite; fetch it again"
            )
        return tensor

    def _mapped(self) -> Shaped[np.ndarray, "..."]:
        """The file's bytes as an array. Of its own, so that what was read is soon no longer counted as this process's."""
        file, _, kind, shape, start = self._entry
        if 0 in shape:
            return np.empty(shape, FLOATS[kind])
        try:
            return np.memmap(file, FLOATS[kind], "r", start, shape).view(np.ndarray)
        except (OSError, ValueError) as error:
            raise UserError(f"{file} cannot be read: {error}; fetch it again") from None
