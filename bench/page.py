"""The tables of docs/performance.md and the README's headline, put between markers; the words around are by hand."""

from __future__ import annotations

import re
from collections.abc import Sequence

from bench.measure import ROOT, Row

PAGE, README = ROOT / "docs" / "performance.md", ROOT / "README.md"
HEADLINE = {  # of the 8.4M Llama
    ("dpo/aloe", "trl-padded"): "DPO on the pairs of a ten-round dialogue, over TRL's trainer in batches of four pairs",
    ("dpo/aloe", "trl"): "the same, over TRL's trainer at its quickest (one pair a batch)",
    ("dpo/aloe", "flat-best"): "the same, over the quickest flat rows",
    ("dpo/binary-2x6", "trl"): "DPO on a tree with two branches, over TRL's trainer at its quickest",
    ("grow/16x6", "naive"): "16 dialogues of six replies, over `generate` one by one",
    ("grow/16x6", "batched"): "the same, over `generate` in one batch",
    ("grow/16x6", "vllm-cpu"): "the same, over vLLM on the CPU",
    ("grow/tree", "node-by-node"): "a tree of 62 replies, over `generate` node by node",
    ("collect/start", "one by one"): "steered dialogues, soft tokens at the start, over one dialogue at a time",
    ("collect/end", "one by one"): "the same, soft tokens at the end"}
CURVES = {"dialogues": "dialogues, 2 replies each", "turns": "replies, 16 dialogues",
          "branches": "branches at each of 4 levels"}


def fill(rows: Sequence[Row], machine: str) -> None:
    """Put the rows into the page and the README."""
    for path, found in ((PAGE, tables(rows, machine)), (README, {"headline": headline(rows)})):
        text = path.read_text(encoding="utf-8")
        for name, content in found.items():
            text = between(text, name, content)
        path.write_text(text, encoding="utf-8")


def headline(rows: Sequence[Row]) -> str:
    """A short table for the README."""
    found = {(row["work"], row["against"]): row["ratio"] for row in reversed(rows) if row.get("model") == "llama-8m"}
    return markdown(["what", "times as fast"], [[words, f"**{found[key]:.1f}**"] for key, words in HEADLINE.items()
                                                if key in found])


def between(text: str, name: str, content: str) -> str:
    """The text with what stands between a pair of markers replaced. Raises ValueError if they are not there."""
    marks = f"<!-- bench:{name} -->", f"<!-- /bench:{name} -->"
    pattern = re.compile(f"{re.escape(marks[0])}.*?{re.escape(marks[1])}", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"there are no markers {marks[0]} and {marks[1]}; put them where the table is to stand")
    return pattern.sub(lambda _: f"{marks[0]}\n{content.strip()}\n{marks[1]}", text)


def tables(rows: Sequence[Row], machine: str) -> dict[str, str]:
    """Everything the page shows, by marker."""
    def of(prefix: str) -> list[Row]:
        return [row for row in rows if row["work"].startswith(prefix)]

    compared = [row for row in of("grow/") if row["work"] not in ("grow/sampled", "grow/step")]
    return {"machine": f"Measured on: {machine}.", "training": ratios(of("dpo/"), same=""),
            "generation": ratios(compared), "sampling": ratios(of("grow/sampled")), "limit": limits(of("grow/step")),
            "collection": ratios(of("collect/"), same="same replies"),
            "curves": curves(of("curve/")), "turn-cost": turn_cost(of("curve/turn-cost")),
            "clusters": ratios(of("cluster/"), same="same labels")}


def ratios(rows: Sequence[Row], same: str = "same tokens") -> str:
    """A table of ratios: seconds and peak memory of both sides, and how many replies are equal where that is asked."""
    head = ["work", "against", "times as fast", "ours, s", "theirs, s", "peak, MB", "theirs, MB",
            *([same] if same else []), "setting"]
    lines = []
    for row in rows:
        equal = [f"{row['identical']} of {row['compared']}" if "compared" in row else ""] if same else []
        lines.append([f"`{row['work']}`", row["against"], f"**{row['ratio']:.2f}**", figure(row, "ours_s"),
                      figure(row, "theirs_s"), figure(row, "peak_mb", ".0f"), figure(row, "their_peak_mb", ".0f"),
                      *equal, row["setting"]])
    return markdown(head, lines)


def figure(row: Row, key: str, form: str = ".3g") -> str:
    """A figure of the row; nothing where it has none."""
    return format(row[key], form) if row.get(key) is not None else ""


def limits(rows: Sequence[Row]) -> str:
    """Decoding steps against the bound."""
    return markdown(["model", "a step of ours, ms", "matrix products, ms", "keys and values, ms", "share of the bound"],
                    [[row["setting"], *(f"{1000 * row[key]:.2f}" for key in ("ours_s", "products_s", "reading_s")),
                      f"**{row['ratio']:.0%}**"] for row in rows])


def curves(rows: Sequence[Row]) -> str:
    """Cost against size: one table for all curves."""
    lines = [[CURVES[name], f"{row['x']}", f"{row['tokens']:,}", f"{row['ours_s']:.3g}",
              f"{row['tokens'] / row['ours_s']:,.0f}", figure(row, "peak_mb", ",.0f")]
             for name in CURVES for row in rows if row["work"] == f"curve/{name}"]
    return markdown(["what grows", "to", "tokens", "CPU-s", "tokens per CPU-s", "peak, MB"], lines)


def turn_cost(rows: Sequence[Row]) -> str:
    """What a turn costs late in a dialogue, and how much of it is decoding."""
    return markdown(["turn", "CPU-s of this turn", "decoding alone, CPU-s", "share"],
                    [[f"{row['x']}", f"{row['ours_s']:.3g}", f"{row['theirs_s']:.3g}", f"{row['ratio']:.0%}"]
                     for row in rows])


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table; a line in its place where there is nothing to show."""
    if not lines:
        return "Not measured."
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *lines))
