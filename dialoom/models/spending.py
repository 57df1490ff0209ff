"""Settings of everything that asks a model behind a server: where it is, how hard it is asked, what it may cost."""

from __future__ import annotations

import math
import re
from typing import Any, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from dialoom.config import Config
from dialoom.errors import ModelError
from dialoom.text import parse_json

MILLION = 1_000_000
OURS = ("model", "messages", "stream", "n", "max_tokens", "max_completion_tokens", "logprobs", "top_logprobs")
SECRET = re.compile(r"(?i)api.?key|authorization|password|secret|bearer")


class Endpoints(Config):
    """How endpoints are asked and paid for. There is no setting for a key: keys come from the environment only."""

    base_url: str = ""
    """The server's address, as http://localhost:8000/v1; empty: OPENAI_BASE_URL, else OpenAI's. A single model may
    name its own: openai:<model>@<address>."""
    concurrency: int = Field(16, ge=1)
    """Most requests in flight at once."""
    timeout: float = Field(120.0, gt=0)
    """Seconds for one attempt."""
    attempts: int = Field(6, ge=1)
    """Most attempts of one request, the first included."""
    prices: tuple[str, ...] = ()
    """What models cost, each as <model>=<read>/<written>: dollars for a million tokens, for example small=0.15/0.60."""
    budget: float = Field(0.0, ge=0)
    """Dollars that the run may spend, all its restarts together; 0: no cap."""
    token_budget: int = Field(0, ge=0)
    """Tokens that endpoints may read and write in the run, all its restarts together; 0: no cap."""
    extra: tuple[str, ...] = ()
    """Fields added to every request, as a JSON object, or <model>=<object> for one model's; for example
    {"chat_template_kwargs": {"enable_thinking": false}}. They are part of a request's id."""
    cache: str = ""
    """A folder of answers that all runs with this setting share; empty: a run remembers only its own."""

    @model_validator(mode="after")
    def _can_be_read(self) -> Self:
        check_address(self.base_url)
        self.price("")
        return self

    @field_validator("extra")
    @classmethod
    def _extra_can_be_read(cls, extra: tuple[str, ...]) -> tuple[str, ...]:
        for entry in extra:
            _added(entry)
        return extra

    def fields(self, model: str) -> dict[str, Any]:
        """What is added to the requests to a model; of fields given twice, the later ones count."""
        found: dict[str, Any] = {}
        for name, fields in map(_added, self.extra):
            found |= fields if name in ("", model) else {}
        return found

    def price(self, model: str) -> tuple[float, float] | None:
        """Dollars for a million tokens read and written, None if nobody said."""
        found = None
        for entry in self.prices:
            name, _, figures = entry.rpartition("=")
            read, _, written = figures.partition("/")
            try:
                both = float(read), float(written)
            except ValueError:
                both = -1.0, -1.0
            if not name or not all(0 <= one < math.inf for one in both):
                raise ValueError(f"prices: expected <model>=<read>/<written> in dollars for a million tokens, as "
                                 f"small=0.15/0.60, got {entry!r:.80}")
            found = both if name == model else found
        return found

    def cost(self, model: str, read: int, written: int) -> float | None:
        """Dollars for so many tokens, None if the model's price is not known."""
        price = self.price(model)
        return None if price is None else (price[0] * read + price[1] * written) / MILLION


def _added(entry: str) -> tuple[str, dict[str, Any]]:
    """An entry of `extra`: the model it is for ("": all), and the fields. Raises ValueError; ModelError for a key."""
    if SECRET.search(entry):
        raise ModelError("extra holds what looks like a key or a password, which would end up in the run's files; give "
                         "a key as OPENAI_API_KEY or DIALOOM_KEY_<HOST>")
    name, begun, rest = ("", "", entry) if entry.startswith("{") else entry.partition("={")
    try:
        fields = parse_json(begun[1:] + rest)
    except ValueError:
        fields = None
    if not isinstance(fields, dict) or set(OURS) & set(fields):
        raise ValueError("expected a JSON object, or <model>=<object>, without the fields that are set for you "
                         f"({', '.join(OURS)})")
    return name, fields


def check_address(url: str) -> None:
    """Raise ModelError if a server's address holds what would end up in names, files and logs: a user, a query."""
    try:
        user = "@" in urlsplit(url).netloc
    except ValueError:
        raise ModelError("a server's address is none; it looks like http://localhost:8000/v1") from None
    if user or "?" in url or "#" in url:
        held = "a user or a password" if user else "something after a question mark or a hash"
        raise ModelError(f"a server's address holds {held}, which would end up in logs and in the run's files; give a "
                         "key as OPENAI_API_KEY or DIALOOM_KEY_<HOST>, and the address without it")
