"""The list of a scene's edits: what counts, what was undone, what an interrupted edit leaves."""

import json

import pytest

from jaxedit.history import (
    History,
    before_head,
    head,
    new_edit,
    read_history,
    unfinished_edit,
    write_history,
)
from jaxvid.core.errors import UserError


def made(run, *names):
    for name in names:
        (run / "edits" / name).mkdir(parents=True)
        (run / "edits" / name / "config.json").write_text("{}")
    return History(names, len(names))


def test_undo_and_redo_walk_the_list(tmp_path):
    history = made(tmp_path, "001-a", "002-b")
    assert head(tmp_path, history) == tmp_path / "edits" / "002-b"
    assert before_head(tmp_path, history) == tmp_path / "edits" / "001-a"
    once = history.blended(0.3).undone()
    assert (once.at, once.strength) == (1, 1.0)
    twice = once.undone()
    assert head(tmp_path, twice) == tmp_path
    with pytest.raises(UserError, match="no edit to undo"):
        twice.undone()
    assert twice.redone().redone() == history
    with pytest.raises(UserError, match="no undone edit"):
        history.redone()


def test_an_edit_after_an_undo_drops_what_was_undone():
    history = History(("001-a", "002-b"), 2).undone().with_edit("003-c")
    assert history == History(("001-a", "003-c"), 2)
    assert history.with_edit("001-a") == History(("001-a", "003-c"), 1)


def test_strengths_are_checked():
    with pytest.raises(UserError, match=r"strength is 1\.5"):
        History(("a",), 1).blended(1.5)
    with pytest.raises(UserError, match="no edit whose strength"):
        History(("a",), 0).blended(0.5)


def test_a_history_comes_back(tmp_path):
    assert read_history(tmp_path) == History()
    history = made(tmp_path, "001-a", "002-b").blended(0.25)
    write_history(tmp_path, history)
    assert read_history(tmp_path) == history


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"at": 7}, "out of range"),
        ({"strength": -1.0}, "out of range"),
        ({"edits": ["001-a", "gone"]}, "the edit gone is gone"),
        ({"at": "x"}, "damaged"),
        (None, "damaged"),
    ],
)
def test_a_damaged_history_is_refused(tmp_path, change, complaint):
    write_history(tmp_path, made(tmp_path, "001-a"))
    path = tmp_path / "edits" / "history.json"
    text = "{" if change is None else json.dumps({**json.loads(path.read_text()), **change})
    path.write_text(text)
    with pytest.raises(UserError, match=complaint):
        read_history(tmp_path)


def test_folders_are_numbered_and_named_by_the_sentence(tmp_path):
    assert new_edit(tmp_path, "Make the hat RED!").name == "001-make-the-hat-red"
    made(tmp_path, "001-a", "007-b")
    assert new_edit(tmp_path, "日本").name == "008-edit"
    assert len(new_edit(tmp_path, "long " * 50).name) <= 44


def test_only_the_newest_edit_can_be_unfinished(tmp_path):
    history = made(tmp_path, "001-a", "002-b")
    assert unfinished_edit(tmp_path, history) is None
    assert unfinished_edit(tmp_path, History(("001-a",), 1)) == tmp_path / "edits" / "002-b"
    assert unfinished_edit(tmp_path, History(("002-b",), 1)) is None
    assert unfinished_edit(tmp_path / "nothing", History()) is None
