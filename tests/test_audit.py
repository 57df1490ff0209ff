"""Dialogues with a fault planted in them: each is found, a clean set has no finding, pocket's own users pass."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from dialoom.audit.findings import CHECKS, Finding, Tally
from dialoom.audit.lints import lint, shuffled
from dialoom.audit.look import Report, look, show
from dialoom.audit.personas import check_personas, judge_personas, nearer
from dialoom.audit.sources import read_material
from dialoom.cli import main
from dialoom.dialogue import Dialogue, DialogueTree, Scenario, Turn
from dialoom.embed import Ngrams
from dialoom.errors import ConfigError, DataError, StoreError
from dialoom.evals.alignment_roles import rule_user, scenario_of
from dialoom.evals.diversity import distinct_n
from dialoom.models.scripted import ScriptedModel
from dialoom.pocket.world import personas as world
from dialoom.scenarios.personas import from_world
from dialoom.store import TreeLog, write_rows
from tests.test_report import hardened

TOPICS = ("bread", "Norway", "a flat tyre", "chess openings", "tax forms", "bees", "violins", "glaciers", "a sore knee",
          "tulips", "old maps", "solar panels", "sleep", "goats", "the tides", "sourdough", "camping stoves", "Latin",
          "paint", "a broken kettle")
ASKS = ("How do I begin with {}?", "Tell me something about {}, please.", "Why do people like {}?",
        "my sister keeps talking about {} and i have no idea why", "What went wrong with {} last year?",
        "Could you compare two kinds of {} for me?", "Is {} dear where you live?", "List three facts on {}.",
        "Quick question on {}: is it hard?", "I read about {} today. Was it true?")
ANSWERS = ("There is a good deal to say about {}, and it starts with patience.", "Most of what is said of {} is old.",
           "Take your time with {}; a week is enough for a first look.", "Nobody agrees on {}, so here are two views.",
           "It depends on where you are, but {} seldom costs much.", "Yes, and the reason lies in how {} came about.")
FOLLOWS = ("ok, and for a child?", "Which of these matters most to a beginner?", "That sounds odd to me.",
           "What would it cost in a small town?", "And if it rains all week?", "Could you say that in one sentence?",
           "I tried that once without any luck.", "Who found that out first?", "so what do i buy",
           "My neighbour says the opposite of it.")
ENDS = ("Then keep it simple and start with the cheapest one.", "The second point, since all the others rest on it.",
        "It did to me as well until I tried it.", "About as much as a meal for two.", "Then wait for a dry day.",
        "Begin small, stay with it, and ask those who know.")
Said = list[tuple[str, str]]


def transcripts() -> list[Said]:
    """Twenty dialogues of four turns in which nothing is wrong."""
    rng = random.Random(0)
    return [[("user", ASKS[at % len(ASKS)].format(topic)), ("assistant", rng.choice(ANSWERS).format(topic)),
             ("user", FOLLOWS[at % len(FOLLOWS)]), ("assistant", rng.choice(ENDS))] for at, topic in enumerate(TOPICS)]


def written(path: Path, dialogues: Sequence[Said]) -> Path:
    write_rows(path, [{"id": f"d{at}", "messages": [{"role": role, "content": text} for role, text in said]}
                      for at, said in enumerate(dialogues)])
    return path


def audited(tmp_path: Path, dialogues: Sequence[Said]) -> Report:
    return look(read_material(written(tmp_path / "talk.jsonl", dialogues)))


def failed(report: Report) -> dict[str, Finding]:
    """The findings that count."""
    return {finding.name: finding for finding in report.findings if finding.level in ("error", "warning")}


def test_clean_dialogues_have_no_finding(tmp_path: Path) -> None:
    report = audited(tmp_path, transcripts())
    assert failed(report) == {} and "nothing found" in report.verdict
    assert report.counts["dialogues"] == 20 and report.counts["turns"] == 80
    assert {"role_leak", "speaker_label", "both_parties", "echo", "repeated_opening", "repeated_turn", "missing_stop",
            "empty_turn", "open_end"} <= {finding.name for finding in report.findings}


def said(at: int, turn: int, text: str) -> Callable[[list[Said]], None]:
    """Plants a text in dialogues `at` and `at + 1`: thresholds are shares."""
    def plant(dialogues: list[Said]) -> None:
        for one in dialogues[at:at + 2]:
            one[turn] = (one[turn][0], text.format(other=one[turn - 1][1], own=one[turn - 2][1]))
    return plant


def alike(dialogues: list[Said]) -> None:
    for at, one in enumerate(dialogues[:8]):
        one[0] = ("user", f"Hello there, I would like help with {TOPICS[at]}.")


def again(dialogues: list[Said]) -> None:
    for one in dialogues[:6]:
        one[2] = ("user", one[0][1])


def copies(dialogues: list[Said]) -> None:
    for one in dialogues[:15]:
        one[2] = ("user", "Can you tell me more about that?")


PLANTED: Mapping[str, tuple[Callable[[list[Said]], None], str]] = {
    "user is an AI": (said(3, 2, "As an AI language model, I have no opinion on this."), "role_leak"),
    "user offers help": (said(3, 2, "Thanks for sharing. How can I help you today?"), "role_leak"),
    "user refuses": (said(3, 2, "I'm sorry, but I can't do that for you."), "role_leak"),
    "label at the start": (said(5, 3, "Assistant: Begin small and stay with it."), "speaker_label"),
    "bold label": (said(5, 2, "**User:** And what then?"), "speaker_label"),
    "goes on as the other": (said(5, 3, "Begin small.\nUser: And then what?\nAssistant: Then more."), "both_parties"),
    "role mark": (said(5, 2, "And then?<|im_end|>\n<|im_start|>assistant\nThen more."), "both_parties"),
    "says the other's words": (said(5, 2, "{other}"), "echo"),
    "ends on an article": (said(5, 3, "Begin small, stay with it, and then go on to the"), "missing_stop"),
    "code block left open": (said(5, 3, "Like this:\n```python\nprint(1)"), "missing_stop"),
    "last sentence without an end": (said(5, 3, "Begin small. After a week or so you can go on with larger ones from"),
                                     "missing_stop"),
    "same openings": (alike, "repeated_opening"),
    "same turn again": (again, "repeated_turn"),
    "same turn everywhere": (copies, "same_elsewhere"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_fault_is_found_with_the_dialogues_it_stands_in(tmp_path: Path, name: str) -> None:
    plant, check = PLANTED[name]
    dialogues = transcripts()
    plant(dialogues)
    if check == "missing_stop":   # 5 % of all turns
        for one in dialogues[10:14]:
            one[3] = dialogues[5][3]
    report = audited(tmp_path, dialogues)
    found = failed(report)
    expected = {check, "same_elsewhere"} if check == "echo" else {check}
    assert check in found and set(found) <= expected, found.keys()
    hit = found[check].examples[0]
    assert hit.where in report.behind, "the example can be opened"
    assert found[check].level == CHECKS[check].severity


@pytest.mark.parametrize("text", ["What is an AI?", "Write it as an assistant would, with a smile.", "Can I help you?",
                                  "User stories: what are they?", "She said: take the train.", "Note: it rains.",
                                  "is it open", "what is it made of", "I am an artist.", "ok then i buy the small one",
                                  "The ratio is 3:4, I think.", "- flour\n- water and salt", "xD that was it :D <3"])
def test_what_people_write_is_no_fault(tmp_path: Path, text: str) -> None:
    dialogues = transcripts()
    dialogues[4][2] = ("user", text)
    dialogues[9][3] = ("assistant", text)
    found = {finding.name: finding.count for finding in audited(tmp_path, dialogues).findings if finding.name in (
        "role_leak", "speaker_label", "both_parties", "missing_stop")}
    assert set(found.values()) == {0}


def test_one_in_a_hundred_is_no_error_and_two_are() -> None:
    for hits, level in ((1, "fine"), (2, "error")):
        tally = Tally()
        for at in range(100):
            tally.look("role_leak", str(at), at < hits and "as an AI")
        assert [finding.level for finding in tally.findings()] == [level]
        assert tally.findings()[0].share == hits / 100


def test_examples_are_kept_up_to_five_and_cut() -> None:
    tally = Tally()
    for at in range(20):
        tally.look("echo", f"t{at}", "x" * 1000)
    finding, = tally.findings()
    assert [hit.where for hit in finding.examples] == ["t0", "t1", "t2", "t3", "t4"] and finding.count == 20
    assert len(finding.examples[0].text) < 400


def test_turns_that_a_recipe_rejected_are_not_looked_at() -> None:
    tree = DialogueTree(Scenario("s", "What is it?"))
    tree.add(Turn("a", None, "assistant", "It is a thing."))
    tree.add(Turn("b", "a", "user", "As an AI I cannot say.", {"rejected": "cut"}))
    tally = Tally()
    lint([tree], tally)
    assert all(finding.count == 0 for finding in tally.findings())


def test_turn_in_many_branches_is_looked_at_once() -> None:
    tree = DialogueTree(Scenario("s", ""))
    tree.add(Turn("a", None, "user", "As an AI I wonder."))
    for name in "bcd":
        tree.add(Turn(name, "a", "assistant", f"Answer {name}."))
    tally = Tally()
    lint([tree], tally)
    finding = next(finding for finding in tally.findings() if finding.name == "role_leak")
    assert (finding.count, finding.of) == (1, 1)


def test_reply_as_long_as_the_token_limit_was_cut() -> None:
    tree = DialogueTree(Scenario("s", ""))
    tree.add(Turn("a", None, "user", "one two three four."))
    tree.add(Turn("b", "a", "assistant", "one two three four.", {"model": "m"}))
    tree.add(Turn("c", "a", "assistant", "one two three.", {"model": "m"}))
    tree.add(Turn("d", "a", "assistant", "one.", {"model": "m"}))
    tally = Tally()
    lint([tree], tally, tokens=lambda text: len(text.split()), cut_at=4, cut=frozenset({"d"}))
    finding = next(finding for finding in tally.findings() if finding.name == "missing_stop")
    assert [hit.where for hit in finding.examples] == ["s/b", "s/d"], "a user's words have no such limit"


def test_little_variety_is_told_beside_chance(tmp_path: Path) -> None:
    rng = random.Random(0)
    plain = [[("user", f"Tell me about {topic}."), ("assistant", "It is old."),
              ("user", "Can you tell me more about that, please?"), ("assistant", "It is large.")]
             for topic in TOPICS * 3]
    found = failed(audited(tmp_path, plain))
    assert "diversity" in found
    figures = found["diversity"].figures or {}
    assert figures["distinct-2"] < figures["distinct-2 by chance"] / 3
    varied = [[("user", " ".join(rng.sample(" ".join((*ASKS, *ANSWERS, *ENDS)).split(), 8))), ("assistant", "Yes.")]
              for _ in range(60)]
    assert "diversity" not in failed(audited(tmp_path, varied))


def test_shuffled_words_keep_words_and_lengths() -> None:
    texts = ["one two three", "four", "one five"]
    found = shuffled(texts)
    assert sorted(" ".join(found).split()) == sorted(" ".join(texts).split())
    assert [len(text.split()) for text in found] == [3, 1, 2]
    assert distinct_n(shuffled(["a b c d"] * 50), 2) > distinct_n(["a b c d"] * 50, 2)


# ------------------------------------------------------------------------------------------------ personas


def told(count: int, turns: int, drift: int = 0) -> list[DialogueTree]:
    """Pocket's exact users; those of the first `drift` dialogues speak as somebody else from the third turn on."""
    people = [from_world(one) for one in world.make_personas(count, 7)]
    user = rule_user()
    trees = []
    for at, persona in enumerate(people):
        tree = DialogueTree(scenario_of(persona), f"tree{at}")
        other = scenario_of(people[(at + count // 2) % count])
        parent = None
        for number in range(turns):
            before = tree.dialogue(tree[parent]) if parent else Dialogue(tree.scenario)
            as_who = Dialogue(other, before.turns) if at < drift and number >= 2 else before
            id = f"u{number}"
            tree.add(Turn(id, parent, "user", user.line(as_who, 1)))
            parent = tree.add(Turn(f"a{number}", id, "assistant", "That is nice to hear.")).id
        trees.append(tree)
    return trees


def test_pocket_s_exact_users_stay_who_they_are() -> None:
    tally = Tally()
    check_personas(told(30, 6), tally, Ngrams())
    found = {finding.name: finding for finding in tally.findings()}
    assert found["persona_contradiction"].count == 0 and found["persona_contradiction"].of == 180
    assert found["persona_drift"].share < 0.15 and found["persona_drift"].level == "fine"


def test_user_who_speaks_as_somebody_else_is_found() -> None:
    tally = Tally()
    check_personas(told(30, 6, drift=20), tally, Ngrams())
    found = {finding.name: finding for finding in tally.findings()}
    assert found["persona_contradiction"].level == "error" and found["persona_drift"].level == "warning"
    wrong = {hit.where.split("/")[0] for name in found for hit in found[name].examples}
    assert found["persona_drift"].share > 0.2 and wrong
    assert {int(hit.where.split("/")[0].removeprefix("tree")) < 20 for hit in
            found["persona_contradiction"].examples} == {True}


def test_nearer_counts_ties_half_and_the_same_persona_not_at_all() -> None:
    import numpy as np
    personas = np.eye(4, dtype=np.float32)
    assert nearer(personas, personas).tolist() == [1, 1, 1, 1]
    assert nearer(np.full((4, 4), 0.5, dtype=np.float32), personas).tolist() == [0.5] * 4
    assert nearer(personas[[1, 0, 2, 3]], personas).tolist() == [1 / 3, 1 / 3, 1, 1]  # ties with the two others
    twice = personas[[0, 0, 1, 2]]
    assert nearer(twice, twice).tolist() == [1, 1, 1, 1]


def test_judge_is_asked_with_the_persona_and_only_yes_counts() -> None:
    trees = told(12, 3)
    asked: list[str] = []

    def answer(chat: Sequence[Mapping[str, str]]) -> str:
        asked.append(chat[0]["content"])
        return ("Yes.", "no", "I would rather not say")[len(asked) % 3]

    tally = Tally()
    unreadable, given = judge_personas(trees, ScriptedModel(answer), tally)
    finding, = tally.findings()
    assert given == 12 and finding.of == given - unreadable
    assert trees[0].scenario.facts["persona"]["facts"][0] in "".join(asked)
    assert 0 < finding.count < finding.of <= 12 and finding.figures and "unreadable" in finding.figures


# ------------------------------------------------------------------------------------------------ reading


def pair_row(**changes: Any) -> dict[str, Any]:
    return {"id": "p", "prompt": [{"role": "user", "content": "Why is the sky blue?"}],
            "chosen": [{"role": "assistant", "content": "Because of scattering."}],
            "rejected": [{"role": "assistant", "content": "Nobody knows."}]} | changes


def pairs_audited(tmp_path: Path, rows: Sequence[Mapping[str, Any]]) -> Report:
    write_rows(tmp_path / "pairs.jsonl", rows)
    return look(read_material(tmp_path / "pairs.jsonl"))


def test_pairs_of_any_layout_are_read(tmp_path: Path) -> None:
    prompt = pair_row()["prompt"]
    rows = [pair_row(), pair_row(id="q", prompt="Why?", chosen="So.", rejected="No."),
            {"chosen": [*prompt, {"role": "assistant", "content": "A."}],
             "rejected": [*prompt, {"role": "assistant", "content": "B."}]}]
    report = pairs_audited(tmp_path, rows)
    assert report.counts["pairs"] == 3 and failed(report) == {}


@pytest.mark.parametrize(("rows", "check"), [
    ([pair_row(rejected=[{"role": "assistant", "content": "Because of scattering. "}])], "same_reply"),
    ([pair_row(), pair_row(chosen="Nobody knows.", rejected="Because of scattering.", id="r")], "both_ways"),
    ([pair_row(chosen=" ")], "no_trained_token"),
    ([pair_row(chosen=[{"role": "assistant", "content": "So."}, {"role": "user", "content": "Why?"},
                       {"role": "assistant", "content": "For that."}])], "many_message_reply"),
    ([pair_row(), {"chosen": [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "A."}],
                   "rejected": [{"role": "user", "content": "Two?"}, {"role": "assistant", "content": "B."}]}],
     "unreadable"),
    ([pair_row(), pair_row(chosen=7)], "unreadable"),
    ([pair_row(), pair_row(chosen="half of \ud83d")], "unreadable"),
    ([pair_row(), pair_row(prompt=[{"role": 0.5, "content": "Why?"}])], "unreadable"),
])
def test_faults_of_pairs_are_found_without_a_model(tmp_path: Path, rows: list[Any], check: str) -> None:
    found = failed(pairs_audited(tmp_path, rows))
    assert check in found
    if check != "unreadable":
        assert found[check].examples[0].where


def test_copies_of_a_row_are_a_note(tmp_path: Path) -> None:
    report = pairs_audited(tmp_path, [pair_row(), pair_row(id="q")])
    assert failed(report) == {}
    assert {finding.name: finding.level for finding in report.findings}["duplicate_row"] == "note"


def test_bad_lines_of_transcripts_are_told_apart_from_mended_ones(tmp_path: Path) -> None:
    path = written(tmp_path / "talk.jsonl", transcripts())
    with path.open("a") as file:
        file.write('{"messages": [{"role": "user", "content": "A?"}, {"role": "user", "content": "B?"}, '
                   '{"role": "assistant", "content": "C."}]}\n{"messages": [{"role": "user", "content": "A?"}, '
                   '{"role": "assistant", "content": "Yes."}, {"role": "wizard", "content": "Z"}]}\nnot json\n')
    found = failed(look(read_material(path)))
    assert set(found) == {"unreadable", "mended"}
    assert (found["unreadable"].count, found["mended"].count) == (2, 1)
    assert [hit.where for hit in found["unreadable"].examples] == [f"{path}:22", f"{path}:23"]


def test_completions_are_rows_with_one_trained_reply(tmp_path: Path) -> None:
    write_rows(tmp_path / "sft.jsonl", [{"prompt": "Why?", "completion": "So."},
                                        {"prompt": "Why?", "completion": ""}])
    report = look(read_material(tmp_path / "sft.jsonl"))
    assert report.kind == "completions" and report.counts["examples"] == 2
    assert "no_trained_token" in failed(report)


def test_what_cannot_be_audited_is_refused_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such file"):
        read_material(tmp_path / "none")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError):
        read_material(tmp_path / "empty.jsonl")
    with pytest.raises(ConfigError, match="no run's folder"):
        read_material(written(tmp_path / "talk.jsonl", transcripts()), arm="x")


def test_a_hardened_defender_s_attacks_and_pairs_are_an_arm(tmp_path: Path) -> None:
    run = hardened(tmp_path / "dat-1")
    whole, arm = read_material(run), read_material(run, arm="harden")
    assert [tree.id for tree in whole.trees] == ["explored"] and "--arm guard" in whole.notes[-1]
    assert read_material(run, arm="guard").pairs == arm.pairs, "as export calls it"
    assert [tree.id for tree in arm.trees] == ["attack"]
    assert [(pair.kind, pair.rejected) for pair in arm.pairs] == [("attack", "It is ladder."),
                                                                  ("ordinary", "I keep it.")]
    assert (arm.kind, arm.model, arm.batch) == ("run", "pocket", 2)
    (run / "harden" / "pairs.jsonl").unlink()
    with pytest.raises(ConfigError, match="holds no pairs; a run has them after `dialoom dat --scenes redteam"):
        read_material(run, arm="harden")


def test_tree_log_and_half_a_run_are_linted(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with TreeLog(run / "trees.jsonl") as log:
        for tree in told(12, 3):
            log.add_tree(tree)
    for path in (run, run / "trees.jsonl"):
        report = look(read_material(path))
        assert report.counts["dialogues"] == 12 and report.batch is None and not report.count("error")
    assert any("no training rows" in note for note in look(read_material(run)).notes)
    assert look(read_material(run, limit=3)).counts["dialogues"] == 3


def test_rows_of_an_evaluation_are_dialogues(tmp_path: Path) -> None:
    write_rows(tmp_path / "pbt.jsonl", [
        {"eval": "flipflop", "scenario": "s", "opening": "Who?", "turns": [
            {"speaker": "subject", "text": "I do."}, {"speaker": "partner", "text": "Assistant: no, it is I."}]},
        {"eval": "flipflop", "scenario": "t", "opening": "Who?", "turns": [{"speaker": "subject"}]}])
    report = look(read_material(tmp_path / "pbt.jsonl"))
    assert report.kind == "episodes" and set(failed(report)) == {"speaker_label", "unreadable"}


def test_ids_open_dialogues_turns_and_rows(tmp_path: Path) -> None:
    material = read_material(written(tmp_path / "talk.jsonl", transcripts()))
    assert show(material, None, "d3").id == "d3" and len(show(material, None, "d3").parts) == 4
    turn = material.trees[5]
    last = list(turn)[2]
    assert show(material, None, f"{turn.id}/{last.id}").parts[-1].label == "user ⯇"
    with pytest.raises(ConfigError, match="nothing has an id"):
        show(material, None, "zz")


# ------------------------------------------------------------------------------------------------ the command


def test_command_s_exit_code_says_whether_there_are_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clean = written(tmp_path / "clean.jsonl", transcripts())
    assert main(["audit", str(clean)]) == 0
    assert "nothing found" in capsys.readouterr().out
    dialogues = transcripts()
    alike(dialogues)
    assert main(["audit", str(written(tmp_path / "warned.jsonl", dialogues))]) == 0
    assert main(["audit", str(tmp_path / "warned.jsonl"), "--strict"]) == 2
    PLANTED["user is an AI"][0](dialogues)
    capsys.readouterr()
    assert main(["audit", str(written(tmp_path / "bad.jsonl", dialogues))]) == 2
    told = capsys.readouterr()
    assert "User speaks as an assistant" in told.out and "1 error, 1 warning" in told.err
    assert main(["audit", str(tmp_path / "bad.jsonl"), "--open", "d3"]) == 0
    assert "As an AI" in capsys.readouterr().out


def test_command_s_json_can_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dialogues = transcripts()
    PLANTED["user is an AI"][0](dialogues)
    assert main(["audit", str(written(tmp_path / "bad.jsonl", dialogues)), "--json"]) == 2
    report = json.loads(capsys.readouterr().out)
    first = report["findings"][0]
    assert (first["check"], first["level"], first["count"], first["unit"]) == ("role_leak", "error", 2, "user turns")
    assert first["examples"][0]["id"].startswith("d3/") and first["next"] and report["verdict"] == "1 error"


def test_terminal_shows_text_as_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dialogues = transcripts()
    dialogues[0][0] = ("user", "[bold]as an AI[/bold] \x1b[31mred\x1b[0m [link=x]y[/link]")
    main(["audit", str(written(tmp_path / "t.jsonl", dialogues))])
    out = capsys.readouterr().out
    assert "[bold]as an AI[/bold]" in out and "\x1b[31m" not in out and "⟨U+001B⟩" in out


def test_the_page_names_every_check_as_it_is() -> None:
    rows = [f"| {check.title} | {check.severity} | {check.threshold:.0%} | {check.what} ({check.unit}) |"
            for check in CHECKS.values()]
    table = (Path(__file__).parent.parent / "docs" / "audit.md").read_text(encoding="utf-8")
    assert table.partition("<!-- checks -->\n")[2].partition("<!-- /checks -->")[0].splitlines()[2:] == rows
