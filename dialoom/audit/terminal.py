"""An audit on the terminal: the checks with what they found, then a batch in colours. No text is taken for markup."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dialoom.audit.batch import Batch, Shown
from dialoom.audit.findings import Finding
from dialoom.audit.look import Report
from dialoom.report.safe import visible

LEVELS = {"error": "bold red", "warning": "yellow", "note": "cyan", "fine": "green"}
KINDS = {"trained": "bold underline green", "user": "blue", "assistant": "cyan", "system": "magenta", "other": "blue",
         "mark": "dim", "gap": "dim italic"}
LEGEND = (("trained", "trained"), ("assistant", "assistant, read only"), ("user", "other speaker"),
          ("system", "system"), ("mark", "the template's own"))
TOLD = 3  # examples of a finding


def print_report(report: Report, console: Console | None = None) -> None:
    """Print the whole report."""
    out = console or Console()
    counted = ", ".join(f"{count:,} {name}" for name, count in report.counts.items() if count)
    out.print(Text(visible(f"{report.path}: {counted or 'nothing to look at'}")), soft_wrap=True)
    for note in report.notes:
        out.print(Text(visible(f"note: {note}"), "dim"), soft_wrap=True)
    told = [finding for finding in report.findings if finding.level != "fine"]
    if told:
        out.print(_table(told))
    passed = [finding.check.title for finding in report.findings if finding.level == "fine"]
    if passed:
        out.print(Text(f"{len(passed)} checks passed: {'; '.join(passed)}", "dim"))
    for finding in report.findings:
        if finding.level in ("error", "warning"):
            for line in _told(finding):
                out.print(line, soft_wrap=True)
    if report.batch is not None and report.batch.rows:
        print_batch(report.batch, report.model, out)
    out.print(Text(f"\n{report.verdict}", "bold red" if report.count("error") else "bold"))


def _table(findings: Sequence[Finding]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("", "check", "found", "of", "share", "fails over"):
        table.add_column(name, justify="left" if name in ("", "check") else "right")
    for finding in findings:
        table.add_row(Text(finding.level, LEVELS[finding.level]), Text(finding.check.title), f"{finding.count:,}",
                      f"{finding.of:,} {finding.check.unit}", f"{finding.share:.1%}", f"{finding.check.threshold:.0%}")
    return table


def _told(finding: Finding) -> Iterator[Text]:
    check = finding.check
    yield Text.assemble("\n", (f"{finding.level}: {check.title}", LEVELS[finding.level]), f" ({check.what})")
    for hit in finding.examples[:TOLD]:
        yield Text.assemble("  ", (visible(hit.where), "bold"), visible(f"  {hit.text}".rstrip()))
    for name, value in (finding.figures or {}).items():
        yield Text(visible(f"  {name}: {value}"), "dim")
    yield Text(f"  next: {check.advice}")


def print_batch(batch: Batch, model: str, out: Console) -> None:
    """Print the rows of a batch in colours, with what the colours mean."""
    out.print(Text(f"\nThe first batch, {len(batch.rows)} of {batch.size} rows"
                   + (f", in {model}'s tokens" if model else ", as text"), "bold"))
    if batch.flat:
        out.print(Text(f"{batch.flat:,} tokens in rows of their own, {batch.unique:,} with shared beginnings once, "
                       f"{batch.trained:,} trained"))
    legend = Text()
    for kind, name in LEGEND:
        legend.append(name, KINDS[kind])
        legend.append("   ")
    out.print(legend)
    for row in batch.rows:
        print_shown(row, out)


def print_shown(shown: Shown, console: Console | None = None) -> None:
    """Print a row or a dialogue in colours."""
    out = console or Console()
    out.print(Text.assemble("\n", (visible(shown.id), "bold"), (visible(f"  {shown.title}"), "dim")), soft_wrap=True)
    for part in shown.parts:
        line = Text(f"{visible(part.label)}: " if part.label else "", "dim")
        for token in part.tokens:
            line.append(visible(token.text), KINDS.get(token.kind, KINDS["other"]))
        out.print(line, soft_wrap=True)
