"""A whole CLIPModel: each half is read from the one folder, and nothing of the other."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxvid.core.errors import UserError
from jaxvid.core.paths import flatten
from jaxvid.models.clip import (
    ClipImage,
    ClipImageConfig,
    ClipText,
    ClipTextConfig,
    TransformerConfig,
    normalized,
)
from jaxvid.weights.convert import save_model
from jaxvid.weights.registry import load_as, load_model

TEXT = ClipTextConfig(TransformerConfig(8, 1, 2, 16), vocabulary=54, positions=16, projection=6)
IMAGE = ClipImageConfig(TransformerConfig(12, 2, 3, 20), size=8, patch=4, projection=6)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder of two networks, and these."""
    root = tmp_path_factory.mktemp("clip")
    text, image = ClipText(TEXT, jax.random.key(0)), ClipImage(IMAGE, jax.random.key(1))
    tensors, halves = {"logit_scale": np.float32(2.6)}, {}
    for name, half in (("text", text), ("vision", image)):
        save_model(half, root / name, "published")
        halves[f"{name}_config"] = json.loads((root / name / "config.json").read_text())
        tensors |= load_file(root / name / "model.safetensors")
    halves["text_config"] |= {"num_beams": 1, "top_p": 1.0, "pruned_heads": {}}  # as of old
    folder = root / "whole"
    folder.mkdir()
    record = {"architectures": ["CLIPModel"], "projection_dim": 6, **halves}
    (folder / "config.json").write_text(json.dumps(record))
    save_file(
        {name: np.asarray(value) for name, value in tensors.items()}, folder / "model.safetensors"
    )
    return folder, text, image


@pytest.mark.parametrize(("index", "kind"), [(1, ClipText), (2, ClipImage)])
def test_a_half_is_what_was_saved(whole, index, kind):
    found, expected = flatten(load_as(kind, whole[0])), flatten(whole[index])
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[path], expected[path]) for path in found)


def test_a_whole_is_no_network_of_ours(whole):
    with pytest.raises(UserError, match=r"two networks; ask for one with load_as\(ClipText"):
        load_model(whole[0])


def test_a_half_that_does_something_else_is_refused(whole, tmp_path):
    record = json.loads((whole[0] / "config.json").read_text())
    record["text_config"]["num_beams"] = 3
    (tmp_path / "config.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="text_config: num_beams is 3"):
        load_as(ClipText, tmp_path)
    del record["vision_config"]
    (tmp_path / "config.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="vision_config is None"):
        load_as(ClipImage, tmp_path)


@pytest.mark.parity
def test_both_halves_are_transformers(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    text = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2,
            "num_attention_heads": 2, "vocab_size": 54, "max_position_embeddings": 16,
            "bos_token_id": 0, "eos_token_id": 53, "pad_token_id": 53}  # fmt: skip
    image = {"hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2,
             "num_attention_heads": 3, "image_size": 8, "patch_size": 4}  # fmt: skip
    config = transformers.CLIPConfig(text_config=text, vision_config=image, projection_dim=6)
    model = transformers.CLIPModel(config).eval()
    model.save_pretrained(tmp_path)
    tokens = np.array([[0, 5, 9, 53, 53, 53], [0, 7, 53, 53, 53, 53]], np.int32)
    pixels = np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
    ours = (
        load_as(ClipText, tmp_path)(jnp.asarray(tokens)).vector,
        load_as(ClipImage, tmp_path)(normalized(jnp.asarray(pixels))).vector,
    )
    with torch.no_grad():
        given = torch.tensor(np.asarray(normalized(jnp.asarray(pixels)))).permute(0, 3, 1, 2)
        found = model(input_ids=torch.tensor(tokens).long(), pixel_values=given)
    for mine, theirs in zip(ours, (found.text_embeds, found.image_embeds), strict=True):
        length = jnp.linalg.norm(mine, axis=-1, keepdims=True)
        np.testing.assert_allclose(mine / length, theirs.numpy(), atol=1e-5)
