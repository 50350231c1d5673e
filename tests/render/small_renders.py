"""Small fields, rays and edges that the renderer's tests share."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxedit.fields.field import Frame
from jaxedit.fields.voxel_grid import VoxelGrid, VoxelGridConfig
from jaxedit.scene.cameras import Rays

WHITE = jnp.ones(3)


class Medium(nnx.Module):
    """Constant density inside a box, one colour."""

    def __init__(self, density, frame=None):
        self.value, self.frame = nnx.Param(jnp.float32(density)), frame or Frame()

    def density(self, points):
        unit = self.frame.to_unit(points)
        return jnp.where(jnp.all((unit >= 0) & (unit <= 1), -1), self.value[...], 0.0)

    def query(self, points, directions):
        return self.density(points), jnp.broadcast_to(jnp.array([0.2, 0.4, 0.6]), points.shape)


def some_rays(count=64, seed=0, distance=4.0):
    """Rays from a sphere around the box towards points inside it."""
    rng = np.random.default_rng(seed)
    origin = rng.normal(size=(count, 3))
    origin *= distance / np.linalg.norm(origin, axis=-1, keepdims=True)
    towards = rng.uniform(-0.8, 0.8, (count, 3)) - origin
    towards /= np.linalg.norm(towards, axis=-1, keepdims=True)
    return Rays(jnp.asarray(origin, jnp.float32), jnp.asarray(towards, jnp.float32))


def some_edges(rng, rows, count):
    return np.sort(rng.uniform(0, 1, (rows, count + 1)), axis=-1)


def some_grid(resolution=(8, 8, 8), seed=0, **changes):
    config = VoxelGridConfig(**{"resolution": resolution, "degree": 1, "gain": 3.0, **changes})
    return VoxelGrid(config, Frame(), jax.random.key(seed))


def some_cells(share, seed=0):
    return jnp.asarray(np.random.default_rng(seed).uniform(size=(6, 6, 6)) < share)
