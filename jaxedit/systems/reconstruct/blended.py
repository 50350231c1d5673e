"""A fitted scene laid over an earlier one in part, as a system that renders and exports like any other."""

from dataclasses import dataclass, fields

import jax.numpy as jnp

from jaxedit.systems.reconstruct.config import BlendedConfig
from jaxedit.systems.reconstruct.stored import Fitted
from jaxedit.systems.reconstruct.system import Reconstruct
from jaxvid.core.errors import UserError
from jaxvid.train.state import weights


@dataclass(frozen=True)
class Blended(BlendedConfig, Reconstruct):
    """The reconstruction of the later scene, with the earlier one and its fit."""


def blend(before: Fitted, after: Fitted, strength: float) -> Fitted:
    """The scene between the two (`jaxedit.fields.blend`). Raises UserError where they do not cover the same space."""
    if before.frame != after.frame:
        raise UserError("the two scenes do not cover the same space, so they cannot be blended")
    values = {field.name: getattr(after.system, field.name) for field in fields(Reconstruct)}
    system = Blended(**values, before=before.system, before_fit=before.fit)
    params = {}
    for name, fitted in (("before", before), ("after", after)):
        for path, leaf in weights(fitted.state).items():
            if path.startswith("field/"):
                params[f"field/{name}/{path.removeprefix('field/')}"] = leaf
            elif name == "after":
                params[path] = leaf
    params["field/strength"] = jnp.float32(strength)
    extra = {"updates": after.state["extra"]["updates"]}
    state = {"trainable": params, "frozen": {}, "extra": extra}
    return Fitted(system, after.record, state, after.fit)
