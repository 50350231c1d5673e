"""The renderer against closed forms, naive references, and itself by another way."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from naive_render import distortion, pixel, weights
from small_renders import WHITE, Medium, some_grid, some_rays

from jaxedit.fields.field import Frame
from jaxedit.fields.normals import NormalField
from jaxedit.render.bounds import box_bounds, sphere_bounds
from jaxedit.render.compositing import sum_before, thickness_of, weights_of
from jaxedit.render.render import RenderConfig, ray_bounds, render_rays
from jaxedit.scene.cameras import Rays
from jaxvid.core.errors import UserError

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
        places = (edges - edges[0]) / (edges[-1] - edges[0])
        spread = distortion(places, weights(density * np.diff(edges)))
        np.testing.assert_allclose(losses["distortion"][i], spread, rtol=1e-3, atol=1e-6)


def test_sums_before_begin_at_nothing_and_never_fall():
    """A difference of sums would: it let a pixel's opacity pass 1."""
    values = jnp.asarray(np.random.default_rng(5).uniform(0, 80, (50, 40)), jnp.float32)
    found = np.asarray(sum_before(values))
    assert (found[:, 0] == 0).all()
    assert (np.diff(found) >= 0).all()
    np.testing.assert_allclose(found[:, 1:], np.cumsum(values, axis=1)[:, :-1], rtol=1e-5)


def test_no_length_is_no_thickness_at_any_density():
    edges = jnp.array([[1.0, 1.0, 2.0, 2.0]])

    def total(density):
        return jnp.sum(thickness_of(density, edges))

    density = jnp.array([[jnp.inf, 3.0, jnp.inf]])
    np.testing.assert_allclose(thickness_of(density, edges), [[0.0, 3.0, 0.0]])
    np.testing.assert_allclose(jax.grad(total)(density), [[0.0, 1.0, 0.0]])


def test_normals_point_out_of_the_matter():
    """Density falls along +x only: the normal there is +x, whose colour is (1, 1/2, 1/2)."""
    grid = some_grid((8, 8, 8), gain=1.0, activation="relu")
    slope = jnp.broadcast_to(jnp.arange(8.0, 0.0, -1.0)[:, None, None, None], (8, 8, 8, 1))
    grid.density_values = nnx.Param(slope)
    points = jnp.array([[0.1, 0.2, -0.3], [-0.2, 0.0, 0.4]])
    density, colour = NormalField(grid).query(points, jnp.ones(3) / 3**0.5)
    np.testing.assert_allclose(density, grid.density(points), rtol=1e-6)
    np.testing.assert_allclose(colour, [[1.0, 0.5, 0.5]] * 2, atol=1e-5)


def test_equal_steps_end_at_far():
    """A far in the middle of the box hides its second half, for equal steps as without."""
    rays = Rays(jnp.array([[-4.0, 0.1, 0.1]]), jnp.array([[1.0, 0.0, 0.0]]))
    for equal_steps in (True, False):
        config = RenderConfig(samples=64, far=4.0, equal_steps=equal_steps)
        pixels, _ = render_rays(Medium(1.0), rays, config, background=WHITE)
        np.testing.assert_allclose(pixels.opacity, 1 - np.exp(-1.0), rtol=1e-5)


def test_jitter_moves_samples_and_keeps_the_mean():
    """The mean over many jitters of a ray through a thin slab is the slab's, where fixed samples see all or nothing."""

    class Slab(Medium):
        def density(self, points):
            return jnp.where(jnp.abs(points[..., 0] - 0.13) < 0.01, 1.0, 0.0)

    rays = Rays(
        jnp.tile(jnp.array([[-4.0, 0.1, 0.1]]), (4000, 1)),
        jnp.tile(jnp.array([[1.0, 0.0, 0.0]]), (4000, 1)),
    )
    keys = jax.random.split(jax.random.key(0), 4000)
    pixels, _ = render_rays(Slab(1.0), rays, RenderConfig(samples=16), background=WHITE, keys=keys)
    opacity = np.asarray(pixels.opacity)
    hit = 0.02 / (2 / 16)
    assert abs((opacity > 0).mean() - hit) < 4 * np.sqrt(hit * (1 - hit) / 4000)
    np.testing.assert_allclose(opacity[opacity > 0], 1 - np.exp(-2 / 16), rtol=1e-5)


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


# --- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": 100}, "samples is 100; it must be a multiple of block"),
        ({"equal_steps": True, "bounds": "none", "far": 3.0}, "equal_steps needs bounds box"),
    ],
)
def test_settings_that_cannot_work(changes, message):
    with pytest.raises(UserError, match=message):
        RenderConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"bounds": "none"}, "give a far"), ({"spacing": "disparity"}, "needs near above 0")],
)
def test_near_and_far_may_come_later_but_not_never(changes, message):
    config = RenderConfig(samples=16, **changes)
    with pytest.raises(UserError, match=message):
        render_rays(Medium(1.0), some_rays(), config, background=WHITE)
    later = replace(config, near=1.0, far=6.0)
    pixels, _ = render_rays(Medium(1.0), some_rays(), later, background=WHITE)
    assert (np.asarray(pixels.opacity) > 0.1).all()
