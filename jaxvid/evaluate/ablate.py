"""Ablations: a question, arms that differ in named settings, seeds, and a verdict.

An experiment is a Python file:

    QUESTION  what is asked                       CLAIM  what the paper says, with its numbers
    COST      what it takes, measured beforehand
    BASE      a preset's name, or a function that returns a configuration
    VARIANTS  {arm: {dotted name: value}}; the first arm is the reference
    VERDICT   a `Verdict`: which metric tells, and where it should go; or several, all of which the claim needs
    METRICS   {name: metric(system, state, seed) -> a number or {name: number}}, computed at the end of an arm   (optional)
    CURVE     names that are followed over the training: metrics (computed at every `loop.sample_every` steps) or names
              of the training log, such as "loss"   (optional)
    PAIR      what every arm gets equally much of: "flops" (the default), "examples" or "steps"; "nothing" leaves the arms' steps as
              they are, where the arms are methods that differ in what a step is

Pairing: with w_i what one step of stage i takes (counted FLOPs of the train step, its examples, or 1) and
W = sum_i steps_i w_i, an arm's steps are multiplied by W of the reference / W of the arm and rounded. Arms of one seed
share the initial parameters where these have the same paths, the order of the data, and the noise of the samples.
A system has one phase for each of its `stages`.

    DIR/EXPERIMENT/ARM/SEED/          a run directory; interrupted ones are resumed
    DIR/EXPERIMENT/ARM/SEED/scores.json    metrics by a digest of configuration, name and the experiment's code
    DIR/EXPERIMENT/results.json, plot.png
"""

import ast
import dataclasses
import hashlib
import importlib.util
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import jax
import numpy as np

from jaxvid.core.config import load_config, parse_overrides, replace, to_json
from jaxvid.core.errors import UserError
from jaxvid.core.flops import count_flops
from jaxvid.core.mesh import check_batch, make_mesh
from jaxvid.core.run import RunDirectory
from jaxvid.data.writing import write_bytes
from jaxvid.train.loop import fit
from jaxvid.train.phase import Phase
from jaxvid.train.state import State, abstract

Metric: TypeAlias = Callable[[Any, State, int], float | Mapping[str, float]]
Curve: TypeAlias = list[tuple[int, float]]  # (step, value)
PAIRS = ("flops", "examples", "steps", "nothing")

TEXTS = ("QUESTION", "CLAIM", "COST")
REQUIRED = (*TEXTS, "BASE", "VARIANTS", "VERDICT")
# Fields of an arm's run that may change between two starts, because they change no number of the training.
SAME_NUMBERS = ("loop.save_every", "loop.keep", "mesh", "threads", "sampling", "heldout")


@dataclass(frozen=True)
class Verdict:
    """The claim as a test: `metric` should be `better` in each of `arms` than in the reference.

    It reproduces if every arm's 95% interval of the paired difference lies on that side of zero, is contradicted if
    one lies on the other side, and is inconclusive otherwise.
    """

    metric: str
    better: str  # "higher" or "lower"
    arms: tuple[str, ...]


@dataclass(frozen=True)
class Experiment:
    """What an experiment file says; `digest` is of its code without texts and arms."""

    name: str
    base: Any
    variants: Mapping[str, Mapping[str, Any]]
    verdict: tuple[Verdict, ...]
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    curve: tuple[str, ...] = ()
    pair: str = "flops"
    question: str = ""
    claim: str = ""
    cost: str = ""
    digest: str = ""

    def __post_init__(self):
        verdicts = all(isinstance(part, Verdict) for part in self.verdict)
        if not isinstance(self.variants, Mapping) or not self.verdict or not verdicts:
            raise UserError(
                f"{self.name}: VARIANTS must be a dictionary and VERDICT one Verdict or more; see jaxvid/evaluate/ablate.py"
            )
        arms = list(self.variants)
        if len(arms) < 2:
            raise UserError(
                f"{self.name}: VARIANTS has {len(arms)} arms; it needs a reference and another"
            )
        if self.pair not in PAIRS:
            raise UserError(f"{self.name}: PAIR is {self.pair!r}; choose one of {', '.join(PAIRS)}")
        for verdict in self.verdict:
            self._check(verdict, arms)

    def _check(self, verdict: Verdict, arms: list[str]) -> None:
        if verdict.better not in ("higher", "lower"):
            raise UserError(
                f"{self.name}: VERDICT.better is {verdict.better!r}; give higher or lower"
            )
        wrong = [arm for arm in verdict.arms if arm not in arms[1:]]
        if wrong or not verdict.arms:
            raise UserError(
                f"{self.name}: VERDICT.arms is {verdict.arms}; choose from {', '.join(arms[1:])}"
            )
        told = verdict.metric
        if metric_of(told, self.metrics) is None and told not in self.curve:
            known = (*self.metrics, *self.curve)
            raise UserError(
                f"{self.name}: VERDICT.metric is {told!r}; METRICS and CURVE have {', '.join(known) or 'none'}"
            )


@dataclass(frozen=True)
class Arm:
    """One arm: its system with the paired number of steps, and the counted FLOPs of a step of each stage."""

    name: str
    changes: Mapping[str, Any]
    system: Any
    step_flops: tuple[int, ...]

    @property
    def steps(self) -> tuple[int, ...]:
        """Steps of each stage."""
        return tuple(stage.steps for stage in self.system.stages)

    @property
    def flops(self) -> int:
        """Of the whole training."""
        return sum(steps * flops for steps, flops in zip(self.steps, self.step_flops, strict=True))

    def flops_at(self, step: int) -> float:
        """Training FLOPs spent by the run's step `step`."""
        steps = np.cumsum([0, *self.steps])
        spent = np.cumsum([0, *(n * f for n, f in zip(self.steps, self.step_flops, strict=True))])
        return float(np.interp(step, steps, spent.astype(np.float64)))


@dataclass(frozen=True)
class Record:
    """What one run of an arm gave: final scores, curves, and minutes of training."""

    scores: dict[str, float]
    curves: dict[str, Curve]
    minutes: float


# From a file to arms


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Reads an experiment file; `overrides` are options that change its BASE, such as ["--stages.0.steps", "50"].

    Raises UserError when there is no such file or a part is missing or wrong.
    """
    path = Path(path)
    if path.suffix != ".py" or not path.is_file():
        raise UserError(
            f"experiment {path} does not exist; give a file such as experiments/joint_images.py"
        )
    module = _import(path)
    missing = [name for name in REQUIRED if not hasattr(module, name)]
    if missing:
        raise UserError(
            f"experiment {path} lacks {', '.join(missing)}; see jaxvid/evaluate/ablate.py for what it defines"
        )
    base = module.BASE() if callable(module.BASE) else load_config(module.BASE)
    if not is_dataclass(base) or isinstance(base, type):
        raise UserError(f"experiment {path}: BASE gives {base!r:.80}, not a configuration")
    return Experiment(
        name=path.stem,
        base=parse_overrides(base, overrides, prog=f"jaxvid ablate {path}"),
        variants=module.VARIANTS,
        verdict=module.VERDICT if isinstance(module.VERDICT, tuple) else (module.VERDICT,),
        metrics=getattr(module, "METRICS", {}),
        curve=tuple(getattr(module, "CURVE", ())),
        pair=getattr(module, "PAIR", "flops"),
        question=module.QUESTION,
        claim=module.CLAIM,
        cost=module.COST,
        digest=code_digest(path.read_text()),
    )


def _import(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"jaxvid_experiment_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (SyntaxError, ImportError) as error:
        raise UserError(f"experiment {path} cannot be read: {error}; correct it") from error
    return module


def code_digest(source: str) -> str:
    """Of what can change a score: the code without comments, docstrings, texts, arms and verdict."""
    told = {*REQUIRED, "CURVE", "PAIR"} - {"BASE"}

    def counts(node: ast.stmt) -> bool:
        if isinstance(node, ast.Assign):
            return not any(isinstance(name, ast.Name) and name.id in told for name in node.targets)
        return not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))

    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef):
            node.body = [child for child in node.body if counts(child)]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def make_arms(experiment: Experiment) -> list[Arm]:
    """The arms with paired steps, reference first. Nothing is run; train steps are traced to count their FLOPs.

    Raises UserError for a change that does not fit the configuration.
    """
    arms: list[Arm] = []
    for name, changes in experiment.variants.items():
        try:
            system = replace(experiment.base, {"loop.max_steps": None, **changes})
        except UserError as error:
            raise UserError(f"{experiment.name}, arm {name}: {error}") from None
        arm = Arm(name, changes, system, step_flops(system))
        reference = arms[0] if arms else arm
        arms.append(
            arm if experiment.pair == "nothing" else _paired(arm, reference, experiment.pair)
        )
    return arms


def _paired(arm: Arm, reference: Arm, pair: str) -> Arm:
    """The arm with as much in all as the reference."""
    steps = paired_steps(arm.steps, costs(arm, pair), budget(reference, pair))
    changed = {f"stages.{i}.steps": count for i, count in enumerate(steps)}
    return dataclasses.replace(arm, system=replace(arm.system, changed))


def costs(arm: Arm, pair: str) -> list[int]:
    """What one step of each stage takes, in the unit of the pairing."""
    if pair == "flops":
        return list(arm.step_flops)
    return [stage.batch if pair == "examples" else 1 for stage in arm.system.stages]


def budget(arm: Arm, pair: str) -> int:
    """What the whole training takes, in the unit of the pairing."""
    return sum(count * cost for count, cost in zip(arm.steps, costs(arm, pair), strict=True))


def paired_steps(steps: Sequence[int], cost: Sequence[int], total: int) -> tuple[int, ...]:
    """`steps`, all multiplied by one factor and rounded, so that sum(steps * cost) is `total`; at least 1 each."""
    factor = total / sum(count * each for count, each in zip(steps, cost, strict=True))
    return tuple(max(1, round(count * factor)) for count in steps)


def step_flops(system: Any) -> tuple[int, ...]:
    """Counted FLOPs (`matmul + conv`) of the real train step of each phase."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    state, counts = abstract(system.start()), []
    for phase in system.phases():
        state = jax.eval_shape(phase.init, state, key)
        batch = {
            name: jax.ShapeDtypeStruct(leaf.shape, jax.dtypes.canonicalize_dtype(leaf.dtype))
            for name, leaf in first_batch(phase).items()
        }
        counts.append(count_flops(phase.step, state, batch, key).total)
    return tuple(counts)


def first_batch(phase: Phase) -> dict[str, np.ndarray]:
    """The phase's first batch."""
    batches = phase.batches(None)
    batch = next(batches)
    getattr(batches, "close", lambda: None)()
    return batch


def seconds_per_flop(arm: Arm, repeats: int = 3) -> float:
    """Measured here, on one device: the arm's last train step, compilation left out."""
    phase, key = arm.system.phases()[-1], jax.random.key(0)
    state, batch = jax.jit(phase.init)(arm.system.start(), key), first_batch(phase)
    step = jax.jit(phase.step, donate_argnums=0)
    state, _ = jax.block_until_ready(step(state, batch, key))
    begin = time.monotonic()
    for _ in range(repeats):
        state, _ = jax.block_until_ready(step(state, batch, key))
    return (time.monotonic() - begin) / repeats / arm.step_flops[-1]


# Running


def run_ablation(
    experiment: Experiment, directory: str | Path, seeds: int
) -> list[tuple[Arm, list[Record]]]:
    """Runs, resumes or skips every arm with seeds 0 .. seeds - 1; returns each arm's records by seed.

    Raises UserError before anything is written when an arm does not fit; InterruptedRunError and NonFiniteError as
    `fit` does: the same call goes on.
    """
    if seeds < 1:
        raise UserError(f"seeds is {seeds}; it must be 1 or more")
    arms = make_arms(experiment)
    for arm in arms:
        for stage in arm.system.stages:
            check_batch(make_mesh(arm.system.mesh), stage.batch)
    records: dict[str, list[Record]] = {arm.name: [] for arm in arms}
    for seed in range(seeds):  # seed by seed, so that an interrupted ablation has whole pairs
        for arm in arms:
            path = Path(directory) / experiment.name / arm.name / str(seed)
            if jax.process_index() == 0:
                print(f"{experiment.name}: arm {arm.name}, seed {seed}", flush=True)
            records[arm.name].append(run_arm(experiment, arm, seed, path))
    return [(arm, records[arm.name]) for arm in arms]


def run_arm(experiment: Experiment, arm: Arm, seed: int, path: Path) -> Record:
    """Trains one arm with one seed and scores it, as far as that is not done yet."""
    system = replace(arm.system, {"loop.seed": seed})
    stored = path / "scores.json"
    found = read_scores(stored)
    names = {score_key(experiment, system, name): name for name in experiment.metrics}
    finished = score_key(
        experiment, system, ""
    )  # the entry without a metric says that the training is done
    if not {*names, finished} <= found.keys():
        run = RunDirectory.open(path, system, SAME_NUMBERS)
        state = train(experiment, arm, system, run)
        found[finished] = {}
        for key in names.keys() - found.keys():
            found[key] = evaluate(experiment.metrics, [names[key]], system, state, seed)
        if jax.process_index() == 0:
            write_bytes(stored, (json.dumps(found, indent=1) + "\n").encode())
    scores = {name: value for key in names for name, value in found[key].items()}
    lines = RunDirectory(path, system).metrics()
    curves = {name: read_curve(lines, name) for name in experiment.curve}
    for name, curve in curves.items():
        if curve:
            scores.setdefault(name, curve[-1][1])
    return Record(scores, curves, training_minutes(lines))


def read_scores(path: Path) -> dict[str, Any]:
    """The scores of earlier starts; a file that is missing or damaged has none, and they are made again."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def score_key(experiment: Experiment, system: Any, name: str) -> str:
    """Names a cached score by all that it depends on, but for the library's own code."""
    parts = [json.dumps(to_json(system), sort_keys=True), experiment.digest if name else "", name]
    return f"{name}:{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]}"


def train(experiment: Experiment, arm: Arm, system: Any, run: RunDirectory) -> State:
    """Trains to the end, the curve's metrics logged on the way; returns the last state."""
    found = (metric_of(name, experiment.metrics) for name in experiment.curve)
    wanted = list(dict.fromkeys(name for name in found if name is not None))

    def report(state: State, step: int, run: RunDirectory) -> None:
        run.log(step, evaluate(experiment.metrics, wanted, system, state, system.loop.seed))

    phases = [
        dataclasses.replace(phase, report=report if wanted else None, flops_per_step=float(flops))
        for phase, flops in zip(system.phases(), arm.step_flops, strict=True)
    ]
    return fit(run, phases, system.loop, mesh=make_mesh(system.mesh), start=system.start())


def evaluate(
    metrics: Mapping[str, Metric], names: Iterable[str], system: Any, state: State, seed: int
) -> dict[str, float]:
    """The numbers of some metrics; those of a metric that gives several are called "metric/name"."""
    values: dict[str, float] = {}
    for name in names:
        result = metrics[name](system, state, seed)
        parts = (
            {f"{name}/{part}": value for part, value in result.items()}
            if isinstance(result, Mapping)
            else {name: result}
        )
        values |= {part: float(value) for part, value in parts.items()}
    broken = [name for name, value in values.items() if not math.isfinite(value)]
    if broken:
        raise UserError(f"metrics {', '.join(broken)} are not finite: {values}; mend the metric")
    return values


def metric_of(name: str, metrics: Mapping[str, Metric]) -> str | None:
    """The metric that gives the number called `name`, None if none does."""
    owners = (metric for metric in metrics if name == metric or name.startswith(f"{metric}/"))
    return next(owners, None)


def read_curve(lines: Iterable[Mapping[str, Any]], name: str) -> Curve:
    """(step, value) of every line of a run's metrics that has `name`."""
    return [(line["step"], line[name]) for line in lines if line.get(name) is not None]


def training_minutes(lines: Iterable[Mapping[str, Any]]) -> float:
    """Of the steps alone, from the log: without compilation, reports and pauses."""
    seconds, before = 0.0, 0
    for step, each in read_curve(lines, "seconds_per_step"):
        seconds, before = seconds + each * (step - before), step
    return seconds / 60
