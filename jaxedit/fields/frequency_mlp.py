"""The original NeRF network: an MLP of positions and directions in sines and cosines (Mildenhall et al. 2020).

    gamma_L(p) = (sin 2^0 pi p, cos 2^0 pi p, ..., sin 2^(L-1) pi p, cos 2^(L-1) pi p)      eq. 4, beside p itself

p is the position in units of the box, in [-1, 1]^3. The density branch sees positions alone (figure 7).
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from jaxedit.fields.field import Frame
from jaxvid.core.rng import named
from jaxvid.nn.linear import Linear


@dataclass(frozen=True)
class FrequencyMLPConfig:
    """The defaults are the paper's (appendix A).

    skip: the layer whose input has the encoded position again (counted from 0; the paper's fifth).
    density_bias: added before the softplus that stands for the paper's ReLU, which can begin dead everywhere
    (mip-NeRF, Barron et al. 2021, uses softplus with -1).
    """

    position_frequencies: int = 10
    direction_frequencies: int = 4
    width: int = 256
    layers: int = 8
    skip: int = 5
    density_bias: float = -1.0


class FrequencyMLP(nnx.Module):
    """Parameters: `layers`, then one density unit, and a feature layer with one more layer for colour."""

    def __init__(self, config: FrequencyMLPConfig, frame: Frame, key: Key[Array, ""]):
        self.config, self.frame = config, frame
        position = 3 + 6 * config.position_frequencies
        direction = 3 + 6 * config.direction_frequencies
        width = config.width
        inputs = [
            position if i == 0 else width + position * (i == config.skip)
            for i in range(config.layers)
        ]
        self.layers = nnx.List(
            [Linear(n, width, named(key, "layers", i)) for i, n in enumerate(inputs)]
        )
        self.density_layer = Linear(width, 1, named(key, "density"))
        self.feature = Linear(width, width, named(key, "feature"))
        self.view = Linear(width + direction, width // 2, named(key, "view"))
        self.colour = Linear(width // 2, 3, named(key, "colour"))

    def density(self, points: Float[Array, "*n 3"]) -> Float[Array, "*n"]:
        """Density at world points."""
        return self._geometry(points)[0]

    def query(
        self, points: Float[Array, "*n 3"], directions: Float[Array, "*#n 3"]
    ) -> tuple[Float[Array, "*n"], Float[Array, "*n 3"]]:
        """Density and colour at world points, seen in directions of length 1."""
        density, x = self._geometry(points)
        seen = frequencies(directions, self.config.direction_frequencies)
        seen = jnp.broadcast_to(seen, (*points.shape[:-1], seen.shape[-1]))
        x = jax.nn.relu(self.view(jnp.concatenate([self.feature(x), seen], axis=-1)))
        return density, jax.nn.sigmoid(self.colour(x))

    def _geometry(
        self, points: Float[Array, "*n 3"]
    ) -> tuple[Float[Array, "*n"], Float[Array, "*n w"]]:
        unit = self.frame.to_unit(points)
        encoded = frequencies(2.0 * unit - 1.0, self.config.position_frequencies)
        x = encoded
        for index, layer in enumerate(self.layers):
            if index and index == self.config.skip:
                x = jnp.concatenate([encoded, x], axis=-1)
            x = jax.nn.relu(layer(x))
        density = jax.nn.softplus(self.density_layer(x)[..., 0] + self.config.density_bias)
        inside = jnp.all((unit >= 0.0) & (unit <= 1.0), axis=-1)
        return jnp.where(inside, density, 0.0), x


def frequencies(p: Float[Array, "*n 3"], count: int) -> Float[Array, "*n c"]:
    """`p` with sines, then cosines, of 2^k pi p; c = 3 + 6 count."""
    scaled = p[..., None, :] * (math.pi * 2.0 ** jnp.arange(count, dtype=p.dtype))[:, None]
    waves = jnp.concatenate([jnp.sin(scaled), jnp.cos(scaled)], axis=-2)
    return jnp.concatenate([p, waves.reshape(*p.shape[:-1], 6 * count)], axis=-1)
