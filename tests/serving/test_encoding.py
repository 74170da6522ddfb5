"""Rows straight into arrays: the same bits as `FittedColumns.prepare`, which trained the model."""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from pluribus.serving.encoding import RowEncoder

DATES = st.datetimes(datetime.datetime(1700, 1, 1), datetime.datetime(2200, 1, 1))
CELLS = st.tuples(
    st.one_of(st.just(float("nan")), st.floats(-1e30, 1e30)),
    st.sampled_from(["True", "False", None]),
    st.one_of(st.none(), DATES, st.just(datetime.datetime(2020, 1, 3, 5, 6, 7, 8))),
    st.sampled_from(["é", "b", "never seen", "", None]),
)


@settings(max_examples=60)
@given(rows=st.lists(CELLS, min_size=1, max_size=12))
def test_rows_are_encoded_bit_for_bit_as_tables_are(rows: list[tuple[Any, ...]], dated: Any) -> None:
    """A number that differed in its last bit, or a date on another weekday, would make serving another model than the file's."""
    _, data = dated
    names = ["x", "flag", "when", "word"]
    frame = pd.DataFrame({name: pd.Series(cells, dtype=object) for name, cells in zip(names, zip(*rows))})
    frame["when"] = pd.Series(np.array(frame["when"].tolist(), "datetime64[us]"))
    frame["x"] = frame["x"].astype(float)
    expected = data.columns.prepare(frame, data.tasks)
    found = RowEncoder(data.columns, data.tasks, names)(rows)
    np.testing.assert_array_equal(found.numeric.view(np.int32), expected.numeric.view(np.int32))
    np.testing.assert_array_equal(found.categorical, expected.categorical)
