"""The command line as a person meets it: groups, examples, and how long a recipe takes said before it starts."""

import inspect
import json
import re
import shlex

import pytest

from dialoom.cli import GROUPS, RECIPES, main, make_app
from dialoom.commands import COMMANDS
from dialoom.demo import PARTS
from dialoom.recipes.planned import how_long
from dialoom.usage import EXAMPLES, ROOMS, presentable, rooms_of


def test_help_stands_in_rooms_and_methods_in_theirs(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    titles = re.findall(r"^╭─ ([\w ]+?) ─", text, re.MULTILINE)
    assert titles == list(ROOMS)
    methods = text.partition("Methods")[2].partition("╰")[0]
    assert all(f"│ {name} " in methods for name in RECIPES)
    assert text.count("New here:") == 1


def test_every_command_has_a_room():
    names = {typed.split()[0] for typed in (*RECIPES, *COMMANDS, "resume", "completion")}
    assert set(rooms_of((*RECIPES, *COMMANDS, "resume", "completion"), RECIPES)) == names
    assert set(GROUPS) <= names


@pytest.mark.parametrize("command", sorted(EXAMPLES))
def test_examples_are_commands_that_can_be_typed(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    assert main([*command.split(), "--help"]) == 0
    text = capsys.readouterr().out
    for example in EXAMPLES[command]:
        assert example in text, "examples stand in the help, on one line each"
        words = shlex.split(example.replace("<name>", "name").partition(" > ")[0], comments=True)
        assert words[:2] == ["dialoom", command]
        bound, unused = make_app(words[1:]).parse_known_args(words[1:])[1:3]
        assert not unused and bound is not None


def test_every_recipe_has_examples():
    assert set(RECIPES) <= set(EXAMPLES)


def test_a_command_s_empty_defaults_are_not_shown_and_its_text_is_wrapped_by_the_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    for typed in COMMANDS:
        assert main([*typed.split(), "--help"]) == 0
        text = capsys.readouterr().out
        assert '[default: ""]' not in text and "--empty-" not in text
    shown = presentable(COMMANDS["eval"])
    assert "dialogues in ShareGPT's layout" in inspect.getdoc(shown)


def test_how_long_a_run_takes_is_the_sum_of_its_stages_and_calls_where_models_are_unknown():
    rows = [{"stage": "one", "calls": 2000, "minutes": 1.5}, {"stage": "two", "calls": 10, "minutes": 2.0}]
    assert how_long(rows, ("one", "two"))[0].startswith("about 4 min on one core (pocket)")
    assert how_long(rows, ("one",))[0].startswith("about 2 min")
    unknown = [{**row, "minutes": "unknown"} for row in rows]
    assert how_long(unknown, ("one", "two"))[0].startswith("at most 2,010 replies")
    assert how_long([{"stage": "one"}], ("one",)) == []


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.recipe)
def test_the_demonstration_s_minutes_are_those_of_the_recipe_s_plan(part, capsys):
    assert main([part.recipe, *part.flags, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    planned = sum(float(line.split()[-1]) for line in lines[1:-1])
    assert planned == pytest.approx(part.minutes, rel=0.35)  # both measured, on machines busy to different degrees


def test_a_recipe_says_how_long_it_takes_before_it_starts(tmp_path, monkeypatch, capsys):
    from dialoom.recipes import pbt

    monkeypatch.setattr(pbt, "run", lambda config, folder, stages, log: log(f"doing {json.dumps(stages)}"))
    assert main(["pbt", "trees", "--limit", "8", "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("run folder") and re.match(r"about \d+ s on one core", said[1]) and "doing" in said[2]
