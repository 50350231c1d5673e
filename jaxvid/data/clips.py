"""Sources of clips cut out of stored videos.

`ClipSource` turns a stored `Item` (an encoded video, or its pixels) into an example by a `ClipView`; what remains to
a data set is to list its items. `VideoFiles` lists files below one folder.

Scaled clips are kept whole in memory until `cache_bytes` are used. Nothing is evicted: under a shuffle over more data
than fits, eviction would make every read a miss. With the memory full, only the window that is asked for is decoded.
"""

import hashlib
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxvid.core.errors import UserError
from jaxvid.data import media
from jaxvid.data.media import Media, MediaError, VideoIndex, VideoInfo
from jaxvid.data.source import ClipView, Example

_SCANS_KEPT = 10_000  # about 2 KiB each


class Item(NamedTuple):
    """A stored video and what is known of it.

    media: a path, encoded bytes, or uint8 `[t, h, w, 3]`. start, end: seconds, where only a part of it belongs to
    the data set.
    """

    media: Media | np.ndarray
    captions: tuple[str, ...] = ()
    label: int | None = None
    start: int | float | None = None
    end: int | float | None = None


class ClipSource:
    """Clips of stored videos; children say what is stored.

    view: which window and crop make a clip. captioned, class_names: what the items carry.
    """

    def __init__(
        self,
        view: ClipView,
        captioned: bool = False,
        class_names: Sequence[str] = (),
        cache_bytes: int = 0,
    ):
        self.view = view
        self.captioned = captioned
        self.class_names = tuple(class_names)
        self.cache_bytes = cache_bytes
        self._reset()

    def __len__(self) -> int:
        raise NotImplementedError

    def name(self, index: int) -> str:
        """How messages call the item."""
        raise NotImplementedError

    def item(self, index: int) -> Item:
        """The stored video."""
        raise NotImplementedError

    def _reset(self) -> None:
        """Forgets what belongs to this process alone."""
        self._scans: dict[int, VideoIndex] = {}
        self._cache: dict[int, np.ndarray] = {}
        self._cached = 0
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        own = {"_scans", "_cache", "_cached", "_lock"}
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    @property
    def frames(self) -> int:
        """Frames a clip."""
        return self.view.frames

    @property
    def classes(self) -> int:
        """Number of classes, 0 without labels."""
        return len(self.class_names)

    def __getitem__(self, index: int) -> Example:
        return self.read(index, None)

    def read(
        self, index: int, rng: np.random.Generator | None, frames: int | None = None
    ) -> Example:
        """A random (or the fixed) window of the video, scaled, cropped, perhaps mirrored.

        Raises `MediaError` if the video is damaged or too short.
        """
        name, item = self.name(index), self.item(index)
        pixels = item.media if isinstance(item.media, np.ndarray) else None
        scan = self._scan(index, name, item.media)
        first, stop = _bounds(item, scan.info)
        count = self.view.frames if frames is None else frames
        rate, skips = 0, self.view.skips
        if rng is not None and count > 1 and len(skips) > 1:
            fits = self.view.fitting(name, first, stop, scan.info.fps, count)
            rate = fits[int(rng.integers(len(fits)))]
        positions = self.view.positions(name, first, stop, scan.info.fps, count, rng, skips[rate])
        if pixels is not None:
            scaled = np.stack([self.view.resize(pixels[i]) for i in positions])
        else:
            scaled = self._scaled(index, name, item.media, scan, positions)
        video = self.view.cut(scaled, rng)
        caption = None
        if item.captions:
            caption = item.captions[0 if rng is None else int(rng.integers(len(item.captions)))]
        example = Example(video=video, caption=caption, label=item.label)
        if len(skips) > 1:
            example["rate"] = rate
        return example

    def _scan(self, index: int, name: str, stored: Media | np.ndarray) -> VideoIndex:
        scan = self._scans.get(index)
        if scan is None:
            scan = _index(name, stored)
            if len(self._scans) < _SCANS_KEPT:
                self._scans[index] = scan
        return scan

    def _scaled(
        self, index: int, name: str, stored: Any, scan: VideoIndex, positions: list[int]
    ) -> np.ndarray:
        """The frames at `positions`, covering size, from memory if the clip is or can be kept there."""
        whole = self._cache.get(index)
        if whole is None:
            height, width = self.view.cover(scan.info.height, scan.info.width)
            size = scan.info.frames * height * width * 3
            if self._cached + size > self.cache_bytes:
                return _decode(name, stored, positions, self.view, scan)
            whole = _decode(name, stored, range(scan.info.frames), self.view, scan)
            with self._lock:
                if index not in self._cache and self._cached + whole.nbytes <= self.cache_bytes:
                    self._cache[index] = whole
                    self._cached += whole.nbytes
        return whole[positions]


def _index(name: str, stored: Media | np.ndarray) -> VideoIndex:
    if isinstance(stored, np.ndarray):
        if stored.dtype != np.uint8 or stored.ndim != 4 or stored.shape[-1] != 3 or not stored.size:
            raise MediaError(
                f"{name}: {stored.dtype} {list(stored.shape)} is no video; uint8 [t, h, w, 3] is read"
            )
        frames, height, width, _ = stored.shape
        return VideoIndex(VideoInfo(frames, 0.0, width, height), None, np.zeros(0, np.int64))
    try:
        return media.open_index(stored)
    except MediaError as error:
        raise _named(name, stored, error) from error


def _decode(
    name: str, stored: Media, positions: Sequence[int], view: ClipView, scan: VideoIndex
) -> np.ndarray:
    try:
        return media.read_frames(stored, positions, transform=view.resize, index=scan)
    except MediaError as error:
        raise _named(name, stored, error) from error


def _named(name: str, stored: Media, error: MediaError) -> MediaError:
    """The error with the item's name in the place of `<123 bytes>`."""
    return MediaError(str(error).replace(media.name_of(stored), name, 1))


def _bounds(item: Item, info: VideoInfo) -> tuple[int, int]:
    """Frames `[first, stop)` that belong to the data set."""
    first = 0 if item.start is None else min(round(item.start * info.fps), info.frames)
    stop = info.frames if item.end is None else min(round(item.end * info.fps), info.frames)
    return first, stop


class VideoFile(NamedTuple):
    """A file below the root of a `VideoFiles`: relative path, size in bytes (for the digest), the rest as `Item`."""

    path: str
    size: int
    captions: tuple[str, ...] = ()
    label: int | None = None
    start: int | float | None = None
    end: int | float | None = None


class VideoFiles(ClipSource):
    """Clips of video files (or folders of numbered images) below one root."""

    def __init__(
        self,
        root: str,
        files: Sequence[VideoFile],
        view: ClipView,
        class_names: Sequence[str] = (),
        cache_bytes: int = 0,
    ):
        if not files:
            raise UserError(f"{root}: no clips in this split")
        super().__init__(view, bool(files[0].captions), class_names, cache_bytes)
        self.root = root
        self.files = list(files)
        self._digest = ""

    def __len__(self) -> int:
        return len(self.files)

    def __repr__(self) -> str:
        if not self._digest:
            digest = hashlib.sha256(repr(self.view).encode())
            for file in self.files:
                digest.update(repr(tuple(file)).encode())
            self._digest = digest.hexdigest()[:16]
        return f"VideoFiles({len(self.files)} clips, {self._digest})"

    def name(self, index: int) -> str:
        """Path of the file."""
        return str(Path(self.root) / self.files[index].path)

    def item(self, index: int) -> Item:
        """The file."""
        return Item(self.name(index), *self.files[index][2:])
