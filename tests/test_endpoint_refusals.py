"""What one chat brings upon itself (a filter, a refusal, nothing readable) stops no run; what concerns all does."""

import json
import math

import httpx2
import pytest
from fault_proxy import stub
from hypothesis import given, settings
from hypothesis import strategies as some
from test_endpoint import CANARY, CHATS, HELLO, KEYS, Server, answer, tokens

from dialoom.cli import main
from dialoom.config import load_config
from dialoom.dialogue import Dialogue, DialogueTree, Scenario, Turn
from dialoom.errors import ConfigError, EndpointError, ModelError
from dialoom.judge import LogitComparer, LogitJudge
from dialoom.models.base import GREEDY, Sampling
from dialoom.models.endpoint import EndpointModel, load_endpoint, spellings
from dialoom.models.endpoint_session import DOWN
from dialoom.models.ledger import Ledger, recording
from dialoom.models.placed import Placed
from dialoom.models.spending import Endpoints
from dialoom.recipes.planned import Role, told
from dialoom.simulate import grow, speaking
from dialoom.store import TreeLog, read_skips

MANY = [[{"role": "user", "content": f"question number {at}"}] for at in range(60)]
MANY_KEYS = [f"key {at}" for at in range(60)]
LONG = "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens."
FILTERED = "The response was filtered due to the prompt triggering our content management policy."


def error(status, message="", **more):
    return httpx2.Response(status, json={"error": {"message": message, **more}})


def but(bad, place=3):
    """A server that answers all chats but one, which always meets `bad`."""
    return lambda body: bad(body) if body["messages"][-1]["content"].startswith(f"number {place}") else answer("B")


# ------------------------------------------------------------------------------------------------ one chat


@pytest.mark.parametrize(("bad", "reason", "asked"), [
    (lambda body: answer("half a", "content_filter"), "content filter", 6),
    (lambda body: answer(None, "content_filter"), "content filter", 6),
    (lambda body: answer(""), "no text", 6),
    (lambda body: error(400, FILTERED, code="content_filter"), "content filter", 1),
    (lambda body: error(403, "Your input was flagged by moderation"), "content filter", 1),
    (lambda body: error(400, LONG), "too long for the server", 1),
    (lambda body: httpx2.Response(413), "too long for the server", 1),
    (lambda body: error(400, "You exceeded the tokens of your daily quota"), "status 400", 1),
    (lambda body: error(422, "no"), "status 422", 1)])
def test_a_chat_that_never_succeeds_is_an_empty_completion_with_a_reason_and_is_paid_for_once(
        tmp_path, bad, reason, asked):
    first, ledger = Server(rule=but(bad)), Ledger.of(tmp_path)
    with recording(ledger):
        replies = first.model.chat(CHATS, GREEDY, KEYS)
    assert [reply.text for reply in replies] == ["B"] * 3 + [""] + ["B"] * 4
    assert [reply.finish for reply in replies] == ["stop"] * 3 + [f"endpoint: {reason}"] + ["stop"] * 4
    assert len(first.bodies) == 7 + asked
    assert f"left out, since nothing came that could be used: 1 x {reason}" in ledger.told()
    second, again = Server(rule=but(bad)), Ledger.of(tmp_path)
    with recording(again):  # the rest of a run that was killed: this chat alone, known to nobody in this process
        assert second.model.chat([CHATS[3]], GREEDY, [KEYS[3]])[0] == replies[3]
    assert len(second.bodies) == (0 if asked > 1 else 1) and again.spent() == ledger.spent()


def test_what_a_server_calls_its_policy_needs_no_proof_that_it_serves_others():
    assert Server(error(400, FILTERED)).ask().finish == "endpoint: content filter"
    server = Server(error(400, FILTERED))
    assert {one.finish for one in server.model.chat(MANY, GREEDY, MANY_KEYS)} == {"endpoint: content filter"}
    assert len(server.bodies) == 60


@pytest.mark.parametrize("bad", [error(400, "unknown field"), error(400, LONG), answer(""), error(422)])
def test_where_nothing_was_ever_served_it_is_no_matter_of_one_chat(tmp_path, bad):
    for _ in range(2):  # the same command again
        server = Server(bad, concurrency=2)
        with recording(Ledger.of(tmp_path)), pytest.raises(EndpointError, match="60 of 60 requests failed"):
            server.model.chat(MANY, GREEDY, MANY_KEYS)
        assert len(server.bodies) <= 6 * (DOWN + 2)


def test_a_server_that_begins_to_refuse_everything_stops_the_run():
    state = {"good": True}
    server = Server(rule=lambda body: answer() if state["good"] else error(400, "model unloaded"), concurrency=1)
    server.model.chat(CHATS, GREEDY, KEYS)
    state["good"] = False
    with pytest.raises(EndpointError, match="model unloaded"):
        for at in range(DOWN + 1):  # few at a time, as at the end of a run
            server.model.chat([MANY[at]], GREEDY, [MANY_KEYS[at]])


@pytest.mark.parametrize(("status", "hint"), [
    (401, "check OPENAI_API_KEY"), (403, "check OPENAI_API_KEY"), (404, "the address usually ends in /v1")])
def test_what_concerns_all_chats_is_an_error_that_says_what_to_do(status, hint):
    server = Server(rule=but(lambda body: error(status, "no such thing")))
    with pytest.raises(EndpointError, match="1 of 8 requests failed; what was answered is kept") as caught:
        server.model.chat(CHATS, GREEDY, KEYS)
    assert hint in str(caught.value)


def test_an_unreadable_letter_is_no_verdict():
    def question(dialogue, *texts):
        return [{"role": "user", "content": " ".join([dialogue.scenario.opening, *texts])}]

    def letters(body):
        if "logprobs" in body:
            return answer("?", logprobs=None)
        return answer("It depends." if "number 1" in body["messages"][0]["content"] else "A")

    dialogues = [Dialogue(Scenario(str(at), f"number {at}"), (Turn("t", None, "a", "x"),)) for at in range(3)]
    server = Server(rule=letters)
    verdicts = LogitJudge("good", server.model, question).judge(dialogues)
    assert [verdict and round(verdict.scores["good"], 2) for verdict in verdicts] == [0.95, None, 0.95]
    assert LogitComparer("better", server.model, question).compare(dialogues, "xxx", "yyy") == ["tie", None, "tie"]


def test_a_judge_that_never_says_a_letter_stops_the_run_with_the_reason(tmp_path):
    server = Server(rule=lambda body: answer("<think>Let me", "length"), concurrency=4)
    with recording(Ledger.of(tmp_path)), pytest.raises(EndpointError, match=r"switch that off \(--endpoint\.extra"):
        server.model.choose(MANY, ["yes", "no"])
    assert len(server.bodies) <= 6 * (DOWN + 4)


def test_a_dialogue_of_which_a_turn_is_refused_ends_there_is_counted_and_costs_nothing_more(tmp_path):
    trees = [DialogueTree(Scenario(f"s{at}", f"number {at}")) for at in range(4)]
    skips = {}
    for attempt in range(2):
        server, ledger = Server(rule=but(lambda body: answer("", "content_filter"), 2)), Ledger.of(tmp_path)
        with TreeLog(tmp_path / "trees.jsonl") as log, recording(ledger):
            trees = [log.trees().get(tree.id, tree) for tree in trees]
            grow(trees, [speaking("m", server.model, Sampling())], max_turns=3, seed=1, sink=log)
        assert [len(tree) for tree in trees] == [3, 3, 0, 3] and bool(server.bodies) is not bool(attempt)
        skips[attempt] = [(skip.tree, skip.reason) for skip in read_skips(tmp_path / "trees.jsonl")]
    assert skips[0] == skips[1] == [("s2", "endpoint: content filter")]
    assert ledger.unusable == {"content filter": 1}


def test_a_run_with_a_request_that_is_always_refused_ends_and_says_so(tmp_path, monkeypatch, capsys):
    def grows(body):
        name = "".join(chr(ord("a") + int(digit)) for digit in str(body["seed"]))
        return json.dumps([f"She {name}s mends.", f"She sells {name}s."])

    def refuse(body):
        refused.add(body["seed"]) if not refused else None
        return (400, FILTERED) if body["seed"] in refused else (200, "")

    refused = set()
    with stub(grows, refuse=refuse) as (address, _):
        monkeypatch.setenv("OPENAI_BASE_URL", address)
        assert main(["personas", "grow", "--model", "openai:inventor", "--out", str(tmp_path / "run"), "--batch", "4",
                     "--rounds", "3", "--profiles", "0", "--personalities", "0", "--saturation", "0"]) == 0
    said = capsys.readouterr()
    assert "left out, since nothing came that could be used: 1 x content filter" in said.out
    assert json.loads((tmp_path / "run" / "usage.json").read_text())["left_out"] == {"content filter": 1}


# ------------------------------------------------------------------------------------------------ waits


@pytest.mark.parametrize("concurrency", [1, 16])
@pytest.mark.parametrize("status", [429, 503])
def test_nobody_waits_a_day(concurrency, status):
    server = Server(httpx2.Response(status, headers={"Retry-After": "86400"}), concurrency=concurrency)
    with pytest.raises(EndpointError, match=r"60 of 60 requests failed; .*asks to wait 86,400 s"):
        server.model.chat(MANY, GREEDY, MANY_KEYS)
    assert server.waits == [] and len(server.bodies) <= 16


HEADERS = some.one_of(
    some.sampled_from(["inf", "nan", "-inf", "-5", "1e999", "9" * 400, "", "Wed, 21 Oct 2015 07:28:00 GMT",
                       "Wed, 21 Oct 9999 07:28:00", "Fri, 31 Dec 99999999999999999999 23:59:59 GMT", "soon"]),
    some.floats().map(str), some.text(some.characters(min_codepoint=32, max_codepoint=126), max_size=40))


@settings(max_examples=60, deadline=None)
@given(HEADERS)
def test_whatever_stands_in_retry_after_no_wait_is_longer_than_the_patience(header):
    server = Server(httpx2.Response(429, headers={"Retry-After": header}), httpx2.Response(429), answer(),
                    concurrency=1, patience=30)
    try:
        assert len(server.model.chat(CHATS, GREEDY, KEYS)) == 8
    except EndpointError as wrong:
        assert "asks to wait" in str(wrong)
    assert all(0 <= wait <= 30 for wait in server.waits)


@pytest.mark.parametrize("header", ["inf", "nan", "1e999", "9" * 400])
def test_a_wait_that_is_no_number_is_as_if_none_was_asked_for(header):
    server = Server(httpx2.Response(429, headers={"Retry-After": header}), answer())
    assert server.ask().text == "Oslo." and 0 <= server.waits[0] <= 60


# ------------------------------------------------------------------------------------------------ fields


@pytest.mark.parametrize("message", [
    "`top_p` must be > 0.0 and < 1.0", "`temperature` and `top_p` cannot both be specified for this model."])
def test_a_top_p_of_one_is_left_out_where_it_is_refused_and_nobody_need_know(message):
    ledger, server = Ledger(), Server(rule=lambda body: error(422, message) if body.get("top_p") == 1 else answer())
    with recording(ledger):
        for sampling in (Sampling(), Sampling(0.3), Sampling(0.3, top_p=0.9)):
            server.model.chat([HELLO], sampling, ["a"])
    assert [body.get("top_p") for body in server.bodies] == [1.0, None, None, 0.9] and not ledger.notes
    assert [body["temperature"] for body in server.bodies] == [1.0, 1.0, 0.3, 0.3]


@pytest.mark.parametrize(("field", "message", "param"), [
    ("temperature", "Unsupported value: 'temperature' does not support 0.7 with this model.", "temperature"),
    ("top_p", "`top_p` must be > 0.0 and < 1.0", None), ("seed", "Unrecognized request argument supplied: seed", None),
    ("top_k", "Unknown parameter: 'top_k'.", "top_k")])
def test_a_field_that_a_server_refuses_is_left_out_from_then_on_and_told_once(tmp_path, field, message, param):
    server, ledger = Server(rule=lambda body: error(400, message, param=param) if field in body else answer(),
                            concurrency=1), Ledger.of(tmp_path)
    with recording(ledger):
        server.model.chat(CHATS, Sampling(0.7, 0.9, 4), KEYS)
    assert [field in body for body in server.bodies] == [True] + [False] * 8
    assert len([line for line in ledger.told() if f"refuses {field}, which is left out" in line]) == 1
    assert {"temperature", "top_p", "seed", "top_k"} - {field} <= set(server.bodies[-1])


def test_a_refusal_that_names_another_field_takes_nothing_away():
    server = Server(rule=but(lambda body: error(400, "messages[0]: what temperature?", param="messages")))
    server.model.chat(CHATS, GREEDY, KEYS)
    assert all("temperature" in body for body in server.bodies) and len(server.bodies) == 8


def test_fields_of_ones_own_go_into_every_request_and_its_id(tmp_path):
    thinks = '{"chat_template_kwargs": {"enable_thinking": false}}'
    with recording(Ledger.of(tmp_path, Endpoints(base_url="http://server/v1", extra=(thinks, 'n={"top_a": 1}')))):
        model = load_endpoint("m")
        assert load_endpoint("n").extra == {**json.loads(thinks), "top_a": 1}
    assert model.extra == json.loads(thinks)
    kept = {}
    for extra, asked in (({}, 1), (model.extra, 1), (model.extra, 0), ({}, 0)):
        server = Server(answer(), answers=kept, extra=extra)
        server.ask()
        assert len(server.bodies) == asked
        assert all(body.items() >= extra.items() for body in server.bodies)


@pytest.mark.parametrize("extra", [
    "no json", "[1]", '{"model": "x"}', '{"max_tokens": 9}', 'm={"stream": true}', "m={"])
def test_fields_that_cannot_be_added_are_refused(extra):
    with pytest.raises(ConfigError, match="expected a JSON object, or <model>=<object>, without the fields"):
        load_config(Endpoints, overrides={"extra": (extra,)})


# ------------------------------------------------------------------------------------------------ what is read


@pytest.mark.parametrize(("said", "text"), [
    ("<think>Is it? It is.</think>\n\nOslo.", "Oslo."), ("It is.</think>Oslo.", "Oslo."),
    ("<think>a</think> no <think>b</think> Oslo. ", "Oslo."), ("Write <think> before you speak.",
                                                               "Write <think> before you speak.")])
def test_a_turn_is_what_is_said_without_the_thinking(said, text):
    assert Server(answer(said)).ask().text == text


def test_a_letter_is_read_behind_the_thinking():
    server = Server(rule=lambda body: answer("?", logprobs=None) if "logprobs" in body else
                    answer("<think>A or B</think>B"))
    (row,) = server.model.choose([HELLO], ["yes", "no"])
    assert row[1] > row[0]


@pytest.mark.parametrize(("usage", "read", "written"), [
    ({}, 1, 10), (None, 1, 10), ({"prompt_tokens": None, "completion_tokens": 4}, 1, 4), ({"prompt_tokens": 7}, 7, 10),
    ({"prompt_tokens": "many", "completion_tokens": -3}, 1, 10), ([7, 2], 1, 10),
    ({"prompt_tokens": 1e400, "completion_tokens": 0}, 1, 10)])
def test_each_count_that_a_server_does_not_give_is_estimated(usage, read, written):
    text = json.dumps({"choices": [{"message": {"content": "word " * 8}}], "usage": usage})
    ledger = Ledger()
    with recording(ledger):
        Server(httpx2.Response(200, text=text)).ask()
    assert (ledger.rows()[0]["read"], ledger.rows()[0]["written"]) == (read, written)


def test_a_server_that_gives_five_likeliest_tokens_is_asked_for_five(tmp_path):
    ledger = Ledger.of(tmp_path)
    server = Server(rule=lambda body: error(422, "too many") if body["top_logprobs"] > 5 else
                    answer("Yes", **tokens(("Yes", 0.6), ("No", 0.2))), concurrency=1)
    with recording(ledger):
        rows = server.model.choose(CHATS, ["yes", "no"])
    assert [round(math.exp(row[0]), 2) for row in rows] == [0.75] * 8
    assert [body["top_logprobs"] for body in server.bodies] == [20] + [5] * 8 and not ledger.notes


def test_that_letters_stand_for_probabilities_is_told_once():
    ledger = Ledger()
    with recording(ledger):
        Server(rule=lambda body: error(400) if "logprobs" in body else answer("A")).model.choose(CHATS, ["yes", "no"])
    assert [line for line in ledger.told() if "letters, each of which counts 0.95" in line] == [*ledger.notes]


def test_an_answer_without_end_is_given_up(monkeypatch):
    monkeypatch.setattr("dialoom.models.endpoint_session.LARGEST", 1000)
    with pytest.raises(EndpointError, match="an answer of more than 1,000 bytes"):
        Server(httpx2.Response(200, text=" " * 2000), attempts=2).ask()


# ------------------------------------------------------------------------------------------------ addresses and keys


SLASHED = "sk-canary/AB+cd=="


@pytest.mark.parametrize("spelled", [
    SLASHED, SLASHED.replace("/", r"\/"), SLASHED.replace("/", r"\\\/"),
    SLASHED.replace("+", "%2B").replace("/", "%2f"),
    "".join(f"\\u{ord(sign):04X}" for sign in SLASHED), SLASHED.replace("+", "&#43;").replace("=", "&#x3D;")])
def test_a_key_is_cut_out_however_it_is_escaped(tmp_path, spelled):
    raw = '{"choices": [{"message": {"content": "Your key is KEY."}, "finish_reason": "stop"}]}'.replace("KEY", spelled)
    for found in (httpx2.Response(200, text=raw), httpx2.Response(200, text=f"<html>{spelled}"),
                  httpx2.Response(401, text='{"error": "KEY"}'.replace("KEY", spelled))):
        model = EndpointModel("m", base_url="http://server/v1", api_key=SLASHED, attempts=1,
                              transport=httpx2.MockTransport(lambda request, found=found: found))
        with recording(Ledger.of(tmp_path)):
            try:
                told = model.chat([HELLO], GREEDY, ["a"])[0].text
                assert told == "Your key is [key]."
            except EndpointError as wrong:
                told = repr(wrong)
        assert "canary" not in told + "".join(file.read_text() for file in tmp_path.iterdir())


def test_looking_for_a_key_takes_no_longer_where_a_server_sends_backslashes():
    assert spellings("k" * 200).sub("", "\\" * 200_000 + "k" * 199).count("k") == 199


@pytest.mark.parametrize("address", ["http://h/v1?api_key=canary", "http://h/v1#canary", "http://me:canary@h/v1"])
def test_an_address_that_may_hold_a_key_is_refused_before_a_folder_is_named_after_it(tmp_path, monkeypatch, address):
    monkeypatch.chdir(tmp_path)
    for make in (lambda: load_endpoint(f"m@{address}"), lambda: EndpointModel("m", base_url=address),
                 lambda: load_config(Endpoints, overrides={"base_url": address}),
                 lambda: load_config(Placed, overrides={"model": f"openai:m@{address}"}),
                 lambda: load_endpoint("m", Endpoints(extra=('{"api_key": "canary"}',)))):
        with pytest.raises((ModelError, ConfigError), match=r"would end up in") as caught:
            make()
        assert "canary" not in str(caught.value)
    assert main(["pbt", "--partner", f"openai:m@{address}"]) == main(["pbt", "--model", f"openai:m@{address}"]) == 2
    assert [*tmp_path.iterdir()] == []


def test_an_address_of_ones_own_needs_no_key_of_openai(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    roles = [Role("judge", "openai:m", 10, 100, 10)]
    own = Endpoints(base_url="http://mine/v1", prices=("m=1/2",))
    assert told(roles, own) == ["judge: openai:m, at most 10 requests, about 1,000 tokens read, at most 100 written, "
                                "0.00 dollars"]
    with pytest.raises(ModelError, match="OPENAI_API_KEY is not set"):
        told(roles, Endpoints())


def test_the_canary_of_another_host_is_kept_as_well(monkeypatch):
    monkeypatch.setenv("DIALOOM_KEY_API_EXAMPLE_COM", CANARY)
    model = load_endpoint("m@https://api.example.com/v1")
    model._transport = httpx2.MockTransport(lambda request: error(401, request.headers["authorization"]))
    with pytest.raises(EndpointError, match="check DIALOOM_KEY_API_EXAMPLE_COM") as caught:
        model.chat([HELLO], GREEDY, ["a"])
    assert "canary" not in str(caught.value)
