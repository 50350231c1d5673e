"""The command line's answers to bad input: one line that names thing, value and remedy, exit code 2, nothing written."""

import json
import shutil
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny_vdm import READER, parameters, system

from jaxvid import cli
from jaxvid.command import make_parser, run_command
from jaxvid.core.config import to_json
from jaxvid.data.writing import write_video
from jaxvid.systems import presets


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """A folder of shipped models: "text", conditioned on captions of shapes, and "plain"."""
    folder = tmp_path_factory.mktemp("assets")
    for name, config in (("text", replace(READER, heldout=0)), ("plain", system())):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(to_json(config)))
        save_file(parameters(config), folder / name / "weights.safetensors")
    return folder


@pytest.fixture
def place(shipped, tmp_path, monkeypatch):
    """An empty working directory, with files that commands are pointed at kept outside of it."""
    monkeypatch.setattr(presets, "assets", lambda: shipped)
    monkeypatch.setattr(cli, "cache_compilations", lambda: None)
    files, work = tmp_path / "files", tmp_path / "work"
    files.mkdir(), work.mkdir()
    (files / "latin.txt").write_bytes("ein gr\xfcner Kreis".encode("latin-1"))
    (files / "blank.txt").write_text("\n  \n")
    (files / "list.json").write_text('[{"caption": "a red circle"}]')
    (files / "empty.json").write_text("[]")
    (files / "broken.py").write_text("def config(:\n")
    (files / "other.py").write_text(
        "from jaxvid.train.loop import LoopConfig\n\n\ndef config():\n    return LoopConfig()\n"
    )
    clips = files / "clips"
    write_video(clips / "a.mp4", np.zeros((4, 8, 8, 3), np.uint8))
    write_video(clips / "b.mp4", np.full((4, 8, 8, 3), 200, np.uint8))
    (files / "silent.py").write_text(
        "from jaxvid.core.config import load_config\n"
        "from jaxvid.data.folder import FolderData\n"
        "from dataclasses import replace\n\n\n"
        "def config():\n"
        f"    data = FolderData(path={str(clips)!r}, frames=2, height=8, width=8, held_out=1)\n"
        "    return replace(load_config('vdm/smoke'), data=data)\n"
    )
    (files / "file").write_text("")
    (files / "locked").mkdir()
    (files / "locked" / "there").write_text("")
    monkeypatch.chdir(work)
    yield files
    assert list(work.iterdir()) == []


def test_memory_that_ran_out_is_one_line(capsys):
    """Of the real allocator's, on whatever device this is."""

    def run(arguments, rest):
        jnp.zeros(2**50, jnp.uint8)

    def option(add):
        add("big", "Asks too much.", "  big")

    assert run_command(make_parser("test", "A test.", [option], {"big": run}), ["big"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("test: error: memory ran out (RESOURCE_EXHAUSTED: ")
    assert err.strip().endswith("ask for less at once, a smaller picture or batch")
    assert err.count("\n") == 1


PROMPT = ("--prompt", "a red circle")
BAD = {
    # training
    "train vdm/smok": "no config vdm/smok: did you mean vdm/smoke?",
    "train {files}/none.py": "no config",
    "train {files}/broken.py": "cannot be read: invalid syntax",
    "train {files}/other.py": "is a LoopConfig, which cannot be trained",
    "train {files}/silent.py": "conditioned on text but the data have no captions",
    "train vdm/smoke --modle.channels 16": "unknown option --modle.channels; did you mean",
    "train vdm/smoke --model.channels many": "invalid literal for int() with base 10: 'many'",
    "train vdm/smoke --target y": "invalid choice 'y' for argument '--target'. Expected one of",
    "train vdm/smoke --model.channels 15": "channels is 15; it must be even",
    "train vdm/smoke --model.patch 0": "patch is 0; it must be 1 or more",
    "train vdm/smoke --model.patch 3": "both must be multiples of model.patch 3",
    "train vdm/smoke --model.head-dim 0": "head_dim is 0; it must be 1 or more",
    "train vdm/smoke --model.head-dim 5": "not a multiple of model.head_dim 5",
    "train vdm/smoke --loop.log-every 0": "log_every is 0; it must be 1 or more",
    "train vdm/smoke --loop.seed -1": "seed is -1; it must be from 0 to 4294967295",
    "train vdm/smoke --loop.seed 99999999999999999999": "it must be from 0 to 4294967295",
    "train vdm/smoke --stages.0.steps 0": "steps is 0; it must be 1 or more",
    "train vdm/smoke --stages.0.batch 0": "batch is 0; it must be 1 or more",
    "train vdm/smoke --sampling.steps 0": "sampling.steps is 0; it must be 1 or more",
    "train vdm/smoke --text None": "text and tokenizer must both be given, or neither",
    "train vdm/smoke --mesh.data 3": "3",
    "train vdm/clips --data.path {files}/nowhere": "nowhere",
    "train vdm/text_small": "data/captioned: no such data set",
    # sampling
    "sample none --out x.mp4": "none is neither a run directory nor a shipped model; shipped: plain, text",
    "sample text --out x.mp4": "makes videos from text; give --prompt",
    "sample text --out x.mp4 --prompt ''": "the prompt is empty",
    "sample text --out x.mp4 --prompt LONG": "shorten it",
    "sample text --out x.mp4 --prompt-file {files}/none.txt": "No such file",
    "sample text --out x.mp4 --prompt-file {files}/latin.txt": "is not UTF-8 text",
    "sample text --out x.mp4 --prompt-file {files}/blank.txt": "has no prompt; write one a line",
    "sample text --out x.mp4 --prompt red --count 2": "--count is for models without text",
    "sample text --out x.mp4 --prompt red --prompt blue": "is one file for 2 videos; give a folder",
    "sample text --out x.avi --prompt red": "must end in .mp4",
    "sample text --out x.png --prompt red": "holds one frame, not 4",
    "sample text --out {files}/file/x.mp4 --prompt red": "is not a folder that can be written to",
    "sample text --out x.mp4 --prompt red --frames 0": "--frames is 0; it must be 1 or more",
    "sample text --out x.mp4 --prompt red --frames 9 --overlap 4": "overlap is 4; it must be within",
    "sample text --out x.mp4 --prompt red --steps 0": "--steps is 0; it must be 1 or more",
    "sample text --out x.mp4 --prompt red --fps 0": "--fps is 0; choose between 0 and 1000",
    "sample text --out x.mp4 --prompt red --skip 4": "skip is 4; this model was trained at skips (1,)",
    "sample text --out x.mp4 --prompt red --extend {files}/none.mp4": "does not exist",
    "sample text --out x.mp4 --prompt red --extend {files}/blank.txt": "blank.txt",
    "sample text --out x.mp4 --prompt red --frames 4 --extend {files}/clips/a.mp4": "has 4 frames already",
    "sample text --out x.mp4 --prompt red --guidance nan": "--guidance: 'nan' is not a finite number",
    "sample text --out x.mp4 --prompt red --guidance inf": "--guidance: 'inf' is not a finite number",
    "sample text --out x.mp4 --prompt red --seed -1": "--seed: '-1' is no seed; give a whole number from 0",
    "sample text --out x.mp4 --prompt red --seed 4294967296": "is no seed; give a whole number from 0 to 4294967295",
    "sample text --out x.mp4 --prompt red --size 9000x8": "9000x8 is too large; give at most 8192 pixels a side",
    "sample plain --out x.mp4 --count 0": "--count is 0; it must be 1 or more",
    "sample plain --out x.mp4 --prompt red": "was trained without text; leave the prompt out",
    "sample plain": "--out",
    # the rest
    "demo --steps 0": "--steps is 0; it must be 1 or more",
    "demo --out {files}/file": "is not a folder that can be written to",
    "eval text --protocol fvd": "invalid choice: 'fvd'",
    "eval text --protocol captions --limit 0": "limit is 0; it must be 1 or more",
    "eval text --protocol captions --seeds 0": "seeds is 0",
    "eval text --protocol captions --captions {files}": "Is a directory; give --captions FILE",
    "eval text --protocol captions --captions {files}/blank.txt": "is not valid JSON",
    "eval text --protocol captions --captions {files}/list.json": "entry 0 lacks some of",
    "eval text --protocol captions --captions {files}/empty.json": "is an empty list",
    "eval text --protocol captions --json {files}/file/scores.json": "is not a folder",
    "ablate none.py": "experiment none.py does not exist",
    "ablate {files}/broken.py": "cannot be read: invalid syntax",
    "ablate {files}/other.py": "lacks QUESTION",
    "plan vdm/smoke --topology v99:2x2": "v99",
    "plan vdm/smoke --topology h200:8 --json {files}": "is a folder; give the name of a file",
    "data prepare {files}/none out": "none",
    "data prepare {files}/clips out --held-out nan": "held_out is nan",
    "data prepare {files}/clips out --held-out -1": "held_out is -1",
    "data prepare {files}/clips out --held-out 2": "all 2 whole clips are held out",
    "data prepare {files}/clips {files}/file": "is not a folder that can be written to",
    "data prepare {files}/clips out --name No": "use lower-case letters",
    "make": "invalid choice: 'make'",
    "": "COMMAND",
}


@pytest.mark.parametrize("line", BAD)
def test_bad_input_is_one_line(line, place, capsys):
    words = line.format(files=place).split()
    words = ["a " * 10_000 if word == "LONG" else word.strip("'") for word in words]
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    last = err.strip().splitlines()[-1]
    assert last.startswith("jaxvid: error: ")
    assert BAD[line] in last
    assert len(last) < 500
    assert "Traceback" not in err
    assert not out


def test_text_is_switched_off_with_its_tokenizer(place, tmp_path, monkeypatch, capsys):
    """The remedy that a folder without captions is told works."""
    changes = "--text None --tokenizer None --loop.max-steps 1 --heldout 0 --stages.0.images 0"
    argv = ["train", f"{place}/silent.py", "--run", str(tmp_path / "run"), *changes.split()]
    assert cli.main([*argv, "--stages.0.steps", "1"]) == 0
    assert (tmp_path / "run" / "checkpoints").is_dir()
    shutil.rmtree(tmp_path / "run")


def test_a_shipped_model_that_is_damaged_is_named(place, shipped, tmp_path, monkeypatch, capsys):
    broken = tmp_path / "assets"
    shutil.copytree(shipped / "plain", broken / "plain")
    weights = broken / "plain" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    monkeypatch.setattr(presets, "assets", lambda: broken)
    assert cli.main(["sample", "plain", "--out", "x.mp4"]) == 2
    assert "is damaged" in capsys.readouterr().err


def test_words_that_the_model_lacks_are_told(place, tmp_path, caplog):
    out = tmp_path / "made.mp4"
    words = ["sample", "text", "--prompt", "a purple circle", "--out", str(out)]
    assert cli.main(words) == 0
    assert "does not know the words: purple" in caplog.text
    assert out.is_file()
