"""The page of an audit: everything is text, nothing is loaded, and everybody can read it; also in a real browser."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.browser import browser, find_chromium
from dialoom.audit.look import look
from dialoom.audit.page import page, write_audit
from dialoom.audit.sources import read_material
from dialoom.cli import main
from dialoom.report import visible
from dialoom.store import write_rows
from tests.test_audit import PLANTED, Said, pair_row, transcripts, written
from tests.test_audit_tokens import reader_of
from tests.test_report import HOSTILE, Page


def audit_of(tmp_path: Path, dialogues: list[Said], tokens: bool = True) -> str:
    """The page of some dialogues, in tiny's tokens."""
    return page(look(read_material(written(tmp_path / "talk.jsonl", dialogues)), reader_of() if tokens else None))


def hostile(text: str) -> list[Said]:
    """Dialogues in which every turn is `text`, so that there are findings with examples."""
    inner = text.encode("utf-8", "ignore").decode()   # the reader cuts at what no file can hold
    return [[("user", f"As an AI I say {inner} {at}"), ("assistant", f"User: {inner}"), ("user", inner),
             ("assistant", inner)] for at in range(12)]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_becomes_markup(tmp_path: Path, text: str) -> None:
    clean = Page(audit_of(tmp_path, hostile("plain words")))
    found = Page(audit_of(tmp_path, hostile(text)))
    names = {name for name, _ in clean.elements}
    assert {name for name, _ in found.elements} <= names and "script" not in names
    keys = {key for _, about in clean.elements for key in about}
    assert {key for _, about in found.elements for key in about} <= keys
    assert not any(about.get("href", "#").split("#")[0] not in ("", "data:,") for _, about in found.elements)
    inner = visible(text.encode("utf-8", "ignore").decode())
    whole = " ".join("".join(part for *_, part in found.texts).split())
    assert " ".join(inner.split()) in whole
    if not text.isprintable():
        assert text not in "".join(part for *_, part in found.texts)


def test_ids_paths_and_models_are_escaped_too(tmp_path: Path) -> None:
    text = "\"><img src=x onerror=alert(1)>'"
    path = tmp_path / "<b>x.jsonl"
    write_rows(path, [pair_row(id=text, kind=text, tree=text, chosen=text, rejected=f"{text} ")])
    made = page(look(read_material(path)))
    assert "<img" not in made and "<b>x" not in made and "&lt;img" in made


def test_policy_admits_the_page_s_own_style_and_nothing_else(tmp_path: Path) -> None:
    made = Page(audit_of(tmp_path, transcripts()))
    policy = next(about["content"] for name, about in made.elements if name == "meta" and "http-equiv" in about)
    css = next(text for name, _, text in made.texts if name == "style")
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in policy and policy.startswith("default-src 'none'; ")
    assert "script" not in policy and not any("style" in about for _, about in made.elements)


def test_examples_lead_to_their_dialogues(tmp_path: Path) -> None:
    dialogues = transcripts()
    PLANTED["user is an AI"][0](dialogues)
    made = Page(audit_of(tmp_path, dialogues))
    ids = {about["id"] for _, about in made.elements if "id" in about}
    links = {about["href"][1:] for name, about in made.elements if name == "a"}
    assert links <= ids and {"d0", "d1", "findings", "batch"} <= links
    assert len(ids) == sum("id" in about for _, about in made.elements), "no id stands twice"


def test_page_is_the_same_for_the_same_report_and_says_the_verdict(tmp_path: Path) -> None:
    one, other = (audit_of(tmp_path, transcripts()) for _ in range(2))
    assert one == other and "nothing found that speaks against training" in one
    assert audit_of(tmp_path, transcripts(), tokens=False).count("t-trained") < one.count("t-trained")


def test_command_writes_the_page_and_fails_after_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dialogues = transcripts()
    PLANTED["user is an AI"][0](dialogues)
    talk = written(tmp_path / "talk.jsonl", dialogues)
    assert main(["audit", str(talk), "--html", str(tmp_path / "audit.html")]) == 2
    assert "audit.html" in capsys.readouterr().out
    assert "1 error" in (tmp_path / "audit.html").read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------------------ in a browser

in_chromium = [pytest.mark.slow, pytest.mark.skipif(find_chromium() is None, reason="no Chromium to look at it in")]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    pytest.importorskip("playwright.sync_api", reason="no playwright (extra `dev`)")
    with browser() as running:
        yield running


def opened(chromium: Any, path: Path, **options: Any) -> tuple[Any, list[str]]:
    """A page in a tab of its own, and whatever it said or asked for."""
    tab = chromium.new_context(**options).new_page()
    noise: list[str] = []
    tab.on("console", lambda message: noise.append(message.text))
    tab.on("pageerror", lambda error: noise.append(str(error)))
    tab.on("dialog", lambda dialog: (noise.append(dialog.message), dialog.dismiss()))
    tab.on("request", lambda request: noise.append(request.url)
           if not request.url.startswith((path.as_uri(), "data:,")) else None)
    tab.goto(path.as_uri())
    tab.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true })")
    return tab, noise


@pytest.mark.parametrize("text", HOSTILE)
class TestInjections:
    pytestmark = in_chromium

    def test_nothing_runs_and_nothing_is_asked_for(self, chromium: Any, tmp_path: Path, text: str) -> None:
        path = tmp_path / "audit.html"
        write_audit(look(read_material(written(tmp_path / "talk.jsonl", hostile(text))), reader_of()), path)
        tab, noise = opened(chromium, path)
        assert noise == []
        elements = "script, img, iframe, object, embed, form, base, svg"
        assert tab.evaluate(f"document.querySelectorAll('{elements}').length") == 0
        assert not tab.evaluate("""[...document.querySelectorAll('*')].some((one) => [...one.attributes].some(
            ({name, value}) => name.startsWith('on') || name === 'style' || /^\\s*javascript:/i.test(value)))""")
        tab.context.close()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 1200), ("light", 390), ("dark", 390)])
class TestForEverybody:
    pytestmark = in_chromium

    def test_is_accessible_and_fits(self, chromium: Any, tmp_path: Path, scheme: str, width: int) -> None:
        axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
        dialogues = transcripts()
        for name in ("user is an AI", "goes on as the other", "same openings"):
            PLANTED[name][0](dialogues)
        path = tmp_path / "audit.html"
        write_audit(look(read_material(written(tmp_path / "talk.jsonl", dialogues)), reader_of()), path)
        tab, noise = opened(chromium, path, color_scheme=scheme, viewport={"width": width, "height": 800},
                            bypass_csp=True)   # axe is a script, and the page admits none
        found = axe.run(tab).response["violations"]
        assert [(one["id"], [node["html"][:200] for node in one["nodes"]][:3]) for one in found] == []
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth") and noise == []
        tab.context.close()

    def test_is_worked_with_the_keyboard(self, chromium: Any, tmp_path: Path, scheme: str, width: int) -> None:
        dialogues = transcripts()
        PLANTED["user is an AI"][0](dialogues)
        path = tmp_path / "audit.html"
        write_audit(look(read_material(written(tmp_path / "talk.jsonl", dialogues)), reader_of()), path)
        tab, _ = opened(chromium, path, color_scheme=scheme, viewport={"width": width, "height": 800})
        tab.keyboard.press("Tab")
        assert tab.evaluate("document.activeElement.className") == "skip"
        tab.keyboard.press("Enter")
        for _ in range(12):
            tab.keyboard.press("Tab")
            if tab.evaluate("document.activeElement.getAttribute('href')") == "#d0":
                break
        tab.keyboard.press("Enter")
        assert tab.evaluate("document.querySelector('article:target').id") == "d0"
        assert "As an AI" in tab.inner_text("article:target")
        tab.context.close()
