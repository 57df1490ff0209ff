"""Ctrl-C once and twice, and SIGTERM, given to the command line's own `main`."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.faults.compare import difference
from tests.faults.server import said


def stopped(forks, out, number, *faults):
    """Signal a run once it has begun to write; its status and how long it took to end."""
    process = forks.start("personas", out, "command_line", "slow:0.2", *faults)
    while not (out / "growth.jsonl").exists():
        time.sleep(0.02)
    os.kill(process, number)
    begun = time.monotonic()
    status = forks.wait(process)
    return status, time.monotonic() - begun


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_one_signal_stops_in_good_order_with_its_code_and_the_same_command_continues(number, code, forks, whole,
                                                                                     tmp_path):
    status, seconds = stopped(forks, tmp_path / "run", number)
    assert status == code and seconds < 10
    assert "the same command continues" in said(tmp_path / "run") and "Traceback" not in said(tmp_path / "run")
    assert forks.run("personas", tmp_path / "run", "command_line")[0] == 0
    assert forks.run("personas", tmp_path / "again", "command_line")[0] == 0
    assert difference(tmp_path / "again", tmp_path / "run").none


def test_a_second_ctrl_c_ends_a_run_that_hangs_while_it_stops(forks, tmp_path):
    out, sign = tmp_path / "run", tmp_path / "hangs"
    process = forks.start("personas", out, "command_line", "slow:0.2", f"hanging_close:{sign}")
    while not (out / "growth.jsonl").exists():
        time.sleep(0.02)
    os.kill(process, signal.SIGINT)
    while not sign.exists():
        time.sleep(0.02)
    begun = time.monotonic()
    os.kill(process, signal.SIGINT)
    assert forks.wait(process) == 130 and time.monotonic() - begun < 5
    assert "Traceback" not in said(out)
    assert forks.run("personas", out, "command_line")[0] == 0
