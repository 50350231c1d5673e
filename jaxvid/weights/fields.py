"""A published `config.json`, read so that nothing that changes the computation is passed over in silence.

A reader takes the fields that it understands; `end` refuses any other whose value is not the one that means "not used".
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

from jaxvid.core.errors import UserError

LARGEST = 1 << 20  # bytes of a config.json
WIDEST = (1 << 24) - 1  # of a width, a vocabulary, ...
DEEPEST = 1 << 10  # layers: describing a network takes time for each
LEVELS = 16
# Written by the libraries, of no effect on what is computed.
IRRELEVANT = ("sample_size", "dropout", "attention_dropout", "initializer_range", "initializer_factor",
              "gradient_checkpointing", "upcast_attention", "torch_dtype", "dtype", "architectures",
              "model_type", "force_upcast", "use_cache", "return_dict", "transformers_version", "dropout_rate",
              "num_frames", "chunk_size_feed_forward", "id2label", "label2id")  # fmt: skip

Value = TypeVar("Value")


class Fields:
    """The fields of one file: `given` as they are there, and those that nobody has taken yet."""

    def __init__(self, values: Mapping[str, Any], where: str):
        self.given, self.where = values, where
        self._left = {name: value for name, value in values.items() if not name.startswith("_")}

    def take(self, name: str, default: Value) -> Value:
        """The field's value, the default where it is absent or null and the default is not None."""
        value = self._left.pop(name, default)
        return default if value is None else value

    def number(self, name: str, default: int | None = None, most: int = WIDEST) -> int:
        """A positive integer, at most `most`."""
        value = self.take(name, default)
        if not _counts(value, most):
            raise self.refusal(name, value, f"a positive integer is wanted, at most {most}")
        return value

    def maybe(self, name: str) -> int | None:
        """A positive integer, or None where it is absent or null."""
        return None if self._left.get(name) is None else self.number(name)

    def numbers(
        self, name: str, count: int, default: Any = None, most: int = WIDEST
    ) -> tuple[int, ...]:
        """One positive integer for each of `count` levels; a single one stands for all."""
        value = self.take(name, default)
        values = tuple(value) if isinstance(value, list | tuple) else (value,) * count
        if len(values) != count or not all(_counts(each, most) for each in values):
            wanted = f"a positive integer or {count} of them are wanted, at most {most}"
            raise self.refusal(name, value, wanted)
        return values

    def widths(self, default: Sequence[int]) -> tuple[int, ...]:
        """`block_out_channels`: one positive integer a level."""
        value = self.take("block_out_channels", default)
        good = isinstance(value, list | tuple) and 1 <= len(value) <= LEVELS
        if not good or not all(_counts(each, WIDEST) for each in value):
            wanted = f"a list of 1 to {LEVELS} widths is wanted"
            raise self.refusal("block_out_channels", value, wanted)
        return tuple(value)

    def heads(self, name: str, default: int, width: int) -> int:
        """How many heads share a width, which they must divide."""
        heads = self.number(name, default)
        if width % heads:
            raise self.refusal(name, heads, f"it must divide the width {width}")
        return heads

    def groups(self, widths: Sequence[int], name: str = "norm_num_groups") -> int:
        """Groups of channels that are normalized together; they must divide the widths, as PyTorch demands."""
        groups = self.number(name, 32)
        if any(width % groups for width in widths):
            raise self.refusal(name, groups, f"it must divide the widths {list(widths)}")
        return groups

    def real(
        self, name: str, default: float, low: float = -math.inf, high: float = math.inf
    ) -> float:
        """A finite number strictly between `low` and `high`."""
        value = self.take(name, default)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or not low < value < high:
            bounds = "" if math.isinf(low) else f" above {low:g}"
            bounds += "" if math.isinf(high) else f" below {high:g}"
            raise self.refusal(name, value, f"a finite number{bounds} is wanted")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self.take(name, default)
        if not isinstance(value, bool):
            raise self.refusal(name, value, "true or false is wanted")
        return value

    def choice(self, name: str, choices: Mapping[Any, Value], default: Any = None) -> Value:
        """What the field's value stands for."""
        value = self.take(name, default)
        try:
            return choices[value]
        except (KeyError, TypeError):
            known = ", ".join(str(each) for each in choices)
            raise self.refusal(name, value, f"{known} can be read") from None

    def refusal(self, name: str, value: Any, why: str) -> UserError:
        """The error for a field that cannot be read."""
        return UserError(f"{self.where}: {name} is {value!r}; {why}")

    def end(self, unused: Mapping[str, Any]) -> None:
        """Refuses fields that were not taken, unless their value is that of `unused`, null or False."""
        for name, value in self._left.items():
            value = tuple(value) if isinstance(value, list) else value
            harmless = name in IRRELEVANT or value is None or value is False
            if not harmless and (name not in unused or unused[name] != value):
                raise self.refusal(name, value, "a network with that cannot be expressed here")


def _counts(value: Any, most: int) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= most


def read_fields(folder: str | Path, name: str = "config.json") -> tuple[str, Fields]:
    """The class name (of diffusers, or transformers' first architecture) and the fields of `folder/name`."""
    file = Path(folder) / name
    try:
        if file.stat().st_size > LARGEST:
            raise UserError(f"{file} has {file.stat().st_size} bytes; a config has less than 1 MiB")
        values = json.loads(file.read_text())
    except FileNotFoundError:
        raise UserError(f"{file} does not exist; give a folder in the diffusers layout") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read: {error}; fetch it again") from None
    if not isinstance(values, dict):
        raise UserError(f"{file} is no JSON object; fetch it again")
    architectures = values.get("architectures") or [None]
    kind = values.get("_class_name") or (
        architectures[0] if isinstance(architectures, list) else None
    )
    if not isinstance(kind, str):
        raise UserError(f"{file} names no class; give a folder of diffusers or transformers")
    return kind, Fields(values, str(file))
