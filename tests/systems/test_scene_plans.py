"""`jaxedit plan`: FLOPs in closed form, memory that does not grow with the image, devices, and bad input."""

import importlib.util
import json
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxvid.plan
from jaxedit import cli
from jaxedit.scene.cameras import pinhole_cameras
from jaxedit.scene.scene import Views
from jaxedit.systems.reconstruct import programs
from jaxedit.systems.reconstruct.batches import RayBatches
from jaxvid.core.errors import UserError
from jaxvid.plan import Plan, plan, topology_devices

CONFIG = """
from jaxedit.fields.hash_grid import HashGridConfig
from jaxedit.fields.voxel_grid import VoxelGridConfig
from jaxedit.render.occupancy import OccupancyConfig
from jaxedit.render.render import RenderConfig
from jaxedit.scene.load import SceneConfig
from jaxedit.systems.reconstruct import Fit, Reconstruct


def config():
    return Reconstruct(
        data=SceneConfig(path="unused"),
        field=FIELD,
        render=RenderConfig(samples=32, slots=1.0),
        occupancy=OccupancyConfig(resolution=8, parts=1) if OCCUPIED else None,
        fits=(Fit("first", rays=64), Fit("second", rays=128)),
        chunk=256,
    )
"""
HASH = "HashGridConfig(levels=4, table=10, base=8, finest=32, width=16, geometry=8, degree=1)"
VOXELS = "VoxelGridConfig(resolution=(16, 16, 16))"
# Multiply-adds of a sample: 8 encoded features, 16 hidden, 8 outputs; 4 harmonics beside them, 16, 16, 3 colours.
SAMPLE = 8 * 16 + 16 * 8 + 12 * 16 + 16 * 16 + 16 * 3
BLOCK = 8


@pytest.fixture
def preset(tmp_path):
    """Writes a configuration's file."""

    def write(field, occupied=False):
        path = tmp_path / f"{'occupied' if occupied else 'even'}.py"
        path.write_text(CONFIG.replace("FIELD", field).replace("OCCUPIED", str(occupied)))
        return str(path)

    return write


def planned(program, name, *words, topology="cpu:1"):
    """As the compiling process does, in this one."""
    return program(name, words, topology_devices(topology)).plan(topology)


@pytest.mark.parametrize("name", ["reconstruct/capture", "reconstruct/relu_field"])
def test_presets_that_leave_near_and_far_to_the_scene_have_plans(name):
    built = programs.image(name, ["--size=8"], topology_devices("cpu:1"))
    assert jax.eval_shape(built.fn, *built.args).colour.shape == (8, 8, 3)
    nearer = programs.setting(name, ["--render.near", "0.5"], topology_devices("cpu:1"))
    assert (nearer.system.render.near, nearer.system.render.far) == (0.5, 6.0)


def test_flops_of_a_view_and_of_its_gradient(preset):
    """20 x 20 pixels are two chunks of 256 rays. The gradient renders twice, and back is twice the work of once."""
    once = 2 * SAMPLE * (2 * 256 * 32)
    view = planned(programs.image, preset(HASH), "--size=20")
    gradient = planned(programs.gradient, preset(HASH), "--size=20")
    assert view.flops["total"] == once
    assert gradient.flops["total"] == 4 * once
    assert view.loop_turns is None
    assert "counted in full" in view.table()
    assert view.parameters == gradient.parameters > 1000


def test_a_loop_of_unknown_length_counts_one_turn_and_the_plan_says_so(preset):
    view = planned(programs.image, preset(HASH, occupied=True), "--size=20")
    # A block a ray in the first pass, and in each turn of the loop.
    assert view.flops["total"] == 2 * 2 * SAMPLE * (2 * 256 * BLOCK)
    assert view.loop_turns == 1
    assert "counted as 1 turn(s)" in view.table()


def test_the_gradients_memory_grows_by_rays_and_pixels_alone(preset):
    """A pixel's ray, colour, opacity and depth, their cotangents, its true colour: 35 floats, once or twice."""
    small, large = (
        planned(programs.gradient, preset(VOXELS), f"--size={size}") for size in (32, 96)
    )
    pixels = 96**2 - 32**2
    more = large.peak_bytes_per_device - small.peak_bytes_per_device
    assert 3 * 4 * pixels <= more < 2 * 35 * 4 * pixels
    assert large.temp_bytes > 32 * 256 * 100  # a chunk's samples outweigh them


def test_a_step_on_devices_does_the_work_of_one(preset):
    """Rays are spread, the field is whole on each, and its gradient is summed."""
    alone = planned(programs.train, preset(HASH), "--fit=first")
    four = planned(programs.train, preset(HASH), "--fit=first", "--mesh.data=4", topology="cpu:4")
    assert four.flops["matmul"] == alone.flops["matmul"]
    assert four.mesh["data"] == 4
    assert four.collectives.get("all-reduce", 0) > 0
    assert alone.collectives == {}
    # A ray is a view's number, two pixel coordinates and four bytes.
    assert alone.argument_bytes - four.argument_bytes == 64 * (4 + 8 + 4) * 3 // 4


def test_a_planned_batch_is_a_real_one():
    cameras = pinhole_cameras(np.tile(np.eye(3, 4), (2, 1, 1)), 10.0, 8, 8)
    views = Views(cameras, np.zeros((2, 8, 8, 4), np.uint8), ("a", "b"))
    batch = next(RayBatches(views, 16, seed=(0,)))
    shapes = {name: (leaf.shape, leaf.dtype) for name, leaf in batch.items()}
    abstract = programs.abstract_batch(16, None)
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in abstract.items()} == shapes


def test_fits_by_name_and_number(preset):
    of = partial(programs.setting, preset(HASH), devices=topology_devices("cpu:1"))
    assert [of([f"--fit={fit}"]).fit for fit in ("first", "second", "0", "1")] == [0, 1, 0, 1]
    assert of([]).fit == 1
    boxed = of(["--size=20", "--data.box", *["-1", "-2", "-3", "4", "5", "6"]])
    assert (boxed.frame.lowest, boxed.frame.highest) == ((-1, -2, -3), (4, 5, 6))
    assert (boxed.cameras.width, boxed.cameras.height, len(boxed.cameras)) == (20, 20, 100)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--fit=third"], "--fit is third; give one of first, second, or its number"),
        (["--fit=2"], "--fit is 2; give one of first, second, or its number"),
        (["--size=0"], "--size is 0; give a number of pixels"),
        (["--size=many"], "invalid int value: 'many'"),
        (["--fits.0.ray", "8"], "unknown option --fits.0.ray; did you mean --fits.0.rays"),
        (["--mesh.data=3"], "mesh data=3 fsdp=1 tensor=1 frames=1 needs 3 devices but there are 1"),
    ],
)
def test_bad_words_are_one_line(preset, words, says):
    with pytest.raises(UserError, match=says) as caught:
        programs.train(preset(HASH), words, topology_devices("cpu:1"))
    assert "\n" not in str(caught.value)


def test_rays_that_do_not_spread_and_other_systems_are_refused(preset, tmp_path):
    with pytest.raises(
        UserError, match="batch size 6 is not a positive multiple of data x fsdp = 4"
    ):
        programs.train(preset(HASH), ["--fits.1.rays=6"], topology_devices("cpu:4"))
    other = tmp_path / "other.py"
    other.write_text(
        "from jaxvid.train.loop import LoopConfig\n\n\ndef config():\n    return LoopConfig()\n"
    )
    with pytest.raises(UserError, match="is a LoopConfig, which cannot be planned here"):
        programs.train(str(other), [], topology_devices("cpu:1"))


# --- the command ---------------------------------------------------------------------------------


def test_the_command_compiles_in_a_process_of_its_own(preset, tmp_path, capsys):
    out = tmp_path / "plan.json"
    words = (
        f"plan {preset(VOXELS)} --topology cpu:2 --program image --size 4 --chunk 8 --json {out}"
    )
    assert cli.main(words.split()) == 0
    found = Plan.from_json(out.read_text())
    assert (found.devices, found.mesh["data"]) == (2, 2)
    assert found.parameters == 16**3 * 4
    table = capsys.readouterr().out
    assert table.startswith("topology         cpu:2 (2 devices)")
    assert "yes, " in table


def test_what_does_not_fit_ends_with_1(monkeypatch, tmp_path, capsys):
    seen = []
    fitting = plan(jnp.sin, (jax.ShapeDtypeStruct((4,), jnp.float32),), topology="cpu:1")

    def refuse(program, config, topology, words):
        seen.append((program, config, topology, words))
        return replace(fitting, fits=False)

    monkeypatch.setattr(jaxvid.plan, "plan_in_subprocess", refuse)
    out = tmp_path / "plan.json"
    words = f"plan one --topology h200:1 --program gradient --size 5 --chunk 9 --json {out}"
    assert cli.main(words.split()) == 1
    program = "jaxedit.systems.reconstruct.programs:gradient"
    assert seen == [(program, "one", "h200:1", ["--size=5", "--chunk", "9"])]
    assert not json.loads(out.read_text())["fits"]
    assert "no, " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("plan reconstruct/voxels", "the following arguments are required: --topology"),
        ("plan reconstruct/voxels --topology v99:1", "topology 'v99:1' is not known"),
        ("plan reconstruct/voxels --topology cpu:1 --program video", "invalid choice: 'video'"),
        ("plan reconstruct/voxels --topology cpu:1 --json {file}/plan.json", "there/plan.json"),
    ],
)
def test_bad_commands_are_one_line(words, says, tmp_path, capsys):
    (tmp_path / "there").write_text("")
    assert cli.main(words.format(file=tmp_path / "there").split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("jaxedit: error: ")
    assert says in error
    assert error.count("\n") == 1


@pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda13_plugin") is None,
    reason="not installed: jax_cuda13_plugin; pip install 'jaxvid[plan]'",
)
def test_an_absent_gpu(preset):
    program = "jaxedit.systems.reconstruct.programs:gradient"
    found = jaxvid.plan.plan_in_subprocess(program, preset(VOXELS), "h200:1", ["--size=20"])
    assert found.fits
    assert found.argument_bytes >= 4 * (16**3 * 4 + 20 * 20 * 3)
