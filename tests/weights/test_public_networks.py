"""Every public network against PyTorch's outputs, on fabricated weights: stored ones here, live ones under `parity`."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from fabricate import given, write_folder
from families import FAMILIES

TRUTH = json.loads(Path(__file__).with_name("truth.json").read_text())


def outputs(family, module, dtype=np.float32):
    """Ours in float32, as a list of arrays. dtype: of the floating inputs, in which the network then computes."""
    inputs = {name: given(name, *about) for name, about in family.inputs.items()}
    inputs = {
        name: each.astype(dtype) if each.dtype == np.float32 else each
        for name, each in inputs.items()
    }
    found = jax.jit(family.call)(module, inputs)
    found = found if isinstance(found, tuple) else (found,)
    return [np.asarray(each, np.float32) for each in found]


def difference(found, expected):
    """Relative, in the 2-norm."""
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_network_equals_pytorchs(name, tmp_path):
    """To 3e-5 here; 1e-4 is asked for."""
    family, truth = FAMILIES[name], TRUTH[name]
    folder = write_folder(tmp_path, truth["config"], truth["shapes"], family.adapter)
    found = outputs(family, family.load(folder))
    assert len(found) == len(truth["outputs"])
    for mine, theirs in zip(found, truth["outputs"], strict=True):
        assert mine.shape == tuple(theirs["shape"])
        assert difference(mine.ravel(), np.array(theirs["values"])) < 3e-5
