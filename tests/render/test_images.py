"""Whole images: two-phase gradients, memory, devices."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from small_renders import WHITE, some_cells, some_grid, some_rays

from jaxedit.render.image import chunked, over_mesh
from jaxedit.render.render import RenderConfig, render_rays
from jaxedit.scene.cameras import Rays
from jaxvid.core.errors import UserError


def colours(model, rays):
    return render_rays(model, rays, RenderConfig(samples=16), background=WHITE)[0]


def image_of(rows, columns):
    rays = some_rays(rows * columns)
    return jax.tree.map(lambda leaf: leaf.reshape(rows, columns, 3), rays)


def colours_near_matter(model, rays):
    """Few slots: most blocks go through further passes."""
    config = RenderConfig(samples=16, slots=0.3, block=4)
    cells = jnp.asarray(np.random.default_rng(0).uniform(size=(6, 6, 6)) < 0.5)
    return render_rays(model, rays, config, background=WHITE, occupied=cells)[0]


@pytest.mark.parametrize("render", [colours, colours_near_matter])
@pytest.mark.parametrize("chunk", [7, 24, 1000])
def test_two_phases_give_autodiffs_gradient(chunk, render):
    grid, rays = some_grid(), image_of(6, 8)
    target = jnp.asarray(np.random.default_rng(0).uniform(size=(6, 8, 3)), jnp.float32)

    def gradient(render, rays):
        def of(grid):
            pixels = render(grid, rays)
            # Not a sum over pixels: the whole image enters each pixel's cotangent.
            return jnp.sqrt(jnp.mean((pixels.colour.reshape(6, 8, 3) - target) ** 2))

        return jax.jit(jax.value_and_grad(of))(grid)

    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, 3), rays)
    value, found = gradient(chunked(render, chunk), rays)
    expected, expected_gradient = gradient(render, flat)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected_gradient), strict=True):
        assert np.linalg.norm(b) > 0
        assert np.linalg.norm(a - b) <= 1e-6 * np.linalg.norm(b)


def test_a_compiled_function_is_differentiated_like_any_other():
    """Gradient of jit, not jit of gradient: what a notebook does."""
    grid, rays = some_grid(), image_of(4, 4)
    render = jax.jit(chunked(colours_near_matter, 8))

    def loss(grid):
        return jnp.mean(render(grid, rays).colour ** 2)

    outer, inner = jax.grad(loss)(grid), jax.jit(jax.grad(loss))(grid)
    for a, b in zip(jax.tree.leaves(outer), jax.tree.leaves(inner), strict=True):
        assert np.linalg.norm(b) > 0
        assert np.linalg.norm(a - b) <= 1e-6 * np.linalg.norm(b)


def test_chunks_are_multiples_of_what_a_mesh_takes():
    with pytest.raises(UserError, match="chunk is 12; it must be 8 or a multiple"):
        chunked(colours, 12, multiple=8)
    seen = []

    def render(model, rays):
        seen.append(rays.origin.shape[0])
        return colours(model, rays)

    pixels = chunked(render, 16, multiple=8)(some_grid(), image_of(3, 3))
    assert seen == [16]
    assert pixels.colour.shape == (3, 3, 3)


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
