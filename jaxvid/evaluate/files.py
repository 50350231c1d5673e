"""Where `jaxvid sample` writes."""

from pathlib import Path

from jaxvid.core.errors import UserError
from jaxvid.data.writing import check_place

SUFFIXES = (".mp4", ".gif", ".mkv", ".png")


def output_paths(out: Path, count: int, frames: int) -> list[Path]:
    """One path a video: `out` itself for one video with a known suffix, else files in the folder `out`."""
    suffix = out.suffix.lower()
    if suffix in SUFFIXES and not out.is_dir():
        if count > 1:
            raise UserError(f"--out {out} is one file for {count} videos; give a folder")
        if suffix == ".png" and frames > 1:
            raise UserError(f"--out {out} holds one frame, not {frames}; name an .mp4 or a folder")
        paths = [out]
    elif out.suffix and not out.is_dir():
        raise UserError(f"--out {out} must end in {', '.join(SUFFIXES)}, or be a folder")
    else:
        suffix = ".png" if frames == 1 else ".mp4"
        paths = [out / f"{index:03d}{suffix}" for index in range(count)]
    for path in paths:
        check_place(path)
    return paths
