"""Reading and writing videos: the public face of `scan` (what a file holds) and `writing`.

A video in memory is uint8 `[t, h, w, 3]` (RGB, channels last), a frame `[h, w, 3]`. Frames are read by number, in any
order; only what lies between the nearest key frame before them and the last of them is decoded. Whatever is wrong
with a file, `MediaError` is raised with its name and the reason in one line.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import av
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from jaxvid.data.scan import (
    DECODE_ERRORS,
    IMAGE_SUFFIXES,
    LIMITS,
    VIDEO_SUFFIXES,
    Limits,
    Media,
    MediaError,
    VideoIndex,
    VideoInfo,
    check_size,
    frame_files,
    frame_folder,
    name_of,
    natural_order,
    open_container,
    open_index,
    probe,
    unreadable,
    video_stream,
)
from jaxvid.data.writing import (
    contact_sheet,
    encode_video,
    enlarge,
    write_bytes,
    write_image,
    write_video,
)

__all__ = [
    "IMAGE_SUFFIXES",
    "LIMITS",
    "VIDEO_SUFFIXES",
    "FrameTransform",
    "Limits",
    "Media",
    "MediaError",
    "VideoIndex",
    "VideoInfo",
    "contact_sheet",
    "encode_video",
    "enlarge",
    "name_of",
    "natural_order",
    "open_index",
    "probe",
    "read_frames",
    "write_bytes",
    "write_image",
    "write_video",
]

FrameTransform = Callable[[UInt8[np.ndarray, "h w 3"]], UInt8[np.ndarray, "_ _ 3"]]


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
    if transform is None:
        _check_bytes(name, index.info.width * index.info.height * 3 * len(wanted), limits)
    folder = frame_folder(media)
    try:
        if folder is not None:
            files = frame_files(folder)
            images = ((i, _load_image(files[i], limits)) for i in wanted)
            found = _collect(images, wanted, transform, name, limits)
        else:
            found = _decode(media, wanted, index, transform, name, limits)
        return np.stack([found[int(i)] for i in indices])
    except DECODE_ERRORS as error:
        raise unreadable(name, error) from error


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
    return _collect(enumerate(_decoded(media, None)), wanted, transform, name, limits)


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
        (targets[frame.pts], frame) for frame in _decoded(media, seek, last) if frame.pts in targets
    )
    return _collect(frames, list(targets.values()), transform, name, limits, partial=True)


def _decoded(media: Media, seek: int | None, last: int | None = None) -> Iterator[av.VideoFrame]:
    with open_container(media) as container:
        stream = video_stream(container)
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
    frames: Iterable[tuple[int, av.VideoFrame | np.ndarray]],
    wanted: list[int],
    transform: FrameTransform | None,
    name: str,
    limits: Limits,
    partial: bool = False,
) -> dict[int, np.ndarray]:
    """Gathers `wanted` frames from pairs of (number, frame); stops as soon as all are there."""
    remaining = set(wanted)
    found: dict[int, np.ndarray] = {}
    count = 0
    for i, frame in frames:
        count = i + 1
        if i not in remaining:
            continue
        image = frame if isinstance(frame, np.ndarray) else _rgb(frame)
        found[i] = np.ascontiguousarray(image if transform is None else transform(image))
        if len(found) == 1:
            _check_bytes(name, found[i].nbytes * len(wanted), limits)
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


def _load_image(path: Path, limits: Limits) -> np.ndarray:
    with Image.open(path) as image:
        check_size(str(path), image.width, image.height, 1, limits)
        return np.asarray(image.convert("RGB"))
