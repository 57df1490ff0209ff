"""Faults on the way to a server, and a run killed in the middle: nothing is lost and nothing is paid for twice."""

import asyncio
import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest
from fault_proxy import FAULTS, PAID, SLOW, Proxy, request_of, stub

from dialoom.judge import LogitComparer, LogitJudge
from dialoom.models.base import GREEDY, Sampling
from dialoom.models.endpoint import EndpointModel
from dialoom.models.ledger import ANSWERS, AnswerFile, Ledger, recording

CHATS = [[{"role": "user", "content": f"question {at}"}] for at in range(48)]
KEYS = [f"key {at}" for at in range(48)]


async def short(seconds):
    """Waits are waited, but shorter, so that a test is not as patient as a run."""
    await asyncio.sleep(min(seconds, 0.05))


def echo(body):
    return f"answer to {body['messages'][-1]['content']}"


@pytest.mark.slow
def test_whatever_happens_on_the_way_every_answer_comes_once(tmp_path):
    with stub(echo) as (upstream, asked):
        proxy = Proxy(upstream)
        with proxy.running() as address, recording(Ledger.of(tmp_path)) as ledger:
            model = EndpointModel("m", base_url=address, concurrency=8, timeout=SLOW / 2, pause=short)
            for _ in range(2):  # the second time everything stands in the file
                replies = model.chat(CHATS, Sampling(), KEYS)
                assert [reply.text for reply in replies] == [f"answer to question {at}" for at in range(48)]
    assert set(proxy.met) == set(FAULTS) and min(proxy.met.values()) == 3
    assert len(proxy.delivered) == 48 and set(proxy.delivered.values()) == {1}
    lost = sum(proxy.met[fault] for fault in PAID)  # the server did these twice: their first answers never arrived
    assert sum(asked.values()) == 48 + lost and max(asked.values()) == 2
    assert sum(ledger.faults.values()) == sum(proxy.met.values()) == 24
    assert ledger.rows()[0]["answers"] == 48 and AnswerFile(tmp_path / ANSWERS).totals["model", "m", "answers"] == 48


BATCH = """
import sys
from dialoom.models.base import Sampling
from dialoom.models.endpoint import EndpointModel
from dialoom.models.ledger import Ledger, recording
model = EndpointModel("m", base_url=sys.argv[1], concurrency=4)
with recording(Ledger.of(sys.argv[2])):
    chats = [[{"role": "user", "content": f"question {at}"}] for at in range(48)]
    print(len(model.chat(chats, Sampling(), [f"key {at}" for at in range(48)])))
"""


@pytest.mark.slow
def test_a_killed_batch_pays_only_for_what_was_in_flight(tmp_path):
    with stub(echo, delay=0.05) as (address, asked):
        command = [sys.executable, "-c", BATCH, address, str(tmp_path)]
        for kills in (1, 2, 3):
            process = subprocess.Popen(command, stdout=subprocess.PIPE)
            until, late = sum(asked.values()) + 9, time.monotonic() + 60
            while sum(asked.values()) < until and time.monotonic() < late:
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert sum(asked.values()) >= until, "it was killed before it had asked anything"
            assert Ledger.of(tmp_path).rows()[0]["answers"] >= sum(asked.values()) - 4 * kills
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout == "48\n" and len(asked) == 48
        assert sum(asked.values()) <= 48 + 3 * 4 and max(asked.values()) <= 2 + 1
        before = sum(asked.values())
        subprocess.run(command, capture_output=True, check=True)
        assert sum(asked.values()) == before


# ------------------------------------------------------------------------------------------------ judges


def question(dialogue, *texts):
    return [{"role": "user", "content": f"{dialogue}: {' or '.join(texts)}?"}]


def test_logit_judges_read_the_log_probabilities_of_a_server():
    def top(body):
        sure = 0.9 if "good" in body["messages"][0]["content"] else 0.2
        return {" Yes": math.log(sure * 0.8), "yes": math.log(sure * 0.2), "No": math.log(1 - sure)}

    with stub(lambda body: "Well", top=top) as (address, _):
        judge = LogitJudge("good", EndpointModel("m", base_url=address), question)
        scores = [verdict.scores["good"] for verdict in judge.judge(["a good one", "a bad one"])]
    assert scores == pytest.approx([0.9, 0.2])


def test_without_them_they_ask_for_a_letter_and_the_first_answer_tells_so():
    def letters(body):
        said = body["messages"][0]["content"]
        return "A" if "logprobs" in body or said.index("long text") < said.index("short") else "B"

    with stub(letters) as (address, asked):
        model = EndpointModel("m", base_url=address, concurrency=1)
        comparer = LogitComparer("prefers", model, question)
        assert comparer.compare(["one", "two"], ["long text", "short"], ["short", "long text"]) == ["left", "right"]
        assert comparer.compare(["three"], ["long text"], ["short"]) == ["left"]
    assert sum(asked.values()) == 1 + 6  # one try for log-probabilities; then a letter for each order of each pair


# ------------------------------------------------------------------------------------------------ a whole run


def grows(body):
    """A list of two new texts for each request, as a model that invents people would write it."""
    name = "".join(chr(ord("a") + int(digit, 16)) for digit in request_of(body)[:8])
    return json.dumps([f"She {name}s {word} {name[::-1]}." for word in ("quietly mends", "sells rare")])


def personas(out, address, *flags, env=(), **options):
    command = [sys.executable, "-m", "dialoom", "personas", "grow", "--model", "openai:inventor", "--out", str(out),
               "--batch", "4", "--rounds", "6", "--profiles", "0", "--personalities", "0", "--saturation", "0",
               "--max-new-tokens", "60", *flags]
    environment = {**os.environ, "OPENAI_BASE_URL": address, "OPENAI_API_KEY": "sk-canary0123456789", **dict(env)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, **options)


@pytest.mark.slow
def test_a_run_says_what_it_will_ask_stops_at_its_budget_and_goes_on_with_a_larger_one(tmp_path):
    out, prices = tmp_path / "run", ("--endpoint.prices", "inventor=10/20")
    with stub(grows) as (address, asked):
        plan = personas(out, address, "--dry-run", *prices)
        assert plan.returncode == 0 and "model: openai:inventor, at most 48 requests" in plan.stdout, plan.stderr
        no_price = personas(out, address, "--endpoint.budget", "1")
        assert no_price.returncode == 2 and "needs the price of inventor (model)" in no_price.stderr
        assert not asked and not out.exists()
        stopped = personas(out, address, *prices, "--endpoint.budget", "0.08")
        assert stopped.returncode == 3 and "stopped: the budget is spent" in stopped.stderr, stopped.stderr
        assert "Traceback" not in stopped.stderr and "more than the budget of 0.08" in stopped.stdout
        usage = json.loads((out / "usage.json").read_text())
        assert 0.03 < usage["dollars"] <= 0.08 and usage["rows"][0]["answers"] == sum(asked.values())
        done = personas(out, address, *prices, "--endpoint.budget", "100")
        assert done.returncode == 0, done.stderr
        usage = json.loads((out / "usage.json").read_text())
        assert usage["rows"][0]["answers"] == sum(asked.values()) and set(asked.values()) == {1}
        assert f"{usage['rows'][0]['answers']} answers" in done.stdout and (out / "personas.jsonl").exists()
        unbroken = personas(tmp_path / "unbroken", address, *prices)
        assert unbroken.returncode == 0, unbroken.stderr
    assert (tmp_path / "unbroken" / "personas.jsonl").read_text() == (out / "personas.jsonl").read_text()
    said = stopped.stdout + stopped.stderr + done.stdout + done.stderr
    files = "".join(file.read_text(errors="replace") for file in out.rglob("*") if file.is_file())
    assert "canary" not in said + files


def test_resume_with_a_larger_budget_goes_on_from_the_folder_and_pays_nothing_twice(tmp_path, monkeypatch, capsys):
    from dialoom.cli import main

    run = str(tmp_path / "run")
    command = ["personas", "grow", "--model", "openai:inventor", "--out", run, "--batch", "4", "--rounds", "3",
               "--profiles", "0", "--personalities", "0", "--saturation", "0", "--max-new-tokens", "60",
               "--endpoint.prices", "inventor=10/20", "--endpoint.budget", "0.03"]
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary0123456789")
    with stub(grows) as (address, asked):
        monkeypatch.setenv("OPENAI_BASE_URL", address)
        assert main(command) == 3
        paid = sum(asked.values())
        assert paid and "the budget is spent" in capsys.readouterr().err
        assert main(["resume", run]) == 3 and sum(asked.values()) == paid  # as before: nothing is asked
        assert main(["resume", run, "--token-budget", "100"]) == 3 and sum(asked.values()) == paid
        assert main(["resume", run, "--budget", "-1"]) == 2
        capsys.readouterr()
        assert main(["resume", run, "--budget", "100"]) == 0
        assert sum(asked.values()) > paid and set(asked.values()) == {1}
    usage = json.loads((tmp_path / "run" / "usage.json").read_text())
    assert usage["rows"][0]["answers"] == sum(asked.values()) and usage["dollars"] > 0.03
    assert (tmp_path / "run" / "personas.jsonl").exists()


@pytest.mark.slow
@pytest.mark.parametrize("command", [
    ["pbt", "--model", "openai:x"], ["ditto", "--model", "openai:x"], ["aloe", "--model", "openai:x"],
    ["ideas", "--model", "openai:x"], ["ideas", "--simulator", "openai:x"],
    ["ideas", "--simulator", "openai:x", "--weighed", "0", "--arms", "ideas", "plain_trained"]])
def test_training_an_endpoint_is_refused_before_anything_is_asked(tmp_path, command):
    with stub(echo) as (address, asked):
        done = subprocess.run([sys.executable, "-m", "dialoom", *command, "--out", str(tmp_path / "run")], text=True,
                              capture_output=True, env={**os.environ, "OPENAI_BASE_URL": address})
    assert done.returncode == 2 and ("cannot be trained" in done.stderr or "--weighed 0" in done.stderr), done.stderr
    assert "Traceback" not in done.stderr and not asked


def test_greedy_and_sampled_requests_differ_and_ask_for_what_was_meant():
    seen = []
    with stub(lambda body: seen.append(body) or "x") as (address, _):
        model = EndpointModel("m", base_url=address)
        model.chat([CHATS[0]], GREEDY, ["a"])
        model.chat([CHATS[0]], Sampling(0.7, 0.9, 5, 12), ["a"])
    assert [(body["temperature"], body["top_p"], body.get("top_k"), body["max_tokens"]) for body in seen] == [
        (0.0, 1.0, None, 80), (0.7, 0.9, 5, 12)]
