"""Remakes the table of docs/cross.md: every trained model by every evaluation, over seeds.

`python -m bench.cross [--seeds 5] [--items 100]`. The models are those of the runs that `bench.results` made. Rows that
were measured are kept beside these runs, so a remake that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from bench.results import ROOT, RUNS, fill, pocket_hashes
from dialoom.evals.metrics import Row, over_seeds
from dialoom.models.base import ChatModel
from dialoom.models.load import load_folder, load_model
from dialoom.models.steering import load_steered
from dialoom.recipes.pocket_guard import load_guard
from dialoom.scorecard import COLUMNS, Card, Setting, Subject, measure, table
from dialoom.store import write_whole

PLANNER, GUARD = "dat-social/planner", "pocket-guard"
TRAINED = {  # row: its place under a seed of the run's folder; the first part names the runs
    "pbt": "pbt/model", "pbt, accept only": "pbt/arms/accept_only-pocket",
    "pbt, resist only": "pbt/arms/resist_only-pocket", "aloe": "aloe/model", "ideas": "ideas/model",
    "ditto": "ditto/authors/{author}/adapter", "dat": PLANNER, GUARD: GUARD,
    "pocket-guard, hardened": "dat-redteam/harden/guard"}


def runs(recipe: str) -> Path:
    """Where `bench.results` keeps the seeds of a recipe."""
    return RUNS / "-".join([recipe, *pocket_hashes().values()])


def author(seed: int) -> str:
    """Whose DITTO model is on the table for this seed."""
    names = sorted(path.name for path in (runs("ditto") / f"seed-{seed}" / "authors").glob("*"))
    if not names:
        raise SystemExit("the runs of DITTO are missing; `python -m bench.results ditto` makes them")
    return names[(seed - 1) % len(names)]


def place(label: str, seed: int) -> Path:
    """The folder of a row's model. Raises SystemExit if its run was not made."""
    recipe, _, below = TRAINED[label].partition("/")
    folder = runs(recipe) / f"seed-{seed}" / below.format(author=author(seed))
    if not folder.is_dir():
        raise SystemExit(f"{folder} is missing; `python -m bench.results {recipe.partition('-')[0]}` makes it")
    return folder


def load(label: str, seed: int, base: ChatModel) -> ChatModel:
    """The model of a row."""
    if label == "base":
        return base
    if TRAINED[label] == GUARD:
        return load_guard("cpu")
    if TRAINED[label] == PLANNER:
        return load_steered("pocket", place(label, seed), device="cpu")
    return load_folder(place(label, seed), device="cpu", name=label)


def measured(label: str, seed: int, items: int, base: ChatModel) -> Card:
    """The row of one model for one seed: measured now, or as it was kept."""
    kept = runs("cross") / f"seed-{seed}" / f"{label.replace(', ', '-').replace(' ', '-')}-{items}.json"
    if kept.is_file():
        found = json.loads(kept.read_text(encoding="utf-8"))
        if found["columns"] == [column.title for column in COLUMNS]:
            return Card((label,), tuple(Row(**row) for row in found["rows"]),
                        {(label, title): why for title, why in found["missing"].items()})
    setting = Setting(base, items=items, author=author(seed), seed=seed)
    card = measure([Subject(label, load(label, seed, base), guard=label.startswith(GUARD))], setting)
    missing = {title: why for (_, title), why in card.missing.items()}
    write_whole(kept, json.dumps({"columns": [column.title for column in COLUMNS], "missing": missing,
                                  "rows": [row.to_json() for row in card.rows]}, indent=1) + "\n")
    return card


def page(cards: Sequence[Card], seeds: int, items: int) -> tuple[str, list[dict[str, object]]]:
    """The table over seeds with what its columns say, in Markdown, and all rows."""
    rows = [row for card in cards for row in card.rows]
    labels = tuple(dict.fromkeys(label for card in cards for label in card.subjects))
    summary = over_seeds(rows)
    hashes = ", ".join(f"`{name}` {found}" for name, found in pocket_hashes().items())
    lines = [table(Card(labels, tuple(summary), {})),
             f"The models of {seeds} seeds, {items or 'all'} items a cell and seed (of the last column at most 88); "
             f"weights {hashes}.", "Brackets: 95 %, Student's t over seeds.", "",
             *(f"- **{column.title}** (`{column.eval}`, `{column.metric}`): {column.about}" for column in COLUMNS)]
    return "\n".join(lines), [row.to_json() for row in rows + summary]


def main() -> None:
    """Remake the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument("--items", type=int, default=100, help="of a cell and seed; 0: all")
    given = parser.parse_args()
    base, cards = load_model("pocket", device="cpu"), []
    for seed in range(1, given.seeds + 1):
        for label in ("base", *TRAINED):
            cards.append(measured(label, seed, given.items, base))
            print(f"seed {seed}: {label}", flush=True)
    text, rows = page(cards, given.seeds, given.items)
    write_whole(ROOT / "docs" / "results" / "cross.json", json.dumps(rows, indent=0) + "\n")
    fill(ROOT / "docs" / "cross.md", "cross", text)
    print(ROOT / "docs" / "cross.md")


if __name__ == "__main__":
    main()
