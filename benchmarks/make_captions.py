"""Writes captions.json: 512 captions of the shapes world, the fixed prompts of text-to-video scores.

    python benchmarks/make_captions.py

Half have two objects. 32 of each half hold a (shape, colour, motion) triple that the train split never
shows; among two objects it is one of them. Shapes, colours and motions are balanced in each of the four
groups: of several random scenes the one whose attributes were rarest so far is taken. No two captions are
equal. An entry lists the objects in the order of the caption, with what the caption leaves unsaid as null.
"""

import json
from collections import Counter
from pathlib import Path

from jaxvid.data.shapes import Scene, ShapesConfig, caption, parse, sample_scene

PATH = Path(__file__).with_name("captions.json")
SEED = 20_250_101
GROUPS = (  # (objects, held out, captions)
    (1, False, 224),
    (1, True, 32),
    (2, False, 224),
    (2, True, 32),
)
CANDIDATES = 8


def build() -> list[dict]:
    """The entries, in the order of the groups."""
    entries, texts = [], set()
    for group, (count, held_out, number) in enumerate(GROUPS):
        config = ShapesConfig(
            two_objects=float(count - 1),
            split="heldout" if held_out else "train",
            seed=SEED + group,
        )
        seen: Counter = Counter()
        for row in range(number):
            start = row * CANDIDATES
            scenes = [sample_scene(config, start + i) for i in range(CANDIDATES)]
            scene = min(scenes, key=lambda s: sum(seen[a] ** 2 for a in _attributes(s)))
            seen.update(_attributes(scene))
            entries.append(_entry(len(entries), scene, held_out, texts))
    return entries


def _attributes(scene: Scene) -> list[str]:
    return [a for item in scene.objects for a in (item.shape, item.colour, item.motion)]


def _entry(number: int, scene: Scene, held_out: bool, texts: set[str]) -> dict:
    """The entry of a scene, worded as no caption before it."""
    variant = next(
        v for v in range(number * 100, number * 100 + 100) if caption(scene, v) not in texts
    )
    text = caption(scene, variant)
    texts.add(text)
    said = parse(text)
    return {
        "id": number,
        "caption": text,
        "objects": [{k: v for k, v in item.items() if k != "background"} for item in said],
        "background": said[0]["background"],
        "heldout": held_out,
    }


def dumps(entries: list[dict]) -> str:
    """JSON with one entry a line."""
    return "[\n" + ",\n".join(json.dumps(entry) for entry in entries) + "\n]\n"


if __name__ == "__main__":
    PATH.write_text(dumps(build()))
