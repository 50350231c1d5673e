"""Published tensors into a module of ours, and a module's tensors out.

Every name is consumed exactly once, shapes and number types are checked before anything large is read, and numbers that are
not finite are refused. With shardings each process reads the slices that its devices hold, a leaf at a time: no copy of
the whole model ever stands in the host's memory.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped

from jaxvid.core.paths import flatten, unflatten
from jaxvid.weights.files import model_files
from jaxvid.weights.naming import Rules, Stored, part_of_theirs, stored, to_ours, to_theirs
from jaxvid.weights.tensors import Reader, Rename, Tensors

Places = Mapping[str, jax.sharding.Sharding | None]
Index = tuple[slice, ...]
Read = Callable[[Index | None], np.ndarray]
ALIGNMENT = 64  # bytes
SQUARE = 64
Claims = Mapping[str, Sequence[tuple[Stored, Reader]]]


@dataclass(frozen=True)
class Loading:
    """How to load.

    dtype: of the parameters. variant: which files, such as "fp16" for `model.fp16.safetensors`. shardings: by path, None for
    the default device; or a function that gives them of `{path: shape and dtype}`, which serves every network of a pipeline:

        mesh = make_mesh(MeshConfig(fsdp=8))
        unet = load_model("stable-diffusion-v1-5/unet", Loading(shardings=partial(parameter_sharding, mesh)))

    with `jaxvid.core.mesh`, whose rules then hold.
    """

    dtype: Any = jnp.float32
    variant: str | None = None
    shardings: Places | Callable[[Mapping[str, Any]], Places] | None = None

    def places(self, abstract: Mapping[str, Any]) -> Places:
        """The sharding of each leaf of `{path: shape and dtype}`. Raises ValueError where one of them has none."""
        if self.shardings is None:
            return dict.fromkeys(abstract)
        found = self.shardings(abstract) if callable(self.shardings) else self.shardings
        if missing := sorted(set(abstract) - set(found)):
            raise ValueError(f"no sharding for {missing[:5]}; give one, or None, for each path")
        return found


WHOLE = Loading()


class Source(NamedTuple):
    """A model in files, not yet read: its shapes, its tensors, and how its paths are named there (None: as they are)."""

    abstract: Any
    tensors: Tensors
    rules: Rules | None

    def claims(self) -> Claims:
        """What each leaf is read from. Raises UserError for names that are missing or left over, and wrong shapes."""
        found = claimed(flatten(self.abstract), self.tensors, self.rules)
        self.tensors.end()
        return found


def tensors_of(
    folder: str | Path, kind: str, variant: str | None = None, rename: Rename | None = None
) -> Tensors:
    """The tensors of the model in `folder`. `kind` says in complaints what they are to be."""
    return Tensors(model_files(folder, kind, variant), kind, rename)


def load(source: Source, how: Loading = WHOLE) -> Any:
    """The module. Raises UserError before anything large is read; for numbers that are not finite when they are."""
    shapes = flatten(source.abstract)
    return unflatten(source.abstract, read_leaves(shapes, source.claims(), how))


def claimed(shapes: Mapping[str, Any], tensors: Tensors, rules: Rules | None) -> Claims:
    """What each leaf of `{path: shape}` is read from, nothing being read. Names left over are for `Tensors.end`."""
    return {
        path: [
            (entry, tensors.claim(entry.name, entry.shape))
            for entry in stored(path, leaf.shape, rules)
        ]
        for path, leaf in shapes.items()
    }


def read_leaves(
    shapes: Mapping[str, Any], claims: Claims, how: Loading = WHOLE
) -> dict[str, jax.Array]:
    """The leaves by path."""
    places, values = how.places(shapes), {}
    for path, leaf in shapes.items():
        read, place = reading(claims[path], leaf.shape, how.dtype), places[path]
        if place is None:
            values[path] = jax.device_put(read(None), may_alias=True)
        else:
            values[path] = jax.make_array_from_callback(leaf.shape, place, _once(read))
    return values


def reading(entries: Sequence[tuple[Stored, Reader]], shape: tuple[int, ...], dtype: Any) -> Read:
    """A function from an index of ours to the numbers there."""
    stacked = len(shape) > len(entries[0][0].axes)

    def read(index: Index | None) -> np.ndarray:
        index = (slice(None),) * len(shape) if index is None else index
        sides = [len(range(*part.indices(side))) for part, side in zip(index, shape, strict=True)]
        whole = _aligned(sides, dtype)
        layers, own = (entries[index[0]], index[1:]) if stacked else (entries, index)
        for part, (entry, reader) in zip(whole if stacked else [whole], layers, strict=True):
            _copy(to_ours(reader(part_of_theirs(own, entry), dtype), entry), part)
        return whole

    return read


def _aligned(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """An array to fill, where a CPU device can take it over as it is."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    room = np.empty(size + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    return room[start : start + size].view(dtype).reshape(shape)


def _copy(source: Shaped[np.ndarray, "*axes"], out: Shaped[np.ndarray, "*axes"]) -> None:
    """In squares of the last two axes where the last is not the source's own: both sides then stay in the cache."""
    if source.ndim < 2 or source.strides[-1] == source.itemsize:
        out[...] = source
        return
    for row in range(0, out.shape[-2], SQUARE):
        for column in range(0, out.shape[-1], SQUARE):
            square = (..., slice(row, row + SQUARE), slice(column, column + SQUARE))
            out[square] = source[square]


def _once(read: Read) -> Read:
    """`read`, each slice once: several devices may hold the same."""
    known: dict[str, np.ndarray] = {}

    def shared(index: Index | None) -> np.ndarray:
        key = str(index)  # slices cannot be keys before Python 3.12
        if key not in known:
            known[key] = read(index)
        return known[key]

    return shared


def published(
    module: Any, rules: Rules | None, *, dtype: Any = np.float32
) -> dict[str, np.ndarray]:
    """The module's tensors by their published names, in the published layout."""
    tensors: dict[str, np.ndarray] = {}
    for path, leaf in flatten(module).items():
        for name, tensor in named_tensors(path, np.asarray(leaf).astype(dtype), rules):
            if name in tensors:
                raise ValueError(f"two leaves are named {name}; the second is {path}")
            tensors[name] = tensor
    return tensors


def named_tensors(
    path: str, leaf: Shaped[np.ndarray, "..."], rules: Rules | None
) -> Iterator[tuple[str, np.ndarray]]:
    """The published tensors of one leaf with their names: several of a stacked one."""
    entries = stored(path, leaf.shape, rules)
    stacked = leaf.ndim > len(entries[0].axes)
    for i, entry in enumerate(entries):
        yield entry.name, to_theirs(leaf[i] if stacked else leaf, entry)
