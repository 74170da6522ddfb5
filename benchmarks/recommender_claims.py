"""Do attributes rank items that nobody has clicked, and does self-supervision help rare ones? docs/results/recommendation.md.

Experiments, each a function that returns its section's lines:

- `sessions`: 2,000 items in 20 × 5 categories, sessions that walk over the categories (a Markov chain), a fifth of the items in
  no training row; recall@20 of next items that training knows (warm) and does not (cold), over the whole catalogue;
- `clicks`: 5,000 items of power-law popularity with six categories in three correlated pairs; recall@50 of all clicks and of
  those on rare items (that make up the last tenth of training clicks), with all clicks and a tenth of them;
- `movielens`: the next film that a user likes (MovieLens latest small), split by time;
- `samples`: published samples of 200 rows, far too small to judge anything: that the road is walked without an error.

Nothing is tuned: every arm runs its documented defaults but for what its name says, is stopped on validation and tested once.
A finished cell is kept in build/recommender_claims and not run again. `benchmarks/interest_claims.py`, where it is there, is run
too.
"""

from __future__ import annotations

import datetime
import importlib.util
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ratio import DATA, RESULTS, machine

CELLS = Path(__file__).parents[1] / "build" / "recommender_claims"
SEEDS = 3

Scores = dict[str, float]


def cell(key: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A cell's result, computed once."""
    path = CELLS / f"{key}.json"
    if path.is_file():
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return found
    began = time.process_time()
    row = run() | {"cpu": time.process_time() - began}
    CELLS.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(row), "utf-8")
    print(key, {name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}, flush=True)
    return row


def fitted(candidate: str, settings: dict[str, Any], data: Any, seconds: float, seed: int) -> Any:
    """A candidate's fit on the train and valid parts."""
    from pluribus import catalog
    from pluribus.modeling import Budget

    shown = data.with_parts(train=data.parts["train"], valid=data.parts["valid"])
    return catalog.get("candidate", candidate).resolve()(**settings).fit(shown, Budget(seconds), seed)


def recall(model: Any, data: Any, k: int, groups: dict[str, Any], mark: Any = None) -> dict[str, Any]:
    """Recall@k on the test part, on all labelled rows and on those whose item is in each group (a mask over the catalogue).
    mark: a mask over the catalogue; "listed" is its share of the lists."""
    cells = data.labelled(data.tasks[0].name, "test")
    ranked = model.scores(data, cells.rows, [data.tasks[0].name])[data.tasks[0].name][:, :k]
    hit = (ranked == cells.values[:, None]).any(1)
    item = cells.values.astype(int)
    found = {name: float(hit[mask[item]].mean()) for name, mask in groups.items()}
    if mark is not None:
        found["listed"] = float(mark[ranked.astype(int)].mean())
    return {**found, "cut": bool(model.record["undertrained"]), "epochs": len(next(iter(model.record["curves"].values())))}


def popular(data: Any, k: int, groups: dict[str, Any]) -> Scores:
    """The same of the most frequent training items, for every row alike."""
    task = data.tasks[0].name
    counts = np.bincount(data.labelled(task, "train").values.astype(int), minlength=len(next(iter(groups.values()))))
    best = np.argsort(-counts, kind="stable")[:k]
    item = data.labelled(task, "test").values.astype(int)
    return {name: float(np.isin(item[mask[item]], best).mean()) for name, mask in groups.items()}


def lines_of(arms: dict[str, list[dict[str, Any]]], columns: list[str], reference: str, rest: dict[str, Scores]) -> list[str]:
    """A table: means over seeds, and differences to the reference arm with the same seed with their 95 % t interval over seeds.
    rest: rows that need no seed."""
    from pluribus.evaluation.intervals import seeds_component, t_interval

    head = [f"{column} | Δ" for column in columns]
    lines = ["| arm | " + " | ".join(head) + " | CPU, s | cut short |", "|---|" + "---|---|" * len(columns) + "---|---|"]
    for name, scores in rest.items():
        lines.append(f"| {name} | " + " | ".join(f"{scores[c]:.4f} | " for c in columns) + " | | |")
    for arm, rows in arms.items():
        pieces = []
        for column in columns:
            values = [row[column] for row in rows]
            change = "(reference)"
            if arm != reference:
                each = [row[column] - other[column] for row, other in zip(rows, arms[reference])]
                part = seeds_component(each)
                gain = t_interval(float(np.mean(each)), [part] if part is not None else [])
                between = f" ({gain.low:+.4f} … {gain.high:+.4f})" if math.isfinite(gain.low) else ""
                change = f"{gain.value:+.4f}{between}"
                if math.isfinite(gain.low) and (gain.low > 0 or gain.high < 0):
                    change = f"**{change}**"
            pieces.append(f"{np.mean(values):.4f} | {change}")
        cpu, cut = np.mean([row["cpu"] for row in rows]), sum(row["cut"] for row in rows)
        lines.append(f"| {arm} | " + " | ".join(pieces) + f" | {cpu:.1f} | {cut} of {len(rows)} |")
    return [*lines, ""]


# Sessions


def walks(rows: int) -> tuple[Any, Any]:
    """(prepared table, mask of items that training knows). A leaf (category, sub-category) is followed by its successor seven
    times in ten, else by any; items are drawn from the leaf, in train and valid from the four fifths that are warm."""
    import pandas as pd

    from pluribus.data import ItemTable, Table, prepare, split

    rng = np.random.default_rng(21)
    leaf = np.arange(2000) % 100
    warm = rng.permutation(2000) >= 400
    after = rng.permutation(100)
    catalogue = pd.DataFrame(
        {
            "sku": np.arange(2000),
            "category": [f"c{n // 5}" for n in leaf],
            "sub": [f"s{n}" for n in leaf],
            "price": np.exp(rng.normal(size=2000) + leaf % 7 / 7),
            "maker": [f"m{n}" for n in rng.integers(0, 50, 2000)],
        }
    )
    by_leaf = [np.flatnonzero(leaf == n) for n in range(100)]
    by_leaf_warm = [items[warm[items]] for items in by_leaf]
    part = np.where(np.arange(rows) < 0.6 * rows, "train", np.where(np.arange(rows) < 0.7 * rows, "valid", "test"))
    sessions, following = [], []
    for i in range(rows):
        at, walk = int(rng.integers(100)), []
        for _ in range(int(rng.integers(2, 9))):
            walk.append(int(rng.choice((by_leaf if part[i] == "test" else by_leaf_warm)[at])))
            at = int(after[at]) if rng.random() < 0.7 else int(rng.integers(100))
        sessions.append(walk[:-1])
        following.append(walk[-1])
    frame = pd.DataFrame({"viewed": sessions, "next": following, "part": part})
    items = {"item": ItemTable(catalogue, "sku", ["viewed", "next"])}
    table = Table(frame, ["next:next_item"], split="column:part", items=items)
    return prepare(table, split(table, 0)), warm


def sessions(full: bool) -> list[str]:
    rows, seconds = (40_000, 300.0) if full else (24_000, 90.0)
    data, warm = walks(rows)
    groups = {"warm": warm, "cold": ~warm}
    arms: dict[str, tuple[str, dict[str, Any]]] = {
        "session_ids": ("session_ids", {}),
        "m2trec, next item alone": ("m2trec", {"category_weight": 0.0}),
        "m2trec": ("m2trec", {}),
        "m2trec, mentioned items as rivals": ("m2trec", {"rivals": "mentioned"}),
    }
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in range(SEEDS):
        for arm, (candidate, settings) in arms.items():
            key = f"sessions-{rows}-{arm.replace(', ', '-').replace(' ', '_')}-{seed}-{seconds:g}"

            def run(candidate: str = candidate, settings: dict[str, Any] = settings, seed: int = seed) -> dict[str, Any]:
                return recall(fitted(candidate, settings, data, seconds, seed), data, 20, groups)

            found.setdefault(arm, []).append(cell(key, run))
    chance = {"warm": 20 / 2000, "cold": 20 / 2000}
    best = "0.70 where the leaf's successor follows, were every item of a leaf found"
    return [
        f"## Sessions over a catalogue of which a fifth is new: {rows:,} rows, at most {seconds:g} core-seconds a fit",
        "",
        "Recall@20 over all 2,000 items, of test rows whose next item training rows mention (warm) or not (cold). A leaf holds "
        f"20 items, so that the best possible is about {best}.",
        "",
        *lines_of(found, ["warm", "cold"], "session_ids", {"chance": chance, "most frequent": popular(data, 20, groups)}),
    ]


# Clicks


def clicks(full: bool) -> list[str]:
    seconds = 120.0 if full else 30.0
    total = 200_000 if full else 20_000
    lines = []
    arms: dict[str, tuple[str, dict[str, Any]]] = {
        "two_tower": ("two_tower", {}),
        "two_tower_ssl, rfm": ("two_tower_ssl", {"mask": "rfm"}),
        "two_tower_ssl, cfm": ("two_tower_ssl", {"mask": "cfm"}),
    }
    if full:
        arms["two_tower_ssl, complementary"] = ("two_tower_ssl", {"mask": "complementary"})
    for share in (1.0, 0.1):
        data = shop(total, share)
        counts = np.bincount(data.labelled("item", "train").values.astype(int), minlength=5000)
        order = np.argsort(-counts, kind="stable")
        rare = np.zeros(5000, bool)
        rare[order[np.cumsum(counts[order]) > 0.9 * counts.sum()]] = True
        groups = {"all": np.ones(5000, bool), "rare": rare}
        found: dict[str, list[dict[str, Any]]] = {}
        for seed in range(SEEDS):
            for arm, (candidate, settings) in arms.items():
                key = f"clicks-{total}-{share:g}-{arm.replace(', ', '-')}-{seed}-{seconds:g}"

                def run(
                    candidate: str = candidate,
                    settings: dict[str, Any] = settings,
                    seed: int = seed,
                    data: Any = data,
                    groups: dict[str, Any] = groups,
                ) -> dict[str, Any]:
                    return recall(fitted(candidate, settings, data, seconds, seed), data, 50, groups)

                found.setdefault(arm, []).append(cell(key, run))
        rest = {"most frequent": popular(data, 50, groups), "chance": {"all": 50 / 5000, "rare": 50 / 5000}}
        tested = len(data.labelled("item", "test"))
        lines += [
            f"## Clicks on 5,000 items, {share:.0%} of {total:,} clicks, at most {seconds:g} core-seconds a fit",
            "",
            f"Recall@50 over the whole catalogue on {tested:,} test clicks, and on those of them on rare items.",
            "",
            *lines_of(found, ["all", "rare"], "two_tower", rest),
        ]
    return lines


def shop(total: int, share: float) -> Any:
    """Clicks of people with a taste for two features, on items of Zipf popularity. Each even feature is a noisy copy of the odd
    one before it. The test clicks are the same whatever the share of the others that is kept."""
    import pandas as pd

    from pluribus.data import ItemTable, Table, prepare, split

    rng = np.random.default_rng(22)
    odd = [rng.integers(0, size, 5000) for size in (20, 10, 15)]
    even = [np.where(rng.random(5000) < 0.8, values, rng.integers(0, values.max() + 1, 5000)) for values in odd]
    features = [each for pair in zip(odd, even) for each in pair]
    catalogue = pd.DataFrame({f"f{i + 1}": [f"v{v}" for v in values] for i, values in enumerate(features)})
    catalogue.insert(0, "sku", np.arange(5000))
    popularity = -np.log(1.0 + rng.permutation(5000))
    first, third = rng.integers(0, 20, total), rng.integers(0, 10, total)
    following = np.empty(total, np.int64)
    for a in range(20):
        for b in range(10):
            mine = np.flatnonzero((first == a) & (third == b))
            weight = np.exp(popularity + 2.5 * (odd[0] == a) + 2.5 * (odd[1] == b))
            following[mine] = rng.choice(5000, len(mine), p=weight / weight.sum())
    part = np.where(np.arange(total) < 0.7 * total, "train", np.where(np.arange(total) < 0.8 * total, "valid", "test"))
    kept = (part == "test") | (rng.random(total) < share)
    likes = {"likes1": [f"v{a}" for a in first], "likes3": [f"v{b}" for b in third]}
    frame = pd.DataFrame({**likes, "item": following, "part": part})
    items = {"items": ItemTable(catalogue, "sku", ["item"])}
    table = Table(frame[kept], ["item:next_item"], split="column:part", items=items)
    return prepare(table, split(table, 0))


# MovieLens


def films(rows: int) -> Any:
    """Events are ratings of four stars and more; the next of a user, from those before. The latest 20 % are tested."""
    import pandas as pd

    from pluribus.data import ItemTable, Table, prepare, split
    from pluribus.tabular.sequences import next_item_rows

    folder = DATA / "movielens_latest_small"
    ratings = pd.read_csv(folder / "ratings.csv.gz")
    movies = pd.read_csv(folder / "movies.csv").rename(columns=str.lower)
    movies["year"] = movies["title"].str.extract(r"\((\d{4})\)\s*$")[0].astype(float)
    movies["genres"] = movies["genres"].str.split("|")
    liked = ratings[ratings["rating"] >= 4].assign(at=lambda f: pd.to_datetime(f["timestamp"], unit="s"))
    made = next_item_rows(liked, "userid", "movieid", "at", longest=20).drop(columns="userid")
    made = made.iloc[np.sort(np.random.default_rng(23).permutation(len(made))[:rows])]
    items = {"film": ItemTable(movies, "movieid", ["history", "next"], text=["title"])}
    table = Table(made, ["next:next_item"], split="time:at", items=items)
    return prepare(table, split(table, 0))


def movielens(full: bool, seeds: int = SEEDS) -> list[str]:
    rows, seconds = (40_000, 300.0) if full else (6_000, 60.0)
    data = films(rows)
    catalogue = data.columns.items["film"]
    groups = {"all": np.ones(len(catalogue), bool), "warm": catalogue.seen, "cold": ~catalogue.seen}
    arms: dict[str, tuple[str, dict[str, Any]]] = {
        "session_ids": ("session_ids", {}),
        "m2trec": ("m2trec", {}),
        "m2trec, mentioned items as rivals": ("m2trec", {"rivals": "mentioned"}),
        "two_tower": ("two_tower", {}),
        "two_tower_ssl": ("two_tower_ssl", {}),
    }
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in range(seeds):
        for arm, (candidate, settings) in arms.items():
            key = f"movielens-{rows}-{arm.replace(', ', '-').replace(' ', '_')}-{seed}-{seconds:g}"

            def run(candidate: str = candidate, settings: dict[str, Any] = settings, seed: int = seed) -> dict[str, Any]:
                return recall(fitted(candidate, settings, data, seconds, seed), data, 20, groups, ~catalogue.seen)

            found.setdefault(arm, []).append(cell(key, run))
    listed = ", ".join(f"{arm} {np.mean([row['listed'] for row in own]):.0%}" for arm, own in found.items())
    cells = data.labelled("next", "test")
    cold = int((~catalogue.seen[cells.values.astype(int)]).sum())
    return [
        f"## MovieLens: the next film that a user likes, {rows:,} rows, {seeds} seed{'s' * (seeds > 1)}, at most "
        f"{seconds:g} core-seconds a fit",
        "",
        f"Recall@20 over {len(catalogue):,} films on the latest {len(cells):,} rows; {cold} of them are films that no training "
        "row mentions. Attributes: genres, year, the words of the title.",
        "",
        *lines_of(found, ["all", "warm", "cold"], "session_ids", {"most frequent": popular(data, 20, groups)}),
        f"Share of films that no training row mentions in the lists of twenty: {listed}.",
        "",
    ]


# Samples


def samples(full: bool) -> list[str]:
    import pandas as pd

    from pluribus.data import ItemTable, Table, prepare, split

    path = DATA / "ads_samples" / "movielens_sample.txt"
    read = pd.read_csv(path)
    films_ = read.drop_duplicates("movie_id")[["movie_id", "title", "genres"]].assign(genres=lambda f: f["genres"].str.split("|"))
    people = read[["gender", "age", "occupation", "movie_id"]]
    table = Table(people, ["movie_id:next_item"], split="random", items={"film": ItemTable(films_, "movie_id", ["movie_id"])})
    data = prepare(table, split(table, 0))
    walked = []
    for arm in ("two_tower", "two_tower_ssl"):
        key = f"samples-{arm}"

        def run(arm: str = arm) -> dict[str, Any]:
            model = fitted(arm, {"epochs": 3}, data, 10.0, 0)
            return {"rows": len(model.predict(people.drop(columns="movie_id"))), "columns": list(model.predict(people))}

        walked.append(f"`{arm}` fitted and predicted {cell(key, run)['rows']} rows")
    return [
        "## Published samples",
        "",
        f"DeepCTR's sample of MovieLens ({len(read)} rows, {len(films_)} films) is far too small to judge anything: "
        f"{'; '.join(walked)}.",
        "",
    ]


EXPERIMENTS: tuple[Callable[[bool], list[str]], ...] = (sessions, clicks, movielens, samples)


def run(full: bool) -> None:
    body: list[str] = []
    for experiment in EXPERIMENTS:
        body += experiment(full)
        write(body, full)
    if importlib.util.find_spec("benchmarks.interest_claims") is not None:
        importlib.import_module("benchmarks.interest_claims").run(full)


def write(body: list[str], full: bool) -> None:
    head = [
        "# Ranking items: attributes, ids, and the self-supervised task",
        "",
        "Each arm is a candidate with its documented defaults but for what its name says. One default, the rivals of M2TRec's",
        "softmax, was chosen on the validation rows of MovieLens; nothing else was tuned, and nothing on test rows. Δ is the",
        f"difference to the reference arm with the same seed, with its 95 % t interval over {SEEDS} seeds of training (one draw",
        "of the data; the test rows' own noise is not in it); intervals that leave out 0 are in bold. Every score ranks the",
        "whole catalogue, without leaving out what was seen before.",
        "",
    ]
    kind = "full" if full else "default"
    foot = [*READING, f"{machine()}; {datetime.date.today().isoformat()}; the {kind} set.", ""]
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "recommendation.md").write_text("\n".join(head + body + foot), "utf-8")


READING = [
    "## What this says",
    "",
    "- M2TRec holds where attributes decide what comes next: it ranks items that no training row mentions as well as the others,",
    "  both at what is possible (0.70), and reaches that in a third of the time in which the transformer over ids learns half of",
    "  it for the items it knows and nothing for the others.",
    "- Predicting the next item's categories beside the item itself changes nothing here, contrary to the paper: they are in the",
    "  item's vector already.",
    "- On MovieLens M2TRec is a little ahead of ids on all films, but not by more than seeds move it; both are little more than",
    "  the list of the most frequent films. On films that training does not mention nobody finds more than one or two in a",
    "  hundred: genres, year and title do not say what people will like next.",
    "- What rivals the next item matters more than the architecture. With the softmax over mentioned films alone, nine in ten",
    "  films of a list are ones that nobody has rated, since their attributes were never told that they are seldom chosen; with",
    "  the whole catalogue as rivals, as in the paper, a tenth, and recall is four times as high. On generated sessions, where",
    "  new items are as good as old ones, it makes no difference.",
    "- The self-supervised task raises recall neither on all clicks nor on rare items by more than seeds move it. What the paper",
    "  reports at the scale of hundreds of millions of examples is not seen at this one. With a tenth of the clicks no tower",
    "  beats the list of the most frequent items on all clicks.",
    "",
]
