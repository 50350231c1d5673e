"""Writing videos, images and contact sheets.

A video is uint8 `[t, h, w, 3]`. Every file appears whole or not at all: it is encoded in memory, written beside its
destination and renamed.

Tiny clips are enlarged by a whole factor (nearest neighbour), because players blur them and 4:2:0 video halves the
resolution of colour.
"""

import io
import os
import textwrap
import uuid
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from jaxvid.core.errors import UserError

PathLike = str | os.PathLike[str]

# name -> container, codec, pixel format, options, whether sides must be even
_CODECS = {
    "h264": ("mp4", "libx264", "yuv420p", {"crf": "16", "preset": "medium"}, True),
    "ffv1": ("matroska", "ffv1", "bgr0", {"level": "3", "slicecrc": "1"}, False),
}


def check_place(path: PathLike) -> None:
    """Raises `UserError` if a file of this name can not be written: to be asked before long work, not after."""
    path = Path(path)
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if path.is_dir():
        raise UserError(f"{path} is a folder; give the name of a file")
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"{path}: {above} is not a folder that can be written to; choose another")


def write_bytes(path: PathLike, data: bytes) -> Path:
    """Writes a whole file by rename; makes its folder. Raises `UserError` if the disk refuses."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); choose another place"
        ) from error
    return path


def enlarge(video: UInt8[np.ndarray, "t h w 3"], side: int) -> UInt8[np.ndarray, "t _ _ 3"]:
    """Repeats pixels by the smallest whole factor that makes the shorter side at least `side`."""
    factor = max(1, -(-side // min(video.shape[1:3])))
    return video.repeat(factor, axis=1).repeat(factor, axis=2)


def encode_video(
    video: UInt8[np.ndarray, "t h w 3"],
    fps: int | float = 8.0,
    codec: Literal["h264", "ffv1"] = "h264",
) -> bytes:
    """The bytes of an mp4 (H.264, near-lossless, plays everywhere) or of a lossless mkv (FFV1).

    H.264 needs even sides; an odd one is padded by repeating its last row or column.
    """
    container, name, pixels, options, even = _CODECS[codec]
    if even and (video.shape[1] % 2 or video.shape[2] % 2):
        video = np.pad(
            video, ((0, 0), (0, video.shape[1] % 2), (0, video.shape[2] % 2), (0, 0)), "edge"
        )
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        rate = Fraction(fps).limit_denominator(1001)
        stream = output.add_stream(name, rate=rate, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = video.shape[2], video.shape[1], pixels
        for frame in video:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            output.mux(stream.encode(picture))
        output.mux(stream.encode())
    return buffer.getvalue()


def write_video(
    path: PathLike, video: UInt8[np.ndarray, "t h w 3"], fps: int | float = 8.0, side: int = 128
) -> Path:
    """Writes `.mp4`, `.mkv` (lossless), `.gif` or, for a single frame, `.png`; returns the path.

    side: the shorter side of mp4 and gif is enlarged to at least this (0 keeps the size).
    Raises `UserError` for another suffix or a rate that is not positive.
    """
    suffix = Path(path).suffix.lower()
    if not 0 < fps <= 1000:
        raise UserError(f"{path}: {fps} frames a second; choose between 0 and 1000")
    if suffix == ".mp4":
        return write_bytes(path, encode_video(enlarge(video, side), fps))
    if suffix == ".mkv":
        return write_bytes(path, encode_video(video, fps, "ffv1"))
    if suffix == ".gif":
        return write_bytes(path, _encode_gif(enlarge(video, side), fps))
    if suffix == ".png" and len(video) == 1:
        return write_image(path, video[0])
    raise UserError(
        f"{path}: a video is written as .mp4, .mkv or .gif (.png for one frame); rename it"
    )


def write_image(path: PathLike, image: UInt8[np.ndarray, "h w 3"]) -> Path:
    """Writes a PNG; returns the path."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return write_bytes(path, buffer.getvalue())


def _encode_gif(video: np.ndarray, fps: int | float) -> bytes:
    """An endless GIF; equal neighbouring frames become one that is shown longer."""
    frames = [Image.fromarray(frame).quantize(256) for frame in video]
    buffer = io.BytesIO()
    frames[0].save(
        buffer,
        format="GIF",
        save_all=True,
        append_images=frames[1:],
        duration=round(1000 / fps),
        loop=0,
    )
    return buffer.getvalue()


def contact_sheet(
    videos: UInt8[np.ndarray, "n t h w 3"] | Sequence[UInt8[np.ndarray, "t h w 3"]],
    captions: Sequence[str | None] | None,
    path: PathLike,
    columns: int = 16,
    side: int = 64,
) -> Path:
    """Writes a PNG with one clip a row, its caption above and its frames from left to right; returns the path.

    columns: at most this many frames are shown, evenly spaced with the first and the last.
    side: frames are enlarged by a whole factor to at least this; larger ones keep their size.
    """
    if captions is not None and len(captions) != len(videos):
        raise UserError(f"{len(captions)} captions for {len(videos)} clips; give one each")
    rows = []
    for video, caption in zip(videos, captions or [None] * len(videos), strict=True):
        count = min(columns, len(video))
        frames = video[np.linspace(0, len(video) - 1, count).round().astype(int)]
        frames = np.pad(
            enlarge(frames, side), ((0, 0), (0, 2), (0, 2), (0, 0)), constant_values=255
        )
        strip = frames.transpose(1, 0, 2, 3).reshape(frames.shape[1], -1, 3)
        if caption is not None:
            strip = np.concatenate([_text(caption, max(strip.shape[1], 320)), _fit(strip, 320)])
        rows.append(strip)
    width = max(row.shape[1] for row in rows)
    return write_image(path, np.concatenate([_fit(row, width) for row in rows]))


def _fit(strip: np.ndarray, width: int) -> np.ndarray:
    """Fills with white on the right up to `width`."""
    missing = max(0, width - strip.shape[1])
    return np.pad(strip, ((0, 0), (0, missing), (0, 0)), constant_values=255)


def _text(text: str, width: int, size: int = 15) -> np.ndarray:
    """Black on white, wrapped to `width` pixels, at most three lines."""
    font = ImageFont.load_default(size)
    letters = max(8, int(width / font.getlength("abcdefghij klmnopqrst") * 21))
    lines = textwrap.wrap(text, letters, max_lines=3, placeholder=" ...") or [""]
    image = Image.new("RGB", (width, (size + 5) * len(lines) + 6), "white")
    draw = ImageDraw.Draw(image)
    for i, line in enumerate(lines):
        draw.text((3, 3 + i * (size + 5)), line, fill="black", font=font)
    return np.asarray(image)
