"""A folder of videos through `prepare` and back, and data sets that cannot be read."""

import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from clips import encode, moving, write
from PIL import Image

from jaxvid.core.errors import UserError
from jaxvid.data.pipeline import PipelineConfig, batches
from jaxvid.data.prepare import prepare
from jaxvid.data.tfds import TfdsData
from jaxvid.data.tokens import HashTokenizer

VIEW = {"frames": 5, "height": 24, "width": 32}


@pytest.fixture
def clips(tmp_path):
    root = tmp_path / "clips"
    write(root / "a.mp4", moving(9, seed=1))
    write(root / "b.mkv", moving(8, seed=2))
    write(root / "more/c.webm", moving(7, seed=3))
    (root / "d").mkdir()
    for i, frame in enumerate(moving(6, seed=4)):
        Image.fromarray(frame).save(root / f"d/{i}.png")
    (root / "cut.mp4").write_bytes(encode(moving(9), "mp4")[:-900])
    (root / "text.mp4").write_text("no video")
    names = {"a": "one", "b": ["two", "zwei"], "c": "three", "d": "four", "cut": "x", "text": "y"}
    (root / "captions.json").write_text(json.dumps(names))
    return root


@pytest.fixture
def prepared(clips, tmp_path):
    return prepare(clips, tmp_path / "out", "my_clips", held_out=1, progress=False)


def test_every_whole_clip_comes_back_byte_for_byte(clips, prepared, tmp_path):
    assert sum(prepared.clips.values()) == 4
    assert prepared.clips["test"] == 1
    assert len(prepared.skipped) == 2
    assert all(
        f"{name}.mp4: " in line
        for name, line in zip(("cut", "text"), prepared.skipped, strict=True)
    )
    assert os.listdir(tmp_path / "out") == ["my_clips"]
    read = {}
    for split in ("train", "test"):
        # The public way in, without a word of this package.
        source = tfds.data_source("my_clips", split=split, data_dir=tmp_path / "out")
        assert len(source) == prepared.clips[split]
        read |= {record["name"].decode(): record for record in source}
    for name in ("a.mp4", "b.mkv", "more/c.webm"):
        assert read[name]["video"] == (clips / name).read_bytes()
    assert [text.decode() for text in read["b.mkv"]["caption"]] == ["two", "zwei"]
    fields = {key: read["a.mp4"][key] for key in ("frames", "fps", "width", "height")}
    assert fields == {"frames": 9, "fps": 10.0, "width": 32, "height": 24}
    assert set(read) == {"a.mp4", "b.mkv", "more/c.webm", "d"}


def test_prepared_clips_are_the_frames_that_went_in(prepared, tmp_path):
    video = {"two": moving(8, seed=2), "four": moving(6, seed=4)}  # the lossless ones
    for name in (str(prepared.folder), str(prepared.folder.parent)):
        for split in ("train", "test"):
            source = TfdsData(name=name, **VIEW).source(split)
            for i in range(len(source)):
                example = source[i]
                assert example["caption"] in ("one", "two", "three", "four")
                if example["caption"] in video:
                    np.testing.assert_array_equal(example["video"], video[example["caption"]][:5])
                    video_here = video[example["caption"]]
                    drawn = source.read(i, np.random.default_rng(0))["video"]
                    starts = range(len(video_here) - 4)
                    assert any((drawn == video_here[k : k + 5]).all() for k in starts)
    named = TfdsData(name="my_clips", data_dir=str(tmp_path / "out"), **VIEW).source()
    assert repr(named) == repr(TfdsData(name=str(prepared.folder), **VIEW).source())
    assert repr(named) != repr(TfdsData(name=str(prepared.folder), stride=2, **VIEW).source())
    again = pickle.loads(pickle.dumps(named))
    np.testing.assert_array_equal(again[0]["video"], named[0]["video"])


def test_batches_of_a_prepared_set(prepared):
    source = TfdsData(name=str(prepared.folder), train="train+test", cache_mb=1, **VIEW).source()
    with batches(source, HashTokenizer(length=3), PipelineConfig(batch=4, images=1)) as iterator:
        batch = next(iterator)
    assert batch["video"].shape == (4, 6, 24, 32, 3)
    assert (batch["tokens"][:, :, 0] > 0).all()


def test_prepare_writes_nothing_when_it_cannot_succeed(clips, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UserError, match="lower-case letters"):
        prepare(clips, out, "My Clips")
    with pytest.raises(UserError, match="no such folder"):
        prepare(tmp_path / "absent", out)
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "text.mp4").write_text("no video")
    with pytest.raises(UserError, match="none of 1 clips is whole"):
        prepare(bad, out)
    assert not out.exists()
    prepare(clips, out, progress=False)
    with pytest.raises(UserError, match="exists already"):
        prepare(clips, out)


def test_an_interrupted_prepare_leaves_nothing(clips, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxvid.data.prepare._stored", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare(clips, tmp_path / "out", progress=False)
    assert os.listdir(tmp_path / "out") == []


def _dataset(folder, features, example, name="made", **info):
    class Made(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.2.0")
        code_path = None

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(3):
                yield i, example(i)

    Made.name = name
    Made(data_dir=str(folder), file_format="array_record").download_and_prepare()
    return folder / name


def test_tensor_videos_with_classes(tmp_path):
    features = {
        "clip": tfds.features.Tensor(shape=(None, 24, 32, 3), dtype=np.uint8),
        "text": tfds.features.Text(),
        "label": tfds.features.ClassLabel(names=["x", "y", "z"]),
    }
    folder = _dataset(
        tmp_path, features, lambda i: {"clip": moving(6 + i), "text": f"{i}", "label": (i + 1) % 3}
    )
    source = TfdsData(name=str(folder), video="clip", caption="text", **VIEW).source()
    assert (source.classes, source.class_names, source.captioned) == (3, ("x", "y", "z"), True)
    for i in range(3):
        example = source[i]
        np.testing.assert_array_equal(example["video"], moving(5))
        assert example["label"] == (int(example["caption"]) + 1) % 3
    with pytest.raises(UserError, match=r"no feature 'video', only clip, label, text; set video"):
        TfdsData(name=str(folder), **VIEW).source()
    with pytest.raises(UserError, match=r"no split 'test', only train; set test"):
        TfdsData(name=str(folder), video="clip", **VIEW).source("test")
    with pytest.raises(UserError, match="feature 'label' is ClassLabel; encoded bytes or a uint8"):
        TfdsData(name=str(folder), video="label", **VIEW).source()


def test_what_needs_tensorflow_is_refused_with_a_command(tmp_path):
    folder = _dataset(tmp_path, {"video": tfds.features.Text()}, lambda i: {"video": b"x"})
    info = folder / "1.2.0/dataset_info.json"
    content = json.loads(info.read_text())
    info.write_text(json.dumps({**content, "fileFormat": "tfrecord"}))
    with pytest.raises(
        UserError, match=r"needs TensorFlow; .*`tfds convert_format --dataset_version_dir=\S+"
    ):
        TfdsData(name=str(folder), **VIEW).source()
    with pytest.raises(UserError, match="needs TensorFlow"):
        TfdsData(name="bair_robot_pushing_small", data_dir=str(tmp_path), **VIEW).source()


def test_absent_data_sets_are_refused_in_one_line(tmp_path):
    for fields in ({"name": str(tmp_path)}, {"name": "no_such_set", "data_dir": str(tmp_path)}):
        with pytest.raises(UserError, match=r"give (the|its) folder") as error:
            TfdsData(**fields, **VIEW).source()
        assert "\n" not in str(error.value)


def test_reading_never_imports_tensorflow(prepared):
    code = f"""
import sys
from jaxvid.data.tfds import TfdsData
shape = TfdsData(name={str(prepared.folder)!r}, frames=5, height=24, width=32).source()[0]["video"].shape
print(shape, "tensorflow" in sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.stdout.strip() == "(5, 24, 32, 3) False", run.stderr[-2000:]
