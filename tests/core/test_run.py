import io
import json
import sys
from dataclasses import dataclass, field

import numpy as np
import pytest
from PIL import Image

from jaxvid.core import progress as progress_module
from jaxvid.core.config import replace
from jaxvid.core.errors import UserError
from jaxvid.core.mesh import MeshConfig
from jaxvid.core.progress import Progress
from jaxvid.core.run import RunDirectory
from jaxvid.train.session import LoopConfig


@dataclass(frozen=True)
class Config:
    width: int = 3
    loop: LoopConfig = field(default_factory=LoopConfig)
    mesh: MeshConfig | None = None


def test_a_new_run_writes_its_config_and_versions(tmp_path):
    run = RunDirectory.open(tmp_path / "new" / "run", Config(width=5))
    saved = json.loads((run.path / "config.json").read_text())
    assert saved["width"] == 5
    assert saved["type"] == f"{__name__}:Config"
    (start,) = json.loads((run.path / "versions.json").read_text())
    assert {"jax", "orbax-checkpoint", "numpy"} <= start["packages"].keys()
    assert start["devices"] == {"kind": "cpu", "count": 8}
    assert start["commit"] is None or len(start["commit"].rstrip("+")) == 40
    assert run.samples.is_dir()
    assert RunDirectory.read_config(run.path, Config) == Config(width=5)


def test_every_start_adds_its_versions(tmp_path):
    for _ in range(3):
        RunDirectory.open(tmp_path, Config())
    assert len(json.loads((tmp_path / "versions.json").read_text())) == 3


def test_another_config_is_refused_in_one_line_before_anything_is_written(tmp_path):
    RunDirectory.open(tmp_path, Config())
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    other = replace(Config(), {"width": 4, "loop.seed": 1, "loop.log_every": 7})
    with pytest.raises(UserError) as caught:
        RunDirectory.open(tmp_path, other, may_differ=("loop.log_every", "mesh"))
    message = str(caught.value)
    assert "\n" not in message
    assert "width (3 -> 4)" in message
    assert "loop.seed (0 -> 1)" in message
    assert "log_every" not in message
    assert "--run" in message
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_start_that_was_killed_at_once_is_no_obstacle(tmp_path):
    (tmp_path / "config.json.tmp").write_text("{")
    assert RunDirectory.open(tmp_path, Config()).config == Config()
    (tmp_path / "versions.json").write_text("[")
    RunDirectory.open(tmp_path, Config())
    assert len(json.loads((tmp_path / "versions.json").read_text())) == 1


def test_allowed_differences_are_saved(tmp_path):
    RunDirectory.open(tmp_path, Config())
    other = replace(Config(), {"loop.log_every": 7, "mesh": MeshConfig(tensor=2)})
    RunDirectory.open(tmp_path, other, may_differ=("loop.log_every", "mesh"))
    assert RunDirectory.read_config(tmp_path, Config) == other


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="is not a run"):
        RunDirectory.open(tmp_path, Config())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(UserError, match="is not a run"):
        RunDirectory.open(tmp_path / "thesis.tex", Config())
    with pytest.raises(UserError, match=r"no config\.json"):
        RunDirectory.read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        RunDirectory.read_config(tmp_path)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--run"):
        RunDirectory.open(tmp_path / "file" / "run", Config())


def test_metrics_are_lines_and_tensorboard_events(tmp_path):
    run = RunDirectory.open(tmp_path, Config())
    run.log(1, {"phase": "base", "loss": 0.5, "psnr": np.float32(3), "broken": float("nan")})
    run.log_video(1, "samples", np.zeros((2, 3, 8, 8, 3), np.uint8), fps=8.0)
    run.close()
    run.log(2, {"phase": "base", "loss": 0.25})
    run.close()
    assert run.metrics() == [
        {"step": 1, "phase": "base", "loss": 0.5, "psnr": 3.0, "broken": None},
        {"step": 2, "phase": "base", "loss": 0.25},
    ]
    events = b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").iterdir())
    assert b"loss" in events
    assert b"samples" in events
    with Image.open(io.BytesIO(events[events.index(b"GIF89a") :])) as gif:
        assert (gif.n_frames, gif.size) in [(1, (16, 8)), (3, (16, 8))]


def test_rewind_drops_later_steps_and_a_line_cut_off(tmp_path):
    run = RunDirectory.open(tmp_path, Config())
    for step in (10, 20, 30, 40):
        run.log(step, {"loss": step / 10})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 50, "lo')
    assert [line["step"] for line in run.metrics()] == [10, 20, 30, 40]
    run.rewind(25)
    run.log(30, {"loss": 9.0})
    run.close()
    assert run.metrics() == [
        {"step": 10, "loss": 1.0},
        {"step": 20, "loss": 2.0},
        {"step": 30, "loss": 9.0},
    ]
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 3


class Terminal(io.StringIO):
    def isatty(self):
        return True


def run_progress(monkeypatch, stream, process=0):
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress_module.jax, "process_index", lambda: process)
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: float(next(clock)))
    with Progress("base", total=700, done=2) as progress:
        for _ in range(4):
            progress.advance()
        progress.report({"loss": 0.125, "examples_per_second": 20.0})
    return stream.getvalue()


def test_a_log_gets_one_plain_line_with_the_time_left(monkeypatch):
    text = run_progress(monkeypatch, io.StringIO())
    # 3 steps in 10 s after the first: 694 left.
    assert text == "base 6/700  loss 0.125  examples_per_second 20  left 0:38:33\n"


def test_a_terminal_gets_a_bar(monkeypatch):
    text = run_progress(monkeypatch, Terminal())
    assert "\r" in text
    assert "base" in text
    assert "loss=0.125" in text


def test_only_process_0_speaks(monkeypatch):
    assert run_progress(monkeypatch, io.StringIO(), process=1) == ""
    assert run_progress(monkeypatch, Terminal(), process=1) == ""
