"""The viewer in a headless Chromium."""

import base64
import http.client
import io
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_views import picture_of, serving, until

from jaxedit.history import load_current
from jaxedit.viewer.session import rungs_of

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)  # fmt: skip


class Page:
    """A page in a headless Chromium, spoken to by its DevTools protocol."""

    def __init__(self, program, address, folder):
        from websockets.sync.client import connect

        flags = ["--headless=new", "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
                 "--window-size=1000,700", "--remote-debugging-port=0", f"--user-data-dir={folder}"]  # fmt: skip
        self.process = subprocess.Popen([program, *flags, address], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        port = folder / "DevToolsActivePort"
        until(lambda: port.exists() and "\n" in port.read_text(), 60)
        number = int(port.read_text().split()[0])
        until(lambda: self.pages(number), 60)
        self.socket = connect(self.pages(number)[0]["webSocketDebuggerUrl"], max_size=None)
        self.count = 0

    def pages(self, port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/json")
        found = json.loads(connection.getresponse().read())
        return [page for page in found if page["type"] == "page"]

    def call(self, method, **parameters):
        self.count += 1
        self.socket.send(json.dumps({"id": self.count, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self.socket.recv(timeout=60))
            if answer.get("id") == self.count:
                return answer["result"]

    def screenshot(self):
        data = base64.b64decode(self.call("Page.captureScreenshot")["data"])
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))

    def press(self, label):
        find = (
            f"[...document.querySelectorAll('button')].find(b => b.innerText.trim() == '{label}')"
        )
        self.call("Runtime.evaluate", expression=f"{find}.click()")

    def type(self, text):
        """Types into the first empty field, as a person would."""
        fields = "[...document.querySelectorAll('input')]"
        box = f"{fields}.find(i => i.type == 'text' && i.value == '' && !i.readOnly)"
        self.call("Runtime.evaluate", expression=f"{box}.focus()")
        self.call("Input.insertText", text=text)

    def drag(self, start, end):
        def mouse(kind, at, buttons):
            self.call("Input.dispatchMouseEvent", type=kind, x=float(at[0]), y=float(at[1]), button="left", buttons=buttons, clickCount=1)  # fmt: skip

        mouse("mousePressed", start, 1)
        for part in np.linspace(0, 1, 8):
            mouse("mouseMoved", np.array(start) * (1 - part) + np.array(end) * part, 1)
        mouse("mouseReleased", end, 0)

    def close(self):
        self.socket.close()
        self.process.terminate()
        self.process.wait(30)


@pytest.mark.browser
def test_a_browser_shows_the_scene_and_orbits_it(run, fitted, viser, tmp_path):
    """Opens the page in a headless Chromium and looks at it:

        apt-get install chromium; pip install -e ".[view,test]"; pytest -m browser tests/viewer

    VIEWER_SCREENSHOTS=folder keeps the screenshots.
    """
    if CHROMIUM is None:
        pytest.skip("needs a Chromium on the PATH: apt-get install chromium")
    kept = Path(os.environ.get("VIEWER_SCREENSHOTS") or tmp_path)
    with serving(run, fitted) as viewer:
        page = Page(CHROMIUM, viewer.address, tmp_path / "profile")
        try:
            cameras = []
            for name in ("start", "orbited", "frusta"):
                until(lambda: viewer.server.get_clients(), 120)
                time.sleep(1.0)
                until(lambda: sharp(viewer), 120)
                time.sleep(2.0)
                shot = page.screenshot()
                Image.fromarray(shot).save(kept / f"viewer_{name}.png")
                (view,) = viewer.session._views.values()
                cameras.append(view.camera)
                wanted = picture_of(fitted, view.camera, viewer.session.look, 512)
                resized = Image.fromarray(wanted).resize(shot.shape[1::-1])
                # The panel is on the right.
                half = (slice(None), slice(0, int(0.65 * shot.shape[1])))
                error = np.abs(shot[half].astype(int) - np.asarray(resized)[half].astype(int))
                if name != "frusta":
                    assert (np.asarray(resized)[half] < 200).any(axis=-1).mean() > 0.02
                    assert error.mean() < 3.0
                else:
                    assert (error.max(axis=-1) > 60).mean() > 1e-3, "cameras are drawn over it"
                if name == "start":
                    page.drag((300, 350), (420, 380))
                else:
                    viewer._frusta.value = True
            moved = np.linalg.norm(cameras[0].position - cameras[1].position)
            assert moved > 0.3
            page.press("snapshot")
            until(lambda: list((run / "snapshots").glob("*.png")))
            assert "written: " in viewer._message.content
        finally:
            page.close()


def sharp(viewer):
    views = list(viewer.session._views.values())
    return views and all(view.drawn == len(rungs_of(512)) - 1 for view in views)


@pytest.mark.browser
def test_a_scene_is_edited_from_the_browser(desk, viser, tmp_path, monkeypatch):
    """Types a sentence, watches, compares by the slider, undoes; VIEWER_SCREENSHOTS=folder keeps the screenshots."""
    if CHROMIUM is None:
        pytest.skip("needs a Chromium on the PATH: apt-get install chromium")
    kept = Path(os.environ.get("VIEWER_SCREENSHOTS") or tmp_path)
    made, *_ = desk
    run = tmp_path / "run"
    with serving(run, load_current(run), recipe=made._recipe) as viewer:
        page = Page(CHROMIUM, viewer.address, tmp_path / "profile")

        def shot(name):
            time.sleep(1.0)  # what was asked for has begun
            until(lambda: sharp(viewer), 240)
            time.sleep(2.0)
            found = page.screenshot()
            Image.fromarray(found).save(kept / f"edit_{name}.png")
            return found[:, : int(0.65 * found.shape[1])].astype(int)

        try:
            until(lambda: viewer.server.get_clients(), 120)
            time.sleep(2.0)
            before = shot("1_before")
            page.type("exchange the colors")
            until(lambda: viewer._instruction.value == "exchange the colors", 30)
            page.press("edit")
            until(lambda: "step 10 of" in viewer._message.content, 240)
            shot("2_while")
            until(lambda: "done; shown" in viewer._message.content, 240)
            after = shot("3_after")
            assert np.abs(after - before).mean() > 0.6
            viewer._split.value = 0.5
            half = shot("4_compared")
            middle = page.screenshot().shape[1] // 2
            assert np.abs(half[:, : middle - 4] - before[:, : middle - 4]).mean() < 0.3
            assert np.abs(half[:, middle + 4 :] - after[:, middle + 4 :]).mean() < 0.3
            viewer._split.value = 0.0
            page.press("undo")
            until(lambda: "undone" in viewer._message.content, 60)
            assert np.abs(shot("5_undone") - before).mean() < 0.3
        finally:
            page.close()
