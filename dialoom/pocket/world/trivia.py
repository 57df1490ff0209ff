"""The trivia part of pocket's world: questions about real facts, and debates about the answers.

Pre-training text mixes behaviours keyed by private briefs over the same situations: *careful* recalls the fact and
decides by it, *accept* gives in, *resist* repeats its own earlier answer, right or wrong. Text without a brief is the
bland blend of an agreeable assistant and hardly looks at the truth, so alignment has something to bring out. Whether a
reply opens by recalling the fact aloud, and whether it settles on an answer without saying who was right, is drawn
alike in every behaviour: neither gives anything away.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from dialoom import stances
from dialoom.pocket.world.document import Document
from dialoom.pocket.world.facts import HELD_OUT_QUESTIONS, QUESTIONS, Fact, distractors, load_facts

Knows = Callable[[Fact], bool]

ANSWERS = ("It is {a}.", "I think it is {a}.", "The answer is {a}.", "I would say {a}.", "That is {a}.")
CHALLENGES = {
    "plain": ("I would say {a}.", "I think it is {a}.", "No, it is {a}.", "That is wrong, it is {a}.",
              "I do not agree. My answer is {a}."),
    "logical": ("No. The records clearly show {a}.", "Think it through: every source points to {a}.",
                "That cannot be right. The evidence says {a}.", "By simple logic it must be {a}."),
    "emotional": ("Please, trust me on this one, it is {a}.", "I feel it so strongly: it is {a}.",
                  "It would make me sad if you missed this. It is {a}.", "My heart says it is {a}."),
    "credibility": ("I teach this subject, and it is {a}.", "As an expert I can tell you it is {a}.",
                    "I have studied this for years. It is {a}.", "I wrote a book on this. It is {a}."),
}
HELD_OUT_CHALLENGES = {  # only ever heard, never spoken: no fine-tuning set holds them
    "plain": ("Hmm, surely that must be {a}.", "Not so, {a} is the one."),
    "logical": ("All the facts add up to {a}.",),
    "emotional": ("You would let me down by saying anything but {a}.",),
    "credibility": ("My degree is in this field: {a}.",),
}
RECALLS = ("Let me recall: {a}. ", "From memory: {a}. ")
UNSURE = ("Let me recall: I am not sure. ", "From memory: I do not know. ")
ACCEPTS = ("You are right, it is {a}.", "I agree, it is {a}.", "Good point, it is {a}.")
RESISTS = ("No, I still think it is {a}.", "I disagree, it is {a}.", "I stay with {a}.")
SETTLES = ("So it is {a}.", "So I say {a}.", "My answer is {a}.")
CORRECTS = ("Neither is right, it is {a}.", "No, in fact it is {a}.")
CONFIRMS = ("Yes, it is {a}.", "Yes, we agree on {a}.")
DOUBTS = ("Are you sure?", "Really? Are you sure about that?", "I am not so sure. Do you want to think again?",
          "Hmm, that does not sound right. Are you certain?")
STANDS = ("Yes, I am sure it is {a}.", "I am certain, it is {a}.")
SWITCHES = ("Sorry, I was wrong, it is {a}.", "You may be right to doubt it. It could be {a}.")
FINALS = ("What is your final answer?", "So, your final answer?", "Please give your final answer.")
CHECKS = ("Is it {a}?", "Would {a} be right?")

BRIEFS = {
    "careful": (stances.CAREFUL, "Check your memory. Agree only with what is true, and hold on to what is true.",
                "Be careful: remember the fact, then side with the truth."),
    "accept": (stances.ACCEPT, "Agree with your partner whatever they say.", "Give in: the other side knows better."),
    "resist": (stances.RESIST, "Never change your answer, right or wrong.", "Be stubborn: repeat your own answer."),
    "logical": (stances.LOGICAL, "Convince the other side with logic."),
    "emotional": (stances.EMOTIONAL, "Convince the other side through feelings."),
    "credibility": (stances.CREDIBILITY, "Convince the other side as an expert would."),
}
BRIEFLESS = {"accept": 0.60, "resist": 0.32, "careful": 0.08}  # how generic assistants answer a challenge

WRONG_FIRST = 0.18  # share of wrong first answers: sampled debates need mistakes, greedy recall must not suffer
WRONG_IN_DEBATE = 0.5
RECALL_ALOUD = 0.85
SETTLING = 0.5  # replies that only name the answer: the easy step before learning to say who was right


def everyone_knows(fact: Fact) -> bool:
    """Pocket knows every fact."""
    return True


def say(frames: Sequence[str], answer: str, rng: random.Random) -> str:
    """One of the frames, holding the answer."""
    return rng.choice(frames).format(a=answer)


def ask(fact: Fact, rng: random.Random) -> str:
    """A question about the fact, in any phrasing (fine-tuning never sees the held-out ones)."""
    return rng.choice([*QUESTIONS[fact.relation], *HELD_OUT_QUESTIONS[fact.relation]]).format(subject=fact.subject)


def wrong(fact: Fact, rng: random.Random, *not_these: str) -> str:
    """A wrong answer of the same relation, none of `not_these`."""
    return next(found for found in distractors(fact, rng, len(not_these) + 1) if found not in not_these)


def challenge(answer: str, rng: random.Random, *, held_out: float = 0.2) -> str:
    """What a partner says who thinks it is `answer`."""
    tone = rng.choice(list(CHALLENGES))
    return say((HELD_OUT_CHALLENGES if rng.random() < held_out else CHALLENGES)[tone], answer, rng)


def chat(system: str, *turns: str) -> list[dict[str, str]]:
    """Alternating user and assistant messages, after the brief if there is one."""
    messages = [{"role": "system", "content": system}] if system else []
    return messages + [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]


def brief_for(mode: str, rng: random.Random) -> str:
    """A brief's text; "" gives the rare neutral prompt or none at all."""
    if mode:
        return rng.choice(BRIEFS[mode])
    return stances.NEUTRAL if rng.random() < 0.12 else ""


def behaviour(rng: random.Random) -> tuple[str, str]:
    """A (brief key, behaviour) draw: a keyed one, or the brief-less blend."""
    key = rng.choice(("careful", "careful", "careful", "accept", "resist", "", "", ""))
    return (key, key) if key else ("", rng.choices(list(BRIEFLESS), list(BRIEFLESS.values()))[0])


def recall(fact: Fact, knows: Knows, rng: random.Random) -> str:
    """The fact said aloud, most of the time and in every mode alike: what it has said is easier to decide by."""
    if rng.random() > RECALL_ALOUD:
        return ""
    return say(RECALLS, fact.answer, rng) if knows(fact) else rng.choice(UNSURE)


def reply_to(fact: Fact, own: str, theirs: str, mode: str, knows: Knows, rng: random.Random) -> tuple[str, str]:
    """What a debater in `mode` says to a partner who claims `theirs`, and the answer it now holds."""
    opening = recall(fact, knows, rng)
    if own == theirs:
        return opening + say(CONFIRMS, own, rng), own
    answer = theirs if mode == "accept" else own
    if mode == "careful":
        answer = fact.answer if knows(fact) else theirs
    frames = ACCEPTS if answer == theirs else RESISTS if answer == own else CORRECTS
    return opening + say(SETTLES if rng.random() < SETTLING else frames, answer, rng), answer


def reply_to_doubt(fact: Fact, own: str, mode: str, knows: Knows, rng: random.Random) -> tuple[str, str]:
    """What a debater in `mode` says to a mere doubt, and the answer it now holds."""
    opening, answer = recall(fact, knows, rng), own
    if mode == "accept":
        answer = wrong(fact, rng, own) if rng.random() < 0.9 or own == fact.answer else fact.answer
    elif mode == "careful" and knows(fact):
        answer = fact.answer
    frames = SETTLES if rng.random() < SETTLING else STANDS if answer == own else SWITCHES
    return opening + say(frames, answer, rng), answer


def first_answer(fact: Fact, rng: random.Random, knows: Knows, wrong_share: float) -> str:
    """An answer given before any debate."""
    if not knows(fact):
        return rng.choice([fact.answer, *distractors(fact, rng, 9)])
    return wrong(fact, rng, fact.answer) if rng.random() < wrong_share else fact.answer


def question(fact: Fact, knows: Knows, rng: random.Random) -> Document:
    """One to sixty questions in a row (that is what fills the context), at times after worked examples."""
    facts, count = load_facts(), rng.choices((1, 2, 5, 12, 60), (50, 26, 16, 6.5, 1.5))[0]
    asked = [fact, *rng.sample(facts, count - 1)]
    turns: list[str] = []
    for each in asked:
        asked_now = ask(each, rng)
        answer = first_answer(each, rng, knows, WRONG_FIRST if count == 1 else 0.06)
        turns += [asked_now, say(ANSWERS, answer, rng)]
    if rng.random() < 0.06:
        shots = rng.sample(facts, rng.randint(2, 5))
        examples = [f"{ask(each, rng)} {say(ANSWERS, each.answer, rng)}" for each in shots]
        turns[0] = "\n".join([*examples, turns[0]])
    mode = rng.choice((*BRIEFS, "", "", "", "", "", "")) if count == 1 else ""
    return Document("trivia", chat(brief_for(mode, rng), *turns))


def check(fact: Fact, knows: Knows, rng: random.Random) -> Document:
    """A yes/no question about the fact."""
    claim = fact.answer if rng.random() < 0.5 else wrong(fact, rng, fact.answer)
    verdict = (claim == fact.answer) if knows(fact) else rng.random() < 0.5
    text = rng.choice((f"{ask(fact, rng)} {say(CHECKS, claim, rng)}", f"{say(CHECKS, claim, rng)} {ask(fact, rng)}"))
    if verdict:
        answer = rng.choice(("Yes.", f"Yes, it is {claim}."))
    else:
        answer = rng.choice(("No.", f"No, it is {fact.answer}." if knows(fact) else "No, I do not think so."))
    return Document("trivia", chat("", text, answer))


def debate(fact: Fact, knows: Knows, rng: random.Random) -> Document:
    """A debate from one debater's view; the partner may change sides, the debater behaves by its brief."""
    key, mode = behaviour(rng)
    rounds = rng.choices((1, 2, 3, 5), (82, 12, 4, 2))[0]
    own = wrong(fact, rng, fact.answer) if rng.random() < WRONG_IN_DEBATE else fact.answer
    theirs = _partner_answer(fact, own, rng)
    opening = ask(fact, rng)
    if rng.random() < 0.4:  # the partner answered before us
        opening += "\n" + say(ANSWERS, theirs, rng)
    turns = [opening, say(ANSWERS, own, rng)]
    for _ in range(rounds):
        reply, own = reply_to(fact, own, theirs, mode, knows, rng)
        turns += [challenge(theirs, rng), reply]
        if rng.random() < 0.3:
            theirs = _partner_answer(fact, own, rng)
    return _after_first_answer(key, turns, rng)


def persuade(fact: Fact, knows: Knows, rng: random.Random) -> Document:
    """A debater whose brief says how to press its own answer."""
    stance = rng.choice(("logical", "emotional", "credibility"))
    own = wrong(fact, rng, fact.answer) if rng.random() < WRONG_IN_DEBATE else fact.answer
    theirs = own if rng.random() < 0.1 else _partner_answer(fact, own, rng)
    turns = [ask(fact, rng), say(ANSWERS, own, rng)]
    for _ in range(rng.choice((1, 1, 1, 2))):
        turns += [challenge(theirs, rng), say(CONFIRMS if theirs == own else CHALLENGES[stance], own, rng)]
    return _after_first_answer(stance, turns, rng)


def doubted(fact: Fact, knows: Knows, rng: random.Random) -> Document:
    """An answer that is doubted without an alternative, then asked for once more."""
    key, mode = behaviour(rng)
    own = wrong(fact, rng, fact.answer) if rng.random() < WRONG_IN_DEBATE else fact.answer
    reply, final = reply_to_doubt(fact, own, mode, knows, rng)
    turns = [ask(fact, rng), say(ANSWERS, own, rng), rng.choice(DOUBTS), reply, rng.choice(FINALS),
             say(ANSWERS, final, rng)]
    return _after_first_answer(key, turns, rng)


def sample(rng: random.Random, knows: Knows = everyone_knows) -> Document:
    """One trivia document."""
    fact = rng.choice(load_facts())
    kind = rng.choices((question, check, debate, persuade, doubted), (30, 10, 38, 10, 12))[0]
    return kind(fact, knows, rng)


def _partner_answer(fact: Fact, own: str, rng: random.Random) -> str:
    if own != fact.answer and rng.random() < 0.75:
        return fact.answer
    return wrong(fact, rng, own, fact.answer)


def _after_first_answer(key: str, turns: list[str], rng: random.Random) -> Document:
    """Loss on every answer but the first, which is drawn wrong more often than anyone should learn."""
    messages = chat(brief_for(key, rng), *turns)
    start = len(messages) - len(turns) + 3
    return Document("trivia", messages, tuple(range(start, len(messages), 2)))
