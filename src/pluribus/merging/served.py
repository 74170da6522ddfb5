"""A merge container at work inside a module: rows of different tasks in one forward.

Two plans, chosen by what the parts are and checked on an example:
    batched   one pass of the shared model over all rows. At each linear, convolution, embedding and normalisation that a task
              changes, what the row's task adds is added to the output: y = W*x + U_t(V_t x). By task id the rows of a task go
              through that task's factors alone, so that their bits do not depend on which other tasks the container holds; a
              soft mixture runs all factors in two products, y = W*x + Σ_t w_t U_t(V_t x).
    grouped   the rows of a task (or of one mixture) go through that task's weights in full: exact for any module.

A row may be asked for several tasks (`rows`). Where no task changes the trunk (a plain merge), it runs once for each row, and
what comes out is handed to the tasks' heads; else a row runs once for each of its tasks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from pluribus.errors import BadInput, unknown
from pluribus.merging.parts import FactorPart, Part
from pluribus.merging.router import Router


class Container(Protocol):
    """What `Served` asks of what it serves; a `MergeContainer` has it."""

    shared: dict[str, Tensor]
    parts: dict[str, Part]
    heads: dict[str, dict[str, Tensor]]
    router: Router | None

    @property
    def tasks(self) -> tuple[str, ...]: ...

    def state(self, task: str) -> dict[str, Tensor]:
        """The task's weights by name, head included."""
        ...

    def mixture(self, weights: Mapping[str, float]) -> dict[str, Tensor]:
        """The shared weights with a share of what each task adds."""
        ...


@dataclass(frozen=True)
class Routed:
    """What came out of one forward. Every row appears once.

    Parameters
    ----------
    rows : dict of str to Tensor
        By task, its rows of the batch [n_t].
    outputs : dict of str to Tensor
        By task, the outputs of these rows [n_t, …].
    """

    rows: dict[str, Tensor]
    outputs: dict[str, Tensor]

    def stacked(self) -> Tensor:
        """The outputs in the order of the batch; needs outputs of one shape."""
        shapes = {tuple(o.shape[1:]) for o in self.outputs.values()}
        if len(shapes) > 1:
            raise BadInput(f"the tasks' outputs have different shapes {sorted(shapes)}", remedy="read them by task")
        order = torch.cat(list(self.rows.values())).argsort()
        return torch.cat(list(self.outputs.values()))[order]


@dataclass(frozen=True)
class _ForwardRows:
    """Of one forward: whose it is, rows in all, the rows of each task by id, and mixture weights [B, T] (None: by id).

    spread: of a plain merge, the row of the batch that each answer is about; `groups` count answers then. A head of one map puts
    the tasks' outputs side by side; of several maps, the first hands the rows on as answers, and notes it in `reached`.
    """

    owner: Served
    size: int
    groups: dict[str, Tensor]
    weights: Tensor | None
    spread: Tensor | None = None
    reached: list[bool] = field(default_factory=list)


_route: ContextVar[_ForwardRows | None] = ContextVar("route", default=None)


def _current(owner: Served) -> _ForwardRows | None:
    """The route of the forward that runs in this thread, if it is `owner`'s."""
    route = _route.get()
    return route if route is not None and route.owner is owner else None


_Conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Served(nn.Module):
    """A container in a model. The model gets the shared weights and is put into evaluation mode; it is the container's from then
    on. Tasks that are added to the container are served at the next forward.

    Parameters
    ----------
    container : Container
        What is served.
    model : nn.Module
        The architecture of the shared weights.
    features : callable, optional
        (model, inputs) → [B, d], what the router looks at; default: the model's own output.
    example : optional
        Inputs on which the batched plan is checked against the grouped one. Without them, or where the plans differ by more
        than 1e-4 of the largest output, the grouped plan is used.

    Attributes
    ----------
    plan : {"batched", "grouped"}
        The plan in use.

    Raises
    ------
    BadInput
        The model lacks a shared tensor, or has it in another shape.
    """

    def __init__(
        self,
        container: Container,
        model: nn.Module,
        features: Callable[[nn.Module, Any], Tensor] | None = None,
        example: Any = None,
    ) -> None:
        super().__init__()
        self.container, self.model, self.features = container, model.eval(), features
        own = dict(model.state_dict())
        for name, tensor in container.shared.items():
            if name not in own or own[name].shape != tensor.shape:
                raise BadInput(f"the model has no tensor {name!r} of shape {tuple(tensor.shape)}", remedy="give its architecture")
            own[name].copy_(tensor)
        self._kinds = {name: tensor.dtype for name, tensor in own.items()}
        self.plan, self.plain = "grouped", False  # plain: no task changes the trunk, and it runs once for each row
        self._example, self._tasks = example, container.tasks
        self._device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self._hooked: list[Any] = []
        self._free: list[str] = []
        self._beside = False  # the heads are one linear map, and a row's outputs of all tasks can stand side by side
        self._classes: dict[str, int] = {}
        self._swapping = threading.Lock()  # functional_call puts weights into the module while it runs
        self._choose()

    @torch.no_grad()
    def _choose(self) -> None:
        """Pick the plan for the tasks there are."""
        self._tasks, self.plan, self.plain = self.container.tasks, "grouped", False
        self._unhook()
        if self._example is not None and self._tasks and self._hook():
            self.plan = "batched"
            if not self._agrees(self._example):
                self._unhook()
                self.plan = "grouped"

    @torch.no_grad()
    def forward(
        self,
        inputs: Any,
        tasks: str | Sequence[str] | None = None,
        weights: Tensor | None = None,
        rows: Sequence[int] | None = None,
    ) -> Routed:
        """One forward over rows of different tasks.

        Parameters
        ----------
        inputs
            What the model takes: a tensor [B, …], or a mapping of such tensors.
        tasks : str or sequence of str, optional
            The task of all rows, or of each.
        weights : Tensor, optional
            Instead of tasks: a mixture [B, T] in the order of `container.tasks`; a row's head is that of its largest weight.
            Neither: the router's softmax, from a first pass of the shared model.
        rows : sequence of int, optional
            With a list of tasks: the row that each of them is asked about, where rows are asked for several tasks or none. What
            comes out counts these questions in the place of rows.

        Raises
        ------
        BadInput
            A task is unknown, or the number of tasks, weights or rows does not fit.
        """
        if self._tasks != self.container.tasks:
            self._choose()
        size = _rows_of(inputs)
        spread: Tensor | None = None
        if rows is not None:
            spread = torch.tensor(list(rows), dtype=torch.long)
            if weights is not None or tasks is None or isinstance(tasks, str) or len(tasks) != len(spread):
                raise BadInput(f"rows name {len(spread)} questions", where="rows", remedy="name the task of each")
            if len(spread) and not 0 <= int(spread.min()) <= int(spread.max()) < size:
                what = f"rows go from {int(spread.min())} to {int(spread.max())}"
                raise BadInput(what, where="rows", remedy=f"use 0 to {size - 1}")
            if not self.plain:
                inputs, size, spread = _pick(inputs, spread), len(spread), None
        known = self.container.tasks
        if tasks is None and weights is None:
            weights = self.route(inputs)
        if weights is not None:
            if tuple(weights.shape) != (size, len(known)):
                raise BadInput(f"weights are {tuple(weights.shape)}", where="weights", remedy=f"give [{size}, {len(known)}]")
            names = [known[i] for i in weights.argmax(1).tolist()]
        else:
            assert tasks is not None
            names = [tasks] * size if isinstance(tasks, str) else list(tasks)
            if spread is None and len(names) != size:
                raise BadInput(f"{len(names)} tasks for {size} rows", where="tasks", remedy="name one for each row")
        groups: dict[str, Tensor] = {}
        for task in dict.fromkeys(names):
            if task not in known:
                raise unknown("task", task, known, where="container")
            groups[task] = torch.tensor([i for i, n in enumerate(names) if n == task])
        if self.plan == "batched":
            return self._batched(inputs, _ForwardRows(self, size, groups, weights, spread))
        return self._grouped(inputs, groups, weights)

    @torch.no_grad()
    def route(self, inputs: Any) -> Tensor:
        """The router's mixture, [B, T]: softmax over the tasks it knows, 0 for tasks added since."""
        router = self.container.router
        if router is None:
            raise BadInput("the container has no router", remedy="name each row's task, or train one")
        seen = self.features(self.model, inputs) if self.features else _logits(_call(self.model, inputs))
        shares = router(seen.float().cpu()).softmax(-1)
        found = torch.zeros(len(shares), len(self.container.tasks))
        found[:, [self.container.tasks.index(t) for t in router.tasks]] = shares
        return found

    # Grouped

    def _grouped(self, inputs: Any, groups: dict[str, Tensor], weights: Tensor | None) -> Routed:
        outputs = {}
        for task, rows in groups.items():
            head = self.container.heads[task]
            if weights is None:
                state = self.container.state(task)
                state = {n: t for n, t in state.items() if n not in head} if _is_detached(head) else state
                outputs[task] = self._headed(task, self._with(state, _pick(inputs, rows)))
                continue
            parts = []
            each, which = torch.unique(weights[rows], dim=0, return_inverse=True)
            for k, mix in enumerate(each):
                mine = rows[which == k]
                state = self.container.mixture(dict(zip(self.container.tasks, mix.tolist())))
                state.update({} if _is_detached(head) else head)
                parts.append((mine, self._with(state, _pick(inputs, mine))))
            order = torch.cat([m for m, _ in parts]).argsort()
            outputs[task] = self._headed(task, torch.cat([o for _, o in parts])[order])
        return Routed(groups, outputs)

    def _headed(self, task: str, out: Tensor) -> Tensor:
        head = self.container.heads[task]
        if not _is_detached(head):
            return out
        head = {n: t.to(out) for n, t in head.items()}
        return F.linear(out, head["weight"], head.get("bias"))

    # Batched

    def _batched(self, inputs: Any, route: _ForwardRows) -> Routed:
        token = _route.set(route)
        try:
            if self._free:
                values = {n: self._of_rows(n, route) for n in self._free}
                out = self._with(values, inputs)
            else:
                out = _logits(_call(self.model, inputs))
        finally:
            _route.reset(token)
        if route.spread is not None and not route.reached:
            out = out[route.spread]
        outputs, first = {}, 0
        for task, rows in route.groups.items():
            head = self.container.heads[task]
            mine = out[rows]
            if head and not _is_detached(head):
                mine = mine[..., first : first + self._classes[task]]  # the rest is padding, or another task's
                first += self._classes[task] if self._beside and route.spread is not None else 0
            outputs[task] = self._headed(task, mine)
        return Routed(route.groups, outputs)

    def _of_rows(self, name: str, route: _ForwardRows) -> Tensor:
        """The rows' own values of a parameter with a leading 1, [B, …]."""
        shared = self.fit(name, self.container.shared[name])
        found = shared.repeat(route.size, *[1] * (shared.dim() - 1))
        for i, task in enumerate(self.container.tasks):
            whole = self.container.parts[task].whole.get(name)  # type: ignore[union-attr]
            if whole is None:
                continue
            whole = self.fit(name, whole)
            if route.weights is not None:
                found += route.weights[:, i].to(found.dtype).view(-1, *[1] * (shared.dim() - 1)) * (whole - shared)
            elif task in route.groups:
                found[route.groups[task]] = whole
        return found

    def fit(self, name: str, tensor: Tensor) -> Tensor:
        """A stored tensor where the model computes, in its precision: a task's head may be kept in another one."""
        return tensor.to(self._device, self._kinds.get(name, tensor.dtype))

    def _with(self, state: dict[str, Tensor], inputs: Any) -> Tensor:
        """The model's output with other weights."""
        state = {n: self.fit(n, t) for n, t in state.items()}
        with self._swapping:
            return _logits(functional_call(self.model, state, *_arguments(inputs)))

    def _agrees(self, example: Any) -> bool:
        """Whether the batched plan gives what the grouped one gives; settles `plain` where it does."""
        size = _rows_of(example)
        known = self.container.tasks
        mixed = [known[i % len(known)] for i in range(size)]
        soft = torch.rand(size, len(known), generator=torch.Generator().manual_seed(0)).softmax(1)
        for tasks, weights in ((mixed, None), (None, soft)):
            try:
                got = self(example, tasks, weights)
            except (RuntimeError, LookupError, BadInput):  # whatever a model says of rows it did not expect
                return False
            wanted = self._grouped(example, got.rows, weights)
            for task, out in wanted.outputs.items():
                if not _close(got.outputs[task], out):
                    return False
        self.plain = not any(p.factors or p.whole for p in self.container.parts.values())  # type: ignore[union-attr]
        if self.plain:  # every row asked for every task, against the rows in full
            rows, tasks = [i for i in range(size) for _ in known], list(known) * size
            try:
                asked = self(example, tasks, rows=rows)
                self.plain = all(_close(out, self(example, task).outputs[task]) for task, out in asked.outputs.items())
            except (RuntimeError, LookupError, BadInput):  # whatever a model says of rows it did not expect
                self.plain = False
        return True

    def _hook(self) -> bool:
        """Hooks on every module that a task changes; False where one cannot be served batched."""
        container, left = self.container, set()
        if not all(isinstance(p, FactorPart) for p in container.parts.values()):
            return False
        for part in container.parts.values():
            left |= {*part.factors, *part.whole}  # type: ignore[union-attr]
        inner = [set(h) for h in container.heads.values() if not _is_detached(h)]
        heads, maps = set().union(*inner), 0
        if any(names != heads for names in inner):
            return False
        for prefix, module in self.model.named_modules():
            dot = f"{prefix}." if prefix else ""
            mine = {n: dot + n for n, _ in module.named_parameters(recurse=False)}
            if heads & set(mine.values()):
                if not isinstance(module, nn.Linear) or not set(mine.values()) <= heads:
                    self._unhook()
                    return False
                self._hooked.append(module.register_forward_hook(self._head_hook(mine)))
                maps += 1
                heads -= set(mine.values())
            elif left & set(mine.values()) and isinstance(module, (nn.Linear, nn.Embedding, nn.LayerNorm, nn.GroupNorm, *_Conv)):
                site = _ModuleChanges(module, mine, container, self)
                self._hooked.append(module.register_forward_hook(site))
                left -= set(mine.values())
            elif left & set(mine.values()):
                # A free parameter with a leading 1 (a position, a class token): a value for each row takes its place.
                free = [full for full in mine.values() if full in left]
                if not all(container.shared[n].dim() >= 3 and container.shared[n].shape[0] == 1 for n in free):
                    self._unhook()
                    return False
                self._free += free
                left -= set(free)
        if left or heads:
            self._unhook()
            return False
        self._beside = maps == 1 and not any(_is_detached(h) for h in container.heads.values())
        return True

    def _unhook(self) -> None:
        for handle in self._hooked:
            handle.remove()
        self._hooked, self._free = [], []

    def _head_hook(self, names: dict[str, str]) -> Callable[..., Tensor | None]:
        weight, bias = names["weight"], names.get("bias", "")
        heads = {t: {n: self.fit(n, v) for n, v in h.items()} for t, h in self.container.heads.items() if not _is_detached(h)}
        classes = {t: len(h[weight]) for t, h in heads.items()}
        self._classes = classes  # of the last map of a head: an earlier one's are replaced

        def hook(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor | None:
            route = _current(self)
            if route is None:
                return None
            x = args[0]
            if self._beside and route.spread is not None:  # the model may go on with a row's tokens: its rows stay what they are
                return torch.cat([F.linear(x, heads[t][weight], heads[t].get(bias)) for t in route.groups], -1)
            if route.spread is not None and not route.reached:
                x = x[route.spread]
                route.reached.append(True)
            wide = x.new_zeros(*x.shape[:-1], max(classes[t] for t in route.groups))
            for task, rows in route.groups.items():
                mine = heads[task][weight]
                wide[rows, ..., : classes[task]] = F.linear(x[rows][..., : mine.shape[1]], mine, heads[task].get(bias))
            return wide

        return hook


class _ModuleChanges:
    """What the tasks add at one module: by task, factors of the weight, or its whole change, and the change of the bias."""

    def __init__(self, module: nn.Module, names: dict[str, str], container: Container, owner: Served) -> None:
        self.module, self.served = module, owner
        self.factors: dict[str, tuple[Tensor, Tensor]] = {}
        self.weight: dict[str, Tensor] = {}
        self.bias: dict[str, Tensor] = {}
        self.order = container.tasks
        for task, part in container.parts.items():
            weight, bias = names.get("weight", ""), names.get("bias", "")
            if weight in part.factors:  # type: ignore[union-attr]
                u, v = part.factors[weight]  # type: ignore[union-attr]
                # A table looks its rows up in U, [n, r], and goes on through V: the other way round.
                u, v = owner.fit(weight, u), owner.fit(weight, v)
                self.factors[task] = (v.T, u.T) if isinstance(module, nn.Embedding) else (u, v)
            if weight in part.whole:  # type: ignore[union-attr]
                self.weight[task] = self._change(weight, part)
            if bias in part.whole:  # type: ignore[union-attr]
                self.bias[task] = self._change(bias, part)
        if self.factors:
            self.u = torch.cat([u for u, _ in self.factors.values()], 1)
            self.v = torch.cat([v for _, v in self.factors.values()], 0)
            index = [self.order.index(t) for t, (u, _) in self.factors.items() for _ in range(u.shape[1])]
            self.owner = torch.tensor(index, dtype=torch.long)

    def _change(self, name: str, part: Any) -> Tensor:
        owner = self.served
        return owner.fit(name, part.whole[name]) - owner.fit(name, owner.container.shared[name])

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor | None:
        route = _current(self.served)
        if route is None:
            return None
        x = args[0]
        if x.shape[0] == 1 and route.size > 1:  # one row for all, such as position ids
            x = x.expand(route.size, *x.shape[1:])
            out = out.expand(route.size, *out.shape[1:])
        if x.shape[0] % route.size:
            raise RuntimeError(f"{type(module).__name__} sees {x.shape[0]} rows, the batch has {route.size}")
        times = x.shape[0] // route.size  # windows or patches folded into the batch, a row's own side by side
        if route.weights is not None:
            return out + self._mixed(x, route.weights.to(out.dtype).repeat_interleave(times, 0))
        out = out.clone()
        for task, rows in route.groups.items():
            if task in self.factors or task in self.weight or task in self.bias:
                if times > 1:
                    rows = (rows[:, None] * times + torch.arange(times)).flatten()
                out[rows] += self._one(task, x[rows])
        return out

    def _one(self, task: str, x: Tensor) -> Tensor:
        total: Tensor | float = 0.0
        if task in self.factors:
            total = self._up(self._down(x, self.factors[task][1]), self.factors[task][0])
        if task in self.weight:
            total = total + self._whole(x, self.weight[task])
        if task in self.bias:
            total = total + self._across(self.bias[task], x.dim())
        assert isinstance(total, Tensor)
        return total

    def _mixed(self, x: Tensor, w: Tensor) -> Tensor:
        total: Tensor | float = 0.0
        if self.factors:
            z = self._down(x, self.v)
            share = w[:, self.owner]
            middle = z.dim() - 2
            z = z * (
                share.view(len(w), -1, *[1] * middle) if isinstance(self.module, _Conv) else share.view(len(w), *[1] * middle, -1)
            )
            total = self._up(z, self.u)
        for task in self.order:
            if task in self.weight or task in self.bias:
                mine = w[:, self.order.index(task)]
                part: Tensor | float = 0.0
                if task in self.weight:
                    part = self._whole(x, self.weight[task])
                if task in self.bias:
                    part = part + self._across(self.bias[task], x.dim())
                assert isinstance(part, Tensor)
                total = total + mine.view(-1, *[1] * (part.dim() - 1)) * part
        assert isinstance(total, Tensor)
        return total

    def _across(self, bias: Tensor, dim: int) -> Tensor:
        """A change of the bias, shaped to be added to outputs of `dim` dimensions."""
        if isinstance(self.module, (*_Conv, nn.GroupNorm)):
            return bias.view(1, -1, *[1] * (dim - 2))
        return bias.view(*[1] * (dim - bias.dim()), *bias.shape)

    def _down(self, x: Tensor, v: Tensor) -> Tensor:
        if isinstance(self.module, nn.Embedding):
            return F.embedding(x, v.T)
        if isinstance(self.module, _Conv):
            return self._convolved(x, v.view(len(v), *self.module.weight.shape[1:]))
        return F.linear(x, v)

    def _up(self, z: Tensor, u: Tensor) -> Tensor:
        if isinstance(self.module, _Conv):
            return F.linear(z.movedim(1, -1), u).movedim(-1, 1)
        return F.linear(z, u)

    def _convolved(self, x: Tensor, kernel: Tensor) -> Tensor:
        found: Tensor = self.module._conv_forward(x, kernel, None)  # type: ignore[operator]
        return found

    def _whole(self, x: Tensor, change: Tensor) -> Tensor:
        m = self.module
        if isinstance(m, nn.Embedding):
            return F.embedding(x, change)
        if isinstance(m, nn.LayerNorm):
            return F.layer_norm(x, m.normalized_shape, None, None, m.eps) * change
        if isinstance(m, nn.GroupNorm):
            return F.group_norm(x, m.num_groups, None, None, m.eps) * self._across(change, x.dim())
        if isinstance(m, _Conv):
            return self._convolved(x, change)
        return F.linear(x, change)


def _is_detached(head: Mapping[str, Tensor]) -> bool:
    """A head that is a linear map after the model ("weight", "bias") and not a part of it."""
    return "weight" in head and set(head) <= {"weight", "bias"}


def _close(found: Tensor, wanted: Tensor) -> bool:
    """Whether two plans' outputs agree."""
    if found.shape != wanted.shape:
        return False
    return float((found - wanted).abs().max()) <= 1e-4 * max(1.0, float(wanted.abs().max()))


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return ((), dict(inputs)) if isinstance(inputs, Mapping) else ((inputs,), {})


def _call(model: nn.Module, inputs: Any) -> Any:
    args, keywords = _arguments(inputs)
    return model(*args, **keywords)


def _logits(out: Any) -> Tensor:
    found = getattr(out, "logits", out)
    if not isinstance(found, Tensor):
        remedy = "give a module whose output is a tensor or has .logits"
        raise BadInput(f"the model's output is {type(found).__name__}", remedy=remedy)
    return found


def _rows_of(inputs: Any) -> int:
    first = next(iter(inputs.values())) if isinstance(inputs, Mapping) else inputs
    return len(first)


def _pick(inputs: Any, rows: Tensor) -> Any:
    return {k: v[rows] for k, v in inputs.items()} if isinstance(inputs, Mapping) else inputs[rows]
