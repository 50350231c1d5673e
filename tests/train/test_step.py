import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec
from tiny import BATCH, FEATURES, Counting, loss, params

from jaxvid.core.errors import UserError
from jaxvid.core.mesh import MeshConfig, active, make_mesh, to_global, tree_sharding
from jaxvid.core.paths import flatten
from jaxvid.core.rng import named
from jaxvid.train.optimizer import (
    OptimizerConfig,
    learning_rate,
    make_optimizer,
    update_average,
)
from jaxvid.train.state import carry, make_state, weights
from jaxvid.train.step import make_step, mean_gradient

KEY = jax.random.key(5)
VALUES = jax.jit(params)(KEY)


def trained(path):
    return not path.startswith("features")


def batch(number=0):
    return {name: jnp.asarray(value) for name, value in next(Counting(number)).items()}


def relative(first, second):
    a, b = (np.concatenate([np.ravel(tree[path]) for path in first]) for tree in (first, second))
    return np.linalg.norm(a - b) / np.linalg.norm(b)


# Gradient


def parts_of(accumulate):
    moving = {path: leaf for path, leaf in VALUES.items() if trained(path)}
    frozen = {path: leaf for path, leaf in VALUES.items() if not trained(path)}
    return jax.jit(
        lambda: mean_gradient(loss, moving, frozen, batch(), KEY, accumulate=accumulate)
    )()


def test_the_gradient_is_that_of_the_mean_with_a_key_for_each_position():
    """Example by example, in a Python loop."""
    moving = {path: leaf for path, leaf in VALUES.items() if trained(path)}

    @jax.jit
    @jax.value_and_grad
    def one_loss(moving, one, key):
        return loss({**VALUES, **moving}, one, key[None])[0][0]

    ones = [
        one_loss(moving, {name: leaf[i : i + 1] for name, leaf in batch().items()}, named(KEY, i))
        for i in range(BATCH)
    ]
    expected_loss = sum(float(value) for value, _ in ones) / BATCH
    expected = {path: sum(np.asarray(g[path]) for _, g in ones) / BATCH for path in moving}
    gradient, sums = parts_of(1)
    assert gradient.keys() == moving.keys()
    assert relative(gradient, expected) < 1e-6
    assert abs(sums["loss"][0] / sums["loss"][1] - expected_loss) < 1e-6
    assert sums["loss"][1] == BATCH


@pytest.mark.parametrize("accumulate", [4, 16])
def test_parts_give_the_gradient_and_sums_of_the_whole(accumulate):
    whole, whole_sums = parts_of(1)
    gradient, sums = parts_of(accumulate)
    assert relative(gradient, whole) < 1e-6
    assert sums.keys() == whole_sums.keys() == {"loss", "loss_positive"}
    for name in sums:
        np.testing.assert_allclose(sums[name], whole_sums[name], rtol=1e-6)
    assert 0 < sums["loss_positive"][1] < BATCH


def test_a_mesh_gives_the_numbers_of_one_device():
    optimizer = make_optimizer(OptimizerConfig(1e-2), 10)
    step = jax.jit(make_step(loss, optimizer, accumulate=2))
    state = make_state(VALUES, optimizer, trainable=trained)
    single, single_sums = step(state, batch(), KEY)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    placed = jax.tree.map(jax.device_put, state, tree_sharding(mesh, state))
    with active(mesh):
        many, many_sums = jax.jit(step, out_shardings=(tree_sharding(mesh, state), None))(
            placed, to_global(mesh, next(Counting(0))), KEY
        )
    assert many["trainable"]["hidden/conv1/kernel"].sharding.spec == PartitionSpec("fsdp", "tensor")
    moments = flatten(many["optimizer"])
    (path,) = (path for path in moments if path.endswith("mu/hidden/conv1/kernel"))
    assert moments[path].sharding.spec == PartitionSpec("fsdp", "tensor")
    np.testing.assert_allclose(many_sums["loss"], single_sums["loss"], rtol=1e-6)
    np.testing.assert_allclose(many_sums["grad_norm"], single_sums["grad_norm"], rtol=1e-5)
    assert relative(many["trainable"], single["trainable"]) < 1e-5


def test_parts_must_divide_the_batch():
    with pytest.raises(UserError, match="16 examples cannot be accumulated in 3 parts"):
        parts_of(3)


# Step


def test_frozen_parameters_stay_and_have_no_slots():
    optimizer = make_optimizer(OptimizerConfig(1e-2, weight_decay=0.1), 10)
    state = make_state(VALUES, optimizer, trainable=trained)
    assert set(state["frozen"]) == {"features/kernel"}
    assert set(state["ema"]) == set(state["trainable"])
    assert not [path for path in flatten(state["optimizer"]) if "features" in path]
    before = np.asarray(state["frozen"]["features/kernel"]).tobytes()
    step = jax.jit(make_step(loss, optimizer))
    for number in range(3):
        state, _ = step(state, batch(number), named(KEY, number))
    assert np.asarray(state["frozen"]["features/kernel"]).tobytes() == before
    assert int(state["extra"]["updates"]) == 3
    assert set(weights(state)) == set(VALUES)


def test_adam_and_the_average_follow_their_formulas():
    """Five steps of clipped AdamW and the EMA in float64 numpy, from the gradients of the step."""
    config = OptimizerConfig(
        3e-2, b1=0.8, b2=0.95, weight_decay=0.1, warmup_steps=2, decay="linear", clip_norm=0.3
    )
    optimizer = make_optimizer(config, 6)
    state = make_state(VALUES, optimizer, trainable=trained)
    step = jax.jit(make_step(loss, optimizer, ema_decay=0.3))
    values = {path: np.asarray(leaf, np.float64) for path, leaf in state["trainable"].items()}
    average = dict(values)
    m = {path: np.zeros_like(leaf) for path, leaf in values.items()}
    v = {path: np.zeros_like(leaf) for path, leaf in values.items()}
    gradient_of = jax.jit(lambda *groups: mean_gradient(loss, *groups, KEY)[0])
    for n in range(5):
        gradient = gradient_of(state["trainable"], state["frozen"], batch(n))
        gradient = {path: np.asarray(leaf, np.float64) for path, leaf in gradient.items()}
        norm = np.sqrt(sum(np.sum(leaf**2) for leaf in gradient.values()))
        state, sums = step(state, batch(n), KEY)
        np.testing.assert_allclose(sums["grad_norm"][0], norm, rtol=1e-5)
        assert norm > 0.3  # the clipping is in use
        rate = 3e-2 * min(1, (n + 1) / 2) * (1 - max(0, (n - 2) / 4))
        keep = min(0.3, (1 + (n + 1)) / (10 + (n + 1)))
        for path in values:
            g = gradient[path] * 0.3 / norm
            m[path] = 0.8 * m[path] + 0.2 * g
            v[path] = 0.95 * v[path] + 0.05 * g**2
            change = m[path] / (1 - 0.8 ** (n + 1))
            change = change / (np.sqrt(v[path] / (1 - 0.95 ** (n + 1))) + 1e-8)
            decay = 0.1 * values[path] if path.endswith("kernel") else 0
            values[path] = values[path] - rate * (change + decay)
            average[path] = keep * average[path] + (1 - keep) * values[path]
        assert relative(state["trainable"], values) < 1e-5
        assert relative(state["ema"], average) < 1e-5


@pytest.mark.parametrize("decay", ["constant", "cosine", "linear"])
@pytest.mark.parametrize("warmup", [0, 5])
def test_the_learning_rate_follows_its_formula(decay, warmup):
    config = OptimizerConfig(0.5, warmup_steps=warmup, decay=decay)
    for n in [0, 1, 4, 5, 6, 12, 19, 20, 25]:
        p = min(max((n - warmup) / (20 - warmup), 0), 1)
        factor = {"constant": 1, "cosine": (1 + np.cos(np.pi * p)) / 2, "linear": 1 - p}[decay]
        warm = 1 if warmup == 0 else min(1, (n + 1) / warmup)
        rate = learning_rate(config, 20, jnp.int32(n))
        assert rate.dtype == jnp.float32
        np.testing.assert_allclose(rate, 0.5 * warm * factor, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "bad", [{"learning_rate": 0.0}, {"b1": 1.0}, {"b2": -0.1}, {"clip_norm": 0.0}]
)
def test_settings_out_of_range_are_refused(bad):
    with pytest.raises(UserError, match=next(iter(bad))):
        make_optimizer(OptimizerConfig(**bad), 10)


def with_singular_values(rng, inputs, outputs, values):
    left = np.linalg.qr(rng.standard_normal((inputs, outputs)))[0]
    right = np.linalg.qr(rng.standard_normal((outputs, outputs)))[0]
    return left, right, left * values @ right.T


def test_muon_makes_every_direction_of_a_kernel_equally_long():
    """A kernel's update is rate * 0.2 sqrt(max side) U V^T of its gradient, to Newton-Schulz's accuracy: [0.6, 1.25].

    Taps count as inputs, stacked layers are matrices of their own.
    """
    rng = np.random.default_rng(0)
    # path, shape of the matrix, shape of the kernel
    rows = [
        ("unet/middle/spatial/attention/query/kernel", (24, 8), (24, 8)),
        ("unet/middle/residual/conv1/kernel", (36, 8), (3, 3, 4, 8)),
        ("unet/middle/residual/conv2/temporal/kernel", (12, 4), (3, 4, 4)),
    ]
    gradients, vectors = {}, {}
    for path, (inputs, outputs), shape in rows:
        left, right, matrix = with_singular_values(
            rng, inputs, outputs, np.linspace(0.4, 1, outputs)
        )
        other = with_singular_values(rng, inputs, outputs, np.linspace(9, 3, outputs))[2]
        gradients[path] = jnp.asarray(matrix.reshape(shape), jnp.float32)
        stacked = np.stack([other.reshape(shape), matrix.reshape(shape)])
        gradients[path.replace("middle", "down/0")] = jnp.asarray(stacked, jnp.float32)
        vectors[path] = left, right
    config = OptimizerConfig(0.5, method="muon", clip_norm=None)
    optimizer = make_optimizer(config, 10)
    values = {path: jnp.zeros(leaf.shape) for path, leaf in gradients.items()}
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = optimizer.update(gradients, optimizer.init(values), values)
    for path, (left, right) in vectors.items():
        inputs, outputs = len(left), len(right)
        stacked = updates[path.replace("middle", "down/0")]
        for update in (updates[path], stacked[1]):
            matrix = np.asarray(update).reshape(inputs, outputs)
            found = -(left.T @ matrix @ right) / (0.5 * 0.2 * max(inputs, outputs) ** 0.5)
            assert (np.diag(found) > 0.6).all()
            assert (np.diag(found) < 1.25).all()
            np.testing.assert_allclose(found, np.diag(np.diag(found)), atol=1e-4)


def test_muon_leaves_borders_text_and_vectors_to_nesterov_adam():
    rng = np.random.default_rng(1)
    paths = {
        "unet/stem/kernel": (3, 3, 4, 8),
        "unet/head/kernel": (3, 3, 8, 4),
        "unet/middle/residual/norm1/scale": (8,),
        "unet/middle/residual/conv1/bias": (8,),
        "unet/middle/temporal/positions/keys": (5, 4),
        "text/layers/attention/query/kernel": (1, 8, 8),
        "text/words/table": (9, 8),
        "pool/out/kernel": (8, 8),
    }
    values = {path: jnp.asarray(rng.standard_normal(s), jnp.float32) for path, s in paths.items()}
    config = OptimizerConfig(0.1, b2=0.99, weight_decay=0.01, method="muon", clip_norm=None)
    updates = []
    for optimizer in (make_optimizer(config, 10), optax.nadam(0.1, b2=0.99)):
        with jax.numpy_dtype_promotion("standard"):
            updates.append(optimizer.update(values, optimizer.init(values), values)[0])
    for path in paths:
        np.testing.assert_allclose(updates[0][path], updates[1][path], rtol=1e-5, err_msg=path)


def test_an_average_keeps_its_precision_and_dtype():
    old = {"a": jnp.asarray([1.0, 2.0], jnp.bfloat16)}
    new = update_average(old, {"a": jnp.asarray([3.0, 2.0])}, 0.5, jnp.int32(100))
    assert new["a"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(new["a"].astype(jnp.float32), [2.0, 2.0])


def test_no_average_where_none_is_wanted():
    optimizer = optax.sgd(0.1)
    state = make_state(VALUES, optimizer, ema=False)
    state, _ = jax.jit(make_step(loss, optimizer, ema_decay=None))(state, batch(), KEY)
    assert state["ema"] == {}
    np.testing.assert_array_equal(weights(state)["out/kernel"], state["trainable"]["out/kernel"])


def test_a_state_can_be_donated():
    optimizer = make_optimizer(OptimizerConfig(), 10)
    step = jax.jit(make_step(loss, optimizer), donate_argnums=0)
    for make in (make_state, jax.jit(make_state, static_argnums=1)):
        state = make({path: jnp.array(leaf) for path, leaf in VALUES.items()}, optimizer)
        before = np.array(state["ema"]["out/kernel"])
        for _ in range(2):
            state, _ = step(state, batch(), KEY)
        assert np.abs(state["ema"]["out/kernel"] - before).max() > 0


# Phases


def test_values_are_carried_by_path_where_the_shape_is_the_same():
    previous = {"a": np.ones(2, np.float32), "b": np.ones(3, np.float32), "gone": np.ones(1)}
    fresh = {"a": jnp.zeros(2, jnp.bfloat16), "b": jnp.zeros(4), "new": jnp.zeros(1)}
    result = carry(previous, fresh)
    assert list(result) == ["a", "b", "new"]
    assert result["a"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(result["a"].astype(jnp.float32), 1.0)
    np.testing.assert_array_equal(result["b"], np.zeros(4))
    assert carry(None, fresh) == fresh


def test_the_loss_of_the_examples_in_this_file_depends_on_its_keys():
    """Otherwise the tests above would say nothing about keys."""
    keys = jax.vmap(lambda i: named(KEY, i))(jnp.arange(BATCH))
    first = loss(VALUES, batch(), keys)[0]
    second = loss(VALUES, batch(), keys[::-1])[0]
    assert first.shape == (BATCH,)
    assert batch()["x"].shape == (BATCH, FEATURES)
    assert float(jnp.max(jnp.abs(first - second))) > 1e-3
