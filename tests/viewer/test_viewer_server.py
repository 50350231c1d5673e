"""The viewer's server and its command line."""

import http.client
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
from small_views import serving, until, without_second_checkpoint

from jaxedit import cli
from jaxedit.systems.reconstruct.stored import load_fitted
from jaxedit.viewer.pictures import Look
from jaxvid.core.errors import UserError


def refused(capsys, *options):
    assert cli.main(["view", *map(str, options)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_without_viser_the_line_says_what_to_install(run, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "viser", None)
    assert 'pip install "jaxvid[view]"' in refused(capsys, run)


def test_bad_input_is_one_line(run, viser, capsys, tmp_path):
    assert "--port is 70000" in refused(capsys, run, "--port", 70000)
    assert "--host no.such.host.invalid" in refused(capsys, run, "--host", "no.such.host.invalid")
    assert "no such run directory" in refused(capsys, tmp_path / "none", "--port", 0)
    copy = tmp_path / "copy"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("checkpoints"))
    assert "no checkpoint yet" in refused(capsys, copy, "--port", 0)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"--port {port} of 127.0.0.1 is taken" in refused(capsys, run, "--port", port)


def test_the_page_answers_on_this_machine_alone(run, fitted, viser):
    with serving(run, fitted) as viewer:
        port = viewer.server.get_port()
        assert viewer.address == f"http://127.0.0.1:{port}"
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/")
        answer = connection.getresponse()
        assert answer.status == 200
        assert b"<html" in answer.read().lower()
        connection.close()
        # Another address of the machine, which a server on 0.0.0.0 would answer (on Linux all of 127.*.*.*).
        if sys.platform == "linux":
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.2", port), timeout=10).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=10).close()


def test_a_port_taken_at_the_last_moment_is_refused(viser):
    """viser itself would take the next port and say nothing."""
    from jaxedit.viewer.server import start_server

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="is taken"):
            start_server("127.0.0.1", taken.getsockname()[1])


def test_the_panel_changes_the_look_and_live_follows_the_run(run, viser, tmp_path):
    copy, appear = without_second_checkpoint(run, tmp_path)
    with serving(copy, load_fitted(copy), live=True) as viewer:
        assert viewer.session.look == Look("colour", "white", 512)
        viewer._kind.value, viewer._resolution.value = "depth", 128
        until(lambda: viewer.session.look == Look("depth", "white", 128))
        until(lambda: viewer._progress.content.startswith("shown: step 40 of 80"))
        appear()
        until(lambda: viewer._progress.content.startswith("shown: step 80 of 80"))


def test_ctrl_c_ends_cleanly(run, viser):
    """The address is printed, SIGINT ends with code 0, and nothing of it looks like a failure."""
    command = [sys.executable, "-m", "jaxedit.cli", "view", str(run), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert f"{run}, step 80: http://127.0.0.1:" in line
        # What browsers do: a connection without a request. It must not print anything.
        port = int(line.split("http://127.0.0.1:")[1].split()[0])
        socket.create_connection(("127.0.0.1", port), timeout=10).close()
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        rest, error = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0, error
    assert "closed" in rest
    assert "Traceback" not in error
    assert "handshake" not in error
