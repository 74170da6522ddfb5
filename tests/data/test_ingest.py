"""Strangers' files: each bad one is one clear line naming file, place and remedy; good ones keep types and values."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pluribus.data.ingest import read_table
from pluribus.errors import BadInput

BAD = {
    "empty.csv": (b"", "is empty"),
    "header.csv": (b"a,b\n", "has a header but no rows"),
    "header_without_newline.csv": (b"a,b", "has a header but no rows"),
    "blank.csv": (b"\n\n", "empty first line"),
    "long.csv": (b'a,b\n1,2\n"x\ny",3\n1,2,3\n', "line 5: has 3 fields where the header has 2"),
    "short.csv": (b"a,b\n1,2\n1\n", "line 3: has 1 fields where the header has 2"),
    "latin1.csv": ("a,b\n1,é\n".encode("latin-1"), "line 2: is not UTF-8 text"),
    "comma.csv": (b"a;b\n1,5;2\n3;4\n", "column 'a': holds numbers with a comma ('1,5'), which would be read as words"),
    "latin1_header.csv": ("é,b\n1,2\n".encode("latin-1"), "line 1: is not UTF-8 text"),
    "late_latin1.csv": (b"a,b\n" + b"1,2\n" * 1_500_000 + b"1,\xff\n", "line 1500002: is not UTF-8 text"),
    "double.csv": (b"a,b,a\n1,2,3\n", "has 2 columns called 'a'"),
    "unnamed.csv": (b",a\n0,2\n", "column 1: has no name"),
    "quote.csv": (b'a,b\n1,2\n"1,2\n', "line 3: is not CSV"),
    "header_quote.csv": (b'"a,b\n1,2\n', "line 1: has a quote that is not closed"),
    "binary.csv": (b"PK\x03\x04\x00\x00\n", "neither CSV text nor Parquet"),
    "csv.parquet": (b"a,b\n1,2\n", "is not a Parquet file"),
    "damaged.parquet": (b"PAR1 and then something else", "is a damaged Parquet file"),
    "cut.csv.gz": (gzip.compress(b"a,b\n1,2\n" * 10_000)[:20], "cannot be unpacked"),
    "plain.csv.gz": (b"a,b\n1,2\n", "cannot be unpacked"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_file_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    content, message = BAD[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(BadInput) as caught:
        read_table(path)
    line = str(caught.value)
    assert message in line
    assert str(path) in line
    assert caught.value.remedy
    assert "\n" not in line


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such file"):
        read_table(tmp_path / "nothing.csv")
    with pytest.raises(BadInput, match="is a folder"):
        read_table(tmp_path)


def test_nested_parquet_column_is_named(tmp_path: Path) -> None:
    path = tmp_path / "nested.parquet"
    pd.DataFrame({"a": [1, 2], "b": [[[1]], [[2]]]}).to_parquet(path)
    with pytest.raises(BadInput, match=r"column 'b'.*holds list"):
        read_table(path)
    pd.DataFrame({"a": [1, 2], "b": [[1], [2, 3]]}).to_parquet(path)
    assert [len(cell) for cell in read_table(path)["b"]] == [1, 2], "a list of plain values is a sequence"


def test_doubled_parquet_columns(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "double.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"]), path)
    with pytest.raises(BadInput, match="2 columns called 'a'"):
        read_table(path)


def test_parquet_truncated_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "whole.parquet"
    pd.DataFrame({"a": np.arange(1000), "b": ["x"] * 1000}).to_parquet(path)
    whole = path.read_bytes()
    for length in range(1, len(whole), max(1, len(whole) // 40)):
        path.write_bytes(whole[:length])
        with pytest.raises(BadInput):
            read_table(path)


def test_types_are_inferred_from_the_whole_file(tmp_path: Path) -> None:
    """The first megabytes alone would say whole numbers, nothing, dates and booleans."""
    path = tmp_path / "late.csv"
    path.write_bytes(b"a,b,c,d\n" + b"1,,2013-01-01,true\n" * 400_000 + b"1.5,x,foo,7\n")
    frame = read_table(path)
    assert len(frame) == 400_001
    assert frame["a"].iloc[-1] == 1.5
    assert frame["b"].iloc[-1] == "x"
    assert frame["b"].isna().sum() == 400_000
    assert frame["c"].iloc[-1] == "foo"
    assert frame["d"].iloc[-1] == "7"


def test_commas_in_words_are_words(tmp_path: Path) -> None:
    """Only a column that is all numbers is refused for its decimal commas; declared text is never."""
    path = tmp_path / "t.csv"
    path.write_text("a;b;c\n1,5;1,5,2;7\nred, blue;3;8\n", "utf-8")
    assert read_table(path)["a"].tolist() == ["1,5", "red, blue"]
    path.write_text("a;c\n1,5;7\n;8\n", "utf-8")
    assert read_table(path, text=["a"])["a"].tolist()[0] == "1,5"


def test_delimiters_bom_gzip_and_newlines(tmp_path: Path) -> None:
    for name, content in {
        "a.csv": b"a,b\r\n1,x\r\n2,y\r\n",
        "b.csv": b"\xef\xbb\xbfa;b\n1;x\n2;y\n",
        "c.tsv": b"a\tb\n1\tx\n2\ty",
        "d.csv.gz": gzip.compress(b"a|b\n1|x\n2|y\n"),
        "e.csv": b'"a","b"\n"1","x"\n2,"y"\n',
    }.items():
        (tmp_path / name).write_bytes(content)
        frame = read_table(tmp_path / name)
        assert list(frame.columns) == ["a", "b"], name
        assert frame["a"].tolist() == [1, 2], name
        assert frame["b"].tolist() == ["x", "y"], name


def test_identifiers_keep_leading_zeros(tmp_path: Path) -> None:
    path = tmp_path / "ids.csv"
    path.write_text("zip,n\n007,12\n010,13\n")
    frame = read_table(path, text=["zip", "n"])
    assert frame["zip"].tolist() == ["007", "010"]
    assert frame["n"].tolist() == [12, 13], "numbers that lose nothing stay numbers"


def test_parquet_index_is_not_an_input(tmp_path: Path) -> None:
    path = tmp_path / "indexed.parquet"
    pd.DataFrame({"a": [1, 2, 3]}, index=[5, 6, 9]).to_parquet(path)
    assert list(read_table(path).columns) == ["a"]


@given(
    st.lists(
        st.tuples(st.one_of(st.none(), st.integers(-(2**40), 2**40)), st.text(st.characters(codec="utf-8"), max_size=8)),
        min_size=1,
        max_size=20,
    )
)
def test_csv_agrees_with_pandas(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int | None, str]]) -> None:
    """Any numbers and any words, quoted as pandas writes them, come back."""
    path = tmp_path_factory.getbasetemp() / "round.csv"
    words = [f"w{text}" for _, text in rows]
    if any("\x00" in word or "\r" in word for word in words):
        return
    frame = pd.DataFrame({"number": pd.array([n for n, _ in rows], "Int64"), "word": words})
    frame.to_csv(path, index=False)
    found = read_table(path)
    assert found["word"].tolist() == words
    assert np.array_equal(found["number"].to_numpy(float), frame["number"].to_numpy(float, na_value=np.nan), equal_nan=True)
