"""What endpoints answered and what it cost: nothing lost, nothing paid twice, never more than the budget."""

import errno
import json
import os
import signal
import stat
import subprocess
import sys
import time

import httpx2
import pytest
from test_endpoint import CANARY, CHATS, HELLO, KEYS, Server, answer, tokens

from dialoom.config import load_config
from dialoom.errors import BudgetError, ConfigError, EndpointError, ModelError, StoreError
from dialoom.models.base import GREEDY, Sampling
from dialoom.models.endpoint import EndpointModel, key_name, load_endpoint
from dialoom.models.endpoint_session import DOWN
from dialoom.models.ledger import ANSWERS, AnswerFile, Ledger, Remembered, Tokens, current, recording, until_done
from dialoom.models.load import in_role, load_model
from dialoom.models.spending import Endpoints

CHOICE = {"message": {"content": "Oslo."}, "finish_reason": "stop"}
MANY = [[{"role": "user", "content": f"question number {at}"}] for at in range(40)]
MANY_KEYS = [f"key {at}" for at in range(40)]


def fill(path, count=5):
    file = AnswerFile(path)
    for at in range(count):
        file.add(f"id{at}", "judge", "m", {**CHOICE, "at": at}, Tokens(10, 2))
    file.close()
    return path


# ------------------------------------------------------------------------------------------------ the file


def test_answers_come_back_and_only_their_owner_may_read_them(tmp_path):
    path = fill(tmp_path / "run" / ANSWERS)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    file = AnswerFile(path)
    assert file.get("id3") == {**CHOICE, "at": 3} and file.get("nobody") is None
    assert file.totals == {("judge", "m", "answers"): 5, ("judge", "m", "read"): 50, ("judge", "m", "written"): 10}


def test_a_torn_last_line_costs_only_itself_wherever_it_was_cut(tmp_path):
    whole = fill(tmp_path / "whole", 3).read_bytes()
    last = whole.rindex(b"\n", 0, len(whole) - 1) + 1
    for cut in range(last, len(whole)):
        path = tmp_path / f"cut{cut}"
        path.write_bytes(whole[:cut])
        file = AnswerFile(path)
        assert [file.get(f"id{at}") is not None for at in range(3)] == [True, True, False]
        file.add("next", "judge", "m", CHOICE, Tokens(1, 1))
        again = AnswerFile(path)
        assert again.get("id1") and again.get("next") == CHOICE
        assert again.totals["judge", "m", "answers"] == 3 + (cut == len(whole) - 1)  # there only its line break lacks
        file.close()
        again.close()


def test_a_flipped_bit_is_never_an_answer(tmp_path):
    whole = fill(tmp_path / "whole", 3).read_bytes()
    for at in range(0, len(whole) - 1, 7):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << (at % 8)
        (tmp_path / "damaged").write_bytes(damaged)
        file = AnswerFile(tmp_path / "damaged")
        found = [file.get(f"id{number}") for number in range(3)]
        assert sum(one is not None for one in found) >= 1 and file.damaged
        assert all(one in (None, {**CHOICE, "at": number}) for number, one in enumerate(found))
        file.close()


WRITER = """
import sys
from dialoom.models.ledger import AnswerFile, Tokens
file = AnswerFile(sys.argv[1])
for at in range(int(sys.argv[3])):
    file.add(f"{sys.argv[2]}-{at}", "judge", "m", {"message": {"content": "x" * 300}, "finish_reason": "stop"},
             Tokens(10, 2))
    print(at, flush=True)
"""


def writer(path, name, count):
    return subprocess.Popen([sys.executable, "-c", WRITER, str(path), name, str(count)], stdout=subprocess.PIPE,
                            text=True)


@pytest.mark.slow
def test_what_was_written_before_a_kill_is_there_and_several_may_write(tmp_path):
    path = tmp_path / ANSWERS
    for kill in range(3):
        process = writer(path, f"killed{kill}", 100_000)
        for _ in range(50 + 30 * kill):
            last = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        process.wait()
        file = AnswerFile(path)
        assert all(file.get(f"killed{kill}-{at}") for at in range(last + 1))
        file.close()
    together = [writer(path, f"writer{number}", 100) for number in range(3)]
    for process in together:
        process.communicate()
    file = AnswerFile(path)
    assert all(file.get(f"writer{number}-{at}") for number in range(3) for at in range(100))
    assert file.damaged <= 3  # one torn line a kill at most


def test_a_full_disk_stops_the_batch_and_what_was_paid_for_is_safe(tmp_path, monkeypatch):
    server, real, written = Server(answer(), concurrency=2), os.write, []

    def fills_up(handle, data):
        if b'"role":"' in bytes(data) and len(written) == 3:
            real(handle, bytes(data)[:9])
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(handle) if b'"role":"' in bytes(data) else None
        return real(handle, data)

    monkeypatch.setattr(os, "write", fills_up)
    with recording(Ledger.of(tmp_path)), pytest.raises(StoreError, match="No space left"):
        server.model.chat(MANY, GREEDY, MANY_KEYS)
    assert len(server.bodies) <= 6  # the three, the one that failed, and what was in flight
    monkeypatch.setattr(os, "write", real)
    before = len(server.bodies)
    with recording(Ledger.of(tmp_path)):
        server.model.chat(MANY, GREEDY, MANY_KEYS)
    assert len(server.bodies) == before + 37 and AnswerFile(tmp_path / ANSWERS).damaged == 0


# ------------------------------------------------------------------------------------------------ paid once


def test_a_new_process_pays_only_for_what_was_not_answered(tmp_path):
    broken = {"chat": CHATS[3]}

    def rule(body):
        return httpx2.Response(403) if body["messages"] == broken["chat"] else answer()

    with recording(Ledger.of(tmp_path)), pytest.raises(EndpointError, match="1 of 8 requests failed"):
        Server(rule=rule).model.chat(CHATS, GREEDY, KEYS)
    broken["chat"] = None
    server, ledger = Server(rule=rule), Ledger.of(tmp_path)
    with recording(ledger):
        assert len(server.model.chat(CHATS, GREEDY, KEYS)) == 8
    assert [body["messages"] for body in server.bodies] == [CHATS[3]]
    assert ledger.spent() == (8 * 9, 0.0)


@pytest.mark.parametrize("change", [
    {"sampling": Sampling(0.5)}, {"sampling": Sampling(max_new_tokens=9)}, {"sampling": Sampling(top_p=0.5)},
    {"sampling": Sampling(top_k=3)}, {"key": "another"}, {"chat": CHATS[0]}, {"model": "n"}])
def test_another_model_message_sampling_or_sample_is_another_request(tmp_path, change):
    server = Server(answer())
    with recording(Ledger.of(tmp_path)):
        server.model.chat([HELLO], Sampling(), ["a"])
        server.model.chat([HELLO], Sampling(), ["a"])
        assert len(server.bodies) == 1
        server.model.model = change.get("model", "m")
        server.model.chat([change.get("chat", HELLO)], change.get("sampling", Sampling()), [change.get("key", "a")])
    assert len(server.bodies) == 2


def test_the_servers_name_for_the_length_limit_is_no_part_of_the_request(tmp_path):
    def rule(body):
        return answer() if "max_completion_tokens" in body else httpx2.Response(
            400, json={"error": {"message": "Use 'max_completion_tokens' instead of 'max_tokens'."}})

    with recording(Ledger.of(tmp_path)):
        Server(rule=rule, concurrency=1).model.chat(CHATS, GREEDY, KEYS)
    again = Server(rule=rule)
    with recording(Ledger.of(tmp_path)):
        again.model.chat(CHATS, GREEDY, KEYS)
    assert again.bodies == []


def test_an_unusable_reply_that_was_paid_for_is_not_bought_again(tmp_path):
    first = Server(answer(""), httpx2.Response(400))
    with recording(Ledger.of(tmp_path)), pytest.raises(EndpointError):
        first.ask()
    second, ledger = Server(answer()), Ledger.of(tmp_path)
    with recording(ledger):
        assert second.ask().text == "Oslo."
    assert second.bodies[0]["seed"] == first.bodies[1]["seed"] != first.bodies[0]["seed"]
    assert ledger.rows()[0]["answers"] == 2  # both were paid for, and count


def test_the_same_question_twice_in_a_batch_is_asked_once():
    server = Server(answer("Yes", **tokens(("Yes", 0.8), ("No", 0.2))))
    rows = server.model.choose([HELLO, CHATS[0], HELLO, HELLO], ["yes", "no"])
    assert len(server.bodies) == 2 and rows[0] == rows[2] == rows[3]


def test_runs_that_share_a_cache_pay_once_between_them(tmp_path):
    settings = Endpoints(cache=str(tmp_path / "cache"))
    for run, paid in (("one", 8), ("other", 0)):
        server, ledger = Server(answer()), Ledger.of(tmp_path / run, settings)
        with recording(ledger):
            server.model.chat(CHATS, GREEDY, KEYS)
        assert len(server.bodies) == paid and ledger.spent()[0] == paid * 9


def test_a_command_without_a_run_folder_goes_on_where_it_stopped_and_then_forgets(tmp_path, monkeypatch):
    monkeypatch.setenv("DIALOOM_CACHE", str(tmp_path / "cache"))
    told = []
    server = Server(*[answer()] * 3, httpx2.Response(401), answer(), concurrency=1)
    with pytest.raises(EndpointError), until_done(Endpoints(), "eval", "x", log=told.append):
        server.model.chat(CHATS, GREEDY, KEYS)
    assert len(list((tmp_path / "cache").iterdir())) == 1 and len(server.bodies) == 8
    for paid in (1, 8):  # what was missing; and once it is through, everything anew
        again = Server(answer())
        with until_done(Endpoints(), "eval", "x", log=told.append):
            again.model.chat(CHATS, GREEDY, KEYS)
        assert len(again.bodies) == paid and list((tmp_path / "cache").iterdir()) == []
    assert told[0] == "model: m, 7 answers, 49 tokens read, 14 written"


# ------------------------------------------------------------------------------------------------ cost


def test_cost_is_accounted_by_role_and_written_down(tmp_path):
    ledger = Ledger.of(tmp_path, Endpoints(prices=("m=1000/2000", "other/one=1/1")))
    model = Server(answer()).model
    with recording(ledger):
        in_role(model, "partner").chat(CHATS, GREEDY, KEYS)
        in_role(model, "judge").chat(CHATS[:2], GREEDY, ["j0", "j1"])
    assert ledger.rows() == [
        {"role": "partner", "model": "m", "answers": 8, "read": 56, "written": 16, "dollars": pytest.approx(0.088)},
        {"role": "judge", "model": "m", "answers": 2, "read": 14, "written": 4, "dollars": pytest.approx(0.022)}]
    ledger.write(tmp_path / "usage.json")
    ledger.write(tmp_path / "usage.json")
    assert json.loads((tmp_path / "usage.json").read_text())["dollars"] == pytest.approx(0.11)
    assert ledger.told()[-1] == "all endpoints: 90 tokens, 0.1100 dollars"
    assert model.role == "model" and current() is None


def test_where_a_server_counts_no_tokens_they_are_estimated():
    ledger = Ledger(Remembered())
    with recording(ledger):
        Server(httpx2.Response(200, json={"choices": [{"message": {"content": "word " * 8}}]})).ask()
    assert ledger.rows()[0]["read"] == 1 and ledger.rows()[0]["written"] == 10


def big(body):
    """An answer that costs as much as its request allows."""
    return httpx2.Response(200, json={
        "choices": [{"message": {"content": "Oslo."}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": len(body["messages"][0]["content"]), "completion_tokens": body["max_tokens"]}})


@pytest.mark.parametrize(("settings", "larger", "cap", "unit"), [
    ({"token_budget": 1000}, {"token_budget": 10_000}, 1000, 0),
    ({"budget": 0.01, "prices": ("m=1/20",)}, {"budget": 1, "prices": ("m=1/20",)}, 0.01, 1)])
def test_the_budget_is_never_exceeded_and_a_larger_one_goes_on(tmp_path, settings, larger, cap, unit):
    sampling, ledger = Sampling(max_new_tokens=20), Ledger.of(tmp_path, Endpoints(**settings))
    first = Server(rule=big, concurrency=7)
    with recording(ledger), pytest.raises(BudgetError, match=r"the budget is spent: .* larger --endpoint"):
        first.model.chat(MANY, sampling, MANY_KEYS)
    assert 0.7 * cap < ledger.spent()[unit] <= cap and 10 < len(first.bodies) < 40
    for _ in range(2):  # the same budget again stops at once and costs nothing
        same = Server(rule=big)
        with recording(Ledger.of(tmp_path, Endpoints(**settings))), pytest.raises(BudgetError):
            same.model.chat(MANY, sampling, MANY_KEYS)
        assert same.bodies == []
    second = Server(rule=big)
    with recording(Ledger.of(tmp_path, Endpoints(**larger))):
        assert len(second.model.chat(MANY, sampling, MANY_KEYS)) == 40
    assert len(first.bodies) + len(second.bodies) == 40


def test_a_budget_in_dollars_needs_a_price_before_anything_is_sent(tmp_path):
    server = Server(answer())
    with recording(Ledger.of(tmp_path, Endpoints(budget=1, prices=("n=1/1",)))), \
            pytest.raises(ConfigError, match=r"give --endpoint\.prices m=<read>/<written>"):
        server.ask()
    assert server.bodies == []


@pytest.mark.parametrize("price", ["m", "m=1", "=1/2", "m=a/b", "m=-1/2", "m=1/inf", "m=nan/1"])
def test_a_price_that_cannot_be_read_is_refused(price):
    with pytest.raises(ConfigError, match="prices: expected <model>=<read>/<written>"):
        load_config(Endpoints, overrides={"prices": ("good=1/2", price)})


# ------------------------------------------------------------------------------------------------ manners


def test_a_server_that_is_down_is_not_asked_a_thousand_times(tmp_path):
    server = Server(httpx2.ConnectError("refused"), attempts=2, concurrency=4)
    with recording(Ledger.of(tmp_path)), pytest.raises(EndpointError, match="40 of 40 requests failed"):
        server.model.chat(MANY, GREEDY, MANY_KEYS)
    assert 2 * DOWN <= len(server.bodies) <= 2 * DOWN + 40 + 4  # each is tried once before anyone gives up
    assert len([body for body in server.bodies if body["messages"] == MANY[39]]) <= 1


def test_all_wait_when_the_server_asks_one_to_wait():
    server = Server(httpx2.Response(429, headers={"Retry-After": "30"}), answer(), concurrency=1)
    server.model.chat(CHATS, GREEDY, KEYS)
    assert len(server.waits) == 8 and all(29 < wait <= 30 for wait in server.waits)


def test_faults_are_counted_by_kind(tmp_path):
    ledger = Ledger.of(tmp_path)
    with recording(ledger):
        Server(httpx2.Response(429), httpx2.Response(429), httpx2.ReadError("cut"), answer(""), answer()).ask()
    assert ledger.faults == {"status 429": 2, "ReadError": 1, "no text": 1}
    assert ledger.told()[-1] == "tried again: 2 x status 429, 1 x ReadError, 1 x no text"


def test_a_key_goes_only_to_the_server_it_was_given_for(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://mine/v1")
    monkeypatch.setenv("DIALOOM_KEY_API_EXAMPLE_COM", "other")

    def sent_to(model):
        seen = []
        model._transport = httpx2.MockTransport(lambda request: seen.append(request) or answer())
        model.chat([HELLO], GREEDY, ["a"])
        return str(seen[0].url), seen[0].headers.get("authorization")

    assert sent_to(load_model("openai:m")) == ("http://mine/v1/chat/completions", f"Bearer {CANARY}")
    assert sent_to(load_model("openai:m@http://mine/v1/"))[1] == f"Bearer {CANARY}"
    assert sent_to(load_endpoint("a/b:c@https://api.example.com/v1")) == (
        "https://api.example.com/v1/chat/completions", "Bearer other")
    assert sent_to(load_endpoint("m@http://localhost:8000/v1"))[1] is None
    with recording(Ledger(settings=Endpoints(base_url="https://elsewhere/v1", concurrency=3))):
        model = load_endpoint("m")
    assert sent_to(model) == ("https://elsewhere/v1/chat/completions", None) and model.concurrency == 3
    assert model.name == "openai:m" and key_name("https://api.example.com:8/v1") == "DIALOOM_KEY_API_EXAMPLE_COM"
    with pytest.raises(ModelError, match="holds a user or a password") as caught:
        load_endpoint(f"m@https://me:{CANARY}@host/v1")
    assert CANARY not in str(caught.value)


def test_the_key_is_in_no_file_even_where_a_reply_repeats_it(tmp_path):
    ledger = Ledger.of(tmp_path)
    with recording(ledger):
        reply = Server(httpx2.Response(500, text=f"Bearer {CANARY}"), answer(f"Your key is {CANARY}.")).ask()
        with pytest.raises(EndpointError):
            Server(httpx2.Response(401, text=CANARY)).model.chat([CHATS[0]], GREEDY, ["b"])
    ledger.write(tmp_path / "usage.json")
    assert reply.text == "Your key is [key]."
    assert "canary" not in "".join(file.read_text() for file in tmp_path.iterdir())


def test_an_answer_with_odd_log_probabilities_is_kept_and_read(tmp_path):
    endless = b'{"choices": [{"message": {"content": "Yes"}, "logprobs": {"content": [{"top_logprobs": [' \
              b'{"token": "Yes", "logprob": 0.0}, {"token": "No", "logprob": -Infinity}]}]}}]}'
    with recording(Ledger.of(tmp_path)):
        (row,) = Server(httpx2.Response(200, content=endless)).model.choose([HELLO], ["yes", "no"])
    assert row[0] > row[1] and json.loads((tmp_path / ANSWERS).read_text())
    other = Server(rule=lambda body: answer("B", logprobs={"top_logprobs": [{"Yes": -0.1}]}))
    assert other.model.choose([HELLO], ["yes", "no"])[0][1] > -0.1


def test_many_are_in_flight_at_once():
    import asyncio

    open_now, most, latency = [0], [0], 0.1

    async def slow(request):
        open_now[0] += 1
        most[0] = max(most[0], open_now[0])
        await asyncio.sleep(latency)
        open_now[0] -= 1
        return answer()

    model = EndpointModel("m", base_url="http://server/v1", concurrency=10, transport=httpx2.MockTransport(slow))
    start = time.monotonic()
    model.chat(MANY, GREEDY, MANY_KEYS)
    assert most[0] == 10 and time.monotonic() - start < 40 * latency / 2  # one after the other: 4 seconds
