"""The viewer's page: one HTML file that needs nothing else, asks nobody else for anything and runs nobody's text.

Nothing of a run reaches a script, a style or markup: it lies in the page as JSON (dialogues compressed), and the page's
own script writes it as text. That script and the style are the only ones the security policy admits, by their hashes.
They are built out of web/ and lie in `static/`.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dialoom.errors import StoreError
from dialoom.report.overview import overview
from dialoom.report.read import Run, read_run
from dialoom.report.safe import clean
from dialoom.report.table import results_table
from dialoom.report.trees import MAX_TURNS, told_trees
from dialoom.store import write_whole

STATIC = Path(__file__).parent / "static"
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<meta name="color-scheme" content="light dark">
<title>{title} – Dialoom</title>
<link rel="icon" href="data:,">
<style>{css}</style>
</head>
<body>
<div id="app"></div>
<noscript>
<h1>{title}</h1>
<p>{summary}</p>
<pre>{tables}</pre>
<p>Plots, dialogues and settings need JavaScript; this page brings its own and loads nothing.</p>
</noscript>
<script type="application/json" id="about">{about}</script>
{dialogues}
<script>{js}</script>
</body>
</html>
"""


def write_report(folder: str | Path) -> Path:
    """Write `report.html` into a run folder, anew; returns its path.

    Raises:
        StoreError: if there is no such folder, or it cannot be written.
        DataError: naming the file that breaks its format.
    """
    return write_page([folder], Path(folder) / "report.html")


def write_page(folders: Sequence[str | Path], path: str | Path, turns: int = MAX_TURNS) -> Path:
    """Write one run, or two side by side, as one HTML file; returns its path.

    Args:
        turns: how many turns of each run the page may hold; it says how many dialogues were left out.
    Raises: what `write_report` raises.
    """
    write_whole(path, static_page([read_run(Path(folder)) for folder in folders], turns))
    return Path(path)


def static_page(runs: Sequence[Run], turns: int = MAX_TURNS) -> str:
    """The page that holds everything itself; the same runs give the same page."""
    abouts, packed = [], []
    for number, run in enumerate(runs):
        told, parts = told_trees(run, turns)
        abouts.append({**clean(overview(run)), "parts": parts})
        data = base64.b64encode(gzip.compress(f"[{','.join(told.values())}]".encode(), 6, mtime=0)).decode()
        packed.append(f'<script type="application/octet-stream" id="dialogues-{number}">{data}</script>')
    return _page(runs[0], {"live": False, "runs": abouts}, "\n".join(packed))


def live_page(runs: Sequence[Run]) -> str:
    """The page that asks the server it came from, and nobody else, for what it shows."""
    return _page(runs[0], {"live": True, "runs": [{"name": clean(run.folder.name)} for run in runs]}, "")


def _page(first: Run, about: dict[str, Any], dialogues: str) -> str:
    css, js = static("viewer.css"), static("viewer.js")
    told = clean(overview(first))
    text = json.dumps(about, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return PAGE.format(policy=policy(css, js, live=about["live"]), title=html.escape(told["title"]),
                       summary=html.escape(told["summary"]), css=css, js=js, dialogues=dialogues,
                       tables=html.escape(results_table(first.results, markdown=False)),
                       about=text.replace("<", "\\u003c"))   # nothing in a JSON text may end the element it stands in


def policy(css: str, js: str, *, live: bool) -> str:
    """The page's security policy: only this style and this script count; nothing is loaded, but a live page's data."""
    style, script = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (css, js))
    connect = "connect-src 'self'; " if live else ""
    return (f"default-src 'none'; style-src 'sha256-{style}'; script-src 'sha256-{script}'; img-src data:; {connect}"
            "base-uri 'none'; form-action 'none'")


def static(name: str) -> str:
    """A file that was built out of web/."""
    try:
        return (STATIC / name).read_text(encoding="utf-8")
    except OSError:
        raise StoreError(f"{STATIC / name} is missing: the package is not whole; install it again, or in a checkout "
                         "build it with `npm ci && npm run build` in web/") from None
