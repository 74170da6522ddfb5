"""What a study of checkpoints is asked to do: the keys of its study file (`kind: checkpoints`), checked in one place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pluribus import catalog
from pluribus.errors import BadInput, unknown
from pluribus.files import read_yaml
from pluribus.merging.bundle import ROADS
from pluribus.merging.run import is_static
from pluribus.study.spec import checked, seconds

METHODS = ("average", "task_arithmetic", "ties", "tsv_m", "emr", "lora")
"""The roads that a study walks unless it names others."""


class Expert(BaseModel):
    """One task: its fine-tuned model, its metric, and what the evaluator is told for each split."""

    model_config = ConfigDict(extra="forbid", strict=True)

    path: str
    metric: Annotated[str, Field(min_length=1)]
    direction: Literal["max", "min"]
    valid: str
    test: str
    head: str | None = None


class RoadSpec(BaseModel):
    """A candidate: a merger, or "emr", "tall_masks", "twin", "lora"; with its settings."""

    model_config = ConfigDict(extra="forbid", strict=True)

    method: str
    settings: dict[str, Any] = {}

    @property
    def name(self) -> str:
        return " ".join([self.method, *(f"{key}={value}" for key, value in self.settings.items())])


class CheckpointStudy(BaseModel):
    """A study of checkpoints (`kind: checkpoints`)."""

    model_config = ConfigDict(extra="forbid", strict=True)

    schema_version: Literal[1] = 1
    kind: Literal["checkpoints"] = "checkpoints"
    base: str
    experts: Annotated[dict[str, Expert], Field(min_length=1)]
    methods: list[str | RoadSpec] | None = None
    name: str | None = None
    budget: str | float = "1h"
    level: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    repeats: Annotated[int, Field(ge=100, le=100_000)] = 1000
    seed: int = 0

    def roads(self) -> list[RoadSpec]:
        return [RoadSpec(method=m) if isinstance(m, str) else m for m in (METHODS if self.methods is None else self.methods)]


def parse(row: Any, *, where: str, beside: Path | None = None) -> CheckpointStudy:
    """Check settings; relative paths that are not there are looked for in `beside`."""
    if not isinstance(row, Mapping):
        raise BadInput("holds no settings", where=where, remedy="write `key: value` lines")
    if any(key in ("evaluate", "evaluator", "code") for key in row):
        remedy = "leave it out and write --evaluate FILE.py:FUNCTION on the command line"
        raise BadInput("names code, which no file may", where=where, remedy=remedy)
    spec = checked(CheckpointStudy, row, where=where, nested=(Expert, RoadSpec), schema="pluribus schema --kind checkpoints")
    seconds(spec.budget, where=f"{where}, budget")
    seen: set[str] = set()
    for road in spec.roads():
        known = [*ROADS[1:], *(e.name for e in catalog.entries(family="merger") if is_static(e.name))]
        if road.method not in known:
            raise unknown("method", road.method, known, where=f"{where}, methods")
        if road.name in seen:
            raise BadInput(f"names {road.name!r} twice", where=f"{where}, methods", remedy="leave one out")
        seen.add(road.name)

    def place(name: str) -> str:
        return name if beside is None or Path(name).is_absolute() or Path(name).exists() else str(beside / name)

    def told(text: str) -> str:  # a split may be any word; where it is a file, the file's place
        return place(text) if beside is not None and (beside / text).exists() else text

    experts = {
        task: e.model_copy(update={"path": place(e.path), "valid": told(e.valid), "test": told(e.test)})
        for task, e in spec.experts.items()
    }
    return spec.model_copy(update={"base": place(spec.base), "experts": experts})


def load(path: str | Path) -> CheckpointStudy:
    """A study file. Relative paths are looked for beside the file."""
    spec = parse(read_yaml(path, what="study file"), where=str(path), beside=Path(path).parent)
    return spec if spec.name else spec.model_copy(update={"name": Path(path).stem})
