"""Runs in processes of their own: killed, stopped, and spread over two."""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny
from tiny import metrics, same

CACHE = os.path.expanduser("~/.cache/jaxvid-tests")


def start(path, *process, devices=1):
    environment = {
        **os.environ,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_COMPILATION_CACHE_DIR": CACHE,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, str(Path(tiny.__file__)), str(path), *map(str, process)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def finish(child):
    _, errors = child.communicate(timeout=120)
    return child.returncode, errors


def wait_for(child, position):
    for line in child.stdout:
        if line.strip().isdigit() and int(line) >= position:
            return
    raise AssertionError(child.stderr.read()[-2000:])


def final(path):
    with np.load(path / "final.npz") as stored:
        return dict(stored)


@pytest.fixture(scope="module")
def whole_in_a_process(tmp_path_factory):
    path = tmp_path_factory.mktemp("process")
    code, errors = finish(start(path))
    assert code == 0, errors[-2000:]
    return final(path), metrics(path)


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_kills_at_any_moment_change_nothing(whole_in_a_process, tmp_path, kills):
    rng = random.Random(kills)
    for number in range(kills):
        if (tmp_path / "final.npz").exists():  # it got to the end: again from the beginning
            same(final(tmp_path), whole_in_a_process[0])
            shutil.rmtree(tmp_path)
        child = start(tmp_path)
        wait_for(child, 1 if number % 4 == 3 else rng.randint(1, 6))
        time.sleep(rng.uniform(0, 0.1))
        child.kill()
        child.wait()
    code, errors = finish(start(tmp_path))
    assert code == 0, errors[-2000:]
    same(final(tmp_path), whole_in_a_process[0])
    assert metrics(tmp_path) == whole_in_a_process[1]


def test_sigterm_ends_a_process_cleanly(whole_in_a_process, tmp_path):
    child = start(tmp_path)
    wait_for(child, 3)
    child.send_signal(signal.SIGTERM)
    code, errors = finish(child)
    assert code == 143, errors[-2000:]
    assert "stopped by SIGTERM after step" in errors
    assert "Traceback" not in errors
    code, errors = finish(start(tmp_path))
    assert code == 0, errors[-2000:]
    same(final(tmp_path), whole_in_a_process[0])
    assert metrics(tmp_path) == whole_in_a_process[1]


@pytest.mark.slow
def test_two_processes_stop_together_and_one_continues(whole_in_a_process, tmp_path):
    """A mesh over two processes; SIGTERM reaches only the second. Then one process takes the run over."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = [start(tmp_path, number, port) for number in (0, 1)]
    wait_for(both[1], 3)
    both[1].send_signal(signal.SIGTERM)
    ends = [finish(child) for child in both]
    assert [code for code, _ in ends] == [143, 143], ends
    stopped = [errors[errors.index("after step") :].split(",")[0] for _, errors in ends]
    assert stopped[0] == stopped[1]
    code, errors = finish(start(tmp_path))
    assert code == 0, errors[-2000:]
    for path, leaf in whole_in_a_process[0].items():
        np.testing.assert_allclose(final(tmp_path)[path], leaf, atol=2e-5, rtol=1e-4, err_msg=path)
    losses = [
        [line["loss"] for line in lines] for lines in (metrics(tmp_path), whole_in_a_process[1])
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)
