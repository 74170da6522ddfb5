"""The ledger: what every run of every method scored, from any training loop, and honest tables made of it.

`Ledger(folder).log(method=…, seed=…, task=…, metric=…, value=…, selection=…)` appends one JSON line to `folder/ledger.jsonl`
under a lock. A row is known by (method, seed, task, metric); logging the same row again changes nothing, another value for it
is an error. A line that a killed process left half written is dropped by the next writer; every other line stays.

`table(runs, reference=…, delta=…)` compares methods: mean ± standard deviation over seeds, Δm in a named convention, mean
rank, and exact sign-flip tests of the per-seed Δm paired by seed, Holm over the methods. Where the seeds are too few for any
test to speak, the table says so instead of printing stars.

A task's main metric is the first of its metrics logged with main=True; a task without one is auxiliary and is left out.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pluribus import catalog
from pluribus.errors import BadInput, unknown
from pluribus.evaluation.delta_m import Convention, Scores, convention, delta, mean_rank
from pluribus.evaluation.intervals import holm, sign_flip
from pluribus.files import file_lock
from pluribus.tasks.metrics import METRICS

FILE = "ledger.jsonl"
FORMATS = ("md", "latex", "csv")
ALPHA = 0.05


@dataclass(frozen=True)
class Row:
    """One figure. direction: "max" | "min"; selection: how the checkpoint was chosen; seconds, memory (bytes): of the run;
    main: whether this is the metric that the task is judged by."""

    method: str
    seed: int
    task: str
    metric: str
    value: float
    direction: str
    selection: str
    seconds: float | None = None
    memory: float | None = None
    main: bool = True

    @property
    def key(self) -> tuple[str, int, str, str]:
        return self.method, self.seed, self.task, self.metric


def _row(fields: Mapping[str, Any], where: str) -> Row:
    """Check types and words of one row."""
    known = Row.__dataclass_fields__
    for name in fields:
        if name not in known:
            raise unknown("field", name, known, where=where)
    for name in ("method", "task", "metric", "selection"):
        if not isinstance(fields.get(name), str) or not fields[name]:
            raise BadInput(f"{name} must be a word", where=where, remedy=f"give {name}=")
        if fields[name].splitlines() != [fields[name]]:
            raise BadInput(f"{name} {fields[name]!r} runs over several lines", where=where, remedy="name it in one")
    seed = fields.get("seed")
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise BadInput(f"seed must be a whole number, not {seed!r}", where=where)
    numbers: dict[str, float | None] = {}
    for name in ("value", "seconds", "memory"):
        value = fields.get(name)
        if value is None and name != "value":
            numbers[name] = None
            continue
        try:
            if isinstance(value, (str, bool)):
                raise TypeError
            numbers[name] = float(value)  # type: ignore[arg-type]
        except OverflowError:
            numbers[name] = math.inf
        except (TypeError, ValueError) as error:
            raise BadInput(f"{name} must be a number, not {value!r}", where=where) from error
        if name != "value" and (numbers[name] or 0.0) < 0:
            raise BadInput(f"{name} is below 0", where=where, remedy="seconds and bytes of the run, or leave it out")
        if not math.isfinite(numbers[name] or 0.0):
            raise BadInput(f"{name} is not finite", where=where, remedy="log finite numbers; a failed run is no figure")
    direction = fields.get("direction")
    usual = METRICS[fields["metric"]].direction if fields["metric"] in METRICS else None
    if direction is None and usual is None:
        raise BadInput(
            f"which direction of metric {fields['metric']!r} is better is not known",
            where=where,
            remedy='give direction="max" or "min"',
        )
    if direction not in (None, "max", "min"):
        raise unknown("direction", str(direction), ("max", "min"), where=where)
    if direction and usual and direction != usual:
        raise BadInput(f"metric {fields['metric']!r} is better at its {usual}, not {direction}", where=where)
    main = fields.get("main", True)
    if not isinstance(main, (bool, np.bool_)):
        raise BadInput(f"main must be true or false, not {main!r}", where=where)
    return Row(
        fields["method"],
        int(seed),
        fields["task"],
        fields["metric"],
        numbers["value"] or 0.0,
        direction or str(usual),
        fields["selection"],
        numbers["seconds"],
        numbers["memory"],
        bool(main),
    )


class Ledger:
    """A folder's `ledger.jsonl`, created by the first `log`.

    >>> import tempfile
    >>> ledger = Ledger(tempfile.mkdtemp())
    >>> ledger.log(method="nash", seed=0, task="seg", metric="accuracy", value=0.71, selection="best on validation")
    >>> [row.value for row in ledger.rows()]
    [0.71]
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise BadInput("is not a folder", where=str(folder), remedy="name a folder")
        self.path = self.folder / FILE
        self._rows: dict[tuple[str, int, str, str], Row] = {}
        self._read_to = self._lines = 0

    def log(
        self,
        *,
        method: str,
        seed: int,
        task: str,
        metric: str,
        value: float,
        direction: str | None = None,
        selection: str,
        seconds: float | None = None,
        memory: float | None = None,
        main: bool = True,
    ) -> None:
        """Append one figure. `direction` ("max" | "min") is needed for metrics that Pluribus does not know.

        Raises
        ------
        BadInput: a value that is not finite, an unknown direction, or another value logged before for the same
            (method, seed, task, metric).
        """
        fields = {
            "method": method,
            "seed": seed,
            "task": task,
            "metric": metric,
            "value": value,
            "direction": direction,
            "selection": selection,
            "seconds": seconds,
            "memory": memory,
            "main": main,
        }
        row = _row(fields, f"ledger row {method}/{task}/{metric}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with file_lock(self.folder / f".{FILE}.lock"):
                self._catch_up(drop_torn=True)
                if row.key in self._rows:
                    _agree(self._rows[row.key], row, str(self.path))
                    return
                with self.path.open("ab") as handle:
                    handle.write((json.dumps(asdict(row), ensure_ascii=False) + "\n").encode("utf-8"))
                    handle.flush()
                    os.fsync(handle.fileno())
                self._catch_up()
        except OSError as error:
            raise BadInput(
                f"cannot be written ({error.strerror or error})",
                where=str(self.path),
                remedy="free some space or choose another place",
            ) from error

    def rows(self) -> list[Row]:
        """All rows, in the order in which they were logged."""
        self._catch_up()
        return list(self._rows.values())

    def _catch_up(self, drop_torn: bool = False) -> None:
        """Read the lines that were added since the last look, by whichever process."""
        if not self.path.exists():
            return
        with self.path.open("r+b" if drop_torn else "rb") as handle:
            handle.seek(self._read_to)
            added = handle.read()
            whole = added[: added.rfind(b"\n") + 1]
            if drop_torn and len(whole) < len(added):
                if _is_json(added[len(whole) :]):  # whole but for its end: written by hand
                    handle.write(b"\n")
                    whole = added + b"\n"
                else:
                    handle.truncate(self._read_to + len(whole))
            elif _is_json(added[len(whole) :]):
                whole = added
        for line in whole.split(b"\n"):
            if not line.strip():
                continue
            self._lines += 1
            where = f"{self.path}, line {self._lines}"
            try:
                fields = json.loads(line.decode("utf-8"))
            except (ValueError, RecursionError) as error:
                raise BadInput("is not a ledger row", where=where, remedy="remove the line or mend it") from error
            if not isinstance(fields, dict):
                raise BadInput("is not a ledger row", where=where, remedy="remove the line or mend it")
            row = _row(fields, where)
            if row.key in self._rows:
                _agree(self._rows[row.key], row, where)
            self._rows.setdefault(row.key, row)
        self._read_to += len(whole)


def _is_json(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _agree(old: Row, new: Row, where: str) -> None:
    if old.value != new.value or old.direction != new.direction:
        what = f"{old.method}, seed {old.seed}, {old.task}, {old.metric} is both {old.value:g} and {new.value:g}"
        raise BadInput(what, where=where, remedy="give the second run another method name or seed")
    if old.selection != new.selection:
        row = f"{old.method}, seed {old.seed}, {old.task}, {old.metric}"
        what = f"{row} is selected by {old.selection!r} and by {new.selection!r}"
        raise BadInput(what, where=where, remedy="give the second rule another method name")
    if old.main != new.main:
        what = f"{old.method}, seed {old.seed}: {old.metric} of {old.task} is logged as main and as not main"
        raise BadInput(what, where=where, remedy="log main= alike")


def read_runs(runs: Iterable[str | os.PathLike[str]]) -> list[Row]:
    """The rows of several runs: folders with `ledger.jsonl` or a study's `results.parquet`, or such files themselves."""
    found: dict[tuple[str, int, str, str], Row] = {}
    for run in runs:
        path = Path(run)
        if path.is_dir():
            inside = [path / name for name in (FILE, "results.parquet") if (path / name).is_file()]
            if not inside:
                raise BadInput(f"holds neither {FILE} nor results.parquet", where=str(path), remedy="name a run's folder")
            path = inside[0]
        if not path.is_file():
            raise BadInput("no such run", where=str(run), remedy="check the path")
        if path.name.endswith(".jsonl"):
            ledger = Ledger(path.parent)
            ledger.path = path
            rows = ledger.rows()
        else:
            rows = _from_table(path)
        for row in rows:
            if row.key in found:
                _agree(found[row.key], row, str(path))
            found[row.key] = row
    return list(found.values())


def _from_table(path: Path) -> list[Row]:
    from pluribus.data.ingest import read_table

    frame = read_table(path)
    columns = [name for name in Row.__dataclass_fields__ if name in frame.columns]
    rows = []
    for i, values in enumerate(frame[columns].astype(object).itertuples(index=False, name=None)):
        fields = {name: (None if value is None or value != value else value) for name, value in zip(columns, values)}
        rows.append(_row({k: v for k, v in fields.items() if not (k == "main" and v is None)}, f"{path}, row {i + 1}"))
    return rows


# --- the table ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """One method in the table. cells: (task, metric) → (mean, standard deviation); p, p_holm: sign-flip of the per-seed Δm."""

    method: str
    seeds: int
    cells: Mapping[tuple[str, str], tuple[float, float]]
    rank: float
    delta: float
    delta_sd: float
    paired: int
    p: float
    p_holm: float
    seconds: float
    memory: float


@dataclass(frozen=True)
class LedgerTable:
    """Methods against a reference. `sentences` say what the figures mean and what they cannot say."""

    reference: str
    convention: Convention
    directions: Mapping[tuple[str, str], str]
    lines: tuple[Line, ...]
    sentences: tuple[str, ...]
    selections: tuple[str, ...]

    def render(self, format: str, *, paper: bool = False) -> str:
        """As Markdown, LaTeX or CSV; `paper` adds the protocol and the BibTeX of the methods."""
        if format not in FORMATS:
            raise unknown("format", format, FORMATS)
        body = {"md": self._markdown, "latex": self._latex, "csv": self._csv}[format]()
        if paper and format == "csv":
            raise BadInput("CSV has no place for a paragraph", where="--paper", remedy="use md or latex")
        return body + ("\n\n" + self._paper(format) if paper else "")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; None where there is no figure."""
        lines = []
        for line in self.lines:
            row = {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in vars(line).items() if k != "cells"}
            row["cells"] = [
                {"task": task, "metric": metric, "mean": mean, "sd": None if math.isnan(sd) else sd}
                for (task, metric), (mean, sd) in line.cells.items()
            ]
            lines.append(row)
        return {
            "schema": 1,
            "reference": self.reference,
            "delta": vars(self.convention),
            "methods": lines,
            "sentences": list(self.sentences),
            "selections": list(self.selections),
        }

    def _grid(self) -> tuple[list[str], list[list[tuple[str, bool]]]]:
        """Headings, and rows of (text, whether it is the best of its column)."""
        cells = list(self.directions)
        best: dict[tuple[str, str], float] = {}
        for cell, direction in self.directions.items():
            values = [line.cells[cell][0] for line in self.lines if cell in line.cells]
            best[cell] = max(values) if direction == "max" else min(values)
        arrow = {"max": "↑", "min": "↓"}
        headings = ["method", "seeds", *(f"{t} {m} {arrow[self.directions[t, m]]}" for t, m in cells)]
        headings += ["mean rank ↓", f"Δm % {'↑' if self.convention.higher else '↓'}", "p (Holm)"]
        rows = []
        for line in self.lines:
            row = [(line.method, False), (str(line.seeds), False)]
            for cell in cells:
                if cell in line.cells:
                    row.append((_spread(*line.cells[cell]), line.cells[cell][0] == best[cell]))
                else:
                    row.append(("–", False))
            row.append((_short(line.rank), False))
            row.append((_spread(line.delta, line.delta_sd, "+") if line.method != self.reference else "0", False))
            row.append((_short(line.p_holm), False))
            rows.append(row)
        return headings, rows

    def _markdown(self) -> str:
        headings, rows = self._grid()
        lines = ["| " + " | ".join(h.replace("|", "\\|") for h in headings) + " |", "|---" * len(headings) + "|"]
        for row in rows:
            texts = (text.replace("|", "\\|") for text, _ in row)
            lines.append("| " + " | ".join(f"**{t}**" if best else t for t, (_, best) in zip(texts, row)) + " |")
        return "\n".join([*lines, "", *(f"- {sentence}" for sentence in self.sentences)])

    def _latex(self) -> str:
        headings, rows = self._grid()
        lines = [r"\begin{tabular}{l" + "r" * (len(headings) - 1) + "}", r"\toprule"]
        lines.append(" & ".join(_tex(h) for h in headings) + r" \\")
        lines.append(r"\midrule")
        for row in rows:
            (method, _), *figures = row
            shown = [_tex(method), *(rf"\textbf{{{_figure(t)}}}" if best else _figure(t) for t, best in figures)]
            lines.append(" & ".join(shown) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}"]
        return "\n".join([*lines, *(f"% {sentence}" for sentence in self.sentences)])

    def _csv(self) -> str:
        out = io.StringIO()
        write = csv.writer(out, lineterminator="\n").writerow
        write(
            [
                "method",
                "task",
                "metric",
                "direction",
                "seeds",
                "mean",
                "sd",
                "mean_rank",
                "delta_convention",
                "delta",
                "delta_sd",
                "paired_seeds",
                "p",
                "p_holm",
                "seconds",
                "memory",
            ]
        )
        for line in self.lines:
            for (task, metric), (mean, sd) in line.cells.items():
                figures = (
                    mean,
                    sd,
                    line.rank,
                    self.convention.name,
                    line.delta,
                    line.delta_sd,
                    line.paired,
                    line.p,
                    line.p_holm,
                    line.seconds,
                    line.memory,
                )
                shown = ["" if v != v else v for v in figures]
                write([line.method, task, metric, self.directions[task, metric], line.seeds, *shown])
        return out.getvalue().rstrip("\n")

    def _paper(self, format: str) -> str:
        counts = sorted({line.seeds for line in self.lines})
        several_seeds = f"{counts[0]} seeds" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"
        figure = "of one seed" if counts == [1] else f"a mean over {several_seeds} (± standard deviation over seeds)"
        tests = (
            "Differences to the reference were tested by exact two-sided sign flips of the per-seed Δm paired by seed, with "
            "Holm's correction over methods. "
        ) * any(math.isfinite(line.p) for line in self.lines)
        chosen = "; ".join(f"“{rule}”" for rule in self.selections)
        several = "rules, not the same for all rows" if len(self.selections) > 1 else "rule"
        protocol = (
            f"Protocol. Every figure is {figure}. Models were selected by the "
            f"{several}: {chosen}. The reference is “{self.reference}”. Δm ({self.convention.name}) is "
            f"{_FORMULA}, in per cent, {self.convention.sign}. {tests}{' '.join(self.sentences[1:])}"
        )
        found = [_entry(line.method) for line in self.lines]
        bibtex = list(dict.fromkeys(e.paper.bibtex.strip() for e in found if e and e.paper and e.paper.bibtex))
        missing = [line.method for line, entry in zip(self.lines, found) if not (entry and entry.paper and entry.paper.bibtex)]
        if missing:
            protocol += f" No citation is known for: {', '.join(missing)} (names of the catalog are cited)."
        references = "\n\n".join(bibtex)
        if format == "latex":
            told = _tex(protocol).replace(_tex("Δm"), r"$\Delta_m$").replace(_FORMULA, self.convention.tex)
            return told + (f"\n\n% references.bib\n{references}" if references else "")
        return protocol.replace(_FORMULA, self.convention.formula) + (f"\n\n```bibtex\n{references}\n```" if references else "")


def _entry(method: str) -> catalog.Entry | None:
    """The catalog's entry of a method, by its name or by that of its class: `nash`, `NashMTL` and `nash_mtl` are one."""
    entries = catalog.entries()
    by_class = {_plain(entry.target.partition(":")[2]): entry for entry in reversed(entries)}
    return (by_class | {_plain(entry.name): entry for entry in reversed(entries)}).get(_plain(method))


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


def table(runs: Iterable[str | os.PathLike[str]] | Sequence[Row], *, reference: str, delta: str = "mean-relative") -> LedgerTable:
    """Compare the methods of some runs (paths, or rows) with one of them.

    reference: the method that Δm and the tests refer to. delta: a convention of `delta_m`.

    Raises
    ------
    BadInput: unknown reference or convention, runs that contradict each other, a reference that lacks a task or metric that
        another method has. (Another method that lacks one, as a champion of some tasks, is shown without rank, Δm and test.)
    """
    given = list(runs)
    rows = [r for r in given if isinstance(r, Row)]
    if len(rows) != len(given):
        rows = read_runs([r for r in given if not isinstance(r, Row)])
    chosen = convention(delta)
    if not rows:
        raise BadInput("the ledger is empty", remedy="log some rows first")
    methods = list(dict.fromkeys(row.method for row in rows))
    if reference not in methods:
        raise unknown("reference", reference, methods)
    judged = {row.task for row in rows if row.main}
    main = [row for row in rows if row.task in judged]
    if not main:
        raise BadInput("no main metric was logged", remedy="log main=True for the metrics that count")
    directions: dict[tuple[str, str], str] = {}
    for row in sorted(main, key=lambda row: (row.method != reference, not row.main)):
        if directions.setdefault((row.task, row.metric), row.direction) != row.direction:
            raise BadInput(f"{row.metric} of {row.task} is logged with both directions", remedy="log it alike")
    by_metric: dict[str, str] = {}
    for (_, metric), direction in directions.items():
        if by_metric.setdefault(metric, direction) != direction:
            raise BadInput(f"metric {metric!r} has different directions on different tasks", remedy="use two names")
    values: dict[str, dict[int, dict[str, dict[str, float]]]] = {method: {} for method in methods}
    for row in main:
        values[row.method].setdefault(row.seed, {}).setdefault(row.task, {})[row.metric] = row.value
    means = {method: _means(values[method], directions) for method in methods}
    lacking = {m: [cell for cell in directions if cell[1] not in means[m].get(cell[0], {})] for m in methods}
    for task, metric in lacking[reference]:
        what = f"the reference {reference!r} lacks {metric} of task {task!r}"
        raise BadInput(what, remedy="log it, or choose a reference that has every figure")
    ranks = mean_rank({method: means[method] for method in methods if not lacking[method]}, by_metric)
    lines: list[Line] = []
    tests: dict[str, tuple[float, int]] = {}
    complete = {m: {s: v for s, v in by_seed.items() if _complete(v, directions)} for m, by_seed in values.items()}
    for method in methods:
        both = sorted(set(complete[method]) & set(complete[reference]))
        each = [_delta(chosen, complete[method][s], complete[reference][s], by_metric, directions) for s in both]
        tests[method] = (sign_flip(each) if method != reference and len(both) > 1 else math.nan, len(both))
    others = [method for method in methods if method != reference and not lacking[method]]
    adjusted = dict(zip(others, holm([tests[m][0] for m in others]).tolist()))
    for method in methods:
        cells = {}
        for task, metric in directions:
            seen = [v[task][metric] for v in values[method].values() if metric in v.get(task, {})]
            if not seen:
                continue
            cells[task, metric] = (float(np.mean(seen)), float(np.std(seen, ddof=1)) if len(seen) > 1 else math.nan)
        against = [_delta(chosen, v, means[reference], by_metric, directions) for v in complete[method].values()]
        mine = [row for row in rows if row.method == method]
        lines.append(
            Line(
                method,
                len(values[method]),
                cells,
                ranks.get(method, math.nan),
                math.nan if lacking[method] else _delta(chosen, means[method], means[reference], by_metric, directions),
                float(np.std(against, ddof=1)) if len(against) > 1 else math.nan,
                tests[method][1],
                tests[method][0],
                adjusted.get(method, math.nan),
                _mean_of({row.seed: row.seconds for row in mine if row.seconds is not None}),  # any row of a run may tell
                _mean_of({row.seed: row.memory for row in mine if row.memory is not None}),
            )
        )
    lines.sort(key=lambda line: (line.method != reference, methods.index(line.method)))
    formula = f"Δm ({chosen.name}) = {chosen.formula}, in per cent against {reference!r}; {chosen.sign}."
    selections = tuple(dict.fromkeys(row.selection for row in rows))
    sentences = [formula, *_honest([line for line in lines if not lacking[line.method]], reference)]
    if len(directions) > len({task for task, _ in directions}):
        sentences.append(f"The mean rank is over all {len(directions)} metrics, those beside a task's main one too.")
    partial = [f"{method} ({', '.join(' '.join(cell) for cell in cells)})" for method, cells in lacking.items() if cells]
    if partial:
        sentences.append(f"No rank, Δm or test for what lacks figures: {'; '.join(partial)}.")
    return LedgerTable(reference, chosen, directions, tuple(lines), tuple(sentences), selections)


def _complete(scores: Scores, directions: Mapping[tuple[str, str], str]) -> bool:
    return all(metric in scores.get(task, {}) for task, metric in directions)


def _means(by_seed: Mapping[int, Scores], directions: Mapping[tuple[str, str], str]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for task, metric in directions:
        seen = [scores[task][metric] for scores in by_seed.values() if metric in scores.get(task, {})]
        if seen:
            found.setdefault(task, {})[metric] = float(np.mean(seen))
    return found


def _delta(
    chosen: Convention, scores: Scores, base: Scores, directions: Mapping[str, str], order: Mapping[tuple[str, str], str]
) -> float:
    """Δm with each task's metrics in the order of the table: the reference's first metric of a task is the main one."""
    ordered: list[dict[str, dict[str, float]]] = [{}, {}]
    for task, metric in order:
        for side, source in zip(ordered, (scores, base)):
            side.setdefault(task, {})[metric] = source[task][metric]
    return delta(chosen.name, ordered[0], ordered[1], directions)


def _honest(lines: Sequence[Line], reference: str) -> list[str]:
    """What the tests over seeds can and cannot say."""
    others = [line for line in lines if line.method != reference]
    if not others:
        return ["There is no other method to test."]
    untested = [line.method for line in others if line.paired < 2]
    said = []
    if untested:
        said.append(f"No test for {', '.join(untested)}: fewer than two seeds in common with {reference!r}.")
    undefined = [line.method for line in others if math.isnan(line.delta) or (line.paired >= 2 and math.isnan(line.p))]
    if undefined:
        why = "it is not defined (a reference at or below 0); try error-reduction"
        said.append(f"No Δm and no test for {', '.join(undefined)}: {why}.")
    tested = [line for line in others if line.paired >= 2 and not math.isnan(line.p)]
    if tested:
        k = max(line.paired for line in tested)
        floor = 2 / 2**k
        least = min(1.0, floor * len(tested))
        if least >= ALPHA:
            holm_part = f", and Holm over {len(tested)} methods makes that {least:.4g}" if len(tested) > 1 else ""
            need = math.ceil(math.log2(2 * len(tested) / ALPHA) + 1e-9)
            said.append(
                f"With {k} paired seeds a two-sided sign-flip test cannot fall below {floor:.4g}{holm_part}: no difference in "
                f"this table can be called significant at {ALPHA:g}, however large; {need} seeds would be the least."
            )
        else:
            clear = [line.method for line in tested if line.p_holm < ALPHA]
            said.append(
                f"Two-sided sign flips of Δm over up to {k} paired seeds, Holm over {len(tested)}: "
                + (
                    f"{', '.join(clear)} differ{'s' if len(clear) == 1 else ''} from {reference!r} at {ALPHA:g}."
                    if clear
                    else f"no method differs from {reference!r} at {ALPHA:g}."
                )
            )
        said.append("These tests speak of other seeds on this test split, not of other test rows.")
    return said


def _mean_of(by_seed: Mapping[int, float]) -> float:
    return float(np.mean(list(by_seed.values()))) if by_seed else math.nan


def _short(value: float, sign: str = "") -> str:
    return f"{value + 0.0:{sign}.4g}" if math.isfinite(value) else "–"  # + 0.0: a zero has no sign


def _spread(mean: float, sd: float, sign: str = "") -> str:
    return _short(mean, sign) + (f" ± {sd:.2g}" if math.isfinite(sd) else "")


_TEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "±": r"$\pm$",
    "Δ": r"$\Delta$",
    "Σ": r"$\Sigma$",
    "−": "$-$",
    "–": "--",
    "“": "``",
    "”": "''",
    "|": r"\textbar{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}
_FORMULA = "\0"  # where the protocol has the formula, which each format writes its own way


def _tex(text: str) -> str:
    return "".join(_TEX.get(letter, letter) for letter in text)


def _figure(text: str) -> str:
    """A number's minus is no hyphen."""
    sign, text = ("$-$", text[1:]) if text.startswith("-") else ("", text)
    return sign + _tex(text)
