"""The ablation runner: pairing by budget, running and resuming."""

import json
import math
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from toy_ablation import CALLS, FEATURES, TOY, Batches, Toy, ToyStage, error

from jaxvid.core.errors import UserError
from jaxvid.evaluate import ablate as runner
from jaxvid.evaluate import ablate_report as report
from jaxvid.evaluate.ablate import Verdict
from jaxvid.train.loop import InterruptedRunError


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
            verdict=(Verdict("error", "lower", ("wide",)),),
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


@pytest.mark.parametrize(
    ("pair", "steps"), [("steps", 24), ("examples", 12), ("flops", 6), ("nothing", 100)]
)
def test_what_is_paired_decides_the_steps(pair, steps):
    variants = {
        "reference": {},
        "other": {"hidden": 8, "stages.0.batch": 32, "stages.0.steps": 100},
    }
    experiment = replace(
        TOY, variants=variants, pair=pair, verdict=(Verdict("error", "lower", ("other",)),)
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
