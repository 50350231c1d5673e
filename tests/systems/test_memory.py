"""Memory told from a configuration, beside what the compiler says: nothing runs."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from jaxedit.fields.frequency_mlp import FrequencyMLPConfig
from jaxedit.fields.hash_grid import HashGridConfig
from jaxedit.fields.voxel_grid import VoxelGridConfig
from jaxedit.render.occupancy import OccupancyConfig
from jaxedit.render.render import RenderConfig
from jaxedit.scene.cameras import pinhole_cameras
from jaxedit.scene.load import SceneConfig
from jaxedit.systems.reconstruct import Fit, Reconstruct, memory, programs
from jaxedit.systems.reconstruct.system import image_program
from jaxedit.systems.reconstruct.training import make_ray_step
from jaxvid.train.state import weights

RAYS, SIZE = 1024, 32
EVEN = Reconstruct(
    data=SceneConfig(path="unused"),
    field=VoxelGridConfig(resolution=(16, 16, 16), degree=1),
    render=RenderConfig(samples=64),
    occupancy=None,
    fits=(Fit(rays=RAYS),),
    chunk=RAYS,
)
HASH = HashGridConfig(levels=6, table=10, base=8, finest=32, width=32, geometry=8)
MLP = FrequencyMLPConfig(width=64, layers=4, skip=2)
SYSTEMS = {
    "voxels": EVEN,
    "packed": replace(EVEN, fits=(Fit(rays=RAYS, rows=1000),)),
    "hash": replace(EVEN, field=HASH),
    "hash, near matter": replace(EVEN, field=HASH, occupancy=OccupancyConfig(resolution=16)),
    "mlp": replace(EVEN, field=MLP),
}
CASES = [
    ("voxels", "image"),
    ("packed", "training"),
    ("hash", "image"),
    ("hash", "training"),
    ("hash, near matter", "image"),
    ("mlp", "image"),
    ("mlp", "normals"),
    ("mlp", "training"),
]


def compiled_bytes(function, *args):
    """Arguments and temporaries of a compiled program. How well its loops are optimised changes no buffer."""
    lowered = jax.jit(function).lower(*args)
    found = lowered.compile(compiler_options={"xla_backend_optimization_level": 0})
    return (
        found.memory_analysis().argument_size_in_bytes,
        found.memory_analysis().temp_size_in_bytes,
    )


@pytest.mark.parametrize(("name", "use"), CASES)
def test_the_estimate_is_within_a_factor_of_two(name, use):
    system = SYSTEMS[name]
    cameras = pinhole_cameras(np.tile(np.eye(3, 4), (1, 1, 1)), 40.0, SIZE, SIZE)
    of = programs.Setting(system, 0, system.frame(None), cameras, None)
    state = programs.abstract_state(of)
    if use == "training":
        step = make_ray_step(system, of.frame, 0, cameras, None)
        key = jax.eval_shape(lambda: jax.random.key(0))
        sizes = compiled_bytes(step, state, programs.abstract_batch(RAYS, None), key)
        told = memory.training_bytes(system, of.frame, 0)
    else:
        draw = image_program(system, of.frame, 0, RAYS, normals=use == "normals")
        level, camera = programs.view_of(of, state)

        def view(params, level, camera):
            return draw(params, level, replace(cameras, **camera))

        sizes = compiled_bytes(view, weights(state), level, camera)
        told = sizes[0] + RAYS * getattr(memory.ray_bytes(system, 0), use)
    assert 0.5 * sum(sizes) < told < 2.0 * sum(sizes), (told / 2**20, sizes)


def test_a_chunk_takes_what_it_may():
    for system in SYSTEMS.values():
        free = replace(system, chunk=None)
        for use in ("image", "normals", "training"):
            chunk = free.image_chunk(0, use)
            samples = chunk * getattr(memory.ray_bytes(free, 0), use)
            assert 0.99 * memory.CHUNK_BYTES < samples <= memory.CHUNK_BYTES
    wide = replace(EVEN, chunk=None, field=FrequencyMLPConfig(width=4096))
    assert wide.image_chunk(0, "training") == memory.FEWEST_RAYS
    assert EVEN.image_chunk(0, "training") == RAYS
