"""What a caption states, as answers to a fixed list of questions: the truth that teaches a text encoder to read.

The questions are, for each colour in the order of the table: which shape has it, how does that one move, how large is
it; and last: what is the background. They tie every property to its object, which a bag of words does not. Colours
serve as names because no two objects of a scene share one.

An answer is a number: 0 is "none" or "unsaid", 1 + i the i-th entry of the world's table. `NOT_ASKED` stands where the
question makes no sense, the motion and size of a colour that no object has.
"""

import numpy as np
from jaxtyping import Int32

from jaxvid.data.shapes.caption import parse
from jaxvid.data.shapes.world import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, SIZES

NOT_ASKED = -1

_OF_A_COLOUR = (("shape", SHAPES), ("motion", MOTIONS), ("size", tuple(SIZES)))

# Number of possible answers to each question.
CHOICES = tuple(1 + len(table) for _ in COLOURS for _, table in _OF_A_COLOUR)
CHOICES += (1 + len(BACKGROUNDS),)


def answers(caption: str) -> Int32[np.ndarray, " questions"]:
    """The answers that `caption` gives, in [0, CHOICES[i]) or `NOT_ASKED`."""
    found = np.full(len(CHOICES), NOT_ASKED, np.int32)
    found[: -1 : len(_OF_A_COLOUR)] = 0
    found[-1] = 0
    colours = tuple(COLOURS)
    for item in parse(caption):
        if item["colour"] is not None:
            first = colours.index(item["colour"]) * len(_OF_A_COLOUR)
            for offset, (name, table) in enumerate(_OF_A_COLOUR):
                found[first + offset] = _number(item[name], table)
        found[-1] = _number(item["background"], tuple(BACKGROUNDS))
    return found


def _number(word: str | None, table: tuple[str, ...]) -> int:
    return 0 if word is None else 1 + table.index(word)
