"""Edits of toy scenes against their own words."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from small_toys import CAMERAS, SIZE, assert_whole, scenes, traced, view_rays

from jaxedit.scene.toy import EDITS, ToyScene, held_out, make_edit, take, toy_edit, toy_scene
from jaxedit.scene.toy.words import HELD_OUT_PHRASES, PHRASES, noun
from jaxedit.scene.toy.world import MAX_PARTS, check_draw, has_held_out
from jaxvid.core.errors import UserError


def parts_alike(a: ToyScene, b: ToyScene, name):
    """Fields of a part in which two scenes differ."""
    x, y = a.part(name), b.part(name)
    return {field for field in vars(x) if getattr(x, field) != getattr(y, field)}


ALLOWED = {
    "recolour": {"colour"},
    "retexture": {"texture", "second"},
    "resize": {"factor"},
    "add": {"present", "colour"},
    "remove": {"present"},
    "reshape": {"kind"},
}


@pytest.mark.parametrize("kind", EDITS)
def test_edits_do_what_they_say(kind):
    spoken = set()
    for i in range(16):
        edit = toy_edit(3, i, kind=kind)
        again = toy_edit(3, i, kind=kind)
        assert again == edit
        before, after, part = edit.before, edit.scene, edit.part
        assert_whole(after)
        assert edit.caption_before != edit.caption_after
        text = f"{edit.instruction} {edit.caption_before} {edit.caption_after}"
        assert text == " ".join(text.lower().split())
        assert text.replace(" ", "").isalpha()
        spoken.add(edit.instruction)
        if kind == "light":
            assert edit.changed == ()
            assert {before.light, after.light} == {"day", "night"}
            assert replace(after, light=before.light) == before
            assert edit.caption_before.endswith(
                f"{'at night' if before.light == 'night' else 'in daylight'}"
            )
            continue
        if kind == "become":
            assert after.template in edit.instruction
            assert f"{after.template}" in edit.caption_after
            assert set(edit.changed) >= {after.label(name) for name in after.names}
            continue
        assert part is not None
        assert parts_alike(before, after, part) <= ALLOWED[kind]
        assert before.label(part) in edit.changed
        others = set(before.names) - {part}
        assert not any(parts_alike(before, after, name) for name in others)
        if kind in ("recolour", "retexture", "add", "remove"):
            assert edit.changed == (before.label(part),)
        if kind != "add":
            assert part in edit.instruction
            assert noun(before, part) in edit.caption_before
        if kind != "remove":
            assert noun(after, part) in edit.caption_after
        if kind == "recolour":
            assert after.part(part).colour in edit.instruction
        if kind == "resize":
            grows = after.part(part).factor > 1
            assert (
                any(w in edit.instruction for w in ("bigger", "larger", "enlarge", "increase"))
                == grows
            )
        if kind == "remove":
            assert f" {part}" not in edit.caption_after
    assert len(spoken) > 9 or kind == "light"


def test_phrasings_are_many_and_held_out_ones_are_kept_apart():
    for kind, trained in PHRASES.items():
        held = HELD_OUT_PHRASES[kind]
        assert len(set(trained)) >= 5
        assert len(held) >= 2
        assert not set(trained) & set(held)
    scene = toy_scene(0, 0, template="car")
    trained, held = set(), set()
    for i in range(40):
        trained.add(make_edit(i, scene, "light").instruction)
        held.add(make_edit(i, scene, "light", phrases="heldout").instruction)
    light = "night" if scene.light == "day" else "day"
    assert (trained, held) == (set(PHRASES[light]), set(HELD_OUT_PHRASES[light]))


def test_splits_of_edits():
    for i in range(40):
        train = toy_edit(4, i)
        assert not has_held_out(train.before)
        assert not has_held_out(train.scene)
        held = toy_edit(4, i, split="heldout")
        if held.kind != "light":
            shown = held.before if held.kind == "remove" else held.scene
            names = [held.part] if held.part else shown.names
            assert any(held_out(shown.template, n, shown.part(n).colour) for n in names)
    assert {toy_edit(4, i).kind for i in range(40)} == set(EDITS)


@pytest.mark.parametrize("kind", EDITS)
def test_pairs_differ_only_where_changed_parts_or_their_shadows_are(kind):
    """Bit-equal elsewhere, cast shadows included; and every edit shows."""
    for i in range(4):
        edit = toy_edit(5, i, kind=kind)
        differing = 0
        for view in (1, 3, 5):
            rays = view_rays(view)
            a, colour_a = traced(edit.before.stage(), rays)
            b, colour_b = traced(edit.scene.stage(), rays)
            changed = np.array(edit.changed, int)
            involved = np.zeros((SIZE, SIZE), bool)
            for hits in (a, b):
                involved |= np.isin(hits.label, changed) | np.isin(hits.occluder, changed)
            rest = ~involved
            for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
                np.testing.assert_array_equal(np.asarray(x)[rest], np.asarray(y)[rest])
            differs = np.any(np.asarray(colour_a) != np.asarray(colour_b), -1)
            if kind == "light":
                np.testing.assert_array_equal(differs, np.asarray(a.label) >= 0)
            else:
                assert not differs[rest].any()
            differing += differs.sum()
        assert differing > 0


def test_pictures_of_pairs_differ_only_where_changed_parts_cover():
    for kind in ("recolour", "resize", "remove", "reshape"):
        edit = toy_edit(6, 1, kind=kind)
        changed = list(edit.changed)
        a, b = (take(s.stage(), CAMERAS, 3) for s in (edit.before, edit.scene))
        covered = (np.asarray(a.coverage)[..., changed] + np.asarray(b.coverage)[..., changed]).sum(
            -1
        )
        rest = covered == 0
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            np.testing.assert_array_equal(np.asarray(x)[rest], np.asarray(y)[rest])
        assert (~rest).any()


def test_nothing_is_left_floating():
    """A vase that holds a flower cannot be taken away, and no flower put where there is no vase."""
    full = toy_scene(0, 0, template="table").with_part("vase", present=True)
    full = full.with_part("flower", present=True)
    bare = full.with_part("flower", present=False).with_part("vase", present=False)
    removed = {make_edit(i, full, "remove", split="all").part for i in range(20)}
    assert "flower" in removed
    assert "vase" not in removed
    added = {make_edit(i, bare, "add", split="all").part for i in range(20)}
    assert "vase" in added
    assert "flower" not in added


def test_repeated_edits_stay_whole():
    """Bigger, smaller and reshaped again and again."""
    for scene in scenes(9):
        for step in range(6):
            scene = make_edit(step, scene, ("resize", "reshape")[step % 2]).scene
        assert_whole(scene)


def test_bad_requests_name_the_value():
    scene = toy_scene(0, 1)
    for call, words in (
        (lambda: toy_scene(-1, 0), "seed -1"),
        (lambda: toy_scene(0, 0, template="boat"), "boat"),
        (lambda: scene.part("wings"), "wings"),
    ):
        with pytest.raises(UserError, match=words):
            call()

    def strip(bare):
        for _ in range(MAX_PARTS):
            bare = make_edit(0, bare, "remove", split="all").scene

    with pytest.raises(UserError, match="no part to remove"):
        strip(scene)
    with pytest.raises(UserError, match="split 'test'"):
        check_draw("test", 0)
