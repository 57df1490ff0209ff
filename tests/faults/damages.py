"""Files of finished runs on the embedded models damaged one by one: told, made again, or nothing else is changed by it.

    python -m tests.faults.damages --recipes ditto ideas dat --most 100

A file that a run opens when it does its last stages again gets one damage, in turn; weights, which no hook sees
being opened, are emptied or cut. Every run is a fork of this process. Scripted runs have all damages of all files, in
`test_storage`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a fork keeps no threads
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from dialoom.errors import DialoomError
from tests.faults import inject, runs
from tests.faults.bomb import Bomb
from tests.faults.compare import contents, difference
from tests.faults.kills import Run, fork

DAMAGES = {"empty": lambda data: b"", "half": lambda data: data[:len(data) // 2],
           "garbage": lambda data: b"\x93\x00 not this", "other": lambda data: b'{"a": [1]}\n'}
REFUSED = 2


def one_line(run: Run) -> Run:
    """The run as a command line would end it."""
    def ended(out: Path) -> None:
        try:
            run(out)
        except DialoomError as wrong:
            print(f"error: {wrong}", flush=True)
            os._exit(REFUSED)
    return ended


def undone(whole: Path, out: Path) -> Path:
    """A copy of a run whose last stages are to be done again over what they wrote."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(whole, out)
    order = sorted((whole / "stages").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    for marker in order[len(order) // 2:]:
        (out / "stages" / marker.name).unlink()
    return out


def damaged(run: Run, whole: Path, file: str, damage: str, told: Counter[str]) -> str:
    """What is wrong with a run that goes on after a damage; "" if nothing is."""
    out = undone(whole, whole.parent / "run")
    if not (out / file).exists():
        return ""
    (out / file).write_bytes(DAMAGES[damage]((out / file).read_bytes()))
    log = out.parent / "run.log"
    log.unlink(missing_ok=True)
    status = fork(run, out, lambda bomb: None, Bomb())
    said = log.read_text(errors="replace")
    changed = difference(whole, out).files if status == 0 else []
    named = any(name in said for name in (Path(file).name, str((out / file).parent)))
    beside = set(changed) <= {file, f"{file}.bad"}
    told["refused" if status else "nothing else changed" if beside else "told"] += 1
    if "Traceback" not in said and status in (0, REFUSED) and (named or (status == 0 and beside)):
        return ""
    return f"{file}, {damage}: status {status}, changed {changed}: {said[-800:]}"


def check(run: Run, where: Path, most: int, told: Counter[str]) -> list[str]:
    """Damage `most` files of one recipe's run, evenly drawn; what is wrong."""
    whole, opened = where / "whole", where / "opened"
    if fork(run, whole, lambda bomb: None, Bomb()):
        raise SystemExit(f"fails undisturbed:\n{(where / 'whole.log').read_text()[-3000:]}")
    out = undone(whole, where / "run")
    assert fork(run, out, lambda bomb: inject.opened(str(opened)), Bomb()) == 0
    seen = {str(Path(line).relative_to(out)) for line in opened.read_text().splitlines() if line.startswith(f"{out}/")}
    files = sorted(file for file in (*contents(whole), "env.json") if file in seen or file.endswith(".safetensors"))
    kinds, files = list(DAMAGES), files[::max(1, -(-len(files) // most))]
    return [wrong for at, file in enumerate(files)
            if (wrong := damaged(run, whole, file, kinds[at % (2 if file.endswith(".safetensors") else 4)], told))]


def main() -> int:
    """Print what came of it; 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=["ditto", "ideas", "dat"])
    parser.add_argument("--most", type=int, default=20, help="files of each recipe")
    given = parser.parse_args()
    runs.warm_up()
    found, wrong = {}, []
    for name in given.recipes:
        where, told = Path(tempfile.mkdtemp(prefix=f"damages-{name}-")), Counter[str]()
        wrong += [f"{name}: {one}" for one in check(one_line(runs.POCKET[name]), where, given.most, told)]
        found[name] = dict(told)
        shutil.rmtree(where)
    print(json.dumps({"runs": found, "wrong": wrong}, indent=1))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
