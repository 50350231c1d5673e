"""Miniatures of the public data sets in their published layouts."""

import numpy as np
import pytest
from clips import moving, write
from PIL import Image

from jaxvid.core.errors import UserError
from jaxvid.data.layouts import BairData, Kinetics600Data, Ucf101Data
from jaxvid.data.pipeline import PipelineConfig, batches
from jaxvid.data.prepare import prepare
from jaxvid.data.source import DataConfig, Source
from jaxvid.data.tfds import TfdsData

CLASSES = ("ApplyEyeMakeup", "Archery", "YoYo")


@pytest.fixture
def ucf(tmp_path):
    lists = tmp_path / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_text(
        "".join(f"{i + 1} {name}\n" for i, name in enumerate(CLASSES))
    )
    train, test = [], []
    for i, name in enumerate(CLASSES):
        for group in (1, 8):
            path = f"{name}/v_{name}_g{group:02d}_c01.avi"
            write(tmp_path / "UCF-101" / path, moving(20, seed=i + group), fps=25)
            (test if group < 8 else train).append(f"{path} {i + 1}" if group == 8 else path)
    (lists / "trainlist01.txt").write_text("\n".join(train) + "\n")
    (lists / "testlist01.txt").write_text("\n".join(test) + "\n")
    return tmp_path


def test_ucf101_trains_on_all_videos_with_labels(ucf):
    data = Ucf101Data(path=str(ucf), height=24, width=32)
    assert (data.frames, data.stride, data.given) == (16, 1, 0)
    assert isinstance(data, DataConfig)
    source = data.source()
    assert isinstance(source, Source)
    assert (len(source), source.classes, source.class_names) == (6, 3, CLASSES)
    assert [source[i]["label"] for i in range(6)] == [0, 0, 1, 1, 2, 2]
    assert {source[i]["caption"] for i in range(6)} == {"apply eye makeup", "archery", "yo yo"}
    error = np.abs(source[0]["video"].astype(int) - moving(16, seed=1))
    assert error.mean() < 8
    (batch,) = [next(batches(source, None, PipelineConfig(batch=6, images=1, shuffle=False)))]
    assert batch["label"][:, 0].tolist() == [0, 0, 1, 1, 2, 2]
    assert batch["label"].shape == (6, 2)


def test_ucf101_splits_by_the_published_lists(ucf):
    data = Ucf101Data(path=str(ucf), official_split=1)
    train, test = data.source("train"), data.source("test")
    assert {file.path.split("_")[2] for file in train.files} == {"g08"}
    assert {file.path.split("_")[2] for file in test.files} == {"g01"}
    assert len(Ucf101Data(path=str(ucf)).source("test")) == 3
    with pytest.raises(UserError, match=r"trainlist02\.txt: no such file; unpack"):
        Ucf101Data(path=str(ucf), official_split=2).source()


def test_ucf101_elsewhere_is_refused(ucf):
    with pytest.raises(
        UserError, match="UCF-101: no such folder; it should hold the class folders"
    ):
        Ucf101Data(path=str(ucf / "ucfTrainTestlist")).source()
    write(ucf / "UCF-101/Zorbing/v_Zorbing_g01_c01.avi", moving(20))
    with pytest.raises(UserError, match=r"classInd\.txt: does not name the class folders Zorbing"):
        Ucf101Data(path=str(ucf)).source()


@pytest.fixture
def bair(tmp_path):
    for split, count in (("train", 3), ("test", 2)):
        for number in range(count):
            folder = (
                tmp_path / f"processed_data/{split}/traj_{number * 256}_to_{number * 256 + 255}/7"
            )
            folder.mkdir(parents=True)
            for i, frame in enumerate(moving(30, 64, 64, seed=number)):
                Image.fromarray(frame).save(folder / f"{i}.png")
    return tmp_path


@pytest.mark.parametrize("above", ["", "processed_data"])
def test_bair_predicts_15_frames_from_one_and_mirrors_in_training(bair, above):
    data = BairData(path=str(bair / above))
    assert (data.frames, data.height, data.width, data.given) == (16, 64, 64, 1)
    train, test = data.source("train"), data.source("test")
    assert (len(train), len(test), train.captioned, train.classes) == (3, 2, False, 0)
    video = moving(30, 64, 64, seed=1)
    np.testing.assert_array_equal(test[1]["video"], video[:16])
    windows = [video[k : k + 16] for k in range(15)]
    known = {w.tobytes() for w in windows}
    mirrored = {w[:, :, ::-1].tobytes() for w in windows}
    drawn = [train.read(1, np.random.default_rng(seed))["video"].tobytes() for seed in range(40)]
    assert set(drawn) <= known | mirrored
    assert 10 < sum(clip in mirrored for clip in drawn) < 30
    with pytest.raises(UserError, match="test: no such folder; it should hold trajectories"):
        BairData(path=str(bair / "processed_data/train")).source("test")


def test_bair_prepared_once_gives_the_same_clips(bair, tmp_path):
    folder = prepare(
        bair / "processed_data/test", tmp_path / "out", "bair_test", progress=False
    ).folder
    stored, images = (
        TfdsData(name=str(folder), flip=True).source(),
        BairData(path=str(bair)).source("test"),
    )
    assert len(stored) == len(images) == 2
    for i in range(2):
        np.testing.assert_array_equal(stored[i]["video"], images[i]["video"])
        np.testing.assert_array_equal(
            stored.read(i, np.random.default_rng(i))["video"],
            images.read(i, np.random.default_rng(i))["video"],
        )


def test_bair_records_are_refused(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train/traj_0_to_255.tfrecords").write_bytes(b"x")
    with pytest.raises(UserError, match="train: no clips; expected"):
        BairData(path=str(tmp_path)).source()


@pytest.fixture
def kinetics(tmp_path):
    rows = ["label,youtube_id,time_start,time_end,split"]
    for i, (name, identifier) in enumerate(
        (("playing yo-yo", "abc-_12"), ("archery", "x_y"), ("archery", "gone"))
    ):
        rows.append(f"{name},{identifier},{10 + i},{20 + i},train")
    (tmp_path / "train.csv").write_text("\n".join(rows) + "\n")
    write(tmp_path / "train/playing yo-yo/abc-_12_000010_000020.mp4", moving(30))
    write(
        tmp_path / "train/archery/x_y.mkv", moving(260, 24, 32), fps=10
    )  # not cut: 11 s to 21 s count
    write(tmp_path / "val/archery/q_000001_000011.mp4", moving(30))
    write(tmp_path / "test/playing yo-yo/r_000001_000011.mp4", moving(30, seed=5))
    return tmp_path


def test_kinetics_gives_random_windows_classes_and_the_seconds_that_count(kinetics, caplog):
    data = Kinetics600Data(path=str(kinetics), height=24, width=32)
    assert (data.frames, data.given) == (16, 5)
    source = data.source()
    assert (len(source), source.class_names) == (2, ("archery", "playing yo-yo"))
    assert [(source[i]["label"], source[i]["caption"]) for i in range(2)] == [
        (0, "archery"),
        (1, "playing yo-yo"),
    ]
    assert "1 of the 3 videos of this split are absent" in caplog.text
    video = moving(260, 24, 32)
    np.testing.assert_array_equal(source[0]["video"], video[110:126])
    windows = {video[k : k + 16].tobytes(): k for k in range(245)}
    starts = [
        windows[source.read(0, np.random.default_rng(s))["video"].tobytes()] for s in range(40)
    ]
    assert min(starts) >= 110
    assert max(starts) <= 210 - 16
    assert len(set(starts)) > 20


def test_kinetics_splits(kinetics):
    test = Kinetics600Data(path=str(kinetics), height=24, width=32).source("test")
    assert [file.path for file in test.files] == ["playing yo-yo/r_000001_000011.mp4"]
    assert test[0]["label"] == 1  # as in training, although the split lacks the other class
    val = Kinetics600Data(path=str(kinetics), test_folder="val").source("test")
    assert [file.path for file in val.files] == ["archery/q_000001_000011.mp4"]
    (kinetics / "train.csv").write_text("label,id\na,b\n")
    with pytest.raises(UserError, match="a row is not as published"):
        Kinetics600Data(path=str(kinetics)).source()
    with pytest.raises(UserError, match="train: no such folder; it should hold the class folders"):
        Kinetics600Data(path=str(kinetics / "val")).source()
