"""What an ablation reports, its files and its command line."""

import ast
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from toy_ablation import TOY, Toy, ToyStage, error

from jaxvid import cli
from jaxvid.core.errors import UserError
from jaxvid.evaluate import ablate as runner
from jaxvid.evaluate import ablate_report as report
from jaxvid.evaluate.ablate import Arm, Record, Verdict
from jaxvid.evaluate.statistics import Difference

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
        verdict=(Verdict("m", "higher", ("b",)),),
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


def test_a_claim_of_two_parts_needs_both():
    experiment, ran, _ = synthetic(curves=False)
    both = (Verdict("m", "higher", ("b",)), Verdict("m", "lower", ("b",)))
    alone = report.summarize(replace(experiment, verdict=both[:1]), ran, 3)["verdict"]
    assert alone["outcome"] == "reproduces"
    results = report.summarize(replace(experiment, verdict=both), ran, 3)
    assert results["verdict"]["outcome"] == "contradicted"
    assert [part["better"] for part in results["verdict"]["parts"]] == ["higher", "lower"]
    line = report.table(results).splitlines()[-1]
    assert "m higher than in a: b: reproduces; m lower than in a: b: contradicted" in line


# Files and the command line

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
TOY_FILE = '''
"""A file as users write it."""
from toy_ablation import Toy, error
from jaxvid.evaluate.ablate import Verdict

QUESTION, CLAIM, COST = "Is wider better?", "it is", "seconds"
BASE = Toy
VARIANTS = {"narrow": {}, "wide": {"hidden": 8}}
METRICS = {"error": error}
VERDICT = Verdict("error", "lower", ("wide",))
'''


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
