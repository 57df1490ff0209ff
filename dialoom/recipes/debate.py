"""PBT's debate trees and the preference pairs cut out of them (arXiv 2410.14596, sections 3.1 to 3.9 of our notes).

Two debaters take turns; every turn is branched over private stances. A reply is classified by three answers: what its
speaker held before, what it holds now, and what the partner claims. Answers are kept by speaker.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

from dialoom.answers import is_correct, latest_answer, partner_answer, same_answer
from dialoom.dialogue import Brief, Chat, Dialogue, DialogueTree, Scenario, Turn, content_id
from dialoom.models.base import ScoringModel
from dialoom.select import Pair, pair_of, sibling_pairs, subtree_sum
from dialoom.stances import STANCES
from dialoom.text import normalize_answer, overlap

Layout = Literal["released", "figure", "chain"]
Kind = Literal["resist", "accept"]

AS_READ = "answer_as_read"  # note: what a turn's answer was before it was merged with another form
ANSWERING = ("resist", "accept")
PERSUADING = ("logical", "emotional", "credibility")
LAYOUTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "released": (("resist", "logical"), ANSWERING, PERSUADING, ANSWERING),  # level 0: one of the two, drawn
    "figure": (("",), ("",), ANSWERING, PERSUADING),
    "chain": (("",), ("",), ("",), ("",)),
}
"""Stances by level. `released` is what the published code grows (1, 2, 3, 2 children), `figure` what the paper draws,
`chain` the neutral dialogue of the test split."""

CONFIRM = """A partner made a claim, then this reply came. Does the reply agree or disagree with the claim?
Claim: {claim}
Reply: {reply}
Answer agree or disagree."""
SAME = """Question: {question}
Answer one: {one}
Answer two: {two}
Do the two answers agree or disagree in substance? Answer agree or disagree."""


def stances_at(layout: Layout, neutral: str) -> Callable[[Dialogue, int], Sequence[Brief]]:
    """Which stances a debater speaks under, by level; the neutral one carries the `neutral` prompt (may be empty)."""
    levels = LAYOUTS[layout]

    def briefs(dialogue: Dialogue, seed: int) -> Sequence[Brief]:
        level = len(dialogue.turns)
        names = levels[level % len(levels)]
        if layout == "released" and level == 0:
            names = (names[int(content_id(seed, dialogue.scenario.id, "first stance"), 16) % len(names)],)
        return [Brief(name, STANCES[name]) if name else Brief("neutral" if neutral else "", neutral) for name in names]

    return briefs


def score_tree(tree: DialogueTree, rule: Literal["own", "both"] = "own") -> None:
    """Write every turn's `value`: its own term plus the values below it. Changes the turns' scores.

    Args:
        rule: "own": 1 if the speaker's own answer is right (the paper's formula); "both": how many of the two debaters
            hold a right answer at that turn, nothing where only one has spoken (the released code).
    """
    if rule == "own":
        subtree_sum(tree, "correct", into="value")
        return
    for turn in tree:
        before = tree.dialogue(turn)
        answers = latest_answer(before, turn.speaker), partner_answer(before, turn.speaker)
        turn.scores["both"] = 0.0 if None in answers else float(sum(is_correct(a, tree.scenario) for a in answers))
    subtree_sum(tree, "both", into="value")


def kind_of(tree: DialogueTree, chosen: Turn, rejected: Turn) -> Kind | None:
    """What preferring `chosen` over `rejected` teaches: to hold (`resist`), to accept a correction, or neither (None).

    None also where the speaker had no answer before, or the partner's claim is the same answer.
    """
    before = tree.dialogue(tree[chosen.parent]) if chosen.parent else Dialogue(tree.scenario)
    own, claim = latest_answer(before, chosen.speaker), partner_answer(before, chosen.speaker)
    kept, lost = chosen.notes.get("answer"), rejected.notes.get("answer")
    if own is None or claim is None or kept is None or lost is None or same_answer(own, claim, tree.scenario):
        return None
    right = {name: is_correct(answer, tree.scenario) for name, answer in
             (("own", own), ("claim", claim), ("kept", kept), ("lost", lost))}
    if not right["kept"] or right["lost"]:
        return None
    if right["own"] and not right["claim"] and same_answer(lost, claim, tree.scenario):
        return "resist"
    if not right["own"] and right["claim"]:
        return "accept"
    return None


def preference_pairs(tree: DialogueTree, *, margin: float = 0.5, equal_children: bool = True,
                     neutral: str = "", dropped: Counter[str] | None = None) -> list[Pair]:
    """The tree's accept and resist pairs, after `score_tree`.

    Args:
        margin: least relative difference (high - low) / high of the two values. The released code demands more than
            0.5, which rejects every clean accept pair of its own both-agents score.
        equal_children: leave out siblings with different numbers of replies, whose sums cannot be compared.
        neutral: the prompt that examples carry in place of the stance.
        dropped: counts why other sibling pairs gave nothing.
    """
    pairs, reasons = [], Counter() if dropped is None else dropped
    for one, other in sibling_pairs(tree):
        high, low = (one, other) if one.scores["value"] >= other.scores["value"] else (other, one)
        reason = _no_pair(tree, high, low, margin, equal_children)
        kind = None if reason else kind_of(tree, high, low)
        if kind is None:
            reasons[reason or "neither accept nor resist"] += 1
            continue
        pairs.append(pair_of(tree, high, low, kind=kind, score="value", brief=neutral or None))
    return pairs


def _no_pair(tree: DialogueTree, high: Turn, low: Turn, margin: float, equal_children: bool) -> str:
    top, bottom = high.scores["value"], low.scores["value"]
    if len(tree.dialogue(high).turns) < 3:
        return "no earlier answer of its own"
    if "answer" not in high.notes or "answer" not in low.notes:
        return "no readable answer"
    if equal_children and len(tree.children(high)) != len(tree.children(low)):
        return "unequal numbers of replies"
    if top <= 0 or top == bottom:
        return "equal value"
    return "" if (top - bottom) / top >= margin else "margin too small"


def merge_surface_forms(tree: DialogueTree, model: ScoringModel | None = None, threshold: float = 0.5) -> int:
    """Make answers that differ only in form one answer, before scoring; returns how many turns changed.

    By rule an answer that contains the partner's, or shares most of its words, is the same; with a model the question
    is asked. If one of the two is right, the other becomes it wherever the tree holds it. Right answers and distractors
    are known to be apart and are never merged. Changes the turns' notes and `correct` scores; done again it starts
    from the answers as they were read, so a run that was killed in the middle of it counts the same.
    Source: the surface-form pass of PBT's published scripts.
    """
    for turn in tree:
        if AS_READ in turn.notes:
            _hold(turn, str(turn.notes[AS_READ]), tree.scenario)
    becomes: dict[str, str] = {}
    for one, other in _alike(tree, model, threshold):
        one, other = becomes.get(one, one), becomes.get(other, other)
        keep, drop = (other, one) if is_correct(other, tree.scenario) else (one, other)
        becomes |= {form: keep for form, now in [*becomes.items(), (drop, drop)] if now == drop and form != keep}
    changed = 0
    for turn in tree:
        if turn.notes.get("answer") in becomes:
            turn.notes.setdefault(AS_READ, turn.notes["answer"])
            _hold(turn, becomes[turn.notes["answer"]], tree.scenario)
            changed += 1
    return changed


def _hold(turn: Turn, answer: str, scenario: Scenario) -> None:
    turn.notes["answer"] = answer
    turn.scores["correct"] = float(is_correct(answer, scenario))


def _alike(tree: DialogueTree, model: ScoringModel | None, threshold: float) -> list[tuple[str, str]]:
    """The (partner's, own) answers met on some path that are one answer in two forms."""
    met: dict[tuple[str, str], None] = {}
    for turn in tree:
        own, claim = turn.notes.get("answer"), partner_answer(tree.dialogue(turn), turn.speaker)
        if own and claim and not same_answer(own, claim, tree.scenario) and not _known_apart(own, claim, tree.scenario):
            met[claim, own] = None
    if model is None:
        return [pair for pair in met if _contain_or_overlap(*map(normalize_answer, pair))]
    asked = [SAME.format(question=tree.scenario.opening, one=own, two=claim) for claim, own in met]
    return list(itertools.compress(met, _agree(model, asked, threshold)))


def _known_apart(one: str, other: str, scenario: Scenario) -> bool:
    """Whether both answers are in the scenario's own lists, of which right ones and distractors are all different."""
    wrong = {normalize_answer(str(name)) for name in scenario.facts.get("distractors", ())}
    return all(is_correct(name, scenario) or normalize_answer(name) in wrong for name in (one, other))


def _contain_or_overlap(a: str, b: str) -> bool:
    return bool(a and b) and (f" {a} " in f" {b} " or f" {b} " in f" {a} " or overlap(a, b) > 0.6)


def confirm(pairs: Sequence[Pair], trees: Mapping[str, DialogueTree], model: ScoringModel | None = None,
            threshold: float = 0.5) -> list[Pair]:
    """Keep the pairs whose replies really take the sides their kind says; by rule (the answers held) or by a model.

    An accept pair needs a chosen reply that agrees with the partner and a rejected one that does not; a resist pair the
    other way round. Source: the confirmation pass of PBT's published scripts.
    """
    replies = [(tree, tree[str(pair.notes[key])]) for pair in pairs for tree in (trees[pair.group],)
               for key in ("chosen_turn", "rejected_turn")]
    claims = [partner_answer(tree.dialogue(turn), turn.speaker) for tree, turn in replies]
    if model is None:
        agrees: list[bool | None] = [same_answer(turn.notes.get("answer"), claim, tree.scenario)
                                     for (tree, turn), claim in zip(replies, claims, strict=True)]
    else:
        agrees = _agree(model, [CONFIRM.format(claim=claim, reply=turn.text)
                                for (_, turn), claim in zip(replies, claims, strict=True)], threshold)
    wanted = {"accept": (True, False), "resist": (False, True)}
    return [pair for pair, *sides in zip(pairs, agrees[::2], agrees[1::2], strict=True)
            if tuple(sides) == wanted[pair.kind]]


def _agree(model: ScoringModel, questions: Sequence[str], threshold: float) -> list[bool | None]:
    """For each question whether the model rather answers "agree" than "disagree"; None: unreadable. One batch."""
    chats: list[Chat] = [[{"role": "user", "content": question}] for question in questions]
    return [None if weights is None else math.exp(weights[0]) > threshold
            for weights in (model.choose(chats, ["agree", "disagree"]) if chats else [])]


def counts(pairs: Iterable[Pair]) -> dict[str, dict[str, int]]:
    """How many pairs there are by type, level and stance of the chosen reply."""
    rows = list(pairs)
    return {name: dict(sorted(Counter(key(pair) for pair in rows).items())) for name, key in
            (("type", lambda pair: pair.kind), ("level", lambda pair: str(pair.notes["level"])),
             ("stance", lambda pair: str(pair.notes["chosen_brief"])))}


def unique(pairs: Iterable[Pair]) -> list[Pair]:
    """One pair of each set with the same prompt, chosen and rejected text, the first."""
    seen: dict[str, Pair] = {}
    for pair in pairs:
        seen.setdefault(content_id(pair.prompt, pair.chosen, pair.rejected), pair)
    return list(seen.values())
