"""The demonstration: parts side by side, going on, failures, and the summary with the cross table."""

import json
import re
from dataclasses import replace

import pytest

from dialoom.cli import RECIPES
from dialoom.demo import PARTS, Part, demo, log_of, run_parts, seconds_left
from dialoom.errors import DialoomError
from dialoom.scorecard import COLUMNS
from tests.pages import SMALL


def test_the_demonstration_shows_every_recipe():
    assert {part.recipe for part in PARTS} == set(RECIPES)


def test_a_part_that_fails_is_named_with_its_log(tmp_path):
    bad = Part("pbt", "pbt", "bad flags", ("--no-such-flag",), 1, 0.1, ())
    lines = []
    assert run_parts(tmp_path, [bad], 1, 1, lines.append) == [bad] and "bad flags: failed after" in lines[0]
    assert "no-such-flag" in log_of(tmp_path / "pbt").read_text()
    with pytest.raises(DialoomError, match=r"pbt failed, see .*pbt.log; the same command continues"):
        demo(tmp_path, parts=[bad], jobs=1, log=lines.append)


def test_time_left_counts_what_waits_what_is_half_done_and_the_table():
    class Half:
        part = Part("a", "a", "a", (), 4, 10.0, ())
        stages = 2

    after = seconds_left([], [], jobs=2)
    assert 0 < after < 120
    assert seconds_left([Half()], [Part("b", "b", "b", (), 1, 5.0, ())], jobs=2) == 60 * (5 + 5) / 2 + after
    assert seconds_left([Half()], [], jobs=2) == 60 * 5 + after, "one part alone is not done by two processors"


def tiny(part):
    """A part with so few rounds that it takes seconds."""
    more = {"ditto": " --max-authors 1", "dat-redteam": " --redteam.attacks 1"}
    kept = tuple(flag for flag in part.flags if flag in ("--scenes", "redteam", "--harden"))
    return replace(part, flags=(*kept, *(SMALL[part.recipe] + more.get(part.name, "")).split()))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_parts_end_in_one_summary_with_every_model_by_every_evaluation(tmp_path):
    out, parts, lines = tmp_path / "demo", [tiny(part) for part in PARTS], []
    demo(out, parts=parts, jobs=2, items=3, log=lines.append)
    text = (out / "summary.md").read_text()
    assert all(f"## {part.title}" in text for part in parts) and "briefed" in text
    assert all(column.title in text for column in COLUMNS)
    crossed = text.partition("## Every model by every evaluation")[2]
    table = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
             for line in crossed.splitlines() if line.startswith("| ") and " --- " not in line}
    models = ["base", "pbt", "aloe", "ideas", "ditto", "dat", "guard", "hardened"]
    assert [name for name in table if name] == models
    columns = [column.eval for column in COLUMNS]
    leads = {name: table[name][columns.index("author")] for name in models}
    assert [name for name, cell in leads.items() if cell == "n/a"] == ["base"], "the base has no lead over itself"
    assert "n/a" not in {table[name][columns.index("redteam")] for name in ("guard", "hardened")}
    assert "n/a: win rate over base of base: it is the base" in text
    shown = (out / "summary.html").read_text()
    assert "<script" not in shown and all(f'<th scope="row">{name}</th>' in shown for name in models)
    linked = re.findall('href="([a-z-]+/report.html)"', shown)
    assert linked == [f"{part.name}/report.html" for part in parts] and all((out / link).is_file() for link in linked)
    rows = json.loads((out / "cross.json").read_text())
    assert {row["subject"] for row in rows} == set(models)
    told = next(line for line in lines if "Every model by every evaluation\n" in line)
    assert "|" not in told and max(map(len, told.partition("Every model by every")[2].splitlines())) < 90
    demo(out, parts=parts, jobs=2, items=3, log=lines.append)
    assert (out / "summary.md").read_text() == text, "a finished demonstration is only shown again"
