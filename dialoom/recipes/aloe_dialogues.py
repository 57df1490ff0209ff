"""ALOE's preference dialogues: a user who plays a persona, two replies to each message, one of them drawn to go on.

Each turn is judged by up to three judges in turn: the inducer notes on the user's message which facts and traits are
out by now; the scorer, if it is the exact one, scores both replies; the comparison marks one of them preferred. The
reply with the hint reads those notes as its private brief, so nothing of it stands in the dialogue. The surprising
choice: inducer and comparison are judges of the one dialogue loop, so batches, the log and resuming are the loop's own.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dialoom.dialogue import Brief, Chat, Dialogue, DialogueTree, Turn, content_id
from dialoom.embed import Embedder, cosine
from dialoom.evals.alignment_judge import TRIES
from dialoom.evals.alignment_roles import ASSISTANT, USER, persona_at
from dialoom.judge import Comparer, Judge, Verdict
from dialoom.models.base import ChatModel, Sampling
from dialoom.pocket.world import personas as world
from dialoom.scenarios.personas import Persona, sentences
from dialoom.simulate import ModelSpeaker, Speaker, grow
from dialoom.store import TreeLog

HINTED, PLAIN = "hinted", "plain"
PREFERRED = "preferred"  # score of a reply: 1 if it was preferred, 0 if rejected, none without a verdict
REVEALED = ("revealed_facts", "revealed_traits")  # notes of a user's turn: indices of the persona's sentences
LINES = Sampling(max_new_tokens=60)  # of an inducer
ALIKE = 0.35  # cosine by character n-grams: a fact and a sentence that states it in other words
INDUCE = ("These are numbered statements about a person.\n\nLife:\n{facts}\n\nCharacter:\n{traits}\n\n"
          "And this is what the person has written in a chat so far:\n\n{messages}\n\n"
          "Which statements can be told from these messages? Name a life statement only if they say it, a character "
          "statement only if their manner shows it clearly. Answer with two lines and nothing else:\n"
          "Life: numbers, or none\nCharacter: numbers, or none")
_ANSWER = re.compile(r"\W*life\s*:(?P<facts>[^\n]*)\n\W*character\s*:(?P<traits>[^\n]*+)\W*", re.IGNORECASE)

Log = Callable[[str, int, int], None]
Revealed = tuple[tuple[int, ...], tuple[int, ...]]


# ------------------------------------------------------------------------------------------------ the inducer


def revealed_so_far(dialogue: Dialogue) -> Revealed:
    """Indices of the persona's facts and traits that are out by the last noted user turn."""
    for turn in reversed(dialogue.by(USER)):
        if REVEALED[0] in turn.notes:
            facts, traits = (tuple(turn.notes[name]) for name in REVEALED)
            return facts, traits
    return (), ()


def hint_of(dialogue: Dialogue) -> str:
    """What is out by now in the persona's own sentences; "" if nothing is."""
    persona = persona_at(dialogue.scenario, len(dialogue.by(USER)))
    facts, traits = revealed_so_far(dialogue)
    return " ".join([*(persona.facts[at] for at in facts), *(persona.traits[at] for at in traits)])


@dataclass(frozen=True)
class RuleInducer:
    """Which of the persona's sentences are out, without a model.

    In pocket's words exactly. Of free texts, a fact is out once a sentence of the user is near it by the embedding;
    traits in free words are only found where the user states them: a model sees more.

    Attributes:
        embedder: None: pocket's words only.
        threshold: the least cosine of what is near.
    """

    embedder: Embedder | None = None
    threshold: float = ALIKE
    name: str = "inducer"

    def judge(self, dialogues: Sequence[Dialogue]) -> list[Verdict | None]:
        found: list[Verdict | None] = []
        for dialogue in dialogues:
            if dialogue.last.speaker != USER:
                found.append(Verdict())
                continue
            persona = persona_at(dialogue.scenario, len(dialogue.by(USER)))
            said = [turn.text for turn in dialogue.by(USER)]
            facts, traits = _in_pocket(persona, said)
            if self.embedder is not None:
                before = revealed_so_far(Dialogue(dialogue.scenario, dialogue.turns[:-1]))
                facts |= {*before[0], *self._near(persona.facts, said[-1])}
                traits |= {*before[1], *self._near(persona.traits, said[-1])}
            found.append(_noted(facts, traits))
        return found

    def _near(self, texts: Sequence[str], message: str) -> set[int]:
        assert self.embedder is not None
        parts = sentences(message)
        if not parts:
            return set()
        vectors = self.embedder.encode([*texts, *parts])
        closest = cosine(vectors[:len(texts)], vectors[len(texts):]).max(axis=1)
        return {at for at, value in enumerate(closest) if value >= self.threshold}


def _in_pocket(persona: Persona, said: Sequence[str]) -> tuple[set[int], set[int]]:
    """The sentences in pocket's words that the messages have shown."""
    facts, traits = world.revealed(persona.world, said)
    return ({at for at, text in enumerate(persona.facts) if facts.items() & world.read_profile(text).items()},
            {at for at, text in enumerate(persona.traits) if traits.items() & world.read_personality(text).items()})


def _noted(facts: set[int], traits: set[int]) -> Verdict:
    return Verdict(notes=dict(zip(REVEALED, (sorted(facts), sorted(traits)), strict=True)))


@dataclass(frozen=True)
class ModelInducer:
    """A model asked which numbered statements the messages show; what was out stays out.

    Numbers, not words, are asked for, so a hint only ever quotes the persona. An answer that cannot be read is asked
    for again, and then gives no verdict.
    """

    model: ChatModel
    sampling: Sampling = LINES

    @property
    def name(self) -> str:
        return "inducer"

    def judge(self, dialogues: Sequence[Dialogue]) -> list[Verdict | None]:
        found: list[Verdict | None] = [None if one.last.speaker == USER else Verdict() for one in dialogues]
        for attempt in range(TRIES):
            open_ = [at for at, verdict in enumerate(found) if verdict is None]
            said = self.model.chat([_induction(dialogues[at]) for at in open_], self.sampling,
                                   [content_id(self.name, dialogues[at].last.id, attempt) for at in open_])
            for at, answer in zip(open_, said, strict=True):
                persona = persona_at(dialogues[at].scenario, len(dialogues[at].by(USER)))
                read = parse_revealed(answer.text, persona)
                if read is not None:
                    before = revealed_so_far(Dialogue(dialogues[at].scenario, dialogues[at].turns[:-1]))
                    found[at] = _noted({*read[0], *before[0]}, {*read[1], *before[1]})
        return found


def _induction(dialogue: Dialogue) -> Chat:
    persona = persona_at(dialogue.scenario, len(dialogue.by(USER)))
    facts, traits = ("\n".join(f"{at}. {text}" for at, text in enumerate(texts, 1))
                     for texts in (persona.facts, persona.traits))
    messages = "\n".join(f"- {turn.text}" for turn in dialogue.by(USER))
    return [{"role": "user", "content": INDUCE.format(facts=facts, traits=traits, messages=messages)}]


def parse_revealed(text: str, persona: Persona) -> Revealed | None:
    """Indices (from 0) out of an inducer's two lines; None if it said anything else, or a number that is not there."""
    found = _ANSWER.fullmatch(text.strip())
    if found is None:
        return None
    parts = []
    for name, size in (("facts", len(persona.facts)), ("traits", len(persona.traits))):
        said = found[name].strip().rstrip(".").lower()
        if not re.fullmatch(r"none|-|\d+(?:\s*(?:,|and|\s)\s*\d+)*", said):
            return None
        numbers = tuple(sorted({int(number) - 1 for number in re.findall(r"\d+", said)}))
        if any(not 0 <= number < size for number in numbers):
            return None
        parts.append(numbers)
    return parts[0], parts[1]


# ------------------------------------------------------------------------------------------------ two replies


def responder(model: ChatModel, sampling: Sampling, hint: str, neutral: str = "") -> ModelSpeaker:
    """Replies twice: under the hint as its private brief, and without. Where nothing is out yet, only without."""
    def briefs(dialogue: Dialogue, seed: int) -> list[Brief]:
        without = Brief(PLAIN, neutral) if neutral else Brief(PLAIN, "")
        known = hint_of(dialogue)
        return [Brief(HINTED, hint.format(hint=known)), without] if known else [without]
    return ModelSpeaker(ASSISTANT, model, sampling, briefs)


@dataclass(frozen=True)
class PairJudge:
    """Marks one of the two replies to a message preferred (score 1) and the other rejected (0).

    A tie gives neither and is noted. The replies are looked up in their tree, since a verdict on one needs the other;
    so a turn whose sibling was judged before a kill gets the verdict that it would have got.

    Attributes:
        trees: by scenario id, those that are growing.
    """

    comparer: Comparer
    trees: Mapping[str, DialogueTree]
    name: str = "preference"

    def judge(self, dialogues: Sequence[Dialogue]) -> list[Verdict | None]:
        found: list[Verdict | None] = [None] * len(dialogues)
        open_: dict[str, tuple[Dialogue, Turn, Turn]] = {}
        for at, dialogue in enumerate(dialogues):
            if dialogue.last.speaker == USER:
                found[at] = Verdict()
            elif (pair := _pair(self.trees[dialogue.scenario.id], dialogue.last)) is None:
                found[at] = Verdict(notes={"verdict": "alone"})
            else:
                before = Dialogue(dialogue.scenario, dialogue.turns[:-1])
                open_[str(dialogue.last.parent)] = (before, *pair)
        asked = list(open_.values())
        said = self.comparer.compare([one for one, _, _ in asked], [left.text for _, left, _ in asked],
                                     [right.text for _, _, right in asked]) if asked else []
        verdicts = dict(zip(open_, said, strict=True))
        for at, dialogue in enumerate(dialogues):
            if found[at] is None:
                _, left, _ = open_[str(dialogue.last.parent)]
                verdict = verdicts[str(dialogue.last.parent)]
                won = (verdict == "left") == (dialogue.last.id == left.id)
                found[at] = (None if verdict is None else Verdict(notes={"verdict": "tie"}) if verdict == "tie"
                             else Verdict({PREFERRED: float(won)}))
        return found


def _pair(tree: DialogueTree, turn: Turn) -> tuple[Turn, Turn] | None:
    """The reply with the hint and the one without, to what `turn` replies to; None if one is missing."""
    both = {one.notes.get("brief"): one for one in [turn, *tree.siblings(turn)]}
    return (both[HINTED], both[PLAIN]) if {HINTED, PLAIN} <= set(both) else None


def goes_on(tree: DialogueTree, turn: Turn, seed: int) -> bool:
    """Whether the dialogue continues below `turn`: of two replies one does, drawn evenly by (seed, message)."""
    if turn.speaker == USER:
        return True
    replies = sorted([turn, *tree.siblings(turn)], key=lambda one: str(one.notes.get("brief")))
    return turn is replies[int(content_id(seed, "branch", turn.parent), 16) % len(replies)]


def grow_dialogues(trees: Sequence[DialogueTree], user: Speaker, replies: Speaker, judges: Sequence[Judge],
                   comparer: Comparer, *, turns: int, seed: int, sink: TreeLog | None = None, batch: int = 256,
                   log: Log = lambda label, done, total: None) -> None:
    """Grow (or go on growing) caterpillar trees of `turns` messages with a pair each; changes the trees.

    Args:
        judges: speak before the comparison: the inducer first, then whoever scores single replies.
        batch: trees at a time.
    """
    for start in range(0, len(trees), batch):
        some = trees[start:start + batch]
        compare = PairJudge(comparer, {tree.scenario.id: tree for tree in some})
        grow(some, [user, replies], max_turns=2 * turns, seed=seed, judges=[*judges, compare], sink=sink,
             expand=lambda tree, turn: goes_on(tree, turn, seed), log=log)


# ------------------------------------------------------------------------------------------------ what came of it


class Tally:
    """What dialogues gave and what was left out, as counts."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()  # what came out
        self.lost: Counter[str] = Counter()  # what gave no pair, by reason

    def add(self, tree: DialogueTree, turns: int) -> None:
        """Count one tree that was to have `turns` messages."""
        messages = [turn for turn in tree if turn.speaker == USER]
        replies = [turn for turn in tree if turn.speaker == ASSISTANT]
        hinted, plain = ([turn for turn in replies if turn.notes.get("brief") == name] for name in (HINTED, PLAIN))
        self.counts["turns"] += len(messages)
        for mark, name in ((1, "hinted reply preferred"), (0, "hinted reply rejected")):
            self.counts[name] += sum(turn.scores.get(PREFERRED) == mark for turn in hinted)
        self.lost["dialogue ended early"] += len(messages) < turns
        self.lost["tie"] += sum(turn.notes.get("verdict") == "tie" for turn in plain)
        self.lost["one reply only"] += sum(turn.notes.get("verdict") == "alone" for turn in replies)
        self.lost["judge not readable"] += sum(
            PREFERRED not in turn.scores and "verdict" not in turn.notes for turn in plain)
        self.lost["inducer not readable"] += sum(REVEALED[0] not in turn.notes for turn in messages)

    def left_out(self) -> dict[str, int]:
        """The reasons that occurred."""
        return {name: count for name, count in self.lost.items() if count}

    def to_json(self) -> dict[str, int]:
        """All counts that are not 0."""
        return {name: count for name, count in {**self.counts, **self.lost}.items() if count}


def read_log(path: Path) -> list[DialogueTree]:
    """The trees of a log in the order of their ids, whatever order batches or a resume left them in."""
    with TreeLog(path) as log:
        return [tree for _, tree in sorted(log.trees().items())]
