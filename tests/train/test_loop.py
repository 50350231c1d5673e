import json
import signal
import time
from dataclasses import replace

import jax
import numpy as np
import pytest
import tiny
from tiny import LONG, TinyConfig, metrics, phases, same, train

from jaxvid.core import config as config_module
from jaxvid.core.checkpoint import Checkpointer
from jaxvid.core.errors import UserError
from jaxvid.core.mesh import MeshConfig
from jaxvid.core.paths import flatten
from jaxvid.core.run import RunDirectory
from jaxvid.train.loop import InterruptedRunError, LoopConfig, NonFiniteError, fit
from jaxvid.train.phase import Phase


@pytest.fixture(scope="module", autouse=True)
def _cache_short_compilations():
    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    jax.config.update(name, 0.0)
    yield
    jax.config.update(name, before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """LONG (two phases) without interruption: its last state and its metrics."""
    path = tmp_path_factory.mktemp("whole")
    return train(path, LONG), metrics(path)


def until(config, step):
    return config_module.replace(config, {"loop.max_steps": step})


# What a run does


def test_a_run_learns_and_logs(whole, tmp_path):
    state, lines = whole
    assert [line["step"] for line in lines] == [4, 7, 8, 12, 13]
    assert [line["phase"] for line in lines] == ["phase0"] * 2 + ["phase1"] * 3
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert set(lines[0]) == {"step", "phase", "loss", "loss_positive", "grad_norm"}
    assert int(state["extra/updates"]) == 6  # of the second phase


def test_metrics_are_means_over_their_interval(tmp_path):
    """log_every=1 gives the numbers whose means the others must be."""
    each = TinyConfig((6,), LoopConfig(log_every=1))
    train(tmp_path / "each", each)
    train(tmp_path / "three", replace(each, loop=LoopConfig(log_every=3)))
    ones, threes = metrics(tmp_path / "each"), metrics(tmp_path / "three")
    for number, line in enumerate(threes):
        part = ones[3 * number : 3 * number + 3]
        for name in ("loss", "grad_norm"):
            np.testing.assert_allclose(line[name], np.mean([o[name] for o in part]), rtol=1e-6)
        # A bucket's mean is over its examples, not over steps.
        counts = [np.sum(next(tiny.Counting(o["step"] - 1))["x"][:, 0] > 0) for o in part]
        expected = np.average([o["loss_positive"] for o in part], weights=counts)
        np.testing.assert_allclose(line["loss_positive"], expected, rtol=1e-6)


def test_speed_is_logged(tmp_path):
    train(tmp_path, TinyConfig((8,)))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert "first_step_seconds" in lines[0]
    assert "first_step_seconds" not in lines[1]
    speed = lines[1]["examples_per_second"] * lines[1]["seconds_per_step"]
    np.testing.assert_allclose(speed, tiny.BATCH, rtol=1e-6)
    assert 0 <= lines[1]["data_seconds_per_step"] <= lines[1]["seconds_per_step"]


def test_the_next_phase_starts_from_the_one_before(tmp_path):
    first = train(tmp_path / "one", TinyConfig((5,)))
    seen = {}

    def look(state, step, run):
        seen[step] = np.array(state["trainable"]["out/kernel"])

    config = TinyConfig((5, 1), optimizer=replace(TinyConfig().optimizer, learning_rate=1e-9))
    slow_first = train(tmp_path / "two", config, report=look)
    np.testing.assert_allclose(seen[6], seen[5], atol=1e-7)
    assert np.abs(seen[5] - first["trainable/out/kernel"]).max() > 1e-3  # another learning rate
    assert int(slow_first["extra/updates"]) == 1


def test_every_phase_draws_its_own_numbers(tmp_path):
    """Same data, same step number, another phase's name: another key."""
    keys = []

    def step(state, batch, key):
        jax.debug.callback(lambda data: keys.append(tuple(data.tolist())), jax.random.key_data(key))
        return state, {"loss": (batch["x"].sum(), 1.0)}

    phases = [replace(phase, step=step) for phase in tiny.phases(TinyConfig((2, 2)))]
    fit(RunDirectory.open(tmp_path, TinyConfig()), phases, LoopConfig())
    jax.effects_barrier()
    assert len(set(keys)) == 4


# Resuming


@pytest.mark.parametrize("stop", [3, 7, 9])
def test_resumed_is_uninterrupted(whole, tmp_path, stop):
    train(tmp_path, until(LONG, stop))
    assert all(line["step"] <= stop for line in metrics(tmp_path))
    same(train(tmp_path, LONG), whole[0])
    assert metrics(tmp_path) == whole[1]


def test_a_finished_run_is_returned_and_can_be_extended(whole, tmp_path):
    short = TinyConfig((7, 4), LONG.loop, replace(LONG.optimizer, decay="constant"))
    longer = replace(short, steps=(7, 6))
    first = train(tmp_path / "a", short)
    same(train(tmp_path / "a", short), first)
    same(train(tmp_path / "a", longer), train(tmp_path / "b", longer))


def test_a_mesh_gives_the_numbers_of_one_device_and_takes_over_a_run(whole, tmp_path):
    config = replace(LONG, mesh=MeshConfig(data=2, fsdp=2, tensor=2))
    train(tmp_path, until(LONG, 3))
    train(tmp_path, until(config, 9))
    state = train(tmp_path, replace(LONG, mesh=MeshConfig(fsdp=4)))
    for path, leaf in whole[0].items():
        np.testing.assert_allclose(state[path], leaf, atol=2e-5, rtol=1e-4, err_msg=path)
    for ours, theirs in zip(metrics(tmp_path), whole[1], strict=True):
        np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-5)


def test_a_damaged_checkpoint_falls_back_and_ends_the_same(whole, tmp_path):
    train(tmp_path, until(LONG, 9))
    newest = max((tmp_path / "checkpoints/steps").iterdir(), key=lambda path: int(path.name))
    assert newest.name == "9"
    biggest = max(newest.rglob("d/*"), key=lambda path: path.stat().st_size)
    biggest.write_bytes(biggest.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="checkpoint 9 .* using checkpoint 8"):
        same(train(tmp_path, LONG), whole[0])
    assert metrics(tmp_path) == whole[1]


def test_another_model_or_phase_is_refused(tmp_path, monkeypatch):
    train(tmp_path, until(LONG, 2))
    run = RunDirectory.open(tmp_path, until(LONG, 2))
    with pytest.raises(UserError, match="saved in phase 'phase0', but the phases are"):
        fit(run, [replace(phase, name="x") for phase in tiny.phases(LONG)][:1], LONG.loop)
    monkeypatch.setattr(tiny, "HIDDEN", 12)
    with pytest.raises(UserError, match=r"another model: \d+ arrays differ") as caught:
        fit(run, tiny.phases(LONG), LONG.loop)
    assert "\n" not in str(caught.value)


# Numbers that break


@pytest.mark.parametrize("loop", [LONG.loop, LoopConfig()])
def test_a_number_that_is_not_finite_names_its_step_and_is_not_saved(whole, tmp_path, loop):
    """The batch at position 4 of the second phase: step 5 of it, 12 of the run, where LONG logs and saves."""
    config = replace(LONG, loop=loop)
    train(tmp_path, replace(config, steps=(7,)))
    with pytest.raises(NonFiniteError) as caught:
        train(tmp_path, config, bad_at=4)
    message = str(caught.value)
    assert "step 12 (phase phase1, its step 5)" in message
    assert "loss" in message
    assert "grad_norm" in message
    assert "\n" not in message
    lines = metrics(tmp_path)
    assert all(line["step"] < 12 for line in lines)
    saved = [int(path.name) for path in (tmp_path / "checkpoints/steps").iterdir()]
    assert max(saved) < 12
    same(train(tmp_path, config), whole[0])  # with good data


# Signals


def interrupting(number, at):
    """Raises a signal while the batch of position `at` is read."""
    return lambda position: signal.raise_signal(number) if position == at else None


def test_ctrl_c_saves_and_the_run_continues_exactly(whole, tmp_path):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(InterruptedRunError) as caught:
        train(tmp_path, LONG, watch=interrupting(signal.SIGINT, at=6))
    assert caught.value.exit_code == 130
    assert "SIGINT" in str(caught.value)
    assert "after step 5" in str(caught.value)  # batch 6 was being read during step 5
    assert signal.getsignal(signal.SIGINT) is before
    assert (tmp_path / "checkpoints/steps/5").is_dir()
    same(train(tmp_path, LONG), whole[0])
    assert metrics(tmp_path) == whole[1]


def test_a_second_signal_acts_at_once(tmp_path):
    def twice(position):
        if position == 3:
            before = signal.getsignal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            # Python runs a handler between two instructions of the main thread, and two pending signals are one: on a busy
            # machine the first may wait for long.
            until = time.monotonic() + 60
            while signal.getsignal(signal.SIGINT) == before and time.monotonic() < until:
                time.sleep(0.01)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, LONG, watch=twice)


def test_reports_come_at_their_steps_and_one_that_was_due_comes_later(tmp_path):
    config = replace(LONG, loop=replace(LONG.loop, sample_every=3))
    steps = []

    def report(state, step, run):
        assert state["frozen"]
        steps.append(step)
        run.log(step, {"score": float(step)})

    with pytest.raises(InterruptedRunError, match="after step 6"):
        train(tmp_path, config, report, watch=interrupting(signal.SIGTERM, at=7))
    assert steps == [0, 3]
    train(tmp_path, config, report)
    assert steps == [0, 3, 6, 7, 9, 12, 13]
    scores = [line["step"] for line in metrics(tmp_path) if "score" in line]
    assert scores == steps


# Bad phases and data


def test_data_that_end_early_are_an_error(tmp_path):
    with pytest.raises(UserError, match="phase phase0: the data ended after 5 more batches"):
        train(tmp_path, LONG, length=5)
    train(tmp_path / "b", TinyConfig((5,)), length=5)  # just enough


def test_phases_and_intervals_are_checked(tmp_path):
    run = RunDirectory.open(tmp_path, LONG)
    phases = tiny.phases(LONG)
    for bad, loop, words in [
        ([], LONG.loop, "at least one"),
        ([phases[0], phases[0]], LONG.loop, "no two of a name"),
        ([replace(phases[0], steps=0)], LONG.loop, "0 steps"),
        (phases, LoopConfig(save_every=0), "save_every is 0"),
    ]:
        with pytest.raises(UserError, match=words):
            fit(run, bad, loop)


def test_batches_must_know_their_position(tmp_path):
    (phase,) = tiny.phases(TinyConfig())
    generator = replace(phase, batches=lambda state: iter([]))
    with pytest.raises(TypeError, match="get_state"):
        fit(RunDirectory.open(tmp_path, TinyConfig()), [generator], LoopConfig())


@pytest.mark.parametrize("group", ["frozen", "trainable"])
def test_a_step_may_not_touch_frozen_arrays_or_the_states_form(tmp_path, group):
    (phase,) = tiny.phases(TinyConfig())

    def step(state, batch, key):
        state, sums = phase.step(state, batch, key)
        if group == "frozen":
            changed = {path: leaf + 1 for path, leaf in state["frozen"].items()}
        else:
            changed = {path: leaf.astype("bfloat16") for path, leaf in state["trainable"].items()}
        return {**state, group: changed}, sums

    words = "changes what is frozen" if group == "frozen" else "changes the form"
    with pytest.raises(ValueError, match=words):
        fit(RunDirectory.open(tmp_path, TinyConfig()), [replace(phase, step=step)], LoopConfig())


def test_a_step_is_compiled_once(tmp_path):
    """Weak types, committed scalars or shardings that change would compile it again at the second step."""
    traces = []
    (phase,) = tiny.phases(TinyConfig())

    def step(state, batch, key):
        traces.append(1)
        return phase.step(state, batch, key)

    def init(previous, key):
        state = phase.init(previous, key)
        return {**state, "extra": {**state["extra"], "weak": jax.numpy.asarray(1.0)}}

    counting = Phase("count", 6, init, step, phase.batches)
    with jax.log_compiles(False):
        fit(RunDirectory.open(tmp_path, TinyConfig()), [counting], LoopConfig(save_every=2))
    assert len(traces) == 1


def test_external_arrays_come_from_the_start_and_are_in_no_checkpoint(tmp_path):
    """A phase may name frozen arrays that each start brings along; the rest of a run is as without."""
    config = TinyConfig()
    start = {"trainable": {}, "frozen": {"given": np.arange(4, dtype=np.float32)}}

    def outside():
        (phase,) = phases(config)

        def init(previous, key):
            state = phase.init(None, key)
            return {**state, "frozen": {**state["frozen"], **previous["frozen"]}}

        return [replace(phase, init=init, external=lambda path: path == "given")]

    def go(steps, start):
        run = RunDirectory.open(tmp_path / "run", config, ("loop",))
        return flatten(fit(run, outside(), replace(config.loop, max_steps=steps), start=start))

    go(5, start)
    whole = train(tmp_path / "whole", config)
    resumed = go(None, start)
    np.testing.assert_array_equal(resumed.pop("frozen/given"), start["frozen"]["given"])
    same({path: np.asarray(leaf) for path, leaf in resumed.items()}, whole)
    with Checkpointer(tmp_path / "run" / "checkpoints") as checkpoints:
        restored = checkpoints.restore()
    assert restored is not None
    assert "frozen/given" not in restored.tree
    assert any(path.startswith("frozen/") for path in restored.tree)
