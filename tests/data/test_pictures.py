"""Pictures as a viewer shows them, whatever the camera or the scanner wrote."""

import numpy as np
import pytest
from PIL import Image

from jaxvid.data.pictures import read_picture
from jaxvid.data.scan import Limits, MediaError


@pytest.fixture
def ramp():
    """Red grows to the right, green downwards."""
    y, x = np.mgrid[0:24, 0:32]
    return np.stack([8 * x, 10 * y, np.full_like(x, 40)], axis=-1).astype(np.uint8)


def test_a_picture_is_read_as_stored(ramp, tmp_path):
    Image.fromarray(ramp).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png"), ramp)


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (3, lambda a: a[::-1, ::-1]),
        (6, lambda a: np.rot90(a, -1)),
        (8, lambda a: np.rot90(a)),
        (2, lambda a: a[:, ::-1]),
    ],
)
def test_a_photograph_is_turned_upright(orientation, upright, ramp, tmp_path):
    """EXIF's orientation: the camera stored its sensor's rows, and says how they are to be shown."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(ramp).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png"), upright(ramp))


def test_sixteen_bits_become_eight(tmp_path):
    grey = np.linspace(0, 65535, 24 * 32).reshape(24, 32).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "a.png")
    found = read_picture(tmp_path / "a.png")
    np.testing.assert_array_equal(found, np.repeat((grey // 257)[..., None], 3, axis=-1))
    assert len(np.unique(found)) == 256


def test_print_colours_transparency_palettes_and_grey(ramp, tmp_path):
    """What diffusers' loader also does: CMYK to RGB, alpha dropped."""
    image = Image.fromarray(ramp)
    image.convert("CMYK").save(tmp_path / "a.jpg", quality=100, subsampling=0)
    np.testing.assert_allclose(read_picture(tmp_path / "a.jpg").astype(int), ramp, atol=6)
    alpha = np.full((24, 32, 1), 7, np.uint8)
    Image.fromarray(np.concatenate([ramp, alpha], axis=-1)).save(tmp_path / "b.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "b.png"), ramp)
    image.convert("L").save(tmp_path / "c.png")
    assert (np.ptp(read_picture(tmp_path / "c.png"), axis=-1) == 0).all()
    image.quantize(16).save(tmp_path / "d.png")
    expected = np.asarray(image.quantize(16).convert("RGB"))
    np.testing.assert_array_equal(read_picture(tmp_path / "d.png"), expected)


def _write(name, content):
    def write(folder):
        (folder / name).write_bytes(content)
        return folder / name

    return write


def _cut(folder):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(folder / "whole.png")
    return _write("cut.png", (folder / "whole.png").read_bytes()[:900])(folder)


def _moving(folder):
    frames = [Image.new("L", (8, 8), shade) for shade in (0, 90, 200)]
    frames[0].save(folder / "a.gif", save_all=True, append_images=frames[1:])
    return folder / "a.gif"


def _large(folder):
    Image.new("L", (300, 8)).save(folder / "large.png")
    return folder / "large.png"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_write("a.png", b""), "a.png is not a picture that can be read; give a PNG or JPEG"),
        (_write("a.txt", b"hello"), "a.txt is not a picture"),
        (_write("clip.mp4", b"\0\0\0\x18ftypmp42"), "clip.mp4 is not a picture"),
        (_cut, "cut.png is a damaged picture"),
        (_moving, "a.gif has 3 pictures; give a file with one"),
        (_large, "large.png: 300x8 pixels, at most 256x256 are read"),
    ],
)
def test_what_is_no_picture_is_one_line(make, words, tmp_path):
    with pytest.raises(MediaError, match=words) as caught:
        read_picture(make(tmp_path), Limits(side=256))
    assert "\n" not in str(caught.value)
