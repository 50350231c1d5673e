"""An InstructPix2Pix of a few thousand random parameters."""

import json
import tempfile
from functools import lru_cache
from pathlib import Path

import jax

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
