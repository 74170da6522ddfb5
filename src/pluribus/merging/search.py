"""Search the settings of a static merger on validation data (extra `tune`: Optuna's TPE)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints

from torch import Tensor

from pluribus.errors import BadInput, require
from pluribus.merging.run import MergedTensors, builder, is_static, method_of, prepare
from pluribus.merging.stream import Engine

WEIGHT = "weight:"  # before a task's name in the space


@dataclass
class SearchResult:
    """The best settings, their score, and every trial in order: (settings, score)."""

    settings: dict[str, Any]
    score: float
    trials: list[tuple[dict[str, Any], float]]


def search(
    base: Any,
    experts: Any,
    method: str,
    space: Mapping[str, Any],
    score: Callable[[Mapping[str, Tensor]], float],
    *,
    trials: int = 30,
    seed: int = 0,
    heads: Any = (),
    keep: Any = (),
) -> SearchResult:
    """The settings of `method` with the highest `score` of the merged tensors.

    space: by setting, (low, high) of a number (whole where the setting is) or a list of choices. "weight:TASK" is a weight.
    score: of a lazy mapping of merged tensors, higher is better; must come from validation data.

    Both ends of every range are checked before the first trial.
    """
    optuna = require("optuna", extra="tune", purpose="merge search")
    if trials < 1 or not space:
        raise BadInput("there is nothing to search", where="space", remedy="give a range, such as scale=0:1, and trials ≥ 1")
    for name, bounds in space.items():
        if isinstance(bounds, tuple) and (len(bounds) != 2 or not bounds[0] < bounds[1]):
            raise BadInput(f"the range of {name} is {bounds}", where="space", remedy="give LOW:HIGH")
    made_by = builder(method)
    if not is_static(method):
        what = f"{method} learns from data, and only what is a function of the weights is searched here"
        raise BadInput(what, where="method", remedy="call it from Python, or take a static merger")
    hints = get_type_hints(made_by)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    tried: list[tuple[dict[str, Any], float]] = []

    def chosen_by(trial: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, bounds in space.items():
            if isinstance(bounds, tuple):
                ask = trial.suggest_int if _whole(hints.get(name)) else trial.suggest_float
                found[name] = ask(name, *bounds)
            else:
                found[name] = trial.suggest_categorical(name, list(bounds))
        return found

    first = {name: bounds[0] for name, bounds in space.items() if not name.startswith(WEIGHT)}
    for name in first:
        for bound in space[name]:
            method_of(method, {**first, name: bound})
    for _ in range(trials):
        trial = study.ask()
        chosen = chosen_by(trial)
        weights = {n.removeprefix(WEIGHT): v for n, v in chosen.items() if n.startswith(WEIGHT)}
        settings = {n: v for n, v in chosen.items() if not n.startswith(WEIGHT)}
        plan, made, each = prepare(base, experts, method, weights=weights or None, heads=heads, keep=keep, settings=settings)
        tensors = MergedTensors(plan, Engine(plan.base, plan.experts, plan.merged, made, weights=each, seed=seed))
        try:
            given = score(tensors)
        except BadInput:  # of the merge: the score only reads it
            raise
        except Exception as error:
            what = f"raised {type(error).__name__}: {str(error)[:300]}"
            raise BadInput(what, where="score", remedy="mend it") from error
        try:
            value = float(given)
        except (TypeError, ValueError) as error:
            raise BadInput(f"gave {given!r:.60}, not a number", where="score", remedy="return one number, up is good") from error
        tried.append((chosen, value))
        if math.isfinite(value):
            study.tell(trial, value)
        else:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
    good = [row for row in tried if math.isfinite(row[1])]
    if not good:
        raise BadInput(f"none of {trials} trials has a finite score", where="score", remedy="check it on the base model")
    best = max(good, key=lambda row: row[1])
    return SearchResult(best[0], best[1], tried)


def _whole(hint: Any) -> bool:
    """Whether a setting so annotated takes whole numbers alone."""
    kinds = get_args(hint) or (hint,)
    return int in kinds and float not in kinds
