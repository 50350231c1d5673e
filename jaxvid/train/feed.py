"""Batches on their devices, one ahead of the step that takes them."""

import time
from types import TracebackType
from typing import Any

import jax
from jax.sharding import Mesh

from jaxvid.core.errors import UserError
from jaxvid.core.mesh import to_global
from jaxvid.train.phase import Batches, Phase


class Feed:
    """The batches of a phase from `data_state` on.

    `take` gives the batch that is ready, with the iterator's state after it; `fetch` makes the next one ready.
    `examples` is the global batch's size, `seconds` what the host has spent on batches so far.
    """

    def __init__(self, phase: Phase, data_state: Any, mesh: Mesh | None):
        self._phase, self._mesh = phase, mesh
        self._batches = phase.batches(data_state)
        if not isinstance(self._batches, Batches):
            raise TypeError(
                f"phase {phase.name}: batches() must return an iterator with get_state(), "
                f"not {type(self._batches).__name__}: a run could not resume its data"
            )
        self._ready: tuple[dict[str, jax.Array], Any] | None = None
        self._fetched = 0
        self.examples, self.seconds = 0, 0.0

    def __enter__(self) -> "Feed":
        self.fetch()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        close = getattr(self._batches, "close", None)  # grain's process workers leave memory behind
        if close is not None:
            close()

    def fetch(self) -> None:
        """Reads the next batch and starts its way to the devices."""
        begin = time.monotonic()
        try:
            batch = next(self._batches)
        except StopIteration:
            raise UserError(
                f"phase {self._phase.name}: the data ended after {self._fetched} more batches, before the phase's "
                f"{self._phase.steps} steps; let the data repeat or ask for fewer steps"
            ) from None
        self._ready = to_global(self._mesh, batch), self._batches.get_state()
        self.examples = jax.tree.leaves(self._ready[0])[0].shape[0]
        self._fetched += 1
        self.seconds += time.monotonic() - begin

    def take(self) -> tuple[dict[str, jax.Array], Any]:
        """The batch that is ready, and the state of the iterator just after it."""
        assert self._ready is not None, "fetch before take"
        ready, self._ready = self._ready, None
        return ready
