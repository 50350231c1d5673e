"""A U-Net that compiles fast, and inputs for it: four frames, of which two may be appended images."""

from dataclasses import replace

import jax
import naive
import numpy as np

from jaxvid.models.unet import UNet, UNetConfig

FRAMES, EMBEDDING = 4, 8
TINY = UNetConfig(
    channels=8,
    multipliers=(1, 2),
    blocks=2,
    attention_levels=(1,),
    head_dim=8,
    embedding_width=EMBEDDING,
    embedding_layers=2,
    max_distance=2,
    groups=4,
)
# One level: what has nothing to do with resampling.
FLAT = replace(TINY, multipliers=(1,), attention_levels=(0,), head_dim=4)
CLIP, JOINT, ALONE = ([0, 0, 0, 0], [0, 0, 1, 2], [0, 1, 2, 3])


def network(config, seed=0):
    """A U-Net of random values that are not those of its initialisation, and the values by path."""
    return naive.filled(lambda key: UNet(config, key), seed)


def inputs(height=4, width=4, batch=2, frames=FRAMES, seed=3):
    """z, log-SNR and condition of every frame."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(batch, frames, height, width, 3)).astype(np.float32)
    logsnr = rng.uniform(-6, 6, (batch, frames)).astype(np.float32)
    return z, logsnr, rng.normal(size=(batch, frames, EMBEDDING)).astype(np.float32)


def segments(*rows):
    return np.array(rows, np.int32)


@naive.compiled
def forward(unet, z, logsnr, condition=None, segment=None):
    return unet(z, logsnr, condition, segment=segment)


@naive.compiled
def gradients(unet, z, logsnr, condition, segment, weights):
    """The output, and the gradients of its weighted sum by parameters, z, log-SNR and condition."""

    def total(unet, z, logsnr, condition):
        y = unet(z, logsnr, condition, segment=segment)
        return (y * weights).sum(), y

    found, y = jax.grad(total, argnums=(0, 1, 2, 3), has_aux=True)(unet, z, logsnr, condition)
    return y, found
