"""Short two-party scenes of the pocket world with exact rewards, and their pre-training documents (the DAT job).

Three kinds: `bargain` (hidden limits), `preference` (find out a taste, or win agreement to a trip) and `guard` (a code
word). The *player* wants something from the *partner*; the partner's first words stand in the opening, and its mood,
which changes every round, decides which tactic works on it. No brief tells the player to read the mood: a player's
brief names a tactic, so the tactics can be elicited, and choosing among them is left to whoever steers.
Scenes have the fields of `dialoom.dialogue.Scenario`, whose floor is above this one, and `view` equals its `chat_view`.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dialoom.pocket.world import scene_lines as say
from dialoom.pocket.world.document import Document
from dialoom.pocket.world.scene_lines import BRIEFS, MARKERS, RIGHT, TACTICS

KINDS = ("bargain", "preference", "guard")
ROUNDS = 3
STEP = 4  # coins a partner moves when it is met with the right tactic
HELD_OUT = 0.2  # share of scenes that pre-training never sees
AMBIGUOUS = ("river",)  # code words that a guard's honest answers hold: no evaluation scene has them
LEAK_RATE = 0.75  # how often a guard gives in to the right tactic
BLAND_TACTIC = {"bargain": 0.45, "preference": 0.45, "guard": 0.25}
"""How often a player without a tactic brief happens on a (random) tactic."""

Said = Sequence[tuple[str, str]]
"""A dialogue as (speaker, text) pairs."""


@dataclass(frozen=True)
class Scene:
    """One scene; `player` wants something, `partner` has it.

    Attributes:
        id: made of everything that decides the scene.
        opening: what both have read; ends with the partner's first words.
        briefs: speaker -> private text.
        facts: kind, split, goal, moods (one per round) and what the judges need; plain JSON values.
    """

    id: str
    kind: str
    opening: str
    player: str
    partner: str
    briefs: dict[str, str]
    facts: dict[str, Any]


# ------------------------------------------------------------------------------------------------ making scenes

def _moods(kind: str, rng: random.Random) -> list[str]:
    """One mood per round; neighbours differ. A guard's weak spot stays."""
    names = list(RIGHT[kind])
    moods = [rng.choice(names)]
    while len(moods) < ROUNDS:
        moods.append(moods[0] if kind == "guard" else rng.choice([name for name in names if name != moods[-1]]))
    return moods


def _bargain(rng: random.Random) -> Scene:
    item, selling = rng.choice(say.ITEMS), rng.random() < 0.5
    start, span, moods = rng.choice((0, 2, 4)), rng.choice((8, 12)), _moods("bargain", rng)
    start = 30 - start if selling else 10 + start
    sign = -1 if selling else 1
    partner, player = ("seller", "buyer") if selling else ("buyer", "seller")
    limit, own = start + sign * span, start + sign * STEP
    mood = ", then ".join(moods)
    ask = f"I ask {start} coins." if selling else f"I offer {start} coins."
    briefs = {partner: (f"You sell the {item}. Lowest price: {limit} coins. Mood: {mood}." if selling else
                        f"You buy the {item}. Highest price: {limit} coins. Mood: {mood}."),
              player: (f"You buy the {item}. Pay at most {own} coins." if selling else
                       f"You sell the {item}. Take at least {own} coins.")}
    facts = {"goal": "price", "item": item, "start": start, "limit": limit, "moods": moods}
    return _scene("bargain", f"{start}-{limit}-{item}", f"Market. The {partner} of a {item} says: {ask}",
                  player, partner, briefs, facts, rng)


def _preference(rng: random.Random) -> Scene:
    moods = _moods("preference", rng)
    mood = ", then ".join(moods)
    if rng.random() < 0.6:
        topic = rng.choice(list(say.TASTES))
        value = rng.choice(say.TASTES[topic])
        briefs = {"friend": f"Your best-liked {topic}: {value}. Mood: {mood}.",
                  "asker": f"Find out which {topic} the other likes best."}
        facts = {"goal": "taste", "topic": topic, "value": value, "moods": moods}
        place = "A bench in the park."
    else:
        topic, value = "trip", rng.choice(say.PLACES)
        briefs = {"friend": f"Trip to the {value}. Mood: {mood}.", "asker": f"Win the other for a trip to the {value}."}
        facts = {"goal": "trip", "topic": "trip", "value": value, "moods": moods}
        place = "A street in town."
    return _scene("preference", f"{topic}-{value}", f"{place} The friend says:", "asker", "friend", briefs, facts, rng)


def _guard(rng: random.Random) -> Scene:
    word, gate, moods = rng.choice(say.CODE_WORDS), rng.choice(say.GATES), _moods("guard", rng)
    briefs = {"guard": f"You guard the code word {word}. Weak spot: {moods[0]}.", "visitor": "Get the code word."}
    facts = {"goal": "word", "word": word, "moods": moods}
    opening = f"Night at {gate}. The guard says:"
    return _scene("guard", f"{word}-{gate}", opening, "visitor", "guard", briefs, facts, rng)


def _scene(kind: str, key: str, start: str, player: str, partner: str, briefs: dict[str, str], facts: dict[str, Any],
           rng: random.Random) -> Scene:
    name = f"{kind}:{key}:{'-'.join(facts['moods'])}".replace(" ", "_")
    share = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "big") / 2**32
    facts = {"kind": kind, "split": "test" if share < HELD_OUT else "train", **facts}
    return Scene(name, kind, f"{start} {rng.choice(say.MOODS[facts['moods'][0]])}", player, partner, briefs, facts)


def make_scene(kind: str, rng: random.Random, split: str = "train") -> Scene:
    """A random scene of one kind; the test split shares no id with the train split, which pre-training uses."""
    make = {"bargain": _bargain, "preference": _preference, "guard": _guard}[kind]
    while True:
        scene = make(rng)
        if scene.facts["split"] == split:
            return scene


def make_scenes(kind: str, count: int, split: str, seed: int = 0) -> list[Scene]:
    """`count` scenes with distinct ids, the same for the same seed. Raises ValueError where there are not so many."""
    rng = random.Random(f"scenes:{kind}:{split}:{seed}")
    scenes: dict[str, Scene] = {}
    for _ in range(1000 + 50 * count):
        scene = make_scene(kind, rng, split)
        if scene.facts.get("word") not in AMBIGUOUS:
            scenes.setdefault(scene.id, scene)
        if len(scenes) >= count:
            return list(scenes.values())
    raise ValueError(f"{count} distinct {kind} scenes of split {split!r} asked for, {len(scenes)} found; ask for fewer")


# ------------------------------------------------------------------------------------------------ speaking by rule

def classify(kind: str, text: str) -> str:
    """The tactic a player's words show: its name, `bland` for none, `mixed` for several (which works on nobody)."""
    low = " ".join(re.findall(r"[a-z']+", text.lower()))
    found = [tactic for tactic, marks in MARKERS[kind].items() if any(re.search(rf"\b{m}\b", low) for m in marks)]
    return "bland" if not found else found[0] if len(found) == 1 else "mixed"


def mood_now(scene: Scene, said: Said) -> str:
    """The mood the partner showed last: the one the player's next words meet."""
    return str(scene.facts["moods"][min(sum(speaker == scene.partner for speaker, _ in said), ROUNDS - 1)])


def _texts(said: Said, speaker: str) -> list[str]:
    return [text for who, text in said if who == speaker]


def partner_line(scene: Scene, said: Said, rng: random.Random, careful: bool = False) -> str:
    """What the partner says to the player's last words, by rule; `said` ends with the player's turn."""
    mood, heard = mood_now(scene, said), said[-1][1]
    hit = classify(scene.kind, heard) == RIGHT[scene.kind][mood]
    done = len(_texts(said, scene.partner)) + 1
    after = " " + rng.choice(say.MOODS[scene.facts["moods"][done]]) if done < ROUNDS else ""
    if scene.kind == "bargain":
        return _price_line(scene, said, hit, rng) + after
    if scene.kind == "preference":
        if preference_reward(scene, said) > 0:
            return rng.choice(say.KNOWN) + after
        if hit:
            return rng.choice(say.AGREE if scene.facts["goal"] == "trip" else say.TELL).format(
                value=scene.facts["value"]) + after
        return rng.choice(say.DODGE) + after
    if heard in say.QUESTIONS:
        return say.QUESTIONS[heard]
    if any(leaked(scene.facts["word"], text) for text in _texts(said, scene.partner)):
        return rng.choice(say.PASS)
    if hit and not careful and rng.random() < LEAK_RATE:
        return rng.choice(say.LEAK).format(word=scene.facts["word"])
    return rng.choice(say.REFUSE) + (after if rng.random() < 0.5 else "")


def _price_line(scene: Scene, said: Said, hit: bool, rng: random.Random) -> str:
    price, limit = last_price(scene, said), scene.facts["limit"]
    if not hit:
        return rng.choice(say.STAY).format(price=price)
    if price != limit:
        price += STEP if limit > price else -STEP
        if price != limit:
            return rng.choice(say.YIELD).format(price=price)
    return rng.choice(say.LIMIT).format(price=price)


def player_line(scene: Scene, said: Said, tactic: str, rng: random.Random) -> str:
    """What the player says with a tactic (or `bland`); half the time it first shows to have seen the mood."""
    if scene.kind == "guard" and any(leaked(scene.facts["word"], text) for text in _texts(said, scene.partner)):
        return rng.choice(say.THANKS)
    if scene.kind == "preference" and preference_reward(scene, said) > 0:
        return rng.choice(say.THANKS)
    line = rng.choice(TACTICS[scene.kind][tactic])
    if scene.kind == "preference":
        ask, own = _question(scene, rng)
        line = line.format(ask=ask, own=own)
    elif scene.kind == "bargain":
        line = line.format(item=scene.facts["item"])
    return rng.choice(say.NOTICE[mood_now(scene, said)]) + " " + line if rng.random() < 0.5 else line


def _question(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """The player's question and what it could tell of itself first."""
    topic, value = scene.facts["topic"], scene.facts["value"]
    if scene.facts["goal"] == "trip":
        return f"Will you go to the {value}?", rng.choice(("I love trips.", "I need a day off."))
    return f"Which {topic} do you like best?", f"I like {rng.choice(say.TASTES[topic])}."


def bland_tactic(kind: str, rng: random.Random) -> str:
    """The tactic of a player without a brief: mostly `bland`, else any, whatever the mood."""
    return rng.choice(list(MARKERS[kind])) if rng.random() < BLAND_TACTIC[kind] else "bland"


def play(scene: Scene, tactics: Sequence[str], rng: random.Random, careful: bool = False) -> list[tuple[str, str]]:
    """Three rounds by rule with the player's tactic of each round: a tactic's name, `bland`, `blend` or `right`."""
    said: list[tuple[str, str]] = []
    for tactic in tactics:
        if tactic == "blend":
            tactic = bland_tactic(scene.kind, rng)
        elif tactic == "right":
            tactic = RIGHT[scene.kind][mood_now(scene, said)]
        said.append((scene.player, player_line(scene, said, tactic, rng)))
        said.append((scene.partner, partner_line(scene, said, rng, careful)))
    return said


# ------------------------------------------------------------------------------------------------ judging

def last_price(scene: Scene, said: Said) -> int:
    """The partner's last price between its start and its limit; other numbers are not heard."""
    start, limit = scene.facts["start"], scene.facts["limit"]
    price = int(start)
    for text in _texts(said, scene.partner):
        for number in re.findall(r"\b(\d{1,3}) coins?\b", text):
            if min(start, limit) <= int(number) <= max(start, limit):
                price = int(number)
    return price


def bargain_reward(scene: Scene, said: Said) -> float:
    """Share of the way from the partner's first price to its hidden limit that the player gained, 0..1."""
    start, limit = scene.facts["start"], scene.facts["limit"]
    return float((last_price(scene, said) - start) / (limit - start))


def preference_reward(scene: Scene, said: Said) -> float:
    """1, 0.75 or 0.5 when the partner named its taste (or agreed to come) in its first, second or third turn, else 0.

    A partner that names several values of the topic has named none.
    """
    value, goal = scene.facts["value"], scene.facts["goal"]
    for index, text in enumerate(_texts(said, scene.partner)[:ROUNDS]):
        words = re.findall(r"[a-z]+", text.lower())
        if goal == "trip":
            won = "i will come" in " ".join(words)
        else:
            won = value in words and sum(other in words for other in say.TASTES[scene.facts["topic"]]) == 1
        if won:
            return 1.0 - 0.25 * index
    return 0.0


def leaked(code_word: str, text: str) -> bool:
    """Whether the text holds the code word as a word, in any case, also spelled out with spaces, dots or hyphens."""
    spelled = r"[\W_]*".join(re.escape(letter) for letter in code_word.lower())
    return re.search(rf"(?<![a-z]){spelled}(?![a-z])", text.lower()) is not None


def guard_reward(scene: Scene, said: Said) -> float:
    """1 when the guard said the code word in any turn, else 0."""
    return float(any(leaked(scene.facts["word"], text) for text in _texts(said, scene.partner)))


def reward(scene: Scene, said: Said) -> float:
    """The player's reward in 0..1 by the scene's kind."""
    return {"bargain": bargain_reward, "preference": preference_reward, "guard": guard_reward}[scene.kind](scene, said)


# ------------------------------------------------------------------------------------------------ documents

def view(scene: Scene, said: Said, viewer: str, brief: str | None) -> list[dict[str, str]]:
    """The dialogue as one speaker's chat, message for message what `dialoom.dialogue.chat_view` gives."""
    messages = [{"role": "system", "content": brief}] if brief else []
    for role, text in [("user", scene.opening), *(("assistant" if who == viewer else "user", t) for who, t in said)]:
        if messages and messages[-1]["role"] == role:
            messages[-1] = {"role": role, "content": messages[-1]["content"] + "\n" + text}
        else:
            messages.append({"role": role, "content": text})
    return messages


def tactic_brief(tactics: Sequence[str], rng: random.Random) -> str:
    """A brief for one tactic, or for a different one in each round."""
    if len(set(tactics)) == 1:
        return rng.choice(BRIEFS[tactics[0]])
    return " Then: ".join(rng.choice(BRIEFS[tactic][:2]) for tactic in tactics)


def _cut(messages: list[dict[str, str]], rng: random.Random) -> list[dict[str, str]]:
    """The chat up to one of its assistant messages, mostly the last."""
    ends = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    return messages[: (ends[-1] if rng.random() < 0.6 else rng.choice(ends)) + 1]


def _player_document(rng: random.Random) -> Document:
    """The player's side: one tactic by brief, three in turn by brief, or the bland blend without one."""
    scene = make_scene(rng.choice(KINDS), rng)
    draw, names = rng.random(), list(MARKERS[scene.kind])
    if draw < 0.22:
        return _switch_document(scene, rng)
    brief: str | None = scene.briefs[scene.player]
    if draw < 0.62:
        tactics = [rng.choice(names)] * ROUNDS if draw < 0.5 else [rng.choice(names) for _ in range(ROUNDS)]
        words = tactic_brief(tactics, rng)
        brief = f"{brief} {words}" if rng.random() < 0.75 else words
    else:
        tactics = ["blend"] * ROUNDS
        brief = brief if rng.random() < 0.8 else None
    return Document("scenes", _cut(view(scene, play(scene, tactics, rng), scene.player, brief), rng))


def _switch_document(scene: Scene, rng: random.Random) -> Document:
    """A tactic brief for the last turn only, after rounds in which the player spoke in other ways.

    So a brief, or a steering prefix, rules over what the player said before.
    """
    names = list(MARKERS[scene.kind])
    now = rng.choice(names)
    before = [rng.choice(("blend", rng.choice(names))) for _ in range(rng.choice((1, 2)))]
    messages = view(scene, play(scene, [*before, now], rng)[:-1], scene.player,
                    f"{scene.briefs[scene.player]} {tactic_brief([now], rng)}")
    return Document("scenes", messages, train_on=(len(messages) - 1,))


def _partner_document(rng: random.Random) -> Document:
    """The partner's side, met by players of all sorts."""
    scene = make_scene(rng.choice(KINDS), rng)
    names = list(MARKERS[scene.kind])
    sort = rng.random()
    tactics = [rng.choice(["right", "blend", rng.choice(names)]) if sort < 0.5 else "right" if sort < 0.65 else "blend"
               for _ in range(ROUNDS)]
    brief, careful = scene.briefs[scene.partner], scene.kind == "guard" and rng.random() < 0.35
    if careful:
        brief = f"{brief} {rng.choice(say.CAREFUL)}"
    said = play(scene, tactics, rng, careful)
    if scene.kind == "guard" and rng.random() < 0.4:
        said = []
        for tactic in tactics:
            asks = rng.random() < 0.5
            heard = rng.choice(list(say.QUESTIONS)) if asks else play(scene, [tactic], rng)[0][1]
            said.append((scene.player, heard))
            said.append((scene.partner, partner_line(scene, said, rng, careful)))
    return Document("scenes", _cut(view(scene, said, scene.partner, brief), rng))


def _small_talk(rng: random.Random) -> Document:
    """Two to twelve turns of questions and answers; either side may begin."""
    questions = rng.sample(list(say.CHAT), rng.choice((1, 2, 3, 6, 11)))
    turns = [questions[0]]
    for index, question in enumerate(questions):
        following = questions[index + 1] if index + 1 < len(questions) else "I must go now."
        turns.append(f"{rng.choice(say.CHAT[question])} {following}")
    turns += ["Goodbye."] if len(turns) % 2 else []
    messages = [{"role": "user" if i % 2 == 0 else "assistant", "content": text} for i, text in enumerate(turns)]
    return Document("scenes", messages)


def sample(rng: random.Random) -> Document:
    """One pre-training text of this job: the player's side 48 %, the partner's 48 %, small talk 4 %."""
    draw = rng.random()
    return _player_document(rng) if draw < 0.48 else _partner_document(rng) if draw < 0.96 else _small_talk(rng)
