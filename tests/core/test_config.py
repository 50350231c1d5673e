import dataclasses
import math
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxvid.core import config as config_module
from jaxvid.core.config import (
    config_names,
    difference,
    from_json,
    load_config,
    parse_overrides,
    replace,
    to_json,
)
from jaxvid.core.errors import UserError
from jaxvid.core.mesh import MeshConfig
from jaxvid.train.optimizer import OptimizerConfig


@dataclass(frozen=True)
class Net:
    channels: int = 32
    multipliers: tuple[int, ...] = (1, 2)
    attention: bool = True


@dataclass(frozen=True)
class OtherNet:
    width: float = 1.0


@dataclass(frozen=True)
class Stage:
    name: str
    steps: int = 10


@dataclass(frozen=True)
class System:
    model: Net | OtherNet = Net()
    text: Net | None = None
    kind: Literal["v", "epsilon"] = "v"
    stages: tuple[Stage, ...] = (Stage("a"), Stage("b"))
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    mesh: MeshConfig | None = None
    size: tuple[int, int] = (8, 16)
    weights: dict[str, float] = field(default_factory=lambda: {"x": 1.0})
    limit: float | None = None


FULL = System(model=OtherNet(0.5), text=Net(8), mesh=MeshConfig(tensor=2), limit=3.0)


@pytest.mark.parametrize("config", [System(), FULL])
def test_json_returns_the_same_config(config):
    import json

    assert from_json(System, json.loads(json.dumps(to_json(config)))) == config


def test_json_names_the_class_of_every_group():
    data = to_json(FULL)
    assert data["mesh"]["type"] == "jaxvid.core.mesh:MeshConfig"
    assert data["model"] == {"type": f"{__name__}:OtherNet", "width": 0.5}


def test_a_group_of_the_project_is_found_by_its_tag_alone():
    config = OptimizerConfig(learning_rate=0.5)
    assert from_json(object, to_json(config)) == config


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"type": "os:system"}, ["type", "os:system"]),
        ({"type": "jaxvid.core.config:__import__"}, ["type"]),
        ({"type": "jaxvid.core.run:os"}, ["type"]),
        ({"type": "jaxvid.core.paths:flatten"}, ["type"]),
        ({"type": "jaxvid.nothing:Config"}, ["type", "nothing"]),
        ({"type": "jaxvid.train.optimizer:OptimizerConfig"}, ["expected", "System"]),
        ({"type": ["jaxvid"]}, ["type"]),
        ({"kind": "w"}, ["kind", "'w'"]),
        ({"kind": "epsilom"}, ["kind", "did you mean 'epsilon'"]),
        ({"modl": {}}, ["modl", "did you mean model"]),
        ({"model": {"type": f"{__name__}:Net", "chanels": 3}}, ["model.chanels", "model.channels"]),
        ({"model": {"type": f"{__name__}:Net", "channels": 3.5}}, ["model.channels", "3.5", "int"]),
        ({"model": {"type": f"{__name__}:Net", "channels": True}}, ["model.channels"]),
        ({"model": 3}, ["model", "Net or OtherNet"]),
        ({"size": [1, 2, 3]}, ["size", "2 values"]),
        ({"stages": [{"steps": 3}]}, ["stages.0.name"]),
        ({"limit": math.nan}, ["limit", "nan"]),
        ({"limit": math.inf}, ["limit"]),
        ({"limit": "3"}, ["limit"]),
        ({"weights": {"a": "__import__('os')"}}, ["weights.a"]),
        ({"__class__": "x"}, ["__class__"]),
    ],
)
def test_bad_json_is_one_line_that_names_the_field(change, words):
    data = {**to_json(System()), **change}
    with pytest.raises(UserError) as caught:
        from_json(System, data)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_deep_and_foreign_json_is_refused():
    for data in (None, 3, "x", [], {"type": "System"}, {"model": {"model": {"model": {}}}}):
        with pytest.raises(UserError):
            from_json(System, data)


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists, max_leaves=5))
def test_any_value_for_a_field_is_taken_or_refused_with_a_user_error(value):
    with pytest.raises(UserError):
        from_json(System, {"optimizer": value})


def test_values_that_json_lacks_are_refused():
    with pytest.raises(UserError, match="inf"):
        to_json(System(limit=math.inf))
    with pytest.raises(TypeError):
        to_json(dataclasses.make_dataclass("C", [("f", object)])(object()))


def test_replace_follows_dotted_names():
    config = replace(
        System(),
        {
            "model.channels": 64,
            "stages.1.steps": 5,
            "optimizer.clip_norm": None,
            "optimizer.learning_rate": 1,
            "weights.x": 2.0,
            "size": [1, 2],
            "text": Net(3),
            "text.channels": 4,
            "mesh": {"tensor": 2},
        },
    )
    assert config == System(
        model=Net(64),
        text=Net(4),
        stages=(Stage("a"), Stage("b", 5)),
        optimizer=OptimizerConfig(clip_norm=None, learning_rate=1.0),
        weights={"x": 2.0},
        size=(1, 2),
        mesh=MeshConfig(tensor=2),
    )
    assert isinstance(config.optimizer.learning_rate, float)
    assert replace(System(), {}) == System()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("model.chanels", 3, ["model.chanels", "did you mean model.channels?", "model.attention"]),
        ("modl.channels", 3, ["modl", "did you mean model?"]),
        ("model.channels", "3", ["model.channels", "'3'", "int"]),
        ("model.channels.x", 3, ["model.channels.x"]),
        ("text.channels", 3, ["text.channels", "None"]),
        ("stages.2.steps", 3, ["stages.2", "stages.0, stages.1"]),
        ("stages.0", 3, ["stages.0", "Stage"]),
        ("weights.x", "a", ["weights.x"]),
        ("kind", "w", ["kind"]),
    ],
)
def test_replace_refuses_unknown_names_and_wrong_types(name, value, words):
    with pytest.raises(UserError) as caught:
        replace(System(), {name: value})
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_difference_lists_fields_by_dotted_name():
    other = replace(System(), {"model.channels": 64, "stages.1.steps": 5, "text": Net()})
    assert difference(System(), other) == {
        "model.channels": (32, 64),
        "stages.1.steps": (10, 5),
        "text": (None, f"{__name__}:Net"),
    }
    assert difference(System(), System()) == {}
    # A group of another class stands for its fields.
    assert list(difference(System(), System(model=OtherNet()))) == ["model"]
    # Fewer stages: those that are missing.
    assert list(difference(System(), System(stages=(Stage("a"),)))) == ["stages.1"]
    assert list(difference(System(limit=1.0), System(limit=1))) == ["limit"]


def test_options_change_the_config():
    argv = "--model.channels 64 --model.multipliers 1 2 4 --model.attention False --kind epsilon"
    argv += " --stages.1.steps 3 --optimizer.clip-norm None --optimizer.learning_rate=1e-3"
    argv += " --text None --limit -5"
    config = parse_overrides(System(text=Net()), argv.split())
    expected = {
        "model": Net(64, (1, 2, 4), False),
        "kind": "epsilon",
        "stages.1.steps": 3,
        "optimizer.clip_norm": None,
        "optimizer.learning_rate": 1e-3,
        "limit": -5.0,
    }
    assert config == replace(System(), expected)
    assert parse_overrides(FULL, ["--model.width", "2"]) == replace(FULL, {"model.width": 2.0})
    assert parse_overrides(FULL, []) == FULL


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("--model.chanels 3", ["--model.chanels", "did you mean --model.channels?"]),
        ("--lr 3", ["--lr"]),
        ("--model.channels x", ["--model.channels", "x"]),
        ("--model.channels", ["--model.channels"]),
        ("--kind w", ["--kind", "w"]),
        ("--model None", ["model"]),
        ("--limit nan", ["nan"]),
        ("surplus", ["surplus"]),
    ],
)
def test_bad_options_are_one_line(argv, words):
    with pytest.raises(UserError) as caught:
        parse_overrides(System(), argv.split())
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_help_lists_options(capsys):
    with pytest.raises(SystemExit) as caught:
        parse_overrides(System(), ["--help"], prog="jaxvid train shapes")
    assert caught.value.code == 0
    assert "--model.channels" in capsys.readouterr().out


FILE = """
from jaxvid.train.optimizer import OptimizerConfig
def config():
    return OptimizerConfig(learning_rate=0.25)
"""


@pytest.fixture
def presets(tmp_path, monkeypatch):
    folder = tmp_path / "configs"
    (folder / "vdm").mkdir(parents=True)
    (folder / "vdm" / "shapes.py").write_text(FILE)
    (folder / "vdm" / "empty.py").write_text("")
    monkeypatch.setattr(config_module, "config_folder", lambda: folder)
    return folder


def test_load_config_by_name_group_and_path(presets):
    expected = OptimizerConfig(learning_rate=0.25)
    assert config_names() == ["vdm/empty", "vdm/shapes"]
    assert load_config("vdm/shapes") == expected
    assert load_config("shapes", group="vdm") == expected
    assert load_config(presets / "vdm" / "shapes.py") == expected
    assert load_config(str(presets / "vdm" / "shapes.py")) == expected


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("vdm/shape", ["vdm/shape", "did you mean vdm/shapes?", "vdm/{empty, shapes}"]),
        ("vdm/empty", ["empty.py", "config()"]),
        ("../secret", ["../secret"]),
        ("/nowhere/x.py", ["/nowhere/x.py"]),
    ],
)
def test_load_config_refuses_what_is_no_config(presets, name, words):
    with pytest.raises(UserError) as caught:
        load_config(name)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_importing_configurations_is_cheap_enough_for_a_command_line():
    """tyro and the dataclasses only: no model, no data pipeline, no checkpoint library."""
    code = (
        "import sys, jaxvid.core.config\n"
        "print([m for m in ('orbax', 'grain', 'flax', 'tensorflow_datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
