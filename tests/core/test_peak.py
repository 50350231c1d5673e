"""What a program is told to work in, against what XLA sets aside for it."""

import jax
import jax.numpy as jnp
import pytest
from tiny_pix2pix import tiny_model

from jaxvid.core.peak import peak_bytes
from jaxvid.pipelines.edit import Revision, tell

SQUARE = jax.ShapeDtypeStruct((256, 256), jnp.float32)
ROWS = jax.ShapeDtypeStruct((1024, 64), jnp.float32)
BYTES = 256 * 256 * 4


def chain(x):
    return jnp.tanh(jnp.exp(x) * 2.0) + jax.nn.silu(x)


def products(x):
    return jnp.tanh(x @ x) @ x


def attention(q):
    return jax.nn.softmax(q @ q.T, axis=-1) @ q


def loop(x):
    return jax.lax.scan(lambda c, _: (jnp.tanh(c @ c), None), x, None, length=10)[0]


def branches(x):
    return jax.lax.cond(x[0, 0] > 0, lambda x: products(products(x)), lambda x: x, x)


def slope(x):
    return jax.grad(lambda w: jnp.sum(jnp.tanh(jnp.tanh(w @ w) @ w)))(x)


def set_aside(fn, *args):
    """By XLA, for temporaries and results; programs of tests are compiled without optimisation otherwise."""
    compiled = jax.jit(fn).lower(*args).compile({"xla_backend_optimization_level": 2})
    memory = compiled.memory_analysis()
    return memory.temp_size_in_bytes + memory.output_size_in_bytes


@pytest.mark.parametrize(
    ("fn", "arg", "expected"),
    [
        (chain, SQUARE, BYTES),  # all in one pass
        (products, SQUARE, 2 * BYTES),  # tanh writes over the first product
        (attention, ROWS, 4 * (1024**2 + 1024 * 64)),  # logits, and what comes of them
        (loop, SQUARE, 2 * BYTES),  # the carry and a round
        (slope, SQUARE, 4 * BYTES),
    ],
)
def test_small_programs_by_hand(fn, arg, expected):
    assert peak_bytes(fn, arg) == pytest.approx(expected, rel=0.01)
    assert 0.5 < peak_bytes(fn, arg) / set_aside(fn, arg) < 2.0


def test_the_costliest_branch_counts():
    assert peak_bytes(branches, SQUARE) >= peak_bytes(products, SQUARE)
    assert 0.5 < peak_bytes(branches, SQUARE) / set_aside(branches, SQUARE) < 2.0


@pytest.mark.parametrize("together", [True, False])
def test_an_edit(together):
    model = tiny_model()
    told = tell(model, "make it blue")
    revision = Revision(model.noise, 4, 20, 980, together)
    image = jax.ShapeDtypeStruct((1, 128, 128, 3), jnp.float32)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), told)

    def edit(told, image, original):
        return revision(told, image, original, jnp.int32(500), jax.random.key(0))

    ratio = peak_bytes(edit, shapes, image, image) / set_aside(edit, shapes, image, image)
    assert 0.5 < ratio < 2.0
