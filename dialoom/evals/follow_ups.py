"""What a user's follow-up turn is: which strategy it shows, and whether it can be understood without what was said.

Readers look at whole dialogues and give a value for each user turn after the opening. All simulators of a comparison
are read by the same ones, so a turn written without any strategy counts by what its words do. The surprising choice: a
turn that shows no strategy is None, not left out; otherwise a bland user with a few good turns would look rich.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dialoom.dialogue import Dialogue, content_id
from dialoom.embed import Embedder, nearest
from dialoom.evals.alignment_roles import USER
from dialoom.judge import ask_until_read
from dialoom.models.base import ChatModel, Sampling
from dialoom.pocket.world.strategies import classify_instruction, is_context_dependent
from dialoom.pocket.world.strategy_tables import STRATEGIES

StrategyReader = Callable[[Sequence[Dialogue]], list[list[str | None]]]
"""The strategy each user turn shows; None: none."""

ContextReader = Callable[[Sequence[Dialogue]], list[list[bool | None]]]
"""Whether each user turn needs what was said before; None: not known, so left out."""

STANDALONE = ("This message was taken out of the middle of a conversation:\n\n{message}\n\nCould somebody who has not "
              "seen the conversation tell what exactly is asked for? Answer with yes or no and nothing else.")
_YES_OR_NO = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)

# English. A pointing word without what it points to, an opening that goes on from something, a wish for the same again.
_POINTS = re.compile(r"\b(?:it|its|itself|they|them|their|theirs|this|these|those|he|him|his|she|her|hers|former|latter"
                     r"|above|previous|earlier|again|another|else|instead|continue|elaborate|rephrase|shorter|longer"
                     r"|simpler)\b|\bthat(?=\W*$|\s*[.,;?!]|\s+(?:is|was|are|were|will|would|can|could|does|did|one"
                     r"|part|point|way|case|answer)\b|'s\b)"
                     r"|\b(?:is|was|does|did|about|of|for|with|on|like|than) that\b", re.IGNORECASE)
_GOES_ON = re.compile(r"\W*(?:and|but|or|so|then|also|what about|how about|(?:why|how|when|where|who|which|really)"
                      r"(?: not| so| exactly)?\W*$)(?![\w-])", re.IGNORECASE)


@dataclass(frozen=True)
class Yardstick:
    """By what follow-up turns are measured.

    Attributes:
        strategies: None: nothing is said of strategies.
        listed: the strategies there are, of which coverage is a share; empty: no coverage.
        context: tells which turns need their context.
    """

    context: ContextReader
    strategies: StrategyReader | None = None
    listed: tuple[str, ...] = ()


def follow_ups(dialogue: Dialogue) -> list[str]:
    """The texts of the user turns after the opening."""
    return [turn.text for turn in dialogue.by(USER)]


def pocket_yardstick() -> Yardstick:
    """By the words of pocket's world. A turn that asks for nothing the world knows needs no context and shows nothing;
    a plain wish to hear more shows no strategy either."""
    def strategies(dialogues: Sequence[Dialogue]) -> list[list[str | None]]:
        found = [[classify_instruction(text) for text in follow_ups(one)] for one in dialogues]
        return [[name if name in STRATEGIES else None for name in row] for row in found]

    def context(dialogues: Sequence[Dialogue]) -> list[list[bool | None]]:
        return [[classify_instruction(text) is not None and is_context_dependent(text) for text in follow_ups(one)]
                for one in dialogues]
    return Yardstick(context, strategies, tuple(STRATEGIES))


def noted_strategies(parent: Mapping[str, str] | None = None) -> StrategyReader:
    """By the note `strategy` on turns, mapped to its parent where it has one; None without the note."""
    mapped = parent or {}

    def strategies(dialogues: Sequence[Dialogue]) -> list[list[str | None]]:
        noted = [[turn.notes.get("strategy") for turn in one.by(USER)] for one in dialogues]
        return [[mapped.get(name, name) if name else None for name in row] for row in noted]
    return strategies


def nearest_strategies(examples: Sequence[tuple[str, str]], embedder: Embedder) -> StrategyReader:
    """The strategy of the example whose text is nearest to the turn, so every turn shows one.

    Args:
        examples: (text, strategy): user turns with the strategies that were read from them. A strategy as its own
            example says little in an embedding of n-grams.
    """
    pool = embedder.encode([text for text, _ in examples])

    def strategies(dialogues: Sequence[Dialogue]) -> list[list[str | None]]:
        texts = [text for one in dialogues for text in follow_ups(one)]
        at = iter(nearest(embedder.encode(texts), pool)[0].tolist() if texts else [])
        return [[examples[next(at)][1] for _ in follow_ups(one)] for one in dialogues]
    return strategies


def points_back(text: str) -> bool:
    """Whether an English message points to something outside itself, by its words.

    A rough rule: it sees pronouns, openings that go on from something, wishes for more of the same. It does not see
    that a word has a sense only in its conversation; a model does.
    """
    return bool(_POINTS.search(text) or _GOES_ON.match(text))


def context_by_rule(dialogues: Sequence[Dialogue]) -> list[list[bool | None]]:
    """A context reader of English text: `points_back`."""
    return [[points_back(text) for text in follow_ups(one)] for one in dialogues]


def context_by_model(model: ChatModel) -> ContextReader:
    """A model that sees a turn alone and says whether it can be understood; None where it says neither, in two tries.

    Equal turns are asked about once.
    """
    def context(dialogues: Sequence[Dialogue]) -> list[list[bool | None]]:
        texts = list(dict.fromkeys(text for one in dialogues for text in follow_ups(one)))
        said = ask_until_read(model, [[{"role": "user", "content": STANDALONE.format(message=text)}] for text in texts],
                              [content_id("standalone", text) for text in texts], _needs_context,
                              sampling=Sampling(0.0, max_new_tokens=8))
        known = dict(zip(texts, said, strict=True))
        return [[known[text] for text in follow_ups(one)] for one in dialogues]
    return context


def _needs_context(answer: str) -> bool | None:
    found = _YES_OR_NO.match(answer)
    return found[1].lower() == "no" if found else None
