"""Folders that are not what they should be: one line that names the file and the tensor, before anything is built."""

import json
import struct

import numpy as np
import pytest
from fabricate import weight, write_folder
from safetensors.numpy import load_file, save_file
from test_public_networks import TRUTH

from jaxvid.core.errors import UserError
from jaxvid.core.paths import flatten
from jaxvid.weights.autoencoders import autoencoder_config
from jaxvid.weights.loading import Loading
from jaxvid.weights.registry import load_model
from jaxvid.weights.unets import unet_config

SMALL = TRUTH["karlo conditions"]
FILE = "diffusion_pytorch_model.safetensors"
NAME = "embedding_proj.weight"


@pytest.fixture
def folder(tmp_path):
    """A good one, with few tensors."""
    return write_folder(tmp_path / "model", SMALL["config"], SMALL["shapes"])


def refused(folder, how=None):
    """The line with which it is refused."""
    with pytest.raises(UserError) as caught:
        load_model(folder, *([how] if how else []))
    line = str(caught.value)
    assert "\n" not in line
    return line


def rewritten(folder, change):
    """Its tensors, changed."""
    tensors = load_file(folder / FILE)
    change(tensors)
    save_file(tensors, folder / FILE)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(NAME), [f"no tensor {NAME}", FILE]),
        (lambda t: t.update(more=np.zeros(3, np.float32)), ["more is not of", FILE]),
        (lambda t: t.update({"../../evil": np.zeros(3, np.float32)}), ["../../evil is not of"]),
        (
            lambda t: t.update({NAME: t[NAME].T.copy()}),
            [f"{NAME} has shape (12, 20)", "wants (20, 12)"],
        ),
        (lambda t: t.update({NAME: t[NAME].astype(np.int32)}), [NAME, "type I32"]),
        (lambda t: t[NAME].__setitem__((0, 0), np.nan), [NAME, "not finite"]),
        (lambda t: t[NAME].__setitem__((0, 0), np.inf), [NAME, "not finite"]),
        (lambda t: t.update({NAME: t[NAME].astype(np.float64) * 1e300}), [NAME, "not finite"]),
    ],
)
def test_tensors_that_do_not_fit_are_named(folder, change, words):
    rewritten(folder, change)
    line = refused(folder)
    assert all(word in line for word in words), line


def test_nothing_large_is_read_before_all_names_and_shapes_are_checked(folder, monkeypatch):
    """A wrong shape of the last tensor is found before the first is read."""
    from jaxvid.weights import tensors

    monkeypatch.setattr(tensors.Reader, "__call__", lambda *_: pytest.fail("read"))
    rewritten(
        folder,
        lambda t: t.update({"text_encoder_hidden_states_norm.bias": np.zeros(1, np.float32)}),
    )
    assert "text_encoder_hidden_states_norm.bias" in refused(folder)


@pytest.mark.parametrize("size", [0, 7, 8, 100, -1])
def test_a_truncated_file_is_refused(folder, size):
    content = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(content[:size])
    assert f"{FILE} cannot be read" in refused(folder)


def with_header(folder, header, body=b""):
    """Writes a file of that header, a string, and bytes."""
    text = header.encode()
    (folder / FILE).write_bytes(struct.pack("<Q", len(text)) + text + body)


@pytest.mark.parametrize(
    ("header", "body"),
    [
        ("{", b""),
        ("[]", b""),
        ('{"a": 1}', b""),
        ('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 8]}}', bytes(8)),
        ('{"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}', bytes(8)),
        ('{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', bytes(4)),
        ('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', bytes(400)),
        ('{"a": {"dtype": "F32", "shape": [4611686018427387904, 4], "data_offsets": [0, 0]}}', b""),
        ('{"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}', bytes(4)),
        (
            '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},'
            ' "b": {"dtype": "F32", "shape": [1], "data_offsets": [2, 6]}}',
            bytes(6),
        ),
        (
            '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},'
            ' "a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',
            bytes(8),
        ),
    ],
)
def test_hostile_headers_are_refused(folder, header, body):
    """No JSON, no object, offsets that lie, overlap or overflow, a name twice."""
    with_header(folder, header, body)
    assert FILE in refused(folder)


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 200 << 20])
def test_a_header_of_impossible_length_is_refused(folder, length):
    (folder / FILE).write_bytes(struct.pack("<Q", length) + b"{}")
    assert f"{FILE} cannot be read" in refused(folder)


def test_two_thousand_damaged_headers_give_the_right_tree_or_a_line(folder):
    """Bytes of the header are changed, inserted, taken out; what loads all the same is what was stored."""
    good = (folder / FILE).read_bytes()
    (length,) = struct.unpack("<Q", good[:8])
    header, body = good[8 : 8 + length], good[8 + length :]
    wanted = {path: np.asarray(leaf) for path, leaf in flatten(load_model(folder)).items()}
    rng = np.random.default_rng(0)
    accepted, lines = 0, []
    for _ in range(2000):
        text = bytearray(header)
        for _ in range(int(rng.integers(1, 4))):
            place = int(rng.integers(len(text)))
            kind = int(rng.integers(4))
            if kind == 0:
                text[place] = int(rng.integers(256))
            elif kind == 1:
                text[place] = ord(rng.choice(list('0123456789[]{},:"')))
            elif kind == 2:
                del text[place]
            else:
                text.insert(place, int(rng.integers(32, 127)))
        size = len(text) if rng.random() < 0.9 else int(rng.integers(2**20))
        (folder / FILE).write_bytes(struct.pack("<Q", size) + bytes(text) + body)
        try:
            found = flatten(load_model(folder))
        except UserError as error:
            lines.append(str(error))
            continue
        accepted += 1
        for path, leaf in wanted.items():
            np.testing.assert_array_equal(np.asarray(found[path]), leaf)
    assert len(lines) > 1000
    assert not any("\n" in line for line in lines)
    assert accepted + len(lines) == 2000


def test_pickles_are_refused_with_the_remedy(folder):
    (folder / FILE).rename(folder / "diffusion_pytorch_model.bin")
    assert "safetensors.torch.save_file" in refused(folder)


def test_a_folder_that_is_not_there(tmp_path):
    assert "config.json does not exist" in refused(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "cannot be read"),
        ("[1]", "no JSON object"),
        ("{}", "names no class"),
        ('{"_class_name": "UNet1DModel"}', "UNet1DModel cannot be read"),
        ('{"_class_name": ["x"]}', "names no class"),
        ("[" * 100_000, "cannot be read"),
    ],
)
def test_configurations_that_are_none(folder, text, words):
    (folder / "config.json").write_text(text)
    line = refused(folder)
    assert words in line
    assert "config.json" in line


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"down_block_types": ["CrossAttnDownBlock2D", "KDownBlock2D"]}, "down_block_types"),
        ({"dual_cross_attention": True}, "dual_cross_attention is True"),
        ({"class_embed_type": "simple_projection"}, "class_embed_type is 'simple_projection'"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type is 'fourier'"),
        ({"act_fn": "mish"}, "act_fn is 'mish'"),
        ({"resnet_out_scale_factor": 2.0}, "resnet_out_scale_factor is 2.0"),
        ({"mid_block_scale_factor": 2.0}, "mid_block_scale_factor is 2.0"),
        ({"block_out_channels": [16]}, "down_block_types"),
        ({"block_out_channels": [16, -1]}, "block_out_channels"),
        ({"block_out_channels": 1 << 40}, "block_out_channels"),
        ({"in_channels": "4"}, "in_channels is '4'"),
        ({"attention_head_dim": 5}, "attention_head_dim"),
        ({"attention_type": "gated"}, "attention_type is 'gated'"),
        ({"something_new": 1}, "something_new is 1"),
        # What PyTorch would refuse too, and what describing would take for ever.
        ({"norm_num_groups": 3}, "norm_num_groups is 3; it must divide the widths [16, 32]"),
        ({"block_out_channels": "abc"}, "block_out_channels is 'abc'; a list of 1 to 16 widths"),
        ({"block_out_channels": [[8], 16]}, "block_out_channels is [[8], 16]"),
        ({"down_block_types": [["DownBlock2D"], "DownBlock2D"]}, "need a block type each way"),
        ({"layers_per_block": 10**7}, "layers_per_block is 10000000; a positive integer or 2"),
        ({"layers_per_block": 1000, "transformer_layers_per_block": 1000}, "1024 layers in all"),
        ({"norm_eps": "small"}, "norm_eps is 'small'; a finite number above 0 is wanted"),
        ({"norm_eps": -1.0}, "norm_eps is -1.0; a finite number above 0 is wanted"),
        ({"freq_shift": float("nan")}, "freq_shift is nan; a finite number is wanted"),
        ({"use_linear_projection": "no"}, "use_linear_projection is 'no'; true or false is wanted"),
        ({"time_embedding_dim": "x"}, "time_embedding_dim is 'x'; a positive integer"),
        ({"num_class_embeds": -3}, "num_class_embeds is -3; a positive integer"),
    ],
)
def test_a_u_net_that_cannot_be_expressed_is_refused(tmp_path, change, words):
    """Rather than read as another one."""
    config = {**TRUTH["stable diffusion 1"]["config"], **change}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError) as caught:
        unet_config(tmp_path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scaling_factor": 0.0}, "scaling_factor is 0.0; a finite number above 0 is wanted"),
        ({"scaling_factor": float("nan")}, "scaling_factor is nan"),
        ({"shift_factor": "a"}, "shift_factor is 'a'; a finite number is wanted"),
        ({"block_out_channels": []}, "block_out_channels is []; a list of 1 to 16 widths"),
        ({"norm_num_groups": 5}, "norm_num_groups is 5; it must divide the widths"),
        ({"down_block_types": ["DownEncoderBlock2D"]}, "DownEncoderBlock2D for each of"),
        ({"up_block_types": None, "down_block_types": 3}, "down_block_types is 3"),
        ({"layers_per_block": 10**7}, "layers_per_block is 10000000"),
    ],
)
def test_an_autoencoder_that_cannot_be_expressed_is_refused(tmp_path, change, words):
    config = {**TRUTH["autoencoder"]["config"], **change}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError) as caught:
        autoencoder_config(tmp_path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["clip text", "clip image", "karlo prior"])
def test_layers_without_end_are_refused(tmp_path, name):
    config = TRUTH[name]["config"]
    layers = "num_layers" if "num_layers" in config else "num_hidden_layers"
    place = write_folder(tmp_path / "model", {**config, layers: 10**7}, TRUTH[name]["shapes"])
    assert f"{layers} is 10000000; a positive integer is wanted, at most 1024" in refused(place)


def test_heads_divide_the_width(tmp_path):
    config = {**TRUTH["clip text"]["config"], "num_attention_heads": 5}
    place = write_folder(tmp_path / "model", config, TRUTH["clip text"]["shapes"])
    assert "num_attention_heads is 5; it must divide the width 32" in refused(place)


def split(folder, names):
    """Its tensors in two shards, of which the first has `names`; writes the index."""
    tensors = load_file(folder / FILE)
    (folder / FILE).unlink()
    index = {}
    for number, own in ((1, names), (2, [name for name in tensors if name not in names])):
        shard = f"diffusion_pytorch_model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in own}, folder / shard)
        index |= dict.fromkeys(own, shard)
    path = folder / "diffusion_pytorch_model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return path


def test_shards_are_one_model(folder):
    whole = flatten(load_model(folder))
    split(folder, [NAME])
    for path, leaf in flatten(load_model(folder)).items():
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(whole[path]))


def test_shards_that_are_not_there_or_lie_elsewhere(folder, tmp_path):
    index = split(folder, [NAME])
    content = json.loads(index.read_text())
    save_file({"a": np.zeros(1, np.float32)}, tmp_path / "outside.safetensors")
    content["weight_map"][NAME] = "../outside.safetensors"
    index.write_text(json.dumps(content))
    assert "only files beside it are read" in refused(folder)
    content["weight_map"][NAME] = "absent.safetensors"
    index.write_text(json.dumps(content))
    assert "absent.safetensors, which is not there" in refused(folder)
    index.write_text("{}")
    assert "is no index" in refused(folder)
    index.unlink()
    assert "several models" in refused(folder)


def test_a_tensor_in_two_shards_is_refused(folder):
    split(folder, [NAME])
    (second,) = folder.glob("*-00002-of-00002.safetensors")
    tensors = load_file(second)
    save_file({**tensors, NAME: weight(NAME, (20, 12))}, second)
    assert f"{NAME} is in" in refused(folder)


def test_variants_are_chosen_by_name(folder):
    half = {name: tensor.astype(np.float16) for name, tensor in load_file(folder / FILE).items()}
    save_file(half, folder / "diffusion_pytorch_model.fp16.safetensors")
    whole = flatten(load_model(folder))
    small = flatten(load_model(folder, Loading(dtype=np.float16, variant="fp16")))
    for path, leaf in whole.items():
        assert small[path].dtype == np.float16
        np.testing.assert_array_equal(np.asarray(small[path]), np.asarray(leaf).astype(np.float16))
    assert "variant bf16; it has files of variant fp16 and without a variant" in refused(
        folder, Loading(variant="bf16")
    )
