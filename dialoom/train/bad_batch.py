"""A training step whose loss or gradient is no number: its rows go into a file, and the training ends in that step."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from dialoom.errors import TrainingError
from dialoom.store import write_whole

FILE = "bad_batch.json"
NAMED = 5  # rows in the error's line; the file has all


def bad_batch(out: Path | None, step: int, what: str, value: float, rows: Sequence[str], *, advice: str,
              checkpoints: Sequence[int] = (), texts: Sequence[str] = ()) -> TrainingError:
    """The error to raise, after the step, its rows and the value were written to `out`/bad_batch.json.

    Args:
        out: the training's folder; None: it has none, and the rows are named in the line only.
        what: "loss", "gradient norm", ...
        rows: the names of the batch's rows.
        advice: what to look at or to change.
        checkpoints: steps that are kept, oldest first.
        texts: what the rows say, where their names do not lead to it.
    """
    shown = ", ".join(rows[:NAMED]) + (", ..." if len(rows) > NAMED else "")
    if out is not None:
        report = {"step": step, "what": what, "value": str(value), "rows": list(rows)}
        if texts:
            report["texts"] = list(texts)
        write_whole(out / FILE, json.dumps(report, indent=1, ensure_ascii=False))
        shown += f" (all in {out / FILE})"
    where = f"the last good checkpoint is step {checkpoints[-1]}" if checkpoints else "there is no checkpoint before it"
    return TrainingError(f"step {step}: the {what} is {value} on rows {shown}; {where}; {advice}")
