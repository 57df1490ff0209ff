"""A model as judge of answers, from 1 to 10, and the questions in MT-Bench's layout that it is mostly asked about.

The judge sees the conversation up to the answer and, where there is one, a reference. An answer of its own without a
rating is asked for once more, then the rated answer is left out and counted; nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dialoom.dialogue import Chat, Dialogue, Scenario, content_id
from dialoom.evals.alignment_roles import USER
from dialoom.evals.persuasion import Log, Result
from dialoom.evals.quality import SCORE, conversation, mean_row, quality, scores_of
from dialoom.judge import Verdict, ask_until_read
from dialoom.models.base import ChatModel, Sampling
from dialoom.progress import quiet
from dialoom.scenarios.sharegpt import Question
from dialoom.simulate import Speaker
from dialoom.store import TreeLog

RATE = ("Below is a conversation between a user and an assistant. Judge how well the assistant's final reply serves "
        "the user: whether it is right, does all that the final message asks, takes up what was said before, and is "
        "clear and no longer than it has to be.\n\n{conversation}\n\nSay in one or two sentences what is good and "
        "what is not. Then give a rating from 1 (useless) to 10 (could not be better) in double brackets, such as "
        "[[4]].")
RATE_BY_REFERENCE = ("Below is a conversation between a user and an assistant, and a reply to the user's final message "
                     "that is known to be right. Judge how well the assistant's final reply serves the user: whether "
                     "it comes to the same as the known one, does all that the final message asks, takes up what was "
                     "said before, and is clear and no longer than it has to be.\n\n{conversation}\n\nThe known right "
                     "reply:\n{reference}\n\nSay in one or two sentences what is good and what is not. Then give a "
                     "rating from 1 (useless) to 10 (could not be better) in double brackets, such as [[4]].")
ONLY = "\n\nThis time write nothing but the rating, such as [[4]]."
LOWEST, HIGHEST = 1.0, 10.0
JUDGING = Sampling(0.0, max_new_tokens=200)
REFERENCES = "references"
"""The fact that holds a reference answer for each user turn, "" where there is none."""

_NUMBER = r"(-?\d+(?:[.,]\d+)?)"
_BRACKETS = re.compile(rf"\[\[\s*{_NUMBER}\s*(?:/\s*10\s*)?\]\]")
_NAMED = re.compile(rf"\b(?:rating|score)\W{{1,6}}?{_NUMBER}(?!\d)(?!\s*(?:/|out of)\s*(?!10\b)\d)", re.IGNORECASE)
_OF_TEN = re.compile(rf"(?<![\d.,/]){_NUMBER}\s*(?:/|out of)\s*10\b(?![.,]?\d)", re.IGNORECASE)
_ALONE = re.compile(rf"\W*?{_NUMBER}\W*")


def parse_rating(text: str) -> float | None:
    """The rating in a judge's words, from 1 to 10; None if there is none, or one out of range.

    Read in this order: the last `[[7]]`, the last `Rating: 7` or `Score: 7`, a `7/10` or `7 out of 10` if there are no
    two different ones, a number that stands alone.
    """
    for pattern in (_BRACKETS, _NAMED):
        if found := pattern.findall(text):
            return _in_range(found[-1])
    if of_ten := set(_OF_TEN.findall(text)):
        return _in_range(of_ten.pop()) if len(of_ten) == 1 else None
    alone = _ALONE.fullmatch(text)
    return _in_range(alone[1]) if alone else None


def _in_range(number: str) -> float | None:
    value = float(number.replace(",", "."))
    return value if LOWEST <= value <= HIGHEST else None


@dataclass(frozen=True)
class RatingJudge:
    """A model asked for a rating from 1 to 10 of the last answer; no verdict where it gives none in two tries."""

    model: ChatModel
    sampling: Sampling = JUDGING

    @property
    def name(self) -> str:
        return f"rating:{self.model.name}"

    def judge(self, dialogues: Sequence[Dialogue]) -> list[Verdict | None]:
        found: list[Verdict | None] = [Verdict() if one.last.speaker == USER else None for one in dialogues]
        places = [at for at, verdict in enumerate(found) if verdict is None]
        ids = [content_id(self.name, dialogues[at].last.id) for at in places]
        ratings = ask_until_read(self.model, [_question(dialogues[at]) for at in places], ids, parse_rating,
                                 sampling=self.sampling, reminder=ONLY)
        for at, rating in zip(places, ratings, strict=True):
            found[at] = Verdict({SCORE: rating}) if rating is not None else None
        return found


def _question(dialogue: Dialogue) -> Chat:
    said = [("User", dialogue.scenario.opening)]
    said += [("User" if turn.speaker == USER else "Assistant", turn.text) for turn in dialogue.turns]
    conversation = "\n\n".join(f"{who}: {text}" for who, text in said)
    references = dialogue.scenario.facts.get(REFERENCES, ())
    at = len(dialogue.by(USER))
    if at < len(references) and references[at]:
        content = RATE_BY_REFERENCE.format(conversation=conversation, reference=references[at])
    else:
        content = RATE.format(conversation=conversation)
    return [{"role": "user", "content": content}]


# ------------------------------------------------------------------------------------------------ MT-Bench's layout


def questions_as_conversations(questions: Sequence[Question]) -> list[Scenario]:
    """One conversation for each; category and references are facts."""
    return [conversation(one.id, one.turns, {"category": one.category, REFERENCES: list(one.reference)})
            for one in questions]


def mtbench(subject: Speaker, conversations: Sequence[Scenario], judge: RatingJudge, *, label: str, seed: int = 0,
            sink: TreeLog | None = None, log: Log = quiet) -> Result:
    """Single-answer grading: the mean rating over answers, by turn, and by category where conversations have one.

    Rows of `mtbench`: `score`, `turn_1` to `turn_K`, `category_<name>`. A silent subject gets 1, the lowest rating.
    Source: MT-Bench (arXiv 2306.05685), with prompts of our own, so scores are not those of its leaderboard.
    """
    found = quality(subject, conversations, judge, label=label, name="mtbench", lowest=LOWEST, seed=seed, sink=sink,
                    log=log)
    rows = [replace(row, metric="score") if row.metric == SCORE else row for row in found.rows]
    by_category: dict[str, list[list[float]]] = {}
    for dialogue in found.dialogues:
        if category := str(dialogue.scenario.facts.get("category") or ""):
            by_category.setdefault(category, []).append(scores_of(dialogue, subject.name, LOWEST))
    rows += [mean_row("mtbench", label, f"category_{category}", scores, seed)
             for category, scores in by_category.items()]
    return replace(found, rows=rows)
