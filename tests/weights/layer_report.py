"""Where a network first differs from PyTorch's: the outputs of the layers of both by their published names, in execution order.

    rows = compare(model, family, module)
    print(table(rows, 3e-5))

PyTorch's outputs come from forward hooks on its named modules. Ours come from `__call__` of the module's classes, wrapped
while the network runs without jit: then a module is the object whose path is known, and the layers of a stack, which
`jax.lax.scan` makes one after the other, are known by their order. A layer counts when its output is complete, so the
innermost layer that differs comes first; of a layer that is asked twice the first output is taken. Examples come first on both
sides; of the other axes that order is taken which brings the outputs closest, as it is not known here which of them are frames,
pixels and channels.
"""

import contextlib
import itertools
from typing import NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from fabricate import given
from flax import nnx

from jaxvid.nn.norm import GroupNorm
from jaxvid.weights.naming import renamed
from jaxvid.weights.registry import rules_of


class Row(NamedTuple):
    """One layer: both outputs, and their relative difference, None where they have different numbers of entries."""

    name: str
    theirs: np.ndarray
    ours: np.ndarray
    difference: float | None


def compare(model, family, module):
    """One Row for each layer that both have, in PyTorch's order. model, module: of the same weights; they run once each."""
    from torch_truth import ask

    with hooked(model) as theirs:
        ask(model, family)
    inputs = {name: jnp.asarray(given(name, *about)) for name, about in family.inputs.items()}
    with recorded(module) as ours, jax.disable_jit():
        family.call(module, inputs)
    # Transformers may leave out the first word of a name.
    ours = {name.partition(".")[2]: output for name, output in ours.items()} | ours
    batch = len(next(iter(inputs.values())))
    return [
        Row(name, output, ours[name], closest(ours[name], output, batch))
        for name, output in theirs.items()
        if name in ours
    ]


@contextlib.contextmanager
def hooked(model):
    """A dictionary that fills with the first output of each module of PyTorch's by name, while it runs."""
    outputs = {}

    def record(name):
        def hook(_module, _inputs, output):
            while not hasattr(output, "numpy"):
                output = output[0]
            outputs.setdefault(name, output.detach().float().numpy().copy())

        return hook

    modules = [(name, each) for name, each in model.named_modules() if name]
    handles = [each.register_forward_hook(record(name)) for name, each in modules]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def named(module, rules, layer=None):
    """Each of our modules with its published name; those of one layer of a stack with its number, of the stack itself with "{}"."""
    for path, each in nnx.iter_modules(module):
        parts = list(map(str, path))
        if layer is not None:
            parts = ["layers", *parts]
        if parts[:1] == ["layers"]:
            parts.insert(1, "{}")
        name = renamed("/".join([*parts, ""]), rules)
        yield name if layer is None else name.replace("{}", str(layer)), each


@contextlib.contextmanager
def recorded(module):
    """A dictionary that fills with the first output of each of our modules by published name, while it runs without jit."""
    outputs, rules = {}, rules_of(module)
    stack, number = getattr(module, "layers", None), itertools.count()
    # Of an object: the object, so that nothing else gets its id, and the name.
    names = {id(each): (each, name) for name, each in named(module, rules)}

    def wrapped(call):
        def recording(self, *arguments, **options):
            if id(self) not in names and type(self) is type(stack):
                layer = named(self, rules, next(number))
                names.update({id(each): (each, name) for name, each in layer})
            output = call(self, *arguments, **options)
            # With the embedding's scale and shift a norm does more than PyTorch's.
            modulated = isinstance(self, GroupNorm) and any(
                each is not None for each in arguments[1:]
            )
            if id(self) in names and not modulated:
                first = jax.tree.leaves(output)[0]
                outputs.setdefault(names[id(self)][1], np.asarray(first, np.float32))
            return output

        return recording

    with contextlib.ExitStack() as patches:
        for kind in {type(each) for each, _ in names.values() if callable(each)}:
            patches.enter_context(mock.patch.object(kind, "__call__", wrapped(kind.__call__)))
        yield outputs


def closest(ours, theirs, batch):
    """The relative difference in the 2-norm, of the order of our axes behind the examples in which it is smallest."""
    if ours.size != theirs.size:
        return None
    examples = batch if len(ours) % batch == 0 else 1
    sides = [size for size in (len(ours) // examples, *ours.shape[1:]) if size > 1]
    ours, theirs = ours.reshape(examples, *sides), theirs.ravel()
    return min(
        float(np.linalg.norm(ours.transpose(0, *order).ravel() - theirs))
        for order in itertools.permutations(range(1, ours.ndim))
    ) / float(np.linalg.norm(theirs))


def first(rows, bound):
    """The first layer whose difference is not below `bound`; None where there is none."""
    wrong = (row for row in rows if row.difference is not None and not row.difference < bound)
    return next(wrong, None)


def table(rows, bound, around=10):
    """The layers about the first that differs, `around` before and after it, as lines of text."""
    found = first(rows, bound)
    place = len(rows) if found is None else rows.index(found)
    start, end = max(place - around, 0), place + around + 1
    width = max([len(row.name) for row in rows[start:end]], default=0)
    columns = ("PyTorch's shape", "mean square", "our shape", "mean square", "difference")
    lines = [f"{'layer':{width}} " + "".join(f"{column:>20}" for column in columns)]
    lines += [f"... {start} layers before"] if start else []
    for row in rows[start:end]:
        cells = []
        for each in (row.theirs, row.ours):
            cells += ["x".join(map(str, each.shape)), f"{np.mean(each**2):.6g}"]
        cells.append("other size" if row.difference is None else f"{row.difference:.1e}")
        mark = "  <- the first" if row is found else ""
        lines.append(f"{row.name:{width}} " + "".join(f"{cell:>20}" for cell in cells) + mark)
    lines += [f"... {len(rows) - end} layers after"] if len(rows) > end else []
    return "\n".join(lines)
