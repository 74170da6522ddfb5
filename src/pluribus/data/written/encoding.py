"""Which letters do the bytes of a file mean, and what separates its fields?

UTF-8 is read as it is. UTF-16 and UTF-32 say so in their first bytes, or have a zero in every other byte. Text of single bytes is
taken X
"""

from __future__ import annotations

import codecs
import re

from pluribus.errors import BadInput

_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_WESTERN = "cp1252"
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f\x81\x8d\x8f\x90\x9d]")
_WIDE = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
_HEAD = 4096
DELIMITERS = (",", ";", "\t", "|")
_LINES = 20


def wide_encoding(head: bytes) -> str | None:
    """UTF-16 or UTF-32, from a file's first bytes; None for others."""
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name
    pairs = head[: len(head) // 2 * 2]
    for name, letters, zeros in (("utf-16-le", pairs[::2], pairs[1::2]), ("utf-16-be", pairs[1::2], pairs[::2])):
        if len(zeros) > 4 and zeros.count(0) > 0.7 * len(zeros) and letters.count(0) == 0:
            return name
    return None


def western(content: bytes) -> str | None:
    """Windows-1252, where the bytes can be that and are not UTF-8 with a fault; None otherwise."""
    if _CONTROL.search(content) or _WIDE.search(content):
        return None
    return _WESTERN


def as_utf8(content: bytes, encoding: str, where: str) -> bytes:
    """Bytes of another encoding as UTF-8.

    Raises
    ------
    BadInput
        They are not of this encoding.
    """
    try:
        return content.decode(encoding).removeprefix("\ufeff").encode("utf-8")
    except (UnicodeError, LookupError) as error:
        line = content[: getattr(error, "start", 0)].count(b"\n") + 1
        remedy = "save it as UTF-8, or name another --encoding"
        raise BadInput(f"is not {encoding} text", where=f"{where}, line {line}", remedy=remedy) from error


def delimiter_of(lines: list[str]) -> str:
    """What separates the fields of a file's first lines.

    Of the signs in the header, the one that occurs as often in every line, the comma first; else the comma where the header has
    one, else the most frequent.
    """
    bare = [re.sub(r'"[^"]*"', "", line) for line in lines[:_LINES] if line.strip()]
    header = bare[0]
    there = [sign for sign in DELIMITERS if sign in header]
    steady = [sign for sign in there if all(line.count(sign) == header.count(sign) for line in bare[1:])]
    if len(bare) > 1 and steady:
        return max(steady, key=lambda sign: (sign == "," and "," in there, header.count(sign)))
    return "," if "," in header else max(DELIMITERS, key=header.count)
