"""What DAT is measured by: subjects in the same held-out scenes under the same seeds, and the language they are left.

`unsteered` is the model itself, `random` draws its actions as the collection does, `constant` is the best of several
constant actions on training scenes, `self_clone` has no action but the clone's prefix, `planner` is what was trained.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dialoom.dialogue import Dialogue
from dialoom.evals.metrics import Row, bootstrap
from dialoom.evals.persuasion import Log
from dialoom.models.base import ChatModel
from dialoom.models.exploration import Exploration, Fixed
from dialoom.models.steering import SteeredModel, Steering, corner, on_sphere
from dialoom.progress import quiet
from dialoom.recipes.dat_collect import exploring, some, taken, turns_of
from dialoom.recipes.dat_config import DatConfig
from dialoom.recipes.dat_side import Side
from dialoom.simulate import Speaker
from dialoom.store import TreeLog

if TYPE_CHECKING:
    from dialoom.models.local import LocalModel

UNSTEERED, PLANNER = "unsteered", "planner"
SUBJECTS = (UNSTEERED, "random", "constant", "self_clone", PLANNER)
LANGUAGE, ACTIONS = "language", "actions"


@dataclass(frozen=True)
class Parts:
    """What subjects are made of: the frozen model, its planner, and the best constant action."""

    model: LocalModel
    steering: Steering
    norm: float
    constant: tuple[float, ...] = ()


def subjects(config: DatConfig) -> tuple[str, ...]:
    """The subjects of a run: a mapping by PCA has no clone."""
    return tuple(name for name in SUBJECTS if name != "self_clone" or config.mapping != "pca")


def subject(name: str, config: DatConfig, parts: Parts) -> ChatModel:
    """One of `SUBJECTS` as a chat model."""
    bare = Steering(parts.steering.mapping, None, parts.steering.clone, position=parts.steering.position)
    if name == UNSTEERED:
        return parts.model
    if name == PLANNER:
        return SteeredModel(parts.model, parts.steering)
    varied: Mapping[str, Exploration | Fixed | None] = {
        "random": exploring(config, parts.norm), "constant": Fixed(parts.constant), "self_clone": None}
    return SteeredModel(parts.model, bare, exploration=varied[name], name=f"{parts.model.name}+{name}")


# ------------------------------------------------------------------------------------------------ constant actions


def constants(config: DatConfig, norm: float) -> list[tuple[float, ...]]:
    """Actions to try: the corners of a coded mapping, else random ones of the sphere."""
    if config.mapping == "coded":
        found = corner(torch.eye(config.action), norm)
    else:
        draw = torch.Generator().manual_seed(config.seed)
        found = on_sphere(torch.randn(config.constants, config.action, generator=draw), norm)
    return [tuple(row) for row in found[:config.constants].tolist()]


def best_constant(config: DatConfig, parts: Parts, side: Side, log: Log = quiet) -> dict[str, Any]:
    """The constant action with the highest mean score on training scenes, and all scores."""
    scenes = some(side.scenes["train"], config.constant_scenes)
    tried, scores = constants(config, parts.norm), []
    for at, action in enumerate(tried):
        log("constant actions", at, len(tried))
        steered = subject("constant", config, replace(parts, constant=action))
        played = side.play(side.speaker(steered), side.partner, scenes, seed=config.seed, label="constant")
        scores.append(_mean([side.score(one) for one in played]))
    best = max(range(len(tried)), key=lambda at: (scores[at], -at))
    return {"action": list(tried[best]), "scores": scores}


def _mean(values: Sequence[float]) -> float:
    read = [value for value in values if math.isfinite(value)]
    return float(np.mean(read)) if read else -math.inf


# ------------------------------------------------------------------------------------------------ one subject


def measured(name: str, config: DatConfig, parts: Parts, side: Side, path: Path, split: str = "test",
             log: Log = quiet) -> tuple[list[Row], list[float]]:
    """Rows about one subject in the held-out scenes, and its score in each."""
    chat = subject(name, config, parts)
    speaker = side.speaker(chat)
    with TreeLog(path / f"{name}.jsonl") as sink:
        played = side.play(speaker, side.partner, side.scenes[split], seed=config.seed, label=name, sink=sink, log=log)
    rows = side.measure(played, label=name, seed=config.seed)
    rows += language(parts.model, speaker, played, label=name, seed=config.seed)
    if isinstance(chat, SteeredModel):
        rows += spread([torch.stack([action for _, action in steps])
                        for steps in taken(chat, speaker, played, config.seed) if steps], label=name, seed=config.seed)
    return rows, [side.score(one) for one in played]


def transferred(name: str, config: DatConfig, parts: Parts, side: Side, label: str, partner: Speaker, path: Path,
                split: str = "test", log: Log = quiet) -> tuple[list[Row], list[float]]:
    """The side's rows against a partner not trained against, under an eval named after it; and the scores."""
    with TreeLog(path / f"{name}-{file_name(label)}.jsonl") as sink:
        played = side.play(side.speaker(subject(name, config, parts)), partner, side.scenes[split], seed=config.seed,
                           label=f"{name} against {label}", sink=sink, log=log)
    rows = side.measure(played, label=name, seed=config.seed)
    against = f"{side.name}_against_{file_name(label)}"
    return [replace(row, eval=against) for row in rows if row.metric == side.metric], [side.score(one) for one in
                                                                                       played]


def file_name(label: str) -> str:
    """A model spec as part of a file name."""
    return "".join(letter if letter.isalnum() or letter in "-._" else "-" for letter in label)


def language(model: LocalModel, speaker: Speaker, played: Sequence[Dialogue], *, label: str, seed: int) -> list[Row]:
    """Perplexity of what the player said under the frozen model, and how varied it was.

    `perplexity`: exp of nats a token, end tokens included, the chats as the player saw them; intervals over dialogues.
    `distinct_1`, `distinct_2`: share of different words and pairs of words among all that were said.
    """
    said = [[(turn.text, chat) for turn, chat in turns_of(speaker, one)] for one in played]
    rows = [model.reply_ids(chat, text) for own in said for text, chat in own]
    nats = [-value for value in model.logprobs(rows)]
    tokens = [len(ids) - start for ids, start in rows]
    ends = np.cumsum([0, *(len(own) for own in said)])
    each = [(sum(nats[start:end]), sum(tokens[start:end])) for start, end in itertools.pairwise(ends)]
    found = [Row(LANGUAGE, label, "perplexity", *_perplexity(each, seed), len(each), seed)]
    for size in (1, 2):
        grams = [tuple(words[at:at + size]) for own in said for text, _ in own
                 for words in [text.lower().split()] for at in range(len(words) - size + 1)]
        share = len(set(grams)) / len(grams) if grams else math.nan
        found.append(Row(LANGUAGE, label, f"distinct_{size}", share, math.nan, math.nan, len(grams), seed))
    return found


def _perplexity(each: Sequence[tuple[float, int]], seed: int) -> tuple[float, float, float]:
    """exp of summed nats over summed tokens of (nats, tokens), with its bootstrap interval."""
    data = np.asarray(each, float).reshape(-1, 2)
    if not data[:, 1].sum():
        return math.nan, math.nan, math.nan
    drawn = data[np.random.default_rng(seed).integers(0, len(data), (2000, len(data)))].sum(1)
    low, high = np.percentile(np.exp(drawn[:, 0] / np.maximum(drawn[:, 1], 1)), [2.5, 97.5])
    return float(np.exp(data[:, 0].sum() / data[:, 1].sum())), float(low), float(high)


def spread(actions: Sequence[torch.Tensor], *, label: str, seed: int) -> list[Row]:
    """How much actions differ: a constant one is a constant prefix and no policy.

    `spread`: root mean squared distance from the mean action, in units of an action's length; 0 for a constant one,
    about 1 for actions all around. `turn_cosine`: of one turn's action with the next one's.
    """
    found = torch.cat(list(actions)) if actions else torch.zeros(1, 1)
    length = float(found.norm(dim=-1).mean())
    apart = float((found - found.mean(0)).square().sum(-1).mean().sqrt()) / length if length else 0.0
    cosines = [float(value) for one in actions if len(one) > 1
               for value in torch.cosine_similarity(one[:-1], one[1:], dim=-1)]
    rows = [Row(ACTIONS, label, "spread", apart, math.nan, math.nan, len(found), seed)]
    if cosines and length:
        rows.append(Row(ACTIONS, label, "turn_cosine", float(np.mean(cosines)), *bootstrap(cosines, seed=seed),
                        len(cosines), seed))
    return rows


# ------------------------------------------------------------------------------------------------ differences


def differences(eval: str, metric: str, scores: Mapping[str, Sequence[float | None]], seed: int) -> list[Row]:
    """The planner minus each other subject, scene by scene: `<metric>_minus_<subject>`, with bootstrap intervals.

    Args:
        scores: by subject and scene; None where there was no verdict.
    """
    own, found = scores[PLANNER], []
    for name, others in scores.items():
        if name != PLANNER:
            gaps = [one - other for one, other in zip(own, others, strict=True)
                    if one is not None and other is not None]
            mean = float(np.mean(gaps)) if gaps else math.nan
            found.append(Row(eval, PLANNER, f"{metric}_minus_{name}", mean, *bootstrap(gaps, seed=seed), len(gaps),
                             seed))
    return found

