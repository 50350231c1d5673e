"""Differentiable NeRF and voxel rendering, and text-guided 3-D editing through it."""
