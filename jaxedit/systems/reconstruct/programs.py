"""The programs of a reconstruction that `jaxedit plan` compiles for absent machines.

    train      the train step of a fit (`--fit`, a name or a number; the last by default)
    image      one view of `--size` x `--size` pixels (800 by default), as `Reconstruct.render_image` draws it
    gradient   the gradient of that view's mean square error, in two phases (`jaxedit.render.image.chunked`)

No scene is read. For one stand the box that the configuration gives (else [-1, 1]^3), its near and far (else 2 and 6),
100 pinhole cameras of that size, and RGBA pixels; where the cameras stand changes nothing that a compiler sees. The mesh
spreads the rays of a batch, and those of each chunk of a view.

A renderer that looks only near matter asks the blocks of samples beyond `render.slots` in a loop of as many turns as the
scene needs: FLOPs count one turn. Memory is the same for any number.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxedit.fields.field import Frame
from jaxedit.render.compositing import Pixels
from jaxedit.scene.cameras import Cameras, pinhole_cameras
from jaxedit.systems.reconstruct.system import Reconstruct, image_program
from jaxedit.systems.reconstruct.training import begin, make_ray_step
from jaxvid.command import OneLineParser
from jaxvid.core.config import load_config, parse_overrides
from jaxvid.core.errors import UserError
from jaxvid.core.mesh import (
    batch_sharding,
    check_batch,
    make_mesh,
    tree_sharding,
    with_sharding,
)
from jaxvid.plan import Program
from jaxvid.train.state import Params, State, abstract, weights

VIEWS = 100
SIZE = 800
NEAR, FAR = 2.0, 6.0
FOCAL = 1.4  # widths of the image: about NeRF-synthetic's


class Setting(NamedTuple):
    """What a program is of: a system, one of its fits, the frame of its field, and stand-ins for a scene's cameras."""

    system: Reconstruct
    fit: int
    frame: Frame
    cameras: Cameras
    mesh: Any


def setting(name: str, words: Sequence[str], devices: Sequence[Any]) -> Setting:
    """Reads `--fit`, `--size` and the configuration's changes."""
    parser = OneLineParser(prog=f"jaxedit plan {name}", add_help=False, allow_abbrev=False)
    parser.add_argument("--fit")
    parser.add_argument("--size", type=int, default=SIZE)
    options, rest = parser.parse_known_args(words)
    system = load_config(name)
    if not isinstance(system, Reconstruct):
        raise UserError(
            f"config {name} is a {type(system).__name__}, which cannot be planned here; return a Reconstruct"
        )
    system = parse_overrides(system, rest, prog=parser.prog)
    if options.size < 1:
        raise UserError(f"--size is {options.size}; give a number of pixels, at least 1")
    render = system.render
    near = NEAR if render.near is None else render.near
    far = FAR if render.far is None else render.far
    system = replace(system, render=replace(render, near=near, far=far))
    box = None if system.data.box is None else np.array(system.data.box, np.float64)
    pose = np.tile(np.eye(3, 4), (VIEWS, 1, 1))
    return Setting(
        system,
        fit_number(system, options.fit),
        system.frame(box),
        pinhole_cameras(pose, FOCAL * options.size, options.size, options.size),
        make_mesh(system.mesh, devices),
    )


def fit_number(system: Reconstruct, fit: str | None) -> int:
    """The number of a fit given by name or number; the last for None."""
    names = [one.name for one in system.fits]
    if fit is None:
        return len(names) - 1
    if fit in names:
        return names.index(fit)
    if fit.isdecimal() and int(fit) < len(names):
        return int(fit)
    raise UserError(f"--fit is {fit}; give one of {', '.join(names)}, or its number from 0")


def train(name: str, words: Sequence[str], devices: Sequence[Any]) -> Program:
    """A fit's train step."""
    of = setting(name, words, devices)
    rays = of.system.fits[of.fit].rays
    check_batch(of.mesh, rays)
    state, key = abstract_state(of), jax.eval_shape(lambda: jax.random.key(0))
    shardings = None if of.mesh is None else (tree_sharding(of.mesh, state), None)
    step = make_ray_step(of.system, of.frame, of.fit, of.cameras, of.mesh)
    args = (state, abstract_batch(rays, of.mesh), key)
    return Program(step, args, (0,), shardings, state["trainable"], loop_turns=1)


def image(name: str, words: Sequence[str], devices: Sequence[Any]) -> Program:
    """One view."""
    of = setting(name, words, devices)
    state = abstract_state(of)
    draw = image_program(of.system, of.frame, of.fit, of.system.image_chunk(of.fit), mesh=of.mesh)

    def view(params: Params, level: Any, camera: dict[str, Array]) -> Pixels:
        return draw(params, level, replace(of.cameras, **camera))

    args = (weights(state), *view_of(of, state))
    return Program(view, args, parameters=state["trainable"], loop_turns=1)


def gradient(name: str, words: Sequence[str], devices: Sequence[Any]) -> Program:
    """The gradient of a view's mean square error in all that is trained."""
    of = setting(name, words, devices)
    draw = image_program(
        of.system, of.frame, of.fit, of.system.image_chunk(of.fit, "training"), mesh=of.mesh
    )
    return gradient_through(draw, of)


def gradient_through(draw: Callable[[Params, Any, Cameras], Pixels], of: Setting) -> Program:
    """The gradient of a view's mean square error, the view drawn by `draw(params, level, one camera)`."""
    state = abstract_state(of)

    def pulled_back(
        trainable: Params, frozen: Params, level: Any, camera: dict[str, Array], target: Array
    ) -> Params:
        def loss(trainable: Params) -> Array:
            pixels = draw({**frozen, **trainable}, level, replace(of.cameras, **camera))
            return jnp.mean((pixels.colour - target) ** 2)

        return jax.grad(loss)(trainable)

    target = jax.ShapeDtypeStruct((of.cameras.height, of.cameras.width, 3), jnp.float32)
    args = (state["trainable"], state["frozen"], *view_of(of, state), target)
    return Program(pulled_back, args, loop_turns=1)


def view_of(of: Setting, state: State) -> tuple[Any, dict[str, Any]]:
    """Shapes of what a view's program takes beside the field: the occupancy level, and one camera's arrays."""
    camera = of.cameras.select([0])
    arrays = {name: getattr(camera, name) for name in ("pose", "focal", "centre", "distortion")}
    return state["extra"].get("level"), abstract(arrays)


def abstract_state(of: Setting) -> State:
    """Shapes of the state in the fit, sharded as the loop does."""
    state = jax.eval_shape(
        lambda key: begin(of.system, of.frame, of.fit, None, key), jax.random.key(0)
    )
    return state if of.mesh is None else with_sharding(state, tree_sharding(of.mesh, state))


def abstract_batch(rays: int, mesh: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a batch as `RayBatches` gives them."""
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        "view": ((rays,), jnp.int32),
        "pixel": ((rays, 2), jnp.int32),
        "colour": ((rays, 4), jnp.uint8),
    }
    sharding = batch_sharding(mesh)
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        for name, (shape, dtype) in shapes.items()
    }
