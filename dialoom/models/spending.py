"""Settings of everything that asks a model behind a server: where it is, how hard it is asked, what it may cost."""

from __future__ import annotations

import math
from typing import Self

from pydantic import Field, model_validator

from dialoom.config import Config

MILLION = 1_000_000


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
    cache: str = ""
    """A folder of answers that all runs with this setting share; empty: a run remembers only its own."""

    @model_validator(mode="after")
    def _prices_can_be_read(self) -> Self:
        self.price("")
        return self

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
