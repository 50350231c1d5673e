"""Rendering: where rays are sampled, how samples become pixels, and gradients of whole images in bounded memory."""
