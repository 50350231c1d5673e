"""Further inputs of the families, for the comparison with live PyTorch.

Batches of one and of three; even sides and, where PyTorch's network takes them, odd ones; clips of one frame and of five;
contexts of one token and of seven; masks where the network has one.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from families import FAMILIES

# Which axis of z is time.
FRAMES = {"modelscope": 2, "animatediff": 2, "stable video diffusion": 1, "temporal decoder": 1}
TOKENS = ("context", "tokens", "mask")
PICTURES = ("x", "z", "images")


@dataclass(frozen=True)
class Variant:
    """What differs: sizes of the inputs, None as the family has them; masked: a mask of the tokens; config: arguments."""

    batch: int = 2
    sides: tuple[int, int] | None = None
    frames: int | None = None
    tokens: int | None = None
    masked: bool = False
    config: dict[str, Any] = field(default_factory=dict)

    def __str__(self):
        parts = {"x".join(map(str, self.sides or ())): True, f"{self.frames} frames": self.frames,
                 f"{self.tokens} tokens": self.tokens, "masked": self.masked,
                 "another network": self.config}  # fmt: skip
        return ", ".join(
            [f"batch {self.batch}", *(text for text, there in parts.items() if text and there)]
        )


def varied(name, variant):
    """The family with that variant's inputs and arguments."""
    family = FAMILIES[name]
    inputs = dict(family.inputs)
    if variant.masked:
        inputs["mask"] = inputs["context" if "context" in inputs else "tokens"][0][:2], "mask"
    for key, (shape, kind) in inputs.items():
        shape = [variant.batch, *shape[1:]]
        if variant.frames and key == "z":
            shape[FRAMES[name]] = variant.frames
        if variant.sides and key in PICTURES and len(shape) > 2:
            shape[-2:] = variant.sides
        if variant.tokens and key in TOKENS:
            shape[1] = variant.tokens
        inputs[key] = tuple(shape), kind
    return replace(family, inputs=inputs, config=family.config | variant.config)


IMAGES = (Variant(1, (8, 6), tokens=1), Variant(3, (5, 9), tokens=7, masked=True))
# Blocks that halve the sides themselves: PyTorch's do not take odd ones.
EVEN = (Variant(1, (8, 4), tokens=1), Variant(3, (6, 10), tokens=7, masked=True))
# And of one token PyTorch's group norm of the context has no statistics.
TEXTS = (Variant(1, (8, 4), tokens=2), Variant(3, (6, 10), tokens=7, masked=True))
CLIPS = (Variant(1, (8, 6), frames=1, tokens=1), Variant(3, (5, 9), frames=5, tokens=7))
VARIED = {
    "stable diffusion 1": IMAGES,
    "stable diffusion 2": IMAGES,
    "instruct pix2pix": IMAGES,
    # No mask: PyTorch's would not apply it where the pixels look at the context alone.
    "upscaler": (Variant(1, (8, 12), tokens=1), Variant(3, (5, 9), tokens=7)),
    "karlo decoder": EVEN,
    "deepfloyd 1": TEXTS,
    "deepfloyd 2": (
        *TEXTS,
        # As published: levels of different depth, and attention to the text alone. No mask here either.
        Variant(
            3, tokens=7, config={"layers_per_block": (1, 2), "only_cross_attention": (False, True)}
        ),
        Variant(1, tokens=5, config={"only_cross_attention": True}),
    ),
    "karlo super-resolution": (Variant(1, (4, 6)), Variant(3, (10, 2))),
    "modelscope": CLIPS,
    "animatediff": CLIPS,
    "stable video diffusion": (Variant(1, (8, 4), frames=1), Variant(3, (6, 10), frames=5)),
    "autoencoder": (Variant(1, (7, 9)), Variant(3, (4, 6))),
    "temporal decoder": (Variant(1, (7, 9), frames=1), Variant(3, (4, 6), frames=5)),
    "clip text": (Variant(1, tokens=1), Variant(3, tokens=20, masked=True)),
    "clip text, projected": (Variant(1, tokens=1), Variant(3, tokens=13)),
    "clip image": (Variant(1), Variant(3, (15, 15), config={"image_size": 15, "patch_size": 5})),
    "t5": (Variant(1, tokens=1), Variant(3, tokens=33)),
    "karlo prior": (Variant(1), Variant(3)),
    "karlo conditions": (Variant(1, tokens=1), Variant(3, tokens=9)),
}
VARIANTS = {
    f"{name}, {variant}": varied(name, variant) for name in VARIED for variant in VARIED[name]
}
