"""`dialoom export`: one folder with the rows or the model, the card, and the settings that made them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dialoom.config import near_miss
from dialoom.dialogue import Chat
from dialoom.errors import ConfigError, StoreError
from dialoom.export import layouts
from dialoom.export.cards import dataset_card, model_card, planner_card, shared_settings
from dialoom.export.layouts import Row
from dialoom.export.trained import GUARD, Run, Trained, spec_of, trained
from dialoom.files import read_json
from dialoom.store import write_whole

Log = Callable[[str], None]
LAYOUTS: Mapping[str, Callable[[Trained, Log], list[Row]]] = {
    "trl": layouts.preference_rows, "sft": layouts.sft_rows, "kto": layouts.kto_rows,
    "sharegpt": layouts.sharegpt_rows, "parquet": layouts.preference_rows}
"""What `--to` takes besides `model`, and who makes the rows."""
MODEL = "model"
STEERING = "steering.json"  # what makes a folder a planner's
SETTINGS = "run.yaml"
TRL_LENGTH = 1024  # TRL's trainers cut rows at this length unless told otherwise
MARKS = 4  # tokens of a template around a message; only for saying how long rows are


def export_run(run: str | Path, to: str, out: str | Path, *, arm: str = "", merge: bool = False, licence: str = "",
               log: Log = print) -> Path:
    """Write what a run learned from, or what it trained, into a folder of its own with a card.

    Args:
        to: one of `LAYOUTS`, or `model`.
        out: a new or empty folder, or one that an export has made before.
        arm: another training set or model of the run than its main one.
        merge: `model` only: add an adapter into its base's weights.
        licence: for the card; "" is worked out where it can be.
        log: told what was written and what to look out for.
    Returns: the data file, or the folder of a model.
    Raises: ConfigError, StoreError, DataError: before anything is written.
    """
    if to not in (*LAYOUTS, MODEL):
        raise ConfigError(f"--to {to!r}: {near_miss(to, (*LAYOUTS, MODEL))}")
    if merge and to != MODEL:
        raise ConfigError(f"--merge is for --to model, not for --to {to}")
    if to == "parquet":
        layouts.need_pyarrow()
    source, folder = Run.read(Path(run)), Path(out)
    _claim(folder, source.path)
    more = f" --arm {arm}" if arm else ""
    if to == MODEL:
        return _export_model(source, folder, arm, merge, more + (" --merge" if merge else ""), licence, log)
    rows = LAYOUTS[to](trained(source, arm), log)
    size = layouts.longest(rows, _counter(source))
    folder.mkdir(parents=True, exist_ok=True)
    path = (layouts.write_parquet if to == "parquet" else layouts.write_jsonl)(folder, rows)
    told = f"The longest row has about {size:,} tokens."
    card = dataset_card(source, arm, to=to, more=more, run_file=SETTINGS, file=path, rows=len(rows),
                        kinds=layouts.kinds_of(rows), longest=told, licence=licence)
    _beside(source, folder, card)
    log(f"{len(rows):,} rows in {path}")
    if size > TRL_LENGTH and to != "sharegpt":
        log(f"{told} TRL cuts rows at max_length {TRL_LENGTH:,} unless told otherwise, and what it cuts is the end, "
            "which is the trained turn: give it a larger max_length")
    return path


def _claim(folder: Path, run: Path) -> None:
    """Refuse a folder that holds something else."""
    if folder.resolve() == run.resolve():
        raise ConfigError(f"--out {folder}: is the run's own folder; give another one")
    if folder.exists() and not folder.is_dir():
        raise StoreError(f"{folder}: is a file; give a folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / SETTINGS).is_file():
        raise StoreError(f"{folder}: holds files that no export made; give another --out")


def _beside(run: Run, folder: Path, card: str) -> None:
    write_whole(folder / SETTINGS, shared_settings(run))
    write_whole(folder / "README.md", card)


def _counter(run: Run) -> Callable[[Chat], int]:
    """Counts a chat's tokens with the tokenizer of what the run trained; without one, four letters a token."""
    found = next((part for part in run.path.glob("*/tokenizer.json")), None) or next(
        (part for place in ("a*/*/**", "harden/*") for part in run.path.glob(f"{place}/tokenizer.json")), None)
    if found is None:
        return lambda chat: sum(len(message["content"]) // 4 + MARKS for message in chat)
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(found))
    except Exception as wrong:  # noqa: BLE001 - tokenizers has no error of its own
        raise StoreError(f"{found}: is no tokenizer that can be read ({str(wrong)[:120]}); copy that of the model the "
                         "run began from over it") from None
    known: dict[str, int] = {}

    def length(text: str) -> int:
        if text not in known:
            known[text] = len(tokenizer.encode(text, add_special_tokens=False).ids) + MARKS
        return known[text]

    return lambda chat: sum(length(message["content"]) for message in chat)


# ------------------------------------------------------------------------------------------------ models


def model_folders(run: Path) -> dict[str, Path]:
    """What a run trained, by arm; "" is its main model, or its planner. An author of DITTO is an arm."""
    found: dict[str, Path] = {}
    places = {"": run, **{path.name: path for part in ("arms", "authors") for path in sorted((run / part).glob("*"))},
              GUARD: run / "harden" / GUARD}
    for arm, place in places.items():
        for at in (place / "model", place / "adapter", place / "planner", *([place] if arm else [])):
            if any((at / name).is_file() for name in ("config.json", "adapter_config.json", STEERING)):
                found[arm] = at
                break
    return found


def _export_model(run: Run, folder: Path, arm: str, merge: bool, more: str, licence: str, log: Log) -> Path:
    held = model_folders(run.path)
    if arm not in held:
        names = [name for name in held if name]
        expected = near_miss(arm, names) if arm and names else f"--arm may be {', '.join(names)}" if names else (
            "let its training finish first")
        raise StoreError(f"{run.path}: holds no trained model{f' of arm {arm!r}' if arm else ''}; {expected}")
    source, about = held[arm], {"more": more, "run_file": SETTINGS, "licence": licence}
    if (source / STEERING).is_file():
        if merge:
            raise ConfigError("--merge adds an adapter into the weights below it, and a planner is none; leave it out")
        _copy(source, folder)
        _beside(run, folder, planner_card(run, **about))
        log(f"planner in {folder}")
        return folder
    adapter = _settings(source / "adapter_config.json") if (source / "adapter_config.json").is_file() else None
    begun_from = spec_of(run, arm).removeprefix("hf:")
    base = str(adapter["base_model_name_or_path"]) if adapter else begun_from
    if merge and adapter is not None:
        folder.mkdir(parents=True, exist_ok=True)
        _merge(source, folder)
        adapter = None
    else:
        if merge:
            log(f"{source} is a whole model already; there is nothing to merge")
        _copy(source, folder)
    _beside(run, folder, model_card(run, arm, folder=folder, base=base, adapter=adapter, **about))
    log(f"{'adapter' if adapter else 'model'} in {folder}")
    return folder


def _copy(source: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted(source.iterdir()):
        if file.suffix in (".safetensors", ".json", ".jinja"):
            shutil.copyfile(file, folder / file.name)


def _merge(source: Path, folder: Path) -> None:
    from dialoom.models.load import load_model
    from dialoom.models.local import LocalModel

    model = load_model(f"run:{source}", device="cpu")
    assert isinstance(model, LocalModel)
    model.merge()
    model.save(folder)


def _settings(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_json(path, dict)
    if not found.get("base_model_name_or_path"):
        raise StoreError(f"{path}: names no base model (base_model_name_or_path); add it")
    return found
