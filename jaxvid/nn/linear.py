"""Dense layers. Kernels are `[in, out]`; float32 parameters are cast to the input's dtype at use."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from jaxvid.core.rng import named

Initializer = Callable[[Key[Array, ""], tuple[int, ...]], Array]

fan_in: Initializer = jax.nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
zeros: Initializer = jax.nn.initializers.zeros


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def spread(vector: Float[Array, " c"], axes: tuple[int, ...]) -> Float[Array, "*axes c"]:
    """The vector at every place of `axes`, with the gradient as a product with ones.

    Left to differentiation, the gradient of a bias or a norm's scale is one sum over examples, frames and pixels, into which
    the CPU backend merges whatever led to it, to be computed once more a channel at a time (docs/factorized.md).
    """
    return jnp.broadcast_to(vector, (*axes, vector.shape[0]))


def _spread_forward(vector: Array, axes: tuple[int, ...]) -> tuple[Array, None]:
    return spread(vector, axes), None


def _spread_backward(axes: tuple[int, ...], _: None, g: Array) -> tuple[Array]:
    where = tuple(range(len(axes)))
    total = jax.lax.dot_general(
        jnp.ones(axes, g.dtype),
        g,
        ((where, where), ((), ())),
        # A TPU would round float32 to bfloat16 first.
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
    return (total.astype(g.dtype),)


spread.defvjp(_spread_forward, _spread_backward)


def add_bias(x: Float[Array, "*axes c"], bias: Float[Array, " c"]) -> Float[Array, "*axes c"]:
    """`x + bias` in x's dtype."""
    everywhere: Array = spread(bias.astype(x.dtype), x.shape[:-1])
    return x + everywhere


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
        return y if self.bias is None else add_bias(y, self.bias[...])


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
