"""This checkout against another one of the same project: what a change did to the speed. Writes docs/results/against.md.

Both sides do the same work on the same files, one thread a process, in turn (before, after, after, before, …), each in processes
of its own that import the one or the other source. A ratio is that of neighbours: the seconds after the change over those before
it; its median and quartiles are over the pairs. Every 5 pairs all processes are new ones, since one process is faster than
another with the same code, by a few percent, for its whole life. Of what is short, the quickest of a few repetitions counts.
CPU seconds decide, since other work on the machine disturbs them least; those of a study, an import and `--help` are of a whole
process with its children. What is served is also judged by the clock: 32 clients wait for answers, one row a request.

The environment variable PLURIBUS_BEFORE names the other checkout: `git worktree add ../before COMMIT` makes one. Nothing but
the public interface is called, so that commits far apart can be compared.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.ratio import RESULTS, machine

ROOT = Path(__file__).parents[1]
LIMIT = 1.05
PAIRS = 15
BLOCK = 5  # pairs of the same processes
REPETITIONS = 3  # whose quickest is one side of a pair
ROLES: dict[str, Any] = {
    "id": "flight_id",
    "split": "time:departure",
    "not_applicable": dict.fromkeys(("departure_delay", "late", "air_time"), "cancelled"),
}
TARGETS = ["cancelled:binary", "departure_delay:regression", "late:binary", "air_time:regression"]
NEVER = 1000  # epochs or rounds of patience: the work is the same, however good the models become


# -- what is measured: each function makes ready, in a process of one side, and returns one repetition ---------------------------
# `home` holds the files that both sides read, `own` belongs to the side. A repetition returns how many units it was.

Repetition = Callable[[], int]


def _flights(home: Path) -> Any:
    from pluribus.data import Table, prepare, split

    table = Table.read(home / "flights.parquet", TARGETS, **ROLES)
    return prepare(table, split(table))


def _trainer(home: Path, **settings: Any) -> Repetition:
    import torch

    from pluribus import MultiTaskModel, Trainer
    from pluribus.sharing import SharedBottom
    from pluribus.tabular import TabularMLP
    from pluribus.training import Stage

    data = _flights(home)
    data = data.with_parts(train=data.parts["train"], valid=data.parts["valid"][:2000])
    torch.manual_seed(0)
    encoder = TabularMLP.of(data.columns)
    model = MultiTaskModel(data.tasks, encoder, SharedBottom(data.tasks, encoder.width, tower=64))
    size = 512

    def repetition() -> int:
        Trainer(model, [Stage(epochs=1, batch_size=size, patience=None, **settings)]).fit(data)
        return -(-len(data.parts["train"]) // size)

    return repetition


def trainer(home: Path, own: Path) -> Repetition:
    return _trainer(home)


def balanced(home: Path, own: Path) -> Repetition:
    from pluribus.balancing import UncertaintyWeighting

    return _trainer(home, balancer=UncertaintyWeighting(), listen=True)


def _epochs(data: Any, own: Path, epochs: int) -> Repetition:
    """Epochs of batches of 1024 from the folder of a prepared table."""
    import torch

    from pluribus.data import Prepared

    data.save(own / "prepared")
    stored = Prepared.load(own / "prepared")
    generator = torch.Generator().manual_seed(0)

    def repetition() -> int:
        return sum(1 for _ in range(epochs) for _ in stored.batches("train", 1024, generator=generator))

    return repetition


def batches(home: Path, own: Path) -> Repetition:
    return _epochs(_flights(home), own, 100)


def many(home: Path, own: Path) -> Repetition:
    from pluribus.data import Table, prepare, split

    targets = [f"t{i}:regression" for i in range(139)]
    table = Table.read(home / "many.parquet", targets, split="random")
    return _epochs(prepare(table, split(table)), own, 60)


def _merge(home: Path, own: Path, method: str) -> Repetition:
    from pluribus import merge

    experts = {task: home / task for task in "ab"}

    def repetition() -> int:
        merge(home / "base", experts, method, out=own / "merged", threads=1, overwrite=True, hashes=False)
        return 1

    return repetition


def task_arithmetic(home: Path, own: Path) -> Repetition:
    return _merge(home, own, "task_arithmetic")


def ties(home: Path, own: Path) -> Repetition:
    return _merge(home, own, "ties")


def study(home: Path, own: Path) -> Repetition:
    from pluribus import Study

    networks = {"epochs": 3, "patience": NEVER, "width": 128}
    settings = {
        "shared_bottom_equal": networks,
        "single_networks": networks,
        "lightgbm_per_task": {"rounds": 30, "patience": NEVER},
    }

    def repetition() -> int:
        shutil.rmtree(own / "runs", ignore_errors=True)
        Study(
            home / "ten_thousand.parquet",
            TARGETS,
            **ROLES,
            folder=own / "runs",
            candidates=list(settings),
            settings=settings,
            seeds=2,
            configurations=1,
            budget="1h",  # more than it needs: what is trained must not hang on the seconds
            jobs=2,
        ).run()
        return 1

    return repetition


def model(home: Path, own: Path) -> Repetition:
    """Not measured: it writes the model folder that is served."""
    from pluribus.modeling import Budget
    from pluribus.tabular import SharedBottomEqual

    data = _flights(home)

    def repetition() -> int:
        SharedBottomEqual(epochs=1, tower=64).fit(data, Budget(600), 0).save(own / "model")
        return 1

    return repetition


WORKERS = {f.__name__: f for f in (trainer, balanced, batches, many, task_arithmetic, ties, study, model)}


def work(name: str, home: Path, own: Path, once: bool) -> None:
    """The main function of a side's process: make ready, then repetitions for each line on standard input, or only one."""
    import torch

    import pluribus

    torch.set_num_threads(1)
    repetition = WORKERS[name](home, own)
    print(json.dumps({"source": pluribus.__file__}), flush=True)
    if once:
        repetition()
        return
    for _ in sys.stdin:
        cpus, clocks = [], []
        for _ in range(REPETITIONS):
            clock, cpu = time.perf_counter(), time.process_time()
            units = repetition()
            cpus.append((time.process_time() - cpu) / units)
            clocks.append((time.perf_counter() - clock) / units)
        print(json.dumps({"cpu": min(cpus), "clock": min(clocks)}), flush=True)


# -- the two sides ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seconds:
    """What one unit took."""

    cpu: float
    clock: float


@dataclass(frozen=True)
class Side:
    """A checkout: where it is, and a folder of its own for what its processes write."""

    checkout: Path
    home: Path
    own: Path

    @property
    def environment(self) -> dict[str, str]:
        one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        return {**os.environ, **one, "PYTHONPATH": str(self.checkout / "src"), "PYTHONHASHSEED": "0"}

    def start(self, arguments: list[str], **pipes: Any) -> subprocess.Popen[str]:
        """A Python of this side; it runs in this checkout's root, for the package `benchmarks`."""
        with (self.own / "errors.txt").open("w") as errors:
            pipes = {"stderr": errors, **pipes}
            return subprocess.Popen([sys.executable, *arguments], cwd=ROOT, env=self.environment, text=True, **pipes)

    def failed(self) -> RuntimeError:
        """The last line that a process of this side wrote on standard error."""
        lines = (self.own / "errors.txt").read_text("utf-8", "replace").strip().splitlines()
        return RuntimeError(lines[-1] if lines else "a process ended without a word")

    def worker(self, name: str, *options: str) -> list[str]:
        return ["-m", "benchmarks.against", name, str(self.home), str(self.own), *options]


Measure = Callable[[], Seconds]


@contextmanager
def kept(side: Side, name: str) -> Iterator[Measure]:
    """A process that lives through all repetitions."""
    process = side.start(side.worker(name), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    stdin, stdout = process.stdin, process.stdout

    def answer() -> dict[str, Any]:
        line = stdout.readline()
        if not line:
            raise side.failed()
        found: dict[str, Any] = json.loads(line)
        return found

    def measure() -> Seconds:
        stdin.write("\n")
        stdin.flush()
        return Seconds(**answer())

    try:
        source = Path(answer()["source"])
        if not source.is_relative_to(side.checkout):
            raise RuntimeError("a process imported another source than its side's")
        measure()  # for warming up
        yield measure
    finally:
        process.kill()
        process.wait()
        stdin.close()
        stdout.close()


@contextmanager
def fresh(side: Side, arguments: list[str], times: int = 1) -> Iterator[Measure]:
    """A new process for each of `times` repetitions."""

    def measure() -> Seconds:
        cpus, clocks = [], []
        for _ in range(times):
            clock = time.perf_counter()
            process = side.start(arguments, stdout=subprocess.DEVNULL)
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                raise side.failed()
            cpus.append(used.ru_utime + used.ru_stime)
            clocks.append(time.perf_counter() - clock)
        return Seconds(min(cpus), min(clocks))

    yield measure


@contextmanager
def served(side: Side) -> Iterator[Measure]:
    """`pluribus serve` on a model of the side's own; the clients are in this process."""
    import pandas as pd

    from benchmarks.serving import REQUESTS, one_round, requests_to, wait_for

    if not (side.own / "model").is_dir():
        with fresh(side, side.worker("model", "--once")) as write:
            write()
    frame = pd.read_parquet(side.home / "ten_thousand.parquet").head(2000)
    inputs = frame.drop(columns=["flight_id", *(target.split(":")[0] for target in TARGETS)])
    sent = requests_to("/predict", json.loads(inputs.to_json(orient="records", date_format="iso")))
    server = side.start(["-m", "pluribus", "serve", str(side.own / "model"), "--port", "0"], stderr=subprocess.PIPE)
    assert server.stderr is not None
    try:
        said = server.stderr.readline()
        address = re.search(r"http://127\.0\.0\.1:(\d+)", said)
        if address is None:
            raise RuntimeError(said.strip() or "the server did not start")
        port = int(address[1])
        wait_for(port)

        cpu = ~server.pid << 3 | 2  # Linux' number of a process's CPU clock (clock_getcpuclockid); psutil counts in 10 ms

        def measure() -> Seconds:
            cpus, clocks = [], []
            for _ in range(REPETITIONS):
                spent = time.clock_gettime(cpu)
                rate, _ = asyncio.run(one_round(port, sent))
                cpus.append((time.clock_gettime(cpu) - spent) / REQUESTS)
                clocks.append(1 / rate)
            return Seconds(min(cpus), min(clocks))

        measure()  # for warming up
        yield measure
    finally:
        server.terminate()
        server.wait(30)
        server.stderr.close()


def measured(side: Side) -> dict[str, tuple[Any, bool]]:
    """What is compared: how this side measures it, and whether the clock is judged as well."""
    return {
        "a trainer step: batch 512, 4 tasks with holes, shared bottom": (kept(side, "trainer"), False),
        "the same under uncertainty weighting, listening": (kept(side, "balanced"), False),
        "a batch from the store: 1024 flights, 4 tasks with holes": (kept(side, "batches"), False),
        "a batch from the store: 1024 rows, 139 tasks with one label a row, a sequence": (kept(side, "many"), False),
        "a study of 10,000 rows: 3 candidates, 2 seeds, fixed epochs": (fresh(side, side.worker("study", "--once")), False),
        "a request served: one row, 32 clients": (served(side), True),
        "merging 0.5 GB by task arithmetic": (kept(side, "task_arithmetic"), False),
        "merging 0.5 GB by TIES": (kept(side, "ties"), False),
        "`import pluribus.balancing`": (fresh(side, ["-c", "import pluribus.balancing"]), False),
        "`pluribus --help`": (fresh(side, ["-m", "pluribus", "--help"], times=10), False),
    }


# -- files, pairs, page ----------------------------------------------------------------------------------------------------------


def files(home: Path) -> None:
    """What both sides read: the flights, a table of many tasks, and three checkpoints of 0.5 GB together."""
    import numpy as np
    import pandas as pd

    from benchmarks.merging_speed import checkpoints
    from pluribus.data.flights import flights

    flights(40_000).frame.to_parquet(home / "flights.parquet")
    flights(10_000).frame.to_parquet(home / "ten_thousand.parquet")
    rng, tasks, each = np.random.default_rng(0), 139, 110
    n = tasks * each
    targets = np.full((n, tasks), np.nan)
    targets[np.arange(n), rng.permutation(n) % tasks] = rng.normal(size=n)
    columns = {f"x{i}": rng.normal(size=n) for i in range(20)} | {f"t{i}": targets[:, i] for i in range(tasks)}
    sequence = [rng.integers(0, 500, length).tolist() for length in np.minimum(rng.geometric(0.2, n), 20)]
    pd.DataFrame(columns | {"visited": sequence}).to_parquet(home / "many.parquet")
    checkpoints(home, 167)


def commit(checkout: Path) -> str:
    """Which commit a checkout holds, and its date."""

    def git(*arguments: str) -> str:
        found = subprocess.run(["git", "-C", str(checkout), *arguments], capture_output=True, text=True)
        return found.stdout.strip()

    name = git("log", "-1", "--format=%h of %cs")
    return f"{name}{' and changes not committed' if git('status', '--porcelain', 'src') else ''}" if name else "no commit"


def compare(name: str, before: Side, after: Side, pairs: int) -> str:
    """One line of the table, over so many pairs."""
    found: list[tuple[Seconds, Seconds]] = []
    by_clock = measured(after)[name][1]
    try:
        while len(found) < pairs:
            with measured(before)[name][0] as first, measured(after)[name][0] as second:
                for _ in range(min(BLOCK, pairs - len(found))):
                    if len(found) % 2:
                        changed, unchanged = second(), first()
                    else:
                        unchanged, changed = first(), second()
                    found.append((unchanged, changed))
    except (RuntimeError, OSError) as error:  # a side's process failed; the others go on
        print(f"{name}: {error}", flush=True)
        return f"| {name} | not measured | | | | | |"
    cpu = statistics.quantiles([b.cpu / a.cpu for a, b in found], n=4)
    clock = statistics.quantiles([b.clock / a.clock for a, b in found], n=4)
    medians = [1e3 * statistics.median(each[i].cpu for each in found) for i in (0, 1)]
    judged = [cpu[1], clock[1]] if by_clock else [cpu[1]]
    return (
        f"| {name} | {cpu[1]:.3f} | {cpu[0]:.3f}–{cpu[2]:.3f} | {clock[1]:.3f}{' (judged too)' if by_clock else ''} "
        f"| {medians[0]:.4g} | {medians[1]:.4g} | {'reached' if max(judged) <= LIMIT else 'missed'} |"
    )


def run(full: bool, pairs: int | None = None, only: str = "") -> None:
    """pairs: default 15, in full 31. only: a part of the names of what is measured."""
    named = os.environ.get("PLURIBUS_BEFORE", "")
    if not (Path(named) / "src" / "pluribus").is_dir() or not named:
        print(
            "make bench: PLURIBUS_BEFORE names no checkout to compare with; `git worktree add ../before COMMIT` makes one, then "
            "PLURIBUS_BEFORE=../before make bench ONLY=against",
            file=sys.stderr,
        )
        raise SystemExit(2)
    pairs = pairs or (31 if full else PAIRS)
    checkouts = {"before": Path(named).resolve(), "after": ROOT.resolve()}
    head = [f"| what | CPU, after / before | quartiles | clock | before, CPU ms | after, CPU ms | ≤ {LIMIT} |", "|---" * 7 + "|"]
    lines = []
    with TemporaryDirectory(prefix="against-") as folder:
        home = Path(folder).resolve()
        files(home)
        sides = {name: Side(checkout, home, home / name) for name, checkout in checkouts.items()}
        for side in sides.values():
            side.own.mkdir()
            with fresh(side, ["-m", "compileall", "-q", str(side.checkout / "src")]) as compiled:
                compiled()
        for name in measured(sides["after"]):
            if only in name:
                lines.append(compare(name, sides["before"], sides["after"], pairs))
                print(lines[-1], flush=True)
    page = [
        "# Before and after a change",
        "",
        " ".join((__doc__ or "").split("\n\n")[1].split()),
        "",
        f"After: {commit(checkouts['after'])}. Before: {commit(checkouts['before'])}. Medians of {pairs} pairs; {machine()}, "
        f"load {os.getloadavg()[0]:.1f} at the end; {datetime.date.today()}; `make bench ONLY=against`.",
        "",
        *head,
        *lines,
        "",
    ]
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "against.md").write_text("\n".join(page), "utf-8")


if __name__ == "__main__":
    work(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), once="--once" in sys.argv)
