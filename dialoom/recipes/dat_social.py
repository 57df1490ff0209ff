"""DAT's social scenes: two people, private goals, and a judge of how far the steered one got with its own.

Pocket's scenes (bargaining with hidden limits, finding out a taste, winning somebody for a trip) have exact rewards,
and what a round gained is its reward; scenes in Sotopia's layout come from the user's copy, are judged at their end by
any model, and are steered in both roles. The surprising choice: pocket's partner is the world's exact rule, since
pocket itself, playing the partner, tells a tactic from none but hardly one from another.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from dialoom.dialogue import Dialogue, Scenario, content_id
from dialoom.errors import ConfigError, DataError
from dialoom.evals import social
from dialoom.models.base import ChatModel, Sampling
from dialoom.models.load import in_role, load_model
from dialoom.pocket.world import scenes as pocket
from dialoom.recipes.dat_config import DatConfig
from dialoom.recipes.dat_side import PARTNER, PLAYER, Side
from dialoom.simulate import ModelSpeaker, ScriptedSpeaker, Speaker

if TYPE_CHECKING:
    from dialoom.models.local import LocalModel

KINDS = ("bargain", "preference")
"""Pocket's scenes that are social; its guards are for red-teaming."""
RULE = "rule"
TEMPERATURE, REACH = 0.7, 0.8
HELD_OUT, VALID = 0.4, 0.2  # shares of a user's scenes


def social_side(config: DatConfig, model: LocalModel) -> Side:
    """The player is steered, in each role that is measured.

    Args:
        model: the one that is steered, loaded; used again where partner or judge is the same.
    Raises:
        ConfigError: if the user's own scenes lack a judge or a partner, or pocket's are given a judge.
        DataError: if scenes cannot be read or are too few to be parted.
    """
    _check(config)
    judge: social.EndJudge = social.SceneJudge()
    if config.data:
        judge = social.SocialJudge(in_role(_loaded(config.judge, config, model), "judge"))
    sampling = Sampling(TEMPERATURE if config.temperature is None else config.temperature,
                        max_new_tokens=config.max_new_tokens)

    def player(steered: ChatModel) -> Speaker:
        return ModelSpeaker(PLAYER, steered, sampling)

    def partner(spec: str) -> Speaker:
        if spec in ("", RULE):
            return rule_partner(PARTNER)
        playing = in_role(_loaded(spec, config, model), PARTNER)
        return ModelSpeaker(PARTNER, playing, Sampling(TEMPERATURE, max_new_tokens=config.max_new_tokens))

    own = config.partner or ("" if config.data else RULE)
    return Side(
        name="social", metric=social.REWARD, scenes=own_scenes(config) if config.data else pocket_scenes(config),
        speaker=player, partner=partner(own), play=partial(social.play, judge=judge, rounds=config.rounds),
        earned=partial(_earned, judge, config.rounds),
        score=lambda dialogue: social.final_scores(dialogue, judge, config.rounds)[social.REWARD],
        measure=partial(_measure, judge, config.rounds),
        others={spec: partial(partner, spec) for spec in config.transfer if spec not in ("", own)}, reach=REACH)


def _check(config: DatConfig) -> None:
    if config.data and not (config.judge and config.partner):
        raise ConfigError("social scenes of your own need somebody to talk with and a judge of the seven dimensions; "
                          "give --partner MODEL and --judge MODEL")
    if config.judge and not config.data:
        raise ConfigError(f"--judge {config.judge}: pocket's social scenes have an exact rule; leave it out, or give "
                          "--data FOLDER")
    if config.data and RULE in (config.partner, *config.transfer):
        raise ConfigError("partner rule plays pocket's scenes only; give a model for your own")


def _loaded(spec: str, config: DatConfig, model: LocalModel) -> ChatModel:
    return model if spec == config.model else load_model(spec, device=config.place)


def _measure(judge: social.EndJudge, rounds: int, dialogues: Sequence[Dialogue], *, label: str,
             seed: int) -> list[Any]:
    return social.measure(dialogues, judge, label=label, rounds=rounds, seed=seed)


def _earned(judge: social.EndJudge, rounds: int, dialogue: Dialogue) -> list[float] | None:
    """What each turn of the player's gained: in pocket's scenes round by round, else all with the last turn, 0 to 1.

    The gains of a scene add up to its reward, so the best policy is the same.
    """
    final = social.final_scores(dialogue, judge, rounds)[social.REWARD]
    said = len(dialogue.by(PLAYER))
    if not np.isfinite(final) or not said:
        return None
    if dialogue.scenario.facts.get("kind") not in pocket.KINDS:
        low, high = (sum(values) / len(values) for values in
                     zip(*((one.low, one.high) for one in social.DIMENSIONS.values()), strict=True))
        return [0.0] * (said - 1) + [(final - low) / (high - low)]
    first = 0 if dialogue.turns[0].speaker == PLAYER else 1
    ends = [min(len(dialogue.turns), first + 2 * (at + 1)) for at in range(said)]
    so_far = [social.scene_scores(Dialogue(dialogue.scenario, dialogue.turns[:end]))[social.REWARD] for end in ends]
    so_far[-1] = final  # nothing, where the player fell silent afterwards
    return [after - before for before, after in itertools.pairwise([0.0, *so_far])]


# ------------------------------------------------------------------------------------------------ scenes


def pocket_scenes(config: DatConfig) -> dict[str, list[Scenario]]:
    """Scenes of each split, of both kinds equally many; test scenes are none that pocket has read."""
    wanted = {"train": config.train_scenes, "valid": config.valid_scenes, "test": config.test_scenes}
    found: dict[str, list[Scenario]] = {split: [] for split in wanted}
    for at, kind in enumerate(KINDS):
        counts = {split: (count + 1 - at) // 2 for split, count in wanted.items()}
        known = social.pocket_scenes(kind, counts["train"] + counts["valid"], split="train", seed=config.seed)
        found["train"] += known[:counts["train"]]
        found["valid"] += known[counts["train"]:]
        found["test"] += social.pocket_scenes(kind, counts["test"], split="test", seed=config.seed)
    return found


def own_scenes(config: DatConfig) -> dict[str, list[Scenario]]:
    """The scenes of the user's folder, parted by a hash of their environment: no place is in two parts.

    Raises: DataError: if none would be left for training, or for testing.
    """
    from dialoom.scenarios.sotopia import load_sotopia

    parts: dict[str, list[Scenario]] = {"train": [], "valid": [], "test": []}
    scenes = load_sotopia(config.data)
    for one in scenes:
        digest = hashlib.blake2b(f"part:{one.facts['environment']}".encode(), digest_size=6).digest()
        share = int.from_bytes(digest, "big") / 2**48
        parts["test" if share < HELD_OUT else "valid" if share < HELD_OUT + VALID else "train"].append(one)
    if empty := [name for name, part in parts.items() if not part and name != "valid"]:
        raise DataError(f"{config.data}: {len(scenes)} scenes leave none for {' and '.join(empty)}, since they are "
                        "parted by their environments; give more environments")
    counts = {"train": config.train_scenes, "valid": config.valid_scenes, "test": config.test_scenes}
    return {name: part[:counts[name]] for name, part in parts.items()}


def rule_partner(name: str) -> ScriptedSpeaker:
    """Pocket's partner by the exact rule of its world: a partner that no model plays."""
    def line(dialogue: Dialogue, seed: int) -> str:
        one = dialogue.scenario
        roles = list(one.facts["roles"])
        scene = pocket.Scene(one.id, one.facts["kind"], one.opening, roles[0], roles[1], dict(one.briefs),
                             dict(one.facts))
        said = [(roles[at % 2], turn.text) for at, turn in enumerate(dialogue.turns)]
        return pocket.partner_line(scene, said, random.Random(content_id("rule", seed, one.id, len(said))))
    return ScriptedSpeaker(name, line)
