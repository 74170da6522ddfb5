"""The report: one HTML file, drawn from `report.json` of a run and from nothing else.

`words` says figures in words, `figures` builds the pictures (plain plotly JSON), `tables` the markup, `verdict`, `evidence` and
`protocol` the three parts of the page, `page` puts them together with the style, the script and plotly, all inlined. `terminal`
says the end of a study in a few lines.
"""

from __future__ import annotations

from pathlib import Path

from pluribus.errors import BadInput
from pluribus.files import atomic_file, read_json
from pluribus.study.report.page import page

SCHEMA_VERSION = 1
"""Of `report.json`: what this version writes, and the newest that it can draw."""


def write_report(folder: Path) -> Path:
    """Draw `report.html` from `report.json` and return its path.

    Parameters
    ----------
    folder : Path
        A run's folder.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    BadInput
        There is no `report.json`, or it is not one that this version can draw.
    """
    folder = Path(folder)
    if not (folder / "report.json").is_file():
        raise BadInput("holds no report.json", where=str(folder), remedy="run `pluribus study` first")
    summary = read_json(folder / "report.json")
    version = summary.get("schema_version", SCHEMA_VERSION) if isinstance(summary, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        what = f"schema_version {version} is newer than this program's ({SCHEMA_VERSION})"
        raise BadInput(what, where=str(folder / "report.json"), remedy="update pluribus")
    try:
        html = page(summary)
    except (KeyError, TypeError, AttributeError) as error:
        what, remedy = f"is not a study's summary ({error!r})", "restore the file, or run `pluribus study` again"
        raise BadInput(what, where=str(folder / "report.json"), remedy=remedy) from error
    with atomic_file(folder / "report.html") as aside:
        aside.write_text(html, "utf-8")
    return folder / "report.html"
