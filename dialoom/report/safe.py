"""Text nobody vouches for (models, users, files), made harmless to look at: on a page and in a terminal alike.

Escaping for HTML is not done here but by the template engine, for everything; this is about what escaping leaves:
characters that hide, reorder or repaint other characters.
"""

from __future__ import annotations

import re
from typing import Any

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
