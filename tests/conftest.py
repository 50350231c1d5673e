"""Test-wide settings: eight simulated devices, checked shape annotations, strict dtype promotion.

Most of the suite's time is compiling, so programs are compiled without the costly optimizations, and forgotten after each file:
what stays only makes the garbage collector slow.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true",
)

from jaxtyping import install_import_hook

install_import_hook(["jaxvid", "jaxedit"], "beartype.beartype")

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_compilation_cache_dir", os.path.expanduser("~/.cache/jaxvid-tests"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


@pytest.fixture(scope="module", autouse=True)
def _forget_compiled_programs():
    yield
    jax.clear_caches()
