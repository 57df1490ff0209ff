"""kill -9 at random points of every stage of every recipe; what comes of it is that of an undisturbed run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.soak import LIMITS, judged

KILLS = int(os.environ.get("DIALOOM_KILLS", "0"))  # more of them: a longer run


def figures(*arguments: str) -> dict[str, object]:
    done = subprocess.run([sys.executable, "-m", "tests.faults.kills", *arguments], capture_output=True, text=True,
                          cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads(done.stdout)


def nothing_lost(found: dict[str, object], kills: int) -> None:
    assert found["kills"] == kills
    assert (found["rows_lost"], found["rows_extra"], found["turns_repeated"], found["wrong"]) == (0, 0, 0, [])


def test_a_few_kills_of_the_quickest_runs_lose_nothing():
    nothing_lost(figures("--kills", "3", "--recipes", "ditto", "personas"), 3)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_kill_in_every_stage_of_every_scripted_recipe_loses_nothing():
    kills = max(KILLS, 60)
    found = figures("--kills", str(kills))
    nothing_lost(found, kills)
    assert {stage.split()[0] for stage in found["stages"]} == {"pbt", "aloe", "ideas", "personas", "ditto"}
    assert found["missed"] == [] and found["beyond"] == []
    assert set(found["calls_again"]) == {"pbt", "aloe", "ideas", "personas", "ditto"}  # they were counted


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_dozen_kills_of_real_runs_on_pocket_lose_nothing():
    kills = KILLS or 12
    found = figures("--models", "pocket", "--kills", str(kills))
    nothing_lost(found, kills)
    assert {stage.split()[0] for stage in found["stages"]} == {"pbt", "aloe", "ideas", "ditto", "dat", "redteam"}


@pytest.mark.slow
def test_a_short_soak_accounts_for_every_turn():
    done = subprocess.run([sys.executable, "-m", "tests.faults.soak", "--turns", "1", "--faults", "0.05", "--model",
                           "instant"], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["turns"] + found["empty replies"] == 128 * 8
    assert found["model errors"] and found["torn lines"] and found["judge unreadable"]
    assert found["failed"] == [] and found["unjudged"] == list(LIMITS)


FLAT = {"model": "paced", "rounds": 40, "memory": [40.0, 43.0], "handles": [6, 6], "turns_per_second": [80.0, 76.0],
        "fault_free": 81.0, "but_for_lost_batches": 0.97, "log_share": 0.009}


@pytest.mark.parametrize("worse", [
    {"memory": [40.0, 45.0]}, {"handles": [6, 7]}, {"turns_per_second": [80.0, 70.0]}, {"but_for_lost_batches": 0.89},
    {"log_share": 0.011}, {"turns unaccounted": 1}, {"turns repeated": 2}, {"trees short for no reason": 1}])
def test_a_soak_fails_by_the_figure_that_passes_its_limit(worse):
    assert judged(FLAT) == ([], [])
    assert judged({**FLAT, **worse}) == (list(worse), [])
