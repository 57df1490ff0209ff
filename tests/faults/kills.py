"""kill -9 at random points of whole recipes: each is run again and has to end like one that was never disturbed.

    python -m tests.faults.kills --kills 200                  # scripted models, every recipe in turn
    python -m tests.faults.kills --models pocket --kills 20   # the embedded models, training included

A trial is a fresh folder, one to three kills, and a last run that is left alone. The first trials of each recipe kill
it once in every stage; after that two kills in three hit a moment drawn evenly from all stages: before a write, an
fsync, a rename, a model's call, or in the middle of a write; the third comes from outside at any time. Every run is a
fork of this process, so nothing is imported twice.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a fork keeps no threads
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from tests.faults.bomb import Bomb
from tests.faults.compare import difference

Run = Callable[[Path], "int | None"]
MOST_KILLS = 3  # of one trial
BATCH = 4  # replies, or dialogues, that a scripted run has in flight: small, so that losing a batch is not losing all
IN_FLIGHT = {"aloe": 2 * BATCH, "personas": 6}
"""Calls of models that are lost with a batch, where it is not one for each of `BATCH`: two candidates for each turn of
ALOE, a round of three and its repairs in growing personas."""


@dataclass
class Tally:
    """What came of all trials; `as_json` is what tests read, `as_table` what the documentation shows.

    Attributes:
        kills: by recipe and stage; `kinds`: by what was about to happen.
        missed: recipes with stages in which no kill struck.
        again: by recipe, the most calls of models that a trial's kills have cost each: those of all restarts beyond an
            undisturbed run's.
        beyond: each trial whose kills have cost more than what was in flight.
        wrong: each trial that ended otherwise.
    """

    trials: int = 0
    kills: Counter[tuple[str, str]] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    missed: list[str] = field(default_factory=list)
    again: dict[str, float] = field(default_factory=dict)
    beyond: list[str] = field(default_factory=list)
    lost: int = 0
    extra: int = 0
    repeated: int = 0
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def as_json(self) -> str:
        """One object."""
        return json.dumps({"kills": self.kills.total(), "trials": self.trials, "rows_lost": self.lost,
                           "rows_extra": self.extra, "turns_repeated": self.repeated, "wrong": self.wrong,
                           "missed": self.missed, "calls_again": self.again, "beyond": self.beyond,
                           "seconds": round(self.seconds), "kinds": dict(self.kinds),
                           "stages": {" ".join(place): count for place, count in self.kills.items()}}, indent=1)

    def as_table(self) -> str:
        """Stages and their kills, a line for each recipe, in Markdown."""
        lines = ["| recipe | kills by stage | calls again for a kill, at most |", "|---|---|---|"]
        for recipe in dict.fromkeys(name for name, _ in self.kills):
            stages = ", ".join(f"{stage} {count}" for (name, stage), count in self.kills.items() if name == recipe)
            lines.append(f"| {recipe} | {stages} | {self.again.get(recipe, 0):g} |")
        return "\n".join(lines)


@dataclass
class Reference:
    """An undisturbed run: its folder, how long it took, what it did in which stage, and how often a model was called.

    Attributes:
        todo: stages that no kill has hit yet; `missed`: those at which one was aimed in vain.
    """

    folder: Path
    seconds: float
    events: list[tuple[str, str]]
    todo: list[str] = field(default_factory=list)
    missed: Counter[str] = field(default_factory=Counter)

    @property
    def stages(self) -> list[str]:
        """In order; "" is what happens between them."""
        return sorted(dict.fromkeys(stage for _, stage in self.events), key="".__eq__)

    @property
    def calls(self) -> int:
        """Of models."""
        return sum(what == "model" for what, _ in self.events)

    def aims(self, count: int) -> list[str]:
        """The next stages to hit in one trial, in order; one that was missed twice is left."""
        some = [stage for stage in self.todo if self.missed[stage] < 2][:count]
        return sorted(some, key=self.stages.index)

    def in_flight(self, name: str, stage: str) -> int:
        """Calls that a kill in a stage may cost; PBT's evaluations, a training's too, are held whole: all of them."""
        if name == "pbt" and stage.startswith(("eval-", "train-")):
            return self.events.count(("model", stage))
        return IN_FLIGHT.get(name, BATCH)

    def moment(self, rng: random.Random) -> int:
        """An event of an evenly drawn stage."""
        stage = rng.choice(sorted(self.stages))
        return rng.choice([at for at, (_, name) in enumerate(self.events) if name == stage])

    def within(self, rng: random.Random, stage: str) -> int:
        """An event of a stage, counted from the stage's first."""
        return rng.randrange(sum(name == stage for _, name in self.events))


def fork(run: Run, out: Path, prepare: Callable[[Bomb], None], bomb: Bomb,
         patience: float | None = None) -> int:
    """Run in a process of its own and return its exit status; a negative number is a signal's.

    Args:
        prepare: called first in there, puts doubles in place.
        patience: kill it after so many seconds; None: leave it alone.
    """
    log = out.parent / f"{out.name}.log"
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with log.open("a") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            prepare(bomb)
            run(out)
            (out.parent / f"{out.name}.events").write_text(json.dumps(bomb.events))
            status = 0
        except BaseException:  # noqa: BLE001 - whatever it was, the parent is told, and nothing else runs in here
            traceback.print_exc()
        finally:
            os._exit(status)
    if patience is not None:
        time.sleep(patience)
        os.kill(child, signal.SIGKILL)  # at worst a process that has ended and waits to be asked
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def reference_of(name: str, run: Run, where: Path, prepare: Callable[[Bomb], None], seed: int) -> Reference:
    """Let a recipe run undisturbed."""
    folder, start = where / f"{name}-whole", time.monotonic()
    if fork(run, folder, prepare, Bomb()):
        raise SystemExit(f"{name} fails undisturbed:\n{(where / f'{name}-whole.log').read_text()[-4000:]}")
    events = [tuple(event) for event in json.loads((where / f"{name}-whole.events").read_text())]
    found = Reference(folder, time.monotonic() - start, events)
    found.todo = random.Random(f"{seed}/{name}").sample(found.stages, len(found.stages))
    return found


def trial(name: str, run: Run, whole: Reference, where: Path, prepare: Callable[[Bomb], None], *,
          rng: random.Random, tally: Tally, kills: int) -> None:
    """Kill one run up to `kills` times, let it end, and hold it against the undisturbed one."""
    out, asked, struck = where / f"{name}-{tally.trials}", where / f"{name}-{tally.trials}.calls", list[str]()
    for aim in (*whole.aims(kills), *[None] * kills)[:kills]:
        status, stage = _kill(name, aim, (run, out, prepare), whole, rng=rng, tally=tally, asked=asked)
        struck += [stage] if status == -signal.SIGKILL else []
        if status == 1 or (status == 0 and aim is not None):
            break
    status = fork(run, out, prepare, Bomb(calls=asked))
    found = difference(whole.folder, out) if status == 0 else None
    tally.trials += 1
    if found is not None:
        tally.lost, tally.extra = tally.lost + found.lost, tally.extra + found.extra
        tally.repeated += found.repeated
    if found is None or not found.none:
        told = found.files if found is not None else [(where / f"{out.name}.log").read_text()[-2000:]]
        tally.wrong.append(f"{name}, trial {tally.trials - 1}: {told}")
        return  # its folder stays, to be looked at
    if struck and asked.exists():
        more = asked.stat().st_size - whole.calls
        tally.again[name] = round(max(more / len(struck), tally.again.get(name, 0.0)), 1)
        if more > sum(whole.in_flight(name, stage) for stage in struck):
            tally.beyond.append(f"{name}, trial {tally.trials - 1}: {more} calls again after kills in {struck}")
    shutil.rmtree(out)


def _kill(name: str, aim: str | None, what: tuple[Run, Path, Callable[[Bomb], None]], whole: Reference, *,
          rng: random.Random, tally: Tally, asked: Path) -> tuple[int, str]:
    """One kill, aimed at a stage or at random; counts it if it hit, and returns the exit status and the stage."""
    run, out, prepare = what
    outside = aim is None and rng.random() < 1 / 3
    at = None if outside else whole.moment(rng) if aim is None else whole.within(rng, aim)
    status = fork(run, out, prepare, Bomb(at, rng.random(), aim, asked),
                  rng.uniform(0, whole.seconds) if outside else None)
    if status != -signal.SIGKILL:
        whole.missed[aim or ""] += aim is not None
        return status, ""
    stage = _stage(out, whole) if aim is None else aim
    tally.kills[name, stage or "between"] += 1
    tally.kinds["outside" if outside else "in a stage" if aim is not None else whole.events[at or 0][0]] += 1
    if stage in whole.todo:
        whole.todo.remove(stage)
    return status, stage


def _stage(out: Path, whole: Reference) -> str:
    """The first stage that a killed run has not done."""
    stages = dict.fromkeys(stage for _, stage in whole.events if stage)
    return next((stage for stage in stages if not (out / "stages" / f"{stage}.json").exists()), "after")


def survive(runs: dict[str, Run], prepare: Callable[[Bomb], None], *, kills: int, seed: int,
            where: Path) -> Tally:
    """Kill the runs in turn until so many kills have been survived."""
    start, rng, tally = time.monotonic(), random.Random(seed), Tally()
    wholes = {name: reference_of(name, run, where, prepare, seed) for name, run in runs.items()}
    most = max(1, min(MOST_KILLS, kills // len(runs)))  # of one trial, so that every recipe is reached
    while tally.kills.total() < kills and tally.trials < 3 * kills:
        some = [name for name, whole in wholes.items() if whole.aims(1)] or list(runs)
        name = some[tally.trials % len(some)]
        trial(name, runs[name], wholes[name], where, prepare, rng=rng, tally=tally,
              kills=min(most if wholes[name].todo else rng.randint(1, most), kills - tally.kills.total()))
    tally.missed = [f"{name} {stage or 'between'}" for name, whole in wholes.items() for stage in whole.todo]
    tally.seconds = time.monotonic() - start
    return tally


def prepare_scripted(bomb: Bomb) -> None:
    """Scripted models and counting trainings; what they are asked is an event, too."""
    from tests.faults import doubles, inject, runs

    doubles.install(runs.respond, bomb.event)
    inject.batch(str(BATCH))
    runs.EVENT = bomb.event
    bomb.plant()


def prepare_pocket(bomb: Bomb) -> None:
    """The models as they are."""
    bomb.plant()


def main() -> int:
    """Print the figures; 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--models", choices=("scripted", "pocket"), default="scripted")
    parser.add_argument("--recipes", nargs="+", default=None, help="only these")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="end with a table of stages")
    given = parser.parse_args()
    from tests.faults import runs

    known = runs.SCRIPTED if given.models == "scripted" else runs.POCKET
    some = {name: run for name, run in known.items() if not given.recipes or name in given.recipes}
    prepare = prepare_scripted if given.models == "scripted" else prepare_pocket
    if given.models == "pocket":
        runs.warm_up()
    where = Path(tempfile.mkdtemp(prefix="kills-"))
    tally = survive(some, prepare, kills=given.kills, seed=given.seed, where=where)
    print(tally.as_json())
    if given.table:
        print(tally.as_table())
    if tally.wrong:
        print(f"look into {where}", file=sys.stderr)
    else:
        shutil.rmtree(where)
    assert given.models == "pocket" or "torch" not in sys.modules
    return bool(tally.wrong)


if __name__ == "__main__":
    sys.exit(main())
