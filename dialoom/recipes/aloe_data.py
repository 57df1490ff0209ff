"""From preference dialogues to training data, and between our trees and the layout ALOE released.

One line of `conversations.jsonl` is one dialogue:

    {"profile": "...", "personality": "...", "conversations": [
        {"user": "...", "assistant": {"preferred": "...", "rejected": "..."}, "chosen": "preferred",
         "inferred_profile": "...", "inferred_personality": "..."}, ...]}

`chosen` says which reply the dialogue went on with. A line that cannot be used is named and costs no other line. Text
for training is always in the neutral view: what a reply's hint said stands nowhere in it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dialoom.dialogue import Dialogue, DialogueTree, Turn, chat_view, content_id
from dialoom.errors import DataError
from dialoom.evals.alignment import SCORE
from dialoom.evals.alignment_roles import ASSISTANT, USER, persona_at, scenario_of
from dialoom.pocket.corpus import documents
from dialoom.recipes.aloe_dialogues import PREFERRED, REVEALED
from dialoom.scenarios.files import read_bytes
from dialoom.scenarios.personas import Persona, sentences
from dialoom.scenarios.sharegpt import read_dialogues
from dialoom.select import Example, Pair, pair_of
from dialoom.text import UNUSABLE, parse_json

Log = Callable[[str], None]
POCKET = "pocket"
POCKET_SEED = 71  # of general text out of pocket's grammar: a stream its pre-training did not see
SPLIT = "aloe general"
HELD_OUT = 10  # one chat of so many in a file of general ones is kept for measuring fluency


# ------------------------------------------------------------------------------------------------ selection


def branch(tree: DialogueTree) -> Dialogue:
    """The dialogue that was really held: the longest path. Where it ends in two replies, the first of them."""
    paths = [tree.dialogue(leaf) for leaf in tree.leaves()] or [Dialogue(tree.scenario)]
    return max(paths, key=lambda path: len(path.turns))


def pairs_of(tree: DialogueTree, *, neutral: str = "", margin: float = 0.0) -> list[Pair]:
    """One pair for each judged message, its prompt the branch up to there in the neutral view.

    Args:
        margin: least difference of the two replies' scores, where both have one.
    """
    pairs = []
    for message in tree:
        replies = tree.children(message) if message.speaker == USER else []
        chosen, rejected = (next((one for one in replies if one.scores.get(PREFERRED) == mark), None)
                            for mark in (1.0, 0.0))
        if chosen is not None and rejected is not None and _apart(chosen, rejected, margin):
            pairs.append(pair_of(tree, chosen, rejected, kind="alignment", score=SCORE, brief=neutral or None))
    return pairs


def _apart(chosen: Turn, rejected: Turn, margin: float) -> bool:
    if chosen.text == rejected.text:
        return False
    if SCORE in chosen.scores and SCORE in rejected.scores:
        return chosen.scores[SCORE] - rejected.scores[SCORE] >= margin
    return True


def examples_of(tree: DialogueTree, pairs: Sequence[Pair], which: str, *, neutral: str = "") -> list[Example]:
    """The replies of one kind as targets: those on the branch in one example of the whole dialogue, the others each
    behind the history they answered. All share one group, so training computes the history once.

    Args:
        pairs: those of this tree that are learned from.
        which: "preferred" or "rejected".
    """
    wanted = {str(pair.notes["chosen_turn" if which == PREFERRED else "rejected_turn"]) for pair in pairs}
    main = branch(tree)
    chat = chat_view(main, ASSISTANT, neutral or None)
    places = [at for at, message in enumerate(chat) if message["role"] == "assistant"]
    on_branch = tuple(at for at, turn in zip(places, main.by(ASSISTANT), strict=True) if turn.id in wanted)
    found = [Example(f"{tree.id}/{which}", chat, on_branch, which, tree.id)] if on_branch else []
    taken = {turn.id for turn in main.turns}
    for turn in tree:
        if turn.id in wanted and turn.id not in taken:
            beside = chat_view(tree.dialogue(turn), ASSISTANT, neutral or None)
            found.append(Example(f"{turn.id}/{which}", beside, (len(beside) - 1,), which, tree.id))
    return found


# ------------------------------------------------------------------------------------------------ general chats


def general_examples(source: str, count: int, *, seed: int = 0, held_out: bool = False,
                     log: Log = lambda line: None) -> list[Example]:
    """`count` general chats, loss on all assistant messages; to mix in, again from the start where there are too few.

    Args:
        held_out: chats that are never mixed in, at most `count`: every tenth of a file.
        source: `pocket`, or a file of chats as `read_dialogues` takes it.
    Raises: DataError: if the file cannot be read, or holds nothing usable.
    """
    if not count:
        return []
    if source == POCKET:
        stream = documents("pocket", POCKET_SEED + seed, f"{SPLIT}, held out" if held_out else SPLIT)
        chosen = (one for one in stream if not one.job.startswith("personas"))
        return [Example(f"general/{at}", one.messages, one.targets(), "general")
                for at, one in enumerate(itertools.islice(chosen, count))]
    found = []
    for at, dialogue in enumerate(read_dialogues(source, pairs=1, tell=log)):
        chat = chat_view(dialogue, ASSISTANT, dialogue.scenario.briefs.get(ASSISTANT))
        targets = tuple(at for at, message in enumerate(chat) if message["role"] == "assistant")
        found.append(Example(f"general/{at}/{dialogue.scenario.id}", chat, targets, "general"))
    kept = [one for at, one in enumerate(found) if (at % HELD_OUT == HELD_OUT - 1) == held_out]
    times = 0 if held_out else count // len(kept)
    return [one if time == 0 else Example(f"{one.id}#{time}", one.chat, one.train_on, one.kind)
            for time in range(times + 1) for one in kept][:count]


# ------------------------------------------------------------------------------------------------ released layout


def to_conversation(tree: DialogueTree) -> dict[str, Any] | None:
    """A tree as a line of the released layout; None if it has no pair.

    The layout has no place for a message without a verdict: it is written with the reply that went on twice, which
    `read_conversations` and `pairs_of` take for no pair.
    """
    persona = persona_at(tree.scenario, 1)
    rounds, judged = [], 0
    for message in branch(tree).by(USER):
        replies = tree.children(message)
        marked = {one.scores.get(PREFERRED): one for one in replies}
        went_on = next((one for one in replies if tree.children(one)), marked.get(1.0, replies[0] if replies else None))
        if went_on is None:
            break
        judged += {0.0, 1.0} <= set(marked)
        preferred, rejected = (marked[1.0], marked[0.0]) if {0.0, 1.0} <= set(marked) else (went_on, went_on)
        revealed = [" ".join(texts[at] for at in message.notes.get(name, ())) for name, texts in
                    zip(REVEALED, (persona.facts, persona.traits), strict=True)]
        rounds.append({"user": message.text, "assistant": {"preferred": preferred.text, "rejected": rejected.text},
                       "chosen": "preferred" if went_on is preferred else "rejected",
                       "inferred_profile": revealed[0] or "None", "inferred_personality": revealed[1] or "None"})
    return {"profile": persona.profile, "personality": persona.personality, "conversations": rounds} if judged else None


def read_conversations(path: str | Path, log: Log) -> list[DialogueTree]:
    """The dialogues of a file in the released layout, as trees whose replies are marked preferred and rejected.

    Args:
        log: told of each line that cannot be used, by file and line.
    Raises: DataError: if the file cannot be read, or holds no usable dialogue.
    """
    found: dict[str, DialogueTree] = {}
    for where, row in _lines(Path(path)):
        try:
            tree = _tree(row)
        except DataError as wrong:
            log(f"{where}: {wrong}; left out")
            continue
        if tree.id in found:
            log(f"{where}: the same dialogue stands above; used once")
        found.setdefault(tree.id, tree)
    if not found:
        raise DataError(f"{path}: no dialogue can be used; expected JSON lines with profile, personality and "
                        "conversations")
    return list(found.values())


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    """(file:line, JSON value, None where it is not JSON)."""
    try:
        lines = read_bytes(path).decode("utf-8-sig", "replace").split("\n")
    except OSError as wrong:
        raise DataError(f"{path}: cannot be read ({wrong.strerror}); expected JSON lines") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield f"{path}:{number}", parse_json(line)
            except ValueError:
                yield f"{path}:{number}", None


def _tree(row: Any) -> DialogueTree:
    """One line as a tree. Raises DataError saying what is wrong with it."""
    if not isinstance(row, dict):
        raise DataError("not a JSON object")
    profile, personality = (sentences(_unquoted(row.get(name), name)) for name in ("profile", "personality"))
    if not profile or not personality:
        raise DataError(f"a persona without {'traits' if profile else 'facts'}")
    rounds = row.get("conversations")
    if not isinstance(rounds, list) or not rounds:
        raise DataError("conversations: expected a list of rounds")
    scenario = scenario_of(Persona.of(" ".join(profile), " ".join(personality)))
    tree = DialogueTree(scenario, content_id("conversation", scenario.id, rounds))
    before: Turn | None = None
    for number, one in enumerate(rounds, 1):
        message, replies, chosen = _round(one, number)
        said = tree.add(Turn(content_id(tree.id, number, USER), before.id if before else None, USER, message))
        turns = {name: tree.add(Turn(content_id(tree.id, number, name), said.id, ASSISTANT, text,
                                     {"brief": name}, {PREFERRED: float(name == PREFERRED)}))
                 for name, text in replies.items()}
        before = turns[chosen]
    return tree


def _round(one: Any, number: int) -> tuple[str, dict[str, str], str]:
    """(message, replies by name, which went on) of one round."""
    where = f"round {number}"
    if not isinstance(one, dict) or not isinstance(one.get("assistant"), dict):
        raise DataError(f"{where}: expected user, assistant and chosen")
    message = _text(one.get("user"), f"{where}: user")
    replies = {name: _text(one["assistant"].get(name), f"{where}: {name}") for name in (PREFERRED, "rejected")}
    chosen = one.get("chosen")
    if not isinstance(chosen, str) or chosen not in replies:  # some copies hold the reply itself
        chosen = next((name for name, text in replies.items() if text == chosen), None)
    if chosen is None:
        raise DataError(f"{where}: chosen is {one.get('chosen')!r:.40}; expected preferred or rejected")
    return message, replies, chosen


def _text(value: Any, name: str) -> str:
    """A text; of a list its first one."""
    value = value[0] if isinstance(value, list) and value else value
    if not isinstance(value, str) or not value.strip() or UNUSABLE.search(value):
        raise DataError(f"{name}: expected text, found {value!a:.40}")
    return value.strip()


def _unquoted(value: Any, name: str) -> str:
    """A profile or personality; the released ones are raw lines of a JSON file, quotes and all."""
    text = _text(value, name)
    try:
        inner = parse_json(text) if text[:1] == '"' else text
    except ValueError:
        inner = text
    return _text(inner, name)


def conversations(trees: Iterable[DialogueTree]) -> list[dict[str, Any]]:
    """Every tree with at least one pair in the released layout."""
    return [row for tree in trees if (row := to_conversation(tree)) is not None]
