"""What several runs found, on one page: each one's headline figures, then every model by every evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dialoom.report.still import still_page
from dialoom.report.table import Grid

TEMPLATE = Path(__file__).with_name("summary.html")


@dataclass(frozen=True)
class Found:
    """What one run found: its tables, and where its own page lies, relative to the summary's."""

    title: str
    grids: Sequence[Grid]
    page: str


@dataclass(frozen=True)
class Square:
    """A cell of the matrix: what it says, and how it stands to the first row's: "better", "worse" or ""."""

    text: str
    tone: str = ""


@dataclass(frozen=True)
class Matrix:
    """Models by evaluations.

    Attributes:
        heads: of each column its title with an arrow, and what it measures.
        rows: of each model its label and its cells.
        notes: why cells are n/a.
    """

    heads: Sequence[tuple[str, str]]
    rows: Sequence[tuple[str, Sequence[Square]]]
    notes: Sequence[str] = ()


def summary_page(title: str, found: Sequence[Found], matrix: Matrix) -> str:
    """The page as one HTML file; the same findings give the same page."""
    return still_page(TEMPLATE, name=title, found=found, names=short_names([one.title for one in found]), matrix=matrix)


def short_names(titles: Sequence[str]) -> list[str]:
    """Each title up to its colon, or up to its comma where an earlier one begins alike."""
    begun = [title.partition(":")[0] for title in titles]
    return [title.partition(",")[0] if name in begun[:at] else name
            for at, (name, title) in enumerate(zip(begun, titles, strict=True))]
