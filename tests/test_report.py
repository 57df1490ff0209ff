"""The report of a run: numbers told rightly, and nobody's text ever run."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dialoom.dialogue import DialogueTree, Scenario, Turn
from dialoom.errors import DataError, StoreError
from dialoom.report import results_table, visible, write_report
from dialoom.report.html import stages, summary
from dialoom.report.svg import Series, line_chart, ticks
from dialoom.report.table import grids
from dialoom.report.walk import MAX_TREES, pages
from dialoom.select import pair_of
from dialoom.store import TreeLog, append_row, write_rows

HOSTILE = ("<script>alert(1)</script>", "</script><img src=x onerror=alert(2)>", "[x](javascript:alert(3))",
           "\x1b[31mred\x1b[0m", "abc\u202edcba\u2066", "' onmouseover='alert(4)", '"><svg onload=alert(5)>',
           "{{ 7 * 7 }} {% raw %}", "</details></div></body>", "\ud800 lone", "<!-- open", "]]>")
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """A page as a browser would take it apart: elements with their attributes, text, and the deepest nesting."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self.stack: list[str] = []
        self.deepest = 0
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.stack.append(tag)
            self.deepest = max(self.deepest, len(self.stack))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack and self.stack[-1] == tag, f"</{tag}> closes {self.stack[-3:]}"
        self.stack.pop()

    def handle_data(self, data: str) -> None:
        inside = self.stack[-1] if self.stack else ""
        {"script": self.scripts, "style": self.styles}.get(inside, self.texts).append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


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
                                        + json.dumps({"name": text})[1:-1] + "\n")
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
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in calm.elements]
    assert page.scripts == calm.scripts and page.styles == calm.styles
    for _tag, attributes in page.elements:
        assert not any(name.startswith("on") or name == "style" for name in attributes)
        assert all(attributes.get(name, "#").startswith(("#", "data:,")) for name in ("href", "src", "xlink:href"))
    assert not any(code in html for code in "\x1b\u202e\u2066\ud800")
    assert " ".join(visible(f"d: {text}").split()) in page.text


def test_page_admits_only_its_own_script_and_style_and_loads_nothing(tmp_path: Path) -> None:
    html, page = read(run_folder(tmp_path / "run"))
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none';") and "unsafe" not in policy and "http" not in policy
    for kind, (text,) in (("script", page.scripts), ("style", page.styles)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert html.index("Content-Security-Policy") < html.index("<style>") < html.index("<script>")
    assert not {"img", "iframe", "object", "embed", "form", "base"} & {tag for tag, _ in page.elements}
    assert page.all("link") == [{"rel": "icon", "href": "data:,"}]
    assert "@import" not in html and "url(" not in html
    assert any(meta.get("name") == "viewport" for meta in page.all("meta")) and "prefers-color-scheme: dark" in html


def test_report_tells_result_notes_pairs_and_drops(tmp_path: Path) -> None:
    html, page = read(run_folder(tmp_path / "pbt-pocket-1"))
    text = page.text.replace("\xa0", " ")
    result = "PBT reaches 85.0 % [83.0, 91.0], 30.0 points above base (55.0 %)"
    assert text.index("The base knows 11 %") < text.index(result)
    assert "85.0 [83.0, 91.0]" in text and "75 %" in text and "n = 40 per seed; seeds 0, 1" in text
    for told in ("2 trees, 10 turns, 1 pair.", "empty reply 3", "level 3 1 1", "logical 1 1", "resist pair · 2",
                 "answer Canberra – right", "answer Sydney – wrong", "dialoom show", "run:", "hf:", "torch"):
        assert told in text, told
    assert "CANARY" not in html and "(withheld)" in text


def test_first_tree_is_open_to_its_pair_without_script_and_pairs_come_first(tmp_path: Path) -> None:
    page = read(run_folder(tmp_path / "run"))[1]
    trees = [one for one in page.all("details") if one.get("class") == "tree"]
    assert ["open" in one for one in trees] == [True, False]
    assert [json.loads(one["data-kinds"]) for one in trees] == [["resist"], []]
    turns = {one["id"]: one for one in page.all("details") if one.get("class", "").startswith("turn")}
    assert ["open" in turns[f"t1-{number}"] for number in range(5)] == [True, True, True, False, False]
    assert "chosen" in turns["t1-3"]["class"] and "rejected" in turns["t1-4"]["class"]
    linked = {link["href"][1:] for link in page.all("a") if link["href"].startswith("#t") and "-" in link["href"]}
    assert linked == set(turns)


def test_written_twice_is_the_same_file(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    assert read(folder)[0] == read(folder)[0]


def test_folder_without_any_file_has_a_report_and_no_folder_has_none(tmp_path: Path) -> None:
    text = read(tmp_path)[1].text
    assert "Nothing has been evaluated yet" in text and "Nothing was dropped" in text
    with pytest.raises(StoreError, match="no such run folder"):
        write_report(tmp_path / "missing")


@pytest.mark.parametrize(("name", "content", "told"), [
    ("results.json", '[{"eval": "flipflop"}]', "lacks subject, metric, value"), ("results.json", "{", "not JSON"),
    ("notes.json", "{}", "expected a JSON list"), ("dropped.json", '{"a": "b"}', "expected {reason: count}"),
    ("config.yaml", "- a", "expected a YAML mapping"), ("pairs.jsonl", "x\ny\n", "pairs.jsonl:1")])
def test_broken_file_is_named(tmp_path: Path, name: str, content: str, told: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=name.replace(".", r"\.")) as wrong:
        write_report(tmp_path)
    assert told in str(wrong.value)


def test_damaged_log_leads_the_report(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    log = folder / "trees.jsonl"
    log.write_bytes(log.read_bytes()[:-30])
    assert "torn" in read(folder)[1].text


def test_skips_of_the_log_are_counted_where_no_stage_counted_them(tmp_path: Path) -> None:
    with TreeLog(tmp_path / "trees.jsonl") as log:
        log.add_tree(debate("q"))
        log.skip("q", "qa", "no verdict from match")
    assert "no verdict from match 1" in read(tmp_path)[1].text


def test_more_trees_than_a_page_holds_are_told(tmp_path: Path) -> None:
    trees = [DialogueTree(Scenario(f"q{number}", f"question {number}")) for number in range(MAX_TREES + 7)]
    trees.append(debate("last"))
    with TreeLog(tmp_path / "trees.jsonl") as log:
        for tree in trees:
            log.add_tree(tree)
    pair = pair_of(trees[-1], trees[-1]["lastd"], trees[-1]["laste"], kind="resist", score="value").to_row()
    write_rows(tmp_path / "pairs.jsonl", [pair])
    assert [page.tree.id for page in pages(trees, [pair])][:2] == ["last", "q0"]
    told = f"holds {MAX_TREES} of {MAX_TREES + 8} trees, those with pairs first; 8 are not shown"
    assert told in read(tmp_path)[1].text


def test_long_dialogue_and_long_turn_stay_within_what_browsers_show(tmp_path: Path) -> None:
    tree = DialogueTree(Scenario("q", "long"))
    for number in range(400):
        text = "x" * (5 if number else 5000)
        tree.add(Turn(str(number), str(number - 1) if number else None, "AB"[number % 2], text))
    with TreeLog(tmp_path / "trees.jsonl") as log:
        log.add_tree(tree)
    page = read(tmp_path)[1]
    assert not page.stack and page.deepest < 256
    assert "… 1,000 more characters in trees.jsonl" in page.text


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
    rows = [{"stage": "dpo", "subject": subject, "seed": seed, "step": step, "loss": 1.0, "grad_norm": 2.0}
            for subject in ("pbt", "accept_only") for seed in (0, 1) for step in (1, 2)]
    stage, = stages([*rows, {"stage": "dpo", "note": "no step"}], "pbt")
    assert [name for name, _ in stage.first] == ["loss"] and [name for name, _ in stage.more] == ["grad_norm"]
    assert stage.first[0][1].count('class="line') == 4
    assert [name for _, name in stage.legend] == ["PBT", "accept-only"]


def test_chart_breaks_at_what_is_not_finite_and_survives_nothing_to_draw() -> None:
    chart = line_chart("loss", [Series("a", [(0, 1.0), (1, 2.0), (2, math.nan), (3, 1.0)])])
    line = chart.split(' d="')[-1].split('"')[0]
    assert line.count("M") == 2 and "nan" not in line
    assert "no finite value" in line_chart("loss", [Series("a", [(0, math.inf)])])
    assert "no finite value" in line_chart("loss", [])
    assert line_chart("flat", [Series("a", [(1, 0.0)])])


@pytest.mark.parametrize(("low", "high", "expected"), [(0, 1, [0, 0.25, 0.5, 0.75, 1]), (1, 60, [20, 40, 60]),
                                                       (-3, 2, [-2, 0, 2]), (5, 5, [5])])
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_visible_spells_out_what_hides_and_keeps_what_reads() -> None:
    assert visible("a\x1b[1m\u202eb\u200b\ud800\x7f\r") == "a⟨U+001B⟩[1m⟨U+202E⟩b⟨U+200B⟩⟨U+D800⟩⟨U+007F⟩⟨U+000D⟩"
    fine = "Grüße,\n\tسلام می‌خواهم 👩‍👩‍👧 日本\xa0!"
    assert visible(fine) == fine
