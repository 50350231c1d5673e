"""Which frames belong together.

A joint batch holds a clip and N independent images on one frame axis. `segment[b, t]` is 0 on the clip's frames
and 1..N on the images, one number each. Everything that mixes frames takes its mask from it; everything that
conditions (captions, labels, noise levels) has one entry a segment, `[b, s, ...]`, and is gathered to frames.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Shaped


def temporal_mask(segment: Int[Array, "b t"]) -> Bool[Array, "b t t"]:
    """`mask[b, i, j]`: may frame i see frame j? Only within a segment (Ho et al. 2022, section 3).

    The clip's frames attend among themselves; an appended image is alone in its segment, so its row is the
    identity and its output is the value path.
    """
    return segment[:, :, None] == segment[:, None, :]


def to_frames(
    values: Shaped[Array, "b s *rest"], segment: Int[Array, "b t"]
) -> Shaped[Array, "b t *rest"]:
    """Gathers one value a segment to one value a frame."""
    index = segment.reshape(*segment.shape, *[1] * (values.ndim - 2))
    return jnp.take_along_axis(values, index, axis=1)
