"""Tables that several benchmarks train on: six binary tasks of a generated world, correlated regressions, and public sets.

`funnel6`: six binary tasks in two categories with positive rates from 30 % to 0.5 % (HoME's setting).
`bench_0.2`, `bench_0.9`: seven regression tasks with polynomial responses on correlated directions (MultiTab-Bench's generator:
rows of W = Q Λ^½ U, so that W Wᵀ is the wanted correlation).
`adult`, `census`: income and "never married"; the census is the UCI test file, the training file could not be had.
`flights`: two binary and two real targets, with holes. `school`: examination scores, a task a school.
`wq`: 14 species in rivers. `enb`: two loads of a building.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.ratio import DATA

CATEGORIES = {"interaction": ["like", "comment", "share"], "watch": ["start", "half", "full"]}
RATES = {"start": 0.3, "like": 0.1, "half": 0.05, "full": 0.02, "comment": 0.01, "share": 0.005}


def funnel6(rows: int, fresh: int = 0, draw: int = 0) -> tuple[Any, list[str]]:
    """Six binary tasks: each score mixes a direction of all, one of its category, one of its own, and noise; the threshold sets
    the rate. The world is the same for every seed of training. fresh: so many other rows of this world instead, of the sample
    numbered `draw`."""
    import pandas as pd

    rng, again = np.random.default_rng(11), np.random.default_rng([11, draw])
    x = np.concatenate((rng.normal(size=(rows, 20)), again.normal(size=(fresh, 20))))
    common = np.tanh(x @ rng.normal(size=20) / 3) + 0.5 * x[:, 0] * x[:, 1]
    frame = pd.DataFrame(x, columns=[f"x{i}" for i in range(20)])
    for members in CATEGORIES.values():
        theirs = np.tanh(x @ rng.normal(size=20) / 3) * (1 + x[:, 2])
        for name in members:
            own = 0.7 * (x @ rng.normal(size=20)) / 4
            noise = np.concatenate((rng.normal(size=rows), again.normal(size=fresh)))
            score = common + theirs + own + 0.7 * noise
            frame[name] = (score > np.quantile(score[:rows], 1 - RATES[name])).astype(int)
    kept = frame.iloc[rows:].reset_index(drop=True) if fresh else frame
    return kept, [f"{name}:binary" for members in CATEGORIES.values() for name in members]


def bench(correlation: float) -> Callable[[int], tuple[Any, list[str]]]:
    def made(rows: int) -> tuple[Any, list[str]]:
        import pandas as pd

        rng = np.random.default_rng(12)
        degrees, d = (1, 3, 2, 3, 4, 2, 3), 32
        t = len(degrees)
        wanted = np.full((t, t), correlation) + (1 - correlation) * np.eye(t)
        values, vectors = np.linalg.eigh(wanted)
        u = np.linalg.qr(rng.normal(size=(d, t)))[0].T
        w = (vectors * np.sqrt(values)) @ u
        assert np.allclose(w @ w.T, wanted, atol=1e-6)
        x = rng.normal(size=(rows, d))
        frame = pd.DataFrame(x, columns=[f"x{i}" for i in range(d)])
        for i, degree in enumerate(degrees):
            s = x @ w[i]
            frame[f"y{i}"] = sum(s**k for k in range(1, degree + 1)) + 0.01 * rng.normal(size=rows)
        return frame, [f"y{i}:regression" for i in range(t)]

    return made


def adult(rows: int) -> tuple[Any, list[str]]:
    import pandas as pd

    frame = pd.read_csv(DATA / "adult" / "adult.data.gz", header=None, skipinitialspace=True)
    frame.columns = [f"c{i}" for i in range(frame.shape[1])]
    return _people(frame, income="c14", marital="c5", also=("c7", "c2"), rows=rows)


def census(rows: int) -> tuple[Any, list[str]]:
    import pandas as pd

    frame = pd.read_csv(DATA / "census_income_kdd_99k" / "census-income.test.gz", header=None, skipinitialspace=True)
    frame.columns = [f"c{i}" for i in range(frame.shape[1])]
    return _people(frame, income="c41", marital="c7", also=("c24",), rows=rows)


def _people(frame: Any, *, income: str, marital: str, also: tuple[str, ...], rows: int) -> tuple[Any, list[str]]:
    """Income and "never married"; `also`: the survey's weight, and what tells the marital state outright."""
    frame = frame.sample(min(rows, len(frame)), random_state=0).reset_index(drop=True)
    rich = frame[income].astype(str).str.contains("50000\\+|>50K").astype(int)
    never = frame[marital].astype(str).str.strip().str.lower().str.startswith("never").astype(int)
    frame = frame.drop(columns=[income, marital, *also]).assign(rich=rich, never_married=never)
    return frame, ["rich:binary", "never_married:binary"]


def mulan(name: str, targets: int) -> Callable[[int], tuple[Any, list[str]]]:
    """A multi-target regression set of the Mulan collection; its last columns are the targets."""

    def made(rows: int) -> tuple[Any, list[str]]:
        import gzip
        import io

        import pandas as pd
        from scipy.io import arff

        text = gzip.decompress((DATA / "mulan_multitarget" / f"{name}.arff.gz").read_bytes()).decode("utf-8", "replace")
        frame = pd.DataFrame(arff.loadarff(io.StringIO(text))[0])
        for column in frame.columns[[kind.kind == "O" for kind in frame.dtypes]]:
            frame[column] = frame[column].str.decode("utf-8")
        frame = frame.sample(min(rows, len(frame)), random_state=0).reset_index(drop=True)
        return frame, [f"{column}:regression" for column in frame.columns[-targets:]]

    return made


SETS: dict[str, Callable[[int], tuple[Any, list[str]]]] = {
    "funnel6": funnel6,
    "bench_0.2": bench(0.2),
    "bench_0.9": bench(0.9),
    "adult": adult,
    "census": census,
    "wq": mulan("wq", 14),
    "enb": mulan("enb", 2),
}


def prepared(name: str, rows: int) -> Any:
    """The set of that name, split once at random (flights: as its own table says)."""
    from pluribus.data.flights import flights
    from pluribus.data.prepared import prepare
    from pluribus.data.splitting import split
    from pluribus.data.table import Table

    if name == "flights":
        table = flights(rows)
    elif name == "school":
        table = school(rows)
    else:
        frame, targets = SETS[name](rows)
        table = Table(frame, targets, split="random")
    return prepare(table, split(table, 0))


def school(rows: int) -> Any:
    """Pupils of the largest schools, in the long layout, as many schools as `rows` pupils come from."""
    import pandas as pd

    from pluribus.data.table import Table

    frame = pd.read_csv(DATA / "school" / "school_data.csv.gz")
    frame = frame.assign(score=pd.read_csv(DATA / "school" / "school_target.csv.gz").iloc[:, -1].to_numpy(float))
    frame["task"] = "school " + frame["task"].astype(int).astype(str)
    counts = frame["task"].value_counts()
    kept = counts.index[: max(2, int((counts.cumsum() <= rows).sum()))]
    frame = frame[frame["task"].isin(kept)].reset_index(drop=True)
    return Table(frame, ["score:regression"], task_column="task", split="random")
