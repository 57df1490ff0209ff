"""The command line: help without torch, near misses, one-line errors, exit codes, and each command on small inputs."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Literal

import pytest
from rich.console import Console

from dialoom import cli
from dialoom.chat import Voice, converse
from dialoom.config import Config
from dialoom.dialogue import DialogueTree, Scenario, Turn
from dialoom.errors import BudgetError, DataError, ModelError
from dialoom.models.base import GREEDY, Sampling
from dialoom.models.load import load_model
from dialoom.models.scripted import ScriptedModel
from dialoom.models.stream import stream
from dialoom.progress import duration, progress
from dialoom.show import show_run
from dialoom.store import TreeLog, read_trees, write_rows


class Training(Config):
    """How it learns."""

    beta: float = 0.1
    """KL weight: 0.1 in PBT."""


class ToyConfig(Config):
    """A recipe of two stages."""

    model: str = "pocket"
    """Who learns."""
    speakers: tuple[str, ...] = ()
    """Who talks."""
    tune: Literal["full", "lora"] = "full"
    """What is trained."""
    packed: bool = True
    """Compute shared turns once."""
    limit: int | None = None
    """Use at most this many questions."""
    data: str = ""
    """The user's questions."""
    dpo: Training = Training(beta=0.3)


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """A recipe named `toy` that records how it was run; the working folder is empty."""
    module = types.ModuleType("dialoom.recipes.toy")
    module.ran = []
    module.STAGES = ("trees", "train", "eval")
    module.PRESETS = {"pocket": ToyConfig(), "paper": ToyConfig(model="hf:big", tune="lora")}
    module.plan = lambda config: [{"stage": "trees", "calls": 1200}, {"stage": "train", "tokens": 5}]

    def run(config, folder, stages, log):
        module.ran.append((config, folder.path, stages))
        for stage in stages:
            folder.stage(stage, lambda: 1)

    module.run = run
    monkeypatch.setitem(sys.modules, "dialoom.recipes.toy", module)
    monkeypatch.setitem(cli.RECIPES, "toy", "A toy recipe.")
    monkeypatch.chdir(tmp_path)
    return module


# -------------------------------------------------------------------------------------- help, near misses


def test_help_is_quick_and_loads_no_heavy_library():
    code = ("import sys; from dialoom.cli import main; code = main(['--help']);"
            "bad = {'torch', 'transformers', 'peft', 'numpy', 'accelerate'} & set(sys.modules);"
            "print('LOADED', sorted(bad)); sys.exit(code or bool(bad))")
    best = 9.0
    for _ in range(3):
        before = os.times()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        after = os.times()
        best = min(best, after.children_user + after.children_system - before.children_user - before.children_system)
        assert done.returncode == 0, done.stdout + done.stderr
    assert all(name in done.stdout for name in (*cli.RECIPES, "eval", "show", "pocket", "doctor", "chat"))
    assert best < 0.5  # seconds of CPU; 0.2 as measured, whatever else the machine does


@pytest.mark.parametrize("name", sorted(cli.RECIPES))
def test_the_settings_of_every_recipe_can_be_read_without_torch(name):
    code = ("import sys; from dialoom.cli import main; code = main([sys.argv[1], '--help']);"
            "sys.exit(code or bool({'torch', 'transformers'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", code, name], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "--dry-run" in done.stdout and "--preset" in done.stdout and "--seed" in done.stdout


def test_a_recipes_help_is_its_fields_docstrings_with_the_presets_defaults(toy, capsys):
    assert cli.main(["toy", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--model STR Who learns. [default: pocket]" in text
    assert "--dpo.beta FLOAT KL weight: 0.1 in PBT. [default: 0.3]" in text
    assert "choices: full, lora" in text and "--no-packed" in text


@pytest.mark.parametrize(("arguments", "message"), [
    (["toi"], r'Unknown command "toi". Did you mean "toy"?'),
    (["toy", "trane"], "toy has no stage 'trane'; did you mean train?"),
    (["toy", "--modle", "x"], "Unknown option: --modle. Did you mean --model?"),
    (["toy", "--preset", "papper"], "toy has no preset 'papper'; did you mean paper?"),
    (["toy", "--tune", "half"], 'Invalid value "half" for --tune. Choose from: "full", "lora".'),
    (["toy", "--dpo.beta", "much"], 'Invalid value for --dpo.beta: unable to convert "much" into float.'),
    (["toy", "--data", "none.csv"], "none.csv: cannot be read"),
    (["toy", "train", "more"], "unexpected argument 'more'"),
    (["eval", "flipfop"], "evaluation 'flipfop' is unknown; did you mean flipflop?"),
    (["chat", "poket"], "unknown model 'poket'; did you mean pocket?"),
    (["show", "nowhere"], "nowhere: holds no dialogue trees"),
])
def test_what_cannot_be_meant_is_one_line_with_a_near_miss_and_code_2(toy, capsys, arguments, message):
    assert cli.main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and message in said
    assert said.count("\n") == 1
    assert not toy.ran


def test_a_traceback_is_shown_on_demand(toy, monkeypatch):
    from dialoom.errors import ConfigError
    monkeypatch.setenv("DIALOOM_TRACEBACK", "1")
    with pytest.raises(ConfigError):
        cli.main(["toy", "trane"])


# ---------------------------------------------------------------------------------------------- recipes


def test_flags_win_over_the_file_and_the_preset(toy, tmp_path):
    (tmp_path / "my.yaml").write_text("model: hf:mine\ndpo: {beta: 0.5}\n")
    assert cli.main(["toy", "--preset", "paper", "-c", "my.yaml", "--dpo.beta", "1e-2", "--speakers", "A", "B",
                     "--no-packed", "--limit", "7", "--out", "run"]) == 0
    [(config, folder, stages)] = toy.ran
    assert config == ToyConfig(model="hf:mine", tune="lora", speakers=("A", "B"), packed=False, limit=7,
                               dpo=Training(beta=0.01))
    assert folder == Path("run") and stages == ("trees", "train", "eval")


def test_a_stage_is_done_with_what_it_needs_and_the_same_command_continues(toy, capsys):
    assert cli.main(["toy", "train"]) == 0
    assert cli.main(["toy"]) == 0
    assert [stages for _, _, stages in toy.ran] == [("trees", "train"), ("trees", "train", "eval")]
    assert toy.ran[0][1] == toy.ran[1][1] and toy.ran[0][1].parent == Path("runs")
    assert "trees: done before, loaded" in capsys.readouterr().out


def test_changed_settings_in_a_named_folder_are_refused_unless_fresh(toy, capsys):
    assert cli.main(["toy", "--out", "run"]) == 0
    assert cli.main(["toy", "--out", "run", "--limit", "3"]) == 2
    assert "limit: None -> 3" in capsys.readouterr().err
    assert cli.main(["toy", "--out", "run", "--limit", "3", "--fresh"]) == 0


def test_a_run_goes_on_from_its_folder_alone_with_its_own_settings(toy, capsys):
    assert cli.main(["toy", "train", "--preset", "paper", "--dpo.beta", "0.5", "--speakers", "A", "--out", "run"]) == 0
    assert cli.main(["resume", "run"]) == 0
    assert toy.ran[0][0] == toy.ran[1][0] and toy.ran[1][2] == ("trees", "train", "eval")
    assert cli.main(["resume", "."]) == 2
    assert "is no run's folder" in capsys.readouterr().err


def test_a_setting_that_is_newer_than_the_run_does_not_part_it_from_its_folder(toy):
    assert cli.main(["toy", "--out", "run"]) == 0
    held = Path("run/config.yaml").read_text()
    older = held.replace("beta: 0.3", "").replace("dpo:", "dpo: {}").replace("limit: null\n", "")
    Path("run/config.yaml").write_text(older)
    assert "beta" not in Path("run/config.yaml").read_text()
    assert cli.main(["toy", "--out", "run"]) == 0


@pytest.mark.parametrize(("shell", "begins"), [
    ("bash", "complete -F"), ("zsh", "#compdef dialoom"), ("fish", "complete -c dialoom"),
    ("powershell", "Register-ArgumentCompleter")])
def test_completion_knows_commands_and_the_recipes_flags_in_every_shell(shell, begins, capsys):
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert begins in script and "first-temperature" in script and "resume" in script
    assert all(name in script for name in (*cli.RECIPES, "scorecard"))
    checks = {"bash": ["bash", "-n"], "zsh": ["zsh", "-n"], "fish": ["fish", "--no-execute"]}
    if shell in checks and shutil.which(shell):
        done = subprocess.run(checks[shell], input=script, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr


def test_bash_completes_what_was_begun(tmp_path, capsys):
    assert cli.main(["completion", "bash"]) == 0
    script = tmp_path / "dialoom.bash"
    script.write_text(capsys.readouterr().out)

    def completed(*words):
        asked = (f'source {script}; COMP_WORDS=({" ".join(words)}); COMP_CWORD={len(words) - 1}; '
                 'completes=$(complete -p dialoom | sed "s/.*-F \\([^ ]*\\) .*/\\1/"); $completes; '
                 'echo "${COMPREPLY[@]}"')
        done = subprocess.run(["bash", "--norc", "-c", asked], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    assert completed("dialoom", "sco") == ["scorecard"]
    assert "--first-temperature" in completed("dialoom", "pbt", "--first")


def test_a_dry_run_prints_the_plan_and_makes_nothing(toy, tmp_path, capsys):
    assert cli.main(["toy", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[:3] == ["stage  calls  tokens", "trees  1,200", "train         5"]
    assert "run folder: runs/toy-pocket-" in out
    assert not toy.ran and not list(tmp_path.iterdir())


def test_ctrl_c_says_how_to_continue(toy, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    toy.run = stop
    assert cli.main(["toy"]) == 130
    assert "stopped; the same command continues" in capsys.readouterr().err


@pytest.mark.parametrize(("stop", "code"), [
    (KeyboardInterrupt(), 130), (BudgetError("spent"), 3), (DataError("no"), 2), (OSError(28, "No space left"), 2)])
def test_a_run_that_was_stopped_has_a_page_of_what_was_said(toy, capsys, stop, code):
    def run(config, folder, stages, log):
        with TreeLog(folder.path / "trees.jsonl") as sink:
            sink.add_tree(tree := DialogueTree(Scenario("s", "Hello?"), "t"))
            sink.add_turns(tree, [Turn("a", None, "A", "Hi.")])
        raise stop

    toy.run = run
    assert cli.main(["toy", "--out", "run"]) == code
    told = capsys.readouterr()
    assert "report so far: run/report.html" in told.err + told.out
    page = Path("run/report.html").read_text()
    assert "Nothing has been evaluated yet; the same command continues the run." in page
    assert '"trees": 1, "turns": 1' in page or '"trees":1,"turns":1' in page


def test_a_page_that_cannot_be_written_does_not_hide_why_a_run_stopped(toy, capsys):
    def run(config, folder, stages, log):
        (folder.path / "trees.jsonl").write_text("x\n")
        (folder.path / "results.json").write_text("{")
        raise DataError("what went wrong")

    toy.run = run
    assert cli.main(["toy", "--out", "run"]) == 2
    assert "what went wrong" in capsys.readouterr().err and not Path("run/report.html").exists()


def test_a_run_that_said_nothing_has_no_page(toy, capsys):
    def run(config, folder, stages, log):
        raise DataError("settings that do not go together")

    toy.run = run
    assert cli.main(["toy", "--out", "run"]) == 2
    assert "report" not in capsys.readouterr().err and not Path("run/report.html").exists()


def test_sigterm_stops_like_ctrl_c_with_its_own_code(toy, capsys):
    def wait(*_):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    before = signal.getsignal(signal.SIGTERM)
    toy.run = wait
    assert cli.main(["toy"]) == 143
    assert "stopped" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before


# ----------------------------------------------------------------------------------------- show and chat


@pytest.fixture
def run_with_a_tree(tmp_path):
    tree = DialogueTree(Scenario("q1", "Capital of [bold]Norway[/bold]?", facts={"answer": "Oslo"}))
    first = tree.add(Turn("a", None, "A", "Oslo \x1b[31m.", {"brief": "resist"}))
    good = tree.add(Turn("b", "a", "B", "Yes, Oslo.", scores={"correct": 1.0, "value": 2.5}))
    bad = tree.add(Turn("c", "a", "B", "No, Rome."))
    with TreeLog(tmp_path / "trees.jsonl") as log:
        log.add_tree(tree)
        log.add_tree(DialogueTree(Scenario("q2", "Another?")))
        log.skip("q1", first.id, "empty reply")
    write_rows(tmp_path / "pairs.jsonl", [{"tree": "q1", "kind": "accept", "chosen_turn": good.id,
                                           "rejected_turn": bad.id}])
    return tmp_path


def shown(run: Path, **options: object) -> str:
    console = Console(file=io.StringIO(), width=100, color_system=None)
    show_run(run, console=console, **options)
    return console.file.getvalue()


def test_show_draws_the_tree_with_scores_and_pairs_and_no_escape(run_with_a_tree):
    text = shown(run_with_a_tree)
    assert "2 trees, 3 turns, 1 pairs (1 accept)" in text and "left out: 1 x empty reply" in text
    assert "Capital of [bold]Norway[/bold]?" in text and "answer: Oslo" in text
    assert "A (resist): Oslo ⟨U+001B⟩[31m." in text and "\x1b" not in text
    assert "B: Yes, Oslo.  ✓ chosen accept" in text and "correct 1  value 2.5" in text
    assert "B: No, Rome.  ✗ rejected accept" in text
    assert "Another?" not in text and "Another?" in shown(run_with_a_tree, limit=0)


def test_show_picks_a_tree_by_the_beginning_of_its_id(run_with_a_tree, capsys):
    assert "Another?" in shown(run_with_a_tree / "trees.jsonl", tree="q2")
    assert cli.main(["show", str(run_with_a_tree), "--tree", "q"]) == 2
    assert "begins 2 ids (q1, q2, ...)" in capsys.readouterr().err
    assert cli.main(["show", str(run_with_a_tree), "--tree", "q3"]) == 2
    assert "no tree has an id that begins so; expected one of: q1, q2" in capsys.readouterr().err


def test_chat_answers_each_line_in_context_and_saves_a_tree(tmp_path):
    model = ScriptedModel(lambda chat: f"{len(chat)}:{chat[0]['content']}:{chat[-1]['content']}")
    console = Console(file=io.StringIO(), width=200, color_system=None)
    lines = ["hello", "", "/nope", "again", f"/save {tmp_path / 'talk.jsonl'}", "/quit", "never said"]
    tree = converse([Voice(model.name, model)], iter(lines), sampling=GREEDY, brief="be kind", console=console)
    said = console.file.getvalue()
    assert "2:be kind:hello" in said and "4:be kind:again" in said and "never said" not in said
    assert "/nope is no command" in said
    assert [turn.speaker for turn in tree] == ["you", model.name, "you", model.name]
    saved = read_trees(tmp_path / "talk.jsonl")[tree.id]
    assert [turn.text for turn in saved] == [turn.text for turn in tree]


def test_a_reply_that_fails_is_told_and_the_talk_goes_on():
    def reply(chat):
        if chat[-1]["content"] == "break":
            raise ModelError("too long for this model")
        return "fine"

    console = Console(file=io.StringIO(), width=200, color_system=None)
    tree = converse([Voice("one", ScriptedModel(reply))], iter(["break", "go on"]), sampling=GREEDY, console=console)
    assert "error: too long for this model" in console.file.getvalue()
    assert [turn.text for turn in tree] == ["go on", "fine"]


def test_two_voices_answer_side_by_side_and_hear_each_other_as_themselves(tmp_path):
    def voice(label):
        return Voice(label, ScriptedModel(lambda chat: f"{label}:{'/'.join(one['role'][0] for one in chat)}"))

    console = Console(file=io.StringIO(), width=200, color_system=None)
    lines = ["hello", "/switch", "more", "/both", "again", f"/save {tmp_path / 'talk.jsonl'}"]
    tree = converse([voice("trained"), voice("base")], iter(lines), sampling=GREEDY, console=console)
    assert "base answers now" in console.file.getvalue() and "both answer" in console.file.getvalue()
    assert [(turn.speaker, turn.text) for turn in tree] == [
        ("you", "hello"), ("trained", "trained:u"), ("you", "more"), ("base", "base:u/a/u"), ("you", "again"),
        ("base", "base:u/a/u/a/u"), ("trained", "trained:u/a/u/a/u")]
    last = list(read_trees(tmp_path / "talk.jsonl")[tree.id])[-2:]
    assert last[0].parent == last[1].parent, "the two replies stand beside each other"


def test_chat_streams_the_very_text_that_it_keeps():
    pieces, pocket = [], load_model("pocket")
    chat = [{"role": "user", "content": "Name the capital of Norway."}]
    sampling = Sampling(0.8, max_new_tokens=30)
    whole = stream(pocket, chat, sampling, "key", pieces.append)
    assert "".join(pieces).strip() == whole.text == pocket.chat([chat], sampling, ["key"])[0].text
    assert len(pieces) > 2
    heard = []
    assert stream(ScriptedModel(lambda chat: "pong"), chat, sampling, "key", heard.append).text == "pong" == heard[0]


def test_chat_reads_a_pipe(monkeypatch, capsys):
    monkeypatch.setattr("dialoom.chat.load_model", lambda spec, device: ScriptedModel(lambda chat: "pong"))
    monkeypatch.setattr(sys, "stdin", io.StringIO("ping\n"))
    assert cli.main(["chat", "pocket"]) == 0
    out = capsys.readouterr().out
    assert "pong" in out and "you>" not in out


# ------------------------------------------------------------------------------------------- the others


def test_eval_runs_on_a_users_file_and_writes_tidy_rows(monkeypatch, tmp_path, capsys):
    (tmp_path / "my.csv").write_text("question,answer\nCapital of Norway?,Oslo\nCapital of France?,Paris\n")
    monkeypatch.setattr("dialoom.evaluate.load_model",
                        lambda spec, device: ScriptedModel(lambda chat: "The answer is Oslo."))
    assert cli.main(["eval", "recall", "--data", str(tmp_path / "my.csv"), "--out", str(tmp_path / "rows.json")]) == 0
    [row] = [row for row in json.loads((tmp_path / "rows.json").read_text()) if row["metric"] == "accuracy"]
    assert row["eval"] == "recall" and row["value"] == 0.5 and row["n"] == 2
    assert "recall" in capsys.readouterr().out.lower()
    assert cli.main(["eval", "team"]) == 2
    assert "give --partner" in capsys.readouterr().err


def test_doctor_says_that_a_key_is_set_and_never_what_it_is(monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", "canary-4711")
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "canary" not in out
    assert "OPENAI_API_KEY          set\n" in out and "torch threads" in out and "weights of pocket-small" in out


def test_a_missing_card_says_what_to_do(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("dialoom.models.load.WEIGHTS", tmp_path)
    assert cli.main(["pocket", "card"]) == 2
    assert "build it with `dialoom pocket build`" in capsys.readouterr().err
    (tmp_path / "pocket-small").mkdir()
    (tmp_path / "pocket-small" / "README.md").write_text("# A card\n")
    assert cli.main(["pocket", "card", "pocket-small"]) == 0
    assert capsys.readouterr().out == "# A card\n"


def test_progress_is_plain_lines_when_not_on_a_terminal_and_silent_when_short(monkeypatch, capsys):
    clock = iter([0.0, 1.0, 3.0, 4.0, 30.0])
    monkeypatch.setattr("dialoom.progress.time.monotonic", lambda: next(clock))
    with progress("debates", 10) as bar:
        bar.advance()       # 1 s in: too early to say anything
        bar.advance(2)      # 3 s in
        bar.reach(9, "debates of level 2")   # 4 s in: a line was said a second ago
    assert capsys.readouterr().err == "debates: 3/10, about 7 s left\ndebates of level 2: 9/10, took 30 s\n"
    monkeypatch.setattr("dialoom.progress.time.monotonic", lambda: 0.0)
    with progress("short"):
        pass
    assert capsys.readouterr().err == ""


def test_durations_read_as_a_person_says_them():
    assert [duration(seconds) for seconds in (0.4, 61, 400, 7500)] == ["0 s", "61 s", "7 min", "2 h 5 min"]
