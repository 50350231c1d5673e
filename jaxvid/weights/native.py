"""Folders of one network in the own format of this project: any network, also those that no published class can express.

    config.json           its class, its configuration, and what else the published config said that pipelines need
    weights.safetensors   its parameters by path, in shards with an index where they are large

Nothing is renamed or transposed on reading, and a process of a mesh reads the slices of its devices.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from flax import nnx

from jaxvid.core.config import from_json, to_json
from jaxvid.core.errors import UserError
from jaxvid.models.autoencoder import Autoencoder, AutoencoderConfig
from jaxvid.models.clip import ClipImage, ClipImageConfig, ClipText, ClipTextConfig
from jaxvid.models.conditional_unet import ConditionalUNet, ConditionalUNetConfig
from jaxvid.models.folding import FoldingConfig, PixelFolding
from jaxvid.models.prior import ImageConditions, ImageConditionsConfig, Prior, PriorConfig
from jaxvid.models.t5 import T5Config, T5Encoder
from jaxvid.models.text import TextConfig, TextEncoder
from jaxvid.weights.fields import read_fields
from jaxvid.weights.loading import Source, tensors_of

FILE = "weights.safetensors"


class Kind(NamedTuple):
    """A class of networks, made of a configuration and a key."""

    module: Any
    config: type


MODULES: Mapping[str, Kind] = {
    "ConditionalUNet": Kind(ConditionalUNet, ConditionalUNetConfig),
    "Autoencoder": Kind(Autoencoder, AutoencoderConfig),
    "PixelFolding": Kind(PixelFolding, FoldingConfig),
    "ClipText": Kind(ClipText, ClipTextConfig),
    "ClipImage": Kind(ClipImage, ClipImageConfig),
    "T5Encoder": Kind(T5Encoder, T5Config),
    "TextEncoder": Kind(TextEncoder, TextConfig),
    "Prior": Kind(Prior, PriorConfig),
    "ImageConditions": Kind(ImageConditions, ImageConditionsConfig),
}


def describe_native(module: nnx.Module) -> dict[str, Any]:
    """The `config.json` of a module, abstract or not."""
    config = module.config  # type: ignore[attr-defined]
    return {"_class_name": type(module).__name__, "config": to_json(config)}


def native_config(folder: str | Path) -> Any:
    """The configuration of the network in one of this project's folders. Raises UserError."""
    name, fields = read_fields(folder)
    try:
        return from_json(MODULES[name].config, fields.take("config", {}))
    except (UserError, ValueError) as error:
        raise UserError(f"{fields.where}: config: {error}") from None


def native_source(folder: str | Path, variant: str | None = None) -> Source:
    """The network in one of this project's folders, not yet read. Raises UserError."""
    name, fields = read_fields(folder)
    config = native_config(folder)
    try:
        abstract = jax.eval_shape(lambda key: MODULES[name].module(config, key), jax.random.key(0))
    except (UserError, ValueError) as error:
        raise UserError(f"{fields.where}: config: {error}") from None
    return Source(abstract, tensors_of(folder, f"a {name}", variant), None)
