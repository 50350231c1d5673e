"""The other side of `peers.py`: one peer's network in its own process and environment, asked over pipes.

Needs PyTorch, not jaxvid. The protocol is that of `pairs.py`: the request is `{"peer", "source", "threads", "shape",
"arguments"}`, with `shape` as `b t h w c`; the answer describes the network; the steps are `forward` and `train`.
"""

import sys
from importlib.util import find_spec
from typing import Any
from unittest.mock import MagicMock

import torch
from pairs import serve, timed
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

TEXT_TOKENS = 8


def video_diffusion_pytorch(source: str, arguments: dict[str, Any]):
    """Unet3D and how it is called."""
    if find_spec("torchvision") is None:  # imported for its data set, which is not used here
        sys.modules["torchvision"] = MagicMock()
    sys.path.insert(0, source)
    from video_diffusion_pytorch import Unet3D

    return Unet3D(**arguments), lambda network, z, step: network(z, step)


def diffusers(source: str, arguments: dict[str, Any]):
    """UNet3DConditionModel and how it is called: its blocks need a text, so it gets a short one."""
    del source
    from diffusers import UNet3DConditionModel

    width = arguments["cross_attention_dim"]
    text = torch.randn(1, TEXT_TOKENS, width)

    def call(network, z, step):
        return network(z, step, text.expand(z.shape[0], -1, -1)).sample

    return UNet3DConditionModel(**arguments), call


def steps(network, call, shape: list[int]):
    """`forward` as a sampler runs it and `train`: mean square error, gradients, Adam."""
    b, t, h, w, c = shape
    z, target = torch.randn(b, c, t, h, w), torch.randn(b, c, t, h, w)
    step = torch.full((b,), 500)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)

    def forward():
        network.eval()
        with torch.inference_mode():
            call(network, z, step)

    def gradients():
        network.train()
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(call(network, z, step), target).backward()

    def train():
        gradients()
        optimizer.step()

    return {"forward": forward, "train": train}, gradients


def gflops(function) -> float:
    """Matrix products and convolutions; attention is counted in the form made of matrix products."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        function()
    return counter.get_total_flops() / 1e9


def describe(network, functions, gradients) -> dict[str, Any]:
    """Parameters, first calls (what a compile time stands against), and operations."""
    return {
        "versions": f"torch {torch.__version__}",
        "parameters": sum(p.numel() for p in network.parameters()),
        "first_s": {name: timed(function)["wall"] for name, function in functions.items()},
        "gflops": {"forward": gflops(functions["forward"]), "train": gflops(gradients)},
    }


def build(request: dict[str, Any]):
    """The steps and the description that the request asks for."""
    torch.manual_seed(0)
    torch.set_num_threads(request["threads"])
    make = {"video-diffusion-pytorch": video_diffusion_pytorch, "diffusers": diffusers}
    network, call = make[request["peer"]](request["source"], request["arguments"])
    functions, gradients = steps(network, call, request["shape"])
    description = describe(network, functions, gradients)
    if request["peer"] == "diffusers":
        description["versions"] += f", diffusers {sys.modules['diffusers'].__version__}"
    return functions, description


if __name__ == "__main__":
    serve(build)
