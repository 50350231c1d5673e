"""When a viewer draws what, whatever shows it.

view    what one browser sees: a camera, and when it last moved
rung    a picture's size; a view is drawn at a low rung while it moves and climbs to the top one while it rests

One thread draws, one picture at a time. Of each view only the newest camera is kept, so nothing piles up.
"""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import UInt8

from jaxedit.scene.cameras import Cameras
from jaxedit.systems.reconstruct.stored import Fitted
from jaxedit.viewer.pictures import (
    DEFAULT_LOOK,
    TILE,
    BrowserCamera,
    Kind,
    Look,
    Picture,
    draw,
    picture_size,
    to_cameras,
)
from jaxvid.core.errors import UserError
from jaxvid.data.writing import write_image

SHARES = (0.25, 0.5, 1.0)  # of the full resolution, the rungs


@dataclass(frozen=True)
class Pace:
    """budget: seconds that a picture of a moving view may take. rest: seconds after its last move until it sharpens."""

    budget: float = 0.1
    rest: float = 0.2


# Draws a picture, or None if the last argument says between two tiles that it is not wanted any more.
Draw: TypeAlias = Callable[[Fitted, Cameras, Look, Callable[[], bool]], Picture | None]


# --- what comes next -----------------------------------------------------------------------------


def rungs_of(resolution: int) -> tuple[int, ...]:
    """Longest sides of the pictures of a view, coarse to sharp. Below a tile nothing would be saved."""
    return tuple(sorted({max(TILE, round(share * resolution)) for share in SHARES}))


def moving_rung(
    rungs: tuple[int, ...], aspect: float, tile_seconds: float | None, pace: Pace
) -> int:
    """The sharpest rung that can be drawn in the budget; the lowest if none can, or while nothing has been timed."""
    found = 0
    for rung, longest in enumerate(rungs):
        count = math.prod(-(-side // TILE) for side in picture_size(aspect, longest))
        if tile_seconds is not None and count * tile_seconds <= pace.budget:
            found = rung
    return found


def next_rung(drawn: int | None, still: float, moving: int, top: int, pace: Pace) -> int | None:
    """The rung to draw now of a view that has been `still` for so many seconds; None if it is sharp or has to rest."""
    if drawn is None:
        return moving
    return drawn + 1 if drawn < top and still >= pace.rest else None


@dataclass(eq=False)
class _View:
    camera: BrowserCamera
    moved: float
    drawn: int | None = None


class _Job(NamedTuple):
    client: int
    view: _View
    rung: int
    rungs: tuple[int, ...]
    fitted: Fitted
    look: Look


class Session:
    """Draws the views of any number of clients, on one thread once started.

    show: (client, picture, whether it is the sharpest) is called with each picture; failed: with what went wrong
    instead. Both are called from the drawing thread. The methods may be called from any thread.

    Example:
        session = Session(run, load_fitted(run), show, print)
        session.start()
        session.see(client, camera)     # again whenever the camera moves
    """

    def __init__(
        self,
        run: Path,
        fitted: Fitted,
        show: Callable[[int, Picture, bool], None],
        failed: Callable[[str], None],
        *,
        look: Look = DEFAULT_LOOK,
        pace: Pace = Pace(),
        clock: Callable[[], float] = time.monotonic,
        draw: Draw = draw,
    ):
        self.run = run
        self._fitted, self._look, self._pace = fitted, look, pace
        self._show, self._failed, self._clock, self._draw = show, failed, clock, draw
        self._views: dict[int, _View] = {}
        self._tile_seconds: float | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._drawing = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="drawing", daemon=True)

    @property
    def fitted(self) -> Fitted:
        """The scene that is drawn."""
        return self._fitted

    @property
    def look(self) -> Look:
        """What is drawn of each view."""
        return self._look

    def see(self, client: int, camera: BrowserCamera) -> None:
        """The client's camera from now on."""
        with self._changed:
            self._views[client] = _View(camera, self._clock())
            self._changed.notify()

    def leave(self, client: int) -> None:
        """Forgets a client."""
        with self._changed:
            self._views.pop(client, None)

    def change(self, *, look: Look | None = None, fitted: Fitted | None = None) -> None:
        """Draws all views anew, with another look or another scene where one is given."""
        with self._changed:
            self._look, self._fitted = look or self._look, fitted or self._fitted
            self._tile_seconds = None
            self._views = {
                client: _View(view.camera, view.moved) for client, view in self._views.items()
            }
            self._changed.notify()

    def start(self) -> None:
        """Begins to draw."""
        self._thread.start()

    def close(self) -> None:
        """Ends the drawing thread once its picture is given up or done."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def draw_next(self) -> bool:
        """Draws what is due now, if anything; returns whether anything was."""
        with self._changed:
            job = self._choose()
        if not isinstance(job, _Job):
            return False
        self._do(job)
        return True

    def snapshot(self, client: int) -> Path:
        """Writes the client's view at full resolution into the run's `snapshots`; returns the file."""
        with self._changed:
            view, fitted, look = self._views.get(client), self._fitted, self._look
        if view is None:
            raise UserError("this browser has not sent its camera yet; move it and try again")
        with self._drawing:
            cameras = to_cameras(view.camera, look.resolution)
            picture = self._draw(fitted, cameras, look, lambda: False)
            assert picture is not None
            return write_snapshot(self.run, step_of(fitted), look.kind, picture.image)

    def _choose(self) -> _Job | float | None:
        """What to draw; or how many seconds to wait for it; or None for nothing until something changes."""
        rungs = rungs_of(self._look.resolution)
        found: list[tuple[bool, int, float, _Job]] = []
        waits = []
        for client, view in self._views.items():
            moving = moving_rung(rungs, view.camera.aspect, self._tile_seconds, self._pace)
            still = self._clock() - view.moved
            rung = next_rung(view.drawn, still, moving, len(rungs) - 1, self._pace)
            if rung is not None:
                job = _Job(client, view, rung, rungs, self._fitted, self._look)
                found.append((view.drawn is not None, rung, view.moved, job))
            elif view.drawn is not None and view.drawn < len(rungs) - 1:
                waits.append(self._pace.rest - still)
        if found:
            # Views without any picture first, then the coarsest, then who has waited longest.
            return min(found, key=lambda item: item[:3])[3]
        return min(waits, default=None)

    def _do(self, job: _Job) -> None:
        top = len(job.rungs) - 1

        def unwanted() -> bool:
            # A view's first picture is always finished: a camera that never rests would else show nothing.
            moved = job.view.drawn is not None and self._views.get(job.client) is not job.view
            return moved or self._closed

        try:
            cameras = to_cameras(job.view.camera, job.rungs[job.rung])
            with self._drawing:
                picture = self._draw(job.fitted, cameras, job.look, unwanted)
            if picture is None:
                return
            with self._changed:
                job.view.drawn = job.rung
                if self._look.kind == job.look.kind and self._fitted is job.fitted:
                    self._tile_seconds = picture.tile_seconds
                there = job.client in self._views
            if there:
                self._show(job.client, picture, job.rung == top)
        except Exception as error:  # a viewer outlives a picture that cannot be drawn
            with self._changed:
                job.view.drawn = top
            self._failed(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")

    def _work(self) -> None:
        while True:
            with self._changed:
                while not isinstance(job := self._choose(), _Job):
                    if self._closed:
                        return
                    self._changed.wait(job)
                if self._closed:
                    return
            self._do(job)


# --- snapshots -----------------------------------------------------------------------------------


def write_snapshot(run: Path, step: int, kind: Kind, image: UInt8[np.ndarray, "h w 3"]) -> Path:
    """Writes RUN/snapshots/step_STEP_KIND_NUMBER.png with the first free number; returns the file."""
    number = 1
    while (path := run / "snapshots" / f"step_{step:08d}_{kind}_{number:03d}.png").exists():
        number += 1
    return write_image(path, image)


def step_of(fitted: Fitted) -> int:
    """The run's step at which that state was saved: the fits before, and the updates of its own."""
    before = sum(fit.steps for fit in fitted.system.fits[: fitted.fit])
    return before + int(fitted.state["extra"]["updates"])
