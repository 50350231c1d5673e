"""A train step on eight simulated devices is the step on one, and everything stays where the rules put it."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import naive
import numpy as np
import pytest
from tiny_vdm import joint_batch, parameters, system

from jaxvid.core.mesh import (
    MeshConfig,
    active,
    batch_sharding,
    make_mesh,
    replicated,
    to_global,
    tree_sharding,
)
from jaxvid.core.paths import flatten
from jaxvid.models.unet import UNet
from jaxvid.systems.vdm.training import phases
from jaxvid.train.optimizer import make_optimizer
from jaxvid.train.state import make_state

CONFIG = system(text=True)
BATCH = joint_batch(CONFIG, batch=8)
KEY = jax.random.key(2)


def one_step(config, mesh):
    """The state after a step from random values, its shardings, and the loss."""
    optimizer = make_optimizer(config.stages[0].optimizer, config.stages[0].steps)
    state = make_state(
        {path: jnp.asarray(leaf) for path, leaf in parameters(config).items()}, optimizer
    )
    shardings = tree_sharding(mesh, state)
    phase = phases(config)[0]
    with active(mesh):
        if mesh is None:
            step = naive.compiled(phase.step)
        else:
            state = jax.device_put(state, shardings)
            step = naive.compiled(phase.step, out_shardings=(shardings, replicated(mesh)))
        state, sums = step(state, to_global(mesh, BATCH), KEY)
    return flatten(state), flatten(shardings), float(sums["loss"][0] / sums["loss"][1])


def gradient(state):
    """From Adam's first moment, which is a tenth of it after one step."""
    moments = {path: leaf for path, leaf in state.items() if "/mu/" in path}
    assert len(moments) == len(parameters(CONFIG))
    return {path.partition("/mu/")[2]: np.asarray(leaf) / 0.1 for path, leaf in moments.items()}


@pytest.fixture(scope="module")
def single():
    return one_step(CONFIG, None)


@pytest.mark.parametrize(
    ("mesh", "parts"),
    [
        (MeshConfig(data=8), 1),
        (MeshConfig(data=1, fsdp=8), 1),
        (MeshConfig(data=4, tensor=2), 1),
        (MeshConfig(data=1, fsdp=2, tensor=2, frames=2), 2),
    ],
    ids=["data", "fsdp", "tensor", "mixed and accumulated"],
)
def test_sharded_equals_single_device(single, mesh, parts):
    expected, _, expected_loss = single
    config = replace(CONFIG, stages=(replace(CONFIG.stages[0], accumulate=parts),))
    state, shardings, loss = one_step(config, make_mesh(mesh, jax.devices()[:8]))
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)

    found, wanted = gradient(state), gradient(expected)
    assert found.keys() == wanted.keys()
    norm = np.sqrt(sum(np.square(leaf).sum() for leaf in wanted.values()))
    difference = sum(np.square(found[path] - leaf).sum() for path, leaf in wanted.items())
    assert np.sqrt(difference) <= 1e-5 * norm
    for path, leaf in wanted.items():
        assert np.any(leaf != 0), path
        assert np.linalg.norm(found[path] - leaf) <= 1e-5 * np.linalg.norm(leaf) + 1e-7 * norm, path

    for path, leaf in state.items():
        assert leaf.sharding.is_equivalent_to(shardings[path], leaf.ndim), path
    kernel = "unet/down/0/residual/conv1/kernel"
    ways = mesh.fsdp * mesh.tensor
    for group in ("trainable", "ema", "optimizer/1/0/mu", "optimizer/1/0/nu"):
        shard = state[f"{group}/{kernel}"].addressable_shards[0].data
        assert shard.size * ways == state[f"{group}/{kernel}"].size


def test_split_frames_meet_in_temporal_attention_alone():
    """Frames over two devices and two examples on each: no layer of the image model gathers another device's frames."""
    mesh = make_mesh(MeshConfig(data=4, frames=2), jax.devices()[:8])

    def program(temporal):
        unet = jax.eval_shape(
            lambda key: UNet(replace(CONFIG.model, temporal_attention=temporal), key), KEY
        )

        def total(unet, z, logsnr):
            return jnp.mean(jnp.square(unet(z, logsnr)))

        sharding = batch_sharding(mesh, "b t")
        z = jax.ShapeDtypeStruct((8, 4, 8, 8, 3), jnp.float32, sharding=sharding)
        logsnr = jax.ShapeDtypeStruct((8, 4), jnp.float32, sharding=sharding)
        with active(mesh):
            return naive.compiled(jax.grad(total)).lower(unet, z, logsnr).compile().as_text()

    exchanges = ("all-gather", "all-to-all", "collective-permute")
    assert not any(name in program(temporal=False) for name in exchanges)
    assert any(name in program(temporal=True) for name in exchanges)
