"""Images of a scene: 8-bit PNG and JPEG files to straight-alpha bytes, shrunk by area on the way.

    alpha      straight: a pixel's colour does not depend on its alpha. Premultiplied: colour * alpha is stored.
    area       an output pixel is the mean over the rectangle that it covers, partly covered pixels counting by their
               covered part. Colours are averaged premultiplied, so that what is transparent lends no colour.

Laws: sizes are read from headers and refused above `SIDE` before a pixel is decoded; a file is told by its first bytes,
not by its name; whatever is wrong with a file, `UserError` names it in one line.

A rotation in a file's EXIF data is ignored: poses and intrinsics were computed for the pixels as they are stored
(COLMAP reads them so), and turning an image would take it out of its camera.
"""

import functools
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from scipy.sparse import csr_array

from jaxvid.core.errors import UserError

Alpha: TypeAlias = Literal["straight", "premultiplied"]

SIDE = 8192  # pixels a side of one file
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_DAMAGE = (
    OSError,
    EOFError,
    SyntaxError,  # pillow, on a damaged png
    ValueError,
    IndexError,
    KeyError,
    TypeError,
    struct.error,
    zlib.error,
)


class ImageInfo(NamedTuple):
    """What a header tells: pixels, and whether there is an alpha channel."""

    width: int
    height: int
    has_alpha: bool


def image_info(path: Path) -> ImageInfo:
    """Size and kind from the header alone. Raises `UserError` for a file that `read_image` cannot read."""
    with _opened(path) as image:
        return ImageInfo(image.width, image.height, image.has_transparency_data)


def read_image(
    path: Path, width: int, height: int, *, channels: int, alpha: Alpha = "straight"
) -> UInt8[np.ndarray, "h w c"]:
    """The image at `width` x `height` (at most its own size): RGB, or RGBA with straight alpha.

    alpha: what the file holds. Raises `UserError` for damage (PNG checksums are verified), and for premultiplied
    colours brighter than their alpha, which no straight colour could give.
    """
    with _opened(path, verify=True) as image:
        pixels = np.array(image.convert("RGBA" if channels == 4 else "RGB"))
    if channels == 3 or alpha == "straight":
        return resized_pixels(pixels, width, height)
    if (pixels[..., :3].max(axis=-1) > pixels[..., 3].astype(np.int16) + 2).any():
        raise UserError(
            f"{path}: colours above their alpha, so they are not premultiplied; set alpha to straight"
        )
    return _straight(area_mean(pixels.astype(np.float32), width, height))


def resized_pixels(
    pixels: UInt8[np.ndarray, "h w c"], width: int, height: int
) -> UInt8[np.ndarray, "h2 w2 c"]:
    """An RGB or straight-alpha RGBA image at another size by area means, colours weighted by their alpha."""
    if pixels.shape[:2] == (height, width):
        return pixels
    values = pixels.astype(np.float32)
    if pixels.shape[-1] == 3:
        return _bytes(area_mean(values, width, height))
    values[..., :3] *= values[..., 3:] / 255.0
    return _straight(area_mean(values, width, height))


def _straight(premultiplied: Float[np.ndarray, "h w 4"]) -> UInt8[np.ndarray, "h w 4"]:
    opacity = premultiplied[..., 3:] / 255.0
    colour = premultiplied[..., :3] / np.where(opacity > 0, opacity, 1.0)
    return _bytes(np.concatenate([colour, premultiplied[..., 3:]], axis=-1))


def whole_pixels(
    counts: Bool[np.ndarray, "h w"], width: int, height: int
) -> Bool[np.ndarray, "h2 w2"]:
    """A mask at another size: True where every pixel below is."""
    share = area_mean(counts[..., None].astype(np.float32), width, height)[..., 0]
    return share > 1.0 - 1e-4


def read_mask(path: Path, full: tuple[int, int], size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """True where every pixel of a one-channel PNG below the (smaller) mask's pixel is other than black.

    full, size: (width, height) of the image that the mask belongs to, and of the result.
    """
    with _opened(path, verify=True) as image:
        if not isinstance(image, PngImageFile) or image.mode not in ("1", "L", "P"):
            raise UserError(f"{path}: a mask must be a one-channel PNG, this is {image.mode}")
        if image.size != full:
            raise UserError(
                f"{path}: a mask of {image.width}x{image.height} pixels for an image of "
                f"{full[0]}x{full[1]}; give masks the size of their images"
            )
        counts = np.asarray(image.convert("L")) > 0
    return whole_pixels(counts, *size)


def area_mean(
    values: Float[np.ndarray, "h w c"], width: int, height: int
) -> Float[np.ndarray, "h2 w2 c"]:
    """Means over the `height` x `width` equal rectangles of an image; exact for every ratio of sizes."""
    h, w, c = values.shape
    rows = _area_weights(h, height) @ values.reshape(h, w * c)
    columns = rows.reshape(height, w, c).swapaxes(0, 1).reshape(w, height * c)
    means = (_area_weights(w, width) @ columns).reshape(width, height, c)
    return np.ascontiguousarray(means.swapaxes(0, 1))


@functools.lru_cache(maxsize=8)
def _area_weights(size: int, target: int) -> csr_array:
    """[target, size]: the share that each pixel has in each cell. PIL's BOX filter takes pixels whole or not at all."""
    edges = np.arange(target + 1) * size / target
    low, high = edges[:-1, None], edges[1:, None]
    column = np.floor(low).astype(np.int64) + np.arange(int(np.ceil(size / target)) + 1)
    weight = np.clip(np.minimum(high, column + 1) - np.maximum(low, column), 0.0, None)
    row = np.broadcast_to(np.arange(target)[:, None], column.shape)
    inside = (weight > 1e-9) & (column < size)
    data = (weight * target / size).astype(np.float32)
    return csr_array((data[inside], (row[inside], column[inside])), shape=(target, size))


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(values, 0.0, 255.0)).astype(np.uint8)


@contextmanager
def _opened(path: Path, *, verify: bool = False) -> Iterator[ImageFile.ImageFile]:
    """Opens without PIL's own guard against large images, whose limit is another and whose refusal names no file."""
    try:
        with open(path, "rb") as file:
            head = file.read(26)
            file.seek(0)
            kind = PngImageFile if head.startswith(_PNG) else JpegImageFile
            if not head.startswith((_PNG, _JPEG)):
                raise UserError(
                    f"{path}: not a PNG or JPEG image (floating-point and other kinds, such as .npy, .tiff or .exr, "
                    "are not read); convert it to an 8-bit PNG"
                )
            if kind is PngImageFile and head[24:25] == b"\x10":
                raise UserError(f"{path}: 16 bits a channel; convert it to an 8-bit PNG")
            with kind(file) as image:
                _check_header(path, image)
                if not (verify and kind is PngImageFile):
                    yield image
                    return
                image.verify()
            file.seek(0)
            with kind(file) as image:
                yield image
    except _DAMAGE as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise UserError(
            f"{path}: not a readable image ({reason}); fetch it again or take it out"
        ) from error


def _check_header(path: Path, image: ImageFile.ImageFile) -> None:
    if not (1 <= image.width <= SIDE and 1 <= image.height <= SIDE):
        raise UserError(
            f"{path}: {image.width}x{image.height} pixels, at most {SIDE}x{SIDE} are read; scale it down"
        )
    if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):
        raise UserError(f"{path}: colour mode {image.mode}; convert it to an 8-bit RGB or RGBA PNG")
