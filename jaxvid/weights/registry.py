"""Which published classes can be read, and how a module's parameters are named there."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flax import nnx

from jaxvid.core.errors import UserError
from jaxvid.models.autoencoder import Autoencoder
from jaxvid.models.clip import ClipImage, ClipText
from jaxvid.models.conditional_unet import ConditionalUNet, MotionConfig
from jaxvid.models.prior import ImageConditions, Prior
from jaxvid.models.t5 import T5Encoder
from jaxvid.models.text import TextEncoder
from jaxvid.weights.autoencoders import load_autoencoder
from jaxvid.weights.bert import BERT, KINDS, load_bert
from jaxvid.weights.encoders import (
    CLIP_IMAGE,
    CLIP_LAYER,
    CLIP_TEXT,
    T5,
    load_clip_image,
    load_clip_text,
    load_t5,
)
from jaxvid.weights.fields import read_fields
from jaxvid.weights.loading import WHOLE, Loading
from jaxvid.weights.naming import ATTENTION, MOTION, UNET, Rules
from jaxvid.weights.unclip import (
    IMAGE_CONDITIONS,
    PRIOR,
    load_image_conditions,
    load_prior,
)
from jaxvid.weights.unets import load_unet

LOADERS: Mapping[str, Callable[[str | Path, Loading], Any]] = {
    "UNet2DConditionModel": load_unet,
    "UNet2DModel": load_unet,
    "UNet3DConditionModel": load_unet,
    "UNetSpatioTemporalConditionModel": load_unet,
    "AutoencoderKL": load_autoencoder,
    "AutoencoderKLTemporalDecoder": load_autoencoder,
    "CLIPTextModel": load_clip_text,
    "CLIPTextModelWithProjection": load_clip_text,
    "CLIPVisionModel": load_clip_image,
    "CLIPVisionModelWithProjection": load_clip_image,
    "T5EncoderModel": load_t5,
    "T5ForConditionalGeneration": load_t5,
    **dict.fromkeys(KINDS, load_bert),
    "PriorTransformer": load_prior,
    "UnCLIPTextProjModel": load_image_conditions,
}
RULES: Mapping[type, Rules] = {
    Autoencoder: ATTENTION,
    ClipText: (*CLIP_TEXT, *CLIP_LAYER),
    ClipImage: (*CLIP_IMAGE, *CLIP_LAYER),
    T5Encoder: T5,
    TextEncoder: BERT,
    Prior: PRIOR,
    ImageConditions: IMAGE_CONDITIONS,
}


def load_model(folder: str | Path, how: Loading = WHOLE) -> Any:
    """The module of one published model, whichever it is. Raises UserError for a class that cannot be read."""
    kind, fields = read_fields(folder)
    if kind not in LOADERS:
        raise UserError(f"{fields.where}: {kind} cannot be read; {', '.join(LOADERS)} can")
    return LOADERS[kind](folder, how)


def rules_of(module: nnx.Module) -> Rules:
    """How its parameters are named in published files."""
    if isinstance(module, ConditionalUNet):
        return MOTION if isinstance(module.config.temporal, MotionConfig) else UNET
    return RULES[type(module)]
