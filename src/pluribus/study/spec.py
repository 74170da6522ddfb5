"""What a study is asked to do: the settings of the command line and of `study.yaml`, checked in one place."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator

from pluribus.data.written.reading import Reading
from pluribus.errors import BadInput, nearest, unknown
from pluribus.files import read_yaml
from pluribus.study import generated
from pluribus.tasks import Task
from pluribus.tasks.metrics import METRICS
from pluribus.tasks.task import check_tolerance

SCHEMA_VERSION = 1
Model = TypeVar("Model", bound=BaseModel)
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds(text: str | float, *, where: str = "budget") -> float:
    """`90`, `90s`, `10m`, `2h`, `1.5d` or `1h30m` → seconds."""
    remedy = "write seconds, or a number with s, m, h or d, as in 10m"
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        value = float(text)
    else:
        parts = re.findall(r"(\d+(?:\.\d+)?)\s*([smhd]?)", str(text).strip().lower())
        if not parts or "".join(a + b for a, b in parts) != re.sub(r"\s+", "", str(text).lower()):
            raise BadInput(f"{text!r} is not a duration", where=where, remedy=remedy)
        value = sum(float(number) * _UNITS[unit or "s"] for number, unit in parts)
    if not 1 <= value < 1e9:
        raise BadInput(f"{text!r} is not between one second and thirty years", where=where, remedy=remedy)
    return value


def checked(model: type[Model], row: Mapping[str, Any], *, where: str, nested: Sequence[type[BaseModel]], schema: str) -> Model:
    """The settings as `model`; the first thing that is wrong becomes one line with the field's name and a remedy.

    Parameters
    ----------
    model : type
        What they are checked against.
    row : mapping
        The settings.
    where : str
        Where they stand, for messages.
    nested : sequence of type
        The models of fields within.
    schema : str
        The command that prints what may stand there.
    """
    version = row.get("schema_version", 1)
    if isinstance(version, int) and version > SCHEMA_VERSION:
        what = f"schema_version {version} is newer than this program's ({SCHEMA_VERSION})"
        raise BadInput(what, where=where, remedy="update pluribus")
    try:
        return model.model_validate(dict(row))
    except ValidationError as error:
        first, *others = error.errors()
        if first["loc"][-1] == "str" and isinstance(first["input"], dict):  # a mapping was meant as one, not as a name
            field = first["loc"][:-1]
            first = next((each for each in others if each["loc"][: len(field)] == field), first)
        branches = {"str", *(each.__name__ for each in nested)}  # of a field that may be one or the other
        path = ".".join(str(part) for part in first["loc"] if part not in branches)
        if first["type"] == "extra_forbidden":
            models: tuple[type[BaseModel], ...] = (model, *nested)
            guess = nearest(str(first["loc"][-1]), [name for each in models for name in each.model_fields])
            remedy = f"did you mean {guess!r}?" if guess else f"see `{schema}`"
            raise BadInput(f"unknown key {path!r}", where=where, remedy=remedy) from None
        if first["type"] == "missing":
            raise BadInput(f"lacks the key {path!r}", where=where, remedy=f"add it; see `{schema}`") from None
        what = f"{first['msg'].removeprefix('Value error, ').lower()}, not {first.get('input')!r:.60}"
        raise BadInput(what, where=f"{where}, {path}", remedy=f"see `{schema}`") from None


class TaskSpec(BaseModel):
    """One task, as a mapping; `name` alone lets the kind be inferred."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    kind: str | None = None
    classes: list[str] = []
    metrics: list[str] = []
    weight: float = Field(default=1.0, gt=0)
    role: Literal["main", "auxiliary"] = "main"
    absent: Literal["missing", "not_applicable", "delayed"] = "missing"
    after: list[str] = []
    tolerance: str | Annotated[float, Field(ge=0)] | None = None


class ItemSpec(BaseModel):
    """An item table: its file, its key, and the columns of the study's table that hold keys."""

    model_config = ConfigDict(extra="forbid", strict=True)

    path: str
    key: str
    columns: list[str] = []
    ignore: list[str] = []
    text: list[str] = []


class GeneratedTable(BaseModel):
    """A table that is made: a generator's name, and the settings that the function of this name takes."""

    model_config = ConfigDict(extra="allow", strict=True)

    generator: str


class TableStudy(BaseModel):
    """A study of one table (`kind: table`)."""

    model_config = ConfigDict(extra="forbid", strict=True)

    schema_version: Literal[1] = 1
    kind: Literal["table"] = "table"
    table: str | GeneratedTable
    targets: Annotated[list[str | TaskSpec], Field(min_length=1)]
    name: str | None = None
    id: str | None = None
    ignore: list[str] = []
    weight: str | list[str] | None = None
    class_weights: str | list[str] = []
    group: str | None = None
    task_column: str | None = None
    split: str | None = None
    not_applicable: dict[str, str] = {}
    delayed: dict[str, str] = {}
    late: Literal["left_out", "weighed"] = "left_out"
    text: list[str] = []
    items: dict[str, ItemSpec] = {}
    max_length: Annotated[int, Field(ge=1, le=100_000)] = 100
    thousands: str | list[str] = []
    decimal: str | list[str] = []
    na: str | list[str] = []
    dayfirst: bool | None = None
    types: dict[str, str] = {}
    separator: str | None = None
    encoding: str | None = None
    metrics: dict[str, str | list[str]] = {}
    slices: list[str] = []
    candidates: list[str] | None = None
    settings: dict[str, dict[str, JsonValue]] = {}
    balancers: list[str] = []
    lgbm_params: dict[str, str | int | float | bool] = {}
    backbone: str | None = None
    champion: str | None = None
    budget: str | float = "10m"
    seeds: Annotated[int, Field(ge=1, le=50)] = 3
    folds: Annotated[int, Field(ge=1, le=20)] | None = None
    prefer: Literal["one", "best", "cheap"] = "one"
    tolerance: dict[str, str] = {}
    configurations: Annotated[int, Field(ge=1, le=200)] = 6
    allow_committee: bool = True
    level: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    repeats: Annotated[int, Field(ge=100, le=100_000)] = 1000
    seed: int = 0

    @field_validator("na", mode="before")
    @classmethod
    def _words(cls, value: Any) -> Any:
        """YAML reads −9999 as a number and 1900-01-01 as a date."""

        def word(each: Any) -> Any:
            return str(each) if isinstance(each, int | float | datetime.date) and not isinstance(each, bool) else each

        return [word(each) for each in value] if isinstance(value, list) else word(value)

    @field_validator("name")
    @classmethod
    def _a_file_name(cls, value: str | None) -> str | None:
        if value is not None and (not value or value.startswith(".") or "/" in value or "\\" in value):
            raise ValueError("must be a plain folder name")
        return value

    @field_validator("tolerance", mode="before")
    @classmethod
    def _by_task(cls, value: Any) -> Any:
        """One value stands for all tasks; numbers are in the metric's unit."""
        each = value if isinstance(value, Mapping) else {"": value}
        return {name: str(x) if isinstance(x, int | float) and not isinstance(x, bool) else x for name, x in each.items()}

    @property
    def reading(self) -> dict[str, Any]:
        """How the table's file is to be read: those arguments of `Table.read` that somebody named."""
        names = {each.name for each in fields(Reading)}
        return {name: value for name, value in self.model_dump(include=names).items() if value not in (None, [], {})}

    @property
    def run_name(self) -> str:
        """Folder below `runs/`: the name, or the table's file stem, or the generator's name."""
        return self.name or (Path(self.table).stem if isinstance(self.table, str) else self.table.generator)

    @property
    def core_seconds(self) -> float:
        return seconds(self.budget)

    def tasks(self) -> list[str | Task]:
        """What `Table` is handed: plain targets stay strings, so that their kinds are inferred."""
        return [t if isinstance(t, str) else _task(t) for t in self.targets]


def _task(spec: TaskSpec) -> str | Task:
    if spec.kind is None:
        plain = TaskSpec(name=spec.name)
        if spec != plain:
            raise BadInput("gives details but no kind", where=f"targets, {spec.name!r}", remedy="add kind: binary, regression, …")
        return spec.name
    return Task.from_dict({**spec.model_dump(), "metrics": spec.metrics})


def row_of(task: Task) -> dict[str, Any]:
    """A task as a `TaskSpec` mapping."""
    return {
        "name": task.name,
        "kind": task.kind,
        "classes": list(task.classes),
        "metrics": [m.name for m in task.metrics],
        "weight": task.weight,
        "role": task.role,
        "absent": task.absent,
        "after": list(task.after),
        "tolerance": task.tolerance,
    }


def parse(row: Any, *, where: str) -> TableStudy:
    """Check settings; the first thing that is wrong becomes one line with the field's name and a remedy."""
    if not isinstance(row, Mapping):
        raise BadInput("holds no settings", where=where, remedy="write `key: value` lines; see `pluribus schema`")
    kind = row.get("kind", "table")
    if kind == "checkpoints":
        raise BadInput("is a study of checkpoints", where=where, remedy="add --evaluate FILE.py:FUNCTION")
    if kind != "table":
        raise unknown("kind of study", str(kind), ("table", "checkpoints"), where=where)
    if isinstance(row.get("table"), Mapping):
        generated.check(row["table"], where=f"{where}, table")
        row = {"targets": generated.targets(row["table"]), **row}
    spec = checked(TableStudy, row, where=where, nested=(TaskSpec, ItemSpec, GeneratedTable), schema="pluribus schema")
    seconds(spec.budget, where=f"{where}, budget")
    return spec


def load(path: str | Path) -> TableStudy:
    """A study file. A relative table or champion is looked for beside the file."""
    row = read_yaml(path, what="study file")
    spec = parse(row, where=str(path))
    beside = Path(path).parent

    def place(name: str) -> str:
        return name if Path(name).is_absolute() or Path(name).exists() else str(beside / name)

    champion = place(spec.champion) if spec.champion else None
    items = {name: item.model_copy(update={"path": place(item.path)}) for name, item in spec.items.items()}
    table = place(spec.table) if isinstance(spec.table, str) else spec.table
    return spec.model_copy(update={"table": table, "champion": champion, **({"items": items} if items else {})})


def metrics_of(spec: TableStudy, tasks: tuple[Task, ...]) -> tuple[Task, ...]:
    """The tasks with the metrics that the study names for them (main first, the kind's others after)."""
    by_name = {task.name: task for task in tasks}
    for name, chosen in spec.metrics.items():
        if name not in by_name:
            raise unknown("task", name, by_name, where="metric")
        wanted = [chosen] if isinstance(chosen, str) else list(chosen)
        for metric in wanted:
            if metric not in METRICS:
                raise unknown("metric", metric, METRICS, where=f"metric of task {name!r}")
        rest = [m.name for m in by_name[name].metrics if m.name not in wanted]
        by_name[name] = by_name[name].with_(metrics=(*wanted, *rest))
    return tuple(by_name.values())


def kinds_of(spec: TableStudy) -> dict[str, list[str]]:
    """Target → the kinds that every metric named for it serves."""
    found: dict[str, list[str]] = {}
    for name, chosen in spec.metrics.items():
        served = [
            METRICS[m].kinds for m in ([chosen] if isinstance(chosen, str) else chosen) if m in METRICS and METRICS[m].kinds
        ]
        if served:
            found[name] = [kind for kind in served[0] if all(kind in each for each in served)]
    return found


def tolerances_of(spec: TableStudy, tasks: tuple[Task, ...]) -> tuple[Task, ...]:
    """The tasks with the tolerances that the study names: "" stands for all tasks that have none of their own."""
    names = [task.name for task in tasks]
    for name, given in spec.tolerance.items():
        if name and name not in names:
            raise unknown("task", name, names, where="tolerance")
        check_tolerance(given, f"tolerance of task {name!r}" if name else "tolerance")
    every = spec.tolerance.get("")
    own = {task.name: spec.tolerance.get(task.name, every if task.tolerance is None else None) for task in tasks}
    return tuple(task if own[task.name] is None else task.with_(tolerance=own[task.name]) for task in tasks)


def configuration_hash(spec: TableStudy, data_hash: str) -> str:
    """What a run is identified by: every setting but its name, and the data; a resumed run must agree."""
    row = spec.model_dump(exclude={"name", "table", "champion"})
    for item in row["items"].values():  # their content is part of the data's hash
        del item["path"]
    plain: dict[str, Any] = {"class_weights": [], "text": [], "items": {}, "max_length": 100, "settings": {}, "slices": []}
    plain |= {"folds": None, "prefer": "one", "tolerance": {}}
    plain |= {each.name: TableStudy.model_fields[each.name].default for each in fields(Reading)}
    if row.pop("allow_committee"):  # the default, which was another before there were options
        row["allow_committee"] = False
    else:
        row["one_candidate"] = True
    for name in plain:  # runs of before these keys go on
        if row[name] == plain[name]:
            del row[name]
    if spec.champion and os.path.exists(spec.champion):
        from pluribus.files import sha256

        row["champion"] = sha256(spec.champion)
    return hashlib.sha256(json.dumps([row, data_hash], sort_keys=True).encode()).hexdigest()
