"""Published U-Nets as denoisers, and the compiled sampling loops over them.

Conditions of a branch are a dictionary of arrays `[b, ...]`: "context", the text's tokens; "mask", which of them are seen;
"image", channels laid beside z; "label" and "numbers", what else joins the time embedding (see `ConditionalUNet`).
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxvid.core.errors import UserError
from jaxvid.core.rng import named
from jaxvid.diffusion import guidance, samplers
from jaxvid.diffusion.driver import Program, program
from jaxvid.diffusion.parameterization import learned_range, to_prediction
from jaxvid.diffusion.types import Denoise, Level, Prediction
from jaxvid.models.conditional_unet import ConditionalUNet
from jaxvid.pipelines.noise import PublishedNoise

Conditions: TypeAlias = Mapping[str, Array]
# From the arguments of a run to the branches of its guidance.
Branches: TypeAlias = Callable[[Any], Sequence[guidance.Branch]]
# From the arguments of a run to the denoiser that branches share.
Network: TypeAlias = Callable[[PublishedNoise, Any], guidance.DenoiseConditional]
SamplerName = Literal["ddim", "ancestral", "dpm++", "heun"]
SAMPLERS: Mapping[SamplerName, Callable[[], samplers.Sampler]] = {
    "ddim": samplers.ddim,
    "ancestral": lambda: samplers.ancestral(0.0),  # of the posterior's variance, as published
    "dpm++": samplers.dpm_solver_2m,
    "heun": samplers.heun,
}


def network_denoise(noise: PublishedNoise, unet: ConditionalUNet) -> guidance.DenoiseConditional:
    """The conditional denoiser of a published U-Net."""

    def denoise(z: Array, level: Level, conditions: Conditions) -> Prediction:
        dtype = unet.conv_in.kernel[...].dtype
        given = z
        if "image" in conditions:
            given = jnp.concatenate([z, conditions["image"].astype(z.dtype)], axis=-1)
        output = unet(
            given.astype(dtype),
            noise.table.network_time(level.logsnr),
            conditions.get("context"),
            mask=conditions.get("mask"),
            label=conditions.get("label"),
            numbers=conditions.get("numbers"),
        )
        return published_prediction(noise, output.astype(jnp.float32), z, level)

    return denoise


def published_prediction(
    noise: PublishedNoise,
    output: Float[Array, "b *rest"],
    z: Float[Array, "b *rest2"],
    level: Level,
) -> Prediction:
    """What a network's output says; one of twice z's channels holds a variance, which is used where it was trained."""
    channels = z.shape[-1]
    if output.shape[-1] == 2 * channels and noise.learned:
        return learned_range(output, z, level.logsnr, noise.target)
    return to_prediction(output[..., :channels], z, level.logsnr, noise.target)


def _of_unet(noise: PublishedNoise, args: Any) -> guidance.DenoiseConditional:
    return network_denoise(noise, args["unet"])


def guided_denoise(
    noise: PublishedNoise, branches: Branches, network: Network = _of_unet
) -> Callable[[Any], Denoise]:
    """From the arguments of a run to its denoiser: the branches weighed, the estimate kept in range."""

    def make(args: Any) -> Denoise:
        return noise.bounded(guidance.guided(network(noise, args), branches(args)))

    return make


@functools.lru_cache(maxsize=16)
def guided_program(
    sampler: SamplerName, noise: PublishedNoise, branches: Branches, network: Network = _of_unet
) -> Program:
    """The compiled loop whose arguments hold "unet" (or whatever `network` takes) and what `branches` takes.

    One is kept for each combination, so `branches` and `network` are functions of a module.
    """
    if sampler not in SAMPLERS:
        raise UserError(f"sampler {sampler!r}: give one of {', '.join(SAMPLERS)}")
    return program(SAMPLERS[sampler](), guided_denoise(noise, branches, network))


def two_branches(args: Any) -> Sequence[guidance.Branch]:
    """Classifier-free guidance between the conditions "given" and "none", by "scale"."""
    return guidance.classifier_free(args["given"], args["none"], args["scale"])


def one_branch(args: Any) -> Sequence[guidance.Branch]:
    """The conditions "given" alone."""
    return [guidance.Branch(args["given"], 1.0)]


def start(
    z: Float[Array, "b *rest"] | None, shape: tuple[int, ...], key: Key[Array, ""]
) -> Float[Array, "b *rest"]:
    """The noise to start from: `z`, or the key's. Raises UserError for one of another shape."""
    if z is None:
        return jax.random.normal(named(key, "start"), shape)
    if z.shape != shape:
        raise UserError(f"the start has shape {z.shape}, these settings need {shape}")
    return z


def one_each(count: int, prompts: Sequence[str], what: str = "images") -> None:
    """Raises UserError unless there is a prompt for each of `count` images, and one at all."""
    if count != len(prompts):
        raise UserError(f"{count} {what} and {len(prompts)} prompts; give one for each")
    if not prompts:
        raise UserError("there are no prompts; give at least one")


def sides_of(size: tuple[int, int], factor: int) -> tuple[int, int]:
    """Height and width divided by `factor`. Raises UserError where they are no multiples of it."""
    if any(side < 1 or side % factor for side in size):
        raise UserError(
            f"height x width is {size[0]} x {size[1]}; both must be multiples of {factor}"
        )
    return size[0] // factor, size[1] // factor
