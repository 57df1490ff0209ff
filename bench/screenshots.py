"""The pictures of the docs, taken in a headless Chromium:

    python -m bench.screenshots pbt=runs/demo/pbt ideas=runs/demo/ideas two=runs/a,runs/b [--out docs/img]

A name and a run folder give the pictures of that name in `SHOTS`; so do a name and an HTML file (an audit's page, say),
or one picture where the name is not there.
Names that are not given keep the pictures they have.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.browser import browser
from dialoom.report import write_page

OUT = Path("docs/img")


def _search(text: str) -> Callable[[Any], None]:
    return lambda page: page.fill("#search", text)


def _most_notes(page: Any) -> None:
    """Show a dialogue whose turns were written under a strategy or an action."""
    page.locator(".row").first.click()
    page.wait_for_selector(".turn")


@dataclass(frozen=True)
class Shot:
    """One picture: which part of the page, how wide and high, light or dark, and what is done there first."""

    name: str
    part: str = ""
    width: int = 1200
    height: int = 900
    dark: bool = False
    act: Callable[[Any], None] = lambda page: None


SHOTS: Mapping[str, tuple[Shot, ...]] = {
    "pbt": (Shot("pbt-overview"), Shot("pbt-tree", "#dialogues", act=_most_notes),
            Shot("pbt-phone", "#dialogues", 390, 800)),
    "ideas": (Shot("ideas-tree", "#dialogues", dark=True, act=_most_notes),),
    "aloe": (Shot("aloe-overview", height=1400), Shot("aloe-search", "#dialogues", act=_search("rabbit"))),
    "ditto": (Shot("ditto-overview"),),
    "dat": (Shot("dat-overview"), Shot("dat-episode", "#dialogues", act=_most_notes)),
    "audit": (Shot("audit", height=1250), Shot("audit-phone", "#batch", 390, 800, dark=True)),
    "two": (Shot("two-overview"), Shot("two-dialogues", "#dialogues", 1300, act=_most_notes)),
}


def take(name: str, source: str, out: Path, chromium: Any) -> None:
    """Take the pictures of one name."""
    with tempfile.TemporaryDirectory() as made:
        if source.endswith(".html"):
            page, shots = Path(source).resolve(), SHOTS.get(name, (Shot(name),))
        else:
            page, shots = write_page(source.split(","), Path(made) / "page.html"), SHOTS[name]
        for shot in shots:
            tab = chromium.new_page(viewport={"width": shot.width, "height": shot.height},
                                    color_scheme="dark" if shot.dark else "light", reduced_motion="reduce")
            tab.goto(page.as_uri() + shot.part)
            if shot.part and not source.endswith(".html"):
                tab.wait_for_selector(".turn")
            shot.act(tab)
            tab.wait_for_timeout(300)
            tab.screenshot(path=out / f"{shot.name}.png")
            print(out / f"{shot.name}.png", flush=True)
            tab.close()


def main(arguments: list[str]) -> None:
    """Take what was asked for."""
    out = OUT
    if "--out" in arguments:
        at = arguments.index("--out")
        out = Path(arguments[at + 1])
        del arguments[at:at + 2]
    wanted = dict(argument.split("=", 1) for argument in arguments)
    unknown = [name for name, source in wanted.items() if name not in SHOTS and not source.endswith(".html")]
    if unknown or not wanted:
        sys.exit(f"usage: python -m bench.screenshots NAME=RUN ..., NAME of {', '.join(SHOTS)}; or NAME=FILE.html")
    out.mkdir(parents=True, exist_ok=True)
    with browser() as chromium:
        for name, source in wanted.items():
            take(name, source, out, chromium)


if __name__ == "__main__":
    main(sys.argv[1:])
