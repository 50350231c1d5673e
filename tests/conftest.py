"""Test-wide settings: eight simulated devices, checked shape annotations, strict dtype promotion."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

from jaxtyping import install_import_hook

install_import_hook(["jaxvid", "jaxedit"], "beartype.beartype")

import jax

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_compilation_cache_dir", os.path.expanduser("~/.cache/jaxvid-tests"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
