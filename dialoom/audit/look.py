"""An audit from end to end: read, lint, check, and tell it on the terminal, as JSON or as a page."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dialoom.audit.batch import Batch, Shown, as_dialogue, as_text, as_tokens, first_batch, opened
from dialoom.audit.findings import Finding, Tally
from dialoom.audit.lints import lint
from dialoom.audit.masks import Item, RowChecks, check_texts, token_row
from dialoom.audit.personas import check_personas, judge_personas
from dialoom.audit.sources import Material, find_tree, no_such, read_material
from dialoom.audit.tokens import Reader, load_reader
from dialoom.embed import Embedder, Ngrams
from dialoom.errors import DataError, DialoomError
from dialoom.models.base import ChatModel
from dialoom.models.load import in_role, is_endpoint, load_model

Log = Callable[[str], None]


@dataclass(frozen=True)
class Report:
    """What an audit found.

    Attributes:
        counts: what was looked at, by name.
        batch: the first batch of the training; None where there is nothing to train on.
        behind: what the ids in the findings' examples name.
        notes: what to know of how the data were read.
    """

    path: Path
    kind: str
    recipe: str
    model: str
    counts: Mapping[str, int]
    findings: Sequence[Finding]
    batch: Batch | None
    behind: Mapping[str, Shown] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def count(self, level: str) -> int:
        """How many checks ended on a level."""
        return sum(finding.level == level for finding in self.findings)

    @property
    def verdict(self) -> str:
        """The result in a line."""
        if not self.findings:
            return "there is nothing to look at"
        if not self.count("error") and not self.count("warning"):
            return "nothing found that speaks against training on this"
        parts = [(self.count("error"), "error"), (self.count("warning"), "warning")]
        return ", ".join(f"{number} {name}{'s' * (number != 1)}" for number, name in parts if number)

    def to_json(self) -> dict[str, Any]:
        """The report without the texts of the batch."""
        batch = self.batch and {"rows": self.batch.size, "flat_tokens": self.batch.flat,
                                "packed_tokens": self.batch.unique, "trained_tokens": self.batch.trained}
        return {"source": str(self.path), "kind": self.kind, "recipe": self.recipe, "model": self.model,
                "verdict": self.verdict, "counts": dict(self.counts), "first_batch": batch, "notes": list(self.notes),
                "findings": [finding.to_json() for finding in self.findings]}


def look(material: Material, reader: Reader | None = None, *, judge: ChatModel | None = None,
         embedder: Embedder | None = None, max_length: int = 0, cut_at: int = 0, rows: int = 4) -> Report:
    """Look at everything that was read.

    Args:
        reader: whose tokens the rows are; None: nothing is said of tokens and masks.
        judge: asked whether users stay who they are; None: nobody is.
        embedder: by which users are compared with their personas; None: character n-grams.
        max_length: tokens of a row that the trainer keeps; 0: the model's context.
        cut_at: tokens from which on a reply was cut; 0: what the run's settings say.
        rows: how many rows of the first batch to show.
    """
    tally, notes = Tally(), list(material.notes)
    _reading(material, tally)
    lint(material.trees, tally, cut=material.cut, cut_at=cut_at or material.cut_at,
         tokens=None if reader is None else lambda text: len(reader.template.encode(text)))
    check_personas(material.trees, tally, embedder or Ngrams())
    if judge is not None:
        unreadable, asked = judge_personas(material.trees, judge, tally)
        if unreadable:
            notes.append(f"the judge {judge.name} said neither yes nor no of {unreadable} of {asked} dialogues")
    items = list(check_texts([*material.pairs, *material.examples], tally))
    counts = {"dialogues": len(material.trees), "turns": material.turns, "pairs": len(material.pairs),
              "examples": len(material.examples)}
    if reader is None:
        notes += ["tokens and masks were not looked at: name a model with --model"] if items else []
    elif items:
        checks = RowChecks(reader, material, tally, max_length=max_length)
        for item in items:
            checks.look(item)
        counts |= {name: checks.totals[name] for name in ("tokens", "trained", "longest")}
    findings = tally.findings()
    return Report(material.path, material.kind, material.recipe, reader.name if reader else "", counts, findings,
                  first_batch(material, reader, rows), _behind(material, items, findings), notes)


def _reading(material: Material, tally: Tally) -> None:
    """What the reader had to leave out or mend, as findings."""
    whole = (len(material.trees) if material.kind in ("transcripts", "episodes") else
             len(material.pairs) + len(material.examples))
    for name, count, hits in (("unreadable", material.unread_count, material.unread),
                              ("mended", material.mended_count, material.mended)):
        tally.count(name, whole + count)
        for hit in hits:
            tally.hit(name, hit.where, hit.text)
        tally.hit(name, "", "", count - len(hits)) if count > len(hits) else None
    tally.count("many_message_reply", len(material.pairs))
    for hit in material.several:
        tally.hit("many_message_reply", hit.where, hit.text)


def _behind(material: Material, items: Sequence[Item], findings: Sequence[Finding]) -> dict[str, Shown]:
    trees, by_id = {tree.id: tree for tree in material.trees}, {item.id: item for item in items}
    names = dict.fromkeys(hit.where for finding in findings for hit in finding.examples if finding.level != "fine")
    found = {name: opened(name, trees, by_id) for name in names}
    return {name: shown for name, shown in found.items() if shown is not None}


# ------------------------------------------------------------------------------------------------ the command


def audit(path: Path, *, model: str = "", arm: str = "", judge: str = "", embedding: str = "ngrams",
          max_length: int = 0, cut_at: int = 0, rows: int = 4, limit: int = 0, open_id: str = "", strict: bool = False,
          as_json: bool = False, html: Path | None = None, device: str = "auto", log: Log = print) -> None:
    """Audit a run's folder or a file, tell it, and fail if errors were found; arguments are the command's.

    Raises: DataError: if errors were found, or warnings with `strict`; after everything was told.
    """
    from dialoom.audit.page import write_audit
    from dialoom.audit.terminal import print_report, print_shown
    from dialoom.embed import load_embedder

    material = read_material(path, arm=arm, limit=limit)
    spec = model or material.model
    reader = None
    if spec and (model or not is_endpoint(spec)):
        reader = load_reader(spec)
    if open_id:
        print_shown(show(material, reader, open_id))
        return
    report = look(material, reader, judge=in_role(load_model(judge, device=device), "judge") if judge else None,
                  embedder=load_embedder(embedding, device=device), max_length=max_length, cut_at=cut_at, rows=rows)
    if html is not None:
        write_audit(report, html)
    if as_json:
        log(json.dumps(report.to_json(), ensure_ascii=False, indent=1))
    else:
        print_report(report)
        if html is not None:
            log(f"page: {html}")
    failed = report.count("error") + (report.count("warning") if strict else 0)
    if failed:
        counted = Counter(finding.level for finding in report.findings)
        raise DataError(f"{path}: {report.verdict}; " + ("fix these before training" if counted["error"] else
                        "--strict takes warnings for errors"))


def show(material: Material, reader: Reader | None, wanted: str) -> Shown:
    """The row, dialogue or turn of an id, or of its beginning; a row with its tokens where there is a reader.

    Raises: ConfigError: if nothing has such an id, or several have.
    """
    items: list[Item] = [*material.pairs, *material.examples]
    item = next((one for one in items if one.id == wanted), None) or next(
        (one for one in items if one.id.startswith(wanted)), None)
    if item is not None:
        try:
            return as_text(item) if reader is None else as_tokens(reader, item, token_row(reader, item, material).paths)
        except DialoomError:
            return as_text(item)
    found = opened(wanted, {tree.id: tree for tree in material.trees}, {})
    if found is not None:
        return found
    tree = find_tree(material.trees, wanted)
    if tree is None:
        raise no_such(wanted, [*(one.id for one in material.trees), *(one.id for one in items)])
    return as_dialogue(tree, next((turn for turn in tree if turn.id == wanted), None))
