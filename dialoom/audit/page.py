"""An audit as one HTML file, without a script; `report/still.py` sees that no text of it does harm."""

from __future__ import annotations

from pathlib import Path

from dialoom.audit.look import Report
from dialoom.audit.terminal import LEGEND
from dialoom.report.still import still_page
from dialoom.store import write_whole

TEMPLATE = Path(__file__).with_name("page.html")


def write_audit(report: Report, path: str | Path) -> Path:
    """Write the page of an audit; returns its path. Raises StoreError if it cannot be written."""
    write_whole(path, page(report))
    return Path(path)


def page(report: Report) -> str:
    """The page; the same report gives the same page."""
    anchors = {where: f"d{number}" for number, where in enumerate(report.behind)}
    told = [finding for finding in report.findings if finding.level != "fine"]
    fine = [finding for finding in report.findings if finding.level == "fine"]
    return still_page(TEMPLATE, report=report, anchors=anchors, told=told, fine=fine, legend=LEGEND)
