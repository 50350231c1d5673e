"""Trees as flat dictionaries keyed by path.

A path is the attribute names, indices and keys from the root to a leaf, joined by "/": the kernel of a module's
first block is "blocks/0/kernel". States, checkpoints, sharding rules and weight tables all speak in paths, and
values move between two modules by path only, never by a tree map over two modules.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax

Tree = TypeVar("Tree")


def path_of(keys: tuple[Any, ...]) -> str:
    """The path of a jax key tuple; the `.value` that wraps an NNX parameter is not part of it."""
    names = []
    for key in keys:
        if isinstance(key, jax.tree_util.GetAttrKey):
            names.append(key.name)
        elif isinstance(key, jax.tree_util.SequenceKey):
            names.append(str(key.idx))
        elif isinstance(key, jax.tree_util.DictKey):
            names.append(str(key.key))
        else:
            names.append(str(key.key))
    if names and names[-1] == "value":
        names.pop()
    return "/".join(names)


def flatten(tree: Any) -> dict[str, Any]:
    """Returns `{path: leaf}` in the tree's own leaf order. Two leaves of one path are an error."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    flat = {path_of(keys): leaf for keys, leaf in leaves}
    if len(flat) != len(leaves):
        raise ValueError(f"tree has {len(leaves)} leaves but only {len(flat)} distinct paths")
    return flat


def unflatten(template: Tree, values: Mapping[str, Any]) -> Tree:
    """Returns `template` with its leaves taken from `values` by path.

    `template` may be abstract (the result of `jax.eval_shape`). Every path must occur on both sides; shapes must agree.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(template)
    names = [path_of(keys) for keys, _ in leaves]
    missing = [name for name in names if name not in values]
    unknown = set(values).difference(names)
    if missing or unknown:
        raise ValueError(
            f"paths missing: {sorted(missing)[:5]}; paths unknown: {sorted(unknown)[:5]}"
        )
    for name, (_, leaf) in zip(names, leaves, strict=True):
        if leaf.shape != values[name].shape:
            raise ValueError(f"{name}: shape {values[name].shape} given, {leaf.shape} expected")
    return jax.tree_util.tree_unflatten(structure, [values[name] for name in names])


def split(
    flat: Mapping[str, Any], predicate: Callable[[str], bool]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits `{path: leaf}` into the entries whose path satisfies `predicate` and the rest."""
    chosen = {path: leaf for path, leaf in flat.items() if predicate(path)}
    return chosen, {path: leaf for path, leaf in flat.items() if path not in chosen}
