"""The same seed gives the same trees and metrics: under any clock, hash seed and batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.compare import difference

ALL = ["ditto", "personas", *(pytest.param(name, marks=pytest.mark.slow) for name in ("pbt", "aloe", "ideas"))]
RUN = """
import sys
from pathlib import Path
from tests.faults import doubles, runs
doubles.install(runs.respond)
runs.SCRIPTED[sys.argv[1]](Path(sys.argv[2]))
"""


@pytest.mark.parametrize("name", ALL)
def test_a_clock_that_jumps_by_a_day_either_way_changes_nothing(name, forks, whole, tmp_path):
    assert forks.run(name, tmp_path / "run", "clock:1")[0] == 0
    assert difference(whole(name), tmp_path / "run").none


@pytest.mark.parametrize("name", [ALL[0], *ALL[2:]])
@pytest.mark.parametrize("size", [1, 3])
def test_any_batch_size_gives_the_same_run(name, size, forks, whole, tmp_path):
    assert forks.run(name, tmp_path / "run", f"batch:{size}")[0] == 0
    told = difference(whole(name), tmp_path / "run")
    assert set(told.files) <= {"config.yaml"} and not (told.lost or told.extra or told.repeated)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pbt", "aloe", "ideas"])
def test_a_run_that_goes_on_after_each_kill_with_another_batch_size_ends_the_same(name, forks, whole, tmp_path):
    for size, call in ((2, 4), (1, 9), (5, 3)):
        status, said = forks.run(name, tmp_path / "run", f"batch:{size}", f"killed:{call}")
        assert status == -9, said
    assert forks.run(name, tmp_path / "run", "batch:7")[0] == 0
    told = difference(whole(name), tmp_path / "run")
    assert set(told.files) <= {"config.yaml"} and not (told.lost or told.extra or told.repeated)


def test_growing_personas_goes_on_after_each_kill_with_another_batch_size_and_ends_the_same(forks, whole, tmp_path):
    for size, call in ((2, 3), (1, 8), (5, 2)):  # counted in parts of a round, so that a kill hits inside of one
        status, said = forks.run("personas", tmp_path / "run", f"killed:{call}", f"split:{size}")
        assert status == -9, said
    assert forks.run("personas", tmp_path / "run", "split:7")[0] == 0
    assert difference(whole("personas"), tmp_path / "run").none


DAT = """
import sys
from pathlib import Path
from tests.faults import inject, runs
from tests.faults.bomb import Bomb
from tests.faults.kills import fork

def begin(folder, size, **bomb):
    def prepare(bomb):
        inject.batch(size)
        bomb.plant()
    return fork(runs.POCKET["dat"], Path(sys.argv[1]) / folder, prepare, Bomb(**bomb))

runs.warm_up()
assert begin("whole", "1024") == 0
for size, stage, at in (("2", "replies", 5), ("1", "collect-1", 9), ("4", "collect-2", 3), ("3", "eval-planner", 2)):
    assert begin("run", size, at=at, within=stage) == -9, stage
assert begin("run", "5") == 0
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_dat_on_pocket_goes_on_after_each_kill_with_another_batch_size_and_ends_the_same(tmp_path):
    done = subprocess.run([sys.executable, "-c", DAT, str(tmp_path)], cwd=Path(__file__).parents[2],
                          capture_output=True, text=True)
    logs = "".join(path.read_text()[-2000:] for path in tmp_path.glob("*.log"))
    assert done.returncode == 0, done.stderr[-2000:] + logs
    told = difference(tmp_path / "whole", tmp_path / "run")
    assert told.none, told


@pytest.mark.parametrize("name", ALL)
def test_another_order_of_hashes_changes_nothing(name, whole, tmp_path):
    subprocess.run([sys.executable, "-c", RUN, name, str(tmp_path / "run")], check=True, cwd=Path(__file__).parents[2],
                   env={**os.environ, "PYTHONHASHSEED": "4711"})
    assert difference(whole(name), tmp_path / "run").none
