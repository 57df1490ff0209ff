"""Every command and example of the documentation is run, page by page, or says why it is not."""

import os
import shutil
from pathlib import Path

import filelock
import pytest

from tests.pages import COMMAND, PAGES, REASONS, RUN, SMALL, blocks, blocks_of, made_small, run_command, run_page

DEMO = "runs/demo"  # what `make demo` leaves; the pages look at it


def test_every_command_stands_in_a_block_that_is_run_or_says_why_not():
    stray = [str(block) for block in blocks() if block.info not in RUN
             and any(COMMAND.match(line.removeprefix("$ ")) for line in block.lines)]
    assert not stray, f"mark these as sh: {stray}"


def test_what_is_not_run_says_why():
    skipped = [block for block in blocks() if block.not_run]
    assert skipped and not [f"{block}: {block.not_run}" for block in skipped
                            if block.info not in RUN or not block.not_run.startswith(REASONS)]
    for block in skipped:
        print(f"{block}: {block.not_run}")


def test_most_of_the_blocks_are_run():
    found = [block for block in blocks() if block.info in RUN]
    assert sum(block.is_run for block in found) >= 2 / 3 * len(found)


def test_what_is_added_makes_recipes_small_and_nothing_else():
    assert made_small(["pbt", "trees", "--limit", "3"])[:4] == ["pbt", "trees", "--limit", "3"]
    assert made_small(["pbt", "trees", "--limit", "3"]).count("--limit") == 1
    for line in ("pbt --help", "pbt analyse runs/x", "eval flipflop", "personas check a b"):
        words = line.split()
        assert made_small(words) == words


def test_a_page_runs_in_order_and_its_files_are_there(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("<!-- file: a.txt -->\n```text\nhello\n```\n\n```python\nfrom pathlib import Path\n"
                    "Path('b.txt').write_text(Path('a.txt').read_text() * 2)\n```\n\n<!-- not run: needs a person -->\n"
                    "```sh\nfalse\n```\n\n```sh\ntest \"$(wc -l < b.txt)\" = 2 && echo ok > c.txt\n```\n")
    monkeypatch.chdir(tmp_path)
    run_page(blocks_of(page), tmp_path)
    assert (tmp_path / "c.txt").read_text() == "ok\n"
    page.write_text("```sh\ndialoom no-such-command\n```\n")
    monkeypatch.setattr("tests.pages.ROOT", tmp_path)
    with pytest.raises(AssertionError, match=r"page.md:2: dialoom no-such-command ended with code 2"):
        run_page(blocks_of(page), tmp_path)


@pytest.fixture(scope="session")
def demonstration(tmp_path_factory):
    """What the demonstration leaves, of recipes made small; made once for all workers."""
    folder = Path(tmp_path_factory.getbasetemp())
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "demonstration"
    folder.mkdir(exist_ok=True)
    with filelock.FileLock(folder / "lock"):
        for recipe in ("pbt", "aloe", "ideas"):
            if not (folder / recipe / "results.json").exists():
                run_command("the demonstration", f"dialoom {recipe} --out {folder / recipe}")
    return folder


def pages() -> list[object]:
    """Pages with something to run; slow are those that run commands or load pocket."""
    found = []
    for page in PAGES:
        run = [block for block in blocks_of(page) if block.is_run]
        slow = any(block.info == "sh" or '"pocket"' in block.text for block in run)
        if run:
            marks = [pytest.mark.slow, pytest.mark.timeout(1800)] if slow else []
            found.append(pytest.param(page, id="/".join(page.parts[-2:]), marks=marks))
    return found


@pytest.mark.parametrize("page", pages())
def test_a_page_does_what_it_says(page, tmp_path, monkeypatch, request):
    import torch

    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DIALOOM_CACHE", str(tmp_path / "cache"))
    found = blocks_of(page)
    if any(DEMO in block.text for block in found if block.is_run):
        made = request.getfixturevalue("demonstration")
        for recipe in ("pbt", "aloe", "ideas"):
            shutil.copytree(made / recipe, tmp_path / DEMO / recipe)
    run_page(found, tmp_path)


def test_the_small_settings_are_settings(capsys):
    from dialoom.cli import main

    for recipe, flags in SMALL.items():
        words = ["personas", "grow"] if recipe == "personas" else [recipe]
        assert main([*words, *flags.split(), "--dry-run"]) == 0, capsys.readouterr().err
