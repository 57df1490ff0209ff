"""The pages of the documentation as the tests read them: their fenced blocks, what is said of them, and running them.

What a comment right above a block says of it:

    <!-- file: questions.csv -->           the block is this file; later blocks of the page find it in their folder
    <!-- not run: needs an endpoint -->    why no test runs it; the reasons are in `REASONS`
"""

from __future__ import annotations

import io
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dialoom.cli import main

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"(?:^<!-- (file|not run): ([^\n]+?) -->\n\n?)?^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(?:\w+=\S+ )*dialoom\b")
RUN = ("sh", "python")  # the kinds of blocks that are run
REASONS = ("needs weights", "needs an endpoint", "needs a cluster", "needs npm", "needs a person", "takes minutes",
           "takes hours", "installs")
SMALL = {  # what is added to a recipe so that it takes seconds; everything else is run as it is written
    "pbt": "--limit 8 --eval-questions 8 --sft.max-steps 2 --dpo.max-steps 2 --no-train-partner",
    "aloe": "--train-count 8 --eval-count 4 --turns 3 --shift-at 0 --baselines few_shot --sft.max-steps 2 "
            "--dpo.max-steps 2",
    "ideas": "--corpus-count 20 --opening-count 6 --eval-count 4 --weighed 16 "
             "--arms plain plain_trained ideas --sft.max-steps 2",
    "ditto": "--dpo.steps 2 --dpo.samples 2 --sft.max-steps 2 --pool zero_shot sft --beside",
    "dat": "--train-scenes 6 --valid-scenes 2 --test-scenes 4 --constants 2 --constant-scenes 2 --clone.prompts 10 "
           "--clone.steps 4 --td3.steps 4",
    "personas": "--profiles 26 --personalities 24",
}


@dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, what follows the backticks, what is in it, and what is said of it.

    Attributes:
        file: the name it is to be saved under, or "".
        not_run: why it is not run, or "".
    """

    page: Path
    line: int
    info: str
    text: str
    file: str = ""
    not_run: str = ""

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def is_run(self) -> bool:
        """Whether a test executes it."""
        return self.info in RUN and not self.not_run

    @property
    def lines(self) -> list[str]:
        """Its commands; continued lines are one."""
        return [line for line in self.text.replace("\\\n", " ").splitlines() if line.strip() and line[0] != "#"]


def blocks_of(page: Path) -> list[Block]:
    """All blocks of a page, in order."""
    text, found = page.read_text(encoding="utf-8"), []
    for at in BLOCK.finditer(text):
        said = {at[1]: at[2]} if at[1] else {}
        line = text.count("\n", 0, at.start(4)) + 1
        found.append(Block(page, line, at[3].strip(), at[4], said.get("file", ""), said.get("not run", "")))
    return found


def blocks(kind: str = "") -> list[Block]:
    """All blocks of all pages marked with exactly `kind` ("": any)."""
    return [block for page in PAGES for block in blocks_of(page) if block.info == kind or not kind]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return BLOCK.sub("", page.read_text(encoding="utf-8"))


def made_small(words: Sequence[str]) -> list[str]:
    """A command with what makes it small: a recipe's settings, and an end for what would wait for a person."""
    name, rest = words[0], list(words[1:])
    plain = not {"--help", "--dry-run", "analyse", "merge", "check"}.intersection(rest)
    if name in SMALL and plain:
        given = {word for word in rest if word.startswith("--")}
        flags = re.split(r" (?=--)", SMALL[name])
        return [name, *rest, *(part for flag in flags if flag.split()[0] not in given for part in flag.split())]
    if name == "view" and "--html" not in rest:
        return [name, *rest, "--html", "page.html"]
    return [name, *rest]


def run_page(found: Sequence[Block], folder: Path) -> None:
    """Do what a page says, block by block, in a folder that is the working directory."""
    for block in found:
        if block.file:
            path = folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
        elif block.is_run and block.info == "python":
            script = folder / "page.py"
            script.write_text("\n" * (block.line - 1) + block.text, encoding="utf-8")  # errors name the page's line
            runpy.run_path(str(script), run_name="page")
        elif block.is_run and all(is_plain(line) for line in block.lines):
            for line in block.lines:
                run_command(str(block), line)
        elif block.is_run:
            path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
            subprocess.run(["bash", "-euo", "pipefail", "-c", block.text], cwd=folder, check=True, timeout=300,
                           env={**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1"})


def is_plain(line: str) -> bool:
    """Whether a line is one `dialoom ...` and nothing for a shell to do."""
    words = shlex.split(line, comments=True)
    return words[:1] == ["dialoom"] and not {"|", "||", "&&", ";", "<", ">", ">>"}.intersection(words)


def run_command(where: str, line: str) -> None:
    """One `dialoom ...` in this process, where torch is loaded already; a person's words come from a script."""
    words = shlex.split(line, comments=True)[1:]
    heard, sys.stdin = sys.stdin, io.StringIO("Hello!\n/quit\n")
    try:
        code = main(made_small(words))
    finally:
        sys.stdin = heard
    assert code == 0, f"{where}: {line} ended with code {code}"
