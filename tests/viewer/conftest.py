"""A fitted toy scene, and viser where it is installed."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from tiny_pix2pix import tiny_model as make_tiny_model

from jaxedit import cli, editing
from jaxedit.editing import prepare
from jaxedit.history import load_current
from jaxedit.scene.toy import capture, toy_scene
from jaxedit.scene.writing import write_blender
from jaxedit.systems.instruct_nerf2nerf import EditConfig, Recipe, TrainingConfig, training
from jaxedit.systems.reconstruct import system as reconstruct_system
from jaxedit.systems.reconstruct.stored import load_fitted
from jaxedit.viewer import edits
from jaxedit.viewer.edits import Comparison, Desk
from jaxedit.viewer.session import Session
from jaxvid.train.loop import LoopConfig

CONFIG = """
from jaxedit.fields.voxel_grid import VoxelGridConfig
from jaxedit.render.occupancy import OccupancyConfig
from jaxedit.render.render import RenderConfig
from jaxedit.scene.load import SceneConfig
from jaxedit.systems.reconstruct import Fit, Reconstruct
from jaxvid.train.loop import LoopConfig
from jaxvid.train.optimizer import OptimizerConfig


def config():
    adam = OptimizerConfig(learning_rate=5e-2, b2=0.99, epsilon=1e-15, clip_norm=None)
    return Reconstruct(
        data=SceneConfig(path="unset"),
        field=VoxelGridConfig(resolution=(20, 20, 20), gain=20.0, shift=-1.0, initial_density=(0.0, 0.0)),
        render=RenderConfig(samples=32),
        occupancy=OccupancyConfig(resolution=16, every=4),
        fits=(Fit("coarse", steps=40, rays=512, optimizer=adam), Fit("fine", steps=40, rays=512, optimizer=adam)),
        heldout=1,
        loop=LoopConfig(log_every=20, save_every=40),
    )
"""


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A toy scene fitted by the command line: 2 fits of 40 steps, a checkpoint after each."""
    folder = tmp_path_factory.mktemp("view")
    scene = capture(toy_scene(seed=0, index=3), views=12, size=24, test_views=1)
    write_blender(scene, folder / "toy")
    (folder / "tiny.py").write_text(CONFIG)
    options = ["--config", str(folder / "tiny.py"), "--run", str(folder / "run")]
    assert cli.main(["fit", str(folder / "toy"), *options]) == 0
    return folder / "run"


@pytest.fixture(scope="session")
def fitted(run):
    return load_fitted(run)


@pytest.fixture
def viser():
    return pytest.importorskip("viser", reason='needs viser: pip install "jaxvid[view]"')


@pytest.fixture
def tiny_model():
    return make_tiny_model()


class Exchanged:
    """In place of an editor: edits that are known, and no networks."""

    def __init__(self, editor):
        self.editor = editor

    def __getattr__(self, name):
        return getattr(self.editor, name)

    def edited(self, told, image, original, key, lower, upper):
        return original[..., np.array([2, 0, 1])]


@pytest.fixture
def desk(run, tmp_path, monkeypatch, tiny_model):
    """A desk over a copy of the run, whose edits exchange colours; and what it said."""
    for module in (training, reconstruct_system, editing):
        monkeypatch.setattr(module, "make_mesh", lambda _: None)

    def prepared(run, recipe):
        found = prepare(run, recipe, tiny_model)
        editor = Exchanged(found.opened.setting.editor)
        setting = found.opened.setting._replace(editor=editor)
        return found._replace(opened=replace(found.opened, setting=setting))

    monkeypatch.setattr(edits, "prepare", prepared)
    shutil.copytree(run, tmp_path / "run")
    said, comparison = [], Comparison()
    session = Session(
        tmp_path / "run", load_current(tmp_path / "run"), lambda *_: None, said.append
    )
    recipe = Recipe(
        steps=40,
        every=1,
        edit=EditConfig(steps=2),
        training=TrainingConfig(patches=4, side=8),
        loop=LoopConfig(log_every=10, save_every=20),
    )
    made = Desk(tmp_path / "run", session, comparison, recipe, said.append)
    yield made, session, comparison, said
    made.close()
