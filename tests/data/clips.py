"""Small videos for the tests of the data package, encoded in memory."""

import io

import av
import numpy as np

# name -> container, codec, pixel format, options, largest error of a round trip
FORMATS = {
    "mp4": ("mp4", "libx264", "yuv444p", {"crf": "4", "g": "5", "bf": "2"}, 10),
    "webm": ("webm", "libvpx-vp9", "yuv444p", {"crf": "2", "b": "0", "g": "5"}, 12),
    "avi": ("avi", "mpeg4", "yuv420p", {"qscale": "2", "bf": "2", "g": "6"}, 40),
    "mkv": ("matroska", "ffv1", "bgr0", {}, 0),
}


def moving(frames, height=24, width=32, seed=0):
    """A smooth pattern that moves, uint8 `[t, h, w, 3]`; every frame and seed differs clearly from the others."""
    t, y, x = np.meshgrid(np.arange(frames), np.arange(height), np.arange(width), indexing="ij")
    waves = [
        np.sin(x / 9 + t * 0.5 + seed),
        np.cos(y / 7 - t * 0.6),
        np.sin((x + y) / 11 + t * 0.4),
    ]
    return (127 + 110 * np.stack(waves, -1)).astype(np.uint8)


def encode(video, kind="mp4", fps=10):
    container, codec, pixels, options, _ = FORMATS[kind]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(codec, rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = video.shape[2], video.shape[1], pixels
        for frame in video:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(stream.encode())
    return buffer.getvalue()


def write(path, video, fps=10):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(video, path.suffix[1:], fps))
    return path
