"""Our U-Net against other libraries' U-Nets of the same size: time of a train step and of a forward pass on a CPU.

The peers are lucidrains' `video-diffusion-pytorch` (Unet3D) and `diffusers` (UNet3DConditionModel), each eager as it is
published, in its own environment and process (`peers_torch.py`). Both sides are float32, use the same number of threads, see
the same shape, train on a mean square error with Adam, and do not measure data loading. Both processes stay alive and are
asked in turn, ours and theirs, so that a pair meets the same load; a ratio is their time over ours in one pair, and above 1
we are faster. Compile time (their first call) is measured apart.

What makes the networks alike: three levels of width 1, 2, 4 times the first one, our first width and number of blocks
chosen so that parameters agree within 5 % (checked). What differs, by design of each:

    ours        one (against Unet3D) or two blocks in each half of a level: residual block of 1x3x3 convolutions, full spatial attention,
                temporal attention with relative positions; attention at all levels but the finest, as in the paper; group norms
    Unet3D      two residual blocks of 1x3x3 convolutions in each half of a level, then one linear spatial and one temporal
                attention, at all levels; full spatial attention in the middle alone; RMS norms over channels; 7x7 stem and
                4x4 resampling; heads of 32 channels whatever the width
    UNet3D-     two (down) or three (up) residual blocks of 3x3 convolutions, each followed by a stack of four 3x1x1
    Condition-  convolutions, a spatial transformer with a text (8 tokens here) and a temporal transformer, both with
    Model       feed-forward layers of four times the width; attention at all levels but the coarsest; group norms

Equal parameters are therefore not equal work: the table gives the operations of both (matrix products and convolutions, 2 a
multiply-add), and the rates that follow.

    python benchmarks/peers.py --peer-python VENV/bin/python --video-diffusion-pytorch CHECKOUT --json peers.json

VENV holds torch, diffusers, einops, einops-exts and rotary-embedding-torch. A peer that is absent is skipped with a line that
says so. `--only diffusers/latent` and the like run one case. The CPU time of one thread (`--threads 1`) is the figure that
other programs on the machine disturb least.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from pairs import Peer, clock_cells, commit, lacking, markdown, pairs, use_cores
from programs import compiled

from jaxvid.models.unet import UNet, UNetConfig

TOLERANCE = 0.05
STEPS = ("forward", "train")
SHAPES = {"pixel": (2, 16, 32, 32, 3), "latent": (4, 8, 16, 16, 4)}  # b t h w c
# What of ours matches the peer, and the peer's arguments without the channels in and out.
PEERS: dict[str, tuple[dict[str, int], dict[str, Any]]] = {
    "video-diffusion-pytorch": (
        {"channels": 40, "head_dim": 40, "embedding_width": 128, "blocks": 1},
        {"dim": 32, "dim_mults": (1, 2, 4)},
    ),
    "diffusers": (
        {"channels": 48, "head_dim": 48, "embedding_width": 192, "blocks": 2},
        {
            "block_out_channels": (32, 64, 128),
            "down_block_types": ("CrossAttnDownBlock3D",) * 2 + ("DownBlock3D",),
            "up_block_types": ("UpBlock3D",) + ("CrossAttnUpBlock3D",) * 2,
            "attention_head_dim": 32,
            "cross_attention_dim": 64,
            "norm_num_groups": 8,
        },
    ),
}


@dataclass(frozen=True)
class Ours:
    """One network of ours: what it is, and its compiled steps, each a function that returns when it is done."""

    parameters: int
    gflops: dict[str, float]
    compile_s: dict[str, float]
    steps: dict[str, Callable[[], None]]


def our_config(size: dict[str, Any], channels: int) -> UNetConfig:
    """The paper's U-Net with three levels, unrolled, which is the faster form on a CPU."""
    return UNetConfig(
        **size,
        multipliers=(1, 2, 4),
        attention_levels=(1, 2),
        embedding_layers=2,
        modulation="scale_shift",
        groups=8,
        input_channels=channels,
        output_channels=channels,
        scan=False,
    )


def our_network(config: UNetConfig, shape: tuple[int, ...]) -> Ours:
    """Compiles both steps; the train step gives its parameters and moments away, as the training loop does."""
    network = jax.jit(lambda key: UNet(config, key))(jax.random.key(0))
    optimizer = optax.adam(1e-4)
    z, target = (jax.random.normal(jax.random.key(i), shape) for i in (1, 2))
    logsnr = jnp.zeros((shape[0], 1))

    def loss(network, z, target, logsnr):
        return jnp.mean(jnp.square(network(z, logsnr) - target))

    def train(network, moments, z, target, logsnr):
        value, gradients = jax.value_and_grad(loss)(network, z, target, logsnr)
        updates, moments = optimizer.update(gradients, moments, network)
        return optax.apply_updates(network, updates), moments, value

    moments = optimizer.init(network)
    programs = {
        "forward": compiled(UNet.__call__, network, z, logsnr),
        "train": compiled(train, network, moments, z, target, logsnr, donate=(0, 1)),
    }
    state = [network, moments]

    def run_forward():
        jax.block_until_ready(programs["forward"].call(state[0], z, logsnr))

    def run_train():
        *state[:], value = programs["train"].call(*state, z, target, logsnr)
        jax.block_until_ready(value)

    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(network))
    return Ours(
        parameters=count,
        gflops={name: program.flops.total / 1e9 for name, program in programs.items()},
        compile_s={name: program.compile_s for name, program in programs.items()},
        steps={"forward": run_forward, "train": run_train},
    )


def compare(
    name: str, shape_name: str, python: str, source: str, threads: int
) -> list[dict[str, Any]]:
    """Rows of one peer at one shape."""
    size, arguments = PEERS[name]
    shape = SHAPES[shape_name]
    channels = {"channels": shape[-1]}
    if name == "diffusers":
        channels = {"in_channels": shape[-1], "out_channels": shape[-1], "sample_size": shape[2]}
    with Peer(python, "peers_torch.py") as peer:
        request = {"peer": name, "source": source, "threads": threads, "shape": shape}
        theirs = peer.ask(request | {"arguments": arguments | channels})
        ours = our_network(our_config(size, shape[-1]), shape)
        common = {
            "peer": name,
            "shape_name": shape_name,
            "shape": shape,
            "threads": threads,
            "versions": f"jax {jax.__version__}, {theirs['versions']}{commit(source)}",
            "parameters": [ours.parameters, theirs["parameters"]],
        }
        difference = ours.parameters / theirs["parameters"] - 1
        if abs(difference) > TOLERANCE:
            raise SystemExit(f"{name} {shape_name}: parameters differ by {difference:+.1%}")
        rows = []
        for step in STEPS:
            costs = {
                "gflops": [ours.gflops[step], theirs["gflops"][step]],
                "first_s": [ours.compile_s[step], theirs["first_s"][step]],
            }
            rows.append(common | costs | pairs(ours.steps[step], peer, step))
            print(f"{name} {shape_name} {step}: {rows[-1]['wall']}", file=sys.stderr)
    return rows


def absent(name: str, python: str | None, source: str | None) -> str | None:
    """Why a peer cannot run, or None."""
    modules = {"video-diffusion-pytorch": "einops_exts", "diffusers": "diffusers"}
    reason = lacking(python, "torch", modules[name])
    if reason is not None or name != "video-diffusion-pytorch":
        return reason
    found = source is not None and Path(source).is_dir()
    return None if found else "no checkout at --video-diffusion-pytorch"


def table(rows: list[dict[str, Any]]) -> str:
    """The results as Markdown; figures of both sides are ours / theirs."""
    header = [
        "peer",
        "b x t x h x w x c",
        "step",
        "threads",
        "million parameters",
        "GFLOPs",
        "wall ms",
        "wall ratio (range)",
        "CPU ms",
        "CPU ratio (range)",
        "GFLOP per CPU second",
        "compile / first call s",
    ]
    lines = []
    for row in rows:
        cells = [row["peer"], "x".join(map(str, row["shape"])), row["step"]]
        cells.append(str(row["threads"]))
        cells.append(" / ".join(f"{n / 1e6:.2f}" for n in row["parameters"]))
        cells.append(" / ".join(f"{g:.1f}" for g in row["gflops"]))
        cells += clock_cells(row)
        seconds = row["cpu"]["ours_s"], row["cpu"]["theirs_s"]
        rates = [g / s for g, s in zip(row["gflops"], seconds, strict=True)]
        cells.append(" / ".join(f"{rate:.1f}" for rate in rates))
        cells.append(" / ".join(f"{s:.1f}" for s in row["first_s"]))
        lines.append(cells)
    return markdown(header, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--peer-python", help="Python of an environment with PyTorch and the peers")
    parser.add_argument("--video-diffusion-pytorch", help="checkout of that repository")
    parser.add_argument("--only", help="PEER/SHAPE, for example diffusers/latent")
    parser.add_argument("--threads", type=int, default=2, help="of each side; 2 unless told")
    parser.add_argument("--json", type=Path, help="where the raw figures go")
    args = parser.parse_args()
    use_cores(args.threads)
    sources = {"video-diffusion-pytorch": args.video_diffusion_pytorch, "diffusers": ""}
    rows = []
    for name, source in sources.items():
        shapes = [s for s in SHAPES if args.only in (None, f"{name}/{s}")]
        reason = absent(name, args.peer_python, source) if shapes else None
        if reason is not None:
            print(f"{name}: skipped, {reason}")
            continue
        for shape_name in shapes:
            rows += compare(name, shape_name, args.peer_python, source, args.threads)
            if args.json is not None:
                args.json.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
