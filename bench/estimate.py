"""What 100 million dialogues on 8 GPUs would take, by formulas over measured rows; nothing was run at that size."""

from __future__ import annotations

from collections.abc import Sequence

from bench.measure import Row
from bench.page import markdown

DIALOGUES, TURNS, GPUS = 100_000_000, 10, 8
READ, WRITTEN = 500, 60  # tokens of a request: a system prompt and half of ten earlier turns; one reply
PRICE = (0.15, 0.60)  # dollars for a million tokens read and written; an example
GPU_TOKENS = 5_000  # tokens a second that one GPU writes with an 8B model in full batches: assumed, put your own in
MEMORY = 128e9  # bytes of the machine that merges
IN_FLIGHT = 64
DAY = 86_400


def estimate(rows: Sequence[Row], *, dialogues: int = DIALOGUES, turns: int = TURNS, gpus: int = GPUS) -> str:
    """A table: what, by which formula, how much, and whether its inputs are measured."""
    found = _Figures(rows)
    said = dialogues * turns
    copies = found.gain ** (gpus.bit_length() - 1)  # what doubling gives, once for each doubling
    lines = [
        ["replies", "D x T", f"{said:.1e}", "chosen: D = 100 million, T = 10 (a path; a tree's turns count once)"],
        ["GPU time, one GPU", "D T w / g", _time(said * WRITTEN / GPU_TOKENS),
         f"assumed: w = {WRITTEN} tokens a reply, g = {GPU_TOKENS:,} tokens/s; no GPU was measured"],
        [f"the same on {gpus}", "D T w / (g s)", _time(said * WRITTEN / GPU_TOKENS / copies),
         f"s = {copies:.1f}: two replicas do in CPU time what {found.gain:.2f} would without loss (measured), taken "
         f"for each doubling; separate shards lose nothing but their start"],
        ["trees.jsonl", "D T b", _size(said * found.size), f"measured: b = {found.size:,.0f} bytes a turn, scores "
         "included"],
        ["answers.jsonl, all by an endpoint", "D T a", _size(said * found.answer),
         f"measured: a = {found.answer:,.0f} bytes an answer of 16 tokens"],
        ["one writer of one log", "D T / r", _time(said / found.rate["write"]),
         f"measured: {found.rate['write']:,.0f} turns a CPU second; waiting for the disk not counted"],
        ["opening that log", "D T / r", _time(said / found.rate["open"]), f"measured: {found.rate['open']:,.0f} "
         "turns a CPU second, likewise; at every start"],
        ["memory to open it", "D T m", _size(said * found.memory["open"]),
         f"measured: m = {found.memory['open']:,.0f} bytes a turn"],
        ["memory to merge shards", "D T m", _size(said * found.memory["merge"]),
         f"measured: m = {found.memory['merge']:,.0f} bytes a turn"],
        ["memory of pairs, one for two turns", "D T m / 2", _size(said * found.memory["pairs"] / 2),
         f"measured: m = {found.memory['pairs']:,.0f} bytes a pair of five messages"],
        ["requests, all replies by an endpoint", "D T", f"{said:.1e}", f"{_time(said / found.requests)} at the "
         f"{found.requests:,.0f} requests/s measured with {IN_FLIGHT} in flight and 0.2 s each, from one process"],
        ["dollars", "D T (p x read + q x written) / 10^6",
         f"{said * (READ * PRICE[0] + WRITTEN * PRICE[1]) / 1e6:,.0f}",
         f"example: read {READ}, written {WRITTEN} tokens a request, p = {PRICE[0]}, q = {PRICE[1]} dollars a million"],
        [f"most turns a machine of {MEMORY / 1e9:.0f} GB opens", "memory / m", f"{MEMORY / found.memory['open']:.1e}",
         f"{MEMORY / found.memory['merge']:.1e} to merge, {MEMORY / found.memory['pairs']:.1e} pairs to train on"]]
    return markdown(["what", "formula", "for 100 million dialogues", "where the figures come from"], lines)


class _Figures:
    """What the formulas take from the rows, of the larger log each."""

    def __init__(self, rows: Sequence[Row]) -> None:
        logs = {row["work"].removeprefix("log/"): row for row in rows if row["work"].startswith("log/")}
        logs.pop("run", None)  # synthetic turns are a little smaller than real ones, so real ones count for bytes
        real = [row["bytes"] / row["turns"] for row in rows if row["work"] == "log/run"]
        self.size = max(real) if real else logs["merge"]["bytes"] / logs["merge"]["turns"]
        self.memory = {name: max(1.0, row["memory"] / row["turns"]) for name, row in logs.items()}
        self.rate = {name: row["turns"] / row["cpu_seconds"] for name, row in logs.items()}
        spent = {row["how"]: row["cpu_seconds"] for row in rows if row["work"] == "dialogues"}
        self.gain = min(2.0, 2 * spent["1 Ray replica"] / spent["2 Ray replicas"])  # wall-clock hangs on other work
        flying = {row["how"]: row for row in rows if row["work"] == "endpoint"}[f"{IN_FLIGHT} in flight"]
        self.requests, self.answer = flying["per_second"], flying["bytes"]


def _time(seconds: float) -> str:
    return f"{seconds / DAY:,.1f} days" if seconds < 1000 * DAY else f"{seconds / DAY / 365:,.1f} years"


def _size(size: float) -> str:
    return f"{size / 1e12:,.2f} TB" if size >= 1e11 else f"{size / 1e9:,.1f} GB"
