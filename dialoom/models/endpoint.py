"""A chat model behind an OpenAI-compatible server: vLLM, llama.cpp, Ollama, TGI, hosted ones. No torch.

One chat that is refused, filtered or never answered with anything to read comes back without text, with the reason; a
server that is down, knows no such key or model, or never gave anything to use is an error. Surprising choice: answers
are remembered by what was asked (server, model, messages, sampling, key) in the ledger that is current, a run's
`answers.jsonl`; so a batch that failed half-way is not paid for twice. The API key appears in no message, file or log.
"""

from __future__ import annotations

import asyncio
import copy
import os
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx2

from dialoom.dialogue import Chat, content_id
from dialoom.errors import EndpointError, ModelError
from dialoom.models.base import Completion, Sampling
from dialoom.models.endpoint_options import (
    FEW,
    LETTER_WEIGHT,
    LETTERS,
    MANY,
    asking_letter,
    letter_in,
    letter_weights,
    option_weights,
    spoken,
    top_tokens,
)
from dialoom.models.endpoint_session import FILTERED, Again, Asked, Learned, Refused, Session, Unusable
from dialoom.models.ledger import Choice, Ledger, Remembered, current
from dialoom.models.spending import Endpoints, check_address

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
                 extra: Mapping[str, Any] | None = None, answers: MutableMapping[str, Choice] | None = None,
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
            extra: fields added to every request; part of its id.
            answers: what was answered before, by request id; where no ledger is current, answers are added to it.
            transport: how bytes travel; for tests.
            pause: how a wait is waited; for tests.
        Raises: ModelError: if the server is OpenAI's and there is no key, or an address holds a password or a query.
        """
        self.model, self.role, self.name = model, role, f"openai:{model}"
        self.usage: Counter[str] = Counter()
        self.url = (base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI).rstrip("/")
        self._key = (os.environ.get("OPENAI_API_KEY") or "" if api_key is None else api_key).strip()
        if not (self._key.isascii() and self._key.replace(" ", "").isprintable()):
            raise ModelError(f"{self.name}: OPENAI_API_KEY holds characters no key has; copy it again")
        check_address(self.url)
        self._spellings = spellings(self._key) if self._key else None
        if self.url == OPENAI and not self._key:
            raise ModelError(f"{self.name}: OPENAI_API_KEY is not set; set it, or point OPENAI_BASE_URL at your server")
        self.concurrency, self.timeout, self.attempts, self.patience = concurrency, timeout, attempts, patience
        self.extra: Mapping[str, Any] = dict(extra or {})
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

        Returns: a completion for each; one without text, whose `finish` says why, for a chat that came to nothing.
        Raises:
            EndpointError: if some requests found no answer after all retries, or nothing that was ever answered can be
                used; what was answered is remembered.
            BudgetError: if the run's budget is spent; what was answered is remembered.
        """
        if len(chats) != len(keys):
            raise ModelError(f"{self.name}: {len(chats)} chats came with {len(keys)} keys; give one key for each chat")

        async def reply(chat: Chat, key: str, session: Session) -> Completion:
            return await session.ask(_asked(chat, sampling), key, _completion)

        found = self._batch([partial(reply, chat, key) for chat, key in zip(chats, keys, strict=True)])
        return [Completion("", f"endpoint: {one.kind}") if isinstance(one, Unusable) else one for one in found]

    def choose(self, chats: Sequence[Chat], options: Sequence[str]) -> list[list[float] | None]:
        """Log-probability (nats, normalised over `options`) that each chat's reply begins with each option.

        Read from the first token's `top_logprobs`; where the server gives none, or they do not tell the options
        apart, the model is asked for a letter, which then weighs `LETTER_WEIGHT`. None for a chat that was refused, or
        to which no letter came.

        Raises: as `chat`.
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

        found = self._batch([partial(weigh, chat) for chat in chats])
        return [None if isinstance(one, Unusable) else one for one in found]

    async def _try_logprobs(self, chat: Chat, options: Sequence[str], session: Session) -> list[float]:
        """Find out whether the server gives log-probabilities, many or few.

        A refusal means no, if a letter is not refused, too.
        """
        for self.learned.top_logprobs in (MANY, FEW):
            try:
                found = await self._by_logprobs(chat, options, session)
            except (Refused, Unusable):
                continue
            return found or await self._by_letter(chat, options, session)
        self.learned.top_logprobs = MANY
        found = await self._by_letter(chat, options, session)
        self.learned.gives_logprobs = False
        return found

    async def _by_logprobs(self, chat: Chat, options: Sequence[str], session: Session) -> list[float] | None:
        """None where the server gives none, or they do not tell the options apart."""
        def read(choice: Choice) -> list[float] | None:
            top = top_tokens(choice)
            self.learned.gives_logprobs = top is not None
            return option_weights(top, options) if top else None

        key = "choose" if self.learned.top_logprobs == MANY else f"choose of {self.learned.top_logprobs}"
        return await session.ask(_asked(chat, Sampling(0.0, max_new_tokens=1), logprobs=True), key, read)

    async def _by_letter(self, chat: Chat, options: Sequence[str], session: Session) -> list[float]:
        asked = _asked(asking_letter(chat, options), Sampling(0.0, max_new_tokens=8))
        chosen = await session.ask(asked, "letter", partial(_letter, count=len(options)))
        session.ledger.note(f"{self.name} gives no log-probabilities that tell options apart; it is asked for letters, "
                            f"each of which counts {LETTER_WEIGHT}")
        return letter_weights(chosen, len(options))

    def _batch(self, asks: Sequence[Callable[[Session], Awaitable[T]]]) -> list[T | Unusable]:
        """Run all requests, also from inside a running event loop (a notebook).

        Returns: of each its result, or why there is none where that is a matter of its chat.
        Raises: EndpointError: if others failed.
        """
        ledger = current() or self._own

        async def all_of_them() -> tuple[list[T | BaseException], bool]:
            headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
            limits = httpx2.Limits(max_connections=self.concurrency)
            async with httpx2.AsyncClient(headers=headers, timeout=None, limits=limits,
                                          transport=self._transport) as client:
                session = Session(self, client, ledger, self.concurrency)
                found = await asyncio.gather(*(ask(session) for ask in asks), return_exceptions=True)
                return found, session.serves

        try:
            asyncio.get_running_loop()
        except RuntimeError:
            found, serves = asyncio.run(all_of_them())
        else:
            with ThreadPoolExecutor(1) as pool:
                found, serves = pool.submit(asyncio.run, all_of_them()).result()
        ledger.sync()
        kept: list[T | Unusable] = []
        failed: list[EndpointError] = []
        for result in found:
            if isinstance(result, Unusable) and (result.alone or serves):
                kept.append(result)
            elif isinstance(result, EndpointError):
                failed.append(result)
            elif isinstance(result, BaseException):
                raise result
            else:
                kept.append(result)
        if failed:
            raise EndpointError(f"{len(failed)} of {len(asks)} requests failed; what was answered is kept, and the "
                                f"same command asks for the rest only; the first: {failed[0]}") from None
        ledger.unusable.update(one.kind for one in kept if isinstance(one, Unusable))
        return kept

    def redacted(self, text: str) -> str:
        """Text on one line without the key, nor anything that looks like one (servers echo it, whole or starred)."""
        text = re.sub(r"(?i)\b(sk|key|hf|gsk)[-_][\w*.-]{6,}|bearer\s+\S+", "[key]", self.without_key(text))
        return " ".join(text.split())[:300]

    def without_key(self, text: str) -> str:
        """Text without the key itself, however it is escaped."""
        return self._spellings.sub("[key]", text) if self._spellings else text


def load_endpoint(name: str, settings: Endpoints | None = None) -> EndpointModel:
    """The model `<model>` or `<model>@<address>`, asked as the settings say; None: the current ledger's.

    A key is sent only to whom it was given for: OPENAI_API_KEY to OPENAI_BASE_URL (or OpenAI), and to any other
    address `DIALOOM_KEY_<HOST>`, the host in capitals with `_` for every other sign (DIALOOM_KEY_API_EXAMPLE_COM).
    """
    ledger = current()
    settings = settings or (ledger.settings if ledger else Endpoints())
    model, at, own = name.partition("@http")
    default = (os.environ.get("OPENAI_BASE_URL") or OPENAI).rstrip("/")
    url = (f"http{own}" if at else settings.base_url or default).rstrip("/")
    check_address(url)
    key_from = "OPENAI_API_KEY" if url == default else key_name(url)
    found = EndpointModel(model, base_url=url, api_key=os.environ.get(key_from, ""), concurrency=settings.concurrency,
                          timeout=settings.timeout, attempts=settings.attempts, extra=settings.fields(model))
    found.name, found.key_name = f"openai:{name}", key_from
    return found


def key_name(url: str) -> str:
    """The variable that holds the key for an address that is not the usual one."""
    return "DIALOOM_KEY_" + re.sub(r"[^A-Z0-9]", "_", (urlsplit(url).hostname or "").upper())


def spellings(key: str) -> re.Pattern[str]:
    """Finds a key as it is, and as it is escaped in JSON (once or twice), in HTML or in an address."""
    return re.compile("".join(rf"(?:\\{{0,4}}(?:{re.escape(sign)}|u00{ord(sign):02x})|%{ord(sign):02x}"
                              rf"|&#0{{0,4}}{ord(sign)};|&#x0{{0,4}}{ord(sign):x};)" for sign in key), re.IGNORECASE)


def _asked(chat: Chat, sampling: Sampling, *, logprobs: bool = False) -> Asked:
    return Asked(list(chat), sampling.temperature, sampling.top_p, sampling.top_k, sampling.max_new_tokens, logprobs)


def _completion(choice: Choice) -> Completion:
    text, reason = spoken(choice["message"]["content"] or ""), choice["finish_reason"]
    if reason == "content_filter":
        raise Again("the server's content filter cut the reply", FILTERED, reseed=True)
    if not text.strip():
        raise Again(f"the reply carries no text (finish_reason {reason!r}){_thinking(choice)}", "no text", reseed=True)
    return Completion(text.strip(), "length" if reason == "length" else "stop")


def _letter(choice: Choice, count: int) -> int:
    text = choice["message"]["content"] or ""
    found = letter_in(spoken(text), count)
    if found is None:
        raise Again(f"asked for a letter up to {LETTERS[count - 1]}, the reply was {text[:60]!r}{_thinking(choice)}",
                    "no letter", reseed=True)
    return found


def _thinking(choice: Choice) -> str:
    """What may help where a reply was cut off, perhaps while the model thought."""
    cut = choice["finish_reason"] == "length"
    return ("; it was cut at the length limit: if the model thinks first, switch that off (--endpoint.extra, --extra), "
            "or give it a larger limit") if cut else ""
