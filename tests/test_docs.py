"""The documentation held against the code: its commands, flags, settings, links and signatures exist.

That its commands and examples do what they say is the matter of test_docs_commands.py.
"""

import ast
import importlib
import inspect
import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from dialoom import stances
from dialoom.cli import RECIPES, main
from dialoom.config import load_config
from dialoom.evaluate import NAMES
from dialoom.models.load import POCKETS
from dialoom.models.placed import Placed
from dialoom.recipes import aloe, dat, ditto, ideas, pbt
from tests.pages import COMMAND, PAGES, ROOT, blocks, prose

LINK = re.compile(r"\]\(([^)\s]+)\)")
INLINE = re.compile(r"`(dialoom [^`]+)`")
SIGNATURE = re.compile(r"^([A-Za-z_][\w.]*)\((.*)\)(?: ->.*)?$")


def test_python_parses_and_imports_what_exists():
    for block in blocks("python"):
        for node in ast.walk(ast.parse(block.text, filename=str(block))):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("dialoom"):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, name.name) for name in node.names), str(block)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_somewhere(page):
    links = [link for link in LINK.findall(prose(page)) if not re.match(r"https?:|mailto:", link)]
    missing = []
    for link in links:
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            missing.append(link)
    assert not missing


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page in links."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands() -> list[tuple[str, list[str]]]:
    """(where, words) of every `dialoom ...` in the pages."""
    found = []
    for block in blocks("sh"):
        found += [(str(block), line) for line in block.lines if COMMAND.match(line)]
    for page in PAGES:
        found += [(page.name, text) for text in INLINE.findall(prose(page))]
    return [(where, shlex.split(line, comments=True)) for where, line in found]


def test_every_command_in_the_pages_exists_with_its_flags(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    helps: dict[tuple[str, ...], str] = {}
    for where, words in commands():
        words = words[words.index("dialoom") + 1:]
        if words[0].startswith("-") or words[0] == "COMMAND":
            continue
        command = tuple(words[:2] if words[0] in ("pocket", "personas") and len(words) > 1 else words[:1])
        if command not in helps:
            assert main([*command, "--help"]) == 0, f"{where}: dialoom {' '.join(command)}"
            helps[command] = capsys.readouterr().out
        for word in words[len(command):]:
            if word.startswith("-") and word != "--help":
                flag = re.escape(word.partition("=")[0])
                assert re.search(rf"(?<!\S){flag}(?!\S)", helps[command]), f"{where}: {' '.join(words)}: no {word}"
        check_words(where, command[0], words)


def check_words(where: str, command: str, words: list[str]) -> None:
    """The names of stages, evaluations, presets and models in a command."""
    if command in RECIPES and len(words) > 1 and not words[1].startswith("-"):
        recipe = importlib.import_module(f"dialoom.recipes.{command}")
        assert words[1] in (*recipe.STAGES, *getattr(recipe, "ACTIONS", ()), "STAGE"), f"{where}: {words}"
    if command == "eval" and len(words) > 1:
        assert words[1] in (*NAMES, "NAME"), f"{where}: {words}"
    for flag, value in itertools.pairwise(words):
        if flag == "--preset":
            assert value in pbt.PRESETS, f"{where}: {words}"
        if flag in ("--model", "--partner", "--extractor"):
            assert value in POCKETS or re.match(r"(hf|openai|run):.", value), f"{where}: {words}"


def test_every_make_target_in_the_pages_exists():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    text = "\n".join([*(block.text for block in blocks("sh")), *(f"\n{found}" for page in PAGES for found in
                                                                re.findall(r"`(make [\w-]+)[^`]*`", prose(page)))])
    named = set(re.findall(r"^make ([\w-]+)", text, re.MULTILINE))
    assert named and named <= targets


def shown(value: object) -> str:
    """A setting as the tables of docs/pbt.md write it."""
    named = {stances.CAREFUL: "`CAREFUL`", stances.NEUTRAL: "`NEUTRAL`", "": "none", (): "none", True: "yes",
             False: "no"}
    if isinstance(value, bool) or value in ("", (), stances.CAREFUL, stances.NEUTRAL):
        return named[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


PLACE = set(Placed.model_fields) - {"model"}  # told once, in models.md


def test_the_settings_table_of_pbt_says_what_the_presets_say():
    page = (ROOT / "docs" / "pbt.md").read_text(encoding="utf-8")
    pocket, paper = pbt.PRESETS["pocket"], pbt.PRESETS["paper"]
    rows = [f"| `{name}` | {shown(getattr(pocket, name))} | {shown(getattr(paper, name))} |"
            for name in type(pocket).model_fields if name not in ("sft", "dpo", *PLACE, "seed")]
    for name in type(pocket.sft).model_fields:
        values = [getattr(part, name) for part in (pocket.sft, paper.sft, pocket.dpo, paper.dpo)]
        if name not in ("seed", "checkpoint_every", "gradient_checkpointing", "token_budget"):
            rows.append(f"| `{name}` | {' | '.join(map(shown, values))} |")
    assert [row for row in rows if f"\n{row}" not in page] == []


def test_the_settings_table_of_aloe_says_what_the_presets_say():
    page = (ROOT / "docs" / "aloe.md").read_text(encoding="utf-8")
    pocket, paper = aloe.PRESETS["pocket"], aloe.PRESETS["paper"]
    texts = {paper.hint: "`HINT`", paper.neutral: "`NEUTRAL`", paper.user_brief: "`PLAY`", pocket.hint: "pocket's",
             pocket.ceiling: "pocket's", None: "none"}

    def told(value: object) -> str:
        return ", ".join(value) if isinstance(value, tuple) else texts.get(value) or shown(value)

    rows = [f"| `{name}` | {told(getattr(pocket, name))} | {told(getattr(paper, name))} |"
            for name in type(pocket).model_fields if name not in ("sft", "dpo", *PLACE, "seed", "batch", "split")]
    for name in type(pocket.sft).model_fields:
        values = [getattr(part, name) for part in (pocket.sft, paper.sft, pocket.dpo, paper.dpo)]
        if name not in ("seed", "checkpoint_every", "gradient_checkpointing", "token_budget"):
            rows.append(f"| `{name}` | {' | '.join(map(shown, values))} |")
    assert [row for row in rows if f"\n{row}" not in page] == []


def test_the_settings_tables_of_ideas_say_what_the_presets_say():
    page = (ROOT / "docs" / "ideas.md").read_text(encoding="utf-8")
    pocket, paper = ideas.PRESETS["pocket"], ideas.PRESETS["paper"]
    texts = {"extract": "`EXTRACT`", "abstract": "`ABSTRACT`", "choose": "`CHOOSE`", "curious": "`CONTINUE`"}

    def told(name: str, value: object, own: bool) -> str:
        if name in (*texts, "careful", "ceiling") and value:
            return "pocket's" if own else texts[name]
        if name == "refusals":
            return "`REFUSALS`"
        return "none" if value is None else ", ".join(map(str, value)) if isinstance(value, tuple) else shown(value)

    apart = ("simulator_sft", "sft", "ranker", *PLACE, "seed", "batch", "split")
    rows = [f"| `{name}` | {told(name, getattr(pocket, name), True)} | {told(name, getattr(paper, name), False)} |"
            for name in type(pocket).model_fields if name not in apart]
    rows += [f"| `ranker.{name}` | {shown(getattr(pocket.ranker, name))} | {shown(getattr(paper.ranker, name))} |"
             for name in type(pocket.ranker).model_fields]
    for name in type(pocket.sft).model_fields:
        values = [getattr(part, name) for part in (pocket.simulator_sft, paper.simulator_sft, pocket.sft, paper.sft)]
        if name not in ("seed", "checkpoint_every", "gradient_checkpointing", "token_budget", "beta", "nll_weight"):
            rows.append(f"| `{name}` | {' | '.join(map(shown, values))} |")
    assert [row for row in rows if f"\n{row}" not in page] == []


def test_the_settings_tables_of_ditto_say_what_the_presets_say():
    page = (ROOT / "docs" / "ditto.md").read_text(encoding="utf-8")
    pocket, paper = ditto.PRESETS["pocket"], ditto.PRESETS["paper"]

    def told(value: object) -> str:
        return ", ".join(value) if isinstance(value, tuple) and value else shown(value)

    apart = ("sft", "dpo", *PLACE, "seed", "token_budget", "keep_checkpoints", "gradient_checkpointing")
    parts = [(pocket, paper, apart), (pocket.sft, paper.sft, ()), (pocket.dpo, paper.dpo, ())]
    rows = [f"| `{name}` | {told(getattr(one, name))} | {told(getattr(other, name))} |"
            for one, other, left_out in parts for name in type(one).model_fields if name not in left_out]
    assert [row for row in rows if f"\n{row}" not in page] == []


def test_the_release_s_own_values_of_ditto_are_settings_that_load(tmp_path):
    block = next(block for block in blocks("yaml") if block.page.name == "ditto.md")
    (tmp_path / "release.yaml").write_text(block.text, encoding="utf-8")
    found = load_config(type(ditto.PAPER), ditto.PAPER, tmp_path / "release.yaml")
    assert (found.sft.optimizer, found.dpo.optimizer) == ("rmsprop", "rmsprop")
    assert (found.lora_rank, found.sft.warmup) == (32, 0.2)


def test_the_settings_table_of_dat_says_what_the_presets_say():
    page = (ROOT / "docs" / "dat.md").read_text(encoding="utf-8")
    pocket, paper = dat.PRESETS["pocket"], dat.PRESETS["paper"]

    def told(value: object) -> str:
        if value is None:
            return "none"
        return ", ".join(map(str, value)) if isinstance(value, tuple) and value else shown(value)

    parts = [("", pocket, paper, ("clone", "td3", "sweep", "redteam", *PLACE, "seed")),
             ("clone.", pocket.clone, paper.clone, ()), ("sweep.", pocket.sweep, paper.sweep, ()),
             ("td3.", pocket.td3, paper.td3, ("seed", "checkpoint_every"))]
    rows = [f"| `{group}{name}` | {told(getattr(one, name))} | {told(getattr(other, name))} |"
            for group, one, other, apart in parts for name in type(one).model_fields if name not in apart]
    assert [row for row in rows if f"\n{row}" not in page] == []


def test_the_floors_table_names_every_module():
    page = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    table = page.partition("\n## Floors\n")[2].partition("\n## ")[0]
    rows = [line.split("|")[2] for line in table.splitlines() if line.startswith("| ")][1:]
    named = {name for row in rows for name in re.findall(r"`([\w/]+)`", row)}
    package = ROOT / "dialoom"
    there = {str(path.relative_to(package).with_suffix("")) for path in package.rglob("*.py")}
    there = {name for name in there if not name.endswith(("__init__", "__main__"))}
    assert named == {name for name in there if not name.startswith("pocket/world/")} | {"pocket/world"}


def signatures() -> Iterator[tuple[str, str, list[str]]]:
    """(module, dotted name, parameters) of every line of a `python signatures` block."""
    for block in blocks("text signatures"):
        module = ""
        for line in block.text.splitlines():
            line = line.partition("  #")[0].rstrip()
            if line.startswith("# "):
                module = line[2:].removesuffix(".py").replace("/", ".")
            elif found := SIGNATURE.match(line):
                parts = [part.partition("=")[0].strip() for part in found[2].split(",")]
                yield module, found[1], [part for part in parts if part and part != "*"]


def test_the_signatures_of_the_design_page_are_the_real_ones():
    given = list(signatures())
    assert len(given) > 20
    for module, name, parameters in given:
        found: object = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
        real = list(inspect.signature(found).parameters)  # type: ignore[arg-type]
        assert parameters == [one for one in real if one not in ("self", "cls")], f"{module}.{name}"


def test_the_table_of_the_readme_is_what_the_results_say():
    from bench.results import headline_table

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.partition("<!-- results:all -->\n")[2].partition("\n<!-- /results:all -->")[0] == headline_table()
