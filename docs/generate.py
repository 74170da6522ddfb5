"""mkdocs hook: the pages that would go stale if a person wrote them, made from the code, the catalog and the README.

- `balancers.md`, `catalog.md`, `api.md` and `results/index.md` exist only in the build.
- `<!-- README: Heading -->` on a page stands for that section of the README.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PACKAGES = (
    "pluribus",
    "pluribus.tasks",
    "pluribus.data",
    "pluribus.modeling",
    "pluribus.training",
    "pluribus.balancing",
    "pluribus.merging",
    "pluribus.sharing",
    "pluribus.adapters",
    "pluribus.boosting",
    "pluribus.tabular",
    "pluribus.text",
    "pluribus.evaluation",
    "pluribus.study",
    "pluribus.serving",
)
COST = {
    "losses": "none beyond the losses",
    "norms": "one gradient a task, of which only the length is kept",
    "gram": "one gradient a task and their products (T × T); with `features=` only down to the features",
    "cross_gram": "gradients of independent batches and their products",
    "jacobian": "all gradients at once (T × P memory)",
}


def cell(text: str) -> str:
    """Text that stays within a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def section(heading: str) -> str:
    """A section of the README with its heading, links made relative to docs/."""
    text = (ROOT / "README.md").read_text("utf-8")
    found = re.search(rf"^## {re.escape(heading)}\n.*?(?=^## |\Z)", text, re.S | re.M)
    if not found:
        raise ValueError(f"README.md has no section {heading!r}; name one that it has in docs/")
    body = found[0].replace("](docs/", "](").replace("](CONTRIBUTING.md)", "](contributing.md)")
    return re.sub(r"\n+Apache-2\.0\.\s*\Z", "\n", body)


def balancers() -> str:
    """Every balancer: signal, cost, doors, parameters, when it fails, BibTeX."""
    from pluribus import catalog

    fails = tomllib.loads((ROOT / "docs" / "balancers.toml").read_text("utf-8"))
    found = catalog.entries(family="balancer")
    unwritten = [entry.name for entry in found if entry.name not in fails]
    if unwritten or len(fails) != len(found):
        strange = sorted(set(fails) - {entry.name for entry in found})
        raise ValueError(f"docs/balancers.toml: add a line for {unwritten}, remove {strange}")
    page = [
        "# Every balancer on one page",
        "",
        f"All {len(found)} methods of the catalog's family *balancer*: who is heard when tasks share parameters. T tasks, P "
        "shared parameters. `combine` makes one scalar for an ordinary `.backward()`; `backward` does the whole step for methods "
        "that need more. Start with `equal`: whatever you choose has to beat it on *your* validation data "
        "([measured](results/balancing.md)).",
        "",
        "| name | idea | hears | doors | status |",
        "|---|---|---|---|---|",
    ]
    for e in found:
        hears, doors = ", ".join(e.signal), ", ".join(e.doors)
        page.append(f"| [`{e.name}`](#{e.name}) | {cell(e.summary)} | {hears} | {doors} | {e.status} |")
    for e in found:
        method = e.resolve()
        strongest = [name for name in COST if name in e.signal]
        cost = COST[strongest[-1]] if strongest else "see below"
        if method.batches > 1:
            cost += f"; {method.batches} independent batches a step"
        if "closure" in e.signal:
            cost += "; the losses once more on other data"
        page += [
            "",
            f"## `{e.name}` {{ #{e.name} }}",
            "",
            f"{e.summary}. `from pluribus.balancing import {method.__name__}`",
            "",
            f"- **Hears** {', '.join(e.signal)}. **Doors** {', '.join(e.doors)}.",
            f"- **Cost** {cost}.",
            f"- **Parameters** {parameters(method)}.",
            f"- **When it fails** {fails[e.name]}",
        ]
        if e.paper:
            page += [f"- **Paper** [{e.paper.title}]({e.paper.url}) ({e.paper.year})", "", "```bibtex", e.paper.bibtex, "```"]
    return "\n".join(page) + "\n"


def parameters(method: type) -> str:
    """The hyper-parameters of a method with their defaults."""
    if not dataclasses.is_dataclass(method):
        return f"`{inspect.signature(method)}`"
    shown = []
    for f in dataclasses.fields(method):
        if f.init:
            given = f.default if f.default is not dataclasses.MISSING else "…"
            shown.append(f"`{f.name} = {given!r}`" if given != "…" else f"`{f.name}`")
    return ", ".join(shown) or "none"


def catalog_page() -> str:
    """All entries by family."""
    from pluribus import catalog

    families: dict[str, list[Any]] = {}
    for entry in catalog.entries():
        families.setdefault(entry.family, []).append(entry)
    page = [
        "# Catalog",
        "",
        "What `pluribus catalog` prints. *Verified*: it agrees with an independent source, its properties hold for any input, "
        "and a benchmark has put its paper's claim to the test; whether the claim held is [on the page](results/index.md). "
        "Everything else is *experimental*.",
        "",
    ]
    for family in sorted(families):
        page += [f"## {family.replace('_', ' ').capitalize()} {{ #{family} }}", "", "| name | road | what | paper | status |"]
        page.append("|---|---|---|---|---|")
        for e in families[family]:
            paper = f"[{cell(e.paper.title)}]({e.paper.url}) ({e.paper.year})" if e.paper and e.paper.url else ""
            page.append(f"| `{e.name}` | {e.road} | {cell(e.summary)} | {paper} | {e.status} |")
        page.append("")
    return "\n".join(page)


def api() -> str:
    """Public names with signature and docstring."""
    page = ["# API", "", "The public names of every package, from their docstrings; [tiers](stability.md).", ""]
    for package in PACKAGES:
        module = importlib.import_module(package)
        page += [f"## {package} {{ #{package.replace('.', '-')} }}", ""]
        if module.__doc__:
            page += ["```text", inspect.cleandoc(module.__doc__).replace("```", ""), "```", ""]
        for name in getattr(module, "__all__", ()):  # text: its parts are used by their catalog names
            page += described(package, name, getattr(module, name))
    return "\n".join(page)


def described(package: str, name: str, thing: Any) -> list[str]:
    if not (inspect.isclass(thing) or inspect.isfunction(thing)):
        return [] if name.startswith("__") else [f"### {name}", ""]
    try:
        signature = str(inspect.signature(thing))
    except (TypeError, ValueError):
        signature = "(…)"
    signature = re.sub(r" at 0x[0-9a-f]+", "", signature)
    text = inspect.cleandoc(thing.__doc__ or "").replace("```", "")
    kind = "class " if inspect.isclass(thing) else ""
    anchor = f"{package.replace('.', '-')}-{name}"
    return [f"### {name} {{ #{anchor} }}", "", "```text", f"{kind}{name}{signature}", "", text, "```", ""]


SPEED = re.compile(r"speed$|^(bank|data|kill|processes|serving|trainer)$")


def results() -> str:
    """The results pages there are: what the methods achieve, then what they cost."""
    page = ["# Results", "", "Written by the benchmarks, also where a claim failed: what ran, when, on what machine.", ""]
    paths = sorted((ROOT / "docs" / "results").glob("*.md"))
    for title, chosen in (
        ("Do the methods keep their promises?", [p for p in paths if not SPEED.search(p.stem)]),
        ("What does it cost?", [p for p in paths if SPEED.search(p.stem)]),
    ):
        page += [f"## {title}", ""]
        for path in chosen:
            heading = next((line[2:] for line in path.read_text("utf-8").splitlines() if line.startswith("# ")), path.stem)
            page.append(f"- [{heading}]({path.name})")
        page.append("")
    return "\n".join(page)


PAGES = {"balancers.md": balancers, "catalog.md": catalog_page, "api.md": api, "results/index.md": results}


def on_config(config: Any, **_: Any) -> Any:
    """The navigation, results pages included as they come."""
    measured = sorted(f"results/{path.name}" for path in (ROOT / "docs" / "results").glob("*.md"))
    config["nav"] = [
        {"Start": "index.md"},
        {
            "Guides": [
                {"Reading the verdict": "guides/verdict.md"},
                {"Which road for my checkpoints": "guides/checkpoints.md"},
                {"Tables": "guides/tables.md"},
                {"Text": "guides/text.md"},
                {"Funnels": "guides/funnels.md"},
                {"Recommendation": "guides/recommendation.md"},
                {"Adapters": "guides/adapters.md"},
                {"Your own loop": "guides/loop.md"},
                {"Several processes": "guides/processes.md"},
                {"Serving": "guides/serving.md"},
            ]
        },
        {"Methods": [{"Every balancer": "balancers.md"}, {"Catalog": "catalog.md"}]},
        {
            "Concepts": [
                {"The table with holes": "concepts/cells.md"},
                {"Architecture": "architecture.md"},
                {"Glossary": "glossary.md"},
            ]
        },
        {"Results": ["results/index.md", *measured]},
        {"Reference": [{"API": "api.md"}, {"Stability": "stability.md"}, {"Contributing": "contributing.md"}]},
    ]
    return config


def on_files(files: Any, config: Any, **_: Any) -> Any:
    """Add the generated pages."""
    from mkdocs.structure.files import File

    for name, make in PAGES.items():
        files.append(File.generated(config, name, content=make()))
    files.append(
        File.generated(config, "contributing.md", content=(ROOT / "CONTRIBUTING.md").read_text("utf-8").replace("](docs/", "]("))
    )
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the README's sections in their places."""
    return re.sub(r"<!-- README: (.*?) -->", lambda found: section(found[1]), markdown)
