"""Remakes docs/results/cross.md: every trained model by every evaluation, over seeds.

`python -m bench.cross [--seeds 5] [--items 100]`. The models are those of `bench.results`, whose runs are made first
where they are missing. Rows that were measured are kept beside the runs, so a remake that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from bench.results import PAGES, ROOT, RUNS, pocket_hashes, run_seeds
from dialoom.evals.metrics import Row, over_seeds
from dialoom.models.base import ChatModel
from dialoom.models.load import load_folder, load_model
from dialoom.scorecard import COLUMNS, Card, Setting, Subject, measure, table
from dialoom.store import write_whole

TRAINED = {"pbt": "model", "pbt, accept only": "arms/accept_only-pocket", "pbt, resist only": "arms/resist_only-pocket",
           "aloe": "model", "ideas": "model", "ditto": "authors/{author}/adapter"}  # row: place in the run's folder
ABOUT = """\
Each row is a model, all of them trained from the same `pocket`; each column is one figure of one evaluation, made
for one of the methods and asked of all. The row `base` is the untrained model; arrows say which way is better. The
row `ditto` is another author for each seed, the one whose texts the column “win rate over base” is about."""


def runs(recipe: str) -> Path:
    """Where `bench.results` keeps the seeds of a recipe."""
    return RUNS / "-".join([recipe, *pocket_hashes().values()])


def author(seed: int) -> str:
    """Whose DITTO model is on the table for this seed."""
    names = sorted(path.name for path in (runs("ditto") / f"seed-{seed}" / "authors").iterdir())
    return names[(seed - 1) % len(names)]


def place(label: str, seed: int) -> Path:
    """The folder of a row's model."""
    recipe = label.partition(",")[0]
    return runs(recipe) / f"seed-{seed}" / TRAINED[label].format(author=author(seed))


def measured(label: str, seed: int, items: int, base: ChatModel) -> Card:
    """The row of one model for one seed: measured now, or as it was kept."""
    kept = runs("cross") / f"seed-{seed}" / f"{label.replace(', ', '-').replace(' ', '-')}-{items}.json"
    if kept.is_file():
        found = json.loads(kept.read_text(encoding="utf-8"))
        if found["columns"] == [column.title for column in COLUMNS]:
            return Card((label,), tuple(Row(**row) for row in found["rows"]),
                        {(label, title): why for title, why in found["missing"].items()})
    model = base if label == "base" else load_folder(place(label, seed), device="cpu", name=label)
    card = measure([Subject(label, model)], Setting(base, items=items, author=author(seed), seed=seed))
    missing = {title: why for (_, title), why in card.missing.items()}
    write_whole(kept, json.dumps({"columns": [column.title for column in COLUMNS], "missing": missing,
                                  "rows": [row.to_json() for row in card.rows]}, indent=1) + "\n")
    return card


def page(cards: Sequence[Card], seeds: int, items: int) -> tuple[str, list[dict[str, object]]]:
    """The table over seeds in Markdown, and all rows."""
    rows = [row for card in cards for row in card.rows]
    labels = tuple(dict.fromkeys(label for card in cards for label in card.subjects))
    missing = {key: why for card in cards for key, why in card.missing.items()}
    summary = over_seeds(rows)
    hashes = ", ".join(f"`{name}` {found}" for name, found in pocket_hashes().items())
    lines = ["# Every trained model by every evaluation", "",
             f"Made by `make results` (`python -m bench.cross`): the models of {seeds} seeds, {items or 'all'} items a "
             f"cell and seed; weights {hashes}.", "Intervals: 95 %, Student's t over seeds.", ABOUT, "",
             table(Card(labels, tuple(summary), missing)), "## What the columns say", "",
             *(f"- **{column.title}** (`{column.eval}`, `{column.metric}`): {column.about}" for column in COLUMNS)]
    if missing:
        lines += ["", "## Cells that make no sense", "",
                  *(f"- {label}, {title}: {why}" for (label, title), why in missing.items())]
    return "\n".join(lines) + "\n", [row.to_json() for row in rows + summary]


def main() -> None:
    """Remake the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument("--items", type=int, default=100, help="of a cell and seed; 0: all")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, where some are missing")
    given = parser.parse_args()
    seeds = range(1, given.seeds + 1)
    for recipe in sorted({label.partition(",")[0] for label in TRAINED}):
        run_seeds(recipe, seeds, given.jobs, PAGES[recipe].flags)
    base, cards = load_model("pocket", device="cpu"), []
    for seed in seeds:
        for label in ("base", *TRAINED):
            cards.append(measured(label, seed, given.items, base))
            print(f"seed {seed}: {label}", flush=True)
    text, rows = page(cards, given.seeds, given.items)
    out = ROOT / "docs" / "results" / "cross.md"
    write_whole(out, text)
    write_whole(out.with_suffix(".json"), json.dumps(rows, indent=0) + "\n")
    print(out)


if __name__ == "__main__":
    main()
