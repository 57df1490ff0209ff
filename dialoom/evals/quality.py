"""How good are a chat model's answers over several turns? Questions are fixed beforehand, the answers are its own.

All conversations go in step: the model answers the first question, hears the second below its own answer, and so on;
a judge scores each answer. Pocket's judge is exact (0 to 1); `evals/rating` has the one from 1 to 10. The surprising
choice: the questions never depend on what was answered, so that every model is asked the same.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dialoom.dialogue import Dialogue, DialogueTree, Scenario, Turn, content_id
from dialoom.errors import DataError
from dialoom.evals.alignment_roles import USER
from dialoom.evals.metrics import Row
from dialoom.evals.persuasion import Log, Result
from dialoom.judge import Judge, RuleJudge, Verdict
from dialoom.pocket.world.strategies import judge_answer, make_dialogue
from dialoom.progress import quiet
from dialoom.simulate import ScriptedSpeaker, Speaker, grow
from dialoom.store import TreeLog

SCORE = "quality"
"""The name of the score on answers, whoever judges."""
QUESTIONS = "questions"
"""The fact that holds the user turns after the opening."""
ROUNDS = 5

Groups = Sequence[Sequence[float]]
"""Values in groups that are drawn as wholes: the answers of a conversation."""


# ------------------------------------------------------------------------------------------------ conversations


def conversation(id: str, questions: Sequence[str], facts: Mapping[str, Any]) -> Scenario:
    """A conversation of these user turns, the first of which is the opening.

    Raises: DataError: if there is none, or an empty one among them.
    """
    if not questions or not all(one.strip() for one in questions):
        raise DataError(f"conversation {id}: user turns {list(questions)!r:.200}; expected one or more, none empty")
    return Scenario(id, questions[0], facts={**facts, QUESTIONS: list(questions[1:])})


def conversations_of(dialogues: Sequence[Dialogue]) -> list[Scenario]:
    """The user turns of somebody's dialogues as conversations; what was answered there is left out."""
    return [conversation(one.scenario.id, [one.scenario.opening, *(turn.text for turn in one.by(USER))],
                         one.scenario.facts) for one in dialogues]


def pocket_conversations(topics: Sequence[str], count: int, *, rounds: int = ROUNDS, seed: int = 0) -> list[Scenario]:
    """Conversations as lively users of pocket's world have them, the topics in turn.

    Args:
        topics: of the world's; for evaluation those that stand in no training data.
        rounds: user turns after the opening.
    """
    found = []
    for at in range(count):
        topic, id = topics[at % len(topics)], content_id("conversation", seed, at)
        opening, exchanges = make_dialogue(topic, rounds, random.Random(id))
        classes = ["definition", *(one.strategy_class for one in exchanges)]
        found.append(conversation(id, [opening.question, *(one.question for one in exchanges)],
                                  {"topic": topic, "classes": classes}))
    return found


def exact_judge() -> RuleJudge:
    """Pocket's exact rule: half for the right kind of answer, half for the right content besides."""
    def rule(dialogue: Dialogue) -> Verdict:
        if dialogue.last.speaker == USER:
            return Verdict()
        asked = [dialogue.scenario.opening, *(turn.text for turn in dialogue.by(USER))]
        facts = dialogue.scenario.facts
        name = facts["classes"][len(asked) - 1]
        return Verdict({SCORE: judge_answer(facts["topic"], asked[:-1], name, dialogue.last.text)})
    return RuleJudge("exact", rule)


# ------------------------------------------------------------------------------------------------ protocol


def quality(subject: Speaker, conversations: Sequence[Scenario], judge: Judge, *, label: str, name: str = "chat",
            lowest: float = 0.0, seed: int = 0, sink: TreeLog | None = None, log: Log = quiet) -> Result:
    """Let the subject answer every question of every conversation, and score each answer.

    Rows: `quality`, the mean over all answers, and `turn_k`, that over the answers to the k-th user turn. A subject
    that falls silent gets `lowest` for that answer and the rest; an answer the judge gave no score is left out of the
    means and counted in `unread`.

    Args:
        judge: writes the score `quality`.
        name: of the eval in the rows.
        sink: a log that holds what was said before; a killed evaluation goes on from it to the same figures.
    """
    dialogues = answered(subject, conversations, judge, seed=seed, sink=sink, log=log)
    scores = [scores_of(dialogue, subject.name, lowest) for dialogue in dialogues]
    rows = [mean_row(name, label, SCORE, scores, seed)]
    for turn in range(max(map(len, scores), default=0)):
        rows.append(mean_row(name, label, f"turn_{turn + 1}", [row[turn:turn + 1] for row in scores], seed))
    return Result(rows, dialogues, sum(not np.isfinite(one) for row in scores for one in row))


def answered(subject: Speaker, conversations: Sequence[Scenario], judge: Judge, *, seed: int = 0,
             sink: TreeLog | None = None, log: Log = quiet) -> list[Dialogue]:
    """One dialogue for each conversation, in their order, as far as the subject went with it."""
    def more(tree: DialogueTree, turn: Turn) -> bool:
        return turn.speaker == USER or _asked(tree.dialogue(turn)) <= len(tree.scenario.facts[QUESTIONS])

    user = ScriptedSpeaker(USER, lambda dialogue, _: str(dialogue.scenario.facts[QUESTIONS][_asked(dialogue) - 1]))
    held: dict[str, Any] = sink.trees() if sink else {}
    ids = [content_id(seed, one.id, one.opening, one.facts[QUESTIONS], subject.name) for one in conversations]
    trees = [held.get(id) or DialogueTree(scenario, id) for id, scenario in zip(ids, conversations, strict=True)]
    turns = 1 + 2 * max((len(scenario.facts[QUESTIONS]) for scenario in conversations), default=0)
    grow(trees, [subject, user], max_turns=turns, seed=seed, judges=[judge], expand=more, sink=sink, log=log)
    return [tree.dialogue(next(iter(tree.leaves()), None)) for tree in trees]


def _asked(dialogue: Dialogue) -> int:
    """How many user turns there were, the opening among them."""
    return 1 + len(dialogue.by(USER))


def scores_of(dialogue: Dialogue, speaker: str, lowest: float) -> list[float]:
    """A score for every user turn of the conversation; `lowest` from a silent answer on, not a number without one."""
    said = [float(turn.scores.get(SCORE, np.nan)) for turn in dialogue.by(speaker)]
    return said + [lowest] * (1 + len(dialogue.scenario.facts[QUESTIONS]) - len(said))


def mean_row(eval: str, subject: str, metric: str, groups: Groups, seed: int, draws: int = 2000) -> Row:
    """The mean of all values that are numbers, with a 95 % interval from drawing groups anew; n counts groups."""
    kept = [found for group in groups if (found := [one for one in group if np.isfinite(one)])]
    if not kept:
        return Row(eval, subject, metric, np.nan, np.nan, np.nan, 0, seed)
    sums, counts = np.array([sum(group) for group in kept]), np.array([len(group) for group in kept])
    picks = np.random.default_rng(0).integers(0, len(kept), (draws, len(kept)))
    low, high = np.percentile(sums[picks].sum(axis=1) / counts[picks].sum(axis=1), [2.5, 97.5])
    return Row(eval, subject, metric, float(sums.sum() / counts.sum()), float(low), float(high), len(kept), seed)
