"""Fields in numpy, float64, point by point: the references of the tests of fields."""

import math

import numpy as np


def trilinear(grid, position):
    """Value [c] at a position in voxel units of a grid [x, y, z, c]; what is outside is zero."""
    total = np.zeros(grid.shape[-1])
    low = np.floor(position).astype(int)
    for offset in np.ndindex(2, 2, 2):
        corner = low + offset
        if (corner < 0).any() or (corner >= grid.shape[:3]).any():
            continue
        total += np.prod(1 - np.abs(position - corner)) * grid[tuple(corner)]
    return total


def ngp_row(corner, resolution, rows):
    """Row of a grid point in its level, with Python's unbounded integers."""
    x, y, z = (int(c) for c in corner)
    if resolution**3 <= rows:
        return (x + y * resolution + z * resolution**2) % rows
    wrapped = [x, (y * 2654435761) % 2**32, (z * 805459861) % 2**32]
    return (wrapped[0] ^ wrapped[1] ^ wrapped[2]) % rows


def ngp_encoding(table, unit, *, levels, features, log_rows, base, finest):
    """Features [levels * features] of one point."""
    growth = math.exp((math.log(finest) - math.log(base)) / (levels - 1))
    first, found = 0, []
    for level in range(levels):
        scale = base * growth**level - 1
        resolution = math.ceil(scale) + 1
        rows = min(math.ceil(resolution**3 / 8) * 8, 2**log_rows)
        position = unit * scale + 0.5
        low = np.floor(position).astype(int)
        value = np.zeros(features)
        for offset in np.ndindex(2, 2, 2):
            weight = np.prod(1 - np.abs(position - (low + offset)))
            value += weight * table[first + ngp_row(low + offset, resolution, rows)]
        found.append(value)
        first += rows
    assert first == len(table)
    return np.concatenate(found)
