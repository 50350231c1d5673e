"""Squares of pixels as the channels of a latent: an autoencoder without parameters, exact both ways.

A small model that is to work in pixels has the sides, and the places in a pipeline, of one that works in latents.
"""

from dataclasses import dataclass

import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float, Key


@dataclass(frozen=True)
class FoldingConfig:
    """side: of a square, in pixels."""

    side: int = 2

    @property
    def factor(self) -> int:
        """Pixels a side of a latent."""
        return self.side

    @property
    def latents(self) -> int:
        """Channels of a latent."""
        return 3 * self.side**2


class PixelFolding(nnx.Module):
    """`moments`, `encode` and `decode` as of `jaxvid.models.autoencoder.Autoencoder`, without a scale and without noise."""

    def __init__(self, config: FoldingConfig, key: Key[Array, ""]):
        self.config = config

    def moments(
        self, x: Float[Array, "b t h w c"]
    ) -> tuple[Float[Array, "b t h2 w2 d"], Float[Array, "b t h2 w2 d"]]:
        """The latents, and a log-variance of nothing."""
        z = self.encode(x)
        return z, jnp.full_like(z, -jnp.inf)

    def encode(
        self, x: Float[Array, "b t h w c"], key: Key[Array, ""] | None = None
    ) -> Float[Array, "b t h2 w2 d"]:
        """Latents of frames; a key changes nothing."""
        p = self.config.side
        return rearrange(x, "b t (h p) (w q) c -> b t h w (p q c)", p=p, q=p)

    def decode(
        self, z: Float[Array, "b t h w d"], still: Bool[Array, "b t"] | None = None
    ) -> Float[Array, "b t h2 w2 c"]:
        """Frames of latents."""
        p = self.config.side
        return rearrange(z, "b t h w (p q c) -> b t (h p) (w q) c", p=p, q=p)
