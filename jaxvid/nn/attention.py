"""Attention over space, over time and over text.

Symbols: n heads, d head dimension, i query, j key. Softmax is float32. Spatial attention treats frames as batch,
temporal attention treats pixels as batch (VDM, section 3); each is a residual block with normalisation before it
and a zero-initialised output projection, so it starts as the identity: an image model to which temporal attention
is added gives the same frames, which is also Make-A-Video's ATTN_P3D (Eq. 3).
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float, Key, Shaped

from jaxvid.core.mesh import per_frame
from jaxvid.core.rng import named
from jaxvid.nn.linear import Initializer, Linear, zeros
from jaxvid.nn.norm import GroupNorm


class RelativePositions(nnx.Module):
    """Shaw et al. 2018: one learned vector per clipped distance j - i, added to keys (Eq. 4) and to values (Eq. 3).

    One pair of tables `[2 max_distance + 1, d]` a layer, shared by its heads. Distances beyond `max_distance` share the
    last entry, so a clip may be longer than those trained on.
    """

    def __init__(self, head_dim: int, max_distance: int, key: Key[Array, ""]):
        self.max_distance = max_distance
        shape = (2 * max_distance + 1, head_dim)
        self.keys = nnx.Param(0.02 * jax.random.normal(named(key, "keys"), shape))
        self.values = nnx.Param(0.02 * jax.random.normal(named(key, "values"), shape))

    def __call__(self, frames: int) -> tuple[Float[Array, "i j d"], Float[Array, "i j d"]]:
        distance = jnp.arange(frames)[None, :] - jnp.arange(frames)[:, None]
        index = jnp.clip(distance, -self.max_distance, self.max_distance) + self.max_distance
        return self.keys[...][index], self.values[...][index]


LARGEST = 1 << 22  # scores of a head and an example that are held at once
LARGEST_ON_CPU = 1 << 20


def attend(
    q: Float[Array, "b i n d"],
    k: Float[Array, "b j n d"],
    v: Float[Array, "b j n d"],
    *,
    mask: Bool[Array, "#b #i j"] | None = None,
    relative: tuple[Float[Array, "i j d"], Float[Array, "i j d"]] | None = None,
) -> Float[Array, "b i n d"]:
    """Softmax attention of each head, scores scaled by d^-1/2; see `MultiHeadAttention` for the arguments.

    Where a head has more than `LARGEST` scores (on a CPU `LARGEST_ON_CPU`), they are computed for some queries at a time, and
    again for the gradient: 64x64 tokens take a quarter of the memory, 128x72 a twentieth. Not with `relative`, whose clips are
    short.
    """
    if relative is not None:
        return _by_rows(q, k, v, mask, relative)
    on_cpu = partial(_in_parts, _by_columns, LARGEST_ON_CPU)
    return jax.lax.platform_dependent(
        q, k, v, mask, cpu=on_cpu, default=partial(_in_parts, _by_rows, LARGEST)
    )


def _in_parts(
    some: Callable[[Array, Array, Array, Array | None], Array],
    largest: int,
    q: Float[Array, "b i n d"],
    k: Float[Array, "b j n d"],
    v: Float[Array, "b j n d"],
    mask: Bool[Array, "#b #i j"] | None,
) -> Float[Array, "b i n d"]:
    """`some` of the queries at a time, so that a head has at most about `largest` scores."""
    rows = max(largest // k.shape[1], 1)
    if q.shape[1] <= rows:
        return some(q, k, v, mask)
    parts = -(-q.shape[1] // rows)
    rows = -(-q.shape[1] // parts)

    @jax.checkpoint
    def part(given: tuple[Array, Array | None]) -> Array:
        return some(given[0], k, v, given[1])

    if mask is not None:
        mask = jnp.broadcast_to(mask, (mask.shape[0], *q.shape[1:2], mask.shape[2]))
        mask = _split(mask, parts, rows)
    y = jax.lax.map(part, (_split(q, parts, rows), mask))
    return rearrange(y, "p b i ... -> b (p i) ...")[:, : q.shape[1]]


def _split(x: Shaped[Array, "b i *rest"], parts: int, rows: int) -> Shaped[Array, "p b r *rest"]:
    """The queries in equal parts, filled up at the end."""
    padding = [(0, 0)] * x.ndim
    padding[1] = (0, parts * rows - x.shape[1])
    return rearrange(jnp.pad(x, padding), "b (p i) ... -> p b i ...", p=parts)


def _by_rows(
    q: Float[Array, "b i n d"],
    k: Float[Array, "b j n d"],
    v: Float[Array, "b j n d"],
    mask: Bool[Array, "#b #i j"] | None,
    relative: tuple[Float[Array, "i j d"], Float[Array, "i j d"]] | None = None,
) -> Float[Array, "b i n d"]:
    scores = jnp.einsum("bind,bjnd->bnij", q, k, preferred_element_type=jnp.float32)
    if relative is not None:
        key_offsets = relative[0].astype(q.dtype)
        scores = scores + jnp.einsum(
            "bind,ijd->bnij", q, key_offsets, preferred_element_type=jnp.float32
        )
    scores = scores * (q.shape[-1] ** -0.5)
    if mask is not None:
        scores = jnp.where(mask[:, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    y = jnp.einsum("bnij,bjnd->bind", weights, v)
    if relative is not None:
        y = y + jnp.einsum("bnij,ijd->bind", weights, relative[1].astype(q.dtype))
    return y


def _by_columns(
    q: Float[Array, "b i n d"],
    k: Float[Array, "b j n d"],
    v: Float[Array, "b j n d"],
    mask: Bool[Array, "#b #i j"] | None,
) -> Float[Array, "b i n d"]:
    """The same with the keys' axis before the queries', and the sums divided out at the end.

    The CPU backend adds along the last axis one number after the other, and along another many at once: at 64x64 tokens this is
    about twice as fast (docs/public_weights.md).
    """
    scores = jnp.einsum("bind,bjnd->bnji", q, k, preferred_element_type=jnp.float32)
    scores = scores * (q.shape[-1] ** -0.5)
    if mask is not None:
        seen = jnp.swapaxes(mask, 1, 2)[:, None]
        scores = jnp.where(seen, scores, jnp.finfo(jnp.float32).min)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-2, keepdims=True)))
    y = jnp.einsum(
        "bjnd,bnji->bndi", v, weights.astype(q.dtype), preferred_element_type=jnp.float32
    )
    y = y / weights.sum(-2, keepdims=True)
    return rearrange(y, "b n d i -> b i n d").astype(q.dtype)


class MultiHeadAttention(nnx.Module):
    """Projections and softmax attention; `context` defaults to `x` (self-attention).

    Arguments of the call: `mask[b, i, j]` true where i may see j; `relative` the two `[i, j, d]` tables of
    `RelativePositions`.
    """

    def __init__(
        self,
        channels: int,
        head_dim: int,
        key: Key[Array, ""],
        *,
        context_channels: int | None = None,
        bias: bool = False,
        out_init: Initializer = zeros,
    ):
        if channels % head_dim:
            raise ValueError(
                f"{channels} channels are not a multiple of the head dimension {head_dim}"
            )
        self.head_dim = head_dim
        context_channels = context_channels or channels
        self.query = Linear(channels, channels, named(key, "query"), bias=bias)
        self.key = Linear(context_channels, channels, named(key, "key"), bias=bias)
        self.value = Linear(context_channels, channels, named(key, "value"), bias=bias)
        self.out = Linear(channels, channels, named(key, "out"), init=out_init)

    def __call__(
        self,
        x: Float[Array, "b i c"],
        context: Float[Array, "b j e"] | None = None,
        *,
        mask: Bool[Array, "#b #i j"] | None = None,
        relative: tuple[Float[Array, "i j d"], Float[Array, "i j d"]] | None = None,
    ) -> Float[Array, "b i c"]:
        context = x if context is None else context
        if context.shape[1] == 1:  # the softmax of one score is 1, whatever the score
            y = self.value(context)
            if relative is not None:
                y = y + jnp.tile(relative[1][:, 0].astype(x.dtype), y.shape[-1] // self.head_dim)
            return self.out(jnp.broadcast_to(y, x.shape))
        heads = "b i (n d) -> b i n d"
        q = rearrange(self.query(x), heads, d=self.head_dim)
        k = rearrange(self.key(context), heads, d=self.head_dim)
        v = rearrange(self.value(context), heads, d=self.head_dim)
        y = attend(q, k, v, mask=mask, relative=relative)
        return self.out(rearrange(y, "b i n d -> b i (n d)"))


class SpatialAttention(nnx.Module):
    """Full attention over the pixels of each frame, with residual."""

    def __init__(self, channels: int, head_dim: int, key: Key[Array, ""], *, groups: int = 32):
        self.norm = GroupNorm(channels, groups=groups)
        self.attention = MultiHeadAttention(channels, head_dim, named(key, "attention"))

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
        return x + per_frame(_over_pixels, self.norm(x), self.attention)


def _over_pixels(
    x: Float[Array, "b t h w c"], attention: MultiHeadAttention
) -> Float[Array, "b t h w c"]:
    b, t, h, w, _ = x.shape
    tokens = rearrange(x, "b t h w c -> (b t) (h w) c")
    return rearrange(attention(tokens), "(b t) (h w) c -> b t h w c", b=b, t=t, h=h, w=w)


class TemporalAttention(nnx.Module):
    """Attention over the frames of each pixel with Shaw relative positions, with residual."""

    def __init__(
        self,
        channels: int,
        head_dim: int,
        max_distance: int,
        key: Key[Array, ""],
        *,
        groups: int = 32,
    ):
        self.norm = GroupNorm(channels, groups=groups)
        self.attention = MultiHeadAttention(channels, head_dim, named(key, "attention"))
        self.positions = RelativePositions(head_dim, max_distance, named(key, "positions"))

    def __call__(
        self, x: Float[Array, "b t h w c"], mask: Bool[Array, "b t t"] | None = None
    ) -> Float[Array, "b t h w c"]:
        b, t, h, w, _ = x.shape
        tokens = rearrange(self.norm(x), "b t h w c -> (b h w) t c")
        if mask is not None:
            mask = jnp.repeat(mask, h * w, axis=0)
        y = self.attention(tokens, mask=mask, relative=self.positions(t))
        return x + rearrange(y, "(b h w) t c -> b t h w c", b=b, h=h, w=w)


class AttentionPooling(nnx.Module):
    """Pools a masked sequence to one vector: learned queries attend to it (VDM, section 4.3 pools BERT this way).

    An all-padding sequence pools to the output bias, not to NaN.
    """

    def __init__(self, inputs: int, outputs: int, head_dim: int, key: Key[Array, ""]):
        self.head_dim = head_dim
        self.query = nnx.Param(
            jax.random.normal(named(key, "query"), (outputs // head_dim, head_dim))
        )
        self.key = Linear(inputs, outputs, named(key, "key"), bias=False)
        self.value = Linear(inputs, outputs, named(key, "value"), bias=False)
        self.out = Linear(outputs, outputs, named(key, "out"))

    def __call__(
        self, x: Float[Array, "*axes j c"], mask: Bool[Array, "*axes j"]
    ) -> Float[Array, "*axes d"]:
        k = rearrange(self.key(x), "... j (n d) -> ... j n d", d=self.head_dim)
        v = rearrange(self.value(x), "... j (n d) -> ... j n d", d=self.head_dim)
        query = self.query[...].astype(x.dtype)
        scores = jnp.einsum("nd,...jnd->...nj", query, k, preferred_element_type=jnp.float32)
        scores = jnp.where(mask[..., None, :], scores * self.head_dim**-0.5, -jnp.inf)
        empty = ~mask.any(-1)[..., None, None]
        weights = jnp.where(empty, 0.0, jax.nn.softmax(jnp.where(empty, 0.0, scores), -1))
        pooled = jnp.einsum("...nj,...jnd->...nd", weights.astype(x.dtype), v)
        return self.out(rearrange(pooled, "... n d -> ... (n d)"))
