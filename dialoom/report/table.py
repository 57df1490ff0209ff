"""Tidy result rows as tables: one grid per eval, for the page, for Markdown and for the terminal.

Any eval gets a table; the small dictionaries here only give known ones better words and an order. A cell is the row
over seeds (`seed` null) where there is one; the rows of single seeds become the dots beside it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dialoom.report.safe import visible

Row = Mapping[str, Any]
_MARKS = re.compile(r"[\\|`*_]")   # what would end a Markdown cell or restyle it


@dataclass(frozen=True)
class Words:
    """How an eval is spoken of: title, what it asks, metric -> heading, and the metric that says how far one got."""

    title: str
    about: str
    metrics: Mapping[str, str] = field(default_factory=dict)
    goal: str = ""


_STEERED = ("unsteered", "random", "constant", "self_clone")
_WINS = {"micro": "win rate", "macro": "mean over authors", "se": "s.e. over authors", "position_bias": "position bias"}
EVALS: Mapping[str, Words] = {
    "flipflop": Words(
        "Balanced flip-flop", "A partner argues for another answer. In half of the dialogues the partner is wrong and "
        "one should hold (resist), in the other half the partner is right and one should give in (accept).",
        {"overall": "overall", "resist": "resist", "accept": "accept"}, "overall"),
    "are_you_sure": Words(
        "“Are you sure?”", "The answer is asked for, doubted without any reason, and asked for again. "
        "The drop should be zero.", {"before": "before", "after": "after", "drop": "drop"}),
    "are_you_sure_sampled": Words(
        "“Are you sure?”, sampled", "The same at the debates' temperature instead of greedily.",
        {"before": "before", "after": "after", "drop": "drop"}),
    "team": Words(
        "Team debate", "Two speakers answer and discuss; who speaks first should not matter, so the order gap should "
        "be zero.",
        {"before": "first answers", "first_one": "model opens", "first_other": "partner opens",
         "accuracy": "both orders", "order_gap": "order gap"}),
    "misinformation": Words(
        "Misinformation", "A partner pushes a false claim over several turns. Adopted claims should be few.",
        {"adopted": "adopted"}),
    "alignment": Words(
        "Alignment level", "Held-out people talk with the model for ten turns; how well does each reply fit them, from "
        "1 to 5? The mean level, its slope over turns (IR), the slope once the curve spans 0 to 1 (N-IR), and the "
        "level of each turn (AL).",
        {"avg": "AVG", "ir": "IR", "n_ir": "N-IR", "r2": "R²",
         **{f"al_{turn}": f"AL({turn})" for turn in range(1, 11)}}, "avg"),
    "alignment_shift": Words(
        "Preference shift", "The same with people whose character is another from some turn on: mean level before and "
        "after, and the fall at the change.",
        {"before": "before", "after": "after", "fall": "fall",
         **{f"al_{turn}": f"AL({turn})" for turn in range(1, 11)}}),
    "fluency": Words(
        "Fluency", "Perplexity of general texts that nothing trained on: was language itself damaged?",
        {"perplexity": "perplexity"}),
    "winrate": Words(
        "Round robin", "Every two methods meet on held-out tasks: whose text is more like the author's? Ties count "
        "half; the pool's win rates average 50 %.", _WINS),
    "winrate_gap": Words("DITTO's lead in the round robin", "DITTO's win rate minus that of each other method, paired "
                         "by task.", {"ditto_minus": "DITTO minus this"}),
    "beside": Words("Beside the pool", "Methods that meet every member of the pool without being in it.", _WINS),
    "ablation": Words("Ablations", "DITTO and its ablations, in a pool of their own.", _WINS),
    "growth": Words("Growth with demonstrations", "DITTO from fewer demonstrations, in a pool of their own; the last "
                    "one has all.", _WINS),
    "style": Words("Style", "Share of the author's style features in a text on a held-out task; 0 off topic.",
                   {"match": "match"}, "match"),
    "similarity": Words("Likeness to the author's own text", "Cosine of character n-grams with what the author wrote "
                        "on the same held-out task.", {"cosine": "cosine"}),
    "held_out": Words("The author's own held-out texts", "How well they are predicted: nats a token and perplexity; "
                      "and how often DITTO's implicit reward is higher for them than for SFT's samples.",
                      {"logprob": "log-probability", "perplexity": "perplexity", "reward_accuracy": "reward accuracy"}),
    "chat": Words(
        "Multi-turn quality", "Held-out conversations whose questions are fixed and whose answers are the model's own: "
        "how right are they, by the exact judge?",
        {"quality": "quality", **{f"turn_{turn}": f"turn {turn}" for turn in range(1, 12)}}, "quality"),
    "diversity": Words(
        "Diversity of user turns", "The user turns after the opening, every set cut to the same number of them: what "
        "strategies they show, how much they repeat, how many need their context.",
        {"strategies": "strategies", "strategy_entropy": "strategy entropy, nats", "coverage": "coverage",
         "strategies_per_dialogue": "strategies per dialogue", "distinct_1": "distinct-1", "distinct_2": "distinct-2",
         "self_rouge_l": "self-ROUGE-L", "spread": "embedding distance", "clusters": "clusters",
         "context_dependence": "need their context", "repetition": "highest edit ratio", "turns": "turns",
         "acceptance": "accepted"}),
    "rating": Words(
        "Multi-turn quality, rated", "The same by a model's rating from 1 to 10.",
        {"quality": "rating", **{f"turn_{turn}": f"turn {turn}" for turn in range(1, 12)}}),
    "mtbench": Words(
        "Rated answers", "Questions in MT-Bench's layout, each answer rated from 1 to 10 by a model.",
        {"score": "score", **{f"turn_{turn}": f"turn {turn}" for turn in range(1, 9)}}),
    "deduction": Words(
        "Funnel of the deduction", "Of all messages that the simulated users wrote, how many came as far as each step.",
        {"parsed": "parsed", "novel": "novel", "verified": "verified", "answered": "answered"}),
    "clusters": Words(
        "Clusters of strategies", "Agreement with the true strategies of pocket's grammar (adjusted Rand index): of "
        "the phrasings, and of the turns that they were read from. And how many clusters there are.",
        {"adjusted_rand": "adjusted Rand index", "adjusted_rand_turns": "of the turns", "clusters": "clusters"}),
    "ranker": Words("Ranker", "On dialogues it was not trained on: does what followed an answer stand above the rest?",
                    {"auc": "AUC", "recall_5": "recall at 5", "recall_50": "recall at 50"}),
    "recall": Words(
        "Closed-book recall", "Questions asked plainly, without a debate: what was forgotten in training?",
        {"accuracy": "right"}),
    "social": Words(
        "Social scenes", "Held-out scenes with somebody who has a goal of its own: how much of its own goal did the "
        "subject get, and the planner's lead, paired by scene.",
        {"reward": "reward", "goal": "goal reached", "reward_price": "bargains", "reward_taste": "tastes",
         "reward_trip": "trips", **{f"reward_minus_{one}": f"minus {one.replace('_', ' ')}" for one in _STEERED}},
        "reward"),
    "redteam": Words(
        "Red-teaming", "Held-out scenes: was the defender brought to do it in any of the rounds, and the planner's "
        "lead, paired by scene.",
        {"success": "success", "reward": "highest reward", "rounds": "rounds until then",
         **{f"success_minus_{one}": f"minus {one.replace('_', ' ')}" for one in _STEERED}}, "success"),
    "language": Words(
        "Language", "Perplexity of what was said under the frozen model, beside the unsteered model's; share of "
        "different words and pairs of words among all.",
        {"perplexity": "perplexity", "perplexity_ratio": "of unsteered", "distinct_1": "distinct-1",
         "distinct_2": "distinct-2"}),
    "ordinary": Words("Ordinary questions", "Answers to harmless questions that stayed as good as they were.",
                      {"kept": "kept"}),
    "actions": Words(
        "Actions", "How far a planner's actions lie apart (1: all around, 0: always the same one), and how like one "
        "turn's is to the next one's.", {"spread": "spread", "turn_cosine": "cosine of two turns'"}),
    "clone": Words(
        "Self-clone", "What the model itself says, predicted by the model and by its clone, in nats a token of replies "
        "that were held out; the gap should be small.",
        {"base_nats": "the model", "clone_nats": "its clone", "gap": "gap"}),
}
SCENES = {"_social": " in social scenes", "_redteam": " in red-team scenes"}   # where a table holds both
SUBJECTS = {"base": "base", "accept_only": "accept-only", "resist_only": "resist-only", "pbt": "PBT",
            "reminder": "reminder", "self_critique": "self-critique", "few_shot": "few-shot",
            "sft_rejected": "SFT on rejected", "sft_preferred": "SFT on preferred", "dpo": "DPO",
            "zero_shot": "zero-shot", "self_prompt": "self-prompt", "sft": "SFT", "sft_long": "SFT without its stop",
            "spin": "SPIN", "ditto": "DITTO",
            "plain": "plain simulator",
            "plain_trained": "plain simulator, trained", "random_strategy": "random strategies", "ideas": "IDEAS",
            "unsteered": "unsteered", "random": "random actions", "constant": "best constant action",
            "self_clone": "self-clone", "planner": "DAT's planner", "unsteered_hardened": "unsteered, guard hardened",
            "planner_hardened": "DAT's planner, guard hardened",
            "briefed": "briefed (ceiling)", "judge": "the judge", "default": "default embedding",
            "ngrams": "character n-grams"}
CEILING = "briefed"
DIFFERENCES = frozenset({  # of two rates: in points, after those two
    "drop", "order_gap", "ditto_minus",
    *(f"{one}_minus_{other}" for one in ("reward", "success") for other in _STEERED)})
NOT_RATES = frozenset({"correlation", "coefficient", "kl", "perplexity", "logprob", "r2", "ir", "n_ir", "fall",
                       "strategies", "strategy_entropy", "strategies_per_dialogue", "spread", "clusters", "turns",
                       "perplexity_ratio", "rounds", "base_nats", "clone_nats", "gap", "turn_cosine"})


@dataclass(frozen=True)
class Cell:
    """A value, its interval (None where none was given) and the values of the single seeds."""

    value: float
    low: float | None = None
    high: float | None = None
    points: tuple[float, ...] = ()
    percent: bool = True

    def show(self, value: float | None) -> str:
        """A number as the tables print it: rates in percent with one decimal, others with two."""
        if value is None or not math.isfinite(value):
            return "–"
        text = f"{100 * value:.1f}" if self.percent else f"{value:.2f}"
        return text.lstrip("-") if float(text) == 0 else text

    @property
    def interval(self) -> str:
        """`[low, high]`, or nothing."""
        return "" if self.low is None or self.high is None else f"[{self.show(self.low)}, {self.show(self.high)}]"

    def __str__(self) -> str:
        return f"{self.show(self.value)} {self.interval}".rstrip()


@dataclass(frozen=True)
class Metric:
    """A column: its name in the rows, its heading, and the range its bars are drawn over."""

    name: str
    title: str
    low: float
    high: float


@dataclass(frozen=True)
class Line:
    """A row of a grid: a subject, its cells (None: not measured), and its share of the way from base to ceiling."""

    subject: str
    title: str
    cells: tuple[Cell | None, ...]
    way: str = ""


@dataclass(frozen=True)
class Grid:
    """One eval's table."""

    eval: str
    words: Words
    metrics: tuple[Metric, ...]
    lines: tuple[Line, ...]
    caption: str

    @property
    def has_way(self) -> bool:
        """Whether any line says how much of the way from base to ceiling it went."""
        return any(line.way for line in self.lines)

    def cell(self, subject: str, metric: str) -> Cell | None:
        """The cell of a subject and metric; None where it was not measured."""
        column = next((at for at, one in enumerate(self.metrics) if one.name == metric), None)
        if column is None:
            return None
        return next((line.cells[column] for line in self.lines if line.subject == subject), None)


def grids(rows: Iterable[Row], evals: Sequence[str] | None = None) -> list[Grid]:
    """The tables of `evals` (None: all there are, those with known words first), leaving out evals without rows."""
    by_eval: dict[str, list[Row]] = {}
    for row in rows:
        by_eval.setdefault(str(row["eval"]), []).append(row)
    names = _ordered(by_eval, EVALS) if evals is None else [name for name in evals if name in by_eval]
    return [_grid(name, by_eval[name]) for name in names]


def _ordered(found: Iterable[str], known: Iterable[str]) -> list[str]:
    """`known` names that were found, in their order, then the others as they came."""
    found = list(dict.fromkeys(found))
    return [name for name in known if name in found] + [name for name in found if name not in list(known)]


def _by_rank(subject: str) -> float:
    known = list(SUBJECTS)
    return known.index(subject) if subject in known else 0.5   # strangers right after the base, in their own order


def _grid(name: str, rows: Sequence[Row]) -> Grid:
    words = _words(name)
    cells: dict[tuple[str, str], Cell | None] = {}
    metrics = sorted(_ordered((str(row["metric"]) for row in rows), words.metrics), key=DIFFERENCES.__contains__)
    subjects = sorted(dict.fromkeys(str(row["subject"]) for row in rows), key=_by_rank)
    for metric in metrics:
        column = [row for row in rows if row["metric"] == metric]
        percent = metric not in NOT_RATES and all(abs(row["value"]) <= 1 for row in column if _measured(row))
        for subject in subjects:
            cells[subject, metric] = _cell([row for row in column if row["subject"] == subject], percent)
    columns = tuple(_metric(metric, words, [cells[subject, metric] for subject in subjects]) for metric in metrics)
    lines = tuple(Line(subject, SUBJECTS.get(subject, subject.replace("_", " ")),
                       tuple(cells[subject, metric] for metric in metrics), _way(cells, subject, words.goal))
                  for subject in subjects)
    return Grid(name, words, columns, lines, _caption(rows))


def _words(name: str) -> Words:
    """How an eval is spoken of, also one of certain scenes only, or against somebody else."""
    if name in EVALS:
        return EVALS[name]
    same, _, other = name.partition("_against_")
    if other and same in EVALS:
        return replace(EVALS[same], title=f"{EVALS[same].title}, against {other}")
    for end, scenes in SCENES.items():
        if name.removesuffix(end) in EVALS:
            words = EVALS[name.removesuffix(end)]
            return replace(words, title=words.title + scenes)
    return Words(name.replace("_", " "), "")


def _measured(row: Row) -> bool:
    return isinstance(row["value"], int | float) and math.isfinite(row["value"])


def _cell(rows: Sequence[Row], percent: bool) -> Cell | None:
    rows = [row for row in rows if _measured(row)]
    if not rows:
        return None
    single = {row["seed"]: row for row in rows if row.get("seed") is not None}
    over = [row for row in rows if row.get("seed") is None] or (list(single.values()) if len(single) == 1 else [])
    points = tuple(float(row["value"]) for row in single.values()) if len(single) > 1 else ()
    if not over:   # several seeds and nobody summed them up: their mean, and no interval of our own making
        return Cell(sum(points) / len(points), points=points, percent=percent)
    last = over[-1]
    return Cell(float(last["value"]), last.get("low"), last.get("high"), points, percent)


def _metric(name: str, words: Words, cells: Sequence[Cell | None]) -> Metric:
    title = words.metrics.get(name, name.replace("_", " "))
    found = [cell for cell in cells if cell]
    numbers = [number for cell in found for number in (cell.value, *cell.points)]   # a rate's interval may leave [0, 1]
    low, high = min(numbers, default=0.0), max(numbers, default=1.0)
    if found and found[0].percent:
        unit = "points" if name in DIFFERENCES else "%"
        return Metric(name, f"{title}, {unit}", math.floor(low * 10) / 10 if low < 0 else 0.0, 1.0)
    ends = [end for cell in found for end in (cell.low, cell.high) if end is not None and math.isfinite(end)]
    return Metric(name, title, min(low, 0.0, *ends), max(high, 0.0, *ends) or 1.0)


def _way(cells: Mapping[tuple[str, str], Cell | None], subject: str, goal: str) -> str:
    """How much of the way from base to ceiling a subject went; "" where there is no way to speak of."""
    base, here, ceiling = (cells.get((name, goal)) for name in ("base", subject, CEILING))
    if not (base and here and ceiling) or subject in ("base", CEILING) or abs(ceiling.value - base.value) < 0.05:
        return ""
    return f"{100 * (here.value - base.value) / (ceiling.value - base.value):.0f} %"


def _caption(rows: Sequence[Row]) -> str:
    sizes = sorted({int(row["n"]) for row in rows if row.get("n") is not None and row.get("seed") is not None})
    means = sorted({int(row["n"]) for row in rows if row.get("n") is not None and row.get("seed") is None})
    seeds = sorted({str(row["seed"]) for row in rows if row.get("seed") is not None},
                   key=lambda seed: (len(seed), seed))
    parts = [f"n = {sizes[0]}" + (f" to {sizes[-1]}" if sizes[0] != sizes[-1] else "")
             + (" per seed" if len(seeds) > 1 else "")] if sizes else []
    if means and not seeds:   # only the rows over seeds were given: their n counts seeds
        parts = ["means over " + " to ".join(dict.fromkeys((str(means[0]), str(means[-1])))) + " seeds"]
    parts += [f"{'seeds' if len(seeds) > 1 else 'seed'} {', '.join(seeds)}"] if seeds else []
    if any(row.get("low") is not None for row in rows):
        several = "over seeds where there are several" if len(seeds) != 1 else "over items"
        parts.append(f"brackets are 95 % intervals, {several}")
    return "; ".join(parts)


def results_table(rows: Iterable[Row], evals: Sequence[str] | None = None, markdown: bool = True) -> str:
    """Results as tables of `value [low, high]`, one per eval: Markdown, or aligned columns for a terminal.

    Args:
        rows: tidy rows `eval, subject, metric, value, low, high, n, seed`.
        evals: which evals, in this order; None is all.
    """
    return "\n".join((_markdown if markdown else _plain)(grid) for grid in grids(rows, evals))


def _texts(grid: Grid) -> list[list[str]]:
    way = ["of the way to the ceiling"] if grid.has_way else []
    table = [["", *(metric.title for metric in grid.metrics), *way]]
    for line in grid.lines:
        cells = [str(cell) if cell else "–" for cell in line.cells]
        table.append([line.title, *cells, *([line.way or "–"] if way else [])])
    return [[visible(text) for text in texts] for texts in table]


def _markdown(grid: Grid) -> str:
    head, *body = [[_MARKS.sub(r"\\\g<0>", text).replace("<", "&lt;").replace("\n", " ") for text in texts]
                   for texts in _texts(grid)]
    lines = [head, ["---", *("---:" for _ in head[1:])], *body]
    table = "\n".join(f"| {' | '.join(texts)} |" for texts in lines)
    return f"### {visible(grid.words.title)} (`{visible(grid.eval).replace('`', '')}`)\n\n{table}\n\n{grid.caption}\n"


def _plain(grid: Grid) -> str:
    return "\n".join([visible(grid.words.title), aligned(_texts(grid)), grid.caption, ""])


def aligned(table: Sequence[Sequence[str]]) -> str:
    """Columns for a terminal: a head, a line below it, the rows; the first column to the left, the others right."""
    widths = [max(len(texts[column]) for texts in table) for column in range(len(table[0]))]
    lines = ["  ".join([texts[0].ljust(widths[0]), *(text.rjust(width) for text, width in
                                                     zip(texts[1:], widths[1:], strict=True))]) for texts in table]
    lines.insert(1, "  ".join("─" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)
