"""What a media file holds, told by its headers and packets.

A source of media is a path, the bytes of a file, or a directory of numbered images (`0.png, 1.png, ...`: a clip stored
as frames).

Three laws:
  * sizes are read from headers, and refused when above `Limits`, before a single frame is decoded;
  * the number of frames is counted from what is present, never taken from a header: a file that holds fewer than it
    claims, or that decodes to fewer than it holds, is an error and not a short clip (flipped bits inside a picture
    are another matter: common formats have no checksum that would tell);
  * whatever is wrong with a file, `MediaError` is raised, with the file's name and the reason in one line.
"""

import io
import os
import re
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from PIL import Image

from jaxvid.core.errors import UserError

Media = str | os.PathLike[str] | bytes

VIDEO_SUFFIXES = (".mp4", ".webm", ".gif", ".avi", ".mov", ".mkv", ".m4v")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")

# Containers that may be opened. Playlists and their like, which can name other files, are not among them.
_FORMATS = "mov,matroska,webm,avi,gif,mpegts,png_pipe,jpeg_pipe,webp_pipe"
DECODE_ERRORS = (
    FFmpegError,
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
    folder = frame_folder(media)
    try:
        if folder is not None:
            return _folder_index(folder, limits)
        with open_container(media) as container:
            return _scan(container, name, limits)
    except DECODE_ERRORS as error:
        raise unreadable(name, error) from error


def unreadable(name: str, error: BaseException) -> MediaError:
    """The `MediaError` for whatever a decoder raised."""
    if isinstance(error, FileNotFoundError):
        return MediaError(f"{name}: no such file")
    reason = " ".join(str(error).split())[:120] or type(error).__name__
    return MediaError(f"{name}: not a readable video ({reason}); re-encode it or take it out")


def open_container(media: Media) -> InputContainer:
    """Opens a file or bytes as one of the known containers, never as a list of other files."""
    options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
    file = io.BytesIO(media) if isinstance(media, bytes) else os.fspath(media)
    if isinstance(file, str) and not os.path.isfile(file):
        raise FileNotFoundError(file)
    return av.open(file, "r", options=options)


def video_stream(container: InputContainer) -> av.VideoStream:
    """The main video stream by FFmpeg's own choice: the default one, else the largest."""
    stream = container.streams.best("video")
    if not isinstance(stream, av.VideoStream):
        raise ValueError("no video stream")
    if stream.codec_context is None:
        raise ValueError("no decoder for its video stream")
    # Clips are decoded side by side, so a decoder with threads of its own only adds contention.
    stream.codec_context.thread_count = 1
    return stream


def check_size(name: str, width: int, height: int, frames: int, limits: Limits) -> None:
    """Raises `MediaError` if a picture size or frame count is outside `limits`."""
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


def _scan(container: InputContainer, name: str, limits: Limits) -> VideoIndex:
    stream = video_stream(container)
    check_size(name, stream.width, stream.height, stream.frames, limits)
    fps = float(stream.average_rate or stream.guessed_rate or 0)
    if container.format.name == "avi":
        # AVI has no presentation times, and packets without a picture: only decoding tells what is there.
        count = 0
        for count, _ in enumerate(container.decode(stream), 1):
            check_size(name, stream.width, stream.height, count, limits)
        _check_complete(name, count + max(2, stream.frames // 50), stream.frames)
        pts, keys = None, []
    else:
        present, times, keys, end = _packet_times(container, stream, name, limits)
        count = len(times)
        # An mp4's index is better than its header's count: edit lists leave out frames, fragments are not counted.
        indexed = "mp4" in container.format.name
        _check_complete(name, present, len(stream.index_entries) if indexed else stream.frames)
        _check_duration(name, end, fps, container, stream)
        unique = np.unique(np.asarray([time for time in times if time is not None], np.int64))
        pts = unique if len(unique) == count else None
    if not count:
        raise MediaError(f"{name}: no video frames; take it out")
    info = VideoInfo(count, fps, stream.width, stream.height)
    return VideoIndex(info, pts, np.sort(np.asarray(keys, np.int64)))


def _packet_times(
    container: InputContainer, stream: av.VideoStream, name: str, limits: Limits
) -> tuple[int, list[int | None], list[int], float]:
    """Number of packets, times of the shown frames in stream units, times of key frames, the end in seconds."""
    times: list[int | None] = []
    keys: list[int] = []
    end, present = 0.0, 0
    for packet in container.demux(stream):
        if packet.size == 0:
            continue
        present += 1
        check_size(name, stream.width, stream.height, present, limits)
        if packet.is_discard:
            continue  # outside the container's edit list: decoded for reference, never shown
        times.append(packet.pts)
        if packet.pts is not None and stream.time_base is not None:
            end = max(end, float((packet.pts + (packet.duration or 0)) * stream.time_base))
            if packet.is_keyframe:
                keys.append(packet.pts)
    return present, times, keys, end


def _check_complete(name: str, present: int, claimed: int) -> None:
    if present < claimed:
        raise MediaError(
            f"{name}: truncated, {present} of {claimed} frames are present; fetch it again or take it out"
        )


def _check_duration(
    name: str,
    end: float,
    fps: float,
    container: InputContainer,
    stream: av.VideoStream,
) -> None:
    """Matroska and WebM claim no frame count, but mostly a duration: the stream's own, or the file's.

    Other streams of the file may go on a little after the picture has ended, hence the second of grace.
    """
    own = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    grace = 0.75 / fps if fps > 0 else 1.0
    if own:
        claimed = int(own[1]) * 3600 + int(own[2]) * 60 + float(own[3])
    elif stream.frames == 0 and "matroska" in container.format.name and container.duration:
        claimed = container.duration / 1e6
        grace = grace if len(container.streams) == 1 else 1.0
    else:
        return
    if end < claimed - grace:
        raise MediaError(
            f"{name}: truncated, {end:.2f} of {claimed:.2f} seconds are present; fetch it again or take it out"
        )


def frame_folder(media: Media) -> Path | None:
    """The directory, if the clip is stored as one."""
    if isinstance(media, bytes):
        return None
    path = Path(media)
    return path if path.is_dir() else None


def natural_order(name: str) -> list[tuple[int, int, str]]:
    """Sort key under which `2.png` precedes `10.png`."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts]


def frame_files(folder: Path) -> list[Path]:
    """Its images in natural order."""
    files = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES]
    return sorted(files, key=lambda path: natural_order(path.name))


def _folder_index(folder: Path, limits: Limits) -> VideoIndex:
    files = frame_files(folder)
    if not files:
        raise MediaError(f"{folder}: no numbered images in this folder; expected 0.png, 1.png, ...")
    with Image.open(files[0]) as image:  # reads the header only
        width, height = image.size
    check_size(str(folder), width, height, len(files), limits)
    return VideoIndex(VideoInfo(len(files), 0.0, width, height), None, np.zeros(0, np.int64))
