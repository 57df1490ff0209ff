"""kill -9 at random points of whole recipes: each is run again and has to end like one that was never disturbed.

    python -m tests.faults.kills --kills 200                  # scripted models, every recipe in turn
    python -m tests.faults.kills --models pocket --kills 20   # the embedded models, training included

A trial is a fresh folder, one to three kills, and a last run that is left alone. Two kills in three hit a moment
drawn evenly from all stages: before a write, an fsync, a rename, a model's call, or in the middle of a write; the
third comes from outside at any time. Every run is a fork of this process, so nothing is imported twice.
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


@dataclass
class Tally:
    """What came of all trials; `as_json` is what the documentation quotes."""

    trials: int = 0
    kills: Counter[str] = field(default_factory=Counter)  # by recipe and stage
    kinds: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    extra: int = 0
    repeated: int = 0
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def as_json(self) -> str:
        """One object; `wrong` names each trial that ended otherwise."""
        return json.dumps({"kills": self.kills.total(), "trials": self.trials, "rows_lost": self.lost,
                           "rows_extra": self.extra, "turns_repeated": self.repeated, "wrong": self.wrong,
                           "seconds": round(self.seconds), "kinds": dict(self.kinds), "stages": dict(self.kills)},
                          indent=1)


@dataclass
class Reference:
    """An undisturbed run: its folder, how long it took, and what it did in which stage."""

    folder: Path
    seconds: float
    events: list[tuple[str, str]]

    def moment(self, rng: random.Random) -> int:
        """An event of an evenly drawn stage."""
        stage = rng.choice(sorted({stage for _, stage in self.events}))
        return rng.choice([at for at, (_, name) in enumerate(self.events) if name == stage])


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


def reference_of(name: str, run: Run, where: Path, prepare: Callable[[Bomb], None]) -> Reference:
    """Let a recipe run undisturbed."""
    folder, start = where / f"{name}-whole", time.monotonic()
    if fork(run, folder, prepare, Bomb()):
        raise SystemExit(f"{name} fails undisturbed:\n{(where / f'{name}-whole.log').read_text()[-4000:]}")
    events = [tuple(event) for event in json.loads((where / f"{name}-whole.events").read_text())]
    return Reference(folder, time.monotonic() - start, events)


def trial(name: str, run: Run, whole: Reference, where: Path, prepare: Callable[[Bomb], None], *,
          rng: random.Random, tally: Tally, kills: int) -> None:
    """Kill one run up to `kills` times, let it end, and hold it against the undisturbed one."""
    out = where / f"{name}-{tally.trials}"
    for _ in range(kills):
        outside = rng.random() < 1 / 3
        bomb = Bomb(None if outside else whole.moment(rng), rng.random())
        status = fork(run, out, prepare, bomb, rng.uniform(0, whole.seconds) if outside else None)
        if status == 1:
            break
        if status == -signal.SIGKILL:
            tally.kills[f"{name} {_stage(out, whole)}"] += 1
            tally.kinds["outside" if outside else whole.events[bomb.at or 0][0]] += 1
    status = fork(run, out, prepare, Bomb())
    found = difference(whole.folder, out) if status == 0 else None
    tally.trials += 1
    if found is not None:
        tally.lost, tally.extra = tally.lost + found.lost, tally.extra + found.extra
        tally.repeated += found.repeated
    if found is None or not found.none:
        told = found.files if found is not None else [(where / f"{out.name}.log").read_text()[-2000:]]
        tally.wrong.append(f"{name}, trial {tally.trials - 1}: {told}")
        return  # its folder stays, to be looked at
    shutil.rmtree(out)


def _stage(out: Path, whole: Reference) -> str:
    """The first stage that a killed run has not done."""
    stages = dict.fromkeys(stage for _, stage in whole.events if stage)
    return next((stage for stage in stages if not (out / "stages" / f"{stage}.json").exists()), "after")


def survive(runs: dict[str, Run], prepare: Callable[[Bomb], None], *, kills: int, seed: int,
            where: Path) -> Tally:
    """Kill the runs in turn until so many kills have been survived."""
    start, rng, tally = time.monotonic(), random.Random(seed), Tally()
    wholes = {name: reference_of(name, run, where, prepare) for name, run in runs.items()}
    while tally.kills.total() < kills and tally.trials < 3 * kills:
        name = list(runs)[tally.trials % len(runs)]
        trial(name, runs[name], wholes[name], where, prepare, rng=rng, tally=tally,
              kills=min(rng.randint(1, MOST_KILLS), kills - tally.kills.total()))
    tally.seconds = time.monotonic() - start
    return tally


def prepare_scripted(bomb: Bomb) -> None:
    """Scripted models and counting trainings; what they are asked is an event, too."""
    from tests.faults import doubles, runs

    doubles.install(runs.respond, bomb.event)
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
    if tally.wrong:
        print(f"look into {where}", file=sys.stderr)
    else:
        shutil.rmtree(where)
    assert given.models == "pocket" or "torch" not in sys.modules
    return bool(tally.wrong)


if __name__ == "__main__":
    sys.exit(main())
