"""What a viewer draws and when, whatever shows it.

view    what one browser sees: a camera, and when it last moved
rung    a picture's size; a view is drawn at a low rung while it moves and climbs to the top one while it rests
tile    pictures are drawn in squares of TILE pixels, so that all sizes and shapes share one compiled program, and a
        picture that nobody waits for any more is given up between two tiles

One thread draws, one picture at a time. Of each view only the newest camera is kept, so nothing piles up.
"""

import math
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float, UInt8

from jaxedit.render.compositing import Pixels
from jaxedit.scene.cameras import Cameras
from jaxedit.scene.lenses import COEFFICIENTS
from jaxedit.scene.paths import focus_of
from jaxedit.scene.poses import from_opencv, quaternion_of_rotation, rotation_of_quaternion
from jaxedit.systems.reconstruct.report import to_bytes
from jaxedit.systems.reconstruct.stored import Fitted, load_fitted
from jaxedit.systems.reconstruct.videos import colours
from jaxvid.core.errors import UserError
from jaxvid.core.run import RunDirectory
from jaxvid.data.writing import write_image

TILE = 64
SHARES = (0.25, 0.5, 1.0)  # of the full resolution, the rungs
FAR = 1e4  # the z of nothing

Kind: TypeAlias = Literal["colour", "depth", "normals"]
Background: TypeAlias = Literal["white", "black"]


@dataclass(frozen=True)
class Look:
    """What is drawn of a view. resolution: the longest side of a sharp picture, in pixels."""

    kind: Kind = "colour"
    background: Background = "white"
    resolution: int = 512


@dataclass(frozen=True)
class Pace:
    """budget: seconds that a picture of a moving view may take. rest: seconds after its last move until it sharpens."""

    budget: float = 0.1
    rest: float = 0.2


@dataclass(frozen=True, eq=False)
class BrowserCamera:
    """A camera as viser gives it: OpenCV axes (right, down, forwards), camera-to-world.

    wxyz: its rotation as a quaternion. fov: from the upper to the lower edge, radians. aspect: width / height.
    """

    wxyz: Float[np.ndarray, "4"]
    position: Float[np.ndarray, "3"]
    fov: float
    aspect: float


class Picture(NamedTuple):
    """image: bytes. z: distance along the camera's axis, FAR where nothing is. tile_seconds: the median tile's time."""

    image: UInt8[np.ndarray, "h w 3"]
    z: Float[np.ndarray, "h w"]
    tile_seconds: float


# Draws a picture, or None if the last argument says between two tiles that it is not wanted any more.
Draw: TypeAlias = Callable[[Fitted, Cameras, Look, Callable[[], bool]], Picture | None]


# --- cameras -------------------------------------------------------------------------------------


def picture_size(aspect: float, longest: int) -> tuple[int, int]:
    """Width and height of that aspect whose longest side is `longest`."""
    shares = (min(1.0, aspect), min(1.0, 1.0 / aspect))
    return max(1, round(shares[0] * longest)), max(1, round(shares[1] * longest))


def to_cameras(camera: BrowserCamera, longest: int) -> Cameras:
    """The camera of a picture that fills the browser's canvas; rounded sides make its pixels slightly oblong."""
    width, height = picture_size(camera.aspect, longest)
    rotation = rotation_of_quaternion(camera.wxyz[None])
    pose = from_opencv(np.concatenate([rotation, camera.position[None, :, None]], axis=-1))
    reach = math.tan(camera.fov / 2)
    focal = [width / 2 / (reach * camera.aspect), height / 2 / reach]
    return Cameras(
        pose=pose.astype(np.float32),
        focal=np.array([focal], np.float32),
        centre=np.array([[width / 2, height / 2]], np.float32),
        distortion=np.zeros((1, COEFFICIENTS["pinhole"]), np.float32),
        lens="pinhole",
        width=width,
        height=height,
    )


def to_browser(cameras: Cameras, index: int) -> BrowserCamera:
    """A camera as viser takes it. Lens distortion and an axis off the image's middle, which viser lacks, are left out."""
    pose = from_opencv(np.asarray(cameras.pose[index], np.float64)[None])
    across, upright = (float(f) for f in cameras.focal[index])
    return BrowserCamera(
        wxyz=quaternion_of_rotation(pose[:, :, :3])[0],
        position=pose[0, :, 3],
        fov=2 * math.atan(cameras.height / 2 / upright),
        aspect=(cameras.width / across) / (cameras.height / upright),
    )


def first_view(cameras: Cameras) -> tuple[BrowserCamera, Float[np.ndarray, "3"]]:
    """Where a browser begins: at the camera of median height, and the point on its axis nearest to all cameras' focus."""
    pose = np.asarray(cameras.pose, np.float64)
    index = int(np.argsort(pose[:, 2, 3])[len(pose) // 2])
    position, forwards = pose[index, :, 3], -pose[index, :, 2]
    distance = max(float((focus_of(pose) - position) @ forwards), 1e-2)
    return to_browser(cameras, index), position + distance * forwards


# --- pictures ------------------------------------------------------------------------------------


def tiles(cameras: Cameras) -> Iterator[tuple[int, int, Cameras]]:
    """(top, left, camera) of the TILE x TILE squares that cover one camera's image; the last ones reach beyond it."""
    for top in range(0, cameras.height, TILE):
        for left in range(0, cameras.width, TILE):
            corner = np.array([[left, top]], np.float32)
            yield top, left, replace(cameras, centre=cameras.centre - corner, width=TILE, height=TILE)  # fmt: skip


def draw(
    fitted: Fitted, cameras: Cameras, look: Look, unwanted: Callable[[], bool] = lambda: False
) -> Picture | None:
    """One camera's picture, or None if `unwanted` before it was finished."""
    height, width = cameras.height, cameras.width
    shape = (-(-height // TILE) * TILE, -(-width // TILE) * TILE)
    colour = np.zeros((*shape, 3), np.float32)
    opacity, depth = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    frame, seconds = fitted.frame, []
    for top, left, tile in tiles(cameras):
        if unwanted():
            return None
        began = time.perf_counter()
        pixels = fitted.system.render_image(
            frame, fitted.state, tile, 0, fit=fitted.fit, normals=look.kind == "normals"
        )
        place = (slice(top, top + TILE), slice(left, left + TILE))
        colour[place], opacity[place], depth[place] = (np.asarray(part) for part in pixels)
        seconds.append(time.perf_counter() - began)
    seen = Pixels(colour[:height, :width], opacity[:height, :width], depth[:height, :width])  # pyright: ignore[reportArgumentType]
    behind = 0.0 if fitted.system.background == "black" else 1.0
    image = to_image(seen, look, 0.5 if look.kind == "normals" else behind)
    # The median leaves out the tile that waited for the compiler.
    return Picture(image, axis_depth(cameras, seen), statistics.median(seconds))


def to_image(pixels: Pixels, look: Look, behind: float) -> UInt8[np.ndarray, "h w 3"]:
    """Rendered pixels as bytes over the look's background; `behind` is the grey that they were rendered over."""
    ground = 0.0 if look.background == "black" else 1.0
    opacity = np.asarray(pixels.opacity)
    if look.kind == "depth":
        return to_bytes(np.where(opacity[..., None] > 0.5, shaded(pixels), np.float32(ground)))
    return to_bytes(np.asarray(pixels.colour) + (1.0 - opacity)[..., None] * (ground - behind))


def shaded(pixels: Pixels) -> Float[np.ndarray, "h w 3"]:
    """Depth in colours, bright at the picture's nearest point and dark at its farthest."""
    depth, seen = np.asarray(pixels.depth), np.asarray(pixels.opacity) > 0.5
    low, high = (float(depth[seen].min()), float(depth[seen].max())) if seen.any() else (0.0, 1.0)
    return colours(1.0 - (depth - low) / max(high - low, 1e-9))


def axis_depth(cameras: Cameras, pixels: Pixels) -> Float[np.ndarray, "h w"]:
    """Distances along rays as distances along the camera's axis, by which browsers sort what hides what."""
    u = (np.arange(cameras.width) + 0.5 - cameras.centre[0, 0]) / cameras.focal[0, 0]
    v = (np.arange(cameras.height) + 0.5 - cameras.centre[0, 1]) / cameras.focal[0, 1]
    length = np.sqrt(1.0 + u[None, :] ** 2 + v[:, None] ** 2)
    seen = np.asarray(pixels.opacity) > 0.5
    return np.where(seen, np.asarray(pixels.depth) / length, FAR).astype(np.float32)


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
        look: Look = Look(),
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


# --- files of the run ----------------------------------------------------------------------------


def write_snapshot(run: Path, step: int, kind: Kind, image: UInt8[np.ndarray, "h w 3"]) -> Path:
    """Writes RUN/snapshots/step_STEP_KIND_NUMBER.png with the first free number; returns the file."""
    number = 1
    while (path := run / "snapshots" / f"step_{step:08d}_{kind}_{number:03d}.png").exists():
        number += 1
    return write_image(path, image)


def newest_step(run: Path) -> int | None:
    """The step of the newest finished checkpoint; None if there is none."""
    folder = run / "checkpoints" / "steps"
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return max((int(name) for name in names if name.isdecimal()), default=None)


def step_of(fitted: Fitted) -> int:
    """The run's step at which that state was saved: the fits before, and the updates of its own."""
    before = sum(fit.steps for fit in fitted.system.fits[: fitted.fit])
    return before + int(fitted.state["extra"]["updates"])


class Live:
    """Gives a session the newest good checkpoint of its run whenever one appears."""

    def __init__(self, session: Session):
        self._session = session
        self._seen = step_of(session.fitted)

    def look(self) -> bool:
        """Looks once; returns whether the session now draws another state."""
        newest = newest_step(self._session.run)
        if newest is None or newest == self._seen:
            return False
        try:
            fitted = load_fitted(self._session.run)
        except UserError:  # the run may be removing what was being read; the next look tells
            return False
        self._seen = newest
        if step_of(fitted) == step_of(self._session.fitted):
            return False
        self._session.change(fitted=fitted)
        return True


def progress_text(run: Path, step: int, total: int) -> str:
    """What a viewer says of the run: the step it shows, and the last PSNRs of metrics.jsonl, as Markdown."""
    found = [f"shown: step {step} of {total}"]
    last: dict[str, str] = {}
    for line in RunDirectory(run, None).metrics():
        for name, value in line.items():
            if name.split("/")[-1] == "psnr" and value is not None:
                split = name.split("/")[0] if "/" in name else "training"
                last[split] = f"{split}: PSNR {value:.2f} dB at step {line['step']}"
    return "\n\n".join([*found, *last.values()])
