"""Roads over a frozen backbone with adapters inside: shared, one a task, shared and task-specific, routed mixtures.

A row that several tasks ask for runs once for each of them where adapters differ by task, all in one forward and one backward
pass; where every task has the same adapter, a row runs once. What trains are adapters and heads (and the encoder of other
columns, where there are any); the backbone keeps its weights.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from pluribus import catalog
from pluribus.data import Rows
from pluribus.data.prepared import Prepared
from pluribus.modeling import LogUniform, Outputs, SearchSpace
from pluribus.modeling.model import Slices
from pluribus.tasks import Task
from pluribus.text.candidates import DEFAULTS, Outcome, Ready, TextCandidate, run, trained
from pluribus.text.encoder import Pooling, TextEncoder
from pluribus.text.model import TextModel, at
from pluribus.training import Callback

if TYPE_CHECKING:
    from pluribus.data.columns import FittedColumns

EVERYBODY = "everybody"
"""The slot of adapters that all tasks share."""
TRAINED = ("adapters.", "heads.", "sharing.", "encoder.table.")


class AdaptedText(TextModel):
    """A text model with adapters on its backbone.

    adapter: {"name", "settings"} of the catalog's family "adapter". routed: whether tasks have adapters of their own (one slot a
    task); otherwise one slot serves all.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        encoder: TextEncoder,
        sharing: Mapping[str, Any] | None = None,
        *,
        adapter: Mapping[str, Any],
        routed: bool,
    ) -> None:
        super().__init__(tasks, encoder, sharing)
        self.routed = routed
        slots = list(self.tasks) if routed else [EVERYBODY]
        made = catalog.get("adapter", adapter["name"]).resolve()
        self.adapters: Any = made(encoder.backbone, slots, **adapter["settings"])

    @classmethod
    def of(
        cls,
        tasks: Sequence[Task],
        columns: FittedColumns,
        *,
        adapter: Mapping[str, Any] | None = None,
        routed: bool = True,
        backbone: Mapping[str, Any] | None = None,
        pooling: Pooling = "mean",
        table: Mapping[str, Any] | None = None,
        sharing: Mapping[str, Any] | None = None,
    ) -> AdaptedText:
        """A freshly initialised model; adapter: default LoRA. The other settings are those of `TextModel.of`."""
        encoder = TextEncoder.of(columns, backbone=backbone, pooling=pooling, table=table)
        return cls(tasks, encoder, sharing, adapter=adapter or {"name": "lora", "settings": {}}, routed=routed)

    def forward(self, inputs: Any, rows: Rows | None = None, context: Mapping[str, Tensor] | None = None) -> Outputs:
        from pluribus.adapters import route

        rows, context = self.requested(rows), context or {}
        if self.training and hasattr(self.adapters, "balance"):
            self.adapters.balance()  # by the loads of the step before
        if not self.routed:
            with route(EVERYBODY) as taken:
                features = self.encoder(inputs, context)
            return self._with_penalty(self.outputs(features, rows), taken)
        names, n_rows = list(rows), len(inputs["numeric"])
        every = torch.arange(n_rows, device=inputs["numeric"].device)
        places = [every if (where := rows[name]) is None else where for name in names]
        whole = torch.cat(places or [every[:0]])
        if not len(whole):  # nobody is asked for: as whichever task
            with route(torch.zeros(max(1, n_rows), dtype=torch.int64, device=whole.device), [next(iter(self.tasks))]):
                return self.outputs(self.encoder(inputs, context), rows)
        ids = torch.repeat_interleave(torch.arange(len(names)), torch.tensor([len(p) for p in places]))
        same = len(whole) == n_rows and bool((whole == every).all())
        expanded = inputs if same else at(inputs, whole)
        with route(ids.to(whole.device), names) as taken:
            features = self.encoder(expanded, {name: value[whole] for name, value in context.items()})
        sizes = [len(p) for p in places]
        cuts = zip(names, torch.split(torch.arange(len(whole), device=whole.device), sizes))
        each = [self.outputs(features.at(cut), {name: None}) for name, cut in cuts]
        outputs = Outputs(
            {name: value for one in each for name, value in one.items()},
            shared=tuple(features.per(form).main for form in dict.fromkeys(self.form[name] for name in names)),
            places={name: mask for one in each for name, mask in one.places.items()},
        )
        return self._with_penalty(outputs, taken)

    def _with_penalty(self, outputs: Outputs, taken: Any) -> Outputs:
        """The auxiliary losses that adapters left on the route (a mixture's load balance)."""
        if not taken.penalties:
            return outputs
        return replace(outputs, penalties={**outputs.penalties, "adapters": taken.penalty()})

    def shared_parameters(self) -> list[nn.Parameter]:
        """What every task's features come from and trains: the adapters' common part."""
        own = self.adapters.stacked() if self.routed else {}
        return [p for name, p in self.adapters.named_parameters() if name not in own]

    def parameters_of(self, task: str) -> Slices:
        found = super().parameters_of(task)
        if self.routed:
            named = dict(self.adapters.named_parameters())
            found += [(named[name], where) for name, where in self.adapters.slices(task).items()]
        return found


class _BestOfEach(Callback):
    """Keeps what belongs to each task as it was after that task's best epoch: specialists stop for themselves."""

    def __init__(self, model: AdaptedText) -> None:
        self.model = model
        self.best: dict[str, float] = {}
        self.kept: dict[str, list[Tensor]] = {}

    def epoch(self, record: dict[str, Any]) -> None:
        for name, score in record["scores"].items():
            task = self.model.tasks[name]
            value = score if task.main_metric.direction == "max" else -score
            if name not in self.kept or value > self.best[name]:
                self.best[name] = value
                self.kept[name] = [p.detach()[where].clone() for p, where in self.model.parameters_of(name)]

    @torch.no_grad()
    def restore(self) -> None:
        for name, values in self.kept.items():
            for (p, where), value in zip(self.model.parameters_of(name), values):
                p[where] = value


ADAPTED: dict[str, Any] = {**DEFAULTS, "where": "all", "rank": 8}
"""where: the linear maps that adapters change, see `pluribus.adapters.sites`."""


class _AdaptedCandidate(TextCandidate):
    """A frozen backbone with one method's adapters.

    method: its name in the catalog. routed: whether tasks have adapters of their own.
    """

    road = "adapt"
    method: ClassVar[str]
    routed: ClassVar[bool] = True
    defaults: ClassVar[Mapping[str, Any]] = ADAPTED
    space = SearchSpace({"lr": LogUniform(1e-4, 1e-2), "weight_decay": LogUniform(1e-4, 1e-1)})
    rates = (2e-3, 3e-3)
    passes = 2.5

    def estimate(self, data: Prepared) -> float:
        """Rows that several tasks label run once for each."""
        labels = sum(len(data.labelled(task.name, "train")) for task in data.tasks)
        times = max(1.0, labels / max(1, len(data.parts["train"]))) if self.routed else 1.0
        return times * super().estimate(data)

    own: ClassVar[tuple[str, ...]] = ("where", "rank")
    """Those of the candidate's settings that go to the adapters."""

    def adapter(self, data: Prepared) -> dict[str, Any]:
        """{"name", "settings"} of the adapters."""
        return {"name": self.method, "settings": {name: self.settings[name] for name in self.own}}

    def train(self, ready: Ready, deadline: float, seed: int) -> Outcome:
        more: dict[str, Any] = {"name": "adapted_text", "adapter": self.adapter(ready.data), "routed": self.routed}
        model = ready.model(**more)
        assert isinstance(model, AdaptedText)
        history = run(model, self.stage(ready, trainable=TRAINED, rates=self.own_rates()), ready.data, deadline, seed)
        return Outcome.joint(ready, model, history, trained(model, TRAINED), **more)

    def own_rates(self) -> dict[str, float]:
        """Learning rates of parameters that do not learn at the rate of the others, see `Stage.rates`."""
        return {}


class TextLoRAShared(_AdaptedCandidate):
    """One low-rank update of the backbone that all tasks train and read."""

    name = "text_lora_shared"
    label = "Text: LoRA shared by all tasks"
    method = "lora"
    routed = False


class TextLoRAPerTask(_AdaptedCandidate):
    """A low-rank update for each task and nothing that trains in common: specialists at the cost of one backbone. All train in
    one pass; each keeps the weights of its own best epoch. Columns beside the text are not read: their encoder would be shared.
    """

    name = "text_lora_per_task"
    label = "Text: LoRA, one per task"
    method = "lora"
    per_task = True

    def train(self, ready: Ready, deadline: float, seed: int) -> Outcome:
        ready.settings["table"] = None
        more: dict[str, Any] = {"name": "adapted_text", "adapter": self.adapter(ready.data), "routed": True}
        model = ready.model(**more)
        assert isinstance(model, AdaptedText)
        best = _BestOfEach(model)
        stage = self.stage(ready, trainable=TRAINED, task_patience=self.settings["patience"], patience=None)
        history = run(model, stage, ready.data, deadline, seed, best)
        best.restore()
        return Outcome.joint(ready, model, history, trained(model, TRAINED), **more)


class TextMTLoRA(_AdaptedCandidate):
    """A low-rank update that all tasks share, and one of each task's own in the last block."""

    name = "text_mtlora"
    label = "Text: LoRA shared and task-specific (MTLoRA)"
    method = "mtlora"
    own = ("where", "rank", "task_rank")
    defaults: ClassVar[Mapping[str, Any]] = {**ADAPTED, "task_rank": 4}


class TextMHR(_AdaptedCandidate):
    """An inventory of low-rank skills that all tasks share; each task mixes their parameters, block by block (MHR). The routing
    learns at a rate of its own, a hundred times the skills' in the paper."""

    name = "text_mhr"
    label = "Text: multi-head adapter routing"
    method = "mhr"
    defaults: ClassVar[Mapping[str, Any]] = {**ADAPTED, "rank": 4, "skills": 4, "blocks": 4, "routing_lr": 0.1}

    def own_rates(self) -> dict[str, float]:
        return {"adapters.*.Z": self.settings["routing_lr"]}

    def adapter(self, data: Prepared) -> dict[str, Any]:
        settings = {name: self.settings[name] for name in ("where", "rank", "skills")}
        return {"name": self.method, "settings": {**settings, "heads": self.settings["blocks"]}}


class TextSMoRA(_AdaptedCandidate):
    """One low-rank update for all tasks of which every token uses a few ranks; no word about tasks inside."""

    name = "text_smora"
    label = "Text: single-ranked mixture of LoRA experts"
    method = "smora"
    routed = False
    own = ("where", "rank", "active")
    defaults: ClassVar[Mapping[str, Any]] = {**ADAPTED, "rank": 16, "active": 4}


class TextScaLearn(_AdaptedCandidate):
    """Two stages: a bottleneck adapter for each task, all in one pass; then, those being frozen, each task learns how much of
    every adapter it wants, at the authors' learning rate, and a fresh head. Each stage has half of the budget."""

    name = "text_scalearn"
    label = "Text: ScaLearn over the tasks' adapters"
    method = "scalearn"
    defaults: ClassVar[Mapping[str, Any]] = {**DEFAULTS, "reduction": 16.0, "dropout_omega": 0.3, "omega_lr": 6e-3}
    passes = 5.0

    def adapter(self, data: Prepared) -> dict[str, Any]:
        return {"name": "bottleneck", "settings": {"reduction": self.settings["reduction"]}}

    def train(self, ready: Ready, deadline: float, seed: int) -> Outcome:
        first = ready.model(name="adapted_text", adapter=self.adapter(ready.data), routed=True)
        assert isinstance(first, AdaptedText)
        now = time.process_time()
        before = run(first, self.stage(ready, trainable=TRAINED), ready.data, now + (deadline - now) / 2, seed)
        sources = {"tasks": list(first.adapters.tasks), **first.adapters.settings}
        first.adapters.detach()
        adapter = {"name": self.method, "settings": {"sources": sources, "dropout": self.settings["dropout_omega"]}}
        more: dict[str, Any] = {"name": "adapted_text", "adapter": adapter, "routed": True}
        model = ready.model(**more)
        assert isinstance(model, AdaptedText)
        model.adapters.sources.load_state_dict(first.adapters.state_dict())
        ends = ("adapters.sites.", *TRAINED[1:])
        rates = {"adapters.*.omega": self.settings["omega_lr"]}
        history = run(model, self.stage(ready, trainable=ends, rates=rates), ready.data, deadline, seed)
        found = Outcome.joint(ready, model, history, trained(model, ends), **more)
        short = {*before.undertrained(), *found.undertrained}
        found.undertrained = [task.name for task in ready.data.tasks if task.name in short]
        return found
