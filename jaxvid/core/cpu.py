"""What the CPU backend of XLA is told before it starts.

XLA takes its CPU convolutions from the library YNNPACK or from Eigen; jaxlib 0.10 asks YNNPACK. On two cores with AVX-512 Eigen
ran convolutions of our U-Nets 1.4 to 9 times as fast, and a whole gradient 1.6 times (docs/factorized.md has the figures).
"""

import os
from collections.abc import MutableMapping
from importlib.metadata import version

FLAG = "xla_cpu_experimental_ynn_fusion_type"
# XLA ends the process on a flag that it does not know, and this one is experimental: only where it was tried.
TRIED = ("0.10.",)


def prefer_eigen(environment: MutableMapping[str, str] = os.environ) -> None:
    """Adds to XLA_FLAGS that no operation is given to YNNPACK, unless the user has said which.

    Has its effect if called before JAX makes its first array. Other backends do not read the flag.
    """
    flags = environment.get("XLA_FLAGS", "")
    if FLAG not in flags and version("jaxlib").startswith(TRIED):
        environment["XLA_FLAGS"] = f"{flags} --{FLAG}=".strip()
