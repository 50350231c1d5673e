"""The directory of a run.

    config.json          the full configuration (`jaxvid.core.config`)
    versions.json        packages, python, commit of the clone, devices; one entry for each start of the run
    metrics.jsonl        one line a log interval: {"step": 100, "phase": "base", "loss": ...}; append-only
    tensorboard/         the same as TensorBoard events
    samples/             what the phases' reports write
    checkpoints/         `jaxvid.core.checkpoint`

Only process 0 writes. A line of metrics is written whole or, by a killed process, cut off: then the next start drops
it, and with it the lines of steps after the checkpoint that is resumed, so a history never has a step twice.
"""

import contextlib
import importlib.metadata
import io
import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8
from PIL import Image
from tensorboardX import SummaryWriter
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

import jaxvid
from jaxvid.core.checkpoint import Checkpointer
from jaxvid.core.config import difference, from_json, to_json
from jaxvid.core.errors import UserError

_PACKAGES = [
    "jaxvid",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "numpy",
    "tensorflow-datasets",
    "libtpu",
]


class RunDirectory:
    """One run's files. `open` makes or resumes one; `read_config` only looks."""

    def __init__(self, path: Path, config: Any):
        self.path = path
        self.config = config
        self.samples = path / "samples"
        self.checkpoints = path / "checkpoints"
        self._writes = jax.process_index() == 0
        self._metrics: Any = None
        self._events: SummaryWriter | None = None

    @classmethod
    def open(
        cls, path: str | Path, config: Any, may_differ: Collection[str] = ()
    ) -> "RunDirectory":
        """The run of `config` in `path`: a new one, or the one that is there.

        may_differ: dotted names (each with all below it) in which the configuration may differ from the saved one,
            such as "train.steps" or "mesh"; the new values are saved.
        Raises UserError, before anything is written, when `path` holds something else or the run of another config.
        """
        path = Path(path)
        stored = path / "config.json"
        if stored.exists():
            saved = cls.read_config(path, type(config))
            differing = {
                name: values
                for name, values in difference(saved, config).items()
                if not any(name == free or name.startswith(f"{free}.") for free in may_differ)
            }
            if differing:
                listed = ", ".join(f"{name} ({a!r} -> {b!r})" for name, (a, b) in differing.items())
                raise UserError(
                    f"{path} holds the run of another config: {listed}; choose another --run or undo these changes"
                )
        elif path.exists() and (not path.is_dir() or _holds_anything(path)):
            raise UserError(f"{path} exists and is not a run; choose an empty or new --run")
        run = cls(path, config)
        if run._writes:
            try:
                path.mkdir(parents=True, exist_ok=True)
                _write(stored, json.dumps(to_json(config), indent=2))
                run.samples.mkdir(exist_ok=True)
                run._append_versions()
            except OSError as error:
                raise UserError(
                    f"{path} cannot be written: {error.strerror}; choose another --run"
                ) from error
        return run

    @staticmethod
    def read_config(path: str | Path, cls: Any = object) -> Any:
        """The configuration of the run in `path`, of class `cls`. Raises UserError when there is none."""
        stored = Path(path) / "config.json"
        try:
            data = json.loads(stored.read_text())
        except FileNotFoundError:
            raise UserError(f"{path} is not a run: it has no config.json; check the path") from None
        except ValueError as error:
            raise UserError(
                f"{stored} is not valid JSON ({error}); restore it from a copy"
            ) from None
        if not isinstance(data, dict) or "type" not in data:
            raise UserError(f"{stored} is not the configuration of a run; check the path")
        return from_json(cls, data)

    def checkpointer(self, keep: int = 3) -> Checkpointer:
        """The run's checkpoints, the newest `keep` of them."""
        return Checkpointer(self.checkpoints, keep=keep)

    def log(self, step: int, values: Mapping[str, float | str]) -> None:
        """Appends `{"step": step, **values}` to metrics.jsonl and the numbers among them to TensorBoard."""
        if not self._writes:
            return
        if self._metrics is None:
            self._metrics = open(self.path / "metrics.jsonl", "a")  # noqa: SIM115 (closed by `close`)
        line = {"step": step, **{name: _plain(value) for name, value in values.items()}}
        self._metrics.write(json.dumps(line, allow_nan=False) + "\n")
        self._metrics.flush()
        for name, value in values.items():
            if not isinstance(value, str):
                self._writer(step).add_scalar(name, value, step)

    def log_video(
        self, step: int, name: str, video: UInt8[np.ndarray, "b t h w 3"], fps: float
    ) -> None:
        """Adds clips, side by side, to TensorBoard as one animation (files for people go to `samples`)."""
        if not self._writes:
            return
        frames = np.concatenate(list(video), axis=2)  # t h b*w 3
        first, *others = [Image.fromarray(frame) for frame in frames]
        gif = io.BytesIO()
        first.save(gif, "GIF", save_all=True, append_images=others, duration=1000 / fps, loop=0)
        # Not `SummaryWriter.add_video`, which needs a package for films.
        image = Summary.Image(
            height=frames.shape[1],
            width=frames.shape[2],
            colorspace=3,
            encoded_image_string=gif.getvalue(),
        )
        summary = Summary(value=[Summary.Value(tag=name, image=image)])
        writer = self._writer(step).file_writer
        assert writer is not None
        writer.add_summary(summary, step)

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; a last line that was cut off is left out."""
        path = self.path / "metrics.jsonl"
        lines = []
        for line in path.read_text().splitlines() if path.exists() else ():
            with contextlib.suppress(ValueError):  # cut off by a kill
                lines.append(json.loads(line))
        return lines

    def rewind(self, step: int) -> None:
        """Drops the metrics of steps after `step`: call before continuing from the checkpoint of that step."""
        self.close()
        if self._writes and (self.path / "metrics.jsonl").exists():
            kept = [json.dumps(line) + "\n" for line in self.metrics() if line["step"] <= step]
            _write(self.path / "metrics.jsonl", "".join(kept))

    def close(self) -> None:
        """Closes the files; a later `log` opens them again."""
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None
        if self._events is not None:
            self._events.close()
            self._events = None

    def _writer(self, step: int) -> SummaryWriter:
        if self._events is None:
            # TensorBoard hides the events of an earlier process from this step on. The suffix: files are named by
            # the second, and a second one of the same name would replace the first.
            self._events = SummaryWriter(
                str(self.path / "tensorboard"),
                purge_step=step,
                filename_suffix=f".{time.time_ns()}",
            )
        return self._events

    def _append_versions(self) -> None:
        path, starts = self.path / "versions.json", []
        with contextlib.suppress(
            FileNotFoundError, ValueError
        ):  # a damaged history must not stop a run
            starts = json.loads(path.read_text())
        _write(path, json.dumps([*starts, versions()], indent=2))


def versions() -> dict[str, Any]:
    """What produces this process's numbers: packages, python, the clone's commit, devices, the time in UTC."""
    found = {}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "packages": found,
        "python": platform.python_version(),
        "commit": _commit(),
        "devices": {"kind": jax.devices()[0].device_kind, "count": jax.device_count()},
        "processes": jax.process_count(),
    }


def _commit() -> str | None:
    """The commit of the clone that this package runs from, with "+" if files were changed; None in a wheel."""
    root = Path(jaxvid.__file__).parent.parent
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        return commit + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _holds_anything(path: Path) -> bool:
    """Whether `path` holds more than a start that was killed while it wrote its first file."""
    return any(entry.name != "config.json.tmp" for entry in path.iterdir())


def _plain(value: Any) -> Any:
    """JSON has no NaN: it becomes null."""
    if isinstance(value, str):
        return value
    number = value if isinstance(value, int) else float(value)
    return number if math.isfinite(number) else None


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)
