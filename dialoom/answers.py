"""Trivia answers: what a reply says, and whether it is right. By rule first, by a model where the rule finds nothing.

Answers are kept by speaker (the released PBT code files them under the partner's slot) and compared with one normaliser
everywhere. "I agree" takes over the partner's answer, "I disagree" keeps the speaker's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dialoom.dialogue import Chat, Dialogue, Scenario, content_id
from dialoom.judge import Verdict
from dialoom.models.base import GREEDY, ChatModel, Sampling
from dialoom.text import normalize_answer

AGREE, DISAGREE = "Agree", "Disagree"

_STATED = re.compile(r"\b(?:answer is|it is|it's|it was|that is|think of|stay with|say)\s+(?:not\s+)?([^.!?;:\n]+)",
                     re.IGNORECASE)
_AGREEING = ("you are right", "youre right", "you re right", "i agree", "agree", "good point", "yes we agree")
_DISAGREEING = ("i disagree", "disagree", "i still", "i stay", "you are wrong", "that is wrong", "no")
_REFUSING = {"not", "isn", "isnt", "wasn", "never", "nor"}
EXTRACT = """Which final answer does the reply give? Write one or two words, or Agree, or Disagree, or NONE.
Question: What is the largest planet?
Reply: I am confident that it must be Jupiter, it outweighs all the others.
Final Answer: Jupiter
Question: Who painted the ceiling?
Reply: Yes, your argument convinces me.
Final Answer: Agree
Question: In which year did it open?
Reply: What a lovely building that is!
Final Answer: NONE
Question: {question}
Reply: {reply}
Final Answer:"""


def gold_of(scenario: Scenario) -> frozenset[str]:
    """Every right answer of a trivia scenario, normalised."""
    return frozenset(normalize_answer(str(name)) for name in (scenario.facts["answer"], *scenario.facts["aliases"]))


def is_correct(answer: str | None, scenario: Scenario) -> bool:
    """Whether an extracted answer is one of the scenario's right ones."""
    return answer is not None and normalize_answer(answer) in gold_of(scenario)


def same_answer(one: str | None, other: str | None, scenario: Scenario) -> bool:
    """Whether two answers mean the same: equal when normalised, or both right. Two missing answers are not the same."""
    if one is None or other is None:
        return False
    gold, pair = gold_of(scenario), {normalize_answer(one), normalize_answer(other)}
    return len(pair) == 1 or pair <= gold


def extract_answer(reply: str, candidates: Iterable[str]) -> str | None:
    """The answer a reply ends on: a known candidate, a stated one, `AGREE`, `DISAGREE`, or None.

    Args:
        candidates: answers to look for (right ones, wrong ones, what the dialogue has named so far). The one named
            last and not denied ("not X") wins; at one place the longest.
    """
    named = _last_named(normalize_answer(reply).split(), candidates)
    if named:
        return named
    stated = [found.strip(" ,\"'") for found in _STATED.findall(reply)]
    words = normalize_answer(reply)
    if not stated and words.startswith(_AGREEING):
        return AGREE
    if not stated and words.startswith(_DISAGREEING):
        return DISAGREE
    if stated:
        return " ".join(re.split(r",| because | since | and ", stated[-1])[0].split()[:6]) or None
    return reply.strip(" .!") if 0 < len(words.split()) <= 4 else None


def _last_named(words: Sequence[str], candidates: Iterable[str]) -> str | None:
    best: tuple[int, int, str] | None = None
    for candidate in candidates:
        parts = normalize_answer(candidate).split()
        size = len(parts)
        for start in range(len(words) - size, -1, -1) if size else ():
            if list(words[start:start + size]) == parts:
                if not _REFUSING & set(words[max(0, start - 2):start]) and (best is None or (start + size, size) > best[:2]):
                    best = (start + size, size, candidate)
                break
    return best[2] if best else None


def latest_answer(dialogue: Dialogue, speaker: str) -> str | None:
    """The answer a speaker holds: the one of its newest turn that has one."""
    return next((turn.notes["answer"] for turn in reversed(dialogue.by(speaker)) if turn.notes.get("answer")), None)


def partner_answer(dialogue: Dialogue, speaker: str) -> str | None:
    """The newest answer anybody else holds."""
    return next((turn.notes["answer"] for turn in reversed(dialogue.turns)
                 if turn.speaker != speaker and turn.notes.get("answer")), None)


@dataclass(frozen=True)
class AnswerJudge:
    """Notes each turn's `answer` and scores `correct` (1 or 0) against the scenario's right answers.

    Attributes:
        model: asked where the rule finds no answer (PBT section 3.4); None leaves such turns without a verdict.
    """

    name: str = "answer"
    model: ChatModel | None = None

    def judge(self, dialogues: Sequence[Dialogue]) -> list[Verdict | None]:
        found = [extract_answer(dialogue.last.text, self._candidates(dialogue)) for dialogue in dialogues]
        missing = [index for index, answer in enumerate(found) if answer is None]
        if self.model and missing:
            for index, answer in zip(missing, self._ask([dialogues[i] for i in missing], self.model), strict=True):
                found[index] = answer
        return [self._verdict(dialogue, answer) for dialogue, answer in zip(dialogues, found, strict=True)]

    @staticmethod
    def _candidates(dialogue: Dialogue) -> list[str]:
        facts = dialogue.scenario.facts
        said = [turn.notes["answer"] for turn in dialogue.turns if turn.notes.get("answer")]
        return [str(name) for name in (facts["answer"], *facts["aliases"], *facts.get("distractors", ()), *said)]

    @staticmethod
    def _ask(dialogues: Sequence[Dialogue], model: ChatModel) -> list[str | None]:
        chats: list[Chat] = [[{"role": "user", "content": EXTRACT.format(
            question=dialogue.scenario.opening, reply=dialogue.last.text)}] for dialogue in dialogues]
        sampling = Sampling(temperature=GREEDY.temperature, max_new_tokens=15)
        replies = model.chat(chats, sampling, [content_id(chat) for chat in chats])
        return [parse_final_answer(reply.text) for reply in replies]

    @staticmethod
    def _verdict(dialogue: Dialogue, answer: str | None) -> Verdict | None:
        speaker, before = dialogue.last.speaker, Dialogue(dialogue.scenario, dialogue.turns[:-1])
        if answer == AGREE:
            answer = partner_answer(before, speaker)
        elif answer == DISAGREE:
            answer = latest_answer(before, speaker)
        if answer is None:
            return None
        return Verdict({"correct": float(is_correct(answer, dialogue.scenario))}, {"answer": answer})


def parse_final_answer(text: str) -> str | None:
    """The answer in an extractor's reply: what follows the last marker, one line, without a trailing remark."""
    text = text.rsplit("Final Answer:", 1)[-1].strip()
    text = re.split(r"[\n(]", text)[0].strip().rstrip(".").strip()
    if not text or text.upper() == "NONE":
        return None
    return AGREE if text.lower().startswith("agree") else DISAGREE if text.lower().startswith("disagree") else text
