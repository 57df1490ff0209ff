"""Evaluations: each takes any speaker and scenarios and gives tidy rows. `run_eval` runs one by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from dialoom.errors import ConfigError

if TYPE_CHECKING:
    from dialoom.dialogue import Scenario
    from dialoom.evals.metrics import Row
    from dialoom.models.base import ChatModel

EVALS = ("flipflop", "are_you_sure", "recall", "misinformation", "team")


def run_eval(name: str, model: ChatModel, scenarios: Sequence[Scenario], *, brief: str = "", seed: int = 0,
             partner: ChatModel | None = None, max_new_tokens: int = 80,
             log: Callable[[str, int, int], None] = lambda label, done, total: None) -> list[Row]:
    """One evaluation of one model, greedy.

    Args:
        brief: system message of the model under test; empty for none.
        partner: the other member of the team; only `team` needs one.
        log: called as (label, done, total) while the dialogues grow.
    Raises: ConfigError: if the evaluation is unknown, or a team has one member.
    """
    from dialoom.evals import persuasion
    from dialoom.models.base import Sampling
    from dialoom.simulate import speaking

    if name not in EVALS:
        raise ConfigError(f"evaluation {name!r} is unknown; expected one of {', '.join(EVALS)}")
    greedy = Sampling(0.0, max_new_tokens=max_new_tokens)
    if name != "team":
        subject = speaking("subject", model, greedy, brief)
        result: persuasion.Result = getattr(persuasion, name)(subject, scenarios, label=model.name, seed=seed, log=log)
        return result.rows
    if partner is None:
        raise ConfigError("team needs a second model; give --partner")
    members = speaking("one", model, greedy, brief), speaking("other", partner, greedy, brief)
    return persuasion.team(*members, scenarios,
                           label=f"{model.name} and {partner.name}", seed=seed, log=log).rows
