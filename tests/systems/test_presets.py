"""Weights of runs and shipped models, by name."""

import json
from dataclasses import replace

import numpy as np
import pytest
from tiny_vdm import READER

from jaxvid.core.errors import UserError
from jaxvid.core.run import RunDirectory
from jaxvid.systems import presets
from jaxvid.train.loop import LoopConfig, fit

SYSTEM = replace(
    READER,
    stages=tuple(replace(stage, steps=2, batch=2, images=0) for stage in READER.stages),
    heldout=0,
    loop=LoopConfig(save_every=1, log_every=1),
)


def train(directory, steps):
    run = RunDirectory.open(directory, SYSTEM, ("loop.max_steps",))
    return fit(run, SYSTEM.phases(), replace(SYSTEM.loop, max_steps=steps))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose text encoder has begun to learn, then one that has finished; and the finished state."""
    directory = tmp_path_factory.mktemp("presets") / "run"
    train(directory, 1)
    with pytest.raises(UserError, match=r"has weights of \d+ of the model's \d+ arrays"):
        presets.load(directory)
    return directory, train(directory, None)


def test_a_runs_weights_are_its_averages(run):
    directory, state = run
    system, params = presets.load(directory)
    assert system == SYSTEM
    assert set(params) == set(state["ema"])
    for path, leaf in params.items():
        np.testing.assert_array_equal(leaf, state["ema"][path])


def test_a_run_is_shipped_and_loaded_by_name(run, tmp_path, monkeypatch):
    directory, state = run
    monkeypatch.setattr(presets, "assets", lambda: tmp_path)
    assert presets.names() == []
    folder = presets.ship(directory, "vdm/tiny")
    assert presets.names() == ["vdm/tiny"]
    system, params = presets.load("vdm/tiny")
    assert system == SYSTEM
    for path, leaf in params.items():
        assert leaf.dtype == np.float32
        np.testing.assert_array_equal(leaf, np.float32(np.float16(state["ema"][path])))
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]


def test_what_is_not_there_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(presets, "assets", lambda: tmp_path)
    with pytest.raises(UserError, match="neither a run directory nor a shipped model"):
        presets.load("vdm/none")
    RunDirectory.open(tmp_path / "new", SYSTEM, ()).close()
    with pytest.raises(UserError, match="no checkpoint yet"):
        presets.load(tmp_path / "new")
