"""The quick-start notebook runs from top to bottom."""

import runpy
from pathlib import Path

import pytest

from jaxvid.systems import presets

NOTEBOOK = Path(__file__).parents[1] / "experiments" / "quickstart.py"


@pytest.mark.skipif("vdm/shapes" not in presets.names(), reason="no shipped model in this clone")
def test_notebook_runs_and_its_last_step_has_a_finite_loss(monkeypatch, capsys):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    names = runpy.run_path(str(NOTEBOOK))
    printed = capsys.readouterr().out
    assert printed.count("loss") == 3
    assert "nan" not in printed
    assert names["videos"].shape == (2, 16, 32, 32, 3)
