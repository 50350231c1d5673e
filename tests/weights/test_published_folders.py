"""Folders as they were published over the years: older names, names twice, tensors beside, variants in shards."""

import json

import numpy as np
import pytest
from fabricate import write_folder
from safetensors.numpy import load_file, save_file
from test_public_networks import TRUTH

from jaxvid.core.errors import UserError
from jaxvid.core.paths import flatten
from jaxvid.weights.loading import Loading
from jaxvid.weights.registry import load_model

OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def rewritten(folder, change):
    """Its tensors by the names that `change` gives of a name (a list, empty to leave it out), in one file."""
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    save_file({new: tensors[name] for name in tensors for new in change(name)}, file)


def same(found, wanted):
    """Bit for bit."""
    wanted = flatten(wanted)
    for path, leaf in flatten(found).items():
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(wanted[path]))


def folder_of(family, path, file="model.safetensors"):
    """The family's folder."""
    return write_folder(path, TRUTH[family]["config"], TRUTH[family]["shapes"], file=file)


@pytest.mark.parametrize("family", ["autoencoder", "temporal decoder"])
def test_attention_of_the_first_autoencoders(family, tmp_path):
    """Before diffusers 0.15, and in Stable Diffusion 1.x's folder to this day."""
    folder = folder_of(family, tmp_path)
    wanted, changed = load_model(folder), []

    def old(name):
        for new, before in OLD.items():
            if f".attentions.0.{new}." in name:
                changed.append(name)
                return [name.replace(f".{new}.", f".{before}.")]
        return [name]

    rewritten(folder, old)
    assert len(changed) == 16
    same(load_model(folder), wanted)


@pytest.mark.parametrize("kept", [("shared",), ("encoder.embed_tokens",), ("shared", "encoder.embed_tokens")])  # fmt: skip
def test_t5s_table_of_words_under_either_name(kept, tmp_path):
    """`safetensors.torch.save_model` keeps one of tied names, the encoder's; transformers keeps the shared one."""
    folder = folder_of("t5", tmp_path)
    wanted = load_model(folder)
    rewritten(
        folder,
        lambda name: [f"{each}.weight" for each in kept] if name == "shared.weight" else [name],
    )
    same(load_model(folder), wanted)


def test_t5_without_its_table_is_refused(tmp_path):
    folder = folder_of("t5", tmp_path)
    rewritten(folder, lambda name: [] if name == "shared.weight" else [name])
    with pytest.raises(UserError, match=r"no tensor shared\.weight"):
        load_model(folder)


def test_t5s_encoder_is_read_of_the_whole_model(tmp_path):
    folder = folder_of("t5", tmp_path)
    wanted = load_model(folder)
    config = {**TRUTH["t5"]["config"], "architectures": ["T5ForConditionalGeneration"]}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    layer = {
        name.replace("encoder.", "decoder.", 1): tensor
        for name, tensor in tensors.items()
        if name.startswith("encoder.")
    }
    table = {"decoder.embed_tokens.weight": tensors["shared.weight"].copy()}
    save_file(tensors | layer | table, folder / "model.safetensors")
    same(load_model(folder), wanted)


@pytest.mark.parametrize(
    ("family", "inner"), [("clip text, projected", "text_model"), ("clip image", "vision_model")]
)
def test_clips_names_with_and_without_the_models_and_the_numbers_of_positions(
    family, inner, tmp_path
):
    """Files until transformers 4.30 hold the positions' numbers; since 5 names may lack the inner model's."""
    folder = folder_of(family, tmp_path)
    wanted = load_model(folder)
    tensors = {
        name if name.startswith((inner, "text_proj", "visual_proj")) else f"{inner}.{name}": tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    numbers = {f"{inner}.embeddings.position_ids": np.arange(20)[None]}
    save_file(tensors | numbers, folder / "model.safetensors")
    same(load_model(folder), wanted)
    rewritten(folder, lambda name: [name.removeprefix(f"{inner}.")])
    same(load_model(folder), wanted)


INDICES = ["model.safetensors.index.fp16.json", "model.fp16.safetensors.index.json"]


@pytest.mark.parametrize("name", INDICES)
def test_a_variant_in_shards_beside_the_whole_one(name, tmp_path):
    """diffusers and transformers put the variant before the last dot: it stands after "index", and before the shard's number."""
    folder = folder_of("t5", tmp_path)
    whole = load_model(folder)
    tensors, index = load_file(folder / "model.safetensors"), {}
    for number, names in enumerate(np.array_split(sorted(tensors), 2), 1):
        file = f"model.fp16-0000{number}-of-00002.safetensors"
        save_file({each: tensors[each].astype(np.float16) for each in names}, folder / file)
        index |= dict.fromkeys(map(str, names), file)
    (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": index}))
    same(load_model(folder), whole)
    half = flatten(load_model(folder, Loading(variant="fp16")))
    for path, leaf in flatten(whole).items():
        rounded = np.asarray(leaf).astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(np.asarray(half[path]), rounded)
    with pytest.raises(
        UserError, match=r"variant bf16; it has files of variant fp16 and without a variant"
    ):
        load_model(folder, Loading(variant="bf16"))


def test_two_indices_of_one_variant_are_refused(tmp_path):
    folder = folder_of("t5", tmp_path, file="model.fp16.safetensors")
    for name in INDICES:
        (folder / name).write_text("{}")
    with pytest.raises(UserError, match="2 indices of one variant"):
        load_model(folder, Loading(variant="fp16"))


def test_what_is_no_network_is_refused_by_its_class(tmp_path):
    """Such as the safety checker of Stable Diffusion's folder."""
    folder = folder_of("clip image", tmp_path)
    config = {**TRUTH["clip image"]["config"], "architectures": ["StableDiffusionSafetyChecker"]}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="StableDiffusionSafetyChecker cannot be read"):
        load_model(folder)
