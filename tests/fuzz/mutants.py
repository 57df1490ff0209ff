"""Bad inputs out of good ones: JSON values swapped for awkward ones, lines and bytes moved, cut and doubled.

Everything is drawn from one `random.Random`, so a seed names an input.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

PART = b"\x1e"
"""Between the parts of an input that stands for several files, flags or words."""

AWKWARD: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    7,
    10**30,
    1e308,
    -0.0,
    float("nan"),
    float("inf"),
    "",
    " ",
    "\n",
    "\x00",
    "\ud800",
    "\u202e",
    "\ufeff",
    "\u2028",
    "é",
    "e\u0301",
    "𝔘",
    "a" * 300,
    "../../x",
    "/etc/passwd",
    "{",
    "}",
    "{0}",
    "%s",
    "[[7]]",
    "<|end|>",
    "</script>",
    "none",
    "Lima",
    "user",
    "system",
    "human",
    [],
    {},
    [[]],
    [None],
    {"": ""},
    ["a", "b"],
    {"from": "human", "value": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": []},
    {"type": "text", "text": "x"},
)
"""Values put where others stood."""

BYTES = (
    b"",
    b"\n",
    b"\r",
    b"\r\n",
    b"\t",
    b" ",
    b"\x00",
    b"\xff",
    b"\xfe\xff",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b'"',
    b"'",
    b"\\",
    b"\\u",
    b"\\ud800",
    b"{",
    b"}",
    b"[",
    b"]",
    b"[]",
    b"{}",
    b",",
    b":",
    b"null",
    b"NaN",
    b"1e999",
    b"-",
    b"- ",
    b"&a ",
    b"*a",
    b"!!float x",
    b"!!python/object:x",
    b"2001-99-99",
    b"0o9",
    b"1:2",
    b"=",
    b"<<: ",
    b"? ",
    b"|",
    b"9" * 5000,
    b"[" * 2000,
    b'{"a":' * 1500,
    b"(",
    b")",
    b".",
    b"--",
    b"--x",
    b"=1",
    b"\xe2\x80\xae",
    b"10",
    b"/10",
    b"[[",
    b"]]",
    b"yes",
    b"no",
    b"true",
    b"Final Answer:",
    b"I agree",
    b"not ",
    PART,
)
"""Pieces put between others."""


def mutant(seeds: Sequence[bytes], rng: random.Random, size: int = 20_000) -> bytes:
    """One bad input, of at most `size` bytes, out of some good ones."""
    data = rng.choice(seeds)
    for _ in range(1 + min(rng.getrandbits(3), rng.getrandbits(3))):
        change = rng.choice((_value, _value, _value, _line, _bytes, _piece, _cut))
        data = change(data, rng, seeds)
    return data[:size]


def _line(data: bytes, rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    lines = data.split(b"\n")
    at, other = rng.randrange(len(lines)), rng.choice(rng.choice(seeds).split(b"\n"))
    what = rng.randrange(4)
    if what == 0:
        lines.insert(at, other)
    elif what == 1:
        lines.insert(at, lines[rng.randrange(len(lines))])
    elif what == 2:
        del lines[at]
    else:
        rng.shuffle(lines)
    return b"\n".join(lines)


def _bytes(data: bytes, rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        if changed:
            changed[rng.randrange(len(changed))] = rng.getrandbits(8)
    return bytes(changed)


def _piece(data: bytes, rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    at = rng.randint(0, len(data))
    gone = rng.choice((0, 0, 1, 3, 20))
    return data[:at] + rng.choice(BYTES) + data[at + gone :]


def _cut(data: bytes, rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    one, other = sorted((rng.randint(0, len(data)), rng.randint(0, len(data))))
    return rng.choice((data[:one], data[one:], data[:one] + data[other:], data[:other] + data[one:]))


def _value(data: bytes, rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """One value inside a line of JSON changed, or inside the whole where it is one; bytes where there is none."""
    lines = [data] if rng.random() < 0.3 else data.split(b"\n")
    at = rng.randrange(len(lines))
    try:
        value = json.loads(lines[at])
    except (ValueError, RecursionError):
        return _bytes(data, rng, seeds)
    lines[at] = json.dumps(changed(value, rng), ensure_ascii=rng.random() < 0.9).encode("utf-8", "surrogatepass")
    return b"\n".join(lines)


def changed(value: Any, rng: random.Random) -> Any:
    """A JSON value with one place in it changed."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.15:
        return rng.choice(AWKWARD)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = rng.choice(keys)
    copy: Any = value.copy()
    what = rng.random()
    if what < 0.7:
        copy[key] = changed(value[key], rng)
    elif what < 0.85:
        del copy[key]
    elif isinstance(copy, list):
        copy.insert(key, rng.choice((*AWKWARD, *value)))
    else:
        copy[rng.choice((*keys, "", "id", "kind", "turns", "text", "x"))] = copy.pop(key)
    return copy
