"""Questions to a field in bounded memory: on the points of a lattice, or at any number of points."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxedit.fields.field import Corner, DensityField, Field, Frame
from jaxedit.fields.normals import NormalField
from jaxedit.fields.voxel_grid import Shape
from jaxvid.core.errors import UserError
from jaxvid.core.progress import Progress

QUERIES = 1 << 16  # points asked at once: about 1 GiB for the gradient of the widest network
FINEST = 1024  # points of a lattice along an axis


@dataclass(frozen=True)
class Lattice:
    """Points evenly spread in a box: point i of n along an axis stands at (i + 1/2) / n of its side.

    Of a field whose frame contracts space, this is the box at full resolution, not what lies around it.
    """

    lowest: Corner
    size: Corner
    shape: Shape

    @classmethod
    def of(cls, frame: Frame, resolution: int) -> "Lattice":
        """`resolution` points along the longest side of the frame's box, as near to each other along the others."""
        longest = max(frame.size)
        x, y, z = (max(2, round(resolution * side / longest)) for side in frame.size)
        return cls(frame.lowest, frame.size, (x, y, z))

    @property
    def cell(self) -> float:
        """The mean distance of neighbours."""
        return sum(side / n for side, n in zip(self.size, self.shape, strict=True)) / 3

    def world(self, index: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
        """World coordinates of lattice coordinates."""
        return self.lowest + (index + 0.5) / self.shape * self.size


def check_resolution(resolution: int, bytes_a_point: int) -> None:
    """Raises UserError for a lattice too coarse, too fine, or larger than this machine's memory."""
    need, most = (n**3 * bytes_a_point / 2**30 for n in (resolution, FINEST))
    if not 2 <= resolution <= FINEST:
        raise UserError(
            f"--resolution is {resolution}; give 2 to {FINEST} (which takes about {most:.0f} GiB)"
        )
    have = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    if need > have:
        fits = int((have * 2**30 / bytes_a_point) ** (1 / 3))
        raise UserError(
            f"--resolution {resolution} may need {need:.1f} GiB, this machine has {have:.1f}; give {fits} or less"
        )


def density_on(field: DensityField, lattice: Lattice) -> Float[np.ndarray, "x y z"]:
    """Density at the lattice's points."""
    return on_lattice(_density, field, lattice, 1)[..., 0]


def looks_on(
    field: Field, lattice: Lattice
) -> tuple[Float[np.ndarray, "x y z"], Float[np.ndarray, "x y z 3"]]:
    """Density at the lattice's points, and colour looked at against the normal (downwards where density is flat)."""
    found = on_lattice(_look, field, lattice, 4)
    return found[..., 0], found[..., 1:]


def on_lattice(
    ask: Callable[[Any, Array], Array], field: DensityField, lattice: Lattice, channels: int
) -> Float[np.ndarray, "x y z c"]:
    """`ask(field, points [n, 3]) -> [n, channels]` at the lattice's points. `ask` is to be a module's function."""
    total = int(np.prod(lattice.shape))
    chunk = min(QUERIES, total)
    found = np.empty((total, channels), np.float32)
    parts = -(-total // chunk)
    with Progress("field", parts) as progress:
        for part in range(parts):
            start = part * chunk
            values = np.asarray(_ask_from(ask, field, lattice, chunk, np.int32(start)))
            found[start : start + chunk] = values[: total - start]
            progress.advance()
            if (part + 1) % 256 == 0:
                progress.report({})
    return found.reshape(*lattice.shape, channels)


@partial(jax.jit, static_argnums=(0, 2, 3))
def _ask_from(
    ask: Callable[[Any, Array], Array],
    field: DensityField,
    lattice: Lattice,
    chunk: int,
    start: Int[Array, ""],
) -> Float[Array, "n c"]:
    """The answers at `chunk` points from the one with flat index `start` on."""
    x, y, z = lattice.shape
    flat = jnp.minimum(start + jnp.arange(chunk, dtype=jnp.int32), x * y * z - 1)
    index = jnp.stack([flat // (y * z), flat // z % y, flat % z], axis=-1)
    part = (index.astype(jnp.float32) + 0.5) / jnp.array(lattice.shape, jnp.float32)
    return ask(field, jnp.array(lattice.lowest) + part * jnp.array(lattice.size))


def at_points(
    ask: Callable[..., Array], field: DensityField, *rows: Float[np.ndarray, "n 3"]
) -> Float[np.ndarray, "n *c"]:
    """`ask(field, *rows)`, a compiled function of rows, at any number of them (one or more)."""
    count = len(rows[0])
    # Powers of two: few sizes to compile for.
    chunk = min(QUERIES, 1 << (count - 1).bit_length())
    found = []
    for start in range(0, count, chunk):
        parts = [row[start : start + chunk].astype(np.float32) for row in rows]
        missing = chunk - len(parts[0])
        padded = [np.concatenate([part, np.repeat(part[:1], missing, 0)]) for part in parts]
        found.append(np.asarray(ask(field, *padded))[: chunk - missing])
    return np.concatenate(found)


@jax.jit
def density_at(field: DensityField, points: Float[Array, "n 3"]) -> Float[Array, "n"]:
    """Density, to be asked by `at_points`."""
    return field.density(points)


@jax.jit
def normal_at(field: Field, points: Float[Array, "n 3"]) -> Float[Array, "n 3"]:
    """Normals, 0 where the density is flat; to be asked by `at_points`."""
    return 2.0 * NormalField(field).query(points, points)[1] - 1.0


def _density(field: DensityField, points: Float[Array, "n 3"]) -> Float[Array, "n 1"]:
    return field.density(points)[:, None]


def _look(field: Field, points: Float[Array, "n 3"]) -> Float[Array, "n 4"]:
    normal = 2.0 * NormalField(field).query(points, points)[1] - 1.0
    flat = jnp.sum(normal * normal, axis=-1, keepdims=True) < 0.5
    density, colour = field.query(points, jnp.where(flat, jnp.array([0.0, 0.0, -1.0]), -normal))
    return jnp.concatenate([density[:, None], colour], axis=-1)
