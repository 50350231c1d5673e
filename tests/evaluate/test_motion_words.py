"""`experiments/motion_words.py`: what it changes in a caption, and that its errors are those of its definition."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from experiment_files import load_experiment_file
from tiny_vdm import TEXT_OF_SHAPES, WORDS, parameters, system

from jaxvid.core.errors import UserError
from jaxvid.data.shapes import parse
from jaxvid.data.shapes.world import DIRECTIONS


@pytest.fixture(scope="module")
def experiment():
    return load_experiment_file("motion_words")


@pytest.mark.parametrize("verb", ["moves {}", "slides {}", "is traveling {}"])
def test_changed_captions_name_the_other_direction(experiment, verb):
    turned = {"right": "up", "left": "down", "up": "left", "down": "right"}
    reversed_ = {"right": "left", "left": "right", "up": "down", "down": "up"}
    for name, table in (("turned", turned), ("reversed", reversed_)):
        for direction, other in table.items():
            old, new = (f"a red circle {verb.format(word)}" for word in (direction, other))
            assert experiment.changed(old, experiment.CHANGES[name]) == new
    for word in ("upward", "downward"):
        for words in experiment.CHANGES.values():
            found = experiment.changed(f"a red circle that drifts {word}", words)
            assert parse(found)[0]["motion"].startswith("moves")


def test_the_errors_are_those_of_the_words_given(experiment):
    """Four captions, four errors; a network whose estimate is zero has the mean square of the clips whatever it reads."""
    config = replace(
        system(text=True), text=replace(TEXT_OF_SHAPES, heads=4), tokenizer=WORDS, target="x"
    )
    params = {name: jnp.asarray(leaf) for name, leaf in parameters(config).items()}
    found = experiment.measure(config, params, clips=4, batch=2)
    assert list(found) == ["caption", "turned", "reversed", "none"]
    for level in range(len(experiment.LEVELS)):
        assert len({values[level] for values in found.values()}) == 4
    blind = params | {
        name: jnp.zeros_like(params[name]) for name in ("unet/head/kernel", "unet/head/bias")
    }
    world = replace(config.data.world, two_objects=0, motions=tuple(DIRECTIONS))
    source = replace(config.data, world=world).source("test")
    x = np.stack([source[index]["video"] for index in range(4)]) / 127.5 - 1
    for values in experiment.measure(config, blind, clips=4, batch=2).values():
        np.testing.assert_allclose(values, np.mean(np.square(x)), rtol=1e-5)


def test_clips_that_fill_no_batch_are_refused(experiment, capsys):
    with pytest.raises(UserError, match="--clips is 5; give a multiple of 16"):
        experiment.measure(system(text=True), {}, 5)
    assert experiment.main(["--clips", "5"]) == 2
    assert "give a multiple of 16" in capsys.readouterr().err
