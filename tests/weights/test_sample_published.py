"""`jaxvid sample FOLDER` on tiny published pipelines: files that hold what was asked, and options that do not fit."""

import json

import av
import numpy as np
import pytest
from fabricate import write_pipeline
from PIL import Image

from jaxvid import cli


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One of each kind that is needed, and a picture."""
    place = tmp_path_factory.mktemp("published")
    for short, name in [
        ("sd", "stable diffusion"),
        ("edit", "instruct pix2pix"),
        ("video", "modelscope"),
        ("svd", "stable video diffusion"),
        ("if", "deepfloyd 1"),
    ]:
        write_pipeline(place / short, name)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (19, 26, 3), np.uint8)).save(place / "a.png")
    Image.fromarray(rng.integers(0, 255, (24, 24, 3), np.uint8)).save(place / "b.png")
    (place / "other").mkdir()
    (place / "other" / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    return place


def run(folders, line):
    """The exit code of the command."""
    return cli.main(["sample", *(word.replace("@", str(folders)) for word in line.split())])


def test_an_image(folders, tmp_path, capsys):
    """Of the size asked for; the seed decides."""
    line = f"@/sd --prompt red --size 8x16 --steps 2 --out {tmp_path}"
    assert run(folders, f"{line}/one.png") == 0
    assert capsys.readouterr().out == f"{tmp_path}/one.png\n"
    one = np.asarray(Image.open(tmp_path / "one.png"))
    assert one.shape == (8, 16, 3)
    assert one.std() > 5
    assert run(folders, f"{line}/two.png --seed 1 --negative blue --guidance 2") == 0
    assert run(folders, f"{line}/again.png") == 0
    two, again = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("two", "again"))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one.astype(int) - two).max() > 5


def test_an_edit_keeps_the_pictures_size(folders, tmp_path):
    """But for multiples of 8; each picture with its prompt, and a sheet of both."""
    line = f"@/edit --image @/a.png --prompt winter --prompt night --steps 2 --out {tmp_path}/made"
    assert run(folders, line) == 0
    made = [np.asarray(Image.open(tmp_path / "made" / f"00{i}.png")) for i in (0, 1)]
    assert made[0].shape == made[1].shape == (16, 24, 3)
    assert np.abs(made[0].astype(int) - made[1]).max() > 5
    assert (tmp_path / "made" / "sheet.png").is_file()


@pytest.mark.parametrize(
    ("line", "size"),
    [
        ("@/video --prompt waves --size 16x16 --frames 3 --steps 2 --fps 5", (128, 128)),
        ("@/svd --image @/a.png --size 16x24 --frames 3 --steps 2 --fps 5", (128, 192)),
    ],
)
def test_a_clip(folders, tmp_path, line, size):
    assert run(folders, f"{line} --out {tmp_path}/clip.mp4") == 0
    with av.open(str(tmp_path / "clip.mp4")) as stored:
        frames = [frame.to_ndarray(format="rgb24") for frame in stored.decode(video=0)]
        assert stored.streams.video[0].average_rate == 5
    assert np.shape(frames) == (3, *size, 3)


BAD = {
    "@/other --prompt a --out x.png":
        "is a FluxPipeline, which cannot be sampled; StableDiffusionPipeline",
    "@/sd --out x.png":
        "a StableDiffusionPipeline needs text; give --prompt",
    "@/sd --prompt a --image @/a.png --out x.png":
        "takes no image; leave --image out",
    "@/sd --prompt a --frames 3 --out x.png":
        "give --motion too",
    "@/sd --prompt a --extend @/a.png --out x.png":
        "--extend is not for a StableDiffusionPipeline; leave it out",
    "@/sd --prompt a --image-guidance 2 --out x.png":
        "--image-guidance is not for a StableDiffusionPipeline",
    "@/sd --prompt a --size 8 --out x.png":
        "'8' is no size; write HEIGHTxWIDTH",
    "@/sd --prompt a --size 7x8 --out x.png":
        "height x width is 7 x 8; both must be multiples of 2",
    "@/sd --prompt a --steps 0 --out x.png":
        "--steps is 0; it must be 1 or more",
    "@/sd --prompt a --steps 2000 --out x.png":
        "sampling steps 2000: give between 1 and 1000",
    "@/sd --prompt a --variant fp16 --out x.png":
        "has no files of variant fp16",
    "@/sd --prompt a --motion @/none --out x.mp4":
        "does not exist; give a folder in the diffusers layout",
    "@/sd --prompt a --fps 0 --out x.png":
        "--fps is 0; choose between 0 and 1000",
    "@/video --prompt a --out x.png":
        "holds one frame, not 16",
    "@/video --prompt a --frames 0 --out x.mp4":
        "--frames is 0; it must be 1 or more",
    "@/edit --prompt a --out x.png":
        "needs an image; give --image",
    "@/edit --prompt a --image @/none.png --out x.png":
        "none.png does not exist",
    "@/edit --prompt a --image @/sd/model_index.json --out x.png":
        "model_index.json is not a picture that can be read; give a PNG or JPEG",
    "@/edit --prompt a --prompt b --prompt c --image @/b.png --image @/b.png --out x":
        "2 images and 3 prompts",
    "@/edit --prompt a --image @/a.png --image @/b.png --out x":
        "the images differ in size; give --size",
    "@/svd --image @/a.png --prompt a --out x.mp4":
        "takes no text; leave --prompt out",
    "@/if --prompt a --size 8x8 --out x.png":
        "--size is not for a IFPipeline",
}  # fmt: skip


@pytest.mark.parametrize("line", BAD)
def test_what_does_not_fit_is_one_line(folders, line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(folders, line) == 2
    out, err = capsys.readouterr()
    last = err.strip().splitlines()[-1]
    assert last.startswith("jaxvid: error: ")
    assert BAD[line] in last
    assert not out
    assert not list(tmp_path.iterdir())
