"""Text-to-video diffusion with factorized space-time U-Nets, in JAX.

    import jax, jaxvid
    system, params = jaxvid.load("vdm/shapes")                  # a shipped model, or a run directory
    video = system.sample(params, jax.random.key(0), ["a red circle moves left"])
    jaxvid.show(video)                                          # in a notebook

`jaxvid.load_config(name)` gives a preset's configuration; the names are those of `configs/`.
"""

from typing import TYPE_CHECKING, Any

from jaxvid.core.cpu import prefer_eigen

if TYPE_CHECKING:
    from jaxvid.core.config import load_config
    from jaxvid.systems.presets import load
    from jaxvid.systems.show import show

__all__ = ["load", "load_config", "show"]

prefer_eigen()


def __getattr__(name: str) -> Any:
    # Importing the package must be cheap: these pull in most of it.
    if name == "load_config":
        from jaxvid.core.config import load_config

        return load_config
    if name == "load":
        from jaxvid.systems.presets import load

        return load
    if name == "show":
        from jaxvid.systems.show import show

        return show
    raise AttributeError(f"module 'jaxvid' has no attribute {name!r}")
