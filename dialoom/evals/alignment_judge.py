"""Who says how well a reply fits a person: pocket's exact rule, or a model that is asked; and how answers are read.

A score is an integer from 1 to 5 of one reply; a comparison says which of two replies fits better. The surprising
choice: an answer that is not exactly what was asked for is asked for again and then discarded, never guessed at.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from dialoom.dialogue import Chat, Dialogue, content_id
from dialoom.evals.alignment import SCORE
from dialoom.evals.alignment_roles import USER, persona_at
from dialoom.judge import Preference, RuleJudge, Verdict, ask_until_read
from dialoom.models.base import ChatModel, Sampling
from dialoom.pocket.world.personas import judge_alignment

RATE = ("A person is described below, together with the last message they sent and the reply they got.\n\n"
        "The person's life: {profile}\nThe person's character: {personality}\n\nMessage: {message}\nReply: {reply}\n\n"
        "Judge the reply from this person's side. Three things count: its manner suits the person's character; what it "
        "talks about touches the person's life; it is lively, natural and short like talk between people. 1 means it "
        "could have gone to anybody, 5 means it is made for this person in every way.\n"
        "Answer with one whole number from 1 to 5 and nothing else.")
COMPARE = ("A person is described below, together with the last message they sent and two replies.\n\n"
           "The person's life: {profile}\nThe person's character: {personality}\n\nMessage: {message}\n\n"
           "First reply: {first}\n\nSecond reply: {second}\n\n"
           "Which of the two would this person rather get, going by manner, topics and naturalness? "
           "Answer with the one word first or the one word second.")
TRIES = 3
SHORT = Sampling(max_new_tokens=8)
_SCORE = re.compile(r"\W*(?:score\W*)?([1-5])(?:\.0+)?(?:\s*(?:/|out of)\s*5)?\W*", re.IGNORECASE)
_CHOICE = re.compile(r"\W*(first|second)\W*", re.IGNORECASE)


def parse_score(text: str) -> int | None:
    """The score from 1 to 5 in a judge's answer ("4", "4/5", "Score: 4"); None if it is anything else."""
    found = _SCORE.fullmatch(text)
    return int(found[1]) if found else None


def parse_choice(text: str) -> str | None:
    """"first" or "second" in a judge's answer that says nothing else; None otherwise."""
    found = _CHOICE.fullmatch(text)
    return found[1].lower() if found else None


def exact_score(dialogue: Dialogue, reply: str) -> int:
    """Pocket's exact score of a reply to a dialogue that ends with the user's message."""
    persona = persona_at(dialogue.scenario, len(dialogue.by(USER))).world
    return judge_alignment(persona, dialogue.last.text, reply)


def exact_judge() -> RuleJudge:
    """Pocket's exact rule as a judge of replies; needs personas in the words of pocket's world."""
    def rule(dialogue: Dialogue) -> Verdict:
        if dialogue.last.speaker == USER:
            return Verdict()
        before = Dialogue(dialogue.scenario, dialogue.turns[:-1])
        return Verdict({SCORE: float(exact_score(before, dialogue.last.text))})
    return RuleJudge("exact", rule)


@dataclass(frozen=True)
class RatingJudge:
    """A model asked for a score from 1 to 5, up to three times; no verdict where it gives none."""

    model: ChatModel
    sampling: Sampling = SHORT

    @property
    def name(self) -> str:
        return f"rating:{self.model.name}"

    def judge(self, dialogues: Sequence[Dialogue]) -> list[Verdict | None]:
        found: list[Verdict | None] = [Verdict() if one.last.speaker == USER else None for one in dialogues]
        places = [at for at, verdict in enumerate(found) if verdict is None]
        ids = [content_id(self.name, dialogues[at].last.id) for at in places]
        scores = ask_until_read(self.model, [self._question(dialogues[at]) for at in places], ids, parse_score,
                                sampling=self.sampling, tries=TRIES)
        for at, score in zip(places, scores, strict=True):
            found[at] = Verdict({SCORE: float(score)}) if score is not None else None
        return found

    def _question(self, dialogue: Dialogue) -> Chat:
        persona = persona_at(dialogue.scenario, len(dialogue.by(USER)))
        return [{"role": "user", "content": RATE.format(
            profile=persona.profile, personality=persona.personality,
            message=dialogue.turns[-2].text, reply=dialogue.last.text)}]


@dataclass(frozen=True)
class ExactComparer:
    """The reply with the higher exact score; equal scores are a tie."""

    name: str = "exact"

    def compare(self, dialogues: Sequence[Dialogue], left: Sequence[str],
                right: Sequence[str]) -> list[Preference | None]:
        scores = [(exact_score(dialogue, one), exact_score(dialogue, other))
                  for dialogue, one, other in zip(dialogues, left, right, strict=True)]
        return ["left" if one > other else "right" if other > one else "tie" for one, other in scores]


@dataclass(frozen=True)
class DrawnOrderComparer:
    """A model asked "first or second?" in an order drawn anew for each question, up to three times."""

    model: ChatModel
    seed: int = 0
    sampling: Sampling = SHORT

    @property
    def name(self) -> str:
        return f"preference:{self.model.name}"

    def compare(self, dialogues: Sequence[Dialogue], left: Sequence[str],
                right: Sequence[str]) -> list[Preference | None]:
        found: list[Preference | None] = [None] * len(dialogues)
        for attempt in range(TRIES):
            open_ = [at for at, verdict in enumerate(found) if verdict is None]
            keys = [content_id(self.seed, self.name, dialogues[at].last.id, attempt) for at in open_]
            swapped = [int(key, 16) % 2 == 1 for key in keys]
            asked = [_comparison(dialogues[at], *((right[at], left[at]) if turned else (left[at], right[at])))
                     for at, turned in zip(open_, swapped, strict=True)]
            for at, turned, answer in zip(open_, swapped, self.model.chat(asked, self.sampling, keys), strict=True):
                choice = parse_choice(answer.text)
                if choice is not None:
                    found[at] = "right" if (choice == "first") == turned else "left"
        return found


def _comparison(dialogue: Dialogue, first: str, second: str) -> Chat:
    persona = persona_at(dialogue.scenario, len(dialogue.by(USER)))
    return [{"role": "user", "content": COMPARE.format(profile=persona.profile, personality=persona.personality,
                                                       message=dialogue.last.text, first=first, second=second)}]
