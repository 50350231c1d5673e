"""An InstructPix2Pix of a few thousand random parameters, and an editor whose edits are known."""

import json
import tempfile
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from small_fits import ADAM, hash_system, run_fits, system, toy

from jaxedit.scene.record import SceneRecord
from jaxedit.systems.instruct_nerf2nerf import EditConfig, InstructNerf2Nerf, TrainingConfig
from jaxedit.systems.instruct_nerf2nerf.editor import Editor
from jaxedit.systems.reconstruct.stored import Fitted
from jaxvid.diffusion.schedule import ScaledLinearTable
from jaxvid.models.autoencoder import Autoencoder, AutoencoderConfig
from jaxvid.models.blocks import BlockConfig
from jaxvid.models.clip import ClipText, ClipTextConfig, TransformerConfig
from jaxvid.models.conditional_unet import ConditionalUNet, ConditionalUNetConfig, Level
from jaxvid.pipelines.latent import LatentDiffusion
from jaxvid.pipelines.noise import PublishedNoise
from jaxvid.weights.tokenizers import ClipTokenizer


def _letters(folder):
    """A tokenizer of single letters."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    Path(folder, "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    Path(folder, "merges.txt").write_text("#version: 0.2\n")
    marks = {"pad_token": "<|endoftext|>", "model_max_length": 16}
    Path(folder, "tokenizer_config.json").write_text(json.dumps(marks))
    return ClipTokenizer(str(folder), 16)


def _noisy(make):
    """The network of `make(key)` with noise on all parameters: some start as zeros, and would hide what they multiply."""

    def init(key):
        leaves, form = jax.tree.flatten(make(key))
        keys = jax.random.split(key, len(leaves))
        moved = [
            leaf + 0.05 * jax.random.normal(k, leaf.shape)
            for k, leaf in zip(keys, leaves, strict=True)
        ]
        return jax.tree.unflatten(form, moved)

    return jax.jit(init)(jax.random.key(5))


@lru_cache
def tiny_model():
    block = BlockConfig(groups=4)
    unet = ConditionalUNetConfig(
        levels=(Level(8, 1, attention="transformer", head_dim=4), Level(8, 1, head_dim=4)),
        inputs=8,
        context=8,
        block=block,
    )
    coder = AutoencoderConfig(widths=(8, 8), blocks=1, groups=4)
    text = ClipTextConfig(TransformerConfig(8, 1, 2, 16), vocabulary=54, positions=16)
    folder = tempfile.mkdtemp()
    return LatentDiffusion(
        _noisy(lambda key: ConditionalUNet(unet, key)),
        _noisy(lambda key: Autoencoder(coder, key)),
        _noisy(lambda key: ClipText(text, key)),
        _letters(folder),
        PublishedNoise(ScaledLinearTable(1000, 0.00085, 0.012), offset=1, final="first"),
        (8, 8),
    )


@lru_cache
def fitted(kind="voxels"):
    """The toy scene, fitted shortly."""
    config = system() if kind == "voxels" else hash_system()
    config = config.seeing(toy())
    state = run_fits(config)[-1][0]
    return Fitted(config, SceneRecord.of(toy()), state, len(config.fits) - 1)


def edit_of(stages, kind="voxels", training=None, **edit):
    """An `InstructNerf2Nerf` of the fitted toy scene."""
    edit = {"instruction": "make it blue", "steps": 3, **edit}
    usual = TrainingConfig(patches=4, side=8, optimizer=ADAM, rows=0 if kind == "voxels" else None)
    base = fitted(kind)
    return InstructNerf2Nerf.of(base, EditConfig(**edit), stages, training or usual)


def opened(config, masks=None):
    """The edit with the tiny editor, over the toy scene's views."""
    views = toy().views["train"]
    return config.open(tiny_model(), views.cameras, toy().box, config.originals(views), masks)


EXCHANGED = (2, 0, 1)


@dataclass(frozen=True)
class Swap(Editor):
    """Gives the original with its colours exchanged, whatever it is shown."""

    def edited(self, told, image, original, key, lower, upper):
        return original[..., jnp.array(EXCHANGED)]


def swapping(given):
    """The opened edit with that editor instead."""
    old = given.setting.editor
    editor = Swap(old.noise, old.factor, old.edit, old.height, old.width)
    return replace(given, setting=given.setting._replace(editor=editor))


def as_numbers(image):
    """Bytes to [0, 1]."""
    return np.asarray(image, np.float32) / 255.0


def as_bytes(image):
    """[0, 1] to bytes, by numpy."""
    return np.round(np.clip(np.asarray(image), 0, 1) * 255).astype(np.uint8)


def to_jax(image):
    """To float32 in [-1, 1], with a leading axis."""
    return jnp.asarray(2.0 * as_numbers(image) - 1.0)[None]
