"""Text nobody vouches for (models, users, files), made harmless to look at: on a page and in a terminal alike.

The page's script writes text only as text, so nothing here escapes for HTML; this is about what escaping leaves:
characters that hide, reorder or repaint other characters, numbers that JSON has no word for, texts without end.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

MAX_TEXT = 4_000   # characters of one text on a page

_TRICKS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e01ef]")  # the joiners U+200C and U+200D stay: Persian and emoji need them
_SECRET = re.compile(r"(^|_)(api_?key|secret|password|passwd|authorization|credentials?|token)$", re.IGNORECASE)
_LOGIN = re.compile(r"//[^/@\s]+@")


def visible(text: str) -> str:
    """`text` with every control, bidirectional and invisible character spelled out, as in `⟨U+202E⟩`.

    Line breaks and tabs stay. The result can always be encoded as UTF-8 and holds no terminal escape.
    """
    return _TRICKS.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", text.replace("\r\n", "\n"))


def clean(value: Any) -> Any:
    """A JSON value as a page may hold it: every text visible and at most `MAX_TEXT` long, no NaN, keys texts too."""
    kind = type(value)
    if kind is str:
        if len(value) <= MAX_TEXT:
            return visible(value)
        return f"{visible(value[:MAX_TEXT])} … {len(value) - MAX_TEXT:,} more characters in the file"
    if kind is int or kind is bool or value is None:
        return value
    if kind is float:
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {clean(str(key)): clean(item) for key, item in value.items()}
    return [clean(item) for item in value] if isinstance(value, list | tuple) else clean(str(value))


def flat(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted names and texts; what is named like a key or password is withheld."""
    if value is not None and _SECRET.search(prefix.rsplit(".", 1)[-1]):
        return {prefix: "(withheld)"}
    if isinstance(value, list | tuple) and any(isinstance(item, dict) for item in value):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        found: dict[str, str] = {}
        for key, below in value.items():
            found |= flat(below, f"{prefix}.{key}" if prefix else str(key))
        return found
    if isinstance(value, list | tuple):
        value = ", ".join(str(item) for item in value)
    return {prefix: "none" if value is None else _LOGIN.sub("//(withheld)@", str(value))}
