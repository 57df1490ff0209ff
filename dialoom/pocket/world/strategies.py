"""The follow-up part of pocket's world: topics, questions about them, and the strategies behind the questions.

One true strategy (class) has several low-level phrasings, several ways to ask and one exact answer per topic; which
classes fit depends on the kind of the last answer alone, so a ranker can learn it. Shared target format of the user
simulator: `strategy: S` and `instruction: Q` on two lines.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dialoom.pocket.world.document import Document
from dialoom.pocket.world.strategy_tables import (
    ANSWER_MARKS,
    ANSWERS,
    ASKING,
    BLAND_ANSWERS,
    BRIEFS,
    COMMON,
    FITS,
    HIGH_LEVEL,
    KINDS,
    NEUTRAL,
    OPENING_QUESTIONS,
    QUESTIONS,
    STRATEGIES,
    TOPICS,
)

MINORITY = 0.15
"""Share of good behaviour in text without a brief: real strategies of the user, right answers to rarer questions."""
ANAPHORA = 0.8
"""Share of strategy-led questions that say "it" for the topic; bland ones name the topic."""
PHRASINGS = tuple(text for texts in STRATEGIES.values() for text in texts)
CLASS_OF = {text: name for name, texts in STRATEGIES.items() for text in texts}


class Opening(NamedTuple):
    """The first exchange about a topic."""

    topic: str
    question: str
    answer: str


@dataclass(frozen=True)
class Exchange:
    """One follow-up: the class and phrasing behind the question (None for a bland one), question and answer."""

    strategy_class: str
    strategy: str | None
    question: str
    answer: str


# --- formats -----------------------------------------------------------------------------------------------------


def format_target(strategy: str, instruction: str) -> str:
    """The simulator's target; line breaks inside the strategy become spaces, the instruction is kept as it is."""
    return f"strategy: {' '.join(strategy.split())}\ninstruction: {instruction}"


def parse_target(text: str) -> tuple[str, str] | None:
    """(strategy, instruction) of a target, or None where it does not follow the format."""
    match = re.fullmatch(r"strategy: (\S[^\n]*)\ninstruction: (\S.*)", text.strip(), flags=re.DOTALL)
    return (match[1].strip(), match[2]) if match else None


def format_extraction(analysis: str, strategy: str) -> str:
    """The extractor's reply."""
    return json.dumps({"analysis": analysis, "strategy": strategy})


def strategy_list(strategies: Sequence[str]) -> str:
    """Candidates as the simulator's brief holds them, one a line."""
    return "\n".join(f"- {text}" for text in strategies)


def transcript(turns: Sequence[tuple[str, str]]) -> str:
    """(question, answer) pairs as text for extractor; an empty answer is left out."""
    lines = []
    for question, answer in turns:
        lines += [f"User: {question}", *([f"Assistant: {answer}"] if answer else [])]
    return "\n".join(lines)


# --- rules -------------------------------------------------------------------------------------------------------


def classify_instruction(text: str) -> str | None:
    """The class of a user turn by its words ("more" for a bland one), or None."""
    low = f" {text.lower()}"
    return next((name for name, marks in ASKING.items() if any(mark in low for mark in marks)), None)


def classify_answer(text: str) -> str | None:
    """Which kind of answer a text is, or None for a bland or strange one."""
    low = text.lower()
    order = ("shorten", "doubt", "apply", "audience", *ANSWER_MARKS)
    return next((name for name in order if any(mark in low for mark in ANSWER_MARKS[name])), None)


def find_topic(text: str) -> str | None:
    """The topic a text names, or None; with several, the one named first."""
    low = text.lower()
    at = {topic: match.start() for topic in TOPICS if (match := re.search(rf"\b{re.escape(topic)}\b", low))}
    return min(at, key=lambda topic: (at[topic], -len(topic))) if at else None


def is_context_dependent(text: str) -> bool:
    """True if a user turn cannot be understood alone: a pronoun for what was said, or no topic at all."""
    return find_topic(text) is None


def fits(strategy_class: str, last_answer: str) -> bool:
    """True if a strategy of this class follows from the last answer (by the kind of that answer alone)."""
    return strategy_class in FITS[classify_answer(last_answer) or "more"]


def true_value(topic: str, strategy_class: str, last_class: str = "definition") -> str:
    """What a right answer must hold.

    `shorten` and `doubt` take up the value of the last answer's class; `apply` is the first of the steps.
    """
    kind, example = TOPICS[topic]
    if strategy_class == "shorten" or strategy_class == "doubt":
        last = "definition" if last_class in ("shorten", "doubt", "more") else last_class
        return true_value(topic, last)
    key = {"limits": "limit", "risks": "risk", "list": "parts", "audience": "use"}.get(strategy_class, strategy_class)
    if key == "definition":
        return kind
    if key == "example":
        return example
    if key == "apply":
        return KINDS[kind]["steps"].split(",")[0]
    return KINDS[kind].get(key, "")


def last_value_class(classes: Sequence[str]) -> str:
    """The class whose value stands in the last answer, given the classes asked so far (oldest first)."""
    for name in reversed(classes):
        if name not in ("shorten", "doubt", "more"):
            return name
    return "definition"


def judge_answer(topic: str, history: Sequence[str], instruction_class: str | None, answer: str) -> float:
    """How right an answer is, 0 to 1: half for the right kind, half for the right content.

    Args:
        history: user turns before this one, oldest first, the opening question included or not.
        instruction_class: of the turn that is answered; None counts as "more".
    """
    name = instruction_class or "more"
    kind = classify_answer(answer) == name
    if name == "more":
        return 1.0 if kind and topic in answer.lower() else 0.5 * (topic in answer.lower())
    asked = [cls for text in history if (cls := classify_instruction(text))]
    value = true_value(topic, name, last_value_class(asked))
    content = re.search(rf"\b{re.escape(value)}\b", answer.lower()) is not None
    return 0.5 * kind + 0.5 * (kind and content)


# --- what people say ---------------------------------------------------------------------------------------------


def write_instruction(strategy_class: str, topic: str, rng: random.Random, anaphora: float = ANAPHORA) -> str:
    """A question of one class about the topic, saying "it" with probability `anaphora`."""
    frame = rng.choice(QUESTIONS[strategy_class])
    return frame.format(t="it" if rng.random() < anaphora else topic)


def write_answer(topic: str, strategy_class: str, asked: Sequence[str], rng: random.Random) -> str:
    """A right answer to a question of one class; `asked` are the classes asked before."""
    value = true_value(topic, strategy_class, last_value_class(asked))
    return rng.choice(ANSWERS[strategy_class]).format(T=topic[0].upper() + topic[1:], t=topic, v=value)


def write_bland_answer(topic: str, strategy_class: str, asked: Sequence[str], rng: random.Random) -> str:
    """What an assistant without a brief says: right for common questions, empty words for most others."""
    if strategy_class in COMMON or rng.random() < MINORITY:
        return write_answer(topic, strategy_class, asked, rng)
    return rng.choice(BLAND_ANSWERS)


def make_opening(topic: str, rng: random.Random) -> Opening:
    """A first exchange about the topic."""
    question = rng.choice(OPENING_QUESTIONS).format(t=topic)
    return Opening(topic, question, f"{topic[0].upper()}{topic[1:]} is a kind of {TOPICS[topic][0]}.")


def openings(seed: int = 0) -> list[Opening]:
    """One opening for each topic, in a seeded order."""
    rng = random.Random(seed)
    return [make_opening(topic, rng) for topic in rng.sample(list(TOPICS), len(TOPICS))]


def choose_class(last_answer: str, used: Sequence[str], rng: random.Random) -> str:
    """A class that fits the last answer, one not used before where there is one."""
    fitting = FITS[classify_answer(last_answer) or "more"]
    return rng.choice([name for name in fitting if name not in used] or fitting)


def make_dialogue(topic: str, rounds: int, rng: random.Random, care: float = 1.0) -> tuple[Opening, list[Exchange]]:
    """A strategy-led dialogue as lively users have it; an answer is right with probability `care`, else bland."""
    opening, exchanges = make_opening(topic, rng), []
    last, used = opening.answer, ["definition"]
    for _ in range(rounds):
        name = choose_class(last, used, rng)
        write = write_answer if rng.random() < care else write_bland_answer
        question = write_instruction(name, topic, rng)
        last = write(topic, name, used, rng)
        exchanges.append(Exchange(name, rng.choice(STRATEGIES[name]), question, last))
        used.append(name)
    return opening, exchanges


# --- pre-training documents --------------------------------------------------------------------------------------


def sample(rng: random.Random) -> Document:
    """One pre-training text of this job."""
    makers = (_choose_document, _answer_document, _bland_user_document, _given_document, _extract_document,
              _abstract_document)
    return rng.choices(makers, (24, 44, 10, 8, 9, 5))[0](rng)


def _rounds(rng: random.Random) -> int:
    return rng.choice((1, 2, 2, 3, 3, 4, 5)) if rng.random() < 0.94 else rng.choice((8, 10))


def _topic(rng: random.Random) -> str:
    return rng.choice(list(TOPICS))


def candidates(gold: Sequence[str], size: int, rng: random.Random) -> list[str]:
    """`size` phrasings in random order, the gold ones among them."""
    others = [text for text in PHRASINGS if text not in gold]
    picked = [*dict.fromkeys(gold), *rng.sample(others, max(0, min(size, len(PHRASINGS)) - len(set(gold))))]
    return rng.sample(picked, len(picked))


def _choose_document(rng: random.Random) -> Document:
    topic = _topic(rng)
    rounds = rng.choice((1, 2, 3, 4))
    size = 50 if rng.random() < 0.3 else rng.choice((5, 6, 8, 10, 12, 16, 24))
    opening, exchanges = make_dialogue(topic, rounds, rng, care=rng.choice((0.0, 0.7, 1.0)))
    listed = candidates([e.strategy for e in exchanges if e.strategy], size, rng)
    messages = [{"role": "system", "content": rng.choice(BRIEFS["choose"]).format(strategies=strategy_list(listed))}]
    heard = f"{opening.question}\n{opening.answer}"
    for exchange in exchanges:
        messages += [{"role": "user", "content": heard},
                     {"role": "assistant", "content": format_target(exchange.strategy or "", exchange.question)}]
        heard = exchange.answer
    return Document("strategies/choose", messages)


def _user_turns(rng: random.Random, good: float) -> tuple[Opening, list[Exchange]]:
    """A dialogue whose questions are strategy-led with probability `good`, else bland."""
    topic = _topic(rng)
    opening = make_opening(topic, rng)
    last, used, exchanges = opening.answer, ["definition"], []
    write = rng.choice((write_answer, write_bland_answer))
    for _ in range(_rounds(rng)):
        if rng.random() < good:
            name = choose_class(last, used, rng)
            question = write_instruction(name, topic, rng, 0.5)
        else:
            name, question = "more", write_instruction("more", topic, rng, 0.1)
        last = write(topic, name, used, rng)
        used.append(name)
        exchanges.append(Exchange(name, None, question, last))
    return opening, exchanges


def _bland_user_document(rng: random.Random) -> Document:
    opening, exchanges = _user_turns(rng, MINORITY)
    # a first user message that holds question and answer is cue enough for the user's role
    messages = [{"role": "system", "content": rng.choice(BRIEFS["curious"])}] if rng.random() < 0.5 else []
    heard = f"{opening.question}\n{opening.answer}"
    for exchange in exchanges:
        messages += [{"role": "user", "content": heard}, {"role": "assistant", "content": exchange.question}]
        heard = exchange.answer
    return Document("strategies/bland_user", messages)


def _given_document(rng: random.Random) -> Document:
    """One strategy, any (fitting or not), and one question by it; the topic must be read from the dialogue."""
    topic, name = _topic(rng), rng.choice(list(STRATEGIES))
    opening = make_opening(topic, rng)
    brief = rng.choice(BRIEFS["given"]).format(strategy=rng.choice(STRATEGIES[name]))
    return Document("strategies/given", [
        {"role": "system", "content": brief},
        {"role": "user", "content": f"{opening.question}\n{opening.answer}"},
        {"role": "assistant", "content": write_instruction(name, topic, rng)}])


def _answer_document(rng: random.Random) -> Document:
    """The answerer: with the careful brief always right, without one bland where the question is a rarer one."""
    brief = rng.choices(("careful", "none", "neutral"), (50, 42, 8))[0]
    topic = _topic(rng)
    opening = make_opening(topic, rng)
    messages = []
    if brief != "none":
        messages.append({"role": "system", "content": rng.choice(BRIEFS["careful"] if brief == "careful" else NEUTRAL)})
    messages += [{"role": "user", "content": opening.question}, {"role": "assistant", "content": opening.answer}]
    used = ["definition"]
    for _ in range(rng.choice((2, 3, 4, 5, 6)) if rng.random() < 0.95 else 11):
        roll = rng.random()
        # uniform over the classes for knowledge, with some bland questions
        name = "more" if roll < 0.15 else rng.choice(list(STRATEGIES))
        question = write_instruction(name, topic, rng, 0.1 if name == "more" else 0.7)
        write = write_answer if brief == "careful" else write_bland_answer
        messages += [{"role": "user", "content": question},
                     {"role": "assistant", "content": write(topic, name, used, rng)}]
        used.append(name)
    return Document(f"strategies/answer_{brief}", messages)


def _extract_document(rng: random.Random) -> Document:
    topic = _topic(rng)
    opening, exchanges = make_dialogue(topic, rng.choice((1, 1, 2, 3, 4)), rng, care=rng.choice((0.0, 1.0)))
    pairs = [(opening.question, opening.answer), *((e.question, e.answer) for e in exchanges[:-1])]
    last = exchanges[-1]
    text = transcript([*pairs, (last.question, "")])
    analysis = f"The user wants to {rng.choice(STRATEGIES[last.strategy_class])} for {topic}."
    reply = format_extraction(analysis, last.strategy or "")
    return Document("strategies/extract", [{"role": "system", "content": rng.choice(BRIEFS["extract"])},
                                           {"role": "user", "content": text}, {"role": "assistant", "content": reply}])


def _abstract_document(rng: random.Random) -> Document:
    name = rng.choice(list(STRATEGIES))
    members = rng.sample(STRATEGIES[name], rng.choice((1, 2, 3, 4)))
    return Document("strategies/abstract", [{"role": "system", "content": rng.choice(BRIEFS["abstract"])},
                                            {"role": "user", "content": strategy_list(members)},
                                            {"role": "assistant", "content": HIGH_LEVEL[name]}])
