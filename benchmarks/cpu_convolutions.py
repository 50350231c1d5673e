"""Which library XLA's CPU backend should take its convolutions from: YNNPACK, as jaxlib 0.10 does, or Eigen.

Both are compiled in one process (the choice is a compiler option) and timed in alternation: layers of the U-Nets here, forward
and with both gradients, and the gradient of the shipped preset's loss. `jaxvid.core.cpu` holds what follows from it.

    python benchmarks/cpu_convolutions.py
"""

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxvid.core.config import load_config
from jaxvid.core.cpu import FLAG
from jaxvid.core.paths import flatten
from jaxvid.nn.conv import SpatialConv
from jaxvid.systems.vdm import VDM
from jaxvid.systems.vdm.networks import make_networks
from jaxvid.systems.vdm.programs import abstract_batch
from jaxvid.systems.vdm.training import loss

ROUNDS, CALLS = 7, 5
OPTIONS = {
    "YNNPACK": "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION",
    "Eigen": "",
}
# frames, side, channels in and out
LAYERS = (
    (128, 8, 48, 96),
    (128, 8, 96, 96),
    (128, 8, 192, 96),
    (128, 4, 192, 192),
    (16, 32, 64, 64),
)


def seconds(program: Any, args: Any) -> float:
    """Of one call, mean of a few."""
    started = time.perf_counter()
    for _ in range(CALLS):
        result = program(*args)
    jax.block_until_ready(result)
    return (time.perf_counter() - started) / CALLS


def compare(f: Callable[..., Any], *args: Any) -> dict[str, float]:
    """Median milliseconds with each library, and the median of their ratios in the same round."""
    lowered = jax.jit(f).lower(*args)
    programs = {name: lowered.compile({FLAG: value}) for name, value in OPTIONS.items()}
    for program in programs.values():
        jax.block_until_ready(program(*args))
    rounds = [{name: seconds(p, args) for name, p in programs.items()} for _ in range(ROUNDS)]
    found = {name: 1e3 * statistics.median(r[name] for r in rounds) for name in OPTIONS}
    return {**found, "ratio": statistics.median(r["YNNPACK"] / r["Eigen"] for r in rounds)}


def layer(frames: int, side: int, inputs: int, outputs: int) -> tuple[SpatialConv, jax.Array]:
    """A convolution and its input."""
    conv = SpatialConv(inputs, outputs, jax.random.key(0))
    return conv, jax.random.normal(jax.random.key(1), (1, frames, side, side, inputs))


def preset_gradient() -> tuple[Callable[..., Any], Any]:
    """The gradient of the shipped preset's loss on a batch of clips, and its arguments."""
    config = load_config("vdm/shapes")
    assert isinstance(config, VDM)
    stage = config.stages[-1]
    shapes = abstract_batch(config, stage.batch, config.data.frames, 0, None)
    batch = {name: jnp.ones(leaf.shape, leaf.dtype) for name, leaf in shapes.items()}
    params = flatten(make_networks(config, jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), stage.batch)

    def total(params: Any, batch: Any, keys: Any) -> jax.Array:
        return jnp.mean(loss(config, params, batch, keys)[0])

    return jax.grad(total), (params, batch, keys)


def main() -> None:
    """Prints the table."""
    print(
        f"{os.cpu_count()} cores, jax {jax.__version__}; milliseconds, and YNNPACK's time over Eigen's"
    )
    print("\n| program | YNNPACK | Eigen | ratio |\n| --- | --- | --- | --- |")

    def row(name: str, f: Callable[..., Any], *args: Any) -> None:
        found = compare(f, *args)
        print(
            f"| {name} | {found['YNNPACK']:.1f} | {found['Eigen']:.1f} | {found['ratio']:.2f} |",
            flush=True,
        )

    for frames, side, inputs, outputs in LAYERS:
        conv, x = layer(frames, side, inputs, outputs)
        name = f"1x3x3, {frames} frames of {side}x{side}, {inputs} to {outputs} channels"
        row(name, lambda conv, x: conv(x), conv, x)
        square = jax.grad(lambda conv, x: jnp.sum(jnp.square(conv(x))), argnums=(0, 1))
        row(f"{name}, gradients", square, conv, x)
    gradient, args = preset_gradient()
    row("vdm/shapes, gradient of the last stage's loss", gradient, *args)


if __name__ == "__main__":
    main()
