"""Where an IDEAS run takes its dialogues from: real ones to learn strategies from, openings, held-out conversations.

Pocket's world is split by topic, a user's dialogues by a hash of their id; nothing that is evaluated on is learned
from. With `--split valid` the evaluation takes a part of what is for training, which then is left out of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cached_property

from dialoom.dialogue import Dialogue, Scenario, content_id
from dialoom.errors import DataError
from dialoom.evals.quality import conversations_of, pocket_conversations
from dialoom.progress import quiet
from dialoom.recipes.ideas_config import IdeasConfig
from dialoom.recipes.ideas_corpus import pocket_corpus, pocket_openings, pocket_topics
from dialoom.recipes.ideas_deduce import first_pairs
from dialoom.recipes.ideas_induce import usable
from dialoom.scenarios.sharegpt import read_dialogues, read_openings

HELD_OUT = {"test": 0.1, "valid": 0.1}
"""Shares of a user's dialogues that are kept for evaluation."""
VALID_TOPICS = 4  # one training topic of so many is for choosing settings

Log = Callable[[str], None]


def is_pocket(config: IdeasConfig) -> bool:
    """Whether dialogues and conversations are of pocket's world, where exact rules judge."""
    return not config.data and not config.openings


class Sources:
    """The dialogues of a run; files are read when first asked for."""

    def __init__(self, config: IdeasConfig, log: Log = quiet) -> None:
        self.config, self._log = config, log
        self.lost: Counter[str] = Counter()

    @cached_property
    def corpus(self) -> list[Dialogue]:
        """Real dialogues to read strategies from, unusable ones left out and counted in `lost`."""
        config = self.config
        found = self._own("train") if config.data else pocket_corpus(config.corpus_count, config.seed,
                                                                     topics=self.topics("train"))
        kept, lost = usable(found, refusals=config.refusals)
        self.lost.update(lost)
        if len(kept) < 2:
            raise DataError(f"{config.data or 'the corpus'}: {len(kept)} of {len(found)} dialogues can be used to "
                            f"learn strategies from, expected two at least ({dict(self.lost)})")
        return kept[:config.corpus_count]

    def topics(self, part: str) -> list[str]:
        """Topics of pocket's world: "train", or "held_out" for the evaluation."""
        train = list(pocket_topics("train"))
        if self.config.split == "test":
            return train if part == "train" else list(pocket_topics("test"))
        valid = train[VALID_TOPICS - 1::VALID_TOPICS]
        return valid if part == "held_out" else [topic for topic in train if topic not in valid]

    @cached_property
    def _read(self) -> list[Dialogue]:
        def bad(line: str) -> None:
            self.lost["unusable line"] += 1
            self._log(line)

        return read_dialogues(self.config.data, tell=bad)

    def _own(self, part: str) -> list[Dialogue]:
        """The user's dialogues that are for training, or those held out for the split."""
        split = self.config.split if part == "held_out" else "train"
        return [one for one in self._read if split_of(one) == split]

    @cached_property
    def openings(self) -> list[Dialogue]:
        """First questions with their answers: the user's, those of the source dialogues, or pocket's."""
        config = self.config
        if config.openings:
            found = read_openings(config.openings, tell=self._log)
        elif config.data:
            found = [first_pairs(one, 1) for one in self.corpus]
        else:
            found = pocket_openings(self.topics("train"), config.opening_count, config.seed)
        return found[:config.opening_count]

    @cached_property
    def conversations(self) -> list[Scenario]:
        """Held-out conversations for the chat models."""
        config = self.config
        if config.data:
            return conversations_of(self._own("held_out"))[:config.eval_count]
        return pocket_conversations(self.topics("held_out"), config.eval_count, seed=config.seed)


def split_of(dialogue: Dialogue) -> str:
    """"train", "valid" or "test", by a hash of the dialogue's id: a dialogue never moves."""
    share = int(content_id("ideas split", dialogue.scenario.id), 16) / 16**16
    return "test" if share < HELD_OUT["test"] else "valid" if share < sum(HELD_OUT.values()) else "train"
