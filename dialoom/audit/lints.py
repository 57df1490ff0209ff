"""Lints of dialogues: what simulators get wrong, looked for turn by turn in every tree.

A turn is looked at once, with what was said before it, in however many branches it stands; tries that a recipe itself
rejected are left out. The surprising choice: what counts as a simulated user is the speaker `user`; where there is none
(debates, texts by one author) the lints of sameness look at everybody, and those of roles at nobody.
"""

from __future__ import annotations

import heapq
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from dialoom.audit.findings import Tally
from dialoom.dialogue import DialogueTree, Turn, content_id
from dialoom.evals.diversity import distinct_n, self_rouge_l, words
from dialoom.scenarios.sharegpt import ASSISTANT, USER
from dialoom.text import edit_ratio

OPENING_WORDS = 5
FEW_DIALOGUES = 10   # too few for a share of openings to mean anything
ALIKE = 0.9          # edit ratio from which a turn says the same again
COMPARED = 2_000     # characters of a turn that are compared
QUOTED = 8           # words of the turn before, whole: from here on it is no reference to it but a copy
LITTLE = 1 / 3       # of the distinct-2 that the same words give in random order
SAMPLED = 1_000      # turns on which variety is measured, the same ones whatever their order
FEW_TURNS = 50       # under so many, variety is no matter of style yet

# English, as all word lists here; said in the first person, or as a whole phrase that users do not use of themselves.
_ASSISTANT = re.compile(
    r"\bas an? (?:ai|artificial intelligence|(?:large )?language model|(?:ai|virtual|helpful) assistant)\b"
    r"|\bi(?:'m| am)(?: just| only| simply)? an? (?:ai\b|artificial intelligence|(?:large )?language model"
    r"|(?:ai|virtual|helpful|digital) assistant)"
    r"|\bhow (?:can|may) i (?:help|assist) you\b|\bis there anything else i can (?:help|assist|do)\b"
    r"|\bi(?:'d| would| will|'ll) be (?:happy|glad|pleased) to (?:help|assist) you\b"
    r"|\bi(?:'m| am) here to (?:help|assist)\b|\bi(?:'m sorry| am sorry| apologi[sz]e),? but i (?:can ?not|can't) "
    r"|\bi (?:can ?not|can't|am unable to) (?:assist|help) with that\b"
    r"|\b(?:feel free to ask|let me know if you (?:have|need)) (?:me )?(?:any|if|more|further)\b"
    r"|\bi hope (?:this|that) helps\b", re.IGNORECASE)
_MARKS = re.compile(r"<\|(?:im_start|im_end|user|assistant|system|end|eot_id|start_header_id)\|>|\[/?INST\]|<<SYS>>"
                    r"|</?s>|<(?:start|end)_of_turn>|^#{2,3} ?(?:Human|User|Assistant|Instruction|Response):?\s*$",
                    re.MULTILINE)
_LABELS = ("user", "human", "assistant", "chatgpt", "gpt", "ai assistant")
_DANGLING = re.compile(r"(?:[,(\[{–—]|\b(?:the|a|an|and|or|but|nor|because|your|my|our|their|its|whose|into|than))\s*$",
                       re.IGNORECASE)
_WORD_LAST = re.compile(r"(?:^|\s)[^\W\d_]{2,}$")
LONG = 8  # words from which an answer's last sentence without an end is taken for cut off


@dataclass
class _Sets:
    """What is counted over dialogues: openings by speaker, turns seen elsewhere, lengths, and a sample of turns."""

    openings: dict[str, Counter[str]] = field(default_factory=dict)
    begun: Counter[str] = field(default_factory=Counter)
    first: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)    # hash of a turn -> the first dialogue it stood in
    sample: list[tuple[int, str]] = field(default_factory=list)
    lengths: dict[str, list[int]] = field(default_factory=dict)
    longest: dict[str, tuple[int, str]] = field(default_factory=dict)


def lint(trees: Iterable[DialogueTree], tally: Tally, *, cut: frozenset[str] = frozenset(),
         tokens: Callable[[str], int] | None = None, cut_at: int = 0) -> None:
    """Look at every turn and dialogue; what is seen goes into `tally`.

    Args:
        cut: ids of turns known to be cut at the token limit.
        tokens: counts a text's tokens.
        cut_at: tokens from which on a turn that a model said was cut; 0: not known.
    """
    sets, trees = _Sets(), list(trees)
    has_user = any(turn.speaker == USER for tree in trees for turn in tree)
    for tree in trees:
        known = _labels(tree)
        for turn, before in turns_of(tree):
            where = f"{tree.id}/{turn.id}"
            tally.look("empty_turn", where, not turn.text.strip())
            if not turn.text.strip():
                continue
            _roles(turn, where, known, tally)
            _again(turn, before, where, tally, copies=has_user or len({one.speaker for one in tree}) > 1)
            tally.look("missing_stop", where, _cut(turn, cut, tokens, cut_at))
            _collect(sets, tree, turn, where, looked_at=not has_user or turn.speaker == USER, tally=tally)
        _dialogue(sets, tree, tally)
    _openings(sets, tally)
    _variety(sets, tally)
    _lengths(sets, tally)


def turns_of(tree: DialogueTree) -> Iterator[tuple[Turn, list[Turn]]]:
    """Every turn that was not rejected, with the turns before it on its path."""
    for turn in tree:
        if "rejected" not in turn.notes:
            yield turn, list(tree.dialogue(turn).turns[:-1])


# ------------------------------------------------------------------------------------------------ one turn


def _labels(tree: DialogueTree) -> re.Pattern[str]:
    names = sorted({*_LABELS, *(turn.speaker.lower() for turn in tree if turn.speaker.strip())}, key=len, reverse=True)
    named = "|".join(map(re.escape, names))
    return re.compile(rf"^[ \t]*(?:\*\*|#+ *|\[|<)?(?P<who>{named})(?:\*\*|\]|>)?[ \t]*:(?:\*\*)?",
                      re.IGNORECASE | re.MULTILINE)


def _roles(turn: Turn, where: str, known: re.Pattern[str], tally: Tally) -> None:
    text = turn.text
    if turn.speaker == USER:
        found = _ASSISTANT.search(text)
        tally.look("role_leak", where, found and _around(text, found))
    begun = known.match(text)
    tally.look("speaker_label", where, begun and text)
    inside = [one for one in known.finditer(text) if one.start() > 0 and one["who"].lower() != turn.speaker.lower()]
    mark = _MARKS.search(text)
    tally.look("both_parties", where, (inside and _around(text, inside[0])) or (mark and _around(text, mark)))


def _around(text: str, found: re.Match[str]) -> str:
    start = max(0, found.start() - 80)
    return f"{'… ' if start else ''}{text[start:found.end() + 120]}"


def _again(turn: Turn, before: Sequence[Turn], where: str, tally: Tally, *, copies: bool) -> None:
    """Whether a turn says again what its speaker, or the turn before, has said."""
    text = turn.text[:COMPARED]
    own = [one for one in before if one.speaker == turn.speaker]
    if own:
        same = next((one for one in own if edit_ratio(text, one.text[:COMPARED]) >= ALIKE), None)
        tally.look("repeated_turn", where, f"{turn.text} (before: {same.text})" if same else None)
    if copies and before and before[-1].speaker != turn.speaker and len(words(before[-1].text)) >= QUOTED:
        other = before[-1].text
        is_copy = " ".join(words(other)) in " ".join(words(turn.text)) or edit_ratio(text, other[:COMPARED]) >= ALIKE
        tally.look("echo", where, is_copy and turn.text)


def _cut(turn: Turn, cut: frozenset[str], tokens: Callable[[str], int] | None, cut_at: int) -> str:
    if turn.id in cut:
        return f"cut at the token limit: …{turn.text[-120:]}"
    text = turn.text.rstrip()
    said_by_model = "model" in turn.notes
    if cut_at and tokens is not None and said_by_model and len(text) >= cut_at and tokens(text) >= cut_at:
        return f"as long as the limit of {cut_at} tokens: …{text[-120:]}"
    if text.count("```") % 2:
        return f"a code block is not closed: …{text[-120:]}"
    last = text.rsplit("\n", 1)[-1]
    if len(last.split()) >= 3 and _DANGLING.search(last):
        return f"…{text[-120:]}"
    # somebody who ends sentences with a mark, but not the last one, and not by a smile or as an item of a list
    *ended, rest = re.split(r"(?<=[.!?])\s+", last)
    is_item = bool(re.match(r"\s*(?:[-*•|#>]|\d+[.)]|\w+:)", last))
    if turn.speaker == ASSISTANT and ended and not is_item and len(rest.split()) >= LONG and _WORD_LAST.search(rest):
        return f"…{text[-120:]}"
    return ""


# ------------------------------------------------------------------------------------------------ all of them


def _collect(sets: _Sets, tree: DialogueTree, turn: Turn, where: str, *, looked_at: bool, tally: Tally) -> None:
    said = words(turn.text)
    sets.lengths.setdefault(turn.speaker, []).append(len(said))
    if len(said) > sets.longest.get(turn.speaker, (-1, ""))[0]:
        sets.longest[turn.speaker] = (len(said), where)
    if not looked_at or len(said) < 4:
        return
    key = content_id("turn", said)
    home = sets.places.setdefault(key, tree.id)
    tally.look("same_elsewhere", where, home != tree.id and f"{turn.text} (also in {home})")
    item = (-int(content_id("sample", where), 16), turn.text)
    (heapq.heappush if len(sets.sample) < SAMPLED else heapq.heappushpop)(sets.sample, item)


def _dialogue(sets: _Sets, tree: DialogueTree, tally: Tally) -> None:
    """A tree's first turns by speaker, and whether a path of it ends on the user."""
    turns = [turn for turn in tree if "rejected" not in turn.notes]
    firsts: dict[str, set[str]] = {}
    for turn in turns:
        if not any(one.speaker == turn.speaker for one in tree.dialogue(turn).turns[:-1]):
            begun = " ".join(words(turn.text)[:OPENING_WORDS])
            firsts.setdefault(turn.speaker, set()).add(begun)
            sets.first.setdefault((turn.speaker, begun), (f"{tree.id}/{turn.id}", turn.text))
    for speaker, begun_with in firsts.items():
        sets.begun[speaker] += 1
        sets.openings.setdefault(speaker, Counter()).update(begun_with)
    leaves = [turn for turn in turns if not any("rejected" not in child.notes for child in tree.children(turn))]
    if any(turn.speaker == USER for turn in turns):
        for leaf in leaves:
            tally.look("open_end", f"{tree.id}/{leaf.id}", leaf.speaker == USER and leaf.text)


def _openings(sets: _Sets, tally: Tally) -> None:
    """The worst speaker's commonest beginning; the user's where there is one."""
    speakers = [USER] if USER in sets.begun else list(sets.begun)
    worst, count, of = ("", ""), 0, 0
    for speaker in speakers:
        (begun, often), = sets.openings[speaker].most_common(1)
        tally.figure("repeated_opening", **{f"{speaker}: different": len(sets.openings[speaker])})
        if often > count:
            worst, count, of = (speaker, begun), often, sets.begun[speaker]
    if of >= FEW_DIALOGUES:
        tally.count("repeated_opening", of)
        if count > 1:
            where, text = sets.first[worst]
            tally.hit("repeated_opening", where, f"{count} of {of} begin so: {text}", count)


def _variety(sets: _Sets, tally: Tally) -> None:
    """Distinct-2 and self-ROUGE-L of a sample of turns, beside those of the same words in random order."""
    texts = [text for _, text in sorted(sets.sample)]
    if len(texts) < FEW_TURNS:
        return
    chance = shuffled(texts)
    figures = {"turns": len(texts), "distinct-2": distinct_n(texts, 2), "distinct-2 by chance": distinct_n(chance, 2),
               "self-ROUGE-L": self_rouge_l(texts), "self-ROUGE-L by chance": self_rouge_l(chance)}
    tally.figure("diversity", **{name: round(value, 4) for name, value in figures.items()})
    ratio = figures["distinct-2"] / figures["distinct-2 by chance"]
    tally.look("diversity", "all turns", ratio < LITTLE and
               f"{ratio:.0%} of the two-word phrases that the same words give in random order")


def shuffled(texts: Sequence[str], seed: int = 0) -> list[str]:
    """The words of all texts in random order, cut into texts of the same lengths: variety without any phrase."""
    said = [words(text) for text in texts]
    pool = [word for one in said for word in one]
    random.Random(seed).shuffle(pool)
    drawn = iter(pool)
    return [" ".join(next(drawn) for _ in one) for one in said]


def _lengths(sets: _Sets, tally: Tally) -> None:
    for speaker, found in sets.lengths.items():
        low, middle, high = (int(value) for value in np.percentile(found, (5, 50, 95)))
        most, where = sets.longest[speaker]
        told = f"median {middle}, 90 % from {low} to {high}, longest {most} ({where})"
        tally.figure("empty_turn", **{f"{speaker}: words": told})
