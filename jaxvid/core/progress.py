"""How a long loop tells what it is doing: a bar on a terminal, plain lines in a log, process 0 only."""

import sys
import time
from collections.abc import Mapping
from types import TracebackType

import jax
from tqdm import tqdm


class Progress:
    """Progress of a loop of `total` steps: `advance` once a step, `report` at each log interval.

    A terminal gets a tqdm bar with the reported values behind it. Anything else (a file, a notebook server's log) gets
    one line a report: steps, values, time left.

    Example:
        with Progress("base", total=1000, done=200) as progress:
            progress.advance()
            progress.report({"loss": 0.1, "examples/s": 20.0})
    """

    def __init__(self, name: str, total: int, done: int = 0):
        self.name, self.total, self.done = name, total, done
        self._speaks = jax.process_index() == 0
        self._start: float | None = None
        self._done_at_start = done
        terminal = self._speaks and sys.stderr.isatty()
        self._bar = (
            tqdm(total=total, initial=done, desc=name, dynamic_ncols=True) if terminal else None
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self, steps: int = 1) -> None:
        """Counts `steps` more steps as done."""
        self.done += steps
        if self._start is None:
            # The first step carries the compilation; the estimate starts after it.
            self._start, self._done_at_start = time.monotonic(), self.done
        if self._bar is not None:
            self._bar.update(steps)

    def report(self, values: Mapping[str, float]) -> None:
        """Shows `values` beside the bar, or prints them with the steps done and the time left."""
        if self._bar is not None:
            self._bar.set_postfix({name: f"{value:.4g}" for name, value in values.items()})
        elif self._speaks:
            shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
            self.say(f"{self.name} {self.done}/{self.total}  {shown}  left {self.left()}")

    def say(self, line: str) -> None:
        """Prints one line without tearing the bar."""
        if self._speaks:
            tqdm.write(line, file=sys.stderr)
            sys.stderr.flush()

    def left(self) -> str:
        """The estimated time left, such as "1:02:03"; "?" before it can be known."""
        steps = self.done - self._done_at_start
        if self._start is None or not steps:
            return "?"
        seconds = round((time.monotonic() - self._start) / steps * (self.total - self.done))
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
