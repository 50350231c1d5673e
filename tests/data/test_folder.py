"""Folders of videos: windows, crops and captions against the frames that were written (losslessly)."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from clips import moving, write
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxvid.core.errors import UserError
from jaxvid.data import media
from jaxvid.data.folder import FolderData
from jaxvid.data.media import MediaError
from jaxvid.data.pipeline import PipelineConfig, batches
from jaxvid.data.source import ClipView
from jaxvid.data.tokens import HashTokenizer

REAL = Path(os.environ.get("JAXVID_DATA", Path(__file__).parents[2] / "../shared/data"))


@pytest.fixture
def folder(tmp_path):
    for i in range(4):
        write(tmp_path / f"sub{i % 2}/clip{i}.mkv", moving(12 + i, seed=i))
    return tmp_path


def generator(seed=0):
    return np.random.default_rng(seed)


def data(folder, **fields):
    return FolderData(**{"path": str(folder), "frames": 5, "height": 24, "width": 32, **fields})


def test_fixed_view_is_the_first_window(folder):
    source = data(folder).source()
    assert [Path(source.name(i)).name for i in range(4)] == [
        "clip0.mkv",
        "clip2.mkv",
        "clip1.mkv",
        "clip3.mkv",
    ]
    assert (len(source), source.frames, source.captioned, source.classes) == (4, 5, False, 0)
    example = source[1]
    np.testing.assert_array_equal(example["video"], moving(14, seed=2)[:5])
    assert example["caption"] is example["label"] is None


@pytest.mark.parametrize("cache_mb", [0, 64])
def test_random_windows_are_windows_and_every_start_occurs(folder, cache_mb):
    source, video = data(folder, stride=2, cache_mb=cache_mb).source(), moving(14, seed=2)
    windows = {video[start : start + 9 : 2].tobytes(): start for start in range(6)}
    starts = {windows[source.read(1, generator(seed))["video"].tobytes()] for seed in range(60)}
    assert starts == set(range(6))


def test_kept_clips_equal_decoded_ones_and_memory_is_bounded(folder):
    plain = data(folder, height=10, width=12, crop="random", flip=True, cache_mb=0).source()
    kept = data(folder, height=10, width=12, crop="random", flip=True, cache_mb=1).source()
    tight = data(folder, height=10, width=12, crop="random", flip=True, cache_mb=1).source()
    one_clip = 15 * 10 * 13 * 3
    tight.cache_bytes = 2 * one_clip
    for index, seed in [(i, s) for i in range(4) for s in range(4)]:
        expected = plain.read(index, generator(seed))["video"]
        for source in (kept, tight):
            np.testing.assert_array_equal(source.read(index, generator(seed))["video"], expected)
    assert len(kept._cache) == 4
    assert 1 <= len(tight._cache) <= 2
    assert tight._cached == sum(clip.nbytes for clip in tight._cache.values()) <= tight.cache_bytes
    assert not plain._cache


def test_one_frame_is_a_random_frame(folder):
    source, video = data(folder).source(), moving(12)
    drawn = {source.read(0, generator(seed), 1)["video"].tobytes() for seed in range(150)}
    assert drawn == {frame[None].tobytes() for frame in video}


@settings(max_examples=100, deadline=None)
@given(
    total=st.integers(1, 80), frames=st.integers(1, 20), rate=st.floats(1, 60), wanted=st.floats(1, 60),
    seed=st.integers(0, 9),
)  # fmt: skip
def test_windows_by_frame_rate(total, frames, rate, wanted, seed):
    view = ClipView(frames=frames, fps=wanted)
    offsets = [round(k * rate / wanted) for k in range(frames)]
    fits = frames == 1 or (rate >= wanted and offsets[-1] < total)
    if not fits:
        with pytest.raises(MediaError, match="a: "):
            view.positions("a", 0, total, rate, frames, generator(seed))
        return
    positions = view.positions("a", 0, total, rate, frames, generator(seed))
    start = positions[0]
    assert positions == [start + offset for offset in offsets]
    assert 0 <= start <= positions[-1] < total
    assert view.positions("a", 0, total, rate, frames, None)[0] == 0


@pytest.mark.parametrize(("stop", "fits"), [(3, [0]), (4, [0]), (12, [0]), (13, [0, 1])])
def test_a_clip_takes_a_skip_for_which_its_video_is_long_enough(stop, fits):
    """Four frames at skip 4 need 13; a video too short for every skip is refused at the first."""
    assert ClipView(frames=4, skips=(1, 4)).fitting("clip", 0, stop, 25.0, 4) == fits


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(3, 60), st.integers(3, 60)),
    target=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    seed=st.integers(0, 99),
)
def test_covering_size_covers_tightly_and_crops_lie_inside(size, target, seed):
    view = ClipView(height=target[0], width=target[1], crop="random")
    height, width = view.cover(*size)
    assert height >= target[0]
    assert width >= target[1]
    assert height == target[0] or width == target[1]
    assert abs(height / size[0] - width / size[1]) <= 0.5 / min(size) + 1e-9
    frame = (
        np.arange(height * width * 3, dtype=np.uint32).reshape(1, height, width, 3).astype(np.uint8)
    )
    cut = view.cut(frame, generator(seed))
    assert cut.shape == (1, *target, 3)
    central = view.cut(frame, None)
    top, left = (height - target[0]) // 2, (width - target[1]) // 2
    np.testing.assert_array_equal(central, frame[:, top : top + target[0], left : left + target[1]])


def test_shrinking_is_an_area_average():
    frame = moving(1, 24, 32)[0]
    small = ClipView(height=6, width=8).resize(frame)
    blocks = frame.reshape(6, 4, 8, 4, 3).mean((1, 3))
    assert np.abs(small - blocks).max() <= 1.0  # two passes, each rounded
    assert ClipView(height=48, width=64).resize(frame).shape == (48, 64, 3)


def test_half_of_the_clips_are_mirrored(folder):
    source, video = data(folder, frames=12, flip=True).source(), moving(12)
    drawn = [source.read(0, generator(seed))["video"] for seed in range(60)]
    mirrored = [bool((clip == video[:, :, ::-1]).all()) for clip in drawn]
    assert all(flag or (clip == video).all() for flag, clip in zip(mirrored, drawn, strict=True))
    assert 18 <= sum(mirrored) <= 42
    np.testing.assert_array_equal(source[0]["video"], video)


def test_captions_by_stem_name_or_path_with_alternatives(folder):
    entries = {
        "clip0": "zero",
        "clip1.mkv": ["one", "uno"],
        "sub0/clip2": "two",
        "sub1/clip3.mkv": " three ",
    }
    (folder / "captions.json").write_text(json.dumps(entries))
    source = data(folder).source()
    assert source.captioned
    assert [source[i]["caption"] for i in range(4)] == ["zero", "two", "one", "three"]
    assert {source.read(2, generator(s))["caption"] for s in range(30)} == {"one", "uno"}


def test_captions_in_text_files(folder):
    for i in range(4):
        (folder / f"sub{i % 2}/clip{i}.txt").write_text(f"number {i}\n\n also {i} \n", "utf-8")
    source = data(folder).source()
    assert source[0]["caption"] == "number 0"
    assert {source.read(0, generator(s))["caption"] for s in range(30)} == {"number 0", "also 0"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"clip0": "a", "clip1": "a", "clip2": "a"}, r"1 of 4 clips have no caption \(sub1/clip3.mkv\)"),
        ({f"clip{i}": "a" for i in range(9)}, r"5 of 9 captions match no clip \(clip4, clip5, clip6, \.\.\.\)"),
        ({**{f"clip{i}": "a" for i in range(3)}, "clip3": []}, "'clip3' must have a caption or a list"),
        ({**{f"clip{i}": "a" for i in range(3)}, "clip3": ["a", 3]}, "'clip3' must have a caption or a list"),
        ({**{f"clip{i}": "a" for i in range(3)}, "clip3": " "}, "'clip3' must have a caption or a list"),
        (["a"], "must be an object"),
        ({}, "must be an object"),
        ("{", "not valid JSON"),
    ],
)  # fmt: skip
def test_captions_that_do_not_fit_are_refused(folder, content, message):
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "captions.json").write_text(text)
    with pytest.raises(UserError, match=message) as error:
        data(folder).source()
    assert "\n" not in str(error.value)


def test_a_stem_that_names_two_clips_is_refused(folder):
    write(folder / "sub1/clip0.mkv", moving(12))
    (folder / "captions.json").write_text(json.dumps({"clip0": "a"}))
    with pytest.raises(
        UserError,
        match=r"'clip0' names 2 clips \(sub0/clip0.mkv, sub1/clip0.mkv\); use their paths",
    ):
        data(folder).source()


def test_missing_and_empty_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        data(tmp_path / "absent").source()
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"no clips; expected files ending in \.mp4"):
        data(tmp_path).source()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"frames": 0}, "frames is 0"),
        ({"stride": 0}, "stride is 0"),
        ({"fps": 0}, "fps is 0"),
        ({"fps": 8, "stride": 2}, "choose one"),
        ({"held_out": -1}, "held_out is -1"),
        ({"held_out": 1.5}, "held_out is 1.5"),
    ],
)
def test_bad_settings_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        data("x", **fields)


def test_held_out_clips_depend_on_names_alone(tmp_path):
    for i in range(30):
        (tmp_path / f"clip{i}.mp4").write_bytes(b"x")

    def names(split, amount):
        return {file.path for file in data(tmp_path, held_out=amount).source(split).files}

    test = names("test", 0.3)
    assert names("train", 0.3) | test == {f"clip{i}.mp4" for i in range(30)}
    assert 2 < len(test) < 18
    assert len(names("test", 4)) == 4
    for i in range(30, 60):
        (tmp_path / f"clip{i}.mp4").write_bytes(b"x")
    assert test <= names("test", 0.3)
    assert not test & names("train", 0.3)
    with pytest.raises(UserError, match="set held_out"):
        names("test", 0)
    with pytest.raises(UserError, match="lower held_out"):
        names("train", 60)


def test_short_and_damaged_clips_are_passed_over_and_named(folder, caplog):
    write(folder / "short.mkv", moving(3))
    (folder / "broken.mkv").write_bytes((folder / "sub0/clip0.mkv").read_bytes()[:3000])
    source = data(folder).source()
    config = PipelineConfig(batch=6, images=1, damaged_share=0.9)
    with batches(source, None, config) as iterator:
        for _ in range(4):
            assert next(iterator)["video"].shape == (6, 6, 24, 32, 3)
        assert iterator.counts.skipped > 0
    text = "\n".join(caplog.messages)
    assert (
        "short.mkv: 3 frames, a clip of 5 at step 1 needs 5; ask for fewer frames or take it out"
        in text
    )
    assert "broken.mkv: " in text
    with pytest.raises(
        UserError,
        match=r"none of 6 examples could be read; the first: .*\.mkv: ",
    ):
        next(batches(data(folder, frames=99).source(), None, PipelineConfig(batch=2)))


def test_folders_of_images_are_clips_and_images_are_clips_of_one_frame(tmp_path):
    video = moving(12)
    (tmp_path / "run").mkdir()
    for i, frame in enumerate(video):
        Image.fromarray(frame).save(tmp_path / f"run/{i}.png")
    (tmp_path / "run.txt").write_text("a wave")
    clip = data(tmp_path).source()[0]
    np.testing.assert_array_equal(clip["video"], video[:5])
    assert clip["caption"] == "a wave"
    (tmp_path / "run.txt").unlink()
    images = data(tmp_path, frames=1).source()
    assert len(images) == 12
    np.testing.assert_array_equal(images[10]["video"], video[10:11])


def test_representation_tells_content_and_view_but_not_place(folder, tmp_path_factory):
    one = repr(data(folder).source())
    moved = tmp_path_factory.mktemp("moved") / "x"
    os.rename(folder, moved)
    assert repr(data(moved).source()) == one
    assert repr(data(moved, stride=2).source()) != one
    write(moved / "sub0/clip0.mkv", moving(20))
    assert repr(data(moved).source()) != one


def test_sources_cross_processes_without_their_memory(folder):
    source = data(folder).source()
    before = source[0]["video"]
    again = pickle.loads(pickle.dumps(source))
    assert not again._cache
    np.testing.assert_array_equal(again[0]["video"], before)
    assert repr(again) == repr(source)


@pytest.mark.skipif(
    not (REAL / "clips_tuneavideo").is_dir(), reason="real clips are absent; set JAXVID_DATA"
)
class TestRealClips:
    """Windows against an independent decode and resize of the same clips.

    Tolerance: resizers differ in their filters and roundings; the mean error is below 1.3 of 255 levels and no pixel is
    off by more than 16, while neighbouring frames differ by 2 to 13 levels on average.
    """

    def test_windows_equal_the_stored_frames(self):
        stored = np.load(REAL / "clips_tuneavideo/frames_64.npz")
        source = FolderData(
            path=str(REAL / "clips_tuneavideo"), frames=8, stride=3, cache_mb=0
        ).source()
        assert {Path(source.name(i)).stem for i in range(len(source))} == set(stored)
        for index in range(len(source)):
            frames = stored[Path(source.name(index)).stem]
            example = source.read(index, generator(index))
            start = int(generator(index).integers(len(frames) - 21))
            expected = frames[start : start + 22 : 3]
            error = np.abs(example["video"].astype(int) - expected)
            assert error.mean() < 1.3
            assert error.max() <= 16
            other = np.abs(example["video"].astype(int) - frames[start + 1 : start + 23 : 3])
            assert other.mean() > 1.5 * error.mean()

    def test_captions_and_batches(self):
        captions = json.loads((REAL / "clips_tuneavideo/captions.json").read_text())
        tokenizer = HashTokenizer(length=8)
        source = FolderData(
            path=str(REAL / "clips_tuneavideo"), frames=4, fps=10, cache_mb=0
        ).source()
        (batch,) = [next(batches(source, tokenizer, PipelineConfig(batch=4, images=1, epochs=1)))]
        assert batch["video"].shape == (4, 5, 64, 64, 3)
        known = {tuple(tokenizer.encode(text)) for text in captions.values()}
        assert {tuple(row) for row in batch["tokens"].reshape(-1, 8)} == known
        assert media.probe(source.name(0)).fps == pytest.approx(10)
