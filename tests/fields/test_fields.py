"""Fields against references in numpy and closed forms."""

import itertools
import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from naive_fields import ngp_encoding, ngp_row, trilinear
from scipy.special import sph_harm_y

from jaxedit.fields.field import Frame, contract, truncated_exp, uncontract
from jaxedit.fields.frequency_mlp import FrequencyMLP, FrequencyMLPConfig, frequencies
from jaxedit.fields.hash_grid import HashGrid, HashGridConfig, level_rows, levels_of
from jaxedit.fields.packed_grid import pack, unpack
from jaxedit.fields.rows import cell_corners, flat_index, weighted_rows
from jaxedit.fields.spherical_harmonics import basis
from jaxedit.fields.voxel_grid import VoxelGrid, VoxelGridConfig, activate, gain, raw_of, upsampled
from jaxvid.core.errors import UserError
from jaxvid.core.paths import flatten

BOX = Frame((-1.0, -2.0, 0.0), (1.5, 1.0, 2.0))
SMALL_HASH = HashGridConfig(levels=4, table=8, base=3, finest=24, width=16, geometry=8)


def some_points(count=50, seed=0, frame=BOX, beyond=0.0):
    rng = np.random.default_rng(seed)
    unit = rng.uniform(-beyond, 1 + beyond, (count, 3))
    return jnp.asarray(np.array(frame.lowest) + unit * np.array(frame.size), jnp.float32)


def unit_vectors(count, seed=0):
    v = np.random.default_rng(seed).normal(size=(count, 3))
    return jnp.asarray(v / np.linalg.norm(v, axis=-1, keepdims=True), jnp.float32)


def voxel_grid(**changes):
    config = VoxelGridConfig(**{"resolution": (5, 6, 7), "degree": 1, "gain": 2.0, **changes})
    return VoxelGrid(config, BOX, jax.random.key(0))


FIELDS = {
    "voxels": voxel_grid,
    "packed": lambda: pack(voxel_grid(), jnp.ones((4, 5, 6), bool), 5 * 6 * 7)[0],
    "hash": lambda: HashGrid(SMALL_HASH, BOX, jax.random.key(0)),
    "mlp": lambda: FrequencyMLP(
        FrequencyMLPConfig(position_frequencies=3, width=16), BOX, jax.random.key(0)
    ),
}


@pytest.fixture(params=FIELDS)
def field(request):
    return jax.jit(FIELDS[request.param])() if request.param != "packed" else FIELDS["packed"]()


# --- what every field promises -------------------------------------------------------------------


def test_density_is_the_querys(field):
    points, directions = some_points(), unit_vectors(50)
    density, colour = field.query(points, directions)
    np.testing.assert_allclose(field.density(points), density, rtol=1e-6)
    assert (np.asarray(density) >= 0).all()
    assert ((np.asarray(colour) >= 0) & (np.asarray(colour) <= 1)).all()


def test_outside_the_box_is_empty(field):
    outside = np.array([[-1.01, 0, 1], [0, 1.01, 1], [0, 0, -0.01], [1e6, 0, 1]], np.float32)
    assert not np.asarray(field.density(jnp.asarray(outside))).any()


def test_any_leading_axes(field):
    points = some_points(12).reshape(3, 4, 3)
    directions = unit_vectors(3).reshape(3, 1, 3)
    density, colour = field.query(points, directions)
    assert density.shape == (3, 4)
    one, shade = field.query(jnp.asarray(points[2, 1]), jnp.asarray(directions[2, 0]))
    np.testing.assert_allclose(density[2, 1], one, rtol=1e-4)
    np.testing.assert_allclose(colour[2, 1], shade, rtol=1e-4)


def test_gradients_in_points_are_slopes(field):
    """Central differences of the density; points inside cells, where it is smooth."""
    rng = np.random.default_rng(3)
    cell = rng.integers(0, 3, (20, 3)) + rng.uniform(0.3, 0.7, (20, 3))
    unit = (cell + 0.5) / np.array([5, 6, 7])
    points = jnp.asarray(np.array(BOX.lowest) + unit * np.array(BOX.size), jnp.float32)
    direction = unit_vectors(20)
    if isinstance(field, HashGrid):
        field.body.table = field.body.table[...] * 1e3  # the initial table is all but flat
    gradient = jax.grad(lambda points: jnp.sum(field.density(points)))(points)
    slope = jnp.sum(gradient * direction, axis=-1)
    step = 2e-3
    ahead, behind = (field.density(points + s * step * direction) for s in (1, -1))
    tolerance = (
        0.2 if isinstance(field, HashGrid) else 0.02
    )  # its finest cells are a fifth of a step
    scale = np.abs(slope).max()
    if isinstance(field, HashGrid):
        step = 1e-3
        ahead, behind = (field.density(points + s * step * direction) for s in (1, -1))
    error = np.abs((ahead - behind) / (2 * step) - slope)
    assert np.median(error) < tolerance * scale
    assert scale > 0


def test_every_parameter_gets_a_gradient(field):
    points, directions = some_points(400), unit_vectors(400)
    params = {k: v for k, v in flatten(field).items() if v.dtype == jnp.float32}

    def loss(field):
        density, colour = field.query(points, directions)
        return jnp.sum(density) + jnp.sum(jnp.sin(3 * colour))

    gradient = flatten(jax.grad(loss, allow_int=True)(field))
    for path in params:
        assert np.isfinite(gradient[path]).all(), path
        assert np.abs(gradient[path]).max() > 0, path


# --- interpolation -------------------------------------------------------------------------------


def test_interpolation_is_trilinear_with_zeros_outside():
    rng = np.random.default_rng(0)
    grid = rng.normal(size=(4, 5, 3, 2)).astype(np.float32)
    position = rng.uniform(-2, 6, (200, 3)).astype(np.float32)
    corners, weight = cell_corners(jnp.asarray(position), (4, 5, 3))
    index = flat_index(corners, (4, 5, 3))
    found = weighted_rows(jnp.asarray(grid.reshape(-1, 2)), index, weight)
    expected = [trilinear(grid.astype(float), p.astype(float)) for p in position]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert (np.asarray(index) >= 0).all()
    assert (np.asarray(index) < 60).all()


def test_slopes_of_weights_sum_to_zero_on_grid_points_too():
    position = jnp.array([[1.0, 2.0, 1.0], [1.5, 2.0, 1.0], [0.0, 3.0, 2.0]])
    gradient = jax.grad(lambda p: jnp.sum(cell_corners(p, (4, 5, 4))[1]))(position)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-6)


def test_written_gradient_of_rows_is_autodiffs():
    rng = np.random.default_rng(1)
    table, index, weight = (
        rng.normal(size=(9, 3)),
        rng.integers(0, 9, (20, 8)),
        rng.normal(size=(20, 8)),
    )
    table, weight = jnp.asarray(table, jnp.float32), jnp.asarray(weight, jnp.float32)
    cotangent = jnp.asarray(rng.normal(size=(20, 3)), jnp.float32)

    def plain(table, weight):
        return jnp.einsum("mk,mkc->mc", weight, table[index])

    def written(table, weight):
        return weighted_rows(table, jnp.asarray(index), weight)

    for one, other in zip(
        jax.vjp(written, table, weight)[1](cotangent),
        jax.vjp(plain, table, weight)[1](cotangent),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_values_at_voxel_centres_are_the_voxels():
    grid = voxel_grid(activation="relu")
    centres = np.stack(
        np.meshgrid(*[(np.arange(n) + 0.5) / n for n in (5, 6, 7)], indexing="ij"), -1
    )
    density = grid.density(grid.frame.to_world(jnp.asarray(centres, jnp.float32)))
    raw = np.asarray(grid.density_values[...])[..., 0]
    np.testing.assert_allclose(density, np.maximum(2.0 * raw, 0), atol=2e-5)


def test_vox_es_conventions():
    """Its gain for its own box, activation after interpolation, colour without an offset."""
    frame = Frame((-1.5, -1.5, -1.5), (1.5, 1.5, 1.5))
    grid = VoxelGrid(VoxelGridConfig(resolution=(4, 4, 4)), frame, jax.random.key(1))
    points, directions = some_points(30, frame=frame), unit_vectors(30)
    density, colour = grid.query(points, directions)
    d, f = (np.asarray(v[...], np.float64) for v in (grid.density_values, grid.colour_values))
    for i, point in enumerate(points):
        position = (np.asarray(point, float) + 1.5) / 3 * 4 - 0.5
        raw = trilinear(d, position)[0] * 100 / 3
        np.testing.assert_allclose(density[i], np.logaddexp(0, raw), rtol=2e-3, atol=1e-4)
        shaded = 0.28209479177387814 * trilinear(f, position)
        np.testing.assert_allclose(colour[i], 1 / (1 + np.exp(-shaded)), rtol=1e-4)


@pytest.mark.parametrize("activation", ["softplus", "relu"])
@pytest.mark.parametrize("per", ["unit", "diagonal"])
def test_raw_values_of_densities(activation, per):
    config = VoxelGridConfig(
        resolution=(4, 4, 4), activation=activation, gain=7.0, shift=-1.5, per=per
    )
    for density in (1e-3, 1.0, 30.0):
        raw = raw_of(density, config, BOX)
        np.testing.assert_allclose(activate(jnp.float32(raw), config, BOX), density, rtol=1e-4)


@pytest.mark.parametrize("given", [None, 40.0])
def test_densities_per_diagonal_look_alike_in_any_box(given):
    """The same values in a box ten times as large: a tenth of the density, so the same optical thickness."""
    large = Frame(tuple(10 * x for x in BOX.lowest), tuple(10 * x for x in BOX.highest))
    config = VoxelGridConfig(resolution=(5, 6, 7), gain=given, shift=0.5, per="diagonal")
    small, great = (VoxelGrid(config, frame, jax.random.key(0)) for frame in (BOX, large))
    points = some_points(50)
    np.testing.assert_allclose(10 * great.density(10 * points), small.density(points), rtol=1e-4)


def test_vox_es_gain_is_the_same_per_unit_and_per_diagonal():
    unit = VoxelGridConfig(resolution=(5, 6, 7))
    slope = gain(replace(unit, per="diagonal"), BOX) / math.hypot(*BOX.size)
    np.testing.assert_allclose(slope, gain(unit, BOX), rtol=1e-6)


def test_finer_grids_keep_linear_fields():
    grid = voxel_grid(resolution=(4, 4, 4), activation="relu", gain=1.0)
    i, j, k = np.meshgrid(*[np.arange(4) + 0.5] * 3, indexing="ij")
    grid.density_values = jnp.asarray((1 + i + 2 * j - 0.5 * k)[..., None], jnp.float32)
    finer = upsampled(grid, (8, 8, 8))
    inner = some_points(50) * 0.5 + np.array([0.125, -0.25, 0.5], np.float32)
    np.testing.assert_allclose(finer.density(inner), grid.density(inner), rtol=1e-5)
    assert finer.config.resolution == (8, 8, 8)


def test_a_packed_grid_is_the_dense_one_where_it_is_kept():
    grid = voxel_grid()
    keep = np.zeros((4, 5, 6), bool)
    keep[1:3, 2:4, 1:5] = True
    packed, lost = pack(grid, jnp.asarray(keep), 3 * 3 * 5)
    assert int(lost) == 0
    points, directions = some_points(500), unit_vectors(500)
    position = (np.asarray(points) - np.array(BOX.lowest)) / np.array(BOX.size) * np.array(
        [5, 6, 7]
    ) - 0.5
    cell = np.floor(position).astype(int)
    inside = ((cell >= 0) & (cell < keep.shape)).all(-1)
    kept = inside & keep[tuple(np.clip(cell, 0, np.array(keep.shape) - 1).T)]
    dense, colour = grid.query(points, directions)
    density, seen = packed.query(points, directions)
    assert 10 < kept.sum() < 300
    np.testing.assert_allclose(density, np.where(kept, dense, 0), atol=1e-6)
    np.testing.assert_allclose(seen[kept], colour[kept], atol=1e-6)
    back = unpack(packed, -50.0)
    stored = np.asarray(packed.row[...]) != -1
    assert (np.asarray(back.density_values[...])[~stored] == -50).all()
    assert (np.asarray(back.colour_values[...])[~stored] == 0).all()
    np.testing.assert_allclose(back.density(points)[kept], dense[kept], atol=1e-6)


def test_voxels_that_do_not_fit_are_counted():
    packed, lost = pack(voxel_grid(), jnp.ones((4, 5, 6), bool), 200)
    assert int(lost) == 5 * 6 * 7 - 200
    assert int(np.asarray(packed.row[...]).max()) == 199


# --- spherical harmonics -------------------------------------------------------------------------


def test_harmonics_are_the_real_combinations_of_scipys():
    direction = np.asarray(unit_vectors(40), float)
    theta, phi = np.arccos(direction[:, 2]), np.arctan2(direction[:, 1], direction[:, 0])
    expected = []
    for degree in range(4):
        for order in range(-degree, degree + 1):
            y = sph_harm_y(degree, abs(order), theta, phi)
            # scipy's carries the sign (-1)^m; the real combinations here keep it.
            parts = {0: y.real}.get(order, math.sqrt(2) * (y.imag if order < 0 else y.real))
            expected.append(parts)
    found = basis(3, jnp.asarray(direction, jnp.float32))
    np.testing.assert_allclose(found, np.stack(expected, -1), atol=2e-6)


def test_harmonics_of_an_unknown_degree():
    with pytest.raises(UserError, match="degree 4"):
        basis(4, jnp.ones((1, 3)))


# --- hash grid -----------------------------------------------------------------------------------


def test_hashes_are_the_published_ones():
    config = HashGridConfig()
    last = levels_of(config)[-1]
    corners = np.array([[0, 0, 0], [1, 2, 3], [2047, 2047, 2047], [5, 0, 0], [0, 5, 0], [0, 0, 5]])
    rows = level_rows(last, jnp.asarray(corners)) - last.first
    assert [int(r) for r in rows] == [ngp_row(c, last.resolution, 2**19) for c in corners]
    assert int(rows[1]) == (1 ^ ((2 * 2654435761) % 2**32) ^ ((3 * 805459861) % 2**32)) % 2**19


def test_the_papers_table_has_its_number_of_parameters():
    last = levels_of(HashGridConfig())[-1]
    assert (last.first + last.rows) * 2 == 12_196_240
    assert [level.resolution for level in levels_of(HashGridConfig())][:3] == [16, 23, 31]


def test_encoding_is_instant_ngps():
    field = jax.jit(FIELDS["hash"])()
    unit = np.random.default_rng(0).uniform(0, 1, (30, 3)).astype(np.float32)
    found = field.body.encode(jnp.asarray(unit))
    table = np.asarray(field.body.table[...], np.float64)
    expected = [
        ngp_encoding(table, u.astype(float), levels=4, features=2, log_rows=8, base=3, finest=24)
        for u in unit
    ]
    np.testing.assert_allclose(found, expected, atol=2e-9)


# --- frequency MLP -------------------------------------------------------------------------------


def test_frequencies_are_equation_4():
    p = np.array([[0.1, -0.4, 0.7]], np.float32)
    found = frequencies(jnp.asarray(p), 3)[0]
    sines = [math.sin(2**k * math.pi * x) for k in range(3) for x in p[0]]
    cosines = [math.cos(2**k * math.pi * x) for k in range(3) for x in p[0]]
    np.testing.assert_allclose(found, [*p[0], *sines, *cosines], atol=2e-6)


def test_the_papers_network_has_its_size():
    abstract = jax.eval_shape(lambda: FrequencyMLP(FrequencyMLPConfig(), BOX, jax.random.key(0)))
    shapes = {path: leaf.shape for path, leaf in flatten(abstract).items()}
    assert shapes["layers/0/kernel"] == (63, 256)
    assert shapes["layers/5/kernel"] == (63 + 256, 256)
    assert shapes["view/kernel"] == (256 + 27, 128)
    # nerf-pytorch's count for the same network (a widely used transcription): 595,844.
    assert sum(math.prod(shape) for shape in shapes.values()) == 595_844


# --- frames --------------------------------------------------------------------------------------


@pytest.mark.parametrize("contraction", ["none", "l2", "linf"])
def test_world_and_unit_coordinates_are_inverse(contraction):
    frame = Frame(BOX.lowest, BOX.highest, contraction)
    points = some_points(200, beyond=0.0 if contraction == "none" else 20.0)
    unit = frame.to_unit(points)
    assert ((np.asarray(unit) >= 0) & (np.asarray(unit) <= 1)).all()
    np.testing.assert_allclose(frame.to_world(unit), points, rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_contraction_is_equation_10(norm):
    order = {"l2": 2, "linf": np.inf}[norm]
    x = np.random.default_rng(0).normal(size=(100, 3)) * 3
    length = np.linalg.norm(x, ord=order, axis=-1, keepdims=True)
    expected = np.where(length <= 1, x, (2 - 1 / length) * x / length)
    np.testing.assert_allclose(contract(jnp.asarray(x, jnp.float32), norm), expected, atol=1e-6)
    far = contract(jnp.array([[1e8, 0.0, 0.0]]), norm)
    assert np.linalg.norm(far, ord=order) <= 2.0
    np.testing.assert_allclose(
        uncontract(contract(jnp.asarray(x, jnp.float32), norm), norm), x, rtol=1e-4
    )


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_contraction_reaches_as_far_as_floats(norm):
    for far in (1e20, 3e38, jnp.inf):
        found = contract(jnp.array([[far, 0.0, 0.0]]), norm)
        np.testing.assert_allclose(found, [[2.0, 0.0, 0.0]], atol=1e-6)


def test_contraction_has_finite_gradients_everywhere():
    points = jnp.array(
        [list(p) for p in itertools.product([0.0, 1.0, -1.0, 1e20, 1e-20], repeat=3)]
    )
    for norm in ("l2", "linf"):
        gradient = jax.grad(lambda x, norm=norm: jnp.sum(contract(x, norm)))(points)
        assert np.isfinite(gradient).all()


def test_the_slope_of_the_exponential_stops_growing():
    value, slope = jax.vmap(jax.value_and_grad(truncated_exp))(jnp.array([-20.0, 2.0, 20.0]))
    np.testing.assert_allclose(value, np.exp([-20, 2, 20]), rtol=1e-5)
    np.testing.assert_allclose(slope, np.exp([-15, 2, 15]), rtol=1e-5)
