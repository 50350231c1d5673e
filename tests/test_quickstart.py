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


def test_the_scene_notebook_runs_and_what_it_says_is_so(monkeypatch, capsys):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    names = runpy.run_path(str(NOTEBOOK.with_name("scene.py")))
    printed = capsys.readouterr().out
    assert "nan" not in printed
    assert names["scores"].psnr > 22
    assert float(names["better"]) < float(names["loss"])
    assert 0.0 < names["stored"] < 0.5
