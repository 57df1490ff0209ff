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
    (2, refused(OSError(28, "No space left on device")),
     "error: No space left on device; make room there, then the same command goes on"),
    (2, refused(PermissionError(13, "Permission denied", "/root/x")),
     "error: Permission denied: '/root/x'; give a place that you may read and write"),
    (2, refused(OSError(5, "Input/output error")),
     "error: Input/output error; see to the disk or the network, then the same command goes on"),
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


@pytest.mark.parametrize(("line", "value", "next_step"), [
    ("no-such-command", '"no-such-command"', "Available commands: pbt"),
    ("pbt --no-such-flag", "--no-such-flag", "see --help"),
    ("pbt --modle x", "--modle", "Did you mean --model?"),
    ("pbt no-such-stage", "'no-such-stage'", "expected one of: eval, pairs, train, trees"),
    ("eval no-such-eval", "'no-such-eval'", "expected one of: are_you_sure"),
    ("chat no-such-model", "no-such-model", "models are pocket"),
    ("show no-such-run", "no-such-run", "give a run's folder"),
    ("resume no-such-run", "no-such-run", "give what --out named"),
    ("eval flipflop --data nowhere.csv", "nowhere.csv", "name an existing trivia file"),
    ("view no-such-run --html page.html", "no-such-run", "`--out` of a run names it"),
    ("export no-such-run --to model --out x", "no-such-run", "give the folder that a recipe's --out named"),
    ("audit no-such-run", "no-such-run", "give a run's folder, or a file"),
    (f"view {'x' * 300} --html page.html", "x" * 100, "give a shorter name")])
def test_what_cannot_be_done_is_two_and_one_line_with_the_value_and_the_next_step(line, value, next_step, tmp_path,
                                                                                  monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(line.split()) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(r"error: [^\n]+\n", said)
    assert value in said and next_step in said, said
