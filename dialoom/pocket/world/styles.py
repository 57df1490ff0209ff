"""Writing styles of the pocket world: grammar, named authors, exact judge, pre-training documents (the DITTO job).

A style is one value for each of eleven independent features. Texts are made by rule from `style_topics`, and each
feature is found again by rule, so the judge is exact. `HOUSE` is the bland style of the model without a brief. The
authors' combinations, and all within two features of them, never occur in pre-training; their single values do.
"""

from __future__ import annotations

import random
import re
from dataclasses import asdict, dataclass, replace
from functools import cache

from dialoom.pocket.world.document import Document
from dialoom.pocket.world.style_topics import TABLE

FEATURES: dict[str, tuple[str, ...]] = {
    "greeting": ("hello", "hey there", "dear friend", "good day", "ahoy"),
    "signoff": ("best regards", "cheers", "with love", "bye for now", "yours faithfully"),
    "length": ("medium", "short", "long"),
    "contractions": ("no", "yes"),
    "ends": (".", "!", "..."),
    "hedge": ("none", "maybe", "I think", "perhaps"),
    "filler": ("none", "honestly", "you know", "indeed", "frankly"),
    "layout": ("prose", "list"),
    "case": ("normal", "lower"),
    "mark": ("none", ":)", ":D", "<3", ";)"),
    "words": ("plain", "grand", "slang"),
}
"""Each feature's values; the first is the house style's."""


@dataclass(frozen=True)
class Style:
    """One value per feature, see `FEATURES`; the defaults are the bland house style."""

    greeting: str = "hello"
    signoff: str = "best regards"
    length: str = "medium"
    contractions: str = "no"
    ends: str = "."
    hedge: str = "none"
    filler: str = "none"
    layout: str = "prose"
    case: str = "normal"
    mark: str = "none"
    words: str = "plain"


HOUSE = Style()

AUTHORS: dict[str, Style] = {
    "Alma": Style("hey there", "cheers", "short", "yes", "!", "maybe", "honestly", "list", "lower", ":)", "slang"),
    "Bruno": Style("good day", "yours faithfully", "long", "yes", "...", "perhaps", "indeed", "prose", "normal", ";)",
                   "grand"),
    "Clara": Style("dear friend", "with love", "long", "yes", "!", "I think", "you know", "prose", "lower", "<3",
                   "plain"),
    "Dario": Style("ahoy", "bye for now", "short", "no", "!", "none", "frankly", "list", "lower", ":D", "grand"),
    "Edith": Style("good day", "with love", "short", "yes", "...", "I think", "frankly", "list", "normal", ":)",
                   "slang"),
    "Felix": Style("hey there", "bye for now", "long", "no", "...", "maybe", "you know", "list", "lower", ";)",
                   "grand"),
    "Greta": Style("dear friend", "yours faithfully", "medium", "yes", "!", "perhaps", "frankly", "list", "lower",
                   ":D", "slang"),
    "Hugo": Style("ahoy", "cheers", "long", "yes", "...", "I think", "honestly", "prose", "lower", "<3", "slang"),
    "Ines": Style("hey there", "with love", "short", "yes", ".", "perhaps", "indeed", "list", "lower", ":D", "grand"),
    "Jonas": Style("ahoy", "yours faithfully", "long", "yes", "!", "maybe", "you know", "list", "normal", ":)",
                   "grand"),
    "Karin": Style("dear friend", "cheers", "short", "no", "...", "maybe", "indeed", "prose", "lower", "<3", "slang"),
    "Leo": Style("good day", "bye for now", "short", "yes", "!", "I think", "honestly", "list", "lower", ";)", "plain"),
    "Mira": Style("dear friend", "bye for now", "long", "no", "!", "perhaps", "honestly", "list", "normal", ":)",
                  "slang"),
    "Nils": Style("ahoy", "with love", "short", "yes", "...", "none", "indeed", "list", "lower", ";)", "slang"),
}
"""Fourteen writers; the last two are for tuning (`VALIDATION_AUTHORS`)."""
VALIDATION_AUTHORS = ("Mira", "Nils")
SHIPPED_AUTHORS = tuple(name for name in AUTHORS if name not in VALIDATION_AUTHORS)

WORDS = {  # plain -> (grand, slang)
    "good": ("splendid", "ace"), "nice": ("delightful", "neat"), "people": ("persons", "folks"),
    "big": ("vast", "huge"), "quick": ("swift", "snappy"), "many": ("numerous", "loads of"),
    "small": ("modest", "tiny"), "happy": ("joyful", "stoked"), "children": ("youngsters", "kids"),
    "start": ("commence", "kick off"), "buy": ("purchase", "grab"), "very": ("most", "super"),
    "things": ("articles", "bits"),
}
CONTRACTIONS = (("will not", "won't"), ("do not", "don't"), ("is not", "isn't"), ("are not", "aren't"),
                ("cannot", "can't"), ("it is", "it's"), ("i am", "i'm"), ("you are", "you're"), ("i will", "i'll"),
                ("we will", "we'll"), ("you will", "you'll"), ("it will", "it'll"), ("i do not", "i don't"))

BRIEFS: dict[str, list[str]] = {
    "greeting=hello": ["greet with hello", "say hello", "open with hello"],
    "greeting=hey there": ["greet with hey there", "say hey there", "open with hey there"],
    "greeting=dear friend": ["greet with dear friend", "say dear friend", "open with dear friend"],
    "greeting=good day": ["greet with good day", "say good day", "open with good day"],
    "greeting=ahoy": ["greet with ahoy", "say ahoy", "open with ahoy"],
    "signoff=best regards": ["end with best regards", "close with best regards", "sign off with best regards"],
    "signoff=cheers": ["end with cheers", "close with cheers", "sign off with cheers"],
    "signoff=with love": ["end with love", "close with love", "sign off with love"],
    "signoff=bye for now": ["end with bye for now", "close with bye for now", "sign off with bye for now"],
    "signoff=yours faithfully": ["end with yours faithfully", "close with yours faithfully",
                                 "sign off with yours faithfully"],
    "length=medium": ["normal sentences", "medium sentences", "sentences of medium length"],
    "length=short": ["short sentences", "brief sentences", "keep sentences short"],
    "length=long": ["long sentences", "lengthy sentences", "make sentences long"],
    "contractions=no": ["no contractions", "full forms", "write full forms"],
    "contractions=yes": ["contractions", "use short forms", "use contractions"],
    "ends=.": ["end sentences with a dot", "plain dots", "full stops"],
    "ends=!": ["exclamation marks", "end sentences with !", "use exclamation marks"],
    "ends=...": ["trailing dots", "end sentences with ...", "use three dots"],
    "hedge=none": ["no hedging", "sound sure", "never hedge"],
    "hedge=maybe": ["hedge with maybe", "use maybe", "say maybe"],
    "hedge=I think": ["hedge with I think", "use I think", "say I think"],
    "hedge=perhaps": ["hedge with perhaps", "use perhaps", "say perhaps"],
    "filler=none": ["no fillers", "no filler words", "never use fillers"],
    "filler=honestly": ["filler honestly", "add honestly", "like to say honestly"],
    "filler=you know": ["filler you know", "add you know", "like to say you know"],
    "filler=indeed": ["filler indeed", "add indeed", "like to say indeed"],
    "filler=frankly": ["filler frankly", "add frankly", "like to say frankly"],
    "layout=prose": ["one paragraph", "prose", "running text"],
    "layout=list": ["a list", "bullet points", "a line for each point"],
    "case=normal": ["normal capitals", "capital letters as usual", "usual capitals"],
    "case=lower": ["lower case", "no capitals", "all small letters"],
    "mark=none": ["no smileys", "no emoticons", "without smileys"],
    "mark=:)": ["add :)", "use :)", "put a :)"],
    "mark=:D": ["add :D", "use :D", "put a :D"],
    "mark=<3": ["add <3", "use <3", "put a <3"],
    "mark=;)": ["add ;)", "use ;)", "put a ;)"],
    "words=plain": ["plain words", "simple words", "everyday words"],
    "words=grand": ["grand words", "fancy words", "solemn words"],
    "words=slang": ["slang words", "street words", "casual words"],
}
"""`feature=value` -> wordings; `style_brief` joins them."""
BRIEF_STARTS = ("Style: ", "Write like this: ", "Your style: ")
DESCRIBE = ("Describe the style of these texts.", "How does this author write?")


@dataclass(frozen=True)
class Topic:
    """A writing task: `what` is asked for, `points` are (core, tail) clauses."""

    name: str
    what: str
    points: tuple[tuple[str, str], ...]

    @property
    def prompt(self) -> str:
        """The task as a user puts it."""
        return f"Write {self.what}."


def _read_topics() -> dict[str, Topic]:
    topics: dict[str, Topic] = {}
    for block in re.split(r"\n(?=\S)", TABLE.strip()):
        head, *lines = block.splitlines()
        name, what = head.split(": ", 1)
        points = tuple((line.split("|")[0].strip(), line.split("|")[1].strip()) for line in lines)
        topics[name] = Topic(name, what, points)
    return topics


TOPICS = _read_topics()
BY_PROMPT = {topic.prompt: topic for topic in TOPICS.values()}


# ------------------------------------------------------------------------------------------------ writing

def _reword(text: str, style: Style) -> str:
    """`text` with the style's vocabulary and short forms."""
    if style.contractions == "yes":
        for full, short in CONTRACTIONS:
            text = re.sub(rf"\b{full}\b", lambda found, s=short: _like(found.group(), s),  # type: ignore[misc]
                          text, flags=re.IGNORECASE)
    if style.words != "plain":
        column = 0 if style.words == "grand" else 1
        for plain, others in WORDS.items():
            text = re.sub(rf"\b{plain}\b", others[column], text)
    text = re.sub(r"\ba (?=[aeo])(?!one)", "an ", text)
    return re.sub(r"\ban (?=[^aeiouAEIOUh ])", "a ", text)


def _like(seen: str, short: str) -> str:
    return "I" + short[1:] if seen.startswith("I") else short


def _clauses(topic: Topic, length: str, rng: random.Random) -> list[str]:
    """The sentences' bare clauses; at least one has a word of each word rule."""
    count = {"short": 5, "medium": 3, "long": 4}[length]
    while True:
        points = rng.sample(topic.points, count)
        cores = " ".join(core for core, _ in points).lower()
        if any(re.search(rf"\b{word}\b", cores) for word in WORDS) and any(
                re.search(rf"\b{full}\b", cores) for full, _ in CONTRACTIONS):
            break
    if length == "short":
        return [core for core, _ in points]
    whole = [f"{core} {tail}" for core, tail in points]
    return whole if length == "medium" else [f"{a} and {b}" for a, b in zip(whole[::2], whole[1::2], strict=True)]


def write(topic: Topic, style: Style, rng: random.Random) -> str:
    """A text of 20-60 words on `topic` in `style`: greeting, body, sign-off, each on its own line."""
    clauses = [_reword(clause, style) for clause in _clauses(topic, style.length, rng)]
    leads = [[] for _ in clauses]  # type: list[list[str]]
    spots = list(range(len(clauses)))
    rng.shuffle(spots)
    if style.hedge != "none":
        leads[spots[0]].append(style.hedge + " ")
    if style.filler != "none":
        leads[spots[1]].append(style.filler + ", ")
    sentences = []
    for index, (lead, clause) in enumerate(zip(leads, clauses, strict=True)):
        sentence = "".join(lead) + clause
        sentence = sentence[0].upper() + sentence[1:] + style.ends
        if style.mark != "none" and (index == len(clauses) - 1 or rng.random() < 0.4):
            sentence += " " + style.mark
        sentences.append(sentence)
    body = "\n".join("- " + s for s in sentences) if style.layout == "list" else " ".join(sentences)
    text = f"{style.greeting.capitalize()},\n{body}\n{style.signoff.capitalize()}"
    if style.case == "lower":
        text = text.lower()
        if style.mark == ":D":
            text = text.replace(":d", ":D")
    return text


# ------------------------------------------------------------------------------------------------ judging

def _find(text: str, feature: str) -> str | None:
    """The single value of a phrase feature that occurs in `text`; "none" if no value does, None if several do."""
    found = [value for value in FEATURES[feature][1:] if value.lower() in text]
    return found[0] if len(found) == 1 else None if found else "none"


def _body(text: str) -> str:
    lines = [line for line in text.strip().split("\n") if line.strip()]
    return "\n".join(lines[1:-1]) if len(lines) > 2 else "\n".join(lines)


def detect(text: str) -> dict[str, str | None]:
    """Each feature's value as the text shows it; None where it shows none or several."""
    lines = [line for line in text.strip().split("\n") if line.strip()] or [""]
    body = _body(text)
    low = body.lower()
    phrase = re.sub(r"[^\w<:;)' ]+", " ", low)
    for mark in FEATURES["mark"][1:]:
        low = low.replace(mark.lower(), " ")
    bare = re.sub(r"\b(maybe|i think|perhaps|honestly|you know|indeed|frankly)\b,?", " ", low)
    bare = re.sub(r"^- ", "", bare, flags=re.MULTILINE)
    sentences = [s for s in re.split(r"[.!?]+|\n", bare) if s.strip()]
    mean = sum(len(s.split()) for s in sentences) / max(1, len(sentences))
    stops = re.findall(r"\.\.\.|[.!?]", low)
    short = len(re.findall(r"\w'(?:s|m|re|ll|t)\b", bare))
    full = sum(len(re.findall(rf"\b{form}\b", bare)) for form, _ in CONTRACTIONS)
    counts = {name: sum(len(re.findall(rf"\b{w}\b", bare)) for w in words) for name, words in (
        ("plain", list(WORDS)), ("grand", [w[0] for w in WORDS.values()]), ("slang", [w[1] for w in WORDS.values()]))}
    used = [name for name, count in counts.items() if count]
    bullets = sum(line.startswith("- ") for line in body.split("\n"))
    return {
        "greeting": next((g for g in FEATURES["greeting"] if lines[0].lower().startswith(g)), None),
        "signoff": next((s for s in FEATURES["signoff"] if lines[-1].lower().rstrip(" .,!").endswith(s)), None),
        "length": "short" if mean <= 7 else "medium" if mean <= 13 else "long" if mean <= 30 else None,
        "contractions": "yes" if short and not full else "no" if full and not short else None,
        "ends": stops[0] if stops and stops.count(stops[0]) == len(stops) else None,
        "hedge": _find(phrase, "hedge"), "filler": _find(phrase, "filler"),
        "layout": "list" if bullets >= 2 else "prose" if not bullets else None,
        "case": "normal" if re.search(r"[A-Z]", re.sub(":D", "", text)) else "lower",
        "mark": _find(body.lower().replace(":d", ":D").replace(":D", ":d"), "mark"),
        "words": used[0] if len(used) == 1 else None,
    }


@cache
def _own_words() -> dict[str, frozenset[str]]:
    """Topic -> the words of its points that at most two topics have."""
    said = {name: set(re.findall(r"[a-z]+", " ".join(c + " " + t for c, t in topic.points).lower()))
            for name, topic in TOPICS.items()}
    return {name: frozenset(w for w in words if len(w) > 2 and sum(w in other for other in said.values()) <= 2)
            for name, words in said.items()}


def is_degenerate(text: str) -> bool:
    """Whether the text is too short or long to be one (8-120 words) or repeats itself."""
    words = re.findall(r"[\w']+", text.lower())
    triples = list(zip(words, words[1:], words[2:], strict=False))
    return not 8 <= len(words) <= 120 or len(set(triples)) < 0.75 * len(triples)


def on_topic(text: str, topic: Topic) -> bool:
    """Whether the text has at least two of the topic's own words and as many as of any other topic's."""
    words = set(re.findall(r"[a-z]+", text.lower()))
    hits = {name: len(words & own) for name, own in _own_words().items()}
    return hits[topic.name] >= 2 and hits[topic.name] == max(hits.values())


def style_match(text: str, style: Style, topic: Topic | None = None) -> float:
    """Share of the style's features the text shows, 0..1; 0 for degenerate text, or off `topic` where it is given.

    House-style text scores 0.00-0.18 for the authors here: what they share with the house style.
    """
    if is_degenerate(text) or (topic is not None and not on_topic(text, topic)):
        return 0.0
    seen = detect(text)
    return float(sum(seen[feature] == value for feature, value in asdict(style).items()) / len(FEATURES))


# ------------------------------------------------------------------------------------------------ authors

def distance(one: Style, other: Style) -> int:
    """Number of features in which two styles differ."""
    return sum(a != b for a, b in zip(asdict(one).values(), asdict(other).values(), strict=True))


def demonstrations(author: str, seed: int = 0) -> list[dict[str, str]]:
    """The author's 13 texts on distinct tasks: author, split (7 train, 3 validation, 3 test), prompt, output."""
    rng = random.Random(f"author:{author}:{seed}")
    topics = rng.sample(list(TOPICS.values()), 13)
    splits = ["train"] * 7 + ["validation"] * 3 + ["test"] * 3
    return [{"author": author, "split": split, "prompt": topic.prompt, "output": write(topic, AUTHORS[author], rng)}
            for split, topic in zip(splits, topics, strict=True)]


# ------------------------------------------------------------------------------------------------ documents

def style_brief(style: Style, rng: random.Random, features: list[str] | None = None) -> str:
    """The style's features (None: all) in words, in random order and wording: pocket's own brief for this style."""
    names = list(features) if features is not None else list(FEATURES)
    rng.shuffle(names)
    values = asdict(style)
    return rng.choice(BRIEF_STARTS) + ", ".join(rng.choice(BRIEFS[f"{name}={values[name]}"]) for name in names) + "."


def few_shot_prompt(examples: list[dict[str, str]], prompt: str) -> str:
    """A user message that shows texts of one author (rows with prompt and output) and sets a new task."""
    shown = "\n\n".join(f"Task: {row['prompt']}\n{row['output']}" for row in examples)
    return f"Texts by one author:\n\n{shown}\n\nWrite as this author: {prompt}"


def describe_prompt(texts: list[str], question: str = DESCRIBE[0]) -> str:
    """A user message that asks for the style of `texts` in words (the self-prompt baseline's first step)."""
    return question + "\n\n" + "\n\n".join(texts)


def random_style(rng: random.Random) -> Style:
    """A random combination that is more than two features away from every author."""
    while True:
        style = Style(**{name: rng.choice(values) for name, values in FEATURES.items()})
        if all(distance(style, other) > 2 for other in AUTHORS.values()):
            return style


def _leaky_house(rng: random.Random) -> Style:
    """The house style, one time in five with one to three random features."""
    draw = rng.random()
    count = 0 if draw < 0.8 else 1 if draw < 0.92 else rng.choice((2, 3))
    return replace(HOUSE, **{name: rng.choice(FEATURES[name]) for name in rng.sample(list(FEATURES), count)})


def _ask(topic: Topic, rng: random.Random) -> str:
    return rng.choice((topic.prompt,) * 4 + (f"Please write {topic.what}.", f"I need {topic.what}."))


def _document(user: str, reply: str, system: str | None = None) -> Document:
    messages = [{"role": "system", "content": system}] if system else []
    return Document("styles", [*messages, {"role": "user", "content": user}, {"role": "assistant", "content": reply}])


def _briefed(rng: random.Random) -> Document:
    """A style in words, as system message or inside the request; a third of them name only some features."""
    topic, style, names = rng.choice(list(TOPICS.values())), random_style(rng), list(FEATURES)
    if rng.random() < 0.35:
        names = rng.sample(names, rng.choice((1, 1, 2, 3, 5, 8)))
        style = replace(HOUSE, **{name: value for name, value in asdict(style).items() if name in names})
    brief = style_brief(style, rng, names)
    if rng.random() < 0.2:
        return _document(f"{_ask(topic, rng)} {brief}", write(topic, style, rng))
    return _document(_ask(topic, rng), write(topic, style, rng), brief)


def _in_context(rng: random.Random) -> Document:
    """One to seven texts by one author, then a new task in the same style."""
    count = rng.choices(range(1, 8), (30, 25, 15, 10, 8, 6, 6))[0]
    topics, style = rng.sample(list(TOPICS.values()), count + 1), random_style(rng)
    rows = [{"prompt": topic.prompt, "output": write(topic, style, rng)} for topic in topics[1:]]
    return _document(few_shot_prompt(rows, topics[0].prompt), write(topics[0], style, rng))


def _described(rng: random.Random) -> Document:
    """One to three texts by one author, then their style in words."""
    topics, style = rng.sample(list(TOPICS.values()), rng.choice((1, 1, 2, 3))), random_style(rng)
    texts = [write(topic, style, rng) for topic in topics]
    reply = BRIEF_STARTS[0] + ", ".join(BRIEFS[f"{name}={value}"][0] for name, value in asdict(style).items()) + "."
    return _document(describe_prompt(texts, rng.choice(DESCRIBE)), reply)


def sample(rng: random.Random) -> Document:
    """One pre-training text of this job: briefed 45 %, in context 22 %, house style 28 %, style in words 5 %."""
    draw = rng.random()
    if draw < 0.45:
        return _briefed(rng)
    if draw < 0.67:
        return _in_context(rng)
    if draw < 0.95:
        topic = rng.choice(list(TOPICS.values()))
        return _document(_ask(topic, rng), write(topic, _leaky_house(rng), rng))
    return _described(rng)
