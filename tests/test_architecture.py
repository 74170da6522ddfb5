"""The house rules: who may import whom, and what an import may cost. If these fail, the parts stop being usable alone."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from pluribus import catalog

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src" / "pluribus"

# A package imports only from floors below its own.
FLOORS: dict[str, float] = {
    "errors": -1,  # the ground
    "options": 0,
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


@functools.cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def _imports() -> list[tuple[str, str, str]]:
    found = []
    for path in sorted(SRC.rglob("*.py")):
        package = path.relative_to(SRC).parts[0].removesuffix(".py")
        if package in ("__init__", "__main__"):
            continue
        for node in ast.walk(_tree(path)):
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


# -- no circle of modules ----------------------------------------------------------------------------------------------------


@functools.cache
def _modules() -> dict[str, Path]:
    """Every module of the library and of its benchmarks, by its full name."""
    found = {}
    for folder in (SRC, ROOT / "benchmarks"):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder.parent).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def _named(tree: ast.Module) -> Iterator[str]:
    """The modules that a file's imports name: at its top, in its functions and for types alone.

    ``from a import b`` names the module ``a.b`` where there is one, else ``a``; ``import_module("a.b")`` names ``a.b``.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in _modules() else str(node.module)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from _literals(node.args[0])


def _needed_by(module: str) -> set[str]:
    """The modules that `module` imports.

    Who imports ``a.b.c`` also runs the packages ``a`` and ``a.b``, unless it lies in them: a package's page may gather what the
    package holds, as long as its modules find one another by their full names.
    """
    needed = set()
    for name in _named(_tree(_modules()[module])):
        parts = name.split(".")
        packages = [".".join(parts[:i]) for i in range(1, len(parts))]
        needed |= {name, *(package for package in packages if not f"{module}.".startswith(f"{package}."))}
    return (needed & set(_modules())) - {module}


@functools.cache
def _circles() -> set[frozenset[str]]:
    """The groups of modules in which each needs each other (strongly connected components of more than one module)."""
    needed = {module: _needed_by(module) for module in _modules()}
    reached = {}
    for module in needed:
        seen: set[str] = set()
        ahead = [module]
        while ahead:
            new = needed[ahead.pop()] - seen
            seen |= new
            ahead += new
        reached[module] = seen
    return {frozenset(o for o in reached[m] if m in reached[o]) for m in needed if m in reached[m]}


def test_no_circle_of_imports() -> None:
    """Modules that import each other can be read, tested and moved only together. Imports in functions and for types count."""
    found = _circles()
    lines = [f"{m} imports {', '.join(sorted(_needed_by(m) & group))}" for group in found for m in sorted(group)]
    assert not found, "\n".join(lines)


# -- one sense a noun --------------------------------------------------------------------------------------------------------


def test_a_class_name_stands_in_one_file() -> None:
    """A reader who meets a name must know which class it is; a leading underscore makes no other name."""
    homes: dict[str, set[str]] = {}
    for path in sorted(SRC.rglob("*.py")):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name.lstrip("_"), set()).add(str(path.relative_to(SRC)))
    doubled = {name: sorted(files) for name, files in homes.items() if len(files) > 1}
    assert not doubled, f"give all but one another name: {doubled}"


# -- no name of a kind, a metric or a type of input outside its package ---------------------------------------------------------

INPUT_TYPES = ("number", "category", "boolean", "date", "datetime", "text", "sequence", "item")
SAID_OF_A_KIND = frozenset({"kind", "kinds", "type", "types", "reads"})
SAID_OF_A_METRIC = frozenset({"metric", "metrics", "measure", "measures", "name"})


def _literals(node: ast.AST) -> Iterator[str]:
    """The strings that an expression spells out: one, or those of a tuple, list or set."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.Tuple | ast.List | ast.Set):
        for element in node.elts:
            yield from _literals(element)


def _words(node: ast.AST) -> set[str]:
    """The identifiers in an expression, and the keys that it looks up: ``row["type"].lower`` has row, type and lower."""
    found = set()
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            found.add(part.id)
        elif isinstance(part, ast.Attribute):
            found.add(part.attr)
        elif isinstance(part, ast.Subscript):
            found |= set(_literals(part.slice))
    return found


def _homes(family: str) -> dict[str, str]:
    """Name of a record of the catalog → the package that holds it, as the beginning of a path."""
    return {e.name: "/".join(e.target.split(":")[0].split(".")[1:-1]) + "/" for e in catalog.entries(family=family)}


@functools.cache
def _sorts() -> tuple[tuple[frozenset[str], dict[str, str]], ...]:
    """For each sort of record: the words that stand for one, and name → where it may be asked for."""
    inputs = {**dict.fromkeys(INPUT_TYPES, "data/inputs/"), **_homes("input")}
    return (SAID_OF_A_KIND, _homes("kind")), (SAID_OF_A_KIND, inputs), (SAID_OF_A_METRIC, _homes("metric"))


def _asked(node: ast.AST) -> tuple[set[str], set[str], bool]:
    """What a node compares: the names spelled out, the words of the other side, and whether it is a table by name."""
    if isinstance(node, ast.Compare) and all(isinstance(op, ast.Eq | ast.NotEq | ast.In | ast.NotIn) for op in node.ops):
        sides = [node.left, *node.comparators]
        return {n for side in sides for n in _literals(side)}, {w for side in sides for w in _words(side)}, False
    if isinstance(node, ast.Match):
        patterns = [part for case in node.cases for part in ast.walk(case.pattern)]
        values = {n for part in patterns if isinstance(part, ast.MatchValue) for n in _literals(part.value)}
        return values, _words(node.subject), False
    if isinstance(node, ast.Dict) and len(node.keys) > 1 and all(isinstance(key, ast.Constant) for key in node.keys):
        return {n for key in node.keys if key is not None for n in _literals(key)}, set(), True
    return set(), set(), False


def _lines_that_ask(file: str, tree: ast.Module) -> set[int]:
    """Lines that compare a literal with a kind, a metric or a type of input, or hold a table whose keys are their names.

    A literal counts if every one beside it is a name of the same sort too (``kind == "random"`` is about something else), and
    if the other side speaks of such a record (``task.kind``, ``row["type"]``).
    """
    found = set()
    for node in ast.walk(tree):
        names, words, table = _asked(node)
        for said, homes in _sorts() if names else ():
            foreign = [name for name in names if name in homes and not file.startswith(homes[name])]
            if foreign and names <= set(homes) and (table or words & said):
                found.add(node.lineno)
    return found


def _all_lines_that_ask() -> Mapping[str, int]:
    found = Counter[str]()
    for path in sorted(SRC.rglob("*.py")):
        file = path.relative_to(SRC).as_posix()
        if lines := _lines_that_ask(file, _tree(path)):
            found[file] = len(lines)
    return found


def test_nobody_asks_for_the_name_of_a_kind_a_metric_or_a_type_outside_its_package() -> None:
    """Who asks for a name must be changed for every new kind, metric and type; who asks the record need not."""
    found = _all_lines_that_ask()
    assert not found, f"ask the record instead: {dict(found)}"


@pytest.mark.parametrize(
    ("code", "asks"),
    [
        ('task.kind == "binary"', True),
        ('"binary" != kinds[parent]', True),
        ('kind in ("binary", "multiclass")', True),
        ('row["type"] == "category"', True),
        ('"text" not in self.reads', True),
        ('metric.name == "auc"', True),
        ('"span_f1" in metrics', True),
        ('FORMS = {"binary": 1, "count": 2}', True),
        ('match task.kind:\n  case "binary" | "count":\n    pass', True),
        ('kind == "random"', False),
        ('kind in ("string", "boolean")', False),  # another vocabulary
        ('mode == "binary"', False),
        ('title = {"text": "Calls", "size": 2}', False),
        ('Task("churn", kind="binary")', False),
        ("task.kind == record.name", False),
    ],
)
def test_what_counts_as_asking_for_a_name(code: str, asks: bool) -> None:
    assert bool(_lines_that_ask("elsewhere/file.py", ast.parse(code))) == asks


def test_a_package_may_ask_for_the_names_of_its_own_kinds() -> None:
    asked = ast.parse('task.kind == "binary"')
    assert not _lines_that_ask("tasks/kinds/binary.py", asked)
    assert _lines_that_ask("text/network.py", asked)


# -- nobody asks which balancer it has -----------------------------------------------------------------------------------------

DEFAULT_BALANCER = "EqualWeighting"  # the plain sum, which a candidate without a choice of balancer names


def _balancers_named(tree: ast.Module) -> set[str]:
    """The balancers' classes that a file names, the default aside."""
    classes = {e.target.split(":")[1] for family in ("balancer", "balancer_wrapper") for e in catalog.entries(family=family)}
    named = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    named |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return named & (classes - {DEFAULT_BALANCER} | {"TorchJD"})


def test_nobody_names_a_balancer_outside_balancing() -> None:
    """What a balancer needs of a training is asked of it; who asks for its class must be changed for every new one."""
    files = {path.relative_to(SRC).as_posix(): _tree(path) for path in sorted(SRC.rglob("*.py"))}
    wrong = [
        f"{file} names {', '.join(sorted(named))}"
        for file, tree in files.items()
        if not file.startswith("balancing/") and (named := _balancers_named(tree))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("code", "named"),
    [
        ("from pluribus.balancing import AutoLambda, Balancer", {"AutoLambda"}),
        ("from pluribus.balancing.famo import FAMO as method", {"FAMO"}),
        ("isinstance(balancer, balancing.FlatRegions)", {"FlatRegions"}),
        ("from pluribus.balancing import EqualWeighting, Processes, combine", set()),
        ('catalog.get("balancer", "auto_lambda").resolve()', set()),
    ],
)
def test_what_counts_as_naming_a_balancer(code: str, named: set[str]) -> None:
    assert _balancers_named(ast.parse(code)) == named


# -- what an import costs ------------------------------------------------------------------------------------------------------


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
