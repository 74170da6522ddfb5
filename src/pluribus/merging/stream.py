"""The engine: runs a `Method` over sources, a stretch of a tensor at a time, in memory that does not grow with the model.

`Engine.stretches(name)` gives the merged tensor in parts; `Engine.tensor(name)` whole; `Engine.run(sink)` all of them, several
tensors at a time where `threads` asks for it. Every tensor is worked on by one thread with torch's own threads off, so neither
the number of threads nor the chunk changes a bit of the result.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pluribus.errors import NonFinite
from pluribus.merging.algebra import BLOCK, Mean, MergeStage, Method, Span
from pluribus.merging.source import Source, accumulator, is_statistic, spans, where

CHUNK = 1 << 17  # entries of each input that are held at a time
HELD = 64 << 20  # bytes: a tensor that is looked at more than once is held where all its inputs together are not larger
AVERAGE = Method(Mean(), space="weights")


class Engine:
    """Merges the tensors `names` of `experts` (by task) over `base` by `method`.

    weights: one a task (default 1). seed: for what is random. dtypes: the dtype out by name (default the base's).
    chunk: entries per input held at a time (rounded up to a multiple of 32768).
    """

    def __init__(
        self,
        base: Source,
        experts: Mapping[str, Source],
        names: Sequence[str],
        method: Method,
        *,
        weights: Sequence[float] | None = None,
        seed: int = 0,
        dtypes: Mapping[str, torch.dtype] | None = None,
        chunk: int = CHUNK,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self.base, self.tasks, self.experts = base, tuple(experts), tuple(experts.values())
        self.names, self.method, self.seed = tuple(names), method, seed
        self.weights = torch.tensor([1.0] * len(self.tasks) if weights is None else list(weights), dtype=torch.float64)
        self.dtypes = dict(dtypes or {})
        self.chunk = max(BLOCK, -(-chunk // BLOCK) * BLOCK)
        self.progress = progress
        self._local = threading.local()
        self._surveyed: dict[int, Any] = {}
        self._lock = threading.RLock()

    # reading ---------------------------------------------------------------------------------------------------------------

    def method_of(self, name: str) -> Method:
        """Running statistics of a normalisation are averaged (or are the asked task's own), whatever the method."""
        if not is_statistic(name):
            return self.method
        return AVERAGE if self.method.task is None else _own(self.tasks.index(self.method.task))

    def accumulator(self, name: str) -> torch.dtype:
        return accumulator([self.base.dtype(name), *(e.dtype(name) for e in self.experts)])

    def spans(self, name: str, method: Method) -> Iterator[Span]:
        shape = tuple(self.base.shape(name))
        n, needs = math.prod(shape), {stage.need for stage in method.stages}
        if "tensor" in needs:
            size = max(n, 1)
        elif "rows" in needs:
            columns = shape[-1] if len(shape) > 1 else max(n, 1)
            size = max(1, self.chunk // columns) * columns
        else:
            size = self.chunk
        weights = self.weights
        for start, stop in spans(n, max(size, 1)):
            yield Span(name, start, stop, shape, self.tasks, weights, self.seed)

    def _buffer(self, rows: int, n: int, kind: torch.dtype) -> Tensor:
        held: Tensor | None = getattr(self._local, "buffer", None)
        if held is None or held.dtype != kind or held.numel() < rows * n:
            held = torch.empty(max(rows * n, 1), dtype=kind)
            # a larger tensor's is not kept
            if rows * n * kind.itemsize <= max(HELD, (len(self.experts) + 1) * self.chunk * kind.itemsize):
                self._local.buffer = held
        return held[: rows * n].view(rows, n)

    def _fill(self, row: Tensor, source: Source, span: Span) -> None:
        if source.dtype(span.name) == row.dtype:
            source.read(span.name, span.start, span.stop, row)
        else:
            row.copy_(source.read(span.name, span.start, span.stop))

    def load(self, span: Span, method: Method) -> tuple[Tensor | None, Tensor]:
        """θ0 [n] (None in the space of weights) and τ [T, n] (or θ_t) of a stretch. The buffer is used again by the next call."""
        shift = int(method.space == "task_vectors")
        buffer = self._buffer(len(self.experts) + shift, span.stop - span.start, self.accumulator(span.name))
        return self._load(buffer, span, shift)

    def _load(self, buffer: Tensor, span: Span, shift: int) -> tuple[Tensor | None, Tensor]:
        for t, expert in enumerate(self.experts):
            self._fill(buffer[t + shift], expert, span)
        theta0, tau = (buffer[0], buffer[1:]) if shift else (None, buffer)
        if theta0 is not None:
            self._fill(theta0, self.base, span)
            tau.sub_(theta0)
        # a sum is the cheapest test; an overflow of finite values is told apart by the exact one
        if not math.isfinite(tau.sum().item()):
            self._blame(span)
        return theta0, tau

    def _blame(self, span: Span) -> None:
        for who, source in (("base", self.base), *((f"expert {t!r}", e) for t, e in zip(self.tasks, self.experts))):
            values = source.read(span.name, span.start, span.stop)
            good = values.float().isfinite() if values.dtype.itemsize < 4 else values.isfinite()
            if not good.all():
                at = int((~good).nonzero()[0, 0])
                what = f"tensor {span.name!r} holds {float(values[at])} at flat index {span.start + at}"
                raise NonFinite(what, where=f"{who} ({where(source)})", remedy="mend it, or keep the base's tensor")

    # stages ----------------------------------------------------------------------------------------------------------------

    def _seen(self, name: str, method: Method, stages: Sequence[MergeStage]) -> list[Any]:
        """What each of `stages` is told about a tensor."""
        seen: list[Any] = []
        for depth, stage in enumerate(stages):
            if stage.need == "all":
                seen.append(self._survey(stage, method))
            elif stage.need == "statistic":
                seen.append(stage.observe(TensorPass(self, name, method, depth, list(seen))))
            else:
                seen.append(None)
        return seen

    def _survey(self, stage: MergeStage, method: Method) -> Any:
        with self._lock:
            key = id(stage)
            if key not in self._surveyed:
                depth = next(i for i, s in enumerate(method.stages) if s is stage)
                views = [
                    TensorPass(self, name, method, depth, self._seen(name, method, method.stages[:depth]))
                    for name in sorted(self.names)  # ties over all tensors must not depend on the inputs' shards
                    if not is_statistic(name)
                ]
                self._surveyed[key] = stage.survey(views)
            return self._surveyed[key]

    def stretches(self, name: str) -> Iterator[tuple[int, int, Tensor]]:
        """(start, stop, merged entries in the dtype out). The tensor is valid until the next step."""
        method = self.method_of(name)
        all_spans = list(self.spans(name, method))
        dtype = self.dtypes.get(name, self.base.dtype(name))
        if len(all_spans) == 1:
            span = all_spans[0]
            theta0, tau = self.load(span, method)
            theta1 = self._only_expert(theta0, tau)
            for stage in method.stages:
                if stage.need == "all":
                    seen = self._survey_aside(stage, method)
                else:
                    seen = stage.observe(_Held(all_spans, tau)) if stage.need == "statistic" else None
                tau = stage(tau, span, seen)
            yield span.start, span.stop, self._finish(theta0, tau, theta1, method, span).to(dtype)
            return
        if self._holds(name, method):
            yield from self._held(all_spans, method, dtype)
            return
        seen_by = self._seen(name, method, method.stages)
        for span in all_spans:
            theta0, tau = self.load(span, method)
            theta1 = self._only_expert(theta0, tau)
            for stage, told in zip(method.stages, seen_by):
                tau = stage(tau, span, told)
            yield span.start, span.stop, self._finish(theta0, tau, theta1, method, span).to(dtype)

    def _holds(self, name: str, method: Method) -> bool:
        """Whether a tensor is looked at more than once, stretch by stretch, and small enough to be read only once."""
        shift, n = int(method.space == "task_vectors"), math.prod(self.base.shape(name))
        size = (len(self.experts) + shift) * n * self.accumulator(name).itemsize
        needs = {stage.need for stage in method.stages}
        return size <= HELD and "statistic" in needs and not needs & {"rows", "tensor", "all"}

    def _held(self, every: Sequence[Span], method: Method, dtype: torch.dtype) -> Iterator[tuple[int, int, Tensor]]:
        """The stretches of a tensor whose task vectors are held between the passes."""
        shift = int(method.space == "task_vectors")
        kind, n = self.accumulator(every[0].name), every[-1].stop
        buffer = self._buffer(len(self.experts) + shift, n, kind)
        for span in every:
            self._load(buffer[:, span.start : span.stop], span, shift)
        theta0, tau = (buffer[0], buffer[1:]) if shift else (None, buffer)
        first = tau[0].clone() if len(self.experts) == 1 and shift else None
        stages, done = method.stages, 0
        seen: list[Any] = []

        def passed(span: Span, stop: int) -> Tensor:
            part = tau[:, span.start : span.stop]
            for stage, told in zip(stages[done:stop], seen[done:stop]):
                part = stage(part, span, told)
            return part

        for depth, stage in enumerate(stages):
            if stage.need == "statistic" and depth > done:
                for span in every:
                    tau[:, span.start : span.stop] = passed(span, depth)
                done = depth
            seen.append(stage.observe(_Held(every, tau)) if stage.need == "statistic" else None)
        for span in every:
            theta = None if theta0 is None else theta0[span.start : span.stop]
            only = None if first is None else first[span.start : span.stop]
            yield span.start, span.stop, self._finish(theta, passed(span, len(stages)), only, method, span).to(dtype)

    def _survey_aside(self, stage: MergeStage, method: Method) -> Any:
        """A survey reads through the same buffer; the stretch in hand is set aside meanwhile."""
        if id(stage) in self._surveyed:
            return self._surveyed[id(stage)]
        held = getattr(self._local, "buffer", None)
        self._local.buffer = None
        try:
            return self._survey(stage, method)
        finally:
            self._local.buffer = held

    def _only_expert(self, theta0: Tensor | None, tau: Tensor) -> Tensor | None:
        return tau[0].clone() if len(self.experts) == 1 and theta0 is not None else None

    def _finish(self, theta0: Tensor | None, merged: Tensor, only: Tensor | None, method: Method, span: Span) -> Tensor:
        """θ = θ0 + scale · τ_M. With one expert whose task vector came through untouched, its own bits: θ0 + (θ1 − θ0) rounds."""
        if theta0 is None:
            return merged
        if only is None:
            return theta0.add_(merged, alpha=method.scale)
        step = merged * method.scale
        theta1 = torch.empty_like(theta0)
        self._fill(theta1, self.experts[0], span)
        return torch.where(step == only, theta1, theta0 + step)

    # everything ------------------------------------------------------------------------------------------------------------

    def tensor(self, name: str) -> Tensor:
        """One merged tensor."""
        shape, dtype = tuple(self.base.shape(name)), self.dtypes.get(name, self.base.dtype(name))
        found = torch.empty(math.prod(shape), dtype=dtype)
        with one_thread():
            for start, stop, part in self.stretches(name):
                found[start:stop] = part
        return found.view(shape)

    def run(self, sink: Callable[[str, Tensor, int], None], *, threads: int = 1) -> None:
        """Hand every merged stretch to `sink(name, part, start)`. The first error stops the rest."""
        stop = threading.Event()

        def work(name: str) -> None:
            for start, end, part in self.stretches(name):
                if stop.is_set():
                    return
                sink(name, part, start)
                if self.progress is not None:
                    self.progress((end - start) * self._bytes_per_entry(name))

        with one_thread():
            if threads <= 1:
                for name in self.names:
                    work(name)
                return
            for stage in self.method.stages:
                if stage.need == "all":
                    self._survey(stage, self.method)
            with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                futures = [pool.submit(work, name) for name in self.names]
                try:
                    for future in futures:
                        future.result()
                except BaseException:
                    stop.set()
                    pool.shutdown(wait=True, cancel_futures=True)
                    raise

    def _bytes_per_entry(self, name: str) -> int:
        return self.base.dtype(name).itemsize + sum(e.dtype(name).itemsize for e in self.experts)


class TensorPass:
    """A tensor after the first `depth` stages, read anew at each pass."""

    def __init__(self, engine: Engine, name: str, method: Method | None = None, depth: int = 0, seen: Sequence[Any] = ()) -> None:
        self.engine, self.name, self.depth, self.seen = engine, name, depth, seen
        self.method = method or engine.method
        self.shape = tuple(engine.base.shape(name))

    def chunks(self) -> Iterator[tuple[Span, Tensor]]:
        for span in self.engine.spans(self.name, self.method):
            _, tau = self.engine.load(span, self.method)
            for stage, told in zip(self.method.stages[: self.depth], self.seen):
                tau = stage(tau, span, told)
            yield span, tau


class _Held:
    """A tensor that is in memory already, whatever the spans it is worked on in."""

    def __init__(self, every: Sequence[Span], tau: Tensor) -> None:
        first = every[0]
        self.name, self.shape, self.tau = first.name, first.shape, tau
        self.spans = [replace(first, start=start, stop=stop) for start, stop in spans(tau.shape[1], CHUNK)]

    def chunks(self) -> Iterator[tuple[Span, Tensor]]:
        for span in self.spans:
            yield span, self.tau[:, span.start : span.stop]


class _Own(MergeStage):
    def __init__(self, index: int) -> None:
        self.index = index

    def __call__(self, tau: Tensor, span: Span, seen: Any) -> Tensor:
        return tau[self.index]


def _own(index: int) -> Method:
    return Method(_Own(index), space="weights")


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Torch's own threads off: a sum or a factorisation must not depend on how many there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
