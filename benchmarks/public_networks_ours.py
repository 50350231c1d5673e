"""Our side of `public_networks.py`: a published folder read into JAX, and asked.

As a program it is a fresh process of ours, asked over pipes as `public_networks_torch.py` is, with the task `ask`; the steps
of the speed comparison run in the process of `public_networks.py`. Arrays of inputs and outputs are in PyTorch's layout,
and are brought to `b t h w c` and back outside of what is timed. Memory is in bytes.
"""

import resource
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from pairs import serve, timed
from programs import compiled

from jaxvid.models.autoencoder import Autoencoder
from jaxvid.models.clip import ClipText
from jaxvid.pipelines.denoise import guided_program, two_branches
from jaxvid.pipelines.noise import read_noise
from jaxvid.weights.registry import load_model

NAMES = {
    "encoder_hidden_states": "context",
    "class_labels": "label",
    "attention_mask": "mask",
    "sample": "z",
    "timestep": "time",
}


class Question(NamedTuple):
    """What is compiled, of the module and its inputs; the inputs in our layout; outputs back to PyTorch's, as a list."""

    call: Callable[..., Any]
    inputs: dict[str, jax.Array]
    back: Callable[[Any], list[np.ndarray]]


def last(x: np.ndarray) -> np.ndarray:
    """Images `b c h w` or clips `b c t h w` to `b t h w c`."""
    clip = x[:, :, None] if x.ndim == 4 else x
    return np.ascontiguousarray(clip.transpose(0, 2, 3, 4, 1))


def first(x: jax.Array, *, still: bool) -> np.ndarray:
    """Back; to images where they were `still`."""
    clip = np.asarray(x).transpose(0, 4, 1, 2, 3)
    return clip[:, :, 0] if still else clip


def autoencode(vae: Autoencoder, images: jax.Array, latents: jax.Array) -> tuple[jax.Array, ...]:
    """Mean and log-variance of the latents of images, and the images of unscaled latents."""
    return (*vae.moments(images), vae.decode(latents * vae.config.scale))


def question(module: Any, arrays: Mapping[str, np.ndarray]) -> Question:
    """How this module is asked about these arrays."""
    if isinstance(module, ClipText):
        tokens = {"tokens": jnp.asarray(arrays["input_ids"], jnp.int32)}
        return Question(type(module).__call__, tokens, lambda found: [np.asarray(x) for x in found])
    if isinstance(module, Autoencoder):
        inputs = {name: jnp.asarray(last(array)) for name, array in arrays.items()}
        return Question(autoencode, inputs, lambda found: [first(x, still=True) for x in found])
    still = arrays["sample"].ndim == 4
    inputs = {NAMES[name]: jnp.asarray(array) for name, array in arrays.items()}
    inputs["z"] = jnp.asarray(last(arrays["sample"]))
    return Question(type(module).__call__, inputs, lambda found: [first(found, still=still)])


def peak() -> int:
    """The largest resident set of this process until now, pages of mapped files included."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def load(folder: str) -> tuple[Any, dict[str, Any]]:
    """The module, and what loading it took."""
    jax.block_until_ready(jnp.zeros(1))  # the backend starts before the clock does
    found: dict[str, Any] = {"peak_before": peak()}
    modules: list[Any] = []
    found["load_s"] = timed(lambda: modules.append(jax.block_until_ready(load_model(folder))))
    return modules[0], found | {"peak_loaded": peak()}


def ask(request: Mapping[str, Any]) -> dict[str, Any]:
    """One forward pass, where there are inputs."""
    module, found = load(request["folder"])
    if request.get("inputs") is None:
        return found
    with np.load(request["inputs"]) as arrays:
        asked = question(module, arrays)
    run = compiled(lambda module, inputs: asked.call(module, **inputs), module, asked.inputs)
    found |= {"compile_s": run.compile_s, "gflops": run.flops.total / 1e9}
    made: list[Any] = []
    forward = timed(lambda: made.append(jax.block_until_ready(run.call(module, asked.inputs))))
    found |= {"forward_s": forward, "peak_asked": peak()}
    np.savez(request["outputs"], *asked.back(made[0]))
    return found


class Steps(NamedTuple):
    """Steps by name, each a function that returns when it is done; the seconds of the first of each; operations of a forward pass.

    moved: by how much the guided step moves z, in PyTorch's layout.
    """

    steps: dict[str, Callable[[], Any]]
    first_s: dict[str, float]
    gflops: float
    moved: np.ndarray


def speed(folder: str, arrays: Mapping[str, np.ndarray], sampling: Mapping[str, Any]) -> Steps:
    """A forward pass of a text-to-image U-Net, and one guided DDIM step as `jaxvid.pipelines` takes it."""
    unet, noise = load_model(folder), read_noise(Path(folder) / "scheduler")
    asked = question(unet, {name: array for name, array in arrays.items() if name != "none"})

    args = {
        "unet": unet,
        "given": {"context": asked.inputs["context"]},
        "none": {"context": jnp.asarray(arrays["none"])},
        "scale": jnp.float32(sampling["scale"]),
    }
    levels = noise.grid(sampling["steps"])[sampling["step"] : sampling["step"] + 2]
    sample, key = guided_program("ddim", noise, two_branches), jax.random.key(0)
    forward = compiled(lambda unet, inputs: asked.call(unet, **inputs), unet, asked.inputs)
    steps = {
        "forward": lambda: jax.block_until_ready(forward.call(unet, asked.inputs)),
        "guided": lambda: jax.block_until_ready(sample(args, asked.inputs["z"], levels, key)),
    }
    first_s = {name: timed(step)["wall"] for name, step in steps.items()}
    first_s["forward"] += forward.compile_s
    moved = first(steps["guided"]() - asked.inputs["z"], still=True)
    return Steps(steps, first_s, forward.flops.total / 1e9, moved)


if __name__ == "__main__":
    serve(lambda request: ({}, ask(request)))
