"""Real and made-up texts shared by the tests of this package."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")


@pytest.fixture(scope="session")
def trec(real_data: Callable[[str], Path]) -> Any:
    """1200 questions of TREC with their coarse class, and whether they ask for a number."""
    import pandas as pd

    path = real_data("sentence_classification/TREC.train.all.gz")
    with gzip.open(path, "rt", encoding="latin-1", newline="\n") as handle:
        lines = [line.rstrip("\n").partition(" ") for line in handle][:1200]
    return pd.DataFrame({"body": [text for _, _, text in lines], "topic": [f"c{label}" for label, _, _ in lines]})


@pytest.fixture(scope="session")
def atis(real_data: Callable[[str], Path]) -> Any:
    """500 requests of ATIS: the words, one tag a word, and whether it is about flights."""
    import pandas as pd

    def lines(name: str) -> list[str]:
        return real_data(f"atis/dev.{name}").read_text("utf-8").splitlines()

    words = [line.split() for line in lines("seq.in")]
    tags = [line.split() for line in lines("seq.out")]
    return pd.DataFrame({"words": words, "tags": tags, "flight": [float(x == "atis_flight") for x in lines("label")]})
