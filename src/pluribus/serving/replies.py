"""Answers as bytes: JSON slots, or a table with the columns of a prediction file, the id, and `error`."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pluribus.serving.bodies import PARQUET

if TYPE_CHECKING:
    import pyarrow as pa

    from pluribus.tasks import Task


_encode = json.JSONEncoder(allow_nan=False).encode


def as_json(slots: Sequence[dict[str, Any]]) -> bytes:
    """`{"rows": [slot, …]}` in ASCII: whatever text came in, it goes out."""
    return _encode({"rows": slots}).encode("ascii")


def as_table(slots: Sequence[dict[str, Any]], tasks: Sequence[Task], ids: tuple[str, Sequence[Any]] | None, form: str) -> bytes:
    """The same as an Arrow stream or a Parquet file. Failed cells are null; column `error` says why."""
    import pyarrow as pa

    columns: dict[str, pa.Array] = {}
    if ids is not None:
        columns[ids[0]] = pa.array([str(key) if key is not None else None for key in ids[1]], pa.string())
    for task in tasks:
        for name, schema in task.record.schema(task).items():
            columns[name] = pa.array([slot.get("values", {}).get(name) for slot in slots], _arrow_type(schema))
    errors = [slot.get("error") or "; ".join(f"{t}: {why}" for t, why in slot.get("failed", {}).items()) for slot in slots]
    columns["error"] = pa.array([error or None for error in errors], pa.string())
    return _written(pa.table(columns), form)


def _arrow_type(schema: Mapping[str, Any]) -> pa.DataType:
    """The Arrow type of cells that a JSON schema describes."""
    import pyarrow as pa

    given = schema["type"]
    word = next((each for each in given if each != "null"), "string") if isinstance(given, list) else given
    if word == "array":
        return pa.list_(_arrow_type(schema.get("items", {"type": "number"})))
    return {"string": pa.string(), "boolean": pa.bool_(), "integer": pa.int64()}.get(word, pa.float64())


def _written(table: pa.Table, form: str) -> bytes:
    import pyarrow as pa

    out = io.BytesIO()
    if form == PARQUET:
        import pyarrow.parquet as pq

        pq.write_table(table, out)
    else:
        with pa.ipc.new_stream(out, table.schema) as writer:
            writer.write_table(table)
    return out.getvalue()
