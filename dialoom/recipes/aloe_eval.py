"""What an ALOE run measures of one subject: alignment, preference shift, recall and fluency."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dialoom.evals.alignment import alignment, preference_shift
from dialoom.evals.alignment_roles import plain, reminded, scenario_of, self_critic, shown
from dialoom.evals.metrics import Row
from dialoom.models.base import Sampling
from dialoom.progress import progress
from dialoom.recipes.aloe_cast import Cast, replies
from dialoom.recipes.aloe_config import ARMS, AloeConfig
from dialoom.recipes.aloe_data import general_examples
from dialoom.recipes.aloe_people import shifted
from dialoom.scenarios.personas import Persona
from dialoom.scenarios.triviaqa import pocket_trivia
from dialoom.select import Example
from dialoom.simulate import ModelSpeaker
from dialoom.store import TreeLog

if TYPE_CHECKING:
    from dialoom.models.local import LocalModel

MEASURED = ("base", *ARMS)  # the models whose recall and fluency are asked for; the others are the base, prompted
SHIFTED = ("base", "sft_preferred", "dpo")
RECALL_QUESTIONS, FLUENCY_TEXTS = 200, 150
TOKENS = 4096  # scored at once

Log = Callable[[str], None]


def subject_of(config: AloeConfig, model: LocalModel, label: str) -> ModelSpeaker:
    """The speaker of a label: a model as it is, or the untrained one asked in some way."""
    sampling = replies(config)
    asked: dict[str, Callable[..., ModelSpeaker]] = {"reminder": reminded, "self_critique": self_critic,
                                                     "few_shot": shown}
    if label == "briefed":
        return plain(model, sampling, config.ceiling)
    return asked.get(label, plain)(model, sampling, config.neutral)


def evaluate_subject(cast: Cast, model: LocalModel, label: str, test: list[Persona], *, out: Path,
                     log: Log = print) -> list[Row]:
    """Every figure of one subject; its dialogues go into `out`, from where a killed evaluation goes on."""
    config = cast.config
    speaker = subject_of(config, model, label)
    with TreeLog(out / f"{label}.trees.jsonl") as sink, progress(f"alignment of {label}") as bar:
        found = alignment(speaker, [scenario_of(one) for one in test], cast.user(), cast.judge(), label=label,
                          turns=config.turns, seed=config.seed, sink=sink,
                          log=lambda turn, done, total: bar.reach(done, f"alignment of {label}, {turn}"))
    if found.unread:
        log(f"alignment, {label}: {found.unread} of {len(test) * config.turns} replies have no score")
    rows = list(found.rows)
    if config.shift_at and label in SHIFTED:
        rows += _shift(cast, speaker, label, test, out=out, log=log)
    if label in MEASURED:
        rows += recall_rows(config, model, label) + fluency_rows(config, model, label)
    return rows


def _shift(cast: Cast, speaker: ModelSpeaker, label: str, test: list[Persona], *, out: Path, log: Log) -> list[Row]:
    """Preference shift, for the people whose traits pocket's world can turn."""
    config = cast.config
    able = [one for one in test if one.world.traits]
    if len(able) < len(test):
        log(f"preference shift: {len(test) - len(able)} people have no traits in pocket's words; left out")
    scenarios = [scenario_of(one, shifted(one, config.seed), config.shift_at) for one in able]
    if not scenarios:
        return []
    with TreeLog(out / f"{label}.shift.jsonl") as sink, progress(f"preference shift of {label}"):
        return preference_shift(speaker, scenarios, cast.user(), cast.judge(), label=label, at=config.shift_at,
                                turns=config.turns, seed=config.seed, sink=sink).rows


def recall_rows(config: AloeConfig, model: LocalModel, label: str) -> list[Row]:
    """Closed-book recall of pocket's facts, greedy; no rows for other models, of which nobody knows what they know."""
    from dialoom.evals.persuasion import recall
    from dialoom.simulate import speaking

    if not config.model.startswith("pocket"):
        return []
    asked = pocket_trivia(None, seed=config.seed)
    asked = asked[::max(1, len(asked) // RECALL_QUESTIONS)]
    greedy = speaking("subject", model, Sampling(0.0, max_new_tokens=48), config.neutral)
    with progress(f"recall of {label}"):
        return recall(greedy, asked, label=label, seed=config.seed).rows


def fluency_rows(config: AloeConfig, model: LocalModel, label: str) -> list[Row]:
    """Perplexity of the assistant's tokens in general texts that SFT never mixes in: pocket's, or out of `general`."""
    source = "pocket" if config.model.startswith("pocket") else config.general
    texts = general_examples(source, FLUENCY_TEXTS, held_out=True) if source else []
    if not texts:
        return []
    with progress(f"fluency of {label}"):
        found = np.array(text_nats(model, texts))
    picks = np.random.default_rng(config.seed).integers(0, len(found), (1000, len(found)))
    drawn = found[picks].sum(axis=1)
    nats, tokens = found.sum(axis=0)
    low, high = np.exp(np.percentile(drawn[:, 0] / drawn[:, 1], [2.5, 97.5]))
    return [Row("fluency", label, "perplexity", math.exp(nats / tokens), float(low), float(high), len(found),
                config.seed)]


def text_nats(model: LocalModel, texts: list[Example]) -> list[tuple[float, int]]:
    """(negative log-likelihood in nats, scored tokens) of each text."""
    from dialoom.train.pack import score_paths
    from dialoom.train.rows import example_rows

    rows = example_rows(model, texts)
    scores = iter(score_paths(model.module, [path for row in rows for path in row.paths],
                              budget=TOKENS).tolist())
    return [(-sum(itertools.islice(scores, len(row.paths))), sum(path.targets for path in row.paths)) for row in rows]
