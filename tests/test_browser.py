"""The viewer in a real browser: nobody's text runs, every key works, and all can be read by everyone.

Skipped, with the reason, where there is no Chromium.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.browser import browser, find_chromium
from dialoom.dialogue import DialogueTree, Scenario, Turn
from dialoom.report import visible, write_page
from dialoom.report.summary import Found, Matrix, Square, summary_page
from dialoom.report.table import grids
from dialoom.select import pair_of
from dialoom.store import TreeLog, append_row, write_rows
from dialoom.view import serve
from tests.test_report import HOSTILE, debate, hardened, results, run_folder

pytest.importorskip("playwright.sync_api", reason="the viewer is not tested in a browser: no playwright (extra `dev`)")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(
    find_chromium() is None, reason="the viewer is not tested in a browser: no Chromium (apt-get install chromium, or "
                                    "DIALOOM_CHROMIUM=/path)")]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as running:
        yield running


class Tab:
    """One tab, and whatever happened in it that should not: errors, refusals of the security policy, requests."""

    def __init__(self, chromium: Any, **options: Any) -> None:
        self.page = chromium.new_context(**options).new_page()
        self.page.set_default_timeout(20_000)
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.said.append(f"dialog {dialog.message}"), dialog.dismiss()))
        self.page.on("request", lambda request: self.asked.append(request.url))

    def open(self, address: str | Path, part: str = "") -> Any:
        """Go to a page afresh and wait until its dialogues are there."""
        self.page.goto("about:blank")
        self.page.goto((address.as_uri() if isinstance(address, Path) else address) + part)
        self.page.wait_for_function("document.querySelector('main > *')")
        if part.startswith("#dialogues"):
            self.page.wait_for_selector(".row, .empty")
        return self.page

    def close(self) -> None:
        self.page.context.close()


@pytest.fixture
def tab(chromium: Any) -> Iterator[Tab]:
    one = Tab(chromium, viewport={"width": 1300, "height": 900})
    yield one
    one.close()


def hostile_folder(tmp_path: Path, text: str) -> Path:
    """A run in which ids, speakers, briefs, notes, kinds, reasons, settings and the folder's own name are `text`."""
    inner = visible(text).replace("\x00", "")
    folder = run_folder(tmp_path / ("run " + inner.replace("/", "∕")), text)
    tree = DialogueTree(Scenario(f"scene {text}", text, briefs={text: text}, facts={text: [text, {text: text}]}), text)
    notes = {"brief": text, "strategy": text, "model": text, "answer": text, text: text, "rejected": text,
             "action": [0.5, -1.0, 2]}
    for name, parent in (("a", None), ("b", "a"), ("c", "a")):
        tree.add(Turn(f"{name}{text}", f"{parent}{text}" if parent else None, text, text, dict(notes), {text: 0.5}))
    with TreeLog(folder / "trees.jsonl") as log:
        log.add_tree(tree)
        log.skip(tree.id, f"b{text}", text)
        log.skip(tree.id, None, text)
    write_rows(folder / "pairs.jsonl", [pair_of(tree, tree[f"b{text}"], tree[f"c{text}"], kind=text,
                                                score=text).to_row()])
    (folder / "stages").mkdir()
    (folder / "stages" / "x.json").write_text(json.dumps({"stage": text, "seconds": 1, "finished": text}))
    (folder / "funnel.json").write_text(json.dumps({text: {"generated": 3}}))
    (folder / "briefs.json").write_text(json.dumps({text: text}))
    return folder


def look_everywhere(tab: Tab, address: str | Path, text: str) -> None:
    """Open everything that can be opened, and search for the text."""
    page = tab.open(address)
    for part in ("", "#settings", "#dialogues"):
        page = tab.open(address, part)
        page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true })")
    page.locator(".row").first.click()
    page.locator("[role=treeitem]").nth(1).click()
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true })")
    page.fill("#search", text.replace('"', "")[:40])
    page.wait_for_selector(".row")
    page.click("button:text-is('turns')")
    page.locator(".row").first.click()
    page.wait_for_selector(".turn.current")


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_of_a_run_is_run_or_becomes_an_element(tab: Tab, tmp_path: Path, text: str) -> None:
    page = write_page([hostile_folder(tmp_path, text)], tmp_path / "page.html")
    look_everywhere(tab, page, visible(text))
    assert tab.said == []
    assert {address.split("#")[0] for address in tab.asked} <= {"about:blank", page.as_uri(), "data:,"}
    assert tab.page.evaluate("document.querySelectorAll('img, iframe, object, embed, form, base').length") == 0
    assert tab.page.evaluate("document.scripts.length") == 3
    assert not tab.page.evaluate("""[...document.querySelectorAll('*')].some((one) => [...one.attributes].some(
        ({name, value}) => name.startsWith('on') || /^\\s*javascript:/i.test(value)))""")
    shown = " ".join(tab.page.inner_text(".turn.current .said").split())
    assert shown == " ".join(visible(text).split())


def test_live_page_runs_no_text_either(tab: Tab, tmp_path: Path) -> None:
    text = "".join(HOSTILE)
    with serve([hostile_folder(tmp_path, text[:60])], port=0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        look_everywhere(tab, server.address, visible(text[:60]))
        assert tab.said == [] and tab.page.evaluate("document.querySelectorAll('img, iframe').length") == 0
        assert all(address.startswith((server.address, "about:", "data:")) for address in tab.asked)
        server.shutdown()


def test_policy_stops_what_would_still_get_in(tab: Tab, tmp_path: Path) -> None:
    page = tab.open(write_page([run_folder(tmp_path / "run")], tmp_path / "page.html"))
    page.evaluate("""() => {
        const script = document.createElement('script'); script.textContent = 'window.ran = true';
        document.body.append(script);
        const image = document.createElement('img'); image.setAttribute('onerror', 'window.ran = true');
        image.src = 'http://127.0.0.1:9/x.png'; document.body.append(image);
    }""")
    page.wait_for_timeout(300)
    assert page.evaluate("window.ran") is None
    assert page.evaluate("fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'refused')") == "refused"
    assert len([line for line in tab.said if "Content Security Policy" in line or "violates" in line]) >= 2


def test_dialogues_are_walked_with_keys_alone(tab: Tab, tmp_path: Path) -> None:
    page = tab.open(write_page([run_folder(tmp_path / "run", trees=4)], tmp_path / "page.html"), "#dialogues")

    def press(*keys: str) -> str:
        for key in keys:
            page.keyboard.press(key)
        page.wait_for_timeout(50)
        focused: str = page.evaluate("""(document.activeElement.getAttribute('role') ?? '') + ' ' +
            (document.activeElement.querySelector('.said')?.textContent.slice(0, 1) ?? '')""")
        return focused

    page.focus("#search")
    assert press("ArrowDown") == "listbox "
    press("ArrowDown", "ArrowDown")
    assert page.inner_text(".opening").startswith("2?")
    assert page.get_attribute("#found", "aria-activedescendant") == "found-2"
    assert page.get_attribute("#found-2", "aria-selected") == "true"
    assert press("Enter") == "treeitem a"
    assert press("ArrowDown") == "treeitem b" and press("ArrowRight") == "treeitem c"
    assert press("ArrowLeft") == "treeitem c"
    item = "[role=treeitem][tabindex='0']"
    assert page.get_attribute(item, "aria-expanded") == "false" and page.locator("[role=treeitem]").count() == 3
    assert press("ArrowRight", "ArrowRight") == "treeitem d"
    assert press("Shift+ArrowDown") == "treeitem e" and press("Shift+ArrowUp") == "treeitem d"
    assert [page.get_attribute(item, f"aria-{name}") for name in ("level", "posinset", "setsize")] == ["4", "1", "2"]
    assert press("Home") == "treeitem a" and press("End") == "treeitem e"
    assert press("ArrowLeft") == "treeitem c"
    assert page.evaluate("location.hash") == "#dialogues/0/trees/q2/q2c"
    assert press("n") == "treeitem a" and page.inner_text(".opening").startswith("3?")
    assert press("p") == "treeitem a" and page.inner_text(".opening").startswith("2?")
    assert press("Escape") == "listbox "
    assert page.locator("[tabindex='0'][role=treeitem]").count() == 1, "one stop for the Tab key"
    assert tab.said == []


def test_address_leads_to_a_turn(tab: Tab, tmp_path: Path) -> None:
    page = tab.open(write_page([run_folder(tmp_path / "run")], tmp_path / "page.html"), "#dialogues/0/trees/q1/q1e")
    assert page.inner_text(".turn.current .said").startswith("e:")
    page = tab.open(tmp_path / "page.html", "#dialogues/7/%E0%A4%A/nothing")
    assert page.locator(".opening").count() == 0 and tab.said == []


def test_filters_and_search_leave_what_they_say(tab: Tab, tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", trees=3)
    with TreeLog(folder / "trees.jsonl") as log:
        log.skip("q2", "q2b", "no verdict")
    page = tab.open(write_page([folder], tmp_path / "page.html"), "#dialogues")

    def left() -> str:
        page.wait_for_timeout(60)
        told: str = page.inner_text(".status").split(".")[0]
        return told

    def choose(label: str, value: str) -> str:
        page.select_option(f".choices label:has-text('{label}') select", value)
        return left()

    assert left() == "3 dialogues, 15 turns"
    page.click("summary:has-text('Filters')")
    assert choose("Speaker", "A") == "3 dialogues, 6 turns found"
    assert choose("Speaker", "") == "3 dialogues, 15 turns"
    assert choose("Pairs", "=resist") == "2 dialogues, 4 turns found"
    assert choose("Side", "chosen") == "2 dialogues, 2 turns found"
    page.click("button:text-is('Clear filters')")
    assert choose("Dropped", "=no verdict") == "1 dialogue, 1 turn found"
    assert choose("Dropped", "kept") == "3 dialogues, 14 turns found"
    choose("Dropped", "")
    assert choose("Brief", "brief: accept") == "3 dialogues, 3 turns found"
    choose("Brief", "")
    assert choose("Score", "value") == "3 dialogues, 15 turns found"
    page.fill(".choices label:has-text('from') input", "1")
    assert left() == "3 dialogues, 6 turns found"
    page.click("button:text-is('Clear filters')")
    page.fill("#search", "CANBERRA e:")
    assert left() == "3 dialogues, 3 turns found" and page.locator(".row mark").count() >= 3
    page.fill("#search", '"it is canberra"')
    assert left() == "3 dialogues, 15 turns found"
    page.fill("#search", '"canberra it is"')
    assert left() == "0 dialogues, 0 turns found"
    assert page.is_visible("text=No dialogue passes the filters.")


def test_list_of_thousands_draws_only_what_is_in_sight(tab: Tab, tmp_path: Path) -> None:
    tmp_path.joinpath("run").mkdir()
    with TreeLog(tmp_path / "run" / "trees.jsonl") as log:
        for number in range(3000):
            log.add_tree(debate(f"t{number:04}", f"question {number}"))
    page = tab.open(write_page([tmp_path / "run"], tmp_path / "page.html"), "#dialogues")
    assert "3,000 dialogues, 15,000 turns" in page.inner_text(".status")
    page.focus("#found")
    page.keyboard.press("End")
    page.wait_for_selector("#found-2999")
    assert page.inner_text(".opening") == "question 2999" and page.locator(".row").count() < 60
    page.fill("#search", "question 1234")
    page.wait_for_selector(".row:has-text('question 1234')")
    assert page.locator(".row").count() == 1


def test_notes_of_a_turn_are_shown(tab: Tab, tmp_path: Path) -> None:
    tree = DialogueTree(Scenario("s", "A scene", briefs={"A": "sell dear"}, facts={"price": 7}))
    tree.add(Turn("t", None, "A", "Hello", {"strategy": "anchor high", "action": [0.5, -0.25, 1.0], "why": "of it"}))
    tree.add(Turn("u", "t", "B", "", {"rejected": "empty"}))
    with TreeLog(tmp_path / "trees.jsonl") as log:
        log.add_tree(tree)
    page = tab.open(write_page([tmp_path], tmp_path / "page.html"), "#dialogues/0/trees/s/t")
    assert "anchor high" in page.inner_text(".turn.current")
    assert page.get_attribute(".turn.current .columns-mini", "aria-label") == (
        "action of 3 numbers, largest number 3: 1, number 1: 0.5"), "what a screen reader hears"
    assert page.locator(".turn.current .columns-mini rect.minus").count() == 1
    assert "dropped: empty" in page.inner_text(".turn.lost") and "(nothing)" in page.inner_text(".turn.lost")
    assert not page.is_visible("text=sell dear"), "private text is shown on demand only"
    page.click("summary:has-text('Private')")
    assert page.is_visible("text=sell dear")
    page.click("summary:has-text('in full')")
    page.click("summary:has-text('as JSON')")
    assert json.loads(page.inner_text(".full pre"))["notes"]["why"] == "of it"


def test_a_private_brief_unfolds_where_the_run_wrote_it_down(tab: Tab, tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    page = tab.open(write_page([folder], tmp_path / "page.html"), "#dialogues/0/trees/q0/q0d")
    page.click("summary:has-text('in full')")
    assert "resist" in page.inner_text(".full") and page.locator("details.brief").count() == 0, "an older run's name"
    with TreeLog(folder / "evals" / "few.jsonl") as log:
        log.add_tree(debate("q0"))
    (folder / "briefs.json").write_text(json.dumps({
        "resist": "Keep your own answer.", "evals/few/resist": "Keep it here.", "accept": ""}))
    for address, name, text in (("trees/q0/q0d", "resist", "Keep your own answer."),
                                ("evals%2Ffew/q0/q0d", "resist", "Keep it here."),
                                ("trees/q0/q0e", "accept", "(no system message)")):
        page = tab.open(write_page([folder], tmp_path / "page.html"), f"#dialogues/0/{address}")
        page.click("summary:has-text('in full')")
        assert not page.is_visible(f"text={text}"), "private text is shown on demand only"
        page.click(f"details.brief summary:has-text('{name}')")
        assert page.inner_text("details.brief p") == text
    assert tab.said == []


def test_search_finds_whom_a_dialogue_is_with_and_says_where(tab: Tab, tmp_path: Path) -> None:
    with TreeLog(tmp_path / "trees.jsonl") as log:
        for name, home in (("one", "She lives on an island."), ("two", "She lives in a city.")):
            tree = DialogueTree(Scenario(name, "", facts={"persona": {"facts": [home]}}), name)
            tree.add(Turn(f"{name}-a", None, "user", "Hello from the harbour."))
            log.add_tree(tree)
    page = tab.open(write_page([tmp_path], tmp_path / "page.html"), "#dialogues")
    page.fill("#search", "island")
    page.wait_for_selector(".row .chip:text-is('in the private part')")
    assert page.locator(".row").count() == 1 and "1 dialogue, 0 turns found" in page.inner_text(".status")
    page.locator(".row").click()
    page.click("summary:has-text('Private')")
    assert page.inner_text("dl mark") == "island"
    page.fill("#search", "harbour")
    page.wait_for_function("document.querySelectorAll('.row').length === 2")
    assert page.locator(".chip:text-is('in the private part')").count() == 0
    assert tab.said == []


def test_of_many_strategies_one_types_a_part(tab: Tab, tmp_path: Path) -> None:
    with TreeLog(tmp_path / "trees.jsonl") as log:
        for number in range(210):
            tree = DialogueTree(Scenario(f"s{number}", "Hi"), f"t{number:03}")
            asked = f"ask for {'costs' if number < 3 else number}"
            tree.add(Turn(f"u{number}", None, "user", "Why?", {"strategy": asked}))
            tree.add(Turn(f"v{number}", f"u{number}", "assistant", "Because.", {"brief": f"so {number}"}))
            log.add_tree(tree)
    page = tab.open(write_page([tmp_path], tmp_path / "page.html"), "#dialogues")
    page.click("summary:has-text('Filters')")
    field = ".choices label:has-text('Brief or strategy') input"
    assert page.get_attribute(field, "placeholder") == "part of one of 418"
    page.fill(field, "FOR COSTS")
    page.wait_for_function("document.querySelector('.status').textContent.startsWith('3 dialogues, 3 turns')")
    page.fill(field, "brief: so 7")   # exactly that one, not those that go on
    page.wait_for_function("document.querySelector('.status').textContent.startsWith('1 dialogue, 1 turn')")
    assert tab.said == []


def test_a_hardened_defender_s_pairs_are_edges_of_the_attacks(tab: Tab, tmp_path: Path) -> None:
    page = tab.open(write_page([hardened(tmp_path / "dat-1")], tmp_path / "page.html"),
                    "#dialogues/0/harden%2Fattacks/attack/d")
    assert page.locator(".map .edge.rejected").count() == 1 and page.locator(".map .edge.chosen").count() == 1
    assert "It is ladder." in page.inner_text(".turn.rejected .said")
    assert "I keep it." in page.inner_text(".turn.chosen .said")
    page.click("summary:has-text('Filters')")
    page.select_option(".choices label:has(> span:text-is('Pairs')) select", "=ordinary")
    page.wait_for_selector(".row:has-text('harden/pairs')")
    assert page.locator(".row").count() == 1 and tab.said == []


def test_two_runs_stand_side_by_side(tab: Tab, tmp_path: Path) -> None:
    folders = [run_folder(tmp_path / name, trees=trees) for name, trees in (("one", 2), ("other", 3))]
    (folders[1] / "config.yaml").write_text("recipe: pbt\nmodel: other\n")
    page = tab.open(write_page(folders, tmp_path / "page.html"))
    assert page.locator(".results").first.locator("tbody tr").first.locator(".letter").count() >= 2
    page = tab.open(tmp_path / "page.html", "#settings")
    assert "pocket" in page.inner_text("tr.differs:has-text('model')")
    page = tab.open(tmp_path / "page.html", "#dialogues/0/trees/q1")
    assert page.locator(".pane").count() == 2
    assert page.locator(".opening").all_inner_texts() == ["1? It is Canberra."] * 2
    page = tab.open(tmp_path / "page.html", "#dialogues/1/trees/q2")
    assert page.locator(".pane").count() == 1 and page.is_visible("text=The other run has no dialogue about this")
    assert tab.said == []


def test_live_page_shows_what_is_said_meanwhile(tab: Tab, tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    with serve([folder], port=0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = tab.open(server.address, "#dialogues/0/trees/q1/q1e")
        page.wait_for_selector(".turn.current")
        with TreeLog(folder / "trees.jsonl") as log:
            log.add_turns(log.trees()["q1"], [Turn("new", "q1e", "A", "And now?")])
        append_row(folder / "metrics.jsonl", {"stage": "a new stage", "step": 1, "loss": 0.5})
        page.wait_for_selector(".turn:has-text('And now?')")
        assert page.inner_text(".turn.current .said").startswith("e:"), "what was chosen stays chosen"
        page.click("nav a:text-is('Overview')")
        page.wait_for_selector("h3:text-is('a new stage')")
        server.shutdown()
    page.wait_for_selector("[role=alert]:has-text('does not answer')")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1300, 390])
def test_everyone_can_read_it(chromium: Any, tmp_path: Path, scheme: str, width: int) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe to test accessibility with").Axe()
    folders = [run_folder(tmp_path / name) for name in ("one", "other")]
    tab = Tab(chromium, viewport={"width": width, "height": 900}, color_scheme=scheme)
    for number in (1, 2):
        path = write_page(folders[:number], tmp_path / "page.html")
        for part in ("", "#settings", "#dialogues/0/trees/q0/q0d"):
            page = tab.open(path, part)
            page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true })")
            found = axe.run(page).response["violations"]
            assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in found] == []
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{part} is too wide"
    tab.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1300, 390])
def test_everyone_can_read_the_summary_of_several_runs(chromium: Any, tmp_path: Path, scheme: str, width: int) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe to test accessibility with").Axe()
    heads = [(f"{name} ↑", f"what {name} is") for name in ("flip-flop", "misinformation", "alignment", "chat quality",
                                                           "win rate over base", "are you sure", "social", "guard")]
    squares = [Square("50.0 [40.0, 60.0]", tone) for tone in ("better", "worse", *[""] * 5)] + [Square("n/a")]
    matrix = Matrix(heads, [(name, squares) for name in ("base", "pocket-guard, hardened")], ["guard: no guard"])
    found = [Found("PBT: to hold", grids(results()), "pbt/report.html")]
    (tmp_path / "summary.html").write_text(summary_page("What came out", found, matrix))
    tab = Tab(chromium, viewport={"width": width, "height": 900}, color_scheme=scheme)
    tab.page.goto((tmp_path / "summary.html").as_uri())
    violations = axe.run(tab.page).response["violations"]
    assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in violations] == []
    assert tab.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "too wide"
    heads = tab.page.locator(".crossed thead th").all()
    assert all(head.evaluate("one => one.scrollWidth <= one.clientWidth + 1") for head in heads)
    assert tab.said == []
    tab.close()


def test_theme_is_chosen_and_kept(tab: Tab, tmp_path: Path) -> None:
    path = write_page([run_folder(tmp_path / "run")], tmp_path / "page.html")
    page = tab.open(path)
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.click("button:has-text('Theme: auto')")
    page.click("button:has-text('Theme: light')")
    page.wait_for_selector("html[data-theme=dark]")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light
    assert tab.open(path).inner_text(".theme") == "Theme: dark"
