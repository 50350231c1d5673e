"""Rules, batches and activations on eight simulated devices: the output specs are asserted, and the numbers."""

import os
import socket
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxvid.core import mesh as meshes
from jaxvid.core.errors import UserError
from jaxvid.core.mesh import MeshConfig, make_mesh, parameter_sharding

DEVICES = jax.devices()[:8]


def abstract(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


@pytest.mark.parametrize(
    ("config", "count", "shape"),
    [
        (MeshConfig(), 8, (8, 1, 1, 1)),
        (MeshConfig(data=2, fsdp=-1), 8, (2, 4, 1, 1)),
        (MeshConfig(data=1, fsdp=2, tensor=2, frames=2), 8, (1, 2, 2, 2)),
        (MeshConfig(fsdp=4, tensor=4), 16, (1, 4, 4, 1)),
    ],
)
def test_mesh_shape(config, count, shape):
    assert meshes.mesh_shape(config, count) == shape


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (MeshConfig(fsdp=3), "multiple of 3"),
        (MeshConfig(data=2), "needs 2 devices but there are 8"),
        (MeshConfig(data=16), "needs 16 devices but there are 8"),
        (MeshConfig(data=-1, fsdp=-1), "one may be -1"),
        (MeshConfig(tensor=0), "must be positive"),
        (MeshConfig(tensor=-2), "must be positive"),
    ],
)
def test_mesh_that_does_not_fit_is_one_line(config, words):
    with pytest.raises(UserError, match=words) as caught:
        make_mesh(config, DEVICES)
    assert "\n" not in str(caught.value)


def test_one_device_needs_no_mesh():
    assert make_mesh(MeshConfig(), DEVICES[:1]) is None
    with pytest.raises(UserError):
        make_mesh(MeshConfig(fsdp=2), DEVICES[:1])
    tree = {"a/kernel": abstract(4, 4)}
    assert parameter_sharding(None, tree) == {"a/kernel": None}
    assert meshes.batch_sharding(None) is None
    assert meshes.explain(None, tree) == []
    assert meshes.process_shard(None) == (0, 1)
    meshes.check_batch(None, 3)
    with meshes.active(None):
        batch = meshes.to_global(None, {"index": np.arange(3)})
    np.testing.assert_array_equal(batch["index"], [0, 1, 2])


@pytest.mark.parametrize(
    ("path", "shape", "spec"),
    [
        ("down/0/blocks/conv1/kernel", (3, 3, 8, 16), P(None, None, "fsdp", "tensor")),
        ("down/0/blocks/conv2/kernel", (3, 3, 16, 8), P(None, None, "tensor", "fsdp")),
        ("blocks/conv1/kernel", (12, 3, 3, 8, 16), P(None, None, None, "fsdp", "tensor")),
        ("blocks/conv1/bias", (12, 16), P(None, "tensor")),
        ("blocks/conv2/bias", (12, 16), P()),
        ("mid/attention/query/kernel", (8, 8), P("fsdp", "tensor")),
        ("mid/attention/value/kernel", (4, 8, 8), P(None, "fsdp", "tensor")),
        ("mid/attention/out/kernel", (4, 8, 8), P(None, "tensor", "fsdp")),
        ("time/0/kernel", (8, 32), P(None, "fsdp")),
        ("time/1/kernel", (32, 8), P("fsdp")),
        ("norm/scale", (64,), P()),
        # the stacked layer axis is never split, however large
        ("blocks/dense/kernel", (64, 7, 4), P(None, None, "fsdp")),
        ("blocks/dense/kernel", (64, 7, 3), P()),
        # collision and indivisible: the axis that does not fit is left out, the other stays
        ("conv1/kernel", (3, 3, 3, 16), P(None, None, None, "tensor")),
        ("conv1/kernel", (3, 3, 8, 5), P(None, None, "fsdp")),
        ("out/kernel", (8, 3), P("tensor")),
        # (2+1)D convolutions
        ("down/0/residual/conv1/temporal/kernel", (2, 3, 16, 16), P(None, None, "tensor", "fsdp")),
        ("down/0/residual/condition/kernel", (2, 32, 16), P(None, "fsdp", "tensor")),
        ("down/0/residual/condition/bias", (2, 16), P(None, "tensor")),
        # optimizer slots carry their parameter's path
        ("1/0/mu/blocks/conv1/kernel", (3, 3, 8, 16), P(None, None, "fsdp", "tensor")),
        ("1/0/count", (), P()),
        # a name that only ends alike is another name
        ("layout/kernel", (8, 16), P(None, "fsdp")),
    ],
)
def test_parameter_rules(path, shape, spec):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2), DEVICES)
    assert parameter_sharding(mesh, {path: abstract(*shape)})[path].spec == spec


def test_axes_of_size_one_are_not_named():
    mesh = make_mesh(MeshConfig(), DEVICES)
    assert (
        parameter_sharding(mesh, {"conv1/kernel": abstract(3, 3, 8, 16)})["conv1/kernel"].spec
        == P()
    )


def test_explain_names_what_stayed_whole():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2), DEVICES)
    tree = {"a/conv1/kernel": abstract(3, 3, 8, 5), "a/query/kernel": abstract(8, 8)}
    lines = meshes.explain(mesh, tree)
    assert len(lines) == 1
    assert "a/conv1/kernel" in lines[0]
    assert "tensor=2" in lines[0]


def block(params, x):
    """Dense pair and attention on [b, t, c]: one of every rule."""
    hidden = meshes.constrain(jax.nn.gelu(x @ params["conv1/kernel"]), "b t hidden")
    x = meshes.constrain(x + hidden @ params["conv2/kernel"], "b t c")
    q, k, v = (
        (x @ params[f"{name}/kernel"]).reshape(*x.shape[:2], 4, -1)
        for name in ("query", "key", "value")
    )
    q = meshes.constrain(q, "b t heads c")
    weights = jax.nn.softmax(jnp.einsum("bthc,bshc->bhts", q, k))
    y = jnp.einsum("bhts,bshc->bthc", weights, v).reshape(x.shape)
    return meshes.constrain(x + y @ params["out/kernel"], "b t c")


def gradient_step(params, x):
    def loss(params):
        return jnp.mean(jnp.square(block(params, x)))

    value, gradient = jax.value_and_grad(loss)(params)
    return value, gradient, block(params, x)


def problem():
    rng = np.random.default_rng(0)
    shapes = {"conv1": (16, 32), "conv2": (32, 16)} | dict.fromkeys(
        ("query", "key", "value", "out"), (16, 16)
    )
    params = {
        f"{name}/kernel": rng.normal(size=shape, scale=0.2).astype(np.float32)
        for name, shape in shapes.items()
    }
    return params, rng.normal(size=(8, 4, 16)).astype(np.float32)


@pytest.mark.parametrize(
    "config",
    [
        MeshConfig(),
        MeshConfig(data=1, fsdp=8),
        MeshConfig(data=2, fsdp=2, tensor=2),
        MeshConfig(data=2, tensor=2, frames=2),
    ],
    ids=["data", "fsdp", "tensor", "frames"],
)
def test_sharded_equals_single_device_and_keeps_its_specs(config):
    params, x = problem()
    expected_loss, expected_gradient, _ = jax.jit(gradient_step)(params, x)

    mesh = make_mesh(config, DEVICES)
    shardings = parameter_sharding(mesh, params)
    params = {path: jax.device_put(value, shardings[path]) for path, value in params.items()}
    x = jax.device_put(x, meshes.batch_sharding(mesh, "b t"))
    outputs = (meshes.replicated(mesh), shardings, None)
    with meshes.active(mesh):
        loss, gradient, y = jax.jit(gradient_step, out_shardings=outputs)(params, x)

    assert y.sharding.is_equivalent_to(meshes.batch_sharding(mesh, "b t"), y.ndim)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    for path in params:
        assert gradient[path].sharding.spec == shardings[path].spec
        error = np.linalg.norm(gradient[path] - expected_gradient[path])
        assert error <= 1e-5 * np.linalg.norm(expected_gradient[path]), path


def test_initialiser_is_born_sharded():
    mesh = make_mesh(MeshConfig(data=2, fsdp=4), DEVICES)

    def init(key):
        kernel = jax.random.normal(key, (16, 8))
        return {"trainable": {"dense/kernel": kernel}, "step": jnp.int32(0)}

    shardings = meshes.tree_sharding(mesh, jax.eval_shape(init, jax.random.key(0)))
    state = jax.jit(init, out_shardings=shardings)(jax.random.key(0))
    kernel = state["trainable"]["dense/kernel"]
    assert kernel.sharding.spec == P("fsdp")
    assert kernel.addressable_shards[0].data.shape == (4, 8)
    np.testing.assert_array_equal(kernel, init(jax.random.key(0))["trainable"]["dense/kernel"])
    described = meshes.with_sharding(jax.eval_shape(init, jax.random.key(0)), shardings)
    assert described["trainable"]["dense/kernel"].sharding.spec == P("fsdp")


def test_constrain_outside_a_mesh_or_a_trace_is_the_identity():
    x = jnp.ones((8, 4))
    assert meshes.constrain(x, "b c") is x
    jaxpr = jax.make_jaxpr(lambda x: meshes.constrain(x, "b c"))(x)
    assert not jaxpr.eqns
    mesh = make_mesh(MeshConfig(), DEVICES)
    with meshes.active(mesh):
        assert meshes.constrain(x, "b c") is x
        with pytest.raises(ValueError, match="names 3 dimensions"):
            jax.jit(lambda x: meshes.constrain(x, "b t c"))(x)


def test_constrain_leaves_an_indivisible_dimension_whole():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, frames=2), DEVICES)
    pin = jax.jit(lambda x: meshes.constrain(x * 2.0, "b t c"))
    with meshes.active(mesh):
        assert pin(jnp.ones((8, 4, 3))).sharding.spec == P(("data", "fsdp"), "frames")
        assert pin(jnp.ones((8, 5, 3))).sharding.spec == P(("data", "fsdp"))
        assert pin(jnp.ones((3, 4, 3))).sharding.spec == P(None, "frames")


def frame_stack(kernels, x):
    """Two scanned, rematerialised layers that fold frames into the batch, as a per-frame convolution does."""

    def fold(x, kernel, bias):
        rows = x.reshape(-1, *x.shape[2:])
        y = jax.lax.conv_general_dilated(
            rows, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return (y + bias).reshape(x.shape)

    def layer(x, kernel):
        return jnp.sin(meshes.per_frame(fold, x, kernel, kernel[0, 0, 0])), None

    return jnp.mean(jnp.square(jax.lax.scan(jax.checkpoint(layer), x, kernels)[0]))


def frame_problem():
    rng = np.random.default_rng(0)
    kernels = rng.normal(size=(2, 3, 3, 4, 4), scale=0.3).astype(np.float32)
    return kernels, rng.normal(size=(8, 4, 6, 6, 4)).astype(np.float32)


@pytest.mark.parametrize(
    "config",
    [MeshConfig(data=2, fsdp=2, frames=2), MeshConfig(data=1, tensor=2, frames=4), MeshConfig()],
    ids=["fsdp", "tensor", "whole"],
)
def test_per_frame_equals_the_function_itself(config):
    kernels, x = frame_problem()
    fold = jax.value_and_grad(frame_stack, (0, 1))
    expected = jax.jit(fold)(kernels, x)  # no mesh is active: the function itself
    mesh = make_mesh(config, DEVICES)
    with meshes.active(mesh):
        actual = jax.jit(fold)(kernels, jax.device_put(x, meshes.batch_sharding(mesh, "b t")))
    np.testing.assert_allclose(actual[0], expected[0], rtol=1e-6)
    for ours, theirs in zip(actual[1], expected[1], strict=True):
        assert np.linalg.norm(ours - theirs) <= 1e-5 * np.linalg.norm(theirs)


def test_per_frame_gathers_no_frames():
    """Four examples on a device, so that (b t) has no split layout: the compiler alone computes all frames twice."""
    mesh = make_mesh(MeshConfig(data=4, frames=2), DEVICES)
    kernel, x = (jax.ShapeDtypeStruct(a.shape, a.dtype) for a in frame_problem())
    x = jax.ShapeDtypeStruct(
        (16, *x.shape[1:]), x.dtype, sharding=meshes.batch_sharding(mesh, "b t")
    )
    with meshes.active(mesh):
        text = jax.jit(jax.grad(frame_stack)).lower(kernel, x).compile().as_text()
    assert "all-gather" not in text
    assert "all-to-all" not in text
    assert "all-reduce" in text  # the kernels' gradients


def test_per_frame_without_a_split_is_the_function_itself():
    kernels, x = frame_problem()
    assert "shard_map" not in str(jax.make_jaxpr(frame_stack)(kernels, x))
    with meshes.active(make_mesh(MeshConfig(data=4, frames=2), DEVICES)):
        assert "shard_map" in str(jax.make_jaxpr(frame_stack)(kernels, x))
        for odd in (x[:, :3], x[:3]):  # the axes do not divide three
            assert "shard_map" not in str(jax.make_jaxpr(frame_stack)(kernels, odd))


def test_batches():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, frames=2), DEVICES)
    host = {
        "video": np.arange(8 * 4 * 2 * 2 * 3, dtype=np.uint8).reshape(8, 4, 2, 2, 3),
        "segment": np.zeros((8, 4), np.int32),
        "tokens": np.ones((8, 2, 5), np.int32),
        "index": np.arange(8, dtype=np.int64),
    }
    batch = meshes.to_global(mesh, host)
    examples = ("data", "fsdp")
    assert batch["video"].sharding.spec == P(examples, "frames")
    assert batch["segment"].sharding.spec == P(examples, "frames")
    assert batch["tokens"].sharding.spec == P(examples)
    assert batch["index"].sharding.spec == P(examples)
    for name, value in host.items():
        np.testing.assert_array_equal(batch[name], value)
    odd = meshes.to_global(mesh, {"video": host["video"][:, :3]})  # three frames over two devices
    assert odd["video"].sharding.spec == P(examples)

    meshes.check_batch(mesh, 8)
    for size in (6, 0):
        with pytest.raises(UserError, match=f"batch size {size} .* data x fsdp = 4; use 4"):
            meshes.check_batch(mesh, size)


PROCESS = """
    import sys
    import jax, numpy as np
    jax.distributed.initialize("127.0.0.1:{port}", num_processes=2, process_id={process})
    from jax.sharding import AxisType, Mesh
    from jaxvid.core import mesh as meshes
    devices = sorted(jax.devices(), key=lambda device: device.id)
    # rows of the two processes interleaved, as on a TPU where hosts own squares of the torus
    order = [devices[i] for i in (0, 2, 1, 3)]
    mesh = Mesh(np.array(order).reshape(2, 2, 1, 1), meshes.AXES, axis_types=(AxisType.Auto,) * 4)
    index, count = meshes.process_shard(mesh)
    assert (index, count) == ({process}, 2), (index, count)
    part = np.arange(8).reshape(2, 4)[index]
    batch = meshes.to_global(mesh, {{"index": part}})["index"]
    assert batch.shape == (8,)
    values = jax.jit(lambda x: x, out_shardings=meshes.replicated(mesh))(batch)
    assert sorted(np.asarray(values)) == list(range(8)), values
    # tensor runs over both processes: they load the same examples
    mesh = Mesh(np.array(devices).reshape(2, 2).T.reshape(2, 1, 2, 1), meshes.AXES, axis_types=(AxisType.Auto,) * 4)
    assert meshes.process_shard(mesh) == (0, 1)
    batch = meshes.to_global(mesh, {{"index": np.arange(8)}})["index"]
    values = jax.jit(lambda x: x, out_shardings=meshes.replicated(mesh))(batch)
    assert list(np.asarray(values)) == list(range(8)), values
    print("agreed")
"""


def test_two_processes_deal_the_rows(tmp_path):

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    children = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(PROCESS.format(port=port, process=process))],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for process in range(2)
    ]
    for child in children:
        output = child.communicate(timeout=120)[0]
        assert child.returncode == 0, output
        assert "agreed" in output
