"""Edges of samples and the losses on them, against numpy and by their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from naive_render import distortion, interlevel
from small_renders import some_edges

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


def test_stratified_middles_are_everywhere_equally_often():
    jitter = (np.arange(1000) + 0.5) / 1000 - 0.5
    edges = np.asarray(stratified_edges(16, jnp.asarray(jitter, jnp.float32)))
    np.testing.assert_allclose(np.diff(edges), 1 / 16, atol=1e-6)
    middles = (edges[:, 1:] + edges[:, :-1]) / 2
    assert middles.min() >= 0
    assert middles.max() <= 1
    count, _ = np.histogram(middles, bins=50, range=(0, 1))
    np.testing.assert_allclose(count, middles.size / 50, rtol=0.02)


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
