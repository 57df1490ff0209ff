"""The command line: `dialoom <recipe> [STAGE]`, and the plain commands (`dialoom/commands.py`) beside it.

A recipe's flags are made from its Config. Only what a command needs is imported, so `dialoom --help` loads no torch.
What Dialoom raises on purpose is printed as one line, `error: ...`, with exit code 2 (`DIALOOM_TRACEBACK=1` shows where
it came from); a spent budget gives 3, Ctrl-C 130 and SIGTERM 143, and the same command continues.
"""

from __future__ import annotations

import errno
import importlib
import importlib.metadata
import inspect
import io
import os
import signal
import sys
import types
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, CycloptsError, Group, Parameter, UnknownOptionError, UnusedCliTokensError

from dialoom.commands import COMMANDS, check, is_launched, one_thread_for_pocket, say
from dialoom.errors import BudgetError, ConfigError, DialoomError
from dialoom.usage import FIRST, examples, presentable, rooms_of, settings_group

if TYPE_CHECKING:
    from dialoom.config import Config

RECIPES = {"pbt": "Debate trees teach when to give in and when to hold (arXiv 2410.14596).",
           "ditto": "A handful of your own texts teaches a model to write like you (arXiv 2406.00888).",
           "aloe": "Talking with simulated people teaches to notice who is talking and adapt (arXiv 2410.03642).",
           "ideas": "Real dialogues show how people go on; simulated users then go on like them (arXiv 2404.11095).",
           "dat": "A small planner steers a frozen model toward a goal, turn by turn (arXiv 2406.11978)."}
GROW = "Grow pools of profiles and personalities out of seeds, and combine them (arXiv 2410.03642)."
GROUPS = {"pocket": "The embedded models: build them from their grammar, read their card.",
          "personas": "People for simulated users to play: grow pools of them, check for leaks."}
OPTIONS = ("preset", "config", "out", "fresh", "dry_run")  # what every recipe has besides its own settings
FAILED, SPENT, STOPPED, TERMINATED = 2, 3, 130, 143


class Terminated(KeyboardInterrupt):
    """SIGTERM, as a batch system sends it before it takes the machine away."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that knows no lines and ticks shows question marks

    def command() -> None:
        make_app(tokens)(tokens, exit_on_error=False, print_error=False, result_action="return_none")

    with _stoppable(), _plain_warnings():
        if not is_launched():
            return _exit_code(command)
        from dialoom.train.launched import take_part

        return _exit_code(lambda: take_part(command))


def _exit_code(command: Callable[[], None]) -> int:
    """Run a command; what it raises becomes a line and a number."""
    try:
        command()
    except BudgetError as spent:
        print(f"stopped: {_one_line(spent)}", file=sys.stderr)
        return SPENT
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
    except OSError as wrong:  # a name no file can have, a folder that may not be entered
        if os.environ.get("DIALOOM_TRACEBACK"):
            raise
        print(f"error: {_failed(wrong)}", file=sys.stderr)
        return FAILED
    return 0


NEXT_STEPS = {
    "make room there, then the same command goes on": (errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    "give a place that you may read and write": (errno.EACCES, errno.EPERM, errno.EROFS),
    "give a shorter name": (errno.ENAMETOOLONG,),
    "give a file": (errno.EISDIR,), "give a folder": (errno.ENOTDIR,), "check the path": (errno.ENOENT, errno.EINVAL),
    "close some programs, or raise `ulimit -n`; then the same command goes on": (errno.EMFILE, errno.ENFILE)}


def _failed(wrong: OSError) -> str:
    """What the system refused, about which file, and what to do."""
    step = next((step for step, codes in NEXT_STEPS.items() if wrong.errno in codes),
                "see to the disk or the network, then the same command goes on")
    where = f": {wrong.filename!r:.200}" if wrong.filename else ""
    return f"{wrong.strerror or wrong}{where}; {step}"


def make_app(tokens: Sequence[str] = (), *, everything: bool = False) -> App:
    """All commands; of the recipes only the one that `tokens` start with is imported, the others are just named.

    Args:
        everything: build all recipes with their flags.
    """
    app = App(name="dialoom", version=version, help_format="plaintext", suppress_keyboard_interrupt=False,
              help="Align language models through conversation: simulate, score, select, train, evaluate.",
              help_epilogue=FIRST)
    rooms = rooms_of((*RECIPES, *COMMANDS, "resume", "completion"), RECIPES)
    for name, line in RECIPES.items():
        app.command(_recipe_command(name, line) if name in tokens[:1] or everything else _named(line), name=name,
                    group=rooms[name], help_epilogue=examples(name), usage=f"Usage: dialoom {name} [STAGE] [OPTIONS]")
    groups = {name: App(name=name, help=text, group=rooms[name], help_epilogue="") for name, text in GROUPS.items()}
    plain: dict[str, Callable[..., Any]] = {**COMMANDS, "resume": resume, "completion": completion}
    for typed, command in plain.items():
        group, _, name = typed.rpartition(" ")
        room: dict[str, Any] = {} if group else {"group": rooms[name]}
        where = groups[group] if group else app
        where.command(presentable(command), name=name, help_epilogue=examples(typed), **room)
    groups["personas"].command(_recipe_command("personas", GROW) if everything or tokens[:2] == ["personas", "grow"]
                               else _named(GROW), name="grow")
    for each in groups.values():
        app.command(each)
    for flag in ("--help", "--version"):
        app[flag].group = (rooms["doctor"],)
    return app


def _one_line(wrong: Exception) -> str:
    if isinstance(wrong, UnusedCliTokensError):
        return f"unexpected argument {(wrong.unused_tokens or ['?'])[0]!r}; see --help"
    line = " ".join(str(wrong).split())
    if isinstance(wrong, UnknownOptionError) and "Did you mean" not in line:
        return f"{line.rstrip('.')}; see --help"
    return line


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
    actions = " and ".join(f"{name} {action} RUN" for action in getattr(recipe, "ACTIONS", ()))
    command.__doc__ = (f"{line}\n\nStages: {stages}. Without STAGE all are done; what was done before is loaded."
                       + f" {actions} work on a run that is there." * bool(actions))
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
                              annotation=Annotated[str | None, Parameter(help="Go as far as this stage.")])
    actions = getattr(recipe, "ACTIONS", ())
    folder = Parameter(help=f"The run's folder, for {' and '.join(actions)}.")
    run = inspect.Parameter("run", inspect.Parameter.POSITIONAL_ONLY, default=None,
                            annotation=Annotated[Path | None, folder])
    kept = [_keyword(option, *texts[option], settings_group("Run")) for option in OPTIONS]
    return [stage, *([run] if actions else []), *kept]


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
    return _keyword(key, kind, about, settings_group(".".join(parts)))


def _keyword(name: str, kind: Any, about: Parameter, group: Group) -> inspect.Parameter:
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
    from dialoom.recipes.planned import check_templates, how_long
    from dialoom.recipes.run import RunFolder, default_folder, hash_data
    from dialoom.recipes.shards import shard_folder
    from dialoom.tracking import check_tracker, tracked

    if stage is not None and stage not in recipe.STAGES:
        raise ConfigError(f"{name} has no stage {stage!r}; {near_miss(stage, recipe.STAGES)}")
    preset = options["preset"] or next(iter(recipe.PRESETS))
    if preset not in recipe.PRESETS:
        raise ConfigError(f"{name} has no preset {preset!r}; {near_miss(preset, recipe.PRESETS)}")
    start = recipe.PRESETS[preset]
    config = load_config(type(start), start, options["config"], values)
    one_thread_for_pocket(*(str(getattr(config, role, "")) for role in ("model", "partner", "simulator")))
    check(getattr(config, "device", "auto"))
    tracker = getattr(config, "report_to", "none")
    check_tracker(tracker)
    if is_launched() and getattr(config, "device_map", "none") != "none":
        raise ConfigError("--device-map spreads a model over all GPUs, and so do several processes; leave it out, or "
                          "run the same command without a launcher")
    data_hash = recipe.data_hash(config) if hasattr(recipe, "data_hash") else hash_data(
        getattr(config, "data", None) or None)
    out = shard_folder(options["out"] or default_folder(name, config, data_hash), getattr(config, "shard", ""))
    asked = _asked_of_endpoints(recipe, config)
    if options["dry_run"]:
        _print_plan(recipe.plan(config), out)
        print(*asked, sep="\n", end="\n" * bool(asked))
        return
    if asked:  # endpoints are paid, and what they say is of no use to a model that cannot talk
        check_templates(config, whole=stage is None)
    with RunFolder(out, name, config, data_hash=data_hash, fresh=bool(options["fresh"]), log=say) as folder:
        say(f"run folder: {folder.path}")
        for line in [*how_long(recipe.plan(config), stages_of(recipe, stage)), *asked]:
            say(line)
        try:
            with tracked(tracker, folder.path, config.values()):
                recipe.run(config, folder, stages_of(recipe, stage), say)
        except BaseException:
            with suppress(Exception):  # what stopped the run is what has to be told
                _report_so_far(folder.path)
            raise
        finally:
            for line in folder.ledger.told():
                say(line)
        _report(folder.path)


def _asked_of_endpoints(recipe: Any, config: Any) -> list[str]:
    """What a run will ask of endpoints at most, in lines; refuses what could not even be asked."""
    from dialoom.recipes.planned import told

    return told(recipe.roles(config), config.endpoint) if hasattr(recipe, "roles") else []


def resume(run: Path, /, *, budget: float = 0, token_budget: int = 0) -> None:
    """Go on with a run from its folder alone, with the settings it was begun with.

    Args:
        run: the run's folder.
        budget: dollars that endpoints may cost from now on, what is gone already included; 0: as before.
        token_budget: tokens that they may read and write, likewise.
    """
    from dialoom.config import read_yaml
    from dialoom.recipes.run import recipe_of
    from dialoom.recipes.shards import FOLDER

    name = recipe_of(run)
    grown = name == "personas"
    if name not in RECIPES and not grown:
        raise ConfigError(f"{run} is a run of {name!r}, which is no recipe here; expected one of {', '.join(RECIPES)}")
    out = run.parent.parent if read_yaml(run / "config.yaml").get("shard") and run.parent.name == FOLDER else run
    options = {"preset": None, "config": run / "config.yaml", "out": out, "fresh": False, "dry_run": False}
    caps = {"endpoint.budget": budget, "endpoint.token_budget": token_budget}
    check(budget=(budget, 0), token_budget=(token_budget, 0))
    run_recipe(name, importlib.import_module(f"dialoom.recipes.{name}"), None, options,
               {name: cap for name, cap in caps.items() if cap})


def completion(shell: Literal["bash", "zsh", "fish", "powershell"] = "bash", /) -> None:
    """Print a script that lets the shell complete commands and flags; put it where your shell looks for such.

    Args:
        shell: whose script.
    """
    print(make_app(everything=True).generate_completion(prog_name="dialoom", shell=shell))


def _report_so_far(folder: Path) -> None:
    """The page of a run that was stopped, if anything was said in it."""
    from dialoom.report import write_report
    from dialoom.report.read import logs

    if any(path.stat().st_size for path in logs(folder)):
        say(f"report so far: {write_report(folder)}")


def _report(folder: Path) -> None:
    """The tables in the terminal, and where the page lies."""
    from dialoom.report import results_table, write_report
    from dialoom.report.read import read_results

    page, results = write_report(folder), folder / "results.json"
    if results.exists():
        say(results_table(read_results(results), markdown=False).rstrip())
    say(f"report: {page}")


def stages_of(recipe: Any, stage: str | None) -> tuple[str, ...]:
    """The stages up to and with `stage` (None: all); earlier ones that were done are only loaded."""
    stages: tuple[str, ...] = tuple(recipe.STAGES)
    return stages if stage is None else stages[:stages.index(stage) + 1]


def _print_plan(rows: Sequence[Mapping[str, Any]], out: Path) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [columns, *([_cell(row.get(column, "")) for column in columns] for row in rows)]
    widths = [max(len(line[at]) for line in cells) for at in range(len(columns))]
    for line in cells:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
    print(f"run folder: {out}{' (holds a run)' if (out / 'config.yaml').exists() else ''}")


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int | float) else str(value)


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
