"""The measurements behind docs/scaling.md on toy sizes, and its estimate held against figures worked out by hand."""

from __future__ import annotations

from pathlib import Path

from bench.estimate import estimate
from bench.scaling import endpoints, log_work, of_runs, tables
from dialoom.store import read_trees

ROWS = [
    {"work": "dialogues", "how": "in the process itself", "seconds": 9.0, "cpu_seconds": 4.0},
    {"work": "dialogues", "how": "1 Ray replica", "seconds": 10.0, "cpu_seconds": 4.0},
    {"work": "dialogues", "how": "2 Ray replicas", "seconds": 6.0, "cpu_seconds": 5.0},
    {"work": "training", "how": "one process", "seconds": 4.0, "cpu_seconds": 3.0},
    {"work": "training", "how": "two", "seconds": 3.0, "cpu_seconds": 4.0},
    {"work": "endpoint", "how": "64 in flight", "seconds": 1.0, "per_second": 100.0, "most": 320.0, "bytes": 250,
     "cpu_ms": 1.5},
    *({"work": f"log/{work}", "turns": 1000, "seconds": 9.9, "cpu_seconds": 0.5, "memory": 2_000_000, "bytes": 300_000}
      for work in ("write", "merge", "open", "read", "pairs")),
    {"work": "log/run", "how": "pbt", "trees": 10, "turns": 100, "bytes": 90_000}]


def test_the_estimate_is_the_formulas_over_the_rows():
    found = {line.split(" | ")[0].strip("| "): line.split(" | ")[2] for line in estimate(ROWS).splitlines()[2:]}
    assert found["trees.jsonl"] == "0.90 TB"  # 10^9 turns of 900 bytes, as the real log has them
    assert found["answers.jsonl, all by an endpoint"] == "0.25 TB"
    assert found["memory to open it"] == "2.00 TB" and found["memory of pairs, one for two turns"] == "1.00 TB"
    assert found["one writer of one log"] == "5.8 days"  # 10^9 / 2000 seconds
    assert found["GPU time, one GPU"] == "138.9 days"  # 60 * 10^9 / 5000 seconds
    assert found["the same on 8"] == "33.9 days"  # over (2 * 4 / 5) three times
    assert found["dollars"] == "111,000"
    assert found["most turns a machine of 128 GB opens"] == "6.4e+07"
    small = {line.split(" | ")[0].strip("| "): line.split(" | ")[2]
             for line in estimate(ROWS, dialogues=1000, turns=10, gpus=1).splitlines()[2:]}
    assert small["the same on 1"] == small["GPU time, one GPU"]


def test_a_gain_counts_each_process_as_one_with_a_core_of_its_own():
    found = tables(ROWS, "here")
    assert "| 2 Ray replicas | 6.00 | 5.00 | 1.60 |" in found["scaling-dialogues"]
    assert "| two | 3.00 | 4.00 | 1.50 |" in found["scaling-training"]
    assert "| write | 1,000 | 2,000 | 2,000 B | 300 |" in found["scaling-log"]


def test_logs_are_written_merged_and_read_with_their_bytes_counted(tmp_path: Path):
    written = log_work("write", tmp_path, 6)
    merged = log_work("merge", tmp_path, 6)
    trees = read_trees(tmp_path / "trees.jsonl")
    assert len(trees) == 6 and all(len(tree) == 16 for tree in trees.values())
    assert 0 < merged["bytes"] == (tmp_path / "trees.jsonl").stat().st_size < written["bytes"]
    assert log_work("pairs", tmp_path, 6)["bytes"] == (tmp_path / "pairs.jsonl").stat().st_size
    row, = of_runs([tmp_path / "trees.jsonl"])
    assert (row["turns"], row["trees"], row["bytes"]) == (96, 6, merged["bytes"])


def test_every_request_in_flight_is_one_more_at_once(tmp_path: Path):
    one, four, *_ = endpoints(tmp_path, quick=True)
    assert one["per_second"] <= one["most"] == 5.0 and four["most"] == 20.0
    assert four["per_second"] > 1.5 * one["per_second"]
