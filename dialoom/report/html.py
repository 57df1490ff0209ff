"""The report of a run: one HTML file that needs nothing else, asks the network for nothing and runs nobody's text.

It reads only files of the run folder, and any of them may be missing: a run that is half done has a report too. Nothing
of the run reaches a script or a style: all of it is escaped text in the page, and the page's own script and style are
the only ones its security policy admits, by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from dialoom.dialogue import DialogueTree
from dialoom.errors import DataError, StoreError
from dialoom.report.safe import flat, visible
from dialoom.report.svg import Series, bar, line_chart
from dialoom.report.table import CEILING, SUBJECTS, Cell, Grid, Row, grids
from dialoom.report.walk import pages
from dialoom.store import read_rows, read_skips, read_trees, write_whole

HERE = Path(__file__).parent
TITLES = {"pbt": "Persuasion-balanced training", "ditto": "Aligning to a person from demonstrations",
          "aloe": "Aligning with individual preferences", "ideas": "Inductive-deductive strategy reuse"}
CHIPS = ("model", "partner", "speakers", "train", "preset", "data", "limit", "seed", "seeds", "model_hash",
         "data_hash", "pocket", "revision", "device")
CURVES = {"loss": "loss", "eval_loss": "loss, held out", "rewards/accuracies": "share of pairs ranked rightly",
          "rewards/margins": "margin of the implicit rewards", "mean_token_accuracy": "share of tokens predicted",
          "logps/chosen": "log-probability of the chosen reply",
          "logps/rejected": "log-probability of the rejected reply"}
CURVES_FIRST = 4   # shown at once for each stage; the others open on demand
OWN_COLOR, COLORS = 2, (0, 1, 3, 4, 5)   # classes of the style sheet
_COMMIT = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{28}\b")
NO_CURVE = frozenset({"stage", "subject", "seed", "step", "epoch", "time", "total_flos", "num_tokens"})


@dataclass(frozen=True)
class Run:
    """What a run folder holds; what is missing is empty. `notes` lead the report."""

    folder: Path
    config: Mapping[str, Any]
    env: Mapping[str, Any]
    trees: Sequence[DialogueTree]
    pairs: Sequence[Row]
    metrics: Sequence[Row]
    results: Sequence[Row]
    notes: Sequence[str]
    dropped: Mapping[str, int]

    @property
    def recipe(self) -> str:
        """The recipe's name, as the run says it or as the folder's name begins."""
        named = self.config.get("recipe") or self.env.get("recipe")
        return str(named or self.folder.resolve().name.split("-")[0])


def write_report(folder: str | Path) -> Path:
    """Write `report.html` into a run folder, anew; returns its path.

    Raises:
        StoreError: if there is no such folder, or it cannot be written.
        DataError: naming the file that breaks its format.
    """
    run = read_run(Path(folder))
    css, js = ((HERE / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    page = _environment().get_template("template.html.j2").render(
        **_content(run), css=Markup(css), js=Markup(js), policy=policy(css, js))
    path = run.folder / "report.html"
    write_whole(path, page)
    return path


def policy(css: str, js: str) -> str:
    """The page's security policy: nothing is loaded, and only this style and this script count."""
    style, script = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (css, js))
    return (f"default-src 'none'; style-src 'sha256-{style}'; script-src 'sha256-{script}'; img-src data:; "
            "base-uri 'none'; form-action 'none'")


def _environment() -> Environment:
    def harmless(value: Any) -> Any:
        return value if isinstance(value, Markup) else visible(str(value))

    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined,
                              finalize=harmless, trim_blocks=True, lstrip_blocks=True)
    environment.filters["plain"] = _plain
    environment.filters["number"] = lambda value: f"{value:.4g}" if isinstance(value, float) else f"{value:,}"
    return environment


def _plain(value: Any) -> str:
    """A JSON value as a reader would write it."""
    if isinstance(value, list | tuple):
        return " · ".join(map(_plain, value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# ------------------------------------------------------------------------------------------------ reading


def read_run(folder: Path) -> Run:
    """Everything a report tells of a run folder. Raises what `write_report` raises."""
    if not folder.is_dir():
        raise StoreError(f"{folder}: no such run folder; `--out` of a run names it, by default it lies below runs/")
    damage: list[str] = []

    def rows(name: str) -> list[dict[str, Any]]:
        return read_rows(folder / name, log=damage.append) if (folder / name).exists() else []

    log = folder / "trees.jsonl"
    trees = list(read_trees(log, log=damage.append).values()) if log.exists() else []
    dropped = _dropped(folder, log)
    results = [_checked(row, folder / "results.json") for row in _json(folder / "results.json", list)]
    notes = [str(note) for note in _json(folder / "notes.json", list)]
    return Run(folder, _yaml(folder / "config.yaml"), _json(folder / "env.json", dict), trees, rows("pairs.jsonl"),
               rows("metrics.jsonl"), results, [*notes, *damage], dropped)


def _dropped(folder: Path, log: Path) -> dict[str, int]:
    if (folder / "dropped.json").exists() or not log.exists():
        found = _json(folder / "dropped.json", dict)
    else:
        found = Counter(skip.reason for skip in read_skips(log, log=lambda message: None))
    try:
        return {str(reason): int(count) for reason, count in sorted(found.items(), key=lambda item: -int(item[1]))}
    except (TypeError, ValueError):
        raise DataError(f"{folder / 'dropped.json'}: expected {{reason: count}}, found {found!r:.200}") from None


def _json(path: Path, kind: type) -> Any:
    """What a JSON file holds, which must be a `kind`; an empty one where there is no file."""
    if not path.exists():
        return kind()
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as wrong:
        raise DataError(f"{path}: not JSON ({wrong}); delete it and run the same command again") from None
    if not isinstance(value, kind):
        raise DataError(f"{path}: expected a JSON {kind.__name__}, found {type(value).__name__}")
    return value


def _yaml(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as wrong:
        raise DataError(f"{path}: not YAML ({wrong})") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected a YAML mapping, found {type(value).__name__}")
    return value


def _checked(row: Any, path: Path) -> Row:
    missing = [key for key in ("eval", "subject", "metric", "value") if not isinstance(row, dict) or key not in row]
    if missing:
        raise DataError(f"{path}: a row lacks {', '.join(missing)}; expected eval, subject, metric, value, low, high, "
                        f"n, seed; found {row!r:.200}")
    checked: Row = row
    return checked


# ------------------------------------------------------------------------------------------------ telling


def _content(run: Run) -> dict[str, Any]:
    tables = grids(run.results)
    shown = pages(run.trees, run.pairs)
    settings = flat(dict(run.config))
    about = flat(dict(run.env))
    return {
        "title": TITLES.get(run.recipe, run.recipe), "recipe": run.recipe, "notes": run.notes,
        "summary": summary(tables, run.recipe), "settings": settings, "about": about,
        "chips": _chips(settings | about), "grids": tables, "bars": _bars(tables, run.recipe),
        "stages": stages(run.metrics, run.recipe),
        "pages": shown, "kinds": sorted({kind for page in shown for kind in page.kinds}),
        "trees": len(run.trees), "turns": sum(map(len, run.trees)), "pairs": len(run.pairs),
        "counts": pair_counts(run.pairs, run.trees), "dropped": run.dropped,
        "most_dropped": max(run.dropped.values(), default=1), "commands": _commands(run, tables), "bar": bar,
    }


def summary(tables: Sequence[Grid], recipe: str) -> str:
    """What came out, in a sentence: the recipe's own model against every other on the first table's main metric."""
    if not tables:
        return "Nothing has been evaluated yet; the same command continues the run."
    grid = tables[0]
    metric = grid.words.goal or grid.metrics[0].name
    subjects = [line.subject for line in grid.lines if line.subject != CEILING and grid.cell(line.subject, metric)]
    main = recipe if recipe in subjects else subjects[-1] if subjects else ""
    here = grid.cell(main, metric) if main else None
    if here is None:
        return f"{grid.words.title} was evaluated, but gave no numbers."
    unit = "\N{NO-BREAK SPACE}%" if here.percent else ""
    told = [f"{_name(main)} reaches {here.show(here.value)}{unit} {here.interval}".rstrip()]
    for subject in subjects:
        other = grid.cell(subject, metric)
        if other and subject != main:
            told.append(_against(here, other, f"{_name(subject)} ({other.show(other.value)}{unit})"))
    heading = next(column.title for column in grid.metrics if column.name == metric).removesuffix(", %")
    return f"{grid.words.title}, {heading}: {', '.join(told)}."


def _name(subject: str) -> str:
    return SUBJECTS.get(subject, subject.replace("_", " "))


def _against(here: Cell, other: Cell, name: str) -> str:
    gap = here.value - other.value
    size = here.show(abs(gap))
    if not float(size):
        return f"level with {name}"
    apart = None in (here.low, here.high, other.low, other.high) or (
        (here.low or 0.0) > (other.high or 0.0) or (here.high or 0.0) < (other.low or 0.0))
    unit = " points" if here.percent else ""
    return f"{size}{unit} {'above' if gap > 0 else 'below'} {name}" + ("" if apart else " with overlapping intervals")


def _chips(values: Mapping[str, str]) -> list[tuple[str, str]]:
    """The few settings worth a place at the top, whatever section of the settings they stand in."""
    found = {}
    for wanted in CHIPS:
        names = [name for name in values if name.rsplit(".", 1)[-1] == wanted and values[name] not in ("", "none")]
        if names:
            found[wanted.replace("_", " ")] = _COMMIT.sub(r"\1", values[min(names, key=len)])
    return list(found.items())


def _bars(tables: Sequence[Grid], recipe: str) -> dict[tuple[str, str, str], Markup]:
    """(eval, subject, metric) -> its bar."""
    drawn = {}
    for grid in tables:
        for line in grid.lines:
            kind = "ceiling" if line.subject == CEILING else "own" if line.subject == recipe else "other"
            for metric, cell in zip(grid.metrics, line.cells, strict=True):
                if cell:
                    drawn[grid.eval, line.subject, metric.name] = bar(
                        cell.value, cell.low, cell.high, points=cell.points, start=metric.low, end=metric.high,
                        kind=kind)
    return drawn


@dataclass(frozen=True)
class Stage:
    """The curves of one training stage: (title, drawing) each; the legend says which colour is whose."""

    name: str
    legend: Sequence[tuple[int, str]]
    first: Sequence[tuple[str, Markup]]
    more: Sequence[tuple[str, Markup]]


def stages(metrics: Sequence[Row], own: str = "") -> list[Stage]:
    """Training curves by stage, a line for each subject and seed, coloured by subject; `own` has the page's colour."""
    by_stage: dict[str, list[Row]] = {}
    for row in metrics:
        if isinstance(row.get("step"), int | float):
            by_stage.setdefault(str(row.get("stage", "training")), []).append(row)
    subjects = list(dict.fromkeys(str(row.get("subject") or "") for row in metrics))
    colors = {subject: OWN_COLOR if subject in (own, "") else COLORS[number % len(COLORS)]
              for number, subject in enumerate(subjects)}
    found = []
    for name, rows in by_stage.items():
        here = list(dict.fromkeys(str(row.get("subject") or "") for row in rows))
        names = list(dict.fromkeys(key for row in rows for key, value in row.items()
                                   if key not in NO_CURVE and isinstance(value, int | float)))
        telling = [key for key in CURVES if key in names]
        names = telling + sorted(key for key in names if key not in CURVES)
        charts = [(CURVES.get(key, key), line_chart(f"{name}, {CURVES.get(key, key)}", _series(rows, key, colors)))
                  for key in names]
        first = min(CURVES_FIRST, len(telling) or CURVES_FIRST)
        found.append(Stage(name, [(colors[subject], _name(subject)) for subject in here if subject],
                           charts[:first], charts[first:]))
    return found


def _series(rows: Sequence[Row], key: str, colors: Mapping[str, int]) -> list[Series]:
    lines: dict[tuple[str, Any], dict[float, float]] = {}
    for row in rows:
        if isinstance(row.get(key), int | float):   # a step logged twice counts once
            lines.setdefault((str(row.get("subject") or ""), row.get("seed")), {})[float(row["step"])] = float(row[key])
    return [Series(_name(subject) + (f", seed {seed}" if seed is not None else ""), sorted(points.items()),
                   colors[subject]) for (subject, seed), points in lines.items()]


def pair_counts(pairs: Sequence[Row], trees: Sequence[DialogueTree]) -> dict[str, dict[str, Counter[str]]]:
    """How many pairs of each kind: {what they are counted by: {its value: {kind: number}}}."""
    by_id = {tree.id: tree for tree in trees}
    counts: dict[str, dict[str, Counter[str]]] = {}
    for pair in pairs:
        tree, parent = by_id.get(str(pair.get("tree"))), str(pair.get("parent"))
        partner = tree[parent].notes.get("brief") if tree is not None and parent in tree else None
        values = {"all": "pairs", "level": f"level {pair['level']}" if "level" in pair else None,
                  "partner’s brief": partner,
                  "brief of the chosen reply": pair.get("chosen_brief"),
                  "brief of the rejected reply": pair.get("rejected_brief")}
        kind = str(pair.get("kind") or "pair")
        for group, value in values.items():
            counts.setdefault(group, {}).setdefault(str(value or "none"), Counter())[kind] += 1
    return {group: dict(sorted(rows.items())) for group, rows in counts.items()
            if group == "all" or any(value != "none" for value in rows)}


def _commands(run: Run, tables: Sequence[Grid]) -> list[tuple[str, str]]:
    folder = shlex.quote(str(run.folder))
    model = shlex.quote(f"run:{run.folder}")
    evaluate = tables[0].eval if tables else "recall"
    return [(f"dialoom show {folder}", "walk through a tree in the terminal"),
            (f"dialoom chat {model}", "talk with the trained model"),
            (f"dialoom eval {shlex.quote(evaluate)} --model {model}", "evaluate it again, or evaluate another model"),
            (f"dialoom {shlex.quote(run.recipe)} --model hf:Qwen/Qwen3-0.6B", "the same with a model of your own"),
            (f"dialoom {shlex.quote(run.recipe)} --help", "every setting")]
