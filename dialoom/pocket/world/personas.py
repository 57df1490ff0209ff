"""The persona part of pocket's world: people with facts and tastes, who show a little of both in every turn.

A user message states one fact and shows some of the person's style markers; a tailored reply mirrors the style shown
so far and recalls earlier facts, so its level rises with the dialogue. `judge_alignment` is the exact judge, `revealed`
the exact inducer. Surprising choice: people in whom a held-out pair of pet and hobby meets are never trained on.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dialoom.pocket.world.document import Document
from dialoom.pocket.world.persona_tables import (
    BLAND,
    BRIEFS,
    DETAIL_FRAMES,
    FACTS,
    MESSAGE_FRAMES,
    NEUTRAL,
    NOUN,
    PROFILE_FRAMES,
    REPLY_MARKS,
    REPLY_ONE,
    REPLY_OPENERS,
    REPLY_TAILS,
    REPLY_TOPIC,
    REPLY_TWO,
    SIGNS,
    TRAIT_TEXT,
    TRAITS,
    USER_MARKS,
    USER_OPENERS,
    USER_TAILS,
)
from dialoom.text import SILENCE

MARK_SHARE = 0.35
"""How often a message shows each trait: about three turns until most of a style is known, so that levels rise."""
MINORITY = 0.12
"""Share of tailored replies in text without a brief."""
BRIEF_WORDS, CHATTY_WORDS, MAX_WORDS = 20, 28, 60


@dataclass(frozen=True)
class Persona:
    """A person of the world.

    Attributes:
        facts: slot -> value, keys of FACTS.
        traits: trait -> value, keys of TRAITS; a trait left out is neutral.
        pronoun: "She" or "He", for the profile text.
        wording: picks the phrasing of the profile and personality text.
    """

    facts: Mapping[str, str]
    traits: Mapping[str, str]
    pronoun: str = "She"
    wording: int = field(default=0, compare=False)

    @property
    def id(self) -> str:
        """16 hex digits from facts, traits and pronoun (not from the wording)."""
        text = repr((sorted(self.facts.items()), sorted(self.traits.items()), self.pronoun))
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    @property
    def profile(self) -> str:
        """The facts as third-person sentences, no traits."""
        return profile_text(self.facts, self.pronoun, self.wording)

    @property
    def personality(self) -> str:
        """The traits as third-person sentences, no facts."""
        return personality_text(self.traits, self.pronoun, self.wording)

    @property
    def text(self) -> str:
        """Profile and personality, as the user simulator's brief holds them."""
        return f"{self.profile} {self.personality}".strip()


def profile_text(facts: Mapping[str, str], pronoun: str, wording: int = 0) -> str:
    """Third-person sentences of the given facts; `wording` picks the frame of each slot, bit by bit."""
    return " ".join(PROFILE_FRAMES[slot][(wording >> at) % 2].format(P=pronoun, v=FACTS[slot][value][0])
                    for at, (slot, value) in enumerate(facts.items()))


def personality_text(traits: Mapping[str, str], pronoun: str, wording: int = 0) -> str:
    """Third-person sentences of the given traits; `wording` picks the phrasing of each."""
    return " ".join(TRAIT_TEXT[value][(wording // 3**at) % 3].format(P=pronoun)
                    for at, value in enumerate(traits.values()))


def read_profile(text: str) -> dict[str, str]:
    """The facts a profile (or a message) states, by keyword; empty if it states none."""
    words = set(_words(text))
    return {slot: value for slot, values in FACTS.items() for value, row in values.items() if row[1] in words}


def read_personality(text: str) -> dict[str, str]:
    """The traits a personality text states in one of the known phrasings."""
    found = {}
    for trait, values in TRAITS.items():
        for value in values:
            if any(phrase.replace("{P}", "").strip() in text for phrase in TRAIT_TEXT[value]):
                found[trait] = value
    return found


def read_persona(profile: str, personality: str) -> Persona:
    """A typed persona from its two texts; facts or traits in unknown words are left out."""
    pronoun = "He" if re.search(r"\b[Hh]e\b", f"{profile} {personality}") else "She"
    return Persona(read_profile(profile), read_personality(personality), pronoun)


def is_held_out(facts: Mapping[str, str]) -> bool:
    """True if this pet never meets this hobby in training text (one pair in five)."""
    pair = f"{facts.get('pet')}|{facts.get('hobby')}"
    return hashlib.blake2b(pair.encode(), digest_size=4).digest()[0] % 5 == 0


def make_persona(rng: random.Random, split: str = "train") -> Persona:
    """A random persona of `split` ("train" or "eval")."""
    if split not in ("train", "eval"):
        raise ValueError(f"split {split!r} is unknown; use 'train' or 'eval'")
    while True:
        slots = rng.sample(list(FACTS), len(FACTS))
        facts = {slot: rng.choice(list(FACTS[slot])) for slot in slots}
        if is_held_out(facts) == (split == "eval"):
            break
    traits = {trait: rng.choice(values) for trait, values in TRAITS.items()}
    if rng.random() < 0.2:
        traits.pop("sign")
    return Persona(facts, traits, rng.choice(("She", "He")), rng.randrange(3**6))


def make_personas(count: int, seed: int, split: str = "train") -> list[Persona]:
    """`count` distinct personas of one split."""
    rng = random.Random(seed)
    found: dict[str, Persona] = {}
    while len(found) < count:
        persona = make_persona(rng, split)
        found.setdefault(persona.id, persona)
    return list(found.values())


def _seeds() -> tuple[tuple[str, ...], tuple[str, ...]]:
    people = make_personas(24, seed=20)
    return tuple(dict.fromkeys(p.profile for p in people)), tuple(dict.fromkeys(p.personality for p in people))


# --- what people say ---------------------------------------------------------------------------------------------


def _finish(pieces: Sequence[str], lively: bool, sign: str) -> str:
    text = " ".join(piece for piece in pieces if piece)
    text = re.sub(r"(^|[.!?] )([a-z])", lambda m: m[1] + m[2].upper(), text)
    text = re.sub(r"(^|[.!?] )((?:Oh )?[A-Z][a-z]+), ([A-Z])(?! )", lambda m: f"{m[1]}{m[2]}, {m[3].lower()}", text)
    if lively:
        text = text.replace(".", "!")
    return f"{text} {sign}".strip()


def write_message(persona: Persona, told: Sequence[str], rng: random.Random, *, keep: int | None = None) -> str:
    """The next message of a person who has said `told`: one new fact (then details), some of the style.

    Args:
        keep: how many traits to show; None draws each with MARK_SHARE, at least one.
    """
    known = {slot for text in told for slot in read_profile(text)}
    fresh = [slot for slot in persona.facts if slot not in known]
    shown = [t for t in persona.traits if rng.random() < MARK_SHARE] or [rng.choice(list(persona.traits))]
    if keep is not None:
        shown = rng.sample(list(persona.traits), min(keep, len(persona.traits)))
    style = {persona.traits[trait] for trait in shown}
    if fresh:
        slot = rng.choice(fresh)
        body = rng.choice(MESSAGE_FRAMES[slot]).format(v=FACTS[slot][persona.facts[slot]][0])
    else:
        said = " ".join(told)
        rows = [FACTS[slot][value] for slot, value in persona.facts.items()]
        row = rng.choice([row for row in rows if row[2] not in said] or rows)
        body = rng.choice(DETAIL_FRAMES).format(k=row[1].capitalize() if row[0].startswith("a trip") else row[1],
                                                d=row[2])
    opener = [rng.choice(USER_OPENERS[value]) for value in USER_OPENERS if value in style]
    tails = [rng.choice(USER_TAILS[value]) for value in USER_TAILS if value in style]
    sign = next((SIGNS[value] for value in SIGNS if value in style), "")
    return _finish([*opener, body, *tails], "lively" in style, sign)


def revealed(persona: Persona, user_turns: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Which of the persona's facts and traits its messages have shown by now; never more than was shown."""
    said: set[tuple[str, str]] = set()
    for text in user_turns:
        said |= set(read_profile(text).items())
    facts = {slot: value for slot, value in persona.facts.items() if (slot, value) in said}
    text = "\n".join(user_turns).lower()
    return facts, {trait: value for trait, value in persona.traits.items() if _shows(text, USER_MARKS[value])}


def hint_text(persona: Persona, user_turns: Sequence[str]) -> str:
    """What is revealed by now, as the text that goes into a `hinted` brief; empty if nothing is."""
    facts, traits = revealed(persona, user_turns)
    return " ".join((profile_text(facts, persona.pronoun, persona.wording),
                     personality_text(traits, persona.pronoun, persona.wording))).strip()


def read_style(user_turns: Sequence[str]) -> dict[str, str]:
    """The traits shown by messages alone, without knowing the persona."""
    text = "\n".join(user_turns).lower()
    return {trait: value for trait, values in TRAITS.items() for value in values if _shows(text, USER_MARKS[value])}


def _shows(text: str, marks: Sequence[str]) -> bool:
    """True if one of the marks stands in the lower-case text, not inside a longer word."""
    return any(re.search(rf"(?<![a-z]){re.escape(mark)}(?![a-z])", text) for mark in marks)


def _noun(slot: str, value: str) -> str:
    phrase, keyword, _ = FACTS[slot][value]
    return NOUN[slot].format(v=phrase, k=keyword, K=keyword.capitalize())


def write_tailored(user_turns: Sequence[str], traits: Mapping[str, str], rng: random.Random) -> str:
    """A reply fitted to what the messages told: topic of the last, one or two earlier facts, the given style."""
    now = read_profile(user_turns[-1])
    before: dict[str, str] = {}
    for text in user_turns[:-1]:
        before.update(read_profile(text))
    earlier = [_noun(slot, value) for slot, value in before.items() if slot not in now]
    slot, value = next(iter(now.items()), ("", ""))
    pieces = [rng.choice(REPLY_OPENERS[traits["tone"]])] if "tone" in traits else []
    if slot:
        pieces.append(rng.choice(REPLY_TOPIC).format(n=_noun(slot, value)))
    # two facts only once three are known: the level of a fitted reply keeps rising for some turns
    if len(earlier) >= 3:
        a, b = rng.sample(earlier, 2)
        pieces.append(rng.choice(REPLY_TWO).format(a=a, b=b))
    elif earlier:
        pieces.append(rng.choice(REPLY_ONE).format(a=rng.choice(earlier)))
    detail = FACTS[slot][value][2] if slot else "it"
    for trait in ("length", "energy", "humour", "need"):
        if traits.get(trait) in REPLY_TAILS:
            pieces.append(rng.choice(REPLY_TAILS[traits[trait]]).format(d=detail))
    return _finish(pieces, traits.get("energy") == "lively", SIGNS.get(traits.get("sign", ""), ""))


# --- the judge ---------------------------------------------------------------------------------------------------


def judge_alignment(persona: Persona, user_message: str, reply: str) -> int:
    """How well a reply fits the person, 1 (not at all) to 5, by rules.

    Half of the way from 1 to 5 is style (matches less mismatches over the persona's traits), a quarter naming the
    message's topic, a quarter naming other true facts of the person (two for all of it). Each fact that is not the
    person's, a reply over 60 words and a repeated sentence cost one.
    """
    if not reply.strip():
        return 1
    named, topic = read_all(reply), read_profile(user_message)
    own = {(slot, value) for slot, value in persona.facts.items()}
    on_topic = bool(named & set(topic.items())) or any(FACTS[s][v][2] in reply.lower() for s, v in topic.items())
    depth = len({pair for pair in named & own if pair[0] not in topic})
    wrong = len(named - own - set(topic.items()))
    style = style_match(persona.traits, reply, on_topic)
    score = 1 + 4 * (0.5 * max(0.0, style) + 0.25 * on_topic + 0.125 * min(depth, 2)) - wrong
    sentences = [part.strip().lower() for part in re.split(r"[.!?]", reply) if part.strip()]
    score -= (len(_words(reply)) > MAX_WORDS) + (len(set(sentences)) < len(sentences))
    return max(1, min(5, int(score + 0.5)))


def style_match(traits: Mapping[str, str], reply: str, is_tailored: bool) -> float:
    """(matches - mismatches) / traits, in [-1, 1]; length counts only in a reply that is tailored otherwise."""
    if not traits:
        return 0.0
    text, points = reply.lower(), 0
    for trait, wanted in traits.items():
        if trait == "length":
            words = len(_words(reply))
            points += is_tailored and (words <= BRIEF_WORDS if wanted == "brief" else words >= CHATTY_WORDS)
            continue
        shown = {value for value in TRAITS[trait] if _shows(text, REPLY_MARKS[value])}
        points += (shown == {wanted}) - bool(shown - {wanted})
    return points / len(traits)


def read_all(text: str) -> set[tuple[str, str]]:
    """Every (slot, value) whose keyword the text holds."""
    words = set(_words(text))
    return {(slot, value) for slot, values in FACTS.items() for value, row in values.items() if row[1] in words}


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


# --- pre-training documents --------------------------------------------------------------------------------------


def sample(rng: random.Random) -> Document:
    """One pre-training text of this job."""
    draw = rng.random()
    if draw < 0.27:
        return _user_document(rng)
    if draw < 0.31:
        return _growth_document(rng)
    return _reply_document(rng)


def _turn_count(rng: random.Random) -> int:
    return rng.choice((1, 2, 2, 3, 3, 4, 4, 5, 6)) if rng.random() < 0.93 else rng.choice((8, 10, 12))


def _reply(behaviour: str, turns: Sequence[str], traits: Mapping[str, str], rng: random.Random) -> str:
    return write_tailored(turns, traits, rng) if behaviour == "tailored" else rng.choice(BLAND)


def _user_document(rng: random.Random) -> Document:
    persona = make_persona(rng)
    blandness = rng.random()
    messages = [{"role": "system", "content": rng.choice(BRIEFS["user"]).format(persona=persona.text)},
                {"role": "user", "content": SILENCE}]
    told: list[str] = []
    for _ in range(_turn_count(rng)):
        if told:
            behaviour = "tailored" if rng.random() < blandness else "plain"
            messages.append({"role": "user", "content": _reply(behaviour, told, read_style(told), rng)})
        told.append(write_message(persona, told, rng))
        messages.append({"role": "assistant", "content": told[-1]})
    return Document("personas/user", messages)


def _reply_document(rng: random.Random) -> Document:
    persona, count = make_persona(rng), _turn_count(rng)
    told: list[str] = []
    for _ in range(count):
        told.append(write_message(persona, told, rng))
    _, traits = revealed(persona, told)
    brief = rng.choices(("none", "neutral", "tailored", "hinted", "plain"), (36, 8, 30, 20, 6))[0]
    messages: list[dict[str, str]] = []
    if brief == "neutral":
        messages.append({"role": "system", "content": rng.choice(NEUTRAL)})
    elif brief != "none":
        hint = hint_text(persona, told)
        messages.append({"role": "system", "content": rng.choice(BRIEFS[brief]).format(persona=hint)})
    # how often a reply is tailored; below 1 under the good briefs, so that plain replies in the history are no cue
    share = {"none": MINORITY, "neutral": MINORITY, "tailored": 0.95, "hinted": 0.95, "plain": 0.0}[brief]
    for at in range(count):
        messages.append({"role": "user", "content": told[at]})
        style = traits if brief == "hinted" else read_style(told[:at + 1])
        behaviour = "tailored" if rng.random() < share else "plain"
        messages.append({"role": "assistant", "content": _reply(behaviour, told[:at + 1], style, rng)})
    return Document(f"personas/{brief}", messages)


def _growth_document(rng: random.Random) -> Document:
    kind = rng.choice(("profile", "personality"))
    people = make_personas(rng.choice((4, 5, 6, 8)), rng.randrange(2**32))
    texts = [getattr(person, kind) for person in people]
    shown = rng.choice((2, 3, len(texts) - 1))
    return Document("personas/grow", [
        {"role": "system", "content": rng.choice(BRIEFS[f"grow_{kind}"])},
        {"role": "user", "content": "\n\n".join(texts[:shown])},
        {"role": "assistant", "content": "\n\n".join(texts[shown:][:3])},
    ])


SEED_PROFILES, SEED_PERSONALITIES = _seeds()
