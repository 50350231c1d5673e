"""Counts against closed forms, and against the compiler's analysis where that one is right (no loops, no padding)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from jaxvid.core.flops import Flops, count_flops
from jaxvid.core.mesh import MeshConfig, make_mesh

NHWC = ("NHWC", "HWIO", "NHWC")


def abstract(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_dot_general_with_batch_and_several_contractions():
    flops = count_flops(
        lambda a, b: jnp.einsum("bhqd,bhkd->bhqk", a, b),
        abstract(2, 3, 5, 7),
        abstract(2, 3, 11, 7),
    )
    assert flops == Flops(matmul=2 * 2 * 3 * 5 * 11 * 7)
    flops = count_flops(
        lambda a, b: jnp.einsum("ijk,jkl->il", a, b), abstract(2, 3, 5), abstract(3, 5, 7)
    )
    assert flops == Flops(matmul=2 * 2 * 7 * 15)


def conv(x, kernel, stride=1, padding="SAME", groups=1, dilation=1):
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=NHWC,
        feature_group_count=groups,
    )


@pytest.mark.parametrize(
    ("kwargs", "kernel", "expected"),
    [
        ({}, (3, 3, 4, 8), 2 * 2 * 64 * 8 * 4 * 9),
        ({"stride": 2}, (3, 3, 4, 8), 2 * 2 * 16 * 8 * 4 * 9),
        ({"padding": "VALID"}, (3, 3, 4, 8), 2 * 2 * 36 * 8 * 4 * 9),
        ({"dilation": 2}, (3, 3, 4, 8), 2 * 2 * 64 * 8 * 4 * 9),
        ({"groups": 4}, (3, 3, 1, 8), 2 * 2 * 64 * 8 * 1 * 9),
    ],
    ids=["same", "strided", "valid", "dilated", "depthwise"],
)
def test_convolution_and_both_gradients_cost_the_same(kwargs, kernel, expected):
    def forward(x, kernel):
        return conv(x, kernel, **kwargs)

    x, kernel = abstract(2, 8, 8, 4), abstract(*kernel)
    assert count_flops(forward, x, kernel) == Flops(conv=expected)
    for argument in (1,) if kwargs.get("padding") == "VALID" else (0, 1):
        backward = jax.grad(lambda x, kernel: forward(x, kernel).sum(), argument)
        flops = count_flops(backward, x, kernel)
        assert flops.conv == 2 * expected  # the forward pass stays in the jaxpr


@settings(max_examples=60, deadline=None)
@given(
    positions=st.integers(1, 9),
    taps=st.integers(1, 5),
    stride=st.integers(1, 3),
    holes=st.integers(1, 3),
    step=st.integers(1, 3),
    pad=st.integers(0, 4),
)
def test_taps_by_enumeration(positions, taps, stride, holes, step, pad):
    from jaxvid.core.flops import _taps

    expected = 0
    for i in range(positions):
        for k in range(taps):
            expected += (i * stride + k * step - pad) % holes == 0
    assert _taps(positions, taps, stride=stride, pad=pad, holes=holes, step=step) == expected


def test_transposed_convolution_counts_real_taps_only():
    flops = count_flops(
        lambda x, k: lax.conv_transpose(x, k, (2, 2), "SAME", dimension_numbers=NHWC),
        abstract(1, 8, 8, 4),
        abstract(4, 4, 4, 6),
    )
    # 16x16 outputs, each touched by 2x2 of the 4x4 taps
    assert flops == Flops(conv=2 * 256 * 6 * 4 * 4)


def test_scan_multiplies_and_equals_the_unrolled_program():
    def body(x, w):
        return jnp.tanh(x @ w), None

    def scanned(x, stack):
        return lax.scan(body, x, stack)[0].sum()

    def unrolled(x, stack):
        for layer in range(5):
            x = body(x, stack[layer])[0]
        return x.sum()

    x, stack = abstract(4, 8), abstract(5, 8, 8)
    forward = 5 * 2 * 4 * 8 * 8
    assert count_flops(scanned, x, stack).matmul == forward
    assert count_flops(scanned, x, stack) == count_flops(unrolled, x, stack)
    assert count_flops(jax.grad(scanned, (0, 1)), x, stack).matmul == 3 * forward
    assert count_flops(jax.grad(unrolled, (0, 1)), x, stack).matmul == 3 * forward


def test_rematerialised_block_counts_again():
    def block(x, w):
        return jnp.tanh(jnp.tanh(x @ w) @ w)

    x, w = abstract(4, 8), abstract(8, 8)
    one = 2 * 4 * 8 * 8
    plain = count_flops(jax.grad(lambda x, w: block(x, w).sum()), x, w)
    again = count_flops(jax.grad(lambda x, w: jax.checkpoint(block)(x, w).sum()), x, w)
    assert plain.matmul == 4 * one
    # the second product's value is not needed again, but the block's jaxpr repeats it
    assert again.matmul == 6 * one


def test_calls_count_once():
    @jax.custom_vjp
    def product(x, w):
        return x @ w

    product.defvjp(lambda x, w: (x @ w, (x, w)), lambda saved, g: (g @ saved[1].T, saved[0].T @ g))

    @jax.custom_jvp
    def other_product(x, w):
        return x @ w

    other_product.defjvp(
        lambda primals, tangents: (primals[0] @ primals[1], primals[0] @ tangents[1])
    )

    x, w = abstract(4, 8), abstract(8, 8)
    one = 2 * 4 * 8 * 8
    for fn in (
        product,
        other_product,
        jax.jit(product),
        jax.checkpoint(product),
        jax.jit(jax.jit(product)),
    ):
        assert count_flops(fn, x, w) == Flops(matmul=one)
    assert count_flops(jax.grad(lambda x, w: product(x, w).sum(), (0, 1)), x, w).matmul == 3 * one
    assert count_flops(jax.vmap(product, (0, None)), abstract(3, 4, 8), w).matmul == 3 * one


def test_cond_counts_the_costliest_branch():
    def choose(i, x):
        return lax.switch(i, [lambda x: x @ x, lambda x: x @ x @ x, lambda x: x], x)

    flops = count_flops(choose, jax.ShapeDtypeStruct((), jnp.int32), abstract(4, 4))
    assert flops.matmul == 2 * 2 * 64


def test_while_must_be_told_its_length():
    def loop(n, x):
        return lax.fori_loop(0, n, lambda i, x: x @ x, x)

    n, x = jax.ShapeDtypeStruct((), jnp.int32), abstract(4, 4)
    with pytest.raises(ValueError, match="while_iterations"):
        count_flops(loop, n, x)
    assert count_flops(loop, n, x, while_iterations=7).matmul == 7 * 128
    assert count_flops(lambda x: loop(7, x), x).matmul == 7 * 128  # static bounds are a scan
    elementwise = count_flops(lambda n, x: lax.fori_loop(0, n, lambda i, x: x * x, x), n, x)
    assert elementwise.total == 0


def test_shard_map_counts_every_device():
    mesh = make_mesh(MeshConfig(data=4, tensor=2), jax.devices()[:8])
    spec = jax.sharding.PartitionSpec("data")
    fn = jax.shard_map(
        lambda x, w: x @ w,
        mesh=mesh,
        in_specs=(spec, jax.sharding.PartitionSpec()),
        out_specs=spec,
        axis_names={"data"},
    )
    assert count_flops(fn, abstract(8, 4), abstract(4, 6)) == Flops(matmul=2 * 8 * 4 * 6)


def test_pallas_kernel_counts_its_grid():
    from jax.experimental import pallas as pl

    def kernel(x_ref, w_ref, out_ref):
        out_ref[...] = jnp.dot(x_ref[...], w_ref[...])

    def fn(x, w):
        return pl.pallas_call(
            kernel,
            out_shape=abstract(16, 8),
            grid=(4,),
            in_specs=[
                pl.BlockSpec((4, 8), lambda i: (i, 0)),
                pl.BlockSpec((8, 8), lambda i: (0, 0)),
            ],
            out_specs=pl.BlockSpec((4, 8), lambda i: (i, 0)),
        )(x, w)

    assert count_flops(fn, abstract(16, 8), abstract(8, 8)).matmul == 2 * 16 * 8 * 8


def test_other_and_uncounted():
    flops = count_flops(lambda x: jnp.exp(x + x).sum(), abstract(3, 5))
    assert flops == Flops(other=15 + 15 + 15)
    assert count_flops(lambda x: x.reshape(5, 3).T, abstract(3, 5)) == Flops()
    assert count_flops(lambda x: jnp.linalg.cholesky(x), abstract(4, 4)).uncounted == {"cholesky"}


def test_agrees_with_the_compiler_on_an_unrolled_program():
    def loss(params, x):
        x = conv(x, params["first"], padding="VALID")  # its input needs no gradient
        for size, kernel in zip((2, 1, 3), params["patches"], strict=True):
            x = jnp.maximum(conv(x, kernel, stride=size, padding="VALID"), 0.0)
        x = x.reshape(x.shape[0], -1)
        for weight in params["dense"]:
            x = x @ weight
        return jnp.sum(x * x)

    # Patches do not overlap, so no gradient reads padding, which the compiler would not count.
    params = {
        "first": abstract(3, 3, 8, 32),
        "patches": [abstract(2, 2, 32, 48), abstract(1, 1, 48, 48), abstract(3, 3, 48, 16)],
        "dense": [abstract(2 * 2 * 16, 64), abstract(64, 64)],
    }
    x = abstract(4, 14, 14, 8)
    step = jax.value_and_grad(loss)
    ours = count_flops(step, params, x)
    theirs = jax.jit(step).lower(params, x).compile().cost_analysis()["flops"]
    assert ours.uncounted == frozenset()
    np.testing.assert_allclose(ours.total + ours.other, theirs, rtol=0.01)


def test_compiler_counts_a_loop_once_and_we_do_not():
    """The reason for this module: should the compiler learn to multiply, this test says so."""

    def fn(x, stack):
        return lax.scan(lambda x, w: (x @ w, None), x, stack)[0]

    x, stack = abstract(64, 64), abstract(10, 64, 64)
    one = 2 * 64**3
    assert count_flops(fn, x, stack).matmul == 10 * one
    assert jax.jit(fn).lower(x, stack).compile().cost_analysis()["flops"] < 2 * one
