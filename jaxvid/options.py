"""The options of `jaxvid COMMAND ...`, with their help and examples."""

import argparse
from pathlib import Path

from jaxvid.command import Add, finite, seed

DESCRIPTION = "Text-to-video diffusion with factorized space-time U-Nets."
SIDE = 8192  # pixels of an image or frame; more is a slip of the keyboard


def number(text: str) -> int | float:
    """An int where the text is one, else a float."""
    try:
        return int(text)
    except ValueError:
        return float(text)


def demo(add: Add) -> None:
    """`jaxvid demo`."""
    sub = add(
        "demo",
        "Make videos of eight sentences with the shipped model and say what an analyser sees in them.",
        "  jaxvid demo\n  jaxvid demo --out /tmp/demo --seed 1",
    )
    sub.add_argument(
        "--out", type=Path, default=Path("out/demo"), help="folder for videos and the sheet"
    )
    sub.add_argument("--seed", type=seed, default=0)
    sub.add_argument("--steps", type=int, help="sampling steps (the model's own by default)")


def train(add: Add) -> None:
    """`jaxvid train`."""
    sub = add(
        "train",
        "Start a run, or go on with the one in the run directory.",
        "  jaxvid train vdm/smoke\n"
        "  jaxvid train vdm/shapes --run runs/shapes --loop.save-every 500\n"
        "  jaxvid train configs/vdm/clips.py --data.path my_videos --run runs/clips\n"
        "  jaxvid train my_shapes.py --init vdm/shapes      (go on from trained weights)\n"
        "  jaxvid train vdm/shapes --options      (every option that may follow)",
        overrides=True,
    )
    sub.add_argument("config", help="a preset such as vdm/shapes, or a Python file with config()")
    sub.add_argument(
        "--run", type=Path, dest="directory", help="run directory (default runs/CONFIG)"
    )
    sub.add_argument("--options", action="store_true", help="list the configuration's options")
    sub.add_argument(
        "--distributed", action="store_true", help="one of several processes, as on a pod"
    )


def size(text: str) -> tuple[int, int]:
    """Height and width of "512x768"."""
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write HEIGHTxWIDTH, as 512x768")
    if max(int(height), int(width)) > SIDE:
        raise argparse.ArgumentTypeError(f"{text} is too large; give at most {SIDE} pixels a side")
    return int(height), int(width)


def sample(add: Add) -> None:
    """`jaxvid sample`."""
    sub = add(
        "sample",
        "Draw videos from a run or a shipped model, or images and videos from a published pipeline's folder.",
        '  jaxvid sample vdm/shapes --prompt "a red circle moves right" --out red.mp4\n'
        "  jaxvid sample runs/shapes --prompt-file prompts.txt --out samples --steps 50 --guidance 3\n"
        '  jaxvid sample vdm/shapes --prompt "a blue ring bounces" --frames 64 --out long.mp4\n'
        '  jaxvid sample runs/clips --prompt "a man surfs" --extend start.mp4 --frames 32 --out longer.mp4\n'
        "published weights, in the layout of diffusers:\n"
        '  jaxvid sample stable-diffusion-v1-5 --prompt "a lighthouse" --dtype bfloat16 --out lighthouse.png\n'
        '  jaxvid sample instruct-pix2pix --image a.png --prompt "make it winter" --out winter.png\n'
        '  jaxvid sample text-to-video-ms-1.7b --prompt "a panda surfs" --frames 16 --out panda.mp4\n'
        "  jaxvid sample stable-video-diffusion-img2vid --image a.png --frames 14 --out moving.mp4\n"
        '  jaxvid sample stable-diffusion-v1-5 --motion animatediff --prompt "waves" --out waves.mp4',
    )
    sub.add_argument(
        "source", help="a run directory, a shipped model, or a published pipeline's folder"
    )
    sub.add_argument("--prompt", action="append", default=[], help="may be given several times")
    sub.add_argument("--prompt-file", type=Path, help="one prompt a line")
    sub.add_argument(
        "--out",
        type=Path,
        required=True,
        help="an .mp4, .gif, lossless .mkv or (one frame) .png; or a folder",
    )
    sub.add_argument("--frames", type=int, help="length of a video (the model's)")
    sub.add_argument("--steps", type=int, help="sampling steps (the model's)")
    sub.add_argument("--guidance", type=finite, help="scale of classifier-free guidance; 1 is none")
    sub.add_argument("--seed", type=seed, default=0)
    sub.add_argument("--fps", type=float, help="frames a second (8)")
    own = sub.add_argument_group("runs and shipped models; longer videos are made in blocks")
    own.add_argument("--count", type=int, help="videos, for a model without text (1)")
    own.add_argument(
        "--extend", type=Path, help="a video to go on from, by half a block or --frames"
    )
    own.add_argument("--method", choices=("reconstruction", "replacement"))
    own.add_argument("--overlap", type=int, help="frames that blocks share (half a block)")
    own.add_argument("--skip", type=int, help="frame skip, for a model trained at several")
    theirs = sub.add_argument_group("published pipelines")
    theirs.add_argument(
        "--image", type=Path, action="append", default=[], help="to edit, enlarge or animate"
    )
    theirs.add_argument("--negative", help="text to lead away from")
    theirs.add_argument("--size", type=size, metavar="HxW", help="in pixels (the model's)")
    theirs.add_argument("--sampler", choices=("ddim", "ancestral", "dpm++", "heun"))
    theirs.add_argument("--image-guidance", type=finite, help="of InstructPix2Pix (1.5)")
    theirs.add_argument("--motion", type=Path, metavar="FOLDER", help="AnimateDiff's modules")
    theirs.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="of the weights",
    )
    theirs.add_argument("--variant", help="of the files: fp16 for model.fp16.safetensors")


def evaluate(add: Add) -> None:
    """`jaxvid eval`."""
    sub = add(
        "eval",
        "Score a run or a shipped model by a protocol.",
        "  jaxvid eval vdm/shapes --protocol captions\n"
        "  jaxvid eval runs/shapes --protocol captions --seeds 1 --limit 64",
    )
    sub.add_argument("source", help="a run directory or a shipped model")
    sub.add_argument("--protocol", choices=("captions",), required=True)
    sub.add_argument("--captions", type=Path, help="another list (the project's 512)")
    sub.add_argument("--seeds", type=int, default=3)
    sub.add_argument("--limit", type=int, help="only the first so many captions of each kind")
    sub.add_argument("--steps", type=int)
    sub.add_argument("--guidance", type=finite)
    sub.add_argument("--batch", type=int, default=16)
    sub.add_argument("--json", type=Path, help="also write the scores here")


def ablate(add: Add) -> None:
    """`jaxvid ablate`."""
    sub = add(
        "ablate",
        "Run an experiment's arms with several seeds and say whether the claim reproduces; the same command goes on.",
        "  jaxvid ablate experiments/joint_images.py --dry-run\n"
        "  jaxvid ablate experiments/joint_images.py --seeds 3 --run runs/ablations\n"
        "  jaxvid ablate experiments/joint_images.py --run runs/longer --stages.0.steps 20000",
        overrides=True,
    )
    sub.add_argument("experiment", type=Path, help="a Python file; see jaxvid/evaluate/ablate.py")
    sub.add_argument("--seeds", type=int, default=3)
    sub.add_argument(
        "--run", type=Path, dest="directory", default=Path("runs/ablations"), help="run directory"
    )
    sub.add_argument(
        "--dry-run", action="store_true", help="list arms, counted FLOPs and cost; write nothing"
    )


def plan(add: Add) -> None:
    """`jaxvid plan`."""
    sub = add(
        "plan",
        "Compile a configuration's real program for a machine that is not here: does it fit?",
        "  jaxvid plan vdm/ucf101 --topology v5p:4x4x4\n"
        "  jaxvid plan vdm/text_small --topology h200:8 --program sample --json plan.json\n"
        "  jaxvid plan vdm/ucf101 --topology v5e:4x4 --mesh.fsdp 16\n"
        "published pipelines, of their JSON files alone; --batch, --frames, --size, --steps, --sampler, --dtype, --motion\n"
        "and --mesh.AXIS may follow:\n"
        "  jaxvid plan stable-diffusion-v1-5 --topology v5e:1x1 --dtype bfloat16 --size 512x512\n"
        "  jaxvid plan text-to-video-ms-1.7b --topology v5e:2x4 --batch 8 --frames 16 --mesh.fsdp 8\n"
        "  jaxvid plan stable-video-diffusion-img2vid --topology h200:1 --program forward --size 576x1024",
        overrides=True,
    )
    sub.add_argument("config", help="a preset, a Python file, or a published pipeline's folder")
    sub.add_argument("--topology", required=True, help="v5e:4x4, v5p:4x4x4, h200:8, cpu:8, ...")
    sub.add_argument(
        "--program",
        choices=("train", "sample", "forward"),
        help="a configuration's train (its default) or sample; of a published pipeline its sampling loop (sample, its "
        "default) or one pass of its U-Net (forward)",
    )
    sub.add_argument("--json", type=Path)


def data(add: Add) -> None:
    """`jaxvid data`."""
    sub = add(
        "data",
        "Make an ArrayRecord data set of a folder of videos.",
        "  jaxvid data prepare my_videos data --name my_videos --held-out 0.1\n"
        "  jaxvid train my_config.py --data.name data/my_videos",
    )
    sub.add_argument("action", choices=("prepare",))
    sub.add_argument(
        "source", type=Path, help="a folder of videos with captions.json or .txt files"
    )
    sub.add_argument("out", type=Path)
    sub.add_argument("--name", default="clips", help="of the data set (default clips)")
    sub.add_argument(
        "--held-out", type=number, default=0, help='share or number of clips for the split "test"'
    )


def import_weights(add: Add) -> None:
    """`jaxvid import`."""
    _convert(
        add,
        "import",
        "Convert public weights, of diffusers or transformers, to this project's own format.",
        "  jaxvid import stable-diffusion-v1-5 sd15\n"
        "  jaxvid import stable-diffusion-v1-5/unet unet --dtype bfloat16\n"
        "  jaxvid import zeroscope_v2_576w zeroscope --variant fp16 --license cc-by-nc-4.0\n"
        "public folders can also be used as they are: jaxvid sample stable-diffusion-v1-5 --prompt ...",
    )


def export_weights(add: Add) -> None:
    """`jaxvid export`."""
    _convert(
        add,
        "export",
        "Convert weights to the public format, which diffusers and transformers read.",
        "  jaxvid export sd15 for_diffusers\n"
        "  jaxvid export unet for_diffusers/unet --dtype float16",
    )


def _convert(add: Add, name: str, about: str, examples: str) -> None:
    sub = add(name, about, examples)
    sub.add_argument("source", type=Path, help="a pipeline's folder, or that of one network")
    sub.add_argument("out", type=Path, help="a new folder")
    sub.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="of the numbers (as they are)"
    )
    sub.add_argument("--variant", help="of the files: fp16 for model.fp16.safetensors")
    sub.add_argument("--license", help="its name, recorded (what README.md says)")
    sub.add_argument("--url", help="where the weights are published, recorded")


OPTIONS = (demo, train, sample, import_weights, export_weights, evaluate, ablate, plan, data)
