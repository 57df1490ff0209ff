"""IDEAS' deduction: from openings to whole dialogues, many of them in flight.

A round is at most one batch for each role: a policy lists strategies, the simulator chooses one and writes the user's
next message, cheap filters and the verifier look at it, the answerer replies. A rejected message is a child that does
not go on; it says why. The surprising choice: nothing is remembered beside the trees. A message is logged before it is
checked, its verdict before it is answered, and how often a dialogue failed in a row is read from it, so a run that was
stopped goes on without asking anybody twice.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from dialoom.dialogue import Dialogue, DialogueTree, Turn, content_id, turn_id
from dialoom.evals.alignment_roles import ASSISTANT, USER
from dialoom.judge import Judge
from dialoom.recipes.ideas_simulator import STRATEGY, Proposal
from dialoom.recipes.ideas_verify import WHY, rejection
from dialoom.simulate import Speaker, TreeSink
from dialoom.text import edit_ratio

if TYPE_CHECKING:
    from dialoom.recipes.ideas_ranker import Ranker

ACCEPTED, REJECTED = "accepted", "rejected"  # notes of a message: True, and why
STEPS = ("generated", "parsed", "novel", "verified", "answered")
TOO_ALIKE, TOO_LONG, UNANSWERED = "repeats a message", "too long", "no answer"
LOST_AT = {TOO_ALIKE: "novel", TOO_LONG: "novel", UNANSWERED: "answered", "verifier not readable": "verified",
           **dict.fromkeys(WHY.values(), "verified")}
"""The step that a reason keeps a message from; every other reason is the simulator's and keeps it from `parsed`."""

Log = Callable[[str, int, int], None]


class Policy(Protocol):
    """Which strategies the simulator may choose from; () where it needs none."""

    @property
    def name(self) -> str: ...

    def candidates(self, dialogues: Sequence[Dialogue], keys: Sequence[str]) -> list[list[str]]: ...


class UserSimulator(Protocol):
    """Who chooses a strategy and writes the user's next message (`ideas_simulator` has them)."""

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    def propose(self, dialogues: Sequence[Dialogue], listed: Sequence[Sequence[str]],
                keys: Sequence[str]) -> list[Proposal]: ...


@dataclass(frozen=True)
class Limits:
    """When a message is not tried, and when a dialogue ends."""

    max_pairs: int = 10
    """The opening's pair included."""
    max_failures: int = 5
    """A dialogue ends once more messages in a row were rejected."""
    alike: float = 0.8
    """A message whose edit ratio with an earlier one of the dialogue is greater repeats it."""
    max_words: int = 120


# ------------------------------------------------------------------------------------------------ policies


@dataclass(frozen=True)
class RandomPolicy:
    """Strategies drawn evenly, `size` of them or all there are."""

    strategies: Sequence[str]
    size: int = 50
    name: str = "random"

    def candidates(self, dialogues: Sequence[Dialogue], keys: Sequence[str]) -> list[list[str]]:
        size = min(self.size, len(self.strategies))
        return [random.Random(f"{self.name} {key}").sample(list(self.strategies), size) for key in keys]


@dataclass(frozen=True)
class RankerPolicy:
    """What the ranker lets through after the last answer, cut at random to `size`; random ones where nothing passes."""

    ranker: Ranker
    size: int = 50
    name: str = "ranker"

    def candidates(self, dialogues: Sequence[Dialogue], keys: Sequence[str]) -> list[list[str]]:
        return self.ranker.select([dialogue.last.text for dialogue in dialogues], keys=keys, size=self.size)


@dataclass(frozen=True)
class NoPolicy:
    """No strategies: for a simulator that writes without."""

    name: str = "none"

    def candidates(self, dialogues: Sequence[Dialogue], keys: Sequence[str]) -> list[list[str]]:
        return [[] for _ in keys]


@dataclass(frozen=True)
class NoveltyPolicy:
    """Another policy's strategies, with those that the dialogue has used already left out more often than not.

    A strategy used n times stays with probability 1 / (1 + strength n); where none stays, all do. `inner` lists them in
    random order, of which the first `size` are kept.
    """

    inner: Policy
    size: int = 50
    strength: float = 4.0
    name: str = "novelty"

    def candidates(self, dialogues: Sequence[Dialogue], keys: Sequence[str]) -> list[list[str]]:
        found = []
        for dialogue, key, listed in zip(dialogues, keys, self.inner.candidates(dialogues, keys), strict=True):
            used = Counter(turn.notes.get(STRATEGY) for turn in dialogue.by(USER))
            rng = random.Random(f"{self.name} {key}")
            stays = [text for text in listed if rng.random() * (1 + self.strength * used[text]) < 1]
            found.append((stays or listed)[:self.size])
        return found


# --------------------------------------------------------------------------------------------- where a dialogue stands


def plant(opening: Dialogue, seed: int, label: str = "") -> DialogueTree:
    """A tree that holds an opening question and its answer, if it has one; its id is made of these, seed and label."""
    said = [turn.text for turn in opening.turns[:1]]
    tree = DialogueTree(opening.scenario, content_id(seed, label, opening.scenario.id, *said))
    for text in said:
        tree.add(Turn(content_id(tree.id, text), None, ASSISTANT, text, {"opening": True}))
    return tree


def tip(tree: DialogueTree) -> Turn | None:
    """The last turn of the branch that goes on: an answer, or an accepted message that waits for one."""
    at: Turn | None = None
    while onward := [turn for turn in tree.children(at) if turn.speaker == ASSISTANT or _goes_on(turn)]:
        at = onward[0]
    return at


def _goes_on(message: Turn) -> bool:
    return ACCEPTED in message.notes and REJECTED not in message.notes  # both: accepted, and never answered


def branch(tree: DialogueTree) -> Dialogue:
    """The dialogue that was held: messages that were answered and their answers."""
    path = tree.dialogue(tip(tree))
    return Dialogue(path.scenario, path.turns[:-1]) if path.turns and path.last.speaker == USER else path


def attempts(tree: DialogueTree, at: Turn | None) -> list[Turn]:
    """The messages tried after an answer, oldest first."""
    return [turn for turn in tree.children(at) if turn.speaker == USER]


def due(tree: DialogueTree, limits: Limits) -> str:
    """What a dialogue waits for: "message", "check" or "answer"; "" if it is over."""
    at = tip(tree)
    if at is None or at.speaker == USER:
        return "answer"
    tried = attempts(tree, at)
    if any(not {ACCEPTED, REJECTED} & set(message.notes) for message in tried):
        return "check"
    full = len(tree.dialogue(at).by(ASSISTANT)) >= limits.max_pairs
    return "" if full or len(tried) > limits.max_failures or not at.text.strip() else "message"


# ------------------------------------------------------------------------------------------------ the loop


@dataclass(frozen=True)
class Team:
    """Who does what in a deduction.

    Attributes:
        answerer: speaks as the assistant, one reply to a dialogue.
    """

    simulator: UserSimulator
    policy: Policy
    verifier: Judge
    answerer: Speaker


def deduce(trees: Sequence[DialogueTree], team: Team, limits: Limits, *, seed: int, sink: TreeSink | None = None,
           batch: int = 256, log: Log = lambda label, done, total: None) -> Funnel:
    """Let every dialogue go on until it has all its pairs, or failed too often in a row. Changes the trees.

    Args:
        trees: from `plant`, or out of a log, half done or done.
        sink: written after each step of each round.
        batch: dialogues in flight.
        log: called as (label, dialogues done, all) once a round.
    Returns: what became of every message in these trees, those of earlier runs included.
    """
    for start in range(0, len(trees), batch):
        flight = list(trees[start:start + batch])
        if sink:
            for tree in flight:
                sink.add_tree(tree)
        for step in _steps(flight, limits):
            {"message": _ask, "check": _check, "answer": _answer}[step.what](step.trees, team, limits, seed, sink)
            log("deduction", start + step.done, len(trees))
    return Funnel.of(trees)


@dataclass(frozen=True)
class _Step:
    what: str
    trees: list[DialogueTree]
    done: int  # dialogues of the flight that are over


def _steps(flight: Sequence[DialogueTree], limits: Limits) -> Iterator[_Step]:
    """The steps that are due, one batch at a time, until none is."""
    while True:
        waiting: dict[str, list[DialogueTree]] = {}
        for tree in flight:
            waiting.setdefault(due(tree, limits), []).append(tree)
        done = len(waiting.pop("", ()))
        if not waiting:
            return
        what = next(name for name in ("answer", "check", "message") if name in waiting)  # so that batches stay whole
        yield _Step(what, waiting[what], done)


def _ask(trees: Sequence[DialogueTree], team: Team, limits: Limits, seed: int, sink: TreeSink | None) -> None:
    """One message for each dialogue, logged before anybody looks at it."""
    places = [tip(tree) for tree in trees]
    dialogues = [tree.dialogue(at) for tree, at in zip(trees, places, strict=True)]
    tries = [len(attempts(tree, at)) for tree, at in zip(trees, places, strict=True)]
    keys = [turn_id(seed, dialogue, USER, index, [tree.id, team.simulator.fingerprint, team.policy.name])
            for tree, dialogue, index in zip(trees, dialogues, tries, strict=True)]
    listed = team.policy.candidates(dialogues, keys)
    for tree, at, key, texts, proposal in zip(trees, places, keys, listed,
                                              team.simulator.propose(dialogues, listed, keys), strict=True):
        notes: dict[str, Any] = {"model": team.simulator.name}
        notes |= {STRATEGY: proposal.strategy} if proposal.strategy else {}
        notes |= {"candidates": list(texts)} if texts else {}
        notes |= {"dropped": proposal.dropped} if proposal.dropped else {}
        notes |= {REJECTED: proposal.reason} if proposal.reason else {}
        turn = tree.add(Turn(key, at.id if at else None, USER, proposal.instruction, notes))
        if sink:
            sink.add_turns(tree, [turn])


def _check(trees: Sequence[DialogueTree], team: Team, limits: Limits, seed: int, sink: TreeSink | None) -> None:
    """What is cheap to see first, then the verifier; each message is noted as accepted or with the reason."""
    new = [(tree, next(one for one in attempts(tree, tip(tree)) if not {ACCEPTED, REJECTED} & set(one.notes)))
           for tree in trees]
    found = {message.id: _cheap_reason(tree.dialogue(message), limits) for tree, message in new}
    passed = [(tree, message) for tree, message in new if not found[message.id]]
    verdicts = team.verifier.judge([tree.dialogue(message) for tree, message in passed]) if passed else []
    for (_, message), verdict in zip(passed, verdicts, strict=True):
        found[message.id] = rejection(verdict)
        message.notes.update(verdict.notes if verdict else {})
    for tree, message in new:
        message.notes.update({REJECTED: found[message.id]} if found[message.id] else {ACCEPTED: True})
        if sink:
            sink.add_scores(tree, [message])


def _cheap_reason(dialogue: Dialogue, limits: Limits) -> str:
    """Why a message need not be shown to a verifier; "" if it must be."""
    text = dialogue.last.text
    if len(text.split()) > limits.max_words:
        return TOO_LONG
    earlier = [dialogue.scenario.opening, *(turn.text for turn in dialogue.by(USER)[:-1])]
    return TOO_ALIKE if any(edit_ratio(text, other) > limits.alike for other in earlier) else ""


def _answer(trees: Sequence[DialogueTree], team: Team, limits: Limits, seed: int, sink: TreeSink | None) -> None:
    """One answer for each accepted message; where nothing came, the message counts as rejected."""
    places = [tip(tree) for tree in trees]
    planned = [team.answerer.requests(tree.dialogue(at), seed)[0] for tree, at in zip(trees, places, strict=True)]
    for tree, at, request, text in zip(trees, places, planned, team.answerer.speak(planned), strict=True):
        if at is not None and not text.strip():
            at.notes[REJECTED] = UNANSWERED
            if sink:
                sink.add_scores(tree, [at])
            continue
        turn = tree.add(Turn(request.id, at.id if at else None, ASSISTANT, text, dict(request.notes)))
        if sink:
            sink.add_turns(tree, [turn])


# ------------------------------------------------------------------------------------------------ what came of it


@dataclass(frozen=True)
class Funnel:
    """What became of every message a simulator wrote, one for each of its calls.

    Attributes:
        counts: messages that came so far, by the names in `STEPS`.
        reasons: why messages came no further; with the answered and the waiting ones they are all that were generated.
        waiting: written, and not yet checked or answered; none once a deduction is over.
        pairs: of each dialogue, the opening's included.
    """

    counts: Mapping[str, int]
    reasons: Mapping[str, int]
    waiting: int
    pairs: tuple[int, ...]

    @classmethod
    def of(cls, trees: Sequence[DialogueTree]) -> Funnel:
        """The funnel of dialogues, read from their messages."""
        messages = [(tree, turn) for tree in trees for turn in tree if turn.speaker == USER]
        reasons = Counter(str(turn.notes[REJECTED]) for _, turn in messages if REJECTED in turn.notes)
        counts, left = {}, len(messages)
        for step in STEPS:
            left -= sum(count for reason, count in reasons.items() if LOST_AT.get(reason, "parsed") == step)
            counts[step] = left
        counts["answered"] = sum(bool(tree.children(turn)) for tree, turn in messages)
        return cls(counts, dict(reasons.most_common()), len(messages) - reasons.total() - counts["answered"],
                   tuple(len(branch(tree).by(ASSISTANT)) for tree in trees))

    def to_json(self) -> dict[str, Any]:
        """Counts and reasons; pairs as how many dialogues have so many."""
        return {**self.counts, "waiting": self.waiting, "reasons": dict(self.reasons),
                "pairs": {str(size): count for size, count in sorted(Counter(self.pairs).items())}}


def post_process(dialogues: Sequence[Dialogue], refusals: Sequence[str] = (), *,
                 min_pairs: int = 2) -> tuple[list[Dialogue], Counter[str]]:
    """Cut each dialogue before its first pair that nobody should learn from; leave out those that get too short.

    Such a pair has an empty message, or an answer that is empty or holds one of `refusals` (case aside).

    Returns: the dialogues that are left, in order, and counts of what was cut and left out.
    """
    kept, lost = [], Counter[str]()
    for dialogue in dialogues:
        asked = [dialogue.scenario.opening, *(turn.text for turn in dialogue.by(USER))]
        pairs = list(zip(asked, (turn.text for turn in dialogue.by(ASSISTANT)), strict=False))
        reasons = [_unusable(message, answer, refusals) for message, answer in pairs]
        size = next((at for at, reason in enumerate(reasons) if reason), len(pairs))
        if size < len(pairs):
            lost[f"cut at {reasons[size]}"] += 1
        if size < min_pairs:
            lost[f"fewer than {min_pairs} pairs"] += 1
        else:
            kept.append(first_pairs(dialogue, size))
    return kept, lost


def _unusable(message: str, answer: str, refusals: Sequence[str]) -> str:
    if not message.strip():
        return "an empty message"
    if not answer.strip():
        return "an empty answer"
    return "a refusal" if any(word.casefold() in answer.casefold() for word in refusals) else ""


def first_pairs(dialogue: Dialogue, count: int) -> Dialogue:
    """A dialogue that starts with an answer, cut after its first `count` answers."""
    return Dialogue(dialogue.scenario, dialogue.turns[:max(0, 2 * count - 1)])
