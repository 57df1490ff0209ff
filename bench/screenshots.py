"""The pictures of the docs, taken in a headless Chromium; `make screenshots` takes them all:

    python -m bench.screenshots --demo runs/demo               all, of the demonstration's runs
    python -m bench.screenshots pbt=runs/a two=runs/a,runs/b   some, of other runs; --out FOLDER puts them elsewhere

A name and a run folder (or two, or an HTML file) give the pictures of that name in `SHOTS`; another name and an HTML
file give one picture. Names that are not given keep the pictures they have.
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
DEMO: Mapping[str, tuple[str, ...]] = {
    "pbt": ("pbt",), "two": ("pbt", "pbt-seed-2"), "ideas": ("ideas",), "aloe": ("aloe",), "dat": ("dat",),
    "dat-redteam": ("dat-redteam",), "audit": ("audit.html",), "cross": ("summary.html",)}
"""What each name is taken of, below the folder of `dialoom demo`; pbt-seed-2 and audit.html are `make screenshots`'."""


def _first(page: Any) -> None:
    """Show the first dialogue of the list."""
    page.locator(".row").first.click()
    page.wait_for_selector(".turn.current, .turn[tabindex='0']")


def _search(text: str) -> Callable[[Any], None]:
    def act(page: Any) -> None:
        page.fill("#search", text)
        page.wait_for_selector(".row .chip.hit")
        _first(page)
        page.click("summary:has-text('Private')")
    return act


def _turn(css: str, part: str = "", *, in_full: bool = True) -> Callable[[Any], None]:
    """Show the first dialogue (of a part of the run), and of it the first turn that `css` finds."""
    def act(page: Any) -> None:
        if part:
            page.click("summary:has-text('Filters')")
            page.select_option(".choices label:has-text('From') select", part)
            page.wait_for_timeout(200)
        _first(page)
        page.locator(css).first.click()
        if in_full:
            page.click("summary:has-text('in full')")
        for one in page.locator("details.brief summary").all():
            one.click()
        page.evaluate("scrollTo(0, 0)")
    return act




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
    "pbt": (Shot("pbt-overview"), Shot("pbt-tree", "#dialogues", act=_first),
            Shot("pbt-brief", "#dialogues", act=_turn(".turn.chosen")),
            Shot("pbt-phone", "#dialogues", 390, 800, act=_first)),
    "ideas": (Shot("ideas-tree", "#dialogues", dark=True, act=_first),),
    "aloe": (Shot("aloe-search", "#dialogues", act=_search("baker Paris")),),
    "dat": (Shot("dat-episode", "#dialogues", act=_turn(".turn:has(.columns-mini)", "evals/planner")),),
    "dat-redteam": (Shot("dat-harden", "#dialogues", height=1220,
                         act=_turn(".turn.chosen", "harden/attacks", in_full=False)),),
    "audit": (Shot("audit", height=1250), Shot("audit-phone", "#batch", 390, 800, dark=True)),
    "two": (Shot("two-dialogues", "#dialogues", 1300, act=_first),),
    "cross": (Shot("cross", "#crossed", 1300),),
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


def asked(arguments: list[str]) -> tuple[dict[str, str], Path]:
    """What is to be taken, by name, and where it goes. Ends the program where that cannot be meant."""
    options = {"--out": str(OUT), "--demo": ""}
    for option in options:
        if option in arguments[:-1]:
            at = arguments.index(option)
            options[option] = arguments[at + 1]
            del arguments[at:at + 2]
    wanted: dict[str, str] = {}
    if options["--demo"]:
        wanted = {name: ",".join(str(Path(options["--demo"]) / one) for one in sources)
                  for name, sources in DEMO.items()}
    wanted |= dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    unknown = [name for name, source in wanted.items() if name not in SHOTS and not source.endswith(".html")]
    missing = [path for source in wanted.values() for path in source.split(",") if not Path(path).exists()]
    if unknown or missing or not wanted:
        sys.exit(f"usage: python -m bench.screenshots [--demo RUNS] [NAME=RUN ...], NAME of {', '.join(SHOTS)}, or "
                 f"NAME=FILE.html{''.join(f'; {path} is not there' for path in missing)}")
    return wanted, Path(options["--out"])


def main(arguments: list[str]) -> None:
    """Take what was asked for."""
    wanted, out = asked(arguments)
    out.mkdir(parents=True, exist_ok=True)
    with browser() as chromium:
        for name, source in wanted.items():
            take(name, source, out, chromium)


if __name__ == "__main__":
    main(sys.argv[1:])
