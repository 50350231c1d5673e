"""Two complete dataset updates of Instruct-NeRF2NeRF with an editor of InstructPix2Pix's full size, killed and resumed between them.

The editor is a folder with random weights (no public ones come with this project): Stable Diffusion 1.5's U-Net with eight input channels, its
autoencoder and CLIP's text encoder, float32, and a tokenizer of toy words; so the pictures mean nothing and the cost is the real one. The scene is a toy one at
`--size` pixels, fitted shortly. Then, as a user would type it, `jaxedit edit --config instruct_nerf2nerf/published`:

    first    the first step renders a view, encodes it, takes 20 DDIM steps of three branches, decodes, and puts it back; the process is
             killed (SIGKILL) once the checkpoint after it is there
    second   the same command goes on from that checkpoint, through the second update, to the end of `STEPS` steps

    python benchmarks/full_size_edit.py --scratch DIR --json full_size_edit.json

Printed: seconds until the first update was saved (reading, compiling and update), seconds of the step with the second update, the
median of those without one, and the peak of each process's resident set. At 64 pixels the peak was 10.4 GiB (3.5 GiB of them weights); 512 was not run yet.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxedit.scene.toy import capture, toy_scene
from jaxedit.systems.instruct_pix2pix.words import write_tokenizer
from jaxedit.toy_edits import write_and_fit
from jaxvid.models.autoencoder import Autoencoder, AutoencoderConfig
from jaxvid.models.clip import ClipText, ClipTextConfig
from jaxvid.models.conditional_unet import ConditionalUNet, ConditionalUNetConfig
from jaxvid.weights.convert import save_model

STEPS, EVERY = 12, 10  # updates at steps 0 and 10
VIEWS = 4
SCHEDULER = {
    "_class_name": "EulerAncestralDiscreteScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "steps_offset": 1,
}


class Outcome(NamedTuple):
    """Of a process: its exit status, its peak resident set in GiB, when each step's line of metrics was there, and when it was killed.

    Times in seconds since its start.
    """

    status: int
    peak: float
    steps: dict[int, float]
    killed: float | None


def random_network(make: Any, seed: int) -> Any:
    """The network of `make(key)` with numbers from N(0, 0.02^2): filled by numpy, as its own initialisation takes minutes to compile."""
    leaves, form = jax.tree.flatten(jax.eval_shape(make, jax.random.key(seed)))
    rng = np.random.default_rng(seed)
    filled = [0.02 * rng.standard_normal(leaf.shape, np.float32) for leaf in leaves]
    return jax.tree.unflatten(form, filled)


def write_editor(folder: Path) -> None:
    """The folder of the module's editor."""
    parts = {
        "unet": lambda key: ConditionalUNet(ConditionalUNetConfig(inputs=8), key),
        "vae": lambda key: Autoencoder(AutoencoderConfig(), key),
        "text_encoder": lambda key: ClipText(ClipTextConfig(), key),
    }
    for number, (name, make) in enumerate(parts.items()):
        if not (folder / name).exists():
            save_model(random_network(make, number), folder / name)
    write_tokenizer(folder / "tokenizer")
    told = folder / "tokenizer" / "tokenizer_config.json"
    told.write_text(json.dumps({**json.loads(told.read_text()), "model_max_length": 77}))
    (folder / "scheduler").mkdir(exist_ok=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER, indent=1))


def command(*words: Any) -> list[str]:
    """A call of the jaxedit beside this interpreter."""
    return [str(Path(sys.executable).with_name("jaxedit")), *map(str, words)]


def watched(words: list[str], edits: Path, until: int | None = None) -> Outcome:
    """Runs an edit; kills it once the checkpoint after step `until` is there."""
    begin, steps, killed = time.monotonic(), {}, None
    before = {path: path.read_text() for path in edits.glob("*/metrics.jsonl")}
    child = subprocess.Popen(words)
    while True:
        done, status, usage = os.wait4(child.pid, os.WNOHANG)
        for path in edits.glob("*/metrics.jsonl"):
            known = before.get(path, "").splitlines()
            lines = [line for line in path.read_text().splitlines() if line not in known]
            for row in (json.loads(line) for line in lines if line.endswith("}")):
                steps.setdefault(row["step"], time.monotonic() - begin)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return Outcome(code, usage.ru_maxrss / 2**20, steps, killed)
        saved = until is not None and any(edits.glob(f"*/checkpoints/steps/{until}"))
        if saved and killed is None:
            killed = time.monotonic() - begin
            child.send_signal(signal.SIGKILL)
        time.sleep(0.2)


def report(first: Outcome, second: Outcome) -> dict[str, float | None]:
    """The figures of the module's text."""
    times = second.steps
    gaps = {step: times[step] - times[step - 1] for step in times if step - 1 in times}
    plain = [gap for step, gap in gaps.items() if step != EVERY + 1]
    return {
        "first update saved after, s": first.killed,
        "step with the second update, s": gaps[EVERY + 1],
        "step without one, s": statistics.median(plain),
        "peak of the first process, GiB": first.peak,
        "peak of the second process, GiB": second.peak,
    }


def main() -> None:
    """Makes what is missing, edits, kills, goes on."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--scratch", type=Path, required=True, help="a folder; what is made stays there"
    )
    parser.add_argument("--size", type=int, default=512, help="of the views (512)")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    arguments = parser.parse_args()
    scratch: Path = arguments.scratch
    run, edits = scratch / "run", scratch / "run" / "edits"
    if edits.exists():
        sys.exit(f"{edits} exists; remove it or give another --scratch")
    write_editor(scratch / "editor")
    if not run.exists():
        scene = capture(toy_scene(0, 5), views=VIEWS, size=arguments.size, test_views=1)
        write_and_fit(scene, scratch / "scene", run, {"fits.0.steps": 100, "fits.1.steps": 100})
    edit = command("edit", run, "--config", "instruct_nerf2nerf/published")
    edit += ["--instruction", "make it night", "--editor", str(scratch / "editor")]
    edit += ["--steps", str(STEPS), "--every", str(EVERY)]
    edit += ["--loop.save_every", "1", "--loop.log_every", "1", "--loop.sample_every", "0"]
    first = watched(edit, edits, until=1)
    assert first.status == -signal.SIGKILL, f"the first process ended with {first.status}"
    second = watched(edit, edits)
    assert second.status == 0, f"the second process ended with {second.status}"
    assert len(list(edits.glob("*/config.json"))) == 1, "the second process began an edit anew"
    assert min(second.steps) > 1, "the second process began at the first step"
    figures = report(first, second)
    for name, value in figures.items():
        print(f"{name:34} {value:8.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
