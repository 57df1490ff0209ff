"""What an audit reads, looks at and shows: any file of dialogues or pairs, and runs, with and without a tokenizer."""

from __future__ import annotations

import io
import json
from functools import cache
from pathlib import Path

from rich.console import Console

from dialoom.audit.look import Report, look, show
from dialoom.audit.page import page
from dialoom.audit.sources import read_material
from dialoom.audit.terminal import print_report, print_shown
from dialoom.audit.tokens import Reader, load_reader
from dialoom.errors import DialoomError

from .checks import Target, refused, writable
from .kept import TOLD_PAIRS
from .loaders import CHAT, PAIR, TALK, lines
from .logs import FOLDER, LOG, RUN
from .mutants import PART
from .scratch import empty, write

EPISODE = {"scenario": "s", "opening": "Hello", "turns": [{"speaker": "user", "text": "Hi."},
                                                          {"speaker": "assistant", "text": "Oslo."}]}


@cache
def _reader() -> Reader:
    return load_reader("pocket")


def _audit(data: bytes) -> None:
    """The first byte says what it is called, and that a tokenizer looks at it, too; every report can be shown."""
    path = _run(data[1:]) if data[:1] == b"r" else write(
        "audited.json" if data[:1] == b"j" else "audited.jsonl", data[1:])
    material = refused(lambda: read_material(path))
    if isinstance(material, DialoomError):
        return
    report: Report = look(material, _reader() if data[:1] in b"rt" else None, rows=2)
    assert all(0 <= finding.count <= finding.of for finding in report.findings)
    assert "<script" not in page(report).lower()
    writable(report.to_json())
    out = io.StringIO()
    print_report(report, Console(file=out, width=100))
    for name in [*report.behind][:2]:
        found = refused(lambda name=name: show(material, None, name))
        if not isinstance(found, DialoomError):
            print_shown(found, Console(file=out, width=100))
    assert "\x1b" not in out.getvalue()


def _run(data: bytes) -> Path:
    folder = empty("pbt-audited")
    for name, part in zip(FOLDER, data.split(PART), strict=False):
        if part:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(part)
    return folder


TARGETS = [
    Target(
        "audit",
        _audit,
        (
            b"t" + lines(PAIR, {**PAIR, "id": "y", "rejected": "c <|end|> d"}),
            b"t" + lines({"prompt": "Why?", "completion": "So."}, {"prompt": PAIR["prompt"], "completion": "No."}),
            b"l" + lines(EPISODE, EPISODE),
            b"j" + json.dumps([TALK, CHAT], indent=1).encode(),
            b"l" + LOG,
            b"r" + RUN,
            b"r" + PART.join((b"model: pocket\nseed: 1\n", b'{"recipe": "pbt"}', LOG, TOLD_PAIRS)),
        ),
        heavy=True,
    ),
]
