"""`dialoom demo`: every recipe on the pocket models, then one summary and the table of every model by every evaluation.

Each recipe is its own process with its own run folder, so a demonstration that was stopped goes on where it was, and
two of them share two processors. What is shown while they run is read from their folders.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dialoom.errors import DialoomError
from dialoom.progress import duration

if TYPE_CHECKING:
    from rich.table import Table

    from dialoom.scorecard import Card, Subject

Log = Callable[[str], None]
POLL = 1.0  # seconds between two looks at the folders
ITEMS = 30  # of each cell of the cross table
LINE = 20.0  # seconds between two plain lines
TABLE = 0.8  # minutes that the cross table takes
FEWER = ("--test-scenes", "100", "--constant-scenes", "30")  # of DAT's: what is learned stays as it is


@dataclass(frozen=True)
class Part:
    """One recipe of the demonstration.

    Attributes:
        name: of its folder; a recipe may be there twice.
        flags: its command line besides seed and folder.
        stages: how many stage markers a finished run has.
        minutes: how long it takes on one core of the machine the tables were made on; only weighs the time left.
        headlines: what the summary tells: (eval, metric).
    """

    name: str
    recipe: str
    title: str
    flags: tuple[str, ...]
    stages: int
    minutes: float
    headlines: tuple[tuple[str, str], ...]


PARTS: tuple[Part, ...] = (
    Part("pbt", "pbt", "PBT: when to give in and when to hold", (), 13, 3.0, (("flipflop", "overall"),)),
    Part("aloe", "aloe", "ALOE: adapt to who is talking", (), 13, 3.0, (("alignment", "avg"),)),
    Part("ideas", "ideas", "IDEAS: users induced from real dialogues", (), 21, 2.0, (("chat", "quality"),)),
    Part("ditto", "ditto", "DITTO: write like one person", ("--max-authors", "3"), 30, 4.0, (("winrate", "micro"),)),
    Part("dat", "dat", "DAT: steer a frozen model toward its goal", FEWER, 17, 3.5, (("social", "reward"),)),
    Part("dat-redteam", "dat", "DAT: red-teaming, to harden a guard", ("--scenes", "redteam", "--harden", *FEWER), 16,
         4.0, (("redteam", "success"), ("ordinary", "kept"))),
)


@dataclass
class Running:
    """A part while it runs."""

    part: Part
    folder: Path
    process: subprocess.Popen[bytes]
    began: float = field(default_factory=time.monotonic)
    read: dict[Path, int] = field(default_factory=dict)
    trees: int = 0
    turns: int = 0
    rate: float = 0.0

    def look(self, seconds: float) -> None:
        """Count what its tree logs hold by now; `seconds` since the last look."""
        before = self.turns
        for path in self.folder.rglob("*trees.jsonl"):
            with path.open("rb") as file:
                file.seek(self.read.get(path, 0))
                fresh = file.read()
            whole = fresh.rfind(b"\n") + 1
            self.read[path] = self.read.get(path, 0) + whole
            self.trees += fresh.count(b'{"kind":"tree"', 0, whole)
            self.turns += fresh.count(b'{"kind":"turn"', 0, whole)
        self.rate = (self.turns - before) / max(seconds, 1e-9)

    @property
    def stages(self) -> int:
        """Stages done."""
        return min(len(list((self.folder / "stages").glob("*.json"))), self.part.stages)

    @property
    def said(self) -> str:
        """The last line of its log."""
        lines = log_of(self.folder).read_bytes()[-400:].decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


def log_of(folder: Path) -> Path:
    """Where a part's output goes: beside its folder."""
    return folder.parent / f"{folder.name}.log"


def demo(out: Path, *, seed: int = 1, jobs: int = 0, parts: Sequence[Part] = PARTS, items: int = ITEMS,
         log: Log = print) -> None:
    """Run all parts, then write `summary.md`, `summary.html` and `cross.json` into `out` and print the summary.

    Args:
        jobs: how many at a time; 0: two where there are two processors.
        items: of each cell of the cross table; 0: all.
    Raises: DialoomError: if a part fails; says where its log lies. The others are finished first.
    """
    count = jobs or min(2, os.cpu_count() or 1)
    began = time.monotonic()
    total = sum(part.minutes for part in parts) / count
    log(f"{len(parts)} recipes on the embedded models, {count} at a time: about {total + TABLE:.0f} minutes; "
        f"everything goes into {out}/")
    failed = run_parts(out, parts, seed, count, log)
    if failed:
        raise DialoomError("; ".join(f"{part.name} failed, see {log_of(out / part.name)}" for part in failed)
                           + "; the same command continues")
    card = cross_table(out, parts, seed, items, log)
    from dialoom.store import write_whole

    write_whole(out / "summary.md", summary(out, parts, card))
    write_whole(out / "summary.html", summary_html(out, parts, card))
    write_whole(out / "cross.json", json.dumps([row.to_json() for row in card.rows], indent=1) + "\n")
    log(plain_summary(out, parts, card))
    log(f"done in {duration(time.monotonic() - began)}; the same to look at, and from there each recipe's dialogues: "
        f"{out}/summary.html")


def run_parts(out: Path, parts: Sequence[Part], seed: int, jobs: int, log: Log) -> list[Part]:
    """Run the parts, `jobs` at a time, showing how far they are; those that failed. Ctrl-C stops all of them."""
    waiting, running, failed = list(parts), list[Running](), list[Part]()
    out.mkdir(parents=True, exist_ok=True)
    with overview(jobs) as show:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    running.append(start(waiting.pop(0), out, seed))
                time.sleep(POLL)
                for one in running:
                    one.look(POLL)
                show(running, waiting)
                for one in [one for one in running if one.process.poll() is not None]:
                    running.remove(one)
                    if one.process.returncode:
                        failed.append(one.part)
                    how = "failed after" if one.process.returncode else "done in"
                    log(f"{one.part.title}: {how} {duration(time.monotonic() - one.began)}")
        finally:
            for one in running:
                one.process.terminate()
            for one in running:
                one.process.wait()
    return failed


def start(part: Part, out: Path, seed: int) -> Running:
    """Begin a part, or let it go on."""
    folder = out / part.name
    command = [sys.executable, "-m", "dialoom", part.recipe, *part.flags, "--seed", str(seed), "--out", str(folder)]
    with log_of(folder).open("ab") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return Running(part, folder, process)


# ------------------------------------------------------------------------------------------------ while it runs


def seconds_left(running: Sequence[Running], waiting: Sequence[Part], jobs: int) -> float:
    """What is left by the parts' usual times and their stages done, and for the table at the end."""
    left = [part.minutes for part in waiting]
    left += [one.part.minutes * (1 - one.stages / one.part.stages) for one in running]
    return 60 * (max(sum(left) / jobs, *left, 0.0) + TABLE)


@contextmanager
def overview(jobs: int) -> Iterator[Callable[[Sequence[Running], Sequence[Part]], None]]:
    """Shows the running parts: a table on a terminal, plain lines now and then elsewhere; on stderr."""
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        from rich.console import Console
        from rich.live import Live

        with Live(console=Console(stderr=True), transient=True, refresh_per_second=2) as live:
            yield lambda running, waiting: live.update(_table(running, seconds_left(running, waiting, jobs)))
        return
    last = time.monotonic()

    def lines(running: Sequence[Running], waiting: Sequence[Part]) -> None:
        nonlocal last
        if time.monotonic() - last < LINE:
            return
        last = time.monotonic()
        for one in running:
            print("  " + ", ".join(_cells(one)), file=sys.stderr, flush=True)
        print(f"  about {duration(seconds_left(running, waiting, jobs))} left", file=sys.stderr, flush=True)
    yield lines


def _cells(one: Running) -> list[str]:
    return [one.part.name, f"{one.stages} of {one.part.stages} stages", f"{one.trees:,} dialogues",
            f"{one.turns:,} turns", f"{one.rate:.0f} turns/s", one.said[:60]]


def _table(running: Sequence[Running], left: float) -> Table:
    from rich.table import Table
    from rich.text import Text

    found = Table(box=None, show_header=False, caption=f"about {duration(left)} left", caption_justify="left")
    for one in running:
        found.add_row(*(Text(cell) for cell in _cells(one)))
    return found


# ------------------------------------------------------------------------------------------------ what was found


def trained(out: Path, parts: Sequence[Part]) -> Iterator[Subject]:
    """What each part trained; of DITTO its first author, of DAT the model under its planner, or both its guards."""
    from dialoom.models.load import load_folder, load_model
    from dialoom.models.steering import load_steered
    from dialoom.recipes.pocket_guard import load_guard
    from dialoom.scorecard import Subject

    for part in parts:
        folder = out / part.name
        if part.recipe == "ditto":
            first = next(iter(sorted((folder / "authors").glob("*/adapter"))), folder / "adapter")
            yield Subject(part.name, load_model(f"run:{first}"))
        elif "--harden" in part.flags:
            yield Subject("guard", load_guard("auto"), guard=True)
            yield Subject("hardened", load_folder(folder / "harden" / "guard", name="hardened"), guard=True)
        elif part.recipe == "dat":
            yield Subject(part.name, load_steered("pocket", folder))
        else:
            yield Subject(part.name, load_model(f"run:{folder}"))


def author_of(out: Path) -> str:
    """Whose texts the DITTO model on the table learned; "" where there is none."""
    first = next(iter(sorted((out / "ditto" / "stages").glob("adapter-*.json"))), None)
    return first.stem.removeprefix("adapter-") if first else ""


def cross_table(out: Path, parts: Sequence[Part], seed: int, items: int, log: Log) -> Card:
    """Every trained model by every evaluation, the untrained one above them."""
    from dialoom.models.load import load_model
    from dialoom.scorecard import Setting, Subject, measure

    log("every model by every evaluation ...")
    base = load_model("pocket")
    setting = Setting(base, items=items, author=author_of(out), seed=seed)
    return measure([Subject("base", base), *trained(out, parts)], setting)


def summary(out: Path, parts: Sequence[Part], card: Card) -> str:
    """Each method against its baselines, and the cross table, in Markdown."""
    from dialoom.report.table import results_table
    from dialoom.scorecard import COLUMNS, missing_cells, table

    lines = [f"# {_title(parts)}", ""]
    for part in parts:
        lines += [f"## {part.title}", "", results_table(headline_rows(out, part)), ""]
    lines += ["## Every model by every evaluation", "", table(card), "",
              *(f"- {why}" for why in missing_cells(card)), "",
              "Rows are models, columns evaluations with their 95 % intervals over items; arrows say which way is "
              "better. " + "; ".join(f"{column.title}: {column.about}" for column in COLUMNS) + "."]
    return "\n".join(lines) + "\n"


def plain_summary(out: Path, parts: Sequence[Part], card: Card) -> str:
    """The same for a terminal, the cross table without its intervals."""
    from dialoom.report.table import results_table
    from dialoom.scorecard import plain_table

    found = [f"{part.title}\n\n{results_table(headline_rows(out, part), markdown=False)}" for part in parts]
    return "\n".join(["", *found, "Every model by every evaluation", "", plain_table(card)])


def summary_html(out: Path, parts: Sequence[Part], card: Card) -> str:
    """The same as one page, with a way to the page of each part."""
    from dialoom.report.summary import Found, summary_page
    from dialoom.report.table import grids
    from dialoom.scorecard import matrix

    found = [Found(part.title, grids(headline_rows(out, part)), f"{part.name}/report.html") for part in parts]
    return summary_page(_title(parts), found, matrix(card))


def headline_rows(out: Path, part: Part) -> list[Mapping[str, Any]]:
    """What the summary tells of a part's results."""
    from dialoom.report.read import read_results

    rows = read_results(out / part.name / "results.json")
    return [row for row in rows if (row["eval"], row["metric"]) in part.headlines]


def _title(parts: Sequence[Part]) -> str:
    return "Five papers on a pocket model" if len({part.recipe for part in parts}) == 5 else "The demonstration"
