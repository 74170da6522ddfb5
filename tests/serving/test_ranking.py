"""A ranking is served: lists go in and come out, an empty session is one row's error, new items are ranked without training."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")
pytest.importorskip("prometheus_client", reason="the extra 'serve' is not installed")
pytest.importorskip("httpx", reason="the test client needs httpx")

import pyarrow.parquet as pq

from pluribus.data import ItemTable, Table, prepare, split
from pluribus.modeling import Budget
from pluribus.serving.bodies import PARQUET
from pluribus.tabular.m2trec import M2TRecNetwork


@pytest.fixture(scope="module")
def shop() -> tuple[pd.DataFrame, Any]:
    rng = np.random.default_rng(0)
    price = np.linspace(0, 1, 30)  # no two items alike: ties would be ordered by rounding
    items = pd.DataFrame({"sku": [f"i{i}" for i in range(30)], "kind": [f"k{i % 3}" for i in range(30)], "price": price})
    viewed = [[f"i{j}" for j in rng.integers(0, 30, rng.integers(1, 5))] for _ in range(300)]
    frame = pd.DataFrame({"viewed": viewed, "next": [row[-1] for row in viewed]})
    table = Table(frame, ["next:next_item"], split="random", items={"item": ItemTable(items, "sku", ["viewed", "next"])})
    data = prepare(table, split(table, 0))
    return frame, M2TRecNetwork(epochs=2, width=16, top=5).fit(data, Budget(60.0), 0)


def test_rows_equal_predict(shop: Any, client_of: Any) -> None:
    """JSON arrays in, keys out, as `Fitted.predict` answers; so for Parquet's lists."""
    frame, fitted = shop
    rows = [{"viewed": session} for session in frame["viewed"].head(8)]
    client = client_of(fitted)
    expected = fitted.predict(frame.head(8))["next"].tolist()
    answer = client.post("/predict", json={"rows": rows})
    assert answer.status_code == 200, answer.text
    assert [slot["values"]["next"] for slot in answer.json()["rows"]] == expected
    body = io.BytesIO()
    frame[["viewed"]].head(8).to_parquet(body)
    answer = client.post("/predict", content=body.getvalue(), headers={"content-type": PARQUET})
    assert answer.status_code == 200, answer.text
    assert [list(cell) for cell in pq.read_table(io.BytesIO(answer.content)).to_pandas()["next"]] == expected


def test_what_does_not_fit_is_one_rows_error(shop: Any, client_of: Any) -> None:
    """An empty session, a word for a list, an object in a list; the row between them is answered."""
    cells: list[Any] = [[], "i1", ["i1", "nobody's"], [{"a": 1}], None, [1.5]]
    rows = [{"viewed": cell} for cell in cells]
    found = client_of(shop[1]).post("/predict", json={"rows": rows}).json()["rows"]
    assert found[0]["failed"] == {"next": "the session is empty; give it an item"} == found[4]["failed"]
    assert "takes a list" in found[1]["error"]
    assert len(found[2]["values"]["next"]) == 5
    assert "viewed" in found[3]["error"]
    assert "takes a list of words, not float 1.5 in it" in found[5]["error"]


def test_the_catalogue_grows_while_it_serves(shop: Any, client_of: Any) -> None:
    """A new item of the kind that a session is about comes up; the old items keep their order."""
    fitted = shop[1]
    client, columns = client_of(fitted), fitted.columns

    def ask(*session: str) -> list[str]:
        found: list[str] = client.post("/predict", json={"rows": [{"viewed": session}]}).json()["rows"][0]["values"]["next"]
        return found

    before = ask("i4")
    assert ask("new0") == ask("new1") == ask("new2"), "of none of them anything is known"
    try:
        new = {"sku": ["new0", "new1", "new2"], "kind": ["k0", "k1", "k2"], "price": [0.2, 0.5, 0.8]}
        fitted.add_items(item=pd.DataFrame(new))
        old = [key for key in ask("i4") if not key.startswith("new")]
        assert old == before[: len(old)]
        assert ask("new1") == fitted.predict(pd.DataFrame({"viewed": [["new1"]]}))["next"][0]
        assert ask("new0") != ask("new1"), "a session of a new item is still one of an unknown item"
    finally:
        fitted.columns = columns


def test_the_schema_says_what_lists_hold(shop: Any, client_of: Any) -> None:
    document = client_of(shop[1]).get("/openapi.json").json()["components"]["schemas"]
    assert document["Row"]["properties"]["viewed"]["type"] == ["array", "null"]
    assert document["Values"]["properties"]["next"]["type"] == "array"
