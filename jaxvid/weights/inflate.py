"""An image model made into a video model that gives the same frames until it is trained.

    video = inflate(image, "vdm", key)                 Video Diffusion Models: attention over frames (Ho et al. 2022, section 3)
    video = inflate(image, "pseudo3d", key)            Make-A-Video: (2+1)D convolutions and attention (Singer et al. 2023)
    video = inflate(image, "mixed", key)               Video LDM and Stable Video Diffusion: blocks mixed with temporal ones
    video = inflate(image, "modelscope", key)          ModelScope: four temporal convolutions and attention
    video = inflate(image, MotionConfig(), key)        AnimateDiff: a motion module after each block

The image model's parameters are taken over by path; `temporal_paths` names the others, the ones to train while those are
frozen. New layers begin at random but for the last of each, which begins as zero or, in pseudo3d, as the identity: so the
frames are the image model's, to rounding where two equal numbers are mixed.
"""

import re
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from jaxvid.core.paths import flatten, unflatten
from jaxvid.models.conditional_stages import Temporal
from jaxvid.models.conditional_unet import ConditionalUNet, abstract_unet

# Last layers of the mixed blocks: with these zero a temporal block gives what it is given.
_LAST = re.compile(
    r"temporal_res_block/conv2/|time_pos_embed/linear_2/"
    r"|temporal_transformer_blocks/\d+/(ff_in/contract|attn1/out|attn2/out|ff/contract)/"
)


def inflate(image: ConditionalUNet, temporal: Temporal, key: Key[Array, ""]) -> ConditionalUNet:
    """The video model; its temporal layers' random numbers are `key`'s, all in float32 or the image model's dtype.

    Raises ValueError for a model that has temporal layers already.
    """
    if image.config.temporal != "none":
        raise ValueError(f"the model has temporal layers already: {image.config.temporal}")
    config = replace(image.config, temporal=temporal)
    given = flatten(image)
    dtype = jax.tree.leaves(image)[0].dtype
    fresh = flatten(jax.jit(lambda key: ConditionalUNet(config, key))(key))
    values: dict[str, Any] = {}
    for path, leaf in fresh.items():
        source = given.pop(spatial_path(path), None)
        if source is not None:
            values[path] = source.reshape(leaf.shape)  # a 1x1 convolution may become a dense layer
        elif _LAST.search(path):
            values[path] = jnp.zeros_like(leaf, dtype)
        else:
            values[path] = leaf.astype(dtype)
    if given:
        raise ValueError(f"the video model has no place for {sorted(given)[:5]}")
    return unflatten(abstract_unet(config), values)


def spatial_path(path: str) -> str:
    """The path that a parameter of a video model had in the image model, if it is one of those."""
    return path.replace("/spatial_res_block/", "/")


def temporal_paths(video: ConditionalUNet) -> frozenset[str]:
    """Paths of the parameters that the image model did not have."""
    image = flatten(abstract_unet(replace(video.config, temporal="none")))
    return frozenset(path for path in flatten(video) if spatial_path(path) not in image)
