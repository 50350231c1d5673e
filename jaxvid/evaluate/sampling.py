"""`jaxvid sample`: prompts or a given video to files."""

from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from tqdm import tqdm

from jaxvid.core.errors import UserError
from jaxvid.core.rng import named
from jaxvid.data import media
from jaxvid.data.writing import contact_sheet, write_video
from jaxvid.diffusion.driver import Progress
from jaxvid.evaluate.files import output_paths
from jaxvid.systems import presets
from jaxvid.systems.vdm import VDM
from jaxvid.systems.vdm.report import to_uint8
from jaxvid.systems.vdm.sampling import windows
from jaxvid.systems.vdm.training import to_float

# Options of the command that only published pipelines take.
PUBLISHED_ONLY = ("image", "negative", "size", "sampler", "image_guidance", "motion", "variant")


def sample_to_files(options: Namespace, prompts: Sequence[str]) -> list[Path]:
    """Samples as the options of `jaxvid sample` say; returns the files written. What is wrong is said before sampling."""
    system, params = presets.load(options.source)
    count, window = check_options(options, system, prompts), system.data.frames
    start = None if options.extend is None else read_start(system, options.extend, count)
    frames = options.frames or (window if start is None else start.shape[1] + window // 2)
    if start is not None and frames <= start.shape[1]:
        raise UserError(
            f"--frames is {frames}, but {options.extend} has {start.shape[1]} frames already; ask for more"
        )
    if frames > window:
        windows(frames, window, window // 2 if options.overlap is None else options.overlap)
    paths = output_paths(options.out, count, frames)
    sampling = system.sampling
    for name in ("steps", "guidance"):
        if getattr(options, name) is not None:
            sampling = replace(sampling, **{name: getattr(options, name)})
    key, chosen = jax.random.key(options.seed), {"sampling": sampling, "skip": options.skip}
    if start is None:
        with step_bar(sampling.steps) as progress:
            start = system.sample(
                params,
                named(key, "first"),
                prompts,
                count=count,
                frames=min(frames, window),
                progress=progress,
                **chosen,
            )
    if frames > start.shape[1]:
        start = system.extend(
            params,
            named(key, "extend"),
            start,
            frames,
            prompts=prompts,
            method=options.method or "reconstruction",
            overlap=options.overlap,
            **chosen,
        )
    videos = to_uint8(start)
    for path, video in zip(paths, videos, strict=True):
        write_video(path, video, options.fps or 8.0)
    if count > 1:
        sheet = contact_sheet(videos, list(prompts) or None, paths[0].parent / "sheet.png")
        return [*paths, sheet]
    return paths


def check_options(options: Namespace, system: VDM, prompts: Sequence[str]) -> int:
    """Raises UserError for options that do not fit the model; returns the number of videos."""
    if system.text is not None and not prompts:
        raise UserError(f"{options.source} makes videos from text; give --prompt")
    if prompts and options.count is not None:
        raise UserError("--count is for models without text; give a --prompt for each video")
    for name in ("count", "steps", "frames"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} is {value}; it must be 1 or more")
    for name in PUBLISHED_ONLY:
        if getattr(options, name):
            raise UserError(
                f"--{name.replace('_', '-')} is for published pipelines; leave it out for {options.source}"
            )
    if options.fps is not None and not 0 < options.fps <= 1000:
        raise UserError(f"--fps is {options.fps:g}; choose between 0 and 1000")
    return len(prompts) or options.count or 1


@contextmanager
def step_bar(steps: int) -> Iterator[Progress]:
    """A bar over sampling steps, and the function that moves it."""
    with tqdm(total=steps, desc="sampling", unit="step", disable=None) as bar:

        def progress(done: int, _: int, __: Array) -> None:
            bar.update(done - bar.n)

        yield progress


def read_start(system: VDM, path: Path, count: int) -> Float[Array, "b t h w c"]:
    """The video to go on from, at the model's size, once for each prompt."""
    if not path.is_file():
        raise UserError(f"--extend {path} does not exist; check the path")
    info = media.probe(path)
    video = to_float(jnp.asarray(media.read_frames(path, range(info.frames)))[None])[0]
    size = (len(video), system.data.height, system.data.width, 3)
    if video.shape != size:
        video = jax.image.resize(video, size, "linear")
    return jnp.broadcast_to(video, (count, *size))
