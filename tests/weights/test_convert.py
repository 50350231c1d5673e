"""`jaxvid import` and `jaxvid export`: the same bits there and back, licences said, and nothing half-written."""

import json
import stat

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fabricate import write_folder, write_pipeline
from families import FAMILIES
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from test_public_networks import TRUTH

from jaxvid import cli
from jaxvid.core.errors import UserError
from jaxvid.core.paths import flatten
from jaxvid.models.conditional_unet import ConditionalUNet, Level
from jaxvid.models.conditional_unet import ConditionalUNetConfig as UNetConfig
from jaxvid.weights.convert import convert_folder, save_model
from jaxvid.weights.inflate import inflate
from jaxvid.weights.origin import Origin
from jaxvid.weights.registry import load_model

SINGLE = [name for name in FAMILIES if FAMILIES[name].adapter is None]


def published(folder, name):
    """A fabricated folder of that family."""
    return write_folder(folder, TRUTH[name]["config"], TRUTH[name]["shapes"])


def bits(folder):
    """All tensors of a folder by name, as bytes and type."""
    found = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "np") as stored:
            for name in stored.keys():  # noqa: SIM118
                tensor = stored.get_tensor(name)
                found[name] = str(tensor.dtype), tensor.shape, tensor.tobytes()
    return found


def unnamed(folder):
    """Likewise without names, of which some published files leave the first word out."""
    return sorted(bits(folder).values())


def same(first, second):
    """Whether two modules have the same leaves, bit for bit."""
    first, second = flatten(first), flatten(second)
    assert first.keys() == second.keys()
    for path, leaf in first.items():
        assert leaf.dtype == second[path].dtype
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(second[path]))


@pytest.mark.parametrize("name", SINGLE)
def test_there_and_back_is_bit_equal(name, tmp_path):
    """Import loads as what was imported; export has its tensors; the import of the export is the import."""
    source = published(tmp_path / "published", name)
    convert_folder(source, tmp_path / "ours", "native")
    convert_folder(tmp_path / "ours", tmp_path / "exported", "published")
    convert_folder(tmp_path / "exported", tmp_path / "again", "native")
    module = load_model(source)
    same(load_model(tmp_path / "ours"), module)
    exported = load_model(tmp_path / "exported")
    assert exported.config == module.config
    same(exported, module)
    # Some published files leave a name's first word out, or have a tensor under two names.
    given, written = bits(source), bits(tmp_path / "exported")
    for key, value in written.items():
        assert given[key if key in given else key.partition(".")[2]] == value
    assert bits(tmp_path / "ours") == bits(tmp_path / "again")
    for file in ("config.json", "weights.safetensors"):
        first, second = (tmp_path / each / file for each in ("ours", "again"))
        assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_numbers_keep_their_type_unless_another_is_asked_for(dtype, tmp_path):
    source = published(tmp_path / "published", "clip text")
    file = next(source.glob("*.safetensors"))
    save_file({name: each.astype(dtype) for name, each in load_file(file).items()}, file)
    convert_folder(source, tmp_path / "kept", "native")
    convert_folder(source, tmp_path / "wide", "native", dtype=jnp.float32)
    convert_folder(tmp_path / "wide", tmp_path / "back", "published", dtype=dtype)
    assert {kind for kind, *_ in bits(tmp_path / "kept").values()} == {np.dtype(dtype).name}
    assert {kind for kind, *_ in bits(tmp_path / "wide").values()} == {"float32"}
    assert unnamed(tmp_path / "back") == unnamed(source)


def test_numbers_beyond_float16_are_refused(tmp_path, capsys):
    """With the name of the tensor; nothing is written."""
    source = published(tmp_path / "published", "t5")
    file = next(source.glob("*.safetensors"))
    tensors = load_file(file)
    name = "encoder.block.1.layer.1.DenseReluDense.wo.weight"
    tensors[name][0, 0] = 1e5
    save_file(tensors, file)
    line = f"import {source} {tmp_path / 'out'} --dtype float16"
    assert cli.main(line.split()) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{name} holds numbers beyond float16; take bfloat16" in error
    assert sorted(each.name for each in tmp_path.iterdir()) == ["published"]


@pytest.mark.parametrize("target", ["native", "published"])
def test_large_networks_are_written_in_shards(target, tmp_path):
    """No shard is larger than asked; the index has every tensor; it loads as the whole."""
    source = published(tmp_path / "published", "stable diffusion 1")
    convert_folder(source, tmp_path / "whole", target)
    convert_folder(source, tmp_path / "parts", target, limit=100_000)
    shards = sorted((tmp_path / "parts").glob("*.safetensors"))
    assert len(shards) > 3
    assert f"-00001-of-{len(shards):05d}.safetensors" in shards[0].name
    assert all(shard.stat().st_size < 100_000 + 20_000 for shard in shards)  # and their headers
    assert bits(tmp_path / "parts") == bits(tmp_path / "whole")
    same(load_model(tmp_path / "parts"), load_model(source))
    (index,) = (tmp_path / "parts").glob("*.index.json")
    index = json.loads(index.read_text())
    assert set(index["weight_map"]) == set(bits(tmp_path / "whole"))
    assert index["metadata"]["total_size"] == sum(
        len(data) for *_, data in bits(tmp_path / "whole").values()
    )


def test_files_are_for_everybody_to_read(tmp_path):
    source = published(tmp_path / "published", "karlo prior")
    convert_folder(source, tmp_path / "ours", "native")
    for file in [tmp_path / "ours", *(tmp_path / "ours").iterdir()]:
        assert file.stat().st_mode & stat.S_IROTH, file


def pipeline(folder):
    """A Stable Diffusion with a README, a checker of safety, and a pickle that nobody reads."""
    write_pipeline(folder, "stable diffusion")
    (folder / "README.md").write_text("---\nlicense: creativeml-openrail-m\ntags:\n- x\n---\n# A\n")
    index = json.loads((folder / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker" / "pytorch_model.bin").write_bytes(b"\x80")
    return folder


def drawn(folder, out):
    """The picture of a short run."""
    line = f"sample {folder} --prompt red --size 8x8 --steps 2 --out {out}"
    assert cli.main(line.split()) == 0
    return np.asarray(Image.open(out))


def test_a_pipeline_there_and_back(tmp_path, capsys):
    """It is sampled in both formats; the checker is left out with a word; what was made is listed."""
    source = pipeline(tmp_path / "sd")
    assert cli.main(["import", str(source), str(tmp_path / "ours")]) == 0
    said = capsys.readouterr()
    assert "left out: safety_checker (StableDiffusionSafetyChecker)" in said.err
    assert "note: sd: licence creativeml-openrail-m (as README.md says)" in said.err
    assert f"{tmp_path}/ours/unet: " in said.out
    assert cli.main(["export", str(tmp_path / "ours"), str(tmp_path / "back")]) == 0
    for each in ("unet", "vae", "text_encoder"):
        assert unnamed(tmp_path / "back" / each) == unnamed(source / each)
    names = sorted(
        str(each.relative_to(tmp_path / "back")) for each in (tmp_path / "back").rglob("*")
    )
    assert "safety_checker" not in names
    assert {"tokenizer/merges.txt", "scheduler/scheduler_config.json", "README.md"} <= set(names)
    index = json.loads((tmp_path / "back" / "model_index.json").read_text())
    assert index["safety_checker"] == [None, None]
    assert index["_class_name"] == "StableDiffusionPipeline"
    config = json.loads((tmp_path / "back" / "unet" / "config.json").read_text())
    assert (
        config["sample_size"]
        == json.loads((source / "unet/config.json").read_text())["sample_size"]
    )
    pictures = [drawn(tmp_path / each, tmp_path / f"{each}.png") for each in ("sd", "ours", "back")]
    np.testing.assert_array_equal(pictures[0], pictures[1])
    np.testing.assert_array_equal(pictures[0], pictures[2])
    assert pictures[0].std() > 5


def test_origin_is_recorded_once(tmp_path):
    """Digests of the published files, the licence and the address; an export keeps them."""
    source = pipeline(tmp_path / "sd")
    url = "https://example.org/sd"
    assert cli.main(f"import {source} {tmp_path}/ours --license mit --url {url}".split()) == 0
    assert cli.main(f"export {tmp_path}/ours {tmp_path}/back".split()) == 0
    first, second = (
        json.loads((tmp_path / each / "origin.json").read_text()) for each in ("ours", "back")
    )
    assert first == second
    assert first["source"] == "sd"
    assert (first["license"], first["stated"], first["url"]) == ("mit", "the user", url)
    assert first["non_commercial"] is False
    assert sorted(first["files"]) == [
        "text_encoder/model.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    assert all(len(digest) == 64 for digest in first["files"].values())


@pytest.mark.parametrize(
    ("name", "limited"),
    [
        ("cc-by-nc-4.0", True),
        ("CC-BY-NC-SA-4.0", True),
        ("stable-video-diffusion-nc-community", True),
        ("deepfloyd-if-license", True),
        ("some-non-commercial-license", True),
        ("creativeml-openrail-m", False),
        ("openrail++", False),
        ("apache-2.0", False),
        ("ncsa", False),
        (None, False),
    ],
)
def test_licences_that_forbid_commercial_use(name, limited):
    assert Origin("x", license=name).non_commercial is limited


@pytest.mark.parametrize(
    ("front", "words"),
    [
        ("license: cc-by-nc-4.0", "licence cc-by-nc-4.0, for non-commercial use only"),
        ("license: other\nlicense_name: deepfloyd-if-license", "deepfloyd-if-license, for non-c"),
        ("license: 'mit'", "licence mit (as README.md says)"),
        ("tags: [a]", "no licence is stated; look it up"),
    ],
)
def test_the_licence_is_said(front, words, tmp_path, capsys):
    source = published(tmp_path / "net", "karlo prior")
    (source / "README.md").write_text(f"---\n{front}\n---\ntext\nlicense: wrong\n")
    assert cli.main(f"import {source} {tmp_path}/ours".split()) == 0
    assert words in capsys.readouterr().err


def test_sampling_announces_weights_that_are_not_for_commerce(tmp_path, capsys):
    source = pipeline(tmp_path / "sd")
    drawn(source, tmp_path / "a.png")
    assert "note:" not in capsys.readouterr().err
    (source / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    drawn(source, tmp_path / "a.png")
    assert "licence cc-by-nc-4.0, for non-commercial use only" in capsys.readouterr().err


CONFIG = UNetConfig((Level(8, 1), Level(8, 1, "transformer", 4)), context=6)


@pytest.fixture(scope="module")
def image_unet():
    """A small one."""
    return jax.jit(lambda key: ConditionalUNet(CONFIG, key))(jax.random.key(0))


@pytest.mark.parametrize("temporal", ["pseudo3d", "mixed", "modelscope"])
def test_an_inflated_network_is_kept_in_our_format(temporal, image_unet, tmp_path):
    module = inflate(image_unet, temporal, jax.random.key(1))
    save_model(module, tmp_path / "net", limit=200_000)
    again = load_model(tmp_path / "net")
    assert again.config == module.config
    same(again, module)


def test_what_no_published_class_expresses_is_refused(image_unet, tmp_path, capsys):
    save_model(inflate(image_unet, "pseudo3d", jax.random.key(1)), tmp_path / "net")
    assert cli.main(f"export {tmp_path}/net {tmp_path}/out".split()) == 2
    error = capsys.readouterr().err
    assert "pseudo3d" in error
    assert "has no published class" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("import @/none @/out", "@/none/config.json does not exist"),
        ("import @/net @/full", "@/full exists already; name a new folder"),
        ("import @/net @/full/a", "@/full/a exists already"),
        ("import @/net @/full/a/b", "@/full/a/b: cannot be written"),
        ("import @/pickled @/out", "is a pickle, which could run code and is not read; convert it"),
        ("import @/net @/out --variant fp16", "no files of variant fp16"),
        ("import @/net @/out --dtype int8", "invalid choice: 'int8'"),
        ("import @/unknown @/out", "FluxTransformer2DModel cannot be read"),
        ("import @/part @/out", "@/part/unet holds no network that can be read"),
        ("import @/bad @/out", "a part is named by letters"),
        ("export @/odd @/out", "config: unknown name width"),
        ("export @/origin @/out", "origin.json cannot be read"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(line, words, tmp_path, capsys):
    published(tmp_path / "net", "karlo prior")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("")
    (tmp_path / "pickled").mkdir()
    config = (tmp_path / "net" / "config.json").read_text()
    (tmp_path / "pickled" / "config.json").write_text(config)
    (tmp_path / "pickled" / "diffusion_pytorch_model.bin").write_bytes(b"\x80")
    files = {
        "unknown/config.json": {"_class_name": "FluxTransformer2DModel"},
        "part/model_index.json": {
            "_class_name": "A",
            "unet": ["diffusers", "UNet2DConditionModel"],
        },
        "bad/model_index.json": {"_class_name": "A", "../net": ["diffusers", "X"]},
        "odd/config.json": {"_class_name": "Prior", "config": {"width": 3}},
    }
    convert_folder(tmp_path / "net", tmp_path / "origin", "native")
    (tmp_path / "origin" / "origin.json").write_text("[")
    for file, value in files.items():
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).write_text(json.dumps(value))
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(line.replace("@", str(tmp_path)).split()) == 2
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert words.replace("@", str(tmp_path)) in error
    assert sorted(tmp_path.rglob("*")) == before


def test_an_interrupted_import_leaves_nothing(tmp_path):
    source = published(tmp_path / "net", "modelscope")

    def stop(done, total):
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_folder(source, tmp_path / "out", "native", progress=stop)
    assert [each.name for each in tmp_path.iterdir()] == ["net"]


def test_a_disk_that_is_too_small_is_said_before(tmp_path, monkeypatch):
    source = published(tmp_path / "net", "modelscope")
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"will take .* GB, and 0.0 GB are free"):
        convert_folder(source, tmp_path / "out", "native")


def test_help_has_examples(capsys):
    for command in ("import", "export"):
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
        said = capsys.readouterr().out
        assert f"jaxvid {command} " in said
        assert "--dtype" in said
