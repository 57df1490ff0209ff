"""A headless Chromium to look at the viewer with: for the tests, the screenshots and the measurements."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def find_chromium() -> str | None:
    """Where a Chromium lies: `DIALOOM_CHROMIUM`, on the PATH, or where Playwright keeps its own; None: nowhere."""
    named = os.environ.get("DIALOOM_CHROMIUM")
    if named:
        return named if Path(named).exists() else None
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is not None:
        return found
    kept = Path(os.environ.get("PLAYWRIGHT_BROWSERS_PATH", "~/.cache/ms-playwright")).expanduser()
    return next((str(path) for pattern in ("chromium*/*/chrome", "chromium*/*/*headless*shell")
                 for path in sorted(kept.glob(pattern)) if path.is_file()), None)


@contextmanager
def browser() -> Iterator[Any]:
    """A running Chromium (Playwright's `Browser`), without a window, that sees no network but this machine's."""
    from playwright.sync_api import sync_playwright

    path = find_chromium()
    if path is None:
        raise FileNotFoundError("no Chromium found; install one (`apt-get install chromium`), or name one with "
                                "DIALOOM_CHROMIUM=/path")
    with sync_playwright() as playwright:
        arguments = ["--disable-gpu", "--proxy-server=http://127.0.0.1:9", "--proxy-bypass-list=<local>;127.0.0.1"]
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            arguments.append("--no-sandbox")   # Chromium's own demand of root
        running = playwright.chromium.launch(executable_path=path, args=arguments)
        try:
            yield running
        finally:
            running.close()
