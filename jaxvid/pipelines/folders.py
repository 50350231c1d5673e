"""Folders of published pipelines: which class they are of, which parts they hold, which sides they were trained at."""

from collections.abc import Sequence
from pathlib import Path

from jaxvid.core.errors import UserError
from jaxvid.weights.fields import read_fields

LARGEST = 1 << 13  # pixels a side


def check_parts(folder: Path, names: Sequence[str]) -> None:
    """Raises UserError for a folder that lacks one of the parts."""
    for name in names:
        if not (folder / name).is_dir():
            raise UserError(
                f"{folder / name} does not exist; give a pipeline's folder of diffusers"
            )


def pipeline_class(folder: str | Path) -> str:
    """The class that `model_index.json` names. Raises UserError."""
    return read_fields(folder, "model_index.json")[0]


def trained_sides(folder: str | Path, default: int) -> tuple[int, int]:
    """Height and width of what the U-Net of `folder` was trained on: `sample_size` of its config, or the default."""
    _, fields = read_fields(folder)
    height, width = fields.numbers("sample_size", 2, default, most=LARGEST)
    return height, width
