"""Many rays in bounded memory: images, and exact gradients of losses of whole images.

The two-phase gradient: render the image without keeping anything, take the loss's gradient on the pixels, then render
again, chunk by chunk, and pull each chunk's part of it back. `chunked` is exactly that to `jax.grad`: only a chunk's rays
are kept for the second phase, so memory grows with the chunk, not with the image.

    render = chunked(lambda model, rays: render_rays(model, rays, ...)[0], chunk=4096)
    gradient = jax.grad(lambda model: loss(render(model, rays).colour))(model)
"""

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


def chunked(render: Callable[[Model, Rays], Out], chunk: int) -> Callable[[Model, Rays], Out]:
    """`render` on rays of any leading axes, `chunk` rays at a time; the gradient renders again (two phases).

    The last chunk is filled up with the first ray, whose results there are dropped. Raises UserError for chunk < 1.
    """
    if chunk < 1:
        raise UserError(f"chunk is {chunk}; it must be 1 or more")

    def whole(model: Model, rays: Rays) -> Out:
        shape = rays.origin.shape[:-1]
        flat = jax.tree.map(lambda leaf: leaf.reshape(-1, leaf.shape[-1]), rays)
        count = flat.origin.shape[0]
        size = min(chunk, count)
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


def over_mesh(
    render: Callable[[Model, Part], Out], mesh: Mesh, axes: tuple[str, ...] = ("data", "fsdp")
) -> Callable[[Model, Part], Out]:
    """`render` with its rays (any tree of arrays [r, ...]) spread over the devices of `axes`; the model is whole on each.

    Each device renders its own rays, with its own packing of samples, hence `shard_map` and not sharding by constraint.
    Gradients in the model are summed over devices. r must be a multiple of the number of devices.
    """
    names = tuple(name for name in axes if name in mesh.axis_names)
    rays, whole = PartitionSpec(names), PartitionSpec()
    return jax.shard_map(render, mesh=mesh, in_specs=(whole, rays), out_specs=rays, check_vma=False)
