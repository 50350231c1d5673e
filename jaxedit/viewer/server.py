"""`jaxedit view`: a fitted scene in the browser, by viser.

Every browser has its own camera; what is drawn of it is set for all of them. The server answers on one address alone,
by default on this machine's own, and never offers viser's public tunnel.
"""

import contextlib
import errno
import io
import logging
import socket
import sys
import threading
import time
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxedit.editing import load_recipe
from jaxedit.history import load_current
from jaxedit.scene.paths import focus_of
from jaxedit.scene.record import FILE
from jaxedit.systems.instruct_nerf2nerf.recipe import Recipe
from jaxedit.systems.reconstruct.report import spread_indices
from jaxedit.systems.reconstruct.stored import Fitted
from jaxedit.viewer.edits import Comparison, Desk
from jaxedit.viewer.following import Live, newest_step, progress_text
from jaxedit.viewer.pictures import BrowserCamera, Look, Picture, first_view, to_browser
from jaxedit.viewer.session import Session, step_of
from jaxvid.core.errors import UserError

INTERVAL = 1.0  # seconds between looks at the run's files
FRUSTA = 100  # training cameras shown at most, spread over all
LARGEST = 1024  # pixels along a picture's longest side


def serve_run(arguments: Namespace) -> None:
    """Serves the run until Ctrl-C. Raises UserError before anything is served."""
    import_viser()
    check_address(arguments.host, arguments.port)
    run: Path = arguments.source
    recipe = load_recipe(arguments.config, {"edit.editor": arguments.editor})
    fitted = first_fitted(run, wait=arguments.live)
    viewer = Viewer(run, fitted, arguments.host, arguments.port, live=arguments.live, recipe=recipe)
    try:
        if arguments.host not in ("127.0.0.1", "localhost", "::1"):
            print(
                f"jaxedit: anyone who reaches {viewer.address} can look at {run} and write snapshots there",
                file=sys.stderr,
            )
        print(f"{run}, step {step_of(fitted)}: {viewer.address} (Ctrl-C ends)", flush=True)
        threading.Event().wait()
    except KeyboardInterrupt:
        print(f"\nviewer of {run} closed")
    finally:
        viewer.close()


def import_viser() -> Any:
    """The package viser. Raises UserError where it is not installed."""
    try:
        import viser
    except ImportError:
        raise UserError(
            'the viewer needs viser, which is not installed; pip install "jaxvid[view]"'
        ) from None
    return viser


def check_address(host: str, port: int) -> None:
    """Raises UserError unless a server can listen there."""
    if not 0 <= port <= 65535:
        raise UserError(f"--port is {port}; give 1 to 65535, or 0 for a free one")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(found[0], found[1]) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(found[4])
    except (socket.gaierror, UnicodeError):
        raise UserError(f"--host {host} is no known address; leave it 127.0.0.1") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(_taken(host, port)) from None
        raise UserError(
            f"--host {host} --port {port} cannot be served ({error.strerror}); give others"
        ) from None


def first_fitted(run: Path, *, wait: bool) -> Fitted:
    """The run's scene; with `wait`, of a run without a checkpoint, once there is one."""
    if wait and (run / FILE).exists() and newest_step(run) is None:
        print(f"{run} has no checkpoint yet; waiting for the first (Ctrl-C ends)", flush=True)
        while newest_step(run) is None:
            time.sleep(INTERVAL)
    return load_current(run)


class Viewer:
    """A server, its panel and a `Session` that draws for it; `address` is where browsers find it."""

    def __init__(
        self,
        run: Path,
        fitted: Fitted,
        host: str,
        port: int,
        *,
        live: bool = False,
        recipe: Recipe | None = None,
    ):
        self.server = start_server(host, port)
        shown = f"[{host}]" if ":" in host else host
        self.address = f"http://{shown}:{self.server.get_port()}"
        self._comparison = Comparison()
        look = _first_look(fitted)
        self.session = Session(run, fitted, self._show, self._say, look=look, draw=self._comparison)
        self.desk = Desk(run, self.session, self._comparison, recipe or Recipe(), self._say)
        self._live = Live(self.session)
        self._closed = threading.Event()
        self._put_cameras(fitted)
        self._make_panel(live)
        self.server.on_client_connect(self._connect)
        self.server.on_client_disconnect(self._disconnect)
        self._watcher = threading.Thread(target=self._watch, name="watching", daemon=True)
        self._watcher.start()
        self.session.start()

    def close(self) -> None:
        """Ends the server and all threads."""
        self._closed.set()
        self.desk.close()
        self.session.close()
        self._watcher.join()
        with contextlib.redirect_stdout(io.StringIO()):  # viser's own farewell
            self.server.stop()

    # Coroutines run on the server's own loop: one after the other, in the order in which cameras arrive.
    async def _connect(self, client: Any) -> None:
        client.camera.on_update(self._moved)
        await self._moved(client.camera)

    async def _disconnect(self, client: Any) -> None:
        self.session.leave(client.client_id)

    async def _moved(self, camera: Any) -> None:
        if camera.image_width > 0 and camera.image_height > 0:  # a hidden window has no size
            self.session.see(
                camera.client.client_id,
                BrowserCamera(
                    wxyz=np.asarray(camera.wxyz, np.float64),
                    position=np.asarray(camera.position, np.float64),
                    fov=float(camera.fov),
                    aspect=float(camera.aspect),
                ),
            )

    # On the drawing thread.
    def _show(self, number: int, picture: Picture, sharp: bool) -> None:
        client = self.server.get_clients().get(number)
        if client is not None:
            client.scene.set_background_image(
                picture.image,
                format="jpeg",
                jpeg_quality=95 if sharp else 75,
                # Large, and only of use where something may be hidden.
                depth=picture.z if self._cameras.visible else None,
            )

    def _say(self, text: str) -> None:
        if text == self._message.content:  # not again every second
            return
        self._message.content = text
        print(f"jaxedit: {text}", file=sys.stderr, flush=True)

    def _put_cameras(self, fitted: Fitted) -> None:
        cameras = fitted.record.cameras["train"]
        camera, target = first_view(cameras)
        start = self.server.initial_camera
        start.position, start.look_at, start.fov = camera.position, target, camera.fov
        poses = np.asarray(cameras.pose, np.float64)
        distance = np.linalg.norm(poses[:, :, 3] - focus_of(poses), axis=-1)
        self._cameras = self.server.scene.add_frame("/cameras", show_axes=False, visible=False)
        for index in spread_indices(len(cameras), FRUSTA):
            frustum = to_browser(cameras, index)
            self.server.scene.add_camera_frustum(
                f"/cameras/{index:05d}",
                fov=frustum.fov,
                aspect=frustum.aspect,
                scale=0.05 * float(np.median(distance)),
                wxyz=frustum.wxyz,
                position=frustum.position,
                color=(230, 120, 20),
            )

    def _make_panel(self, live: bool) -> None:
        gui, look = self.server.gui, self.session.look
        self._progress = gui.add_markdown("")
        self._kind = gui.add_dropdown("show", ("colour", "depth", "normals"))
        self._ground = gui.add_dropdown(
            "background", ("white", "black"), initial_value=look.background
        )
        self._resolution = gui.add_slider(
            "resolution", min=64, max=LARGEST, step=64, initial_value=look.resolution
        )
        self._frusta = gui.add_checkbox("training cameras", False)
        self._live_on = gui.add_checkbox("live: load new checkpoints", live)
        button = gui.add_button("snapshot")
        with gui.add_folder("edit by a sentence"):
            self._instruction = gui.add_text("instruction", "")
            buttons = {name: gui.add_button(name) for name in ("edit", "stop", "undo", "redo")}
            self._split = gui.add_slider(
                "before | after", min=0.0, max=1.0, step=0.01, initial_value=0.0
            )
        for name, handle in buttons.items():
            handle.on_click(partial(self._pressed, name))
        self._split.on_update(self._moved_split)
        self._message = gui.add_markdown("")
        for handle in (self._kind, self._ground, self._resolution, self._frusta):
            handle.on_update(self._changed)
        button.on_click(self._snapshot)

    async def _changed(self, _: Any) -> None:
        self._cameras.visible = self._frusta.value
        look = Look(self._kind.value, self._ground.value, int(self._resolution.value))
        self.session.change(look=look)

    def _pressed(self, name: str, _: Any) -> None:
        act = {
            "edit": lambda: self.desk.edit(self._instruction.value),
            "stop": self.desk.stop,
            "undo": self.desk.undo,
            "redo": self.desk.redo,
        }
        try:
            act[name]()
        except UserError as error:
            self._say(str(error))

    async def _moved_split(self, _: Any) -> None:
        self._comparison.split = float(self._split.value)
        self.session.change()

    def _snapshot(self, event: Any) -> None:
        try:
            path = self.session.snapshot(-1 if event.client_id is None else event.client_id)
        except UserError as error:
            self._say(str(error))
            return
        self._message.content = f"written: `{path}`"
        print(f"snapshot: {path}", flush=True)

    def _watch(self) -> None:
        """Loads new checkpoints while that is wanted, and says where the run is."""
        while True:
            try:
                if self._live_on.value and self._live.look():
                    self._message.content = ""
                fitted = self.session.fitted
                total = sum(fit.steps for fit in fitted.system.fits)
                text = progress_text(self.session.run, step_of(fitted), total)
                if text != self._progress.content:
                    self._progress.content = text
            except Exception as error:  # a viewer outlives files that cannot be read
                self._say(f"{type(error).__name__}: {error}")
            if self._closed.wait(INTERVAL):
                return


def start_server(host: str, port: int) -> Any:
    """A viser server at exactly that address. Raises UserError when it is taken."""
    # Browsers open connections that they never use; each would print a traceback.
    logging.getLogger("websockets.server").setLevel(logging.CRITICAL)
    with contextlib.redirect_stdout(io.StringIO()):  # its banner; ours is one line
        server = import_viser().ViserServer(host=host, port=port, label="jaxedit", verbose=False)
        if port and server.get_port() != port:  # viser takes the next free one by itself
            server.stop()
            raise UserError(_taken(host, port))
    server.gui.configure_theme(show_logo=False, show_share_button=False)
    return server


def _taken(host: str, port: int) -> str:
    return f"--port {port} of {host} is taken; give another, or 0 for a free one"


def _first_look(fitted: Fitted) -> Look:
    background = "black" if fitted.system.background == "black" else "white"
    return Look(background=background)
