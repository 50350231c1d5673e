"""Loading into a mesh: the shardings asked for, the same numbers, and no more read than the devices hold."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fabricate import write_folder
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from test_public_networks import TRUTH

from jaxvid.core.mesh import MeshConfig, make_mesh, parameter_sharding
from jaxvid.core.paths import flatten
from jaxvid.weights import tensors
from jaxvid.weights.loading import Loading
from jaxvid.weights.naming import stored
from jaxvid.weights.registry import load_model, rules_of

# Convolutions over space and, of ModelScope, over time; stacked layers.
FAMILIES = ["stable diffusion 1", "modelscope", "clip text"]
MESHES = [
    (MeshConfig(data=1, fsdp=8), jnp.float32),
    (MeshConfig(data=2, fsdp=2, tensor=2), jnp.bfloat16),
]


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    """A published one."""
    truth = TRUTH[request.param]
    return write_folder(
        tmp_path_factory.mktemp("model"),
        truth["config"],
        truth["shapes"],
        file="model.safetensors",
    )


@pytest.fixture
def numbers_read(monkeypatch):
    """How many numbers have been read of each tensor, each time."""
    counts, read = {}, tensors.Reader.__call__

    def counting(self, *about):
        found = read(self, *about)
        counts.setdefault(self.name, []).append(found.size)
        return found

    monkeypatch.setattr(tensors.Reader, "__call__", counting)
    return counts


def slices(sharding, shape):
    """Different slices that the devices hold."""
    return {str(index) for index in sharding.devices_indices_map(shape).values()}


def readings(counts, path, leaf, rules):
    """How much was read of that leaf, reading by reading: of all layers of a stack together."""
    names = [entry.name for entry in stored(path, leaf.shape, rules)]
    # A file may leave the first word out.
    lists = [counts.get(name) or counts[name.partition(".")[2]] for name in names]
    return [sum(each) for each in zip(*lists, strict=True)]


@pytest.mark.parametrize(("config", "dtype"), MESHES)
def test_leaves_are_where_the_rules_put_them(folder, config, dtype, numbers_read):
    """Every slice that a device holds is read once, and nothing else; the numbers are those of the load on one device."""
    mesh = make_mesh(config)
    whole = flatten(load_model(folder, Loading(dtype=dtype)))
    numbers_read.clear()
    module = load_model(folder, Loading(dtype=dtype, shardings=partial(parameter_sharding, mesh)))
    wanted, rules = parameter_sharding(mesh, whole), rules_of(module)
    split = 0
    for path, leaf in flatten(module).items():
        assert leaf.sharding == wanted[path], path
        assert leaf.dtype == dtype
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(whole[path]))
        size = math.prod(leaf.sharding.shard_shape(leaf.shape))
        count = len(slices(leaf.sharding, leaf.shape))
        assert readings(numbers_read, path, leaf, rules) == [size] * count, path
        split += count > 1
    assert split >= 8


def test_shardings_by_path(folder):
    """A mapping serves one network; None leaves a leaf on the default device."""
    mesh = make_mesh(MeshConfig(data=1, fsdp=8))
    whole = flatten(load_model(folder))
    places = {**parameter_sharding(mesh, whole)}
    path = next(path for path, place in places.items() if len(slices(place, whole[path].shape)) > 1)
    places[path] = None
    found = flatten(load_model(folder, Loading(shardings=places)))
    assert found[path].sharding == whole[path].sharding
    for each, leaf in found.items():
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(whole[each]))
        if each != path:
            assert leaf.sharding == places[each]
    places.pop(path)
    with pytest.raises(ValueError, match=f"no sharding for .*{path}"):
        load_model(folder, Loading(shardings=places))


def test_without_a_mesh_the_rules_change_nothing(folder):
    whole = flatten(load_model(folder))
    found = load_model(folder, Loading(shardings=partial(parameter_sharding, None)))
    for path, leaf in flatten(found).items():
        assert leaf.sharding == whole[path].sharding
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(whole[path]))


@pytest.mark.parametrize("spec", [(None, None, "a"), (None, "a"), ("a",), ("b", "a", None)])
def test_stacked_layers_split_along_any_axis(spec, tmp_path, numbers_read):
    """Also along the layers, of which a device then reads its own alone."""
    truth = TRUTH["clip text"]
    folder = write_folder(tmp_path, truth["config"], truth["shapes"], file="model.safetensors")
    whole = flatten(load_model(folder))
    numbers_read.clear()
    path = "layers/attention/query/kernel"
    sides = (3, 2) if "b" in spec else (3 if spec == ("a",) else 4, 1)
    axes = ("b", "a") if "b" in spec else ("a", "b")
    mesh = Mesh(np.array(jax.devices()[: math.prod(sides)]).reshape(sides), axes)
    place = NamedSharding(mesh, PartitionSpec(*spec))
    found = flatten(load_model(folder, Loading(shardings=dict.fromkeys(whole) | {path: place})))
    assert found[path].sharding == place
    np.testing.assert_array_equal(np.asarray(found[path]), np.asarray(whole[path]))
    read = [
        size
        for name, sizes in numbers_read.items()
        if name.endswith("self_attn.q_proj.weight")
        for size in sizes
    ]
    assert sum(read) == whole[path].size
    pieces = math.prod(sides) if spec[0] else 3 * math.prod(sides)
    assert len(read) == pieces
