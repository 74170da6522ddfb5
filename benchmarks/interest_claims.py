"""Do funnels, picked fields and interests per task pay where they should? Generated worlds. Writes docs/results/interest.md.

`funnel`: three steps at 30 %, 10 % and 3 % of all exposures, each driven by a planted subset of 24 fields and by a shared one:
the AUC of P(all steps up to k) over all exposures, and whether APEM's relevances find the planted subsets. `selection`: who
clicks depends on what the conversion depends on, and conversion behaves otherwise where clicks are rare; its probability is
judged over all exposures, where the world knows it. `shop`: two behaviour sequences; liking follows what was clicked, buying
what was bought, and what makes two items alike for the one makes them unlike for the other: AUC, and the cosine of the tasks'
gradients at the items' embedding. `films`: real ratings, liked or disliked, from what the same person liked and disliked before.
`samples`: published samples of 200 rows, too small to judge: that the road is walked. Nothing is tuned: every candidate runs its
documented defaults but for the settings named, once a seed, stopped on validation, tested once. A finished cell is kept in
build/interest_claims and not run again.
"""

from __future__ import annotations

import datetime
import json
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ratio import DATA, RESULTS, machine

CELLS = Path(__file__).parents[1] / "build" / "interest_claims"
STEPS = ("see", "apply", "pay")
RATES = (0.3, 0.1, 0.03)
FIELDS, OWN = 24, 4  # of which the first four are shared, the next four each belong to a step, the last eight are noise

ALONE = "alone"  # a setting of this file: the candidate once a task, which sees no other
Ways = Mapping[str, tuple[str, dict[str, Any]]]
FUNNEL: Ways = {
    "shared bottom": ("shared_bottom_equal", {}),
    "MLPs, one per step": ("single_networks", {}),
    "MMoE": ("mmoe", {}),
    "PLE": ("ple", {}),
    "ESMM": ("esmm", {}),
    "AITM": ("aitm", {}),
    "AITM without calibrator": ("aitm", {"alpha": 0.0}),
    "APEM, one per step": ("apem", {ALONE: True}),
    "APEM": ("apem", {}),
    "APEM without selector": ("apem", {"selector": False}),
    "APEM, 8 fields kept": ("apem", {"top_k": 8}),
    "APEM with calibrator": ("apem", {"calibrator": 0.6}),
}
SELECTION: Ways = {
    "shared bottom (clicked rows only)": ("shared_bottom_equal", {}),
    "ESMM": ("esmm", {}),
    "ESCM², IPS": ("escm2_ips", {}),
    "ESCM², IPS, lambda_c = 1": ("escm2_ips", {"lambda_c": 1.0}),
    "ESCM², DR": ("escm2_dr", {}),
    "ESCM², DR, lambda_c = 1": ("escm2_dr", {"lambda_c": 1.0}),
}
PLAIN = {"hyper": False, "refine": False}
SHOP: Ways = {
    "PLE on shared interests": ("dtrn", PLAIN),
    "MMoE on shared interests": ("dtrn", {**PLAIN, "sharing": "mmoe"}),
    "shared bottom on shared interests": ("dtrn", {**PLAIN, "sharing": "shared_bottom"}),
    "DTRN + PLE, one per task": ("dtrn", {ALONE: True}),
    "DTRN + PLE": ("dtrn", {}),
    "DTRN + MMoE": ("dtrn", {"sharing": "mmoe"}),
    "… interests only": ("dtrn", {"refine": False}),
    "… refinement only": ("dtrn", {"hyper": False}),
    "DTRN + shared bottom": ("dtrn", {"sharing": "shared_bottom"}),
}
FILMS: Ways = {
    "PLE on shared interests": SHOP["PLE on shared interests"],
    "MMoE on shared interests": SHOP["MMoE on shared interests"],
    "PLE, no sequences": ("ple", {}),
    "DTRN + PLE, one per task": SHOP["DTRN + PLE, one per task"],
    "DTRN + PLE": SHOP["DTRN + PLE"],
}


FULL_ONLY = (
    "AITM without calibrator",
    "APEM, 8 fields kept",
    "APEM with calibrator",
    "… interests only",
    "… refinement only",
    "shared bottom on shared interests",
    "DTRN + shared bottom",
)


def planted(step: int) -> np.ndarray[Any, Any]:
    """Which fields drive a step [24] bool."""
    places = np.arange(FIELDS)
    return (places < OWN) | ((places >= OWN * (step + 1)) & (places < OWN * (step + 2)))


def funnel(rows: int) -> Any:
    import pandas as pd

    from pluribus.tasks import Task

    rng = np.random.default_rng(21)
    x = rng.normal(size=(rows, FIELDS))
    frame = pd.DataFrame(x, columns=[f"x{i:02d}" for i in range(FIELDS)])
    alive = np.ones(rows, bool)
    before = 1.0
    tasks = []
    for step, (name, rate) in enumerate(zip(STEPS, RATES)):
        own = np.flatnonzero(planted(step))[OWN:]
        score = x[:, :OWN] @ rng.normal(size=OWN) / 2 + x[:, own] @ rng.normal(size=OWN) / 2
        score += x[:, own[0]] * x[:, own[1]] + np.abs(x[:, own[2]]) + 0.5 * rng.logistic(size=rows)
        happened = alive & (score > np.quantile(score[alive], 1 - rate / before))
        frame[name] = np.where(alive, happened, np.nan)
        alive, before = happened, rate
        tasks.append(Task(name, "binary", after=(STEPS[step - 1],) if step else ()))
    return frame, tasks, {}


def selection(rows: int) -> Any:
    """Beside the table: the conversion of every row, clicked or not, and its probability."""
    import pandas as pd

    from pluribus.tasks import Task

    rng = np.random.default_rng(22)
    x = rng.normal(size=(rows, 8))
    click = rng.random(rows) < 1 / (1 + np.exp(1.2 - 1.5 * x[:, 0] - 0.5 * x[:, 1]))
    p = 1 / (1 + np.exp(1.0 - 1.5 * x[:, 2] * np.sign(x[:, 0] + 0.5) - x[:, 3] - 0.5 * x[:, 0]))
    would = rng.random(rows) < p
    frame = pd.DataFrame(x, columns=[f"x{i}" for i in range(8)])
    frame["click"], frame["buy"] = click * 1, np.where(click, would, np.nan)
    return frame, [Task("click", "binary"), Task("buy", "binary", after=("click",))], {"would": would, "p": p}


def shop(rows: int) -> Any:
    """16 items, each of a colour and a shape. Liking: many clicked items have the target's colour, few its shape; buying: many
    bought items have its shape, few its colour. So what makes two items alike for one task makes them unlike for the other."""
    import pandas as pd

    from pluribus.tasks import Task

    rng = np.random.default_rng(23)
    colour, shape = np.divmod(np.arange(16), 4)
    target = rng.integers(16, size=rows)
    lists = {name: [rng.integers(16, size=rng.integers(9)) for _ in range(rows)] for name in ("clicked", "bought")}

    def same(kind: Any, name: str) -> Any:
        return np.array([(kind[each] == kind[one]).sum() for each, one in zip(lists[name], target)])

    like = 1.5 * same(colour, "clicked") - same(shape, "clicked") + 0.5 * rng.logistic(size=rows)
    buy = 1.5 * same(shape, "bought") - same(colour, "bought") + 0.5 * rng.logistic(size=rows)
    frame = pd.DataFrame(
        {
            "age": rng.normal(size=rows),
            "item": [f"i{j}" for j in target],
            **{name: [[f"i{j}" for j in each] for each in found] for name, found in lists.items()},
            "like": (like > 0.7).astype(int),
            "buy": (buy > 0.7).astype(int),
        }
    )
    return frame, [Task("like", "binary"), Task("buy", "binary")], {}


def films(rows: int) -> Any:
    """Ratings of MovieLens: is it liked (four stars and more), is it disliked (two and less)? From the film, its year and genres,
    and the twenty films that the same person liked, and disliked, before. The latest 20 % are tested."""
    import pandas as pd

    from pluribus.tasks import Task

    folder = DATA / "movielens_latest_small"
    ratings = pd.read_csv(folder / "ratings.csv.gz").sort_values(["userid", "timestamp"], kind="stable")
    about = pd.read_csv(folder / "movies.csv").rename(columns=str.lower).set_index("movieid")
    names = ("liked", "disliked")
    held: dict[str, list[list[str]]] = {name: [] for name in names}
    for _, own in ratings.groupby("userid", sort=False):
        before: dict[str, list[str]] = {name: [] for name in names}
        for film, stars in zip(own["movieid"], own["rating"]):
            for name in names:
                held[name].append(before[name][-20:])
            if stars >= 4 or stars <= 2:
                before[names[stars <= 2]].append(f"m{film}")
    frame = pd.DataFrame(
        {
            "film": [f"m{film}" for film in ratings["movieid"]],
            **held,
            "year": about["title"].str.extract(r"\((\d{4})\)\s*$")[0].astype(float).reindex(ratings["movieid"]).to_numpy(),
            "genre": about["genres"].str.split("|").str[0].reindex(ratings["movieid"]).to_numpy(),
            "like": (ratings["rating"] >= 4).to_numpy(int),
            "dislike": (ratings["rating"] <= 2).to_numpy(int),
            "at": pd.to_datetime(ratings["timestamp"], unit="s").to_numpy(),
        }
    )
    kept = np.sort(np.random.default_rng(24).permutation(len(frame))[:rows])
    return frame.iloc[kept].reset_index(drop=True), [Task("like", "binary"), Task("dislike", "binary")], {"split": "time:at"}


WORLDS: dict[str, tuple[Callable[[int], Any], Ways]] = {
    "funnel": (funnel, FUNNEL),
    "selection": (selection, SELECTION),
    "shop": (shop, SHOP),
    "films": (films, FILMS),
}


def prepared(name: str, rows: int) -> tuple[Any, dict[str, Any]]:
    from pluribus.data.prepared import prepare
    from pluribus.data.splitting import split
    from pluribus.data.table import Table

    frame, tasks, truth = WORLDS[name][0](rows)
    table = Table(frame, tasks, split=truth.get("split", "random"))
    return prepare(table, split(table, 0)), truth


class Apart:
    """A candidate fitted once a task, on that task's cells alone: the same network, and nothing shared."""

    def __init__(self, made: Any, data: Any, seconds: float, seed: int) -> None:
        from dataclasses import replace

        from pluribus.modeling import Budget, Supervised

        vars(made)["objective"] = lambda data: Supervised()  # a step alone is no funnel
        self.config: dict[str, Any] = {}
        self.fits = {}
        for task in data.tasks:
            own = replace(data.only([task.name]), tasks=(replace(task, after=()),))
            self.fits[task.name] = made.fit(own, Budget(seconds), seed)  # the limit of every fit
        self.record = {"undertrained": [name for fit in self.fits.values() for name in fit.record["undertrained"]]}

    def scores(self, data: Any, rows: Any, tasks: Sequence[str]) -> dict[str, Any]:
        return {name: self.fits[name].scores(data, rows, [name])[name] for name in tasks}

    @property
    def parameters(self) -> int:
        return sum(sum(p.numel() for p in fit.model.parameters()) for fit in self.fits.values())


def of_funnel(data: Any, fitted: Any, truth: Any) -> dict[str, float]:
    """AUC of P(all steps up to k) over all test rows, of the last step's own cells, and of the relevances."""
    import torch
    from sklearn.metrics import roc_auc_score

    from pluribus.modeling.funnels import entire_space, whole_way

    rows = data.parts["test"]
    p = fitted.scores(data, rows, STEPS)
    joint = whole_way(data.tasks, p)
    found = {}
    batch = data.batch(torch.from_numpy(rows))
    for k, name in enumerate(STEPS):
        whole = entire_space(STEPS[: k + 1], batch)
        assert whole is not None
        found[f"P_{k + 1}"] = float(roc_auc_score(whole.values.numpy(), joint[name][whole.rows.numpy()]))
    found["mean"] = float(np.mean(list(found.values())))
    cells = data.labelled("pay", "test")
    found["pay, own cells"] = float(roc_auc_score(cells.values, p["pay"][np.searchsorted(rows, cells.rows)]))
    if fitted.config.get("architecture", {}).get("name") == "apem" and fitted.config["architecture"]["settings"]["selector"]:
        with torch.no_grad():
            relevance = fitted.model.eval()(batch.inputs).extra["relevance"]
        each = [roc_auc_score(planted(k), relevance[name].mean(0).numpy()) for k, name in enumerate(STEPS)]
        found["recovery"] = float(np.mean(each))
    return found


def of_selection(data: Any, fitted: Any, truth: Any) -> dict[str, float]:
    """The conversion over all test rows: AUC and mean error against its true probability, the mean against the true mean."""
    from sklearn.metrics import roc_auc_score

    rows = data.parts["test"]
    p = fitted.scores(data, rows, ["buy"])["buy"]
    cells = data.labelled("buy", "test")
    return {
        "AUC, all": float(roc_auc_score(truth["would"][rows], p)),
        "AUC, clicked": float(roc_auc_score(cells.values, p[np.searchsorted(rows, cells.rows)])),
        "error of p": float(np.abs(p - truth["p"][rows]).mean()),
        "mean of p / true": float(p.mean() / truth["p"][rows].mean()),
    }


def of_tasks(data: Any, fitted: Any, truth: Any) -> dict[str, float]:
    """AUC of every task on its own test cells, and the mean."""
    from sklearn.metrics import roc_auc_score

    found = {}
    for task in data.tasks:
        cells = data.labelled(task.name, "test")
        value = roc_auc_score(cells.values, fitted.scores(data, cells.rows, [task.name])[task.name])
        found[f"AUC, {task.name}"] = float(value)
    return {**found, "mean": float(np.mean(list(found.values())))}


def of_shop(data: Any, fitted: Any, truth: Any) -> dict[str, float]:
    import torch

    from pluribus.modeling import Supervised

    found = of_tasks(data, fitted, truth)
    if isinstance(fitted, Apart):  # nothing is shared
        return found
    table = fitted.model.encoder.items.table
    gradients = []
    for name in ("like", "buy"):
        losses = Supervised().losses(fitted.model.eval(), data.batch(torch.from_numpy(data.parts["test"][:2000]), [name]))
        (slope,) = torch.autograd.grad(losses.means()[name], table)
        gradients.append(slope.flatten())
    found["cosine"] = float(torch.nn.functional.cosine_similarity(gradients[0], gradients[1], 0))
    return found


JUDGES = {"funnel": of_funnel, "selection": of_selection, "shop": of_shop, "films": of_tasks}


def kept(name: str, way: str, rows: int, seed: int, seconds: float) -> Path:
    """Where a cell's figures are."""
    named = re.sub(r"[^a-z0-9]+", "_", way.lower()).strip("_")
    return CELLS / f"{name}-{rows}-{named}-{seed}-{seconds:g}.json"


def cell(name: str, way: str, data: Any, truth: Any, rows: int, seed: int, seconds: float) -> dict[str, Any]:
    import torch

    from pluribus import catalog
    from pluribus.modeling import Budget

    path = kept(name, way, rows, seed, seconds)
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return found
    torch.set_num_threads(1)
    candidate, settings = WORLDS[name][1][way]
    shown = data.with_parts(train=data.parts["train"], valid=data.parts["valid"])
    start = time.process_time()
    made = catalog.get("candidate", candidate).resolve()(**{key: value for key, value in settings.items() if key != ALONE})
    fitted = Apart(made, shown, seconds, seed) if settings.get(ALONE) else made.fit(shown, Budget(seconds), seed)
    spent = time.process_time() - start
    parameters = fitted.parameters if isinstance(fitted, Apart) else sum(p.numel() for p in fitted.model.parameters())
    row = {
        "way": way,
        "scores": JUDGES[name](data, fitted, truth),
        "seconds": spent,
        "parameters": parameters,
        "undertrained": fitted.record["undertrained"],
    }
    CELLS.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(row), "utf-8")
    return row


def interval(values: Sequence[float], digits: int = 4) -> str:
    """Mean with a 95 % t interval over seeds."""
    from pluribus.evaluation.intervals import seeds_component, t_interval

    part = seeds_component(list(values))
    found = t_interval(float(np.mean(values)), [part] if part is not None else [])
    spread = f" ({found.low:+.{digits}f} … {found.high:+.{digits}f})" if math.isfinite(found.low) else ""
    return f"{found.value:+.{digits}f}{spread}"


TEXTS = {
    "funnel": (
        "Three steps, 24 fields",
        "shared bottom",
        "mean",
        "P_k: AUC of P(all steps up to k) over all exposures, the product of the steps' columns. pay, own cells: AUC of the last "
        "step on its own cells. recovery: AUROC of the selector's mean relevance against the planted fields, mean over steps "
        "(0.5: chance).",
    ),
    "selection": (
        "Conversion over all exposures",
        "shared bottom (clicked rows only)",
        "AUC, all",
        "Judged with what the world knows: would a row that was not clicked have converted? error of p: mean |p − true p|.",
    ),
    "shop": (
        "Two behaviours that contradict each other",
        "PLE on shared interests",
        "mean",
        "cosine: of the tasks' loss gradients at the items' embedding, after training, on test rows.",
    ),
    "films": (
        "Ratings of MovieLens, liked or disliked",
        "PLE on shared interests",
        "mean",
        "From the film, its year and first genre, and the latest films that the same person liked and disliked; split by time.",
    ),
}


def section(name: str, rows: int, cells: dict[tuple[str, int], dict[str, Any]], seconds: float) -> list[str]:
    title, reference, main, text = TEXTS[name]
    ways = [way for way in WORLDS[name][1] if any(key[0] == way for key in cells)]
    seeds = sorted({seed for _, seed in cells})
    columns = list(dict.fromkeys(key for row in cells.values() for key in row["scores"]))
    lines = [
        f"## {name}: {title}, {rows} rows, up to {len(seeds)} seeds, at most {seconds:g} core-seconds a fit",
        "",
        text,
        "",
        f"| | {' | '.join(columns)} | {main}, against {reference} (95 %) | core-seconds | parameters | cut short, of seeds |",
        "|" + "---|" * (len(columns) + 5),
    ]
    for way in ways:
        both = [seed for seed in seeds if (way, seed) in cells]
        own = [cells[way, seed] for seed in both]
        means = [np.mean([row["scores"].get(key, np.nan) for row in own]) for key in columns]
        gain = "(reference)"
        if way != reference:
            gain = interval([row["scores"][main] - cells[reference, seed]["scores"][main] for row, seed in zip(own, both)])
        shown = " | ".join("" if np.isnan(value) else f"{value:.4f}" for value in means)
        cut = sum(bool(row["undertrained"]) for row in own)
        spent = np.mean([row["seconds"] for row in own])
        lines.append(f"| {way} | {shown} | {gain} | {spent:.1f} | {own[0]['parameters']:,} | {cut} of {len(own)} |")
    return [*lines, "", *against(name, cells)]


AGAINST = {
    "funnel": ("APEM", ("shared bottom", "MMoE", "PLE", "ESMM", "AITM", "APEM without selector", "APEM, one per step")),
    "selection": ("ESCM², IPS, lambda_c = 1", ("shared bottom (clicked rows only)", "ESMM")),
    "shop": ("DTRN + PLE", ("PLE on shared interests", "MMoE on shared interests", "DTRN + MMoE", "DTRN + PLE, one per task")),
    "films": (
        "DTRN + PLE",
        ("PLE on shared interests", "MMoE on shared interests", "PLE, no sequences", "DTRN + PLE, one per task"),
    ),
}


def against(name: str, cells: dict[tuple[str, int], dict[str, Any]]) -> list[str]:
    """The method this world is about, minus each rival on the seeds that both have."""
    way, rivals = AGAINST[name]
    main, found = TEXTS[name][2], []
    for rival in rivals:
        both = sorted({seed for w, seed in cells if w == way} & {seed for w, seed in cells if w == rival})
        if both:
            gain = interval([cells[way, seed]["scores"][main] - cells[rival, seed]["scores"][main] for seed in both])
            found.append(f"{rival} {gain}")
    return [f"{way} minus each, {main} (95 %): {'; '.join(found)}.", ""] if found else []


def shape(full: bool) -> tuple[int, float, dict[str, int]]:
    """Seeds, core-seconds a fit, rows of each world."""
    if full:
        return 5, 300.0, {"funnel": 100_000, "selection": 100_000, "shop": 50_000, "films": 50_000}
    return 5, 60.0, {"funnel": 10_000, "selection": 8_000, "shop": 6_000, "films": 16_000}


def samples() -> list[str]:
    """Every way once on the published samples: that it fits and answers, no score."""
    import pandas as pd

    from pluribus import catalog
    from pluribus.data import Table, prepare, split
    from pluribus.modeling import Budget
    from pluribus.tasks import Task

    folder = DATA / "ads_samples"
    shown = pd.concat([pd.read_csv(folder / f"aliexpress_{part}_sample.csv") for part in ("train", "test")], ignore_index=True)
    watched = pd.read_csv(folder / "byterec_sample.txt", sep="\t", header=None, names=[f"c{i}" for i in range(12)])
    after = {"click": [], "conversion": ["click"]}
    sets = {
        "AliExpress": (
            shown.assign(conversion=shown["conversion"].where(shown["click"] == 1)),
            after,
            ("mmoe", "ple", "esmm", "escm2_ips", "escm2_dr", "aitm", "apem"),
        ),
        "ByteRec": (watched.rename(columns={"c6": "finish", "c7": "like"}), {"finish": [], "like": []}, ("mmoe", "ple")),
    }
    lines = ["## Published samples", "", "Far too few rows to judge anything; that the road is walked:", ""]
    for name, (frame, steps, candidates) in sets.items():
        table = Table(frame, [Task(step, "binary", after=tuple(before)) for step, before in steps.items()], split="random")
        data = prepare(table, split(table, 0))
        learnt = data.with_parts(train=data.parts["train"], valid=data.parts["valid"])
        for candidate in candidates:
            fitted = catalog.get("candidate", candidate).resolve()(epochs=2).fit(learnt, Budget(10.0), 0)
            assert len(fitted.predict(frame.drop(columns=list(steps)))) == len(frame)
            print(name, candidate, flush=True)
        walked = ", ".join(f"`{candidate}`" for candidate in candidates)
        lines.append(f"- {name}, {len(frame)} rows, {' and '.join(steps)}: {walked} fitted it and answered every row.")
    return [*lines, ""]


def ways_of(name: str, full: bool) -> list[str]:
    return [way for way in WORLDS[name][1] if full or way not in FULL_ONLY]


def run(full: bool) -> None:
    seeds, seconds, sizes = shape(full)
    for name, rows in sizes.items():
        data, truth = prepared(name, rows)
        for seed in range(seeds):
            for way in ways_of(name, full):
                row = cell(name, way, data, truth, rows, seed, seconds)
                print(name, way, seed, f"{row['seconds']:.1f} s", row["scores"], flush=True)
        page(full)
    page(full, samples())


def page(full: bool, more: Sequence[str] = ()) -> None:
    """The results page of what has been run so far, and more sections; a way is compared with the reference on the seeds that
    both have."""
    seeds, seconds, sizes = shape(full)
    body = []
    for name, rows in sizes.items():
        paths = {(way, seed): kept(name, way, rows, seed, seconds) for way in ways_of(name, full) for seed in range(seeds)}
        whole = [seed for seed in range(seeds) if paths[TEXTS[name][1], seed].exists()]
        held = {key: path for key, path in paths.items() if key[1] in whole and path.exists()}
        cells = {key: json.loads(path.read_text("utf-8")) for key, path in held.items()}
        body += section(name, rows, cells, seconds) if whole else [f"## {TEXTS[name][0]}", "", "Not run yet.", ""]
        waiting = [f"{way} ({seed + 1})" for (way, seed), path in paths.items() if not path.exists()]
        if whole and waiting:
            body += [f"Not run yet, with the seed: {', '.join(waiting)}; `make bench ONLY=interest_claims` goes on.", ""]
    head = [
        "# Funnels, picked fields, and interests per task",
        "",
        "Generated worlds, in which the truth is known; every candidate ran its defaults (but for the settings that its name",
        "tells) once a seed; nothing was searched or tuned. Intervals are over seeds of training alone: one split, one draw of",
        "the world, so that test rows are not in them.",
        "APEM and DTRN are reconstructions from abstracts: what fails here need not fail in the papers' own form.",
        "",
    ]
    kind = "full" if full else "default"
    foot = [f"{machine()}; {datetime.date.today().isoformat()}; the {kind} set, as far as the headings say.", ""]
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "interest.md").write_text("\n".join([*head, *body, *more, *foot]), "utf-8")
