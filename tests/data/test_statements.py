"""What captions state, against the scenes that they describe."""

import numpy as np

from jaxvid.data.shapes import (
    BACKGROUNDS,
    COLOURS,
    MOTIONS,
    SHAPES,
    SIZES,
    ShapesConfig,
    caption,
    sample_scene,
)
from jaxvid.data.shapes.statements import CHOICES, NOT_ASKED, answers

COLOUR_NAMES, BACKGROUND_NAMES, SIZE_NAMES = tuple(COLOURS), tuple(BACKGROUNDS), tuple(SIZES)


def test_the_questions():
    """Shape, motion and size of each colour, then the background; 0 is always "none" or "unsaid"."""
    assert CHOICES == (6, 10, 3) * 7 + (5,)


def test_a_sentence():
    found = answers("a small red cross that spins and a blue ring moving left on a gray background")
    table = found[:-1].reshape(7, 3)
    assert found.dtype == np.int32
    assert table[COLOUR_NAMES.index("red")].tolist() == [
        1 + SHAPES.index("cross"),
        1 + MOTIONS.index("spins"),
        1 + SIZE_NAMES.index("small"),
    ]
    assert table[COLOUR_NAMES.index("blue")].tolist() == [
        1 + SHAPES.index("ring"),
        1 + MOTIONS.index("moves left"),
        0,
    ]
    others = [i for i, name in enumerate(COLOUR_NAMES) if name not in ("red", "blue")]
    assert (table[others] == [0, NOT_ASKED, NOT_ASKED]).all()
    assert found[-1] == 1 + BACKGROUND_NAMES.index("gray")
    assert (answers("")[:-1].reshape(7, 3) == [0, NOT_ASKED, NOT_ASKED]).all()


def test_answers_are_true_of_the_scene():
    """Of 300 captions: every object is stated with its own shape and motion; what is said besides is true."""
    for index in range(300):
        scene = sample_scene(ShapesConfig(), index)
        still = index % 3 == 0
        found = answers(caption(scene, index, still))
        table = found[:-1].reshape(7, 3)
        assert (found < CHOICES).all()
        assert (table[:, 0] > 0).sum() == len(scene.objects)
        for item in scene.objects:
            shape, motion, size = table[COLOUR_NAMES.index(item.colour)]
            assert shape == 1 + SHAPES.index(item.shape)
            assert motion == (0 if still else 1 + MOTIONS.index(item.motion))
            assert size in ((0,) if item.size is None else (0, 1 + SIZE_NAMES.index(item.size)))
        assert found[-1] in (0, 1 + BACKGROUND_NAMES.index(scene.background))
