"""The endpoint model against a mock transport and a small server on loopback that misbehaves."""

import asyncio
import json
import logging
import math
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx2
import pytest

from dialoom.errors import EndpointError, ModelError
from dialoom.models.base import GREEDY, ChatModel, Sampling, ScoringModel
from dialoom.models.endpoint import EndpointModel, option_weights

CANARY = "sk-canary0123456789"
HELLO = [{"role": "user", "content": "Hello"}]
CHATS = [[{"role": "user", "content": f"number {at}"}] for at in range(8)]
KEYS = [f"key {at}" for at in range(8)]


def answer(text="Oslo.", finish="stop", **more):
    return httpx2.Response(200, json={"choices": [{"message": {"role": "assistant", "content": text},
                                                   "finish_reason": finish, **more}],
                                      "usage": {"prompt_tokens": 7, "completion_tokens": 2}})


class Server:
    """Gives the listed answers in turn (the last one for ever), or what `rule` makes of the request's body."""

    def __init__(self, *answers, rule=None, **settings):
        self.bodies, self.waits, self.answers = [], [], list(answers)
        self.rule = rule
        self.model = EndpointModel("m", base_url="http://server/v1", api_key=CANARY, pause=self.pause,
                                   transport=httpx2.MockTransport(self.handle), **settings)

    async def pause(self, seconds):
        self.waits.append(seconds)

    def handle(self, request):
        self.request = request
        self.bodies.append(json.loads(request.content))
        if self.rule:
            return self.rule(self.bodies[-1])
        found = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(found, Exception):
            raise found
        return found

    def ask(self):
        return self.model.chat([HELLO], Sampling(0.5, top_p=0.9, max_new_tokens=9), ["a"])[0]


def test_a_chat_is_one_request_with_the_sampling_and_a_seed_from_its_key():
    server = Server(answer(" Oslo. \n"))
    assert server.ask().text == "Oslo."
    body = server.bodies[0]
    assert isinstance(body.pop("seed"), int)
    assert body == {"model": "m", "messages": HELLO, "temperature": 0.5, "top_p": 0.9, "max_tokens": 9}
    assert str(server.request.url) == "http://server/v1/chat/completions"
    assert server.request.headers["authorization"] == f"Bearer {CANARY}"
    assert server.model.usage == {"requests": 1, "attempts": 1, "prompt_tokens": 7, "completion_tokens": 2}
    assert isinstance(server.model, ChatModel) and isinstance(server.model, ScoringModel)


def test_replies_keep_the_order_of_the_chats_and_seeds_differ_by_key():
    server = Server(rule=lambda body: answer(body["messages"][0]["content"]))
    assert [reply.text for reply in server.model.chat(CHATS, GREEDY, KEYS)] == [f"number {at}" for at in range(8)]
    assert len({body["seed"] for body in server.bodies}) == 8


def test_a_reply_cut_at_the_limit_says_so_and_top_k_is_sent_only_where_asked_for():
    server = Server(answer("Os", "length"))
    (reply,) = server.model.chat([HELLO], Sampling(top_k=4), ["a"])
    assert reply.finish == "length" and server.bodies[0]["top_k"] == 4


@pytest.mark.parametrize("fault", [
    httpx2.Response(429), httpx2.Response(500, text="<html>oops</html>"), httpx2.Response(503), httpx2.Response(408),
    httpx2.ConnectError("refused"), httpx2.ReadError("reset"), httpx2.RemoteProtocolError("cut short"),
    httpx2.Response(200, text="<html>"), httpx2.Response(200, text='{"choices": [{"mess'),
    httpx2.Response(200, json={"choices": []}), httpx2.Response(200, json={"choices": None}),
    httpx2.Response(200, json=["?"]), httpx2.Response(200, json={"choices": [{"message": "text"}]}),
    answer(None), answer(""), answer("  \n"), answer("<think>and then", "length")])
def test_a_passing_fault_is_retried_and_a_lasting_one_is_a_typed_error(fault):
    server = Server(fault, fault, answer())
    assert server.ask().text == "Oslo."
    assert len(server.bodies) == 3 and len(server.waits) == 2 and all(0 <= wait <= 60 for wait in server.waits)
    server = Server(fault, attempts=4)
    with pytest.raises(EndpointError, match="no usable answer after 4 attempts"):
        server.ask()
    assert len(server.bodies) == 4


def test_a_passing_content_filter_is_asked_again():
    server = Server(answer("half a", "content_filter"), answer())
    assert server.ask().text == "Oslo." and len(server.bodies) == 2


def test_the_server_is_asked_again_when_it_says_so():
    server = Server(httpx2.Response(429, headers={"Retry-After": "17"}), answer())
    assert server.ask().text == "Oslo." and server.waits == [17]
    server = Server(httpx2.Response(503, headers={"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}), answer())
    assert server.ask().text == "Oslo." and server.waits == [0]
    server = Server(httpx2.Response(429, headers={"Retry-After": "86400"}), answer())
    with pytest.raises(EndpointError, match="after 1 attempts"):
        server.ask()
    assert server.waits == []


def test_an_unusable_reply_is_asked_for_with_another_seed_but_a_server_fault_is_not():
    server = Server(httpx2.Response(500), answer(""), answer())
    server.ask()
    seeds = [body["seed"] for body in server.bodies]
    assert seeds[0] == seeds[1] != seeds[2]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_a_refusal_is_not_retried(status):
    server = Server(httpx2.Response(status, json={"error": {"message": "no such model"}}))
    with pytest.raises(EndpointError, match=f"answered {status}: .*no such model"):
        server.ask()
    assert len(server.bodies) == 1


def test_an_empty_purse_is_not_retried():
    server = Server(httpx2.Response(429, json={"error": {"code": "insufficient_quota"}}))
    with pytest.raises(EndpointError, match="insufficient_quota"):
        server.ask()
    assert len(server.bodies) == 1


def test_the_newer_name_of_the_length_limit_is_learnt():
    server = Server(rule=lambda body: answer() if "max_completion_tokens" in body else httpx2.Response(
        400, json={"error": {"message": "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."}}))
    assert server.ask().text == "Oslo."
    server.model.chat([CHATS[0]], GREEDY, ["b"])
    assert ["max_tokens" in body for body in server.bodies] == [True, False, False]


def test_what_was_answered_is_not_paid_for_twice():
    broken = {"chat": CHATS[3]}
    server = Server(rule=lambda body: httpx2.Response(403) if body["messages"] == broken["chat"] else answer())
    with pytest.raises(EndpointError, match="1 of 8 requests failed"):
        server.model.chat(CHATS, GREEDY, KEYS)
    broken["chat"] = None
    assert len(server.model.chat(CHATS, GREEDY, KEYS)) == 8
    assert len(server.bodies) == 9
    kept = {}
    first, second = Server(answer(), answers=kept), Server(answer(), answers=kept)
    assert first.ask() == second.ask() and second.bodies == []
    json.dumps(kept)


def test_the_key_is_in_no_message_record_or_log(caplog):
    caplog.set_level(logging.DEBUG)
    faults = [httpx2.Response(401, json={"error": {"message": f"Incorrect API key provided: {CANARY}."}}),
              httpx2.Response(401, text="Incorrect API key provided: sk-cana********6789"),
              httpx2.Response(500, text=f"Bearer {CANARY}"), httpx2.ConnectError(f"via {CANARY}"),
              httpx2.Response(200, text=f"<b>{CANARY}</b>"), httpx2.Response(400, text=f"{CANARY}")]
    said = []
    for fault in faults:
        kept = {}
        server = Server(fault, attempts=2, answers=kept)
        with pytest.raises(EndpointError) as caught:
            server.ask()
        error = caught.value
        said += [str(error), repr(error), repr(error.__cause__), repr(server.model), json.dumps(kept)]
    everything = "\n".join([*said, caplog.text])
    assert "canary" not in everything and "6789" not in everything
    assert "[key]" in everything and "OPENAI_API_KEY" in everything


def test_openai_itself_needs_a_key_and_a_key_must_look_like_one(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(ModelError, match="OPENAI_API_KEY is not set"):
        EndpointModel("gpt")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-ü" + CANARY)
    with pytest.raises(ModelError, match="characters no key has") as caught:
        EndpointModel("gpt")
    assert CANARY not in str(caught.value)
    monkeypatch.setenv("OPENAI_API_KEY", CANARY + "\n")
    monkeypatch.setenv("OPENAI_BASE_URL", "ftp//nowhere")
    with pytest.raises(EndpointError, match="is not a web address"):
        EndpointModel("gpt").chat([HELLO], GREEDY, ["a"])


def tokens(*pairs):
    return {"logprobs": {"content": [{"token": pairs[0][0], "logprob": pairs[0][1],
                                      "top_logprobs": [{"token": token, "logprob": math.log(share)}
                                                       for token, share in pairs]}]}}


def test_options_are_weighed_by_the_first_tokens_alternatives():
    server = Server(answer("Yes", **tokens((" Yes", 0.5), ("yes", 0.1), ("No", 0.2), ("Well", 0.2))))
    (row,) = server.model.choose([HELLO], ["yes", "no"])
    assert [math.exp(value) for value in row] == pytest.approx([0.75, 0.25])
    assert server.bodies[0]["logprobs"] is True and server.bodies[0]["top_logprobs"] == 20
    assert server.bodies[0]["max_tokens"] == 1


def test_tokens_speak_only_for_the_option_they_tell_apart():
    weigh = lambda *args: [round(math.exp(value), 3) for value in option_weights(*args)]  # noqa: E731
    assert weigh([("A", math.log(0.6)), ("B)", math.log(0.2)), ("Ask", math.log(0.2))], ["A", "B"]) == [0.75, 0.25]
    assert weigh([("agree", math.log(0.3)), ("dis", math.log(0.1)), ("", 0.0)], ["agree", "disagree"]) == [0.75, 0.25]
    assert option_weights([("I", 0.0)], ["I agree", "I disagree"]) is None
    assert option_weights([("Maybe", 0.0)], ["yes", "no"]) is None
    assert weigh([("yes", math.log(0.9)), ("x", math.log(0.1))], ["yes", "no"]) == [0.9, 0.1]


@pytest.mark.parametrize("refuses", [True, False])
def test_without_log_probabilities_the_model_is_asked_for_a_letter(refuses):
    def rule(body):
        if "logprobs" in body:
            return httpx2.Response(400, text="logprobs are not supported") if refuses else answer("B", logprobs=None)
        return answer("B) no" if "A) yes\nB) no" in body["messages"][-1]["content"] else "A")

    server = Server(rule=rule, concurrency=1)
    rows = server.model.choose([CHATS[0], CHATS[1]], ["yes", "no"])
    assert [[round(math.exp(value), 3) for value in row] for row in rows] == [[0.05, 0.95]] * 2
    server.model.choose(CHATS[2:4], ["A", "B"])
    assert "A) A" not in server.bodies[-1]["messages"][-1]["content"]
    assert "logprobs" not in server.bodies[-1] and "logprobs" not in server.bodies[-2]


@pytest.mark.parametrize(("reply", "index"), [
    ("B", 1), ("(A).", 0), ("The answer is: B", 1), ("A dog is an animal", None), ("I would say both", None),
    ("C", None), ("B'", None), ("**B**", 1)])
def test_a_letter_is_read_or_asked_for_again_and_never_guessed(reply, index):
    server = Server(rule=lambda body: answer("?", logprobs=None) if "logprobs" in body else answer(reply), attempts=3)
    if index is None:
        with pytest.raises(EndpointError, match="asked for a letter up to B"):
            server.model.choose([HELLO], ["yes", "no"])
        assert [body["temperature"] for body in server.bodies[1:]] == [0.0, 1.0, 1.0]
    else:
        (row,) = server.model.choose([HELLO], ["yes", "no"])
        assert row.index(max(row)) == index


class Crowded(BaseHTTPRequestHandler):
    """Counts how many requests are open at once; the first attempt of each fails in one of several real ways."""

    protocol_version = "HTTP/1.1"
    lock, open_now, most, seen = threading.Lock(), 0, 0, set()

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][0]["content"]
        with Crowded.lock:
            Crowded.open_now += 1
            Crowded.most = max(Crowded.most, Crowded.open_now)
            fresh = text not in Crowded.seen
            Crowded.seen.add(text)
        time.sleep(0.02)
        fault = int(text.split()[-1]) % 4 if fresh else 3
        try:
            self.reply(fault, text)
        finally:
            with Crowded.lock:
                Crowded.open_now -= 1

    def reply(self, fault, text):
        payload = json.dumps({"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}).encode()
        if fault == 0:
            self.close_connection = True
            return
        self.send_response(500 if fault == 1 else 200)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload[:10] if fault == 2 else payload)
        self.close_connection = fault == 2

    def log_message(self, *args):
        pass


@pytest.fixture
def loopback():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Crowded)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    server.server_close()


async def _no_wait(seconds):
    await asyncio.sleep(0)


def test_a_real_server_that_cuts_connections_is_asked_until_all_is_there_within_the_cap(loopback):
    model = EndpointModel("m", base_url=loopback, concurrency=4, pause=_no_wait)
    chats = [[{"role": "user", "content": f"chat {at}"}] for at in range(24)]
    replies = model.chat(chats, GREEDY, [f"{at}" for at in range(24)])
    assert [reply.text for reply in replies] == [f"chat {at}" for at in range(24)]
    assert 2 <= Crowded.most <= 4
    assert model.usage["requests"] == 24 and model.usage["attempts"] == 24 + 18

    async def in_a_notebook():
        return model.chat([HELLO[:0] + chats[3]], GREEDY, ["again"])

    assert asyncio.run(in_a_notebook())[0].text == "chat 3"


def test_a_server_that_hangs_is_given_up_in_time():
    async def hang(request):
        await asyncio.sleep(30)

    model = EndpointModel("m", base_url="http://server/v1", timeout=0.05, attempts=2, pause=_no_wait,
                          transport=httpx2.MockTransport(hang))
    with pytest.raises(EndpointError, match=r"no answer within 0\.05 s"):
        model.chat([HELLO], GREEDY, ["a"])
