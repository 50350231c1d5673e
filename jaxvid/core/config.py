"""Configurations: frozen dataclasses, saved as JSON, changed by dotted names, loaded from files of values.

Every dataclass belongs to the module that it configures; this module knows none of them. A field has one of the types
bool, int, float, str, Literal, tuple, list, dict with string keys, another dataclass, or a union of these with each
other or None. In JSON a dataclass carries `"type": "module:Class"`, which decides between the members of a union.
Data never names code outside this project: the class must be one that the field's annotation allows, or a dataclass
of jaxvid or jaxedit. Numbers are finite.

A dotted name is the way to a field: "model.channels", "phases.0.steps" (a number for a tuple's element).
"""

import contextlib
import difflib
import importlib
import importlib.util
import io
import itertools
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from dataclasses import replace as replace_fields
from pathlib import Path
from typing import Any, Literal, TypeVar

import tyro

import jaxvid
from jaxvid.core.errors import UserError

Config = TypeVar("Config")

_TAG = re.compile(r"(jaxvid|jaxedit)(\.\w+)*:\w+")


# To JSON and back


def to_json(config: Any) -> Any:
    """The JSON value of a dataclass (or of a field's value); tuples become lists.

    Raises UserError for a number that is not finite, TypeError for a value that no field may have.
    """
    if is_dataclass(config) and not isinstance(config, type):
        values = {field.name: to_json(getattr(config, field.name)) for field in fields(config)}
        if "type" in values:
            raise TypeError(f"{type(config).__name__}: a field may not be called `type`")
        return {"type": _tag(type(config)), **values}
    if isinstance(config, tuple | list):
        return [to_json(value) for value in config]
    if isinstance(config, Mapping):
        return {str(key): to_json(value) for key, value in config.items()}
    if isinstance(config, float) and not math.isfinite(config):
        raise UserError(f"a configuration holds the number {config}; numbers must be finite")
    if config is None or isinstance(config, bool | int | float | str):
        return config
    raise TypeError(f"{type(config).__name__} value {config!r} cannot be part of a configuration")


def from_json(cls: type[Config] | Any, data: Any) -> Config:
    """The dataclass `cls` (or a union of dataclasses; `object` for any of jaxvid and jaxedit) that `data` describes.

    Fields that `data` lacks take their defaults. Raises UserError naming the field for an unknown name, a missing
    value, a wrong type or a class that is not allowed.
    """
    return _decode(cls, data, "")


def _tag(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _decode(hint: Any, value: Any, name: str) -> Any:
    """`value` as the type `hint`, converted from JSON where needed (list to tuple, whole number to float)."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is typing.Annotated:
        return _decode(arguments[0], value, name)
    if origin in (typing.Union, types.UnionType):
        return _decode_union(arguments, value, name)
    if origin is Literal:
        if not any(value == allowed and type(value) is type(allowed) for allowed in arguments):
            raise _wrong(name, value, " or ".join(map(repr, arguments)), arguments)
        return value
    if origin in (tuple, list) and isinstance(value, tuple | list):
        return _decode_sequence(origin, arguments, value, name)
    if origin in (dict, Mapping) and isinstance(value, Mapping):
        return {
            str(key): _decode(arguments[1], item, _join(name, key)) for key, item in value.items()
        }
    if hint is type(None) and value is None:
        return None
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise _wrong(name, value, "a finite number")
        return float(value)
    if hint in (bool, int, str) and type(value) is hint:
        return value
    if isinstance(hint, type) and hint not in (bool, int, float, str):
        return _decode_dataclass(hint, value, name)
    raise _wrong(name, value, getattr(hint, "__name__", str(hint)))


def _decode_union(members: Sequence[Any], value: Any, name: str) -> Any:
    """The first member that takes the value; a group's "type" leaves only the member that it names, if there is one."""
    if isinstance(value, Mapping):
        groups = [member for member in members if isinstance(member, type) and is_dataclass(member)]
        named = [member for member in groups if _tag(member) == value.get("type")]
        members = named or groups or members
    problems = []
    for member in members:
        try:
            return _decode(member, value, name)
        except UserError as error:
            problems.append(error)
    if isinstance(value, Mapping) and problems:
        raise problems[0]  # about the inside of the group
    raise _wrong(name, value, " or ".join(getattr(kind, "__name__", str(kind)) for kind in members))


def _decode_sequence(kind: type, arguments: Sequence[Any], value: Sequence[Any], name: str) -> Any:
    if kind is tuple and arguments and arguments[-1] is not Ellipsis:
        if len(arguments) != len(value):
            raise _wrong(name, value, f"{len(arguments)} values")
        hints = list(arguments)
    else:
        hints = [arguments[0] if arguments else Any] * len(value)
    return kind(
        _decode(hint, item, _join(name, i))
        for i, (hint, item) in enumerate(zip(hints, value, strict=True))
    )


def _decode_dataclass(hint: type, value: Any, name: str) -> Any:
    if is_dataclass(value) and isinstance(value, hint):
        return value
    if not isinstance(value, Mapping):
        raise _wrong(name, value, hint.__name__)
    values = dict(value)
    tag = values.pop("type", None)
    cls = hint if tag is None or tag == _tag(hint) else _import(tag, name)
    if not (is_dataclass(cls) and issubclass(cls, hint)):
        raise _wrong(name or "config", tag, f"{hint.__name__} or a dataclass derived from it")
    hints, known = _hints(cls), {field.name: field for field in fields(cls) if field.init}
    for key in values:
        if key not in known:
            raise _unknown(_join(name, key), [_join(name, field) for field in known])
    for field in known.values():
        if (
            field.name not in values
            and field.default is MISSING
            and field.default_factory is MISSING
        ):
            raise UserError(
                f"{_join(name, field.name)} has no value and {cls.__name__} no default for it; set it"
            )
    return cls(**{key: _decode(hints[key], item, _join(name, key)) for key, item in values.items()})


def _import(tag: Any, name: str) -> type:
    if not isinstance(tag, str) or not _TAG.fullmatch(tag):
        raise UserError(
            f'{_join(name, "type")} is {tag!r}; only "jaxvid....:Class" and "jaxedit....:Class" are allowed'
        )
    module, _, attribute = tag.partition(":")
    try:
        cls = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError):
        raise UserError(
            f"{_join(name, 'type')} is {tag!r}, which this version does not have; check the spelling"
        ) from None
    if not (isinstance(cls, type) and is_dataclass(cls) and cls.__module__ == module):
        raise UserError(
            f"{_join(name, 'type')} is {tag!r}, which is not a configuration of that module"
        )
    return cls


def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)


def _join(name: str, part: Any) -> str:
    return f"{name}.{part}" if name else str(part)


def _wrong(name: str, value: Any, expected: str, allowed: Iterable[Any] = ()) -> UserError:
    near = difflib.get_close_matches(str(value), [str(item) for item in allowed], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return UserError(f"{name or 'config'} is {value!r:.80}, expected {expected}{hint}")


def _unknown(name: str, valid: Iterable[str]) -> UserError:
    valid = list(valid)
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    return UserError(f"unknown name {name}: {hint}valid names: {', '.join(valid)}")


# Changes and differences


def replace(config: Config, changes: Mapping[str, Any]) -> Config:
    """A copy of `config` with fields changed by dotted name: `replace(config, {"model.channels": 64})`.

    Values are checked against the fields' types; a dataclass may be given as itself or as JSON with its "type".
    Raises UserError with the nearest name and the valid ones for an unknown name.
    """
    return _replace(config, {tuple(name.split(".")): value for name, value in changes.items()}, "")


def _replace(config: Any, changes: Mapping[tuple[str, ...], Any], above: str) -> Any:
    """Builds every group once, with all its changes: settings that must agree can only change together."""
    new: dict[str, Any] = {}
    for part in dict.fromkeys(path[0] for path in changes):
        name = _join(above, part)
        inside = {
            path[1:]: value for path, value in changes.items() if path[0] == part and len(path) > 1
        }
        value, decode = _member(config, part, above, bool(inside))
        if (part,) in changes:
            value = decode(changes[(part,)])
        if inside:
            value = decode(_replace(value, inside, name))
        new[part] = value
    if isinstance(config, tuple):
        return tuple(new.get(str(i), item) for i, item in enumerate(config))
    if isinstance(config, Mapping):
        return {**config, **new}
    return replace_fields(config, **new)


def _member(config: Any, part: str, above: str, inside: bool) -> tuple[Any, Callable[[Any], Any]]:
    """A part's present value, and what checks a new one."""
    name = _join(above, part)
    if isinstance(config, tuple):
        if not part.isdigit() or int(part) >= len(config):
            raise _unknown(name, [_join(above, i) for i in range(len(config))])
        old = config[int(part)]
        return old, lambda value: _decode(type(old), value, name)
    if isinstance(config, Mapping):
        if inside and part not in config:
            raise _unknown(name, [_join(above, key) for key in config])
        return config.get(part), lambda value: value
    if not is_dataclass(config) or isinstance(config, type):
        raise UserError(f"{name} cannot be set: {above} is {config!r:.80}, not a group of settings")
    if part not in (known := [field.name for field in fields(config) if field.init]):
        raise _unknown(name, [_join(above, field) for field in known])
    hint = _hints(type(config))[part]
    return getattr(config, part), lambda value: _decode(hint, value, name)


def flatten(config: Any, name: str = "") -> dict[str, Any]:
    """`{dotted name: value}` of every plain value; a group appears as its class, a tuple of groups element by element."""
    if is_dataclass(config) and not isinstance(config, type):
        flat = {name: _tag(type(config))} if name else {}
        for field in fields(config):
            flat |= flatten(getattr(config, field.name), _join(name, field.name))
        return flat
    if isinstance(config, tuple | list) and any(is_dataclass(item) for item in config):
        return {
            key: value
            for i, item in enumerate(config)
            for key, value in flatten(item, _join(name, i)).items()
        }
    if isinstance(config, Mapping) and config:
        return {
            key: value
            for part, item in config.items()
            for key, value in flatten(item, _join(name, part)).items()
        }
    return {name: config}


def difference(first: Any, second: Any) -> dict[str, tuple[Any, Any]]:
    """`{dotted name: (value in first, value in second)}` where they differ; "absent" where one has no such field.

    Where a group's class differs, the group is listed and not its fields.
    """
    a, b = flatten(first), flatten(second)
    differing: dict[str, tuple[Any, Any]] = {}
    for name in [*a, *(name for name in b if name not in a)]:
        inside = any(name.startswith(f"{other}.") for other in differing)
        if not inside and (
            name not in a
            or name not in b
            or a[name] != b[name]
            or type(a[name]) is not type(b[name])
        ):
            differing[name] = (a.get(name, "absent"), b.get(name, "absent"))
    return differing


# Files of values


def config_folder() -> Path:
    """The folder of the presets: beside the package in a clone, inside it where a wheel is installed."""
    package = Path(jaxvid.__file__).parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def config_names(group: str = "") -> list[str]:
    """The names that `load_config` knows, those under `group` only."""
    folder = config_folder()
    names = (
        str(path.relative_to(folder).with_suffix(""))
        for path in folder.rglob("*.py")
        if path.stem[0] != "_"
    )
    return sorted(name for name in names if not group or name.startswith(f"{group}/"))


def _grouped(names: Sequence[str]) -> str:
    """Names in a line, what they share said once: "vdm/{clips, shapes}, reconstruct/nerf"."""
    groups: dict[str, list[str]] = {}
    for name in names:
        folder, _, own = name.rpartition("/")
        groups.setdefault(folder, []).append(own)
    return ", ".join(
        "/".join(filter(None, (folder, own[0] if len(own) == 1 else f"{{{', '.join(own)}}}")))
        for folder, own in groups.items()
    )


def load_config(name: str | Path, group: str = "") -> Any:
    """The configuration that a file of values returns from its `config()`.

    name: of a preset, such as "vdm/shapes" (or "shapes" with group="vdm"), or the path of a Python file.
    Raises UserError when there is no such file, or it defines no `config()` that returns a dataclass.
    """
    wanted = f"{group}/{name}" if group else str(name)
    known = config_names(group)
    if wanted in known:
        path = config_folder() / f"{wanted}.py"
    elif Path(name).suffix == ".py" and Path(name).is_file():
        path = Path(name)
    else:
        near = difflib.get_close_matches(wanted, known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(
            f"no config {wanted}: {hint}give the path of a .py file or one of {_grouped(known) or 'none'}"
        )
    spec = importlib.util.spec_from_file_location(f"jaxvid_config_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (SyntaxError, ImportError) as error:
        raise UserError(f"{path} cannot be read: {error}; correct it") from error
    make = getattr(module, "config", None)
    config = make() if callable(make) else None
    if not is_dataclass(config) or isinstance(config, type):
        raise UserError(
            f"{path} must define `config()` that returns a configuration; see {config_folder()} for examples"
        )
    return config


# The command line


def parse_overrides(
    config: Config, argv: Sequence[str], prog: str = "jaxvid train CONFIG"
) -> Config:
    """`config` changed by options such as `--model.channels 64 --model.mults 1 2 4 --model.attention False`.

    A field that is a union keeps its present class; a group that may be None is switched off by `--group None`.
    Raises UserError (one line) for an unknown option or a bad value; `--help` prints every option and exits.
    """
    present = flatten(config)
    groups = {name for name, value in present.items() if _is_tag(value)}
    valid = [f"--{name}" for name in present if name not in groups] + ["--help"]
    known = {_dashes(option) for option in valid}
    rest, words, off = [], list(argv), {}
    while words:
        word = words.pop(0)
        option = word.partition("=")[0]
        if option[2:].replace("-", "_") in groups and (
            word.endswith("=None") or words[:1] == ["None"]
        ):
            off[option[2:].replace("-", "_")] = None
            words = words if "=" in word else words[1:]
            continue
        if re.match(r"--[A-Za-z]", option) and _dashes(option) not in known:
            near = difflib.get_close_matches(option, valid, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else "--help lists the options"
            raise UserError(f"unknown option {option}; {hint}")
        rest.append(word)
    parsed = _tyro(replace(config, off), rest, prog)
    to_json(parsed)  # refuses numbers that are not finite
    return parsed


def _tyro(config: Config, argv: Sequence[str], prog: str) -> Config:
    """Tyro's parser, its framed messages turned into one line."""
    style = (tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff)
    printed = io.StringIO()
    silent = contextlib.nullcontext() if "--help" in argv else contextlib.redirect_stderr(printed)
    try:
        with silent:
            return tyro.cli(type(config), default=config, args=list(argv), prog=prog, config=style)
    except SystemExit as stop:
        if not stop.code:
            raise
        lines = [line.strip(" │╭╮╰╯") for line in printed.getvalue().splitlines()]
        # After the frame's title, up to the first rule: the complaint, wrapped.
        complaint = itertools.takewhile(lambda line: line.strip("─"), lines[1:])
        text = " ".join(complaint).rstrip(".")
        raise UserError(f"{text or 'bad options'}; --help lists the options") from None


def _dashes(option: str) -> str:
    return option.replace("_", "-")


def _is_tag(value: Any) -> bool:
    return isinstance(value, str) and bool(re.fullmatch(r"[\w.]+:\w+", value))
