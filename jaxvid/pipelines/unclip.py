"""unCLIP (Ramesh et al. 2022) with Karlo's weights: text to CLIP's image vector, the vector to an image, the image enlarged.

image = unclip(load_unclip("karlo-v1-alpha"), ["a red fox"], key)

The stages are functions of their own, since other systems start from one of them: `prior_vector` (section 2.2), `decode_vector`
(2.1), `enlarge_image`, whose last step has a network of its own. Vectors are `b e`, images `b 1 h w c` in [-1, 1].
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxvid.core.errors import UserError
from jaxvid.core.rng import named
from jaxvid.diffusion import guidance
from jaxvid.diffusion.driver import Progress
from jaxvid.diffusion.types import Level, Prediction
from jaxvid.models.clip import ClipText, Encoded
from jaxvid.models.conditional_unet import ConditionalUNet
from jaxvid.models.prior import ImageConditions, Prior
from jaxvid.pipelines.denoise import (
    Conditions,
    guided_program,
    one_branch,
    one_each,
    published_prediction,
    start,
    two_branches,
)
from jaxvid.pipelines.folders import check_parts, trained_sides
from jaxvid.pipelines.noise import PublishedNoise, read_noise
from jaxvid.weights.loading import WHOLE, Loading
from jaxvid.weights.registry import load_as
from jaxvid.weights.tokenizers import ClipTokenizer

PARTS = ("prior", "decoder", "text_encoder", "tokenizer", "text_proj", "super_res_first", "super_res_last",
         "prior_scheduler", "decoder_scheduler", "super_res_scheduler")  # fmt: skip


class Texts(NamedTuple):
    """Texts as CLIP sees them; mask: which tokens are text."""

    vector: Float[Array, "b e"]
    tokens: Float[Array, "b n d"]
    mask: Bool[Array, "b n"]


@dataclass(frozen=True)
class UnClip:
    """Networks, tokenizer and the noise of each stage. size, large: sides in pixels of the decoder and of the enlarged image."""

    prior: Prior
    conditions: ImageConditions
    decoder: ConditionalUNet
    enlarger: ConditionalUNet
    last_enlarger: ConditionalUNet
    text: ClipText
    tokenizer: ClipTokenizer
    prior_noise: PublishedNoise
    decoder_noise: PublishedNoise
    enlarger_noise: PublishedNoise
    size: tuple[int, int]
    large: tuple[int, int]

    def embed(self, texts: Sequence[str]) -> Texts:
        """What both stages are told of the texts."""
        encoded = self.tokenizer.encode(list(texts))
        found = _embed(self.text, jnp.asarray(encoded.tokens))
        return Texts(found.vector, found.tokens, jnp.asarray(encoded.mask))


@jax.jit
def _embed(text: ClipText, tokens: Int[Array, "b n"]) -> Encoded:
    return text(tokens)


def load_unclip(folder: str | Path, how: Loading = WHOLE) -> UnClip:
    """The pipeline in `folder`, in the layout of Karlo's. Raises UserError naming the file."""
    folder = Path(folder)
    check_parts(folder, PARTS)
    text = load_as(ClipText, folder / "text_encoder", how)
    if text.config.projection is None:
        raise UserError(
            f"{folder / 'text_encoder'} has no projection; give CLIPTextModelWithProjection"
        )
    return UnClip(
        prior=load_as(Prior, folder / "prior", how),
        conditions=load_as(ImageConditions, folder / "text_proj", how),
        decoder=load_as(ConditionalUNet, folder / "decoder", how),
        enlarger=load_as(ConditionalUNet, folder / "super_res_first", how),
        last_enlarger=load_as(ConditionalUNet, folder / "super_res_last", how),
        text=text,
        tokenizer=ClipTokenizer(str(folder / "tokenizer"), text.config.positions),
        prior_noise=read_noise(folder / "prior_scheduler"),
        decoder_noise=read_noise(folder / "decoder_scheduler"),
        enlarger_noise=read_noise(folder / "super_res_scheduler"),
        size=trained_sides(folder / "decoder", 64),
        large=trained_sides(folder / "super_res_first", 256),
    )


def unclip(
    model: UnClip,
    prompts: Sequence[str],
    key: Key[Array, ""],
    *,
    steps: tuple[int, int, int] = (25, 25, 7),
    prior_scale: float = 4.0,
    scale: float = 8.0,
    progress: Progress | None = None,
) -> Float[Array, "b 1 y x 3"]:
    """Images of the prompts through all three stages, in about [-1, 1].

    steps: of the prior, the decoder and the enlargement. prior_scale, scale: of classifier-free guidance in the first two.
    """
    vector = prior_vector(
        model, prompts, named(key, "prior"), steps=steps[0], scale=prior_scale, progress=progress
    )
    images = decode_vector(
        model,
        vector,
        named(key, "decoder"),
        prompts,
        steps=steps[1],
        scale=scale,
        progress=progress,
    )
    return enlarge_image(model, images, named(key, "enlarger"), steps=steps[2], progress=progress)


def prior_vector(
    model: UnClip,
    prompts: Sequence[str],
    key: Key[Array, ""],
    *,
    steps: int = 25,
    scale: float = 4.0,
    z: Float[Array, "b e"] | None = None,
    progress: Progress | None = None,
) -> Float[Array, "b e"]:
    """CLIP's image vectors that go with the prompts. z: pure noise instead of the key's own."""
    one_each(len(prompts), prompts)
    args = {
        "prior": model.prior,
        "given": model.embed(prompts)._asdict(),
        "none": model.embed([""] * len(prompts))._asdict(),
        "scale": jnp.float32(scale),
    }
    run = guided_program("ancestral", model.prior_noise, two_branches, _prior_network)
    z = start(z, (len(prompts), model.prior.config.vector), key)
    vector = run(args, z, model.prior_noise.grid(steps), key, progress=progress)
    return vector * model.prior.deviation[...] + model.prior.mean[...]


def _prior_network(noise: PublishedNoise, args: Any) -> guidance.DenoiseConditional:
    prior: Prior = args["prior"]

    def denoise(z: Array, level: Level, conditions: Conditions) -> Prediction:
        time = noise.table.network_time(level.logsnr)
        given = z.astype(prior.proj_in.kernel[...].dtype)
        output = prior(given, time, conditions["vector"], conditions["tokens"], conditions["mask"])
        return published_prediction(noise, output.astype(jnp.float32), z, level)

    return denoise


def decode_vector(
    model: UnClip,
    vector: Float[Array, "b e"],
    key: Key[Array, ""],
    prompts: Sequence[str] | None = None,
    *,
    steps: int = 25,
    scale: float = 8.0,
    z: Float[Array, "b 1 h w 3"] | None = None,
    progress: Progress | None = None,
) -> Float[Array, "b 1 h w 3"]:
    """Small images of CLIP's image vectors, within [-1, 1]. prompts: what they show, where it is known."""
    if prompts is not None:
        one_each(len(vector), prompts, "vectors")
    count, channels = len(vector), model.decoder.config.inputs
    none = model.embed([""] * count)
    args = {
        "unet": model.decoder,
        "given": _conditions(
            model.conditions, vector, none if prompts is None else model.embed(prompts)
        ),
        "none": _conditions(
            model.conditions,
            jnp.broadcast_to(model.conditions.unconditional[...], vector.shape),
            none,
        ),
        "scale": jnp.float32(scale),
    }
    run = guided_program("ancestral", model.decoder_noise, two_branches)
    z = start(z, (count, 1, *model.size, channels), key)
    images = run(args, z, model.decoder_noise.grid(steps), key, progress=progress)
    return jnp.clip(images, -1.0, 1.0)


@jax.jit
def _conditions(conditions: ImageConditions, vector: Float[Array, "b e"], texts: Texts) -> dict:
    context, label = conditions(vector, texts.vector, texts.tokens)
    extra = context.shape[1] - texts.mask.shape[1]
    mask = jnp.pad(texts.mask, ((0, 0), (extra, 0)), constant_values=True)
    return {"context": context, "label": label, "mask": mask}


def enlarge_image(
    model: UnClip,
    images: Float[Array, "b 1 h w 3"],
    key: Key[Array, ""],
    *,
    steps: int = 7,
    z: Float[Array, "b 1 y x 3"] | None = None,
    progress: Progress | None = None,
) -> Float[Array, "b 1 y x 3"]:
    """The images at the sides of the enlarging networks; the second of them takes the last of the steps."""
    if steps < 2:
        raise UserError(f"enlarging steps {steps}: give 2 or more, the last is another network's")
    shape = (*images.shape[:2], *model.large, images.shape[-1])
    given = {"image": jax.image.resize(images, shape, "cubic")}
    noise, levels = model.enlarger_noise, model.enlarger_noise.grid(steps)
    run = guided_program("ancestral", noise, one_branch)
    args = {"unet": model.enlarger, "given": given}
    z = run(args, start(z, shape, key), levels[:-1], key, progress=progress)
    return run({"unet": model.last_enlarger, "given": given}, z, levels[-2:], named(key, "last"))
