"""Every public network against PyTorch itself: folders that it writes are read here, folders that we write are read there.

Where an output differs, the failure shows the layers about the first that does (`layer_report`).
"""

import importlib

import jax.numpy as jnp
import numpy as np
import pytest
from fabricate import named_once
from families import FAMILIES
from layer_report import compare, named, table
from test_public_networks import difference, outputs
from variants import VARIANTS

from jaxvid.weights.convert import convert_folder
from jaxvid.weights.loading import Loading, published
from jaxvid.weights.registry import rules_of

pytestmark = pytest.mark.parity
BOUND = 1e-5  # relative, float32; the largest seen is 2e-6
# Relative, both computing in bfloat16 with roundings in other places: its numbers have 8 bits, 4e-3 a rounding, and some dozens of
# layers follow each other. And we may be this much further from float32 than PyTorch is.
HALF_BOUND, HALF_RATIO = 5e-2, 1.5


def save(model, family, folder):
    """PyTorch's model as it writes it; AnimateDiff's modules in a folder of their own."""
    if family.adapter is None:
        model.save_pretrained(folder)
        return folder
    model.save_motion_modules(folder / "adapter")
    whole = importlib.import_module(family.library).UNet2DConditionModel(**family.config)
    state = model.state_dict()
    whole.load_state_dict({key: state[key] for key in whole.state_dict()})
    whole.to(model.dtype).save_pretrained(folder)
    return folder


def check(model, family, module, expected):
    """Fails with a table of layers where our outputs are not PyTorch's."""
    found = outputs(family, module)
    assert [each.shape for each in found] == [each.shape for each in expected]
    differences = [difference(*map(np.ravel, pair)) for pair in zip(found, expected, strict=True)]
    if not max(differences) < BOUND:
        report = table(compare(model, family, module), BOUND)
        pytest.fail(f"outputs differ by {differences}\n{report}", pytrace=False)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_folder_is_read_and_written_back(name, tmp_path):
    """Outputs agree; the tensors that we write are the ones that were read, bit for bit, and PyTorch loads them."""
    pytest.importorskip("torch")
    from torch_truth import ask, build

    family = FAMILIES[name]
    model = build(family)
    theirs = save(model, family, tmp_path / "theirs")
    module, expected = family.load(theirs), ask(model, family)
    check(model, family, module, expected)
    tensors = published(module, rules_of(module))
    state = {key: value.numpy() for key, value in model.state_dict().items()}
    for key, tensor in tensors.items():
        old = key if key in state else key.partition(".")[2]
        np.testing.assert_array_equal(tensor, state[old])
    own = {named_once(key) for key in state if not key.endswith((".pos_embed.pe", "position_ids"))}
    assert len(tensors) == len(own)
    if family.adapter is not None:
        return
    convert_folder(theirs, tmp_path / "ours", "native")
    convert_folder(tmp_path / "ours", tmp_path / "exported", "published")
    again = type(model).from_pretrained(tmp_path / "exported").eval()
    for each, before in zip(ask(again, family), expected, strict=True):
        np.testing.assert_array_equal(each, before)


@pytest.mark.parametrize("name", VARIANTS)
def test_other_sizes(name, tmp_path):
    """Batches, sides, frames, lengths of texts, masks."""
    pytest.importorskip("torch")
    from torch_truth import ask, build

    family = VARIANTS[name]
    model = build(family)
    module = family.load(save(model, family, tmp_path))
    check(model, family, module, ask(model, family))


@pytest.mark.parametrize("name", FAMILIES)
def test_norms_have_pytorchs_eps(name, tmp_path):
    """Beside random numbers of deviation 1 it hardly shows in an output."""
    pytest.importorskip("torch")
    from torch_truth import build

    family = FAMILIES[name]
    model = build(family)
    module = family.load(save(model, family, tmp_path))
    theirs = dict(model.named_modules())
    compared = 0
    for place, each in named(module, rules_of(module)):
        if not hasattr(each, "eps"):
            continue
        names = [place.replace("{}", str(layer)) for layer in range(3 if "{}" in place else 1)]
        for own in names:
            norm = theirs[own] if own in theirs else theirs[own.partition(".")[2]]
            eps = norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps
            assert each.eps == eps, own
            compared += 1
    assert compared == sum(hasattr(each, "eps") or hasattr(each, "variance_epsilon") for each in theirs.values())  # fmt: skip


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_numbers_stored_in_half(name, dtype, tmp_path):
    """Read to float32 they are the same numbers on both sides."""
    torch = pytest.importorskip("torch")
    from torch_truth import ask, build

    family = FAMILIES[name]
    model = build(family)
    for each in model.parameters():  # not the positions of AnimateDiff, which are computed
        each.data = each.data.to(getattr(torch, dtype))
    module = family.load(save(model, family, tmp_path))
    model = model.float()
    check(model, family, module, ask(model, family))


@pytest.mark.parametrize("name", FAMILIES)
def test_computing_in_bfloat16(name, tmp_path):
    """Parameters and inputs are bfloat16 on both sides; float32 on the same numbers tells how far either is."""
    torch = pytest.importorskip("torch")
    from torch_truth import ask, build

    family = FAMILIES[name]
    model = build(family).bfloat16()
    module = family.load(save(model, family, tmp_path), Loading(dtype=jnp.bfloat16))
    theirs = ask(model, family, "bfloat16")
    exact = ask(model.to(torch.float32), family, "bfloat16")
    found = outputs(family, module, jnp.bfloat16)
    for mine, other, truth in zip(found, theirs, exact, strict=True):
        assert difference(mine, other) < HALF_BOUND
        assert difference(mine, truth) < HALF_RATIO * difference(other, truth)
