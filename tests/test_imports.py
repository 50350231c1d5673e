"""Imports point one way."""

import ast
from pathlib import Path

import jaxvid

ROOT = Path(jaxvid.__file__).parents[1]
# Part of the package: the parts that it may import. A part imports itself; `core` is everybody's.
TABLE = {
    "core": set(),
    "data": set(),
    "nn": set(),
    "diffusion": set(),
    "train": set(),
    "plan": set(),
}
TABLE["models"] = {"nn"}
TABLE["weights"] = {"nn", "models"}
TABLE["pipelines"] = {"nn", "models", "weights", "diffusion", "plan"}
TABLE["systems"] = set(TABLE)
TABLE["evaluate"] = set(TABLE)
TABLE["command"] = {"data", "train", "plan"}
TABLE["options"] = {"command"}
TABLE["cli"] = set(TABLE)


def imported(path):
    """Every module that a file names in an import, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_imports_follow_the_table():
    wrong = []
    for path in sorted([*ROOT.glob("jaxvid/**/*.py"), *ROOT.glob("jaxedit/**/*.py")]):
        package, *parts = path.relative_to(ROOT).with_suffix("").parts
        for module in imported(path):
            other, *names = module.split(".")
            target = names[0] if names else "__init__"
            if other in ("configs", "experiments", "benchmarks", "tests"):
                wrong.append(f"{path}: {module}")
            elif package == "jaxedit" and other == "jaxvid":
                wrong += [f"{path}: {module}"] if target in ("systems", "cli") else []
            elif package == "jaxvid" and other == "jaxedit":
                wrong.append(f"{path}: {module}")
            elif other == "jaxvid" and parts[0] != "__init__" and target in TABLE:
                allowed = TABLE[parts[0]] | {"core", parts[0]}
                wrong += [] if target in allowed else [f"{path}: {module}"]
    assert not wrong, "\n".join(wrong)
