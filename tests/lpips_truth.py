"""Weights and images that need no file, and what the published LPIPS makes of them.

`python tests/lpips_truth.py` writes lpips_truth.json anew with the package `lpips` 0.1.4 (extra `parity`).
"""

import json
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_suffix(".json")
SIZES = {"alex": (67, 53), "vgg": (37, 29)}  # height and width of the images
CONVOLUTIONS = {  # number in torchvision's `features`: outputs, inputs, side of the kernel
    "alex": {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)},
    "vgg": {
        **{0: (64, 3, 3), 2: (64, 64, 3), 5: (128, 64, 3), 7: (128, 128, 3)},
        **{10: (256, 128, 3), 12: (256, 256, 3), 14: (256, 256, 3)},
        **{17: (512, 256, 3), 19: (512, 512, 3), 21: (512, 512, 3)},
        **{24: (512, 512, 3), 26: (512, 512, 3), 28: (512, 512, 3)},
    },
}  # fmt: skip
HEADS = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}


def tensors(network, seed=0):
    """Random weights by their published names: backbone and heads."""
    rng = np.random.default_rng(seed)

    def uniform(low, high, *shape):
        return (low + (high - low) * rng.random(shape)).astype(np.float32)

    backbone, heads = {}, {}
    for place, (outputs, inputs, side) in CONVOLUTIONS[network].items():
        reach = (6 / (inputs * side**2)) ** 0.5  # keeps the size of what passes a ReLU
        backbone[f"features.{place}.weight"] = uniform(-reach, reach, outputs, inputs, side, side)
        backbone[f"features.{place}.bias"] = uniform(-0.1, 0.1, outputs)
    for number, width in enumerate(HEADS[network]):
        heads[f"lin{number}.model.1.weight"] = uniform(0, 1, 1, width, 1, 1)
    return backbone, heads


def images(network):
    """Two pairs in [-1, 1], the first of similar and the second of unrelated images, and a direction for each."""
    rng = np.random.default_rng(1)
    first, second, direction = 2 * rng.random((3, 2, *SIZES[network], 3)) - 1
    second[0] = np.clip(first[0] + 0.2 * second[0], -1, 1)
    return tuple(x.astype(np.float32) for x in (first, second, direction))


def published(network):
    """Each pair's distance, the share of each tap in it, its slope along the direction, and its gradient's length."""
    import lpips
    import torch

    model = lpips.LPIPS(net=network, pretrained=False, pnet_rand=True, verbose=False)
    backbone, heads = tensors(network)
    slices = {
        name.split(".")[-2]: name.rpartition(".")[0]
        for name in model.state_dict()
        if name.startswith("net.")
    }
    values = {f"lins.{name[3:]}": tensor for name, tensor in heads.items()} | heads
    for name, tensor in backbone.items():
        _, place, kind = name.split(".")
        values[f"{slices[place]}.{kind}"] = tensor
    model.load_state_dict(
        {name: torch.tensor(tensor) for name, tensor in values.items()}
        | {name: value for name, value in model.state_dict().items() if "scaling" in name}
    )
    first, second, direction = (torch.tensor(x).permute(0, 3, 1, 2) for x in images(network))
    first.requires_grad_()
    distance, taps = model(first, second, retPerLayer=True)
    (gradient,) = torch.autograd.grad(distance.sum(), first)
    return {
        "distance": distance.flatten().tolist(),
        "taps": [tap.flatten().tolist() for tap in taps],
        "slope": (gradient * direction).sum((1, 2, 3)).tolist(),
        "length": gradient.square().sum((1, 2, 3)).sqrt().tolist(),
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps({name: published(name) for name in SIZES}, indent=1) + "\n")
