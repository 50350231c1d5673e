"""Planning on simulated devices, where every number can be derived; real compilers when they are installed."""

import dataclasses
import importlib.util
import json
import textwrap

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from jaxvid.core.errors import UserError
from jaxvid.core.mesh import (
    MeshConfig,
    active,
    batch_sharding,
    constrain,
    make_mesh,
    parameter_sharding,
    with_sharding,
)
from jaxvid.plan import Plan, parse_topology, plan, plan_in_subprocess, topology_devices
from jaxvid.plan import compile as compiling
from jaxvid.plan.launch import last_words
from jaxvid.plan.report import count, memory
from jaxvid.plan.worker import load_program, main

LAYERS, BATCH, WIDTH = 4, 16, 64
PARAMETERS = 2 * LAYERS * WIDTH * 4 * WIDTH


def train_step(params, x):
    """A stack of dense pairs with a scan over layers and rematerialised blocks."""

    def block(x, layer):
        hidden = constrain(jax.nn.gelu(x @ layer["conv1/kernel"]), "b hidden")
        return constrain(x + hidden @ layer["conv2/kernel"], "b c"), None

    def loss(params):
        return jnp.mean(jnp.square(lax.scan(jax.checkpoint(block), x, params)[0]))

    value, gradient = jax.value_and_grad(loss)(params)
    return jax.tree.map(lambda p, g: p - 1e-3 * g, params, gradient), value


def arguments(devices, config=None):
    params = {
        "conv1/kernel": jax.ShapeDtypeStruct((LAYERS, WIDTH, 4 * WIDTH), jnp.float32),
        "conv2/kernel": jax.ShapeDtypeStruct((LAYERS, 4 * WIDTH, WIDTH), jnp.float32),
    }
    x = jax.ShapeDtypeStruct((BATCH, WIDTH), jnp.float32)
    mesh = make_mesh(config or MeshConfig(data=1, fsdp=-1), devices)
    if mesh is None:
        return params, x
    return with_sharding(params, parameter_sharding(mesh, params)), with_sharding(
        x, batch_sharding(mesh)
    )


@pytest.fixture(scope="module")
def planned():
    return plan(train_step, arguments(topology_devices("cpu:8")), topology="cpu:8", donate=(0,))


def test_numbers_of_a_sharded_train_step(planned):
    assert planned.topology == "cpu:8"
    assert planned.devices == 8
    assert planned.mesh == {"data": 1, "fsdp": 8, "tensor": 1, "frames": 1}
    assert planned.parameters == PARAMETERS
    # every device holds an eighth of the parameters and of the batch, and gives the parameters back in place
    assert planned.argument_bytes == 4 * (PARAMETERS + BATCH * WIDTH) // 8
    assert planned.output_bytes >= 4 * PARAMETERS // 8
    assert planned.fits
    assert planned.error is None
    assert planned.peak_bytes_per_device >= planned.argument_bytes + planned.temp_bytes
    # per layer: two products forward, the first again (the gradient needs no value of the second), four backward
    assert planned.flops["matmul"] == 7 * LAYERS * (2 * BATCH * WIDTH * 4 * WIDTH)
    assert planned.flops["total"] == planned.flops["matmul"]
    assert planned.flops["per_device"] == planned.flops["total"] // 8
    assert planned.collectives["all-gather"] >= 2  # both kernels, forward
    assert set(planned.collectives) & {"all-reduce", "reduce-scatter"}  # their gradients
    assert planned.lower_seconds > 0
    assert planned.compile_seconds > 0


def test_donation_saves_memory(planned):
    kept = plan(train_step, arguments(topology_devices("cpu:8")), topology="cpu:8")
    saved = kept.peak_bytes_per_device - planned.peak_bytes_per_device
    assert 0 < saved <= 4 * PARAMETERS // 8  # at most the whole second copy


def test_one_device_has_no_collectives_and_plain_arguments_work():
    alone = plan(train_step, arguments(topology_devices("cpu:1")), topology="cpu:1")
    assert alone.collectives == {}
    assert alone.argument_bytes == 4 * (PARAMETERS + BATCH * WIDTH)
    everywhere = plan(train_step, arguments(jax.devices()[:1]), topology="cpu:4")
    assert everywhere.devices == 4
    assert everywhere.argument_bytes == alone.argument_bytes  # held whole by each


def test_planned_collectives_are_those_of_the_real_program(planned):
    args = arguments(topology_devices("cpu:8"))
    mesh = args[1].sharding.mesh
    with active(mesh):
        text = jax.jit(train_step, donate_argnums=(0,)).lower(*args).compile().as_text()
    assert compiling.count_collectives(text) == planned.collectives


def test_arrays_left_whole_are_reported():
    config = MeshConfig(data=2, tensor=4)
    args = arguments(topology_devices("cpu:8"), config)
    odd = {"odd/query/kernel": jax.ShapeDtypeStruct((4, 6), jnp.float32)}
    result = plan(train_step, args, topology="cpu:8", parameters=odd)
    assert len(result.whole) == 1
    assert "odd/query/kernel" in result.whole[0]
    assert result.parameters == 24
    assert "left whole" in result.table()


def test_too_large_is_a_result():
    small = dataclasses.replace(parse_topology("cpu:8"), usable_bytes=1000, memory_bytes=1200)
    result = plan(train_step, arguments(topology_devices("cpu:8")), topology=small)
    assert not result.fits
    assert result.error is None
    assert "no, " in result.table()


def test_compiler_that_refuses_for_memory_is_a_result(monkeypatch):
    line = (
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (47.68G) exceeds available HBM (15.75G). HLO module: jit_step."
    )

    def refuse(message):
        def compile_(self, compiler_options=None):
            raise jax.errors.JaxRuntimeError(message)

        monkeypatch.setattr(jax.stages.Lowered, "compile", compile_)

    args = arguments(topology_devices("cpu:8"))
    refuse(line + "\nSee https://openxla.org/xla/errors/error_1000")
    result = plan(train_step, args, topology="cpu:8")
    assert not result.fits
    assert result.error == line
    assert result.peak_bytes_per_device == int(47.68 * 2**30)
    assert result.temp_bytes is None
    assert result.collectives is None
    assert Plan.from_json(result.to_json()) == result
    assert "CompileTimeHbmOom" in result.table()
    refuse("INTERNAL: something else")
    with pytest.raises(jax.errors.JaxRuntimeError):
        plan(train_step, args, topology="cpu:8")


@pytest.mark.parametrize(
    ("line", "need"),
    [
        (
            "total memory required for HLO temporaries (512.5M) exceeds available HBM (15.75G)",
            537395200,
        ),
        ("Ran out of memory in memory space hbm. Used 20.00G of 15.75G hbm", 20 * 2**30),
        ("something else", None),
    ],
)
def test_stated_need(line, need):
    assert compiling.stated_need(line) == need


def test_mesh_of_another_size_is_refused():
    with pytest.raises(ValueError, match="sharded over 8 devices, cpu:4 has 4"):
        plan(train_step, arguments(topology_devices("cpu:8")), topology="cpu:4")


def test_count_collectives():
    text = """
      %ag = f32[8]{0} all-gather-start(f32[1]{0} %x), dimensions={0}
      %ad = f32[8]{0} all-gather-done(%ag)
      %ar = f32[] all-reduce(f32[] %y), to_apply=%all-reduce.add
      ROOT %rs = f32[2]{0} reduce-scatter(f32[8]{0} %z)
    """
    assert compiling.count_collectives(text) == {
        "all-gather": 1,
        "all-reduce": 1,
        "reduce-scatter": 1,
    }


# Names


@pytest.mark.parametrize(
    ("name", "platform", "devices", "gib"),
    [
        ("v5e:4x4", "tpu", 16, 15.75),
        ("v5p:4x4x4", "tpu", 64, 95.73),
        ("2*v5p:4x4x4", "tpu", 128, 95.73),
        ("v4:2x2x4", "tpu", 16, 30.75),
        ("tpu7x:2x2x1", "tpu", 8, 94.74),
        ("V5E:1x1", "tpu", 1, 15.75),
        ("h200:8", "cuda", 8, 140.4),
        ("h100:2x8", "cuda", 16, 79.1),
        ("cpu:8", "cpu", 8, None),
    ],
)
def test_topology_names(name, platform, devices, gib):
    topology = parse_topology(name)
    assert (topology.platform, topology.device_count) == (platform, devices)
    assert topology.usable_bytes <= topology.memory_bytes
    if gib is not None:
        assert topology.memory_bytes / 2**30 == pytest.approx(gib, abs=0.01)
    if platform == "cuda":
        assert topology.usable_bytes == int(0.9 * topology.memory_bytes)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("v7x:2x2", "not known"),
        ("v5e", "not known"),
        ("v5e:", "not known"),
        ("v5e:0x1", "not known"),
        ("v5e:4x", "not known"),
        ("0*v5e:4x4", "not known"),
        ("", "not known"),
        ("v5e:4x4x4", "2 dimensions, 3 given"),
        ("v5p:4x4", "3 dimensions, 2 given"),
        ("v5e:32x32", "at most 256"),
        ("h200:16", "at most 8"),
        ("h200:1x2x8", "hosts x GPUs"),
        ("2*h200:8", "only TPUs have slices"),
        ("cpu:2x2", "plain number"),
    ],
)
def test_bad_topologies_are_one_line_with_an_example(name, words):
    with pytest.raises(UserError, match=words) as caught:
        parse_topology(name)
    assert "\n" not in str(caught.value)
    assert (
        "v5e:" in str(caught.value)
        or "x8" in str(caught.value)
        or "v5p:" in str(caught.value)
        or "cpu:8" in str(caught.value)
    )


@pytest.mark.parametrize(
    ("name", "module"), [("v5e:2x2", "libtpu"), ("h200:8", "jax_cuda13_plugin")]
)
def test_missing_compiler_names_the_command(name, module, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=f'needs the package {module}; pip install "jaxvid\\[plan\\]"'
    ):
        topology_devices(name)


def test_too_few_simulated_devices():
    with pytest.raises(
        UserError, match=r"simulates 8 devices; .*device_count=64 or use plan_in_subprocess"
    ):
        topology_devices("cpu:64")


# Report


def test_json_round_trip(planned):
    assert Plan.from_json(planned.to_json()) == planned
    assert json.loads(planned.to_json())["parameters"] == PARAMETERS


def test_table_states_every_figure(planned):
    table = planned.table()
    for words in (
        "cpu:8 (8 devices)",
        "fsdp=8",
        f"{PARAMETERS:,}",
        "yes, ",
        "all-gather",
        "per device",
    ):
        assert words in table
    assert len({line.index("  ", 15) for line in table.splitlines() if line[:8] == "topology"}) == 1


@pytest.mark.parametrize(
    ("size", "text"),
    [(None, "unknown"), (2**20, "1.0 MiB"), (2**30, "1.00 GiB"), (3 * 2**29, "1.50 GiB")],
)
def test_memory_text(size, text):
    assert memory(size) == text


@pytest.mark.parametrize(
    ("number", "text"), [(7, "7"), (1500, "1.5 k"), (31_500 * 10**12, "31.5 P")]
)
def test_count_text(number, text):
    assert count(number) == text


# Subprocess

PROGRAM = """
    import jax, jax.numpy as jnp
    from jaxvid.core.errors import UserError
    from jaxvid.core.mesh import MeshConfig, batch_sharding, make_mesh, parameter_sharding, with_sharding
    from jaxvid.plan import Program

    def program(config, overrides, devices):
        if config != "small":
            raise UserError(f"config {config!r} does not exist; use small")
        width = int(overrides[1])
        params = {"kernel": jax.ShapeDtypeStruct((width, 8), jnp.float32)}
        x = jax.ShapeDtypeStruct((64, width), jnp.float32)
        mesh = make_mesh(MeshConfig(data=1, fsdp=-1), devices)
        params = with_sharding(params, parameter_sharding(mesh, params))
        return Program(lambda p, x: x @ p["kernel"], (params, with_sharding(x, batch_sharding(mesh))))
"""


@pytest.fixture
def program(tmp_path, monkeypatch):
    (tmp_path / "planned_program.py").write_text(textwrap.dedent(PROGRAM))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    return "planned_program:program"


def test_subprocess_has_its_own_devices(program):
    # sixteen devices, where this process has eight
    result = plan_in_subprocess(program, "small", "cpu:16", ["--width", "32"])
    assert result.devices == 16
    assert result.mesh["fsdp"] == 16
    assert result.flops["matmul"] == 2 * 64 * 32 * 8


def test_subprocess_passes_user_errors_on(program):
    with pytest.raises(UserError, match="config 'huge' does not exist"):
        plan_in_subprocess(program, "huge", "cpu:2", ["--width", "32"])
    with pytest.raises(UserError, match="not known"):
        plan_in_subprocess(program, "small", "v99:4x4")
    with pytest.raises(UserError, match="the compiling process ended with 1: "):
        plan_in_subprocess(program, "small", "cpu:2", ["--width", "many"])


@pytest.mark.parametrize(
    "name",
    ["planned_program", "planned_program:", "no.such.module:f", ":f", "json:nothing", "a b:c"],
)
def test_program_names(name, program):
    with pytest.raises(UserError, match=r"not of the form|does not exist"):
        load_program(name)


def test_worker_exit_code(capsys):
    assert main(["--program=json:dumps", "--config=x", "--topology=v99:1"]) == 2
    assert capsys.readouterr().err.startswith("jaxvid: error: topology 'v99:1' is not known")


def needs(*modules):
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    return pytest.mark.skipif(
        bool(missing), reason=f"not installed: {missing}; pip install 'jaxvid[plan]'"
    )


@pytest.mark.parametrize(
    ("topology", "devices"),
    [
        pytest.param("v5e:2x4", 8, marks=needs("libtpu")),
        pytest.param("v5p:2x2x2", 8, marks=needs("libtpu")),
        pytest.param("h200:8", 8, marks=needs("jax_cuda13_plugin")),
    ],
)
def test_absent_accelerators(program, topology, devices):
    result = plan_in_subprocess(program, "small", topology, ["--width", "1024"])
    assert result.devices == devices
    assert result.fits
    assert result.argument_bytes >= 4 * (1024 * 8 + 64 * 1024) // 8
    assert result.flops["matmul"] == 2 * 64 * 1024 * 8
    assert result.collectives["all-gather"] == 1


@needs("libtpu")
def test_tpu_compiler_refuses_what_does_not_fit(program):
    result = plan_in_subprocess(program, "small", "v5e:2x2", ["--width", str(2**28)])
    assert not result.fits
    assert result.peak_bytes_per_device > result.device_memory_bytes
    assert "CompileTimeHbmOom" in result.error


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("", "killed, perhaps for lack of memory"),
        ("Traceback\n  File x\nRuntimeError: no plugin\n\n", "RuntimeError: no plugin"),
        (
            "F1125 07:04:39.7 9841 fusion.cc:5409] Check failed: low == 0 split of a window\n"
            "    @ 0x7f8b  absl::Flush()\nE1125 07:04:40.5 9841 state.cc:796] RAW: Raising signal 6\n",
            "Check failed: low == 0 split of a window (an error inside the compiler; try another mesh or batch, or "
            "another version of it)",
        ),
    ],
)
def test_a_dead_compiler_is_quoted_by_the_line_that_says_why(output, words):
    assert last_words(output) == words
