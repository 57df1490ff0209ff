"""Remakes the tables under docs/results/: `python -m bench.results [RECIPE ...] [--seeds 5] [--jobs 2]`.

Each seed is an ordinary run of the recipe in `runs/results/`, so a remake that was stopped goes on where it was. The
tables name the hash of the pocket weights they were made with; rebuild pocket, and all of them are remade.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from dialoom.evals.metrics import Row, over_seeds, student
from dialoom.models.load import WEIGHTS, weights_hash
from dialoom.report import results_table

ROOT = Path(__file__).parent.parent
RUNS = ROOT / "runs" / "results"
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}  # two runs side by side, with a thread each, are the quickest here
Values = dict[tuple[str, str, str], list[float]]


def pocket_hashes() -> dict[str, str]:
    """The hashes of both pocket models' weights."""
    return {name: weights_hash(WEIGHTS / name) for name in ("pocket", "pocket-small")}


def run_seeds(recipe: str, seeds: Sequence[int], jobs: int,
              flags: Callable[[int], Sequence[str]] = lambda seed: (), variant: str = "") -> list[Path]:
    """One run of the recipe for each seed, `jobs` at a time; finished ones are found again.

    Args:
        flags: more of the command line, by seed.
        variant: what tells these runs from others of the recipe, "" where there is one sort only.
    """
    tag = "-".join(pocket_hashes().values())
    folders = [RUNS / f"{recipe}-{variant}{'-' * bool(variant)}{tag}" / f"seed-{seed}" for seed in seeds]
    waiting = list(zip(seeds, folders, strict=True))
    running: list[tuple[int, subprocess.Popen[bytes]]] = []
    while waiting or running:
        while waiting and len(running) < jobs:
            seed, folder = waiting.pop(0)
            folder.mkdir(parents=True, exist_ok=True)
            command = [sys.executable, "-m", "dialoom", recipe, "--seed", str(seed), "--out", str(folder),
                       *flags(seed)]
            with (folder.parent / f"seed-{seed}.log").open("ab") as log:
                running.append((seed, subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=ONE_THREAD)))
            print(f"{recipe}, seed {seed}: {folder}", flush=True)
        seed, process = running.pop(0)
        if process.wait():
            raise SystemExit(f"{recipe}, seed {seed} failed; see {folders[0].parent}/seed-{seed}.log; the same command "
                             "continues")
        print(f"{recipe}, seed {seed}: done", flush=True)
    return folders


def difference(values: Values, eval_name: str, metric: str, one: str, other: str) -> tuple[float, float, float]:
    """Mean over seeds of one subject's figure minus another's, with its 95 % t-interval, paired by seed."""
    gaps = np.subtract(values[eval_name, one, metric], values[eval_name, other, metric])
    return interval(gaps)


def interval(gaps: np.ndarray) -> tuple[float, float, float]:
    """Mean and 95 % t-interval."""
    mean = float(np.mean(gaps))
    if len(gaps) < 2:
        return mean, math.nan, math.nan
    half = student(len(gaps) - 1) * float(np.std(gaps, ddof=1)) / math.sqrt(len(gaps))
    return mean, mean - half, mean + half


MET = "Met is said of the mean; where its interval spans the limit, that is said as well: the claim is then not shown."


class Claims:
    """A table of what a method must show, each claim with its figure; met or not is said of the point estimate."""

    def __init__(self, over: str = "seeds") -> None:
        self.lines = [f"| claim | figure | 95 % interval over {over} | met |", "|---|---|---|---|"]

    def add(self, text: str, found: tuple[float, float, float], met: Callable[[float], bool] | None = None, *,
            unit: str = " points", sign: str = "+") -> None:
        """One line. `found` are mean, low and high as fractions; no `met`: a figure that is only told."""
        mean, low, high = (100 * part for part in found)
        verdict = "told" if met is None else "yes" if met(mean) else "**no**"
        if met and met(mean) and not all(met(end) for end in (low, high) if math.isfinite(end)):
            verdict = "yes (interval spans the limit)"
        self.lines.append(f"| {text} | {mean:{sign}.1f}{unit} | [{low:{sign}.1f}, {high:{sign}.1f}] | {verdict} |")


def pbt_claims(values: Values, folders: Sequence[Path]) -> list[str]:
    """What PBT must show."""
    claims = Claims()
    for other in ("base", "accept_only", "resist_only"):
        claims.add(f"flip-flop overall, PBT over {other}: at least +15",
                   difference(values, "flipflop", "overall", "pbt", other), lambda mean: mean >= 15)
    claims.add("“are you sure?”, PBT's drop: within 3 of zero",
               interval(np.array(values["are_you_sure", "pbt", "drop"])), lambda mean: abs(mean) <= 3)
    claims.add("closed-book recall, PBT minus base: within 3 of zero",
               difference(values, "recall", "accuracy", "pbt", "base"), lambda mean: abs(mean) <= 3)
    halved = np.array(values["team", "both", "order_gap"]) - np.array(values["team", "none", "order_gap"]) / 2
    claims.add("team order gap, both trained, minus half of the untrained team's: at most 0", interval(halved),
               lambda mean: mean <= 0)
    return claims.lines


DITTO_EXTRA_SEEDS = (1, 2)  # the ablations and the growth with demonstrations are run with these


def ditto_flags(seed: int) -> list[str]:
    """The first seeds train the ablations and the smaller numbers of demonstrations as well."""
    more = ["--ablation", "no-resampling", "moving-reference", "no-replay", "no-inter", "--growth", "1", "2", "3", "5"]
    return more if seed in DITTO_EXTRA_SEEDS else []


def ditto_claims(values: Values, folders: Sequence[Path]) -> list[str]:
    """What DITTO must show: the round robin over seeds, the ablations paired over authors and seeds."""
    claims = Claims()
    claims.add("win rate of DITTO in the round robin: at least 70 %",
               interval(np.array(values["winrate", "ditto", "micro"])), lambda mean: mean >= 70, unit=" %", sign="")
    claims.add("DITTO over SFT, which stops early: at least +12",
               difference(values, "winrate", "micro", "ditto", "sft"), lambda mean: mean >= 12)
    for other in ("spin", "few_shot", "zero_shot"):
        claims.add(f"DITTO over {other}: above 0", difference(values, "winrate", "micro", "ditto", other),
                   lambda mean: mean > 0)
    claims.add("DITTO over SFT without its stop, against the same four opponents: above 0",
               difference(values, "same_opponents", "win_rate", "ditto", "sft_long"), lambda mean: mean > 0)
    claims.add("DITTO's wins in its duels with SFT without its stop: above 50 %",
               interval(1 - np.array(values["duels_with_ditto", "sft_long", "won"])), lambda mean: mean > 50, unit=" %",
               sign="")
    lines = claims.lines
    paired = Claims("authors and seeds, paired")
    for arm in ("no_resampling", "moving_reference", "no_replay", "no_inter"):
        gaps = paired_gaps(folders, "ablation", arm, "ditto")
        must = arm in ("no_resampling", "moving_reference")
        if len(gaps):
            found = interval(gaps)
            paired.add(f"{arm} minus DITTO{': interval below 0' if must else ''} ({len(gaps)} pairs)", found,
                       (lambda mean, high=found[2]: high < 0) if must else None)  # type: ignore[misc]
    return [*lines, "", "### Ablations, in a pool of their own", "", *paired.lines] if len(paired.lines) > 2 else lines


def ditto_rows(folder: Path, seed: int) -> list[Row]:
    """What a run's own rows hide, out of its matches: a method beside the pool also met DITTO, which DITTO did not.

    So `same_opponents` has DITTO and these methods against the rest of the pool, `duels_with_ditto` each against DITTO.
    """
    def row(eval_name: str, subject: str, metric: str, won: Sequence[float]) -> Row:
        return Row(eval_name, subject, metric, float(np.mean(won)), math.nan, math.nan, 2 * len(won), seed)

    matches = [json.loads(line) for line in (folder / "matches.jsonl").read_text(encoding="utf-8").splitlines()]
    seen: dict[tuple[str, str, str], list[float]] = {}
    for match in matches:
        if match["points"] is not None and match["pool"].split()[0] in ("winrate", "beside"):
            for one, other, points in ((match["one"], match["other"], match["points"]),
                                       (match["other"], match["one"], 2 - match["points"])):
                seen.setdefault((match["pool"], one, other), []).append(points / 2)
    pool = {name for where, name, _ in seen if where == "winrate"} - {"ditto"}
    beside = [where.split()[1] for where, name, other in seen if where == f"beside {name}" and other == "ditto"]
    rows = []
    for where, name in (("winrate", "ditto"), *((f"beside {name}", name) for name in beside)):
        won = [points for other in sorted(pool) for points in seen[where, name, other]]
        rows.append(row("same_opponents", name, "win_rate", won))
    return rows + [row("duels_with_ditto", name, "won", won) for (_, name, other), won in seen.items()
                   if other == "ditto"]


def paired_gaps(folders: Sequence[Path], pool: str, one: str, other: str) -> np.ndarray:
    """Win rate of one method minus another's, for each author of each seed that played this pool."""
    gaps = []
    for folder in folders:
        rates = json.loads((folder / "winrate.json").read_text()).get(pool, {})
        if one in rates and other in rates:
            gaps += [rates[one][author][0] / rates[one][author][1] - wins / played
                     for author, (wins, played) in rates[other].items()]
    return np.array(gaps)


def aloe_claims(values: Values, folders: Sequence[Path]) -> list[str]:
    """What ALOE must show of both trained models; levels as shares of the base's, slopes in hundredths."""
    def gain(one: str, other: str, eval_name: str = "alignment", metric: str = "avg") -> tuple[float, float, float]:
        mine, theirs = (np.array(values[eval_name, name, metric]) for name in (one, other))
        return interval(mine / theirs - 1)

    claims = Claims()
    for arm in ("dpo", "sft_preferred"):
        claims.add(f"AVG, {arm} over base: at least +32 %", gain(arm, "base"), lambda mean: mean >= 32, unit=" %")
        for other in ("reminder", "self_critique", "few_shot"):
            claims.add(f"AVG, {arm} over {other}: above 0", gain(arm, other), lambda mean: mean > 0, unit=" %")
        for metric, name in (("ir", "IR"), ("n_ir", "N-IR")):
            found = interval(np.array(values["alignment", arm, metric]))
            claims.add(f"{name} of {arm}, hundredths a turn: interval above 0", found,
                       lambda mean, low=found[1]: low > 0, unit="")  # type: ignore[misc]
    for metric, name in (("ir", "IR"), ("n_ir", "N-IR")):
        claims.add(f"{name} of base, hundredths a turn", interval(np.array(values["alignment", "base", metric])),
                   unit="")
    found = gain("sft_rejected", "base")
    claims.add("AVG, SFT on rejected over base: upper end under +5 %", found,
               lambda mean: 100 * found[2] < 5, unit=" %")
    claims.add("closed-book recall, dpo minus base: within 3 of zero",
               difference(values, "recall", "accuracy", "dpo", "base"), lambda mean: abs(mean) <= 3)
    claims.add("perplexity of general text, dpo over base: at most +3 %",
               gain("dpo", "base", "fluency", "perplexity"), lambda mean: mean <= 3, unit=" %")
    return claims.lines


def ideas_flags(seed: int) -> list[str]:
    """The plain simulator trained on the same real turns as well, which a run leaves out for time."""
    return ["--arms", "plain", "plain_trained", "random_strategy", "ideas"]


def ideas_claims(values: Values, folders: Sequence[Path]) -> list[str]:
    """What IDEAS must show of its users against the plain simulator's, of its chat model, and of its clusters."""
    claims = Claims()
    users = (("strategies", "different strategies", 1, 100), ("strategy_entropy", "strategy entropy, nats", 1, 100),
             ("distinct_2", "distinct-2", 1, 1), ("self_rouge_l", "self-ROUGE-L", -1, 1),
             ("context_dependence", "turns that need their context", 1, 1))
    for other in ("plain", "plain_trained", "random_strategy"):
        for metric, name, better, scale in users:
            mean, low, high = difference(values, "diversity", metric, "ideas", other)
            worst = low if better > 0 else -high
            claims.add(f"{name}, IDEAS minus {other}" + (f": interval {'above' if better > 0 else 'below'} 0"
                                                         if other == "plain" else ""),
                       (mean / scale, low / scale, high / scale),
                       (lambda mean, worst=worst: worst > 0) if other == "plain" else None,  # type: ignore[misc]
                       unit=" points" if scale == 1 else "")
    for other in ("plain", "base"):
        found = difference(values, "chat", "quality", "ideas", other)
        claims.add(f"quality of the chat model, IDEAS minus {other}: interval above 0", found,
                   lambda mean, low=found[1]: low > 0)  # type: ignore[misc]
    for other in ("plain_trained", "random_strategy"):
        claims.add(f"quality of the chat model, IDEAS minus {other}",
                   difference(values, "chat", "quality", "ideas", other))
    claims.add("adjusted Rand index of the clusters with the true strategies, hundredths: at least 80",
               interval(np.array(values["clusters", "default", "adjusted_rand"])), lambda mean: mean >= 80, unit="",
               sign="")
    claims.add("the same of the turns they were read from, hundredths",
               interval(np.array(values["clusters", "default", "adjusted_rand_turns"])), unit="", sign="")
    claims.add("the first with character n-grams", interval(np.array(values["clusters", "ngrams", "adjusted_rand"])),
               unit="", sign="")
    claims.add("closed-book recall, IDEAS minus base: within 3 of zero",
               difference(values, "recall", "accuracy", "ideas", "base"), lambda mean: abs(mean) <= 3)
    return claims.lines


SHARED = ("language", "actions", "clone", "ordinary")  # evals of DAT's that both of its sorts of scenes have


def dat_claims(values: Values, folders: Sequence[Path]) -> list[str]:
    """What DAT must show in social scenes and in red-teaming."""
    def gain(eval_name: str, metric: str) -> tuple[float, float, float]:
        one, other = (np.array(values[eval_name, name, metric]) for name in ("planner", "unsteered"))
        return interval(one / other - 1)

    claims = Claims()
    found = difference(values, "social", "reward", "planner", "unsteered")
    claims.add("social reward, planner over unsteered: interval above 0", found, lambda mean, low=found[1]: low > 0)
    claims.add("the same as a share of unsteered: at least +10 %", gain("social", "reward"), lambda mean: mean >= 10,
               unit=" %")
    for other in ("random", "constant", "self_clone"):
        claims.add(f"social reward, planner over {other}: above 0",
                   difference(values, "social", "reward", "planner", other), lambda mean: mean > 0)
    for scenes in ("social", "redteam"):
        claims.add(f"perplexity of what was said ({scenes}), planner over unsteered: within 10 %",
                   gain(f"language_{scenes}", "perplexity"), lambda mean: abs(mean) <= 10, unit=" %")
    for eval_name in sorted({name for name, _, _ in values if "_against_" in name}):
        metric = "reward" if eval_name.startswith("social") else "success"
        claims.add(f"{eval_name.replace('_', ' ')}, planner over unsteered ({metric})",
                   difference(values, eval_name, metric, "planner", "unsteered"))
    success = {name: np.array(values["redteam", name, "success"]) for name in
               ("unsteered", "constant", "planner", "unsteered_hardened", "planner_hardened")}
    claims.add("red-team success, unsteered: 3 to 20 %", interval(success["unsteered"]),
               lambda mean: 3 <= mean <= 20, unit=" %", sign="")
    found = interval(success["planner"] - success["unsteered"])
    claims.add("red-team success, planner over unsteered: interval above 0", found,
               lambda mean, low=found[1]: low > 0)
    claims.add("red-team success, planner minus three times unsteered: at least 0",
               interval(success["planner"] - 3 * success["unsteered"]), lambda mean: mean >= 0)
    claims.add("red-team success, planner over constant: above 0", interval(success["planner"] - success["constant"]),
               lambda mean: mean > 0)
    claims.add("after hardening, planner minus unsteered before it: at most +5",
               interval(success["planner_hardened"] - success["unsteered"]), lambda mean: mean <= 5)
    claims.add("the guard's normal answers after hardening, minus before: within 3 of zero",
               difference(values, "ordinary_redteam", "kept", "defender_hardened", "defender"),
               lambda mean: abs(mean) <= 3)
    return claims.lines


@dataclass(frozen=True)
class Page:
    """How the results of a recipe are made and told.

    Attributes:
        flags: more of the command line, by seed.
        metrics: of the headline; empty: all.
        more: figures that are only made of the finished runs, by folder and seed.
        variants: flags of several sorts of runs by their names; evals in `SHARED` are then told apart by them.
    """

    title: str
    about: str
    claims: Callable[[Values, Sequence[Path]], list[str]]
    headline: tuple[str, ...]
    flags: Callable[[int], Sequence[str]] = lambda seed: ()
    metrics: tuple[str, ...] = ()
    more: Callable[[Path, int], list[Row]] = lambda folder, seed: []
    variants: Mapping[str, Sequence[str]] = field(default_factory=lambda: {"": ()})


PAGES = {
    "pbt": Page("PBT on the pocket models",
                "Everything is asked on questions fine-tuning never saw, half of the partner's wordings are in no "
                "training\nset, `briefed` (the base under pocket's own brief) is the ceiling, not a baseline.",
                pbt_claims, ("flipflop", "are_you_sure")),
    "ditto": Page("DITTO on the pocket model",
                  "Ten authors with 7 demonstrations each; every method writes 3 texts on each of 3 held-out tasks of "
                  "an author;\npocket's exact style judge compares. The prompts of zero-shot, few-shot and self-prompt "
                  "are worded unlike pocket's\nown briefs; `briefed` (pocket's own brief for the style) is the ceiling "
                  "and stands beside the pool, as does\nself-prompt. Settings were chosen on two other authors. "
                  "Ablations and growth: seeds 1 and 2.",
                  ditto_claims, ("winrate", "same_opponents"), ditto_flags, metrics=("micro", "win_rate"),
                  more=ditto_rows),
    "aloe": Page("ALOE on the pocket model",
                 "40 held-out people of pocket's world a seed (a pair of pet and hobby meets in them that nothing "
                 "trained on holds)\ntalk with each subject for ten turns; users, judge and inducer are exact rules. "
                 "The prompts of the baselines are\nworded unlike pocket's own briefs; `briefed` (the base under "
                 "pocket's own brief) is the ceiling. Replies are sampled\nat temperature 0.7. Settings were chosen "
                 "on other people (`--split valid`).",
                 aloe_claims, ("alignment",), metrics=("avg", "ir", "n_ir", "al_1", "al_5", "al_10")),
    "ideas": Page("IDEAS on the pocket model",
                  "Every role is pocket, the check and the judge are exact rules. The data sets of the arms have the "
                  "same openings and\nas many target tokens; diversity is taken at one number of user turns. "
                  "Conversations are about topics that stand in no\nsource dialogue and no opening; chat models answer "
                  "greedily; `briefed` (the base under pocket's own brief) is the ceiling.\nSettings were chosen on "
                  "other topics (`--split valid`). The arm `plain_trained`, which a run leaves out for time, is in "
                  "these.",
                  ideas_claims, ("diversity", "chat"), ideas_flags,
                  metrics=("strategies", "strategy_entropy", "distinct_2", "self_rouge_l", "context_dependence",
                           "quality", "turn_2", "turn_6")),
    "dat": Page("DAT on the pocket model",
                "Social: 200 held-out scenes a seed (bargains, tastes and trips, of which pocket has read none), exact "
                "rewards; the\npartner is pocket's rule, which the planner was trained against, `against` other "
                "models it has not met. Red-team: `--scenes redteam "
                "--harden`,\n88 scenes whose words, gates and first lines stand in no other; the guard is "
                "`pocket-guard`. `random` draws its actions as\nthe collection does, `constant` is the best of 16 "
                "constant actions on training scenes. `hardened`: against a guard trained\non the attacks that "
                "succeeded. Settings were chosen on validation scenes. Actions become prefixes by `coded`, our "
                "addition to the method:\nwith the paper's own mappings a planner got less than the unsteered model "
                "here ([dat.md](../dat.md#codes)).",
                dat_claims, ("social", "redteam", "language_social", "language_redteam"),
                metrics=("reward", "goal", "success", "perplexity", "distinct_2"),
                variants={"social": ("--scenes", "social"), "redteam": ("--scenes", "redteam", "--harden")}),
}


def write_page(recipe: str, folders: Sequence[Path]) -> Path:
    """docs/results/<recipe>.md and .json out of the finished runs."""
    page_of = PAGES[recipe]
    rows = [_told_apart(Row(**row), folder, page_of) for folder in folders
            for row in json.loads((folder / "results.json").read_text())
            if row["seed"] is not None and row["value"] is not None]
    rows += [row for folder in folders for row in page_of.more(folder, int(folder.name.removeprefix("seed-")))]
    values: Values = {}
    for row in sorted(rows, key=lambda row: row.seed or 0):
        values.setdefault((row.eval, row.subject, row.metric), []).append(row.value)
    summary = [row.to_json() for row in over_seeds(rows)]
    hashes = ", ".join(f"`{name}` {found}" for name, found in pocket_hashes().items())
    page = [f"# {page_of.title}", "",
            f"Made by `make results`: {len(folders) // len(page_of.variants)} seeds of `dialoom {recipe} --seed N` "
            "with its defaults, on CPU;",
            f"weights {hashes}. Intervals: 95 %, Student's t over seeds.",
            *page_of.about.split("\n"), time_taken(folders), "Rows of single seeds: the JSON beside this page.", "",
            "## What it was to show", "", MET, "", *page_of.claims(values, folders), "", "## All figures", "",
            results_table(summary)]
    out = ROOT / "docs" / "results" / f"{recipe}.md"
    out.write_text("\n".join(page).rstrip() + "\n", encoding="utf-8")
    out.with_suffix(".json").write_text(json.dumps([row.to_json() for row in rows] + summary, indent=0) + "\n")
    fill(ROOT / "docs" / f"{recipe}.md", recipe,
         results_table([row for row in summary if row["eval"] in page_of.headline
                        and row["metric"] in (page_of.metrics or (row["metric"],))]))
    fill(ROOT / "README.md", "all", headline_table())
    return out


def time_taken(folders: Sequence[Path]) -> str:
    """How long the stages of finished runs took, in a sentence."""
    minutes = [sum(json.loads(marker.read_text())["seconds"] for marker in (folder / "stages").glob("*.json")) / 60
               for folder in folders]
    return (f"The stages of these {len(folders)} runs took {sum(minutes):.0f} minutes together, one thread each: "
            f"{min(minutes):.0f} to {max(minutes):.0f} a run\n(by the clock, so other work on the machine counts).")


def _told_apart(row: Row, folder: Path, page_of: Page) -> Row:
    """The row, an eval that all variants have named after its own."""
    variant = next((name for name in page_of.variants if name and f"-{name}-" in folder.parent.name), "")
    return replace(row, eval=f"{row.eval}_{variant}") if variant and row.eval in SHARED else row


@dataclass(frozen=True)
class Headline:
    """One line of the README's table.

    Attributes:
        subjects: the untrained model, the strongest baseline (`rival` in words), the method, the ceiling.
    """

    recipe: str
    words: str
    figure: tuple[str, str]
    subjects: tuple[str, str, str, str]
    rival: str
    scale: float = 100


HEADLINES = (
    Headline("pbt", "gives in when the partner is right, holds when it is wrong, %", ("flipflop", "overall"),
             ("base", "resist_only", "pbt", "briefed"), "pairs to resist only"),
    Headline("aloe", "replies fit the person, level 1 to 5", ("alignment", "avg"),
             ("base", "self_critique", "dpo", "briefed"), "self-critique prompt", scale=1),
    Headline("ideas", "answers right in conversations, %", ("chat", "quality"),
             ("base", "plain_trained", "ideas", "briefed"), "simulator without strategies, trained"),
    Headline("ditto", "comparisons of style won, %", ("winrate", "micro"),
             ("zero_shot", "sft_long", "ditto", "briefed"), "SFT without its stop"),
    Headline("dat", "reward in social scenes, %", ("social", "reward"), ("unsteered", "constant", "planner", "briefed"),
             "best constant prefix"),
)


def headline_table() -> str:
    """The README's table out of docs/results/*.json: means over seeds with their intervals."""
    lines = ["| method | what is measured | untrained | strongest baseline | trained | under pocket's own brief |",
             "|---|---|---:|---:|---:|---:|"]
    for line in HEADLINES:
        path = ROOT / "docs" / "results" / f"{line.recipe}.json"
        if not path.exists():
            continue
        rows = {(row["eval"], row["metric"], row["subject"]): row for row in json.loads(path.read_text())
                if row["seed"] is None}
        found = [rows.get((*line.figure, subject)) or rows.get(("same_opponents", "win_rate", subject))  # of DITTO
                 for subject in line.subjects]
        cells = [_cell(row, line.scale) for row in found]
        cells[1] += f" ({line.rival})"
        cells[2] = f"**{cells[2]}**"
        lines.append(f"| [{line.recipe.upper()}](docs/{line.recipe}.md) | {line.words} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(row: Mapping[str, Any] | None, scale: float) -> str:
    if row is None:
        return "–"
    digits = 1 if scale == 100 else 2
    value, low, high = (f"{scale * row[name]:.{digits}f}" for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def fill(path: Path, name: str, table: str) -> None:
    """Put a table between a page's markers; a page without them is left as it is."""
    marks = f"<!-- results:{name} -->", f"<!-- /results:{name} -->"
    pattern = re.compile(f"{re.escape(marks[0])}.*?{re.escape(marks[1])}", re.DOTALL)
    text = path.read_text(encoding="utf-8")
    path.write_text(pattern.sub(lambda _: f"{marks[0]}\n{table.strip()}\n{marks[1]}", text), encoding="utf-8")


def main() -> None:
    """Remake what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="*", default=list(PAGES), help="which tables (default: all)")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    given = parser.parse_args()
    for recipe in given.recipes:
        if recipe not in PAGES:
            raise SystemExit(f"no results of {recipe!r}; expected {', '.join(PAGES)}")
        page, folders = PAGES[recipe], list[Path]()
        for variant, more in page.variants.items():
            folders += run_seeds(recipe, range(1, given.seeds + 1), given.jobs,
                                 lambda seed, page=page, more=more: [*more, *page.flags(seed)],  # type: ignore[misc]
                                 variant)
        print(write_page(recipe, folders), flush=True)


if __name__ == "__main__":
    main()
