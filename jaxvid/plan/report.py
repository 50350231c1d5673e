"""What compiling for a machine tells: the numbers, as JSON and as a table.

Bytes are per device. FLOPs are counted on the program (`jaxvid.core.flops`), over all devices, and divided evenly for the
figure per device. Collectives are instructions in the compiled program: one inside a loop counts once.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Plan:
    """One program compiled for one topology.

    `fits` is False when the compiler refused for memory, or when the peak exceeds what the device can give
    (`usable_bytes`). When the compiler refused, `peak_bytes_per_device` is the need that it stated (or None), the
    other byte counts and `collectives` are None and `error` holds its first line. (`collectives` is also None where the
    compiled text cannot be read.) `loop_turns`: how often FLOPs count the loops whose length only run time knows; None
    where there are none.
    """

    topology: str
    devices: int
    mesh: Mapping[str, int]
    parameters: int
    fits: bool
    peak_bytes_per_device: int | None
    argument_bytes: int | None
    output_bytes: int | None
    temp_bytes: int | None
    device_memory_bytes: int
    usable_bytes: int
    flops: Mapping[str, int]
    flops_uncounted: tuple[str, ...]
    collectives: Mapping[str, int] | None
    whole: tuple[str, ...]
    lower_seconds: float
    compile_seconds: float
    error: str | None = None
    loop_turns: int | None = None

    def to_json(self) -> str:
        """All fields as JSON; `Plan.from_json` reads it back."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """The inverse of `to_json`."""
        fields: dict[str, Any] = json.loads(text)
        for name in ("flops_uncounted", "whole"):
            fields[name] = tuple(fields[name])
        return cls(**fields)

    def table(self) -> str:
        """The plan as aligned text, one fact a line."""
        rows = [
            ("topology", f"{self.topology} ({self.devices} devices)"),
            ("mesh", " ".join(f"{axis}={size}" for axis, size in self.mesh.items()) or "none"),
            ("parameters", f"{self.parameters:,}"),
            ("fits", self._verdict()),
            ("peak per device", memory(self.peak_bytes_per_device)),
            ("  arguments", memory(self.argument_bytes)),
            ("  temporaries", memory(self.temp_bytes)),
            (
                "device memory",
                f"{memory(self.device_memory_bytes)}, usable {memory(self.usable_bytes)}",
            ),
            (
                "FLOPs",
                f"{count(self.flops['total'])} in all, {count(self.flops['per_device'])} per device",
            ),
            ("  matmul, conv", f"{count(self.flops['matmul'])}, {count(self.flops['conv'])}"),
            ("  elementwise", count(self.flops["other"])),
            ("  loops", self._loops()),
            ("collectives", self._collectives()),
            ("lower, compile", f"{self.lower_seconds:.1f} s, {self.compile_seconds:.1f} s"),
        ]
        if self.flops_uncounted:
            rows.append(("not in FLOPs", ", ".join(self.flops_uncounted)))
        if self.whole:
            rows.append(("left whole", f"{len(self.whole)} arrays, first: {self.whole[0]}"))
        if self.error is not None:
            rows.append(("compiler", self.error))
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)

    def _loops(self) -> str:
        if self.loop_turns is None:
            return "counted in full"
        return f"those of a length that only run time knows counted as {self.loop_turns} turn(s)"

    def _collectives(self) -> str:
        if self.collectives is None:
            return "unknown"
        return ", ".join(f"{number} {name}" for name, number in self.collectives.items()) or "none"

    def _verdict(self) -> str:
        if self.peak_bytes_per_device is None:
            return "yes" if self.fits else "no"
        share = self.peak_bytes_per_device / self.device_memory_bytes
        return f"{'yes' if self.fits else 'no'}, {share:.0%} of the device's memory"


def memory(size: int | None) -> str:
    """Bytes as GiB, or MiB below one."""
    if size is None:
        return "unknown"
    return f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / 2**20:.1f} MiB"


def count(number: int) -> str:
    """A large number with its SI prefix."""
    for exponent, prefix in ((18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if number >= 10**exponent:
            return f"{number / 10**exponent:.3g} {prefix}"
    return str(number)
