"""Digests of arrays: equal bits give equal digests, on any mesh, device or number of processes.

A leaf of words w (its bits, as unsigned integers, zero-extended to 32) at position i = (i_0, ..., i_n) has the digest

    u_i = m((w_i * 0x85EBCA6B) mod 2^32),   m(u) = u ^ (u >> 15)         a bijection of the word
    r_i = v_0[i_0] * ... * v_n[i_n]          v_d odd, from a fixed hash   the weight of the position
    first  = sum_i u_i * r_i                                              mod 2^32
    second = sum_i (y_i ^ (y_i >> 16)),  y = 0xC2B2AE35 * u * r           mod 2^32

written as 16 hexadecimal digits. Both terms are bijections of the word (odd factors, xor-shifts), so a change within
one word always changes the digest; changes in several words escape with a chance of about 2^-64. It protects against
broken disks and memories, not against people.

Why not a cryptographic hash of the bytes: an integer sum does not depend on its order, so a sharded array is digested
where it lives, every device its own part, and it may be verified on another mesh without gathering it anywhere.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

_SPREAD, _SECOND = 0x85EBCA6B, 0xC2B2AE35
_BLOCK = 1 << 16  # words that the host mixes at a time: they stay in the cache


def _weights(shape: Sequence[int]) -> list[np.ndarray]:
    """One vector of odd numbers for each dimension (the finalizer of MurmurHash3 over the position)."""
    vectors = []
    for dim, size in enumerate(shape):
        h = np.arange(size, dtype=np.uint32) + np.uint32((dim + 1) * 0x9E3779B9 % 2**32)
        h = (h ^ (h >> 16)) * np.uint32(_SPREAD)
        h = (h ^ (h >> 13)) * np.uint32(_SECOND)
        vectors.append((h ^ (h >> 16)) | np.uint32(1))
    return vectors


def _word(dtype: Any) -> np.dtype:
    """The unsigned type that an element's bits are read as; 8-byte elements are two words."""
    return np.dtype(f"uint{8 * min(np.dtype(dtype).itemsize, 4)}")


@partial(jax.jit, static_argnames="sharding")
def _on_device(x: jax.Array, weights: list[jax.Array], sharding: Any) -> jax.Array:
    bits = jax.lax.bitcast_convert_type(x.view(jnp.uint8) if x.dtype == bool else x, _word(x.dtype))
    if bits.ndim > len(weights):  # 8-byte elements
        weights = [*weights, jnp.asarray(_weights([0] * x.ndim + [2])[-1])]
    r = jnp.uint32(1)
    for dim, vector in enumerate(weights):
        r = r * vector.reshape([-1 if axis == dim else 1 for axis in range(bits.ndim)])
    u = bits.astype(jnp.uint32) * jnp.uint32(_SPREAD)
    u = (u ^ (u >> 15)) * r
    y = u * jnp.uint32(_SECOND)
    y = y ^ (y >> 16)
    both = jnp.stack([jnp.sum(u, dtype=jnp.uint32), jnp.sum(y, dtype=jnp.uint32)])
    return both if sharding is None else jax.lax.with_sharding_constraint(both, sharding)


def _on_host(x: np.ndarray) -> np.ndarray:
    shape = (*x.shape, 2) if x.dtype.itemsize == 8 else x.shape
    bits = np.ascontiguousarray(x).reshape(-1).view(_word(x.dtype)).reshape(shape)
    *leading, last = _weights(bits.shape) or [np.ones(1, np.uint32)]
    rows = np.ones(1, np.uint32)
    for vector in leading:
        rows = (rows[:, None] * vector[None, :]).reshape(-1)
    bits = bits.reshape(len(rows), len(last))
    first = second = 0
    count = max(1, _BLOCK // max(1, len(last)))
    for start in range(0, len(rows), count):
        u = bits[start : start + count].astype(np.uint32)
        u *= np.uint32(_SPREAD)
        u ^= u >> np.uint32(15)
        u *= rows[start : start + count, None] * last[None, :]
        first += int(u.sum(dtype=np.uint64))
        u *= np.uint32(_SECOND)
        u ^= u >> np.uint32(16)
        second += int(u.sum(dtype=np.uint64))
    return np.array([first % 2**32, second % 2**32], np.uint32)


def digests(tree: Mapping[str, Any]) -> dict[str, str]:
    """Returns `{path: 16 hexadecimal digits}` for `{path: array}`.

    Arrays on accelerators or spread over processes are digested where they are (every process must call, all get
    the result); arrays in this process's memory by threads on the host, which spares a compilation for every shape.
    """
    local, results = {}, {}
    for path, leaf in tree.items():
        if isinstance(leaf, jax.Array) and not _in_memory(leaf):
            sharding = leaf.sharding
            whole = (
                NamedSharding(sharding.mesh, PartitionSpec())
                if isinstance(sharding, NamedSharding)
                else None
            )
            results[path] = _on_device(leaf, _weights(leaf.shape), whole)
        else:
            local[path] = leaf
    with ThreadPoolExecutor(max_workers=8) as pool:
        results |= zip(
            local, pool.map(lambda leaf: _on_host(np.asarray(leaf)), local.values()), strict=True
        )
    results = jax.device_get(results)
    return {path: f"{results[path][0]:08x}{results[path][1]:08x}" for path in tree}


def _in_memory(leaf: jax.Array) -> bool:
    return leaf.is_fully_addressable and all(device.platform == "cpu" for device in leaf.devices())
