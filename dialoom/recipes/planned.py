"""What a run will ask of endpoints, before it does: which roles they play, how often at most, and what that may cost.

Everything that can be wrong with an endpoint without asking it (no key, no price for a budget, an address that is none)
is found here as well, before anything is computed or paid for; so is a local model for which no chat can be written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dialoom.config import Config
from dialoom.errors import ConfigError, ModelError
from dialoom.models.load import check_spec, is_endpoint, tokenizer_of
from dialoom.models.spending import Endpoints
from dialoom.progress import duration

NOBODY = ("", "rule", "exact")  # what stands for a model where none is asked
STARTING = 5.0  # seconds until torch is loaded and pocket stands ready
LARGE = 1000  # requests from which on a run without any cap is worth a word


@dataclass(frozen=True)
class Role:
    """A role of a run and the model that plays it.

    Attributes:
        name: as the setting is called, and as its cost is accounted.
        spec: the model; a rule's name or "" where no model plays it.
        calls: requests at most.
        read: tokens of one prompt, about.
        write: tokens of one reply at most.
    """

    name: str
    spec: str
    calls: int
    read: int
    write: int


def check_roles(roles: Sequence[Role], settings: Endpoints) -> list[Role]:
    """The roles that endpoints play.

    Raises: ModelError, ConfigError: if any role names no model, an endpoint could not even be asked, or a budget in
        dollars lacks a price.
    """
    from dialoom.models.endpoint import load_endpoint

    for role in roles:
        if role.spec not in NOBODY:
            check_spec(role.spec)
    asked = [role for role in roles if is_endpoint(role.spec)]
    for role in asked:
        model = load_endpoint(role.spec.partition(":")[2], settings).model
        if settings.budget and settings.price(model) is None:
            raise ConfigError(f"--endpoint.budget {settings.budget:g} needs the price of {model} ({role.name}): give "
                              f"--endpoint.prices {model}=<read>/<written>, in dollars for a million tokens")
    return asked


def check_templates(config: Config, *, whole: bool) -> None:
    """Look whether chats can be written for every `hf:` model of a run, by their tokenizers alone.

    Args:
        config: a recipe's settings.
        whole: all stages are to be done. If not, a model that is not here may be needed on another machine only, and
            is passed over.
    Raises: ModelError: if one has no chat template that can be used, or is needed and not to be had.
    """
    from dialoom.models.template import ChatTemplate

    values = [value for value in config.values().values() if isinstance(value, str | list)]
    named = {str(text) for value in values for text in ([value] if isinstance(value, str) else value)}
    for spec in sorted(text for text in named if text.startswith("hf:")):
        try:
            tokenizer = tokenizer_of(spec)
        except ModelError:
            if whole:
                raise
            continue
        ChatTemplate(tokenizer, spec)


def told(roles: Sequence[Role], settings: Endpoints) -> list[str]:
    """The estimate, a line for each role that an endpoint plays and one for all; nothing where none does."""
    asked = [role for role in check_roles(roles, settings) if role.calls]
    lines, dollars, unknown = [], 0.0, False
    for role in asked:
        read, write = role.calls * role.read, role.calls * role.write
        cost = _cost(role, settings)
        dollars, unknown = dollars + (cost or 0.0), unknown or cost is None
        lines.append(f"{role.name}: {role.spec}, at most {role.calls:,} requests, about {read:,} tokens read, at most "
                     f"{write:,} written" + ("" if cost is None else f", {cost:.2f} dollars"))
    calls = sum(role.calls for role in asked)
    if len(asked) > 1:
        lines.append(f"all endpoints: at most {calls:,} requests" + ("" if unknown else f", {dollars:.2f} dollars"))
    if settings.budget and dollars > settings.budget:
        lines.append(f"that may be more than the budget of {settings.budget:g} dollars; then the run stops there, and "
                     "goes on with a larger one")
    elif calls >= LARGE and not (settings.budget or settings.token_budget):
        lines.append("no cap is set; --endpoint.budget (with --endpoint.prices) or --endpoint.token-budget sets one")
    return lines


def how_long(rows: Sequence[Mapping[str, Any]], stages: Sequence[str]) -> list[str]:
    """What is said before a recipe starts, from its plan: minutes where all models are pocket's, else calls.

    Args:
        rows: of the recipe's `plan`; its minutes are measured on pocket, and "unknown" for other models.
        stages: those that are to be done.
    """
    kept = [row for row in rows if row["stage"] in stages]
    minutes = [row.get("minutes") for row in kept]
    known = [each for each in minutes if isinstance(each, int | float)]
    if known and len(known) == len(minutes):
        return [f"about {duration(STARTING + 60 * sum(known))} on one core (pocket), less what was done before"]
    calls = sum(next((row[name] for name in ("calls", "replies", "texts") if name in row), 0) for row in kept)
    return [f"at most {calls:,} replies, and training; how long that takes depends on your models (--dry-run has the "
            "stages), and each stage says what is left"] if calls else []


def _cost(role: Role, settings: Endpoints) -> float | None:
    from dialoom.models.endpoint import load_endpoint

    model = load_endpoint(role.spec.partition(":")[2], settings).model
    return settings.cost(model, role.calls * role.read, role.calls * role.write)
