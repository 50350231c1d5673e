"""Floating-point operations of a JAX program, counted on its jaxpr.

The compiler's own `cost_analysis()` counts the body of a loop once, so it is wrong for scanned blocks by their number.
This counter multiplies instead. One multiply-add is 2 operations. Three sums are kept apart:

    matmul   dot_general and ragged_dot
    conv     conv_general_dilated, see below
    other    one per output element of arithmetic (exp and tanh count as one too), one per input element of reductions

`matmul + conv` is what published FLOPs and model-FLOPs-utilisation mean; `other` says how much work is elementwise.

What is counted is what the jaxpr holds, on all devices together: a rematerialised block is counted again where the
backward pass repeats it, dead code that the compiler would delete is counted, and inside `shard_map` the body counts once
per device. Structure: scan x length; cond as its costliest branch; while must be told its iterations when its body holds a
matmul or convolution; a Pallas kernel x its grid.

Convolutions count multiply-adds at real taps: holes of a dilated kernel or of a dilated input (the gradient of a strided
convolution) are free. Padding is counted as if it were data, the convention of published figures: each gradient of a
"SAME" convolution costs what its forward pass costs, and the input's gradient of a "VALID" one counts the full convolution
that it is. (The compiler's analysis leaves padding out.)
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

ELEMENTWISE = frozenset(
    [
        "add",
        "add_any",
        "sub",
        "mul",
        "div",
        "rem",
        "max",
        "min",
        "neg",
        "abs",
        "sign",
        "floor",
        "ceil",
        "round",
        "exp",
        "exp2",
        "expm1",
        "log",
        "log1p",
        "tanh",
        "tan",
        "sin",
        "cos",
        "asin",
        "acos",
        "atan",
        "atan2",
        "sinh",
        "cosh",
        "logistic",
        "sqrt",
        "rsqrt",
        "cbrt",
        "pow",
        "integer_pow",
        "square",
        "erf",
        "erfc",
        "erf_inv",
        "lgamma",
        "digamma",
    ]
)
REDUCTIONS = frozenset(
    [
        "reduce_sum",
        "reduce_max",
        "reduce_min",
        "reduce_prod",
        "argmax",
        "argmin",
        "cumsum",
        "cumprod",
        "cummax",
        "cummin",
        "cumlogsumexp",
        "reduce_window_sum",
        "reduce_window_max",
        "reduce_window_min",
        "scatter-add",
    ]
)
# Expensive, and without a rule here: named in `uncounted` rather than passed over.
WITHOUT_RULE = frozenset(
    [
        "cholesky",
        "lu",
        "qr",
        "householder_product",
        "eig",
        "eigh",
        "svd",
        "triangular_solve",
        "tridiagonal_solve",
        "schur",
        "fft",
        "custom_call",
        "ffi_call",
        "custom_linear_solve",
        "reduce_window",
        "select_and_scatter_add",
    ]
)


@dataclass(frozen=True)
class Flops:
    """Operations by kind; `uncounted` names primitives that cost something unknown to the counter."""

    matmul: int = 0
    conv: int = 0
    other: int = 0
    uncounted: frozenset[str] = frozenset()

    @property
    def total(self) -> int:
        """`matmul + conv`: the figure to divide by time and by a chip's peak."""
        return self.matmul + self.conv

    def __add__(self, more: "Flops") -> "Flops":
        return Flops(
            self.matmul + more.matmul,
            self.conv + more.conv,
            self.other + more.other,
            self.uncounted | more.uncounted,
        )

    def __mul__(self, times: int) -> "Flops":
        return Flops(self.matmul * times, self.conv * times, self.other * times, self.uncounted)


def count_flops(
    fn: Callable[..., Any],
    *abstract_args: Any,
    while_iterations: int | None = None,
    **abstract_kwargs: Any,
) -> Flops:
    """Counts `fn(*abstract_args, **abstract_kwargs)` without running or compiling it.

    Arguments are arrays or `jax.ShapeDtypeStruct`s. `while_iterations` is the number of iterations that every
    `while_loop` of unknown length is taken to run; loops that hold only elementwise work count once without it.
    Raises ValueError for a `while_loop` around a matmul or convolution when it is not given.
    """
    return jaxpr_flops(jax.make_jaxpr(fn)(*abstract_args, **abstract_kwargs), while_iterations)


def jaxpr_flops(jaxpr: ClosedJaxpr | Jaxpr, while_iterations: int | None = None) -> Flops:
    """Counts a traced program, for example `jax.jit(f).trace(*args).jaxpr`."""
    jaxpr = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
    return sum((_equation(eqn, while_iterations) for eqn in jaxpr.eqns), Flops())


def _equation(eqn: JaxprEqn, while_iterations: int | None) -> Flops:
    name = eqn.primitive.name
    if name == "dot_general":
        return Flops(matmul=_dot(eqn))
    if name == "ragged_dot_general" or name == "ragged_dot":
        lhs, rhs = (_shape(v) for v in eqn.invars[:2])
        return Flops(matmul=2 * math.prod(lhs) * rhs[-1])
    if name == "conv_general_dilated":
        return Flops(conv=_conv(eqn))
    if name in ELEMENTWISE:
        return Flops(other=sum(math.prod(_shape(v)) for v in eqn.outvars))
    if name in REDUCTIONS:
        return Flops(other=math.prod(_shape(eqn.invars[0])))
    if name in WITHOUT_RULE:
        return Flops(uncounted=frozenset([name]))
    return _structure(eqn, while_iterations)


def _structure(eqn: JaxprEqn, while_iterations: int | None) -> Flops:
    """Equations that hold jaxprs. Calls (jit, remat, custom_jvp, custom_vjp, ...) count their body once."""
    name, params = eqn.primitive.name, eqn.params
    inner = [jaxpr_flops(body, while_iterations) for body in bodies(params)]
    if not inner:
        return Flops()
    if name == "cond":
        return max(inner, key=lambda flops: (flops.total, flops.other))
    once = sum(inner, Flops())
    if name == "scan":
        return once * params["length"]
    if name == "while":
        if while_iterations is None and once.total:
            raise ValueError(
                f"while_loop of unknown length around {once.total} FLOPs; pass while_iterations=N or use scan"
            )
        return once * (1 if while_iterations is None else while_iterations)
    if name == "shard_map":
        return once * math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    if name == "pallas_call":
        return once * math.prod(params["grid_mapping"].grid)
    return once


def bodies(params: dict[str, Any]) -> Iterator[ClosedJaxpr | Jaxpr]:
    """The jaxprs among an equation's parameters."""
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, (ClosedJaxpr, Jaxpr)):
                yield item


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _dot(eqn: JaxprEqn) -> int:
    """2 x output elements x contracted length."""
    (contracted, _), _ = eqn.params["dimension_numbers"]
    lhs = _shape(eqn.invars[0])
    return 2 * math.prod(_shape(eqn.outvars[0])) * math.prod(lhs[dim] for dim in contracted)


def _conv(eqn: JaxprEqn) -> int:
    """2 x batch x output features x input features of a group x (output position, real tap) pairs."""
    params = eqn.params
    numbers = params["dimension_numbers"]
    kernel = _shape(eqn.invars[1])
    output = _shape(eqn.outvars[0])
    out_batch, out_feature, *out_space = numbers.out_spec
    _, kernel_in, *kernel_space = numbers.rhs_spec
    pairs = 1
    for dim, (out_dim, kernel_dim) in enumerate(zip(out_space, kernel_space, strict=True)):
        pairs *= _taps(
            output[out_dim],
            kernel[kernel_dim],
            stride=params["window_strides"][dim],
            pad=params["padding"][dim][0],
            holes=params["lhs_dilation"][dim],
            step=params["rhs_dilation"][dim],
        )
    return 2 * output[out_batch] * output[out_feature] * kernel[kernel_in] * pairs


def _taps(positions: int, taps: int, *, stride: int, pad: int, holes: int, step: int) -> int:
    """Pairs (output position, tap) along one dimension that do not fall into a hole of the dilated input."""
    if holes == 1:
        return positions * taps
    place = np.arange(positions)[:, None] * stride + np.arange(taps)[None, :] * step - pad
    return int(np.count_nonzero(place % holes == 0))
