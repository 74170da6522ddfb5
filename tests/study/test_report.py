"""The report's page: every word from the file, every name escaped, every picture named, nothing loaded from anywhere."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from pluribus.errors import BadInput
from pluribus.study.report import write_report
from pluribus.study.report.figures import COLOURS, dash_of
from pluribus.study.report.page import page, plotly
from pluribus.study.report.words import short, telling

Make = Callable[..., dict[str, Any]]
VOID = {"meta", "link", "br", "line"}


class Page(HTMLParser):
    """What a browser would find: elements with attributes, the text below each id, and whether every element is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[tuple[str, str]] = []
        self.texts: dict[str, str] = {}
        self.headings: list[str] = []
        self.stray: list[str] = []
        self.feed(html)

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        found = {key: value or "" for key, value in attributes}
        self.elements.append((name, found))
        if re.fullmatch(r"h\d", name):
            self.headings.append(name)
        if name not in VOID:
            self.open.append((name, found.get("id", "")))

    def handle_endtag(self, name: str) -> None:
        if name in VOID:
            return
        if not self.open or self.open[-1][0] != name:
            self.stray.append(name)
        else:
            self.open.pop()

    def handle_data(self, text: str) -> None:
        for _, identity in self.open:
            if identity:
                self.texts[identity] = self.texts.get(identity, "") + text


def bare(summary: dict[str, Any]) -> str:
    """The page without plotly itself, which is 4.8 MB of somebody else's text."""
    return page(summary).replace(plotly(), "")


def words(html: str) -> list[str]:
    """The badges at the top, in order: task and word."""
    top = html[html.index('id="verdict"') : html.index("<nav")]
    return re.findall(r'class="name">([^<]*)</span> <b class="badge [\w-]*"><span aria-hidden="true">.</span> ([a-z ]+)<', top)


@pytest.fixture
def summary(summary_of: Make) -> dict[str, Any]:
    return summary_of(["default", "prepay"], [3.0, 1.0], [1.0, 3.0])


def test_words_swap_with_the_results(summary: dict[str, Any], summary_of: Make) -> None:
    """The two sides' predictions change places: better and worse must too, everywhere on the page, or a word is hard-coded."""
    swapped = summary_of(["default", "prepay"], [1.0, 3.0], [3.0, 1.0])
    before, after = bare(summary), bare(swapped)
    assert words(before) == [("default", "better"), ("prepay", "worse")]
    assert words(after) == [("default", "worse"), ("prepay", "better")]
    for html, row in ((before, summary), (after, swapped)):
        found = Page(html)
        assert row["headline"] in found.texts["verdict"]
        delta = row["verdict"]["comparisons"][0]["overall"]["delta"]["method"]
        assert f"{delta['value']:+.2f} %".replace("-", "−") in found.texts["verdict"]
        assert f"{delta['low']:+.2f} to {delta['high']:+.2f}".replace("-", "−") in found.texts["verdict"]
        good, bad = ([t for t, w in words(html) if w == word] for word in ("better", "worse"))
        assert f"better on {good[0]}" in found.texts["verdict"]
        assert f"worse on {bad[0]}" in found.texts["verdict"]
        labels = " ".join(a["aria-label"] for _, a in found.elements if "data-figure" in a)
        assert re.search(rf"{good[0]}: gain \+[^;]*better", labels)
        assert re.search(rf"{bad[0]}: gain −[^;]*worse", labels)
        assert f"The test split contradicts it on {bad[0]}" in found.texts["verdict"]


def test_top_says_what_must_be_known(summary: dict[str, Any]) -> None:
    """Recommendation, its reason, the scope, and how often the test split was opened stand in the first section."""
    top = Page(bare(summary)).texts["verdict"]
    reason = "no main task is worse on validation"
    for said in ("Use the one model", reason, "Scope: the method", "opened once", "3 seeds against 3"):
        assert said in top
    summary["choice"] |= {"recommended": "specialists", "reason": "sharing hurts prepay on validation"}
    summary["openings"] = 4
    top = Page(bare(summary)).texts["verdict"]
    assert "Keep your specialists" in top
    assert "sharing hurts prepay" in top
    assert "opened 4 times" in top
    assert "contradicts" not in top  # the caution is about a recommended one model


def test_one_seed_is_this_file_only(summary_of: Make) -> None:
    """Without a second seed nothing may be claimed of the method."""
    found = Page(bare(summary_of(["default"], 2.0, 1.0, seeds=1)))
    assert "Scope: this file only" in found.texts["verdict"]


def test_undecided_says_why(summary_of: Make) -> None:
    """Each reason in the file is on the page, at the top."""
    summary = summary_of(["default", "prepay"], 1.3, 1.2, rows=60)
    rows = summary["verdict"]["comparisons"][0]["tasks"]
    assert {row["word"] for row in rows} == {"undecided"}
    top = Page(bare(summary)).texts["verdict"]
    for row in rows:
        assert row["reason"]
        assert row["reason"] in top


@pytest.mark.parametrize(
    "hostile", ["<script>alert(1)</script>", "</script><img src=x onerror=alert(1)>", "a\"b'c&amp;<!--", "]]>"]
)
def test_hostile_names_stay_text(hostile: str, summary_of: Make) -> None:
    """A name, note or reason that is markup must be shown, never run."""
    plain = Page(bare(summary_of(["default", "other"], 2.0, 1.0)))
    summary = summary_of([hostile, "other"], 2.0, 1.0)
    summary |= {"notes": [hostile], "name": hostile, "headline": hostile, "champion": hostile, "plan": hostile, "split": hostile}
    summary["warnings"] = [{"kind": "not_at_random", "names": [hostile], "text": hostile}]
    summary["labelled_at_random"] = {hostile: 0.8}
    summary["left_out"], summary["failed"] = {hostile: hostile}, {"other": hostile}
    summary["choice"]["reason"] = hostile
    for row in summary["candidates"].values():
        row |= {"label": hostile, "undertrained": [hostile], "settings": {hostile: hostile}}
    summary["settings"][hostile] = summary["versions"][hostile] = hostile
    for comparison in summary["verdict"]["comparisons"]:
        comparison["headline"] = comparison["scope"] = hostile
        for row in comparison["tasks"]:
            row["reason"] = hostile
    html = bare(summary)
    found = Page(html)
    assert [name for name, _ in found.elements if name in ("script", "img")] == ["script"] * 3
    assert not any(key.startswith("on") for _, attributes in found.elements for key in attributes)
    assert found.stray == plain.stray == []
    assert hostile in found.texts["verdict"]
    pictures = json.loads(found.texts["pictures"])
    drawn = [text for each in pictures for text in _strings(each)]
    assert not any("<script" in text or "<img" in text or "<!--" in text for text in drawn)  # plotly reads pseudo-HTML


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for each in inside for text in _strings(each)]


def test_nothing_is_loaded(summary: dict[str, Any]) -> None:
    """No address outside the file in a place from which a browser loads, and a policy that forbids it."""
    html = bare(summary)
    found = Page(html)
    for name, attributes in found.elements:
        for key in ("src", "href", "srcset", "data", "action", "poster"):
            assert re.match(r"#|data:,$|$", attributes.get(key, "")), (name, attributes)
    assert "url(" not in html
    assert "@import" not in html
    assert not re.search(r"(https?:)?//\w", re.sub(r"http://www\.w3\.org\S*", "", html).replace("  // ", ""))
    (policy,) = [a["content"] for _, a in found.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy


def test_structure_is_accessible(summary: dict[str, Any]) -> None:
    """Language, heading order, named pictures each with a table behind it, named scrolling boxes, a real button."""
    found = Page(bare(summary))
    elements = found.elements
    assert ("html", {"lang": "en"}) in elements
    assert found.headings[0] == "h1"
    assert found.headings.count("h1") == 1
    assert all(int(b[1]) <= int(a[1]) + 1 for a, b in zip(found.headings, found.headings[1:]))
    pictures = [a for _, a in elements if "data-figure" in a]
    assert [int(a["data-figure"]) for a in pictures] == list(range(len(json.loads(found.texts["pictures"]))))
    assert all(a["role"] == "img" and len(a["aria-label"]) > 20 for a in pictures)
    assert all(a["aria-label"] and a["tabindex"] == "0" for _, a in elements if "scroll" in a.get("class", "").split())
    identities = [a["id"] for _, a in elements if "id" in a]
    assert len(identities) == len(set(identities))
    assert {a["href"][1:] for n, a in elements if n == "a"} <= set(identities)
    assert any(n == "button" and a.get("id") == "theme" for n, a in elements)
    assert all("scope" in a for n, a in elements if n == "th")
    for section in ("gains", "scores", "curves", "holes", "calibration", "costs"):
        html = bare(summary)
        part = html[html.index(f'<section id="{section}"') :]
        part = part[: part.index("</section>")]
        assert "data-figure" in part, section
        assert "<details>" in part, section
        assert "<table " in part, section
    assert not found.stray


def test_contrast_in_both_themes() -> None:
    """WCAG contrast of every pair of text and ground that the style uses: at least 4.5; of lines in pictures: at least 3."""
    css = files("pluribus.study.report").joinpath("style.css").read_text("utf-8")
    blocks = [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block)) for block in re.findall(r"\{[^{}]*--paper: [^{}]*\}", css)]
    assert len(blocks) == 3
    assert blocks[1] == blocks[2]  # the dark theme asked for by the system and by the button
    for theme in blocks[:2]:
        for word in ("better", "as-good", "worse", "undecided"):
            assert contrast(theme[word], theme[f"{word}-bg"]) >= 4.5
        for ink in ("ink", "soft", "link", "better", "as-good", "worse", "undecided"):
            for ground in ("paper", "panel"):
                assert contrast(theme[ink], theme[ground]) >= 4.5, (ink, ground)
        assert all(contrast(theme[f"c{k}"], theme["paper"]) >= 3 for k in range(7))


def contrast(a: str, b: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear))

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_no_two_curves_look_alike() -> None:
    """Broken: the eighth candidate is drawn as the first is, in colour and dash, and the legend cannot tell them apart."""
    assert len({(k % COLOURS, dash_of(k)) for k in range(49)}) == 49
    assert [dash_of(k) for k in range(7)] == list(range(7))


def test_exploratory_is_marked(summary: dict[str, Any]) -> None:
    """Only the winner's and the references' figures are claimed."""
    html = bare(summary)
    labels = [a["aria-label"] for _, a in Page(html).elements if "on the test split" in a.get("aria-label", "")]
    assert len(labels) == 2
    for said in labels:
        assert "Other 0.7 (exploratory)" in said
        assert "Joint 0.7;" in said
        assert "Alone 0.7;" in said


@pytest.mark.parametrize("count", [1, 40, 600])
def test_any_number_of_tasks(count: int, summary_of: Make) -> None:
    """One task and 600: pictures stay few and say so, tables hold all, the page stays small."""
    names = [f"task_{i}_with_a_name_that_goes_on_and_on_and_on" for i in range(count)]
    html = bare(summary_of(names, [1 + i % 3 for i in range(count)], 2.0, rows=150))
    found = Page(html)
    pictures = json.loads(found.texts["pictures"])
    assert len(pictures) <= 2 + 3 * 12 + 2
    assert len(html) < 6e6
    for name in (names[0], names[-1]):
        assert name in found.texts["gains"]
        assert name in found.texts["scores"]
    if count > 12:
        assert f"The pictures show 12 of {count} tasks" in found.texts["gains"]
        assert re.search(r"better on \d+ main tasks", found.texts["verdict"])
    else:
        assert "The pictures show" not in html


def test_every_task_has_its_inputs_figures_and_labels(summary_of: Make) -> None:
    """Task by task: the word, every candidate's metrics, the shares of inputs in their order, what was not measured."""
    summary = summary_of(["default", "prepay"], [3.0, 1.0], [1.0, 3.0])
    shares = {f"x{i}": (16 - i) / 136 for i in range(17)}
    summary["importance"] = {
        "default": {"by": "TreeSHAP and exchange", "shares": shares, "rows": 480, "unmeasured": ["late"]},
        "prepay": {"by": "TreeSHAP", "shares": {"<b>": 1.0, "a": 0.0}, "rows": 500, "unmeasured": []},
    }
    html = bare(summary)
    found = Page(html)
    assert not found.stray
    told = found.texts["tasks"]
    default, prepay = told[told.index("default (binary)") : told.index("prepay (binary)")], told[told.index("prepay (binary)") :]
    assert default.index("x011.8 %") < default.index("x14") < default.index("x0") + 400
    for said in (
        "better",
        "Joint0.70.6claimed",
        "Other0.70.6exploratory",
        "480 rows",
        "2 other inputs: 0.7 %",
        "too short: late",
    ):
        assert said in default
    assert "by TreeSHAP and by exchanging" in default
    for said in ("worse", "<b>100.0 %", "a0.0 %", "labelled"):
        assert said in prepay
    assert '"bar" style="width:100.0px"' in html
    older = Page(bare(summary_of(["default"]))).texts["tasks"]  # of before importance
    assert "Joint" in older
    assert "input" not in older.replace("The inputs' shares", "")


def test_of_many_tasks_the_most_telling_have_a_fold(summary_of: Make) -> None:
    """And the page says how many."""
    told = Page(bare(summary_of([f"t{i}" for i in range(50)], [1 + i % 3 for i in range(50)], 2.0, rows=150))).texts["tasks"]
    assert "40 of 50 tasks are shown" in told


def test_pictures_show_every_word(summary_of: Make) -> None:
    """Of many tasks the pictures show some of each word, not twelve of one; names alike at the start stay apart."""
    names = [f"probability_of_default_in_segment_{i}" for i in range(40)]
    summary = summary_of(names, [1 + i % 3 for i in range(40)], 2.0)
    said = {row["task"]: row["word"] for row in summary["verdict"]["comparisons"][0]["tasks"]}
    shown = telling(summary)
    counted = Counter(said[name] for name in shown)
    assert set(counted) == set(said.values())
    assert max(counted.values()) - min(counted.values()) <= 1
    assert len({short(name) for name in names}) == 40
    assert telling({**summary, "verdict": None}) == names[:12]


def test_no_verdict(summary: dict[str, Any]) -> None:
    """No joint model, or no specialist: the page says that there is no verdict, and gives no word."""
    summary |= {"verdict": None, "headline": "No verdict: no joint model ran."}
    summary["choice"] |= {
        "winner": None,
        "specialists": {},
        "same_encoder": None,
        "recommended": "specialists",
        "reason": "no joint model ran",
        "valid_words": {},
    }
    found = Page(bare(summary))
    assert "No verdict: no joint model ran." in found.texts["verdict"]
    assert "There is no verdict" in found.texts["gains"]
    assert not words(bare(summary))
    assert "Filled" not in found.texts["scores"]


def test_holes_in_the_file_are_said(summary: dict[str, Any]) -> None:
    """NaN became null, costs were not measured, calibration has nothing: n/a, never a crash and never "None" or "nan"."""
    summary["costs"] = {"model": {**summary["costs"]["model"], "rows_per_second": None}, "specialists": None}
    summary["reliability"] = {"default": [], "prepay": []}
    summary["candidates"]["joint"]["curves"] = [{"default": [None, 0.5]}, {}, {"default": []}]
    summary["candidates"]["joint"]["rules"] = [None, 0.1, 0.2]
    summary["test"]["other"][0] = {"default": {"auc": None, "logloss": None}}
    nothing = dict.fromkeys(("value", "low", "high", "se", "df"))
    for comparison in summary["verdict"]["comparisons"]:
        comparison["overall"] |= {"delta": {"file": nothing, "method": None}, "tolerance": None, "p": None}
        comparison["tasks"][0] |= {"gain": {"file": nothing, "method": nothing}, "p": None, "tolerance": None, "skill": None}
    html = bare(summary)
    text = re.sub(r"<[^>]*>", " ", html[: html.index('<script type="application/json"')])
    assert not re.search(r"\b(None|nan|NaN|null|inf)\b", text.replace("default-src 'none'", ""))
    assert "n/a" in text
    assert "What the specialists cost together is not known" in text
    for each in json.loads(Page(html).texts["pictures"]):
        assert math.isfinite(each["layout"]["height"])


def test_warnings_and_holes_come_from_the_file(summary: dict[str, Any]) -> None:
    """Leakage and "labelled at random?" are told in the file's own words."""
    text = "whether 'default' is labelled can be predicted from the inputs (AUC 0.81): conclusions hold for labelled rows only"
    summary["warnings"] = [{"kind": "not_at_random", "names": ["default"], "text": text}]
    summary["labelled_at_random"] = {"default": 0.81, "prepay": 0.52}
    summary["notes"] = ["3 rows without a date were left out"]
    found = Page(bare(summary))
    assert text in found.texts["holes"]
    assert "prepay: no sign" in found.texts["holes"]
    assert text in found.texts["warnings"]
    assert "3 rows without a date" in found.texts["warnings"]
    assert "1 warning" in found.texts["verdict"]


def test_file_is_written_whole(summary: dict[str, Any], tmp_path: Path) -> None:
    """`write_report` needs `report.json` alone; the file is plotly plus little; a broken summary is one clear line."""
    (tmp_path / "report.json").write_text(json.dumps(summary), "utf-8")
    path = write_report(tmp_path)
    assert path == tmp_path / "report.html"
    assert len(plotly()) < path.stat().st_size < len(plotly().encode()) + 400_000
    (tmp_path / "report.json").write_text('{"name": "x"}', "utf-8")
    with pytest.raises(BadInput, match="not a study's summary"):
        write_report(tmp_path)
    (tmp_path / "report.json").write_text(json.dumps({**summary, "schema_version": 99}), "utf-8")
    with pytest.raises(BadInput, match=r"report\.json: schema_version 99 is newer than this program's \(1\); update pluribus"):
        write_report(tmp_path)
    assert path.is_file()  # the old one stands
    with pytest.raises(BadInput, match=r"report\.json"):
        write_report(tmp_path / "nothing")


def test_real_study_has_a_report(finished: Any) -> None:
    """What `Study.run` writes can be drawn, and drawing it again gives the same bytes."""
    _, result = finished
    before = result.report.read_bytes()
    assert write_report(result.folder).read_bytes() == before
    found = Page(before.decode().replace(plotly(), ""))
    assert json.loads((result.folder / "report.json").read_text())["headline"] in found.texts["verdict"]
    assert not found.stray
