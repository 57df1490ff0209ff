"""`make docs`: the documentation as a site under build/site, from docs/ and from what the code says of itself.

The pages of docs/ are read as they are on the shelf; this lays them out, writes the reference beside them (commands out
of the command line itself, interfaces out of docstrings) and hands all to Zensical, which refuses a link that leads
nowhere. Nothing that is made here is checked in. The site needs no network and no server to be read.
"""

from __future__ import annotations

import functools
import inspect
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import griffe

from bench.measure import ROOT

DOCS, STAGED, SITE = ROOT / "docs", ROOT / "build" / "docs", ROOT / "build" / "site"
LINK = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
BESIDE = {  # what the site has of the files above docs/
    "README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
API = {  # page: its title, and the modules on it
    "api-core": ("Dialogues, judges, selection", "dialogue simulate judge answers select store config embed errors"),
    "api-models": ("Models", "models.base models.load models.scripted models.local models.endpoint models.steering"),
    "api-scenarios": ("Scenarios", "scenarios.triviaqa scenarios.personas scenarios.demonstrations scenarios.sharegpt "
                                   "scenarios.sotopia scenarios.harmbench"),
    "api-train": ("Training", "train.config train.sft train.dpo train.cloning train.td3"),
    "api-evals": ("Evaluations and run folders", "evals evals.persuasion evals.winrate evals.alignment evals.diversity "
                                                 "evals.quality evals.social evals.redteam evals.metrics recipes.run"),
}


def main() -> int:
    """Lay the pages out, write the reference, build; the generator's exit code."""
    stage()
    done = subprocess.run([str(Path(sys.executable).with_name("zensical")), "build", "--strict", "--clean",
                           "-f", "mkdocs.yml"], cwd=ROOT, env={**os.environ, "NO_COLOR": "1"}, check=False)
    if done.returncode == 0:
        print(f"{SITE / 'index.html'}: open it in a browser")
    return done.returncode


def stage() -> None:
    """Everything the site is made of, into build/docs."""
    shutil.rmtree(STAGED, ignore_errors=True)
    shutil.copytree(DOCS, STAGED)
    for page in sorted(STAGED.rglob("*.md")):
        page.write_text(laid_out(page.read_text(encoding="utf-8"), DOCS / page.relative_to(STAGED)), encoding="utf-8")
    for name, staged in BESIDE.items():
        if not (STAGED / staged).exists():
            text = (ROOT / name).read_text(encoding="utf-8")
            (STAGED / staged).write_text(laid_out(text, ROOT / name), encoding="utf-8")
    folder = STAGED / "reference"
    folder.mkdir(exist_ok=True)
    (folder / "cli.md").write_text(commands_page(), encoding="utf-8")
    for name, (title, modules) in API.items():
        (folder / f"{name}.md").write_text(api_page(title, modules.split()), encoding="utf-8")


def laid_out(text: str, page: Path) -> str:
    """A page whose links stay on the site: what lies outside docs/ is named, not linked."""
    def moved(match: re.Match[str]) -> str:
        words, target = match.groups()
        name, hash_sign, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target) or not name:
            return match[0]
        there = Path(os.path.normpath(page.parent / name))
        here = DOCS if page.parent == ROOT else page.parent
        if there.is_relative_to(DOCS):
            return f"[{words}]({os.path.relpath(there, here)}{hash_sign}{anchor})"
        if there.parent == ROOT and there.name in BESIDE:
            return f"[{words}]({os.path.relpath(DOCS / BESIDE[there.name], here)}{hash_sign}{anchor})"
        return words if words.strip("`") == str(there.relative_to(ROOT)) else f"{words} (`{there.relative_to(ROOT)}`)"

    return outside_of_code(text, lambda prose: LINK.sub(moved, prose))


def outside_of_code(text: str, change: object) -> str:
    """The text with everything changed that stands in no fenced block."""
    assert callable(change)
    parts, last = [], 0
    for block in FENCED.finditer(text):
        parts += [change(text[last:block.start()]), block[0]]
        last = block.end()
    return "".join([*parts, change(text[last:])])


# ---------------------------------------------------------------------------------------- what the code says


def commands_page() -> str:
    """All commands with their flags, as `--help` has them."""
    from dialoom.cli import make_app

    text = make_app(everything=True).generate_docs(output_format="markdown")
    text = re.sub(r"^## Table of Contents\n.*?(?=^[#*])", "", text, flags=re.MULTILINE | re.DOTALL)
    return "# Commands\n\nMade from the command line itself; `dialoom COMMAND --help` says the same.\n\n" + tagless(
        text.partition("\n")[2].lstrip())


def tagless(text: str) -> str:
    """Markdown in which `<model>` is read as words, not as a tag, outside of code."""
    def plain(prose: str) -> str:
        return "".join(part if part.startswith("`") else part.replace("<", "&lt;")
                       for part in re.split(r"(`[^`\n]+`)", prose))

    return outside_of_code(text, plain)


@functools.cache
def package() -> griffe.Object:
    """All of Dialoom as griffe reads it, without importing it."""
    found = griffe.load("dialoom", search_paths=[str(ROOT)])
    assert isinstance(found, griffe.Module)
    return found


def api_page(title: str, modules: list[str]) -> str:
    """The public names of some modules: signatures and docstrings."""
    lines = [f"# {title}", "", "Made from the docstrings."]
    for module in modules:
        found = package()[module]
        lines += ["", f"## dialoom.{module}", "", *said(found)]
        for member in found.members.values():
            if not member.name.startswith("_") and not member.is_alias and member.has_docstring:
                lines += ["", *member_of(member)]  # type: ignore[arg-type]
    return tagless("\n".join(lines) + "\n")


def member_of(member: griffe.Object, level: str = "###") -> Iterator[str]:
    """A class with its public methods, a function or a constant."""
    yield f"{level} {member.parent.name + '.' if level == '####' and member.parent else ''}{member.name}"
    yield ""
    if isinstance(member, griffe.Function | griffe.Class):
        yield from ("```python", signature(member), "```", "")
    yield from said(member)
    if isinstance(member, griffe.Class):
        fields = [one for one in member.attributes.values() if one.has_docstring and not one.name.startswith("_")]
        for one in fields:
            yield f"- `{one.name}`: {' '.join(one.docstring.value.split())}"  # type: ignore[union-attr]
        for method in member.functions.values():
            if method.has_docstring and not method.name.startswith("_") and not method.is_alias:
                yield ""
                yield from member_of(method, "####")


def signature(member: griffe.Function | griffe.Class) -> str:
    """How it is called, in one line or one parameter a line; a class without parameters by its bases."""
    if isinstance(member, griffe.Class) and not len(member.parameters):
        bases = ", ".join(map(str, member.bases))
        return f"class {member.name}({bases})" if bases else f"class {member.name}"
    text = member.signature(return_type=isinstance(member, griffe.Function))
    text = re.sub(r"\(self(: [^,)]*)?(, |\))", lambda m: "(" + m[2].strip(", "), text, count=1)
    if len(text) <= 100:
        return text
    name, given, returned = re.split(r"\((.*)\)", text, maxsplit=1)
    return f"{name}(\n    " + re.sub(r", (?=[*/]|\w+: )", ",\n    ", given) + f"\n){returned}"


def said(thing: griffe.Object) -> Iterator[str]:
    """A docstring as Markdown: its words, then what its sections list."""
    if thing.docstring is None:
        return
    for section in thing.docstring.parse("google", warnings=False):
        if section.kind is griffe.DocstringSectionKind.text:
            yield from (dedented(section.value), "")
        elif section.kind is griffe.DocstringSectionKind.admonition:
            yield from (f"**{section.title}:** {' '.join(section.value.contents.split())}", "")
        elif isinstance(section.value, list):
            yield from (f"**{section.kind.value.capitalize()}**", "")
            for item in section.value:
                name = getattr(item, "name", "") or str(getattr(item, "annotation", "") or "")
                words = " ".join(item.description.split())
                yield f"- `{name}`: {words}" if name else f"- {words}"
            yield ""


def dedented(text: str) -> str:
    """Docstring text in which indented drawings stand as code."""
    return re.sub(r"(?:^ {4}.*\n?|^\n(?= {4}))+", lambda m: f"\n```text\n{inspect.cleandoc(m[0])}\n```\n", text,
                  flags=re.MULTILINE)


if __name__ == "__main__":
    sys.exit(main())
