"""The evaluator of a study of checkpoints: somebody's own code, how it is named, and what it must answer.

`evaluate(model, task, split)` gets the model of one task (the transformers module where the experts' folders have configurations,
else the tensors by name), the task's name, and what the study file says under `valid` or `test`. It gives a DataFrame of `id`,
`score` and perhaps `group`, whose mean score is the metric.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pluribus.errors import BadInput, unknown
from pluribus.files import sha256

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("id", "score", "group")

Evaluate = Callable[[Any, str, str], Any]


def asked(evaluate: Evaluate, model: Any, task: str, split: str, *, where: str) -> pd.DataFrame:
    """The evaluator's answer about one task, checked.

    Parameters
    ----------
    evaluate : callable
        The evaluator.
    model : module or dict of str to Tensor
        The model of the task.
    task : str
        The task's name.
    split : str
        What the study file says of the split.
    where : str
        Who was asked about what, for messages.

    Returns
    -------
    DataFrame
        Columns id (str), score (float) and, where the evaluator gives it, group (str); sorted by id.

    Raises
    ------
    BadInput
        The evaluator raises, or its answer is no table of scores.
    """
    import pandas as pd

    try:
        frame = evaluate(model, task, split)
    except Exception as error:
        what = f"raised {type(error).__name__}: {str(error)[:300]}"
        raise BadInput(what, where=where, remedy="mend the evaluator") from error
    remedy = "give a DataFrame with one row a test row: id, score, and group where rows belong together"
    if not isinstance(frame, pd.DataFrame):
        raise BadInput(f"gave {type(frame).__name__}, not a DataFrame", where=where, remedy=remedy)
    for name in ("id", "score"):
        if name not in frame.columns:
            raise BadInput(f"gave no column {name!r}", where=where, remedy=remedy)
    for name in frame.columns:
        if name not in COLUMNS:
            raise unknown("column", str(name), COLUMNS, where=where)
    frame = frame.reset_index(drop=True)
    if not len(frame):
        raise BadInput("gave no row", where=where, remedy=remedy)
    if frame["id"].isna().any() or frame["id"].duplicated().any():
        shown = frame["id"][frame["id"].duplicated() | frame["id"].isna()].iloc[0]
        raise BadInput(f"gave the id '{shown}' twice, or none", where=where, remedy="give each row an id of its own")
    score = pd.to_numeric(frame["score"], errors="coerce").astype(float)
    if not np.isfinite(score).all():
        shown = frame["id"][~np.isfinite(score)].iloc[0]
        raise BadInput(f"gave no finite score for id '{shown}'", where=where, remedy="leave that row out for every model")
    found = pd.DataFrame({"id": frame["id"].astype(str), "score": score})
    if "group" in frame.columns:
        if frame["group"].isna().any():
            raise BadInput("gave rows without a group", where=where, remedy="give every row one, or leave the column out")
        found["group"] = frame["group"].astype(str)
    return found.sort_values("id", kind="stable", ignore_index=True)


def check_same_rows(found: pd.DataFrame, known: pd.DataFrame, *, where: str) -> None:
    """Refuse scores of other rows, or in other groups, than the experts' (`known`)."""
    if not known["id"].equals(found["id"]):
        odd = sorted(set(known["id"]) ^ set(found["id"]))
        what = f"gave other rows than for the expert ({len(odd)} ids differ, {odd[0]!r} among them)"
        raise BadInput(what, where=where, remedy="score the same rows for every model")
    if not known.get("group", known["id"]).equals(found.get("group", found["id"])):
        raise BadInput("gave other groups than for the expert", where=where, remedy="a row's group is the row's own")


def code_of(place: str, option: str = "--evaluate") -> tuple[Callable[..., Any], str]:
    """`FILE.py:FUNCTION` as the function and its file's hash: code named by the one who types the command."""
    import importlib.util
    import sys

    file, _, name = place.rpartition(":")
    path = Path(file)
    if not file or path.suffix != ".py" or not path.is_file():
        raise BadInput("is not FILE.py:FUNCTION", where=f"{option} {place}", remedy="name a Python file and a function in it")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, os.fspath(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise BadInput(f"cannot be run ({type(error).__name__}: {str(error)[:200]})", where=file, remedy="mend it") from error
    if not callable(getattr(module, name, None)):
        raise unknown("function", name, [n for n in vars(module) if not n.startswith("_")], where=file)
    return getattr(module, name), sha256(path)
