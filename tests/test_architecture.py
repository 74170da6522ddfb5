"""The house rules: who may import whom, and what an import may cost. If these fail, the parts stop being usable alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "pluribus"

# A package imports only from floors below its own.
FLOORS: dict[str, float] = {
    "errors": -1,  # the ground
    "catalog": 0,
    "files": 0,
    "linalg": 0,
    "tasks": 1,
    "data": 2,
    "balancing": 2,
    "merging": 2,
    "evaluation": 3,
    "modeling": 3.5,  # a fitted model carries its calibration
    "sharing": 4,
    "adapters": 4,
    "training": 5,
    "boosting": 5,
    "continual": 6,
    "tabular": 7,
    "text": 7,
    "vision": 7,
    "graphs": 7,
    "rl": 7,
    "science": 7,
    "generative": 7,
    "retrieval": 7,
    "study": 8,
    "serving": 8,
    "cli": 9,
}
ALONE = {"balancing", "merging"}  # they serve a stranger's loop and a stranger's checkpoint: floor 0 only


def _imports() -> list[tuple[str, str, str]]:
    found = []
    for path in sorted(SRC.rglob("*.py")):
        package = path.relative_to(SRC).parts[0].removesuffix(".py")
        if package in ("__init__", "__main__"):
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module == "pluribus":
                names = [f"pluribus.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: write imports in full"
                names = [node.module or ""]
            else:
                continue
            for name in names:
                parts = name.split(".")
                if parts[0] == "pluribus" and len(parts) > 1 and parts[1] in FLOORS:
                    found.append((str(path.relative_to(SRC)), package, parts[1]))
    return found


def test_every_package_has_a_floor() -> None:
    packages = {p.name.removesuffix(".py") for p in SRC.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert packages - {"__init__", "__main__"} <= set(FLOORS)


def test_imports_go_down_only() -> None:
    wrong = [
        f"{file} imports pluribus.{target}"
        for file, package, target in _imports()
        if target != package and FLOORS[target] >= FLOORS[package]
    ]
    assert not wrong, "\n".join(wrong)


def test_balancing_and_merging_stand_alone() -> None:
    wrong = [
        f"{file} imports pluribus.{target}"
        for file, package, target in _imports()
        if package in ALONE and target != package and FLOORS[target] > 0
    ]
    assert not wrong, "\n".join(wrong)


def _loaded_by(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stdout.split()}


HEAVY = {"pandas", "pyarrow", "sklearn", "lightgbm", "plotly", "transformers", "scipy", "pydantic", "rich"}


def test_importing_pluribus_loads_nothing_heavy() -> None:
    assert not _loaded_by("import pluribus") & (HEAVY | {"torch", "numpy"})


@pytest.mark.parametrize("package", sorted(name for name in ALONE if (SRC / name).exists()))
def test_a_stranger_pays_for_torch_only(package: str) -> None:
    assert not _loaded_by(f"import pluribus.{package}") & HEAVY


def test_help_loads_no_torch() -> None:
    loaded = _loaded_by("from pluribus.cli import run; run(['--help'])")
    assert not loaded & (HEAVY | {"torch", "numpy"})


def test_public_names_are_functions_twice() -> None:
    """`from pluribus import combine` must not turn into the submodule of that name on second access."""
    import types

    import pluribus

    for name in pluribus.__all__:
        for _ in range(2):
            assert not isinstance(getattr(pluribus, name), types.ModuleType), name
