"""Fields: density and colour at a point, seen from a direction. One protocol, three kinds (and a packed voxel grid)."""
