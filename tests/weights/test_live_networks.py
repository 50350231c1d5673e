"""Every public network against PyTorch itself: folders that it writes are read here, folders that we write are read there."""

import importlib
import shutil

import numpy as np
import pytest
from families import FAMILIES
from safetensors.numpy import load_file, save_file
from test_public_networks import difference, outputs

from jaxvid.weights.loading import published
from jaxvid.weights.registry import rules_of

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("name", FAMILIES)
def test_a_folder_is_read_and_written_back(name, tmp_path):
    """Outputs agree; the tensors that we write are the ones that were read, bit for bit, and PyTorch loads them."""
    pytest.importorskip("torch")
    from torch_truth import ask, build
    from torch_truth import published as first_name

    family = FAMILIES[name]
    model = build(family)
    theirs = tmp_path / "theirs"
    if family.adapter is None:
        model.save_pretrained(theirs)
    else:
        model.save_motion_modules(theirs / "adapter")
        whole = importlib.import_module(family.library).UNet2DConditionModel(**family.config)
        state = model.state_dict()
        whole.load_state_dict({key: state[key] for key in whole.state_dict()})
        whole.save_pretrained(theirs)
    module = family.load(theirs)
    expected = ask(model, family)
    for mine, each in zip(outputs(family, module), expected, strict=True):
        assert difference(mine.ravel(), each.ravel()) < 3e-5
    tensors = published(module, rules_of(module))
    state = {key: value.numpy() for key, value in model.state_dict().items()}
    for key, tensor in tensors.items():
        old = key if key in state else key.partition(".")[2]
        np.testing.assert_array_equal(tensor, state[old])
    own = {first_name(key) for key in state if not key.endswith((".pos_embed.pe", "position_ids"))}
    assert len(tensors) == len(own)
    if family.adapter is not None:
        return
    ours = tmp_path / "ours"
    shutil.copytree(theirs, ours)
    (file,) = ours.glob("*.safetensors")
    names = load_file(file).keys()
    own = {
        key if key in names else key.partition(".")[2]: tensor for key, tensor in tensors.items()
    }
    save_file(own, file, metadata={"format": "pt"})
    again = type(model).from_pretrained(ours).eval()
    for each, before in zip(ask(again, family), expected, strict=True):
        np.testing.assert_array_equal(each, before)
