"""A folder of videos to a TFDS data set in ArrayRecord files, without TensorFlow.

Every clip is decoded once to see that it is whole; damaged ones are left out, named and counted. Video files are
stored byte for byte, folders of images as lossless FFV1. The result appears under its final name only when complete:
an interrupted run leaves nothing and is started again.

Features: video (encoded bytes), caption (sequence of texts, empty without captions), name, frames, fps, width, height.
"""

import collections
import contextlib
import io
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from jaxvid.core.errors import UserError
from jaxvid.data import media
from jaxvid.data.clips import VideoFile
from jaxvid.data.folder import check_held_out, held_out_paths, list_clips, read_captions
from jaxvid.data.media import MediaError, VideoInfo
from jaxvid.data.writing import check_place

_VERSION = "1.0.0"
_FOLDER_FPS = 8.0  # a folder of images has no rate; players need one


class Prepared(NamedTuple):
    """The data set's folder (for `TfdsData(name=...)`), clips a split, and a line for each clip left out."""

    folder: Path
    clips: dict[str, int]
    skipped: list[str]


class _Checked(NamedTuple):
    file: VideoFile
    info: VideoInfo | None
    fault: str


def prepare(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    name: str = "clips",
    held_out: int | float = 0,
    progress: bool | None = None,
) -> Prepared:
    """Writes `out/name/1.0.0`, readable by `TfdsData` and `tfds.data_source(name, data_dir=out)`.

    folder: videos and captions as in `jaxvid.data.folder`. held_out: share or number of clips for the split "test".
    progress: show bars; by default on a terminal.
    Raises `UserError`, before anything is written, if the folder, its captions or the name are unusable, the data set
    exists already, or no clip is whole.
    """
    source, target = Path(folder), Path(out) / name
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(f"data set name {name!r}: use lower-case letters, digits and underscores")
    if target.exists():
        raise UserError(f"{target}: exists already; choose another name or remove it")
    check_held_out(held_out)
    check_place(target)
    files = list_clips(str(source))
    captions = read_captions(str(source), [file.path for file in files])
    hidden = None if progress is None else not progress
    bar = tqdm(total=len(files), desc="checking", unit="clip", disable=hidden)
    checked = []
    for result in _in_threads(lambda file: _check(source, file), files):
        checked.append(result)
        bar.update()
    bar.close()
    skipped = [result.fault for result in checked if result.fault]
    good = [result for result in checked if not result.fault]
    if not good:
        raise UserError(f"{source}: none of {len(files)} clips is whole; the first: {skipped[0]}")
    test = held_out_paths([result.file.path for result in good], held_out)
    splits = {
        "train": [result for result in good if result.file.path not in test],
        "test": [result for result in good if result.file.path in test],
    }
    if not splits["train"]:
        raise UserError(
            f"{source}: all {len(good)} whole clips are held out; lower held_out ({held_out})"
        )
    splits = {split: results for split, results in splits.items() if results}
    bar = tqdm(total=len(good), desc="writing", unit="clip", disable=hidden)
    _write(source, target, splits, captions, bar)
    bar.close()
    return Prepared(
        target / _VERSION, {split: len(part) for split, part in splits.items()}, skipped
    )


def _in_threads(work: Any, items: Sequence[Any]) -> Iterator[Any]:
    """Results in order; only a few are in memory at a time."""
    count = min(16, os.cpu_count() or 1)
    with ThreadPoolExecutor(count) as pool:
        waiting: collections.deque[Any] = collections.deque()
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > 2 * count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _check(root: Path, file: VideoFile) -> _Checked:
    """Decodes the clip, keeping one pixel a frame."""
    path = root / file.path
    try:
        index = media.open_index(path)
        every = range(index.info.frames)
        media.read_frames(path, every, transform=lambda frame: frame[:1, :1], index=index)
    except MediaError as error:
        return _Checked(file, None, str(error))
    return _Checked(file, index.info, "")


def _stored(path: Path, info: VideoInfo) -> bytes:
    if path.is_dir():
        return media.encode_video(media.read_frames(path, range(info.frames)), _FOLDER_FPS, "ffv1")
    return path.read_bytes()


def _write(
    root: Path,
    target: Path,
    splits: dict[str, list[_Checked]],
    captions: dict[str, tuple[str, ...]],
    bar: Any,
) -> None:
    """Builds the data set in a temporary folder beside `target` and renames it."""

    def examples(split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, result in enumerate(splits[split]):
            file, info = result.file, result.info
            assert info is not None
            yield (
                number,
                {
                    "video": _stored(root / file.path, info),
                    "caption": list(captions.get(file.path, ())),
                    "name": file.path,
                    **info._asdict(),
                },
            )
            bar.update()

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror or error})") from error
    try:
        _build(target.name, temporary, list(splits), examples)
        os.rename(temporary / target.name, target)
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _build(name: str, data_dir: Path, splits: list[str], examples: Any) -> None:
    """Runs a TFDS builder; its own bars and notices are kept quiet."""
    try:
        import array_record  # noqa: F401
    except ImportError as error:
        raise UserError(
            "ArrayRecord files need the package array_record, which runs on Linux"
        ) from error
    import tensorflow_datasets as tfds

    class Clips(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Clips of a folder of videos, encoded as they were found."""

        VERSION = tfds.core.Version(_VERSION)
        # Nothing is downloaded, so there is nothing to look up beside the code; TFDS would, by a package that it
        # does not require.
        code_path = None

        def _info(self) -> Any:
            text, whole = tfds.features.Text(), np.int64
            features = {
                "video": text,  # any bytes pass through it unchanged; the Video feature needs TensorFlow
                "caption": tfds.features.Sequence(text),
                "name": text,
                "frames": whole,
                "fps": np.float32,
                "width": whole,
                "height": whole,
            }
            return tfds.core.DatasetInfo(
                builder=self,
                description="Clips of a folder of videos, encoded as they were found.",
                features=tfds.features.FeaturesDict(features),
                disable_shuffling=True,  # the order is a matter of the reader
            )

        def _split_generators(self, dl_manager: Any) -> Any:
            return {split: self._generate_examples(split) for split in splits}

        def _generate_examples(self, split: str) -> Any:
            return examples(split)

    Clips.name = name
    with contextlib.redirect_stdout(io.StringIO()), _quiet_bars(tfds):
        Clips(data_dir=str(data_dir), file_format="array_record").download_and_prepare()


@contextlib.contextmanager
def _quiet_bars(tfds: Any) -> Iterator[None]:
    tfds.disable_progress_bar()
    try:
        yield
    finally:
        tfds.enable_progress_bar()
