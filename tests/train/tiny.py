"""A two-layer regression whose run takes a second, with data whose position is one integer."""

import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxvid.core.errors import UserError
from jaxvid.core.mesh import MeshConfig, make_mesh, process_shard
from jaxvid.core.paths import flatten
from jaxvid.core.rng import named
from jaxvid.core.run import RunDirectory
from jaxvid.train.loop import InterruptedRunError, LoopConfig, fit
from jaxvid.train.optimizer import OptimizerConfig, make_optimizer
from jaxvid.train.phase import Phase
from jaxvid.train.state import carry, make_state, weights
from jaxvid.train.step import make_step

FEATURES, HIDDEN, BATCH = 8, 16, 16


class Counting:
    """Batches computed from their index; this process's rows of the global batch."""

    def __init__(self, position=0, shard=(0, 1), length=None, bad_at=None, watch=None):
        self.position, self.shard, self.length, self.bad_at = position, shard, length, bad_at
        self.watch = watch

    def __next__(self):
        if self.position == self.length:
            raise StopIteration
        rng = np.random.default_rng([7, self.position])
        x = rng.normal(size=(BATCH, FEATURES)).astype(np.float32)
        if self.position == self.bad_at:
            x[3, 2] = np.nan
        self.position += 1
        if self.watch is not None:
            self.watch(self.position)
        index, count = self.shard
        rows = slice(index * BATCH // count, (index + 1) * BATCH // count)
        return {"x": x[rows], "index": np.arange(BATCH, dtype=np.int32)[rows]}

    def get_state(self):
        return {"position": self.position}


def params(key):
    """`frozen/...` is a feature map that training leaves alone."""

    def uniform(name, *shape):  # compiles faster than a normal distribution
        return jax.random.uniform(named(key, name), shape, minval=-1, maxval=1)

    return {
        "features/kernel": uniform("features", FEATURES, HIDDEN),
        "hidden/conv1/kernel": uniform("hidden", HIDDEN, HIDDEN) / 2,
        "hidden/conv1/bias": jnp.zeros((HIDDEN,)),
        "out/kernel": uniform("out", HIDDEN, FEATURES) / 2,
    }


def loss(params, batch, keys):
    """Denoises x: depends on every key, so on the position of every example."""
    noise = jax.vmap(lambda key: jax.random.uniform(key, (FEATURES,)))(keys)
    h = jnp.tanh((batch["x"] + 0.2 * noise) @ params["features/kernel"])
    h = jnp.tanh(h @ params["hidden/conv1/kernel"] + params["hidden/conv1/bias"])
    error = jnp.mean((h @ params["out/kernel"] - batch["x"]) ** 2, axis=-1)
    first = (batch["x"][:, 0] > 0).astype(jnp.float32)
    return error, {"loss_positive": (jnp.sum(error * first), jnp.sum(first))}


@dataclass(frozen=True)
class TinyConfig:
    steps: tuple[int, ...] = (12,)
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(log_every=4, save_every=3, keep=2))
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(1e-2, warmup_steps=3, decay="cosine")
    )
    accumulate: int = 1
    mesh: MeshConfig | None = None


def phases(config, mesh=None, report=None, **data):
    def phase(number, steps):
        optimizer = make_optimizer(config.optimizer, steps)

        def init(previous, key):
            values = params(key)
            if previous is not None:
                values = carry(weights(previous, ema=False), values)
            return make_state(values, optimizer, trainable=lambda path: path[:4] != "feat")

        return Phase(
            name=f"phase{number}",
            steps=steps,
            init=init,
            step=make_step(loss, optimizer, ema_decay=0.9, accumulate=config.accumulate),
            batches=lambda state: Counting(
                state["position"] if state else 0, shard=process_shard(mesh), **data
            ),
            report=report,
        )

    return [phase(number, steps) for number, steps in enumerate(config.steps)]


def train(path, config=TinyConfig(), report=None, **data):
    """Trains in `path`, new or resumed; returns the state as `{path: numpy array}`."""
    run = RunDirectory.open(path, config, may_differ=("loop", "steps", "mesh"))
    mesh = None if config.mesh is None else make_mesh(config.mesh)
    state = fit(run, phases(config, mesh, report, **data), config.loop, mesh=mesh)
    return {name: np.asarray(leaf) for name, leaf in flatten(state).items()}


TIMES = {"seconds_per_step", "examples_per_second", "data_seconds_per_step", "first_step_seconds"}


def metrics(path):
    file = Path(path) / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [{key: line[key] for key in line if key not in TIMES} for line in lines]


def same(first, second):
    assert first.keys() == second.keys()
    differing = [path for path in first if first[path].tobytes() != second[path].tobytes()]
    assert not differing


LONG = TinyConfig(steps=(7, 6), loop=LoopConfig(log_every=4, save_every=2, keep=2))


def main(path, *process):
    """Trains LONG in `path` and saves the last state; with (number, port) as one of two processes on a mesh."""
    config = LONG
    if process:
        number, port = map(int, process)
        jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=number)
        config = replace(LONG, mesh=MeshConfig(data=2))
    try:
        end = train(path, config, watch=lambda position: print(position, flush=True))
    except (InterruptedRunError, UserError) as error:
        print(error, file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 2))
    if jax.process_index() == 0:
        np.savez(Path(path) / "final.npz", **end)


if __name__ == "__main__":
    main(*sys.argv[1:])
