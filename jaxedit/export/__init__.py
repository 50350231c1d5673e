"""Exports of a fitted scene: point clouds, meshes, grids of values, cameras."""
