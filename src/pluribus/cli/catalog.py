"""`pluribus catalog`: every method by its name."""

from __future__ import annotations

import inspect
import json

import click

from pluribus import catalog


@click.command("catalog", epilog="Examples:  pluribus catalog nash      pluribus catalog --family balancer")
@click.argument("methods", nargs=-1, metavar="[METHOD]...")
@click.option("--family", help="Only this family (balancer, merger, sharing, encoder, candidate, …).")
@click.option("--road", type=click.Choice(catalog.ROADS), help="Only this road.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def command(methods: tuple[str, ...], family: str | None, road: str | None, as_json: bool) -> None:
    """List every method by family; with --family or --road each with its paper and what verifies it. With a METHOD's name: what
    it is, its settings and where a study searches them, its paper and BibTeX."""
    families = sorted({entry.family for entry in catalog.entries()})
    if family is not None and family not in families:
        from pluribus.errors import unknown

        raise unknown("family", family, families)
    rows = catalog.entries(family=family, road=road)
    if methods:
        rows = [row for name in methods for row in catalog.named(name) if row in rows]
    if as_json:
        click.echo(json.dumps({"schema": 1, "entries": [row.to_dict() for row in rows]}, indent=1, ensure_ascii=False))
        return
    if methods:
        click.echo("\n\n".join(described(row) for row in rows))
        return
    if family is None and road is None:
        for name in families:
            own = [row for row in rows if row.family == name]
            names = ", ".join(row.name + "*" * row.default for row in own)
            heading = f"{f'{name} ({len(own)})':<24}"
            click.echo(click.wrap_text(names, width=100, initial_indent=heading, subsequent_indent=" " * 24))
        click.echo(
            "\n* in every study. Papers and proofs: pluribus catalog --family balancer (or another, or --road merge);"
            "\n  one method: pluribus catalog nash."
        )
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("name", "family", "road", "year", "paper or summary", "verified by"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        proof = row.verified_by
        marks = [
            word for word, there in (("oracle", proof.oracle), ("property", proof.property), ("claim", proof.claim)) if there
        ]
        title = row.paper.title if row.paper else row.summary
        year = str(row.paper.year) if row.paper else ""
        table.add_row(row.name, row.family, row.road, year, title, " ".join(marks) or "experimental")
    Console(width=None if Console().is_terminal else 160).print(table)


def described(entry: catalog.Entry) -> str:
    """One method: what it is, how it is reached, its settings, what verifies it, its paper."""
    module, _, attribute = entry.target.partition(":")
    proof = entry.verified_by
    lines = [f"{entry.name}: {entry.family}, road {entry.road}, {entry.status}", f"  {entry.summary}"]
    lines.append(f"  python     from {module} import {attribute}")
    if entry.family == "candidate":
        lines.append(f"  study      {'in every study' if entry.default else f'--candidate {entry.name}'}")
    if entry.doors:
        lines.append(f"  doors      {', '.join(entry.doors)}; hears {', '.join(entry.signal)}")
    shown = [name if value is inspect.Parameter.empty else f"{name}={value!r}" for name, value in entry.settings().items()]
    if shown:
        lines.append(click.wrap_text(", ".join(shown), width=100, initial_indent="  settings   ", subsequent_indent=" " * 13))
    if entry.family == "candidate" and (ranges := entry.resolve().space.ranges):
        searched = ", ".join(f"{name}: {values}" for name, values in ranges.items())
        lines.append(click.wrap_text(searched, width=100, initial_indent="  searched   ", subsequent_indent=" " * 13))
    lines += [f"  {word:<11}{test}" for word, tests in (("oracle", proof.oracle), ("property", proof.property)) for test in tests]
    if proof.claim:
        lines.append(f"  claim      {proof.claim}")
    if entry.paper:
        lines.append(f"  paper      {entry.paper.title} ({entry.paper.year}) {entry.paper.url}".rstrip())
        if entry.paper.bibtex:
            lines += ["", entry.paper.bibtex.strip()]
    return "\n".join(lines)
