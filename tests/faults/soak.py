"""A soak: a model talks for a long time while one thing in a hundred goes wrong, and every turn is accounted for.

    python -m tests.faults.soak --minutes 20 --turns 50000 --faults 0.01

Round after round a fresh log is grown. Faults are drawn for each turn, a third each: the model fails and the batch is
lost, the judge cannot be read, the log's last line is torn as by a kill. After the first and the last the round goes on
as a new process would: the log is opened again. It ends at so many turns, or minutes, whichever comes first. Every
eighth round is followed by one without faults, whose pace is what the others are held against.

It ends with 1, and says what `failed`, if a turn is not accounted for or a limit of `LIMITS` is passed; what a short
soak, or a script that takes no time, does not show is named as `unjudged`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from dialoom.dialogue import Chat, DialogueTree, Scenario, Turn, content_id
from dialoom.errors import ModelError
from dialoom.judge import RuleJudge, Verdict
from dialoom.models.base import Sampling
from dialoom.models.scripted import ScriptedModel
from dialoom.simulate import ModelSpeaker, grow
from dialoom.store import TreeLog, read_skips, read_trees
from tests.faults.compare import repeated

TREES, DEPTH, BATCH = 128, 8, 64
PACE = 0.01  # seconds a turn: pocket's on one core of a small cloud machine
SAMPLING = Sampling(temperature=0.9, max_new_tokens=32)
CALM = 8  # rounds to one without faults
ENOUGH = 8  # rounds from which a first and a last quarter can be told apart
LIMITS = {"memory": 1.1, "handles": 1.0, "turns_per_second": 0.9, "but_for_lost_batches": 0.9, "log_share": 0.01}
"""The last quarter against the first: memory and handles at most, turns a second at least. These against rounds without
faults, at least; the log's share of the time, at most."""


class Injected(Exception):
    """A log was torn."""


class Soak:
    """What is talked about by whom, what goes wrong, and what came of it.

    Attributes:
        rate: share of turns at which something goes wrong.
        found: counts of what was injected, and of turns by what became of them.
        logging: seconds spent in the log, opening it again aside; `reopening` those; `logging_cpu`: of the first, the
            CPU's.
    """

    def __init__(self, model: Any, rate: float, seed: int) -> None:
        self.model, self.rate, self.rng = model, rate, random.Random(seed)
        self.found: Counter[str] = Counter()
        self.logging = self.logging_cpu = self.reopening = 0.0
        self.judge = RuleJudge("length", self._verdict)

    def _verdict(self, dialogue: Any) -> Verdict | None:
        if int(content_id("unreadable", dialogue.last.id), 16) / 16**16 < self.rate / 3:
            return None
        return Verdict({"length": float(len(dialogue.last.text))})

    def _speaker(self, name: str) -> ModelSpeaker:
        soak = self

        class Failing(ModelSpeaker):
            def speak(self, requests: Sequence[Any]) -> list[str]:
                if soak._strikes(len(requests)):
                    soak.found["model errors"] += 1
                    raise ModelError("injected")
                return super().speak(requests)
        return Failing(name, self.model, SAMPLING)

    def _strikes(self, turns: int) -> bool:
        return self.rng.random() < 1 - (1 - self.rate / 3) ** turns

    def round(self, path: Path, number: int) -> int:
        """Grow one log to its end; returns its turns."""
        scenarios = [Scenario(f"{number}-{at}", f"Let us talk about the number {number * TREES + at}.")
                     for at in range(TREES)]
        while True:
            start = time.perf_counter()
            try:
                with TreeLog(path, log=lambda line: None) as log:
                    held = log.trees()
                    self.reopening += time.perf_counter() - start
                    trees = [held.get(one.id) or DialogueTree(one) for one in scenarios]
                    grow(trees, [self._speaker("A"), self._speaker("B")], max_turns=DEPTH, seed=1, judges=[self.judge],
                         sink=Watched(log, self), batch=BATCH)
                return self._account(path)
            except (Injected, ModelError):
                continue

    def _account(self, path: Path) -> int:
        trees, skips = read_trees(path), read_skips(path)
        silent = Counter(skip.tree for skip in skips if skip.reason == "empty reply")
        unread = sum(skip.reason.startswith("no verdict") for skip in skips)
        turns = [turn for tree in trees.values() for turn in tree]
        scored = sum("length" in turn.scores for turn in turns)
        self.found["turns"] += len(turns)
        self.found["judge unreadable"] += unread
        self.found["empty replies"] += silent.total()
        self.found["trees short for no reason"] += sum(len(tree) < DEPTH and not silent[tree.id]
                                                       for tree in trees.values()) + TREES - len(trees)
        self.found["turns unaccounted"] += abs(len(turns) - scored - unread)
        self.found["turns repeated"] += repeated(path)
        return len(turns)


class Watched:
    """A log whose time is taken, and whose last line is torn now and then."""

    def __init__(self, log: TreeLog, soak: Soak) -> None:
        self.log, self.soak = log, soak

    def _timed(self, write: Callable[..., None], *given: Any) -> None:
        start, begun = time.perf_counter(), time.thread_time()
        write(*given)
        self.soak.logging += time.perf_counter() - start
        self.soak.logging_cpu += time.thread_time() - begun

    def add_tree(self, tree: DialogueTree) -> None:
        self._timed(self.log.add_tree, tree)

    def add_scores(self, tree: DialogueTree, turns: Sequence[Turn]) -> None:
        self._timed(self.log.add_scores, tree, turns)

    def skip(self, tree_id: str, turn_id: str | None, reason: str) -> None:
        self._timed(self.log.skip, tree_id, turn_id, reason)

    def add_turns(self, tree: DialogueTree, turns: Sequence[Turn]) -> None:
        self._timed(self.log.add_turns, tree, turns)
        if self.soak._strikes(len(turns)):
            self.soak.found["torn lines"] += 1
            os.truncate(self.log.path, self.log.path.stat().st_size - self.soak.rng.randrange(1, 60))
            raise Injected


def paced(chat: Chat) -> str:
    """`said`, after as long as pocket takes for a reply."""
    time.sleep(PACE)
    return said(chat)


def said(chat: Chat) -> str:
    """Twenty words."""
    return " ".join(content_id(chat, at)[:5] for at in range(20))


def memory() -> float:
    """MiB of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def soak(model: Any, *, minutes: float, turns: int, faults: float, seed: int = 1) -> dict[str, Any]:
    """Talk until the turns or the minutes are over; figures as plain JSON.

    `memory`, `handles` and `turns_per_second` are medians of the first and of the last quarter of rounds; the very
    first round, in which caches fill, counts to neither. Rounds without faults count to `fault_free` only. A torn line
    stands for a kill, after which half a batch is said again; `but_for_lost_batches` is the pace with these turns, too.
    """
    run, calm, paces, seconds = Soak(model, faults, seed), Soak(model, 0.0, seed), list[float](), 0.0
    rounds, start = list[tuple[float, float, float]](), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak-") as where:
        def one(who: Soak, number: int) -> float:
            path, began = Path(where) / "trees.jsonl", time.monotonic()
            pace = who.round(path, number) / (time.monotonic() - began)
            path.unlink()
            getattr(model, "calls", []).clear()  # a script remembers what it was asked
            return pace

        while run.found["turns"] < turns and time.monotonic() - start < 60 * minutes:
            began = time.monotonic()
            pace = one(run, len(rounds))
            seconds += time.monotonic() - began
            rounds.append((memory(), len(list(Path("/proc/self/fd").iterdir())), pace))
            if len(rounds) % CALM == 0:
                paces.append(one(calm, 10**6 + len(rounds)))
    count, rounds = len(rounds), rounds[1:]
    quarter = max(1, len(rounds) // 4)
    medians = {name: [round(statistics.median(row[at] for row in part), 1)
                      for part in (rounds[:quarter], rounds[-quarter:])]
               for at, name in enumerate(("memory", "handles", "turns_per_second")) if rounds}
    free = {}
    if paces:
        against = statistics.median(pace for *_, pace in rounds) / statistics.median(paces)
        lost = run.found["torn lines"] * BATCH / 2 / run.found["turns"]
        free = {"fault_free": round(statistics.median(paces), 1), "against_fault_free": round(against, 3),
                "but_for_lost_batches": round(against * (1 + lost), 3)}
    return {"model": model.name, "minutes": round((time.monotonic() - start) / 60, 1), "rounds": count, **run.found,
            **medians, **free, "log_share": round(run.logging / seconds, 4),
            "log_cpu_ms_a_turn": round(1000 * run.logging_cpu / run.found["turns"], 3),
            "reopening_share": round(run.reopening / seconds, 4)}


def judged(told: dict[str, Any]) -> tuple[list[str], list[str]]:
    """What of a soak's figures fails, and what they are too few to judge."""
    failed = [name for name in ("trees short for no reason", "turns unaccounted", "turns repeated") if told.get(name)]
    unjudged = []
    for name, limit in LIMITS.items():
        paced = told["model"] != "instant" or name in ("memory", "handles")
        if not paced or name not in told or told["rounds"] < ENOUGH:
            unjudged.append(name)
            continue
        found = told[name]
        value = found if isinstance(found, float) else found[1] / found[0]
        if value < limit if name in ("turns_per_second", "but_for_lost_batches") else value > limit:
            failed.append(name)
    return failed, unjudged


def main() -> int:
    """Print the figures; 1 if a turn is not accounted for, or a limit is passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--turns", type=int, default=50_000)
    parser.add_argument("--faults", type=float, default=0.01)
    parser.add_argument("--model", default="paced",
                        help="a model's name; paced: a script at pocket's pace, instant: one that takes no time")
    given = parser.parse_args()
    from dialoom.models.load import load_model

    scripts = {"paced": paced, "instant": said}
    model = ScriptedModel(scripts[given.model], given.model) if given.model in scripts else load_model(given.model)
    told = soak(model, minutes=given.minutes, turns=given.turns, faults=given.faults)
    failed, unjudged = judged(told)
    print(json.dumps({**told, "failed": failed, "unjudged": unjudged}, indent=1))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
