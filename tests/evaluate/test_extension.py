"""The measures of `experiments/extension.py` on clips whose seams are known."""

import numpy as np
import pytest
from experiment_files import load_experiment_file

from jaxvid.data.shapes import ShapesConfig
from jaxvid.data.shapes_source import ShapesData
from jaxvid.systems.vdm import VDM
from jaxvid.systems.vdm.sampling import windows


@pytest.fixture(scope="module")
def extension():
    return load_experiment_file("extension")


@pytest.fixture(scope="module")
def world():
    """A system whose test split has one object; its captions of endless motion, 64 frames of each."""
    system = VDM(data=ShapesData(world=ShapesConfig(two_objects=0.0)))
    return system, system.data.source("test")


@pytest.mark.parametrize(("frames", "window", "overlap"), [(64, 16, 8), (40, 16, 4), (24, 8, 0)])
def test_borders_are_where_blocks_begin(extension, frames, window, overlap):
    known, expected = window, []
    for start in windows(frames, window, overlap)[1:]:
        expected.append(known)
        known = start + window
    assert extension.borders(frames, window, overlap) == expected
    assert known == frames


def test_jump_is_the_ratio_of_changes(extension):
    rng = np.random.default_rng(0)
    window, edges = 4, [4, 6, 8, 10]
    video = rng.integers(0, 256, (12, 3, 3, 3)).astype(np.uint8)
    found = extension.jump(video, edges, window)
    expected = []
    for first in (4, 8):
        across, within = [], []
        for frame in range(first, first + window):
            total = 0.0
            for now, then in zip(video[frame].ravel(), video[frame - 1].ravel(), strict=True):
                total += abs(int(now) - int(then)) / 255 / 27
            (across if frame in edges else within).append(total)
        expected.append(np.mean(across) / np.mean(within))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    still = np.zeros_like(video)
    still[8:] = 255
    np.testing.assert_allclose(extension.jump(still, edges, window), [0, 0.5 * 255])


def test_real_clips_have_no_seams_and_are_right(extension, world):
    system, source = world
    captions, numbers = extension.endless(system, 6)
    assert not any(
        word in text for text in captions for word in ("grow", "shrink", "bigger", "smaller")
    )
    clips = np.stack([source.read(number, None, 64)["video"] for number in numbers])
    edges = extension.borders(64, 16, 8)
    found = extension.measure(clips[None], captions, edges, 16)
    assert found["accuracy"].shape == (6, 4)
    assert found["accuracy"].mean() > 0.95
    assert found["jump"].shape == (6, 3)
    np.testing.assert_allclose(found["jump"].mean(), 1, atol=0.15)
    # Every block from another scene: what replacement alone is said to do.
    mixed = clips.copy()
    for i, edge in enumerate(edges):
        mixed[:, edge:] = np.roll(clips, i + 1, axis=0)[:, edge:]
    seams = extension.measure(mixed[None], captions, edges, 16)
    assert (seams["jump"] > 1.5).all()
    assert seams["accuracy"][:, 0].mean() > 0.95
    assert seams["accuracy"][:, 1:].mean() < 0.2

    results = extension.compare({"reconstruction": found, "replacement": seams, "real": found})
    gaps = found["jump"].mean(axis=1) - seams["jump"].mean(axis=1)
    half = 2.5705818356363146 * gaps.std(ddof=1) / np.sqrt(6)  # Student's t, 5 degrees, 97.5%
    gap = results["jump"]["difference"]
    np.testing.assert_allclose(
        [gap["mean"], gap["low"], gap["high"]],
        [gaps.mean(), gaps.mean() - half, gaps.mean() + half],
    )
    assert results["outcome"] == "reproduces"
    other = extension.compare({"reconstruction": seams, "replacement": found})
    assert other["outcome"] == "contradicted"
    assert "verdict: reproduces" in extension.table(results)


def test_seeds_are_averaged_before_captions_are_paired(extension, world):
    system, source = world
    captions, numbers = extension.endless(system, 2)
    clips = np.stack([source.read(number, None, 32)["video"] for number in numbers])
    edges = extension.borders(32, 16, 8)
    both = extension.measure(np.stack([clips, clips[::-1]]), captions, edges, 16)
    each = [extension.measure(part[None], captions, edges, 16) for part in (clips, clips[::-1])]
    for name in both:
        np.testing.assert_allclose(both[name], (each[0][name] + each[1][name]) / 2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--frames", "40"], "--frames is 40; give a multiple of the model's 16"),
        (["--frames", "16"], "--frames is 16"),
        (["--overlap", "16"], "overlap is 16"),
        (["--captions", "1"], "--captions is 1"),
        (["--seeds", "0"], "--seeds is 0"),
    ],
)
def test_complaints(extension, world, monkeypatch, tmp_path, capsys, words, message):
    monkeypatch.setattr(extension.presets, "load", lambda source: (world[0], {}))
    out = tmp_path / "out"
    assert extension.main([*words, "--out", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_clips_are_kept_and_not_mixed(extension, world, monkeypatch, tmp_path, capsys):
    """The real clips stand for what a model would sample; a second start samples nothing."""
    system, source = world
    monkeypatch.setattr(extension.presets, "load", lambda name: (system, {}))
    asked = []

    def extend(options, system, params, captions, seed, start, method):
        asked.append((seed, start, method, len(captions)))
        _, numbers = extension.endless(system, 5)
        chosen = (numbers[start : start + 2] * 2)[:2]
        return np.stack([source.read(number, None, options.frames)["video"] for number in chosen])

    monkeypatch.setattr(extension, "extend", extend)
    command = [
        "--captions",
        "5",
        "--seeds",
        "2",
        "--batch",
        "2",
        "--frames",
        "32",
        "--out",
        str(tmp_path),
    ]
    assert extension.main(command) == 0
    assert asked == [(s, b, m, 2) for s in (0, 1) for b in (0, 2, 4) for m in extension.METHODS]
    assert "verdict: inconclusive" in capsys.readouterr().out  # both methods gave the same
    for name in ("results.json", "plot.png", "sheet.png"):
        assert (tmp_path / name).stat().st_size > 100
    asked.clear()
    assert extension.main(command) == 0
    assert asked == []
    assert extension.main([*command, "--weight", "9"]) == 2
    assert "holds other settings' clips" in capsys.readouterr().err
