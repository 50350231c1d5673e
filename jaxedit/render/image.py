"""Many rays in bounded memory: images, and exact gradients of losses of whole images.

The two-phase gradient: render the image without keeping anything, take the loss's gradient on the pixels, then render
again, chunk by chunk, and pull each chunk's part of it back. `chunked` is exactly that to `jax.grad`: only a chunk's rays
are kept for the second phase, so memory grows with the chunk, not with the image.

    render = chunked(lambda model, rays: render_rays(model, rays, ...)[0], chunk=4096)
    gradient = jax.grad(lambda model: loss(render(model, rays).colour))(model)
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from jaxedit.scene.cameras import Rays
from jaxvid.core.errors import UserError

Model = TypeVar("Model")
Out = TypeVar("Out")
Part = TypeVar("Part")


def chunked(
    render: Callable[[Model, Rays], Out], chunk: int, *, multiple: int = 1
) -> Callable[[Model, Rays], Out]:
    """`render` on rays of any leading axes, `chunk` rays at a time; the gradient renders again (two phases).

    The last chunk is filled up with the first ray, whose results there are dropped.
    multiple: `render` takes multiples of this many rays (`over_mesh`: the number of devices), and so must `chunk` be.
    Raises UserError for a chunk that is not such a multiple.
    """
    if chunk < 1 or chunk % multiple:
        raise UserError(f"chunk is {chunk}; it must be {multiple} or a multiple of it")

    def whole(model: Model, rays: Rays) -> Out:
        shape = rays.origin.shape[:-1]
        flat = jax.tree.map(lambda leaf: leaf.reshape(-1, leaf.shape[-1]), rays)
        count = flat.origin.shape[0]
        size = min(chunk, -(-count // multiple) * multiple)
        parts = -(-count // size)

        def fill(leaf: Any) -> Any:
            more = jnp.broadcast_to(leaf[:1], (parts * size - count, leaf.shape[-1]))
            return jnp.concatenate([leaf, more]).reshape(parts, size, leaf.shape[-1])

        def one(part: Rays) -> Out:
            return render(model, part)

        out = jax.lax.map(jax.checkpoint(one), jax.tree.map(fill, flat))

        def join(leaf: Any) -> Any:
            rest = leaf.shape[2:]
            return leaf.reshape(parts * size, *rest)[:count].reshape(*shape, *rest)

        return jax.tree.map(join, out)

    return whole


RAY_AXES = ("data", "fsdp")


def ray_parts(mesh: Mesh | None) -> int:
    """Into how many parts `over_mesh` spreads rays."""
    return 1 if mesh is None else math.prod(mesh.shape.get(name, 1) for name in RAY_AXES)


def over_mesh(render: Callable[[Model, Part], Out], mesh: Mesh) -> Callable[[Model, Part], Out]:
    """`render` with its rays, or views (any tree of arrays [r, ...]), spread over devices; the model is whole on each.

    Each device renders its own rays, with its own packing of samples, hence `shard_map` and not sharding by constraint.
    Gradients in the model are summed over devices. r must be a multiple of `ray_parts`.
    """
    names = tuple(name for name in RAY_AXES if name in mesh.axis_names)
    rays, whole = PartitionSpec(names), PartitionSpec()
    return jax.shard_map(render, mesh=mesh, in_specs=(whole, rays), out_specs=rays, check_vma=False)
