"""`dialoom eval`: one evaluation of any model, as a table and as tidy rows."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from dialoom.config import near_miss
from dialoom.dialogue import Scenario
from dialoom.errors import ConfigError, DataError
from dialoom.evals import EVALS, run_eval
from dialoom.models.load import load_model
from dialoom.progress import progress
from dialoom.report.table import results_table
from dialoom.scenarios.triviaqa import load_trivia, pocket_trivia, with_distractors
from dialoom.store import write_whole

KNOWN_ONLY = ("recall",)  # asks for every fact; the others keep to those no fine-tuning set holds


def run_named(name: str, model: str, *, partner: str = "", data: str = "", limit: int = 0, seed: int = 1,
              brief: str = "", max_new_tokens: int = 48, device: str = "auto", out: Path | None = None) -> None:
    """Evaluate and print the table; with `out` also write the rows there."""
    if name not in EVALS:
        raise ConfigError(f"evaluation {name!r} is unknown; {near_miss(name, EVALS)}")
    if name == "team" and not partner:
        raise ConfigError("team needs a second model; give --partner")
    if out is not None and (out.is_dir() or any(above.is_file() for above in out.parents)):
        raise ConfigError(f"--out {out}: expected a file that can be written, found a folder, or a file as its folder")
    asked = questions(name, data, limit, seed)
    subject = load_model(model, device=device)
    other = load_model(partner, device=device) if name == "team" else None
    with progress(f"{name} of {model}, {len(asked)} questions") as bar:
        found = run_eval(name, subject, asked, brief=brief, seed=seed, partner=other, max_new_tokens=max_new_tokens,
                         log=lambda label, done, total: bar.reach(done, f"{name}, {label}, {total} replies"))
    rows = [row.to_json() for row in found]
    if out is not None:
        write_whole(out, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    print(results_table(rows, markdown=False).rstrip())


def questions(name: str, data: str = "", limit: int = 0, seed: int = 1) -> list[Scenario]:
    """The questions of an evaluation, each with a wrong answer: a user's file, or the pocket world's held-out facts."""
    if not data:
        found = pocket_trivia(None if name in KNOWN_ONLY else "test", seed=seed, phrasing="held_out")
    else:
        rows = load_trivia(data, on_bad=lambda message: print(f"note: {message}", file=sys.stderr),
                           on_note=lambda message: print(f"note: {message}", file=sys.stderr))
        found = with_distractors(rows, seed)
        if not found:
            raise DataError(f"{data}: no question finds a wrong answer among the others' answers; give more questions")
    return found[:limit or None]
