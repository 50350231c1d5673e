"""Checkpoints of `{path: array}` that are verified when they are read.

    DIRECTORY/steps/STEP/state        Orbax: the arrays that change
    DIRECTORY/steps/STEP/manifest     JSON: shape, dtype and digest of every array, metadata, the data iterator's
                                      state, the name of the constants, and a digest of all this
    DIRECTORY/constants/DIGEST/       the arrays that do not change (frozen parameters), once for all the steps

State and manifest are committed together, by one atomic rename: a process killed at any moment leaves the previous
checkpoint and at most a temporary folder. Digests (`jaxvid.core.digest`) are taken from the arrays before Orbax sees
them and again from the restored arrays, so whatever changes in between is noticed; Orbax 0.12.8 itself returns wrong
values silently after some flipped bits.

Writing runs in the background; `save` returns once the arrays are copied. Arrays may be sharded over a mesh and over
processes: every process calls every method with the same arguments, each writes its own shards, process 0 the rest.
The data iterator's state must therefore be the same on every process (a position in the global order).
"""

import hashlib
import json
import os
import re
import shutil
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import SingleDeviceSharding

from jaxvid.core.digest import digests
from jaxvid.core.errors import UserError

_LARGE_SLICE = 16 << 20  # bytes

Tree: TypeAlias = dict[str, Any]  # {path: array}
Place: TypeAlias = Callable[[dict[str, Any], Tree], Mapping[str, Any]]


class Restored(NamedTuple):
    """What `Checkpointer.restore` found: arrays by path (constants among them), metadata, the iterator's state."""

    step: int
    tree: Tree
    meta: dict[str, Any]
    data_state: Any


class DamagedError(Exception):
    """A checkpoint that cannot be read or whose arrays are not those that were saved."""


class Checkpointer:
    """The checkpoints of one run, the newest `keep` of them.

    Example:
        with Checkpointer(folder) as checkpoints:
            checkpoints.save(100, {"kernel": kernel}, meta={"phase": "base"}, data_state=iterator.get_state())
            restored = checkpoints.restore()
    """

    def __init__(self, directory: str | Path, *, keep: int = 3):
        self.directory = Path(directory).absolute()
        self._damaged: set[int] = set()
        self._constants: tuple[str, dict[str, weakref.ref]] | None = (
            None  # name and arrays last seen
        )
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        with _disk_errors(f"checkpoint folder {self.directory}"):
            self._manager = ocp.CheckpointManager(
                self.directory / "steps",
                options=options,
                item_handlers={"state": _handler(), "manifest": ocp.JsonCheckpointHandler()},
            )

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    @property
    def steps(self) -> list[int]:
        """The steps of which there is a checkpoint, oldest first. Damaged ones are not known before `restore`."""
        return sorted(set(self._manager.all_steps()) - self._damaged)

    def save(
        self,
        step: int,
        tree: Mapping[str, Any],
        *,
        constants: Mapping[str, Any] | None = None,
        meta: Mapping[str, Any] | None = None,
        data_state: Any = None,
    ) -> None:
        """Saves `{path: array}` as checkpoint `step` in the background; a step already saved is left alone.

        `constants` are written when their content is new; pass the same arrays every time. `meta` and `data_state`
        must be JSON values (`data_state` may be bytes). The arrays may be donated or deleted after the call.
        Raises UserError when this or an earlier checkpoint cannot be written; the previous one is then intact.
        """
        if step in self.steps:
            return
        tree = {path: jnp.asarray(leaf) for path, leaf in tree.items()}
        with _disk_errors(f"checkpoint {step} in {self.directory}"):
            self._manager.wait_until_finished()
            self._set_damaged_aside()
            manifest = {
                "step": step,
                "meta": dict(meta or {}),
                "data_state": _encode(data_state),
                "leaves": _describe(tree),
                "constants": self._save_constants(constants) if constants else None,
            }
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(_storable(tree)),
                    manifest=ocp.args.JsonSave({**manifest, "digest": _digest(manifest)}),
                ),
                force=True,
            )

    def check(self) -> None:
        """Raises UserError if a checkpoint could not be written in the background; does not wait."""
        with _disk_errors(f"checkpoint in {self.directory}"):
            self._manager.check_for_errors()

    def wait(self) -> None:
        """Returns when every checkpoint is on the disk. Raises UserError if one could not be written."""
        with _disk_errors(f"checkpoint in {self.directory}"):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for what is being written and ends the background threads."""
        with _disk_errors(f"checkpoint in {self.directory}"):
            self._manager.close()

    def restore(
        self,
        place: Place | Mapping[str, Any] | None = None,
        *,
        step: int | None = None,
        only: Callable[[str], bool] = lambda path: True,
    ) -> Restored | None:
        """The newest good checkpoint (or exactly `step`), verified; None when there is none at all.

        place: shardings by path, or a function of the metadata and of `{path: ShapeDtypeStruct}` that returns them
            (and may raise UserError if the run does not fit); by default everything goes to the first local device.
        only: chooses paths; the others are neither read nor verified.
        A damaged checkpoint is passed over with a warning that names it. Raises UserError when all are damaged.
        """
        self.wait()
        steps = self.steps if step is None else [step]
        if not steps:
            return None
        problems = []
        for candidate in reversed(steps):
            try:
                restored = self._restore(candidate, place, only)
            except DamagedError as error:
                problems.append((candidate, str(error)))
                continue
            for bad, reason in problems:
                self._damaged.add(bad)
                warnings.warn(
                    f"checkpoint {bad} in {self.directory} is damaged ({reason}); using checkpoint {candidate}",
                    stacklevel=2,
                )
            return restored
        listed = ", ".join(f"{bad} ({reason})" for bad, reason in problems)
        raise UserError(
            f"checkpoints in {self.directory} are all damaged: {listed}; restore the folder from a copy, "
            "or move it away to start anew"
        )

    def _restore(self, step: int, place: Any, only: Callable[[str], bool]) -> Restored:
        folder = self.directory / "steps" / str(step)
        manifest = _agreed(lambda: _read_manifest(folder / "manifest" / "metadata"))
        name = manifest["constants"]
        fixed = self.directory / "constants" / (name or "")
        constants = (
            _agreed(lambda: _read_manifest(fixed / "manifest.json"))["leaves"] if name else {}
        )
        leaves = {
            path: leaf for path, leaf in (manifest["leaves"] | constants).items() if only(path)
        }
        abstract = {path: _abstract(leaf) for path, leaf in leaves.items()}
        if callable(place):
            place = place(manifest["meta"], abstract)
        shardings: dict[str, Any] = dict(place or {})
        default = SingleDeviceSharding(jax.local_devices()[0])
        wanted = {
            path: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=shardings.get(path) or default
            )
            for path, leaf in abstract.items()
        }
        moving = {path: leaf for path, leaf in wanted.items() if path not in constants}
        still = {path: leaf for path, leaf in wanted.items() if path in constants}
        tree = _agreed(lambda: _read_arrays(folder / "state", moving))
        frozen = _agreed(lambda: _read_arrays(fixed / "state", still))
        found = digests(tree | frozen)
        wrong = [path for path, leaf in leaves.items() if found[path] != leaf["digest"]]
        if wrong:
            raise DamagedError(
                f"{len(wrong)} of {len(leaves)} arrays differ from what was saved, {wrong[0]} first"
            )
        if name and len(frozen) == len(constants):
            self._constants = name, _references(frozen)
        return Restored(step, tree | frozen, manifest["meta"], _decode(manifest["data_state"]))

    def _save_constants(self, constants: Mapping[str, Any]) -> str:
        """Writes the constants unless they are there already; returns the name that their content gives them."""
        if self._constants is not None:
            name, seen = self._constants
            if seen.keys() == constants.keys() and all(
                seen[path]() is constants[path] for path in seen
            ):
                return name
        arrays = {path: jnp.asarray(leaf) for path, leaf in constants.items()}
        manifest = {"leaves": _describe(arrays)}
        name = _digest(manifest)
        folder = self.directory / "constants" / name
        if not (folder / "manifest.json").exists():
            with ocp.Checkpointer(_handler()) as writer:
                writer.save(
                    folder / "state", args=ocp.args.PyTreeSave(_storable(arrays)), force=True
                )
            if jax.process_index() == 0:
                text = json.dumps({**manifest, "digest": name})
                temporary = folder / "manifest.json.tmp"
                temporary.write_text(text)
                os.replace(temporary, folder / "manifest.json")
                self._remove_unused_constants(keep=name)
        self._constants = name, _references(constants)
        return name

    def _remove_unused_constants(self, keep: str) -> None:
        used = {keep}
        for step in self._manager.all_steps():
            used.add(
                json.loads(
                    (self.directory / "steps" / str(step) / "manifest/metadata").read_text()
                )["constants"]
            )
        for folder in (self.directory / "constants").iterdir():
            if folder.name not in used:
                shutil.rmtree(folder)

    def _set_damaged_aside(self) -> None:
        """Renames damaged checkpoints STEP to damaged-STEP, so that their steps can be saved again."""
        if not self._damaged:
            return
        if jax.process_index() == 0:
            for step in self._damaged:
                aside = self.directory / "steps" / f"damaged-{step}"
                shutil.rmtree(aside, ignore_errors=True)
                os.rename(self.directory / "steps" / str(step), aside)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoints set aside")
        self._damaged.clear()
        self._manager.reload()


Result = TypeVar("Result")


def _agreed(action: Callable[[], Result]) -> Result:
    """`action()`; raises DamagedError on every process if it fails on one, for whatever is wrong with the files."""
    result, problem = None, ""
    try:
        result = action()
    except (UserError, MemoryError):
        raise
    except Exception as error:  # Orbax and TensorStore raise many types for broken files
        if "RESOURCE_EXHAUSTED" in str(error):
            raise
        problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    failed = bool(problem)
    if jax.process_count() > 1:
        failed = bool(np.any(multihost_utils.process_allgather(np.array(failed))))
    if failed:
        raise DamagedError(problem or "unreadable on another process")
    return result  # type: ignore[return-value]


@contextmanager
def _disk_errors(what: str) -> Iterator[None]:
    """Turns errors of the disk (full, forbidden, gone) into a UserError; bugs pass as they are."""
    try:
        yield
    except Exception as error:
        text = " ".join(str(error).split())
        known = r"No space left on device|Permission denied|quota|Read-only|File too large|Input/output error|Not a directory"
        if not isinstance(error, OSError) and not re.search(known, text):
            raise
        found = re.search(known, text)
        reason = found.group() if found else text[:200]
        raise UserError(
            f"{what} cannot be written: {reason}; free space or fix the permissions and start again, "
            "the run resumes from the previous checkpoint"
        ) from error


def _handler() -> ocp.PyTreeCheckpointHandler:
    # Copies of an array share the writing of it only where the slices are large: cutting one out is compiled for
    # every shape and device, which takes longer than writing a small array.
    arrays = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=_LARGE_SLICE)
    registry = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
    return ocp.PyTreeCheckpointHandler(type_handler_registry=registry, use_compression=False)


def _describe(tree: Tree) -> dict[str, Any]:
    found = digests(tree)
    return {
        path: {"shape": list(leaf.shape), "dtype": str(leaf.dtype), "digest": found[path]}
        for path, leaf in tree.items()
    }


def _abstract(leaf: Mapping[str, Any]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(tuple(leaf["shape"]), jnp.dtype(leaf["dtype"]))


def _storable(tree: Tree) -> Tree:
    """Without the empty arrays, which Orbax refuses; the manifest holds all that there is to know of them."""
    return {path: leaf for path, leaf in tree.items() if leaf.size}


def _read_arrays(folder: Path, wanted: Tree) -> Tree:
    """The arrays of `wanted` ({path: ShapeDtypeStruct with sharding}) from an Orbax folder."""
    empty = {
        path: jnp.zeros(leaf.shape, leaf.dtype) for path, leaf in wanted.items() if not leaf.size
    }
    stored = _storable(wanted)
    if not stored:
        return empty
    arguments = ocp.checkpoint_utils.construct_restore_args(stored)
    # The handler itself, not a Checkpointer: the latter waits for all processes, for ever if one fails to read.
    return empty | _handler().restore(
        epath.Path(folder),
        args=ocp.args.PyTreeRestore(stored, restore_args=arguments, partial_restore=True),
    )


def _read_manifest(path: Path) -> dict[str, Any]:
    manifest = json.loads(path.read_text())
    if manifest.pop("digest") != _digest(manifest):
        raise DamagedError(f"{path.name} differs from what was saved")
    return manifest


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _encode(data_state: Any) -> Any:
    return {"bytes": data_state.hex()} if isinstance(data_state, bytes) else {"json": data_state}


def _decode(stored: Mapping[str, Any]) -> Any:
    return bytes.fromhex(stored["bytes"]) if "bytes" in stored else stored["json"]


def _references(arrays: Mapping[str, Any]) -> dict[str, weakref.ref]:
    return {path: weakref.ref(leaf) for path, leaf in arrays.items()}
