"""Published tensors into a module of ours, and a module's tensors out.

Every name is consumed exactly once, shapes and number types are checked before anything large is read, and numbers that are
not finite are refused. With shardings each process reads the slices that its devices hold, a leaf at a time: no copy of
the whole model ever stands in the host's memory.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxvid.core.paths import flatten, unflatten
from jaxvid.weights.files import model_files
from jaxvid.weights.naming import Rules, Stored, part_of_theirs, stored, to_ours, to_theirs
from jaxvid.weights.tensors import Reader, Rename, Tensors

Module = TypeVar("Module")
Places = Mapping[str, jax.sharding.Sharding | None]
Index = tuple[slice, ...]
Read = Callable[[Index | None], np.ndarray]


@dataclass(frozen=True)
class Loading:
    """How to load.

    dtype: of the parameters. variant: which files, such as "fp16" for `model.fp16.safetensors`. shardings: by path, None for
    the default device; or a function that gives them of `{path: shape and dtype}`, which serves every network of a pipeline:

        mesh = make_mesh(MeshConfig(fsdp=8))
        unet = load_unet("stable-diffusion-v1-5/unet", Loading(shardings=partial(parameter_sharding, mesh)))

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


def tensors_of(
    folder: str | Path, kind: str, how: Loading = WHOLE, rename: Rename | None = None
) -> Tensors:
    """The tensors of the model in `folder`. `kind` says in complaints what they are to be."""
    return Tensors(model_files(folder, kind, how.variant), kind, rename)


def load_folder(
    folder: str | Path,
    abstract: Module,
    rules: Rules,
    how: Loading = WHOLE,
    rename: Rename | None = None,
) -> Module:
    """The module of shapes `abstract` with the tensors of `folder`, each of which is consumed. Raises UserError."""
    tensors = tensors_of(folder, f"a {type(abstract).__name__}", how, rename)
    module = load(abstract, tensors, rules, how)
    tensors.end()
    return module


def load(abstract: Module, tensors: Tensors, rules: Rules, how: Loading = WHOLE) -> Module:
    """The module of shapes `abstract` with the tensors' numbers.

    Names that are left over are for the caller to refuse (`Tensors.end`), when all modules of the files are loaded.
    Raises UserError.
    """
    return unflatten(abstract, load_leaves(flatten(abstract), tensors, rules, how))


def load_leaves(
    shapes: Mapping[str, Any], tensors: Tensors, rules: Rules, how: Loading = WHOLE
) -> dict[str, jax.Array]:
    """Leaves by path, of the shapes given by path. Nothing is read before all of them are found."""
    places = how.places(shapes)
    plan = {}
    for path, leaf in shapes.items():
        entries = stored(path, leaf.shape, rules)
        plan[path] = [(entry, tensors.claim(entry.name, entry.shape)) for entry in entries]
    values = {}
    for path, leaf in shapes.items():
        read = _reading(plan[path], leaf.shape, how.dtype)
        place = places[path]
        if place is None:
            values[path] = jnp.asarray(read(None))
        else:
            values[path] = jax.make_array_from_callback(leaf.shape, place, _once(read))
    return values


def _reading(entries: list[tuple[Stored, Reader]], shape: tuple[int, ...], dtype: Any) -> Read:
    """A function from an index of ours to the numbers there."""
    stacked = len(shape) > len(entries[0][0].axes)

    def read(index: Index | None) -> np.ndarray:
        index = (slice(None),) * len(shape) if index is None else index
        layers, own = (entries[index[0]], index[1:]) if stacked else (entries, index)
        parts = [
            to_ours(reader(part_of_theirs(own, entry)), entry).astype(dtype)
            for entry, reader in layers
        ]
        return np.stack(parts) if stacked else parts[0]

    return read


def _once(read: Read) -> Read:
    """`read`, each slice once: several devices may hold the same."""
    known: dict[str, np.ndarray] = {}

    def shared(index: Index | None) -> np.ndarray:
        key = str(index)  # slices cannot be keys before Python 3.12
        if key not in known:
            known[key] = read(index)
        return known[key]

    return shared


def published(module: Any, rules: Rules, *, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    """The module's tensors by their published names, in the published layout."""
    tensors: dict[str, np.ndarray] = {}
    for path, leaf in flatten(module).items():
        whole = np.asarray(leaf).astype(dtype)
        entries = stored(path, whole.shape, rules)
        stacked = whole.ndim > len(entries[0].axes)
        for i, entry in enumerate(entries):
            if entry.name in tensors:
                raise ValueError(f"two leaves are named {entry.name}; the second is {path}")
            tensors[entry.name] = to_theirs(whole[i] if stacked else whole, entry)
    return tensors
