"""Toy scenes: objects of named parts whose shape, views and edits are known exactly.

scene = toy_scene(seed=0, index=3)             # "a tree with a red trunk and ..."
views = capture(scene, views=24, size=64)      # a jaxedit.scene.scene.Scene, as if loaded from files
edit = make_edit(0, scene, "recolour")         # edit.scene, edit.instruction, edit.caption_before, ...
"""

from jaxedit.scene.toy.capture import capture, orbit_cameras, rgba, take
from jaxedit.scene.toy.edits import EDITS, EditKind, ToyEdit, changed_parts, make_edit, toy_edit
from jaxedit.scene.toy.sdf import KINDS, Solids, solid_distance
from jaxedit.scene.toy.templates import TEMPLATES
from jaxedit.scene.toy.trace import Hits, Light, Picture, Stage, part_distances, render, trace_rays
from jaxedit.scene.toy.words import caption
from jaxedit.scene.toy.world import COLOURS, ToyPart, ToyScene, held_out, toy_scene

__all__ = [
    "COLOURS",
    "EDITS",
    "KINDS",
    "TEMPLATES",
    "EditKind",
    "Hits",
    "Light",
    "Picture",
    "Solids",
    "Stage",
    "ToyEdit",
    "ToyPart",
    "ToyScene",
    "caption",
    "capture",
    "changed_parts",
    "held_out",
    "make_edit",
    "orbit_cameras",
    "part_distances",
    "render",
    "rgba",
    "solid_distance",
    "take",
    "toy_edit",
    "toy_scene",
    "trace_rays",
]
