"""Layers and the U-Net in numpy, float64, loop by loop from the papers: the references of the tests of layers and models.

Parameters are a dictionary by path as `jaxvid.core.paths.flatten` gives it; videos are `b t h w c`.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxvid.core.paths import flatten, unflatten

# Programs that run once are not worth optimising: this halves the time that they take.
compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@compiled
def call(module, *args, **options):
    """The module on its arguments, arrays all."""
    return module(*args, **options)


def filled(make, seed=0):
    """A module of random values, and the values by path. No layer is zero, as many are at initialisation.

    `make(key) -> module` is traced for its shapes alone: compiling an initialiser takes longer than the tests.
    """
    abstract = jax.eval_shape(make, jax.random.key(0))
    rng, values = np.random.default_rng(seed), {}
    for path, leaf in flatten(abstract).items():
        scale = math.prod(leaf.shape[-4:-1]) ** -0.5 if path.endswith("kernel") else 0.3
        offset = 1.0 if path.endswith("scale") else 0.0
        values[path] = (offset + scale * rng.normal(size=leaf.shape)).astype(np.float32)
    return with_values(abstract, values), values


def with_values(module, values):
    """The module with other values by path."""
    return unflatten(module, {path: jnp.asarray(leaf) for path, leaf in values.items()})


def normal(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def part(params, prefix, layer=None):
    """The parameters below `prefix`; those of one layer of a stack."""
    below = {
        path.removeprefix(prefix + "/"): leaf
        for path, leaf in params.items()
        if path.startswith(prefix + "/")
    }
    return below if layer is None else {path: leaf[layer] for path, leaf in below.items()}


def linear(p, x):
    return x.astype(np.float64) @ p["kernel"] + p.get("bias", 0.0)


def silu(x):
    return x / (1.0 + np.exp(-x))


def gelu(x):
    return x * 0.5 * (1.0 + np.vectorize(math.erf)(x / math.sqrt(2.0)))


def softmax(x):
    y = np.exp(x - x.max(-1, keepdims=True))
    return y / y.sum(-1, keepdims=True)


def spatial_conv(p, x, stride=1, padding="zero"):
    """Every frame on its own; the odd row of padding is at the end."""
    kernel = p["kernel"].astype(np.float64)
    b, t, h, w, _ = x.shape
    size = kernel.shape[0]
    rows, columns = -(-h // stride), -(-w // stride)
    top = max((rows - 1) * stride + size - h, 0) // 2
    left = max((columns - 1) * stride + size - w, 0) // 2
    y = np.zeros((b, t, rows, columns, kernel.shape[-1]))
    for i, j, di, dj in np.ndindex(rows, columns, size, size):
        row, column = i * stride + di - top, j * stride + dj - left
        if padding == "wrap":
            row, column = row % h, column % w
        if 0 <= row < h and 0 <= column < w:
            y[:, :, i, j] += x[:, :, row, column] @ kernel[di, dj]
    return y + p["bias"]


def temporal_conv(p, x, segment=None):
    kernel = p["kernel"].astype(np.float64)
    size = kernel.shape[0]
    y = np.zeros((*x.shape[:-1], kernel.shape[-1]))
    for example, i, tap in np.ndindex(*x.shape[:2], size):
        j = i + tap - size // 2
        alike = segment is None or (
            0 <= j < x.shape[1] and segment[example, i] == segment[example, j]
        )
        if 0 <= j < x.shape[1] and alike:
            y[example, i] += x[example, j] @ kernel[tap]
    return y + p["bias"]


def convolution(p, x, segment):
    """Spatial, and then temporal where there are parameters of that."""
    y, temporal = spatial_conv(p, x), part(p, "temporal")
    return temporal_conv(temporal, y, segment) if temporal else y


def group_norm(p, x, groups=32, eps=1e-5):
    channels = x.shape[-1]
    groups = min(groups, channels)
    while channels % groups:
        groups -= 1
    width, y = channels // groups, np.empty(x.shape)
    for example, frame, group in np.ndindex(*x.shape[:2], groups):
        place = (example, frame, ..., slice(group * width, (group + 1) * width))
        values = x[place].astype(np.float64)
        y[place] = (values - values.mean()) / np.sqrt(values.var() + eps)
    return y * p["scale"] + p["bias"]


def layer_norm(p, x, eps):
    x = x.astype(np.float64)
    deviation = np.sqrt(x.var(-1, keepdims=True) + eps)
    return (x - x.mean(-1, keepdims=True)) / deviation * p["scale"] + p["bias"]


def attention(p, x, head_dim, context=None, mask=None, tables=None):
    """Shaw et al. 2018, one query, head and key at a time: Eq. 4 for e_ij, Eq. 3 for z_i.

    mask[b, i, j]; tables: the vectors of the distances -m .. m, for keys and for values.
    """
    context = x if context is None else context
    q, k = linear(part(p, "query"), x), linear(part(p, "key"), context)
    v = linear(part(p, "value"), context)
    z = np.zeros(q.shape)

    def vector(table, i, j):
        reach = (len(table) - 1) // 2
        return table[min(max(j - i, -reach), reach) + reach].astype(np.float64)

    for b, i, head in np.ndindex(*q.shape[:2], q.shape[2] // head_dim):
        s = slice(head * head_dim, (head + 1) * head_dim)
        seen = [j for j in range(k.shape[1]) if mask is None or mask[b, i, j]]
        keys = [k[b, j, s] + (0 if tables is None else vector(tables[0], i, j)) for j in seen]
        values = [v[b, j, s] + (0 if tables is None else vector(tables[1], i, j)) for j in seen]
        weights = softmax(np.stack(keys) @ q[b, i, s] / math.sqrt(head_dim))
        z[b, i, s] = weights @ np.stack(values)
    return linear(part(p, "out"), z)


def attention_pooling(p, x, mask, head_dim):
    """Each head's learned query sees the words [b, j] that count."""
    keys, values = linear(part(p, "key"), x), linear(part(p, "value"), x)
    y = np.zeros((len(x), keys.shape[-1]))
    for b, head in np.ndindex(len(x), len(p["query"])):
        s = slice(head * head_dim, (head + 1) * head_dim)
        if mask[b].any():
            scores = keys[b, mask[b], s] @ p["query"][head] / math.sqrt(head_dim)
            y[b, s] = softmax(scores) @ values[b, mask[b], s]
    return linear(part(p, "out"), y)


def bert(config, p, tokens):
    """Devlin et al. 2019: embeddings, then layers normalised after each residual."""
    x = p["words/table"][tokens] + p["places/table"][: tokens.shape[1]] + p["kind"]
    x = layer_norm(part(p, "norm"), x, 1e-12)
    mask = np.broadcast_to((tokens != 0)[:, None], (*tokens.shape, tokens.shape[1]))
    mask = mask | ~mask.any(-1, keepdims=True)  # padding alone: no number matters, but one there is
    for index in range(config.layers):
        layer = part(p, "layers", index)
        y = attention(part(layer, "attention"), x, config.width // config.heads, mask=mask)
        x = layer_norm(part(layer, "norm1"), x + y, 1e-12)
        y = linear(part(layer, "contract"), gelu(linear(part(layer, "expand"), x)))
        x = layer_norm(part(layer, "norm2"), x + y, 1e-12)
    return x


def spatial_attention(p, x, head_dim, groups=32):
    normed, y = group_norm(part(p, "norm"), x, groups), np.array(x, np.float64)
    for frame in range(x.shape[1]):
        tokens = normed[:, frame].reshape(len(x), -1, x.shape[-1])
        out = attention(part(p, "attention"), tokens, head_dim)
        y[:, frame] += out.reshape(x[:, frame].shape)
    return y


def temporal_attention(p, x, head_dim, mask=None, groups=32):
    normed, y = group_norm(part(p, "norm"), x, groups), np.array(x, np.float64)
    tables = p["positions/keys"], p["positions/values"]
    for row, column in np.ndindex(*x.shape[2:4]):
        tokens = normed[:, :, row, column]
        y[:, :, row, column] += attention(
            part(p, "attention"), tokens, head_dim, mask=mask, tables=tables
        )
    return y


def logsnr_features(logsnr, width):
    time = 1000.0 * np.arctan2(np.exp(-logsnr / 2), 1.0) / (np.pi / 2)
    half = width // 2
    angles = time[..., None] * 10_000.0 ** (-np.arange(half) / (half - 1))
    return np.concatenate([np.sin(angles), np.cos(angles)], -1)


def block(config, p, x, embedding, segment):
    """Residual block, spatial attention, temporal attention."""
    r, groups = part(p, "residual"), config.groups
    h = convolution(part(r, "conv1"), silu(group_norm(part(r, "norm1"), x, groups)), segment)
    condition = linear(part(r, "condition"), silu(embedding))[:, :, None, None]
    if config.modulation == "add":
        h = group_norm(part(r, "norm2"), h + condition, groups)
    else:
        scale, shift = np.split(condition, 2, -1)
        h = group_norm(part(r, "norm2"), h, groups) * (1 + scale) + shift
    h = convolution(part(r, "conv2"), silu(h), segment)
    x = (linear(part(r, "skip"), x) if part(r, "skip") else x) + h
    head_dim = min(config.head_dim, x.shape[-1])
    if part(p, "spatial"):
        x = spatial_attention(part(p, "spatial"), x, head_dim, groups)
    if part(p, "temporal"):
        mask = None if segment is None else segment[:, :, None] == segment[:, None, :]
        x = temporal_attention(part(p, "temporal"), x, head_dim, mask, groups)
    return x


def unet(config, p, z, logsnr, condition=None, segment=None):
    """Ho et al. 2022, figure 1. logsnr [b, t], condition [b, t, e]."""
    embedding = linear(part(p, "time/layers/0"), logsnr_features(logsnr, config.channels))
    embedding = embedding if condition is None else embedding + condition
    for layer in range(1, config.embedding_layers):
        embedding = linear(part(p, f"time/layers/{layer}"), silu(embedding))

    def run(half, level, layer, x):
        return block(config, part(p, f"{half}/{level}", layer), x, embedding, segment)

    x, skips, last = spatial_conv(part(p, "stem"), z), [], len(config.multipliers) - 1
    for level in range(last + 1):
        for layer in range(config.blocks):
            x = run("down", level, layer, x)
            skips.append(x)
        if level < last:
            x = spatial_conv(part(p, f"shrink/{level}/conv"), x, stride=2)
    x = block(config, part(p, "middle"), x, embedding, segment)
    for level in reversed(range(last + 1)):
        if level < last:
            height, width = skips[-1].shape[2:4]
            large = x.repeat(2, axis=2).repeat(2, axis=3)[:, :, :height, :width]
            x = spatial_conv(part(p, f"grow/{level}/conv"), large)
        for layer in range(config.blocks):
            x = run("up", level, layer, np.concatenate([x, skips.pop()], -1))
    assert not skips
    return spatial_conv(part(p, "head"), silu(group_norm(part(p, "norm"), x, config.groups)))
