"""Dynamic logits fusion on real text: does a large base model steered by a small expert approach the large model tuned itself?

The language models are character n-grams with Witten-Bell interpolation, so that "large" (6-gram) and "small" (3-gram), base and
tuned, are exact counts and the run takes a minute. "Tuned" models count the base corpus and the dialect's, the dialect weighted.
"""

from __future__ import annotations

import csv
import gzip
import io
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.ratio import DATA, RESULTS, machine
from pluribus.merging import LogitsFusion

ALPHABET = " abcdefghijklmnopqrstuvwxyz0123456789.,'?!#@-"
LARGE, SMALL = 6, 3
WEIGHTS = (1.0, 2.0, 5.0, 10.0, 20.0)  # of a dialect's counts beside the base corpus's
LEARN, TEST = 60_000, 6_000  # characters of a dialect
FIXED = (0.5, 1.0, 1.5)


def _clean(text: str) -> str:
    text = "".join(c if c in ALPHABET else " " for c in text.lower())
    return " ".join(text.split())


def _lines(path: Path) -> list[str]:
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return raw.decode("latin-1").split("\n")


def corpora() -> tuple[str, dict[str, str]]:
    """The base corpus (news) and the dialects (tweets, bank customers' questions, film reviews), cleaned, shuffled by line."""
    news = [" ".join(row[1:]) for row in csv.reader(io.StringIO("\n".join(_lines(DATA / "ag_news_subset" / "test.csv.gz"))))]
    bank = [row[0] for row in csv.reader(io.StringIO("\n".join(_lines(DATA / "banking77" / "train.csv.gz")))) if row][1:]
    tweets = _lines(next((DATA / "tweeteval_parts").glob("irony_train_text.txt*")))
    films = [line[2:] for line in _lines(next((DATA / "sentence_classification").glob("rt-polarity.all*")))]
    found = {}
    for name, lines in {"news": news, "tweets": tweets, "bank": bank, "films": films}.items():
        order = np.random.default_rng(0).permutation(len(lines))
        found[name] = " ".join(_clean(lines[i]) for i in order)
    return found.pop("news")[:600_000], found


Counts = list[dict[str, np.ndarray]]


def count(text: str, order: int) -> Counts:
    """How often each character follows each context of 0 … order − 1 characters."""
    found: Counts = [defaultdict(lambda: np.zeros(len(ALPHABET), np.float32)) for _ in range(order)]
    code = {c: i for i, c in enumerate(ALPHABET)}
    for at in range(order, len(text)):
        c = code[text[at]]
        for n in range(order):
            found[n][text[at - n : at]][c] += 1
    return found


def log_probabilities(text: str, order: int, base: Counts, dialect: Counts | None = None, weight: float = 1.0) -> Tensor:
    """log P of every next character from position LARGE on, [L, V], by Witten-Bell interpolation:
    P(c | h) = (count(hc) + N1+(h) · P(c | shorter h)) / (count(h) + N1+(h)), counts of base + weight · dialect."""
    rows = []
    for at in range(LARGE, len(text)):
        p = np.full(len(ALPHABET), 1 / len(ALPHABET))
        for n in range(order):
            seen: Any = 0.0
            for counts, times in ((base, 1.0), (dialect, weight)):
                mine = counts[n].get(text[at - n : at]) if counts else None
                seen = seen if mine is None else seen + times * mine
            if isinstance(seen, float):
                break
            kinds = np.count_nonzero(seen)
            p = (seen + kinds * p) / (seen.sum() + kinds)
        rows.append(np.log(p))
    return torch.from_numpy(np.stack(rows))


def nats(logits: Tensor, text: str) -> float:
    """Nats per character of the text from position LARGE on."""
    return float(torch.nn.functional.cross_entropy(logits, torch.tensor([ALPHABET.index(c) for c in text[LARGE:]])))


def run(full: bool) -> None:
    """All dialects; the same in both modes."""
    start = time.process_time()
    base, dialects = corpora()
    base_counts = count(base, LARGE)
    rows, alphas, chosen = [], [], []
    learned = {d: count(text[:LEARN], LARGE) for d, text in dialects.items()}
    valid = {d: text[LEARN + TEST : LEARN + 2 * TEST] for d, text in dialects.items()}

    def tuned(dialect: str, order: int) -> float:
        """The weight of the dialect's counts, by the nats on its validation text."""
        text, more = valid[dialect], learned[dialect]
        best = min(WEIGHTS, key=lambda w: nats(log_probabilities(text, order, base_counts, more, w), text))
        chosen.append(f"{dialect}, order {order}: {best:g}")
        return best

    weights = {(d, order): tuned(d, order) for d in dialects for order in (LARGE, SMALL)}
    for dialect, text in dialects.items():
        test = text[LEARN : LEARN + TEST]

        def expert(of: str, order: int, test: str = test) -> Tensor:
            return log_probabilities(test, order, base_counts, learned[of], weights[of, order])

        l_large, l_small = (log_probabilities(test, order, base_counts) for order in (LARGE, SMALL))
        l_tuned, l_expert = expert(dialect, LARGE), expert(dialect, SMALL)
        others = [expert(o, SMALL) for o in dialects if o != dialect]

        fusion = LogitsFusion()
        alpha = fusion.weights(l_large, l_small, [l_expert])[:, 0]
        row = {
            "large": nats(l_large, test),
            "small expert": nats(l_expert, test),
            "large tuned": nats(l_tuned, test),
            **{f"fixed {a:g}": nats(l_large + a * (l_expert - l_small), test) for a in FIXED},
            "dynamic": nats(fusion(l_large, l_small, [l_expert]), test),
            "all experts, fixed 1/T": nats(l_large + sum(e - l_small for e in [l_expert, *others]) / len(dialects), test),
            "all experts, dynamic": nats(fusion(l_large, l_small, [l_expert, *others]), test),
            "all experts, single": nats(LogitsFusion(direction="single")(l_large, l_small, [l_expert, *others]), test),
        }
        rows.append((dialect, row))
        quartiles = np.percentile(alpha.numpy(), [5, 25, 50, 75, 95])
        alphas.append(f"- {dialect}: " + ", ".join(f"{q:.2f}" for q in quartiles))
        print(dialect, {k: round(v, 4) for k, v in row.items()}, flush=True)
    names = list(rows[0][1])
    table = ["| model | " + " | ".join(d for d, _ in rows) + " | mean | share of the gap closed |"]
    table.append("|---" * (len(rows) + 3) + "|")
    for name in names:
        each = [r[name] for _, r in rows]
        gap = np.mean([(r["large"] - r[name]) / (r["large"] - r["large tuned"]) for _, r in rows])
        table.append(f"| {name} | " + " | ".join(f"{v:.3f}" for v in each) + f" | {np.mean(each):.3f} | {100 * gap:.0f} % |")
    wins = [f"{d}: dynamic {r['dynamic'] - min(r[f'fixed {a:g}'] for a in FIXED):+.3f} against the best fixed α" for d, r in rows]
    page = f"""# Dynamic logits fusion: a large base model steered by small experts

Written by `benchmarks/logits_fusion.py` (`make bench ONLY=logits_fusion`). All cells ran, {time.strftime("%Y-%m-%d")};
{machine()}; {time.process_time() - start:.0f} CPU seconds.

Character n-gram models (Witten-Bell) of order {LARGE} (large) and {SMALL} (small). Base corpus: {len(base)} characters of news.
An expert is the small model with {LEARN} characters of its dialect added; "large tuned" is the large model with the same.
The added counts' weight is picked from {", ".join(f"{w:g}" for w in WEIGHTS)} on {TEST} further characters
({"; ".join(chosen)}).
Nats per character on {TEST} other characters of the dialect: lower is better. *Share of the gap closed*: from the large base
to the tuned large model. "Fixed 1" is proxy tuning. Nothing was tuned on the test text.

{chr(10).join(table)}

{chr(10).join("- " + w for w in wins)}

Quantiles (5, 25, 50, 75, 95 %) of the solved α, one expert:

{chr(10).join(alphas)}

"all experts" rows do not say which dialect is read: every expert's logits are given, and the fixed weights are 1/T.
"""
    (RESULTS / "logits_fusion.md").write_text(page, "utf-8")
