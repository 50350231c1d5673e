"""Ctrl-C and SIGTERM become a request that a loop answers between two steps."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


class InterruptedRunError(Exception):
    """The run was asked to stop and has: everything is saved. `exit_code` is 130 (Ctrl-C) or 143 (SIGTERM)."""

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.exit_code = 128 + number


class StopRequest:
    """Notes the first Ctrl-C or SIGTERM inside `with`; a second one acts as usual, at once.

    Several processes must stop after the same step although each hears its own signals. So each gives `votes()` to its
    jitted step, which returns their maximum, and all obey what the step returned.
    """

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[int, Any] = {}
        self._votes: dict[tuple[Any, int], jax.Array] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def ask(self) -> None:
        """The request without a signal, from another thread of a program."""
        self.number = int(signal.SIGINT)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def votes(self, mesh: Mesh | None) -> jax.Array:
        """int32 [devices]: this process's signal (0 for none) on each of its devices."""
        if (mesh, self.number) not in self._votes:
            if mesh is None:
                votes = jax.device_put(np.full(1, self.number, np.int32))
            else:
                votes = jax.make_array_from_callback(
                    (mesh.size,),
                    NamedSharding(mesh, PartitionSpec(mesh.axis_names)),
                    lambda index: np.full(1, self.number, np.int32),
                )
            self._votes[mesh, self.number] = votes
        return self._votes[mesh, self.number]
