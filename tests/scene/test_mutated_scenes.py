"""A thousand damaged scenes: each loads to a scene that keeps its promises, or is refused in one line."""

import json
import math
import resource
import struct
import time
from typing import Any

import numpy as np
import pytest
from loaded import edited, one_line
from PIL import Image
from writers import (
    make_truth,
    write_blender,
    write_colmap,
    write_instant_ngp,
    write_llff,
    write_nerfstudio,
    write_voxe,
)

from jaxedit.scene import load
from jaxedit.scene.load import SceneConfig, load_scene
from jaxedit.scene.scene import Scene
from jaxvid.core.errors import UserError

SMALL: dict[str, Any] = {"count": 4, "width": 8, "height": 8}

STRANGE = [
    math.nan, math.inf, -1, 0, 1e308, -1e-308, 10**30, 2**63, "x", "", "../../../x", "/etc/passwd", "\ud800", "a\nb",
    None, True, [], {}, [[[[[[1]]]]]], [0.5], {"a": {"a": {"a": 1}}}, 1e9, 1e-9, 3, "\0",
]  # fmt: skip


def mutated_json(rng, text):
    """One place of a JSON value replaced, scaled, removed or doubled."""
    root = json.loads(text)
    holder: Any = {"": root}
    key: Any = ""
    depth = rng.integers(1, 7)
    for _ in range(depth):
        value = holder[key]
        if not isinstance(value, dict | list) or not value:
            break
        holder = value
        key = list(value)[rng.integers(len(value))] if isinstance(value, dict) else int(rng.integers(len(value)))  # fmt: skip
    kind = rng.integers(4)
    if kind == 0 and isinstance(holder[key], int | float):
        holder[key] = holder[key] * float(rng.choice([-1, 1.1, 1e3, 1e30, 0.5]))
    elif kind == 1:
        del holder[key]
    elif kind == 2 and isinstance(holder, list):
        holder.append(holder[key])
    else:
        holder[key] = STRANGE[rng.integers(len(STRANGE))]
    return json.dumps(root).encode()


def mutated_bytes(rng, data):
    """Flipped bits, a cut, eight bytes that make a huge, negative or undefined number, or bytes put in."""
    data, kind = bytearray(data), rng.integers(5)
    if kind == 0:
        for at in rng.integers(0, len(data), rng.integers(1, 5)):
            data[at] ^= 1 << rng.integers(8)
    elif kind == 1:
        del data[rng.integers(len(data)) :]
    elif kind in (2, 3):
        number = [b"\xff" * 8, struct.pack("<Q", 1 << 40), struct.pack("<d", math.nan), struct.pack("<d", -1e300), b"\0" * 8]  # fmt: skip
        # Counts and values begin at multiples of 4 in most of these files.
        at = int(rng.integers(0, max(1, len(data) - 8))) // 4 * 4
        data[at : at + 8] = number[rng.integers(len(number))]
    else:
        at = int(rng.integers(len(data)))
        data[at:at] = bytes(rng.integers(0, 256, rng.integers(1, 9), dtype=np.uint8))
    return bytes(data)


def check_scene(scene):
    """What every scene promises, whatever its files said."""
    assert isinstance(scene, Scene)
    assert scene.views
    for views in scene.views.values():
        cameras, count = views.cameras, len(views)
        assert count == len(cameras) >= 1
        assert views.images.shape == (count, cameras.height, cameras.width, views.images.shape[-1])
        assert views.images.shape[-1] in (3, 4)
        if views.masks is not None:
            assert views.masks.shape == views.images.shape[:3]
        for leaf in (cameras.pose, cameras.focal, cameras.centre, cameras.distortion):
            assert leaf.dtype == np.float32
            assert len(leaf) == count
            assert np.isfinite(leaf).all()
        assert (cameras.focal > 0).all()
        rotation = cameras.pose[:, :, :3]
        product = np.swapaxes(rotation, -1, -2) @ rotation
        np.testing.assert_allclose(product, np.broadcast_to(np.eye(3), product.shape), atol=1e-5)
        assert (np.linalg.det(rotation) > 0).all()
    assert 0 < np.float32(scene.near) < np.float32(scene.far) < np.inf
    if scene.box is not None:
        assert np.isfinite(scene.box).all()
        assert (scene.box[0] < scene.box[1]).all()
    load.describe(scene)


@pytest.fixture(scope="module")
def all_layouts(tmp_path_factory):
    points = np.random.default_rng(0).normal(size=(20, 3))
    seen = [range(i, i + 5) for i in range(4)]
    square, bent = (
        make_truth(square=True, **SMALL),
        make_truth("opencv", keep=[0, 1, 4, 5], **SMALL),
    )
    fish = make_truth("fisheye", **SMALL)
    writers = {
        "blender": lambda root: write_blender(root, square, {"train": range(3), "test": range(3, 4)}),
        "nerfstudio": lambda root: write_nerfstudio(root, bent, "OPENCV", applied_scale=2.0),
        "frames": lambda root: write_nerfstudio(root, fish, "OPENCV_FISHEYE", per_frame=True),
        "ngp": lambda root: write_instant_ngp(root, bent, offset=[0.5, 0.5, 0.5], scale=0.33),
        "llff": lambda root: write_llff(root, square),
        "colmap": lambda root: write_colmap(root, bent, "OPENCV", points=points, seen=seen),
        "text": lambda root: write_colmap(root, bent, "OPENCV", "txt", points=points, seen=seen),
        "voxe": lambda root: write_voxe(root, square),
    }  # fmt: skip
    roots = []
    for name, write in writers.items():
        roots.append(tmp_path_factory.mktemp(name))
        write(roots[-1])
        if name == "nerfstudio":
            Image.new("L", (8, 8), 9).save(roots[-1] / "mask.png")
            edited(
                roots[-1] / "transforms.json",
                lambda meta: meta["frames"][0].update(mask_path="mask.png"),
            )
    return roots


def test_a_thousand_mutations(all_layouts):
    rng = np.random.default_rng(20)
    counts = {"loaded": 0, "refused": 0}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for i in range(1000):
        root = all_layouts[i % len(all_layouts)]
        files = sorted(path for path in root.rglob("*") if path.is_file())
        pictures = rng.random() < 0.15
        files = [path for path in files if (path.suffix == ".png") == pictures]
        path = files[rng.integers(len(files))]
        whole = path.read_bytes()
        as_json = path.suffix == ".json" and rng.random() < 0.75
        path.write_bytes((mutated_json if as_json else mutated_bytes)(rng, whole))
        begin = time.perf_counter()
        try:
            check_scene(load_scene(SceneConfig(path=str(root))))
            counts["loaded"] += 1
        except UserError as error:
            one_line(error)
            counts["refused"] += 1
        finally:
            path.write_bytes(whole)
        assert time.perf_counter() - begin < 10, (i, path)
    # Both happen often, else the mutations were too dull or too wild to prove anything.
    assert min(counts.values()) > 100, counts
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 200 << 10, f"{grown >> 10} MiB more"
    for root in all_layouts:
        check_scene(load_scene(SceneConfig(path=str(root))))
