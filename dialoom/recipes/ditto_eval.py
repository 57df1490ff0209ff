"""What DITTO's methods write on held-out tasks, and the figures: round robins, style, likeness, held-out perplexity."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dialoom.dialogue import Chat
from dialoom.evals.metrics import Row, rate
from dialoom.evals.winrate import (
    RoundRobin,
    ScoreComparer,
    author_similarity,
    exact_style,
    gap_row,
    round_robin,
    win_rows,
)
from dialoom.models.base import ChatModel
from dialoom.models.local import LocalModel
from dialoom.progress import progress
from dialoom.recipes import ditto_write as wording
from dialoom.recipes.ditto_config import ABLATIONS, DittoConfig
from dialoom.recipes.ditto_train import Author, Metrics, Session, arms_of, padded, turn_path
from dialoom.recipes.ditto_write import Writer, place, write
from dialoom.scenarios.demonstrations import Demonstration
from dialoom.store import write_rows, write_whole
from dialoom.train.pack import score_paths

BASE = {"zero_shot", "few_shot", "self_prompt", "briefed"}  # the untrained model under some wording
Written = dict[str, dict[str, list[str]]]
"""Method -> tree id -> ids of the turns it wrote."""


def rival_methods(spec: str) -> dict[str, str]:
    """The two methods of another model, and how each asks."""
    return {f"{spec} zero_shot": "zero_shot", f"{spec} few_shot": "few_shot"}


def outsiders(config: DittoConfig) -> list[str]:
    """Methods judged beside the pool; `briefed` only where the authors are pocket's, for whom it has a brief."""
    rival = [name for spec in config.rival for name in rival_methods(spec)]
    labelled = [f"dpo_{config.labelled}"] if config.labelled else []
    own = [name for name in config.beside if name not in config.pool and (name != "briefed" or not config.demos)]
    return [*own, *rival, *labelled]


def write_held_out(session: Session, author: Author, load: Callable[[str], ChatModel]) -> Written:
    """Let every method write on the author's test tasks.

    Args:
        load: a rival by its spec.
    """
    config, demos = session.config, author.split("test")
    trees = [session.tree(demo) for demo in demos]
    for tree in trees:
        session.sink.add_tree(tree)
    found: Written = {}

    def by(method: str, model: ChatModel, ask: Callable[[Chat], Chat]) -> None:
        writer = Writer(method, model, session.sampling, config.test_samples, ask, model.fingerprint)
        turns = write(trees, writer, seed=config.seed, sink=session.sink)
        found[method] = {tree.id: [turn.id for turn in row] for tree, row in zip(trees, turns, strict=True)}

    named = [name for name in dict.fromkeys((*config.pool, *outsiders(config))) if name in BASE]
    with session.model.without_adapter(), progress(f"held-out tasks of {author.name}"):
        for method in named:
            by(method, session.model, _wording(session, author, method, session.model))
    for arm in arms_of(config, author):
        session.wear(author, arm)
        by(arm, session.model, wording.plain)
    for spec in config.rival:
        model = load(spec)
        for method, kind in rival_methods(spec).items():
            by(method, model, _wording(session, author, kind, model))
    return found


def _wording(session: Session, author: Author, method: str, model: ChatModel) -> Callable[[Chat], Chat]:
    seed = session.config.seed
    if method == "briefed":
        return wording.briefed(author.name, seed)
    shown = shown_by(method, author, model, session.limit) if method != "zero_shot" else ()
    if not shown:
        return wording.plain
    if method == "few_shot":
        return wording.few_shot(shown)
    return wording.self_prompt(model, shown, session.limit, f"self-prompt/{author.name}/{seed}")


def shown_by(method: str, author: Author, model: ChatModel, limit: int) -> tuple[Demonstration, ...]:
    """The demonstrations that a method's prompts show: the last ones that fit whole into what a local model reads.

    Args:
        limit: new tokens of a text.
    """
    demos, tasks = author.split("train"), [demo.chat for demo in author.split("test")]
    if not isinstance(model, LocalModel):
        return demos  # what fits is known to its server

    def prompts(part: Sequence[Demonstration]) -> list[Chat]:
        return [wording.looking(part)] if method == "self_prompt" else [wording.few_shot(part)(task) for task in tasks]
    return next(part for part in (demos[at:] for at in range(len(demos) + 1)) if not part or all(
        len(model.template.prompt(chat)) + limit <= model.context for chat in prompts(part)))


def held_out_likelihood(session: Session, author: Author, written: Written) -> dict[str, Metrics]:
    """For the base and the main arms: nats a token of the author's own held-out texts; and DITTO's implicit rewards.

    `reward_accuracy` is how often DITTO's implicit reward is higher for the author's text than for a sample of SFT's.
    """
    demos = author.split("test")
    found: dict[str, Metrics] = {}
    with session.model.without_adapter():
        found["base"] = {"logprob": session.logprob(demos)}
    arms = [arm for arm in ("sft", "sft_long", "spin", "ditto") if arm in arms_of(session.config, author)]
    for arm in arms:
        session.wear(author, arm)
        found[arm] = {"logprob": session.logprob(demos)}
    trees = [session.tree(demo) for demo in demos]
    paths = [session.path_of(demo) for demo in demos]
    owner = []
    for at, tree in enumerate(trees):
        for turn in written["sft"][tree.id]:
            paths.append(turn_path(session, tree, tree[turn]))
            owner.append(at)
    rewards = np.zeros(len(paths))
    for arm, sign in (("ditto", 1.0), ("sft", -1.0)):
        session.wear(author, arm)
        scored = score_paths(session.model.module, paths, budget=session.config.token_budget, bf16=session.config.bf16)
        rewards += sign * scored.numpy()
    right = [float(rewards[at] > reward) for at, reward in zip(owner, rewards[len(demos):], strict=True)]
    found["ditto"]["reward_accuracy"] = sum(right) / max(1, len(right))
    return found


def evaluate(session: Session, authors: Sequence[Author], written: Mapping[str, Written]) -> list[Row]:
    """Every figure but the likelihoods; writes matches.jsonl and winrate.json beside results.json.

    Args:
        written: author -> what `write_held_out` gave.
    """
    config, seed = session.config, session.config.seed
    tasks = _tasks(session, authors, written)
    with contextlib.ExitStack() as stack:
        stack.enter_context(session.model.without_adapter())  # a local judge is the untrained model
        bar = stack.enter_context(progress("judging"))
        pools = _pools(config, authors)
        played: dict[str, RoundRobin] = {}
        for name, methods in pools.items():
            own = [(dialogue, {method: texts[method] for method in methods}) for dialogue, texts in tasks
                   if all(method in texts for method in methods)]
            played[name] = round_robin(own, methods, session.judge)
            bar.advance()
        for name in outsiders(config):
            played[f"beside {name}"] = round_robin(tasks, pools["winrate"], session.judge, outsider=name)
            bar.advance()
    rows = []
    for name, result in played.items():
        rows += win_rows(result, name.split()[0], seed)
        rows += [gap_row(result, f"{name}_gap", "ditto", other, seed) for other in result.methods
                 if other != "ditto" and name in pools]
    write_rows(session.path / "matches.jsonl", [{"pool": name, **match.to_row()} for name, result in played.items()
                                                for match in result.matches])
    write_whole(session.path / "winrate.json", json.dumps(
        {name: {method: {author: [one.wins, one.comparisons] for author, one in result.by_author(method).items()}
                for method in result.methods} for name, result in played.items()}, indent=1))
    return rows + _scores(config, tasks)


def _tasks(session: Session, authors: Sequence[Author],
           written: Mapping[str, Written]) -> list[tuple[Any, dict[str, list[str]]]]:
    found = []
    for author in authors:
        for demo in author.split("test"):
            tree = session.tree(demo)
            texts = {method: padded([tree[turn].text for turn in turns[tree.id]], session.config.test_samples)
                     for method, turns in written[author.name].items()}
            found.append((tree.dialogue(place(tree)), texts))
    return found


def _pools(config: DittoConfig, authors: Sequence[Author]) -> dict[str, tuple[str, ...]]:
    """Eval name -> who meets whom."""
    pools = {"winrate": (*config.pool, "ditto")}
    if config.ablation:
        pools["ablation"] = ("ditto", *(name.replace("-", "_") for name in ABLATIONS if name in config.ablation))
    grown = [f"ditto_{count}" for count in sorted(set(config.growth))]
    if grown := [arm for arm in grown if all(arm in arms_of(config, author) for author in authors)]:
        pools["growth"] = (*grown, "ditto")
    return pools


def _scores(config: DittoConfig, tasks: Sequence[tuple[Any, Mapping[str, Sequence[str]]]]) -> list[Row]:
    """Mean style match (pocket's authors) and likeness to the author's own text, for every method."""
    judges: list[ScoreComparer] = [author_similarity()]
    if not config.demos:
        judges.append(exact_style())
    methods = list(dict.fromkeys(method for _, texts in tasks for method in texts))
    rows = []
    for judge in judges:
        for method in methods:
            places = [(dialogue, text) for dialogue, texts in tasks for text in texts.get(method, ())]
            values = judge.score([one for one, _ in places], [text for _, text in places])
            name, metric = ("style", "match") if judge.name == "exact" else ("similarity", "cosine")
            rows.append(rate(name, method, metric, list(values), config.seed))
    return rows


def likelihood_rows(found: Mapping[str, Mapping[str, Metrics]], seed: int) -> list[Row]:
    """Rows of `held_out_likelihood` over authors: nats a token, perplexity, accuracy of the implicit reward."""
    rows = []
    for subject in dict.fromkeys(name for one in found.values() for name in one):
        own = [one[subject] for one in found.values()]
        rows.append(rate("held_out", subject, "logprob", [one["logprob"] for one in own], seed))
        rows.append(rate("held_out", subject, "perplexity", [math.exp(-one["logprob"]) for one in own], seed))
        if "reward_accuracy" in own[0]:
            rows.append(rate("held_out", subject, "reward_accuracy", [one["reward_accuracy"] for one in own], seed))
    return rows
