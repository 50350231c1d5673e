"""The flag of the CPU backend: added once, never over the user's own, never where it was not tried."""

import subprocess
import sys
from importlib.metadata import version

import pytest

from jaxvid.core import cpu

jaxlib = version("jaxlib")


def test_the_flag_is_added_to_what_is_there(monkeypatch):
    monkeypatch.setattr(cpu, "version", lambda name: "0.10.2")
    environment = {}
    cpu.prefer_eigen(environment)
    assert environment == {"XLA_FLAGS": f"--{cpu.FLAG}="}
    environment = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    cpu.prefer_eigen(environment)
    cpu.prefer_eigen(environment)
    assert environment["XLA_FLAGS"] == f"--xla_force_host_platform_device_count=8 --{cpu.FLAG}="


@pytest.mark.parametrize("own", [f"--{cpu.FLAG}=LIBRARY_FUSION_TYPE_DOT", f"--{cpu.FLAG}="])
def test_the_users_choice_stays(own):
    environment = {"XLA_FLAGS": own}
    cpu.prefer_eigen(environment)
    assert environment == {"XLA_FLAGS": own}


@pytest.mark.parametrize("version", ["0.11.0", "0.101.0", "1.0"])
def test_versions_where_it_was_not_tried_are_left_alone(monkeypatch, version):
    monkeypatch.setattr(cpu, "version", lambda name: version)
    environment = {}
    cpu.prefer_eigen(environment)
    assert environment == {}


@pytest.mark.skipif(not jaxlib.startswith(cpu.TRIED), reason=f"not tried on jaxlib {jaxlib}")
def test_after_the_import_no_convolution_is_given_away():
    """In a process of its own, since the backend reads its flags once."""
    program = """if True:
        import os, jax, jax.numpy as jnp
        os.environ.pop("XLA_FLAGS", None)
        if {ours}:
            import jaxvid
        x, kernel = jnp.ones((64, 8, 8, 64)), jnp.ones((3, 3, 64, 64))
        layout = ("NHWC", "HWIO", "NHWC")
        f = lambda x, k: jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=layout)
        print("ynn_fusion" in jax.jit(f).lower(x, kernel).compile().as_text())
    """
    found = [
        subprocess.run(
            [sys.executable, "-c", program.format(ours=ours)],
            capture_output=True,
            text=True,
            check=True,
            env={"JAX_PLATFORMS": "cpu", "PATH": ""},
        ).stdout.strip()
        for ours in (True, False)
    ]
    assert found[0] == "False"
    if found[1] == "False":
        pytest.skip("on this machine jaxlib gives none to YNNPACK anyway")
