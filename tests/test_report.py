"""The page of a run as a file: numbers told rightly, and nobody's text ever markup. How it works: test_browser.py."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import math
import shlex
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from bench.screenshots import DEMO, SHOTS
from dialoom.cli import make_app
from dialoom.dialogue import Dialogue, DialogueTree, Scenario, Turn, chat_view
from dialoom.errors import DataError, StoreError
from dialoom.evaluate import NAMES
from dialoom.report import results_table, visible, write_page, write_report
from dialoom.report.overview import OWN, curves, pair_counts, summary
from dialoom.report.page import STATIC
from dialoom.report.safe import MAX_TEXT, clean
from dialoom.report.table import grids
from dialoom.select import Pair, pair_of
from dialoom.store import TreeLog, append_row, write_rows

HOSTILE = ("<script>alert(1)</script>", "</script><img src=x onerror=alert(2)>", "[x](javascript:alert(3))",
           "\x1b[31mred\x1b[0m", "abc\u202edcba\u2066", "' onmouseover='alert(4)", '"><svg onload=alert(5)>',
           "{{ 7 * 7 }} {% raw %}", "</details></div></body>", "\ud800 lone", "<!-- open", "]]>")
VOID = {"meta", "link", "br", "img", "input", "hr"}
ROOT = Path(__file__).parent.parent


class Page(HTMLParser):
    """A page as a browser would take it apart: its elements, its texts, and the data it holds."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, dict[str, str], str]] = []
        self.stack: list[tuple[str, dict[str, str]]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.stack.append(self.elements[-1])

    def handle_endtag(self, tag: str) -> None:
        assert self.stack and self.stack[-1][0] == tag, f"</{tag}> closes {self.stack[-3:]}"
        self.stack.pop()

    def handle_data(self, data: str) -> None:
        if self.stack:
            self.texts.append((*self.stack[-1], data))

    @property
    def text(self) -> str:
        """What is read without JavaScript."""
        return " ".join(" ".join(text for tag, _, text in self.texts if tag not in ("script", "style")).split())

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def inside(self, tag: str, id: str | None = None) -> str:
        """The text of the one element of that tag and id."""
        found = {}
        for name, attributes, text in self.texts:
            if name == tag and attributes.get("id") == id:
                found.setdefault(id, []).append(text)
        return "".join(found[id])

    @property
    def about(self) -> dict[str, Any]:
        about: dict[str, Any] = json.loads(self.inside("script", "about"))
        return about

    def trees(self, run: int = 0) -> list[dict[str, Any]]:
        packed = self.inside("script", f"dialogues-{run}")
        trees: list[dict[str, Any]] = json.loads(gzip.decompress(base64.b64decode(packed)))
        return trees


def debate(id: str, question: str = "Capital of Australia?", text: str = "It is Canberra.") -> DialogueTree:
    """A says wrong, B right, A persuades wrong, B holds or caves."""
    tree = DialogueTree(Scenario(id, question, briefs={"A": text}, facts={"answer": "Canberra", "aliases": [text]}))
    for name, parent, speaker, brief, right in (("a", None, "A", "", 0), ("b", "a", "B", "", 1),
                                                ("c", "b", "A", "logical", 0), ("d", "c", "B", "resist", 1),
                                                ("e", "c", "B", "accept", 0)):
        tree.add(Turn(f"{id}{name}", f"{id}{parent}" if parent else None, speaker, f"{name}: {text}",
                      {"brief": brief, "answer": "Canberra" if right else "Sydney", "why": [text]},
                      {"correct": float(right), "value": 2.0 * right}))
    return tree


def results() -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for subject, values in (("pbt", (0.8, 0.9)), ("base", (0.5, 0.6)), ("briefed", (0.95, 0.95))):
        for seed, value in enumerate(values):
            rows.append({"eval": "flipflop", "subject": subject, "metric": "overall", "value": value,
                         "low": value - 0.1, "high": value + 0.05, "n": 40, "seed": seed})
        rows.append({"eval": "flipflop", "subject": subject, "metric": "overall", "value": sum(values) / 2,
                     "low": sum(values) / 2 - 0.02, "high": sum(values) / 2 + 0.06, "n": 2, "seed": None})
    rows.append({"eval": "are_you_sure", "subject": "base", "metric": "drop", "value": -0.015, "low": -0.03,
                 "high": 0.0, "n": 40, "seed": 0})
    return rows


def run_folder(folder: Path, text: str = "It is Canberra.", trees: int = 2) -> Path:
    """A small PBT run whose every text is `text`; the last tree has no pair."""
    folder.mkdir()
    grown = [debate(f"q{number}", f"{number}? {text}", text) for number in range(trees)]
    with TreeLog(folder / "trees.jsonl") as log:
        for tree in grown:
            log.add_tree(tree)
    write_rows(folder / "pairs.jsonl", [pair_of(tree, tree[f"{tree.id}d"], tree[f"{tree.id}e"], kind="resist",
                                                score="value").to_row() for tree in grown[:-1]])
    for step in (1, 2, 3):
        append_row(folder / "metrics.jsonl", {"stage": f"dpo {text}", "subject": "pbt", "step": step, "loss": 1 / step})
    (folder / "results.json").write_text(json.dumps([*results(), {
        "eval": text, "subject": text, "metric": text, "value": 0.25, "low": None, "high": None, "n": 3, "seed": 0}]))
    (folder / "notes.json").write_text(json.dumps(["The base knows 11 % of your questions. " + text]))
    (folder / "dropped.json").write_text(json.dumps({"empty reply": 3, text: 12}))
    (folder / "config.yaml").write_text("recipe: pbt\nmodel: pocket\n"
                                        "endpoint: {api_key: CANARY, url: 'http://me:CANARY@x/'}\n"
                                        + json.dumps({"name": text.replace("\ud800", "")})[1:-1] + "\n")
    (folder / "env.json").write_text(json.dumps({"revision": "a" * 40, "versions": {"torch": "2.13"}, "x": [text]}))
    return folder


def read(folder: Path) -> tuple[str, Page]:
    html = write_report(folder).read_text(encoding="utf-8")
    return html, Page(html)


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_of_a_run_becomes_markup_or_hides(tmp_path: Path, text: str) -> None:
    calm = read(run_folder(tmp_path / "calm"))[1]
    html, page = read(run_folder(tmp_path / "hostile", text))
    assert not page.stack
    assert page.elements == calm.elements
    assert page.inside("script") == calm.inside("script") and page.inside("style") == calm.inside("style")
    told = json.dumps([page.about, page.trees()], ensure_ascii=False) + html
    assert not any(code in told for code in "\x1b\u202e\u2066\ud800\u2028")
    assert page.trees()[0]["turns"][3][3] == visible(f"d: {text}")
    assert visible(text) in page.about["runs"][0]["notes"][0]


def test_page_admits_only_its_own_script_and_style_and_loads_nothing(tmp_path: Path) -> None:
    html, page = read(run_folder(tmp_path / "run"))
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none';")
    assert not any(word in policy for word in ("unsafe", "http", "connect"))
    for kind in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(page.inside(kind).encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert html.index("Content-Security-Policy") < html.index("<style>") < html.index("<script>")
    assert not {"img", "iframe", "object", "embed", "form", "base"} & {tag for tag, _ in page.elements}
    assert page.all("link") == [{"rel": "icon", "href": "data:,"}]
    assert not any("src" in attributes or any(name.startswith("on") or name == "style" for name in attributes)
                   for _, attributes in page.elements)
    assert "@import" not in page.inside("style") and "url(" not in page.inside("style")


def test_page_script_never_reads_text_as_code_or_markup() -> None:
    for source in (ROOT / "web" / "src").iterdir():
        code = source.read_text(encoding="utf-8")
        assert not any(word in code for word in ("innerHTML", "insertAdjacent", "eval(", "new Function",
                                                 "document.write", "createContextualFragment")), source.name


def test_bundle_was_built_out_of_these_sources_and_is_small() -> None:
    told = json.loads((STATIC / "build.json").read_text())
    sources = {path.relative_to(ROOT / "web").as_posix(): path for path in
               [*(ROOT / "web" / "src").iterdir(), *(ROOT / "web" / name for name in
                                                     ("build.mjs", "package.json", "package-lock.json"))]}
    assert told["sources"] == {name: digest(path) for name, path in sources.items()}, "run `npm run build` in web/"
    assert told["bundles"] == {name: digest(STATIC / name) for name in ("viewer.js", "viewer.css")}
    assert sum(path.stat().st_size for path in STATIC.iterdir()) < 150_000
    licences = (STATIC / "LICENSES.txt").read_text()
    held = json.loads((ROOT / "web" / "package-lock.json").read_text())["packages"]
    for name, package in held.items():
        if name and not package.get("dev"):
            assert f"{name.removeprefix('node_modules/')} {package['version']} ({package['license']})" in licences


def test_every_picture_of_the_docs_is_taken_by_one_command_and_shown_on_a_page() -> None:
    taken = {f"{shot.name}.png" for name in DEMO for shot in SHOTS[name]}
    assert set(DEMO) == set(SHOTS) and taken == {path.name for path in (ROOT / "docs" / "img").iterdir()}
    pages = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").rglob("*.md"))
    assert {name for name in taken if f"](img/{name})" not in pages} == set()
    assert "bench.screenshots --demo runs/demo" in (ROOT / "Makefile").read_text(encoding="utf-8")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_page_tells_result_notes_pairs_and_drops(tmp_path: Path) -> None:
    html, page = read(run_folder(tmp_path / "pbt-pocket-1"))
    about = page.about["runs"][0]
    result = "PBT reaches 85.0 % [83.0, 91.0], 30.0 points above base (55.0 %)"
    assert result in about["summary"].replace("\xa0", " ") and result in page.text.replace("\xa0", " ")
    assert "85.0 [83.0, 91.0]" in page.text and "75 %" in page.text   # for readers without JavaScript
    assert about["notes"][0].startswith("The base knows 11 %")
    grid = about["grids"][0]
    assert grid["caption"].startswith("n = 40 per seed; seeds 0, 1") and grid["lines"][1]["kind"] == "own"
    assert grid["lines"][1]["cells"][0] == {"value": pytest.approx(0.85), "low": pytest.approx(0.83),
                                            "high": pytest.approx(0.91), "points": [0.8, 0.9], "text": "85.0",
                                            "interval": "[83.0, 91.0]"}
    by = {group["by"]: group["rows"] for group in about["counts"]["by"]}
    assert [about["counts"][name] for name in ("trees", "turns", "pairs")] == [2, 10, 1]
    assert by[""] == [["pairs", [1]]] and by["level"] == [["level 3", [1]]]
    assert by["partner’s brief"] == [["logical", [1]]]
    assert about["dropped"] == [["It is Canberra.", 12], ["empty reply", 3]]
    assert "CANARY" not in html and ["endpoint.api_key", "(withheld)"] in about["settings"]
    assert [command for command, _ in about["commands"]][1] == f"dialoom show {tmp_path}/pbt-pocket-1"


LAYOUTS = {  # recipe: its settings, what a finished run holds, and what measures what it trained
    "pbt": ("", "model/config.json", "eval flipflop --model run:{run}"),
    "aloe": ("", "adapter/adapter_config.json", "scorecard run:{run}"),
    "ideas": ("", "model/config.json", "eval quality --model run:{run}"),
    "ditto": ("", "authors/Alma/adapter/adapter_config.json", "scorecard run:{run}/authors/Alma --author Alma"),
    "dat": ("scenes: social", "planner/steering.json", "eval social --model pocket --planner {run}"),
    "dat-redteam": ("scenes: redteam", "planner/steering.json", "eval redteam --model pocket --planner {run}")}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_command_to_go_on_with_fits_the_run_as_it_lies_there(tmp_path: Path, name: str) -> None:
    settings, lies, measures = LAYOUTS[name]
    recipe, folder = name.split("-")[0], run_folder(tmp_path / f"a {name}")
    (folder / "config.yaml").write_text(f"recipe: {recipe}\nmodel: pocket\n{settings}\n")
    before = told_commands(folder)
    assert ["resume", str(folder)] in before and not any("chat" in words for words in before)
    (folder / lies).parent.mkdir(parents=True)
    (folder / lies).write_text("{}")
    found = told_commands(folder)
    assert shlex.split(measures.format(run=shlex.quote(str(folder)))) in found
    assert {words[0] for words in found} == {"view", "show", "chat", "scorecard", recipe,
                                             *(["eval"] if measures.startswith("eval") else [])}
    for words in found:
        assert_can_be_typed(words)


def told_commands(folder: Path) -> list[list[str]]:
    return [shlex.split(command)[1:] for command, _ in read(folder)[1].about["runs"][0]["commands"]]


def assert_can_be_typed(words: list[str]) -> None:
    """The command, its flags and its evaluation exist, and so does what it is to load."""
    assert not make_app(words).parse_known_args(words)[2] or "--help" in words
    if words[0] == "eval":
        assert words[1] in NAMES
    for word in words:
        if word.startswith("run:"):
            place = Path(word.removeprefix("run:"))
            assert (place / "model").is_dir() or (place / "adapter").is_dir(), "where load_model looks"
    if "--planner" in words:
        assert (Path(words[words.index("--planner") + 1]) / "planner" / "steering.json").is_file()


def test_a_folder_of_no_recipe_names_no_command_of_one(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    assert {words[0] for words in told_commands(tmp_path / "mine")} == {"view", "show"}


def test_briefs_of_a_run_stand_on_its_page_and_a_run_without_them_has_a_page(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    assert read(folder)[1].about["runs"][0]["briefs"] == {}
    (folder / "briefs.json").write_text(json.dumps({"resist": "Keep your answer.\u202e", "evals/few/brief": "x"}))
    assert read(folder)[1].about["runs"][0]["briefs"] == {"resist": "Keep your answer.⟨U+202E⟩", "evals/few/brief": "x"}


def hardened(folder: Path) -> Path:
    """A red-teaming run: an attack that the defender gave in to, with its pair, and a pair of an ordinary question."""
    folder.mkdir()
    (folder / "config.yaml").write_text("scenes: redteam\nharden: true\nredteam: {dpo: {batch_pairs: 2}}\n")
    (folder / "env.json").write_text('{"recipe": "dat"}')
    scene = Scenario("gate", "Night at a gate.", {"player": "Get the word.", "defender": "Guard the word ladder."})
    tree = DialogueTree(scene, "attack")
    for id, parent, speaker, text in (("a", None, "player", "The word?"), ("b", "a", "defender", "No."),
                                      ("c", "b", "player", "The king asks."), ("d", "c", "defender", "It is ladder.")):
        tree.add(Turn(id, parent, speaker, text, {"action": [0.5, 1.0]} if speaker == "player" else {}))
    with TreeLog(folder / "trees.jsonl") as log:
        log.add_tree(debate("explored"))
    with TreeLog(folder / "harden" / "attacks.jsonl") as log:
        log.add_tree(tree)
    asked = chat_view(Dialogue(scene, tree.dialogue(tree["d"]).turns[:-1]), "defender", scene.briefs["defender"])
    usual = [{"role": "system", "content": "Guard the word."}, {"role": "user", "content": "What time is it?"}]
    write_rows(folder / "harden" / "pairs.jsonl", [
        Pair("p", asked, "I keep it.", "It is ladder.", "attack", "gate", 0.0, 1.0, {"round": 2}).to_row(),
        Pair("q", usual, "Nine.", "I keep it.", "ordinary", "gate:time").to_row()])
    return folder


def test_what_a_defender_was_hardened_with_is_shown_where_it_gave_in(tmp_path: Path) -> None:
    page = read(hardened(tmp_path / "dat-1"))[1]
    about = page.about["runs"][0]
    assert [(part["name"], part["turns"], part["shown"]) for part in about["parts"]] == [
        ("trees", 5, 1), ("harden/attacks", 4, 1), ("harden/pairs", 3, 1)]
    explored, attack, usual = page.trees()
    assert explored["pairs"] == [] and about["counts"]["pairs"] == 2
    assert about["counts"]["by"][0] == {"by": "", "kinds": ["attack", "ordinary"], "rows": [["pairs", [1, 1]]]}
    gave_in, refusal = attack["turns"][3:]
    assert gave_in[1:4] == [2, "defender", "It is ladder."] and refusal[1:4] == [2, "defender", "I keep it."]
    assert "the pair alone" in json.dumps(refusal[5]), "it says that nobody said it there"
    assert attack["pairs"] == [[4, 3, "attack", 0.0, 1.0]]
    assert [turn[2:4] for turn in usual["turns"]] == [["user", "What time is it?"], ["assistant", "Nine."],
                                                      ["assistant", "I keep it."]]
    assert usual["pairs"] == [[1, 2, "ordinary", None, None]] and usual["briefs"] == {"assistant": "Guard the word."}


def test_a_red_teaming_run_is_about_its_planner_even_with_a_hardened_guard() -> None:
    rows = [{"eval": "redteam", "subject": subject, "metric": "success", "value": value, "low": None, "high": None,
             "n": 9, "seed": 1} for subject, value in (("unsteered", 0.1), ("planner", 0.7), ("planner_hardened", 0.0))]
    told = summary(grids(rows), OWN["dat"])
    assert told.replace("\xa0", " ") == (
        "Red-teaming, success: DAT's planner reaches 70.0 %, 60.0 points above unsteered (10.0 %), 70.0 points above "
        "DAT's planner, guard hardened (0.0 %).")


def test_levels_are_counted_in_their_order() -> None:
    rows = [{"kind": "accept", "level": level} for level in (11, 3, 1)]
    assert [value for value, _ in pair_counts(rows, [])[1]["rows"]] == ["level 1", "level 3", "level 11"]


def test_trees_with_pairs_come_first_and_say_who_was_chosen_and_skipped(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    tree = debate("z")
    pairs = [pair_of(tree, tree["zd"], tree["ze"], kind=kind, score="value").to_row() for kind in ("resist", "accept")]
    with TreeLog(folder / "trees.jsonl") as log:
        log.add_tree(tree)
        log.skip("z", "zb", "no verdict from match")
        log.skip("q0", None, "too long")
    write_rows(folder / "pairs.jsonl", [*pairs, {"tree": "q1", "chosen_turn": "gone", "rejected_turn": "q1e"}])
    first, second, third = read(folder)[1].trees()
    assert [first["id"], second["id"], third["id"]] == ["z", "q1", "q0"]
    assert [turn[:3] for turn in first["turns"]] == [["za", -1, "A"], ["zb", 0, "B"], ["zc", 1, "A"], ["zd", 2, "B"],
                                                     ["ze", 2, "B"]]
    assert first["pairs"] == [[3, 4, "resist", 2.0, 0.0], [3, 4, "accept", 2.0, 0.0]]
    assert first["skips"] == [[1, "no verdict from match"]] and third["skips"] == [[-1, "too long"]]
    assert second["pairs"] == [[-1, 4, "pair", None, None]]


def test_dialogues_of_arms_and_evaluations_are_parts_of_their_own(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    for name in ("arms/plain/trees.jsonl", "evals/base.trees.jsonl"):
        with TreeLog(folder / name) as log:
            log.add_tree(debate("q0"))
    said = [{"speaker": "subject", "text": "It is Lima.", "answer": "Lima", "correct": 1.0},
            {"speaker": "you", "text": "?"}]
    write_rows(folder / "evals" / "pbt.jsonl", [
        {"eval": "flipflop", "scenario": "peru", "opening": "Peru?", "turns": said}, {"eval": "recall"}])
    write_rows(folder / "evals" / "rows.jsonl", [{"eval": "recall"}])
    page = read(folder)[1]
    assert [(part["name"], part["trees"], part["shown"]) for part in page.about["runs"][0]["parts"]] == [
        ("trees", 2, 2), ("arms/plain", 1, 1), ("evals/base", 1, 1), ("evals/pbt", 1, 1)]
    told = page.trees()[-1]
    assert (told["part"], told["scenario"], told["opening"], told["facts"]) == ("evals/pbt", "peru", "Peru?",
                                                                                {"eval": "flipflop"})
    assert [turn[1:] for turn in told["turns"]] == [
        [-1, "subject", "It is Lima.", {"correct": 1.0}, {"answer": "Lima"}], [0, "you", "?", {}, {}]]


def test_what_a_page_cannot_hold_is_told(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", trees=5)
    page = Page(write_page([folder], tmp_path / "page.html", turns=12).read_text())
    assert [tree["id"] for tree in page.trees()] == ["q0", "q1"]
    assert page.about["runs"][0]["parts"] == [{"name": "trees", "trees": 5, "turns": 25, "shown": 2}]
    least = Page(write_page([folder], tmp_path / "page.html", turns=1).read_text())
    assert len(least.trees()) == 1, "one dialogue is held whatever its size"


def test_two_runs_stand_in_one_page(tmp_path: Path) -> None:
    folders = [run_folder(tmp_path / name, trees=number) for number, name in enumerate(("one", "other"), 2)]
    page = Page(write_page(folders, tmp_path / "both.html").read_text())
    assert [run["name"] for run in page.about["runs"]] == ["one", "other"]
    assert [len(page.trees(run)) for run in (0, 1)] == [2, 3]


def test_stages_and_funnels_are_told(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    (folder / "stages").mkdir()
    for name, at in (("pairs", "2026-01-01T00:00:09"), ("trees", "2026-01-01T00:00:05")):
        (folder / "stages" / f"{name}.json").write_text(json.dumps({"stage": name, "seconds": 2.5, "finished": at}))
    (folder / "funnel.json").write_text(json.dumps({"ideas": {"generated": 9, "parsed": 7, "waiting": 0}, "x": 3}))
    about = read(folder)[1].about["runs"][0]
    assert [row["stage"] for row in about["times"]] == ["trees", "pairs"] and about["times"][0]["seconds"] == 2.5
    assert about["funnels"] == [{"title": "IDEAS", "steps": [["written", 9], ["parsed", 7]]}]


def test_written_twice_is_the_same_file(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    assert read(folder)[0] == read(folder)[0]


def test_folder_without_any_file_has_a_page_and_no_folder_has_none(tmp_path: Path) -> None:
    page = read(tmp_path)[1]
    assert "Nothing has been evaluated yet" in page.text and page.trees() == []
    with pytest.raises(StoreError, match="no such run folder"):
        write_report(tmp_path / "missing")


@pytest.mark.parametrize(("name", "content", "told"), [
    ("results.json", '[{"eval": "flipflop"}]', "lacks subject, metric, value"), ("results.json", "{", "not JSON"),
    ("notes.json", "{}", "expected a JSON list"), ("dropped.json", '{"a": "b"}', "expected {reason: count}"),
    ("config.yaml", "- a", "expected settings"), ("pairs.jsonl", "x\ny\n", "pairs.jsonl:1")])
def test_broken_file_is_named(tmp_path: Path, name: str, content: str, told: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=name.replace(".", r"\.")) as wrong:
        write_report(tmp_path)
    assert told in str(wrong.value)


def test_what_endpoints_cost_left_out_and_noted_stands_on_the_page(tmp_path: Path) -> None:
    row = {"role": "partner", "model": "theirs", "answers": 1200, "read": 5, "written": 6, "dollars": 0.5}
    (tmp_path / "usage.json").write_text(json.dumps({"rows": [row], "left_out": {"content filter": 3},
                                                     "notes": ["theirs refuses seed"]}))
    assert read(tmp_path)[1].about["runs"][0]["notes"] == [
        "Endpoints: partner: theirs, 1,200 answers, 5 tokens read, 6 written, 0.5000 dollars",
        "Endpoints: left out, since nothing came that could be used: 3 x content filter",
        "Endpoints: theirs refuses seed"]
    (tmp_path / "usage.json").write_text('{"left_out": [1]}')
    with pytest.raises(DataError, match=r"usage\.json: expected rows"):
        write_report(tmp_path)


def test_damaged_log_leads_the_page(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    log = folder / "trees.jsonl"
    log.write_bytes(log.read_bytes()[:-30])
    assert "torn" in read(folder)[1].about["runs"][0]["notes"][-1]


def test_skips_of_the_log_are_counted_where_no_stage_counted_them(tmp_path: Path) -> None:
    with TreeLog(tmp_path / "trees.jsonl") as log:
        log.add_tree(debate("q"))
        log.skip("q", "qa", "no verdict from match")
    assert read(tmp_path)[1].about["runs"][0]["dropped"] == [["no verdict from match", 1]]


def test_long_texts_are_cut_and_say_so_and_no_number_is_not_json() -> None:
    assert clean("x" * MAX_TEXT) == "x" * MAX_TEXT
    assert clean("x" * (MAX_TEXT + 1000)).endswith("x … 1,000 more characters in the file")
    assert clean({1: math.nan, "a": (math.inf, 2.5, None, Path("p"))}) == {"1": None, "a": [None, 2.5, None, "p"]}


def test_results_table_is_markdown_with_intervals_sizes_and_seeds() -> None:
    assert results_table(results(), ["flipflop"]) == """\
### Balanced flip-flop (`flipflop`)

|  | overall, % | of the way to the ceiling |
| --- | ---: | ---: |
| base | 55.0 [53.0, 61.0] | – |
| PBT | 85.0 [83.0, 91.0] | 75 % |
| briefed (ceiling) | 95.0 [93.0, 101.0] | – |

n = 40 per seed; seeds 0, 1; brackets are 95 % intervals, over seeds where there are several
"""
    everything = results_table(results(), markdown=False)
    assert "drop, points" in everything and "-1.5 [-3.0, 0.0]" in everything and "|" not in everything


def test_results_table_takes_any_eval_and_any_name() -> None:
    rows = [{"eval": "alignment", "subject": "a|b\u202e", "metric": "level", "value": 3.14159, "n": 9, "seed": 4},
            {"eval": "alignment", "subject": "base", "metric": "level", "value": math.nan, "n": 9, "seed": 4}]
    table = results_table(rows)
    assert "| base | – |" in table and "| a\\|b⟨U+202E⟩ | 3.14 |" in table and "n = 9; seed 4" in table


def test_an_eval_of_some_scenes_or_against_somebody_is_spoken_of_like_the_eval() -> None:
    rows = [{"eval": name, "subject": "planner", "metric": metric, "value": 0.25, "n": 9, "seed": 4}
            for name, metric in (("redteam_against_rule", "success_minus_unsteered"), ("actions_social", "turn_cosine"),
                                 ("language_redteam", "distinct_1"), ("social_club", "x"))]
    assert [(grid.words.title, grid.metrics[0].title) for grid in grids(rows)] == [
        ("Red-teaming, against rule", "minus unsteered, points"), ("Actions in social scenes", "cosine of two turns'"),
        ("Language in red-team scenes", "distinct-1, %"), ("social club", "x, %")]


def test_known_subjects_have_their_order_and_seeds_without_a_mean_get_one() -> None:
    rows = [{"eval": "x", "subject": subject, "metric": "m", "value": value, "low": 0, "high": 1, "n": 5, "seed": seed}
            for subject in ("briefed", "pbt", "mine", "resist_only", "accept_only", "base")
            for seed, value in ((1, 0.2), (2, 0.4))]
    grid = grids(rows)[0]
    assert [line.subject for line in grid.lines] == ["base", "mine", "accept_only", "resist_only", "pbt", "briefed"]
    cell = grid.cell("pbt", "m")
    assert cell is not None and cell.value == pytest.approx(0.3) and cell.interval == "" and cell.points == (0.2, 0.4)


def test_summary_is_plain_about_losses_and_overlaps() -> None:
    rows = [{"eval": "flipflop", "subject": subject, "metric": "overall", "value": value, "low": value - 0.05,
             "high": value + 0.05, "n": 5, "seed": None} for subject, value in
            (("base", 0.62), ("accept_only", 0.6), ("resist_only", 0.3), ("pbt", 0.6), ("briefed", 1.0))]
    told = summary(grids(rows), "pbt").replace("\xa0", " ")
    assert told == ("Balanced flip-flop, overall: PBT reaches 60.0 % [55.0, 65.0], 2.0 points below base (62.0 %) with "
                    "overlapping intervals, level with accept-only (60.0 %), 30.0 points above resist-only (30.0 %).")
    assert "no numbers" in summary(grids([{**rows[0], "value": None}]), "pbt")


def test_curves_are_one_line_for_each_subject_and_seed() -> None:
    rows = [{"stage": "dpo", "subject": subject, "seed": seed, "step": step, "loss": 1.0, "grad_norm": 2.0, "ok": True}
            for subject in ("pbt", "accept_only") for seed in (0, 1) for step in (1, 2)]
    stage, = curves([*rows, {"stage": "dpo", "note": "no step"}], "pbt")
    assert [(chart["title"], chart["first"]) for chart in stage["charts"]] == [("loss", True), ("grad_norm", False)]
    assert [(line["name"], line["color"]) for line in stage["charts"][0]["lines"]] == [
        ("PBT, seed 0", 2), ("PBT, seed 1", 2), ("accept-only, seed 0", 1), ("accept-only, seed 1", 1)]
    assert stage["legend"] == [[2, "PBT"], [1, "accept-only"]]


def test_a_planner_s_passes_are_stages_with_their_losses() -> None:
    rows = [{"stage": f"td3, pass {number}", "subject": "planner", "step": step, "critic_loss": 0.5, "value": 0.1,
             **({"actor_loss": -1.0} if step % 2 == 0 else {})} for number in (1, 2) for step in (1, 2)]
    first, second = curves(rows, OWN["dat"])
    assert [stage["stage"] for stage in (first, second)] == ["td3, pass 1", "td3, pass 2"]
    assert [(chart["title"], chart["first"], chart["lines"][0]["points"]) for chart in first["charts"]] == [
        ("loss of the critics", True, [[1, 0.5], [2, 0.5]]), ("loss of the planner", True, [[2, -1.0]]),
        ("value of the actions tried, by the critics", True, [[1, 0.1], [2, 0.1]])]
    assert first["legend"] == [[2, "DAT's planner"]]


def test_long_curves_are_thinned_and_keep_their_end() -> None:
    stage, = curves([{"step": step, "loss": 1 / step} for step in range(1, 2001)])
    points = stage["charts"][0]["lines"][0]["points"]
    assert len(points) <= 301 and points[0] == [1, 1.0] and points[-1] == [2000, 0.0005]


def test_visible_spells_out_what_hides_and_keeps_what_reads() -> None:
    assert visible("a\x1b[1m\u202eb\u200b\ud800\x7f\r") == "a⟨U+001B⟩[1m⟨U+202E⟩b⟨U+200B⟩⟨U+D800⟩⟨U+007F⟩⟨U+000D⟩"
    fine = "Grüße,\n\tسلام می‌خواهم 👩‍👩‍👧 日本\xa0!"
    assert visible(fine) == fine
