"""The documentation stays true: it builds strictly, loads offline, covers every balancer and package, and its code runs."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pluribus import catalog

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if path.parent.name != "results")
BLOCK = re.compile(r"(<!-- not run: (?P<why>[^>]+) -->\n)?```(?P<language>bash|python)\n(?P<code>.*?)```", re.S)

NOT_RUN = {"guides/processes.md": 1, "guides/checkpoints.md": 4, "guides/serving.md": 1, "guides/text.md": 1}
"""Pages with exempted blocks, and how many; each says why where it stands."""


def blocks(page: Path) -> list[re.Match[str]]:
    return list(BLOCK.finditer(page.read_text("utf-8")))


def _environment() -> dict[str, str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs", reason="mkdocs is not installed")
    pytest.importorskip("material", reason="mkdocs-material is not installed")
    folder = tmp_path_factory.mktemp("docs") / "site"
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(folder)]  # -q would hide warnings from --strict too
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=_environment(), timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_builds_strictly(site: Path) -> None:
    """No broken link, no page outside the navigation, no missing anchor."""
    for page in ("index", "balancers", "catalog", "api", "stability", "guides/verdict", "guides/checkpoints", "results/index"):
        assert (site / f"{page}.html").is_file(), page


def test_every_page_loads_offline(site: Path) -> None:
    """No script, style, font or picture comes from the network."""
    for page in site.rglob("*.html"):
        text = page.read_text("utf-8")
        for tag in re.findall(r"<(?:script|link|img|iframe)\b[^>]*>", text):
            address = re.search(r'(?:src|href)="(https?:)?//', tag)
            assert not address or 'rel="canonical"' in tag, f"{page.relative_to(site)}: {tag[:200]}"
        assert "fonts.googleapis" not in text


def test_every_balancer_is_on_the_page(site: Path) -> None:
    """Each with what it hears, what it costs, its parameters, when it fails, and BibTeX."""
    text = (site / "balancers.html").read_text("utf-8")
    for entry in catalog.entries(family="balancer"):
        assert f'id="{entry.name}"' in text, entry.name
    found = len(catalog.entries(family="balancer"))
    for word in ("When it fails", "Parameters", "Cost"):
        assert text.count(f"<strong>{word}</strong>") == found


def test_every_balancer_has_its_line() -> None:
    """A new balancer without a word on when it fails stops here, also where mkdocs is not installed."""
    written = tomllib.loads((DOCS / "balancers.toml").read_text("utf-8"))
    assert set(written) == {entry.name for entry in catalog.entries(family="balancer")}
    assert all(len(line) > 20 and line.endswith(".") for line in written.values())


def test_every_package_has_a_tier() -> None:
    """Whoever builds on a package knows whether it holds still."""
    tiers = dict(re.findall(r"^\| `(pluribus[.\w]*)` \| (\w+) \|", (DOCS / "stability.md").read_text("utf-8"), re.M))
    source = ROOT / "src" / "pluribus"
    packages = {f"pluribus.{path.parent.name}" for path in source.glob("*/__init__.py")} | {"pluribus", "pluribus.errors"}
    assert packages <= set(tiers), f"no tier for {sorted(packages - set(tiers))}"
    assert set(tiers.values()) <= {"public", "experimental"}


def test_the_readme_sections_are_found() -> None:
    """The front page takes its snippets from the README; a renamed heading is an error, not an empty page."""
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    wanted = re.findall(r"<!-- README: (.*?) -->", (DOCS / "index.md").read_text("utf-8"))
    assert len(wanted) == 4
    for heading in wanted:
        assert len(generate.section(heading)) > 200
    with pytest.raises(ValueError, match="has no section"):
        generate.section("No such heading")


def test_exemptions_are_listed() -> None:
    """A block is left out only where the page says why and this file counts it."""
    found = {str(page.relative_to(DOCS)): sum(bool(b["why"]) for b in blocks(page)) for page in PAGES}
    assert {page: count for page, count in found.items() if count} == NOT_RUN


def _loans(folder: Path, n: int = 600) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 3))
    frame = pd.DataFrame(x, columns=["income", "age", "rate"])
    frame["loan"] = [f"L{i:05d}" for i in range(n)]
    frame["opened"] = pd.Timestamp("2024-01-01") + pd.to_timedelta(np.sort(rng.integers(0, 150, n)), unit="D")
    frame["customer"] = rng.integers(0, n // 3, n)
    frame["default"] = (x[:, 0] + rng.normal(size=n) > 0.7).astype(float)
    frame["loss"] = 100 * x[:, 0] + 30 * rng.normal(size=n)
    frame.to_parquet(folder / "loans.parquet", index=False)
    frame.drop(columns=["default", "loss"]).head(20).to_parquet(folder / "new.parquet", index=False)
    return frame


def _model(folder: Path, frame: pd.DataFrame) -> None:
    from pluribus.data import Table, prepare, split
    from pluribus.tabular.network import Network, build

    table = Table(frame, ["default:binary", "loss:regression"], id="loan", split="random", ignore=["opened", "customer"])
    data = prepare(table, split(table, 0))
    config = {
        "encoder": {"name": "tabular_mlp", "settings": {"width": 8, "depth": 1}},
        "sharing": {"name": "shared_bottom", "settings": {}},
    }
    torch.manual_seed(0)
    Network(data.tasks, data.columns, config, build(data.tasks, data.columns, config)).save(folder / "runs" / "loans" / "model")


def _predictions(folder: Path, frame: pd.DataFrame) -> None:
    rng = np.random.default_rng(1)
    truth = pd.DataFrame({"id": range(len(frame)), "loss": frame["loss"]})
    truth.to_parquet(folder / "y.parquet", index=False)
    for name, noise in (("reference", 30.0), ("challenger", 10.0)):
        guess = pd.DataFrame({"id": truth["id"], "loss": truth["loss"] + noise * rng.normal(size=len(truth))})
        guess.to_parquet(folder / f"{name}.parquet", index=False)


def _serve(code: str, folder: Path) -> None:
    """A line that starts a server: it comes up, and stops when told."""
    pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")
    pytest.importorskip("uvicorn", reason="the extra 'serve' is not installed")
    pytest.importorskip("prometheus_client", reason="the extra 'serve' is not installed")
    words = code.replace("--port 8000", "--port 0").split()
    process = subprocess.Popen(words, cwd=folder, stderr=subprocess.PIPE, text=True, env=_environment())
    try:
        assert process.stderr is not None
        assert "serving default, loss on http://127.0.0.1:" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait(30)


FIXTURES: dict[str, tuple[Callable[[Path, pd.DataFrame], None], ...]] = {
    "index.md": (_model,),
    "guides/serving.md": (_model,),
    "concepts/cells.md": (_model,),
    "guides/verdict.md": (_predictions,),
}


def _quick(code: str) -> str:
    """Runs, not skill, are tested: budgets of a second or two, and trainings in the study's own process."""
    code = code.replace("--budget 20s", "--budget 2s").replace("budget: 5s", "budget: 1s")
    return re.sub(r"pluribus study (?!checkpoints)", "pluribus study --jobs 1 ", code)


@pytest.mark.parametrize("name", [str(p.relative_to(DOCS)) for p in PAGES if any(not b["why"] for b in blocks(p))])
def test_code_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block of the page, in order, on generated fixtures: bash through a shell, python in one namespace."""
    frame = _loans(tmp_path)
    for make in FIXTURES.get(name, ()):
        make(tmp_path, frame)
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {}
    for block in blocks(DOCS / name):
        code = block["code"]
        if block["why"]:
            continue
        if code.startswith("pluribus serve"):
            _serve(code, tmp_path)
        elif block["language"] == "bash":
            script = "set -euo pipefail\n" + _quick(code)
            done = subprocess.run(
                ["bash", "-c", script], cwd=tmp_path, env=_environment(), capture_output=True, text=True, timeout=280
            )
            assert done.returncode == 0, f"{code}\n{done.stderr[-2000:]}"
        else:
            exec(compile(code, name, "exec"), space)
