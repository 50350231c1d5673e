"""A viewer of a run that is being fitted: new checkpoints, the last scores."""

import json

import numpy as np
from small_views import camera, without_second_checkpoint

from jaxedit.systems.reconstruct.stored import load_fitted
from jaxedit.viewer import following as module
from jaxedit.viewer.following import Live, progress_text
from jaxedit.viewer.session import Session, step_of
from jaxvid.core.errors import UserError


def test_a_new_checkpoint_is_loaded_and_drawn(run, tmp_path):
    copy, appear = without_second_checkpoint(run, tmp_path)
    pictures = []
    session = Session(copy, load_fitted(copy), lambda _, picture, sharp: pictures.append(picture), print)  # fmt: skip
    live = Live(session)
    session.see(1, camera())
    assert session.draw_next()
    assert not live.look()
    assert (step_of(session.fitted), session.fitted.fit) == (40, 0)
    appear()
    assert live.look()
    assert (step_of(session.fitted), session.fitted.fit) == (80, 1)
    assert not live.look(), "once"
    assert session.draw_next()
    before, after = (picture.image.astype(int) for picture in pictures)
    assert np.abs(before - after).max() > 5, "the newer field is drawn"


def test_a_checkpoint_that_vanishes_while_it_is_read_changes_nothing(run, tmp_path, monkeypatch):
    copy, appear = without_second_checkpoint(run, tmp_path)
    session = Session(copy, load_fitted(copy), lambda *_: None, print)
    live, read = Live(session), module.load_fitted
    appear()

    def gone(_):
        raise UserError("all damaged")

    monkeypatch.setattr(module, "load_fitted", gone)
    assert not live.look()
    monkeypatch.setattr(module, "load_fitted", read)
    assert live.look(), "the next look tries again"


def test_the_text_tells_the_last_psnr_of_each_kind(run, tmp_path):
    lines = [
        {"step": 20, "phase": "a", "psnr": 10.0},
        {"step": 20, "test/psnr": 9.5, "test/psnr_foreground": 5.0},
        {"step": 40, "phase": "a", "psnr": 12.344},
        {"step": 60, "phase": "a", "psnr": None},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 80, "ps'
    (tmp_path / "metrics.jsonl").write_text(text)
    assert progress_text(tmp_path, 20, 100).split("\n\n") == [
        "shown: step 20 of 100",
        "training: PSNR 12.34 dB at step 40",
        "test: PSNR 9.50 dB at step 20",
    ]
    assert progress_text(tmp_path / "none", 20, 100) == "shown: step 20 of 100"
    assert "test: PSNR" in progress_text(run, 80, 80)
