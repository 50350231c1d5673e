"""Reading videos.

A video in memory is uint8 `[t, h, w, 3]` (RGB, channels last), a frame `[h, w, 3]`. A source of media is a path, the
bytes of a file, or a directory of numbered images (`0.png, 1.png, ...`: a clip stored as frames).

Three laws:
  * sizes are read from headers, and refused when above `Limits`, before a single frame is decoded;
  * the number of frames is counted from the packets that are present, never taken from a header: a file that holds
    fewer than it claims, or that decodes to fewer than it holds, is an error and not a short clip;
  * whatever is wrong with a file, `MediaError` is raised, with the file's name and the reason in one line.
"""

import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from jaxvid.core.errors import UserError

Media = str | os.PathLike[str] | bytes
FrameTransform = Callable[[UInt8[np.ndarray, "h w 3"]], UInt8[np.ndarray, "_ _ 3"]]

VIDEO_SUFFIXES = (".mp4", ".webm", ".gif", ".avi", ".mov", ".mkv", ".m4v")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")

# Containers that may be opened. Playlists and their like, which can name other files, are not among them.
_FORMATS = "mov,matroska,webm,avi,gif,mpegts,png_pipe,jpeg_pipe,webp_pipe"
_DECODE_ERRORS = (
    av.error.FFmpegError,
    OSError,
    EOFError,
    IndexError,
    UnicodeDecodeError,
    ValueError,
    Image.DecompressionBombError,
    SyntaxError,  # pillow, on a damaged png
)


class MediaError(UserError):
    """A file that cannot be used as a video: damaged, too large, too short, or not a video at all."""


class Limits(NamedTuple):
    """What a single clip may ask for: pixels a side, frames a file, bytes of frames in one read."""

    side: int = 4096
    frames: int = 10_000
    decoded_bytes: int = 2 << 30


LIMITS = Limits()


class VideoInfo(NamedTuple):
    """Frames present, frames per second (0 where the file has no notion of it), width and height in pixels."""

    frames: int
    fps: float
    width: int
    height: int


class VideoIndex(NamedTuple):
    """What a scan of the packets tells: the header, and presentation times for random access.

    pts: presentation time of every frame, ascending, or None if the container has none (then reads are sequential).
    keys: those presentation times at which decoding may start.
    """

    info: VideoInfo
    pts: np.ndarray | None
    keys: np.ndarray


def name_of(media: Media) -> str:
    """How messages call this source."""
    return f"<{len(media)} bytes>" if isinstance(media, bytes) else os.fspath(media)


def probe(media: Media, limits: Limits = LIMITS) -> VideoInfo:
    """Returns frame count, rate and size, decoding nothing.

    Raises `MediaError` for a missing or unreadable file, one above `limits`, or one that is shorter than it claims.
    """
    return open_index(media, limits).info


def open_index(media: Media, limits: Limits = LIMITS) -> VideoIndex:
    """Scans the packets of `media`; the result may be kept and given to `read_frames` to save the scan."""
    name = name_of(media)
    folder = _frame_folder(media)
    try:
        if folder is not None:
            return _folder_index(folder, limits)
        with _open(media) as container:
            return _scan(container, name, limits)
    except _DECODE_ERRORS as error:
        raise _unreadable(name, error) from error


def read_frames(
    media: Media,
    indices: Sequence[int],
    *,
    transform: FrameTransform | None = None,
    index: VideoIndex | None = None,
    limits: Limits = LIMITS,
) -> UInt8[np.ndarray, "n h w 3"]:
    """Decodes the frames `indices` (any order, repeats allowed), and little else.

    media: path, bytes, or a folder of numbered images.
    transform: applied to each frame as it is decoded (crop, resize), so that full-size frames are never all held.
    index: the result of `open_index` for the same media.
    Raises `MediaError`, also when an index is outside the video or the frames together exceed the limit on bytes.
    """
    name = name_of(media)
    index = open_index(media, limits) if index is None else index
    wanted = sorted({int(i) for i in indices})
    if not wanted:
        raise ValueError("read_frames needs at least one index")
    if wanted[0] < 0 or wanted[-1] >= index.info.frames:
        raise MediaError(
            f"{name}: frame {wanted[-1]} asked, the video has {index.info.frames}; ask for fewer frames"
        )
    folder = _frame_folder(media)
    try:
        if folder is not None:
            files = _frame_files(folder)
            frames = ((i, _load_image(files[i], limits)) for i in wanted)
            found = _collect(frames, wanted, transform, name, limits)
        else:
            found = _decode(media, wanted, index, transform, name, limits)
        return np.stack([found[int(i)] for i in indices])
    except _DECODE_ERRORS as error:
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: BaseException) -> MediaError:
    if isinstance(error, FileNotFoundError):
        return MediaError(f"{name}: no such file")
    reason = " ".join(str(error).split())[:120] or type(error).__name__
    return MediaError(f"{name}: not a readable video ({reason}); re-encode it or take it out")


def _open(media: Media) -> av.container.InputContainer:
    options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
    file = io.BytesIO(media) if isinstance(media, bytes) else os.fspath(media)
    if isinstance(file, str) and not os.path.isfile(file):
        raise FileNotFoundError(file)
    return av.open(file, options=options)


def _video_stream(container: av.container.InputContainer) -> av.VideoStream:
    """The main video stream by FFmpeg's own choice: the default one, else the largest."""
    stream = container.streams.best("video")
    if stream is None:
        raise ValueError("no video stream")
    # Clips are decoded side by side, so a decoder with threads of its own only adds contention.
    stream.codec_context.thread_count = 1
    return stream


def _check_size(name: str, width: int, height: int, frames: int, limits: Limits) -> None:
    if width < 1 or height < 1:
        raise MediaError(f"{name}: the header gives no picture size; re-encode it or take it out")
    if width > limits.side or height > limits.side:
        raise MediaError(
            f"{name}: {width}x{height} pixels, at most {limits.side}x{limits.side} are read; scale it down"
        )
    if frames > limits.frames:
        raise MediaError(
            f"{name}: {frames} frames or more, at most {limits.frames} are read; cut it into shorter clips"
        )


def _scan(container: av.container.InputContainer, name: str, limits: Limits) -> VideoIndex:
    stream = _video_stream(container)
    _check_size(name, stream.width, stream.height, stream.frames, limits)
    times: list[int | None] = []
    keys: list[int] = []
    packets = 0
    for packet in container.demux(stream):
        if packet.size == 0:
            continue
        packets += 1
        if packets > limits.frames:
            _check_size(name, stream.width, stream.height, packets, limits)
        if (
            packet.is_discard
        ):  # outside the container's edit list: decoded for reference, never shown
            continue
        times.append(packet.pts)
        if packet.is_keyframe and packet.pts is not None:
            keys.append(packet.pts)
    if packets < stream.frames:
        raise MediaError(
            f"{name}: truncated, {packets} of {stream.frames} frames are present; fetch it again or take it out"
        )
    if not times:
        raise MediaError(f"{name}: no video frames; take it out")
    known = [time for time in times if time is not None]
    unique = np.unique(np.asarray(known, np.int64))
    pts = unique if len(unique) == len(times) else None
    fps = float(stream.average_rate or stream.guessed_rate or 0)
    info = VideoInfo(len(times), fps, stream.width, stream.height)
    return VideoIndex(info, pts, np.sort(np.asarray(keys, np.int64)))


def _decode(
    media: Media,
    wanted: list[int],
    index: VideoIndex,
    transform: FrameTransform | None,
    name: str,
    limits: Limits,
) -> dict[int, np.ndarray]:
    """Frames by number, through the nearest key frame if presentation times allow, else from the start."""
    if index.pts is not None:
        targets = {int(index.pts[i]): i for i in wanted}
        found = _decode_from(media, targets, index, transform, name, limits)
        if len(found) == len(wanted):
            return found
    counted = enumerate(_decoded(media, None))
    frames = ((i, _rgb(frame)) for i, frame in counted if i <= wanted[-1])
    return _collect(frames, wanted, transform, name, limits)


def _decode_from(
    media: Media,
    targets: dict[int, int],
    index: VideoIndex,
    transform: FrameTransform | None,
    name: str,
    limits: Limits,
) -> dict[int, np.ndarray]:
    """Decodes from the last key frame before the first target; frames are told by their presentation time.

    Returns what was found: a stream that cannot be entered at its key frames (open groups of pictures) yields less.
    """
    first, last = min(targets), max(targets)
    position = int(np.searchsorted(index.keys, first, side="right")) - 1
    seek = int(index.keys[position]) if position > 0 else None
    frames = (
        (targets[frame.pts], _rgb(frame))
        for frame in _decoded(media, seek, last)
        if frame.pts in targets
    )
    return _collect(frames, list(targets.values()), transform, name, limits, partial=True)


def _decoded(media: Media, seek: int | None, last: int | None = None) -> Iterator[av.VideoFrame]:
    with _open(media) as container:
        stream = _video_stream(container)
        size = stream.width, stream.height
        if seek is not None:
            container.seek(seek, stream=stream)
        for frame in container.decode(stream):
            if (frame.width, frame.height) != size:
                raise ValueError(f"a frame of {frame.width}x{frame.height} in a video of {size}")
            if frame.is_corrupt:
                raise ValueError("a damaged frame")
            yield frame
            if last is not None and frame.pts is not None and frame.pts >= last:
                return


def _rgb(frame: av.VideoFrame) -> np.ndarray:
    """RGB as it is meant to be seen: telephones store portrait video sideways with a rotation beside it."""
    image = frame.to_ndarray(format="rgb24")
    turns = round(frame.rotation / 90) % 4
    return np.rot90(image, turns) if turns else image


def _collect(
    frames: Iterator[tuple[int, np.ndarray]],
    wanted: list[int],
    transform: FrameTransform | None,
    name: str,
    limits: Limits,
    partial: bool = False,
) -> dict[int, np.ndarray]:
    """Gathers `wanted` frames from an iterator of (number, frame); stops as soon as all are there."""
    remaining = set(wanted)
    found: dict[int, np.ndarray] = {}
    count = 0
    for i, image in frames:
        count = i + 1
        if i not in remaining:
            continue
        if not found:
            size = image.size if transform is None else 0
            _check_bytes(name, size * len(wanted), limits)
        found[i] = np.ascontiguousarray(image if transform is None else transform(image))
        remaining.remove(i)
        if not remaining:
            return found
    if not partial:
        raise MediaError(
            f"{name}: only {count} frames can be decoded, frame {max(remaining)} is missing; re-encode it or take it out"
        )
    return found


def _check_bytes(name: str, size: int, limits: Limits) -> None:
    if size > limits.decoded_bytes:
        raise MediaError(
            f"{name}: {size / 2**30:.1f} GiB of frames asked at once, at most "
            f"{limits.decoded_bytes / 2**30:.1f} GiB are decoded; ask for fewer frames"
        )


def _frame_folder(media: Media) -> Path | None:
    if isinstance(media, bytes):
        return None
    path = Path(media)
    return path if path.is_dir() else None


def natural_order(name: str) -> list[tuple[int, int, str]]:
    """Sort key under which `2.png` precedes `10.png`."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts]


def _frame_files(folder: Path) -> list[Path]:
    files = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES]
    return sorted(files, key=lambda path: natural_order(path.name))


def _folder_index(folder: Path, limits: Limits) -> VideoIndex:
    files = _frame_files(folder)
    if not files:
        raise MediaError(f"{folder}: no numbered images in this folder; expected 0.png, 1.png, ...")
    with Image.open(files[0]) as image:  # reads the header only
        width, height = image.size
    _check_size(str(folder), width, height, len(files), limits)
    return VideoIndex(VideoInfo(len(files), 0.0, width, height), None, np.zeros(0, np.int64))


def _load_image(path: Path, limits: Limits) -> np.ndarray:
    with Image.open(path) as image:
        _check_size(str(path), image.width, image.height, 1, limits)
        return np.asarray(image.convert("RGB"))
