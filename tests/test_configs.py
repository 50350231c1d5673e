"""Every preset loads, survives JSON, builds and traces its real train step; the papers' presets are the papers'."""

import json

import jax
import jax.numpy as jnp
import pytest

from jaxedit.scene.toy import capture, toy_scene
from jaxedit.systems.reconstruct import training
from jaxvid.core.config import config_names, from_json, load_config, to_json
from jaxvid.core.paths import flatten
from jaxvid.data.layouts import BairData, Kinetics600Data, Ucf101Data
from jaxvid.data.tfds import TfdsData
from jaxvid.diffusion.schedule import Cosine
from jaxvid.models.text import TextConfig
from jaxvid.systems.vdm import VDM
from jaxvid.systems.vdm.networks import parameter_count
from jaxvid.systems.vdm.programs import abstract_batch

# name: parameters, and those of the U-Net alone
PARAMETERS = {
    "vdm/bair": (114_598_019, 114_598_019),
    "vdm/clips": (5_238_464, 4_445_376),
    "vdm/kinetics600": (877_847_171, 877_847_171),
    "vdm/shapes": (2_978_796, 2_700_908),
    "vdm/shapes_gpu": (2_978_796, 2_700_908),
    "vdm/shapes_tiny": (2_518_028, 2_240_140),
    "vdm/smoke": (190_252, 34_668),
    "vdm/text_large": (1_217_187_459, 879_946_371),
    "vdm/text_large_hires": (1_219_760_899, 882_521_859),
    "vdm/text_small": (564_216_963, 226_977_923),
    "vdm/ucf101": (879_946_371, 879_946_371),
}


def test_all_presets_are_known_here():
    assert set(PARAMETERS) == set(config_names("vdm"))


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_preset_survives_json(name):
    config = load_config(name)
    assert isinstance(config, VDM)
    assert from_json(VDM, json.loads(json.dumps(to_json(config)))) == config
    assert from_json(object, json.loads(json.dumps(to_json(config)))) == config


def unet_parameters(model):
    """Counted from figure 1 of the paper, and the paper's blocks."""
    e, d, k = model.embedding_width, model.head_dim, 9
    widths = [model.channels * m for m in model.multipliers]
    adds = 1 + (model.modulation == "scale_shift")

    def block(inputs, c, level):
        convolutions = k * inputs * c + c + k * c * c + c
        convolutions += 2 * (3 * c * c + c) * (model.convolution == "pseudo3d")
        count = 2 * inputs + 2 * c + convolutions + adds * (e * c + c)
        count += inputs * c + c if inputs != c else 0
        attention = 2 * c + 4 * c * c + c
        if level in model.attention_levels:
            relative = 2 * (2 * model.max_distance + 1) * min(d, c)
            count += 2 * attention + relative
        return count

    last, pixels = len(widths) - 1, 3 * model.patch**2
    count = model.channels * e + e + (model.embedding_layers - 1) * (e * e + e)
    count += k * pixels * widths[0] + widths[0] + 2 * widths[0] + k * pixels * widths[0] + pixels
    count += block(widths[-1], widths[-1], last)
    for level, c in enumerate(widths):
        count += model.blocks * (block(c, c, level) + block(2 * c, c, level))
        if level < last:
            count += k * c * widths[level + 1] * 2 + widths[level + 1] + c
    return count


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name):
    config = load_config(name)
    networks = config.networks()
    assert (parameter_count(networks), parameter_count(networks.unet)) == PARAMETERS[name]
    assert parameter_count(networks.unet) == unet_parameters(config.model)


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_step_of_every_stage_traces(name):
    config = load_config(name)
    key, state = jax.eval_shape(lambda: jax.random.key(0)), None
    for stage, phase in zip(config.stages, config.phases(), strict=True):
        state = jax.eval_shape(phase.init, state, key)
        frames = stage.frames or config.data.frames
        if stage.task == "reading":
            batch = next(phase.batches(None))
        else:
            batch = abstract_batch(config, stage.batch, frames, stage.images, None)
        after, sums = jax.eval_shape(phase.step, state, batch, key)
        before, after = flatten(state), flatten(after)
        assert {path: (leaf.shape, leaf.dtype) for path, leaf in after.items()} == {
            path: (leaf.shape, leaf.dtype) for path, leaf in before.items()
        }
        assert sums["loss"][0].shape == ()
        assert sums["loss"][0].dtype == jnp.float32


# Ho et al. 2022, appendix A, tables 5 and 6; common to all: attention at 8, 16 and 32, condition width 1024, cosine schedule
# with log-SNR in [-20, 20].
ROWS = """
             ucf101    bair      kinetics600 text_small text_large text_large_hires
frames       16        16        16          16         16         9
side         64        64        64          64         64         128
skips        1         1         1           1          1,4        1
channels     256       128       256         128        256        128
multipliers  1,2,4,8   1,2,3,4   1,2,4,8     1,2,4,8    1,2,4,8    1,2,4,8,16
blocks       2         3         2           2          2          2
head_dim     64        64        64          64         64         128
layers       4         2         2           4          4          4
b1           0.9       0.9       0.9         0.9        0.9        0.9
b2           0.99      0.999     0.99        0.99       0.99       0.99
weight_decay 0         0.01      0           0          0          0
rate         3e-4      2e-4      2e-4        3e-4       3e-4       2e-4
batch        128       128       256         128        128        128
ema          0.9999    0.999     0.9999      0.9999     0.9999     0.9999
dropout      0.1       0.1       0.1         0          0          0
steps        60000     660000    220000      200000     700000     800000
images       8         8         8           8          8          7
sampler      ancestral langevin  langevin    ancestral  ancestral  ancestral
draws        256       256       128         256        256        256
gamma        0.1       0         0           0.3        0.3        0.3
target       epsilon   v         v           epsilon    epsilon    epsilon
flip         0         1         0           0          0          0
"""
LINES = [line.split() for line in ROWS.strip("\n").splitlines()]
PAPER = {
    name: {line[0]: line[column + 1] for line in LINES[1:]} for column, name in enumerate(LINES[0])
}


def numbers(text):
    return tuple(int(number) for number in text.split(","))


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_presets_are_the_papers_table(name):
    row, config = PAPER[name], load_config(f"vdm/{name}")
    data, model, optimizer = config.data, config.model, config.stages[0].optimizer
    (stage,) = config.stages
    side = int(row["side"])
    assert (data.frames, data.height, data.width) == (int(row["frames"]), side, side)
    assert (data.skips, data.stride, data.fps) == (numbers(row["skips"]), 1, None)
    assert data.flip == bool(int(row["flip"]))
    assert model.channels == int(row["channels"])
    assert model.multipliers == numbers(row["multipliers"])
    assert model.blocks == int(row["blocks"])
    assert [side >> level for level in model.attention_levels] == [32, 16, 8]
    assert (model.head_dim, model.embedding_width) == (int(row["head_dim"]), 1024)
    assert model.embedding_layers == int(row["layers"])
    assert model.dropout == float(row["dropout"])
    assert (model.patch, model.convolution, model.modulation) == (1, "spatial", "add")
    assert model.temporal_attention
    assert (optimizer.b1, optimizer.b2) == (float(row["b1"]), float(row["b2"]))
    assert optimizer.weight_decay == float(row["weight_decay"])
    assert optimizer.learning_rate == float(row["rate"])
    assert (stage.batch, stage.steps, stage.images) == (
        int(row["batch"]),
        int(row["steps"]),
        int(row["images"]),
    )
    assert (stage.ema, stage.frames) == (float(row["ema"]), None)
    assert config.schedule == Cosine(-20.0, 20.0)
    assert config.target == config.weighting == row["target"]
    assert config.sampling.sampler == row["sampler"]
    assert config.sampling.steps == int(row["draws"])
    assert config.sampling.gamma == float(row["gamma"])


def test_what_the_papers_presets_are_given_and_told():
    kinds = {
        "ucf101": Ucf101Data,
        "bair": BairData,
        "kinetics600": Kinetics600Data,
        "text_small": TfdsData,
        "text_large": TfdsData,
        "text_large_hires": TfdsData,
    }
    for name, kind in kinds.items():
        config = load_config(f"vdm/{name}")
        assert isinstance(config.data, kind)
        assert config.text == (TextConfig() if "text" in name else None)
        assert config.compute == "bfloat16"
    bair, kinetics = load_config("vdm/bair"), load_config("vdm/kinetics600")
    assert (bair.data.given, bair.sampling.reconstruction) == (1, 50.0)
    assert (kinetics.data.given, kinetics.sampling.reconstruction) == (5, 9.0)


@pytest.mark.parametrize("name", config_names("reconstruct"))
def test_a_preset_of_a_scene_survives_json_and_traces_its_steps(name, monkeypatch):
    monkeypatch.setattr(training, "make_mesh", lambda _: None)
    config = load_config(name)
    assert from_json(type(config), json.loads(json.dumps(to_json(config)))) == config
    scene = capture(toy_scene(seed=0, index=0), views=2, size=8, test_views=0)
    config = config.seeing(scene)
    state = None
    for phase in config.phases(scene):
        state = jax.eval_shape(phase.init, state, jax.random.key(0))
        batch = next(phase.batches(None))
        after, sums = jax.eval_shape(phase.step, state, batch, jax.random.key(0))
        assert jax.tree.map(lambda leaf: leaf.shape, after) == jax.tree.map(
            lambda leaf: leaf.shape, state
        )
        assert {"loss", "psnr"} <= set(sums)
