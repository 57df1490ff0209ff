"""What DAT asks of a sort of scenes: who talks, how it is played, what is earned, how it is measured.

The recipe knows no word of social scenes or red-teaming: `dat_social` and `dat_redteam` each make a `Side`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from dialoom.dialogue import Dialogue, Scenario
from dialoom.evals.metrics import Row
from dialoom.evals.persuasion import Log
from dialoom.models.base import ChatModel
from dialoom.progress import quiet
from dialoom.simulate import Speaker
from dialoom.store import TreeLog

PLAYER, PARTNER = "player", "partner"
"""Names of the two speakers."""


class Play(Protocol):
    """Plays every scene whole, in lock-step, and judges it; the order of dialogues does not depend on who plays."""

    def __call__(self, subject: Speaker, partner: Speaker, scenes: Sequence[Scenario], *, seed: int, label: str,
                 sink: TreeLog | None = None, log: Log = quiet) -> list[Dialogue]: ...


class Measure(Protocol):
    """Rows of the side's eval about one subject, its main metric first."""

    def __call__(self, dialogues: Sequence[Dialogue], *, label: str, seed: int) -> list[Row]: ...


@dataclass(frozen=True)
class Side:
    """One sort of scenes.

    Attributes:
        name: the eval's name in results.
        metric: the one that claims are about.
        scenes: "train", "valid" and "test", apart from each other; ids unique in each.
        speaker: the steered party for any chat model, named `PLAYER`, with its sampling and briefs.
        partner: whom the planner is trained against, named `PARTNER`.
        play: dialogues of a subject, one for each scene and role that can be steered.
        earned: reward of each of the subject's turns, in order, 0..1 or so; None where no verdict could be read.
        score: the main metric of a dialogue; not a number where no verdict could be read.
        others: partners the planner is not trained against, by label, loaded when called.
        reach: length of an action of a coded mapping, in units of its codes; chosen on validation scenes. Longer ones
            part the sorts of replies more and cost language.
    """

    name: str
    metric: str
    scenes: Mapping[str, Sequence[Scenario]]
    speaker: Callable[[ChatModel], Speaker]
    partner: Speaker
    play: Play
    earned: Callable[[Dialogue], list[float] | None]
    score: Callable[[Dialogue], float]
    measure: Measure
    others: Mapping[str, Callable[[], Speaker]] = field(default_factory=dict)
    reach: float = 1.0
