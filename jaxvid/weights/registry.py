"""Networks from folders, whichever they are.

    unet = load_model("stable-diffusion-v1-5/unet")
    unet = load_as(ConditionalUNet, "stable-diffusion-v1-5/unet", Loading(dtype=jnp.bfloat16, variant="fp16"))

A folder is a published one (diffusers or transformers), or one of this project's (`jaxvid.weights.native`).
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from flax import nnx

from jaxvid.core.errors import UserError
from jaxvid.models.autoencoder import Autoencoder
from jaxvid.models.clip import ClipImage, ClipText
from jaxvid.models.conditional_unet import ConditionalUNet, MotionConfig
from jaxvid.models.folding import PixelFolding
from jaxvid.models.prior import ImageConditions, Prior
from jaxvid.models.t5 import T5Encoder
from jaxvid.models.text import TextEncoder
from jaxvid.weights.autoencoders import autoencoder_source
from jaxvid.weights.bert import BERT, KINDS, bert_source
from jaxvid.weights.encoders import (
    CLIP_IMAGE,
    CLIP_TEXT,
    T5,
    clip_image_source,
    clip_text_source,
    t5_source,
)
from jaxvid.weights.fields import read_fields
from jaxvid.weights.loading import WHOLE, Loading, Source, load
from jaxvid.weights.naming import ATTENTION, MOTION, UNET, Rules
from jaxvid.weights.native import MODULES, native_source
from jaxvid.weights.unclip import (
    IMAGE_CONDITIONS,
    PRIOR,
    image_conditions_source,
    prior_source,
)
from jaxvid.weights.unets import unet_source

Module = TypeVar("Module", bound=nnx.Module)
Open = Callable[[str | Path, str | None], Source]

PUBLISHED: Mapping[str, Open] = {
    "UNet2DConditionModel": unet_source,
    "UNet2DModel": unet_source,
    "UNet3DConditionModel": unet_source,
    "UNetSpatioTemporalConditionModel": unet_source,
    "AutoencoderKL": autoencoder_source,
    "AutoencoderKLTemporalDecoder": autoencoder_source,
    "CLIPTextModel": clip_text_source,
    "CLIPTextModelWithProjection": clip_text_source,
    "CLIPVisionModel": clip_image_source,
    "CLIPVisionModelWithProjection": clip_image_source,
    "T5EncoderModel": t5_source,
    "T5ForConditionalGeneration": t5_source,
    **dict.fromkeys(KINDS, bert_source),
    "PriorTransformer": prior_source,
    "UnCLIPTextProjModel": image_conditions_source,
}
HALVES: Mapping[type, Open] = {ClipText: clip_text_source, ClipImage: clip_image_source}
RULES: Mapping[type, Rules] = {
    Autoencoder: ATTENTION,
    ClipText: CLIP_TEXT,
    ClipImage: CLIP_IMAGE,
    T5Encoder: T5,
    TextEncoder: BERT,
    Prior: PRIOR,
    ImageConditions: IMAGE_CONDITIONS,
}


def open_model(folder: str | Path, variant: str | None = None) -> Source:
    """The network in `folder`, not yet read. Raises UserError for a class that cannot be read."""
    kind, fields = read_fields(folder)
    if kind in MODULES:
        return native_source(folder, variant)
    if kind == "CLIPModel":
        raise UserError(
            f"{fields.where}: a CLIPModel is two networks; ask for one with load_as(ClipText, folder) or load_as(ClipImage, folder)"
        )
    if kind not in PUBLISHED:
        raise UserError(f"{fields.where}: {kind} cannot be read; {', '.join(PUBLISHED)} can")
    return PUBLISHED[kind](folder, variant)


def open_as(kind: type[Module], folder: str | Path, variant: str | None = None) -> Source:
    """Likewise, also a half of a CLIPModel. Raises UserError for a network that is none of `kind`."""
    whole = kind in HALVES and read_fields(folder)[0] == "CLIPModel"
    source = HALVES[kind](folder, variant) if whole else open_model(folder, variant)
    if not isinstance(source.abstract, kind):
        found = type(source.abstract).__name__
        raise UserError(f"{folder} is a {found}, not a {kind.__name__}; give the folder of one")
    return source


def load_model(folder: str | Path, how: Loading = WHOLE) -> Any:
    """The network in `folder`. Raises UserError."""
    return load(open_model(folder, how.variant), how)


def load_as(kind: type[Module], folder: str | Path, how: Loading = WHOLE) -> Module:
    """The network in `folder`, which is a `kind`: `load_as(Autoencoder, "stable-diffusion-v1-5/vae")`. Raises UserError."""
    return load(open_as(kind, folder, how.variant), how)


def load_coder(folder: str | Path, how: Loading = WHOLE) -> Autoencoder | PixelFolding:
    """What stands between pixels and the latents of a pipeline: the network in `folder`, of either kind. Raises UserError."""
    source = open_model(folder, how.variant)
    if not isinstance(source.abstract, Autoencoder | PixelFolding):
        found = type(source.abstract).__name__
        raise UserError(f"{folder} is a {found}, not an autoencoder; give the folder of one")
    return load(source, how)


def rules_of(module: nnx.Module) -> Rules:
    """How its parameters are named in published files."""
    if isinstance(module, ConditionalUNet):
        return MOTION if isinstance(module.config.temporal, MotionConfig) else UNET
    return RULES[type(module)]
