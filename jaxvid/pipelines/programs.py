"""The programs of published pipelines that `jaxvid plan` compiles for absent machines.

Only the JSON files of a folder (a published one, or an import of it) are read, so its weights need not be there. What is
compiled is what the pipelines run: the guided sampling loop over the U-Net with all its steps, or one pass of the U-Net over
the conditions of one branch. Autoencoder and text encoder run before and after the loop, and are not part of it.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from jaxvid.core.config import parse_overrides
from jaxvid.core.errors import UserError
from jaxvid.core.mesh import (
    MeshConfig,
    batch_sharding,
    check_batch,
    make_mesh,
    tree_sharding,
    with_sharding,
)
from jaxvid.diffusion import driver
from jaxvid.diffusion.types import Level
from jaxvid.models.autoencoder import AutoencoderConfig
from jaxvid.models.clip import ClipTextConfig
from jaxvid.models.conditional_unet import ConditionalUNet, ConditionalUNetConfig, abstract_unet
from jaxvid.pipelines.denoise import (
    SAMPLERS,
    Branches,
    SamplerName,
    guided_denoise,
    network_denoise,
    sides_of,
    two_branches,
)
from jaxvid.pipelines.edit import of_instruction
from jaxvid.pipelines.folders import check_parts, pipeline_class, trained_sides
from jaxvid.pipelines.image_to_video import over_frames
from jaxvid.pipelines.noise import PublishedNoise, read_noise
from jaxvid.plan import Program
from jaxvid.weights.autoencoders import autoencoder_config
from jaxvid.weights.fields import read_fields
from jaxvid.weights.motion import motion_config
from jaxvid.weights.native import MODULES, native_config
from jaxvid.weights.unets import unet_config

Config = TypeVar("Config")
Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Settings:
    """What may follow `jaxvid plan FOLDER --topology T`.

    batch: examples over all devices; by default one for each part that the mesh deals them to, which on one device is 1.
    frames, size ("512x768", height and width in pixels), steps and sampler are the pipeline's own where they are left out.
    dtype: of the parameters. motion: a folder of AnimateDiff's modules.
    """

    batch: int | None = None
    frames: int | None = None
    size: str | None = None
    steps: int | None = None
    sampler: SamplerName | None = None
    dtype: Dtype = "float32"
    motion: str | None = None
    mesh: MeshConfig = field(default_factory=MeshConfig)


class Shapes(NamedTuple):
    """Sizes of a run, and where its arrays live. latents: of z, `b t h w c`; context: tokens and their width."""

    latents: tuple[int, ...]
    context: tuple[int, int]
    dtype: Any
    mesh: Any

    def array(
        self, shape: tuple[int, ...], dtype: Any = jnp.float32, layout: str = "b"
    ) -> jax.ShapeDtypeStruct:
        """One whose first axes are `layout`."""
        return jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(self.mesh, layout))

    def like_z(self) -> jax.ShapeDtypeStruct:
        """Latents: what is denoised, or an image beside it."""
        return self.array(self.latents, layout="b t h w c")

    def text(self) -> jax.ShapeDtypeStruct:
        """A text encoder's tokens, of its parameters' type."""
        return self.array((self.latents[0], *self.context), self.dtype)


def _number(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _of_text(shapes: Shapes) -> dict[str, Any]:
    text = {"context": shapes.text()}
    return {"given": text, "none": text, "scale": _number()}


def _of_edit(shapes: Shapes) -> dict[str, Any]:
    scales = {"text_scale": _number(), "image_scale": _number()}
    return {"text": shapes.text(), "none": shapes.text(), "image": shapes.like_z(), **scales}


def _of_image(shapes: Shapes) -> dict[str, Any]:
    batch = shapes.latents[0]
    given = {
        "context": shapes.array((batch, *shapes.context)),
        "image": shapes.like_z(),
        "numbers": shapes.array((batch, 3)),
    }
    return {"given": given, "scale": _number(2)}


class Kind(NamedTuple):
    """A class of pipelines: the arguments of its sampling loop but for "unet", the branches of its guidance, its defaults.

    frames: of a clip; None makes images. text: the context is a text; else it is one vector. image: latents of an image stand
    beside z. numbers: what else the network is told.
    """

    args: Callable[[Shapes], dict[str, Any]]
    branches: Branches
    steps: int
    frames: int | None = None
    text: bool = True
    image: bool = False
    numbers: int = 0


KINDS: Mapping[str, Kind] = {
    "StableDiffusionPipeline": Kind(_of_text, two_branches, 50),
    "StableDiffusionInstructPix2PixPipeline": Kind(_of_edit, of_instruction, 100, image=True),
    "TextToVideoSDPipeline": Kind(_of_text, two_branches, 50, frames=16),
    "StableVideoDiffusionPipeline": Kind(
        _of_image, over_frames, 25, frames=14, text=False, image=True, numbers=3
    ),
}


class Planned(NamedTuple):
    """A pipeline made ready: the arguments of its loop, the start, and what makes the loop."""

    kind: Kind
    noise: PublishedNoise
    args: dict[str, Any]
    z: jax.ShapeDtypeStruct
    shapes: Shapes
    settings: Settings


def sample_program(folder: str, words: Sequence[str], devices: Sequence[Any]) -> Program:
    """The whole guided sampling loop, parameters and examples sharded over `devices` by the settings' mesh."""
    made = _prepare(folder, words, devices)
    settings = made.settings
    sampler = SAMPLERS[settings.sampler or "ddim"]()
    levels = made.noise.grid(made.kind.steps if settings.steps is None else settings.steps)
    make_denoise = guided_denoise(made.noise, made.kind.branches)

    def run(
        args: dict[str, Any], z: Float[Array, "b t h w c"], key: Key[Array, ""]
    ) -> Float[Array, "b t h w c"]:
        return driver.scan(
            sampler, make_denoise(args), z, jnp.asarray(levels.astype(np.float32)), key
        )

    key = jax.eval_shape(lambda: jax.random.key(0))
    return Program(run, (made.args, made.z, key), parameters=made.args["unet"])


def forward_program(folder: str, words: Sequence[str], devices: Sequence[Any]) -> Program:
    """One pass of the U-Net over the first branch's conditions, to the estimate of the clean latents."""
    made = _prepare(folder, words, devices)
    for name in ("steps", "sampler"):
        if getattr(made.settings, name) is not None:
            raise UserError(f"--{name} is for --program sample; leave it out")

    def run(
        args: dict[str, Any], z: Float[Array, "b t h w c"], logsnr: Float[Array, "b"]
    ) -> Float[Array, "b t h w c"]:
        conditions = made.kind.branches(args)[0].conditions
        return network_denoise(made.noise, args["unet"])(z, Level(logsnr), conditions).x

    logsnr = made.shapes.array(made.z.shape[:1])
    return Program(run, (made.args, made.z, logsnr), parameters=made.args["unet"])


def _prepare(folder: str, words: Sequence[str], devices: Sequence[Any]) -> Planned:
    """The pipeline of the folder with the settings that `words` give. Raises UserError for what cannot be planned."""
    place, name = Path(folder), pipeline_class(folder)
    if name not in KINDS:
        raise UserError(f"{folder} is a {name}, which cannot be planned; {', '.join(KINDS)} can")
    kind = KINDS[name]
    settings = parse_overrides(Settings(), words, prog=f"jaxvid plan {folder}")
    check_parts(place, ("unet", "vae", "scheduler", *(["text_encoder"] if kind.text else [])))
    config = _network(place / "unet", kind, settings, name)
    mesh = make_mesh(settings.mesh, devices)
    shapes = Shapes(
        _latents(place, settings, mesh, _frames(kind, settings, name)),
        _context(place, kind, config),
        jnp.dtype(settings.dtype),
        mesh,
    )
    if config.inputs != (2 if kind.image else 1) * shapes.latents[-1]:
        raise UserError(
            f"{place / 'unet'} takes {config.inputs} channels, which a {name} with {shapes.latents[-1]} latent channels "
            "does not give; use the folder as published"
        )
    args = {"unet": _parameters(config, shapes), **kind.args(shapes)}
    return Planned(kind, read_noise(place / "scheduler"), args, shapes.like_z(), shapes, settings)


def _network(folder: Path, kind: Kind, settings: Settings, name: str) -> ConditionalUNetConfig:
    """The U-Net's configuration, with motion modules where they are asked for."""
    config = _config(ConditionalUNetConfig, folder, unet_config)
    if config.context is None or config.numbers != kind.numbers or config.label != "none":
        raise UserError(f"{folder} is not the U-Net of a {name}; use the folder as published")
    if settings.motion is None:
        return config
    if kind.frames is not None or kind.image:
        raise UserError(f"--motion is not for a {name}; leave it out")
    return motion_config(config, settings.motion)


def _frames(kind: Kind, settings: Settings, name: str) -> int:
    default = 16 if settings.motion is not None else kind.frames
    if default is None and settings.frames is not None:
        raise UserError(f"--frames is for clips, and a {name} makes images; leave it out")
    frames = (default or 1) if settings.frames is None else settings.frames
    if frames < 1:
        raise UserError(f"--frames is {frames}; it must be 1 or more")
    return frames


def _latents(folder: Path, settings: Settings, mesh: Any, frames: int) -> tuple[int, ...]:
    """The shape of z."""
    parts = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
    batch = parts if settings.batch is None else settings.batch
    check_batch(mesh, batch)
    if mesh is not None and frames % mesh.shape["frames"]:
        raise UserError(
            f"mesh.frames={mesh.shape['frames']} does not divide the {frames} frames; choose one that does"
        )
    autoencoder = _config(AutoencoderConfig, folder / "vae", autoencoder_config)
    if settings.size is None:
        sides = trained_sides(folder / "unet", 64)
    else:
        found = re.fullmatch(r"(\d+)x(\d+)", settings.size)
        if found is None:
            raise UserError(
                f"--size is {settings.size!r:.40}; write HEIGHTxWIDTH in pixels, as 512x768"
            )
        sides = sides_of((int(found[1]), int(found[2])), autoencoder.factor)
    return batch, frames, *sides, autoencoder.latents


def _context(folder: Path, kind: Kind, config: ConditionalUNetConfig) -> tuple[int, int]:
    """Tokens and their width: as many as the text encoder has places, or an image's one vector."""
    width = config.context_inputs or config.context
    assert width is not None, "checked with the network"
    if not kind.text:
        return 1, width
    name, fields = read_fields(folder / "text_encoder")
    if name in MODULES:
        return _native(ClipTextConfig, folder / "text_encoder").positions, width
    return fields.number("max_position_embeddings", 77), width


def _config(kind: type[Config], folder: Path, read: Callable[[Path], Config]) -> Config:
    """The configuration of a network in one of this project's folders, or in a published one as `read` finds it."""
    return _native(kind, folder) if read_fields(folder)[0] in MODULES else read(folder)


def _native(kind: type[Config], folder: Path) -> Config:
    config = native_config(folder)
    if not isinstance(config, kind):
        raise UserError(f"{folder} holds a {type(config).__name__}, not a {kind.__name__}")
    return config


def _parameters(config: ConditionalUNetConfig, shapes: Shapes) -> ConditionalUNet:
    """The U-Net's shapes, of the type and with the shardings asked for."""
    unet = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, shapes.dtype), abstract_unet(config)
    )
    if shapes.mesh is None:
        return unet
    return with_sharding(unet, tree_sharding(shapes.mesh, unet))
