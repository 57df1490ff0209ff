"""The table of docs/reliability.md: at least forty faults, each with a test that exists."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| (\d+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)
TEST = re.compile(r"`(\w[\w/]*)::(test_\w+)`")


@cache
def names_in(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


def test_every_fault_of_the_table_names_tests_that_exist():
    rows = ROW.findall((ROOT / "docs" / "reliability.md").read_text())
    assert len(rows) >= 40 and [int(row[0]) for row in rows] == list(range(1, len(rows) + 1))
    for number, *_, tests in rows:
        named = TEST.findall(tests)
        assert named, f"row {number} names no test"
        for file, name in named:
            assert name in names_in(ROOT / "tests" / f"{file}.py"), f"row {number}: {file}::{name}"
