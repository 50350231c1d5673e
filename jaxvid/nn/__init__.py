"""Layers: convolution, attention, resampling, embeddings and norms on `b t h w c` arrays."""
