"""The other side of `public_networks.py`: diffusers' and transformers' networks in their own process and environment.

Needs PyTorch, not jaxvid. The protocol is that of `pairs.py`; the request names a `task`:

    make   the network with seeded random weights, written to the request's folder; no steps
    ask    the folder loaded, as whoever has it would; with `inputs`, asked once, its outputs in the file `outputs`; no steps
    speed  the folder loaded; the steps are `forward` and `guided`, the answer has the seconds of the first of each

Inputs are arrays in PyTorch's layout by the names of the network's own arguments. Memory is in bytes.
"""

import importlib
import math
import resource
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pairs import serve, timed

NORMS = 0.1  # deviation of what is added to biases and to the scales of norms


def class_of(network: dict[str, Any]):
    """The network's class."""
    return getattr(importlib.import_module(network["library"]), network["class"])


def reveal(model) -> None:
    """Moves every constant tensor (zeros and ones of PyTorch's initialisation), so that none of them can hide a mistake."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if (parameter == parameter.flatten()[0]).all():
                kernel = parameter.ndim > 1
                deviation = 1 / math.sqrt(parameter[0].numel()) if kernel else NORMS
                parameter += deviation * torch.randn(parameter.shape, generator=generator)


def make(request: dict[str, Any]) -> dict[str, Any]:
    """Writes the folder."""
    network = request["network"]
    kind = class_of(network)
    if network["library"] == "transformers":
        model = kind(kind.config_class(**network["config"]))
    else:
        model = kind(**network["config"])
    reveal(model)
    model.save_pretrained(request["folder"])
    return {"parameters": sum(p.numel() for p in model.parameters())}


def given(request: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The inputs by name."""
    with np.load(request["inputs"]) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def outputs(model, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """What is compared, in PyTorch's layout."""
    kind = type(model).__name__
    if kind == "AutoencoderKL":
        posterior = model.encode(inputs["images"]).latent_dist
        return [posterior.mean, posterior.logvar, model.decode(inputs["latents"]).sample]
    if kind == "CLIPTextModel":
        found = model(**inputs)
        return [found.last_hidden_state, found.pooler_output]
    return [model(**inputs).sample]


def peak() -> int:
    """The largest resident set of this process until now, pages of mapped files included."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def load(request: dict[str, Any]):
    """The network, and what loading it took."""
    kind = class_of(request["network"])  # imported before the clock runs
    found: dict[str, Any] = {"peak_before": peak()}
    models = []
    found["load_s"] = timed(lambda: models.append(kind.from_pretrained(request["folder"])))
    found["peak_loaded"] = peak()
    return models[0].eval(), found


def ask(request: dict[str, Any]) -> dict[str, Any]:
    """One forward pass, where there are inputs."""
    model, found = load(request)
    if request.get("inputs") is None:
        return found
    inputs = given(request)
    made: list[torch.Tensor] = []

    def forward():
        with torch.inference_mode():
            made[:] = outputs(model, inputs)

    found["forward_s"] = timed(forward)
    found["peak_asked"] = peak()
    np.savez(request["outputs"], *[each.numpy() for each in made])
    return found


def speed(request: dict[str, Any]):
    """The steps of a text-to-image U-Net, and the seconds of the first of each; writes by how much the guided step moves z."""
    from diffusers import DDIMScheduler

    model, _ = load(request)
    inputs, about = given(request), request["sampling"]
    scheduler = DDIMScheduler(**about["scheduler"])
    scheduler.save_pretrained(Path(request["folder"]) / "scheduler")
    scheduler.set_timesteps(about["steps"])
    z, time = inputs["sample"], scheduler.timesteps[about["step"]]
    contexts = torch.cat([inputs["none"], inputs["encoder_hidden_states"]])

    @torch.inference_mode()
    def forward():
        model(z, time, inputs["encoder_hidden_states"])

    @torch.inference_mode()
    def guided():
        none, text = model(torch.cat([z, z]), time, contexts).sample.chunk(2)
        return scheduler.step(none + about["scale"] * (text - none), time, z).prev_sample

    steps = {"forward": forward, "guided": guided}
    first = {name: timed(step)["wall"] for name, step in steps.items()}
    np.savez(request["outputs"], (guided() - z).numpy())
    return steps, {"first_s": first}


def build(request: dict[str, Any]):
    """The steps and the answer."""
    torch.manual_seed(0)
    torch.set_num_threads(request["threads"])
    if request["task"] == "speed":
        steps, found = speed(request)
    else:
        steps, found = {}, {"make": make, "ask": ask}[request["task"]](request)
    libraries = ("torch", "diffusers", "transformers", "accelerate")
    versions = [
        f"{name} {sys.modules[name].__version__}" for name in libraries if name in sys.modules
    ]
    return steps, found | {"versions": ", ".join(versions)}


if __name__ == "__main__":
    serve(build)
