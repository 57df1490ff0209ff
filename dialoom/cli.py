"""The command line: `dialoom <recipe> [STAGE]`, and eval, show, chat, pocket, doctor beside it.

A recipe's flags are made from its Config. Only what a command needs is imported, so `dialoom --help` loads no torch.
What Dialoom raises on purpose is printed as one line, `error: ...`, with exit code 2 (`DIALOOM_TRACEBACK=1` shows where
it came from); Ctrl-C gives 130 and SIGTERM 143, and the same command continues.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import io
import json
import os
import re
import signal
import sys
import types
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter, UnusedCliTokensError

from dialoom.errors import ConfigError, DialoomError

if TYPE_CHECKING:
    from dialoom.config import Config

RECIPES = {"pbt": "Debate trees teach when to give in and when to hold (arXiv 2410.14596).",
           "ditto": "A handful of your own texts teaches a model to write like you (arXiv 2406.00888).",
           "aloe": "Talking with simulated people teaches to notice who is talking and adapt (arXiv 2410.03642).",
           "ideas": "Real dialogues show how people go on; simulated users then go on like them (arXiv 2404.11095)."}
GROW = "Grow pools of profiles and personalities out of seeds, and combine them (arXiv 2410.03642)."
OPTIONS = ("preset", "config", "out", "fresh", "dry_run")  # what every recipe has besides its own settings
DEVICES = re.compile(r"auto|cpu|mps|cuda(:\d+)?")
FAILED, STOPPED, TERMINATED = 2, 130, 143


class Terminated(KeyboardInterrupt):
    """SIGTERM, as a batch system sends it before it takes the machine away."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that knows no lines and ticks shows question marks
    with _stoppable(), _plain_warnings():
        try:
            make_app(tokens)(tokens, exit_on_error=False, print_error=False, result_action="return_none")
        except (DialoomError, CycloptsError) as wrong:
            if os.environ.get("DIALOOM_TRACEBACK"):
                raise
            print(f"error: {_one_line(wrong)}", file=sys.stderr)
            return FAILED
        except KeyboardInterrupt as stop:
            print("\nstopped; the same command continues", file=sys.stderr)
            return TERMINATED if isinstance(stop, Terminated) else STOPPED
        except BrokenPipeError:  # `dialoom show ... | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def make_app(tokens: Sequence[str] = ()) -> App:
    """All commands; of the recipes only the one that `tokens` start with is imported, the others are just named."""
    app = App(name="dialoom", version=version, help_format="plaintext", suppress_keyboard_interrupt=False,
              help="Align language models through conversation: simulate, score, select, train, evaluate.")
    for name, line in RECIPES.items():
        app.command(_recipe_command(name, line) if tokens[:1] == [name] else _named(line), name=name)
    for command, name in ((evaluate, "eval"), (show, "show"), (chat, "chat"), (doctor, "doctor")):
        app.command(command, name=name)
    pocket = App(name="pocket", help="The embedded models: build them from their grammar, read their card.")
    pocket.command(build_pocket, name="build")
    pocket.command(pocket_card, name="card")
    app.command(pocket)
    personas = App(name="personas", help="People for simulated users to play: grow pools of them, check for leaks.")
    grow = _recipe_command("personas", GROW) if tokens[:2] == ["personas", "grow"] else _named(GROW)
    personas.command(grow, name="grow")
    personas.command(check_personas, name="check")
    app.command(personas)
    return app


def _one_line(wrong: Exception) -> str:
    if isinstance(wrong, UnusedCliTokensError):
        return f"unexpected argument {(wrong.unused_tokens or ['?'])[0]!r}; see --help"
    return " ".join(str(wrong).split())


def version() -> str:
    """Dialoom's version, as installed."""
    try:
        return importlib.metadata.version("dialoom")
    except importlib.metadata.PackageNotFoundError:
        return "not installed, run from its source"


# ---------------------------------------------------------------------------------------------- recipes


def _named(line: str) -> Callable[[], None]:
    def named() -> None:
        raise AssertionError("a recipe that is run is built by _recipe_command")

    named.__doc__ = line
    return named


def _recipe_command(name: str, line: str) -> Callable[..., None]:
    """The command of a recipe: flags from its Config, help from the fields' docstrings."""
    recipe = importlib.import_module(f"dialoom.recipes.{name}")
    start: Config = next(iter(recipe.PRESETS.values()))
    settings = {f"setting__{flag.replace('.', '__')}": (flag, info) for flag, info in _flags(type(start))}

    def command(stage: str | None = None, run: Path | None = None, **given: Any) -> None:
        options = {option: given.pop(option, None) for option in OPTIONS}
        values = {settings[key][0]: value for key, value in given.items() if value is not None}
        if run is not None or stage in getattr(recipe, "ACTIONS", ()):
            return _act(recipe, stage, run or options["out"])
        run_recipe(name, recipe, stage, options, values)

    parameters = [*_options(recipe), *(_setting(key, *entry, start) for key, entry in settings.items())]
    stages = ", ".join(recipe.STAGES)
    command.__doc__ = f"{line}\n\nStages: {stages}. Without STAGE all are done; what was done before is loaded."
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def _act(recipe: Any, action: str | None, run: Path | None) -> None:
    """Do one of a recipe's `ACTIONS` to a run's folder."""
    from dialoom.config import near_miss

    if action in recipe.STAGES:
        raise ConfigError(f"unexpected argument {str(run)!r}: a stage takes no folder, --out names it")
    if action not in recipe.ACTIONS:
        raise ConfigError(f"no stage or action {action!r}; {near_miss(str(action), (*recipe.STAGES, *recipe.ACTIONS))}")
    if run is None:
        raise ConfigError(f"{action}: give the run's folder")
    recipe.act(action, run, say)


def _flags(config_type: type[Config]) -> Iterator[tuple[str, Any]]:
    from dialoom.config import fields

    return fields(config_type)


def _options(recipe: types.ModuleType) -> list[inspect.Parameter]:
    presets, first = " or ".join(recipe.PRESETS), next(iter(recipe.PRESETS))
    texts: dict[str, tuple[Any, Parameter]] = {
        "preset": (str, Parameter(help=f"Where settings start from: {presets}.  [default: {first}]")),
        "config": (Path, Parameter(name=["--config", "-c"], help="YAML file of settings; flags win over it.")),
        "out": (Path, Parameter(help="The run's folder.  [default: runs/<recipe>-<model>-<hash>]")),
        "fresh": (bool, Parameter(negative="", help="Throw away what the folder holds and start anew.")),
        "dry_run": (bool, Parameter(negative="", help="Print what would be done, and do nothing.")),
    }
    stage = inspect.Parameter("stage", inspect.Parameter.POSITIONAL_ONLY, default=None,
                              annotation=Annotated[str | None, Parameter(help="Do this stage, and what it needs.")])
    actions = getattr(recipe, "ACTIONS", ())
    folder = Parameter(help=f"The run's folder, for {' and '.join(actions)}.")
    run = inspect.Parameter("run", inspect.Parameter.POSITIONAL_ONLY, default=None,
                            annotation=Annotated[Path | None, folder])
    return [stage, *([run] if actions else []), *(_keyword(option, *texts[option], "Run") for option in OPTIONS)]


def _setting(key: str, flag: str, info: Any, start: Config) -> inspect.Parameter:
    *parts, _ = flag.split(".")
    default: Any = start
    for step in flag.split("."):
        default = getattr(default, step)
    shown = " ".join(map(str, default)) if isinstance(default, list | tuple) else str(default)
    text = " ".join((info.description or "").split()) + (f"  [default: {shown}]" if shown not in ("", "None") else "")
    kind = _readable(info.annotation)
    about = Parameter(name="--" + flag.replace("_", "-"), help=text, negative=None if kind is bool else "",
                      consume_multiple=typing.get_origin(kind) is tuple)
    return _keyword(key, kind, about, f"Settings: {'.'.join(parts)}" if parts else "Settings")


def _keyword(name: str, kind: Any, about: Parameter, group: str) -> inspect.Parameter:
    annotation = Annotated[kind | None, about, Parameter(show_default=False, group=group)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _readable(kind: Any) -> Any:
    """The type a flag's text is read as; the settings themselves are checked later, with all their rules."""
    parts = [part for part in typing.get_args(kind) if part is not type(None)]
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return _readable(parts[0]) if len(parts) == 1 else str
    if kind in (bool, int, float) or typing.get_origin(kind) is Literal:
        return kind
    return tuple[str, ...] if typing.get_origin(kind) in (tuple, list) else str


def run_recipe(name: str, recipe: types.ModuleType, stage: str | None, options: Mapping[str, Any],
               values: Mapping[str, Any]) -> None:
    """Resolve the settings of a recipe, find its folder and run it there (or print its plan)."""
    from dialoom.config import load_config, near_miss
    from dialoom.recipes.run import RunFolder, default_folder, hash_data
    from dialoom.recipes.shards import shard_folder

    if stage is not None and stage not in recipe.STAGES:
        raise ConfigError(f"{name} has no stage {stage!r}; {near_miss(stage, recipe.STAGES)}")
    preset = options["preset"] or next(iter(recipe.PRESETS))
    if preset not in recipe.PRESETS:
        raise ConfigError(f"{name} has no preset {preset!r}; {near_miss(preset, recipe.PRESETS)}")
    start = recipe.PRESETS[preset]
    config = load_config(type(start), start, options["config"], values)
    one_thread_for_pocket(*(str(getattr(config, role, "")) for role in ("model", "partner", "simulator")))
    _check(getattr(config, "device", "auto"))
    data_hash = recipe.data_hash(config) if hasattr(recipe, "data_hash") else hash_data(
        getattr(config, "data", None) or None)
    out = shard_folder(options["out"] or default_folder(name, config, data_hash), getattr(config, "shard", ""))
    if options["dry_run"]:
        _print_plan(recipe.plan(config), out)
        return
    with RunFolder(out, name, config, data_hash=data_hash, fresh=bool(options["fresh"]), log=say) as folder:
        say(f"run folder: {folder.path}")
        recipe.run(config, folder, stages_of(recipe, stage), say)
        _report(folder.path)


def _report(folder: Path) -> None:
    """The tables in the terminal, and where the page lies; a half-done run gets a page as well."""
    from dialoom.report import results_table, write_report

    page, results = write_report(folder), folder / "results.json"
    if results.exists():
        say(results_table(json.loads(results.read_text(encoding="utf-8")), markdown=False).rstrip())
    say(f"report: {page}")


def one_thread_for_pocket(*specs: str) -> None:
    """Where only pocket models compute, give torch one thread unless the user says otherwise.

    They are too small to share a step between threads: on two busy cores a step of two threads took many times as long.
    """
    if all(spec.startswith("pocket") for spec in specs if spec):
        os.environ.setdefault("OMP_NUM_THREADS", "1")


def stages_of(recipe: Any, stage: str | None) -> tuple[str, ...]:
    """The stages up to and with `stage` (None: all); earlier ones that were done are only loaded."""
    stages: tuple[str, ...] = tuple(recipe.STAGES)
    return stages if stage is None else stages[:stages.index(stage) + 1]


def say(line: str) -> None:
    """One line of what a run has to tell."""
    print(line, flush=True)


def _print_plan(rows: Sequence[Mapping[str, Any]], out: Path) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [columns, *([_cell(row.get(column, "")) for column in columns] for row in rows)]
    widths = [max(len(line[at]) for line in cells) for at in range(len(columns))]
    for line in cells:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
    print(f"run folder: {out}{' (holds a run)' if (out / 'config.yaml').exists() else ''}")


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int | float) else str(value)


# --------------------------------------------------------------------------------------------- the others


def evaluate(name: str, /, *, model: str = "pocket", partner: str = "", judge: str = "", data: str = "",
             strategies: str = "", limit: int = 0, seed: int = 1, brief: str = "", max_new_tokens: int = 48,
             device: str = "auto", out: Path | None = None) -> None:
    """Run one evaluation on any model, or look at a file of dialogues.

    Args:
        name: flipflop, are_you_sure, recall, misinformation, team; quality, mtbench; or diversity.
        model: pocket, pocket-small, hf:<name or path>[+<adapter>], openai:<model> or run:<folder>.
        partner: the other member of the team; only `team` needs one.
        judge: a model that rates answers (quality, mtbench), or says which turns need their context (diversity).
        data: questions: TriviaQA JSON or JSONL, or CSV with question,answer. For quality and diversity dialogues in
            ShareGPT's layout, for mtbench questions in MT-Bench's. Empty: the pocket world's.
        strategies: a JSON list of strategies, which diversity looks for.
        limit: use at most this many questions, conversations or user turns; 0 means all, or what is usual.
        seed: draws wrong answers and phrasings.
        brief: system message of the model under test.
        max_new_tokens: length limit of one reply.
        device: cpu, cuda, mps or auto.
        out: also write the rows to this file, as results.json has them.
    """
    from dialoom.evaluate import run_named

    one_thread_for_pocket(model, partner, judge)
    _check(device, limit=(limit, 0), max_new_tokens=(max_new_tokens, 1))
    run_named(name, model, partner=partner, judge=judge, data=data, strategies=strategies, limit=limit, seed=seed,
              brief=brief, max_new_tokens=max_new_tokens, device=device, out=out)


def show(run: Path, /, *, tree: str | None = None, limit: int = 1) -> None:
    """Print dialogue trees of a run, with scores and with the replies that were chosen and rejected.

    Args:
        run: a run's folder, or a trees.jsonl.
        tree: the id of a tree, or its beginning. Without it, the trees with the most kinds of pairs.
        limit: how many trees; 0 means all.
    """
    from dialoom.show import show_run

    _check(limit=(limit, 0))
    show_run(run, tree=tree, limit=limit)


def chat(model: str, /, *, brief: str = "", temperature: float = 0.7, max_new_tokens: int = 200, seed: int = 0,
         device: str = "auto") -> None:
    """Talk with a model. /save FILE keeps the dialogue as a tree log, /quit ends it.

    Args:
        model: pocket, pocket-small, hf:<name or path>[+<adapter>], openai:<model>, run:<folder>, or a run's folder.
        brief: system message.
        temperature: 0 is greedy.
        max_new_tokens: length limit of one reply.
        seed: the same words in the same order get the same replies.
        device: cpu, cuda, mps or auto.
    """
    from dialoom.chat import talk

    one_thread_for_pocket(model)
    _check(device, temperature=(temperature, 0), max_new_tokens=(max_new_tokens, 1))
    talk(model, brief=brief, temperature=temperature, max_new_tokens=max_new_tokens, seed=seed, device=device)


def _check(device: str = "auto", **numbers: tuple[float, float]) -> None:
    """Refuse a device nobody has, and numbers (value, least) that are too small, before anything is loaded."""
    if not DEVICES.fullmatch(device):
        raise ConfigError(f"--device {device!r}: expected auto, cpu, cuda, cuda:<number> or mps")
    for name, (value, least) in numbers.items():
        if not value >= least:
            raise ConfigError(f"--{name.replace('_', '-')} {value}: expected at least {least:g}")


def doctor() -> None:
    """Print what a bug report needs: versions, devices, threads, which keys are set (never their values), weights."""
    from dialoom.doctor import examine

    for name, found in examine():
        print(f"{name:<24}{found}")


def build_pocket(*names: Literal["pocket", "pocket-small"], out: Path | None = None, seed: int | None = None,
                 steps: int | None = None, threads: int | None = None) -> None:
    """Build the embedded models from the grammar and fact tables; a build that was stopped goes on.

    Args:
        names: which; both where none is named.
        out: where to. Without it: into the package.
        seed: another seed than the card's.
        steps: another number of optimiser steps than the card's.
        threads: torch threads.
    """
    from dialoom.config import load_config
    from dialoom.models.load import WEIGHTS
    from dialoom.recipes.pocket import PRESETS, PocketConfig
    from dialoom.recipes.pocket_card import build_with_card

    given = {"seed": seed, "steps": steps, "threads": threads}
    overrides = {field: value for field, value in given.items() if value is not None}
    for name in names or list(PRESETS):
        config = load_config(PocketConfig, PRESETS[name], None, overrides)
        say(f"{name}: {build_with_card(config, out or WEIGHTS, say)}")


def pocket_card(name: Literal["pocket", "pocket-small"] = "pocket", /) -> None:
    """Print how an embedded model was made and how good it is.

    Args:
        name: which.
    """
    from dialoom.models.load import WEIGHTS

    card = WEIGHTS / name / "README.md"
    if not card.is_file():
        raise ConfigError(f"{name} has no card ({card} is missing); build it with `dialoom pocket build`")
    print(card.read_text(encoding="utf-8").rstrip())


def check_personas(training: Path, evaluation: Path, /, *, part: Literal["both", "profile", "personality"] = "both",
                   embedding: str = "ngrams", threshold: float | None = None, device: str = "auto") -> None:
    """Say which personas for evaluation are in training as well, or nearly; exit code 2 if any is.

    Args:
        training: JSON lines of personas, profiles or personalities.
        evaluation: the same for evaluation.
        part: what of a persona to compare.
        embedding: ngrams, ngrams:<low>-<high>, st:<sentence-transformers name> or hidden:<model>.
        threshold: the cosine above which two are the same. Without it: stored beside TRAINING, or calibrated on it.
        device: cpu, cuda, mps or auto.
    """
    from dialoom.errors import DataError
    from dialoom.recipes.persona_check import check_files
    from dialoom.scenarios.personas import KINDS

    one_thread_for_pocket(embedding.removeprefix("hidden:"))
    _check(device)
    found = check_files(training, evaluation, embedding=embedding, threshold=threshold, device=device, log=say,
                        parts=KINDS if part == "both" else [part])
    if found:
        raise DataError(f"{evaluation}: {len(found)} of its texts stand in {training}, or nearly; remove them from one")


# --------------------------------------------------------------------------------------- signals, warnings


@contextmanager
def _stoppable() -> Iterator[None]:
    def terminate(*_: object) -> None:
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, terminate)
    except ValueError:  # not the main thread: signals are somebody else's
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _plain_warnings() -> Iterator[None]:
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"note: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


if __name__ == "__main__":
    sys.exit(main())
