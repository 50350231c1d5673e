"""Marching cubes (Lorensen and Cline 1987) with derived tables, which leave no cracks; and what one does with a mesh.

    values    [x, y, z], at the points of a grid; inside is where values > level
    cell      the cube between eight neighbouring points; corner c = 4 i + 2 j + k for (i, j, k) in {0, 1}^3
    crossing  a cell edge with one end inside; it bears one vertex, where linear interpolation meets the level

A cell's patch depends only on which corners are inside: 256 cases. The tables are derived, not typed in:

1. On each face of the cell the crossings are joined in pairs, a pair around every run of outside corners. Where two
   opposite corners of a face are inside, the inside is so held together. The rule looks at the face alone: the two cells
   that share a face agree, and go along its segments in opposite directions.
2. At every crossing one segment ends and one begins, so that the segments make loops. They go around what is inside so
   that triangles are counter-clockwise seen from outside.
3. A loop is cut into triangles without a diagonal that lies in a face: the neighbour could have the same one, and four
   triangles would meet in it. (All loops that occur can be cut so.)

Two cells share no more than a face. Hence of a surface that stays within the grid every edge has exactly two triangles,
which go along it in opposite directions, and every vertex one ring of triangles: it is a closed, oriented manifold.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from jaxedit.fields.rows import CORNERS

_STRIDE = (4, 2, 1)  # between the corners at the two ends of an edge along each axis
# The twelve edges: the corner at the lower end, and the axis.
_EDGES = tuple((c, axis) for axis in range(3) for c in range(8) if not CORNERS[c][axis])
_EDGE_BETWEEN = {frozenset((c, c + _STRIDE[axis])): n for n, (c, axis) in enumerate(_EDGES)}


class Surface(NamedTuple):
    """An indexed triangle mesh in the grid's own coordinates (point i of an axis stands at i).

    Vertex v stands on the grid's edge from `corner[v]` one step along `axis[v]`, `fraction[v]` (0 to 1) of the way.
    """

    corner: Int[np.ndarray, "v 3"]
    axis: Int[np.ndarray, "v"]
    fraction: Float[np.ndarray, "v"]
    triangles: Int[np.ndarray, "t 3"]

    @property
    def points(self) -> Float[np.ndarray, "v 3"]:
        """The vertices."""
        return self.corner + self.fraction[:, None] * np.eye(3)[self.axis]


class Mesh(NamedTuple):
    """Triangles, counter-clockwise seen from outside, with normals of length 1 and sRGB colours at their vertices."""

    points: Float[np.ndarray, "v 3"]
    normals: Float[np.ndarray, "v 3"]
    colours: UInt8[np.ndarray, "v 3"]
    triangles: Int[np.ndarray, "t 3"]


def marching_cubes(values: Float[np.ndarray, "x y z"], level: float) -> Surface:
    """The surface between values above and not above `level`; open where it leaves the grid.

    Every axis needs two points or more. Only the cells that the surface passes take memory beyond 2 bytes a point.
    """
    inside = values > level
    x, y, z = (n - 1 for n in values.shape)
    case = np.zeros((x, y, z), np.uint8)
    for c, (i, j, k) in enumerate(CORNERS):
        case |= inside[i : i + x, j : j + y, k : k + z].view(np.uint8) << np.uint8(c)
    cell = np.flatnonzero((case != 0) & (case != 255))
    kind = case.reshape(-1)[cell]
    base = np.ravel_multi_index(np.unravel_index(cell, case.shape), values.shape)
    # Triangle n of its cell, for all cells at once.
    count = COUNT[kind]
    owner = np.repeat(np.arange(len(cell)), count)
    n = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
    edge = TABLE[kind[owner], n]
    corners = np.array(CORNERS)[[c for c, _ in _EDGES]]
    _, y, z = values.shape
    stride = np.array([y * z, z, 1])
    offset, along = corners @ stride, np.array(_EDGES)[:, 1]
    # A grid's edge by one number, whichever cell it is seen from: so are vertices merged.
    key = (base[owner, None] + offset[edge]) * 3 + along[edge]
    found, place = np.unique(key, return_inverse=True)
    start, axis = np.divmod(found, 3)
    corner = np.stack(np.unravel_index(start, values.shape), axis=-1)
    flat = values.reshape(-1)
    low = flat[start].astype(np.float64)
    high = flat[start + stride[axis]].astype(np.float64)
    return Surface(corner, axis, (level - low) / (high - low), place.reshape(-1, 3))


def large_parts(surface: Surface, share: float) -> Surface:
    """Without the connected parts that have fewer triangles than `share`, 0 to 1, of what the largest part has."""
    vertices, triangles = len(surface.axis), surface.triangles
    ends = triangles[:, :2].T, triangles[:, 1:].T
    row, column = np.concatenate(ends, axis=1)
    links = coo_array((np.ones(len(row), bool), (row, column)), shape=(vertices, vertices))
    _, part = connected_components(links, directed=False)
    size = np.bincount(part[triangles[:, 0]])
    kept = size >= share * size.max()
    stays = kept[part]
    number = np.cumsum(stays) - 1
    return Surface(
        surface.corner[stays],
        surface.axis[stays],
        surface.fraction[stays],
        number[triangles[kept[part[triangles[:, 0]]]]],
    )


def mean_normals(
    points: Float[np.ndarray, "v 3"], triangles: Int[np.ndarray, "t 3"]
) -> Float[np.ndarray, "v 3"]:
    """At each vertex the mean normal of its triangles, weighted by their areas; 0 where it vanishes."""
    a, b, c = np.moveaxis(points[triangles], 1, 0)
    area = np.cross(b - a, c - a)
    total = np.stack(
        [
            np.bincount(triangles.reshape(-1), np.repeat(area[:, axis], 3), len(points))
            for axis in range(3)
        ],
        axis=-1,
    )
    length = np.linalg.norm(total, axis=-1, keepdims=True)
    return np.where(length > 0.0, total / np.where(length > 0.0, length, 1.0), 0.0)


def _faces() -> Iterator[tuple[int, ...]]:
    """The corners of each face, counter-clockwise seen from outside the cell."""
    for axis in range(3):
        u, v = _STRIDE[(axis + 1) % 3], _STRIDE[(axis + 2) % 3]
        ring = (0, u, u + v, v)
        yield tuple(c + _STRIDE[axis] for c in ring)
        yield ring[::-1]


_RINGS = tuple(_faces())
_FACES_OF = [
    {f for f, ring in enumerate(_RINGS) if {c, c + _STRIDE[axis]} <= set(ring)}
    for c, axis in _EDGES
]


def case_loops(case: int) -> list[tuple[int, ...]]:
    """The loops of a case (bit c: corner c is inside), as numbers of cell edges (steps 1 and 2)."""
    follow: dict[int, int] = {}
    for ring in _RINGS:
        inside = [case >> c & 1 for c in ring]
        # edge[m] comes before corner m.
        edge = [_EDGE_BETWEEN[frozenset((ring[m - 1], ring[m]))] for m in range(4)]
        for m in range(4):
            if inside[m - 1] and not inside[m]:
                end = m
                while not inside[end]:
                    end = (end + 1) % 4
                follow[edge[end]] = edge[m]
    loops = []
    while follow:
        first = min(follow)
        loop, after = [first], follow.pop(first)
        while after != first:
            loop.append(after)
            after = follow.pop(after)
        loops.append(tuple(loop))
    return loops


def _cut(loop: tuple[int, ...]) -> list[tuple[int, int, int]] | None:
    """Triangles of a loop without a diagonal in a face (step 3); None if there are none.

    The triangle at the side from the last to the first, and what it leaves on its two other sides.
    """
    if len(loop) < 3:
        return []
    last = len(loop) - 1
    for m in range(1, last):
        if m > 1 and _FACES_OF[loop[0]] & _FACES_OF[loop[m]]:
            continue
        if m < last - 1 and _FACES_OF[loop[m]] & _FACES_OF[loop[last]]:
            continue
        before, after = _cut(loop[: m + 1]), _cut(loop[m:])
        if before is not None and after is not None:
            return [*before, (loop[0], loop[m], loop[last]), *after]
    return None


def _table() -> tuple[Int[np.ndarray, "256 n 3"], Int[np.ndarray, "256"]]:
    """Triangles of every case as cell edges, and how many there are."""
    cases = []
    for case in range(256):
        triangles: list[tuple[int, int, int]] = []
        for loop in case_loops(case):
            cut = _cut(loop)
            assert cut is not None, f"case {case}: loop {loop} cannot be cut"
            triangles += cut
        cases.append(triangles)
    count = np.array([len(triangles) for triangles in cases])
    table = np.zeros((256, count.max(), 3), int)
    for case, triangles in enumerate(cases):
        table[case, : len(triangles)] = np.reshape(triangles, (-1, 3))
    return table, count


TABLE, COUNT = _table()
