"""Pages that hold still: no script at all, nothing loaded, every text escaped; in the look of a run's report.

A template escapes whatever it is given (Jinja's autoescape), and characters that hide or reorder others are spelled
out first. The security policy admits one style, by its hash, and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from dialoom.report.page import static
from dialoom.report.safe import MAX_TEXT, visible

HERE = Path(__file__).parent


def still_page(template: Path, **values: Any) -> str:
    """A page from a template that extends `still.html`; the style beside it adds to the report's."""
    css = static("viewer.css") + template.with_suffix(".css").read_text(encoding="utf-8")
    style = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{style}'; img-src data:; base-uri 'none'; form-action 'none'"
    return _environment(template.parent).get_template(template.name).render(css=Markup(css), policy=policy, **values)


def _environment(folder: Path) -> Environment:
    made = Environment(loader=FileSystemLoader([folder, HERE]), autoescape=True, undefined=StrictUndefined,
                       finalize=_harmless, trim_blocks=True, lstrip_blocks=True)
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
