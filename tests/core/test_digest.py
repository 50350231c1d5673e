import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxvid.core import digest as module
from jaxvid.core.digest import digests

MASK = 2**32 - 1


def odd(position, dim):
    h = (position + (dim + 1) * 0x9E3779B9) & MASK
    h = ((h ^ (h >> 16)) * 0x85EBCA6B) & MASK
    h = ((h ^ (h >> 13)) * 0xC2B2AE35) & MASK
    return (h ^ (h >> 16)) | 1


def reference(x):
    """The module's formula, word by word in Python integers."""
    first = second = 0
    for index in np.ndindex(*x.shape):
        raw = x[index].tobytes()
        words = [raw] if len(raw) < 8 else [raw[:4], raw[4:]]
        for half, word in enumerate(words):
            place = (*index, half) if len(words) == 2 else index
            r = 1
            for dim, position in enumerate(place):
                r = r * odd(position, dim) & MASK
            u = int.from_bytes(word, "little") * 0x85EBCA6B & MASK
            u = (u ^ (u >> 15)) * r & MASK
            y = u * 0xC2B2AE35 & MASK
            first, second = first + u, second + (y ^ (y >> 16))
    return f"{first & MASK:08x}{second & MASK:08x}"


def on_device(x):
    both = np.asarray(module._on_device(x, module._weights(x.shape), None))
    return f"{both[0]:08x}{both[1]:08x}"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "bool", "uint32"])
@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (2, 3, 2), (0, 3)])
def test_host_and_device_follow_the_formula(dtype, shape):
    x = np.random.default_rng(0).normal(size=shape, scale=50).astype(jnp.dtype(dtype))
    x = np.asarray(x)
    assert digests({"x": x})["x"] == reference(x)
    assert on_device(jnp.asarray(x)) == reference(x)


def test_eight_byte_elements_are_two_words():
    x = np.random.default_rng(0).normal(size=(3, 2))
    assert digests({"x": x})["x"] == reference(x)


def test_large_arrays_are_taken_in_blocks():
    x = np.random.default_rng(0).integers(0, 2**32, (5, 40, 1000), dtype=np.uint32)
    assert digests({"x": x})["x"] == on_device(jnp.asarray(x))
    assert digests({"x": x.transpose(2, 0, 1)})["x"] == on_device(jnp.asarray(x.transpose(2, 0, 1)))


@given(
    hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=6)),
    st.integers(0, 10**6),
    st.integers(0, 31),
)
def test_every_flipped_bit_is_noticed(x, position, bit):
    words = x.copy().reshape(-1).view(np.uint32)
    words[position % words.size] ^= np.uint32(1 << bit)
    changed = words.view(np.float32).reshape(x.shape)
    first, second = digests({"a": x, "b": changed}).values()
    assert first[:8] != second[:8]
    assert first[8:] != second[8:]


def test_exchanged_elements_and_paired_sign_flips_are_noticed():
    x = np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32)
    seen = {digests({"x": x})["x"]}
    for i in range(1, 16):
        exchanged, flipped = x.copy(), x.copy()
        exchanged[0, 0], exchanged[i, i] = x[i, i], x[0, 0]
        flipped[0, 0] *= -1
        flipped[0, i] *= -1
        seen |= set(digests({"a": exchanged, "b": flipped}).values())
    assert len(seen) == 31
    assert len(set(digests({"a": x, "b": x.T.copy(), "c": x.reshape(-1)}).values())) == 3


@pytest.mark.parametrize(
    "spec", [PartitionSpec("a"), PartitionSpec("a", "b"), PartitionSpec(None, ("a", "b"))]
)
def test_the_mesh_does_not_matter(spec):
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    x = np.random.default_rng(0).normal(size=(8, 24)).astype(np.float32)
    sharded = jax.device_put(x, NamedSharding(mesh, spec))
    both = module._on_device(
        sharded, module._weights(x.shape), NamedSharding(mesh, PartitionSpec())
    )
    assert both.sharding.is_fully_replicated
    assert f"{int(both[0]):08x}{int(both[1]):08x}" == digests({"x": x})["x"]
    assert digests({"x": sharded}) == digests({"x": x})
