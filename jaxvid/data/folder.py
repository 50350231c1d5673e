"""A folder of videos with captions.

  clips/
    captions.json        {"surfing": "a man is surfing", "skiing": ["a skier", "a man on skis"]}
    surfing.mp4          keys are stems, file names or paths relative to the folder
    more/skiing.webm
    more/skiing.txt      instead of captions.json: one caption a line, beside the clip

Clips are mp4, webm, gif, avi, mov or mkv files at any depth, and folders of numbered images. With `frames=1` single
images count as well. Either every clip has a caption or none has.
"""

import hashlib
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxvid.core.errors import UserError
from jaxvid.data.clips import VideoFile, VideoFiles
from jaxvid.data.media import IMAGE_SUFFIXES, VIDEO_SUFFIXES, natural_order
from jaxvid.data.source import ClipView, Split


@dataclass(frozen=True, kw_only=True)
class FolderData(ClipView):
    """A folder of videos; see the module and `ClipView` for the fields that say how clips are cut.

    path: the folder. held_out: clips kept for the split "test", a share below 1 or a number; which ones depends on
    their names alone, so a share stays the same when files are added. cache_mb: memory for decoded clips, in each
    worker process.
    """

    path: str
    held_out: int | float = 0
    cache_mb: int = 256

    def __post_init__(self):
        super().__post_init__()
        check_held_out(self.held_out)

    def source(self, split: Split = "train") -> VideoFiles:
        """Opens a split; raises `UserError` if the folder, its captions or the split are unusable."""
        files = list_clips(self.path, images=self.frames == 1)
        captions = read_captions(self.path, [file.path for file in files])
        files = [file._replace(captions=captions.get(file.path, ())) for file in files]
        test = held_out_paths([file.path for file in files], self.held_out)
        if split == "test" and not test:
            raise UserError(f"{self.path}: no clips are held out; set held_out")
        chosen = [file for file in files if (file.path in test) == (split == "test")]
        if not chosen:
            raise UserError(
                f"{self.path}: all {len(files)} clips are held out; lower held_out ({self.held_out})"
            )
        return VideoFiles(self.path, chosen, self.view(), cache_bytes=self.cache_mb << 20)


def list_clips(root: str, images: bool = False) -> list[VideoFile]:
    """The clips below `root` in natural order of their relative paths, without captions.

    images: count each image as a clip, instead of each folder of images.
    Raises `UserError` for a folder that is absent or holds no clip.
    """
    if not os.path.isdir(root):
        raise UserError(f"{root}: no such folder; give the folder that holds the clips")
    found = []
    for folder, names, files in os.walk(root):
        names[:] = [name for name in names if not name.startswith(".")]
        files = [name for name in files if not name.startswith(".")]
        videos = [name for name in files if name.lower().endswith(VIDEO_SUFFIXES)]
        pictures = [name for name in files if name.lower().endswith(IMAGE_SUFFIXES)]
        relative = Path(folder).relative_to(root)
        for name in videos + (pictures if images else []):
            size = os.path.getsize(os.path.join(folder, name))
            found.append(VideoFile((relative / name).as_posix(), size))
        if pictures and not videos and not images and relative != Path("."):
            found.append(VideoFile(relative.as_posix(), len(pictures)))
    if not found:
        suffixes = ", ".join(VIDEO_SUFFIXES)
        raise UserError(
            f"{root}: no clips; expected files ending in {suffixes}, or folders of images"
        )
    return sorted(found, key=lambda file: natural_order(file.path))


def read_captions(root: str, paths: list[str]) -> dict[str, tuple[str, ...]]:
    """Captions by relative path, from `captions.json` or the text files beside the clips; empty if there are none.

    Raises `UserError` if some clips have a caption and others have none, or captions name no clip.
    """
    listed = Path(root) / "captions.json"
    if listed.is_file():
        captions = _from_json(listed, paths)
    else:
        captions = {}
        for path in paths:
            text = (Path(root) / path).with_suffix(".txt")
            if text.is_file():
                captions[path] = _lines(text)
    without = [path for path in paths if path not in captions]
    if captions and without:
        raise UserError(
            f"{root}: {len(without)} of {len(paths)} clips have no caption ({_few(without)}); add them or move the clips out"
        )
    return captions


def _lines(path: Path) -> tuple[str, ...]:
    try:
        lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as UTF-8 text; save it as UTF-8") from error
    captions = tuple(line for line in lines if line)
    if not captions:
        raise UserError(f"{path}: holds no caption; write one a line")
    return captions


def _from_json(listed: Path, paths: list[str]) -> dict[str, tuple[str, ...]]:
    try:
        entries = json.loads(listed.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{listed}: not valid JSON ({error}); repair it") from error
    if not isinstance(entries, dict) or not entries:
        raise UserError(f'{listed}: must be an object such as {{"clip": "its caption"}}')
    by_key: dict[str, list[str]] = {}
    for path in paths:
        pure = Path(path)
        for key in {path, pure.name, pure.stem, pure.with_suffix("").as_posix()}:
            by_key.setdefault(key, []).append(path)
    captions: dict[str, tuple[str, ...]] = {}
    for key, value in entries.items():
        matches = by_key.get(key, [])
        if len(matches) > 1:
            raise UserError(
                f"{listed}: {key!r} names {len(matches)} clips ({_few(matches)}); use their paths"
            )
        for path in matches:
            captions[path] = captions.get(path, ()) + _captions(listed, key, value)
    unmatched = [key for key in entries if key not in by_key]
    if unmatched:
        raise UserError(
            f"{listed}: {len(unmatched)} of {len(entries)} captions match no clip ({_few(unmatched)}); correct their keys"
        )
    return captions


def _captions(listed: Path, key: str, value: Any) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    valid = isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts)
    if not valid or not all(text.strip() for text in texts):
        raise UserError(f"{listed}: {key!r} must have a caption or a list of captions")
    return tuple(text.strip() for text in texts)


def _few(names: list[str]) -> str:
    """The first three, each shortened."""
    shown = [name if len(name) <= 60 else "..." + name[-57:] for name in names[:3]]
    return ", ".join(shown) + (", ..." if len(names) > 3 else "")


def check_held_out(amount: int | float) -> None:
    """Raises UserError unless `amount` is a share below 1 or a number of clips."""
    if not (0 <= amount < 1 or (math.isfinite(amount) and amount >= 1 and amount == int(amount))):
        raise UserError(f"held_out is {amount}; give a share below 1 or a whole number")


def held_out_paths(paths: list[str], amount: int | float) -> set[str]:
    """The paths held out: those whose hash is below a share, or the given number of smallest hashes."""
    hashes = {path: hashlib.sha256(path.encode()).digest() for path in paths}
    if amount < 1:
        return {p for p, digest in hashes.items() if int.from_bytes(digest[:8]) < amount * 2**64}
    return set(sorted(paths, key=hashes.__getitem__)[: int(amount)])
