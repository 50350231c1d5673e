"""Single pictures as a person has them: photographs that were turned in the camera, scans of 16 bits, print colours.

`media` reads frames of videos and datasets as they are stored; this reads a picture as a viewer shows it.
"""

import struct
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from jaxvid.data.scan import LIMITS, Limits, MediaError, check_size

# What pillow raises on a damaged file, which formats do not agree on.
_DAMAGE = (OSError, EOFError, SyntaxError, ValueError, IndexError, KeyError, TypeError, struct.error, zlib.error)  # fmt: skip


def read_picture(path: Path, limits: Limits = LIMITS) -> UInt8[np.ndarray, "h w 3"]:
    """A picture in RGB, upright by its EXIF data; transparency is dropped, its colours are kept as stored.

    Raises MediaError for a file that is no picture, is damaged, larger than `limits`, or holds several pictures.
    """
    try:
        with Image.open(path) as image:
            check_size(str(path), image.width, image.height, 1, limits)
            count = getattr(image, "n_frames", 1)
            if count > 1:
                raise MediaError(f"{path} has {count} pictures; give a file with one")
            return np.array(_eight_bits(ImageOps.exif_transpose(image)).convert("RGB"))
    except MediaError:
        raise
    except UnidentifiedImageError:
        raise MediaError(f"{path} is not a picture that can be read; give a PNG or JPEG") from None
    except Image.DecompressionBombError:
        raise MediaError(f"{path} has too many pixels; scale it down") from None
    except _DAMAGE as error:
        raise MediaError(f"{path} is a damaged picture ({error}); save it again") from None


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits or more as bytes; pillow would cut it off at 255."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.clip(np.asarray(image, np.int64), 0, 65535) // 257).astype(np.uint8))
