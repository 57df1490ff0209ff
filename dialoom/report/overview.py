"""What a run has to tell at a glance, as plain JSON for the page: result, tables, curves, counts, times, settings.

Here it is decided what is said and in which words; how it is drawn is the page's.
"""

from __future__ import annotations

import math
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from dialoom.dialogue import DialogueTree
from dialoom.report.read import Run
from dialoom.report.safe import flat
from dialoom.report.table import CEILING, SUBJECTS, Cell, Grid, Row, grids

Json = dict[str, Any]
TITLES = {"pbt": "Persuasion-balanced training", "ditto": "Aligning to a person from demonstrations",
          "aloe": "Aligning with individual preferences", "ideas": "Inductive-deductive strategy reuse",
          "dat": "Dialogue action tokens"}
OWN = {"aloe": "dpo", "dat": "planner"}   # the subject a recipe is about, where it has another name
EVALUATIONS = {"pbt": "flipflop", "ideas": "quality", "dat": "social"}   # for `dialoom eval`; else the scorecard has it
CHIPS = ("model", "partner", "speakers", "train", "preset", "data", "limit", "seed", "seeds", "model_hash",
         "data_hash", "pocket", "revision", "device")
NO_CHIP = {"limit": ("", "none", "0")}   # no limit at all
CURVES = {"loss": "loss", "eval_loss": "loss, held out", "rewards/accuracies": "share of pairs ranked rightly",
          "rewards/margins": "margin of the implicit rewards", "mean_token_accuracy": "share of tokens predicted",
          "logps/chosen": "log-probability of the chosen reply",
          "logps/rejected": "log-probability of the rejected reply", "critic_loss": "loss of the critics",
          "actor_loss": "loss of the planner", "value": "value of the actions tried, by the critics"}
CURVES_FIRST = 4   # shown at once for each stage; the others open on demand
MAX_POINTS = 300   # more than a chart has pixels for
NO_CURVE = frozenset({"stage", "subject", "seed", "step", "epoch", "time", "total_flos", "num_tokens"})
FUNNEL = {"generated": "written", "parsed": "parsed", "novel": "novel", "verified": "verified", "answered": "answered"}
OWN_COLOR, COLORS = 2, (0, 1, 3, 4, 5)   # classes of the style sheet
_COMMIT = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{28}\b")


def overview(run: Run) -> Json:
    """All the page tells of a run apart from its dialogues. Not cleaned yet: `safe.clean` does that for everything."""
    tables, own = grids(run.results), OWN.get(run.recipe, run.recipe)
    settings, about = flat(dict(run.config)), flat(dict(run.env))
    return {
        "name": run.folder.name or str(run.folder), "folder": str(run.folder), "recipe": run.recipe,
        "title": TITLES.get(run.recipe, run.recipe), "notes": list(run.notes), "summary": summary(tables, own),
        "chips": _chips(settings | about), "grids": [_grid(grid, own) for grid in tables],
        "curves": curves(run.metrics, own), "times": _times(run.stages),
        "counts": {"trees": len(run.trees), "turns": sum(map(len, run.trees)), "pairs": len(run.pairs),
                   "by": pair_counts(run.pairs, [tree for part in run.parts if part.pairs for tree in part.trees])},
        "funnels": _funnels(run.funnels), "dropped": list(run.dropped.items()),
        "briefs": dict(run.briefs), "settings": list(settings.items()), "about": list(about.items()),
        "commands": commands(run)}


def summary(tables: Sequence[Grid], own: str) -> str:
    """What came out, in a sentence: the run's `own` subject against every other on the first table's main metric."""
    if not tables:
        return "Nothing has been evaluated yet; the same command continues the run."
    grid = tables[0]
    metric = grid.words.goal or grid.metrics[0].name
    subjects = [line.subject for line in grid.lines if line.subject != CEILING and grid.cell(line.subject, metric)]
    main = own if own in subjects else subjects[-1] if subjects else ""
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
        names = [name for name, value in values.items() if name.rsplit(".", 1)[-1] == wanted
                 and value not in NO_CHIP.get(wanted, ("", "none"))]
        if names:
            found[wanted.replace("_", " ")] = _COMMIT.sub(r"\1", values[min(names, key=len)])
    return list(found.items())


def _grid(grid: Grid, own: str) -> Json:
    """One eval's table with all its words and numbers as they are to be printed."""
    def cell(one: Cell | None) -> Json | None:
        if one is None:
            return None
        return {"value": one.value, "low": one.low, "high": one.high, "points": list(one.points),
                "text": one.show(one.value), "interval": one.interval}

    lines = [{"subject": line.subject, "title": line.title, "way": line.way,
              "kind": "ceiling" if line.subject == CEILING else "own" if line.subject == own else "other",
              "cells": [cell(one) for one in line.cells]} for line in grid.lines]
    metrics = [{"name": metric.name, "title": metric.title, "low": metric.low, "high": metric.high}
               for metric in grid.metrics]
    return {"eval": grid.eval, "title": grid.words.title, "about": grid.words.about, "caption": grid.caption,
            "metrics": metrics, "lines": lines, "way": grid.has_way}


def curves(metrics: Sequence[Row], own: str = "") -> list[Json]:
    """Training curves by stage, a line for each subject and seed, coloured by subject; `own` has the page's colour.

    Returns: for each stage {"stage", "legend": [[color, name]], "charts": [{"title", "first", "lines"}]}, a line being
        {"name", "color", "points": [[step, value]]}.
    """
    by_stage: dict[str, list[Row]] = {}
    for row in metrics:
        if isinstance(row.get("step"), int | float):
            by_stage.setdefault(str(row.get("stage", "training")), []).append(row)
    subjects = list(dict.fromkeys(str(row.get("subject") or "") for row in metrics))
    colors = {subject: OWN_COLOR if subject in (own, "") else COLORS[number % len(COLORS)]
              for number, subject in enumerate(subjects)}
    found = []
    for stage, rows in by_stage.items():
        here = list(dict.fromkeys(str(row.get("subject") or "") for row in rows))
        names = list(dict.fromkeys(key for row in rows for key, value in row.items()
                                   if key not in NO_CURVE and _is_number(value)))
        telling = [key for key in CURVES if key in names]
        first = min(CURVES_FIRST, len(telling) or CURVES_FIRST)
        charts = [{"title": CURVES.get(key, key), "first": place < first, "lines": _lines(rows, key, colors)}
                  for place, key in enumerate(telling + sorted(key for key in names if key not in CURVES))]
        found.append({"stage": stage, "legend": [[colors[one], _name(one)] for one in here if one], "charts": charts})
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _lines(rows: Sequence[Row], key: str, colors: Mapping[str, int]) -> list[Json]:
    lines: dict[tuple[str, Any], dict[float, float]] = {}
    for row in rows:
        if _is_number(row.get(key)):   # a step logged twice counts once
            lines.setdefault((str(row.get("subject") or ""), row.get("seed")), {})[float(row["step"])] = float(row[key])
    return [{"name": (_name(subject) or key) + (f", seed {seed}" if seed is not None else ""),
             "color": colors[subject], "points": _thinned(sorted(points.items()))}
            for (subject, seed), points in lines.items()]


def _thinned(points: Sequence[tuple[float, float]]) -> list[list[float]]:
    """At most some hundred of the points, the last always among them; numbers as short as a chart can show them."""
    step = math.ceil(len(points) / MAX_POINTS)
    kept = [*points[:-1:step], points[-1]] if step > 1 else points
    return [[x, float(f"{y:.5g}")] for x, y in kept]


def pair_counts(pairs: Sequence[Row], trees: Sequence[DialogueTree]) -> list[Json]:
    """How many pairs of each kind, counted by several things: [{"by", "kinds", "rows": [[value, [count of a kind]]]}].

    The first is by nothing; what all pairs have alike is left out.
    """
    by_id = {tree.id: tree for tree in trees}
    kinds = sorted({str(pair.get("kind") or "pair") for pair in pairs})
    counts: dict[str, dict[str, Counter[str]]] = {}
    for pair in pairs:
        tree, parent = by_id.get(str(pair.get("tree"))), str(pair.get("parent"))
        partner = tree[parent].notes.get("brief") if tree is not None and parent in tree else None
        values = {"": "pairs", "level": f"level {pair['level']}" if "level" in pair else None,
                  "author": pair.get("author"), "partner’s brief": partner,
                  "brief of the chosen reply": pair.get("chosen_brief"),
                  "brief of the rejected reply": pair.get("rejected_brief")}
        for by, value in values.items():
            counts.setdefault(by, {}).setdefault(str(value or "none"), Counter())[str(pair.get("kind") or "pair")] += 1
    return [{"by": by, "kinds": kinds, "rows": [[value, [found[kind] for kind in kinds]]
                                                for value, found in sorted(rows.items(), key=_counted)]}
            for by, rows in counts.items() if not by or any(value != "none" for value in rows)]


def _counted(row: tuple[str, Any]) -> list[tuple[int, str]]:
    """Sorts `level 11` behind `level 3`."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", row[0])]


def _times(stages: Sequence[Row]) -> list[Json]:
    return [{"stage": str(row.get("stage", "")), "seconds": row.get("seconds") if _is_number(row.get("seconds")) else 0,
             "finished": str(row.get("finished", ""))} for row in stages]


def _funnels(funnels: Mapping[str, Any]) -> list[Json]:
    """Of what was made, how much came as far as each step: one funnel for each arm, its steps in their order."""
    found = []
    for arm, counts in funnels.items():
        steps = [[word, counts[name]] for name, word in FUNNEL.items()
                 if isinstance(counts, dict) and _is_number(counts.get(name))]
        if steps:
            found.append({"title": _name(arm), "steps": steps})
    return found


def commands(run: Run) -> list[tuple[str, str]]:
    """How to go on from a run, as it lies there: commands that can be typed as they are, and what each does."""
    folder, known = shlex.quote(str(run.folder)), run.recipe in TITLES
    found = [(f"dialoom view {folder}", "this page, live while the run goes on; two folders stand side by side"),
             (f"dialoom show {folder}", "walk through a tree in the terminal")]
    spec, planner, author = _trained(run)
    if spec:
        found.append((f"dialoom chat {folder if planner else spec}", "talk with the trained model"))
        name = "redteam" if run.config.get("scenes") == "redteam" else EVALUATIONS.get(run.recipe)
        if name:
            found.append((f"dialoom eval {name} --model {spec}{planner}", "measure it again, or another model"))
        found.append((f"dialoom scorecard {spec}{planner}{author}",
                      "one evaluation after the other of it: what else did the training change?"))
    elif known:
        found.append((f"dialoom resume {folder}", "go on where it was stopped"))
    if known:
        scenes = " --scenes redteam" if run.config.get("scenes") == "redteam" else ""
        found += [(f"dialoom {run.recipe}{scenes} --model hf:Qwen/Qwen3-0.6B", "the same with a model of your own"),
                  (f"dialoom {run.recipe} --help", "every setting")]
    return found


def _trained(run: Run) -> tuple[str, str, str]:
    """What a run trained, as commands take it: a model's spec, the flag of a planner, and that of a pocket author.

    The spec is empty where nothing is trained yet.
    """
    if (run.folder / "planner" / "steering.json").is_file():
        return shlex.quote(str(run.config.get("model", "pocket"))), f" --planner {shlex.quote(str(run.folder))}", ""
    places = [run.folder, *sorted(run.folder.glob("authors/*"))]   # of several authors each has an adapter
    one = next((place for place in places if (place / "model").is_dir() or (place / "adapter").is_dir()), None)
    if one is None:
        return "", "", ""
    is_pocket_author = one != run.folder and not run.config.get("demos")
    return shlex.quote(f"run:{one}"), "", f" --author {shlex.quote(one.name)}" if is_pocket_author else ""
