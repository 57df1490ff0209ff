"""How a pool of profiles or personalities grows: a model is shown some of it and asked for others.

One round is one batch of requests, one encoding of what is new, one matrix product; what is kept joins at once, so it
keeps later ones out. A round is one line of the log, with everything that was said and why it was refused, so a run
that is killed goes on with the round it was in. No calibration and no files of personas here.

Two ways of asking: `free` asks any model for a JSON list; `pocket` uses the words that pocket was trained on, and
keeps of its texts the sentences that its closed world knows and that contradict none before them.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dialoom.dialogue import Chat
from dialoom.embed import Embedder, greedy_distinct
from dialoom.errors import DataError, StoreError
from dialoom.models.base import ChatModel, Completion, Sampling
from dialoom.pocket.world.persona_tables import BRIEFS, FACTS, PROFILE_FRAMES, TRAIT_TEXT, TRAITS
from dialoom.pocket.world.personas import is_held_out, read_profile
from dialoom.scenarios.personas import Kind, sentences
from dialoom.store import append_row, read_rows
from dialoom.text import decode_json

Style = Literal["free", "pocket"]
Stop = Literal["", "target", "saturated", "rounds"]

BRIEF = {
    "profile": "You invent people for a study of conversation. A profile gives one person's everyday facts in six to "
               "ten short sentences about \"He\" or \"She\": age, work in a few words, home, family, animals, food, "
               "pastimes, plans. It says nothing about character or temper.",
    "personality": "You invent characters for a study of conversation. A personality gives one person's traits in six "
                   "to ten short sentences: temper, manner of speech, likes and dislikes in company, habits of "
                   "thought. It gives no facts of life (no age, work, family or hobby) and no name.",
}
ASK = ("{examples}\n\nThese are examples. Write {count} new ones, unlike the examples and unlike each other, "
       "each on one line. Answer with a JSON list of {count} strings and with nothing else.")
REPAIR = "That could not be read. Give the same texts again as one JSON list of strings, and nothing else."

COUNTS = ("asked", "repaired", "unread", "said", "repeated", "tidied", "encoded")
"""What a round counts."""
MIN_WORDS, MAX_WORDS, MIN_SENTENCES = 12, 150, 3  # the released texts have 36 to 102 words in 4 to 9 sentences
MIN_FACTS, MIN_TRAITS = 4, 3  # of pocket's eight and six: below that, ten turns have too little to find out
META = re.compile(r"(?:sure|certainly|of course|okay|here (?:are|is)\b|as an ai\b|i\b|these are\b)", re.IGNORECASE)
_NUMBER = re.compile(r"^[^\S\n]*(?:\*\*)?(?:\(?\d{1,3}[.):]|[-*•])\s+(?=\S)", re.MULTILINE)
_PARAGRAPHS = re.compile(r"\n\s*\n")
_DRESS = " \t\r\n\"'“”*`,"


@dataclass(frozen=True)
class GrowthRules:
    """When and how one pool grows; the fields are settings of the recipe (see `PersonasConfig`)."""

    kind: Kind
    style: Style
    target: int
    threshold: float
    seed: int
    sampling: Sampling
    examples: int = 5
    count: int = 20
    batch: int = 32
    rounds: int = 200
    saturation: float = 0.02
    patience: int = 5


@dataclass
class Pool:
    """Texts of one kind, the seeds first, and the rounds that made them, as the log has them."""

    kind: Kind
    texts: list[str]
    rounds: list[dict[str, Any]] = field(default_factory=list)
    known: set[str] = field(default_factory=set)  # everything ever said: nothing is encoded or weighed twice

    def take_in(self, row: dict[str, Any]) -> None:
        """Replay one round."""
        self.rounds.append(row)
        self.texts += row["kept"]
        self.known.update(row["kept"], *row["refused"].values())

    def stopped(self, rules: GrowthRules) -> Stop:
        """Why growing is over, "" if it is not: enough texts, too few new ones of late, or too many rounds."""
        if rules.target and len(self.texts) >= rules.target:
            return "target"
        late = self.rounds[-rules.patience:]
        if len(late) == rules.patience:
            kept, said = sum(len(row["kept"]) for row in late), sum(row["said"] for row in late)
            if kept < rules.saturation * said or not kept:
                return "saturated"
        return "rounds" if len(self.rounds) >= rules.rounds else ""


def grow_pool(rules: GrowthRules, seeds: Sequence[str], model: ChatModel, embedder: Embedder, log_file: Path, *,
              log: Callable[[Pool], None] = lambda pool: None) -> Pool:
    """Grow a pool from its seeds until it stops, going on from what `log_file` holds.

    Args:
        embedder: asked for each distinct text once.
        log: told of the pool after each round.
    Raises: StoreError: if the log was begun with other seeds.
    """
    pool = read_pool(rules.kind, seeds, log_file)
    vectors = embedder.encode(pool.texts)
    while not pool.stopped(rules):
        row, said = _ask(rules, pool, model)
        fresh, refused = _sorted(rules, pool, said, row)
        new = embedder.encode(fresh) if fresh else vectors[:0]
        joins = greedy_distinct(new, vectors, rules.threshold)
        over = joins & (np.cumsum(joins) > (rules.target or np.inf) - len(pool.texts))
        refused["near"] = [text for text, joined in zip(fresh, joins, strict=True) if not joined]
        refused["over target"] = [text for text, late in zip(fresh, over, strict=True) if late]
        joins &= ~over
        row["kept"] = [text for text, joined in zip(fresh, joins, strict=True) if joined]
        row["encoded"], row["refused"] = len(fresh), {why: texts for why, texts in refused.items() if texts}
        append_row(log_file, row)
        pool.take_in(row)
        vectors = np.concatenate([vectors, new[joins]])
        log(pool)
    return pool


def read_pool(kind: Kind, seeds: Sequence[str], log_file: Path) -> Pool:
    """The pool of one kind as a log holds it; begun with its seeds where the log has none yet.

    Raises: StoreError: if the log was begun with other seeds, or holds what is no round.
    """
    seeds = list(dict.fromkeys(seeds))
    rows = [row for row in _rounds(log_file) if row["kind"] == kind]
    if not rows:
        if not seeds:
            raise DataError(f"no {kind} to begin with; give a file of seeds")
        append_row(log_file, {"kind": kind, "round": 0, "kept": seeds})
    elif rows[0]["kept"] != seeds:
        raise StoreError(f"{log_file}: was begun with another {kind} as its seed; give the same seeds, another --out, "
                         "or --fresh")
    pool = Pool(kind, seeds, known=set(seeds))
    for row in rows[1:]:
        pool.take_in(row)
    return pool


def _rounds(log_file: Path) -> list[dict[str, Any]]:
    """The rounds that a log holds, those of the seeds first; none where there is no log yet."""
    rows = read_rows(log_file) if log_file.exists() else []
    for line, row in enumerate(rows, 1):
        if not _is_round(row):
            raise StoreError(f"{log_file}:{line}: is no round of growing (expected kind, kept, refused and counts); "
                             "--fresh starts anew")
    return rows


def _is_round(row: dict[str, Any]) -> bool:
    begun = row.get("round") == 0  # by the seeds
    refused = {} if begun else row.get("refused")
    return (row.get("kind") in BRIEF and isinstance(refused, dict)
            and (begun or all(isinstance(row.get(name), int) for name in COUNTS))
            and all(isinstance(some, list) and all(isinstance(text, str) for text in some)
                    for some in (row.get("kept"), *refused.values())))


def _ask(rules: GrowthRules, pool: Pool, model: ChatModel) -> tuple[dict[str, Any], list[str]]:
    """One batch of requests, and one repair of each reply that cannot be read; the round's row and all texts said."""
    name = f"{rules.seed}:{rules.kind}:{len(pool.rounds) + 1}"
    chats = []
    for at in range(rules.batch):
        rng = random.Random(f"{name}:{at}")
        chats.append(request(rules, rng.sample(pool.texts, min(rules.examples, len(pool.texts))), rng))
    replies = model.chat(chats, rules.sampling, [f"{name}:{at}" for at in range(rules.batch)])
    read = [read_reply(rules.style, reply) for reply in replies]
    again = [at for at, texts in enumerate(read) if not texts]
    if again and rules.style == "free":
        repairs = [[*chats[at], {"role": "assistant", "content": replies[at].text or "..."},
                    {"role": "user", "content": REPAIR}] for at in again]
        for at, reply in zip(again, model.chat(repairs, rules.sampling, [f"{name}:{at}:repair" for at in again]),
                             strict=True):
            read[at] = read_reply(rules.style, reply)
    unread = sum(not texts for texts in read)
    said = [text for texts in read for text in texts]
    row = {"kind": rules.kind, "round": len(pool.rounds) + 1, "asked": len(chats), "repaired": len(again) - unread,
           "unread": unread, "said": len(said)}
    return row, said


def request(rules: GrowthRules, examples: Sequence[str], rng: random.Random) -> Chat:
    """The chat that asks for new texts."""
    if rules.style == "pocket":
        return [{"role": "system", "content": rng.choice(BRIEFS[f"grow_{rules.kind}"])},
                {"role": "user", "content": "\n\n".join(examples)}]
    shown = "\n".join(f"{at}. {text}" for at, text in enumerate(examples, 1))
    return [{"role": "system", "content": BRIEF[rules.kind]},
            {"role": "user", "content": ASK.format(examples=shown, count=rules.count)}]


def _sorted(rules: GrowthRules, pool: Pool, said: Iterable[str],
            row: dict[str, Any]) -> tuple[list[str], dict[str, list[str]]]:
    """What was said and may join, each once, and what may not, by reason; tidied texts are counted in `row`."""
    fresh: dict[str, None] = {}
    refused: dict[str, list[str]] = {}
    row["tidied"] = row["repeated"] = 0
    for text in said:
        if text in pool.known or text in fresh:
            row["repeated"] += 1
            continue
        tidied, fault = tidy_world(text, rules.kind) if rules.style == "pocket" else tidy(text)
        row["tidied"] += not fault and tidied != text
        if fault:
            refused.setdefault(fault, []).append(text)
        elif tidied in pool.known or tidied in fresh:
            row["repeated"] += 1
        else:
            fresh[tidied] = None
    return list(fresh), refused


# ------------------------------------------------------------------------------------------- reading replies


def read_reply(style: Style, reply: Completion) -> list[str]:
    """The texts of a reply; none if it cannot be read. What the length limit cut off is left out."""
    if style == "free":
        return parse_texts(reply.text, whole=reply.finish == "stop")
    texts = [part.strip() for part in _PARAGRAPHS.split(reply.text) if part.strip()]
    return texts if reply.finish == "stop" else texts[:-1]


def parse_texts(reply: str, *, whole: bool = True) -> list[str]:
    """The texts in a model's reply: a JSON list (a damaged one up to the damage), a numbered list, or paragraphs.

    Args:
        whole: False if the reply was cut off; then the last text of a list or the last paragraph is left out.
    """
    found = _json_texts(reply)
    if not found:
        numbers = list(_NUMBER.finditer(reply))
        if len(numbers) > 1:
            ends = [*(number.start() for number in numbers[1:]), len(reply)]
            items = (reply[number.end():end] for number, end in zip(numbers, ends, strict=True))
            found = [_PARAGRAPHS.split(item.strip())[0] for item in items]  # after the last one may stand a farewell
        elif reply.lstrip()[:1] not in ("[", "{"):
            found = _PARAGRAPHS.split(reply.strip())
            found = found if len(found) > 1 else []
        found = found if whole else found[:-1]
    texts = (" ".join(text.split()).strip(_DRESS) for text in found)
    return [text for text in texts if text]


def _json_texts(reply: str) -> list[str]:
    """Every string of the first JSON list, or of its objects; whatever stands before a damaged place."""
    at = reply.find("[") + 1
    found: list[str] = []
    while at and at < len(reply):
        while reply[at:at + 1] in (" ", "\t", "\r", "\n", ","):
            at += 1
        try:
            value, at = decode_json(reply, at)
        except ValueError:
            break
        values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
        strings = [one for one in values if isinstance(one, str)]
        found += [max(strings, key=len)] if isinstance(value, dict) and strings else strings
    return found


def tidy(text: str) -> tuple[str, str]:
    """A free text without repeated sentences, and what is wrong with it ("" if nothing)."""
    kept = list(dict.fromkeys(sentences(text)))
    tidied = " ".join(kept)
    words = len(tidied.split())
    if META.match(tidied):
        return tidied, "meta"
    if words < MIN_WORDS or len(kept) < MIN_SENTENCES:
        return tidied, "short"
    return tidied, "long" if words > MAX_WORDS else ""


def tidy_world(text: str, kind: Kind) -> tuple[str, str]:
    """A text of pocket's without the sentences its world does not know or that go against an earlier one.

    People in whom a held-out pair of pet and hobby meets are refused: evaluations are about them.
    """
    kept: dict[str, str] = {}
    pronoun = ""
    for sentence in sentences(text):
        slot, said = _WORLD[kind].get(sentence, ("", ""))
        if slot and slot not in kept and said in ("", pronoun or said):
            kept[slot], pronoun = sentence, pronoun or said
    tidied = " ".join(kept.values())
    if len(kept) < (MIN_FACTS if kind == "profile" else MIN_TRAITS):
        return tidied, "few facts" if kind == "profile" else "few traits"
    return tidied, "held out" if {"pet", "hobby"} <= set(kept) and is_held_out(read_profile(tidied)) else ""


def _world_sentences() -> dict[Kind, dict[str, tuple[str, str]]]:
    """Sentence -> (slot, pronoun; "" where it has none), of every sentence that pocket's world can say of a person."""
    profile, personality = {}, {}
    for pronoun in ("She", "He"):
        for slot, frames in PROFILE_FRAMES.items():
            for frame in frames:
                for phrase, *_ in FACTS[slot].values():
                    profile[frame.format(P=pronoun, v=phrase)] = (slot, pronoun if "{P}" in frame else "")
        for trait, values in TRAITS.items():
            for frame in (frame for value in values for frame in TRAIT_TEXT[value]):
                personality[frame.format(P=pronoun)] = (trait, pronoun if "{P}" in frame else "")
    return {"profile": profile, "personality": personality}


_WORLD = _world_sentences()
