"""A hub: one text backbone, hundreds of adapters and heads, rows of different tasks in one batch, under a memory budget.

Each task is a low-rank update of the backbone and a linear head, in a file of its own; `pluribus.adapters.Pool` brings in what a
batch needs and evicts what was least recently used. Tasks are added and removed while the hub serves. It is a `Fitted`, so that
`pluribus serve`, `predict` and `load` take it as any other model.

    hub = TextHub.of(fitted, budget=64 << 20)         # from a model with a LoRA a task (`text_lora_per_task`)
    hub.add(Task("spam", "binary", classes=("no", "yes")), state, head)
    hub.save("hub")

What is served: classes, numbers, tags, and embeddings (`embed`). Generated text is not: `pluribus export --format peft` writes a
task's adapter in the layout that servers of generation read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from pluribus.adapters.lora import LoRA
from pluribus.adapters.pool import Pool
from pluribus.adapters.route import Route
from pluribus.data.prepared import Prepared
from pluribus.data.ragged import Ragged
from pluribus.errors import BadInput, unknown
from pluribus.modeling import Costs, Fitted
from pluribus.modeling.artefact.fitted import Wanted
from pluribus.tasks import Task
from pluribus.tasks.forms import joined
from pluribus.tasks.kinds.record import Predictions
from pluribus.text import backbones
from pluribus.text.adapted import AdaptedText
from pluribus.text.encoder import TextEncoder
from pluribus.text.model import CHUNK, at
from pluribus.text.network import TextNetwork, fill, read_weights, sized, taken, tokenised, word_counts
from pluribus.text.tokens import Tokenizer

if TYPE_CHECKING:
    from pluribus.data.columns import FittedColumns

BACKBONE = "backbone.safetensors"
MIB = 1 << 20


class TextHub(Fitted):
    """config: {"text", "max_length", "pooling", "backbone", "lora", "budget", "units"}; units: task → (mean, scale) of its
    target. encoder: over the backbone. store: task → its file, or its tensors where it was added in memory."""

    artefact = "text_hub"
    columns: FittedColumns

    def __init__(
        self,
        tasks: Sequence[Task],
        columns: FittedColumns,
        config: Mapping[str, Any],
        tokenizer: Tokenizer,
        encoder: TextEncoder,
        store: Mapping[str, Path | dict[str, Tensor]],
    ) -> None:
        super().__init__(tasks, columns)
        self.config, self.tokenizer, self.encoder = dict(config), tokenizer, encoder.eval()
        self.config["units"] = dict(config["units"])
        self.store = dict(store)
        first = self.tasks[0].name
        lora = LoRA(encoder.backbone, [first], **self.config["lora"])
        state, head = self._load(first)
        lora.load_task(first, state)
        self.pool = Pool(lora, budget=int(self.config["budget"]), load=self._load, known=list(self.store))
        self.pool.heads[first] = head

    @classmethod
    def of(cls, fitted: TextNetwork, *, budget: int = 256 * MIB) -> TextHub:
        """The hub of a fitted model that has a LoRA for each task and reads nothing but text."""
        model = fitted.models[0]
        lora = getattr(model, "adapters", None)
        if len(fitted.models) > 1 or not isinstance(model, AdaptedText) or not isinstance(lora, LoRA) or not model.routed:
            remedy = "train text_lora_per_task"
            raise BadInput("needs a model with one backbone and a LoRA for each task", where="hub", remedy=remedy)
        encoder = model.encoder
        assert isinstance(encoder, TextEncoder)
        if encoder.table is not None:
            raise BadInput("reads number and category columns too", where="hub", remedy="train it with beside=False")
        member = fitted.config["members"][0]["model"]
        store: dict[str, Path | dict[str, Tensor]] = {}
        units = {}
        for i, task in enumerate(fitted.tasks):
            place = model.heads.place[task.name]
            head = {"head.weight": model.heads.weight[place], "head.bias": model.heads.bias[place]}
            state = {f"adapter.{name}": value for name, value in lora.task_state(task.name).items()}
            store[task.name] = {name: value.detach().clone() for name, value in (state | head).items()}
            units[task.name] = (float(model.heads.mean[i]), float(model.heads.scale[i]))
        config = {
            "text": fitted.config["text"],
            "max_length": fitted.config["max_length"],
            "pooling": member["pooling"],
            "backbone": member["backbone"],
            "lora": member["adapter"]["settings"],
            "budget": budget,
            "units": units,
        }
        again = TextEncoder(backbones.empty(dict(member["backbone"])), pooling=member["pooling"])
        again.backbone.load_state_dict(encoder.backbone.state_dict())
        made = cls(fitted.tasks, fitted.columns, config, fitted.tokenizer, again, store)
        made.thresholds, made.calibration = dict(fitted.thresholds), dict(fitted.calibration)
        made.record = {key: fitted.record[key] for key in ("backbone", "seconds") if key in fitted.record}
        return made

    # Tasks come and go

    def add(
        self,
        task: Task,
        adapter: Mapping[str, Tensor],
        head: tuple[Tensor, Tensor],
        *,
        units: tuple[float, float] = (0.0, 1.0),
        threshold: float | None = None,
    ) -> None:
        """Add a task while the hub serves. adapter: as `LoRA.task_state`. head: weight [width of the task, d] and bias. units:
        mean and scale of a number's target."""
        if any(known.name == task.name for known in self.tasks):
            raise BadInput(f"task {task.name!r} is there already", where="hub", remedy="choose another name, or remove it")
        weight, bias = head
        if weight.shape != (task.width, self.encoder.width) or bias.shape != (task.width,):
            what = f"has shape {list(weight.shape)}, the task needs {[task.width, self.encoder.width]}"
            raise BadInput(what, where=f"head of {task.name!r}")
        wanted = self.pool.adapters.stacked()
        for name, tensor in wanted.items():
            if name not in adapter or adapter[name].shape != tensor.shape[1:]:
                what = "lacks a tensor of this base, or has another shape: " + repr(name)
                raise BadInput(what, where=f"adapter of {task.name!r}", remedy="it was made on another backbone, rank or place")
        self.store[task.name] = {
            **{f"adapter.{name}": adapter[name].detach().clone() for name in wanted},
            "head.weight": weight.detach().clone(),
            "head.bias": bias.detach().clone(),
        }
        self.config["units"][task.name] = units
        if threshold is not None:
            self.thresholds[task.name] = threshold
        self.pool.known.add(task.name)
        self.tasks = (*self.tasks, task)

    def remove(self, name: str) -> None:
        """Forget a task, in memory and in what `save` writes."""
        if name not in self.store:
            raise unknown("task", name, self.store, where="hub")
        if len(self.store) == 1:
            raise BadInput("a hub without tasks serves nothing", where="hub", remedy="add another task first")
        if name in self.pool.resident:
            self.pool.evict(name)
        self.pool.known.discard(name)
        del self.store[name]
        self.tasks = tuple(task for task in self.tasks if task.name != name)
        for held in (self.thresholds, self.calibration, self.config["units"]):
            held.pop(name, None)

    def _load(self, name: str) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor]]:
        held = self.store[name]
        tensors = read_weights(held) if isinstance(held, Path) else held
        state = {key.removeprefix("adapter."): value for key, value in tensors.items() if key.startswith("adapter.")}
        if "head.weight" not in tensors or not state:
            raise BadInput("lacks its adapter or its head", where=f"task {name!r}", remedy="restore the model folder")
        return state, (tensors["head.weight"], tensors["head.bias"])

    # Prediction

    def answer(self, data: Prepared, wanted: Wanted) -> dict[str, Predictions]:
        """Rows of different tasks at once: as few forward passes as lengths and the budget allow."""
        by_name = {task.name: task for task in self.tasks}
        words = any(by_name[name].record.beside == "text" for name in wanted)
        distinct = np.unique(np.concatenate([np.empty(0, np.int64), *wanted.values()]))
        found = {name: sized(by_name[name], torch.empty(0), np.empty(0, np.int64)) for name in wanted}
        if not len(distinct):
            return found
        ready = tokenised(taken(data, distinct), self.tokenizer, self.config["text"], words=words)
        inputs = ready.batch(torch.arange(len(distinct)), ()).inputs
        lengths = ready.ragged["text.tokens"].lengths
        counts = word_counts(ready, self.config["text"][0]) if words else np.empty(0, np.int64)
        for names in self._groups(wanted):
            pieces: dict[str, list[tuple[NDArray[np.int64], Predictions]]] = {name: [] for name in names}
            rows = np.concatenate([np.searchsorted(distinct, wanted[name]) for name in names])
            ids = np.repeat(np.arange(len(names)), [len(wanted[name]) for name in names])
            own = np.concatenate([np.arange(len(wanted[name])) for name in names])
            for some in _chunks(lengths[rows]):
                with torch.inference_mode(), self.pool.route(torch.from_numpy(ids[some]), names) as taken_:
                    features = self.encoder(at(inputs, torch.from_numpy(rows[some])), {})
                    for i, name in enumerate(names):
                        here = np.flatnonzero(ids[some] == i)
                        if len(here):
                            task = by_name[name]
                            value = self._answer(task, features, torch.from_numpy(here), taken_)
                            mine = rows[some][here]
                            pieces[name].append((own[some][here], sized(task, value, counts[mine] if words else mine)))
            for name, each in pieces.items():
                if each:
                    found[name] = joined([value for _, value in each])[np.argsort(np.concatenate([own for own, _ in each]))]
        return found

    def _answer(self, task: Task, features: Any, here: Tensor, route: Route) -> Tensor:
        weight, bias = self.pool.heads[task.name]
        main = features.per(task.record.per).main
        linked = task.record.link(torch.nn.functional.linear(main[here], weight, bias))
        mean, scale = self.config["units"][task.name]
        return linked * scale + mean if task.record.standardise else linked

    def _groups(self, wanted: Mapping[str, Any]) -> Iterator[list[str]]:
        """Tasks that fit into the budget together."""
        group: list[str] = []
        used = 0
        for task in self.tasks:
            if task.name not in wanted or not len(wanted[task.name]):
                continue
            need = self.pool.each + 4 * task.width * (self.encoder.width + 1)
            if group and (used + need > self.pool.budget or len(group) >= self.pool.room):
                yield group
                group, used = [], 0
            group.append(task.name)
            used += need
        if group:
            yield group

    def embed(self, texts: Sequence[str | None], task: str) -> NDArray[np.float32]:
        """Pooled features [n, d] of texts, as a task's adapter makes them."""
        ids = self.tokenizer.encode(texts)
        padded = Ragged(ids.ids, ids.starts).padded(torch.arange(len(texts)))
        batch = {"text.tokens": padded, "numeric": torch.zeros(len(texts), 0)}
        found = np.empty((len(texts), self.encoder.width), np.float32)
        for some in _chunks(np.diff(ids.starts)):
            inputs = at(batch, torch.from_numpy(some))
            with torch.inference_mode(), self.pool.route(task):
                found[some] = self.encoder(inputs, {}).main.numpy()
        return found

    def costs(self) -> Costs:
        """Parameters and bytes of everything; FLOPs of one row of 32 tokens through the backbone (adapters add little)."""
        backbone = sum(p.numel() for p in self.encoder.parameters())
        each = [self._load(name) for name in self.store]
        own = sum(sum(t.numel() for t in state.values()) + head[0].numel() + head[1].numel() for state, head in each)
        linear = sum(m.weight.numel() for m in self.encoder.modules() if isinstance(m, torch.nn.Linear))
        return Costs(backbone + own, 2.0 * 32 * linear, 4 * (backbone + own), float(self.record.get("seconds", 0.0)))

    # Files

    def write(self, folder: Path) -> dict[str, Any]:
        state = {name: value.contiguous().clone() for name, value in self.encoder.state_dict().items()}
        save_file(state, folder / BACKBONE)
        self.tokenizer.write(folder)
        (folder / "tasks").mkdir()
        files = {}
        for i, task in enumerate(self.tasks):
            held = self.store[task.name]
            tensors = read_weights(held) if isinstance(held, Path) else held
            files[task.name] = f"tasks/{i}.safetensors"
            save_file({name: value.contiguous() for name, value in tensors.items()}, folder / files[task.name])
        return {"config": self.config, "files": files}

    @classmethod
    def read(cls, folder: Path, manifest: dict[str, Any], tasks: tuple[Task, ...], columns: FittedColumns) -> TextHub:
        config = manifest["config"]
        with torch.random.fork_rng(devices=[]):
            encoder = TextEncoder(backbones.empty(config["backbone"]), pooling=config["pooling"])
        fill(encoder, read_weights(folder / BACKBONE))
        tokenizer = Tokenizer.read(folder / "tokenizer.json", max_length=config["max_length"])
        store = {name: folder / path for name, path in manifest["files"].items()}
        return cls(tasks, columns, config, tokenizer, encoder, store)


def _chunks(lengths: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Positions, shortest first, at most `CHUNK` places at a time."""
    order = np.argsort(lengths, kind="stable")
    start = 0
    for end in range(1, len(order) + 1):
        if end == len(order) or (end + 1 - start) * lengths[order[end]] > CHUNK:
            yield order[start:end]
            start = end
