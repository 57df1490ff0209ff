"""One batch of requests to a server: many in flight, one retry loop, every answer written down as it arrives.

What is in flight never costs more than the caps allow: each request sets aside the most it may cost before it is sent.
A server that is down is not asked a thousand times: after some requests in a row the rest of the batch is left. What
only concerns one chat (refused, filtered, never readable) is told apart from that by whether the others are served.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Protocol, TypeVar

import httpx2
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, stop_before_delay
from tenacity.wait import wait_random_exponential

from dialoom.dialogue import Chat, content_id
from dialoom.errors import BudgetError, ConfigError, EndpointError, StoreError
from dialoom.models.endpoint_options import MANY, top_tokens
from dialoom.models.ledger import Choice, Ledger, Tokens
from dialoom.text import parse_json

RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
FILTERED = "content filter"  # the kind of what a server would not say
ABOUT_CHAT = frozenset({400, 413, 422, 451})  # may be due to what one chat holds
DOWN = 8  # requests in a row without an answer, after which the rest of a batch is not sent
LARGEST = 32 * 2**20  # bytes of one answer; a reply of 100,000 tokens is a hundredth of that
POLL = 0.02  # seconds between two looks whether the budget has room again
EACH_MESSAGE, EACH_PROMPT = 16, 64  # tokens a server's template adds at most, we say, besides a message's bytes

FLAGGED = re.compile(
    r"(?i)content[ _-]?(filter|policy|management|moderation|exists risk)|moderation|flagged|safety|usage polic"
    r"|inappropriate|data_inspection|prohibited content|responsible ?ai")
TOO_LONG = re.compile(
    r"(?i)context.{0,20}(length|size|window)|too (long|large|many (input |prompt )?tokens)"
    r"|max(imum)?[ _](model|prompt|input|sequence)[ _]?(len|tokens)|exceed.{0,80}(tokens|length)|must have less than")
RATIONED = re.compile(r"(?i)quota|billing|credit|budget|rate.?limit|per (minute|hour|day|month)")
SAMPLING = ("temperature", "top_p", "top_k", "seed")  # what some servers refuse, and others do without
PLAIN = "a top_p of 1"  # sent, since else some servers take the model's own; refused by others
NAMED = re.compile(rf"\b({'|'.join(SAMPLING)})\b")

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


class Unusable(EndpointError):
    """The server answered, and one chat came to nothing: it was refused or filtered, or never gave what can be read.

    Attributes:
        kind: why, in a word or two, for counting.
        alone: whether it is known to concern this chat only; else that is so where others are served.
    """

    def __init__(self, why: str, kind: str, *, alone: bool = False) -> None:
        super().__init__(why)
        self.kind, self.alone = kind, alone


@dataclass(frozen=True)
class Asked:
    """What is asked for, whatever a server calls its fields; with the key it identifies a request."""

    messages: Chat
    temperature: float
    top_p: float
    top_k: int
    limit: int
    logprobs: bool = False

    def body(self, server: Server, seed: int, bad: int) -> dict[str, Any]:
        """The request; `bad` counts unusable replies before it, after which greedy decoding makes no sense."""
        learned = server.learned
        found = {"model": server.model, "messages": list(self.messages), "top_p": self.top_p,
                 learned.limit_field: self.limit, "seed": seed,
                 "temperature": (self.temperature or 1.0) if bad else self.temperature}
        if self.top_k:  # not in OpenAI's own interface, so only sent where it was asked for
            found["top_k"] = self.top_k
        found |= {"logprobs": True, "top_logprobs": learned.top_logprobs} if self.logprobs else {}
        found |= dict(server.extra)
        return {name: value for name, value in found.items() if _known_as(name, value) not in learned.refused}

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
    top_logprobs: int = MANY
    refused: set[str] = field(default_factory=set)  # fields it does not take, by `_known_as`
    served: set[str] = field(default_factory=set)  # roles in which it gave something to use
    refusals: int = 0  # in a row, for reasons that are not known to be a chat's


class Server(Protocol):
    """What a session has to know of a model; `EndpointModel` is one."""

    model: str
    role: str
    usage: Any
    learned: Learned
    attempts: int
    patience: float
    timeout: float
    extra: Mapping[str, Any]
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
        self._server, self._client, self.ledger = server, client, ledger
        self._gate = asyncio.Semaphore(concurrency)
        self.first = asyncio.Lock()  # held by who finds out something of the server for all
        self._under_way: dict[str, asyncio.Task[Any]] = {}
        self._silent, self._not_before = 0, 0.0
        self._stop: Exception | None = None

    async def ask(self, asked: Asked, key: str, read: Callable[[Choice], T]) -> T:
        """Send until `read` can make something of the answer; the same request at the same time is sent once.

        Args:
            read: raises `Again` where another reply might do better; None says that nothing will.
        Raises:
            EndpointError: once the attempts are used up, or where the server seems to be down.
            Unusable: where the server answered, and nothing of this chat can be used.
        """
        extra = [dict(self._server.extra)] if self._server.extra else []
        id = content_id(self._server.fingerprint, asdict(asked), key, *extra)
        if id not in self._under_way:
            self._under_way[id] = asyncio.ensure_future(self._ask(asked, key, id, read))
        found: T = await self._under_way[id]
        return found

    async def _ask(self, asked: Asked, key: str, id: str, read: Callable[[Choice], T]) -> T:
        server, bad = self._server, 0
        while (kept := self.ledger.find(_numbered(id, bad))) is not None:
            try:
                return self._read(kept, _numbered(id, bad), read)
            except Again as again:  # it was unusable then as well; what comes after it may stand here, too
                bad, last = bad + 1, again
        if bad >= server.attempts:  # given up in an earlier run, which paid for each of them
            raise self._given_up(last, bad)
        server.usage["requests"] += 1
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(Again), wait=_wait, sleep=server.pause, reraise=True,
            stop=stop_after_attempt(server.attempts - bad) | stop_before_delay(server.patience))
        try:
            async for attempt in retrying:
                with attempt:
                    try:
                        id_now = _numbered(id, bad)
                        choice = await self._send(asked, id_now, _seed(key, bad), bad,
                                                  attempt.retry_state.attempt_number == 1)
                        value = self._read(choice, id_now, read)
                    except Again as again:
                        bad += again.reseed
                        self.ledger.fault(again.kind)
                        raise
                    self._silent = server.learned.refusals = 0
                    return value
        except Again as again:
            raise self._given_up(again, retrying.statistics["attempt_number"]) from None
        except (Refused, Unusable) as error:
            self._silent += not (isinstance(error, Unusable) and (error.alone or self.serves))
            raise
        except (BudgetError, ConfigError, StoreError) as stop:  # concerns every request, so the others are not sent
            self._stop = stop
            raise
        raise AssertionError("the retry loop either returns or raises")

    def _read(self, choice: Choice, id: str, read: Callable[[Choice], T]) -> T:
        """What `read` makes of an answer; whether that is of use is remembered."""
        server = self._server
        try:
            value = read(choice)
        except Again:
            self.ledger.unread(id, server.role, server.model)
            raise
        if value is None:
            self.ledger.unread(id, server.role, server.model)
        else:
            server.learned.served.add(server.role)
        return value

    @property
    def serves(self) -> bool:
        """Whether the model, in its role, ever gave something to use; then what fails may be a matter of the chat."""
        server = self._server
        return server.role in server.learned.served or self.ledger.has_served(server.role, server.model)

    def _given_up(self, last: Again, attempts: int) -> EndpointError:
        """What is raised after the last attempt."""
        why = f"{self._server.name}: no usable answer after {attempts} attempts; the last: {last}"
        alone = last.kind == FILTERED
        self._silent += not (last.reseed and (alone or self.serves))
        return Unusable(why, last.kind, alone=alone) if last.reseed else EndpointError(why)

    async def _send(self, asked: Asked, id: str, seed: int, bad: int, is_first: bool) -> Choice:
        """One attempt, once there is room for it among the requests in flight and in the budget."""
        server = self._server
        async with self._gate:
            await self._may_go(is_first)
            most = asked.most
            while not self.ledger.hold(server.model, most):
                if not self.ledger.holds:
                    raise self.ledger.broke(server.model)
                await asyncio.sleep(POLL)  # what is in flight, here or in another thread, will cost less than it might
            try:
                choice, tokens = await self._post(asked.body(server, seed, bad))
                self.ledger.add(id, server.role, server.model, choice, tokens)
                return choice
            finally:
                self.ledger.free(server.model, most)

    async def _may_go(self, is_first: bool) -> None:
        if self._stop:
            raise self._stop
        if self._silent >= DOWN:
            raise EndpointError(f"{self._server.name}: not asked, since the last {self._silent} requests brought "
                                "nothing")
        wait = self._not_before - time.monotonic()
        if is_first and wait > 0:  # the server asked somebody else to wait; a request that was told so waits by itself
            if wait > self._server.patience:
                raise EndpointError(f"{self._server.name}: the server asks to wait {wait:,.0f} s, longer than the "
                                    f"{self._server.patience:g} s that are waited; run the same command later")
            await self._server.pause(wait)

    async def _post(self, body: dict[str, Any]) -> tuple[Choice, Tokens]:
        """The first choice of the server's answer, as far as it matters here, and what it took."""
        server = self._server
        server.usage["attempts"] += 1
        try:
            async with (asyncio.timeout(server.timeout),
                        self._client.stream("POST", f"{server.url}/chat/completions", json=body) as response):
                text = server.without_key(await _text(response))
        except (httpx2.UnsupportedProtocol, httpx2.InvalidURL):
            raise EndpointError(f"{server.name}: {server.redacted(server.url)!r} is not a web address; "
                                "OPENAI_BASE_URL looks like http://localhost:8000/v1") from None
        except TimeoutError:
            raise Again(f"no answer within {server.timeout:g} s", "no answer in time") from None
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            kind = type(error).__name__
            raise Again(server.redacted(f"{kind} at {server.url}: {error}"), kind) from None
        if response.status_code != 200:
            self._refuse(response, text, body)
        try:
            data = parse_json(text)
            choice = _kept(data["choices"][0])
        except (ValueError, LookupError, TypeError) as error:
            raise Again(server.redacted(f"status 200, but no choices in {text[:120]!r} ({error})"),
                        "unreadable answer") from None
        tokens = _tokens(data.get("usage"), body, choice)
        server.usage["prompt_tokens"] += tokens.read
        server.usage["completion_tokens"] += tokens.written
        return choice, tokens

    def _refuse(self, response: httpx2.Response, said: str, body: dict[str, Any]) -> None:
        """Raise what an answer that is not 200 means."""
        server, status, text = self._server, response.status_code, self._server.redacted(said)
        if status in (400, 422):
            self._learn(said, text, body)
        if status in RETRIED and "insufficient_quota" not in text:
            wait = _retry_after(response)
            if status in (429, 503):
                self._not_before = max(self._not_before, time.monotonic() + (1.0 if wait is None else wait))
            raise Again(f"status {status}{f', asks to wait {wait:,.0f} s' if wait else ''}: {text}", f"status {status}",
                        wait)
        why = f"{server.name}: {server.redacted(server.url)} answered {status}: {text}"
        if status in ABOUT_CHAT | {403} and FLAGGED.search(text):
            raise Unusable(why, FILTERED, alone=True)
        if status in ABOUT_CHAT:
            too_long = status == 413 or (TOO_LONG.search(text) and not RATIONED.search(text))
            server.learned.refusals += not too_long
            if server.learned.refusals < DOWN:
                raise Unusable(why, "too long for the server" if too_long else f"status {status}")
        hint = {401: f"; check {server.key_name}", 403: f"; check {server.key_name}",
                404: "; the address usually ends in /v1, and the model is named as the server names it"}
        raise Refused(why + hint.get(status, ""))

    def _learn(self, said: str, text: str, body: dict[str, Any]) -> None:
        """Raise `Again` where a refusal names a field that the next attempt can do without, or call otherwise."""
        server, learned = self._server, self._server.learned
        if "max_completion_tokens" in text and "max_tokens" in body:
            learned.limit_field = "max_completion_tokens"  # OpenAI's newer models know it by this name only
            raise Again(text, "another name of the length limit", 0.0)
        named = [one for one in _fields_named(said, text) if one in body]
        if named and not FLAGGED.search(text):
            name = "top_p" if "top_p" in named and body["top_p"] == 1 else named[0]
            known_as = _known_as(name, body[name])
            learned.refused.add(known_as)
            if known_as != PLAIN:
                self.ledger.note(f"{server.name} refuses {name}, which is left out of what it is asked: {text:.160}")
            raise Again(text, f"refuses {known_as}", 0.0)


def _known_as(name: str, value: Any) -> str:
    """A field as it is remembered where it is refused: a `top_p` of 1, which changes nothing, by itself."""
    return PLAIN if name == "top_p" and value == 1 else name


def _fields_named(said: str, text: str) -> list[str]:
    """Which fields of `SAMPLING` a refusal is about: that of its `param`, else those in its message."""
    try:
        param = parse_json(said)["error"]["param"]
    except (ValueError, LookupError, TypeError):
        param = None
    return [param] * (param in SAMPLING) if isinstance(param, str) and param else NAMED.findall(text)


async def _text(response: httpx2.Response) -> str:
    """An answer's text. Raises Again if it does not end."""
    data = bytearray()
    async for chunk in response.aiter_bytes():
        data += chunk
        if len(data) > LARGEST:
            raise Again(f"an answer of more than {LARGEST:,} bytes", "endless answer")
    return data.decode("utf-8", "replace")


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
    """What the server says it took; of what it does not say, a token for every four bytes."""
    def count(name: str, text: str) -> int:
        try:
            said = int(usage[name])
        except (LookupError, TypeError, ValueError, OverflowError):
            said = 0
        return said if said > 0 else len(text.encode("utf-8", "replace")) // 4

    return Tokens(count("prompt_tokens", "".join(message["content"] for message in body["messages"])),
                  count("completion_tokens", choice["message"]["content"] or ""))


def _seed(key: str, bad: int) -> int:
    """31 bits, which every server takes."""
    text = key if not bad else f"{key}/{bad}"
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=4).digest(), "big") >> 1


def _retry_after(response: httpx2.Response) -> float | None:
    """Seconds the server asks to wait, given as a number or a date; None if it does not say."""
    asked = response.headers.get("Retry-After", "")
    try:
        seconds = float(asked)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(asked) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError, OverflowError, IndexError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


_backoff = wait_random_exponential(multiplier=0.5, max=60)


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, Again) and error.wait is not None:
        return error.wait
    return float(_backoff(state))
