"""What the model of a run was trained on, whatever the recipe: pairs, single turns to imitate, or both.

The surprising choice: targets to imitate are told apart by the turn, so a reply that won over two others, or that was
drawn twice to fill an arm, is one row.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dialoom.cli import RECIPES
from dialoom.config import Config, load_config, near_miss
from dialoom.errors import ConfigError, DataError, StoreError
from dialoom.files import read_json
from dialoom.recipes.run import read_results
from dialoom.select import Example, Pair
from dialoom.store import read_rows

GUARD = "guard"
"""The arm of a DAT run that is its hardened defender."""


@dataclass(frozen=True)
class Run:
    """A run folder that is read only.

    Attributes:
        config: its settings; for a recipe of another version of Dialoom this is refused, not guessed.
        environment: its `env.json`.
        results: the rows of its `results.json`, if there are any.
    """

    path: Path
    recipe: str
    config: Config
    environment: Mapping[str, Any]
    results: Sequence[Mapping[str, Any]]

    @classmethod
    def read(cls, path: Path) -> Run:
        """The run in a folder. Raises StoreError if there is none."""
        if not (path / "config.yaml").is_file() or not (path / "env.json").is_file():
            raise StoreError(f"{path}: holds no run (no config.yaml and env.json); give the folder that a recipe's "
                             "--out named")
        environment = read_json(path / "env.json", dict)
        recipe = str(environment.get("recipe"))
        if recipe not in RECIPES:
            raise StoreError(f"{path}: a run of {recipe!r}, which has nothing to export; expected one of "
                             f"{', '.join(RECIPES)}")
        start: Config = next(iter(importlib.import_module(f"dialoom.recipes.{recipe}").PRESETS.values()))
        config = load_config(type(start), start, path / "config.yaml")
        results = read_results(path / "results.json")
        return cls(path, recipe, config, environment, results)

    @property
    def has_user_data(self) -> bool:
        """Whether the user's own files took part."""
        return bool(self.environment.get("data_hash"))

    @property
    def models(self) -> list[str]:
        """Every model that the settings name."""
        kinds = ("pocket", "hf:", "openai:", "run:")
        values = [value for value in self.config.values().values() if isinstance(value, str | list)]
        flat = [text for value in values for text in ([value] if isinstance(value, str) else map(str, value))]
        return sorted({text for text in flat if text.startswith(kinds)})


@dataclass(frozen=True)
class Trained:
    """What a model learned from.

    Attributes:
        pairs: what it was to prefer; none where the recipe imitates only.
        examples: what it was to imitate, each with exactly one marked message.
        arms: the names that `--arm` may give.
    """

    pairs: Sequence[Pair]
    examples: Sequence[Example]
    arms: Sequence[str] = ()


def trained(run: Run, arm: str = "") -> Trained:
    """What the model of a run (or of one of its arms) was trained on.

    Raises:
        StoreError: if the run has not come so far.
        ConfigError: if there is no such arm.
    """
    return {"pbt": _pbt, "aloe": _aloe, "ideas": _ideas, "ditto": _ditto, "dat": _dat}[run.recipe](run, arm)


def spec_of(run: Run, arm: str = "") -> str:
    """The model that a run (or one of its arms) trained, or steers, as the settings name it."""
    if run.recipe == "dat" and arm == GUARD:
        return str(getattr(run.config, "partner", "")) or "pocket-guard"
    return str(getattr(run.config, "model", ""))


def single_targets(example: Example) -> list[Example]:
    """An example with several marked messages as one for each, cut behind its message."""
    if len(example.train_on) == 1 and example.train_on[0] == len(example.chat) - 1:
        return [example]
    return [replace(example, id=f"{example.id}/{at}", chat=example.chat[:at + 1], train_on=(at,))
            for at in example.train_on]


def preferred(pairs: Sequence[Pair]) -> list[Example]:
    """The preferred reply of each pair as a target, every turn once, under the turn's id where it is known."""
    found: dict[str, Example] = {}
    for pair in pairs:
        name = str(pair.notes.get("chosen_turn") or pair.id)
        notes = {key: value for key, value in pair.notes.items() if not key.startswith(("rejected_", "chosen_"))}
        if pair.score_chosen is not None:
            notes["score"] = pair.score_chosen
        found.setdefault(name, replace(Example.from_pair(pair), id=name, notes=notes))
    return list(found.values())


# ------------------------------------------------------------------------------------------------ by recipe


def _pbt(run: Run, arm: str) -> Trained:
    from dialoom.recipes.pbt import ARMS
    from dialoom.recipes.pbt_config import PBTConfig
    from dialoom.recipes.pbt_pairs import arm_pairs

    assert isinstance(run.config, PBTConfig)
    _known(arm, ARMS)
    pairs = arm_pairs(run.config, _pairs(run), run.config.model)[arm or "pbt"]
    distinct = list({pair.id: pair for pair in pairs}.values())  # a short arm draws its pairs again
    return Trained(distinct, preferred(distinct), list(ARMS))


def _aloe(run: Run, arm: str) -> Trained:
    from dialoom.recipes.aloe import AloeConfig, training_set

    assert isinstance(run.config, AloeConfig)
    _known(arm, ())
    pairs = _pairs(run)
    general = [one for one in training_set(run.config, run.path, "preferred") if one.id.startswith("general/")]
    return Trained(pairs, [*preferred(pairs), *(part for one in general for part in single_targets(one))])


def _ditto(run: Run, arm: str) -> Trained:
    pairs = _pairs(run)
    authors = sorted({str(pair.notes.get("author", "")) for pair in pairs})
    _known(arm, authors)
    pairs = [pair for pair in pairs if not arm or pair.notes.get("author") == arm]
    return Trained(pairs, preferred([pair for pair in pairs if pair.kind == "expert"]), authors)


def _ideas(run: Run, arm: str) -> Trained:
    from dialoom.dialogue import chat_view
    from dialoom.evals.alignment_roles import ASSISTANT
    from dialoom.recipes.ideas import LEARNED, IdeasConfig, data_sets

    assert isinstance(run.config, IdeasConfig)
    _known(arm, run.config.arms)
    if not (run.path / "stages" / "deduce.json").is_file():
        raise StoreError(f"{run.path}: its deduction is not finished; run the same command again")
    found = []
    for dialogue in data_sets(run.config, run.path)[arm or LEARNED]:
        chat = chat_view(dialogue, ASSISTANT, run.config.neutral or None)
        places = [at for at, message in enumerate(chat) if message["role"] == "assistant"]
        for at, turn in zip(places, dialogue.by(ASSISTANT), strict=True):
            scores = {f"score_{name}": value for name, value in turn.scores.items()}
            notes = {"parent": turn.parent, "speaker": turn.speaker, "scenario": dialogue.scenario.id, **scores}
            found.append(Example(turn.id, chat[:at + 1], (at,), arm or LEARNED, dialogue.scenario.id, notes))
    return Trained((), found, run.config.arms)


def _dat(run: Run, arm: str) -> Trained:
    """What a defender was hardened on; a planner learns from no rows."""
    from dialoom.recipes.dat import DatConfig

    assert isinstance(run.config, DatConfig)
    _known(arm, (GUARD,))
    guard = f"--arm {GUARD} has what the defender was hardened on" if run.config.harden else (
        f"only a run with --harden has any, as --arm {GUARD}")
    if not run.config.harden or not arm:
        raise StoreError(f"{run.path}: a planner learns from what its actions earned (replay.bin), not from rows; "
                         f"--to model exports it, {guard}")
    pairs = _pairs(run, "harden/")
    return Trained(pairs, preferred(pairs), (GUARD,))


def _known(arm: str, arms: Sequence[str] | Mapping[str, Any]) -> None:
    if arm and arm not in arms:
        expected = near_miss(arm, arms) if arms else "this recipe trains on one set; leave it out"
        raise ConfigError(f"--arm {arm!r}: {expected}")


def _pairs(run: Run, part: str = "") -> list[Pair]:
    path = run.path / f"{part}pairs.jsonl"
    if not path.is_file():
        raise StoreError(f"{run.path}: holds no pairs yet (no {part}pairs.jsonl); run the same command again until "
                         "they are cut")
    pairs = [Pair.from_row(row, f"{path}:{line}") for line, row in enumerate(read_rows(path), 1)]
    if not pairs:
        raise DataError(f"{path}: holds no pair, so there is nothing to export; look at dropped.json")
    return pairs
