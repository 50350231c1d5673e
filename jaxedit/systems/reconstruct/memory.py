"""What rendering and training need of a device's memory, told from the configuration before anything is compiled.

A sample is a point that the field is asked for. Its bytes, where most is held, as XLA compiles the fields for a CPU; a
hash grid has L levels of f features, a voxel k colour coefficients, a network layers of sizes in -> out:

                 image                          normals                    training
    voxels       160                            650                        160 + 32 k
    hash grid    90 L                           615 L                      (180 + 8 f) L
      networks   4 (2 widest + encoded)                                    4 sum(in + out) + 64 L
    MLP          4 (3 widest + encoded)         4 width (layers + 2)       4 sum(in + out)

(32 k are the updates of eight voxels, 64 L the rows and weights of eight corners a level. Of a hash grid's two rows the
larger counts.) Where a renderer looks only near matter, every sample costs 12 bytes to place, and a sample asked 1.25 times
as much in images and 1.6 times in training: the loop of further passes stands beside the first pass.

These hold within a factor of 2 (`tests/systems/test_memory.py`). Other compilers differ; `jaxedit plan` asks one.
"""

import itertools
from typing import Literal, NamedTuple, TypeAlias

from jaxedit.fields.field import Frame
from jaxedit.fields.frequency_mlp import FrequencyMLPConfig
from jaxedit.fields.hash_grid import HashGridConfig
from jaxedit.systems.reconstruct.config import FieldConfig, FitConfig
from jaxedit.systems.reconstruct.model import is_trained
from jaxedit.systems.reconstruct.training import abstract_model
from jaxvid.core.paths import flatten

CHUNK_BYTES = 256 << 20  # of a chunk's samples while an image is rendered
FEWEST_RAYS = 256  # in a chunk, whatever they take


Use: TypeAlias = Literal["image", "normals", "training"]


class Bytes(NamedTuple):
    """Of a sample or a ray in an image, in an image of normals, and in training or another gradient."""

    image: float
    normals: float
    training: float


PLACING = 12  # of a sample, to know whether there is matter
PASSES = Bytes(1.25, 1.25, 1.6)  # what the loop of further passes makes of a sample asked


def sample_bytes(field: FieldConfig) -> Bytes:
    """Of a sample that a field is asked for."""
    if isinstance(field, HashGridConfig):
        layers, levels = _hash_layers(field), field.levels
        widest, encoded = max(out for _, out in layers), levels * field.features
        return Bytes(
            max(90 * levels, 4 * (2 * widest + encoded)),
            615 * levels,
            max((180 + 8 * field.features) * levels, 4 * sum(map(sum, layers)) + 64 * levels),
        )
    if isinstance(field, FrequencyMLPConfig):
        layers, width = _mlp_layers(field), field.width
        encoded = layers[0][0]
        return Bytes(
            4 * (3 * width + encoded), 4 * width * (field.layers + 2), 4 * sum(map(sum, layers))
        )
    return Bytes(160, 650, 160 + 32 * field.coefficients)


def _hash_layers(field: HashGridConfig) -> list[tuple[int, int]]:
    encoded, seen = field.levels * field.features, (field.degree + 1) ** 2 + field.geometry
    density = [encoded, *[field.width] * field.density_layers, field.geometry]
    colour = [seen, *[field.width] * field.colour_layers, 3]
    return [*itertools.pairwise(density), *itertools.pairwise(colour)]


def _mlp_layers(field: FrequencyMLPConfig) -> list[tuple[int, int]]:
    position, direction = 3 + 6 * field.position_frequencies, 3 + 6 * field.direction_frequencies
    width, rest = field.width, range(1, field.layers)
    layers = [(position, width), *((width + position * (i == field.skip), width) for i in rest)]
    colour = [(width + direction, width // 2), (width // 2, 3)]
    return [*layers, (width, 1), (width, width), *colour]


def ray_bytes(config: FitConfig, index: int) -> Bytes:
    """Of a ray in fit `index`, with the samples of its proposals."""
    render, sample = config.render, sample_bytes(config.field_of(index))
    if _looks_near_matter(config, index):
        asked = min(render.slots * render.block, render.samples)
        passes = PASSES if asked < render.samples else Bytes(1.0, 1.0, 1.0)
        image, normals, training = (
            PLACING * render.samples + asked * factor * cost
            for factor, cost in zip(passes, sample, strict=True)
        )
        return Bytes(image, normals, training)
    image, normals, training = (render.samples * cost for cost in sample)
    for count, proposal in zip(render.proposal_samples, config.proposals, strict=True):
        cost = sample_bytes(proposal)
        # An image is done with a proposal before it asks the next; training comes back to all of them.
        image, normals = max(image, count * cost.image), max(normals, count * cost.image)
        training += count * cost.training
    return Bytes(image, normals, training)


def _looks_near_matter(config: FitConfig, index: int) -> bool:
    return config.occupancy is not None or config.rows_of(index) is not None


def chunk_of(config: FitConfig, index: int, use: Use = "image") -> int:
    """Rays whose samples take about `CHUNK_BYTES` in fit `index`: of an image, one of normals, or a gradient."""
    return max(FEWEST_RAYS, int(CHUNK_BYTES / getattr(ray_bytes(config, index), use)))


def training_bytes(config: FitConfig, frame: Frame, index: int) -> int:
    """Of fit `index`: parameters and two moments, their gradient, and what is larger: its rays, or an occupancy update."""
    leaves = flatten(abstract_model(config, frame, index))
    trained = sum(4 * leaf.size for path, leaf in leaves.items() if is_trained(path))
    frozen = sum(4 * leaf.size for path, leaf in leaves.items() if not is_trained(path))
    # A renderer of several passes adds up their gradients.
    gradients = 2 if _looks_near_matter(config, index) else 1
    samples = config.fits[index].rays * ray_bytes(config, index).training
    if config.occupancy is not None and config.rows_of(index) is None:
        cells = config.occupancy.resolution**3 // config.occupancy.parts
        samples = max(samples, cells * sample_bytes(config.field_of(index)).image)
    return (3 + gradients) * trained + frozen + int(samples)
