"""Sentences about toy scenes: captions, and instructions in several phrasings.

All text is lower-case words with single spaces and no punctuation, American spelling. Whatever a caption states is true
of the scene; a part's shape is said when it is not the usual one, its size when an edit changed it. What a caption
leaves unsaid is free, but the night is always said.
"""

from collections.abc import Sequence

from jaxedit.scene.toy.world import ToyScene

# kind -> (one, many)
SHAPES = {
    "sphere": ("ball", "balls"),
    "box": ("box", "boxes"),
    "cylinder": ("cylinder", "cylinders"),
    "cone": ("cone", "cones"),
    "torus": ("ring", "rings"),
    "capsule": ("pill", "pills"),
    "dome": ("dome", "domes"),
    "prism": ("wedge", "wedges"),
}
MARKS = {"stripes": "striped", "checks": "checkered", "dots": "dotted"}  # texture -> adjective

OPENINGS = ("", "a picture of ", "a render of ", "this is ")

# What to do -> phrasings. part: its name; thing: the template's; noun: the part as it becomes, with its article.
PHRASES: dict[str, tuple[str, ...]] = {
    "recolour": (
        "make the {part} {colour}",
        "paint the {part} {colour}",
        "turn the {part} {colour}",
        "color the {part} {colour}",
        "change the color of the {part} to {colour}",
        "the {part} should be {colour}",
    ),
    "mark": (
        "give the {part} {second} {marks}",
        "add {second} {marks} to the {part}",
        "cover the {part} with {second} {marks}",
        "paint {second} {marks} on the {part}",
        "the {part} should have {second} {marks}",
    ),
    "unmark": (
        "remove the {marks} from the {part}",
        "take the {marks} off the {part}",
        "make the {part} plain {colour}",
        "paint the {part} plain {colour}",
        "the {part} should be plain {colour}",
    ),
    "bigger": (
        "make the {part} bigger",
        "make the {part} larger",
        "enlarge the {part}",
        "increase the size of the {part}",
        "the {part} should be bigger",
        "give the {thing} {bigger}",
    ),
    "smaller": (
        "make the {part} smaller",
        "shrink the {part}",
        "decrease the size of the {part}",
        "the {part} should be smaller",
        "give the {thing} {smaller}",
    ),
    "add": (
        "add {noun}",
        "add {noun} to the {thing}",
        "give the {thing} {noun}",
        "put {noun} on the {thing}",
        "the {thing} should have {noun}",
    ),
    "remove": (
        "remove the {part}",
        "take away the {part}",
        "delete the {part}",
        "get rid of the {part}",
        "take the {part} off the {thing}",
        "the {thing} should have no {part}",
    ),
    "reshape": (
        "turn the {part} into {shape}",
        "replace the {part} with {shape}",
        "change the {part} to {shape}",
        "the {part} should be {shape}",
        "make the {part} {form} shaped",
    ),
    "become": (
        "turn the {thing} into {new}",
        "replace the {thing} with {new}",
        "change the {thing} to {new}",
        "make the {thing} {new}",
        "it should be {new}",
    ),
    "night": (
        "make it night",
        "turn day into night",
        "show it at night",
        "change the time to night",
        "it should be night",
    ),
    "day": (
        "make it day",
        "turn night into day",
        "show it in daylight",
        "change the time to day",
        "it should be day",
    ),
}

# Never used in training.
HELD_OUT_PHRASES: dict[str, tuple[str, ...]] = {
    "recolour": ("change the {part} to {colour}", "i want the {part} to be {colour}"),
    "mark": ("put {second} {marks} on the {part}", "decorate the {part} with {second} {marks}"),
    "unmark": ("get rid of the {marks} on the {part}", "the {part} should have no {marks}"),
    "bigger": ("turn the {part} into {bigger}", "i want the {part} to be larger"),
    "smaller": ("turn the {part} into {smaller}", "i want the {part} to be smaller"),
    "add": ("attach {noun} to the {thing}", "i want the {thing} to have {noun}"),
    "remove": ("erase the {part}", "take away the {part} from the {thing}"),
    "reshape": ("make the {part} into {shape}", "i want the {part} to be {shape}"),
    "become": ("swap the {thing} for {new}", "i want it to be {new}"),
    "night": ("change day to night", "i want it to be night"),
    "day": ("change night to day", "i want it to be day"),
}


def caption(
    scene: ToyScene,
    names: Sequence[str] | None = None,
    *,
    opening: str = "",
    say_light: bool = False,
) -> str:
    """A true sentence: "a snowman with a red hat and brown arms at night".

    names: the parts that it mentions, all of them by default. say_light: by day as well.
    """
    mentioned = scene.names if names is None else names
    sentence = opening + with_article(scene.template)
    if mentioned:
        sentence += " with " + " and ".join(noun(scene, name) for name in mentioned)
    if scene.light == "night":
        return sentence + " at night"
    return sentence + (" in daylight" if say_light else "")


def noun(scene: ToyScene, name: str) -> str:
    """A part with its article: "a big red and white striped cone shaped hat"."""
    part, rule = scene.part(name), scene.rules[scene.label(name)]
    words = [part.size_word, part.colour]
    if part.texture != "plain":
        words += ["and", part.second, MARKS[part.texture]]
    if part.kind != rule.kinds[0]:
        words += [SHAPES[part.kind][0], "shaped"]
    phrase = " ".join(word for word in [*words, name] if word)
    return phrase if rule.plural else with_article(phrase)


def with_article(phrase: str) -> str:
    """A or an before a phrase."""
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def phrase_fields(scene: ToyScene, name: str) -> dict[str, str]:
    """What the phrasings say of a part of the scene, as it is after the edit."""
    part, rule = scene.part(name), scene.rules[scene.label(name)]
    one, many = SHAPES[part.kind]
    bigger, smaller = f"bigger {name}", f"smaller {name}"
    return {
        "part": name,
        "thing": scene.template,
        "colour": part.colour,
        "second": part.second,
        "noun": noun(scene, name),
        "form": one,
        "shape": many if rule.mirror else with_article(one),
        "bigger": bigger if rule.plural else with_article(bigger),
        "smaller": smaller if rule.plural else with_article(smaller),
    }
