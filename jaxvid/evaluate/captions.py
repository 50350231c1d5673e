"""Does a text-to-video model make what the sentence says? The caption protocol of the `shapes` world.

Every caption of a fixed list is sampled with every seed; the analyser of `jaxvid.evaluate.shapes_reader` reads the
clip, and colour, shape, motion and the number of objects each count as right only if they are right for all objects.
"unknown" is wrong. Groups: one object, two objects, and captions with a combination that was never trained (each of one
and of two objects). Intervals are Wilson's over all clips of a group and attribute.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

import jaxvid
from jaxvid.core.errors import UserError
from jaxvid.core.progress import Progress
from jaxvid.core.rng import named
from jaxvid.data.shapes import parse
from jaxvid.evaluate.shapes_reader import agrees, read_clip
from jaxvid.evaluate.statistics import wilson_interval
from jaxvid.systems import presets
from jaxvid.systems.vdm.report import to_uint8

FIELDS = {"id", "caption", "objects", "heldout"}
ATTRIBUTES = ("colour", "shape", "motion", "count", "all")


def score(video: UInt8[np.ndarray, "t h w 3"], caption: str) -> dict[str, bool]:
    """What of `caption` the analyser finds in `video`; "all" is colour, shape, motion and count together."""
    right = agrees(read_clip(video), parse(caption))
    found = {name: right[name] for name in ATTRIBUTES[:-1]}
    return {**found, "all": all(found.values())}


def group_of(entry: Mapping[str, Any]) -> str:
    """The group under which an entry of the caption list is counted."""
    objects = "one object" if len(entry["objects"]) == 1 else "two objects"
    return f"{objects}, never trained" if entry["heldout"] else objects


def captions_file() -> Path:
    """The project's caption list: in `benchmarks/` of a clone, inside the package where a wheel is installed."""
    package = Path(jaxvid.__file__).parent
    inside = package / "assets" / "captions.json"
    return inside if inside.is_file() else package.parent / "benchmarks" / "captions.json"


def read_captions(path: Path, limit: int | None) -> list[dict[str, Any]]:
    """The caption list, or the first `limit` of each group. Raises UserError for a file that is not such a list."""
    if limit is not None and limit < 1:
        raise UserError(f"limit is {limit}; it must be 1 or more")
    try:
        entries = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"captions {path}: {error.strerror}; give --captions FILE") from None
    except ValueError as error:
        raise UserError(f"captions {path} is not valid JSON: {error}; restore it") from None
    seen: dict[str, int] = {}
    chosen = []
    for number, entry in enumerate(entries if isinstance(entries, list) else [None]):
        if not isinstance(entry, dict) or not set(entry) >= FIELDS:
            raise UserError(
                f"captions {path}: entry {number} lacks some of {', '.join(sorted(FIELDS))}; "
                "see benchmarks/captions.json"
            )
        group = group_of(entry)
        seen[group] = seen.get(group, 0) + 1
        if limit is None or seen[group] <= limit:
            chosen.append(entry)
    if not chosen:
        raise UserError(f"captions {path} is an empty list; give another")
    return chosen


def evaluate_captions(
    source: str,
    captions: Path,
    *,
    seeds: int = 3,
    limit: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    batch: int = 16,
) -> dict[str, Any]:
    """Samples every caption with every seed and scores the clips; see the module's docstring."""
    if seeds < 1 or batch < 1:
        raise UserError(f"seeds is {seeds} and batch is {batch}; both must be 1 or more")
    entries = read_captions(captions, limit)
    system, params = presets.load(source)
    sampling = system.sampling
    sampling = replace(sampling, steps=sampling.steps if steps is None else steps)
    sampling = replace(sampling, guidance=sampling.guidance if guidance is None else guidance)
    results: list[dict[str, Any]] = []
    with Progress("clips", total=seeds * len(entries)) as progress:
        for seed in range(seeds):
            for start in range(0, len(entries), batch):
                part = entries[start : start + batch]
                # The last part is filled up, so that one program serves all.
                filled = [entry["caption"] for entry in part]
                filled += [filled[-1]] * (batch - len(part))
                key = named(jax.random.key(seed), "captions", start)
                videos = to_uint8(system.sample(params, key, filled, sampling=sampling))
                for entry, video in zip(part, videos, strict=False):
                    right = score(video, entry["caption"])
                    results.append(
                        {"id": entry["id"], "seed": seed, "group": group_of(entry), **right}
                    )
                progress.advance(len(part))
                wholly = sum(result["all"] for result in results)
                progress.report({"all right": wholly / len(results)})
    settings = {"source": str(source), "seeds": seeds, "steps": sampling.steps}
    settings |= {"guidance": sampling.guidance, "sampler": sampling.sampler}
    return {"settings": settings, "groups": summarize(results), "clips": results}


def summarize(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Share right, interval and count by group and attribute."""
    summary: dict[str, dict[str, dict[str, float]]] = {}
    for group in sorted({result["group"] for result in results}):
        members = [result for result in results if result["group"] == group]
        summary[group] = {}
        for name in ATTRIBUTES:
            right = sum(member[name] for member in members)
            low, high = wilson_interval(right, len(members))
            shares = {"share": right / len(members), "low": low, "high": high}
            summary[group][name] = {**shares, "clips": len(members)}
    return summary


def table(scores: Mapping[str, Any]) -> str:
    """The scores as text."""
    settings = scores["settings"]
    lines = [
        f"{settings['source']}: {settings['sampler']}, {settings['steps']} steps, guidance "
        f"{settings['guidance']:g}, {settings['seeds']} seeds; share right [95% interval]",
        f"{'group':28}{'clips':>6}  " + "".join(f"{name:>20}" for name in ATTRIBUTES),
    ]
    for group, attributes in scores["groups"].items():
        cells = [
            f"{100 * cell['share']:5.1f} [{100 * cell['low']:.1f}, {100 * cell['high']:.1f}]"
            for cell in attributes.values()
        ]
        clips = next(iter(attributes.values()))["clips"]
        lines.append(f"{group:28}{clips:>6}  " + "".join(f"{cell:>20}" for cell in cells))
    return "\n".join(lines)
