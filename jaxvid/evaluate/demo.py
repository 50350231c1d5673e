"""`jaxvid demo`: eight sentences to videos with the shipped model, and what an analyser sees in them."""

import time
from dataclasses import replace
from pathlib import Path

import jax

from jaxvid.core.errors import UserError
from jaxvid.data.shapes import held_out, parse
from jaxvid.data.writing import check_place, contact_sheet, write_video
from jaxvid.evaluate.captions import score
from jaxvid.evaluate.sampling import step_bar
from jaxvid.evaluate.shapes_reader import Reading, read_clip
from jaxvid.systems import presets
from jaxvid.systems.vdm.report import FPS, to_uint8

MODEL = "vdm/shapes"
CAPTIONS = (
    "a large red circle moves left on a black background",
    "a small blue square spins on a white background",
    "a yellow triangle bounces on a gray background",
    "a green ring grows on a black background",
    "a magenta cross moves up on a white background",
    "a red square moves left while a cyan circle moves down",
    # Training never shows these two combinations of shape, colour and motion.
    "a blue square orbits on a white background",
    "a yellow ring moves right on a black background",
)


def run_demo(out: Path, *, seed: int = 0, steps: int | None = None) -> int:
    """Writes one mp4 a caption and `sheet.png` into `out`, prints a line for each; returns the exit code."""
    if steps is not None and steps < 1:
        raise UserError(f"--steps is {steps}; it must be 1 or more")
    check_place(out / "sheet.png")
    system, params = presets.load(MODEL)
    sampling = system.sampling if steps is None else replace(system.sampling, steps=steps)
    begin = time.monotonic()
    with step_bar(sampling.steps) as progress:
        videos = system.sample(
            params, jax.random.key(seed), CAPTIONS, sampling=sampling, progress=progress
        )
        videos = to_uint8(videos)
    seconds = time.monotonic() - begin
    print(
        f"{len(CAPTIONS)} videos of {videos.shape[1]} frames in {seconds:.1f} s, compilation included"
    )
    right = 0
    lines = []
    for index, (caption, video) in enumerate(zip(CAPTIONS, videos, strict=True)):
        path = write_video(out / f"{index}_{caption.replace(' ', '_')}.mp4", video, FPS)
        verdict = score(video, caption)
        right += verdict["all"]
        wrong = [name for name, ok in verdict.items() if not ok and name != "all"]
        seen = describe(read_clip(video))
        unseen = " (never trained)" if is_never_trained(caption) else ""
        mark = "right" if verdict["all"] else "wrong in " + ", ".join(wrong)
        print(f"{path}\n  asked{unseen}: {caption}\n  seen: {seen} -> {mark}")
        lines.append(f"{caption}{unseen} | seen: {seen}")
    sheet = contact_sheet(videos, lines, out / "sheet.png")
    print(f"{right} of {len(CAPTIONS)} clips show all that was asked; contact sheet: {sheet}")
    return 0


def is_never_trained(caption: str) -> bool:
    """Whether the caption names a combination that the training split leaves out."""
    return any(
        held_out(item["shape"], item["colour"], item["motion"])
        for item in parse(caption)
        if item["shape"] and item["colour"] and item["motion"]
    )


def describe(reading: Reading) -> str:
    """A reading in words."""
    objects = [
        " ".join(filter(None, (item.size, item.colour, item.shape, item.motion)))
        for item in reading.objects
    ]
    return f"{' and '.join(objects) or 'nothing'} on {reading.background}"
