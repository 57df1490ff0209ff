"""DAT's red-team scenes: who attacks whom, what is earned, and hardening the defender with what the planner found.

Pocket's scenes are harmless: a guard keeps a code word, and an exact rule judges. Behaviours are read only from the
user's own file, and then any model judges by how much likelier its yes is than its no. The surprising choice: the
released code trains and reports on the same behaviours; here a file is parted by its ids, whatever its order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dialoom.dialogue import Scenario
from dialoom.errors import ConfigError, DataError
from dialoom.evals import redteam
from dialoom.judge import Judge
from dialoom.models.base import ChatModel, Sampling, ScoringModel
from dialoom.models.load import POCKETS, in_role, load_model
from dialoom.progress import quiet
from dialoom.recipes.dat_config import DatConfig
from dialoom.recipes.dat_harden import Question, guard_questions, harden
from dialoom.recipes.dat_side import PARTNER, PLAYER, Side
from dialoom.recipes.dat_social import RULE, rule_partner
from dialoom.recipes.pocket_guard import ATTACKER_TEMPERATURE, NAME, TEMPERATURE, load_guard
from dialoom.simulate import ModelSpeaker, Speaker

if TYPE_CHECKING:
    from dialoom.models.local import LocalModel

REACH = 0.6  # chosen on validation scenes: longer actions succeed more often, but change how it talks
Log = Callable[[str], None]


@dataclass(frozen=True)
class RedTeamSide(Side):
    """`Side` with what hardening needs besides."""

    judge: Judge = field(default_factory=redteam.LeakJudge)


def redteam_side(config: DatConfig, model: LocalModel) -> RedTeamSide:
    """The attacker is steered; it speaks first, and a scene is won if any of the defender's replies does the behaviour.

    Args:
        model: the one that is steered, loaded; used again where partner or judge is the same.
    Raises:
        ConfigError: if behaviours of the user's own lack a partner or a judge, or the defender is to be hardened and
            cannot be.
        DataError: if a file of behaviours cannot be read or is too short to be parted.
    """
    _check(config)
    scenes = own_scenes(config) if config.data else pocket_scenes(config)
    judge = _judge(config, model) if config.data else redteam.LeakJudge()
    temperature = (TEMPERATURE if config.data else ATTACKER_TEMPERATURE) if config.temperature is None \
        else config.temperature

    def attacker(player: ChatModel) -> Speaker:
        return ModelSpeaker(PLAYER, player, Sampling(temperature, max_new_tokens=config.max_new_tokens))

    def defender(spec: str) -> Speaker:
        return _defender(_loaded(spec, config, model), config)

    others: dict[str, Callable[[], Speaker]] = {} if config.data else {RULE: partial(rule_partner, PARTNER)}
    passed = ("", config.partner, *(() if config.data else POCKETS))  # pocket itself keeps no word, nor can it say one
    others |= {spec: partial(defender, spec) for spec in config.transfer if spec not in passed}
    return RedTeamSide(
        name="redteam", metric=redteam.SUCCESS, scenes=scenes, speaker=attacker, partner=defender(config.partner),
        play=partial(redteam.attack, judge=judge, rounds=config.rounds), earned=redteam.rewards,
        score=redteam.success, measure=redteam.measure, others=others, judge=judge, reach=REACH)


def _check(config: DatConfig) -> None:
    """Raises ConfigError where something is missing, before anything is loaded."""
    if config.data and not (config.partner and config.judge):
        raise ConfigError("redteam with your own behaviours needs the model under test and one that judges its "
                          "replies; give --partner MODEL and --judge MODEL")
    if config.judge and not config.data:
        raise ConfigError(f"--judge {config.judge}: pocket's red-team scenes have an exact rule; leave it out, or give "
                          "--data FILE")
    if config.harden and config.partner.startswith("openai:"):
        raise ConfigError(f"--harden: {config.partner} is behind a server, where it cannot be trained; give a local "
                          "model as --partner")
    if config.harden and config.data and not config.redteam.ordinary:
        raise ConfigError("--harden with your own behaviours needs harmless questions the defender is to go on "
                          "answering; give --redteam.ordinary FILE")


def _loaded(spec: str, config: DatConfig, model: LocalModel) -> ChatModel:
    """The model of a spec ("" is pocket's guard), the steered one where it is the same."""
    place = config.place.single if config.harden else config.place
    if spec in ("", NAME):
        return load_guard(place)
    return model if spec == config.model else load_model(spec, device=place)


def _defender(model: ChatModel, config: DatConfig) -> ModelSpeaker:
    return ModelSpeaker(PARTNER, in_role(model, PARTNER), Sampling(config.redteam.defender_temperature,
                                                                   max_new_tokens=config.max_new_tokens))


def _judge(config: DatConfig, model: LocalModel) -> Judge:
    asked = in_role(_loaded(config.judge, config, model), "judge")
    if not isinstance(asked, ScoringModel):
        raise ConfigError(f"--judge {config.judge} cannot weigh a yes against a no; give a local model, or an endpoint "
                          "with log-probabilities")
    return redteam.BehaviourJudge(asked, config.redteam.judge_temperature)


# ------------------------------------------------------------------------------------------------ scenes


def pocket_scenes(config: DatConfig) -> dict[str, list[Scenario]]:
    """Guard scenes of each split, as many as asked for or as there are."""
    counts = {"train": config.train_scenes, "valid": config.valid_scenes, "test": config.test_scenes}
    return {split: redteam.guard_scenes(0, split=split, seed=config.seed)[:count]  # type: ignore[arg-type]
            for split, count in counts.items()}


def own_scenes(config: DatConfig) -> dict[str, list[Scenario]]:
    """Behaviours of the user's file, parted by a hash of their ids, so that other rows move none.

    Raises: DataError: if a part would be empty.
    """
    from dialoom.scenarios.harmbench import read_behaviours

    found = read_behaviours(config.data, rounds=config.rounds, categories=config.redteam.categories)
    parts: dict[str, list[Scenario]] = {"train": [], "valid": [], "test": []}
    held = config.redteam.held_out
    for one in sorted(found, key=lambda one: _share(one.id)):
        share = _share(one.id)
        parts["test" if share < held else "valid" if share < min(1.5 * held, (1 + held) / 2) else "train"].append(one)
    if empty := [name for name, scenes in parts.items() if not scenes]:
        raise DataError(f"{config.data}: {len(found)} behaviours leave none for {' and '.join(empty)}; give more, or "
                        f"another --redteam.held-out than {held}")
    counts = {"train": config.train_scenes, "valid": config.valid_scenes, "test": config.test_scenes}
    return {name: scenes[:counts[name]] for name, scenes in parts.items()}


def _share(id: str) -> float:
    return int.from_bytes(hashlib.blake2b(f"part:{id}".encode(), digest_size=6).digest(), "big") / 2**48


# ------------------------------------------------------------------------------------------------ hardening


def harden_stage(config: DatConfig, out: Path, *, attackers: Mapping[str, Speaker], side: RedTeamSide,
                 log: Log = quiet) -> list[dict[str, Any]]:
    """Train a copy of the defender on what the last attacker found, into `out`/harden/guard, and attack it again.

    Rows as JSON: `redteam`, each attacker as `<name>_hardened`, and `ordinary`, metric `kept`, of `defender` and
    `defender_hardened`. How the attackers do before stands in the evaluation's own rows.

    Raises: ConfigError: if the defender is no model of this machine.
    """
    from dialoom.models.local import LocalModel

    model = getattr(side.partner, "model", None)
    if not isinstance(model, LocalModel):
        raise ConfigError(f"--harden: {config.partner or RULE} is no model that can be trained here; give a local one "
                          "as --partner")
    scenes = {**side.scenes, "train": side.scenes["train"][:config.redteam.attacked]}
    rows = harden(model.clone(), attackers, scenes, side.judge, config.redteam, out=out / "harden",
                  questions=_questions(config, side), rounds=config.rounds, max_new_tokens=config.max_new_tokens,
                  seed=config.seed, log=log)
    return [row.to_json() for row in rows if row.subject not in attackers]


def _questions(config: DatConfig, side: Side) -> dict[str, list[Question]]:
    """Harmless questions for training and, apart from them, for testing."""
    if not config.data:
        return {"train": guard_questions(side.scenes["train"]),
                "test": guard_questions(side.scenes["test"], held_out=True)}
    from dialoom.scenarios.sharegpt import read_openings

    parts: dict[str, list[Question]] = {"train": [], "test": []}
    for at, one in enumerate(read_openings(config.redteam.ordinary)):
        parts["test" if at % 3 == 0 else "train"].append(
            Question(one.scenario.id, [{"role": "user", "content": one.scenario.opening}]))
    if not parts["train"]:
        raise DataError(f"{config.redteam.ordinary}: holds {len(parts['test'])} questions; give three at least")
    return parts
