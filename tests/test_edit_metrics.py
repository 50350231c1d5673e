"""Scores of edits against closed forms and naive loops."""

import itertools

import numpy as np
import pytest

from jaxedit.edit_metrics import (
    bicubic_weights,
    clip_scores,
    nearest_pairs,
    reprojection_error,
    resized_bicubic,
    truth_score,
)
from jaxedit.scene.toy import orbit_cameras, take, toy_scene


def angle(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_clip_scores_are_their_formulae():
    rng = np.random.default_rng(0)
    o, e = rng.normal(size=(2, 5, 7))
    a, b = rng.normal(size=(2, 7))
    found = clip_scores(o, e, a, b)
    unit = lambda x: x / np.linalg.norm(x)  # noqa: E731
    change = [unit(y) - unit(x) for x, y in zip(o, e, strict=True)]
    expected = np.mean([angle(c, unit(b) - unit(a)) for c in change])
    assert found.direction_similarity == pytest.approx(expected)
    steady = np.mean([angle(x, y) for x, y in itertools.pairwise(change)])
    assert found.direction_consistency == pytest.approx(steady)
    steps = [
        angle(unit(o[i + 1]) - unit(o[i]), unit(e[i + 1]) - unit(e[i])) for i in range(len(o) - 1)
    ]
    assert found.step_consistency == pytest.approx(np.mean(steps))


def test_an_edit_along_the_texts_scores_one_and_against_them_minus_one():
    o, text = np.eye(4)[:1], np.eye(4)
    assert clip_scores(o, np.eye(4)[1:2], text[0], text[1]).direction_similarity == pytest.approx(1)
    assert clip_scores(o, np.eye(4)[1:2], text[1], text[0]).direction_similarity == pytest.approx(
        -1
    )
    assert np.isnan(clip_scores(o, o, text[0], text[1]).direction_consistency)
    assert clip_scores(o, o, text[0], text[1]).direction_similarity == 0


def test_bicubic_weights():
    for size, out in ((5, 5), (7, 13), (13, 7), (32, 224)):
        weights = bicubic_weights(size, out)
        np.testing.assert_allclose(weights.sum(axis=1), 1.0)
    np.testing.assert_allclose(bicubic_weights(5, 5), np.eye(5), atol=1e-12)
    # Half way between pixels, PyTorch's kernel is (-0.09375, 0.59375, 0.59375, -0.09375).
    np.testing.assert_allclose(
        bicubic_weights(8, 4)[1, 1:5], [-0.09375, 0.59375, 0.59375, -0.09375]
    )
    flat = resized_bicubic(np.full((2, 6, 9, 3), 0.3, np.float32), 8)
    np.testing.assert_allclose(flat, 0.3, atol=1e-6)


def test_truth_scores():
    truth = np.zeros((4, 4, 3), np.float32)
    changed = np.zeros((4, 4), bool)
    changed[:2] = True
    before, after = truth.copy(), truth.copy()
    before[:2], after[:2], after[2:] = 0.4, 0.2, 0.1
    score = truth_score(before, after, truth, changed)
    assert score.gain == pytest.approx(20 * np.log10(2), abs=1e-5)
    assert score.kept == pytest.approx(20, abs=1e-5)
    assert score.colour_error == pytest.approx(0.2)
    assert score.changed == 0.5


@pytest.fixture(scope="module")
def solid():
    """Views of a solid scene with their true depths; its light does not depend on where one looks from."""
    cameras = orbit_cameras(24, 32)
    stage = toy_scene(0, 3).stage()
    pictures = [take(stage, cameras, i, supersample=3) for i in range(24)]
    images = [np.asarray(picture.over(np.ones(3))) for picture in pictures]
    depths = [np.nan_to_num(np.asarray(picture.depth), posinf=0.0) for picture in pictures]
    opacities = [np.asarray(picture.alpha) for picture in pictures]
    return cameras, images, depths, opacities


def test_views_of_one_scene_agree_and_views_of_two_do_not(solid):
    cameras, images, depths, opacities = solid
    pairs = nearest_pairs(cameras)
    error, count = reprojection_error(images, depths, opacities, cameras, pairs)
    assert count > 500
    assert error < 0.07
    changed = [np.where(i % 2, image, image[..., [2, 0, 1]]) for i, image in enumerate(images)]
    worse, same = reprojection_error(changed, depths, opacities, cameras, pairs)
    assert same == count
    assert worse > 2 * error


def test_the_same_view_agrees_with_itself(solid):
    cameras, images, depths, opacities = solid
    error, _ = reprojection_error(images, depths, opacities, cameras, [(3, 3)])
    assert error < 1e-4


def test_nothing_seen_by_both_is_nan(solid):
    cameras, images, depths, opacities = solid
    error, count = reprojection_error(images, depths, [0 * x for x in opacities], cameras, [(0, 1)])
    assert np.isnan(error)
    assert count == 0
