"""`jaxvid import` and `jaxvid export`: folders of public weights to this project's own and back.

A folder is one network (config.json) or a whole pipeline (model_index.json, a folder for each part). Networks are rewritten
tensor by tensor, so that no more than a shard stands in memory; tokenizers and schedulers are copied. The numbers keep their
type unless another is asked for. Everything is written beside the destination, which appears whole or not at all.
"""

import dataclasses
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from flax import nnx

from jaxvid.core.errors import UserError
from jaxvid.core.paths import flatten
from jaxvid.weights.describing import describe
from jaxvid.weights.fields import read_fields
from jaxvid.weights.files import model_files
from jaxvid.weights.loading import Source, named_tensors, reading
from jaxvid.weights.native import FILE, describe_native
from jaxvid.weights.origin import Origin, read_origin, sha256, write_origin
from jaxvid.weights.registry import open_model, rules_of
from jaxvid.weights.shards import LIMIT, write_shards
from jaxvid.weights.tensors import PICKLES

Target = Literal["native", "published"]
Progress = Callable[[int, int], None]
# Of a published config, what our configuration does not hold but pipelines and other programs look at.
KEPT = ("sample_size", "upcast_attention", "force_upcast", "num_frames")
# Parts of pipelines that nothing here runs, and that a pipeline does without.
LEFT_OUT = ("safety_checker", "watermarker")
SMALL = (".json", ".txt", ".model")  # tokenizers, schedulers, what an image is resized to
TEXTS = ("README.md", "LICENSE", "LICENSE.md", "LICENSE.txt")
WEIGHTS = (".safetensors", *PICKLES)
LARGEST = 64 << 20  # bytes of a file that is copied


class Parts(NamedTuple):
    """Folders of networks ("" where there is one, with no index), folders to copy, the index to write, classes left out."""

    networks: list[str]
    others: list[str]
    index: dict[str, Any] | None
    left_out: dict[str, str]


class Converted(NamedTuple):
    """networks: how many numbers each part's network has, "" for a folder of one. left_out: classes of parts not written."""

    networks: Mapping[str, int]
    left_out: Mapping[str, str]
    origin: Origin


def convert_folder(
    source: str | Path,
    out: str | Path,
    target: Target,
    *,
    dtype: Any = None,
    variant: str | None = None,
    license_name: str | None = None,
    url: str | None = None,
    limit: int = LIMIT,
    progress: Progress | None = None,
) -> Converted:
    """Rewrites the folder `source` as the folder `out`, which must not exist or be empty.

    dtype: None keeps each tensor's (float64 becomes float32). variant: which files, such as "fp16". license_name, url:
    recorded instead of what the source says. limit: bytes of a shard. progress: called with the numbers written and in all.
    Raises UserError for what cannot be read, expressed or written.
    """
    source, out = Path(source), Path(out)
    parts = _parts(source)
    opened = {name: open_model(source / name, variant) for name in parts.networks}
    sizes = {name: _size(each) for name, each in opened.items()}
    total = sum(sizes.values())
    count = _Count(total, progress)
    origin = _origin(source, parts.networks, variant, license_name, url)
    with _appearing(out, total * (4 if dtype is None else np.dtype(dtype).itemsize)) as folder:
        for name, each in opened.items():
            _rewrite(source / name, each, folder / name, target, dtype, limit, count)
        for name in parts.others:
            _copy_small(source / name, folder / name)
        if parts.index is not None:
            (folder / "model_index.json").write_text(json.dumps(parts.index, indent=2) + "\n")
        for name in TEXTS:
            if (source / name).is_file() and (source / name).stat().st_size < LARGEST:
                shutil.copyfile(source / name, folder / name)
        write_origin(folder, origin)
    return Converted(sizes, parts.left_out, origin)


def save_model(
    module: nnx.Module,
    out: str | Path,
    target: Target = "native",
    *,
    dtype: Any = None,
    limit: int = LIMIT,
) -> None:
    """Writes a network in memory as the folder `out`, for `load_model`: one that was inflated, or trained.

    dtype: None keeps each parameter's. Raises UserError for a network that `target` cannot express.
    """
    flat = flatten(module)
    size = sum(leaf.size * np.dtype(dtype or leaf.dtype).itemsize for leaf in flat.values())
    leaves = ((path, np.asarray(leaf).astype(dtype or leaf.dtype)) for path, leaf in flat.items())
    with _appearing(Path(out), size) as folder:
        _write(module, leaves, folder, target, {}, limit)


def _rewrite(
    folder: Path,
    source: Source,
    out: Path,
    target: Target,
    dtype: Any,
    limit: int,
    count: Callable[[int], None],
) -> None:
    """One opened network of `folder` into the folder `out`."""
    _, fields = read_fields(folder)
    kept = {name: fields.given[name] for name in KEPT if name in fields.given}

    def leaves() -> Iterator[tuple[str, np.ndarray]]:
        claims = source.claims()
        for path, leaf in flatten(source.abstract).items():
            kind = claims[path][0][1].dtype if dtype is None else dtype
            yield path, reading(claims[path], leaf.shape, kind)(None)
            count(leaf.size)

    _write(source.abstract, leaves(), out, target, kept, limit)


def _write(
    module: nnx.Module,
    leaves: Iterable[tuple[str, np.ndarray]],
    out: Path,
    target: Target,
    kept: Mapping[str, Any],
    limit: int,
) -> None:
    """The network of that configuration with those leaves."""
    native = target == "native"
    described, file = (describe_native(module), FILE) if native else describe(module)
    rules = None if native else rules_of(module)
    out.mkdir(exist_ok=True)
    (out / "config.json").write_text(json.dumps({**described, **kept}, indent=2) + "\n")
    tensors = (named for path, leaf in leaves for named in named_tensors(path, leaf, rules))
    write_shards(out, file, tensors, metadata={"format": "pt"}, limit=limit)


class _Count:
    """Numbers written so far, told to the user."""

    def __init__(self, total: int, progress: Progress | None):
        self.done, self.total, self.progress = 0, total, progress

    def __call__(self, more: int) -> None:
        self.done += more
        if self.progress is not None:
            self.progress(self.done, self.total)


def _size(source: Source) -> int:
    return sum(leaf.size for leaf in flatten(source.abstract).values())


def _parts(source: Path) -> Parts:
    if not (source / "model_index.json").is_file():
        return Parts([""], [], None, {})
    _, fields = read_fields(source, "model_index.json")
    index = dict(fields.given)
    parts = Parts([], [], index, {})
    for name, value in fields.given.items():
        if not isinstance(value, list) or value[:1] in ([None], []):
            continue
        folder = source / name
        if not re.fullmatch(r"\w+", name):
            raise fields.refusal(
                name, value, "a part is named by letters; give a pipeline of diffusers"
            )
        if name in LEFT_OUT:
            parts.left_out[name] = str(value[-1])
            index[name] = [None, None]
        elif (folder / "config.json").is_file():
            parts.networks.append(name)
        elif folder.is_dir() and not any(each.suffix in WEIGHTS for each in folder.iterdir()):
            parts.others.append(name)
        else:
            raise fields.refusal(
                name, value, f"{folder} holds no network that can be read; give the whole pipeline"
            )
    return parts


def _origin(
    source: Path, parts: list[str], variant: str | None, license_name: str | None, url: str | None
) -> Origin:
    """What is known already, what the user says, and digests of the files, unless those of the first import are known."""
    origin = read_origin(source)
    if license_name is not None:
        origin = dataclasses.replace(origin, license=license_name, stated="the user")
    if not origin.files:
        files = [file for name in parts for file in model_files(source / name, name, variant)]
        digests = {str(file.relative_to(source)): sha256(file) for file in files}
        origin = dataclasses.replace(origin, files=digests)
    return origin if url is None else dataclasses.replace(origin, url=url)


def _copy_small(source: Path, out: Path) -> None:
    out.mkdir()
    for file in sorted(source.iterdir()):
        if file.is_file() and file.suffix in SMALL:
            if file.stat().st_size > LARGEST:
                raise UserError(f"{file} is larger than {LARGEST >> 20} MiB; is it a tokenizer's?")
            shutil.copyfile(file, out / file.name)


@contextmanager
def _appearing(out: Path, size: int) -> Iterator[Path]:
    """A folder that becomes `out` at the end, and is removed if anything goes wrong. size: bytes that it will hold."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out} exists already; name a new folder, or remove it")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(out.parent).free
        if size > free:
            raise UserError(
                f"{out} will take {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free; choose another disk"
            )
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise UserError(
            f"{out}: cannot be written ({error.strerror}); choose another place"
        ) from None
    try:
        yield folder
        folder.chmod(0o755)
        os.replace(folder, out)
    except OSError as error:
        raise UserError(
            f"{out}: cannot be written ({error.strerror}); choose another place"
        ) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
