"""The report in a real browser: it loads offline, draws every picture, logs no error, asks the network for nothing, and shows the
verdict without scrolling, on a phone and on a desk, light and dark."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from pluribus.study.report.page import page

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
pytestmark = [
    pytest.mark.chromium,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt-get install chromium)"),
]
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--virtual-time-budget=20000",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]
NAMES = ["cancelled", "departure_delay", "<script>late</script>", "air_time"]

# Counts what goes wrong from the first byte on.
EARS = """<script>
window.heard = [];
addEventListener("error", (e) => heard.push("error: " + (e.message || e.target.tagName)), true);
addEventListener("unhandledrejection", (e) => heard.push("rejection: " + e.reason));
addEventListener("securitypolicyviolation", (e) => heard.push("policy: " + e.violatedDirective + " " + e.blockedURI));
for (const level of ["error", "warn"]) {
  const said = console[level];
  console[level] = (...each) => { heard.push(level + ": " + each.join(" ")); said.apply(console, each); };
}
</script>"""

# Tells the page around it, which cannot look inside, what there is to see.
MOUTH = """<script>
addEventListener("load", () => setTimeout(() => {
  const first = document.documentElement.dataset.drawn;
  const style = getComputedStyle(document.body);
  const bottom = (selector) => Math.max(...[...document.querySelectorAll(selector)].map((e) => e.getBoundingClientRect().bottom));
  const fold = { h1: bottom("h1"), badges: bottom(".badges > li"),
    counts: bottom(".badges:first-child > li"), cards: bottom(".card"), height: innerHeight };
  const wide = document.documentElement.scrollWidth - innerWidth;
  dispatchEvent(new Event("beforeprint"));
  const button = document.getElementById("theme");
  const before = style.backgroundColor;
  button.focus();
  const focused = document.activeElement === button;
  setTimeout(() => {
    const drawn = document.querySelectorAll("[data-figure] svg.main-svg").length > 0
      ? [...document.querySelectorAll("[data-figure]")].filter((e) => e.querySelector("svg.main-svg")).length : 0;
    button.click();
    const after = getComputedStyle(document.body).backgroundColor;
    document.querySelectorAll("details").forEach((e) => { e.open = true; });
    const cut = [...document.querySelectorAll(".scroll")].filter((e) => e.scrollWidth > e.clientWidth + 1)
      .map((e) => e.getAttribute("aria-label"));
    setTimeout(() => parent.postMessage({
      heard, fold, wide, cut, first, drawn, before, after, focused, label: button.textContent,
      pictures: document.querySelectorAll("[data-figure]").length,
      loaded: performance.getEntriesByType("resource").map((e) => e.name),
    }, "*"), 300);
  }, 500);
}, 300));
</script>"""

FRAME = """<!doctype html><html lang="en"><title>frame</title><body style="margin:0">
<script>addEventListener("message", (e) => { document.documentElement.dataset.found = JSON.stringify(e.data); });</script>
<iframe src="inner.html" style="border:0;width:WIDTHpx;height:HEIGHTpx"></iframe>"""


def asked(log: Path) -> list[str]:
    """Addresses that a page asked the network for; the browser's own errands (its clock) have no page behind them."""
    found = set()
    for line in log.read_text("utf-8").splitlines():
        if '"initiator":' in line:
            event = json.loads(line.rstrip().rstrip(",]}") + "}" * (line.count("{") - line.rstrip().rstrip(",]}").count("}")))
            url, behind = event["params"].get("url", ""), event["params"]["initiator"]
            if behind != "not an origin" and url.split(":")[0] in ("http", "https", "ws", "wss", "ftp"):
                found.add(url)
    return sorted(found)


@pytest.fixture
def seen(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """What Chromium finds in a page of some size in some theme. A frame gives the width: windows are never below 500."""

    def look(html: str, width: int, height: int, dark: bool) -> dict[str, Any]:
        inside = html.replace('<meta charset="utf-8">', '<meta charset="utf-8">' + EARS, 1)
        inside = inside.replace("</body>\n</html>", MOUTH, 1)
        assert EARS in inside
        assert MOUTH in inside
        (tmp_path / "inner.html").write_text(inside, "utf-8")
        (tmp_path / "frame.html").write_text(FRAME.replace("WIDTH", str(width)).replace("HEIGHT", str(height)), "utf-8")
        command = [
            str(CHROMIUM),
            *FLAGS,
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--window-size={max(width, 500)},{height}",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            f"--log-net-log={tmp_path / 'net.json'}",
            "--dump-dom",
            (tmp_path / "frame.html").as_uri(),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        found = re.search(r'data-found="([^"]*)"', done.stdout)
        assert found, done.stdout[:2000] + done.stderr[-2000:]
        told: dict[str, Any] = json.loads(unescape(found[1]))
        told["asked"] = asked(tmp_path / "net.json")
        return told

    return look


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(390, 844), (1440, 900)])
def test_report_in_a_browser(
    width: int, height: int, dark: bool, seen: Callable[..., dict[str, Any]], summary_of: Callable[..., dict[str, Any]]
) -> None:
    """Loads from a file without an error or a request; verdict, words, Δm and recommendation above the fold; both themes."""
    told = seen(page(summary_of(NAMES, [3.0, 1.0, 2.0, 1.2], [1.0, 3.0, 2.0, 1.2])), width, height, dark)
    assert told["heard"] == []
    assert told["loaded"] == []
    assert told["asked"] == []
    assert told["drawn"] == told["pictures"] > 10
    for part in ("h1", "badges", "cards"):
        assert told["fold"][part] <= told["fold"]["height"], part
    assert told["wide"] <= 0  # nothing to scroll sideways
    if width < 400:
        assert told["cut"] == []  # no interval, no figure of a table beyond the edge of a phone
    assert told["focused"]
    grounds = {"light": "rgb(255, 255, 255)", "dark": "rgb(16, 21, 27)"}
    assert told["before"] == grounds["dark" if dark else "light"]
    assert told["after"] == grounds["light" if dark else "dark"]
    assert told["label"] == ("Dark theme" if dark else "Light theme")


def test_many_tasks_with_long_names(seen: Callable[..., dict[str, Any]], summary_of: Callable[..., dict[str, Any]]) -> None:
    """200 tasks with long names on a phone: still no error, nothing wider than the screen, the counts of words above the
    fold, and only what is near is drawn at first."""
    names = [f"task_{i}_{'x' * 40}" for i in range(200)]
    told = seen(page(summary_of(names, [1 + i % 3 for i in range(200)], 2.0, rows=80)), 390, 844, False)
    assert told["heard"] == []
    assert told["drawn"] == told["pictures"]
    assert int(told.get("first") or 0) < told["pictures"]
    assert told["wide"] <= 0
    assert told["cut"] == []
    assert told["fold"]["counts"] <= told["fold"]["height"]


def test_the_browser_would_notice(seen: Callable[..., dict[str, Any]], summary_of: Callable[..., dict[str, Any]]) -> None:
    """A planted error and a planted request are found: the tests above can fail."""
    html = page(summary_of(["one"], 2.0, 1.0))
    broken = html.replace("</main>", '</main><img alt="" src="http://127.0.0.1:9/x.png"><script>missing();</script>')
    told = seen(broken, 1440, 900, False)
    assert any("missing" in said for said in told["heard"])
    assert any(said.startswith("policy: img-src") for said in told["heard"])
    free = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", broken)
    assert seen(free, 1440, 900, False)["asked"] == ["http://127.0.0.1:9/x.png"]
