"""Rendering near matter only, against the dense renderer; the grid that says where matter is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small_renders import WHITE, some_cells, some_grid, some_rays

from jaxedit.fields.field import Frame
from jaxedit.render.occupancy import (
    OccupancyConfig,
    dilated,
    full_level,
    is_occupied,
    occupied_cells,
    updated_level,
)
from jaxedit.render.render import RenderConfig, render_rays
from jaxvid.core.errors import UserError


class Masked(nnx.Module):
    """A field that is empty outside occupied cells: what the sparse renderer must agree with."""

    def __init__(self, field, occupied):
        self.field, self.frame, self.occupied = field, field.frame, nnx.Variable(occupied)

    def density(self, points):
        return jnp.where(
            is_occupied(self.occupied[...], self.frame, points), self.field.density(points), 0.0
        )

    def query(self, points, directions):
        density, colour = self.field.query(points, directions)
        return jnp.where(is_occupied(self.occupied[...], self.frame, points), density, 0.0), colour


@pytest.mark.parametrize(
    ("slots", "share", "equal_steps"),
    [(0.1, 0.6, False), (1.0, 0.1, True), (1.0, 0.0, False), (8.0, 1.0, False), (0.5, 1.0, True)],
)
def test_sparse_is_dense_where_occupied(slots, share, equal_steps):
    grid, rays, cells = some_grid(), some_rays(), some_cells(share)
    config = RenderConfig(samples=32, slots=slots, block=4, equal_steps=equal_steps)
    keys = jax.random.split(jax.random.key(1), 64)

    @jax.jit
    def both(grid, rays):
        def sparse(grid):
            return render_rays(grid, rays, config, background=WHITE, occupied=cells, keys=keys)

        def dense(grid):
            return render_rays(Masked(grid, cells), rays, config, background=WHITE, keys=keys)

        def loss(render):
            def total(grid):
                pixels, losses = render(grid)
                return (
                    jnp.sum(jnp.sin(5 * pixels.colour))
                    + jnp.sum(losses["distortion"])
                    + jnp.sum(pixels.depth)
                )

            return jax.grad(total)(grid)

        return sparse(grid), dense(grid), loss(sparse), loss(dense)

    found, expected, gradient, expected_gradient = both(grid, rays)
    blocks = np.asarray(found[1].pop("blocks"))
    assert (blocks > 0).any() == (share > 0)
    assert blocks.max() <= 32 / 4
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5), found, expected)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient), strict=True):
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b) + 1e-6


def test_opacity_never_passes_one():
    """Rounding in sums over blocks must not make more light than there is."""
    grid, rays = some_grid(gain=300.0), some_rays(512)
    config = RenderConfig(samples=128, slots=16.0, block=4)
    cells = jnp.ones((6, 6, 6), bool)
    pixels, _ = render_rays(grid, rays, config, background=WHITE, occupied=cells)
    assert float(pixels.opacity.max()) > 0.99
    assert float(pixels.opacity.max()) <= 1.0 + 2e-7


def test_only_linear_spacing_goes_with_occupied_cells():
    config = RenderConfig(samples=16, spacing="disparity", near=1.0)
    with pytest.raises(UserError, match="occupied cells need linear"):
        render_rays(some_grid(), some_rays(), config, background=WHITE, occupied=some_cells(0.5))


def test_occupied_cells_are_those_of_the_points():
    cells = some_cells(0.3)
    points = np.random.default_rng(0).uniform(-1.2, 1.2, (300, 3))
    found = is_occupied(cells, Frame(), jnp.asarray(points, jnp.float32))
    for point, value in zip(points, found, strict=True):
        cell = np.floor((point + 1) / 2 * 6).astype(int)
        inside = (np.abs(point) <= 1).all()
        assert bool(value) == (inside and bool(cells[tuple(np.clip(cell, 0, 5))]))


def test_occupancy_finds_matter_and_forgets_what_left():
    frame = Frame()

    class Ball(nnx.Module):
        def __init__(self, radius):
            self.radius, self.frame = radius, frame

        def density(self, points):
            return jnp.where(jnp.linalg.norm(points, axis=-1) < self.radius, 50.0, 0.0)

    config = OccupancyConfig(resolution=16, decay=0.5, parts=4)
    level, key = full_level(config), jax.random.key(0)
    assert np.asarray(occupied_cells(level, config, step=0.01)).all(), "nothing is known yet"
    for turn in range(4):
        level = updated_level(level, Ball(2.0), config, jax.random.fold_in(key, turn), turn)
    assert np.asarray(occupied_cells(level, config, step=0.01)).all(), "all is matter"
    for turn in range(120):
        level = updated_level(level, Ball(0.6), config, jax.random.fold_in(key, turn), turn)
    cells = occupied_cells(level, config, step=0.01)
    centre = (np.stack(np.meshgrid(*[np.arange(16)] * 3, indexing="ij"), -1) + 0.5) / 8 - 1
    radius = np.linalg.norm(centre, axis=-1)
    assert np.asarray(cells)[radius < 0.5].all()
    assert not np.asarray(cells)[radius > 0.75].any()


@pytest.mark.parametrize("value", [0.1, 0.123, 0.3, 0.3133])
def test_cells_of_one_density_are_all_kept(value):
    config = OccupancyConfig(resolution=64)
    cells = occupied_cells(jnp.full((64, 64, 64), value), config, step=1e-3)
    assert np.asarray(cells).all()


def test_dilation_takes_all_26_neighbours():
    cells = np.zeros((5, 5, 5), bool)
    cells[2, 2, 4] = True
    grown = np.asarray(dilated(jnp.asarray(cells)))
    assert grown.sum() == 18
    assert grown[1:4, 1:4, 3:].all()
