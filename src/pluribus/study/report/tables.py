"""Markup: tables, folds, badges, figures. Every text that comes in is escaped here, once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

_FIGURE = re.compile(r"$|n/a|no interval|(<[^>]*>)?[+−]?\d")  # what makes a column one of figures
GLYPHS = {"better": "▲", "as good": "●", "worse": "▼", "undecided": "◇"}


class Html(str):
    """Markup that is finished; any other string is text and gets escaped."""

    __slots__ = ()


def text(value: Any) -> Html:
    return value if isinstance(value, Html) else Html(escape(str(value)))


def join(parts: Iterable[str]) -> Html:
    return Html("\n".join(text(part) for part in parts if part))


def tag(name: str, *inside: Any, **attributes: str) -> Html:
    """An element; `class_` becomes class, `aria_label` aria-label."""
    given = "".join(f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"' for key, value in attributes.items())
    return Html(f"<{name}{given}>{''.join(text(each) for each in inside)}</{name}>")


def css(word: str) -> str:
    """The class of a word: `as good` → `as-good`; anything else than the four words gets no colour."""
    return word.replace(" ", "-") if word in GLYPHS else "plain"


def badge(word: str, name: str = "") -> Html:
    """A word on its colour, with a sign of its own, behind the name it belongs to."""
    sign = tag("span", GLYPHS.get(word, ""), aria_hidden="true")
    mark = tag("b", sign, " ", word, class_=f"badge {css(word)}")
    return tag("li", tag("span", name, class_="name"), " ", mark) if name else mark


def bullets(items: Iterable[str], class_: str = "") -> Html:
    found = [tag("li", item) for item in items]
    return (tag("ul", *found, class_=class_) if class_ else tag("ul", *found)) if found else Html("")


def table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> Html:
    """A table that scrolls in its own box; the first cell of a row is its header.

    On a phone each row is a card: a cell then says the head of its column itself (`data-head`). Roles are spelt out, since a
    table that is no longer laid out as one would lose them.
    """
    kinds = ["n" if all(_FIGURE.match(str(row[i])) for row in rows) else "t" for i in range(len(heads))]
    titles = (tag("th", h, scope="col", role="columnheader", class_=k) for h, k in zip(heads, kinds))
    head = tag("thead", tag("tr", *titles, role="row"), role="rowgroup")
    body = [
        tag(
            "tr",
            tag("th", row[0], scope="row", role="rowheader"),
            *(tag("td", cell, class_=k, role="cell", data_head=h) for cell, k, h in zip(row[1:], kinds[1:], heads[1:])),
            role="row",
        )
        for row in rows
    ]
    inside = tag("table", tag("caption", caption), head, Html('<tbody role="rowgroup">'), *body, Html("</tbody>"), role="table")
    return tag("div", inside, class_="scroll", tabindex="0", role="region", aria_label=caption)


def fold(summary: str | Html, *inside: str) -> Html:
    return tag("details", tag("summary", summary), *inside)


def card(title: str, *inside: str, class_: str = "card") -> Html:
    return tag("div", tag("h2", title), *inside, class_=class_)


def section(identity: str, title: str, *inside: str) -> Html:
    return tag("section", tag("h2", title, id=f"h-{identity}"), *inside, id=identity, aria_labelledby=f"h-{identity}")


class Pictures:
    """The page's pictures in order, to be handed to plotly by the page's script."""

    def __init__(self) -> None:
        self.all: list[dict[str, Any]] = []

    def draw(self, figure: dict[str, Any], title: str = "") -> Html:
        """The place of one picture: it has a name for those who cannot see it, and its height before it is drawn."""
        self.all.append({"data": figure["data"], "layout": figure["layout"]})
        place = tag(
            "div",
            class_="plot",
            role="img",
            aria_label=figure["alt"],
            data_figure=str(len(self.all) - 1),
            style=f"height:{figure['layout']['height']}px",
        )
        return tag("figure", tag("figcaption", title) if title else "", place)


def grid(figures: Iterable[str]) -> Html:
    return tag("div", *figures, class_="grid")
