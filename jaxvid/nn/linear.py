"""Dense layers. Kernels are `[in, out]`; float32 parameters are cast to the input's dtype at use."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from jaxvid.core.rng import named

Initializer = Callable[[Key[Array, ""], tuple[int, ...]], Array]

fan_in: Initializer = jax.nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
zeros: Initializer = jax.nn.initializers.zeros


class Linear(nnx.Module):
    """`y = x W + b` over the last axis."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        key: Key[Array, ""],
        *,
        bias: bool = True,
        init: Initializer = fan_in,
    ):
        self.kernel = nnx.Param(init(named(key, "kernel"), (inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs)) if bias else None

    def __call__(self, x: Float[Array, "*axes c"]) -> Float[Array, "*axes d"]:
        y = x @ self.kernel[...].astype(x.dtype)
        if self.bias is None:
            return y
        return y + self.bias[...].astype(x.dtype)


class Embedding(nnx.Module):
    """A table `[entries, width]` looked up by integer; normal initialisation with standard deviation `scale`."""

    def __init__(self, entries: int, width: int, key: Key[Array, ""], *, scale: float = 0.02):
        self.table = nnx.Param(scale * jax.random.normal(named(key, "table"), (entries, width)))

    def __call__(self, index: Int[Array, "*axes"]) -> Float[Array, "*axes d"]:
        return self.table[...][index]


class MLP(nnx.Module):
    """`layers` dense layers of one width with SiLU before each but the first (VDM's condition MLP)."""

    def __init__(self, inputs: int, width: int, layers: int, key: Key[Array, ""]):
        sizes = [inputs] + [width] * layers
        self.layers = nnx.List(
            [Linear(sizes[i], sizes[i + 1], named(key, "layers", i)) for i in range(layers)]
        )

    def __call__(self, x: Float[Array, "*axes c"]) -> Float[Array, "*axes d"]:
        for index, layer in enumerate(self.layers):
            x = layer(jax.nn.silu(x) if index else x)
        return x
