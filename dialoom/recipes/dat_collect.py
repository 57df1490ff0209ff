"""What DAT learns from: the model's own replies for cloning, and dialogues under varied actions for the planner.

A steered speaker is an ordinary speaker. The states and actions of its turns are planned again once all was said, by
the turns' ids, which are the keys of its replies: so a killed collection ends with the replay of an undisturbed one.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dialoom.dialogue import Chat, Dialogue, Scenario, Turn
from dialoom.errors import DataError
from dialoom.evals.persuasion import Log
from dialoom.models.base import Sampling
from dialoom.models.exploration import Exploration
from dialoom.models.steering import SteeredModel, Steering
from dialoom.progress import quiet
from dialoom.recipes.dat_config import DatConfig
from dialoom.recipes.dat_side import PLAYER, Side
from dialoom.simulate import Speaker
from dialoom.store import TreeLog
from dialoom.train.cloning import Reply, own_replies
from dialoom.train.replay import Episode, Replay

if TYPE_CHECKING:
    from dialoom.models.local import LocalModel

Taken = tuple[Tensor, Tensor]
"""(width,) state and (action,) action of one turn."""


def taken(model: SteeredModel, speaker: Speaker, dialogues: Sequence[Dialogue], seed: int) -> list[list[Taken]]:
    """States and actions of the steered speaker's turns of each dialogue.

    All are planned anew, dialogue by dialogue: what was said before a kill and what after it were read in other
    batches, and so to other last digits.
    """
    asked = [(turn.id, chat) for one in dialogues for turn, chat in turns_of(speaker, one, seed)]
    keys, chats = [key for key, _ in asked], [chat for _, chat in asked]
    plan = model.plan(chats, keys, anew=True)
    found = dict(zip(keys, zip(plan.states, plan.actions, strict=True), strict=True))
    return [[found[turn.id] for turn in one.by(PLAYER)] for one in dialogues]


def turns_of(speaker: Speaker, dialogue: Dialogue, seed: int = 0) -> list[tuple[Turn, Chat]]:
    """The speaker's turns, each with the chat it was said to."""
    return [(turn, speaker.requests(Dialogue(dialogue.scenario, dialogue.turns[:at]), seed)[0].chat)
            for at, turn in enumerate(dialogue.turns) if turn.speaker == speaker.name]


# ------------------------------------------------------------------------------------------------ replies to clone


def replies_of(config: DatConfig, model: LocalModel, side: Side, sink: TreeLog, log: Log = quiet) -> list[list[Reply]]:
    """What the model itself says at places of its unsteered training dialogues: several replies to each prompt.

    Prompts to which it gave an empty reply are left out.
    """
    speaker = side.speaker(model)
    played = side.play(speaker, side.partner, side.scenes["train"], seed=config.seed, label="unsteered", sink=sink,
                       log=log)
    chats = [chat for one in played for _, chat in turns_of(speaker, one)]
    rng = random.Random(f"prompts:{config.seed}")
    chats = rng.sample(chats, min(config.clone.prompts, len(chats)))
    count = config.clone.replies
    sampling = Sampling(config.clone.temperature, max_new_tokens=config.max_new_tokens)
    found: list[list[Reply]] = []
    for start in range(0, len(chats), 128):
        part = chats[start:start + 128]
        log("replies to clone", start, len(chats))
        said = [own_replies(model, part, sampling, [f"own/{config.seed}/{start + at}/{own}" for at in range(len(part))])
                for own in range(count)]
        by_prompt: dict[tuple[int, ...], list[Reply]] = {}
        for one in (one for own in said for one in own):
            by_prompt.setdefault(one.prompt, []).append(one)
        found += [own[:count] for own in by_prompt.values() if len(own) >= count]
    return found


# ------------------------------------------------------------------------------------------------ dialogues to learn


def exploring(config: DatConfig, norm: float, turn: int = 1) -> Exploration:
    """How the actions of a pass are varied: everywhere, or around the planner so far, which the first pass has not.

    Everywhere are the corners of a coded mapping (with noise), the whole sphere of another.
    """
    if turn > 1 and config.exploration == "around":
        return Exploration("around", config.noise, norm, config.explore)
    share = 1.0 if turn == 1 else config.explore
    return Exploration("corners" if config.mapping == "coded" else "uniform", config.noise, norm, share)


def explore(config: DatConfig, model: LocalModel, steering: Steering, side: Side, replay: Replay, turn: int, *,
            norm: float, sink: TreeLog, log: Log = quiet) -> int:
    """Play the training scenes under varied actions and append what was lived to the replay; returns how many.

    Args:
        turn: number of the pass; from the second on, `steering` has the planner so far.
    Raises: DataError: if no dialogue got a verdict.
    """
    steered = SteeredModel(model, steering, exploration=exploring(config, norm, turn))
    speaker, written = side.speaker(steered), 0
    for again in range(config.episodes):
        seed = ((config.seed * 100 + turn) * 100 + again) * 100 + config.collector
        played = side.play(speaker, side.partner, side.scenes["train"], seed=seed, label=f"pass {turn}", sink=sink,
                           log=log)
        written += replay.append(episodes(side, taken(steered, speaker, played, seed), played))
    if not len(replay):
        raise DataError(f"none of {len(side.scenes['train']) * config.episodes} dialogues got a verdict, so there is "
                        "nothing to learn from; look at the judge")
    return written


def episodes(side: Side, taken: Sequence[Sequence[Taken]], played: Sequence[Dialogue]) -> list[Episode]:
    """Dialogues as the planner lived them; those without a verdict, or in which it said nothing, are left out."""
    found = []
    for steps, one in zip(taken, played, strict=True):
        earned = side.earned(one)
        if steps and earned is not None:
            found.append(Episode(one.last.id, torch.stack([state for state, _ in steps]).cpu().numpy(),
                                 torch.stack([action for _, action in steps]).cpu().numpy(),
                                 np.asarray(earned, np.float32)))
    return found


def some(scenes: Sequence[Scenario], count: int) -> list[Scenario]:
    """About `count` scenes, evenly out of all."""
    return list(scenes[::max(1, len(scenes) // count)][:count])
