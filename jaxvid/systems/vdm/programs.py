"""The programs of a VDM that `jaxvid plan` compiles for absent machines: the real train step and a sampling run."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxvid.core.config import load_config, parse_overrides
from jaxvid.core.errors import UserError
from jaxvid.core.mesh import (
    batch_sharding,
    check_batch,
    make_mesh,
    parameter_sharding,
    tree_sharding,
    with_sharding,
)
from jaxvid.core.paths import flatten
from jaxvid.diffusion import driver
from jaxvid.plan import Program
from jaxvid.systems.vdm import sampling, training
from jaxvid.systems.vdm.config import VDMConfig, stage_data
from jaxvid.systems.vdm.networks import abstract_networks


def load(config: str, overrides: Sequence[str]) -> VDMConfig:
    """The named configuration with the command line's changes."""
    loaded = load_config(config)
    if not isinstance(loaded, VDMConfig):
        raise UserError(f"config {config} is a {type(loaded).__name__}, not a VDM")
    return parse_overrides(loaded, overrides, prog=f"jaxvid plan {config}")


def train_program(name: str, overrides: Sequence[str], devices: Sequence[Any]) -> Program:
    """The last stage's train step, state and batch sharded over `devices` by the configuration's mesh."""
    config = load(name, overrides)
    mesh, stage = make_mesh(config.mesh, devices), config.stages[-1]
    check_batch(mesh, stage.batch)
    phase = training.phases(config)[-1]
    state = jax.eval_shape(lambda key: phase.init(None, key), jax.random.key(0))
    clip = stage_data(config, stage).frames
    batch = abstract_batch(config, stage.batch, clip, stage.images, mesh)
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = with_sharding(state, tree_sharding(mesh, state)) if mesh is not None else state
    shardings = None if mesh is None else (tree_sharding(mesh, state), None)
    return Program(
        phase.step, (state, batch, key), (0,), shardings, {**state["trainable"], **state["frozen"]}
    )


def abstract_batch(
    config: VDMConfig, batch: int, frames: int, images: int, mesh: Any
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a batch as the pipeline gives them."""
    total = frames + images
    pixels = (batch, total, config.data.height, config.data.width, 3)
    shapes: dict[str, tuple[tuple[int, ...], Any, str]] = {
        "video": (pixels, jnp.uint8, "b t h w c"),
        "segment": ((batch, total), jnp.int32, "b t"),
    }
    if len(config.data.skips) > 1:
        shapes["rate"] = ((batch, 1 + images), jnp.int32, "b s")
    if config.tokenizer is not None:
        shapes["tokens"] = ((batch, 1 + images, config.tokenizer.length), jnp.int32, "b s n")
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(mesh, layout))
        for name, (shape, dtype, layout) in shapes.items()
    }


def sample_program(name: str, overrides: Sequence[str], devices: Sequence[Any]) -> Program:
    """A whole sampling run of one clip a data-parallel device, with guidance if the model has text."""
    config = load(name, overrides)
    mesh = make_mesh(config.mesh, devices)
    params = flatten(abstract_networks(config))
    if mesh is not None:
        params = with_sharding(params, parameter_sharding(mesh, params))
    count = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
    settings = config.sampling
    plan = sampling.Plan(
        guided=config.text is not None, known=False, low=False, method="reconstruction"
    )
    levels = sampling.make_levels(config, settings)

    def run(params: Any, z: Any, embedding: Any, key: Any) -> Any:
        args = {
            "params": params,
            "embedding": embedding,
            "guidance": jnp.float32(settings.guidance),
            "percentile": jnp.float32(settings.percentile),
            "rate": jnp.int32(0),
        }
        denoise = sampling.make_denoise(config, settings.threshold, plan, args)
        return driver.scan(sampling.make_sampler(settings), denoise, z, jnp.asarray(levels), key)

    pixels = (count, config.data.frames, config.data.height, config.data.width, 3)
    z = jax.ShapeDtypeStruct(pixels, jnp.float32, sharding=batch_sharding(mesh, "b t h w c"))
    embedding = None
    if config.text is not None:
        vector = (count, config.model.embedding_width)
        embedding = jax.ShapeDtypeStruct(vector, jnp.float32, sharding=batch_sharding(mesh, "b e"))
    key = jax.eval_shape(lambda: jax.random.key(0))
    return Program(run, (params, z, embedding, key))
