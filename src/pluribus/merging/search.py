"""Search the settings of a static merger on validation data (extra `tune`: Optuna's TPE)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pluribus.errors import BadInput, require
from pluribus.merging.run import Merged, method_of, prepare
from pluribus.merging.stream import Engine

WEIGHT = "weight:"  # before a task's name in the space


@dataclass
class Found:
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
) -> Found:
    """The settings of `method` with the highest `score` of the merged tensors.

    space: by setting, (low, high) of a number (integers where both are) or a list of choices. "weight:TASK" is a task's weight.
    score: of a lazy mapping of merged tensors, higher is better; must come from validation data.
    """
    optuna = require("optuna", extra="tune", purpose="merge search")
    if trials < 1 or not space:
        raise BadInput("there is nothing to search", where="space", remedy="give a range, such as scale=0:1, and trials ≥ 1")
    for name, bounds in space.items():
        if isinstance(bounds, tuple) and (len(bounds) != 2 or not bounds[0] < bounds[1]):
            raise BadInput(f"the range of {name} is {bounds}", where="space", remedy="give LOW:HIGH")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    tried: list[tuple[dict[str, Any], float]] = []

    def chosen_by(trial: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, bounds in space.items():
            if isinstance(bounds, tuple):
                ask = trial.suggest_int if all(isinstance(b, int) for b in bounds) else trial.suggest_float
                found[name] = ask(name, *bounds)
            else:
                found[name] = trial.suggest_categorical(name, list(bounds))
        return found

    method_of(method, {n: bounds[0] for n, bounds in space.items() if not n.startswith(WEIGHT)})
    for _ in range(trials):
        trial = study.ask()
        chosen = chosen_by(trial)
        weights = {n.removeprefix(WEIGHT): v for n, v in chosen.items() if n.startswith(WEIGHT)}
        settings = {n: v for n, v in chosen.items() if not n.startswith(WEIGHT)}
        plan, made, each = prepare(base, experts, method, weights=weights or None, heads=heads, keep=keep, settings=settings)
        given = score(Merged(plan, Engine(plan.base, plan.experts, plan.merged, made, weights=each, seed=seed)))
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
    return Found(best[0], best[1], tried)
