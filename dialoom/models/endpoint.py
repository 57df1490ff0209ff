"""A chat model behind an OpenAI-compatible server: vLLM, llama.cpp, Ollama, TGI, hosted ones. No torch.

One request a chat, many in flight, one retry loop. A reply that carries no text is an error, never an empty turn.
Surprising choice: answers are remembered by the hash of their request, so that a batch that failed half-way is not paid
for twice; a mapping on disk can be passed as `answers`. The API key appears in no message.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import os
import re
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, TypeVar

import httpx2
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, stop_before_delay
from tenacity.wait import wait_random_exponential

from dialoom.dialogue import Chat, content_id
from dialoom.errors import EndpointError, ModelError
from dialoom.models.base import Completion, Sampling

OPENAI = "https://api.openai.com/v1"
ASK_LETTER = "Answer with one letter only."
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LETTER_WEIGHT = 0.95  # what a chosen letter counts where the server gives no log-probabilities; our choice
RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})

Choice = dict[str, Any]
"""The first entry of a server's `choices`, as it came."""

T = TypeVar("T")


class _Again(Exception):
    """An attempt that may go better next time; `wait` is what the server asked for, in seconds."""

    def __init__(self, why: str, wait: float | None = None, *, reseed: bool = False) -> None:
        super().__init__(why)
        self.wait = wait
        self.reseed = reseed


class _Refused(EndpointError):
    """The server understood the request and will not serve it (status 4xx)."""


class EndpointModel:
    """One model on one server.

    Attributes:
        name: `openai:<model>`.
        usage: counts over the life of the object: requests, attempts, prompt_tokens, completion_tokens.
    """

    def __init__(self, model: str, *, base_url: str | None = None, api_key: str | None = None, concurrency: int = 16,
                 timeout: float = 120.0, attempts: int = 6, patience: float = 600.0,
                 answers: MutableMapping[str, Choice] | None = None,
                 transport: httpx2.AsyncBaseTransport | None = None,
                 pause: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """Nothing is sent yet.

        Args:
            model: as the server calls it.
            base_url: ends in /v1 with most servers; None reads OPENAI_BASE_URL, else OpenAI's own.
            api_key: None reads OPENAI_API_KEY; local servers need none.
            concurrency: most requests in flight at once.
            timeout: seconds for one attempt.
            attempts: most attempts of one request, the first included.
            patience: seconds after which one request is no longer retried.
            answers: what was answered before, by request hash.
            transport: how bytes travel; for tests.
            pause: how a wait is waited; for tests.
        Raises: ModelError: if the server is OpenAI's and there is no key.
        """
        self.model = model
        self.name = f"openai:{model}"
        self.usage: Counter[str] = Counter()
        self._url = (base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI).rstrip("/")
        self._key = (api_key or os.environ.get("OPENAI_API_KEY") or "").strip()
        if not (self._key.isascii() and self._key.replace(" ", "").isprintable()):
            raise ModelError(f"{self.name}: OPENAI_API_KEY holds characters no key has; copy it again")
        if self._url == OPENAI and not self._key:
            raise ModelError(f"{self.name}: OPENAI_API_KEY is not set; set it, or point OPENAI_BASE_URL at your server")
        self._concurrency, self._timeout, self._attempts, self._patience = concurrency, timeout, attempts, patience
        self._answers: MutableMapping[str, Choice] = {} if answers is None else answers
        self._transport, self._pause = transport, pause
        self._limit_field = "max_tokens"
        self._gives_logprobs = True

    @property
    def fingerprint(self) -> str:
        """Of the server's address and the model's name: a server does not tell when its weights change."""
        return content_id("endpoint", self._url, self.model)

    def chat(self, chats: Sequence[Chat], sampling: Sampling, keys: Sequence[str]) -> list[Completion]:
        """Continue each chat; the key becomes the request's seed, which servers honour as well as they can.

        Raises: EndpointError: if some requests found no answer after all retries; the others are remembered.
        """
        if len(chats) != len(keys):
            raise ModelError(f"{self.name}: {len(chats)} chats came with {len(keys)} keys; give one key for each chat")

        async def reply(chat: Chat, key: str, session: _Session) -> Completion:
            return await session.ask(self._body(chat, sampling), key, _completion)

        return self._batch([partial(reply, chat, key) for chat, key in zip(chats, keys, strict=True)])

    def choose(self, chats: Sequence[Chat], options: Sequence[str]) -> list[list[float]]:
        """Log-probability (nats, normalised over `options`) that each chat's reply begins with each option.

        Read from the first token's `top_logprobs`; where the server gives none, or they do not tell the options
        apart, the model is asked for a letter, which then weighs `LETTER_WEIGHT`.
        """
        if not 2 <= len(options) <= len(LETTERS):
            raise ModelError(f"{self.name}: cannot choose among {len(options)} options; give 2 to {len(LETTERS)}")

        async def weigh(chat: Chat, session: _Session) -> list[float]:
            if self._gives_logprobs:
                body = {**self._body(chat, Sampling(0.0, max_new_tokens=1)), "logprobs": True, "top_logprobs": 20}
                try:
                    weights = await session.ask(body, "choose", lambda choice: self._first_token(choice, options))
                except _Refused:
                    self._gives_logprobs, weights = False, None
                if weights is not None:
                    return weights
            body = self._body(_asking_letter(chat, options), Sampling(0.0, max_new_tokens=8))
            chosen = await session.ask(body, "letter", lambda choice: _letter(choice, len(options)))
            rest = (1 - LETTER_WEIGHT) / (len(options) - 1)
            return [math.log(LETTER_WEIGHT if at == chosen else rest) for at in range(len(options))]

        return self._batch([partial(weigh, chat) for chat in chats])

    def _first_token(self, choice: Choice, options: Sequence[str]) -> list[float] | None:
        content = (choice.get("logprobs") or {}).get("content") or []
        top = content[0].get("top_logprobs") if content else None
        if not top:
            self._gives_logprobs = False
            return None
        return option_weights([(entry["token"], entry["logprob"]) for entry in top], options)

    def _body(self, chat: Chat, sampling: Sampling) -> dict[str, Any]:
        body = {"model": self.model, "messages": list(chat), "temperature": sampling.temperature,
                "top_p": sampling.top_p, self._limit_field: sampling.max_new_tokens}
        if sampling.top_k:  # not in OpenAI's own interface, so only sent where it was asked for
            body["top_k"] = sampling.top_k
        return body

    def _batch(self, asks: Sequence[Callable[[_Session], Awaitable[T]]]) -> list[T]:
        """Run all requests, also from inside a running event loop (a notebook), and raise if one of them failed."""

        async def all_of_them() -> list[T | BaseException]:
            headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
            limits = httpx2.Limits(max_connections=self._concurrency)
            async with httpx2.AsyncClient(headers=headers, timeout=None, limits=limits,
                                          transport=self._transport) as client:
                session = _Session(self, client, asyncio.Semaphore(self._concurrency))
                return await asyncio.gather(*(ask(session) for ask in asks), return_exceptions=True)

        try:
            asyncio.get_running_loop()
        except RuntimeError:
            found = asyncio.run(all_of_them())
        else:
            with ThreadPoolExecutor(1) as pool:
                found = pool.submit(asyncio.run, all_of_them()).result()
        failed = [result for result in found if isinstance(result, BaseException)]
        for error in failed:
            if not isinstance(error, EndpointError):
                raise error
        if failed:
            raise EndpointError(f"{len(failed)} of {len(asks)} requests failed; the first: {failed[0]}") from None
        return [result for result in found if not isinstance(result, BaseException)]

    def _redacted(self, text: str) -> str:
        """Text on one line without the key, nor anything that looks like one (servers echo it, whole or starred)."""
        if self._key:
            text = text.replace(self._key, "[key]")
        text = re.sub(r"(?i)\b(sk|key|hf|gsk)[-_][\w*.-]{6,}|bearer\s+\S+", "[key]", text)
        return " ".join(text.split())[:300]


class _Session:
    """One batch's open connections; lives as long as the batch."""

    def __init__(self, model: EndpointModel, client: httpx2.AsyncClient, gate: asyncio.Semaphore) -> None:
        self._model, self._client, self._gate = model, client, gate

    async def ask(self, body: dict[str, Any], key: str, read: Callable[[Choice], T]) -> T:
        """Send until `read` can make something of the answer; raises EndpointError once the attempts are used up."""
        model = self._model
        sent = {**body, "seed": _seed(key, 0)}
        request_id = content_id(model.fingerprint, sent, key)
        if request_id in model._answers:
            with suppress(_Again):
                return read(model._answers[request_id])
        model.usage["requests"] += 1
        bad = 0
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(_Again), wait=_wait, sleep=model._pause, reraise=True,
            stop=stop_after_attempt(model._attempts) | stop_before_delay(model._patience))
        try:
            async for attempt in retrying:
                with attempt:
                    if bad:  # the same seed would give the same unusable reply; 1.0 because greedy has no other
                        sent = {**sent, "seed": _seed(key, bad), "temperature": sent["temperature"] or 1.0}
                    try:
                        async with self._gate:
                            choice = await self._post(sent)
                        value = read(choice)
                    except _Again as again:
                        bad += again.reseed
                        raise
                    model._answers[request_id] = choice
                    return value
        except _Again as again:
            raise EndpointError(f"{model.name}: no usable answer after {retrying.statistics['attempt_number']} "
                                f"attempts; the last: {again}") from None
        raise AssertionError("the retry loop either returns or raises")

    async def _post(self, body: dict[str, Any]) -> Choice:
        """One attempt: the first choice of the answer."""
        model = self._model
        model.usage["attempts"] += 1
        try:
            async with asyncio.timeout(model._timeout):
                response = await self._client.post(f"{model._url}/chat/completions", json=body)
        except (httpx2.UnsupportedProtocol, httpx2.InvalidURL):
            raise EndpointError(f"{model.name}: {model._redacted(model._url)!r} is not a web address; "
                                "OPENAI_BASE_URL looks like http://localhost:8000/v1") from None
        except TimeoutError:
            raise _Again(f"no answer within {model._timeout:g} s") from None
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            raise _Again(model._redacted(f"{type(error).__name__} at {model._url}: {error}")) from None
        if response.status_code != 200:
            self._refuse(response, body)
        try:
            data = response.json()
            choice = data["choices"][0]
            if not isinstance(choice["message"], dict):
                raise TypeError("message is not an object")
        except (ValueError, LookupError, TypeError) as error:
            raise _Again(model._redacted(f"status 200, but no choices in {response.text[:120]!r} ({error})")) from None
        usage = data.get("usage") or {}
        for count in ("prompt_tokens", "completion_tokens"):
            model.usage[count] += int(usage.get(count) or 0)
        return dict(choice)

    def _refuse(self, response: httpx2.Response, body: dict[str, Any]) -> None:
        """Raise what an answer that is not 200 means."""
        model = self._model
        text = model._redacted(response.text)
        if response.status_code == 400 and "max_completion_tokens" in text and "max_tokens" in body:
            model._limit_field = "max_completion_tokens"  # OpenAI's newer models know the limit by this name only
            body["max_completion_tokens"] = body.pop("max_tokens")
            raise _Again(text, 0.0)
        if response.status_code in RETRIED and "insufficient_quota" not in text:
            raise _Again(f"status {response.status_code}: {text}", _retry_after(response))
        hint = "; check OPENAI_API_KEY" if response.status_code in (401, 403) else ""
        raise _Refused(f"{model.name}: {model._redacted(model._url)} answered {response.status_code}: {text}{hint}")


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
    if isinstance(error, _Again) and error.wait is not None:
        return error.wait
    return float(_backoff(state))


def _completion(choice: Choice) -> Completion:
    text = choice["message"].get("content")
    reason = choice.get("finish_reason")
    if not isinstance(text, str) or not text.strip():
        raise _Again(f"the reply carries no text (finish_reason {reason!r})", reseed=True)
    if reason == "content_filter":
        raise _Again("the server's content filter cut the reply", reseed=True)
    return Completion(text.strip(), "length" if reason == "length" else "stop")


def option_weights(top: Sequence[tuple[str, float]], options: Sequence[str]) -> list[float] | None:
    """Log-probabilities of options, normalised over them, from a first token's likeliest alternatives.

    A token speaks for an option if one is the beginning of the other, letter case and spaces aside; one that fits
    several options speaks for none. An option no token speaks for gets the smallest figure listed.
    Returns: None if no token speaks for any option.
    """
    mass = [0.0] * len(options)
    for token, logprob in top:
        fits = [at for at, option in enumerate(options) if _speaks_for(token.strip().casefold(), option.casefold())]
        if len(fits) == 1:
            mass[fits[0]] += math.exp(logprob)
    if not any(mass):
        return None
    least = math.exp(min(logprob for _, logprob in top))
    mass = [weight or least or 1e-30 for weight in mass]
    return [math.log(weight / sum(mass)) for weight in mass]


def _speaks_for(token: str, option: str) -> bool:
    if not token:
        return False
    return option.startswith(token) or (token.startswith(option) and not token[len(option)].isalnum())


def _asking_letter(chat: Chat, options: Sequence[str]) -> Chat:
    """The chat with its last message asking for a letter; the options are listed unless they are the letters."""
    letters = list(LETTERS[:len(options)])
    listed = [] if list(options) == letters else [f"{letter}) {option}" for letter, option in zip(letters, options,
                                                                                                 strict=True)]
    text = "\n".join([chat[-1]["content"], "", *listed, ASK_LETTER])
    return [*chat[:-1], {**chat[-1], "content": text}]


def _letter(choice: Choice, count: int) -> int:
    """Index of the letter a reply gives: its first word, or the word after "answer is"."""
    text = choice["message"].get("content") or ""
    first = re.match(r"\W*([A-Z])(?![\w'])(?!\s+\w)", text)  # not the article of "A dog"
    found = first or re.search(r"(?i:answer(?: is)?)\W{1,4}([A-Z])(?!\w)", text)
    if found and LETTERS.index(found[1]) < count:
        return LETTERS.index(found[1])
    raise _Again(f"asked for a letter up to {LETTERS[count - 1]}, the reply was {text[:60]!r}", reseed=True)
