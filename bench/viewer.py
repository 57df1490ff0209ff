"""How long the viewer takes with a large run:  python -m bench.viewer [TURNS]

Makes a run of that many turns (50,000) out of pocket's facts, writes it as one page and serves it live, and measures
both in a headless Chromium: the first paint, the time until dialogues can be searched, and from a key to the list that
answers it. Prints a table; writes nothing but a temporary folder.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from bench.browser import browser
from dialoom.dialogue import DialogueTree, Scenario, Turn
from dialoom.report import write_page
from dialoom.store import TreeLog, write_rows
from dialoom.view import serve

TREE = 16         # turns of a tree: two first answers, two levels of replies
QUERIES = ("lima", "records show", '"stay with"', "zzz", "the")
TEXT = ("the records show clearly that I stay with my answer because every source I know points there and nobody has "
        "told me why it should be otherwise so I would say it is Lima or Oslo Quito Cairo Accra Dakar")
WORDS = TEXT.split()
LATENCY = """(query) => new Promise((done) => {
    const box = document.getElementById("search");
    const start = performance.now();
    box.value = query;
    box.dispatchEvent(new InputEvent("input", { bubbles: true }));
    requestAnimationFrame(() => setTimeout(() => done(performance.now() - start)));
})"""


def large_run(folder: Path, turns: int) -> Path:
    """A run folder of about that many turns of 5 to 40 words, in trees as PBT makes them, with pairs."""
    rng = random.Random(0)
    trees, pairs = [], []
    for number in range(turns // TREE):
        tree = DialogueTree(Scenario(f"scene-{number}", f"Question {number} about {rng.choice(WORDS)}?"))
        for place in range(TREE):
            parent = None if place < 2 else f"{number}-{(place - 2) // 2}"
            text = " ".join(rng.choices(WORDS, k=rng.randint(5, 40)))
            tree.add(Turn(f"{number}-{place}", parent, "AB"[place.bit_length() % 2], text,
                          {"brief": rng.choice(("accept", "resist")), "answer": "Lima", "model": "pocket"},
                          {"correct": float(place % 2), "value": float(place)}))
        trees.append(tree)
        pairs.append({"tree": tree.id, "chosen_turn": f"{number}-3", "rejected_turn": f"{number}-2", "kind": "resist"})
    with TreeLog(folder / "trees.jsonl") as log:
        for tree in trees:
            log.add_tree(tree)
    write_rows(folder / "pairs.jsonl", pairs)
    return folder


def measured(tab: Any, address: str) -> dict[str, float]:
    """Milliseconds of one visit; a second one, so that the browser itself is warm."""
    for _ in range(2):
        tab.goto("about:blank")
        start = time.perf_counter()
        tab.goto(address)
        tab.wait_for_selector(".row")
        ready = 1000 * (time.perf_counter() - start)
    paint = tab.evaluate("performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? NaN")
    first, *again = [tab.evaluate(LATENCY, query) for query in (*QUERIES, *QUERIES)]
    tab.evaluate("document.querySelector('.switch button:last-child').click()")
    many = [tab.evaluate(LATENCY, query) for query in QUERIES]
    return {"first paint": paint, "dialogues listed": ready, "first search": first,
            "search, median": statistics.median(again + many), "search, longest": max(again + many)}


def main(turns: int = 50_000) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as made, browser() as chromium:
        folder = large_run(Path(made) / "run", turns)
        start = time.perf_counter()
        page = write_page([folder], Path(made) / "page.html", turns)
        written = time.perf_counter() - start
        tab = chromium.new_page(viewport={"width": 1300, "height": 900})
        print(f"{turns:,} turns: page written in {written:.1f} s, {page.stat().st_size / 1e6:.1f} MB "
              f"(log {(folder / 'trees.jsonl').stat().st_size / 1e6:.1f} MB)")
        start = time.perf_counter()
        with serve([folder], port=0) as server:
            print(f"live server ready in {time.perf_counter() - start:.1f} s")
            threading.Thread(target=server.serve_forever, daemon=True).start()
            for name, address in (("file", page.as_uri()), ("live", server.address)):
                told = measured(tab, f"{address}#dialogues")
                print(f"{name}: " + ", ".join(f"{what} {taken:.0f} ms" for what, taken in told.items()))
            server.shutdown()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
