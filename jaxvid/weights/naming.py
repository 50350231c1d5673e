"""Our paths and the published names of the same tensors, both ways.

A module of ours has the attributes of the published one where it can, so that a path becomes a name by "/" to ".", the leaf's
own name (`kernel`, `scale`, `table` are all "weight"), and a few rules of the architecture: pairs of a regular expression of
paths and what stands in its place. Layers that we keep stacked under `layers/` have a name each, with their number for "{}".

Ours are channels last: a dense kernel [in, out] is [out, in] there, a convolution's [h, w, in, out] is [out, in, h, w], one
over time [t, in, out] is [out, in, t, 1, 1]. A vector named `kind` is the first row of a table.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped

Rules = Sequence[tuple[str, str]]

_LEAVES = {"kernel": "weight", "scale": "weight", "table": "weight"}
# Theirs to ours: which of their axes each of ours is. A convolution over time has two more, of one pixel.
_AXES = {2: (1, 0), 3: (2, 1, 0), 4: (2, 3, 1, 0)}
_ROW = "kind"

ATTENTION: Rules = (
    (r"/query/", "/to_q/"),
    (r"/key/", "/to_k/"),
    (r"/value/", "/to_v/"),
    (r"/out/", "/to_out/0/"),
    (r"/context_key/", "/add_k_proj/"),
    (r"/context_value/", "/add_v_proj/"),
)
UNET: Rules = (
    *ATTENTION,
    (r"/(ff|ff_in)/expand/", r"/\1/net/0/proj/"),
    (r"/(ff|ff_in)/contract/", r"/\1/net/2/"),
    *((rf"/norms/{i}/", f"/conv{i + 1}/0/") for i in range(4)),
    *((rf"/convs/{i}/", f"/conv{i + 1}/{3 if i else 2}/") for i in range(4)),
)
MOTION: Rules = ((r"/temp_attentions/", "/motion_modules/"), *UNET)


class Stored(NamedTuple):
    """A tensor of a file: its name, its shape there, and `axes`: which of its axes each of ours is; the others are of 1."""

    name: str
    shape: tuple[int, ...]
    axes: tuple[int, ...]


def stored(path: str, shape: tuple[int, ...], rules: Rules | None) -> list[Stored]:
    """Where the leaf of that path and shape is: one tensor, or one for each of the stacked layers.

    rules: None for this project's own files, where it has its path and its layout.
    """
    if rules is None:
        return [Stored(path, shape, tuple(range(len(shape))))]
    parts = path.split("/")
    layers = parts[0] == "layers"
    count, own = (shape[0], shape[1:]) if layers else (1, shape)
    leaf, rank = parts[-1], len(own)
    axes = _AXES[rank] if leaf == "kernel" else tuple(range(rank))
    theirs = tuple(own[axes.index(i)] for i in range(rank))
    if leaf == "kernel" and rank == 3:
        theirs += (1, 1)
    elif leaf == _ROW:
        axes, theirs = (1,), (1, *own)
    if layers:
        parts.insert(1, "{}")
    name = renamed("/".join([*parts[:-1], _LEAVES.get(leaf, leaf)]), rules)
    return [Stored(name.replace("{}", str(i)), theirs, axes) for i in range(count)]


def renamed(path: str, rules: Rules) -> str:
    """The published name of a leaf whose own name is theirs already, or of a module, whose path then ends in "/"."""
    name = "/" + path
    for pattern, instead in rules:
        name = re.sub(pattern, instead, name)
    return name.strip("/").replace("/", ".")


def to_ours(tensor: Shaped[np.ndarray, "..."], entry: Stored) -> Shaped[np.ndarray, "..."]:
    """A published tensor in our layout."""
    ones = _ones(entry)
    return tensor.transpose(*entry.axes, *ones).reshape([tensor.shape[i] for i in entry.axes])


def to_theirs(leaf: Shaped[np.ndarray, "..."], entry: Stored) -> Shaped[np.ndarray, "..."]:
    """A leaf of ours (one layer of a stacked one) as it is published."""
    ones = _ones(entry)
    wide = leaf.reshape(*leaf.shape, *(1 for _ in ones))
    return np.ascontiguousarray(wide.transpose(np.argsort((*entry.axes, *ones))))


def part_of_theirs(index: tuple[slice, ...], entry: Stored) -> tuple[slice, ...]:
    """The slice of the published tensor that holds `index` of ours."""
    ours = {axis: index[i] for i, axis in enumerate(entry.axes)}
    return tuple(ours.get(axis, slice(0, 1)) for axis in range(len(entry.shape)))


def _ones(entry: Stored) -> tuple[int, ...]:
    """Their axes that are none of ours."""
    return tuple(axis for axis in range(len(entry.shape)) if axis not in entry.axes)
