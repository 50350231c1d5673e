"""LPIPS among the scores of held-out views: its mean, its masks, and `jaxedit fit --lpips`."""

import json
from dataclasses import replace
from functools import lru_cache

import jax.numpy as jnp
import lpips_truth
import naive
import numpy as np
import pytest
from safetensors.numpy import save_file
from small_fits import system, toy

from jaxedit import cli
from jaxedit.evaluate import lpips
from jaxedit.scene.toy import capture, toy_scene
from jaxedit.systems.reconstruct import Fit, Reconstruct
from jaxedit.systems.reconstruct import system as systems
from jaxedit.systems.reconstruct.report import Scores, score, truth_of
from jaxvid.core.errors import UserError
from jaxvid.weights.lpips import load_lpips


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alex")
    backbone, heads = lpips_truth.tensors("alex")
    save_file(backbone | heads, folder / "alex.safetensors")
    return folder


@lru_cache
def scene():
    """Of images that AlexNet can see, unlike `toy`."""
    return capture(toy_scene(seed=0, index=3), views=3, size=40, test_views=2)


def test_the_score_is_the_mean_over_views(weights):
    network, views = load_lpips(weights), scene().views["test"]
    noise = np.random.default_rng(0).uniform(size=(2, 40, 40, 3)).astype(np.float32)

    def render(views, index):
        return 0.5 * truth_of(views, index, "white") + 0.5 * noise[index]

    truths = np.stack([truth_of(views, index, "white") for index in range(2)], dtype=np.float32)
    images = np.stack([render(views, index) for index in range(2)], dtype=np.float32)
    each = naive.call(network, 2 * images - 1, 2 * truths - 1)
    scores = score(render, views, "white", range(2), network=network)
    np.testing.assert_allclose(scores.lpips, np.mean(each), rtol=1e-5)
    assert each[0] != each[1]
    without = score(render, views, "white", range(2))
    assert np.isnan(without.lpips)
    assert (without.psnr, without.ssim) == (scores.psnr, scores.ssim)


def test_pixels_that_do_not_count_differ_in_nothing(weights):
    network = load_lpips(weights)
    truth, image = np.random.default_rng(0).uniform(size=(2, 40, 40, 3)).astype(np.float32)
    mask = np.zeros((40, 40), bool)
    mask[:, :20] = True
    half = np.where(mask[..., None], image, truth)
    found = lpips(network, jnp.asarray(image), jnp.asarray(truth), jnp.asarray(mask))
    expected = lpips(network, jnp.asarray(half), jnp.asarray(truth))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    same = lpips(network, jnp.asarray(half), jnp.asarray(truth), jnp.asarray(~mask))
    assert same < 1e-9 < 1e-3 < expected


def test_scores_name_it_only_where_it_is_known():
    nan = float("nan")
    known, unknown = Scores(20.0, nan, 0.5, 0.25, 3), Scores(20.0, nan, 0.5, nan, 3)
    assert str(known) == "PSNR 20.00 dB, SSIM 0.5000, LPIPS 0.2500, 3 views"
    assert str(unknown) == "PSNR 20.00 dB, SSIM 0.5000, 3 views"


def small(**changes):
    fits = (Fit(steps=3, rays=64),)
    return system(fits=fits, field=replace(system().field, resolution=(8, 8, 8)), **changes)


def test_fit_logs_and_prints_it_and_reads_its_weights_once(weights, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli, "cache_compilations", lambda: None)
    monkeypatch.setattr(Reconstruct, "scene", lambda self: scene())
    read = []
    monkeypatch.setattr(
        systems, "_read_lpips", lru_cache(lambda path: read.append(path) or load_lpips(path))
    )
    monkeypatch.setattr("jaxvid.core.config.load_config", lambda name: small())
    call = ["fit", "toy", "--run", str(tmp_path / "run"), "--loop.sample-every", "1"]
    assert cli.main([*call, "--lpips", str(weights)]) == 0
    assert read == [str(weights)]
    printed = capsys.readouterr().out
    assert "LPIPS" in printed
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines if "test/psnr" in line]
    assert [line["step"] for line in found] == [0, 1, 2, 3]
    assert all(line["test/lpips"] > 0 for line in found)
    assert cli.main(call) == 0, "a run may go on without it"
    assert "LPIPS" not in capsys.readouterr().out
    assert cli.main([*call, "--lpips", str(tmp_path / "nowhere")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "nowhere does not exist" in error


def test_missing_weights_leave_no_run_behind(tmp_path, capsys):
    call = ["fit", str(tmp_path), "--run", str(tmp_path / "run"), "--lpips"]
    assert cli.main([*call, str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err == (
        f"jaxedit: error: weights of LPIPS: {tmp_path}/nowhere does not exist; "
        "give a folder or files of safetensors\n"
    )
    assert not list(tmp_path.iterdir())


def test_views_that_are_too_small_are_refused_before_training(weights):
    config = system(lpips=str(weights))
    assert len(config.phases(scene(), with_reports=True)) == 2
    with pytest.raises(UserError, match="images of 24x24 pixels are too small for LPIPS on alex"):
        config.phases(toy(), with_reports=True)
