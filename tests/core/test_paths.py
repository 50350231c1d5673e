import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxvid.core.paths import flatten, split, unflatten


class Block(nnx.Module):
    def __init__(self, size):
        self.kernel = nnx.Param(jnp.full((size, size), 1.0))
        self.size = size


class Net(nnx.Module):
    def __init__(self):
        self.blocks = nnx.List([Block(2), Block(3)])
        self.scale = nnx.Param(jnp.full((1,), 2.0))


def test_paths_of_a_module_are_attribute_names_and_indices():
    flat = flatten(Net())
    assert set(flat) == {"blocks/0/kernel", "blocks/1/kernel", "scale"}
    assert flat["blocks/1/kernel"].shape == (3, 3)


def test_paths_of_a_state_hold_the_parameters_path():
    params = {"a/kernel": jnp.zeros(3)}
    flat = flatten({"trainable": params, "optimizer": optax.adam(1e-3).init(params), "frozen": {}})
    assert "trainable/a/kernel" in flat
    assert [path for path in flat if path.endswith("/mu/a/kernel")]
    assert flatten({}) == {}


def test_unflatten_inverts_flatten_also_on_abstract_templates():
    net = Net()
    values = {path: leaf + 1 for path, leaf in flatten(net).items()}
    for template in (net, jax.eval_shape(Net)):
        again = unflatten(template, values)
        assert again.blocks[1].size == 3
        np.testing.assert_array_equal(again.blocks[0].kernel[...], 2.0)
        np.testing.assert_array_equal(again.scale[...], 3.0)


def test_unflatten_refuses_other_paths_and_shapes():
    net = Net()
    values = flatten(net)
    with pytest.raises(ValueError, match=r"missing: \['scale'\]; paths unknown: \['scales'\]"):
        unflatten(net, {**{k: v for k, v in values.items() if k != "scale"}, "scales": 1})
    with pytest.raises(ValueError, match=r"scale: shape \(2,\) given, \(1,\) expected"):
        unflatten(net, {**values, "scale": jnp.zeros(2)})


def test_two_leaves_of_one_path_are_an_error():
    with pytest.raises(ValueError, match="2 leaves but only 1"):
        flatten({"a": {"b": 1}, "a/b": 2})


def test_split_is_a_partition_in_order():
    flat = {"b/x": 1, "a/y": 2, "b/z": 3}
    chosen, rest = split(flat, lambda path: path.startswith("b"))
    assert list(chosen.items()) == [("b/x", 1), ("b/z", 3)]
    assert rest == {"a/y": 2}
