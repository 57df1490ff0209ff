"""Does a simulated user stay who it is? Exactly where pocket's words say so, by likeness elsewhere, or by a judge.

By likeness: a user's late turns are compared with the own persona and with those of all other dialogues. Whoever stays
in the role is nearer to the own one than to most; who has left it is so half of the time. No threshold on a cosine is
needed, so any embedding will do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from dialoom.audit.findings import Tally
from dialoom.audit.lints import turns_of
from dialoom.dialogue import Chat, Dialogue, DialogueTree, Scenario, content_id
from dialoom.embed import Embedder, cosine
from dialoom.errors import DataError
from dialoom.evals.alignment_roles import persona_at
from dialoom.judge import ask_until_read
from dialoom.models.base import ChatModel, Sampling
from dialoom.pocket.world.personas import read_profile, read_style
from dialoom.scenarios.personas import Persona
from dialoom.scenarios.sharegpt import USER

FEW_PERSONAS = 10    # under so many others "nearer than to most" means little
MOST_PERSONAS = 2_000
JUDGED = 50          # dialogues a judge is asked about
ASKED = ("A person is described here.\n\n{persona}\n\nThese messages were all written by one writer who was to be that "
         "person:\n\n{messages}\n\nDoes a message say anything that cannot be true of the person described, or talk as "
         "somebody else would? Answer with yes or no and nothing else.")
ASKED_PLAIN = ("These messages were all written by one person in one conversation:\n\n{messages}\n\nDoes a message say "
               "something of its writer that contradicts another of them? Answer with yes or no and nothing else.")
ANSWER = Sampling(temperature=0, max_new_tokens=8)
_YES_OR_NO = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)


def check_personas(trees: Sequence[DialogueTree], tally: Tally, embedder: Embedder) -> None:
    """Contradictions in pocket's words, and drift by likeness, of every dialogue whose user has a persona."""
    for tree in trees:
        _contradictions(tree, tally)
    _drift(trees, tally, embedder)


def persona_text(scenario: Scenario) -> str:
    """Who the user is to be: the scenario's persona, or the user's brief; "" where nobody says so."""
    if "persona" in scenario.facts:
        one = _persona(scenario, 1)
        return one.text if one else str(scenario.facts["persona"])
    return scenario.briefs.get(USER, "")


def _persona(scenario: Scenario, turn: int) -> Persona | None:
    """Who the user is in a turn; None where no persona stands there, or one in another layout."""
    try:
        return persona_at(scenario, turn)
    except (KeyError, TypeError, AttributeError, DataError):
        return None


def _contradictions(tree: DialogueTree, tally: Tally) -> None:
    for turn, before in turns_of(tree):
        if turn.speaker != USER:
            continue
        one = _persona(tree.scenario, 1 + sum(other.speaker == USER for other in before))
        world = one.world if one else None
        if world is None or not world.facts or not world.traits:
            continue
        wrong = {slot: value for slot, value in read_profile(turn.text).items() if world.facts.get(slot) != value}
        wrong |= {trait: value for trait, value in read_style([turn.text]).items()
                  if world.traits.get(trait, value) != value}
        told = ", ".join(f"{slot}: {value}" for slot, value in wrong.items())
        tally.look("persona_contradiction", f"{tree.id}/{turn.id}",
                   f"{told}, which is not so: {turn.text}" if wrong else None)


def _drift(trees: Iterable[DialogueTree], tally: Tally, embedder: Embedder) -> None:
    """The later half of each user's turns against all personas."""
    users = [(tree, text, said) for tree in trees
             if (text := persona_text(tree.scenario)) and len(said := user_turns(tree)) > 1
             and "later" not in tree.scenario.facts][:MOST_PERSONAS]
    if len({text for _, text, _ in users}) <= FEW_PERSONAS:
        return
    personas = embedder.encode([text for _, text, _ in users])
    halves = [embedder.encode([" ".join(part(said)) for *_, said in users]) for part in (_early, _late)]
    own = [nearer(said, personas) for said in halves]
    tally.figure("persona_drift", **{"nearer to the own persona than to others, early turns": f"{own[0].mean():.1%}",
                                     "late turns": f"{own[1].mean():.1%}", "by chance": "50 %",
                                     "embedding": embedder.name})
    for (tree, text, said), fit in zip(users, own[1], strict=True):
        late = " ".join(_late(said))
        tally.look("persona_drift", tree.id, bool(fit < 0.5) and
                   f"nearer than to {fit:.0%} of the others; persona: {text[:120]} | late turns: {late}")


def _early(said: Sequence[str]) -> Sequence[str]:
    return said[:len(said) // 2]


def _late(said: Sequence[str]) -> Sequence[str]:
    return said[len(said) // 2:]


def nearer(said: Any, personas: Any) -> Any:
    """(n,) for each row of `said` the share of other personas that are farther from it than its own; ties count half.

    Equal personas are no others.
    """
    near = cosine(said, personas)
    own = np.diagonal(near)[:, None]
    same = cosine(personas, personas) >= 1
    won = np.where(same, 0.0, (own > near) + 0.5 * (own == near)).sum(axis=1)
    found: Any = won / np.maximum(1, (~same).sum(axis=1))
    return found


def user_turns(tree: DialogueTree) -> list[str]:
    """The user's turns on the longest path of a tree."""
    paths = [tree.dialogue(leaf) for leaf in tree.leaves() if "rejected" not in leaf.notes]
    longest = max(paths, key=lambda path: len(path.turns), default=Dialogue(tree.scenario))
    return [turn.text for turn in longest.by(USER) if "rejected" not in turn.notes]


def judge_personas(trees: Sequence[DialogueTree], model: ChatModel, tally: Tally) -> tuple[int, int]:
    """Ask a model, for a sample of dialogues, whether the user leaves the persona, or contradicts itself.

    Returns: how many answers were neither yes nor no, and how many were given.
    """
    known = [(tree, said) for tree in trees if len(said := user_turns(tree)) > 1]
    known = sorted(known, key=lambda pair: content_id("judged", pair[0].id))[:JUDGED]
    found = ask_until_read(model, [question(tree.scenario, said) for tree, said in known],
                           [content_id("drift", tree.id) for tree, _ in known], _read, sampling=ANSWER)
    for (tree, said), leaves in zip(known, found, strict=True):
        if leaves is not None:
            tally.look("judged_drift", tree.id, leaves and " | ".join(said))
    unreadable = sum(one is None for one in found)
    tally.figure("judged_drift", judge=model.name, unreadable=unreadable)
    return unreadable, len(found)


def question(scenario: Scenario, said: Sequence[str]) -> Chat:
    """What a judge is asked of one user's turns."""
    messages = "\n".join(f"{number}. {text}" for number, text in enumerate(said, 1))
    persona = persona_text(scenario)
    asked = ASKED.format(persona=persona, messages=messages) if persona else ASKED_PLAIN.format(messages=messages)
    return [{"role": "user", "content": asked}]


def _read(answer: str) -> bool | None:
    found = _YES_OR_NO.match(answer)
    return found[1].lower() == "yes" if found else None


