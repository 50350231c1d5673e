"""The ablation runner on a linear autoencoder whose FLOPs are known and whose runs take a second."""

import ast
import json
import math
import os
import signal
from dataclasses import dataclass, field, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jaxvid import cli
from jaxvid.core.errors import UserError
from jaxvid.core.mesh import MeshConfig
from jaxvid.core.rng import named
from jaxvid.evaluate import ablate as runner
from jaxvid.evaluate import ablate_report as report
from jaxvid.evaluate.ablate import Arm, Experiment, Record, Verdict
from jaxvid.evaluate.statistics import Difference
from jaxvid.train.loop import InterruptedRunError, LoopConfig
from jaxvid.train.optimizer import OptimizerConfig, make_optimizer
from jaxvid.train.phase import Phase
from jaxvid.train.state import carry, make_state, weights
from jaxvid.train.step import make_step

FEATURES = 8
EXPERIMENTS = Path(__file__).parents[2] / "experiments"


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


def error(system, params, seed):
    """Of a fixed batch."""
    CALLS.append(("error", seed))
    x = np.random.default_rng(99).normal(size=(64, FEATURES)).astype(np.float32)
    product = np.asarray(params["in"]) @ np.asarray(params["out"])
    return float(np.mean((x @ product - x) ** 2))


def norms(system, params, seed):
    CALLS.append(("norms", seed))
    return {name: float(np.linalg.norm(np.asarray(leaf))) for name, leaf in params.items()}


TOY = Experiment(
    name="toy",
    base=Toy(),
    variants={"narrow": {}, "wide": {"hidden": 8}},
    verdict=Verdict("error", "lower", ("wide",)),
    metrics={"error": error, "norms": norms},
    curve=("loss", "error"),
    question="Is wider better?",
    claim="it is",
    cost="seconds",
    digest="0",
)

TOY_FILE = '''
"""A file as users write it."""
from test_ablate import Toy, error
from jaxvid.evaluate.ablate import Verdict

QUESTION, CLAIM, COST = "Is wider better?", "it is", "seconds"
BASE = Toy
VARIANTS = {"narrow": {}, "wide": {"hidden": 8}}
METRICS = {"error": error}
VERDICT = Verdict("error", "lower", ("wide",))
'''


@pytest.fixture(autouse=True)
def _fresh_counts():
    CALLS.clear()
    Batches.read, Batches.watch = 0, staticmethod(lambda position: None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """TOY with two seeds, never interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    return report.ablate(TOY, folder, 2), folder


# Pairing


def flops_of(batch, hidden):
    """Two products forward, three backward (the data get no gradient): 2 operations a multiply-add."""
    return 5 * 2 * batch * FEATURES * hidden


def test_arms_have_equal_counted_flops():
    base = replace(Toy(), stages=(ToyStage("a", 30, 16), ToyStage("b", 90, 32)))
    variants = {"reference": {}, "wide": {"hidden": 12}, "large": {"stages.1.batch": 64}}
    arms = runner.make_arms(
        replace(
            TOY,
            base=base,
            variants=variants,
            curve=(),
            verdict=Verdict("error", "lower", ("wide",)),
        )
    )
    total = 30 * flops_of(16, 4) + 90 * flops_of(32, 4)
    for arm, batches, hidden in zip(arms, [(16, 32), (16, 32), (16, 64)], [4, 12, 4], strict=True):
        each = tuple(flops_of(batch, hidden) for batch in batches)
        assert arm.step_flops == each
        factor = total / (30 * each[0] + 90 * each[1])
        assert arm.steps == (round(30 * factor), round(90 * factor))
        assert abs(arm.flops - total) <= sum(each) / 2
    assert arms[0].steps == (30, 90)
    assert arms[1].steps == (10, 30)
    first, second = arms[0].step_flops
    for step in (0, 7, 30, 50, 120):
        expected = min(step, 30) * first + max(step - 30, 0) * second
        assert arms[0].flops_at(step) == expected


@pytest.mark.parametrize(("pair", "steps"), [("steps", 24), ("examples", 12), ("flops", 6)])
def test_what_is_paired_decides_the_steps(pair, steps):
    variants = {
        "reference": {},
        "other": {"hidden": 8, "stages.0.batch": 32, "stages.0.steps": 100},
    }
    experiment = replace(
        TOY, variants=variants, pair=pair, verdict=Verdict("error", "lower", ("other",))
    )
    assert [arm.steps for arm in runner.make_arms(experiment)] == [(24,), (steps,)]


@given(
    st.lists(st.tuples(st.integers(20, 10**5), st.integers(1, 10**9)), min_size=1, max_size=4),
    st.floats(0.1, 10),
)
def test_rounding_misses_the_budget_by_half_a_step(stages, scale):
    steps, cost = zip(*stages, strict=True)
    total = round(scale * sum(n * c for n, c in stages))
    found = runner.paired_steps(steps, cost, total)
    assert (
        abs(sum(n * c for n, c in zip(found, cost, strict=True)) - total)
        <= sum(cost) / 2 + 1e-6 * total
    )
    ratios = np.array(found) / np.array(steps)
    assert np.ptp(ratios) <= 1 / min(steps) + 1e-9


# Running


def test_arms_run_paired(whole):
    results, folder = whole
    assert results["arms"]["narrow"]["steps"] == [24]
    assert results["arms"]["wide"]["steps"] == [12]
    assert set(results["scores"]) == {"error", "norms/in", "norms/out", "loss"}
    for arm, steps in (("narrow", 24), ("wide", 12)):
        for seed in range(2):
            path = folder / "toy" / arm / str(seed)
            lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
            curve = [line["error"] for line in lines if "error" in line]
            assert [line["step"] for line in lines if "error" in line] == [
                *range(0, steps, 8),
                steps,
            ]
            assert results["scores"]["error"][arm][seed] == curve[-1]
            assert (
                results["scores"]["loss"][arm][seed]
                == [line["loss"] for line in lines if "loss" in line][-1]
            )
            assert any("flops_per_second" in line for line in lines)
            flops = [point[1] for point in results["curves"]["error"][arm][seed]]
            assert flops[-1] == results["arms"]["narrow"]["flops"]
    assert len({*results["scores"]["error"]["narrow"]}) == 2  # seeds matter
    assert json.loads((folder / "toy" / "results.json").read_text()) == results
    picture = np.asarray(Image.open(folder / "toy" / "plot.png").convert("L"))
    assert min(picture.shape) > 300
    assert np.ptp(picture) > 200


def test_an_interrupted_ablation_goes_on_and_a_finished_one_rests(whole, tmp_path):
    results, _ = whole

    def stop(position):
        if (
            Batches.read == 24 + 6 + 2
        ):  # arm wide (12 steps) of seed 0, after its checkpoint of step 4
            os.kill(os.getpid(), signal.SIGTERM)

    Batches.watch = stop
    with pytest.raises(InterruptedRunError):
        report.ablate(TOY, tmp_path, 2)
    saved = json.loads((tmp_path / "toy/narrow/0/scores.json").read_text())
    assert any(key.startswith("error:") for key in saved)
    assert not (tmp_path / "toy/wide/0/scores.json").exists()
    assert not (tmp_path / "toy/narrow/1").exists()

    Batches.watch, Batches.read = staticmethod(lambda position: None), 0
    CALLS.clear()
    again = report.ablate(TOY, tmp_path, 2)
    assert 24 + 12 < Batches.read < 24 + 12 + 12  # seed 0: not narrow, and only the rest of wide
    assert again["scores"] == results["scores"]
    assert again["curves"] == results["curves"]
    assert again["verdict"] == results["verdict"]

    Batches.read = 0
    CALLS.clear()
    third = report.ablate(TOY, tmp_path, 2)
    assert Batches.read == 2  # one batch an arm, to count FLOPs
    assert CALLS == []
    assert third == again


def test_changed_code_or_settings_compute_scores_anew_without_training(tmp_path):
    runner.run_ablation(TOY, tmp_path, 1)
    CALLS.clear()
    Batches.read = 0
    more = replace(TOY, metrics={**TOY.metrics, "twice": lambda *args: 2 * error(*args)})
    records = runner.run_ablation(more, tmp_path, 1)
    assert CALLS == [("error", 0)] * 2  # `twice` of each arm alone
    for _, (record,) in records:
        assert record.scores["twice"] == 2 * record.scores["error"]
    CALLS.clear()
    runner.run_ablation(replace(TOY, digest="1"), tmp_path, 1)
    assert sorted(set(CALLS)) == [("error", 0), ("norms", 0)]
    assert Batches.read == 4
    with pytest.raises(UserError, match=r"another config: rate \(0.05 -> 0.1\)"):
        runner.run_ablation(replace(TOY, base=Toy(rate=0.1)), tmp_path, 1)


def test_the_digest_is_of_what_computes():
    told = (
        'QUESTION = "a"\nVARIANTS = {"x": {}}\nN = 1\ndef f(a):\n    """Doc."""\n    return a + N\n'
    )
    same = 'QUESTION = "b"\nVARIANTS = {}\n\nN = 1  # note\ndef f(a):\n    return a + N\n'
    assert runner.code_digest(told) == runner.code_digest(same)
    assert runner.code_digest(told) != runner.code_digest(told.replace("N = 1", "N = 2"))
    assert runner.code_digest(told) != runner.code_digest(told.replace("a + N", "a - N"))


def test_broken_metrics_are_named(tmp_path):
    broken = replace(TOY, metrics={"error": lambda *_: math.nan}, curve=())
    with pytest.raises(UserError, match="error are not finite"):
        runner.run_ablation(broken, tmp_path, 1)


# Results


def synthetic(curves=True):
    """Two arms of 100 and 50 steps with three seeds of made-up numbers."""
    values = {"a": [1.0, 2.0, 4.0], "b": [2.5, 3.0, 6.0]}
    ran = []
    for name, steps in (("a", 100), ("b", 50)):
        system = Toy(stages=(ToyStage(steps=steps),))
        arm = Arm(name, {}, system, (10 if name == "a" else 20,))
        records = [
            Record(
                {"m": value},
                {
                    "m": [(40, 10 * value), (60, value)][: 2 if name == "a" else 1]
                    + [(50, value)] * (name == "b")
                }
                if curves
                else {},
                0.5,
            )
            for value in values[name]
        ]
        ran.append((arm, records))
    experiment = replace(
        TOY,
        variants={"a": {}, "b": {}},
        metrics={"m": error},
        curve=("m",) if curves else (),
        verdict=Verdict("m", "higher", ("b",)),
    )
    return experiment, ran, values


def test_table_equals_numpy():
    experiment, ran, values = synthetic()
    results = report.summarize(experiment, ran, 3)
    gaps = np.array(values["b"]) - np.array(values["a"])
    half = 4.302652729911275 * gaps.std(ddof=1) / math.sqrt(3)  # Student's t, 2 degrees, 97.5%
    found = results["differences"]["m"]["b"]
    np.testing.assert_allclose(
        [found["mean"], found["low"], found["high"]],
        [gaps.mean(), gaps.mean() - half, gaps.mean() + half],
    )
    text = report.table(results)
    line = next(line for line in text.splitlines() if line.startswith("m ") and " b " in line)
    numbers = [float(word.strip("[],")) for word in line.split()[2:]]
    np.testing.assert_allclose(
        numbers,
        [np.mean(values["b"]), gaps.mean(), gaps.mean() - half, gaps.mean() + half],
        rtol=1e-3,
    )
    # At step 50 arm a lies half way between its points at 40 and 60.
    equal = results["equal_steps"]
    assert equal["step"] == 50
    np.testing.assert_allclose(equal["scores"]["m"]["a"], 5.5 * np.array(values["a"]))
    np.testing.assert_allclose(equal["scores"]["m"]["b"], values["b"])
    assert "after 50 steps of every arm" in text
    assert text.splitlines()[-2].startswith("verdict at equal counted training FLOPs: ")
    assert text.splitlines()[-1].startswith("verdict at equal steps (50): ")
    assert results["curves"]["m"]["a"][0] == [[40, 400.0, 10.0], [60, 600.0, 1.0]]


def test_nothing_is_compared_at_equal_steps_without_curves():
    experiment, ran, _ = synthetic(curves=False)
    assert report.summarize(experiment, ran, 3)["equal_steps"] is None


def test_one_seed_decides_nothing(tmp_path):
    results = report.ablate(TOY, tmp_path, 1)
    assert results["differences"]["error"] == {"wide": None}
    assert results["verdict"]["outcome"] == "inconclusive"
    assert "+" not in next(
        line for line in report.table(results).splitlines() if line.startswith("error ")
    )


@pytest.mark.parametrize(
    ("low", "high", "higher", "lower"),
    [
        (0.1, 0.3, "reproduces", "contradicted"),
        (-0.3, -0.1, "contradicted", "reproduces"),
        (-0.1, 0.3, "inconclusive", "inconclusive"),
        (0.0, 0.3, "inconclusive", "inconclusive"),
    ],
)
def test_verdict_follows_the_interval(low, high, higher, lower):
    gap = Difference((low + high) / 2, low, high, 3)
    assert report.judge(gap, "higher") == higher
    assert report.judge(gap, "lower") == lower
    assert report.judge(None, "lower") == "inconclusive"


def test_every_arm_must_agree():
    yes, no, unsure = "reproduces", "contradicted", "inconclusive"
    assert report.combine([yes, yes]) == yes
    assert report.combine([yes, unsure]) == unsure
    assert report.combine([yes, unsure, no]) == no


# Files and the command line


def test_command_line(tmp_path, capsys):
    path = tmp_path / "wider.py"
    path.write_text(TOY_FILE)
    command = ["ablate", str(path), "--run", str(tmp_path / "runs"), "--seeds", "2"]
    assert cli.main([*command, "--dry-run", "--stages.0.steps", "48"]) == 0
    shown = capsys.readouterr().out
    assert "2 arms x 2 seeds" in shown
    assert any(line.split()[:2] == ["wide", "24"] for line in shown.splitlines())
    assert not (tmp_path / "runs").exists()
    assert cli.main(command) == 0
    assert "verdict at equal counted training FLOPs: " in capsys.readouterr().out
    assert (tmp_path / "runs/wider/wide/1/scores.json").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('"hidden"', '"hiden"'), "arm wide: unknown name hiden: did you mean hidden?"),
        (('{"hidden": 8}', '{"stages.0.batch": 12}'), "batch size 12 is not a positive multiple"),
        (("VERDICT = ", "OTHER = "), "lacks VERDICT"),
        (('("wide",)', '("broad",)'), "VERDICT.arms is ('broad',)"),
        (('Verdict("error"', 'Verdict("eror"'), "VERDICT.metric is 'eror'"),
        (('"lower"', '"below"'), "VERDICT.better is 'below'"),
        (("METRICS", "PAIR = 'time'\nMETRICS"), "PAIR is 'time'"),
        (("BASE = Toy", "BASE = lambda: 3"), "BASE gives 3, not a configuration"),
        (("BASE = Toy", "BASE = 'vdm/shape'"), "no config vdm/shape: did you mean vdm/shapes?"),
    ],
)
def test_complaints_come_before_anything_is_written(tmp_path, capsys, change, message):
    path = tmp_path / "wider.py"
    path.write_text(TOY_FILE.replace(*change))
    assert cli.main(["ablate", str(path), "--run", str(tmp_path / "runs"), "--seeds", "1"]) == 2
    complaint = capsys.readouterr().err
    assert message in complaint
    assert complaint.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_missing_file_and_seeds(tmp_path, capsys):
    assert cli.main(["ablate", str(tmp_path / "none.py")]) == 2
    assert "none.py does not exist" in capsys.readouterr().err
    assert cli.main(["ablate", str(tmp_path / "none.py"), "--seeds", "0"]) == 2
    assert "--seeds is 0" in capsys.readouterr().err
    with pytest.raises(UserError, match="seeds is 0"):
        runner.run_ablation(TOY, tmp_path, 0)


def is_ablation(path):
    """Whether the file is for the runner; others in the folder are scripts."""
    targets = [
        t
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Assign)
        for t in node.targets
    ]
    return any(isinstance(target, ast.Name) and target.id == "VARIANTS" for target in targets)


@pytest.mark.parametrize(
    "path",
    [p for p in sorted(EXPERIMENTS.glob("*.py")) if is_ablation(p)],
    ids=lambda path: path.stem,
)
def test_experiments_build(path):
    experiment = runner.load_experiment(path)
    arms = runner.make_arms(experiment)  # applies every change and traces every train step
    budget = arms[0].flops
    for arm in arms:
        assert (
            abs(runner.budget(arm, experiment.pair) / runner.budget(arms[0], experiment.pair) - 1)
            < 0.01
        )
        assert arm.flops > 0.1 * budget
    assert experiment.question
    assert experiment.claim
    assert any(letter.isdigit() for letter in experiment.cost)
