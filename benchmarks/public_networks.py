"""Public networks at full size, with random weights: our reading of a published folder against PyTorch's.

For each network (`NETWORKS`: the published configurations, as data) the peer's process (`public_networks_torch.py`:
diffusers, transformers) makes it with seeded random weights, no tensor constant, and writes the folder as `save_pretrained`
does. Then each side, in new processes, reads that folder and answers the same inputs, in float32:

    load         from disk to a network that can be asked: the median of `LOADS` new processes a side, in turn, each after the
                 files were read once, so that all find them in the page cache; importing the libraries is not in it
    forward      the first pass; ours without the compilation, which has a column of its own
    peak         of the process's resident set since its start (ru_maxrss): the libraries, the code, and the pages of the mapped
                 file are in it, ours also has what compiling took
    difference   of the outputs: 2-norm of the difference over that of PyTorch's, the largest of a network's outputs; it must
                 be below `BOUND`

Of Stable Diffusion's U-Net also the speed, by the protocol of `pairs.py`: a forward pass, and one guided DDIM step (both
branches in one batch; diffusers' DDIMScheduler against `jaxvid.diffusion`, as `jaxvid.pipelines` puts them together).

    python benchmarks/public_networks.py --peer-python VENV/bin/python --scratch DIR --json public_networks.json

VENV holds torch, diffusers, transformers and accelerate. DIR needs 6 GB, and 4 GB more where networks are kept (`--keep`);
memory 16 GB. `--only modelscope` and the like take one network.
"""

import argparse
import json
import shutil
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from pairs import CLOCKS, Peer, clock_cells, lacking, markdown, pairs, use_cores
from public_networks_ours import speed

BOUND = 1e-4
LOADS = 3
SIDES = ("ours", "theirs")
OURS, THEIRS = "public_networks_ours.py", "public_networks_torch.py"
SPEED = "stable-diffusion-unet"
IMAGE_UNET: dict[str, Any] = {
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": (320, 640, 1280, 1280),
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-5,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
TEXT: dict[str, Any] = {
    "sample": ((1, 4, 64, 64), "normal"),
    "timestep": ((1,), 1000),
    "encoder_hidden_states": ((1, 77, 768), "normal"),
}
# Class and configuration as published, and the inputs: shape, and "normal", "mask", or an integer above those drawn.
NETWORKS: dict[str, dict[str, Any]] = {
    "stable-diffusion-vae": {
        "library": "diffusers",
        "class": "AutoencoderKL",
        "config": {
            "act_fn": "silu",
            "block_out_channels": (128, 256, 512, 512),
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "in_channels": 3,
            "latent_channels": 4,
            "layers_per_block": 2,
            "norm_num_groups": 32,
            "out_channels": 3,
            "sample_size": 512,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
        },
        "inputs": {
            "images": ((1, 3, 256, 256), "normal"),
            "latents": ((1, 4, 32, 32), "normal"),
        },
    },
    "clip-vit-large-text": {
        "library": "transformers",
        "class": "CLIPTextModel",
        "config": {
            "bos_token_id": 0,
            "eos_token_id": 2,
            "hidden_act": "quick_gelu",
            "hidden_size": 768,
            "intermediate_size": 3072,
            "layer_norm_eps": 1e-5,
            "max_position_embeddings": 77,
            "num_attention_heads": 12,
            "num_hidden_layers": 12,
            "pad_token_id": 1,
            "projection_dim": 768,
            "vocab_size": 49408,
        },
        "inputs": {"input_ids": ((1, 77), 49408)},
    },
    "instruct-pix2pix-unet": {
        "library": "diffusers",
        "class": "UNet2DConditionModel",
        "config": {**IMAGE_UNET, "in_channels": 8},
        "inputs": {**TEXT, "sample": ((1, 8, 64, 64), "normal")},
    },
    "karlo-decoder-unet": {
        "library": "diffusers",
        "class": "UNet2DConditionModel",
        "config": {
            "attention_head_dim": 64,
            "block_out_channels": (320, 640, 960, 1280),
            "class_embed_type": "identity",
            "cross_attention_dim": 1536,
            "down_block_types": ("ResnetDownsampleBlock2D",) + ("SimpleCrossAttnDownBlock2D",) * 3,
            "in_channels": 3,
            "layers_per_block": 3,
            "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
            "out_channels": 6,
            "resnet_time_scale_shift": "scale_shift",
            "sample_size": 64,
            "up_block_types": ("SimpleCrossAttnUpBlock2D",) * 3 + ("ResnetUpsampleBlock2D",),
        },
        # 77 tokens of the text after 4 of the image; the label is as wide as the embedding of time.
        "inputs": {
            "sample": ((1, 3, 64, 64), "normal"),
            "timestep": ((1,), 1000),
            "encoder_hidden_states": ((1, 81, 1536), "normal"),
            "class_labels": ((1, 1280), "normal"),
            "attention_mask": ((1, 81), "mask"),
        },
    },
    "modelscope-unet": {
        "library": "diffusers",
        "class": "UNet3DConditionModel",
        "config": {
            "act_fn": "silu",
            "attention_head_dim": 64,
            "block_out_channels": (320, 640, 1280, 1280),
            "cross_attention_dim": 1024,
            "down_block_types": ("CrossAttnDownBlock3D",) * 3 + ("DownBlock3D",),
            "downsample_padding": 1,
            "in_channels": 4,
            "layers_per_block": 2,
            "mid_block_scale_factor": 1,
            "norm_eps": 1e-5,
            "norm_num_groups": 32,
            "out_channels": 4,
            "sample_size": 32,
            "up_block_types": ("UpBlock3D",) + ("CrossAttnUpBlock3D",) * 3,
        },
        "inputs": {
            "sample": ((1, 4, 8, 32, 32), "normal"),
            "timestep": ((1,), 1000),
            "encoder_hidden_states": ((1, 77, 1024), "normal"),
        },
    },
    # The last: its speed is measured in this process, whose size the later ones would show in their peaks.
    SPEED: {
        "library": "diffusers",
        "class": "UNet2DConditionModel",
        "config": IMAGE_UNET,
        "inputs": TEXT,
    },
}
# Of Stable Diffusion 1.5: its scheduler's numbers, guidance as its pipeline's, the 20th of 50 steps.
SAMPLING: dict[str, Any] = {
    "scheduler": {
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "clip_sample": False,
        "num_train_timesteps": 1000,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    },
    "scale": 7.5,
    "steps": 50,
    "step": 20,
}


def draw(shape: tuple[int, ...], kind: str | int, rng: np.random.Generator) -> np.ndarray:
    """An input: normal float32, integers below `kind`, or a mask whose first token is seen."""
    if isinstance(kind, int):
        return rng.integers(0, kind, shape)
    if kind == "mask":
        mask = rng.random(shape) < 0.6
        mask[:, 0] = True
        return mask
    return rng.standard_normal(shape, np.float32)


def write_inputs(file: Path, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Draws the inputs, the same every time, and writes them."""
    rng = np.random.default_rng(0)
    arrays = {name: draw(shape, kind, rng) for name, (shape, kind) in inputs.items()}
    np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
    return arrays


def answered(python: str, worker: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """What a new process of that file answers."""
    with Peer(python, worker) as process:
        return process.ask(request)


def read_once(folder: Path) -> None:
    """Brings the files into the page cache."""
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass


def difference(mine: Path, theirs: Path) -> float:
    """Relative, in the 2-norm; the largest of the outputs. Infinite where shapes or numbers are not alike."""
    with np.load(mine) as ours, np.load(theirs) as truth:
        if ours.files != truth.files:
            return np.inf
        pairs_of = [(ours[name].astype(np.float64), truth[name]) for name in truth.files]
    found = [
        np.linalg.norm(a - b) / np.linalg.norm(b) if a.shape == b.shape else np.inf
        for a, b in pairs_of
    ]
    return float(np.max(np.nan_to_num(found, nan=np.inf)))


def compare(name: str, folder: Path, python: str, threads: int) -> dict[str, Any]:
    """Makes the network, and asks both sides about it; see the module for the figures."""
    network = NETWORKS[name]
    request = {"task": "make", "network": network, "folder": str(folder), "threads": threads}
    made = answered(python, THEIRS, request)
    print(f"{name}: {made['parameters'] / 1e6:.1f} M parameters written", file=sys.stderr)
    write_inputs(folder / "inputs.npz", network["inputs"])
    sides = {"ours": (sys.executable, OURS), "theirs": (python, THEIRS)}
    row: dict[str, Any] = {"network": name, "class": network["class"], **made}
    loads: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for index in range(LOADS):
        for side, (program, worker) in sides.items():
            read_once(folder)
            files = {"inputs": str(folder / "inputs.npz"), "outputs": str(folder / f"{side}.npz")}
            more = files if index + 1 == LOADS else {}
            row[side] = answered(program, worker, {**request, "task": "ask", **more})
            loads[side].append(row[side]["load_s"])
            print(f"{name}: {side} {row[side]}", file=sys.stderr)
    row["loads_s"] = loads
    row["difference"] = difference(folder / "ours.npz", folder / "theirs.npz")
    print(f"{name}: difference {row['difference']:.2g}", file=sys.stderr)
    return row


def compare_speed(folder: Path, python: str, threads: int) -> list[dict[str, Any]]:
    """A forward pass and a guided step of Stable Diffusion's U-Net in pairs, both processes alive."""
    network = NETWORKS[SPEED]
    inputs = {**network["inputs"], "none": network["inputs"]["encoder_hidden_states"]}
    arrays = write_inputs(folder / "inputs.npz", inputs)
    request = {
        "task": "speed",
        "network": network,
        "folder": str(folder),
        "threads": threads,
        "inputs": str(folder / "inputs.npz"),
        "outputs": str(folder / "theirs.npz"),
        "sampling": SAMPLING,
    }
    rows = []
    with Peer(python, THEIRS) as peer:
        theirs = peer.ask(request)
        ours = speed(str(folder), arrays, SAMPLING)
        np.savez(folder / "ours.npz", ours.moved)
        common = {
            "threads": threads,
            "gflops": ours.gflops,
            "difference": difference(folder / "ours.npz", folder / "theirs.npz"),
            "versions": f"jax {jax.__version__}, {theirs['versions']}",
        }
        for step, call in ours.steps.items():
            seconds = [ours.first_s[step], theirs["first_s"][step]]
            rows.append(common | {"first_s": seconds} | pairs(call, peer, step))
            print(f"{SPEED} {step}: {rows[-1]['wall']}", file=sys.stderr)
    return rows


def both(figures: Mapping[str, float], form: str, unit: float = 1) -> str:
    """A figure of both sides, ours / theirs."""
    return " / ".join(format(figures[side] / unit, form) for side in SIDES)


def network_tables(rows: list[dict[str, Any]]) -> str:
    """The results of `compare` as Markdown: outputs and loading, the forward pass, memory."""
    outputs, passes, memory = [], [], []
    for row in rows:
        name, loads = row["network"], row["loads_s"]
        cells = [name, f"{row['parameters'] / 1e6:.1f}", f"{row['difference']:.1e}"]
        for clock in CLOCKS:
            seconds = {side: [each[clock] for each in loads[side]] for side in SIDES}
            medians = {side: statistics.median(seconds[side]) for side in SIDES}
            ratios = [b / a for a, b in zip(seconds["ours"], seconds["theirs"], strict=True)]
            cells.append(both(medians, ".2f"))
            cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})")
        outputs.append(cells)
        cells = [name, f"{row['ours']['gflops']:.0f}", f"{row['ours']['compile_s']:.1f}"]
        for clock in CLOCKS:
            cells.append(both({side: row[side]["forward_s"][clock] for side in SIDES}, ".1f"))
        passes.append(cells)
        cells = [name, f"{4 * row['parameters'] / 2**30:.2f}"]
        for when in ("peak_before", "peak_loaded", "peak_asked"):
            cells.append(both({side: row[side][when] for side in SIDES}, ".2f", 2**30))
        memory.append(cells)
    load = ["load wall s", "ratio (range)", "load CPU s", "ratio (range)"]
    tables = (
        markdown(["network", "million parameters", "difference", *load], outputs),
        markdown(["network", "GFLOPs", "compile s", "forward wall s", "forward CPU s"], passes),
        markdown(["network", "parameters GiB", "peak before", "loaded", "asked"], memory),
    )
    return "\n\n".join(tables)


def speed_table(rows: list[dict[str, Any]]) -> str:
    """The results of `compare_speed` as Markdown."""
    header = ["step", "threads", "wall ms", "wall ratio (range)", "CPU ms", "CPU ratio (range)"]
    header += ["first call s"]
    lines = [
        [
            row["step"],
            str(row["threads"]),
            *clock_cells(row),
            " / ".join(f"{s:.1f}" for s in row["first_s"]),
        ]
        for row in rows
    ]
    return f"{markdown(header, lines)}\n\nThe guided step moves the latents alike: difference {rows[0]['difference']:.1e}."


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--peer-python", required=True, help="Python with PyTorch and diffusers")
    parser.add_argument("--scratch", type=Path, required=True, help="folder for the networks")
    parser.add_argument("--only", choices=NETWORKS, help="one network")
    parser.add_argument("--keep", action="store_true", help="leaves the networks' folders there")
    parser.add_argument("--threads", type=int, default=2, help="of each side; 2 unless told")
    parser.add_argument("--json", type=Path, help="where the raw figures go")
    args = parser.parse_args()
    reason = lacking(args.peer_python, "torch", "diffusers", "transformers", "accelerate")
    if reason is not None:
        parser.error(reason)
    use_cores(args.threads)
    rows: list[dict[str, Any]] = []
    speeds: list[dict[str, Any]] = []
    for name in [args.only] if args.only else NETWORKS:
        folder = args.scratch / name
        if folder.exists():
            parser.error(f"{folder} exists; remove it, or give another --scratch")
        try:
            rows.append(compare(name, folder, args.peer_python, args.threads))
            if name == SPEED:
                speeds = compare_speed(folder, args.peer_python, args.threads)
        finally:
            if not args.keep:
                shutil.rmtree(folder, ignore_errors=True)
        if args.json is not None:
            args.json.write_text(json.dumps({"networks": rows, "speed": speeds}, indent=1) + "\n")
    print(network_tables(rows))
    if speeds:
        print(f"\n{speed_table(speeds)}")
    far = [row["network"] for row in rows if row["difference"] >= BOUND]
    if far or (speeds and speeds[0]["difference"] >= BOUND):
        raise SystemExit(
            f"outputs differ by {BOUND} or more: {', '.join(far) or 'the guided step'}"
        )


if __name__ == "__main__":
    main()
