"""A chat model behind an OpenAI-compatible server: vLLM, llama.cpp, Ollama, TGI, hosted ones. No torch.

A reply that carries no text is an error, never an empty turn. Surprising choice: answers are remembered by what was
asked (server, model, messages, sampling, key) in the ledger that is current, a run's `answers.jsonl`; so a batch that
failed half-way is not paid for twice. The API key appears in no message, file or log.
"""

from __future__ import annotations

import asyncio
import copy
import os
import re
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar
from urllib.parse import urlsplit

import httpx2

from dialoom.dialogue import Chat, content_id
from dialoom.errors import EndpointError, ModelError
from dialoom.models.base import Completion, Sampling
from dialoom.models.endpoint_options import (
    LETTERS,
    asking_letter,
    letter_in,
    letter_weights,
    option_weights,
    top_tokens,
)
from dialoom.models.endpoint_session import Again, Asked, Learned, Refused, Session
from dialoom.models.ledger import Choice, Ledger, Remembered, current
from dialoom.models.spending import Endpoints

__all__ = ["OPENAI", "EndpointModel", "option_weights"]
OPENAI = "https://api.openai.com/v1"

T = TypeVar("T")


class EndpointModel:
    """One model on one server.

    Attributes:
        name: `openai:<model>`, with `@<address>` where it has an address of its own.
        role: what it is asked as; its tokens and money are accounted under this name.
        usage: counts over the life of the object: requests, attempts, prompt_tokens, completion_tokens.
    """

    def __init__(self, model: str, *, base_url: str | None = None, api_key: str | None = None, concurrency: int = 16,
                 timeout: float = 120.0, attempts: int = 6, patience: float = 600.0, role: str = "model",
                 answers: MutableMapping[str, Choice] | None = None,
                 transport: httpx2.AsyncBaseTransport | None = None,
                 pause: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """Nothing is sent yet.

        Args:
            model: as the server calls it.
            base_url: ends in /v1 with most servers; None reads OPENAI_BASE_URL, else OpenAI's own.
            api_key: None reads OPENAI_API_KEY; local servers need none, which "" says.
            concurrency: most requests in flight at once.
            timeout: seconds for one attempt.
            attempts: most attempts of one request, the first included.
            patience: seconds after which one request is no longer retried.
            role: under which name its cost is accounted.
            answers: what was answered before, by request id; where no ledger is current, answers are added to it.
            transport: how bytes travel; for tests.
            pause: how a wait is waited; for tests.
        Raises: ModelError: if the server is OpenAI's and there is no key, or an address holds a password.
        """
        self.model, self.role, self.name = model, role, f"openai:{model}"
        self.usage: Counter[str] = Counter()
        self.url = (base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI).rstrip("/")
        self._key = (os.environ.get("OPENAI_API_KEY") or "" if api_key is None else api_key).strip()
        if not (self._key.isascii() and self._key.replace(" ", "").isprintable()):
            raise ModelError(f"{self.name}: OPENAI_API_KEY holds characters no key has; copy it again")
        if "@" in urlsplit(self.url).netloc:
            raise ModelError(f"{self.name}: the server's address holds a user or a password, which would end up in "
                             "logs; give the key as OPENAI_API_KEY")
        if self.url == OPENAI and not self._key:
            raise ModelError(f"{self.name}: OPENAI_API_KEY is not set; set it, or point OPENAI_BASE_URL at your server")
        self.concurrency, self.timeout, self.attempts, self.patience = concurrency, timeout, attempts, patience
        self.learned, self.pause, self._transport = Learned(), pause, transport
        self._own = Ledger(Remembered(answers))
        self.key_name = "OPENAI_API_KEY"

    @property
    def fingerprint(self) -> str:
        """Of the server's address and the model's name: a server does not tell when its weights change."""
        return content_id("endpoint", self.url, self.model)

    def in_role(self, role: str) -> EndpointModel:
        """The same model, asked and accounted for as something else."""
        other = copy.copy(self)
        other.role = role
        return other

    def chat(self, chats: Sequence[Chat], sampling: Sampling, keys: Sequence[str]) -> list[Completion]:
        """Continue each chat; the key becomes the request's seed, which servers honour as well as they can.

        Raises:
            EndpointError: if some requests found no answer after all retries; the others are remembered.
            BudgetError: if the run's budget is spent; what was answered is remembered.
        """
        if len(chats) != len(keys):
            raise ModelError(f"{self.name}: {len(chats)} chats came with {len(keys)} keys; give one key for each chat")

        async def reply(chat: Chat, key: str, session: Session) -> Completion:
            return await session.ask(_asked(chat, sampling), key, _completion)

        return self._batch([partial(reply, chat, key) for chat, key in zip(chats, keys, strict=True)])

    def choose(self, chats: Sequence[Chat], options: Sequence[str]) -> list[list[float]]:
        """Log-probability (nats, normalised over `options`) that each chat's reply begins with each option.

        Read from the first token's `top_logprobs`; where the server gives none, or they do not tell the options
        apart, the model is asked for a letter, which then weighs `LETTER_WEIGHT`.
        """
        if not 2 <= len(options) <= len(LETTERS):
            raise ModelError(f"{self.name}: cannot choose among {len(options)} options; give 2 to {len(LETTERS)}")

        async def weigh(chat: Chat, session: Session) -> list[float]:
            if self.learned.gives_logprobs is None:
                async with session.first:
                    if self.learned.gives_logprobs is None:
                        return await self._try_logprobs(chat, options, session)
            if not self.learned.gives_logprobs:
                return await self._by_letter(chat, options, session)
            found = await self._by_logprobs(chat, options, session)
            return found or await self._by_letter(chat, options, session)

        return self._batch([partial(weigh, chat) for chat in chats])

    async def _try_logprobs(self, chat: Chat, options: Sequence[str], session: Session) -> list[float]:
        """Find out whether the server gives log-probabilities. A refusal means no, if a letter is not refused too."""
        try:
            found = await self._by_logprobs(chat, options, session)
        except Refused:
            found = await self._by_letter(chat, options, session)
            self.learned.gives_logprobs = False
        return found or await self._by_letter(chat, options, session)

    async def _by_logprobs(self, chat: Chat, options: Sequence[str], session: Session) -> list[float] | None:
        """None where the server gives none, or they do not tell the options apart."""
        asked = _asked(chat, Sampling(0.0, max_new_tokens=1), logprobs=True)
        top = await session.ask(asked, "choose", top_tokens)
        self.learned.gives_logprobs = top is not None
        return option_weights(top, options) if top else None

    async def _by_letter(self, chat: Chat, options: Sequence[str], session: Session) -> list[float]:
        asked = _asked(asking_letter(chat, options), Sampling(0.0, max_new_tokens=8))
        chosen = await session.ask(asked, "letter", partial(_letter, count=len(options)))
        return letter_weights(chosen, len(options))

    def _batch(self, asks: Sequence[Callable[[Session], Awaitable[T]]]) -> list[T]:
        """Run all requests, also from inside a running event loop (a notebook), and raise if one of them failed."""
        ledger = current() or self._own

        async def all_of_them() -> list[T | BaseException]:
            headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
            limits = httpx2.Limits(max_connections=self.concurrency)
            async with httpx2.AsyncClient(headers=headers, timeout=None, limits=limits,
                                          transport=self._transport) as client:
                session = Session(self, client, ledger, self.concurrency)
                return await asyncio.gather(*(ask(session) for ask in asks), return_exceptions=True)

        try:
            asyncio.get_running_loop()
        except RuntimeError:
            found = asyncio.run(all_of_them())
        else:
            with ThreadPoolExecutor(1) as pool:
                found = pool.submit(asyncio.run, all_of_them()).result()
        ledger.sync()
        failed = [result for result in found if isinstance(result, BaseException)]
        for error in failed:
            if not isinstance(error, EndpointError):
                raise error
        if failed:
            raise EndpointError(f"{len(failed)} of {len(asks)} requests failed; the first: {failed[0]}") from None
        return [result for result in found if not isinstance(result, BaseException)]

    def redacted(self, text: str) -> str:
        """Text on one line without the key, nor anything that looks like one (servers echo it, whole or starred)."""
        text = re.sub(r"(?i)\b(sk|key|hf|gsk)[-_][\w*.-]{6,}|bearer\s+\S+", "[key]", self.without_key(text))
        return " ".join(text.split())[:300]

    def without_key(self, text: str) -> str:
        """Text without the key itself."""
        return text.replace(self._key, "[key]") if self._key else text


def load_endpoint(name: str) -> EndpointModel:
    """The model `<model>` or `<model>@<address>`, asked as the current ledger's settings say.

    A key is sent only to whom it was given for: OPENAI_API_KEY to OPENAI_BASE_URL (or OpenAI), and to any other
    address `DIALOOM_KEY_<HOST>`, the host in capitals with `_` for every other sign (DIALOOM_KEY_API_EXAMPLE_COM).
    """
    ledger = current()
    settings = ledger.settings if ledger else Endpoints()
    model, at, own = name.partition("@http")
    default = (os.environ.get("OPENAI_BASE_URL") or OPENAI).rstrip("/")
    url = (f"http{own}" if at else settings.base_url or default).rstrip("/")
    key_from = "OPENAI_API_KEY" if url == default else key_name(url)
    found = EndpointModel(model, base_url=url, api_key=os.environ.get(key_from, ""), concurrency=settings.concurrency,
                          timeout=settings.timeout, attempts=settings.attempts)
    found.name, found.key_name = f"openai:{name}", key_from
    return found


def key_name(url: str) -> str:
    """The variable that holds the key for an address that is not the usual one."""
    return "DIALOOM_KEY_" + re.sub(r"[^A-Z0-9]", "_", (urlsplit(url).hostname or "").upper())


def _asked(chat: Chat, sampling: Sampling, *, logprobs: bool = False) -> Asked:
    return Asked(list(chat), sampling.temperature, sampling.top_p, sampling.top_k, sampling.max_new_tokens, logprobs)


def _completion(choice: Choice) -> Completion:
    text, reason = choice["message"]["content"], choice["finish_reason"]
    if not text or not text.strip():
        raise Again(f"the reply carries no text (finish_reason {reason!r})", "no text", reseed=True)
    if reason == "content_filter":
        raise Again("the server's content filter cut the reply", "content filter", reseed=True)
    return Completion(text.strip(), "length" if reason == "length" else "stop")


def _letter(choice: Choice, count: int) -> int:
    text = choice["message"]["content"] or ""
    found = letter_in(text, count)
    if found is None:
        raise Again(f"asked for a letter up to {LETTERS[count - 1]}, the reply was {text[:60]!r}", "no letter",
                    reseed=True)
    return found
