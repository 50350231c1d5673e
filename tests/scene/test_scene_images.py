"""Pixels and masks of loaded scenes: area means by hand, alpha, kinds of files."""

import json
import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from loaded import every_view, load
from PIL import Image
from writers import make_truth, write_blender, write_json, write_nerfstudio

from jaxedit.scene.images import area_mean
from jaxedit.scene.load import describe


def area_by_hand(image, width, height):
    """Exact means with fractions: every output pixel's rectangle against every input pixel's."""
    h, w, c = image.shape

    def overlap(i, n, j, m):  # of output i of n and input j of m, in input pixels
        low, high = max(Fraction(i * m, n), j), min(Fraction((i + 1) * m, n), j + 1)
        return max(high - low, Fraction(0))

    out = np.zeros((height, width, c))
    for y in range(height):
        for x in range(width):
            for j in range(h):
                for i in range(w):
                    share = overlap(y, height, j, h) * overlap(x, width, i, w)
                    out[y, x] += float(share) * image[j, i]
    return out * height * width / (h * w)


@pytest.mark.parametrize("size", [(6, 4), (4, 4), (5, 3), (7, 7), (1, 1), (12, 8)])
def test_area_mean_is_exact_for_every_ratio(size):
    image = np.random.default_rng(0).uniform(0, 255, (8, 12, 2)).astype(np.float32)
    np.testing.assert_allclose(area_mean(image, *size), area_by_hand(image, *size), rtol=1e-5)


def rgba_scene(root, images):
    """The images as views of a Blender scene."""
    count, height, width, channels = images.shape
    truth = make_truth(square=True, count=count, height=height, width=width, channels=channels)
    truth = replace(truth, images=images)
    write_blender(root, truth, {"train": range(count)})


@pytest.mark.parametrize("size", [4, 5])
def test_transparent_pixels_lend_no_colour(size, tmp_path):
    images = make_truth(square=True).images.copy()
    images[0, :4, :6] = [255, 0, 0, 0]
    rgba_scene(tmp_path, images)
    height = round(8 * size / 12)
    found = load(tmp_path, size=size).views["train"].images
    for image, small in zip(images.astype(float), found, strict=True):
        premultiplied = np.concatenate(
            [image[..., :3] * image[..., 3:] / 255, image[..., 3:]], axis=-1
        )
        mean = area_by_hand(premultiplied, size, height)
        alpha = mean[..., 3:]
        colour = 255 * mean[..., :3] / np.maximum(alpha, 1e-9)
        assert np.abs(small[..., 3:] - alpha).max() <= 0.501
        assert np.abs(small[..., :3] - colour)[alpha[..., 0] > 0].max() <= 0.51


def test_premultiplied_files_come_out_straight(tmp_path):
    straight = make_truth(square=True).images
    straight[..., 3] |= 128
    stored = straight.astype(float)
    stored[..., :3] *= stored[..., 3:] / 255
    rgba_scene(tmp_path, np.rint(stored).astype(np.uint8))
    found = load(tmp_path, alpha="premultiplied").views["train"].images
    assert (
        np.abs(found.astype(int) - straight).max() <= 1
    )  # a level of the stored byte is up to two
    half = load(tmp_path, alpha="premultiplied", size=6).views["train"].images
    rgba_scene(tmp_path / "straight", straight)
    expected = load(tmp_path / "straight", size=6).views["train"].images
    assert np.abs(half.astype(int) - expected).max() <= 1


def save_first(root, image, **options):
    path = sorted((root / "train").iterdir())[0]
    image.save(path, "PNG", **options)
    return path


def test_other_kinds_of_png_and_jpeg(tmp_path):
    rng = np.random.default_rng(1)
    rgb = make_truth(square=True, channels=3).images
    rgba_scene(tmp_path, rgb)
    assert load(tmp_path).views["train"].images.shape[-1] == 3
    grey = Image.fromarray(rng.integers(0, 256, (8, 12), dtype=np.uint8))

    def first():
        return load(tmp_path).views["train"].images

    save_first(tmp_path, grey)
    np.testing.assert_array_equal(first()[0], np.repeat(np.asarray(grey)[..., None], 3, -1))
    save_first(tmp_path, Image.fromarray(np.asarray(grey) > 99))
    np.testing.assert_array_equal(first()[0, ..., 1], 255 * (np.asarray(grey) > 99))
    palette = grey.convert("P")
    palette.putpalette(rng.integers(0, 256, 768, dtype=np.uint8).tobytes())
    save_first(tmp_path, palette)
    np.testing.assert_array_equal(first()[0], np.asarray(palette.convert("RGB")))
    assert first().shape[-1] == 3
    clear = int(np.asarray(palette)[2, 3])
    save_first(tmp_path, palette, transparency=clear)
    found = first()
    assert found.shape[-1] == 4, "one image with alpha gives all an alpha"
    np.testing.assert_array_equal(found[0, ..., 3], 255 * (np.asarray(palette) != clear))
    np.testing.assert_array_equal(found[1], np.dstack([rgb[1], np.full((8, 12), 255)]))
    # A smooth JPEG under a PNG's name, with an EXIF orientation that must turn nothing.
    smooth = np.add.outer(np.arange(8) * 8, np.arange(12) * 5).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = sorted((tmp_path / "train").iterdir())[0]
    Image.fromarray(smooth).convert("RGB").save(path, "JPEG", quality=95, exif=exif)
    assert np.abs(first()[0].astype(int) - smooth[..., None]).max() < 6


def test_masks(tmp_path):
    truth = make_truth(channels=3)
    write_nerfstudio(tmp_path, truth, "PINHOLE")
    meta = json.loads((tmp_path / "transforms.json").read_text())
    kept = np.random.default_rng(2).random((6, 8, 12)) > 0.2
    for frame in meta["frames"][1:]:  # the last view by name has none
        i = int(Path(frame["file_path"]).stem[-2:])
        frame["mask_path"] = f"masks/{i}.png"
        (tmp_path / "masks").mkdir(exist_ok=True)
        values = np.where(kept[i], 1 if i == 0 else 255, 0).astype(np.uint8)
        Image.fromarray(values).save(tmp_path / frame["mask_path"])
    kept[5] = True
    write_json(tmp_path / "transforms.json", meta)
    for i, (_, mask) in enumerate(every_view(load(tmp_path))[0].values()):
        np.testing.assert_array_equal(mask, kept[i])
    for i, (_, mask) in enumerate(every_view(load(tmp_path, size=6))[0].values()):
        np.testing.assert_array_equal(mask, kept[i].reshape(4, 2, 6, 2).all(axis=(1, 3)))
    share = 1 - np.mean([kept[[0]].mean(), kept[1:].mean()])  # by split: view 0 is held out
    assert f"masked   {share:.1%}" in describe(load(tmp_path))


def test_pixels_that_the_lens_cannot_reach_are_masked(tmp_path):
    truth = make_truth("opencv", keep=[0], width=12, height=8)
    k1 = -0.9  # r (1 - 0.9 r^2) turns back at r = 0.61, where it is 0.405
    distortion = np.where(truth.cameras.distortion != 0, k1, 0.0)
    truth = replace(truth, cameras=replace(truth.cameras, distortion=distortion))
    write_nerfstudio(tmp_path, truth, "SIMPLE_RADIAL")
    u, v = np.meshgrid(np.arange(12) + 0.5, np.arange(8) + 0.5)
    x = (np.stack([u, v], -1) - truth.cameras.centre[0]) / truth.cameras.focal[0]
    peak = 2 / 3 / math.sqrt(3 * -k1)
    radius = np.linalg.norm(x, axis=-1)
    clear = np.abs(radius - peak) > 2e-3
    _, mask = every_view(load(tmp_path))[0]["view_03"]
    assert not (radius < peak)[clear].all()
    np.testing.assert_array_equal(mask[clear], (radius < peak)[clear])
    # A mask of the file's own counts as well.
    own = np.random.default_rng(0).random((8, 12)) > 0.3
    Image.fromarray(own).save(tmp_path / "own.png")
    meta = json.loads((tmp_path / "transforms.json").read_text())
    for frame in meta["frames"]:
        frame["mask_path"] = "own.png"
    write_json(tmp_path / "transforms.json", meta)
    np.testing.assert_array_equal(every_view(load(tmp_path))[0]["view_03"][1], mask & own)
