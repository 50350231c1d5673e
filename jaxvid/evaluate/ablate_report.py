"""What an ablation found: differences with intervals, a verdict, a table, a plot.

`summarize` makes one JSON value of everything; table and plot are made of that value alone.

    scores        {metric: {arm: [value by seed]}}
    differences   {metric: {arm: {"mean", "low", "high", "count"} or None}}: arm - reference, paired by seed, Student's t;
                  None with a single seed
    equal_steps   the same two of the curves, at the step where the shortest arm ends (values between two points of a
                  curve are interpolated); None where all arms have equally many steps or nothing was followed
    curves        {name: {arm: [[[step, FLOPs, value], ...] by seed]}}
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxvid.data.writing import write_bytes
from jaxvid.evaluate.ablate import (
    Arm,
    Curve,
    Experiment,
    Record,
    Verdict,
    make_arms,
    run_ablation,
    seconds_per_flop,
)
from jaxvid.evaluate.statistics import Difference, paired_difference

REPRODUCES, CONTRADICTED, INCONCLUSIVE = "reproduces", "contradicted", "inconclusive"
UNITS = {
    "flops": "equal counted training FLOPs",
    "examples": "equal examples",
    "steps": "equal steps",
    "nothing": "each method's own steps",
}
ARM_HEADER = f"{'arm':16}{'steps':>14}{'GFLOPs a step':>16}{'TFLOPs':>12}{'minutes':>9}"


def ablate(experiment: Experiment, directory: str | Path, seeds: int) -> dict[str, Any]:
    """Runs what is left of the ablation, writes results.json and plot.png beside its runs; returns the results."""
    results = summarize(experiment, run_ablation(experiment, directory, seeds), seeds)
    folder = Path(directory) / experiment.name
    write_bytes(folder / "results.json", json.dumps(results, indent=1).encode())
    plot(results, folder / "plot.png")
    return results


def judge(difference: Difference | None, better: str) -> str:
    """Whether the interval of (arm - reference) lies on the side that is `better` ("higher" or "lower"), or beyond zero."""
    if difference is None:
        return INCONCLUSIVE
    low, high = difference.low, difference.high
    if better == "lower":
        low, high = -high, -low
    if low > 0:
        return REPRODUCES
    return CONTRADICTED if high < 0 else INCONCLUSIVE


def combine(outcomes: Sequence[str]) -> str:
    """One outcome of several parts of a claim: each must hold, and none may fail."""
    if CONTRADICTED in outcomes:
        return CONTRADICTED
    return REPRODUCES if set(outcomes) == {REPRODUCES} else INCONCLUSIVE


def paired(first: Sequence[float], second: Sequence[float]) -> Difference | None:
    """`paired_difference`, None for a single pair."""
    return paired_difference(first, second) if len(first) > 1 else None


def differences(
    scores: Mapping[str, Mapping[str, list[float]]],
) -> dict[str, dict[str, Difference | None]]:
    """Each arm but the first against the first, for each metric."""
    return {
        metric: {
            arm: paired(values, next(iter(by_arm.values())))
            for arm, values in list(by_arm.items())[1:]
        }
        for metric, by_arm in scores.items()
    }


def summarize(
    experiment: Experiment, ran: Sequence[tuple[Arm, list[Record]]], seeds: int
) -> dict[str, Any]:
    """Everything as one JSON value, see the module's docstring."""
    scores = {
        metric: {arm.name: [record.scores[metric] for record in records] for arm, records in ran}
        for metric in ran[0][1][0].scores
    }
    equal_steps = summarize_equal_steps(experiment, ran)
    return {
        "experiment": experiment.name,
        "question": experiment.question,
        "claim": experiment.claim,
        "cost": experiment.cost,
        "pair": experiment.pair,
        "seeds": seeds,
        "arms": {arm.name: describe(arm, records) for arm, records in ran},
        "scores": scores,
        "differences": plain(differences(scores)),
        "equal_steps": equal_steps,
        "curves": {
            name: {
                arm.name: [
                    [[step, arm.flops_at(step), value] for step, value in record.curves[name]]
                    for record in records
                ]
                for arm, records in ran
            }
            for name in experiment.curve
        },
        "verdict": outcomes(experiment.verdict, differences(scores)),
    }


def describe(arm: Arm, records: Sequence[Record]) -> dict[str, Any]:
    """An arm in numbers; minutes are of one training, the mean over seeds, None before there is one."""
    return {
        "changes": {name: repr(value) for name, value in arm.changes.items()},
        "steps": list(arm.steps),
        "step_flops": list(arm.step_flops),
        "flops": arm.flops,
        "minutes": float(np.mean([record.minutes for record in records])) if records else None,
    }


def outcomes(
    verdicts: Sequence[Verdict], found: Mapping[str, Mapping[str, Difference | None]]
) -> dict[str, Any]:
    """The outcome of each part in each of its arms, and of all together."""
    parts = [
        {
            "metric": part.metric,
            "better": part.better,
            "arms": {arm: judge(found[part.metric][arm], part.better) for arm in part.arms},
        }
        for part in verdicts
    ]
    every = [outcome for part in parts for outcome in part["arms"].values()]
    return {"outcome": combine(every), "parts": parts}


def summarize_equal_steps(
    experiment: Experiment, ran: Sequence[tuple[Arm, list[Record]]]
) -> dict[str, Any] | None:
    """The curves at the last step that every arm has taken, with a verdict where its metric has a curve."""
    totals = [sum(arm.steps) for arm, _ in ran]
    step = min(totals)
    covered = [
        name
        for name in experiment.curve
        if all(
            record.curves[name] and record.curves[name][0][0] <= step
            for _, records in ran
            for record in records
        )
    ]
    if max(totals) == step or not covered:
        return None
    scores = {
        name: {
            arm.name: [value_at(record.curves[name], step) for record in records]
            for arm, records in ran
        }
        for name in covered
    }
    found = differences(scores)
    told = [part for part in experiment.verdict if part.metric in covered]
    verdict = outcomes(told, found) if told else None
    return {"step": step, "scores": scores, "differences": plain(found), "verdict": verdict}


def value_at(curve: Curve, step: int) -> float:
    """The curve's value at `step`, linear between its points."""
    steps, values = np.asarray(curve, np.float64).T
    return float(np.interp(step, steps, values))


def plain(found: Mapping[str, Mapping[str, Difference | None]]) -> dict[str, Any]:
    """Differences as JSON values."""
    return {
        metric: {arm: None if gap is None else gap._asdict() for arm, gap in by_arm.items()}
        for metric, by_arm in found.items()
    }


# For people


def preview(experiment: Experiment, seeds: int) -> str:
    """What a run would do and cost, after timing three train steps of the reference arm here; nothing is written."""
    arms = make_arms(experiment)
    total = seeds * sum(arm.flops for arm in arms)
    minutes = total * seconds_per_flop(arms[0]) / 60
    lines = [
        f"{experiment.name}: {experiment.question}",
        f"claim: {experiment.claim}",
        f"stated cost: {experiment.cost}",
        "",
        ARM_HEADER,
        *(arm_line(arm.name, describe(arm, [])) for arm in arms),
        "",
        f"{len(arms)} arms x {seeds} seeds: {total / 1e12:.4g} TFLOPs of training, about {minutes:.1f} minutes at the speed "
        "just measured here, without compilation and metrics",
    ]
    return "\n".join(lines)


def table(results: Mapping[str, Any]) -> str:
    """The results as text, the verdict last."""
    lines = [
        f"{results['experiment']}: {results['question']}",
        f"claim: {results['claim']}",
        f"{results['seeds']} seeds; arms are paired by seed and have {UNITS[results['pair']]}",
        "",
        ARM_HEADER,
        *(arm_line(name, arm) for name, arm in results["arms"].items()),
    ]
    lines += ["", f"{'score':28}{'arm':16}{'mean':>11}{'difference':>13}  95% interval"]
    lines += score_lines(results)
    equal = results["equal_steps"]
    if equal is not None:
        lines += ["", f"after {equal['step']} steps of every arm:", *score_lines(equal)]
    return "\n".join([*lines, "", *verdict_lines(results)])


def arm_line(name: str, arm: Mapping[str, Any]) -> str:
    """One arm under `ARM_HEADER`."""
    steps = "+".join(map(str, arm["steps"]))
    each = "+".join(f"{flops / 1e9:.4g}" for flops in arm["step_flops"])
    minutes = "" if arm["minutes"] is None else f"{arm['minutes']:.2f}"
    return f"{name:16}{steps:>14}{each:>16}{arm['flops'] / 1e12:>12.5g}{minutes:>9}"


def score_lines(found: Mapping[str, Any]) -> list[str]:
    """One line a metric and arm."""
    lines = []
    for metric, by_arm in found["scores"].items():
        for arm, values in by_arm.items():
            gap = found["differences"][metric].get(arm)
            shown = (
                ""
                if gap is None
                else f"{gap['mean']:>+13.4g}  [{gap['low']:+.4g}, {gap['high']:+.4g}]"
            )
            lines.append(f"{metric:28}{arm:16}{np.mean(values):>11.5g}{shown}")
    return lines


def verdict_lines(results: Mapping[str, Any]) -> list[str]:
    """The verdict, and that at equal steps where there is one."""
    reference = next(iter(results["arms"]))

    def part(told: Mapping[str, Any]) -> str:
        arms = ", ".join(f"{arm}: {outcome}" for arm, outcome in told["arms"].items())
        return f"{told['metric']} {told['better']} than in {reference}: {arms}"

    def line(where: str, found: Mapping[str, Any]) -> str:
        return f"{where}: {found['outcome']} ({'; '.join(map(part, found['parts']))})"

    lines = [line(f"verdict at {UNITS[results['pair']]}", results["verdict"])]
    equal = results["equal_steps"]
    if equal is not None and equal["verdict"] is not None:
        lines.append(line(f"verdict at equal steps ({equal['step']})", equal["verdict"]))
    return lines


def plot(results: Mapping[str, Any], path: str | Path) -> Path:
    """Writes a PNG: curves over FLOPs and over steps (thin: seeds, thick: their mean), then a bar chart of each score."""
    curves = {
        name: by_arm for name, by_arm in results["curves"].items() if any(map(any, by_arm.values()))
    }
    columns = (
        max(2, len(results["scores"])) if not curves else max(2, min(len(results["scores"]), 4))
    )
    rows = len(curves) + -(-len(results["scores"]) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.2 * rows), layout="constrained")
    grid = figure.add_gridspec(rows, columns)
    for row, (name, by_arm) in enumerate(curves.items()):
        draw_curves(figure.add_subplot(grid[row, 0]), name, by_arm, 1, "training FLOPs")
        draw_curves(figure.add_subplot(grid[row, 1]), name, by_arm, 0, "steps")
    for number, (metric, by_arm) in enumerate(results["scores"].items()):
        row, column = divmod(number, columns)
        draw_bars(figure.add_subplot(grid[len(curves) + row, column]), metric, by_arm)
    figure.suptitle("\n".join([results["question"], *verdict_lines(results)]), fontsize=9)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path


def draw_curves(axes: Axes, name: str, by_arm: Mapping[str, Any], x: int, label: str) -> None:
    """Curves of every arm; `x` picks a point's step (0) or FLOPs (1)."""
    for number, (arm, seeds) in enumerate(by_arm.items()):
        colour, runs = f"C{number}", [np.asarray(points, np.float64) for points in seeds if points]
        axes.plot([], [], color=colour, linewidth=2, label=arm)
        for points in runs:
            axes.plot(points[:, x], points[:, 2], color=colour, linewidth=0.6, alpha=0.5)
        if len({len(points) for points in runs}) == 1:
            mean = np.mean(runs, axis=0)
            axes.plot(mean[:, x], mean[:, 2], color=colour, linewidth=2)
    axes.set_xlabel(label)
    axes.set_ylabel(name)
    values = np.concatenate([np.asarray(line.get_ydata(), np.float64) for line in axes.lines])
    if values.size and values.min() > 0 and values.max() > 10 * values.min():
        # A loss falls by orders of magnitude, and what an ablation asks for is at its end.
        axes.set_yscale("log")
    axes.legend(fontsize=7)


def draw_bars(axes: Axes, metric: str, by_arm: Mapping[str, Sequence[float]]) -> None:
    """Means with their 95% intervals over seeds, and a dot for each seed."""
    for number, (arm, values) in enumerate(by_arm.items()):
        axes.bar(number, np.mean(values), color=f"C{number}", alpha=0.6)
        axes.plot([number] * len(values), values, "k.", markersize=4)
        spread = paired(values, [0.0] * len(values))
        if spread is not None:
            axes.errorbar(number, spread.mean, yerr=spread.high - spread.mean, color="k", capsize=4)
        axes.text(number, 0, f" {arm}", rotation=90, va="bottom", ha="center", fontsize=7)
    axes.set_xticks([])
    axes.set_title(metric, fontsize=9)
