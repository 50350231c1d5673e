"""Random keys by name.

A key is never carried or split in sequence: every consumer folds a name (or a step) into a key that it was
given, so adding a consumer changes no other's numbers.
"""

import zlib

import jax
from jaxtyping import Array, Int, Key


def named(key: Key[Array, ""], *names: str | int | Int[Array, ""]) -> Key[Array, ""]:
    """Returns the key that belongs to `names` under `key`.

    Strings are folded as their CRC-32, so the result does not depend on the interpreter's hash seed; integers
    (a step, an index; also traced) are folded as they are.

    Example: `named(root, "train", step, "dropout")`.
    """
    for name in names:
        data = zlib.crc32(name.encode()) if isinstance(name, str) else name
        key = jax.random.fold_in(key, data)
    return key
