"""The procedural `shapes` world: endless captioned clips whose truth is known.

config = ShapesConfig(frames=16, size=32)
scene = sample_scene(config, index)
video = render(scene, 16, 32, 32)      # uint8 [t, h, w, 3]
text = caption(scene, variant=index)   # "a small red cross that spins on a gray background"
"""

from jaxvid.data.shapes.caption import MAX_CAPTION_WORDS, caption, parse, vocabulary
from jaxvid.data.shapes.render import render
from jaxvid.data.shapes.world import (
    BACKGROUNDS,
    COLOURS,
    MOTIONS,
    SHAPES,
    SHAPES_TINY,
    SIZES,
    Object,
    Scene,
    ShapesConfig,
    held_out,
    sample_scene,
)

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "MAX_CAPTION_WORDS",
    "MOTIONS",
    "SHAPES",
    "SHAPES_TINY",
    "SIZES",
    "Object",
    "Scene",
    "ShapesConfig",
    "caption",
    "held_out",
    "parse",
    "render",
    "sample_scene",
    "vocabulary",
]
