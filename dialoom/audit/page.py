"""An audit as one HTML file: no script at all, nothing loaded, every text escaped; in the look of a run's report.

The template escapes whatever it is given (Jinja's autoescape), and characters that hide or reorder others are spelled
out first. The security policy admits one style, by its hash, and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from dialoom.audit.look import Report
from dialoom.audit.terminal import LEGEND
from dialoom.report.page import static
from dialoom.report.safe import MAX_TEXT, visible
from dialoom.store import write_whole

HERE = Path(__file__).parent


def write_audit(report: Report, path: str | Path) -> Path:
    """Write the page of an audit; returns its path. Raises StoreError if it cannot be written."""
    write_whole(path, page(report))
    return Path(path)


def page(report: Report) -> str:
    """The page; the same report gives the same page."""
    css = static("viewer.css") + (HERE / "page.css").read_text(encoding="utf-8")
    style = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{style}'; img-src data:; base-uri 'none'; form-action 'none'"
    anchors = {where: f"d{number}" for number, where in enumerate(report.behind)}
    told = [finding for finding in report.findings if finding.level != "fine"]
    fine = [finding for finding in report.findings if finding.level == "fine"]
    return _environment().get_template("page.html").render(
        report=report, css=Markup(css), policy=policy, anchors=anchors, told=told, fine=fine, legend=LEGEND)


def _environment() -> Environment:
    made = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, finalize=_harmless,
                       trim_blocks=True, lstrip_blocks=True)
    made.filters["share"] = lambda value: f"{100 * value:.1f} %"
    made.filters["number"] = lambda value: f"{value:,}"
    return made


def _harmless(value: Any) -> Any:
    """A text as it may be looked at; what the template itself wrote, and numbers, stay."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    if len(value) > MAX_TEXT:
        return f"{visible(value[:MAX_TEXT])} … {len(value) - MAX_TEXT:,} more characters"
    return visible(value)
