"""An ablation of a linear autoencoder whose FLOPs are known and whose runs take a second."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from jaxvid.core.mesh import MeshConfig
from jaxvid.core.rng import named
from jaxvid.evaluate.ablate import Experiment, Verdict
from jaxvid.train.loop import LoopConfig
from jaxvid.train.optimizer import OptimizerConfig, make_optimizer
from jaxvid.train.phase import Phase
from jaxvid.train.state import carry, make_state, weights
from jaxvid.train.step import make_step

FEATURES = 8


class Batches:
    """Computed from position and seed; `watch(position)` is called for each."""

    watch = staticmethod(lambda position: None)
    read = 0

    def __init__(self, seed, batch, position):
        self.seed, self.batch, self.position = seed, batch, position

    def __next__(self):
        rng = np.random.default_rng([self.seed, self.position])
        self.position += 1
        Batches.read += 1
        Batches.watch(self.position)
        return {"x": rng.normal(size=(self.batch, FEATURES)).astype(np.float32)}

    def get_state(self):
        return self.position


def loss(params, batch, keys):
    out = (batch["x"] @ params["in"]) @ params["out"]
    return jnp.mean((out - batch["x"]) ** 2, axis=-1), {}


@dataclass(frozen=True)
class ToyStage:
    name: str = "toy"
    steps: int = 24
    batch: int = 16


@dataclass(frozen=True)
class Toy:
    """A system as the runner knows it."""

    hidden: int = 4
    rate: float = 0.05
    stages: tuple[ToyStage, ...] = (ToyStage(),)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(log_every=4, save_every=4, sample_every=8)
    )

    def start(self):
        return None

    def phases(self):
        return [self._phase(stage) for stage in self.stages]

    def _phase(self, stage):
        optimizer = make_optimizer(OptimizerConfig(self.rate), stage.steps)

        def init(previous, key):
            shapes = {"in": (FEATURES, self.hidden), "out": (self.hidden, FEATURES)}
            fresh = {
                name: jax.random.uniform(named(key, name), shape, minval=-0.5, maxval=0.5)
                for name, shape in shapes.items()
            }
            params = fresh if previous is None else carry(weights(previous), fresh)
            return make_state(params, optimizer)

        return Phase(
            name=stage.name,
            steps=stage.steps,
            init=init,
            step=make_step(loss, optimizer, ema_decay=0.9),
            batches=lambda state: Batches(self.loop.seed, stage.batch, state or 0),
        )


CALLS = []


def error(system, state, seed):
    """Of a fixed batch."""
    CALLS.append(("error", seed))
    x = np.random.default_rng(99).normal(size=(64, FEATURES)).astype(np.float32)
    params = weights(state)
    product = np.asarray(params["in"]) @ np.asarray(params["out"])
    return float(np.mean((x @ product - x) ** 2))


def norms(system, state, seed):
    CALLS.append(("norms", seed))
    return {name: float(np.linalg.norm(np.asarray(leaf))) for name, leaf in weights(state).items()}


TOY = Experiment(
    name="toy",
    base=Toy(),
    variants={"narrow": {}, "wide": {"hidden": 8}},
    verdict=(Verdict("error", "lower", ("wide",)),),
    metrics={"error": error, "norms": norms},
    curve=("loss", "error"),
    question="Is wider better?",
    claim="it is",
    cost="seconds",
    digest="0",
)
