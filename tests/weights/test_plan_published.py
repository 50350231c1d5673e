"""`jaxvid plan FOLDER`: what is planned is what the pipelines run, counted and sharded, of JSON files alone."""

import importlib
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fabricate import write_pipeline

from jaxvid import cli, pipelines
from jaxvid.core.errors import UserError
from jaxvid.core.flops import count_flops
from jaxvid.core.mesh import MeshConfig, batch_sharding, make_mesh, parameter_sharding
from jaxvid.core.paths import flatten
from jaxvid.pipelines.programs import forward_program, sample_program
from jaxvid.weights.convert import convert_folder
from jaxvid.weights.loading import Loading

NAMES = {
    "sd": "stable diffusion",
    "edit": "instruct pix2pix",
    "video": "modelscope",
    "svd": "stable video diffusion",
    "if": "deepfloyd 1",
}
ADAPTER = {
    "_class_name": "MotionAdapter",
    "block_out_channels": [16, 32],
    "motion_layers_per_block": 1,
    "motion_norm_num_groups": 8,
    "motion_num_attention_heads": 2,
}
SIZES = {"sd": 8, "svd": [8, 12]}  # that the U-Nets were trained at
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Tiny pipelines with weights."""
    place = tmp_path_factory.mktemp("whole")
    for short, name in NAMES.items():
        write_pipeline(place / short, name)
    return place


@pytest.fixture(scope="module")
def folders(whole, tmp_path_factory):
    """The same without weights and tokenizers, and an adapter's configuration."""
    place = tmp_path_factory.mktemp("configs")
    unwanted = shutil.ignore_patterns("*.safetensors", "tokenizer", "image_encoder")
    for short in NAMES:
        shutil.copytree(whole / short, place / short, ignore=unwanted)
    for short, size in SIZES.items():
        file = place / short / "unet" / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "sample_size": size}))
    (place / "motion").mkdir()
    (place / "motion" / "config.json").write_text(json.dumps(ADAPTER))
    assert not list(place.rglob("*.safetensors"))
    return place


def run_pipeline(short, folder, how):
    """The real one, with settings like those of `WORDS`."""
    key = jax.random.key(0)
    image = jax.random.uniform(jax.random.key(1), (2, 8, 12, 3), minval=-1)
    if short == "svd":
        model = pipelines.load_image_to_video(folder, how)
        pipelines.image_to_video(model, image, key, frames=2, steps=2)
        return
    model = pipelines.load_latent_diffusion(folder, how)
    if short == "edit":
        pipelines.edit_image(model, image, ["a", "b"], key, steps=2)
    elif short == "video":
        pipelines.text_to_video(model, ["a", "b"], key, frames=2, size=(8, 12), steps=2)
    else:
        pipelines.text_to_image(model, ["a", "b"], key, size=(8, 12), steps=2)


WORDS = "--batch 2 --size 8x12 --steps 2"
FRAMES = {"video": " --frames 2", "svd": " --frames 2"}


class RecordedError(Exception):
    """Ends a pipeline when its loop would begin."""


@pytest.fixture
def recorded(monkeypatch):
    """What the pipelines' loops are called with, and the loops."""
    runs = []
    for name in ("latent", "edit", "image_to_video"):
        module = importlib.import_module(f"jaxvid.pipelines.{name}")

        def recording(*about, make=module.guided_program):
            def run(*given, **_):
                runs.append((given, make(*about)))
                raise RecordedError

            return run

        monkeypatch.setattr(module, "guided_program", recording)
    return runs


def described(args):
    """Shapes and types by path."""
    return {path: (leaf.shape, leaf.dtype) for path, leaf in flatten(args).items()}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("short", ["sd", "edit", "video", "svd"])
def test_what_is_planned_is_what_the_pipeline_runs(short, dtype, whole, folders, recorded):
    """Arguments agree in path, shape and type; the planned function moves the latents as the pipeline's loop does."""
    with pytest.raises(RecordedError):
        run_pipeline(short, whole / short, Loading(dtype=DTYPES[dtype]))
    words = f"{WORDS}{FRAMES.get(short, '')} --dtype {dtype}".split()
    planned = sample_program(str(folders / short), words, jax.devices()[:1])
    (((args, z, grid, key), loop),) = recorded
    assert described((args, z, key)) == described(planned.args)
    if dtype == "float32":
        truth = loop(args, z, grid, key)
        distance = np.linalg.norm(jax.jit(planned.fn)(args, z, key) - truth)
        assert distance < 1e-5 * np.linalg.norm(truth)
        assert np.linalg.norm(truth - z) > 0.1 * np.linalg.norm(z)


@pytest.mark.parametrize(
    ("short", "branches", "more"),
    [("sd", 2, ""), ("edit", 3, ""), ("video", 2, " --frames 2"), ("svd", 2, " --frames 2")],
)
def test_operations_are_those_of_the_forward_passes(short, branches, more, folders):
    """A step of the loop costs a forward pass over the branches of guidance as one batch."""

    def products(make, words):
        program = make(str(folders / short), (words + more).split(), jax.devices()[:1])
        counted = count_flops(program.fn, *program.args)
        return counted.matmul + counted.conv

    step = products(forward_program, f"--size 16x16 --batch {branches}")
    assert step > 1e6
    assert products(sample_program, "--size 16x16 --steps 3") == 3 * step


def test_defaults_are_the_pipelines(folders):
    """One example, the size that the U-Net was trained at (64x64 latents where it names none), the pipeline's own frames."""
    device = jax.devices()[:1]
    made = {
        short: sample_program(str(folders / short), [], device)
        for short in ("sd", "edit", "video", "svd")
    }
    z = {short: program.args[1].shape for short, program in made.items()}
    assert z["sd"] == (1, 1, 8, 8, 4)
    assert z["edit"] == (1, 1, 64, 64, 4)
    assert z["video"] == (1, 16, 64, 64, 4)
    assert z["svd"] == (1, 14, 8, 12, 4)
    moving = sample_program(
        str(folders / "sd"), ["--motion", str(folders / "motion"), "--dtype", "float16"], device
    )
    assert moving.args[1].shape == (1, 16, 8, 8, 4)
    still, more = flatten(made["sd"].args[0]["unet"]), flatten(moving.args[0]["unet"])
    assert set(more) > set(still)
    assert {str(leaf.dtype) for leaf in still.values()} == {"float32"}
    assert {str(leaf.dtype) for leaf in more.values()} == {"float16"}


def test_an_import_is_planned_like_what_it_came_from(whole, tmp_path):
    convert_folder(whole / "edit", tmp_path / "own", "native")
    shutil.copytree(whole / "edit", tmp_path / "published")
    for file in tmp_path.rglob("*.safetensors"):
        file.unlink()
    own, published = (
        sample_program(str(tmp_path / name), ["--size", "16x16"], jax.devices()[:1])
        for name in ("own", "published")
    )
    assert described(own.args) == described(published.args)


def test_sharded(folders):
    """Parameters lie as the mesh's rules say, examples over data and fsdp; the compiled program gathers the kernels."""
    devices = jax.devices()
    words = ["--mesh.fsdp", "4", "--size", "16x16", "--steps", "2"]
    program = sample_program(str(folders / "sd"), words, devices)
    mesh = make_mesh(MeshConfig(data=2, fsdp=4), devices)
    args, z, _ = program.args
    unet = flatten(args["unet"])
    assert {path: leaf.sharding for path, leaf in unet.items()} == parameter_sharding(mesh, unet)
    assert sum(not leaf.sharding.is_fully_replicated for leaf in unet.values()) > 20
    assert z.shape[0] == 8
    assert z.sharding == args["given"]["context"].sharding == batch_sharding(mesh, "b")
    split = program.plan("cpu:8")
    assert split.mesh == {"data": 2, "fsdp": 4, "tensor": 1, "frames": 1}
    assert split.collectives["all-gather"] > 20
    assert split.parameters == sum(leaf.size for leaf in unet.values())
    copies = sample_program(str(folders / "sd"), words[2:], devices).plan("cpu:8")
    assert copies.flops == split.flops
    assert split.argument_bytes < 0.6 * copies.argument_bytes


def test_frames_are_split(folders):
    words = ["--mesh.frames", "2", "--mesh.data", "4", "--size", "16x16", "--frames", "4"]
    program = forward_program(str(folders / "video"), words, jax.devices())
    assert program.args[1].sharding.shard_shape(program.args[1].shape) == (1, 2, 8, 8, 4)
    result = program.plan("cpu:8")
    assert result.fits
    assert result.mesh["frames"] == 2


def test_the_command(folders, tmp_path, capsys):
    """In a process of its own, with more devices than this one has."""
    line = f"plan {folders}/sd --topology cpu:16 --mesh.fsdp 2 --size 16x16 --steps 2"
    assert cli.main([*line.split(), "--dtype", "bfloat16", "--json", f"{tmp_path}/p.json"]) == 0
    plan = json.loads((tmp_path / "p.json").read_text())
    assert plan["mesh"] == {"data": 8, "fsdp": 2, "tensor": 1, "frames": 1}
    assert plan["devices"] == 16
    assert "cpu:16 (16 devices)" in capsys.readouterr().out


BAD = {
    "if": "is a IFPipeline, which cannot be planned; StableDiffusionPipeline",
    "sd --batch 0": "batch size 0 is not a positive multiple of data x fsdp = 8",
    "sd --batch 12": "batch size 12 is not a positive multiple of data x fsdp = 8; use 8",
    "sd --mesh.fsdp 3": "8 devices are not a multiple of 3",
    "sd --mesh.data 2": "needs 2 devices but there are 8",
    "sd --mesh.depth 2": "unknown option --mesh.depth",
    "sd --size 16": "--size is '16'; write HEIGHTxWIDTH in pixels, as 512x768",
    "sd --size 15x16": "height x width is 15 x 16; both must be multiples of 2",
    "sd --size 0x16": "both must be multiples of 2",
    "sd --frames 3": "--frames is for clips, and a StableDiffusionPipeline makes images",
    "video --frames 0": "--frames is 0; it must be 1 or more",
    "video --frames 3 --mesh.frames 2": "mesh.frames=2 does not divide the 3 frames",
    "video --motion sd": "--motion is not for a TextToVideoSDPipeline; leave it out",
    "edit --motion sd": "--motion is not for a StableDiffusionInstructPix2PixPipeline",
    "sd --motion none": "does not exist",
    "sd --steps 0": "sampling steps 0: give between 1 and 1000",
    "svd --steps 0": "steps",
    "sd --steps many": "many",
    "sd --dtype int8": "int8",
    "sd --sampler euler": "euler",
    "sd --weights x": "unknown option --weights",
    "none": "model_index.json does not exist",
    "lacking": "lacking/text_encoder does not exist",
    "odd": "takes 8 channels, which a StableDiffusionPipeline with 4 latent channels does not give",
    "swapped": "is not the U-Net of a StableVideoDiffusionPipeline",
    "broken": "cannot be read",
}


@pytest.fixture(scope="module")
def spoilt(folders):
    """Folders that no publisher would write, beside the others."""
    shutil.copytree(folders / "sd", folders / "lacking")
    shutil.rmtree(folders / "lacking" / "text_encoder")
    shutil.copytree(folders / "sd", folders / "odd")
    shutil.copy(folders / "edit" / "unet" / "config.json", folders / "odd" / "unet")
    shutil.copytree(folders / "svd", folders / "swapped")
    shutil.copy(folders / "edit" / "unet" / "config.json", folders / "swapped" / "unet")
    shutil.copytree(folders / "sd", folders / "broken")
    (folders / "broken" / "vae" / "config.json").write_text("{")
    return folders


@pytest.mark.parametrize("line", BAD)
def test_what_cannot_be_planned_is_one_line(line, spoilt, monkeypatch):
    monkeypatch.chdir(spoilt)
    folder, *words = line.split()
    with pytest.raises(UserError) as caught:
        sample_program(folder, words, jax.devices())
    assert BAD[line] in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("words", [["--steps", "2"], ["--sampler", "ddim"]])
def test_a_forward_pass_has_no_steps(words, folders):
    with pytest.raises(UserError, match=f"{words[0]} is for --program sample"):
        forward_program(str(folders / "sd"), words, jax.devices())


BAD_COMMANDS = {
    "{}/sd --program train": "--program train is not for a published pipeline; choose sample or forward",
    "vdm/smoke --program forward": "--program forward is not for a configuration; choose train or sample",
    "{}/sd/unet": "unet holds no model_index.json; give the folder of a published pipeline",
    "{}/none": "no config",
    "{}/sd --program decode": "invalid choice: 'decode'",
    "{}/sd --mesh.fsdp 3": "2 devices are not a multiple of 3",
}


@pytest.mark.parametrize("line", BAD_COMMANDS)
def test_bad_commands_end_with_one_line(line, folders, capsys):
    assert cli.main(["plan", *line.format(folders).split(), "--topology", "cpu:2"]) == 2
    out, err = capsys.readouterr()
    last = err.strip().splitlines()[-1]
    assert last.startswith("jaxvid: error: ")
    assert BAD_COMMANDS[line] in last
    assert not out
