"""The page of a comparison: it is shown to people who did not run it, and its names come from strangers."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from pluribus.evaluation import TaskTruth, Verdict, judge
from pluribus.evaluation.page import page
from pluribus.tasks import Task

EVIL = '<script>alert(1)</script>&"'


def _verdict(name: str = "loss", swap: bool = False) -> Verdict:
    r = np.random.default_rng(0)
    y = r.normal(size=500)
    one, other = ([y + noise * r.normal(size=500) for _ in range(3)] for noise in (0.1, 0.4))
    one, other = (other, one) if swap else (one, other)
    return judge(
        (Task(name),),
        {name: TaskTruth(np.arange(500), y)},
        500,
        {name: one},
        {name: {name: other}},
        constants={name: 0.0},
        repeats=100,
        notes=[name],
    )


class _Tags(HTMLParser):
    void = frozenset({"meta", "link"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_every_tag_is_closed_and_strangers_names_stay_text() -> None:
    parser = _Tags()
    parser.feed(page(_verdict(EVIL)))
    assert parser.open == []
    assert "script" not in parser.seen
    assert {"h1", "table", "caption", "svg"} <= set(parser.seen)


def test_it_needs_no_network() -> None:
    assert not re.search(r"https?:|//[a-z]|@import|<script|src=", page(_verdict()))


@pytest.mark.parametrize("swap", [False, True])
def test_verdict_comes_first_and_says_what_the_words_say(swap: bool) -> None:
    verdict = _verdict(swap=swap)
    text = page(verdict)
    assert text.index(verdict.headline) < text.index("<table")
    word = "worse" if swap else "better"
    assert f'<td class="word {word}">{word}</td>' in text
    assert "prefers-color-scheme:dark" in text
    assert 'aria-label="Gains with intervals. loss: gain' in text


def test_a_verdict_without_figures_still_makes_a_page() -> None:
    truth = {"t": TaskTruth(np.arange(20), np.ones(20))}
    one = {"t": [np.full(20, 0.5)]}
    verdict = judge((Task("t", "binary", ("0", "1")),), truth, 20, one, {"r": one}, constants={"t": 0.5}, repeats=100)
    text = page(verdict)
    assert "nan" not in text.replace("undecided", "")
    assert "auc is not defined on these test labels" in text


CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
MEASURE = """<script>addEventListener("load", () => {
  const box = document.querySelector(".scroll"), all = document.documentElement;
  document.title = JSON.stringify({ page: all.scrollWidth - innerWidth, table: box.scrollWidth - box.clientWidth,
    verdict: document.querySelector("h1").getBoundingClientRect().bottom, height: innerHeight, width: innerWidth,
    ground: getComputedStyle(document.body).backgroundColor });
})</script>"""


@pytest.mark.chromium
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt-get install chromium)")
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1440])
def test_page_in_a_browser(tmp_path: Path, width: int, dark: bool) -> None:
    """Phone or desk, light or dark: the verdict is above the fold, nothing is cut off at the side, a desk shows every figure."""
    text = page(_verdict("expected_loss_given_default")).replace("</body>", MEASURE + "</body>")
    (tmp_path / "page.html").write_text(text, "utf-8")
    inner = f'<iframe src="page.html" width="{width}" height="844" style="border:0;color-scheme:normal"></iframe>'
    read = "setTimeout(() => { document.title = frames[0].document.title }, 200)"
    reader = f'<script>addEventListener("load", () => {read})</script>'
    (tmp_path / "frame.html").write_text(f"<body style='margin:0'>{inner}{reader}", "utf-8")
    assert CHROMIUM is not None
    words = [
        CHROMIUM,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--hide-scrollbars",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--allow-file-access-from-files",
        "--virtual-time-budget=5000",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        "--window-size=1600,900",
        "--dump-dom",
        (tmp_path / "frame.html").as_uri(),
    ]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title, done.stderr[-500:]
    seen = json.loads(unescape(title[1]))
    assert seen["width"] == width
    assert seen["page"] <= 0, "the page scrolls sideways"
    assert seen["verdict"] <= seen["height"]
    assert width < 1000 or seen["table"] <= 0, "a desk is wide enough for the whole table"
    assert seen["ground"] == ("rgb(13, 17, 23)" if dark else "rgb(255, 255, 255)")
