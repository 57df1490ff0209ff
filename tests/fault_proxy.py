"""Servers for tests: a stub of the chat-completions protocol, and a proxy that does to a server's answers what networks
and overloaded servers do. Both count what was asked and what was delivered whole.
"""

from __future__ import annotations

import hashlib
import http.client
import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FAULTS = ("429", "429 with Retry-After", "500", "reset", "cut", "slow", "broken", "empty")
PAID = ("cut", "slow")  # the server did the work, and the client never saw it whole
SLOW = 6.0  # seconds; the client is to lose its patience before

Body = dict[str, Any]


class Quiet(BaseHTTPRequestHandler):
    """Keep-alive, no log, answers as JSON."""

    protocol_version = "HTTP/1.1"

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def give(self, status: int, payload: bytes, headers: tuple[tuple[str, str], ...] = (), length: int = 0) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(length or len(payload)))
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(payload)
        self.wfile.flush()

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address of a server on loopback, with /v1 at its end."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()


def request_of(body: Body) -> str:
    """What tells requests apart, seeds included."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:16]


@contextmanager
def stub(reply: Callable[[Body], str], *, delay: float = 0.0, top: Callable[[Body], dict[str, float]] | None = None,
         refuse: Callable[[Body], tuple[int, str]] = lambda body: (200, "")) -> Iterator[tuple[str, Counter[str]]]:
    """A server that says what `reply` says, and how often it was asked for each request.

    Args:
        refuse: the status of the answer to a request and, where that is not 200, what the server says instead.
        top: log-probabilities of the first token's alternatives; None: it gives none.
    """
    asked: Counter[str] = Counter()
    guard = threading.Lock()

    class Stub(Quiet):
        def do_POST(self) -> None:
            body = json.loads(self.body())
            with guard:
                asked[request_of(body)] += 1
            time.sleep(delay)
            status, why = refuse(body)
            if status != 200:
                return self.give(status, json.dumps({"error": {"message": why}}).encode())
            text = reply(body)
            choice: Body = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            if body.get("logprobs") and top is not None:
                choice["logprobs"] = {"content": [{"token": text[:1], "logprob": 0.0, "top_logprobs": [
                    {"token": token, "logprob": logprob} for token, logprob in top(body).items()]}]}
            words = sum(len(message["content"].split()) for message in body["messages"])
            with suppress(OSError):  # the client was killed
                self.give(200, json.dumps({"choices": [choice], "usage": {
                    "prompt_tokens": words, "completion_tokens": len(text.split())}}).encode())
            return None

    with serving(Stub) as address:
        yield address, asked


class Proxy:
    """Stands before a server; the first attempts of requests meet the faults in turn, later ones pass.

    Attributes:
        forwarded: how often the server was asked for each request.
        delivered: how often its answer reached the client whole.
        met: which faults were met how often.
    """

    def __init__(self, upstream: str, faults: tuple[str, ...] = FAULTS, *, every: int = 2,
                 paid: tuple[str, ...] = PAID) -> None:
        """Args:
            every: of this many requests one meets a fault.
            paid: faults after which the server has worked for nothing; without "slow" for a client that waits.
        """
        self.paid = paid
        self.host, _, self.port = upstream.removeprefix("http://").removesuffix("/v1").partition(":")
        self.forwarded: Counter[str] = Counter()
        self.delivered: Counter[str] = Counter()
        self.met: Counter[str] = Counter()
        self._turn = itertools.cycle([fault for fault in faults for fault in (fault, *[""] * (every - 1))])
        self._seen: set[str] = set()
        self._guard = threading.Lock()

    def fault_of(self, request: str) -> str:
        with self._guard:
            fault = "" if request in self._seen else next(self._turn)
            self._seen.add(request)
            if fault:
                self.met[fault] += 1
        return fault

    def ask(self, raw: bytes, request: str) -> tuple[int, bytes]:
        with self._guard:
            self.forwarded[request] += 1
        upstream = http.client.HTTPConnection(self.host, int(self.port), timeout=60)
        try:
            upstream.request("POST", "/v1/chat/completions", raw, {"Content-Type": "application/json"})
            answer = upstream.getresponse()
            return answer.status, answer.read()
        finally:
            upstream.close()

    @contextmanager
    def running(self) -> Iterator[str]:
        """The proxy's address."""
        proxy = self

        class Through(Quiet):
            def do_POST(self) -> None:
                raw = self.body()
                request = request_of(json.loads(raw))
                fault = proxy.fault_of(request)
                with_wait = (("Retry-After", "0.05"),)
                if fault.startswith("429"):
                    return self.give(429, b'{"error": "slow down"}', with_wait if "After" in fault else ())
                if fault == "500":
                    return self.give(500, b"<html>oops</html>")
                if fault in ("broken", "empty"):
                    return self.give(200, b'{"choices": [{"mess' if fault == "broken" else b'{"choices": []}')
                if fault == "reset":
                    self.close_connection = True
                    return None
                status, payload = proxy.ask(raw, request)
                if fault == "cut":
                    self.close_connection = True
                    return self.give(status, payload[:len(payload) // 2], length=len(payload))
                if fault == "slow":
                    time.sleep(SLOW)
                try:
                    self.give(status, payload)
                except OSError:
                    return None
                with proxy._guard:
                    proxy.delivered[request] += fault not in proxy.paid
                return None

        with serving(Through) as address:
            yield address
