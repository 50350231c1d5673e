"""Captions of the `shapes` world: one grammar, written in both directions.

Law of the file: a caption is lower-case words separated by single spaces, without punctuation, from the
closed list `vocabulary()`, at most `MAX_CAPTION_WORDS` long. Whatever it states is true of the scene; size
and background are sometimes left unsaid, and then they are free. A video's caption states shape, colour and
motion of every object; a still's caption (one frame) states no motion, because none can be seen.
"""

import re
from collections.abc import Sequence

from jaxvid.data.shapes.world import BACKGROUNDS, COLOURS, DIRECTIONS, SHAPES, Draws, Object, Scene

MAX_CAPTION_WORDS = 28

SIZE_WORDS = {"small": ("small", "little"), "large": ("large", "big")}
_DIRECTION_VERBS = (("moves", "moving"), ("slides", "sliding"), ("drifts", "drifting"))
_OTHER_MOTIONS = {
    "spins": (("spins", "spinning"), ("turns around", "turning around"), ("rotates", "rotating")),
    "orbits": (
        ("orbits", "orbiting"),
        ("goes around in a loop", "going around in a loop"),
        ("travels in a loop", "traveling in a loop"),
    ),
    "bounces": (
        ("bounces", "bouncing"),
        ("bounces up and down", "bouncing up and down"),
        ("hops up and down", "hopping up and down"),
    ),
    "grows": (("grows", "growing"), ("gets bigger", "getting bigger")),
    "shrinks": (("shrinks", "shrinking"), ("gets smaller", "getting smaller")),
}


def _direction_phrases(word: str) -> tuple[tuple[str, str], ...]:
    ways = (word, f"to the {word}") if word in ("left", "right") else (word, f"{word}ward")
    return tuple((f"{a} {way}", f"{b} {way}") for a, b in _DIRECTION_VERBS for way in ways)


# motion -> its phrases as (present tense, participle)
MOTION_PHRASES = {m: _direction_phrases(m.removeprefix("moves ")) for m in DIRECTIONS}
MOTION_PHRASES |= _OTHER_MOTIONS

# {0}, {1}: the objects; present and participle say which form of the motion follows the noun phrase.
TEMPLATES = {
    1: (
        ("present", "{0}"),
        ("participle", "{0}"),
        ("participle", "there is {0}"),
        ("participle", "a video of {0}"),
        ("participle", "this clip shows {0}"),
        ("relative", "a video of {0}"),
        ("relative", "there is {0}"),
    ),
    2: (
        ("present", "{0} and {1}"),
        ("present", "{0} while {1}"),
        ("participle", "{0} and {1}"),
        ("participle", "there is {0} and {1}"),
        ("participle", "a video of {0} and {1}"),
        ("participle", "this clip shows {0} and {1}"),
        ("relative", "a video of {0} and {1}"),
    ),
}
STILL_TEMPLATES = {
    1: ("{0}", "there is {0}", "a picture of {0}", "this picture shows {0}"),
    2: ("{0} and {1}", "there is {0} and {1}", "a picture of {0} and {1}"),
}
_BACKGROUND_WAYS = ("on a {} background", "against a {} background")
_SAY_SIZE, _SAY_BACKGROUND = 0.5, 0.6


def _noun(item: Object, draws: Draws) -> str:
    size = ""
    if draws.uniform() < _SAY_SIZE and item.size is not None:
        size = draws.choice(SIZE_WORDS[item.size]) + " "
    return f"a {size}{item.colour} {item.shape}"


def caption(scene: Scene, variant: int = 0, still: bool = False) -> str:
    """A true sentence about the scene; `variant` (>= 0) picks wording and what is left unsaid.

    `still`: the caption of one frame, without motion.
    """
    draws = Draws(variant, 0, 1)
    items = list(scene.objects)
    if draws.uniform() < 0.5:
        items.reverse()  # neither object is the main one
    if still:
        template = draws.choice(STILL_TEMPLATES[len(items)])
        parts = [_noun(item, draws) for item in items]
    else:
        form, template = draws.choice(TEMPLATES[len(items)])
        parts = []
        for item in items:
            noun = _noun(item, draws)
            present, participle = draws.choice(MOTION_PHRASES[item.motion])
            link = {"present": present, "participle": participle, "relative": f"that {present}"}
            parts.append(f"{noun} {link[form]}")
    sentence = template.format(*parts)
    if draws.uniform() < _SAY_BACKGROUND:
        where = draws.choice(_BACKGROUND_WAYS).format(scene.background)
        sentence = f"{sentence} {where}"
    return sentence


def vocabulary() -> tuple[str, ...]:
    """Every word that a caption can hold, sorted."""
    texts = ["a", "that", *COLOURS, *SHAPES, *BACKGROUNDS, *_BACKGROUND_WAYS]
    texts += [word for words in SIZE_WORDS.values() for word in words]
    texts += [text for phrases in MOTION_PHRASES.values() for pair in phrases for text in pair]
    texts += [text for rows in TEMPLATES.values() for _, text in rows]
    texts += [text for rows in STILL_TEMPLATES.values() for text in rows]
    words = {word for text in texts for word in re.sub(r"\{\d?\}", " ", text).split()}
    return tuple(sorted(words))


_SPELLINGS = {
    "grey": "gray",
    "upwards": "upward",
    "downwards": "downward",
    "travelling": "traveling",
}
_CUES = {  # what people write beyond the grammar
    "moves right": ("right", "rightward", "rightwards"),
    "moves left": ("left", "leftward", "leftwards"),
    "moves up": ("up", "upward", "rises", "rising"),
    "moves down": ("down", "downward", "falls", "falling"),
    "spins": ("spin", "rotate", "turns", "turning"),
    "orbits": ("orbit", "circling", "in a circle", "in circles", "in a loop"),
    "bounces": ("bounce", "up and down", "hop", "hops", "hopping", "jumps", "jumping"),
    "grows": ("grow", "bigger", "larger", "expands", "expanding"),
    "shrinks": ("shrink", "smaller"),
}


def _motion_table() -> dict[tuple[str, ...], str]:
    table = {tuple(cue.split()): motion for motion, cues in _CUES.items() for cue in cues}
    for motion, pairs in MOTION_PHRASES.items():
        table |= {tuple(form.split()): motion for pair in pairs for form in pair}
    return table


_MOTIONS_BY_WORDS = _motion_table()
_LONGEST_PHRASE = max(len(words) for words in _MOTIONS_BY_WORDS)
_SIZES_BY_WORD = {word: size for size, words in SIZE_WORDS.items() for word in words}


def parse(text: str) -> list[dict[str, str | None]]:
    """What a text says: one {shape, colour, motion, size, background} per object, None where unsaid.

    The inverse of `caption`, in the order of the words. Of other texts it returns what it understands, an
    empty list at worst. A motion belongs to the last object named before it, or else to the next one.
    """
    found_words: list[str] = re.findall(r"[a-z]+", text.lower())
    words = [_SPELLINGS.get(word, word) for word in found_words]
    items: list[dict[str, str | None]] = []
    colour: str | None = None
    size: str | None = None
    motion: str | None = None
    background: str | None = None
    position = 0
    while position < len(words):
        word, following = words[position], words[position + 1 : position + 2]
        length, found = _motion_at(words, position)
        if found is not None:
            if items and items[-1]["motion"] is None:
                items[-1]["motion"] = found
            elif not items:
                motion = found
        elif word in BACKGROUNDS and following == ["background"]:
            background = word
        elif word in _SIZES_BY_WORD:
            size = _SIZES_BY_WORD[word]
        elif word in COLOURS:
            colour = word
        elif word in SHAPES:
            items.append({"shape": word, "colour": colour, "motion": motion, "size": size})
            colour = size = motion = None
        position += length
    return [item | {"background": background} for item in items]


def _motion_at(words: Sequence[str], position: int) -> tuple[int, str | None]:
    """(words used, motion) of the longest motion phrase that starts here, (1, None) without one."""
    for length in range(_LONGEST_PHRASE, 0, -1):
        motion = _MOTIONS_BY_WORDS.get(tuple(words[position : position + length]))
        if motion is not None and position + length <= len(words):
            return length, motion
    return 1, None
