import subprocess
import sys
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvid.core.rng import named


def data(key):
    return tuple(np.asarray(jax.random.key_data(key)).tolist())


def test_a_name_folds_its_crc32():
    root = jax.random.key(3)
    expected = jax.random.fold_in(jax.random.fold_in(root, zlib.crc32(b"train")), 7)
    assert data(named(root, "train", 7)) == data(expected)
    assert data(named(root)) == data(root)


def test_names_steps_and_their_order_give_different_keys():
    root = jax.random.key(0)
    keys = [named(root, "a"), named(root, "b"), named(root, 0), named(root, 1), root]
    keys += [named(root, "a", 1), named(root, 1, "a"), named(root, "a", "b"), named(root, "b", "a")]
    keys += [named(root, "train", step) for step in range(100)]
    assert len({data(key) for key in keys}) == len(keys)


def test_traced_steps_equal_python_steps():
    root = jax.random.key(0)
    traced = jax.jit(lambda step: named(root, "x", step))(jnp.int32(12))
    assert data(traced) == data(named(root, "x", 12))
    many = jax.vmap(lambda i: named(root, i))(jnp.arange(5))
    assert [data(key) for key in many] == [data(named(root, i)) for i in range(5)]


def test_keys_do_not_depend_on_the_interpreter():
    code = (
        "import jax; from jaxvid.core.rng import named;"
        "print(jax.random.key_data(named(jax.random.key(1), 'layer/kernel', 3)).tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "5", "JAX_PLATFORMS": "cpu", "PATH": ""},
    )
    here = data(named(jax.random.key(1), "layer/kernel", 3))
    assert done.stdout.strip() == str(list(here))


def test_old_style_keys_are_refused():
    with pytest.raises(Exception, match="key"):
        named(jnp.zeros((2,)), "x")
