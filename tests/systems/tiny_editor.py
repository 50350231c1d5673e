"""Edits of a small fitted scene, and an editor whose edits are known."""

from dataclasses import dataclass, replace
from functools import lru_cache

import jax.numpy as jnp
import numpy as np
from small_fits import ADAM, hash_system, run_fits, system, toy
from tiny_pix2pix import tiny_model

from jaxedit.scene.record import SceneRecord
from jaxedit.systems.instruct_nerf2nerf import EditConfig, InstructNerf2Nerf, TrainingConfig
from jaxedit.systems.instruct_nerf2nerf.editor import Editor
from jaxedit.systems.reconstruct.stored import Fitted


@lru_cache
def fitted(kind="voxels"):
    """The toy scene, fitted shortly."""
    config = system() if kind == "voxels" else hash_system()
    config = config.seeing(toy())
    state = run_fits(config)[-1][0]
    return Fitted(config, SceneRecord.of(toy()), state, len(config.fits) - 1)


def edit_of(stages, kind="voxels", training=None, **edit):
    """An `InstructNerf2Nerf` of the fitted toy scene."""
    edit = {"instruction": "make it blue", "steps": 3, **edit}
    usual = TrainingConfig(patches=4, side=8, optimizer=ADAM, rows=0 if kind == "voxels" else None)
    base = fitted(kind)
    return InstructNerf2Nerf.of(base, EditConfig(**edit), stages, training or usual)


def opened(config, masks=None):
    """The edit with the tiny editor, over the toy scene's views."""
    views = toy().views["train"]
    return config.open(tiny_model(), views.cameras, toy().box, config.originals(views), masks)


EXCHANGED = (2, 0, 1)


@dataclass(frozen=True)
class Swap(Editor):
    """Gives the original with its colours exchanged, whatever it is shown."""

    def edited(self, told, image, original, key, lower, upper):
        return original[..., jnp.array(EXCHANGED)]


def swapping(given):
    """The opened edit with that editor instead."""
    old = given.setting.editor
    editor = Swap(old.noise, old.factor, old.edit, old.height, old.width)
    return replace(given, setting=given.setting._replace(editor=editor))


def as_numbers(image):
    """Bytes to [0, 1]."""
    return np.asarray(image, np.float32) / 255.0


def as_bytes(image):
    """[0, 1] to bytes, by numpy."""
    return np.round(np.clip(np.asarray(image), 0, 1) * 255).astype(np.uint8)


def to_jax(image):
    """To float32 in [-1, 1], with a leading axis."""
    return jnp.asarray(2.0 * as_numbers(image) - 1.0)[None]
