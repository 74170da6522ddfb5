"""Are these words the same, but for spaces and capitals? `Male`, ` male`, `MALE`; `Y`, `yes`, `Yes` and `N`, `no`.

Spaces around a word never count. Words of at least three letters that differ in capitals alone are one word, spelled as most rows
spell it; shorter ones (m, M) may be codes and stay apart, unless the column says yes and no.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

MAX_WORDS = 10_000
"""Columns of more different words are taken as they are written."""

_LETTERS = 3
_FAMILIES = (
    ({"y", "yes", "true", "1"}, {"n", "no", "false", "0"}),
    ({"t", "true", "1"}, {"f", "false", "0"}),
    ({"on", "1"}, {"off", "0"}),
)


def folded(word: str) -> str:
    """A word without spaces around and between too many, in small letters."""
    return " ".join(word.split()).casefold()


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
            key = small if sum(letter.isalpha() for letter in small) >= _LETTERS else stripped
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


def spelled(word: str, spelling: Mapping[str, str]) -> str:
    """A word in the spelling of its column; one that the column does not know loses the spaces around it."""
    stripped = " ".join(word.split()) if word.strip() != word else word
    exact = spelling.get(stripped)
    return exact if exact is not None else spelling.get(folded(word), stripped)
