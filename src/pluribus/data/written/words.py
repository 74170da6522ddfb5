"""Are these words the same, but for spaces and capitals? `Male`, ` male`, `MALE`; `Y`, `yes`, `Yes` and `N`, `no`.

Looked at are categories alone: names, texts and formulas (in chemistry, c1ccccc1 is not C1CCCCC1) have another word in nearly
every row. Spaces around a category do not count. Categories of at least three letters and no digit that differ in capitals alone
are one, spelled as most rows spell it; others (m, M; 2a, 2A) may be codes and stay apart, unless the column says yes and no.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pluribus.tasks.kinds.labels import MAX_CLASSES

MAX_WORDS = 10_000
"""Columns of more different words are taken as they are written."""

_LETTERS = 3
_ROWS = 5
_FAMILIES = (
    ({"y", "yes", "true", "1"}, {"n", "no", "false", "0"}),
    ({"t", "true", "1"}, {"f", "false", "0"}),
    ({"on", "1"}, {"off", "0"}),
)


def folded(word: str) -> str:
    """A word without spaces around and between too many, in small letters."""
    return " ".join(word.split()).casefold()


def are_categories(counts: Mapping[str, int]) -> bool:
    """Whether words (word → in how many rows it stands) stand for classes of rows.

    They say yes or no; or they are few, each in two rows on average; or each is in five.
    """
    different, rows = len({folded(word) for word in counts}), sum(counts.values())
    return side_of(list(counts)) is not None or 0 < (2 if different <= MAX_CLASSES else _ROWS) * different <= rows


def side_of(words: Sequence[str]) -> dict[str, bool] | None:
    """Folded word → whether it says yes, where all words say yes or no; None where they do not."""
    found = {folded(word) for word in words}
    if not found or found <= {"0", "1"}:
        return None
    for yes, no in _FAMILIES:
        if found <= yes | no:
            return {**dict.fromkeys(yes, True), **dict.fromkeys(no, False)}
    return None


def spelling_of(counts: Mapping[str, int]) -> dict[str, str]:
    """Folded word → how it is spelled.

    Parameters
    ----------
    counts : mapping
        Word as it is written → in how many rows it stands.
    """
    sides = side_of(list(counts))
    groups: dict[str, dict[str, int]] = {}
    for word, rows in counts.items():
        small = folded(word)
        stripped = " ".join(word.split()) if word.strip() != word else word
        if sides is not None:
            key = "yes" if sides[small] else "no"
        else:
            key = small if _may_be_spelled_otherwise(small) else stripped
        group = groups.setdefault(key, {})
        group[stripped] = group.get(stripped, 0) + rows
    found: dict[str, str] = {}
    for key, group in groups.items():
        best = min(group, key=lambda word: (-group[word], word))
        for word in group:
            found[folded(word) if sides is not None or key == folded(word) else word] = best
    if sides is not None:
        for word, yes in sides.items():
            if (said := next((found[w] for w in found if sides[w] == yes), None)) is not None:
                found.setdefault(word, said)
    return found


def _may_be_spelled_otherwise(small: str) -> bool:
    return sum(letter.isalpha() for letter in small) >= _LETTERS and not any(letter.isdigit() for letter in small)


def spelled(word: str, spelling: Mapping[str, str]) -> str:
    """A word in the spelling of its column; one that the column does not know loses the spaces around it."""
    stripped = " ".join(word.split()) if word.strip() != word else word
    exact = spelling.get(stripped)
    return exact if exact is not None else spelling.get(folded(word), stripped)
