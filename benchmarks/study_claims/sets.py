"""The tables of `study_claims`: frame, targets, group, task column, split.

Settings of this library were chosen while looking at `CHOSEN_ON`; figures on these tables are reported apart. Molecules come as
counts of the tokens of their SMILES and of 64 hashed pairs of tokens: no chemistry library is needed, and no arm sees more.
"""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from benchmarks.ratio import DATA
from benchmarks.tables import adult, census, mulan

CENSUS_ROWS = 40_000  # of 99,762: what two cores can study often


@dataclass(frozen=True)
class Made:
    """A table and the roles of its columns.

    targets: column → kind. task_column: the long layout's. group: whoever must not stand in two parts. split: "random" or
    "time:COLUMN". note: what a reader must know.
    """

    frame: Any
    targets: dict[str, str]
    task_column: str | None = None
    group: str | None = None
    split: str = "random"
    note: str = ""


def _mulan(name: str, targets: int) -> Callable[[], Made]:
    def made() -> Made:
        frame, named = mulan(name, targets)(10**6)
        return Made(frame, dict(each.rsplit(":", 1) for each in named))

    return made


def _labels(name: str, labels: int) -> Callable[[], Made]:
    """A multi-label set of the Mulan collection, its given train and test files together; the last columns are 0/1 targets."""

    def made() -> Made:
        import pandas as pd
        from scipy.io import arff

        parts = []
        for part in ("train", "test"):
            text = gzip.decompress((DATA / "mulan_multilabel" / f"{name}-{part}.arff.gz").read_bytes()).decode("utf-8", "replace")
            parts.append(pd.DataFrame(arff.loadarff(io.StringIO(text))[0]))
        frame = pd.concat(parts, ignore_index=True)
        targets = list(frame.columns[-labels:])
        for column in frame.columns[[kind.kind == "O" for kind in frame.dtypes]]:
            frame[column] = frame[column].str.decode("utf-8")
        frame[targets] = frame[targets].astype(int)
        return Made(frame, dict.fromkeys(targets, "binary"))

    return made


def _people(source: Callable[[int], tuple[Any, list[str]]], rows: int) -> Callable[[], Made]:
    def made() -> Made:
        frame, named = source(rows)
        return Made(frame, dict(each.rsplit(":", 1) for each in named))

    return made


def _student(name: str) -> Callable[[], Made]:
    def made() -> Made:
        import pandas as pd

        frame = pd.read_csv(DATA / "student_performance" / f"student-{name}.csv", sep=";")
        return Made(frame, dict.fromkeys(("G1", "G2", "G3"), "regression"))

    return made


def _parkinsons() -> Made:
    import pandas as pd

    frame = pd.read_csv(DATA / "parkinsons_telemonitoring" / "parkinsons_updrs.data.gz", sep="\t")
    frame.columns = [re.sub(r"\W+", "_", column).strip("_") for column in frame.columns]
    targets = dict.fromkeys(("motor_UPDRS", "total_UPDRS"), "regression")
    return Made(frame, targets, group="subject", note="by subject")


def _grouped(stem: str, column: str, target: str, kind: str, *, without: str = "\0", fewest: int = 1) -> Callable[[], Made]:
    """A table in the long layout: a row has the label of the one task that its task column names. Tasks with fewer than `fewest`
    rows are left out."""

    def made() -> Made:
        import pandas as pd

        frame = pd.read_csv(DATA / f"{stem}_data.csv.gz")
        frame = frame.drop(columns=[c for c in frame.columns if without in c])
        frame["task"] = "task " + frame.pop(column).astype(int).astype(str)
        frame[target] = pd.read_csv(DATA / f"{stem}_target.csv.gz").iloc[:, -1].to_numpy()
        frame = frame[frame.groupby("task")[target].transform("size") >= fewest].reset_index(drop=True)
        return Made(frame, {target: kind}, task_column="task", note=f"long, {frame['task'].nunique()} tasks")

    return made


def _computer() -> Made:
    """How likely 190 people would buy 20 computers, from seven facts about a person."""
    import pandas as pd

    read = [
        pd.read_csv(DATA / "computer" / name, sep="\t", skiprows=1, header=None) for name in ("ComputerDataZ.txt", "LikeBuy.txt")
    ]
    facts, liked = (each.dropna(axis=1, how="all").dropna() for each in read)
    facts.columns = [f"z{i}" for i in range(facts.shape[1])]
    liked.columns = [f"computer {i}" for i in range(liked.shape[1])]
    frame = pd.concat([facts.reset_index(drop=True), liked.reset_index(drop=True)], axis=1)
    return Made(frame, dict.fromkeys(liked.columns, "regression"))


def _wine() -> Made:
    import pandas as pd

    parts = []
    for colour in ("red", "white"):
        part = pd.read_csv(DATA / "wine_quality" / f"winequality-{colour}.csv", header=None)
        part.columns = [*(f"x{i}" for i in range(part.shape[1] - 1)), "quality"]
        parts.append(part.assign(colour=colour))
    frame = pd.concat(parts, ignore_index=True)
    return Made(frame, {"quality": "regression"}, task_column="colour", note="long, 2 tasks")


TOKEN = re.compile(r"Cl|Br|%\d\d|\[[^\]]*\]|.")
PLAIN = ["C", "c", "N", "n", "O", "o", "S", "s", "F", "Cl", "Br", "I", "P", "[H]", "=", "#", "(", "/", "@", "+", "-", "[", "ring"]
PAIRS = 64


def tokens(smiles: Sequence[str]) -> Any:
    """Counts of plain tokens and of hashed pairs of tokens: a frame of numbers, a row each molecule."""
    import pandas as pd

    found = np.zeros((len(smiles), len(PLAIN) + PAIRS + 1), np.float32)
    place = {token: i for i, token in enumerate(PLAIN)}
    for row, text in enumerate(smiles):
        read = ["ring" if token.strip("%").isdigit() else token for token in TOKEN.findall(text.strip())]
        for token in read:
            whole = token in place or not token.startswith("[")
            for part in [token] if whole else ["[", *re.findall(r"Cl|Br|[@+\-A-Za-z]", token)]:
                if part in place:
                    found[row, place[part]] += 1
        for one, two in pairwise(read):
            found[row, len(PLAIN) + zlib.crc32(f"{one} {two}".encode()) % PAIRS] += 1
        found[row, -1] = len(read)
    names = [f"n{i}" for i in range(len(PLAIN))] + [f"pair{i}" for i in range(PAIRS)] + ["length"]
    return pd.DataFrame(found, columns=names)


def _molecules(path: str, kind: str, targets: Sequence[str] = ()) -> Callable[[], Made]:
    """Targets beside SMILES: those named, else all other columns of numbers."""

    def made() -> Made:
        import pandas as pd

        frame = pd.read_csv(DATA / path)
        chosen = list(targets) or [c for c in frame.columns if c != "smiles" and pd.api.types.is_numeric_dtype(frame[c])]
        kept = frame[chosen].reset_index(drop=True)
        return Made(pd.concat([tokens(frame["smiles"].tolist()), kept], axis=1), dict.fromkeys(chosen, kind))

    return made


def _toxcast() -> Made:
    """The 20 assays with the most labels among those with 200 positives."""
    import pandas as pd

    frame = pd.read_csv(DATA / "toxcast" / "toxcast_data.csv.gz").drop_duplicates("smiles")
    assays = frame.drop(columns="smiles")
    assays = assays.loc[:, assays.sum() >= 200]
    chosen = sorted(assays.count().sort_values(ascending=False, kind="stable").index[:20])
    frame = frame[frame[chosen].notna().any(axis=1)].reset_index(drop=True)
    return Made(pd.concat([tokens(frame["smiles"].tolist()), frame[chosen]], axis=1), dict.fromkeys(chosen, "binary"))


def _bace() -> Made:
    """Active or not, and how much: two kinds on the same molecules, whose descriptors are given."""
    import pandas as pd

    frame = pd.read_csv(DATA / "bace" / "bace.csv.gz").drop(columns=["smiles", "CID", "Model"])
    frame = frame.loc[:, ~frame.columns.duplicated()]
    return Made(frame, {"Class": "binary", "pIC50": "regression"})


def _properties() -> Made:
    """Solubility, free energy of hydration and lipophilicity: three sets of molecules, few of which are in two."""
    import pandas as pd

    sources = (
        ("solubility", "esol/delaney-processed.csv", "measured log solubility in mols per litre"),
        ("hydration", "freesolv/SAMPL.csv", "expt"),
        ("lipophilicity", "lipophilicity/Lipophilicity.csv", "exp"),
    )
    each = []
    for name, path, column in sources:
        part = pd.read_csv(DATA / path)
        each.append(part.groupby(part["smiles"].str.strip())[column].mean().rename(name))
    frame = pd.concat(each, axis=1).sort_index()
    inputs = tokens(frame.index.tolist())
    return Made(pd.concat([inputs, frame.reset_index(drop=True)], axis=1), dict.fromkeys(frame.columns, "regression"))


AHEAD, LAGS = 24, (1, 2, 3, 24, 48)


def _ett() -> Made:
    """An electricity transformer's seven series, a day ahead, from now and five earlier hours."""
    import pandas as pd

    frame = pd.read_csv(DATA / "ett" / "ETTh1.csv.gz", parse_dates=["date"])
    series = frame.drop(columns="date")
    lagged = [series.shift(lag).add_suffix(f"_{lag}") for lag in LAGS]
    ahead = series.shift(-AHEAD).add_suffix("_ahead")
    made = pd.concat([frame, *lagged, ahead], axis=1).dropna().reset_index(drop=True)
    return Made(made, dict.fromkeys(ahead.columns, "regression"), split="time:date", note="by time, the unit is the day")


def _flights() -> Made:
    from pluribus.data.flights import flights

    table = flights(60_000)
    targets = {task.name: task.kind for task in table.tasks}
    return Made(table.frame.drop(columns="flight_id"), targets, split="time:departure", note="by time, the unit is the day")


SETS: dict[str, Callable[[], Made]] = {
    "enb": _mulan("enb", 2),
    "jura": _mulan("jura", 3),
    "slump": _mulan("slump", 3),
    "sf2": _mulan("sf2", 3),
    "wq": _mulan("wq", 14),
    "yeast": _labels("yeast", 14),
    "adult": _people(adult, 10**6),
    "parkinsons": _parkinsons,
    "atp1d": _mulan("atp1d", 6),
    "student_por": _student("por"),
    "emotions": _labels("emotions", 6),
    "scene": _labels("scene", 6),
    "bank": _grouped("bank/bank", "remainder__Task", "y", "binary", without="duration"),
    "qm9": _molecules("qm9_subset/qm9_20k_4targets.csv.gz", "regression"),
    "tox21": _molecules("tox21/tox21.csv.gz", "binary"),
    "census": _people(census, CENSUS_ROWS),
    "edm": _mulan("edm", 2),
    "sf1": _mulan("sf1", 3),
    "andro": _mulan("andro", 6),
    "atp7d": _mulan("atp7d", 6),
    "oes10": _mulan("oes10", 16),
    "student_mat": _student("mat"),
    "wine": _wine,
    "abalone": _grouped("abalone/abalone", "Task", "rings", "regression"),
    "computer": _computer,
    "school": _grouped("school/school", "task", "score", "regression", fewest=80),
    "landmine": _grouped("landmine/landmine", "task", "mine", "binary"),
    "clintox": _molecules("clintox/clintox.csv.gz", "binary"),
    "toxcast": _toxcast,
    "bace": _bace,
    "qm8": _molecules("qm8_two_targets/qm8_e1_f1.csv.gz", "regression"),
    "properties": _properties,
    "ett": _ett,
    "flights": _flights,
}
CHOSEN_ON = ("enb", "jura", "slump", "sf2", "wq", "yeast", "adult", "parkinsons")
DEFAULT = ("atp1d", "student_por", "emotions", "scene", "bank", "qm9", "tox21", "census")
