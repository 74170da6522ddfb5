"""Funnels: objectives for tasks that follow one another (`Task(after=…)`): exposed → clicked → bought.

A child is observed only where its parent happened, so its own labelled rows are a selected sample. With p_k = σ(z_k) =
P(step k | step k − 1) and P_k = p_1 ⋯ p_k over ALL exposures:

- `ESMM` (Ma, Zhao, Huang, Wang, Hu, Zhu, Gai, SIGIR 2018, equation 4):  Σ_k BCE(P_k, y_k),  y_k = 1 iff steps 1 … k all happened.
- `ESCM2` (Wang, Chang, Liu, Huang, Chen, Yu, Li, Chu, SIGIR 2022): beside it the conditional step's own risk over all exposures,
  with o = parent happened, e = BCE(p_k, r), π = sg(P_parent) held above 1/clip:
      ips:  mean_all[ o e / π ]            dr:  mean_all[ ê + o (e − ê)/π ] + mean_all[ o (e − ê)² / π ]
  per child λ_g·(entire space) + λ_c·(that).
- `Calibrated` (AITM: Xi, Chen, Yan, Zhang, Zhu, Zhuang, Chen, KDD 2021, equations 10, 11): outputs mean P_k themselves;
  Σ_k BCE(P_k, y_k) + α mean_all Σ_k max(P_k − P_{k−1}, 0).

Where public code differs: one divides by P_parent times the clicks and multiplies by the batch, which is the mean over all
exposures; its imputed error is a probability although e is unbounded, ours is a softplus (`pluribus.sharing.Imputed`). Most open
AITMs leave the calibrator out. Products are taken in log space. A cell that is missing (not "not applicable") where its parent
happened leaves its row out; a row whose parent is 0 counts as a 0 of every later step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pluribus.data import Batch, Labels, Rows
from pluribus.errors import BadInput, unknown
from pluribus.modeling.model import Encoder, MultiTaskModel, Outputs, Sharing
from pluribus.modeling.objective import Losses, Objective
from pluribus.tasks import Task
from pluribus.tasks.task import check_graph


def chains(tasks: Sequence[Task]) -> dict[str, tuple[str, ...]]:
    """Task → its ancestors from the first step down to itself. Cycles, unknown or several parents, and steps that are not
    binary are `BadInput`s."""
    by_name = {task.name: task for task in tasks}
    found: dict[str, tuple[str, ...]] = {}
    for name in check_graph(tasks):
        parents = by_name[name].after
        if len(parents) > 1:
            remedy = "name the last step only; its own parents follow"
            raise BadInput(f"a step of a funnel has one parent, not {len(parents)}", where=f"task {name!r}, after", remedy=remedy)
        for step in (*parents, name) if parents else ():
            if not by_name[step].record.positive:
                raise BadInput(f"a step of a funnel is binary, not {by_name[step].kind}", where=f"task {step!r}")
        found[name] = (*(found[parents[0]] if parents else ()), name)
    return found


def entire_space(chain: Sequence[str], batch: Batch) -> Labels | None:
    """Labels of "all steps of the chain happened", at every row where that is known; None where it is known nowhere.

    A row weighs what its cell of the step that decided it weighs: the first that did not happen, or the last. A child that
    happened where its parent did not is a `BadInput`.
    """
    some = next(iter(batch.labels.values())).values if batch.labels else torch.zeros(0)
    alive = torch.ones(batch.n_rows, dtype=torch.bool, device=some.device)
    over = ~alive
    before: tuple[str, Tensor] | None = None
    weight: Tensor | None = None
    for step in chain:
        happened = torch.full((batch.n_rows,), torch.nan, device=some.device)
        if step in batch.labels:
            labels = batch.labels[step]
            happened[labels.rows] = labels.values.to(happened.dtype)
            if labels.weight is not None:
                weight = torch.ones_like(happened) if weight is None else weight
                reached = alive[labels.rows]
                weight[labels.rows[reached]] = labels.weight[reached].to(happened.dtype)
        if before is not None and bool(((happened == 1) & (before[1] == 0)).any()):
            remedy = f"a row's {step!r} can only be 1 where {before[0]!r} is 1"
            raise BadInput(f"is 1 in a row whose {before[0]!r} is 0", where=f"task {step!r}", remedy=remedy)
        over |= alive & (happened == 0)
        alive &= happened == 1
        before = (step, happened)
    rows = (over | alive).nonzero()[:, 0]
    if not len(rows):
        return None
    return Labels(alive[rows].float(), rows, weight=None if weight is None else weight[rows])


def log_joint(chain: Sequence[str], outputs: Mapping[str, Tensor]) -> Tensor:
    """log P_k = Σ log σ(z) over the chain, per row."""
    return torch.stack([F.logsigmoid(outputs[step][:, 0]) for step in chain]).sum(0)


def log1mexp(x: Tensor) -> Tensor:
    """log(1 − eˣ) for x < 0, exact at both ends (Mächler 2012); x is held below −1e-7, so that values and slopes stay finite."""
    x = x.clamp_max(-1e-7)
    near = x > -0.6931472
    return torch.where(
        near, torch.log(-torch.expm1(torch.where(near, x, -1.0))), torch.log1p(-torch.exp(torch.where(near, -1.0, x)))
    )


def conditional(whole: Tensor, before: Tensor) -> Tensor:
    """Logits of P_k / P_{k−1}, cut just below 1, from those of P_k and P_{k−1}."""
    log_p = (F.logsigmoid(whole) - F.logsigmoid(before)).clamp_max(-1e-7)
    return log_p - log1mexp(log_p)


def whole_way(tasks: Sequence[Task], predictions: Mapping[str, NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
    """P(all steps up to the task) over all exposures, from predictions of the steps (`TASK__p` of a fitted funnel): the product
    along each chain. Tasks that follow none are handed on as they are; a step that is not there is a `BadInput`."""
    found = {}
    for name, value in predictions.items():
        chain = chains(tasks)[name]
        for step in chain[:-1]:
            if step not in predictions:
                raise BadInput(f"no prediction of {step!r}", where=f"task {name!r}", remedy="predict the steps before it too")
            value = value * predictions[step]
        found[name] = value
    return found


def joint_loss(chain: Sequence[str], outputs: Mapping[str, Tensor], labels: Labels) -> Tensor:
    """BCE(P_k, y_k) per cell of the entire space; `outputs` at every row."""
    if len(chain) == 1:
        return F.binary_cross_entropy_with_logits(outputs[chain[0]][labels.rows, 0], labels.values, reduction="none")
    log_p = log_joint(chain, outputs)[labels.rows]
    return -(labels.values * log_p + (1 - labels.values) * log1mexp(log_p))


def ips(error: Tensor, observed: Tensor, propensity: Tensor, clip: float | None = None) -> Tensor:
    """o e / π per row: its mean is the full space's mean error in expectation where π is right (and unclipped)."""
    floor = propensity if clip is None else propensity.clamp_min(1 / clip)
    return torch.where(observed, error / floor, torch.zeros_like(error))


def dr(error: Tensor, imputed: Tensor, observed: Tensor, propensity: Tensor, clip: float | None = None) -> Tensor:
    """ê + o (e − ê)/π per row: unbiased where π or ê is right."""
    return imputed + ips(error - imputed, observed, propensity, clip)


class WholeWay(MultiTaskModel):
    """A model whose heads give logits of P(whole way): the objective finds them in `extra["whole"]`, and the outputs are the
    logits of P(step | step before) that follow from them (P_k / P_{k−1}, cut at 1)."""

    def __init__(self, tasks: Sequence[Task], encoder: Encoder, sharing: Sharing) -> None:
        super().__init__(tasks, encoder, sharing)
        self.chains = chains(tasks)

    def forward(self, inputs: Any, rows: Rows | None = None, context: Mapping[str, Tensor] | None = None) -> Outputs:
        rows = self.requested(rows)
        needed: dict[str, Tensor | None] = dict(rows)
        for name in rows:
            if len(self.chains[name]) > 1:  # the step before is needed too, at any row
                needed |= dict.fromkeys(self.chains[name][-2:])
        outputs = super().forward(inputs, needed, context)
        found = {}
        for name, wanted in rows.items():
            value = outputs[name]
            if len(self.chains[name]) > 1:
                value = conditional(value, outputs[self.chains[name][-2]])
            found[name] = value if wanted is None or needed[name] is not None else value[wanted]
        extra = {**outputs.extra, "whole": outputs.tasks}
        return Outputs(found, shared=outputs.shared, penalties=outputs.penalties, extra=extra)


class _Funnel(Objective):
    """Shares out the tasks: steps of a funnel are judged in the entire space, the others as ever."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.chains = chains(tasks)
        parents = {step for chain in self.chains.values() for step in chain[:-1]}
        self.steps = {name: chain for name, chain in self.chains.items() if len(chain) > 1 or name in parents}
        if not self.steps:
            remedy = "declare what follows what: Task(…, after='click')"
            raise BadInput("no task comes after another", where=type(self).__name__, remedy=remedy)

    def _labels(self, batch: Batch) -> dict[str, Labels]:
        found: dict[str, Labels] = {}
        for name, labels in batch.labels.items():
            if name not in self.chains:
                raise unknown("task", name, self.chains, where=type(self).__name__)
            if name not in self.steps:
                found[name] = labels
        for name, chain in self.steps.items():
            whole = entire_space(chain, batch) if name in batch.labels else None
            if whole is not None:
                found[name] = whole
        return {name: found[name] for name in self.chains if name in found}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {
            name: labels.values.new_tensor(float(len(labels)), dtype=torch.float32)
            if labels.weight is None
            else labels.weight.sum()
            for name, labels in self._labels(batch).items()
        }

    def losses(self, model: MultiTaskModel, batch: Batch) -> Losses:
        labels = self._labels(batch)
        rows: dict[str, Tensor | None] = {}
        for name, one in labels.items():
            rows |= dict.fromkeys(self.steps[name]) if name in self.steps else {name: one.rows}
        outputs = model(batch.inputs, rows, batch.context)
        sums, counts = {}, self.counts(batch)
        for name, one in labels.items():
            if name in self.steps:
                cells = self.cells(name, outputs, one, batch)
            else:
                cells = model.heads.loss(name, outputs[name], one)
            sums[name] = cells.sum() if one.weight is None else (cells * one.weight).sum()
        penalties = {**outputs.penalties, **self.penalties(outputs, labels)}
        return Losses(sums, counts, shared=outputs.shared, penalties=penalties)

    def cells(self, name: str, outputs: Outputs, labels: Labels, batch: Batch) -> Tensor:
        """Loss of one step per cell of its entire space; `outputs` of all its steps at every row."""
        return joint_loss(self.steps[name], outputs, labels)

    def penalties(self, outputs: Outputs, labels: Mapping[str, Labels]) -> dict[str, Tensor]:
        return {}


class ESMM(_Funnel):
    """tasks: all of the model's; `after` says what follows what. Outputs stay conditional: σ(z_k) = P(step k | step k − 1)."""


class ESCM2(_Funnel):
    """tasks: all of the model's. risk: "ips" or "dr" ("dr" needs a model whose sharing is `pluribus.sharing.Imputed`).
    lambda_c, lambda_g: of the corrected conditional risk and of the entire space's loss, for children. clip: largest 1/π."""

    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        risk: Literal["ips", "dr"] = "ips",
        lambda_c: float = 0.1,
        lambda_g: float = 1.0,
        clip: float = 15.0,
    ) -> None:
        super().__init__(tasks)
        if risk not in ("ips", "dr"):
            raise unknown("risk", risk, ("ips", "dr"), where="ESCM2")
        if not clip >= 1:
            raise BadInput(f"clip must be at least 1, not {clip}", where="ESCM2")
        self.risk, self.lambda_c, self.lambda_g, self.clip = risk, lambda_c, lambda_g, clip

    def cells(self, name: str, outputs: Outputs, labels: Labels, batch: Batch) -> Tensor:
        chain = self.steps[name]
        joint = joint_loss(chain, outputs, labels)
        if len(chain) == 1:
            return joint
        parent = entire_space(chain[:-1], batch)
        assert parent is not None
        happened = torch.zeros(batch.n_rows, dtype=torch.bool, device=joint.device)
        happened[parent.rows] = parent.values == 1
        observed = happened[labels.rows]
        propensity = log_joint(chain[:-1], outputs)[labels.rows].exp().detach()
        error = F.binary_cross_entropy_with_logits(outputs[name][labels.rows, 0], labels.values, reduction="none")
        if self.risk == "ips":
            risk = ips(error, observed, propensity, self.clip)
        else:
            imputed = outputs.extra.get("imputed", {}).get(name)
            if imputed is None:
                remedy = "give the model pluribus.sharing.Imputed around its sharing"
                raise BadInput("the doubly robust risk needs an imputed error", where=f"task {name!r}", remedy=remedy)
            imputed = imputed[labels.rows]
            risk = dr(error, imputed, observed, propensity, self.clip)
            risk = risk + ips((error - imputed).square(), observed, propensity, self.clip)
        return self.lambda_g * joint + self.lambda_c * risk


class Calibrated(_Funnel):
    """AITM's objective: every logit is of the probability of the whole way, σ(z_k) = P_k: the outputs, or `extra["whole"]` of a
    model whose outputs are something else. alpha weighs the behavioural calibrator, which is 0 iff P falls along every chain."""

    def __init__(self, tasks: Sequence[Task], *, alpha: float = 0.6) -> None:
        super().__init__(tasks)
        if not alpha >= 0:
            raise BadInput(f"alpha must not be negative, not {alpha}", where="Calibrated")
        self.alpha = alpha

    def cells(self, name: str, outputs: Outputs, labels: Labels, batch: Batch) -> Tensor:
        return joint_loss(self.steps[name][-1:], outputs.extra.get("whole", outputs), labels)

    def penalties(self, outputs: Outputs, labels: Mapping[str, Labels]) -> dict[str, Tensor]:
        rises, whole = [], outputs.extra.get("whole", outputs)
        for name in labels:
            if self.alpha and len(self.chains[name]) > 1:
                child, parent = (torch.sigmoid(whole[step][:, 0]) for step in (name, self.chains[name][-2]))
                rises.append(F.relu(child - parent).mean())
        return {"calibrator": self.alpha * torch.stack(rises).sum()} if rises else {}
