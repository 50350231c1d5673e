"""The small InstructPix2Pix: its words, its pairs, its losses by hand, its folder."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxedit import cli
from jaxedit.editing import shipped_editor
from jaxedit.scene.toy import toy_edit
from jaxedit.scene.toy.world import has_held_out
from jaxedit.systems.instruct_pix2pix import InstructPix2Pix, Teaching, training
from jaxedit.systems.instruct_pix2pix.pairs import PairBatches, pair_camera, toy_pair
from jaxedit.systems.instruct_pix2pix.quality import (
    PairScore,
    changed_pixels,
    score_pair,
    sheet,
    table,
)
from jaxedit.systems.instruct_pix2pix.training import abstract_networks, editing_loss, reading_loss
from jaxedit.systems.instruct_pix2pix.words import (
    ATTRIBUTES,
    POSITIONS,
    said,
    toy_tokenizer,
    toy_words,
    vocabulary_size,
)
from jaxvid.core.config import load_config
from jaxvid.core.errors import UserError
from jaxvid.core.paths import flatten
from jaxvid.core.rng import named
from jaxvid.diffusion.types import Prediction
from jaxvid.models.blocks import BlockConfig
from jaxvid.models.clip import ClipTextConfig, TransformerConfig
from jaxvid.models.conditional_unet import ConditionalUNetConfig, Level
from jaxvid.models.folding import FoldingConfig, PixelFolding
from jaxvid.pipelines import edit_image, load_latent_diffusion
from jaxvid.train.loop import LoopConfig
from jaxvid.train.optimizer import OptimizerConfig


def tiny(**changes):
    unet = ConditionalUNetConfig(
        levels=(Level(8, 1, attention="transformer", head_dim=4), Level(8, 1, head_dim=4)),
        inputs=24,
        outputs=12,
        context=16,
        linear=True,
        block=BlockConfig(groups=4),
    )
    text = ClipTextConfig(TransformerConfig(16, 1, 2, 32), vocabulary_size(), POSITIONS)
    base = InstructPix2Pix(
        unet,
        text,
        size=16,
        reading=Teaching(3, 8, OptimizerConfig(2e-3)),
        editing=Teaching(2, 4, OptimizerConfig(2e-3), 0.5),
        shown=4,
        loop=LoopConfig(log_every=1, save_every=2),
    )
    return replace(base, **changes)


# --- words ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_every_word_of_an_instruction_is_one_token(split):
    tokenizer = toy_tokenizer()
    for index in range(400):
        text = toy_edit(3, index, split=split).instruction
        assert tokenizer.encode([text]).mask.sum() == len(text.split()) + 2 <= POSITIONS, text


def test_other_texts_come_apart_into_letters():
    encoded = toy_tokenizer().encode(["zzz red", "", "Red"])
    assert encoded.mask.sum(axis=1).tolist() == [6, 2, 3]
    assert encoded.tokens[0, 4] == encoded.tokens[2, 1]
    assert encoded.tokens.max() < vocabulary_size()
    assert len(toy_words()) == len(set(toy_words()))


def test_what_an_instruction_says():
    """Each attribute of the edit that the sentence names, and none that it leaves open."""
    values = {name: (None, *names) for name, names in ATTRIBUTES.items()}
    for index in range(300):
        edit = toy_edit(4, index)
        found = {
            name: values[name][number]
            for name, number in zip(values, said(edit), strict=True)
            if number
        }
        words = edit.instruction.split()
        for name in ("colour", "second"):
            assert name not in found or found[name] in words, (edit.instruction, found)
        assert found["kind"] == edit.kind
        if edit.kind == "recolour":
            assert found == {
                "kind": "recolour",
                "part": edit.part,
                "colour": edit.scene.part(edit.part).colour,
            }
        if edit.kind == "light":
            assert found == {"kind": "light", "light": edit.scene.light}


# --- pairs ---------------------------------------------------------------------------------------


def test_a_pair_is_a_function_of_seed_and_number():
    config = tiny()
    first, again = toy_pair(config, 1, 7), toy_pair(config, 1, 7)
    np.testing.assert_array_equal(first.before, again.before)
    np.testing.assert_array_equal(first.after, again.after)
    assert first.edit == again.edit
    other = toy_pair(config, 2, 7)
    assert (first.before != other.before).any()


def test_training_never_sees_what_is_held_out():
    config = tiny()
    for number in range(60):
        edit = toy_pair(config, 0, number).edit
        assert not has_held_out(edit.before)
        assert not has_held_out(edit.scene)
        assert edit.kind in config.kinds
    held = [toy_pair(config, 0, number, "heldout").edit for number in range(20)]
    assert all(has_held_out(e.before) or has_held_out(e.scene) or e.kind == "light" for e in held)


def test_cameras_look_at_the_object_from_about_a_captures_distance():
    for number in range(20):
        camera = pair_camera(0, number, 16)
        pose = np.asarray(camera.pose)[0]
        place = pose[:, 3]
        assert 0.8 * 4.0 < np.linalg.norm(place) < 1.3 * 4.0
        np.testing.assert_allclose(-pose[:, 2] * np.linalg.norm(place), -place, atol=1e-4)


def test_processes_share_a_batch_of_pairs():
    config = tiny()
    whole = next(PairBatches(config, 4, seed=0, pictures=True, state=2))
    parts = [
        next(PairBatches(config, 4, seed=0, pictures=True, index=i, count=2, state=2))
        for i in (0, 1)
    ]
    for name, value in whole.items():
        np.testing.assert_array_equal(value, np.concatenate([part[name] for part in parts]))
    assert whole["before"].shape == (4, 16, 16, 3)
    reading = next(PairBatches(config, 4, seed=0, pictures=False, state=2))
    np.testing.assert_array_equal(reading["tokens"], whole["tokens"])


# --- losses --------------------------------------------------------------------------------------


def params_of(config):
    networks = training.Networks(config, jax.random.key(0))
    return flatten(networks)


@pytest.mark.parametrize(("low", "high"), [(0.2, 5.0), (1.0, 1.0)])
def test_the_loss_of_an_empty_guess_is_the_weighted_power_of_the_picture(low, high, monkeypatch):
    """A network that always says 0: loss = min(max(SNR, low), high) mean x^2, at the levels drawn."""
    seen = []

    def silent(noise, unet):
        def denoise(z, level, conditions):
            seen.append((z, level.logsnr, conditions))
            return Prediction(jnp.zeros_like(z))

        return denoise

    monkeypatch.setattr(training, "network_denoise", silent)
    config = tiny(drop=0.0, snr_range=(low, high))
    batch = jax.tree.map(jnp.asarray, next(PairBatches(config, 6, seed=0, pictures=True)))
    keys = jax.random.split(jax.random.key(1), 6)
    loss, sums = editing_loss(config, params_of(config), batch, keys)
    z, logsnr, conditions = seen[0]
    x = np.asarray(batch["after"], np.float64) / 127.5 - 1
    power = (x**2).mean(axis=(1, 2, 3))
    weight = np.clip(np.exp(np.asarray(logsnr, np.float64)), low, high)
    np.testing.assert_allclose(loss, weight * power, rtol=1e-5)
    table = np.asarray(config.table.logsnr_table)
    for i, key in enumerate(keys):
        level = jax.random.randint(named(key, "level"), (), 0, 1000, jnp.int32)
        np.testing.assert_allclose(logsnr[i], table[level], rtol=1e-6)
        signal = 1 / (1 + np.exp(-table[level]))
        eps = np.asarray(jax.random.normal(named(key, "noise"), z.shape[1:]))
        folded = PixelFolding(FoldingConfig(2), key).encode(
            jnp.asarray(x[i][None, None], jnp.float32)
        )
        np.testing.assert_allclose(
            z[i], np.sqrt(signal) * folded[0] + np.sqrt(1 - signal) * eps, atol=2e-5
        )
    before = np.asarray(batch["before"], np.float32) / 127.5 - 1
    shown = PixelFolding(FoldingConfig(2), keys[0]).decode(conditions["image"])
    np.testing.assert_allclose(shown[:, 0], before, atol=1e-6)
    counts = sum(float(count) for _, count in sums.values())
    assert counts == 6


def test_conditions_are_dropped_in_equal_shares(monkeypatch):
    """5% text alone, 5% picture alone, 5% both (Brooks et al. 2023)."""
    seen = []
    monkeypatch.setattr(
        training,
        "network_denoise",
        lambda noise, unet: lambda z, level, c: seen.append(c) or Prediction(z),
    )
    config = tiny()
    one = next(PairBatches(config, 1, seed=0, pictures=True))
    count = 2000
    batch = {name: jnp.repeat(value, count, axis=0) for name, value in one.items()}
    params = params_of(config)
    editing_loss(config, params, batch, jax.random.split(jax.random.key(3), count))
    empty = training.empty_tokens()
    networks = training.unflatten(abstract_networks(config), params)
    none = np.asarray(networks.text(jnp.asarray(empty)).tokens)
    no_text = (np.asarray(seen[0]["context"]) == none).all(axis=(1, 2))
    no_image = (np.asarray(seen[0]["image"]) == 0).all(axis=(1, 2, 3, 4))
    for share in (no_text & ~no_image, no_text & no_image, ~no_text & no_image):
        assert abs(share.mean() - 0.05) < 4 * np.sqrt(0.05 * 0.95 / count)


def test_an_encoder_learns_to_read():
    config = tiny(reading=Teaching(30, 32, OptimizerConfig(2e-2)))
    phase = config.phases()[0]
    state = jax.jit(phase.init)(None, jax.random.key(0))
    unet = {path: leaf for path, leaf in state["frozen"].items() if path.startswith("unet/")}
    assert unet
    step, batches, losses = jax.jit(phase.step), phase.batches(None), []
    for number in range(30):
        state, sums = step(state, next(batches), named(jax.random.key(0), number))
        losses.append(float(sums["loss"][0] / sums["loss"][1]))
    # Nothing learnt is the sum of the logs of the numbers of choices, about 17; kinds alone are about 2 of it.
    assert losses[-1] < 0.6 * losses[0]
    for path, leaf in unet.items():
        np.testing.assert_array_equal(leaf, state["frozen"][path])


def test_a_loss_of_reading_is_its_cross_entropies():
    config = tiny()
    batch = jax.tree.map(jnp.asarray, next(PairBatches(config, 5, seed=0, pictures=False)))
    params = params_of(config)
    params = {
        path: leaf * 0 if path.startswith("readout/heads") else leaf
        for path, leaf in params.items()
    }
    loss, _ = reading_loss(config, params, batch, jax.random.split(jax.random.key(0), 5))
    expected = sum(np.log(1 + len(values)) for values in ATTRIBUTES.values())
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


# --- scores --------------------------------------------------------------------------------------


def test_scores_of_a_pair():
    pair = toy_pair(tiny(size=32), 0, 3)
    mask = changed_pixels(pair.before, pair.after)
    assert 0 < mask.mean() < 1
    truth = pair.after.astype(np.float32) / 255
    assert score_pair(pair, truth).gain == np.inf
    same = score_pair(pair, pair.before.astype(np.float32) / 255)
    assert same.gain == 0
    assert same.kept == np.inf
    half = score_pair(pair, (truth + pair.before / 255).astype(np.float32) / 2)
    assert half.gain == pytest.approx(20 * np.log10(2), abs=1e-3)
    assert sheet([pair, pair], [truth, truth]).shape == (96, 64, 3)


def test_a_table_of_scores_by_kind():
    scores = [
        PairScore("add", 4.0, 30.0),
        PairScore("add", 1.0, 32.0),
        PairScore("light", 8.0, np.nan),
    ]
    found = table(scores)
    assert found["add"] == (2, 2.5, 0.5, 31.0)
    assert found["all"] == (3, 4.0, pytest.approx(2 / 3), 31.0)


# --- the folder ----------------------------------------------------------------------------------


def test_trained_and_saved_it_is_the_pipeline_that_was_trained(tmp_path, capsys):
    """The command trains, shows held-out edits and saves; the folder gives the state's own edits."""
    config = tmp_path / "tiny_editor.py"
    config.write_text(TINY)
    arguments = ["train", str(config), "--run", str(tmp_path / "run")]
    assert cli.main([*arguments, "--save", str(tmp_path / "editor")]) == 0
    assert "saved" in capsys.readouterr().out
    assert list((tmp_path / "run" / "samples").glob("step_*.png"))
    assert cli.main([*arguments, "--save", str(tmp_path / "editor")]) == 2
    assert "exists; choose another" in capsys.readouterr().err
    model = load_latent_diffusion(tmp_path / "editor")
    assert model.size == (16, 16)
    assert model.noise.target == "x"
    again = [*arguments[:2], "--run", str(tmp_path / "again"), "--init", str(tmp_path / "editor")]
    assert cli.main(again) == 0
    lines = (tmp_path / "again" / "metrics.jsonl").read_text().splitlines()
    assert {json.loads(line)["phase"] for line in lines if "phase" in json.loads(line)} == {
        "editing"
    }
    assert cli.main([*again, "--init", str(tmp_path / "editor" / "unet")]) == 2
    lines = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert any("all/kept" in line for line in lines)


def test_a_saved_state_edits_as_the_state_does(tmp_path):
    config = tiny()
    phase = config.phases()[1]
    state = jax.jit(phase.init)(None, jax.random.key(0))
    state, _ = jax.jit(phase.step)(state, next(phase.batches(None)), jax.random.key(0))
    config.save(state, tmp_path / "editor")
    images = jnp.asarray(toy_pair(config, 0, 1).before, jnp.float32)[None] / 127.5 - 1
    arguments = (images, ["make the hat red"], jax.random.key(2))
    truth = edit_image(config.model(state), *arguments, steps=3)
    found = edit_image(load_latent_diffusion(tmp_path / "editor"), *arguments, steps=3)
    np.testing.assert_array_equal(found, truth)


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match=r"size is 17; it must be a multiple of folding\.side"):
        tiny(size=17)
    with pytest.raises(
        UserError, match=r"unet\.inputs and unet\.outputs are 24 and 12; set them to 54 and 27"
    ):
        tiny(folding=FoldingConfig(3), size=18)
    with pytest.raises(UserError, match=r"drop is 0\.5"):
        tiny(drop=0.5)


def test_folding_is_exact():
    x = jax.random.normal(jax.random.key(0), (2, 1, 6, 8, 3))
    folding = PixelFolding(FoldingConfig(2), jax.random.key(0))
    z = folding.encode(x)
    assert z.shape == (2, 1, 3, 4, 12)
    np.testing.assert_array_equal(folding.decode(z), x)
    np.testing.assert_array_equal(z[1, 0, 2, 3], np.asarray(x[1, 0, 4:6, 6:8]).reshape(-1))
    mean, log_variance = folding.moments(x)
    np.testing.assert_array_equal(mean, z)
    assert (np.exp(np.asarray(log_variance)) == 0).all()


TINY = """
from jaxedit.systems.instruct_pix2pix import InstructPix2Pix, Teaching
from jaxedit.systems.instruct_pix2pix.words import POSITIONS, vocabulary_size
from jaxvid.models.blocks import BlockConfig
from jaxvid.models.clip import ClipTextConfig, TransformerConfig
from jaxvid.models.conditional_unet import ConditionalUNetConfig, Level
from jaxvid.train.loop import LoopConfig
from jaxvid.train.optimizer import OptimizerConfig


def config():
    unet = ConditionalUNetConfig(
        levels=(Level(8, 1, attention="transformer", head_dim=4),),
        inputs=24, outputs=12, context=16, linear=True, block=BlockConfig(groups=4),
    )
    text = ClipTextConfig(TransformerConfig(16, 1, 2, 32), vocabulary_size(), POSITIONS)
    return InstructPix2Pix(
        unet, text, size=16,
        reading=Teaching(2, 8, OptimizerConfig(2e-3)),
        editing=Teaching(2, 8, OptimizerConfig(2e-3), 0.5),
        shown=4,
        loop=LoopConfig(log_every=1, save_every=2),
    )
"""


def test_the_shipped_editor_is_the_presets_and_small():
    folder = shipped_editor()
    assert sum(path.stat().st_size for path in folder.rglob("*")) <= 12e6
    config = load_config("instruct_pix2pix/toy")
    model = load_latent_diffusion(folder)
    assert (model.unet.config, model.text.config) == (config.unet, config.text)
    assert model.noise == training.noise_of(config)
    assert model.size == (config.size, config.size)
    np.testing.assert_array_equal(
        model.tokenizer.encode(["make it night"]).tokens,
        toy_tokenizer().encode(["make it night"]).tokens,
    )
