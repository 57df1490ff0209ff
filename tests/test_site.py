"""The documentation as a site: it builds with every link checked, asks no other host, and has every page."""

import re
import subprocess
import sys

import pytest

from bench.site import API, BESIDE, DOCS, SITE, api_page, commands_page, laid_out, tagless
from tests.pages import ROOT

GENERATED = {"reference/cli.md", *(f"reference/{name}.md" for name in API)}


def navigated() -> list[str]:
    """The pages in the navigation of mkdocs.yml."""
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    return re.findall(r"([\w/-]+\.md)$", nav, re.MULTILINE)


def test_every_page_is_in_the_navigation_once():
    pages = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")} | GENERATED | set(BESIDE.values())
    assert sorted(navigated()) == sorted(pages), "put a new page into nav in mkdocs.yml"


def test_links_stay_on_the_site():
    page = DOCS / "how-to" / "x.md"
    text = ("[a](../data.md#splits) [b](../../README.md) [c](../../tests/test_docs.py) "
            "[tests/faults](../../tests/faults) [d](https://x.org) ![e](../img/p.png)\n```sh\n[f](../../tests)\n```\n")
    assert laid_out(text, page) == (
        "[a](../data.md#splits) [b](../index.md) c (`tests/test_docs.py`) tests/faults [d](https://x.org) "
        "![e](../img/p.png)\n```sh\n[f](../../tests)\n```\n")
    assert laid_out("[g](docs/pbt.md) ![h](docs/img/p.png)", ROOT / "README.md") == "[g](pbt.md) ![h](img/p.png)"


def test_words_in_angle_brackets_are_no_tags():
    assert tagless("hf:<name> and `<b>`\n```\n<c>\n```\n") == "hf:&lt;name> and `<b>`\n```\n<c>\n```\n"


def test_the_reference_is_made_from_the_code():
    page = commands_page()
    assert "## dialoom pbt" in page and "--dpo.beta FLOAT" in page and "hf:&lt;name" in page
    page = api_page("Dialogues", ["dialogue"])
    assert "### chat_view" in page and "DialogueTree(scenario: Scenario" in page and "#### DialogueTree.add" in page
    assert "**Parameters**" in page or "**Args" in page


@pytest.mark.slow
def test_the_site_builds_strictly_and_loads_nothing_from_elsewhere():
    done = subprocess.run([sys.executable, "-m", "bench.site"], cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list(SITE.rglob("*.html"))
    assert len(pages) >= len(navigated())
    for page in pages:
        html = page.read_text(encoding="utf-8")
        assert not re.findall(r'<(?:script|img|iframe|source)[^>]+src="(?:https?:)?//[^"]+"', html), page
        assert not re.findall(r'<link[^>]+rel="(?:stylesheet|preconnect|icon)"[^>]+href="(?:https?:)?//', html), page
    assert "DialogueTree" in (SITE / "reference" / "api-core.html").read_text(encoding="utf-8")
