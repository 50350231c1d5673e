"""Sampling grids against the published index lists."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxvid.core.errors import UserError
from jaxvid.diffusion import grid
from jaxvid.diffusion.driver import check_grid
from jaxvid.diffusion.schedule import Cosine, LinearTable, ScaledLinearTable


def test_uniform_is_uniform_in_time():
    values = grid.uniform(Cosine(), 8, clean=False)
    assert values.dtype == np.float32
    times = np.asarray(Cosine().time(jnp.asarray(values)))
    np.testing.assert_allclose(times, np.arange(8, -1, -1) / 8, atol=1e-6)
    clean = grid.uniform(Cosine(), 8)
    assert clean[-1] == np.inf
    assert (clean[:-1] == values[:-1]).all()


def test_uniform_logsnr_and_karras():
    np.testing.assert_allclose(grid.uniform_logsnr(-6.0, 6.0, 4), [-6, -3, 0, 3, 6])
    assert grid.uniform_logsnr(-6.0, 6.0, 4, clean=True)[-1] == np.inf
    values = grid.karras(5, 0.002, 80.0, 7.0)
    expected = [(80 ** (1 / 7) + i / 4 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(5)]
    np.testing.assert_allclose(np.exp(-0.5 * values[:-1].astype(float)), expected, rtol=1e-5)
    assert values.shape == (6,)
    assert values[-1] == np.inf
    assert grid.karras(1).shape == (2,)


@pytest.mark.parametrize(
    ("steps", "spacing", "offset", "indices"),
    [
        (5, "leading", 0, [800, 600, 400, 200, 0]),
        (5, "leading", 1, [801, 601, 401, 201, 1]),  # Stable Diffusion
        (3, "leading", 1, [667, 334, 1]),
        (5, "trailing", 0, [999, 799, 599, 399, 199]),
        (3, "trailing", 0, [999, 666, 332]),
        (5, "linspace", 0, [999, 749, 500, 250, 0]),
        (1, "linspace", 0, [0]),
        (1, "trailing", 0, [999]),
    ],
)
def test_published_spacings(steps, spacing, offset, indices):
    assert grid.table_indices(1000, steps, spacing, offset).tolist() == indices
    schedule = ScaledLinearTable()
    values = grid.table(schedule, steps, spacing, offset=offset)
    assert np.asarray(schedule.network_time(jnp.asarray(values[:-1]))).tolist() == indices
    assert values[-1] == np.inf
    first = grid.table(schedule, steps, spacing, offset=offset, final="first")
    np.testing.assert_allclose(1 / (1 + np.exp(-first[-1])), 1 - 0.00085, rtol=1e-6)
    check_grid(values)
    check_grid(first)


@pytest.mark.parametrize(
    ("end", "spacing", "indices"),
    [
        (980, "leading", [*range(932, 0, -49)]),
        (500, "leading", [*range(476, 0, -25)]),
        (20, "leading", [*range(20, 0, -1)]),
        (990, "leading", [*range(932, 0, -49)]),
        (500, "trailing", [*range(499, 0, -25)]),
        (20, "linspace", [*range(19, -1, -1)]),
    ],
)
def test_a_grid_that_begins_within_the_noise(end, spacing, indices):
    """Instruct-NeRF2NeRF's twenty steps from a level: those of a table of that many entries."""
    assert grid.table_indices(1000, 20, spacing, 1, end).tolist() == indices
    values = grid.table(ScaledLinearTable(), 20, spacing, offset=1, final="first", end=end)
    assert values[:-1].tolist() == ScaledLinearTable().logsnr_table[indices].tolist()
    assert values[-1] == ScaledLinearTable().logsnr_table[0]


def test_every_entry_can_be_a_step():
    assert grid.table_indices(1000, 1000, "leading").tolist() == list(range(999, -1, -1))
    assert grid.table(LinearTable(), 1000).shape == (1001,)


@pytest.mark.parametrize(
    "call",
    [
        lambda: grid.uniform(Cosine(), 0),
        lambda: grid.table(LinearTable(), 1001),
        lambda: grid.table_indices(1000, 1000, "leading", 1),
        lambda: grid.table_indices(1000, 20, "leading", 1, 19),
        lambda: grid.table_indices(1000, 20, "leading", 1, 1001),
        lambda: check_grid(np.zeros((3, 2))),
        lambda: check_grid([1.0]),
        lambda: check_grid([0.0, np.inf, np.inf]),
        lambda: check_grid([0.0, np.nan]),
        lambda: check_grid([0.0, -np.inf]),
        lambda: check_grid([0.0, 2.0, 1.0, np.inf]),
        lambda: check_grid([0.0, 2.0, 1.0]),
    ],
)
def test_bad_grids_are_refused_in_one_line(call):
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
