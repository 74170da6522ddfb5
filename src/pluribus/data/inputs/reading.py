"""What several types share in reading the cells of a request."""

from __future__ import annotations

import re
from typing import Any

_SURROGATE = re.compile("[\ud800-\udfff]")


def sound(value: Any, limit: int) -> bool:
    """Short enough to handle, and encodable: JSON may hold half a surrogate pair."""
    if isinstance(value, str):
        return len(value) <= limit and (value.isascii() or _SURROGATE.search(value) is None)
    return not isinstance(value, int) or value.bit_length() <= 1024


def called(value: Any) -> str:
    """A value's type in JSON's words, and the value where it is short."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return f"the text {value[:40]!r}"
    return f"{type(value).__name__} {str(value)[:40]}" if sound(value, 40) else "a number of that size"
