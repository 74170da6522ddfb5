"""Tables as people write them: words, codes, missing values, headers, total rows, encodings; each is converted or named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pluribus.data.columns import FittedColumns
from pluribus.data.ingest import WrittenTable, read_further, read_table, read_written
from pluribus.data.splitting import split
from pluribus.data.table import Table
from pluribus.data.written.missing import date_sentinel_of, sentinel_of
from pluribus.data.written.reading import Reading
from pluribus.data.written.words import spelled, spelling_of
from pluribus.errors import BadInput


def read(tmp_path: Path, content: str | bytes, **options: object) -> WrittenTable:
    """A file of this content, read."""
    path = tmp_path / "t.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    reading = Reading(**{k: v for k, v in options.items() if k not in ("text", "wanted", "ignore")})  # type: ignore[arg-type]
    return read_written(path, reading=reading, **{k: v for k, v in options.items() if k in ("text", "wanted", "ignore")})  # type: ignore[arg-type]


def note(found: WrittenTable, part: str) -> str:
    """The one line that says this."""
    (line,) = [each for each in found.notes if part in each]
    return line


# Missing


def test_na_is_namibia_beside_other_codes(tmp_path: Path) -> None:
    """ "NA" among two-letter codes is a country; "N/A" is not."""
    found = read(tmp_path, "country,x\nDE,1\nNA,2\nFR,3\n,4\nN/A,5\n")
    assert found.frame["country"].tolist()[:3] == ["DE", "NA", "FR"]
    assert found.frame["country"].isna().tolist() == [False, False, False, True, True]
    assert "--na country=NA" in note(found, "'NA'")
    assert read(tmp_path, "country,x\nDE,1\nNA,2\nFR,3\n,4\n", na="country=NA").frame["country"].isna().sum() == 2


def test_na_is_missing_where_numbers_have_it_too(tmp_path: Path) -> None:
    """R writes NA for what is missing, in all columns."""
    found = read(tmp_path, "country,x\nDE,1\nNA,NA\nFR,3\n,4\n")
    assert found.frame["country"].isna().tolist() == [False, True, False, True]
    assert "as in 'x'" in note(found, "'NA'")
    kept = read(tmp_path, "country,x\nDE,1\nNA,NA\nFR,3\n,4\n", na="country=")
    assert kept.frame["country"].tolist()[1] == "NA"


def test_na_among_a_few_words_stays_missing(tmp_path: Path) -> None:
    """Neither a code nor alone of its sort: what programs take for missing."""
    found = read(tmp_path, "a,x\nred,1\nNA,2\nblue,3\nDE,4\n")
    assert found.frame["a"].isna().tolist() == [False, True, False, False]


def test_question_marks_among_numbers(tmp_path: Path) -> None:
    """One "?" would make words of a column of numbers."""
    found = read(tmp_path, "a,b\n1,x\n?,?\n2.5,y\n")
    assert found.frame["a"].tolist()[::2] == [1, 2.5]
    assert np.isnan(found.frame["a"].iloc[1])
    assert found.frame["b"].iloc[1] == "?", "among words it is a word"
    assert "'?' means missing" in note(found, "'a'")


def test_one_word_among_numbers_is_named(tmp_path: Path) -> None:
    """Nothing is converted unless all agree; the option that makes it so is named, and works."""
    text = "a,b\n" + "".join(f"{i},x\n" for i in range(30)) + "abc,y\n"
    found = read(tmp_path, text)
    assert found.frame["a"].iloc[0] == "0"
    assert "--na 'abc'" in note(found, "'a'")
    assert read(tmp_path, text, na="abc").frame["a"].iloc[29] == 29
    assert read(tmp_path, text, na="a=abc").frame["a"].iloc[29] == 29


@pytest.mark.parametrize(("word", "sure"), [(-9999, True), (-999, True), (999, False), (9999, False)])
def test_sentinels(tmp_path: Path, word: int, sure: bool) -> None:
    """−9999 far below all others is no value; 999 above them may be one, and is named."""
    text = "a,b\n" + "".join(f"{i % 40},x\n" for i in range(80)) + f"{word},x\n{word},y\n"
    found = read(tmp_path, text)
    assert found.frame["a"].isna().sum() == (2 if sure else 0)
    assert f"--na a={'' if sure else word}" in note(found, f"{word}")
    assert read(tmp_path, text, na="a=" if sure else f"a={word}").frame["a"].isna().sum() == (0 if sure else 2)


def test_sentinels_need_distance_and_company() -> None:
    """A value that the others come near to, or that stands there once, is a value."""
    assert sentinel_of(np.array([-999.0, -999, -800, -500, 0, 400])) is None
    assert sentinel_of(np.array([-9999.0, 1, 2, 3])) is None
    assert sentinel_of(np.array([1.0, 2, 3, np.nan])) is None
    assert sentinel_of(np.array([99.0, 99, 60, 20, 80])) is None
    assert sentinel_of(np.array([-9999.0, -9999, 5, 5])) is None, "one other value: perhaps two codes"


def test_dates_far_from_all_others_are_named(tmp_path: Path) -> None:
    """1900-01-01 is what many programs write for no date."""
    days = [f"2024-01-{day:02d}" for day in range(1, 25)] + ["1900-01-01"] * 3
    assert date_sentinel_of(np.array(days, "datetime64[us]")) == ("1900-01-01", 3)
    text = "day,x\n" + "".join(f"{day},1\n" for day in days)
    assert "--na day=1900-01-01" in note(read(tmp_path, text), "1900-01-01")
    assert read(tmp_path, text, na="day=1900-01-01").frame["day"].isna().sum() == 3


def test_empty_columns_and_rows(tmp_path: Path) -> None:
    """What spreadsheets leave behind: rows and columns without a value."""
    found = read(tmp_path, "a,b,c,\n1,,x,\n,,,\n2,,y,\n,,,\n")
    assert list(found.frame.columns) == ["a", "b", "c"]
    assert found.frame["a"].tolist() == [1, 2]
    assert found.frame["a"].dtype == np.int64, "whole numbers again once the empty rows are gone"
    assert "2 empty rows" in note(found, "empty rows")
    assert "--ignore" in note(found, "'b'")


# Words


def test_words_that_differ_in_spaces_and_capitals(tmp_path: Path) -> None:
    """One category, spelled as most rows spell it; short codes stay apart; the option keeps them as they are."""
    text = "a,b\nMale,m\nmale,M\n Male,m\nFemale ,M\nFemale,m\n"
    found = read(tmp_path, text)
    assert found.frame["a"].tolist() == ["Male", "Male", "Male", "Female", "Female"]
    assert found.frame["b"].tolist() == ["m", "M", "m", "M", "m"]
    assert "--type a=category" in note(found, "'a'")
    assert read(tmp_path, text, types={"a": "category"}).frame["a"].tolist()[2] == " Male"
    assert found.writings["a"].cell("MALE ") == "Male"


def test_capitals_of_formulas_and_names_count(tmp_path: Path) -> None:
    """Benzene is not cyclohexane: columns with another word in nearly every row, and words with digits, stay as they are."""
    smiles = ["c1ccccc1", "C1CCCCC1", "CCO", "c1ccoc1", "C1CCOC1", "CC=O", " CCN"]
    assert read(tmp_path, "smiles,x\n" + "".join(f"{s},1\n" for s in smiles)).frame["smiles"].tolist() == smiles
    found = read(tmp_path, "ring,x\n" + "c1ccccc1,1\nC1CCCCC1,2\n" * 20)
    assert found.frame["ring"].nunique() == 2


def test_yes_and_no(tmp_path: Path) -> None:
    """Y, yes and YES are one; a server may be sent true."""
    found = read(tmp_path, "a,b\nY,N\nyes,F\nno,T\nN,N\nYes,F\n")
    assert found.frame["a"].nunique() == 2
    assert found.frame["b"].tolist() == ["N", "F", "T", "N", "F"], "N, F and T are no family"
    assert "yes and no" in note(found, "'a'")
    assert found.writings["a"].cell(True) == found.frame["a"].iloc[0]
    truth = read(tmp_path, "a,b\nY,1\nno,0\n", types={"a": "boolean", "b": "boolean"}).frame
    assert truth["a"].tolist() == [True, False]
    assert truth["b"].tolist() == [True, False]


@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=6), min_size=1, max_size=12))
def test_spelling_is_idempotent(words: list[str]) -> None:
    """Words that were spelled once stay as they are: a converted table is read as itself."""
    spelling = spelling_of(dict.fromkeys(words, 1))
    once = [spelled(word, spelling) for word in words]
    assert [spelled(word, spelling) for word in once] == once
    assert len(set(once)) <= len(set(words))


def test_codes_keep_their_zeros(tmp_path: Path) -> None:
    """A zip code without its zero is another one."""
    text = "zip,month,x\n01234,01,1\n99999,12,2\n"
    found = read(tmp_path, text)
    assert found.frame["zip"].tolist() == ["01234", "99999"]
    assert found.frame["month"].tolist() == [1, 12], "two digits are numbers"
    assert "--type zip=number" in note(found, "'zip'")
    assert read(tmp_path, text, types={"zip": "number"}).frame["zip"].tolist() == [1234, 99999]


def test_ids_that_look_like_numbers_are_named(tmp_path: Path) -> None:
    """An id is an input until somebody says that it is none; a measurement of other values is none."""
    text = "customer_id,age,row\n" + "".join(f"{9000 + 7 * i},{i},{i + 1}\n" for i in range(60))
    assert "--id" in note(read(tmp_path, text), "like an id")
    line = note(read(tmp_path, text), "like an id")
    assert "'customer_id'" in line
    assert not any("like an id" in each for each in read(tmp_path, text, text=["customer_id"], ignore=["row", "age"]).notes)


# The file


def test_header_is_mended(tmp_path: Path) -> None:
    """Spaces, an index without a name, the same name twice; a name that the user speaks of is refused where it occurs twice."""
    found = read(tmp_path, ", a ,b,b,c,c\n0,1,2,3,4,4\n1,5,6,7,8,8\n")
    assert list(found.frame.columns) == ["a", "b", "b.1", "c"]
    assert "counts the rows" in note(found, "no name")
    assert "'b.1'" in note(found, "two columns")
    assert "same values" in note(found, "twice")
    with pytest.raises(BadInput, match="2 columns called 'b'"):
        read(tmp_path, "a,b,b\n1,2,3\n", wanted=["b"])
    assert list(read(tmp_path, " a ,b\n1,2\n", wanted=[" a "]).frame.columns) == [" a ", "b"], "as the user writes it"


def test_total_row(tmp_path: Path) -> None:
    """A last row of sums is no case; one that merely says "all" is read, and named."""
    text = "id,region,sales\n1,north,10\n2,south,20\n3,west,30.5\n"
    found = read(tmp_path, text + "Total,,60.5\n")
    assert len(found.frame) == 3
    assert found.frame["id"].tolist() == [1, 2, 3]
    assert "'sales' is the sum" in note(found, "total")
    kept = read(tmp_path, text + "4,All,7\n")
    assert len(kept.frame) == 4
    assert "may be a total" in note(kept, "total")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252", "latin-1"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_encodings_and_separators(tmp_path: Path, encoding: str, separator: str) -> None:
    """What Excel and old programs write."""
    text = "größe,wort\r\n1,über\r\n2,naïve\r\n".replace(",", separator)
    found = read(tmp_path, text.encode(encoding))
    assert found.frame.to_dict("list") == {"größe": [1, 2], "wort": ["über", "naïve"]}
    assert len(found.notes) == (encoding not in ("utf-8", "utf-8-sig")), found.notes
    named = read(tmp_path, text.encode(encoding), encoding=encoding, separator=separator)
    assert named.frame.equals(found.frame)
    assert not named.notes


def test_damaged_utf8_is_refused_and_the_option_reads_it(tmp_path: Path) -> None:
    """Letters of UTF-8 beside a byte that is none: a fault, which Windows-1252 would turn into other letters."""
    content = "a,b\n1,é\n".encode() + b"2,\xe9\n"
    with pytest.raises(BadInput, match=r"line 3: is not UTF-8 text.*--encoding"):
        read(tmp_path, content)
    assert read(tmp_path, content, encoding="latin-1").frame["b"].iloc[1] == "é"
    with pytest.raises(BadInput, match="is not utf-16 text"):
        read(tmp_path, b"a,b\n1,2\n3", encoding="utf-16")


def test_separators_are_told_apart_by_all_lines(tmp_path: Path) -> None:
    """A comma inside a name does not part a file whose lines are parted by semicolons; "sep=;" says so itself."""
    assert list(read(tmp_path, "price, EUR;b\n1;2\n3;4\n").frame.columns) == ["price, EUR", "b"]
    assert list(read(tmp_path, "sep=;\na;b\n1;2\n").frame.columns) == ["a", "b"]


@pytest.mark.parametrize(
    "above", ["Report of 2024\n\n", "# made by a tool\n# on Monday\n", "\n\n"], ids=["title", "comment", "empty"]
)
def test_lines_above_the_names(tmp_path: Path, above: str) -> None:
    """Exports of reports begin with a title; a header that looks like a comment is the header."""
    rows = "1,x\n2,y\n3,z\n4,x\n"
    found = read(tmp_path, above + "a,b\n" + rows)
    assert found.frame["a"].tolist() == [1, 2, 3, 4]
    assert f"({above.count(chr(10))})" in note(found, "above the names")
    assert list(read(tmp_path, "#id,b\n" + rows).frame.columns) == ["#id", "b"]
    assert list(read(tmp_path, "a\n1\n2\n3\n4\n").frame.columns) == ["a"], "one column: every line is as good as another"


def test_row_names_of_r_and_lines_of_old_macintoshes(tmp_path: Path) -> None:
    """One field more than names in every row; lines that end in a carriage return."""
    found = read(tmp_path, '"a","b"\n"1",5,"x"\n"2",6,"y"\n')
    assert found.frame.to_dict("list") == {"a": [5, 6], "b": ["x", "y"]}
    assert read(tmp_path, "a,b\r1,x\r2,y\r").frame.to_dict("list") == {"a": [1, 2], "b": ["x", "y"]}
    with pytest.raises(BadInput, match="has 3 fields where the header has 2"):
        read(tmp_path, "a,b\n1,2\n1,2,3\n")


def test_telephone_numbers_are_words(tmp_path: Path) -> None:
    """A plus and ten digits are no quantity; a plus before a few is a sign."""
    found = read(tmp_path, "phone,change\n+4912345678901,+5\n+4912345678902,-3\n")
    assert found.frame["phone"].tolist()[0] == "+4912345678901"
    assert found.frame["change"].tolist() == [5, -3]


def test_measures(tmp_path: Path) -> None:
    """58.8 kg is a number where many rows differ; a few measures may be classes, and the option reads them."""
    many = "w,term,y\n" + "".join(f"{i / 4} kg,{36 if i % 2 else 60} months,{i}\n" for i in range(60))
    found = read(tmp_path, many)
    assert found.frame["w"].tolist()[:3] == [0, 0.25, 0.5]
    assert found.frame["term"].tolist()[:2] == ["60 months", "36 months"]
    assert "--type term=number" in note(found, "'term'")
    assert read(tmp_path, many, types={"term": "number"}).frame["term"].tolist()[:2] == [60, 36]


def test_infinite_numbers_can_be_missing(tmp_path: Path) -> None:
    """A table refuses them; the option takes them for missing."""
    path = tmp_path / "t.csv"
    path.write_text("x,y\n" + "inf,1.5\n-inf,2.5\n3,0.5\n" * 20, "utf-8")
    with pytest.raises(BadInput, match="--na inf"):
        Table.read(path, ["y"])
    assert Table.read(path, ["y"], na=["inf", "-inf"]).frame["x"].isna().sum() == 40


def test_a_target_with_one_word_among_numbers_names_it(tmp_path: Path) -> None:
    """Otherwise the user looks through thousands of rows for the cell that is no number."""
    path = tmp_path / "t.csv"
    path.write_text("x,y\n" + "".join(f"{i},{i / 3:.3f}\n" for i in range(90)) + "1,oops\n", "utf-8")
    with pytest.raises(BadInput, match=r"'oops' among numbers.*--na 'oops'"):
        Table.read(path, ["y"])
    assert Table.read(path, ["y"], na="oops").tasks[0].kind == "regression"


# What the user says


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thousands": ",", "decimal": ","}, "cannot stand between groups of digits and before the decimals"),
        ({"thousands": ["a=.", ","], "decimal": "a=."}, "cannot stand"),
        ({"thousands": "x"}, "'x' is not one of"),
        ({"decimal": ";"}, "';' is not one of"),
        ({"thousands": ["nope=,"]}, "unknown column 'nope'"),
        ({"na": ["nope=?"]}, "unknown column 'nope'"),
        ({"na": ["nope="]}, "unknown column 'nope'"),
        ({"types": {"nope": "number"}}, "unknown column 'nope'"),
        ({"types": {"a": "numbers"}}, "unknown type 'numbers'"),
        ({"types": {"b": "number"}}, "'x', which is not a number"),
        ({"types": {"b": "datetime"}}, "'x', which is not a date"),
        ({"types": {"b": "boolean"}}, "'x', which is neither yes nor no"),
        ({"separator": "#"}, "does not separate fields"),
        ({"encoding": "klingon"}, "is no encoding"),
        ({"dayfirst": "yes"}, "neither true nor false"),
        ({"thousands": [","], "decimal": [".", ","]}, "keep one"),
    ],
)
def test_wrong_options_are_one_line(tmp_path: Path, options: dict[str, object], message: str) -> None:
    """An option that does nothing, or contradicts another, is refused by name."""
    with pytest.raises(BadInput) as caught:
        read(tmp_path, "a,b\n1,x\n2,y\n", **options)
    assert message in str(caught.value)
    assert caught.value.remedy


def test_options_for_one_column(tmp_path: Path) -> None:
    """`COL=` says it of one column; a name may hold "="."""
    text = "a;b;x=y\n1,500;1,500;?\n2,500;2,500;7\n"
    found = read(tmp_path, text, thousands=["a=,"], decimal=["b=,"], na=["x=y=?"])
    assert found.frame["a"].tolist() == [1500, 2500]
    assert found.frame["b"].tolist() == [1.5, 2.5]
    assert found.frame["x=y"].isna().tolist() == [True, False]
    assert read(tmp_path, "a;b\n1 500;1\n2 500;2\n", thousands="space").frame["a"].tolist() == [1500, 2500]


def test_notes_are_said_once_for_many_columns(tmp_path: Path) -> None:
    """A thousand columns with "?" are one line."""
    names = [f"c{i}" for i in range(40)]
    found = read(tmp_path, ",".join(names) + "\n" + ",".join(["1"] * 40) + "\n" + ",".join(["?"] * 40) + "\n")
    assert len(found.notes) == 1
    assert "and 37 more columns" in found.notes[0]


def test_plain_files_are_read_as_ever(tmp_path: Path) -> None:
    """What programs write gives the same frame by both readings, and nothing to say."""
    frame = pd.DataFrame(
        {
            "whole": [3, 1, 2],
            "part": [0.5, None, 2.25],
            "word": ["red", "blue", None],
            "day": pd.to_datetime(["2024-01-03", "2024-02-03", "2024-03-03"]),
            "flag": [True, False, True],
        }
    )
    path = tmp_path / "plain.csv"
    frame.to_csv(path, index=False)
    found = read_written(path)
    pd.testing.assert_frame_equal(found.frame, read_table(path))
    assert not found.notes
    assert not found.writings
    frame.to_parquet(tmp_path / "plain.parquet")
    pd.testing.assert_frame_equal(read_written(tmp_path / "plain.parquet").frame, read_table(tmp_path / "plain.parquet"))


def test_parquet_words_that_are_numbers(tmp_path: Path) -> None:
    """Words with signs become numbers; plain digits that a program wrote as words stay words."""
    path = tmp_path / "t.parquet"
    pd.DataFrame({"price": ["€9.99", "€1.50"], "code": ["12", "34"]}).to_parquet(path)
    found = read_written(path)
    assert found.frame["price"].tolist() == [9.99, 1.5]
    assert found.frame["code"].tolist() == ["12", "34"]


def test_more_categories_than_are_told_apart_are_named() -> None:
    """A hundred thousand customers become a thousand and "the others": people must know."""
    rows = 6000
    table = Table(pd.DataFrame({"c": [f"c{i % 2000}" for i in range(rows)], "y": np.arange(rows) / 7}), ["y"])
    assert any("'c' has 2000 categories: the 1000 most frequent" in line for line in table.notes)


# With a model

ROWS = 120


def _ugly(rows: int = ROWS) -> str:
    rng = np.random.default_rng(0)
    lines = ["price;share;day;country;zip;flag;depth;y"]
    for i in range(rows):
        price = f"{1000 * rng.random() + 1000 * (i == 0):,.2f}".translate(str.maketrans(",.", ".,"))
        depth = "-9999" if i % 17 == 0 else f"{rng.integers(1, 40)}"
        country = ("DE", "FR", "NA", "US", "IT", "UK", "ES", "PT", "SE", "NO", "FI", "DK")[i % 12]
        day = f"{i % 28 + 1:02d}/{i % 12 + 1:02d}/2024"
        flag = ("Yes", "no", "YES", "No")[i % 4]
        share, y = f"{100 * rng.random():.1f}%".replace(".", ","), f"{rng.random():.2f}".replace(".", ",")
        lines.append(f"{price};{share};{day};{country};{i % 7:05d};{flag};{depth};{y}")
    return "\n".join(lines) + "\n"


def test_a_fitted_model_reads_further_files_in_the_same_way(tmp_path: Path) -> None:
    """The first file's own rows, read alone as a further file, are encoded bit for bit as they were; also after saving."""
    path = tmp_path / "t.csv"
    text = _ugly()
    path.write_text(text, "utf-8")
    table = Table.read(path, ["y"], split="random")
    columns = FittedColumns.fit(table)
    folder = tmp_path / "model"
    folder.mkdir()
    again = FittedColumns.read(folder, columns.write(folder))
    assert again.writings == columns.writings
    assert set(columns.writings) >= {"price", "share", "day", "country", "zip", "flag", "depth"}
    expected = columns.encode(table.frame)
    lines = text.splitlines()
    for start in (0, 5, 17):
        part = tmp_path / "part.csv"
        part.write_text("\n".join([lines[0], *lines[1 + start : 4 + start]]) + "\n", "utf-8")
        frame = read_further(part, again.inputs, text=again.as_written).frame
        for one, other in zip(again.encode(frame), expected):
            assert np.array_equal(one, other[start : start + 3], equal_nan=True)
    raw = pd.read_csv(path, sep=";", dtype=str, keep_default_na=False)
    for one, other in zip(again.encode(raw), expected):
        assert np.array_equal(one, other, equal_nan=True), "a frame of the words themselves"


def test_options_hold_for_a_further_file(tmp_path: Path) -> None:
    """A model of plain numbers is given a file with decimal commas, dates with the month first, and another word for missing."""
    path = tmp_path / "t.csv"
    rows = "".join(f"{i / 4};{i % 28 + 1:02d}/{i % 12 + 1:02d}/2024;{i % 3}\n" for i in range(60))
    path.write_text("a;day;y\n" + rows, "utf-8")
    columns = FittedColumns.fit(Table.read(path, ["y:count"], split="random"))
    path.write_text("a;day;y\n1,5;12/31/2024;0\nnone;01/02/2024;1\n", "utf-8")
    frame = read_further(path, columns.inputs, reading=Reading(decimal=",", dayfirst=False, na="none")).frame
    assert frame["a"].iloc[0] == 1.5
    assert np.isnan(frame["a"].iloc[1])
    assert frame["day"].dt.month.tolist() == [12, 1]
    with pytest.raises(BadInput, match=r"holds '12/31/2024', which is not a date \(row 1\)"):
        read_further(path, columns.inputs, reading=Reading(decimal=",", na="none"))
    with pytest.raises(BadInput, match="the model knows the types"):
        read_further(path, columns.inputs, reading=Reading(types={"a": "number"}))
    with pytest.raises(BadInput, match="unknown column 'b'"):
        read_further(path, columns.inputs, reading=Reading(na="b=1"))


def test_files_of_before_are_read_as_before(tmp_path: Path) -> None:
    """A model folder without writings takes cells as they are."""
    path = tmp_path / "t.csv"
    path.write_text("word,x\n" + " Male,1.5\nmale,2.5\n" * 20, "utf-8")
    table = Table(read_table(path), ["x"])
    columns = FittedColumns.fit(table)
    assert not columns.writings
    frame = read_further(path, columns.inputs, text=columns.as_written).frame
    assert frame["word"].tolist()[:2] == [" Male", "male"]


# Targets


def test_ratings_are_ordinal_unless_a_metric_says_otherwise() -> None:
    """1 … 5 and nothing else are ratings; from 0 on, with a gap, or in few rows they are counts as before."""
    stars = np.tile([1, 2, 3, 4, 5], 20)
    frame = pd.DataFrame({"x": np.arange(100.0), "stars": stars})
    table = Table(frame, ["stars"])
    assert table.tasks[0].kind == "ordinal"
    assert any("like ratings" in line and "stars:count" in line for line in table.notes)
    assert Table(frame, ["stars"], kinds={"stars": ["regression", "count"]}).tasks[0].kind == "count"
    assert Table(frame.assign(stars=stars - 1), ["stars"]).tasks[0].kind == "count"
    assert Table(frame.assign(stars=np.where(stars == 2, 1, stars)), ["stars"]).tasks[0].kind == "count"
    assert Table(frame.iloc[:20], ["stars"]).tasks[0].kind == "count"


def test_classes_that_only_test_has_are_named() -> None:
    """Nothing can learn them; the line says how many rows they cost."""
    part = ["train"] * 60 + ["valid"] * 20 + ["test"] * 20
    grade = ["a", "b"] * 40 + ["c", "a"] * 10
    table = Table(pd.DataFrame({"x": np.arange(100.0), "part": part, "grade": grade}), ["grade"], split="column:part")
    (line,) = [each for each in split(table).notes if "'grade'" in each]
    assert "'c' (10 rows of test)" in line


def test_declared_classes_are_words_as_they_are_written(tmp_path: Path) -> None:
    """A task that names its classes with the spaces of the file keeps them."""
    from pluribus.tasks import Task

    path = tmp_path / "t.csv"
    path.write_text("x,y\n" + "1, a\n2, b\n" * 20, "utf-8")
    assert Table.read(path, ["y"]).tasks[0].classes == ("a", "b")
    table = Table.read(path, [Task("y", "binary", classes=(" a", " b"))])
    assert table.tasks[0].classes == (" a", " b")
