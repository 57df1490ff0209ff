"""The floors of the house: a module imports from its own floor or from below, wherever the import stands."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import dialoom

ROOT = Path(dialoom.__file__).parent
FLOORS = (  # from the ground up; rooms of one floor that are parted by | do not import each other
    "errors text files stances progress tracking config pocket",
    "dialogue store",
    "models embed | scenarios",
    "judge answers",
    "simulate",
    "select",
    "train | evals",
    "recipes",
    "report",
    "cli commands usage demo scorecard chat show view doctor evaluate export audit __main__",
)
PLACES = {name: (floor, room) for floor, line in enumerate(FLOORS) for room, names in enumerate(line.split("|"))
          for name in names.split()}
def module_name(path: Path) -> str:
    """A file's module without the leading package: `pocket.world`, `text`, "" for the package itself."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {module_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(ROOT.rglob("*.py"))}


def targets(node: ast.AST) -> Iterator[str]:
    """The modules of ours that one import statement names."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            if alias.name.split(".")[0] == "dialoom":
                yield alias.name.removeprefix("dialoom").removeprefix(".")
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute in this house"
        if (node.module or "").split(".")[0] == "dialoom":
            base = (node.module or "").removeprefix("dialoom").removeprefix(".")
            for alias in node.names:
                below = f"{base}.{alias.name}".removeprefix(".")
                yield below if below in TREES else base


def imports(module: str) -> set[str]:
    """What a module imports anywhere: at its top, in functions, for types only."""
    return {target for node in ast.walk(TREES[module]) for target in targets(node)} - {""}


def loaded(body: list[ast.stmt]) -> Iterator[str]:
    """What importing a module imports at once: no function bodies, nothing for types only."""
    for node in body:
        yield from targets(node)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from loaded(node.orelse)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for part in ("body", "orelse", "finalbody", "handlers"):
                yield from loaded([one for one in getattr(node, part, []) if isinstance(one, ast.stmt)])
            for handler in getattr(node, "handlers", []):
                yield from loaded(handler.body)


def place(module: str) -> tuple[int, int]:
    return PLACES[module.split(".")[0]]


def allowed(module: str, target: str) -> bool:
    (floor, room), (other_floor, other_room) = place(module), place(target)
    return other_floor < floor or (other_floor, other_room) == (floor, room)


def test_every_module_has_a_floor():
    assert {module.split(".")[0] for module in TREES} - {""} <= set(PLACES)


def test_nothing_imports_from_a_floor_above_or_the_room_next_door():
    upward = {(module, target) for module in TREES if module for target in imports(module)
              if not allowed(module, target)}
    assert upward == set()


@pytest.mark.parametrize(("module", "target", "fine"), [
    ("judge", "models.base", True),
    ("models.base", "judge", False),
    ("models.local", "models.base", True),
    ("models.load", "scenarios.triviaqa", False),
    ("train.loop", "evals", False),
    ("evals.persuasion", "pocket.world.trivia", True),
    ("recipes.pbt", "report.page", False),
])
def test_what_the_floors_mean(module, target, fine):
    assert allowed(module, target) is fine


def test_imports_in_functions_count_for_the_floors_and_not_for_circles():
    assert "evals.persuasion" in imports("evals")  # inside run_eval
    assert "evals.persuasion" not in set(loaded(TREES["evals"].body))


def test_no_modules_import_each_other_in_a_circle():
    graph = {module: set(loaded(tree.body)) - {"", module} for module, tree in TREES.items() if module}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as circle:
        pytest.fail(f"modules import each other: {' -> '.join(circle.args[1])}")


@pytest.mark.parametrize("modules", [
    "dialoom.cli",
    "dialoom.dialogue, dialoom.store, dialoom.judge, dialoom.answers, dialoom.simulate, dialoom.select, dialoom.config",
    "dialoom.models.base, dialoom.models.scripted, dialoom.embed, dialoom.scenarios.triviaqa, dialoom.evals.persuasion",
    "dialoom.evals.alignment_judge, dialoom.recipes.aloe, dialoom.recipes.aloe_eval",
    "dialoom.recipes.ideas, dialoom.recipes.ideas_corpus, dialoom.evals.diversity, dialoom.evals.rating",
    "dialoom.recipes.ditto, dialoom.recipes.ditto_write, dialoom.evals.winrate, dialoom.scenarios.demonstrations",
    "dialoom.recipes.pbt, dialoom.recipes.debate, dialoom.train.config, dialoom.report, dialoom.show",
])
def test_torch_is_not_loaded_before_it_is_needed(modules):
    code = f"import sys, {modules}; print(sorted({{'torch', 'transformers', 'peft'}} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT.parent, check=True)
    assert found.stdout.strip() == "[]"
