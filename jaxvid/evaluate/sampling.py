"""`jaxvid sample`: prompts or a given video to files."""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from tqdm import tqdm

from jaxvid.core.errors import UserError
from jaxvid.core.rng import named
from jaxvid.data import media
from jaxvid.data.writing import contact_sheet, write_video
from jaxvid.systems import presets
from jaxvid.systems.vdm import VDM
from jaxvid.systems.vdm.report import to_uint8

SUFFIXES = (".mp4", ".gif", ".mkv", ".png")


def sample_to_files(options: Namespace, prompts: Sequence[str]) -> list[Path]:
    """Samples as the options of `jaxvid sample` say; returns the files written."""
    system, params = presets.load(options.source)
    if system.text is not None and not prompts:
        raise UserError(f"{options.source} makes videos from text; give --prompt")
    count = len(prompts) or options.count
    paths = output_paths(options.out, count)
    if options.steps is not None and options.steps < 1:
        raise UserError(f"--steps is {options.steps}; it must be 1 or more")
    sampling = system.sampling
    for name in ("steps", "guidance"):
        if getattr(options, name) is not None:
            sampling = replace(sampling, **{name: getattr(options, name)})
    key = jax.random.key(options.seed)
    window = system.data.frames
    frames = options.frames or (2 * window if options.extend else window)
    start = None if options.extend is None else read_start(system, options.extend, count)
    first = min(frames, window)
    if start is None:
        with tqdm(total=sampling.steps, desc="sampling", unit="step", disable=None) as bar:

            def progress(done: int, _: int, __: Array) -> None:
                bar.update(done - bar.n)

            start = system.sample(
                params,
                named(key, "first"),
                prompts,
                count=count,
                frames=first,
                sampling=sampling,
                progress=progress,
            )
    if frames > start.shape[1]:
        start = system.extend(
            params,
            named(key, "extend"),
            start,
            frames,
            prompts=prompts,
            sampling=sampling,
            method=options.method,
            overlap=options.overlap,
        )
    videos = to_uint8(start)
    for path, video in zip(paths, videos, strict=True):
        write_video(path, video, options.fps)
    if count > 1:
        sheet = contact_sheet(videos, list(prompts) or None, paths[0].parent / "sheet.png")
        return [*paths, sheet]
    return paths


def output_paths(out: Path, count: int) -> list[Path]:
    """One path a video: `out` itself for one video with a known suffix, else files in the folder `out`."""
    if out.suffix.lower() in SUFFIXES:
        if count > 1:
            raise UserError(f"--out {out} is one file for {count} videos; give a folder")
        return [out]
    if out.suffix:
        raise UserError(f"--out {out} must end in {', '.join(SUFFIXES)}, or be a folder")
    return [out / f"{index:03d}.mp4" for index in range(count)]


def read_start(system: VDM, path: Path, count: int) -> Float[Array, "b t h w c"]:
    """The video to go on from, at the model's size, once for each prompt."""
    if not path.is_file():
        raise UserError(f"--extend {path} does not exist; check the path")
    info = media.probe(path)
    frames = media.read_frames(path, range(info.frames))
    height, width = system.data.height, system.data.width
    if frames.shape[1:3] != (height, width):
        resized = jax.image.resize(
            jnp.asarray(frames, jnp.float32), (len(frames), height, width, 3), "linear"
        )
        frames = np.asarray(resized)
    video = jnp.asarray(frames, jnp.float32) / 127.5 - 1.0
    return jnp.broadcast_to(video, (count, *video.shape))
