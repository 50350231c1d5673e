"""The renderer against closed forms, naive references, and itself by another way."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh
from naive_render import distortion, interlevel, pixel, weights

from jaxedit.fields.field import Frame
from jaxedit.fields.voxel_grid import VoxelGrid, VoxelGridConfig
from jaxedit.render.bounds import box_bounds, sphere_bounds
from jaxedit.render.compositing import median_depth, thickness_of, weights_of
from jaxedit.render.image import chunked, over_mesh
from jaxedit.render.intervals import (
    annealed,
    distortion_loss,
    interlevel_loss,
    interpolate,
    resampled_edges,
    stratified_edges,
    to_distance,
    uniform_edges,
)
from jaxedit.render.occupancy import (
    OccupancyConfig,
    dilated,
    full_level,
    is_occupied,
    occupied_cells,
    updated_level,
)
from jaxedit.render.render import RenderConfig, ray_bounds, render_rays
from jaxedit.scene.cameras import Rays
from jaxvid.core.errors import UserError

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


# --- closed forms --------------------------------------------------------------------------------


@pytest.mark.parametrize("density", [0.0, 0.3, 5.0, 1e4])
@pytest.mark.parametrize("occupied", [None, jnp.ones((4, 4, 4), bool)])
def test_a_homogeneous_medium_has_its_closed_form(density, occupied):
    rays, field = some_rays(), Medium(density)
    config = RenderConfig(samples=64)
    near, far = ray_bounds(field, rays, config)
    pixels, _ = render_rays(field, rays, config, background=WHITE, occupied=occupied)
    through = np.exp(-density * np.asarray(far - near, np.float64))
    np.testing.assert_allclose(pixels.opacity, 1 - through, rtol=1e-4, atol=1e-6)
    colour = (1 - through)[:, None] * np.array([0.2, 0.4, 0.6]) + through[:, None]
    np.testing.assert_allclose(pixels.colour, colour, atol=2e-5)
    if density in (0.3, 5.0):
        # Mean depth of an exponential cut off at the far side; quadrature in the middle of intervals.
        length = np.asarray(far - near, np.float64)
        mean = 1 / density - length * through / (1 - through)
        np.testing.assert_allclose(pixels.depth, np.asarray(near) + mean, rtol=2e-3)


def test_bounds_of_a_box_are_the_planes_hit():
    rays = Rays(
        jnp.array([[-3.0, 0.2, 0.1], [0.0, 0.0, 0.0], [0.0, 0.0, 5.0], [-3.0, 2.0, 0.0], [-3.0, 1.0, 0.0]]),
        jnp.array([[1.0, 0, 0], [0, 0, 1.0], [0, 0, 1.0], [1.0, 0, 0], [1.0, 0, 0]]),
    )  # fmt: skip
    near, far = box_bounds(rays, -jnp.ones(3), jnp.ones(3))
    # Through; from inside; away from it; beside it; in the plane of a side.
    np.testing.assert_allclose(near[:2], [2.0, 0.0])
    np.testing.assert_allclose(far[:2], [4.0, 1.0])
    np.testing.assert_allclose((far - near)[2:4], 0.0)
    np.testing.assert_allclose([near[4], far[4]], [2.0, 4.0])
    clipped = box_bounds(rays, -jnp.ones(3), jnp.ones(3), 2.5, 3.5)
    np.testing.assert_allclose([clipped[0][0], clipped[1][0]], [2.5, 3.5])


def test_rays_past_a_sphere_have_finite_gradients():
    rays = Rays(jnp.array([[3.0, 0, 4.0]]), jnp.array([[0.0, 0, -1.0]]))

    def total(origin):
        near, far = sphere_bounds(Rays(origin, rays.direction), jnp.zeros(3), 1.0)
        return jnp.sum(near + far)

    assert np.isfinite(jax.grad(total)(rays.origin)).all()


def test_bounds_of_a_sphere_are_the_roots():
    rays = some_rays(100, distance=30.0)
    near, far = sphere_bounds(rays, jnp.array([0.1, 0.2, 0.3]), 0.7)
    for i in range(100):
        o = np.asarray(rays.origin[i], float) - [0.1, 0.2, 0.3]
        d = np.asarray(rays.direction[i], float)
        roots = np.roots([1.0, 2 * o @ d, o @ o - 0.49])
        if np.isreal(roots).all() and abs(roots[0] - roots[1]) > 0.05:
            np.testing.assert_allclose(sorted([near[i], far[i]]), np.sort(roots), atol=1e-3)
        elif not np.isreal(roots).all():
            assert near[i] == far[i]


# --- quadrature ----------------------------------------------------------------------------------


def test_weights_are_the_products():
    rng = np.random.default_rng(0)
    thickness = rng.exponential(0.5, (20, 12)) * (rng.uniform(size=(20, 12)) > 0.4)
    found = weights_of(jnp.asarray(thickness, jnp.float32))
    np.testing.assert_allclose(found, [weights(row) for row in thickness], atol=1e-6)
    opacity = 1 - np.exp(-thickness.sum(-1))
    np.testing.assert_allclose(found.sum(-1), opacity, atol=1e-6)


def test_the_written_gradient_of_weights_is_autodiffs():
    rng = np.random.default_rng(1)
    thickness = jnp.asarray(rng.exponential(0.5, (20, 12)), jnp.float32)
    cotangent = jnp.asarray(rng.normal(size=(20, 12)), jnp.float32)

    def plain(tau):
        through = jnp.exp(-jnp.cumsum(tau, -1))
        before = jnp.concatenate([jnp.ones((20, 1)), through[:, :-1]], -1)
        return before * (1 - jnp.exp(-tau))

    expected = jax.vjp(plain, thickness)[1](cotangent)[0]
    np.testing.assert_allclose(jax.vjp(weights_of, thickness)[1](cotangent)[0], expected, atol=2e-6)


def test_thin_fog_does_not_cancel():
    found = weights_of(jnp.full((1, 4), 1e-9))
    np.testing.assert_allclose(found, 1e-9, rtol=1e-5)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-6, 1.0, 1e6, 1e30, np.inf])
def test_weights_and_gradients_are_finite_at_any_density(scale):
    edges = jnp.linspace(2.0, 6.0, 9)[None]

    def total(density):
        return jnp.sum(weights_of(thickness_of(density, edges, last_opaque=True)) * jnp.arange(8.0))

    value, gradient = jax.value_and_grad(total)(jnp.full((1, 8), scale))
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_an_opaque_last_interval_hides_the_background():
    density = jnp.array([[0.0, 0.5, 0.1], [0.0, 0.5, 0.0]])
    edges = jnp.broadcast_to(jnp.linspace(0, 1, 4), (2, 4))
    opacity = weights_of(thickness_of(density, edges, last_opaque=True)).sum(-1)
    np.testing.assert_allclose(opacity, [1.0, 1 - math.exp(-0.5 / 3)], rtol=1e-5)


def test_a_grids_pixels_are_the_naive_ones():
    grid, rays = some_grid(), some_rays(10)
    config = RenderConfig(samples=32)
    pixels, losses = render_rays(grid, rays, config, background=jnp.array([0.1, 0.5, 0.9]))
    near, far = ray_bounds(grid, rays, config)
    for i in range(10):
        edges = np.linspace(near[i], far[i], 33)
        middle = jnp.asarray((edges[1:] + edges[:-1]) / 2, jnp.float32)
        points = rays.origin[i] + middle[:, None] * rays.direction[i]
        density, colour = grid.query(points, rays.direction[i][None])
        density, colour = np.asarray(density, float), np.asarray(colour, float)
        expected = pixel(density, colour, edges, np.array([0.1, 0.5, 0.9]))
        np.testing.assert_allclose(pixels.colour[i], expected[0], atol=1e-5)
        np.testing.assert_allclose(pixels.opacity[i], expected[1], atol=1e-5)
        np.testing.assert_allclose(pixels.depth[i], expected[2], rtol=1e-4)
        spread = distortion(edges, weights(density * np.diff(edges)))
        np.testing.assert_allclose(losses["distortion"][i], spread, rtol=1e-3, atol=1e-6)


def test_median_depth_is_where_half_the_light_is_gone():
    edges = jnp.broadcast_to(jnp.linspace(0.0, 4.0, 5), (4, 5))
    w = jnp.array([[0.25, 0.5, 0.25, 0.0], [1.0, 0, 0, 0], [0.1, 0.1, 0.1, 0.1], [0, 0, 0, 0.5]])
    np.testing.assert_allclose(median_depth(w, edges), [1.5, 0.5, 4.0, 4.0], atol=1e-6)


# --- intervals -----------------------------------------------------------------------------------


def test_distortion_in_one_pass_is_that_of_all_pairs():
    rng = np.random.default_rng(2)
    edges, w = some_edges(rng, 20, 9), rng.uniform(0, 0.1, (20, 9))
    found = distortion_loss(jnp.asarray(edges, jnp.float32), jnp.asarray(w, jnp.float32))
    expected = [distortion(e, v) for e, v in zip(edges, w, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    far = distortion_loss(jnp.asarray(edges + 500, jnp.float32), jnp.asarray(w, jnp.float32))
    np.testing.assert_allclose(far, expected, rtol=2e-2)


def test_interlevel_loss_is_equation_13():
    rng = np.random.default_rng(3)
    edges, coarse = some_edges(rng, 20, 9), some_edges(rng, 20, 5)
    edges[:, [0, -1]] = coarse[:, [0, -1]] = [0, 1]
    w, p = rng.uniform(0, 0.2, (20, 9)), rng.uniform(0, 0.2, (20, 5))
    arrays = [jnp.asarray(a, jnp.float32) for a in (edges, w, coarse, p)]
    expected = [interlevel(*row) for row in zip(edges, w, coarse, p, strict=True)]
    np.testing.assert_allclose(interlevel_loss(*arrays), expected, rtol=1e-4)
    same = interlevel_loss(arrays[0], arrays[1], arrays[0], arrays[1])
    np.testing.assert_allclose(same, 0.0, atol=1e-12)
    to_final = jax.grad(lambda v: jnp.sum(interlevel_loss(arrays[0], v, arrays[2], arrays[3])))
    assert not np.asarray(to_final(arrays[1])).any(), "only the proposal learns"


def test_resampling_follows_the_weights():
    """Counts of many fine samples in each coarse interval agree with its share of the weight."""
    edges = jnp.array([[0.0, 0.1, 0.4, 0.5, 1.0]])
    share = jnp.array([[0.1, 0.2, 0.6, 0.1]])
    found = resampled_edges(edges, share, 2000, padding=0.0)[0]
    count, _ = np.histogram(np.asarray(found[1:-1]), np.asarray(edges[0]))
    np.testing.assert_allclose(count / 1999, share[0], atol=2e-3)
    assert (np.diff(found) >= 0).all()
    assert (float(found[0]), float(found[-1])) == (0.0, 1.0)


def test_resampling_an_empty_ray_is_even():
    edges = jnp.array([[0.0, 0.1, 0.4, 0.5, 1.0]])
    for padding in (0.0, 0.01):
        found = resampled_edges(edges, jnp.zeros((1, 4)), 10, padding=padding)
        np.testing.assert_allclose(found[0], np.linspace(0, 1, 11), atol=1e-6)


def test_resampling_jitters_all_of_a_ray_alike():
    edges = jnp.broadcast_to(uniform_edges(4), (3, 5))
    fixed = resampled_edges(edges, jnp.ones((3, 4)), 8)
    moved = resampled_edges(edges, jnp.ones((3, 4)), 8, jnp.array([-0.5, 0.1, 0.4]))
    shift = np.asarray(moved - fixed)[:, 1:-1]
    np.testing.assert_allclose(shift, shift[:, :1] + np.zeros((1, 7)), atol=1e-6)
    np.testing.assert_allclose(shift[:, 0] * 8, [-0.5, 0.1, 0.4], atol=1e-5)


def test_stratified_edges_keep_the_ends_and_cover_every_place_alike():
    jitter = jnp.linspace(-0.5, 0.5, 101)
    edges = np.asarray(stratified_edges(16, jitter))
    assert (np.diff(edges) >= 0).all()
    assert (edges[:, 0] == 0).all()
    assert (edges[:, -1] == 1).all()
    np.testing.assert_allclose(edges[:, 5] * 16, 5 + np.asarray(jitter), atol=1e-5)


def test_interpolation_is_numpys():
    rng = np.random.default_rng(4)
    xp, fp = np.sort(rng.normal(size=(5, 8))), rng.normal(size=(5, 8))
    x = rng.uniform(-3, 3, (5, 20))
    found = interpolate(*(jnp.asarray(a, jnp.float32) for a in (x, xp, fp)))
    expected = [np.interp(*row) for row in zip(x, xp, fp, strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("spacing", ["linear", "disparity", "piecewise"])
def test_spacings_begin_and_end_where_they_should(spacing):
    near, far = jnp.array([0.2, 1.5]), jnp.array([1000.0, 3.0])
    t = to_distance(jnp.broadcast_to(jnp.linspace(0, 1, 101), (2, 101)), near, far, spacing)
    np.testing.assert_allclose(t[:, 0], near, rtol=1e-5)
    np.testing.assert_allclose(t[:, -1], far, rtol=2e-4)
    assert (np.diff(t) > 0).all()
    steps = {"linear": lambda t: t, "disparity": lambda t: -1 / t,
             "piecewise": lambda t: np.where(t < 1, t / 2, 1 - 1 / (2 * t))}[spacing](np.asarray(t, float))  # fmt: skip
    np.testing.assert_allclose(np.diff(steps[1]), (steps[1, -1] - steps[1, 0]) / 100, rtol=1e-2)


def test_annealing_goes_from_equal_weights_to_the_weights():
    w = jnp.array([0.0, 0.2, 0.5])
    np.testing.assert_allclose(annealed(w, 0.0), 1.0)
    np.testing.assert_allclose(annealed(w, 1.0), w, atol=1e-6)
    half = 10 * 0.5 / (9 * 0.5 + 1)
    np.testing.assert_allclose(annealed(w, 0.5)[1:], np.array([0.2, 0.5]) ** half, rtol=1e-5)


# --- occupied cells ------------------------------------------------------------------------------


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


def some_cells(share, seed=0):
    return jnp.asarray(np.random.default_rng(seed).uniform(size=(6, 6, 6)) < share)


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


# --- proposals -----------------------------------------------------------------------------------


def test_proposals_put_samples_where_matter_is():
    """A thin shell that even sampling all but misses is found through a proposal that knows it."""

    class Shell(nnx.Module):
        def __init__(self):
            self.frame = Frame()

        def density(self, points):
            return 400.0 * jnp.exp(-(((jnp.linalg.norm(points, axis=-1) - 0.5) / 0.01) ** 2))

        def query(self, points, directions):
            return self.density(points), jnp.full(points.shape, 0.3)

    rays = Rays(jnp.array([[0.0, 0, 4.0]]), jnp.array([[0.0, 0, -1.0]]))
    config = RenderConfig(samples=16, proposal_samples=(256,))
    pixels, losses = render_rays(Shell(), rays, config, background=WHITE, proposals=[Shell()])
    np.testing.assert_allclose(pixels.depth, 3.5, atol=0.02)
    assert float(pixels.opacity[0]) > 0.95
    assert set(losses) == {"distortion", "interlevel"}
    evenly, _ = render_rays(Shell(), rays, RenderConfig(samples=16), background=WHITE)
    assert abs(float(evenly.depth[0]) - 3.5) > 0.02 or float(evenly.opacity[0]) < 0.95


def test_as_many_counts_as_proposals():
    with pytest.raises(UserError, match="give one count each"):
        render_rays(
            Medium(1.0), some_rays(), RenderConfig(), background=WHITE, proposals=[Medium(1.0)]
        )


# --- whole images --------------------------------------------------------------------------------


def colours(model, rays):
    return render_rays(model, rays, RenderConfig(samples=16), background=WHITE)[0]


def image_of(rows, columns):
    rays = some_rays(rows * columns)
    return jax.tree.map(lambda leaf: leaf.reshape(rows, columns, 3), rays)


@pytest.mark.parametrize("chunk", [7, 24, 1000])
def test_two_phases_give_autodiffs_gradient(chunk):
    grid, rays = some_grid(), image_of(6, 8)
    target = jnp.asarray(np.random.default_rng(0).uniform(size=(6, 8, 3)), jnp.float32)

    def loss(render, rays):
        def of(grid):
            pixels = render(grid, rays)
            # Not a sum over pixels: the whole image enters each pixel's cotangent.
            return jnp.sqrt(jnp.mean((pixels.colour.reshape(6, 8, 3) - target) ** 2))

        return jax.jit(jax.value_and_grad(of))(grid)

    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, 3), rays)
    value, gradient = loss(chunked(colours, chunk), rays)
    expected, expected_gradient = loss(colours, flat)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient), strict=True):
        assert np.linalg.norm(a - b) <= 1e-6 * np.linalg.norm(b)


def test_memory_of_a_gradient_is_a_chunks():
    """Twice and four times the side: the temporary memory beyond the image's own arrays stays."""
    grid = jax.eval_shape(some_grid)

    def temporary(side):
        rays = jax.eval_shape(lambda: Rays(jnp.zeros((side, side, 3)), jnp.zeros((side, side, 3))))

        def loss(grid, rays):
            return jnp.mean(chunked(colours, 64)(grid, rays).colour ** 2)

        compiled = jax.jit(jax.grad(loss)).lower(grid, rays).compile()
        return compiled.memory_analysis().temp_size_in_bytes / 1e6

    small, large = temporary(32), temporary(128)
    whole = 128 * 128 * 16 * 4 * 4 / 1e6  # the samples of the large image at four floats each
    image = 128 * 128 * (3 + 3 + 3 + 1 + 1) * 4 / 1e6
    assert large - small < 4 * image
    assert large < whole


def test_eight_devices_give_one_devices_image_and_gradient():
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "fsdp"))
    grid, rays, cells = some_grid(), some_rays(64), some_cells(0.4)

    def render(grid, rays):
        return render_rays(grid, rays, RenderConfig(samples=16), background=WHITE, occupied=cells)[
            0
        ]

    def loss(render):
        return jax.jit(
            jax.value_and_grad(lambda grid: jnp.mean(jnp.sin(4 * render(grid, rays).colour)))
        )(grid)

    image = jax.jit(over_mesh(render, mesh))(grid, rays)
    assert image.colour.sharding.spec[0] == ("data", "fsdp")
    expected = render(grid, rays)
    assert np.linalg.norm(image.colour - expected.colour) <= 1e-6 * np.linalg.norm(expected.colour)
    value, gradient = loss(over_mesh(render, mesh))
    expected_value, expected_gradient = loss(render)
    np.testing.assert_allclose(value, expected_value, rtol=1e-6)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient), strict=True):
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b)


def test_gradients_are_finite_at_grazing_rays_and_extreme_densities():
    """Rays in the planes of the box and along its edges, through densities from nothing to everything."""
    ends = [-1.0, 0.0, 1.0]
    origin = jnp.array([[-3.0, y, z] for y, z in itertools.product(ends, ends)])
    rays = Rays(origin, jnp.broadcast_to(jnp.array([1.0, 0.0, 0.0]), origin.shape))
    grid = some_grid()

    @jax.jit
    def gradient(grid, origin, shift):
        def total(grid, origin):
            grid.density_values = grid.density_values[...] + shift
            pixels, losses = render_rays(
                grid, Rays(origin, rays.direction), RenderConfig(samples=16), background=WHITE
            )
            return jnp.sum(pixels.colour) + jnp.sum(pixels.depth) + jnp.sum(losses["distortion"])

        return jax.grad(total, argnums=(0, 1))(grid, origin)

    for shift in (-1e4, 0.0, 1e4):
        found = gradient(grid, origin, jnp.float32(shift))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


# --- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": 100}, "samples is 100; it must be a multiple of block"),
        ({"equal_steps": True, "bounds": "none", "far": 3.0}, "equal_steps needs bounds box"),
        ({"bounds": "none"}, "give a far"),
        ({"spacing": "disparity"}, "needs near above 0"),
    ],
)
def test_settings_that_cannot_work(changes, message):
    with pytest.raises(UserError, match=message):
        RenderConfig(**changes)
