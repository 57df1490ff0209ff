"""The table of exit codes: each code is produced, and nothing else than the table says."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dialoom import cli
from dialoom.commands import COMMANDS
from dialoom.errors import BudgetError, ConfigError, DataError, EndpointError, ModelError, StoreError, TrainingError

PAGE = Path(__file__).parent.parent / "docs" / "exit-codes.md"


def table() -> dict[int, str]:
    """Code and row of the page's table."""
    rows = re.findall(r"^\| (\d+) \|(.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return {int(code): row for code, row in rows}


def interrupted() -> None:
    raise KeyboardInterrupt


def terminated() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    signal.pause()


def refused(error: Exception):
    def refusing() -> None:
        raise error

    return refusing


PRODUCED = [
    (0, lambda: None, ""),
    (2, refused(ConfigError("no")), "error: no"), (2, refused(DataError("no")), "error: no"),
    (2, refused(StoreError("no")), "error: no"), (2, refused(ModelError("no")), "error: no"),
    (2, refused(EndpointError("no")), "error: no"), (2, refused(TrainingError("no")), "error: no"),
    (2, refused(OSError(28, "No space left on device")), "error: No space left on device"),
    (3, refused(BudgetError("spent")), "stopped: spent"),
    (130, interrupted, "stopped; the same command continues"), (143, terminated, "stopped; the same command continues"),
]


@pytest.mark.parametrize(("code", "what", "said"), PRODUCED)
def test_each_code_is_what_the_table_says(code, what, said, monkeypatch, capsys):
    monkeypatch.setitem(COMMANDS, "happen", what)
    assert cli.main(["happen"]) == code
    assert capsys.readouterr().err.strip() == said
    assert said.partition(" ")[0].rstrip(";") in table()[code]


def test_a_defect_ends_with_one_and_a_traceback():
    script = ("import sys; from dialoom import cli, commands; "
              "commands.COMMANDS['happen'] = lambda: [][0]; sys.exit(cli.main(['happen']))")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "IndexError" in done.stderr and "a traceback" in table()[1]


def test_the_table_has_every_code_and_no_other():
    assert set(table()) == {code for code, _, _ in PRODUCED} | {1}
    assert {cli.FAILED, cli.SPENT, cli.STOPPED, cli.TERMINATED} <= set(table())


@pytest.mark.parametrize("line", ["no-such-command", "pbt --no-such-flag", "pbt no-such-stage", "eval no-such-eval",
                                  "chat no-such-model", "show no-such-run", "resume no-such-run",
                                  "eval flipflop --data nowhere.csv", "view no-such-run --html page.html"])
def test_what_cannot_be_done_is_two_and_one_line(line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(line.split()) == 2
    assert re.fullmatch(r"error: [^\n]+\n", capsys.readouterr().err)
