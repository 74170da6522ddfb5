"""The greedy soup: add a model to the average where the validation score does not fall.

Wortsman et al. "Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing inference
time", ICML 2022, https://arxiv.org/abs/2203.05482, recipe 1.

    sort the models by their validation score; start with the best; take in the next one iff score(average) ≥ the best so far

By construction the soup's score is at least the best single model's. The score is the caller's and must come from validation
data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from pluribus.errors import BadInput, NonFinite


def greedy_soup(
    average: Callable[[list[str]], Mapping[str, Tensor]], tasks: list[str], score: Callable[[Mapping[str, Tensor]], float]
) -> tuple[list[str], dict[str, Any]]:
    """The experts in the soup, in the order they went in, and the record of the scores.

    average: the average of the experts named. tasks: all of them. score: of merged tensors, higher is better.
    """
    if not callable(score):
        raise BadInput("greedy_soup needs a validation score", where="score", remedy="give score(tensors) → float, up is good")

    def scored(chosen: list[str]) -> float:
        value = float(score(average(chosen)))
        if value != value:
            raise NonFinite("the score is NaN", where=f"average of {', '.join(chosen)}", remedy="look at the scoring function")
        return value

    single = {task: scored([task]) for task in tasks}
    order = sorted(tasks, key=lambda task: -single[task])
    soup, best = [order[0]], single[order[0]]
    for task in order[1:]:
        value = scored([*soup, task])
        if value >= best:
            soup.append(task)
            best = value
    return soup, {"single": single, "score": best}
