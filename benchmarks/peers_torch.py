"""The other side of `peers.py`: one peer's network in its own process and environment, asked over pipes.

Needs PyTorch, not jaxvid. Standard input and output carry one JSON value a line. The first line in is
`{"peer", "source", "threads", "shape", "arguments"}`, with `shape` as `b t h w c`; the answer describes the network. Each
line after it is `"forward"` or `"train"`; the answer is `{"wall": seconds, "cpu": seconds}` of one such step. A closed input
ends the process.
"""

import json
import sys
import time
from importlib.util import find_spec
from typing import Any
from unittest.mock import MagicMock

import torch
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


def timed(function) -> dict[str, float]:
    started = time.perf_counter(), time.process_time()
    function()
    return {
        "wall": time.perf_counter() - started[0],
        "cpu": time.process_time() - started[1],
    }


def describe(network, functions, gradients) -> dict[str, Any]:
    """Parameters, first calls (what a compile time stands against), and operations."""
    return {
        "versions": f"torch {torch.__version__}",
        "parameters": sum(p.numel() for p in network.parameters()),
        "first_s": {name: timed(function)["wall"] for name, function in functions.items()},
        "gflops": {"forward": gflops(functions["forward"]), "train": gflops(gradients)},
    }


def main() -> None:
    out, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints must not enter the answers

    def answer(value: Any) -> None:
        print(json.dumps(value), file=out, flush=True)

    request = json.loads(sys.stdin.readline())
    torch.manual_seed(0)
    torch.set_num_threads(request["threads"])
    build = {"video-diffusion-pytorch": video_diffusion_pytorch, "diffusers": diffusers}
    network, call = build[request["peer"]](request["source"], request["arguments"])
    functions, gradients = steps(network, call, request["shape"])
    description = describe(network, functions, gradients)
    if request["peer"] == "diffusers":
        description["versions"] += f", diffusers {sys.modules['diffusers'].__version__}"
    answer(description)
    for line in sys.stdin:
        answer(timed(functions[json.loads(line)]))


if __name__ == "__main__":
    main()
