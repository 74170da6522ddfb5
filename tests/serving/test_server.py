"""The application: what it answers, what it computes, and what it refuses, always clearly and never with a 500."""

from __future__ import annotations

import io
import json
import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")
pytest.importorskip("prometheus_client", reason="the extra 'serve' is not installed")
pytest.importorskip("httpx", reason="the test client needs httpx")

import pyarrow as pa
import pyarrow.parquet as pq

from pluribus.serving import Limits
from pluribus.serving.bodies import ARROW, PARQUET, BodyReader


def _table(slots: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame([slot["values"] for slot in slots])


def _same(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    expected = expected.reset_index(drop=True)
    assert list(found.columns) == list(expected.columns)
    for name in expected:
        if pd.api.types.is_numeric_dtype(expected[name]):
            np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=1e-6 * max(1, expected[name].abs().max()))
        else:
            assert found[name].tolist() == expected[name].tolist(), name


def test_json_rows_equal_predict(network: Any, mixed_frame: Any, rows: Any, client_of: Any) -> None:
    """The server says what `Fitted.predict` says: thresholds, classes, units."""
    answer = client_of(network).post("/predict", json={"rows": rows})
    assert answer.status_code == 200, answer.text
    _same(_table(answer.json()["rows"]), network.predict(mixed_frame.head(12)))


def test_calibration_is_applied(network: Any, mixed_frame: Any, rows: Any, client_of: Any) -> None:
    """A served probability is the calibrated one."""
    from pluribus.evaluation.calibration import Platt

    network.calibration = {"default": Platt(0.5, -1.0).to_dict()}
    found = client_of(network).post("/predict", json={"rows": rows, "tasks": ["default"]}).json()["rows"]
    _same(_table(found), network.predict(mixed_frame.head(12), ["default"]))


@pytest.mark.parametrize("form", [ARROW, PARQUET, "application/vnd.apache.arrow.file"])
def test_tables_equal_predict(form: str, network: Any, mixed_frame: Any, client_of: Any) -> None:
    """Arrow and Parquet bodies give the same numbers and come back in kind."""
    frame = mixed_frame.head(50)
    answer = client_of(network).post("/predict", content=_bytes(frame, form), headers={"content-type": form})
    assert answer.status_code == 200, answer.text
    body = io.BytesIO(answer.content)
    found = pq.read_table(body) if form == PARQUET else pa.ipc.open_stream(body).read_all()
    found = found.to_pandas()
    assert found.pop("error").isna().all()
    _same(found, network.predict(frame))


def _bytes(frame: pd.DataFrame, form: str) -> bytes:
    out = io.BytesIO()
    table = pa.Table.from_pandas(frame, preserve_index=False)
    if form == PARQUET:
        pq.write_table(table, out)
    else:
        make = pa.ipc.new_file if form.endswith("file") else pa.ipc.new_stream
        with make(out, table.schema) as writer:
            writer.write_table(table)
    return out.getvalue()


def test_every_column_type_and_the_id(dated: Any, network_of: Any, client_of: Any) -> None:
    """Dates, booleans, words and ids travel through JSON and Parquet alike."""

    frame, data = dated
    fitted = network_of(data)
    client = client_of(fitted)
    head = frame.head(8).drop(columns=["y", "z"])
    expected = fitted.predict(head)
    records = json.loads(head.to_json(orient="records", date_format="iso"))
    answer = client.post("/predict", json={"rows": records}).json()["rows"]
    assert [slot["id"] for slot in answer] == head["key"].tolist()
    _same(_table(answer), expected)
    reply = client.post("/predict", content=_bytes(head, PARQUET), headers={"content-type": PARQUET})
    found = pq.read_table(io.BytesIO(reply.content)).to_pandas()
    assert found.pop("key").tolist() == head["key"].tolist()
    _same(found.drop(columns="error"), expected)
    zoned = {**records[0], "when": "2020-01-05T03:00:00+02:00"}
    plain = {**records[0], "when": "2020-01-05T01:00:00"}
    one, two = client.post("/predict", json=[zoned, plain]).json()["rows"]
    assert one == two


def test_tasks_selects_what_is_computed(network: Any, rows: Any, client_of: Any) -> None:
    """Only the towers of the tasks that were asked for run: an unasked task costs nothing."""
    client = client_of(network)
    towers: list[int] = []
    network.model.sharing.towers.register_forward_hook(lambda module, given, out: towers.append(len(out)))
    values = client.post("/predict?tasks=loss,calls", json={"rows": rows}).json()["rows"][0]["values"]
    assert set(values) == {"loss", "calls"}
    assert towers == [2]
    client.post("/predict", json={"rows": rows, "tasks": ["grade"]})
    client.post("/predict", json={"rows": rows})
    assert towers == [2, 1, 5]


def test_members_that_are_not_asked_do_not_run(mixed: Any, network_of: Any, rows: Any, client_of: Any) -> None:
    """A committee runs the members that answer for the asked tasks, and no other."""
    from pluribus.study.committee import Committee

    one, two = network_of(mixed), network_of(mixed)
    names = [task.name for task in mixed.tasks]
    fitted = Committee(mixed.tasks, mixed.columns, {"one": one, "two": two}, {n: "two" if n == "loss" else "one" for n in names})
    client = client_of(fitted)
    calls = {"one": 0, "two": 0}
    for name, member in fitted.members.items():
        member.model.register_forward_hook(lambda *_, name=name: calls.update({name: calls[name] + 1}))
    assert client.post("/predict?tasks=default,calls", json={"rows": rows}).status_code == 200
    assert calls == {"one": 1, "two": 0}
    assert len(client.post("/predict", json={"rows": rows}).json()["rows"][0]["values"]) == len(
        network_of(mixed).predict(pd.DataFrame(rows)).columns
    )
    assert calls == {"one": 2, "two": 1}


def test_one_bad_row_answers_in_its_own_slot(network: Any, mixed_frame: Any, rows: Any, client_of: Any) -> None:
    """Wrong types, NaN, missing columns: the row says so, its neighbours are predicted."""
    bad: list[Any] = [
        {**rows[1], "x0": "many"},
        {**rows[1], "word": ["a"]},
        {k: v for k, v in rows[1].items() if k != "x2"},
        5,
        None,
        [],
        {**rows[1], "x1": 10**400},
        {**rows[1], "word": "\ud800"},
        {**rows[1], "word": "w" * 20_000},
        {**rows[1], "x3": {"deep": [1]}},
        {**rows[1], "x0": True},
    ]
    text = json.dumps({"rows": [rows[0], *bad, rows[1]]})
    answer = client_of(network).post("/predict", content=text).json()["rows"]
    assert len(answer) == len(bad) + 2
    _same(_table([answer[0], answer[-1]]), network.predict(mixed_frame.head(2)))
    assert "column 'x0': takes a number, not the text 'many'" in answer[1]["error"]
    assert "column 'word': takes text, not a list" in answer[2]["error"]
    assert "lacks the column 'x2'" in answer[3]["error"]
    assert "column 'x0': takes a number, not true" in answer[-2]["error"]
    assert all(set(slot) == {"error"} for slot in answer[1:-1])


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none(word: str, network: Any, rows: Any, client_of: Any) -> None:
    text = json.dumps({"rows": [rows[0], {**rows[0], "x1": 12345}]}).replace("12345", word)
    answer = client_of(network).post("/predict", content=text).json()["rows"]
    assert "values" in answer[0]
    assert "column 'x1': takes a finite number" in answer[1]["error"]


def test_a_number_beyond_float32_fails_alone(network: Any, rows: Any, client_of: Any) -> None:
    """A value that overflows inside the network is that row's failure, not an infinite prediction and not a 500."""
    answer = client_of(network).post("/predict", json={"rows": [rows[0], {**rows[0], "x1": 1e300}]})
    first, second = answer.json()["rows"]
    assert "failed" not in first
    assert second.get("failed") or all(np.isfinite(v) for v in second["values"].values() if isinstance(v, float))


def test_one_failing_head_does_not_stop_the_others(network: Any, mixed_frame: Any, rows: Any, client_of: Any) -> None:
    """A head that raises and a head that gives NaN are reported by name; the other tasks answer."""
    client = client_of(network)
    link, loss = network.model.heads.link, network.model.heads.place["loss"]

    def broken(outputs: Any) -> Any:
        if "calls" in outputs:
            raise RuntimeError("secret detail")
        return link(outputs)

    network.model.heads.link = broken
    network.model.heads.bias.data[loss] = float("nan")
    answer = client.post("/predict", json={"rows": rows})
    assert answer.status_code == 200
    assert "secret" not in answer.text
    for slot in answer.json()["rows"]:
        assert slot["failed"].keys() == {"calls", "loss"}
        assert {"default__p", "grade", "rating"} <= slot["values"].keys()
        assert not {"calls", "loss"} & slot["values"].keys()
    text = client.get("/metrics").text
    assert 'pluribus_task_failures_total{task="calls"} 12.0' in text


@pytest.mark.parametrize(
    ("body", "headers", "status", "text"),
    [
        (b"", {}, 422, "is not JSON"),
        (b'{"rows": [', {}, 422, "is not JSON"),
        (b"\xff\xfe", {}, 422, "not UTF-8"),
        (b"[" * 100_000, {}, 422, "nested deeper"),
        (b'{"rows":' + b'{"a":' * 5000 + b"1" + b"}" * 5001, {}, 422, "nested deeper"),
        (b'{"rows": [{"x0": ' + b"9" * 5000 + b"}]}", {}, 422, "cannot be read"),
        (b'{"rows": 3}', {}, 422, "holds no list of rows"),
        (b'{"row": []}', {}, 422, "did you mean 'rows'"),
        (b'{"rows": [], "tasks": "loss"}', {}, 422, "is not a list of names"),
        (b'{"rows": [], "tasks": ["losss"]}', {}, 422, "did you mean 'loss'"),
        (b"[" + b"{}," * 10_001 + b"{}]", {}, 413, "holds 10002 rows"),
        (b" " * (9 << 20), {}, 413, "larger than 8388608 bytes"),
        (b"x", {"content-type": "text/csv"}, 415, "cannot read 'text/csv'"),
        (b"x", {"content-encoding": "gzip"}, 415, "compressed"),
        (b"x", {"content-type": ARROW}, 422, "not an Arrow stream"),
        (b"PAR1", {"content-type": PARQUET}, 422, "not a Parquet file"),
    ],
)
def test_refusals(body: bytes, headers: Any, status: int, text: str, network: Any, client_of: Any) -> None:
    """Malformed, nested, oversized, unknown: one clear line and the right status, and the server goes on."""
    client = client_of(network)
    answer = client.post("/predict", content=body, headers=headers)
    assert (answer.status_code, text in answer.json()["error"]) == (status, True), answer.text
    assert "pluribus_refusals_total" in client.get("/metrics").text
    assert client.get("/ready").status_code == 200


def test_unending_strings_are_scanned_once(network: Any, client_of: Any) -> None:
    """A body of escaped quotes must not make the depth scan quadratic (4 MB would take hours)."""
    assert client_of(network).post("/predict", content=b'"' + b'\\"' * (2 << 20)).status_code == 422


def test_tables_are_bounded_too(network: Any, mixed_frame: Any, client_of: Any) -> None:
    client = client_of(network, Limits(rows=20, fields=100))
    many = _bytes(mixed_frame.head(21), PARQUET)
    assert client.post("/predict", content=many, headers={"content-type": PARQUET}).status_code == 413
    stream = _bytes(mixed_frame.head(21), ARROW)
    assert client.post("/predict", content=stream, headers={"content-type": ARROW}).status_code == 413
    wide = pd.DataFrame({f"c{i}": [1.0] for i in range(101)})
    assert client.post("/predict", content=_bytes(wide, ARROW), headers={"content-type": ARROW}).status_code == 413
    lacking = _bytes(mixed_frame.head(3).drop(columns="x1"), ARROW)
    answer = client.post("/predict", content=lacking, headers={"content-type": ARROW})
    assert answer.status_code == 422
    assert "lacks 1 input columns: 'x1'" in answer.json()["error"]
    nested = mixed_frame.head(3).assign(x1=[[1.0], [2.0], [3.0]])
    answer = client.post("/predict", content=_bytes(nested, PARQUET), headers={"content-type": PARQUET})
    assert answer.status_code == 422
    assert "not a plain value" in answer.json()["error"]


def test_a_small_file_of_one_long_word_stays_small(network: Any, mixed_frame: Any, client_of: Any) -> None:
    """A dictionary-encoded word of 5 MB in 10 000 rows would be 50 GB as text; it is refused before it is spread out."""
    frame = pd.DataFrame({f"x{i}": np.zeros(10_000) for i in range(4)})
    frame["word"] = pd.Categorical.from_codes(np.zeros(10_000, int), ["w" * 5_000_000])
    body = _bytes(frame, PARQUET)
    assert len(body) < 6_000_000
    answer = client_of(network).post("/predict", content=body, headers={"content-type": PARQUET})
    assert answer.status_code == 413, answer.text


def test_ten_thousand_columns(network: Any, rows: Any, client_of: Any) -> None:
    """A row with 10 000 columns is predicted from those the model reads; one beyond the limit answers an error."""
    wide = {**rows[0], **{f"c{i}": i for i in range(10_000)}}
    wider = {**rows[0], **{f"c{i}": i for i in range(50_001)}}
    plain, one, two = client_of(network).post("/predict", json={"rows": [rows[0], wide, wider]}).json()["rows"]
    assert one == plain
    assert "fields" in two["error"]


def test_unknown_task_in_the_address(network: Any, rows: Any, client_of: Any) -> None:
    client = client_of(network)
    answer = client.post("/predict?tasks=defualt", json={"rows": rows})
    assert answer.status_code == 422
    assert "did you mean 'default'" in answer.json()["error"]
    assert client.post("/predict?tasks=loss", json={"rows": rows, "tasks": ["loss"]}).status_code == 422


@pytest.mark.parametrize("query", ["?tasks=", "?tasks=,", ""])
def test_an_empty_list_of_tasks_computes_none(query: str, network: Any, rows: Any, client_of: Any) -> None:
    """In the address as in the body: no task is asked for, which is not the same as leaving it open, and the document says so."""
    client = client_of(network)
    body = {"rows": rows[:2]} | ({} if query else {"tasks": []})
    assert client.post(f"/predict{query}", json=body).json() == {"rows": [{"values": {}}] * 2}
    post = client.get("/openapi.json").json()["paths"]["/predict"]["post"]
    inside = post["requestBody"]["content"]["application/json"]["schema"]["properties"]["tasks"]
    assert all("none where it is empty" in each["description"] for each in (post["parameters"][0], inside))


def test_no_rows(network: Any, client_of: Any) -> None:
    assert client_of(network).post("/predict", json={"rows": []}).json() == {"rows": []}


def test_token(network: Any, rows: Any, client_of: Any) -> None:
    """Without the token nothing is computed and no figure is shown; health stays open for whoever watches."""
    client = client_of(network, token="s" * 20)
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic " + "s" * 20}):
        answer = client.post("/predict", json={"rows": rows}, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert client.get("/metrics", headers=headers).status_code == 401
    assert client.post("/predict", json={"rows": rows}, headers={"authorization": "Bearer " + "s" * 20}).status_code == 200
    assert client.get("/health").status_code == 200


def test_metrics(network: Any, rows: Any, client_of: Any) -> None:
    """Latency, batch sizes, rows a task, row errors and refusals are counted."""
    client = client_of(network)
    client.post("/predict?tasks=loss", json={"rows": [*rows, {}]})
    client.post("/predict", content=b"no")
    text = client.get("/metrics").text
    for line in (
        "pluribus_request_seconds_count 2.0",
        "pluribus_batch_rows_sum 12.0",
        'pluribus_task_rows_total{task="loss"} 12.0',
        "pluribus_row_errors_total 1.0",
        'pluribus_refusals_total{reason="malformed"} 1.0',
    ):
        assert line in text, line


def test_not_ready_is_503(network: Any, rows: Any) -> None:
    """Before its start and after its stop the application refuses instead of failing."""
    from fastapi.testclient import TestClient

    from pluribus.serving import application

    client = TestClient(application(network))
    assert client.get("/health").status_code == 200
    assert client.get("/ready").status_code == 503
    assert client.post("/predict", json={"rows": rows}).status_code == 503


def test_unknown_addresses_answer_json(network: Any, client_of: Any) -> None:
    client = client_of(network)
    assert client.get("/predict").status_code == 405
    assert client.get("/../../etc/passwd").json()["error"] == "Not Found"


class _Opened:
    """What is opened or unpickled while it listens (audit hooks cannot be removed, so there is one)."""

    def __init__(self) -> None:
        self.listening, self.seen = False, []  # type: ignore[var-annotated]
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: Any) -> None:
        if self.listening and (event in ("open", "os.listdir", "os.scandir") or event.startswith("pickle.")):
            self.seen.append((event, str(arguments[:1])))


def test_no_path_of_a_request_is_opened(network: Any, rows: Any, client_of: Any) -> None:
    """Paths in every place a request has: none is opened, nothing is unpickled."""
    client = client_of(network)
    client.post("/predict", json={"rows": rows})
    bait = "/etc/pluribus-bait"
    opened = _Opened()
    opened.listening = True
    try:
        client.post(f"/predict?tasks={bait}", json={"rows": rows})
        client.post("/predict", json={"rows": [{**rows[0], "word": bait}], "tasks": [bait]})
        client.post("/predict", content=bait.encode(), headers={"content-type": PARQUET})
        client.post("/predict", json={"rows": bait, "model": bait}, headers={"accept": bait})
        client.post("/predict", content=b"\x80\x04cos\nsystem\n.", headers={"content-type": "application/octet-stream"})
    finally:
        opened.listening = False
    assert not [seen for seen in opened.seen if "bait" in seen[1] or seen[0].startswith("pickle.")]
    with open(__file__, "rb"):
        pass
    opened.listening = True
    with open(__file__, "rb"):
        pass
    opened.listening = False
    assert opened.seen  # the hook does see what is opened


def test_a_task_that_is_added_is_described_and_answered(network: Any, rows: Any, client_of: Any) -> None:
    """The description and a request that names no task would keep the tasks that the server started with."""

    def seen(client: Any) -> tuple[list[str], list[str]]:
        values = client.get("/openapi.json").json()["components"]["schemas"]["Values"]["properties"]
        return list(values), list(client.post("/predict", json={"rows": rows[:1]}).json()["rows"][0]["values"])

    every = network.tasks
    network.tasks = every[:1]
    client = client_of(network)
    first, answered = seen(client)
    assert first == answered
    network.tasks = every
    more, answered = seen(client)
    assert more == answered
    assert len(more) > len(first)
    network.tasks = every[:1]
    assert seen(client) == (first, first)


def test_as_many_requests_as_allowed_and_no_more(network: Any, rows: Any, client_of: Any) -> None:
    """One place: requests one after another each get it back; while it is taken the next is told to come again."""
    client = client_of(network, Limits(concurrency=1))
    for _ in range(3):
        assert client.post("/predict", json={"rows": rows}).status_code == 200
    assert client.post("/predict", content=b"x").status_code == 422
    service = client.app.state.service
    assert service.in_hand == 0
    service.in_hand = 1
    answer = client.post("/predict", json={"rows": rows})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert service.in_hand == 1


@pytest.mark.parametrize("depth", [16, 17])
def test_the_depth_that_is_read(depth: int, network: Any, client_of: Any) -> None:
    body = b'{"rows": [{"x0": ' + b"[" * (depth - 3) + b"]" * (depth - 3) + b"}]}"
    assert client_of(network).post("/predict", content=body).status_code == (200 if depth == 16 else 422)


def test_a_body_without_a_stated_length_is_bounded_too(network: Any, client_of: Any) -> None:
    """Chunks add up: a client that does not say how much it sends may not send more for it."""
    client = client_of(network, Limits(body=1000))
    answer = client.post("/predict", content=(b" " * 100 for _ in range(11)), headers={"content-type": "application/json"})
    assert "content-length" not in answer.request.headers
    assert answer.status_code == 413, answer.text


def test_a_small_file_that_unpacks_large_is_refused(network: Any, client_of: Any) -> None:
    columns = {**{f"x{i}": pa.array(np.zeros(10_000)) for i in range(4)}, "word": pa.nulls(10_000, pa.string())}
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out, use_dictionary=False, compression="zstd")
    client = client_of(network, Limits(body=10_000))
    answer = client.post("/predict", content=out.getvalue(), headers={"content-type": PARQUET})
    assert (answer.status_code, "unpacks to more" in answer.text) == (413, True), answer.text


def _words(**settings: Any) -> bytes:
    """A Parquet file of 60 rows whose words are not ASCII."""
    columns = {f"x{i}": np.arange(60.0) for i in range(4)} | {"word": [f"wörd{i}" for i in range(60)]}
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out, compression="none", **settings)
    return out.getvalue()


def test_a_parquet_file_whose_words_are_no_unicode_is_refused(network: Any, client_of: Any) -> None:
    """Only `validate(full=True)` sees this before the words are looked at: pages and counts are in order."""
    broken = _words().replace("wörd7".encode(), b"w\xc3\xffrd7", 1)
    answer = client_of(network).post("/predict", content=broken, headers={"content-type": PARQUET})
    assert answer.status_code == 422, answer.text
    assert "body: is not a Parquet file" in answer.json()["error"]
    assert "Invalid UTF8" in answer.json()["error"]


def test_broken_parquet_bodies_are_refused_or_read(network: Any, client_of: Any) -> None:
    """A byte flipped anywhere (pages, page heads, the footer): an answer or one line, never a failure of ours."""
    client, chance, refused = client_of(network), np.random.default_rng(0), 0
    for body in (_words(), _words(use_dictionary=False), _words(data_page_version="2.0")):
        for place in chance.integers(4, len(body) - 8, 60):
            broken = bytearray(body)
            broken[place] ^= 1 << int(chance.integers(8))
            answer = client.post("/predict", content=bytes(broken), headers={"content-type": PARQUET})
            assert answer.status_code in (200, 413, 422), answer.text
            refused += answer.status_code != 200
            assert answer.status_code == 200 or "\n" not in answer.json()["error"]
    assert refused > 20


@pytest.mark.parametrize("encoding", ["DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"])
def test_words_kept_as_differences_are_refused_as_such(encoding: str, network: Any, client_of: Any) -> None:
    """Such a file is sound: to call it "not a Parquet file" would send its writer in search of a fault that it does not have."""
    body = _words(use_dictionary=False, column_encoding={"word": encoding})
    answer = client_of(network).post("/predict", content=body, headers={"content-type": PARQUET})
    assert answer.status_code == 422
    assert "holds words in a DELTA encoding" in answer.json()["error"]


def test_nan_in_a_table_is_a_missing_number(network: Any, client_of: Any) -> None:
    """NaN is how tables write it; the same row with null must answer the same."""
    found = []
    for x1 in (pa.array([float("nan")], from_pandas=False), pa.nulls(1, pa.float64())):
        table = pa.table({"x0": [1.0], "x1": x1, "x2": [0.5], "x3": [0.0], "word": ["a"]})
        out = io.BytesIO()
        pq.write_table(table, out)
        headers = {"content-type": PARQUET, "accept": "application/json"}
        found.append(client_of(network).post("/predict", content=out.getvalue(), headers=headers).json()["rows"])
    assert found[0] == found[1]
    assert "values" in found[0][0]


def test_lists_are_bounded() -> None:
    from pluribus.data import FittedColumns, Table

    columns = FittedColumns.fit(Table(pd.DataFrame({"s": [[0.5], [1.5, 2.5]] * 3, "y": [0, 1, 2] * 2}), ["y:count"]))
    rows = BodyReader(columns, Limits(elements=2)).json(b'[{"s": [1, 2]}, {"s": [1, 2, 3]}]')
    assert rows.good == [0]
    assert "is a list of 3, the limit is 2" in rows.errors[1]


def test_an_arrow_stream_whose_offsets_lie_is_refused(network: Any, client_of: Any) -> None:
    """A word that claims to end outside its bytes must not be read from whatever lies there in memory."""
    table = pa.table({**{f"x{i}": [0.0] for i in range(4)}, "word": ["abcdefgh"]})
    out = io.BytesIO()
    with pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table)
    body, true = out.getvalue(), np.array([0, 8], "<i4").tobytes() + b"abcdefgh"  # offsets, then the bytes
    assert body.count(true) == 1
    client = client_of(network)
    assert client.post("/predict", content=body, headers={"content-type": ARROW}).status_code == 200
    lying = body.replace(true, np.array([0, 1 << 20], "<i4").tobytes() + b"abcdefgh")
    answer = client.post("/predict", content=lying, headers={"content-type": ARROW})
    assert answer.status_code == 422, answer.text
    assert "is not an Arrow stream" in answer.json()["error"]
