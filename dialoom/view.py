"""`dialoom view`: a run in the browser, live while it goes on; or the same as one file.

The server is for one person on one machine: it listens on the loopback only, answers only who asked for it by that name
(a page elsewhere that rebinds its own name to 127.0.0.1 is turned away), and only reads. When a run's files changed, it
reads its logs on from where it was, the less often the longer that takes, so that looking does not slow down what is
looked at.
"""

from __future__ import annotations

import json
import sys
import threading
import time
import webbrowser
from collections.abc import Sequence
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from dialoom.errors import ConfigError, DialoomError, StoreError
from dialoom.report import write_page
from dialoom.report.overview import overview
from dialoom.report.page import live_page, policy, static
from dialoom.report.read import FILES, Followed, Run, logs, read_run
from dialoom.report.safe import clean, visible
from dialoom.report.trees import MAX_TURNS, Told, told_trees

LOOPBACK = "127.0.0.1"
PORT = 8770
LIVE_TURNS = 200_000   # a live page holds more than a file: nobody has to send it around
PATIENCE = 10          # a run that takes a second to read is read at most once in 10 seconds
MOST_RUNS = 2


def view(folders: Sequence[Path], *, html: Path | None = None, port: int = PORT, limit: int = 0,
         open_browser: bool = True) -> None:
    """Show one run, or two side by side, until interrupted; with `html`, write the page to that file instead.

    Args:
        limit: how many turns of each run to hold; 0: what is usual.
    Raises:
        ConfigError: if there are not one or two folders, or the port is taken.
        StoreError, DataError: if a run cannot be read.
    """
    if not 1 <= len(folders) <= MOST_RUNS:
        raise ConfigError(f"{len(folders)} runs: expected one, or two to stand side by side")
    if html is not None:
        print(f"page: {write_page(folders, html, limit or MAX_TURNS)}")
        return
    with serve(folders, port=port, limit=limit) as server:
        print(f"{visible(', '.join(map(str, folders)))}: {server.address} (Ctrl-C ends it)", flush=True)
        if open_browser and sys.stdout.isatty():
            webbrowser.open(server.address)
        with suppress(KeyboardInterrupt):
            server.serve_forever()


def serve(folders: Sequence[Path], *, port: int = PORT, limit: int = 0) -> Server:
    """The server, bound but not yet serving; port 0 takes a free one. Raises what `view` raises."""
    watched = [Watched(Path(folder), limit or LIVE_TURNS) for folder in folders]
    try:
        return Server(watched, port)
    except OSError as wrong:
        raise ConfigError(f"--port {port}: cannot listen there ({wrong.strerror}); give another, or 0 for any free "
                          "one") from None


class Watched:
    """A run folder that may still change, as a live page asks for it: what is new since a version."""

    def __init__(self, folder: Path, turns: int) -> None:
        self.folder, self.turns = folder, turns
        self.version = 0
        self._lock = threading.Lock()
        self._seen: Any = None
        self._due = 0.0
        self._about: dict[str, Any] = {}
        self._about_at = self._reset_at = 0
        self._trees: dict[str, tuple[int, str]] = {}   # key -> the version it changed in, and its JSON
        self._followed: Followed = {}
        self._told: Told = {}
        self.read()

    def read(self) -> None:
        """Take in what changed on the disk, if that is due. Raises what `read_run` raises; then all stays as it was."""
        with self._lock:
            seen = self._stamps()
            if seen == self._seen or time.monotonic() < self._due:
                return
            start = time.monotonic()
            run = read_run(self.folder, self._followed)
            told, parts = told_trees(run, self.turns, self._told)
            about = {**clean(overview(run)), "parts": parts}
            version = self.version + 1
            if self._trees.keys() - told.keys():
                self._reset_at = version
            if about != self._about:
                self._about, self._about_at = about, version
            self._trees = {key: self._trees[key] if self._trees.get(key, (0, ""))[1] == text else (version, text)
                           for key, text in told.items()}
            self._seen, self.version = seen, version
            end = time.monotonic()
            self._due = end + PATIENCE * (end - start)

    def since(self, version: int) -> str:
        """JSON of what a page lacks that knows `version` (-1: nothing yet)."""
        self.read()
        with self._lock:
            reset = version < self._reset_at or version > self.version   # trees went, or another server's version
            known = -1 if reset else version
            trees = ",".join(text for changed, text in self._trees.values() if changed > known)
            about = json.dumps(self._about if self._about_at > known else None, ensure_ascii=False, allow_nan=False)
            return (f'{{"version":{self.version},"reset":{json.dumps(reset)},"overview":{about},'
                    f'"trees":[{trees}]}}')

    def _stamps(self) -> list[tuple[str, int, int]]:
        found = []
        for path in [*(self.folder / name for name in FILES), *logs(self.folder),
                     *sorted(self.folder.glob("stages/*.json"))]:
            try:
                about = path.stat()
            except OSError:   # not there yet, or just thrown away
                continue
            found.append((str(path), about.st_mtime_ns, about.st_size))
        return found


class Server(ThreadingHTTPServer):
    """Serves the page and its data on the loopback; use it in a `with` block."""

    daemon_threads = True

    def __init__(self, runs: Sequence[Watched], port: int) -> None:
        self.runs = runs
        super().__init__((LOOPBACK, port), Handler)
        self.address = f"http://{LOOPBACK}:{self.server_address[1]}/"
        self.names = {f"{name}:{self.server_address[1]}" for name in (LOOPBACK, "localhost")}


class Handler(BaseHTTPRequestHandler):
    """Answers `/` with the page and `/data?run=0&since=VERSION` with what is new; nothing else, and no file."""

    server: Server
    server_version, sys_version = "dialoom", ""

    def do_GET(self) -> None:
        """One answer; a run that cannot be read is told to the page, not raised."""
        if self.headers.get("Host") not in self.server.names:
            self._answer(HTTPStatus.FORBIDDEN, "text/plain", "ask by the address that `dialoom view` has printed\n")
            return
        asked = urlsplit(self.path)
        try:
            if asked.path == "/":
                runs = [Run(watched.folder) for watched in self.server.runs]
                self._answer(HTTPStatus.OK, "text/html", live_page(runs))
            elif asked.path == "/data":
                self._answer(HTTPStatus.OK, "application/json", self._news(parse_qs(asked.query)))
            else:
                self._answer(HTTPStatus.NOT_FOUND, "text/plain", "not here\n")
        except DialoomError as wrong:
            self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, "application/json", json.dumps({"error": clean(str(wrong))}))

    def _news(self, query: dict[str, list[str]]) -> str:
        try:
            run, since = (int(query[name][0]) for name in ("run", "since"))
            watched = self.server.runs[run]
        except (KeyError, ValueError, IndexError):
            raise StoreError(f"{query!r:.200}: expected the number of a run and a version") from None
        return watched.since(since)

    def _answer(self, status: HTTPStatus, kind: str, text: str) -> None:
        data = text.encode()
        self.send_response(status)
        for name, value in {
                "Content-Type": f"{kind}; charset=utf-8", "Content-Length": str(len(data)), "Cache-Control": "no-store",
                "Content-Security-Policy": f"{policy(static('viewer.css'), static('viewer.js'), live=True)}; "
                                           "frame-ancestors 'none'",
                "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
                "Cross-Origin-Resource-Policy": "same-origin", "Cross-Origin-Opener-Policy": "same-origin"}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing of single requests: the terminal is the user's."""
