"""`jaxvid sample FOLDER` for published pipelines: images and clips from text or images, to files.

Which pipeline it is says `model_index.json`; an option that it has no use for is refused.
"""

from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image
from tqdm import tqdm

from jaxvid import pipelines
from jaxvid.core.errors import UserError
from jaxvid.core.rng import named
from jaxvid.data.pictures import read_picture
from jaxvid.data.writing import contact_sheet, write_video
from jaxvid.diffusion.driver import Progress
from jaxvid.evaluate.files import output_paths
from jaxvid.pipelines.folders import pipeline_class, trained_sides
from jaxvid.weights.loading import Loading

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}
# Options that some pipelines take and others do not, with what they are called in the functions.
TEXT = {"negative": "negative", "guidance": "scale", "steps": "steps", "sampler": "sampler"}


@dataclass(frozen=True)
class Request:
    """What is asked of a pipeline: options that were given, by name; images in [-1, 1], none of them without `--image`."""

    folder: Path
    prompts: Sequence[str]
    images: Float[Array, "b h w 3"]
    key: Any
    progress: Progress
    options: Mapping[str, Any] = field(default_factory=dict)

    def given(self, names: Mapping[str, str]) -> dict[str, Any]:
        """The options that were given, as arguments of a function."""
        chosen = {to: self.options[name] for name, to in names.items() if name in self.options}
        return {**chosen, "progress": self.progress}


Run = Callable[[Request, Loading], Float[Array, "b t y x 3"]]


def _image(request: Request, how: Loading) -> Array:
    motion = request.options.get("motion")
    model = pipelines.load_latent_diffusion(request.folder, how, motion=motion)
    if motion is not None:
        names = {**TEXT, "size": "size", "frames": "frames"}
        return pipelines.text_to_video(model, request.prompts, request.key, **request.given(names))
    if "frames" in request.options:
        raise UserError("--frames is for clips; give --motion too, a folder of motion modules")
    names = {**TEXT, "size": "size"}
    return pipelines.text_to_image(model, request.prompts, request.key, **request.given(names))


def _video(request: Request, how: Loading) -> Array:
    model = pipelines.load_latent_diffusion(request.folder, how)
    names = {**TEXT, "size": "size", "frames": "frames"}
    return pipelines.text_to_video(model, request.prompts, request.key, **request.given(names))


def _edit(request: Request, how: Loading) -> Array:
    model = pipelines.load_latent_diffusion(request.folder, how)
    names = {**TEXT, "guidance": "text_scale", "image_guidance": "image_scale"}
    return pipelines.edit_image(
        model, request.images, request.prompts, request.key, **request.given(names)
    )


def _upscale(request: Request, how: Loading) -> Array:
    model = pipelines.load_upscaler(request.folder, how)
    return pipelines.upscale_image(
        model, request.images, request.prompts, request.key, **request.given(TEXT)
    )


def _unclip(request: Request, how: Loading) -> Array:
    model = pipelines.load_unclip(request.folder, how)
    given = request.given({"guidance": "scale"})
    if "steps" in request.options:
        given["steps"] = (request.options["steps"],) * 2 + (7,)
    return pipelines.unclip(model, request.prompts, request.key, **given)


def _pixels(request: Request, how: Loading) -> Array:
    model = pipelines.load_pixel_diffusion(request.folder, how)
    return pipelines.text_to_pixels(model, request.prompts, request.key, **request.given(TEXT))


def _enlarge_pixels(request: Request, how: Loading) -> Array:
    model = pipelines.load_pixel_diffusion(request.folder, how)
    return pipelines.enlarge_pixels(
        model, request.images[:, None], request.prompts, request.key, **request.given(TEXT)
    )


def _animate(request: Request, how: Loading) -> Array:
    model = pipelines.load_image_to_video(request.folder, how)
    given = request.given({"steps": "steps", "sampler": "sampler", "frames": "frames"})
    if "guidance" in request.options:
        given["scale"] = (1.0, float(request.options["guidance"]))
    if "fps" in request.options:
        given["fps"] = round(request.options["fps"])
    return pipelines.image_to_video(model, request.images, request.key, **given)


class Kind(NamedTuple):
    """A class of pipelines.

    takes: the options beside prompts and images. image: how a picture is brought to size: "own" keeps it but for the multiple
    of 8 that autoencoders want, "trained" resizes to what the model was trained at, "small" to a quarter of it; None takes none.
    """

    run: Run
    takes: tuple[str, ...]
    text: bool = True
    image: str | None = None
    moves: bool = False


KINDS: Mapping[str, Kind] = {
    "StableDiffusionPipeline": Kind(_image, (*TEXT, "size", "motion", "frames")),
    "StableDiffusionInstructPix2PixPipeline": Kind(
        _edit, (*TEXT, "size", "image_guidance"), image="own"
    ),
    "StableDiffusionUpscalePipeline": Kind(_upscale, (*TEXT, "size"), image="own"),
    "TextToVideoSDPipeline": Kind(_video, (*TEXT, "size", "frames"), moves=True),
    "UnCLIPPipeline": Kind(_unclip, ("guidance", "steps")),
    "IFPipeline": Kind(_pixels, tuple(TEXT)),
    "IFSuperResolutionPipeline": Kind(_enlarge_pixels, tuple(TEXT), image="small"),
    "StableVideoDiffusionPipeline": Kind(
        _animate,
        ("steps", "sampler", "frames", "guidance", "size", "fps"),
        text=False,
        image="trained",
        moves=True,
    ),
}
# Of the command, what every published pipeline takes; anything else that was given must be among a kind's `takes`.
COMMON = ("source", "prompt", "prompt_file", "image", "out", "seed", "fps", "dtype", "variant",
          "command", "run", "overrides")  # fmt: skip


def is_published(source: str) -> bool:
    """Whether the source of `jaxvid sample` is a published pipeline's folder."""
    return (Path(source) / "model_index.json").is_file()


def sample_published(options: Namespace, prompts: Sequence[str]) -> list[Path]:
    """Samples as the options say; returns the files written. What is wrong is said before weights are read."""
    folder = Path(options.source)
    kind, given = check_published(options, prompts)
    images = _read_images(options, kind, folder)
    count = max(len(prompts), len(images))
    if len(images) == 1 and count > 1:
        images = jnp.broadcast_to(images, (count, *images.shape[1:]))
    if len(prompts) == 1 and count > 1:
        prompts = list(prompts) * count
    moves = kind.moves or "motion" in given
    paths = output_paths(options.out, count, given.get("frames", 16) if moves else 1)
    how = Loading(dtype=DTYPES[options.dtype], variant=options.variant)
    with stage_bars() as progress:
        request = Request(
            folder, prompts, images, named(jax.random.key(options.seed), "sample"), progress, given
        )
        clips = _to_uint8(kind.run(request, how))
    for path, clip in zip(paths, clips, strict=True):
        write_video(path, clip, options.fps or 8.0)
    if count > 1:
        texts = list(prompts) if kind.text else None
        return [*paths, contact_sheet(clips, texts, paths[0].parent / "sheet.png")]
    return paths


def check_published(options: Namespace, prompts: Sequence[str]) -> tuple[Kind, dict[str, Any]]:
    """The kind of pipeline, and the options that were given to it. Raises UserError for what does not fit it."""
    name = pipeline_class(options.source)
    if name not in KINDS:
        raise UserError(
            f"{options.source} is a {name}, which cannot be sampled; {', '.join(KINDS)} can"
        )
    kind, given = KINDS[name], {}
    for option, value in vars(options).items():
        if value is None or (option in COMMON and option not in kind.takes):
            continue
        if option not in kind.takes:
            raise UserError(f"--{option.replace('_', '-')} is not for a {name}; leave it out")
        given[option] = value
    for option in ("steps", "frames"):
        if given.get(option, 1) < 1:
            raise UserError(f"--{option} is {given[option]}; it must be 1 or more")
    if options.fps is not None and not 0 < options.fps <= 1000:
        raise UserError(f"--fps is {options.fps:g}; choose between 0 and 1000")
    if kind.text != bool(prompts):
        remedy = "give --prompt" if kind.text else "leave --prompt out"
        raise UserError(f"a {name} {'needs' if kind.text else 'takes no'} text; {remedy}")
    if (kind.image is not None) != bool(options.image):
        remedy = "leave --image out" if options.image else "give --image"
        raise UserError(f"a {name} {'takes no' if options.image else 'needs an'} image; {remedy}")
    both = kind.text and len(prompts) > 1 and len(options.image) > 1
    if both and len(prompts) != len(options.image):
        raise UserError(
            f"{len(options.image)} images and {len(prompts)} prompts; give one for each, or one for all"
        )
    return kind, given


def _read_images(options: Namespace, kind: Kind, folder: Path) -> Float[Array, "b h w 3"]:
    """The pictures in [-1, 1], all of one size."""
    if not options.image:
        return jnp.zeros((0, 1, 1, 3))
    size = options.size
    if kind.image in ("trained", "small") and size is None:
        height, width = trained_sides(folder / "unet", 64)
        size = (8 * height, 8 * width) if kind.image == "trained" else (height // 4, width // 4)
    pictures = [_read_image(path, size) for path in options.image]
    sizes = {picture.shape[:2] for picture in pictures}
    if len(sizes) > 1:
        raise UserError("the images differ in size; give --size HEIGHTxWIDTH")
    return jnp.asarray(np.stack(pictures), jnp.float32) / 127.5 - 1


def _read_image(path: Path, size: tuple[int, int] | None) -> UInt8[np.ndarray, "h w 3"]:
    """A picture, resized where a size is given, else to sides that are multiples of 8."""
    if not path.is_file():
        raise UserError(f"--image {path} does not exist; check the path")
    picture = Image.fromarray(read_picture(path))
    height, width = size or tuple(max(side // 8, 1) * 8 for side in picture.size[::-1])
    if (picture.width, picture.height) != (width, height):
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(picture)


@contextmanager
def stage_bars() -> Iterator[Progress]:
    """Bars over the steps of one sampling run after the other, and the function that moves them."""
    bars: list[tqdm] = []

    def progress(done: int, total: int, _: Array) -> None:
        if not bars or done <= bars[-1].n:
            bars.append(tqdm(total=total, desc="sampling", unit="step", disable=None))
        bars[-1].update(done - bars[-1].n)

    try:
        yield progress
    finally:
        for bar in bars:
            bar.close()


def _to_uint8(clips: Float[Array, "b t y x 3"]) -> UInt8[np.ndarray, "b t y x 3"]:
    if not np.isfinite(clips).all():
        raise UserError(
            "the sample is not finite; try --dtype bfloat16 or float32 instead of float16, or less --guidance"
        )
    return np.asarray(jnp.round(127.5 * (jnp.clip(clips, -1, 1) + 1)).astype(jnp.uint8))
