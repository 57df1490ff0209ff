"""Trivia answers: what a reply says, and whether it is right. By rule first, by a model where the rule finds nothing.

Answers are kept by speaker (the released PBT code files them under the partner's slot) and compared with one normaliser
everywhere. "I agree" takes over the partner's answer, "I disagree" keeps the speaker's own.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from dialoom.dialogue import Chat, Dialogue, Scenario, content_id
from dialoom.judge import Verdict
from dialoom.models.base import GREEDY, ChatModel, Sampling
from dialoom.pocket.world.facts import answers_of
from dialoom.text import normalize_answer

AGREE, DISAGREE = "Agree", "Disagree"

# The patterns below, `_STATED` and `_CLAUSE_END` apart, read normalised words: no punctuation, "isn't" is "isn t".
_CLAUSE_END = re.compile(r"(?<![.,;:!?])[.,;:!?]++(?=\s|$)|[\n()\u2013\u2014]")
_DENIED_BEFORE = re.compile(  # what stands before a name that is refused
    r"\b(?:(?:not|never|nor|neither|isn t|isnt|wasn t|(?:cannot|can t|couldn t) be)(?: (?!but\b|so\b|sure\b)\w+){0,2}"
    r"|rather than|instead of|unlike|wrong about"
    r"|(?:i doubt|(?:don t|dont|do not|didn t|cannot|can t) (?:\w+ )?(?:think|believe|accept))"
    r"(?: that)?(?: it)?(?: is| was| s| could be| would be)?)$")
_DENIED_AFTER = re.compile(  # what follows one
    r"(?:(?:is|was|did|does|can|could|would) not\b(?! wrong| mistaken)|cannot\b"
    r"|(?:isn|wasn|didn|doesn|can|couldn|wouldn) t\b"
    r"|(?:is|was|s|must be|seems|sounds)(?: \w+)? (?:wrong|incorrect|mistaken|false)\b)")
_DECIDED = re.compile(r"\b(?:my|final|correct|right)(?: final)? answer(?: is| s| remains| would be)?$")
_STATED = re.compile(
    r"(?i:\b(?:answer is|it is|it['’]s|it was|(?<!\w )that(?: is|['’]s)|think of|stay with|say)\s+"
    r"(?:(?:that|it is|it['’]s|it was)\s+)*(?!not\b))((?:\b(?:St|Mt|Ft|Dr|Mr|Mrs|Ms|[A-Z])\.|[^.!?;:\n])+)")
_OPINION = re.compile(  # "it is ..." goes on like this where no answer comes
    r"(?:\w+ )?(?:right|correct|wrong|incorrect|mistaken|true|false|not|sure|certain|clear|so|possible|impossible"
    r"|likely|you|your|me|my|because|why|what|how|good|fair|fine)\b")
_SIDE = re.compile(
    r"(?P<disagree>\bdisagree|\b(?:not|don t|dont|can t|cannot|never) agree\b|^no\b"
    r"|\bi (?:am |m )?(?:still|stay|stand by|stick|keep|sure|certain)\b|\b(?:not|isn t|aren t) (?:right|correct|true)\b"
    r"|\b(?:you|that|it) (?:are|re|is|s)(?: \w+)? (?:wrong|incorrect|mistaken|false)\b)"
    r"|(?P<agree>\bagree\b|\bgood point\b|\bi stand corrected\b|\bmy mistake\b|\bi was (?:wrong|mistaken)\b"
    r"|\b(?:you|that|it) (?:are|re|were|is|s)(?: (?!not\b)\w+)? (?:right|correct|true)\b)")
_NO_ANSWER = re.compile(  # a short reply of these words alone names nothing
    r"(?:(?:yes|yeah|no|nope|none|sure|ok|okay|maybe|perhaps|possibly|certainly|indeed|i|am|m|are|do|don|t|dont|not|know"
    r"|unsure|idea|have|think|so|of|course|thank|thanks|you|hello|hi|well|hmm|sorry|what|why|how|it|is|that|this|s|we|good|me"
    r"|my|answer|still)\b ?|\W)+")
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
    forms = (scenario.facts["answer"], *scenario.facts.get("aliases", ()))
    return frozenset(normalize_answer(str(form)) for form in forms) - {""}


def is_correct(answer: str | None, scenario: Scenario) -> bool:
    """Whether an extracted answer is one of the scenario's right ones."""
    return answer is not None and _compared(answer) in gold_of(scenario)


def same_answer(one: str | None, other: str | None, scenario: Scenario) -> bool:
    """Whether two answers mean the same: equal when normalised, or both right. Two missing answers are not the same."""
    pair = {_compared(one or ""), _compared(other or "")}
    return "" not in pair and (len(pair) == 1 or pair <= gold_of(scenario))


def _compared(answer: str) -> str:
    """An answer as it is compared: cut at "(" and normalised, the rule of `text.matches`."""
    return normalize_answer(answer.split("(", 1)[0])


def extract_answer(reply: str, candidates: Iterable[str]) -> str | None:
    """The answer a reply ends on: a known candidate, a stated one, `AGREE`, `DISAGREE`, or None.

    Args:
        candidates: answers to look for (right ones, wrong ones, what the dialogue has named so far). The one named
            last and not denied ("not X", "X is wrong") wins, one called "my answer" before all; of names that lie
            within each other the longest.
    """
    reply, known = unicodedata.normalize("NFC", reply), list(candidates)
    named = _named(reply, known)
    if named:
        return named  # from here on every known answer in the reply is a denied one
    for found in reversed(_STATED.findall(reply)):
        stated = " ".join(re.split(r",| because | since | and ", found)[0].split()[:6]).strip(" ,\"'“”*")
        words = normalize_answer(stated)
        if words and not _OPINION.match(words) and not _mentions(words.split(), known):
            return stated
    words = normalize_answer(reply)
    sides = [match.lastgroup for match in _SIDE.finditer(words)]
    if sides:
        return AGREE if sides[-1] == "agree" else DISAGREE
    is_name = 0 < len(words.split()) <= 4 and not _NO_ANSWER.fullmatch(words) and not _mentions(words.split(), known)
    return reply.strip(" \n.!?\"'“”*") if is_name else None


def _named(reply: str, candidates: Iterable[str]) -> str | None:
    """The candidate the reply settles on, None if it names none that it does not deny."""
    clauses = [normalize_answer(clause).split() for clause in _CLAUSE_END.split(reply)]
    words = [word for clause in clauses for word in clause]
    where = [number for number, clause in enumerate(clauses) for _ in clause]
    settled, denied = None, set()
    for start, end, name in reversed(_mentions(words, candidates)):
        before = " ".join(words[i] for i in range(max(0, start - 8), start) if where[i] == where[start])
        after = " ".join(words[i] for i in range(end, min(end + 4, len(words))) if where[i] == where[end - 1])
        if _DENIED_BEFORE.search(before) or _DENIED_AFTER.match(after):
            denied.add(name)
        elif name not in denied:
            if _DECIDED.search(before):
                return name
            settled = settled or name
    return settled


@lru_cache(maxsize=65536)
def _parts(candidate: str) -> tuple[str, ...]:
    """A candidate's words as they are looked for."""
    return tuple(normalize_answer(unicodedata.normalize("NFC", candidate)).split())


def _mentions(words: Sequence[str], candidates: Iterable[str]) -> list[tuple[int, int, str]]:
    """(start, end, candidate) of every place where one is named, ordered by end; none lies within another."""
    places: dict[str, list[int]] = {}
    for place, word in enumerate(words):
        places.setdefault(word, []).append(place)
    spans: dict[tuple[int, int], str] = {}
    for candidate in candidates:
        parts = _parts(candidate)
        for start in places.get(parts[0], ()) if parts else ():
            if tuple(words[start:start + len(parts)]) == parts:
                spans.setdefault((start, start + len(parts)), candidate)
    found, reach = [], -1
    for (start, end), name in sorted(spans.items(), key=lambda item: (item[0][0], -item[0][1])):
        if end > reach:
            found.append((start, end, name))
            reach = end
    return found


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
        """Right answers, wrong ones, what was said so far; in the pocket world everything one could answer."""
        facts = dialogue.scenario.facts
        said = [turn.notes["answer"] for turn in dialogue.turns if turn.notes.get("answer")]
        world = answers_of(str(facts.get("relation", "")))
        return [str(name) for name in (facts["answer"], *facts.get("aliases", ()), *facts.get("distractors", ()), *said,
                                       *world)]

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
    text = re.split(r"final answer:", text, flags=re.IGNORECASE)[-1].strip()
    text = re.split(r"[\n(]", text)[0].strip(" .*\"'“”")
    words = normalize_answer(text).split()
    if not words or words == ["none"]:
        return None
    return {"agree": AGREE, "disagree": DISAGREE}.get(words[0], text)
