"""The page of several runs: everything on it is text, and it stands without a script."""

from __future__ import annotations

import pytest

from dialoom.report.safe import visible
from dialoom.report.summary import Found, Matrix, Square, short_names, summary_page
from dialoom.report.table import grids
from tests.test_report import HOSTILE, Page


def made(text: str) -> str:
    """A page in which whatever may be named is named so."""
    rows = [{"eval": text, "subject": text, "metric": text, "value": 0.5, "low": 0.4, "high": 0.6, "n": 9, "seed": 1}]
    matrix = Matrix([(text, text)], [(text, [Square("50.0 [40.0, 60.0]", "better")])])
    return summary_page(text, [Found(text, grids(rows), "one/report.html")], matrix)


@pytest.mark.parametrize("text", HOSTILE)
def test_no_name_becomes_markup(text: str) -> None:
    clean, found = Page(made("plain words")), Page(made(text))
    assert {name for name, _ in found.elements} == {name for name, _ in clean.elements}
    assert "script" not in {name for name, _ in found.elements}
    keys = [{key for _, about in page.elements for key in about} for page in (clean, found)]
    assert keys[0] == keys[1]
    said = " ".join("".join(part for *_, part in found.texts).split())
    assert " ".join(visible(text).split()) in said


def test_parts_that_begin_alike_have_names_that_do_not() -> None:
    assert short_names(["PBT: hold", "DAT: steer, slowly", "DAT: red-teaming, to harden"]) == [
        "PBT", "DAT", "DAT: red-teaming"]


def test_each_part_leads_to_its_own_page_and_each_cell_says_how_it_stands() -> None:
    page = Page(made("plain words"))
    assert [about["href"] for name, about in page.elements if name == "a" and "report.html" in about["href"]] == [
        "one/report.html"]
    assert ("td", "better") in [(name, about.get("class")) for name, about in page.elements]
