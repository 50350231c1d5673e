"""Edits from the viewer, without a browser: begun, watched, stopped, gone on with, undone, compared."""

import numpy as np
import pytest
from small_views import camera, until

from jaxedit.history import read_history
from jaxedit.viewer.pictures import Look, draw, to_cameras
from jaxvid.core.errors import UserError

LOOK = Look("colour", "white", 64)


def test_an_edit_is_watched_finished_and_undone(desk):
    made, session, comparison, said = desk
    before = session.fitted
    made.edit("exchange the colors")
    with pytest.raises(UserError, match="an edit is under way"):
        made.undo()
    until(lambda: any("step 10 of 40" in line for line in said), 120)
    assert session.fitted.fit == before.fit + 1, "the scene is shown while it changes"
    until(lambda: not made.busy, 120)
    assert "done; shown: 001-exchange-the-colors" in said[-1]
    seen = to_cameras(camera(), 64)
    old = draw(before, seen, LOOK)
    new = draw(session.fitted, seen, LOOK)
    assert np.abs(old.image.astype(int) - new.image.astype(int)).mean() > 0.5
    comparison.split = 0.5
    both = comparison(session.fitted, seen, LOOK, lambda: False).image
    middle = round(0.5 * seen.width)
    np.testing.assert_array_equal(both[:, :middle], old.image[:, :middle])
    np.testing.assert_array_equal(both[:, middle + 1 :], new.image[:, middle + 1 :])
    made.undo()
    np.testing.assert_array_equal(draw(session.fitted, seen, LOOK).image, old.image)
    made.redo()
    np.testing.assert_array_equal(draw(session.fitted, seen, LOOK).image, new.image)


def test_a_stopped_edit_goes_on_with_the_same_sentence(desk, tmp_path):
    made, _, _, said = desk
    made.edit("exchange")
    until(lambda: any("step 10 of 40" in line for line in said), 120)
    made.stop()
    until(lambda: not made.busy, 120)
    if read_history(tmp_path / "run").edits:
        pytest.skip("the edit was done before it could be stopped")
    assert "stopped and saved" in said[-1]
    made.edit("exchange")
    until(lambda: not made.busy, 120)
    assert read_history(tmp_path / "run").edits == ("001-exchange",)


def test_what_cannot_be_done_is_said(desk):
    made = desk[0]
    with pytest.raises(UserError, match="the instruction is empty"):
        made.edit("  ")
    with pytest.raises(UserError, match="no edit is under way"):
        made.stop()
    with pytest.raises(UserError, match="no edit to undo"):
        made.undo()
