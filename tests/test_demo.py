"""The demonstration: parts side by side, going on, failures, and the summary with the cross table."""

import json
import re

import pytest

from dialoom.cli import RECIPES
from dialoom.demo import PARTS, Part, demo, log_of, run_parts, seconds_left
from dialoom.errors import DialoomError
from dialoom.scorecard import COLUMNS


def test_the_demonstration_shows_every_recipe():
    assert {part.recipe for part in PARTS} == set(RECIPES)


def test_a_part_that_fails_is_named_with_its_log(tmp_path):
    bad = Part("pbt", "pbt", "bad flags", ("--no-such-flag",), 1, 0.1, ())
    lines = []
    assert run_parts(tmp_path, [bad], 1, 1, lines.append) == [bad] and "bad flags: failed after" in lines[0]
    assert "no-such-flag" in log_of(tmp_path / "pbt").read_text()
    with pytest.raises(DialoomError, match=r"pbt failed, see .*pbt.log; the same command continues"):
        demo(tmp_path, parts=[bad], jobs=1, log=lines.append)


def test_time_left_counts_what_waits_and_what_is_half_done():
    class Half:
        part = Part("a", "a", "a", (), 4, 10.0, ())
        stages = 2

    assert seconds_left([Half()], [Part("b", "b", "b", (), 1, 5.0, ())], jobs=2) == 60 * (5 + 5) / 2


@pytest.mark.slow
def test_two_parts_run_side_by_side_and_end_in_one_summary(tmp_path, capsys):
    tiny = ("--limit", "8", "--dpo.max-steps", "2", "--sft.max-steps", "2")
    parts = [Part("pbt", "pbt", "PBT, tiny", tiny, 13, 0.1, (("flipflop", "overall"),)),
             Part("ditto", "ditto", "DITTO, tiny", ("--max-authors", "1", "--dpo.steps", "2", "--sft.max-steps", "2",
                                           "--dpo.samples", "2", "--beside", "--pool", "zero_shot", "sft"), 8, 0.1,
                  (("winrate", "micro"),))]
    lines = []
    demo(tmp_path / "demo", parts=parts, jobs=2, items=3, log=lines.append)
    text = (tmp_path / "demo" / "summary.md").read_text()
    assert "## PBT, tiny" in text and "## DITTO, tiny" in text and "briefed" in text
    assert all(column.title in text for column in COLUMNS)
    crossed = text.partition("## Every model by every evaluation")[2]
    table = [line for line in crossed.splitlines() if line.startswith(("| base |", "| pbt |", "| ditto |"))]
    at = 1 + [column.eval for column in COLUMNS].index("author")
    assert [line.split("|")[at + 1].strip() == "n/a" for line in table] == [True, False, False], "the base has no lead"
    shown = (tmp_path / "demo" / "summary.html").read_text()
    assert "<script" not in shown and all(line.split("|")[1].strip() in shown for line in table)
    linked = re.findall('href="([a-z]+/report.html)"', shown)
    assert linked == ["pbt/report.html", "ditto/report.html"]
    assert all((tmp_path / "demo" / link).is_file() for link in linked)
    rows = json.loads((tmp_path / "demo" / "cross.json").read_text())
    assert {row["subject"] for row in rows} == {"base", "pbt", "ditto"}
    again = []
    demo(tmp_path / "demo", parts=parts, jobs=2, items=3, log=again.append)
    assert (tmp_path / "demo" / "summary.md").read_text() == text, "a finished demonstration is only shown again"
