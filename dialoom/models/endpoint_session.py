"""One batch of requests to a server: many in flight, one retry loop, every answer written down as it arrives.

What is in flight never costs more than the caps allow: each request sets aside the most it may cost before it is sent.
A server that is down is not asked a thousand times: after some requests in a row the rest of the batch is left.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Protocol, TypeVar

import httpx2
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, stop_before_delay
from tenacity.wait import wait_random_exponential

from dialoom.dialogue import Chat, content_id
from dialoom.errors import BudgetError, ConfigError, EndpointError, StoreError
from dialoom.models.endpoint_options import top_tokens
from dialoom.models.ledger import Choice, Ledger, Tokens
from dialoom.text import parse_json

RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
DOWN = 8  # requests in a row without an answer, after which the rest of a batch is not sent
POLL = 0.02  # seconds between two looks whether the budget has room again
EACH_MESSAGE, EACH_PROMPT = 16, 64  # tokens a server's template adds at most, we say, besides a message's bytes

T = TypeVar("T")


class Again(Exception):
    """An attempt that may go better next time.

    Attributes:
        kind: what went wrong, in a word or two, for counting.
        wait: seconds the server asked for.
        reseed: whether the reply itself was the fault, so that the same seed would bring it again.
    """

    def __init__(self, why: str, kind: str, wait: float | None = None, *, reseed: bool = False) -> None:
        super().__init__(why)
        self.kind, self.wait, self.reseed = kind, wait, reseed


class Refused(EndpointError):
    """The server understood the request and will not serve it (status 4xx)."""


@dataclass(frozen=True)
class Asked:
    """What is asked for, whatever a server calls its fields; with the key it identifies a request."""

    messages: Chat
    temperature: float
    top_p: float
    top_k: int
    limit: int
    logprobs: bool = False

    def body(self, model: str, limit_field: str, seed: int, bad: int) -> dict[str, Any]:
        """The request; `bad` counts unusable replies before it, after which greedy decoding makes no sense."""
        found = {"model": model, "messages": list(self.messages), "top_p": self.top_p, limit_field: self.limit,
                 "temperature": (self.temperature or 1.0) if bad else self.temperature, "seed": seed}
        if self.top_k:  # not in OpenAI's own interface, so only sent where it was asked for
            found["top_k"] = self.top_k
        return found | ({"logprobs": True, "top_logprobs": 20} if self.logprobs else {})

    @property
    def most(self) -> Tokens:
        """The most tokens it can cost: no token is shorter than a byte."""
        sizes = [len(message["content"].encode("utf-8", "replace")) + EACH_MESSAGE for message in self.messages]
        return Tokens(sum(sizes) + EACH_PROMPT, self.limit)


@dataclass
class Learned:
    """What a server showed of itself."""

    limit_field: str = "max_tokens"
    gives_logprobs: bool | None = None  # nobody has asked yet


class Server(Protocol):
    """What a session has to know of a model; `EndpointModel` is one."""

    model: str
    role: str
    usage: Any
    learned: Learned
    attempts: int
    patience: float
    timeout: float
    pause: Callable[[float], Awaitable[None]]

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def url(self) -> str: ...

    key_name: str

    def redacted(self, text: str) -> str: ...

    def without_key(self, text: str) -> str: ...


class Session:
    """One batch's open connections; lives as long as the batch."""

    def __init__(self, server: Server, client: httpx2.AsyncClient, ledger: Ledger, concurrency: int) -> None:
        self._server, self._client, self._ledger = server, client, ledger
        self._gate = asyncio.Semaphore(concurrency)
        self.first = asyncio.Lock()  # held by who finds out something of the server for all
        self._under_way: dict[str, asyncio.Task[Any]] = {}
        self._silent, self._not_before = 0, 0.0
        self._stop: Exception | None = None

    async def ask(self, asked: Asked, key: str, read: Callable[[Choice], T]) -> T:
        """Send until `read` can make something of the answer; the same request at the same time is sent once.

        Raises: EndpointError: once the attempts are used up, or where the server seems to be down.
        """
        id = content_id(self._server.fingerprint, asdict(asked), key)
        if id not in self._under_way:
            self._under_way[id] = asyncio.ensure_future(self._ask(asked, key, id, read))
        found: T = await self._under_way[id]
        return found

    async def _ask(self, asked: Asked, key: str, id: str, read: Callable[[Choice], T]) -> T:
        server, bad = self._server, 0
        while (kept := self._ledger.find(_numbered(id, bad))) is not None:
            try:
                return read(kept)
            except Again:  # it was unusable then as well; what comes after it may stand here, too
                bad += 1
        server.usage["requests"] += 1
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(Again), wait=_wait, sleep=server.pause, reraise=True,
            stop=stop_after_attempt(server.attempts) | stop_before_delay(server.patience))
        try:
            async for attempt in retrying:
                with attempt:
                    try:
                        choice = await self._send(asked, _numbered(id, bad), _seed(key, bad), bad,
                                                  attempt.retry_state.attempt_number == 1)
                        value = read(choice)
                    except Again as again:
                        bad += again.reseed
                        self._ledger.fault(again.kind)
                        raise
                    self._silent = 0
                    return value
        except Again as again:
            self._silent += 1
            raise EndpointError(f"{server.name}: no usable answer after {retrying.statistics['attempt_number']} "
                                f"attempts; the last: {again}") from None
        except Refused:
            self._silent += 1
            raise
        except (BudgetError, ConfigError, StoreError) as stop:  # concerns every request, so the others are not sent
            self._stop = stop
            raise
        raise AssertionError("the retry loop either returns or raises")

    async def _send(self, asked: Asked, id: str, seed: int, bad: int, is_first: bool) -> Choice:
        """One attempt, once there is room for it among the requests in flight and in the budget."""
        server = self._server
        async with self._gate:
            await self._may_go(is_first)
            most = asked.most
            while not self._ledger.hold(server.model, most):
                if not self._ledger.holds:
                    raise self._ledger.broke(server.model)
                await asyncio.sleep(POLL)  # what is in flight, here or in another thread, will cost less than it might
            try:
                body = asked.body(server.model, server.learned.limit_field, seed, bad)
                choice, tokens = await self._post(body)
                self._ledger.add(id, server.role, server.model, choice, tokens)
                return choice
            finally:
                self._ledger.free(server.model, most)

    async def _may_go(self, is_first: bool) -> None:
        if self._stop:
            raise self._stop
        if self._silent >= DOWN:
            raise EndpointError(f"{self._server.name}: not asked, since the last {self._silent} requests brought no "
                                "answer")
        wait = self._not_before - time.monotonic()
        if is_first and wait > 0:  # the server asked somebody else to wait; a request that was told so waits by itself
            await self._server.pause(wait)

    async def _post(self, body: dict[str, Any]) -> tuple[Choice, Tokens]:
        """The first choice of the server's answer, as far as it matters here, and what it took."""
        server = self._server
        server.usage["attempts"] += 1
        try:
            async with asyncio.timeout(server.timeout):
                response = await self._client.post(f"{server.url}/chat/completions", json=body)
        except (httpx2.UnsupportedProtocol, httpx2.InvalidURL):
            raise EndpointError(f"{server.name}: {server.redacted(server.url)!r} is not a web address; "
                                "OPENAI_BASE_URL looks like http://localhost:8000/v1") from None
        except TimeoutError:
            raise Again(f"no answer within {server.timeout:g} s", "no answer in time") from None
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            kind = type(error).__name__
            raise Again(server.redacted(f"{kind} at {server.url}: {error}"), kind) from None
        if response.status_code != 200:
            self._refuse(response, body)
        try:
            data = parse_json(server.without_key(response.text))
            choice = _kept(data["choices"][0])
        except (ValueError, LookupError, TypeError) as error:
            raise Again(server.redacted(f"status 200, but no choices in {response.text[:120]!r} ({error})"),
                        "unreadable answer") from None
        tokens = _tokens(data.get("usage"), body, choice)
        server.usage["prompt_tokens"] += tokens.read
        server.usage["completion_tokens"] += tokens.written
        return choice, tokens

    def _refuse(self, response: httpx2.Response, body: dict[str, Any]) -> None:
        """Raise what an answer that is not 200 means."""
        server, status = self._server, response.status_code
        text = server.redacted(response.text)
        if status == 400 and "max_completion_tokens" in text and "max_tokens" in body:
            server.learned.limit_field = "max_completion_tokens"  # OpenAI's newer models know it by this name only
            raise Again(text, "another name of the length limit", 0.0)
        if status in RETRIED and "insufficient_quota" not in text:
            wait = _retry_after(response)
            if status in (429, 503):
                self._not_before = max(self._not_before, time.monotonic() + (1.0 if wait is None else wait))
            raise Again(f"status {status}: {text}", f"status {status}", wait)
        hint = f"; check {server.key_name}" if status in (401, 403) else ""
        raise Refused(f"{server.name}: {server.redacted(server.url)} answered {status}: {text}{hint}")


def _numbered(id: str, bad: int) -> str:
    """The id of a request's answer after so many unusable ones."""
    return f"{id}/{bad}" if bad else id


def _kept(choice: Any) -> Choice:
    """What of a choice is written down: enough to read it again. Raises TypeError, LookupError or ValueError."""
    message = choice["message"]
    if not isinstance(message, dict):
        raise TypeError("message is not an object")
    content, reason = message.get("content"), choice.get("finish_reason")
    kept: Choice = {"message": {"content": content if isinstance(content, str) else None},
                    "finish_reason": reason if isinstance(reason, str) else None}
    top = top_tokens(choice)
    if top:
        kept["logprobs"] = {"content": [{"top_logprobs": [{"token": token, "logprob": logprob}
                                                          for token, logprob in top]}]}
    return kept


def _tokens(usage: Any, body: dict[str, Any], choice: Choice) -> Tokens:
    """What the server says it took; where it says nothing, a token for every four bytes."""
    if isinstance(usage, dict):
        try:
            return Tokens(int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0))
        except (TypeError, ValueError):
            pass
    read = sum(len(message["content"].encode("utf-8", "replace")) for message in body["messages"])
    return Tokens(read // 4, len((choice["message"]["content"] or "").encode("utf-8", "replace")) // 4)


def _seed(key: str, bad: int) -> int:
    """31 bits, which every server takes."""
    text = key if not bad else f"{key}/{bad}"
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=4).digest(), "big") >> 1


def _retry_after(response: httpx2.Response) -> float | None:
    """Seconds the server asks to wait, given as a number or a date; None if it does not say."""
    asked = response.headers.get("Retry-After", "")
    try:
        return max(0.0, float(asked))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(asked) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


_backoff = wait_random_exponential(multiplier=0.5, max=60)


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, Again) and error.wait is not None:
        return error.wait
    return float(_backoff(state))
