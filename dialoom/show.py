"""`dialoom show`: dialogue trees in the terminal, with scores and what was made of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from dialoom.config import near_miss
from dialoom.dialogue import DialogueTree, Turn
from dialoom.errors import ConfigError, StoreError
from dialoom.report.read import read_results
from dialoom.report.safe import visible
from dialoom.store import read_rows, read_skips, read_trees

COLORS = ("cyan", "magenta", "yellow", "blue", "green")
SIDES = {"chosen": ("✓ chosen", "green"), "rejected": ("✗ rejected", "red")}
Pairs = Sequence[Mapping[str, Any]]


def show_run(run: Path, *, tree: str | None = None, limit: int = 1, console: Console | None = None) -> None:
    """Print trees of a run: the one whose id begins with `tree`, or the `limit` (0: all) with the most kinds of pairs.

    Raises: StoreError: if there is no tree log. ConfigError: if no tree, or more than one, has such an id.
    """
    out = console or Console()
    log = run / "trees.jsonl" if run.is_dir() else run
    if not log.is_file():
        missing = f"no {log.name}" if run.is_dir() else "no such file or folder"
        raise StoreError(f"{run}: holds no dialogue trees ({missing}); give a run's folder or a tree log")
    trees = read_trees(log)
    if not trees:
        raise StoreError(f"{log}: holds no dialogue trees yet; give a run's folder or a tree log")
    pairs = read_rows(log.with_name("pairs.jsonl")) if log.with_name("pairs.jsonl").is_file() else []
    by_tree: dict[str, list[Mapping[str, Any]]] = {}
    for pair in pairs:
        by_tree.setdefault(str(pair.get("tree", "")), []).append(pair)
    _summary(out, run, log, trees, pairs)
    for one in _picked(trees, by_tree, tree, limit):
        out.print()
        out.print(draw(one, by_tree.get(one.id, [])))


def _picked(trees: Mapping[str, DialogueTree], by_tree: Mapping[str, Pairs], wanted: str | None,
            limit: int) -> list[DialogueTree]:
    if wanted is None:
        ranked = sorted(trees.values(), key=lambda tree: -len({pair.get("kind") for pair in by_tree.get(tree.id, ())}))
        return ranked[:limit or None]
    found = [trees[wanted]] if wanted in trees else [tree for id, tree in trees.items() if id.startswith(wanted)]
    if len(found) == 1:
        return found
    if found:
        raise ConfigError(f"--tree {wanted}: begins {len(found)} ids ({found[0].id}, {found[1].id}, ...); give more")
    hint = near_miss(wanted, trees) if len(trees) < 8 else f"such as {next(iter(trees))}"
    raise ConfigError(f"--tree {wanted}: no tree has an id that begins so; {hint}")


def _summary(out: Console, run: Path, log: Path, trees: Mapping[str, DialogueTree], pairs: Pairs) -> None:
    turns = sum(map(len, trees.values()))
    kinds = Counter(str(pair.get("kind") or "no kind") for pair in pairs)
    made = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    lines = [f"{run}: {len(trees)} trees, {turns} turns, {len(pairs)} pairs{f' ({made})' if made else ''}"]
    reasons = Counter(skip.reason for skip in read_skips(log, log=lambda message: None))
    lines += [f"left out: {count} x {reason}" for reason, count in reasons.most_common()]
    for row in read_results(log.with_name("results.json")):
        if row.get("seed") is None and row["value"] is not None:
            lines.append(f"{row['eval']:<14} {row['subject']:<14} {row['metric']:<12} {row['value']:>7.3f}")
    for line in lines:
        out.print(Text(visible(line)), soft_wrap=True)


def draw(tree: DialogueTree, pairs: Pairs = ()) -> Tree:
    """A tree for the terminal. All text is shown as text: no markup, no escapes."""
    marks: dict[str, list[tuple[str, str]]] = {}
    for pair in pairs:
        for side in SIDES:
            mark = (side, str(pair.get("kind", "")))
            if mark not in marks.setdefault(str(pair.get(f"{side}_turn", "")), []):
                marks[str(pair.get(f"{side}_turn", ""))].append(mark)
    colors = {name: COLORS[number % len(COLORS)] for number, name in
              enumerate(sorted({turn.speaker for turn in tree}))}
    top = Text.assemble((f"{tree.id}  ", "dim"), (visible(tree.scenario.opening or "(no opening)"), "bold"))
    if "answer" in tree.scenario.facts:
        top.append(visible(f"\nanswer: {tree.scenario.facts['answer']}"), "dim")
    drawn = Tree(top, guide_style="dim")
    branches: dict[str | None, Tree] = {None: drawn}
    for turn in tree:
        branches[turn.id] = branches[turn.parent].add(_line(turn, colors[turn.speaker], marks.get(turn.id, [])))
    return drawn


def _line(turn: Turn, color: str, marks: Sequence[tuple[str, str]]) -> Text:
    line = Text.assemble((visible(turn.speaker), f"bold {color}"))
    if turn.notes.get("brief"):
        line.append(visible(f" ({turn.notes['brief']})"), "dim")
    line.append(f": {visible(turn.text)}")
    if turn.notes.get("strategy"):
        line.append(visible(f"  by {turn.notes['strategy']!r}"), "dim")
    if turn.notes.get("rejected"):
        line.append(visible(f"  rejected: {turn.notes['rejected']}"), SIDES["rejected"][1])
    for side, kind in marks:
        word, style = SIDES[side]
        line.append(visible(f"  {word} {kind}".rstrip()), style)
    scores = "  ".join(f"{name} {score:g}" for name, score in turn.scores.items())
    if scores:
        line.append(visible(f"\n{scores}"), "dim")
    return line
