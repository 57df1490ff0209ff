"""Several copies of a model say what one says: over threads, over servers that fail, and over Ray actors that die."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from dialoom.cli import main
from dialoom.config import load_config
from dialoom.dialogue import Chat
from dialoom.errors import ConfigError, ModelError
from dialoom.models.base import GREEDY, ChatModel, Completion, Sampling, ScoringModel
from dialoom.models.load import load_model
from dialoom.models.place import Place
from dialoom.models.replicas import EndpointReplicas, PooledEndpoint, Replicas, load_endpoints, ray_replicas
from dialoom.recipes.pbt_config import PBTConfig
from dialoom.store import read_trees
from tests.tiny import save_tiny

CHATS: list[Chat] = [[{"role": "user", "content": f"question {at}"}] for at in range(40)]
KEYS = [f"key {at}" for at in range(40)]


class Died(Exception):
    """What a copy raises that is gone."""


class Echo:
    """Answers with its question and the key; `before` may raise, or wait."""

    def __init__(self, before: Callable[[Sequence[str]], None] = lambda keys: None) -> None:
        self.before = before
        self.asked: list[list[str]] = []

    def chat(self, chats: Sequence[Chat], sampling: Sampling, keys: Sequence[str]) -> list[Completion]:
        self.asked.append(list(keys))
        self.before(keys)
        return [Completion(f"{chat[-1]['content']} {key}") for chat, key in zip(chats, keys, strict=True)]

    def choose(self, chats: Sequence[Chat], options: Sequence[str]) -> list[list[float]]:
        return [[-float(len(chat[-1]["content"])), 0.0] for chat in chats]


class Local:
    """A copy in a thread that can be killed and comes back."""

    def __init__(self, model: Echo, name: str) -> None:
        self.model, self.name, self.restarts = model, name, 0
        self._thread = ThreadPoolExecutor(1)

    def submit(self, method: str, *arguments: Any) -> Future[Any]:
        return self._thread.submit(getattr(self.model, method), *arguments)

    def is_lost(self, error: BaseException) -> bool:
        return isinstance(error, Died)

    def restart(self) -> Future[Any] | None:
        self.restarts += 1
        return self._thread.submit(lambda: None)


def copies(*models: Echo, part: int = 4) -> Replicas:
    return Replicas([Local(model, str(at)) for at, model in enumerate(models)], name="echo", fingerprint="f", part=part)


def texts(model: ChatModel, count: int = 40) -> list[str]:
    return [reply.text for reply in model.chat(CHATS[:count], GREEDY, KEYS[:count])]


EXPECTED = [f"question {at} key {at}" for at in range(40)]


def test_copies_say_what_one_says_in_order():
    model = copies(Echo(), Echo(), Echo())
    assert isinstance(model, ChatModel) and isinstance(model, ScoringModel)
    assert texts(model) == EXPECTED
    assert model.choose(CHATS[:3], ["a", "b"]) == Echo().choose(CHATS[:3], ["a", "b"])
    assert model.chat([], GREEDY, []) == []
    with pytest.raises(ModelError, match="40 chats came with 1 keys"):
        model.chat(CHATS, GREEDY, ["one"])


def test_work_is_shared_out_and_a_dialogue_keeps_to_its_copy():
    one, other = Echo(lambda keys: time.sleep(0.02)), Echo(lambda keys: time.sleep(0.02))
    model = copies(one, other, part=40)
    texts(model)
    first = {key for part in one.asked for key in part}
    assert len(first) == 20 and not first & {key for part in other.asked for key in part}
    one.asked.clear()
    longer = [[{"role": "system", "content": "brief"}, *chat, {"role": "assistant", "content": "well"},
               {"role": "user", "content": "go on"}] for chat in reversed(CHATS)]
    model.chat(longer, GREEDY, KEYS[::-1])
    assert {key for part in one.asked for key in part} == first  # its keys and values are kept there


def test_an_idle_copy_takes_over_from_a_slow_one():
    slow, quick = Echo(lambda keys: time.sleep(0.1)), Echo()
    assert texts(copies(slow, quick, part=2)) == EXPECTED
    assert sum(map(len, quick.asked)) > 20


def test_a_copy_that_dies_loses_nothing_and_doubles_nothing():
    deaths = iter([True, True])

    def die(keys: Sequence[str]) -> None:
        if next(deaths, False):
            raise Died("killed")

    mortal, other = Echo(die), Echo(lambda keys: time.sleep(0.01))
    model = copies(mortal, other)
    assert texts(model) == EXPECTED
    asked = Counter(key for part in (*mortal.asked, *other.asked) for key in part)
    assert set(asked) == set(KEYS) and sum(asked.values()) == 40 + 2 * 4  # only the two lost parts are asked again
    assert model.losses == {"0": 2} and model.workers[0].restarts == 2


def test_one_copy_alone_comes_back_and_goes_on():
    deaths = iter([True])

    def die(keys: Sequence[str]) -> None:
        if next(deaths, False):
            raise Died("killed")

    assert texts(copies(Echo(die))) == EXPECTED


def test_chats_that_take_down_every_copy_are_given_up_with_a_word():
    def die(keys: Sequence[str]) -> None:
        if "key 7" in keys:
            raise Died("out of\nmemory")

    with pytest.raises(ModelError, match="the same 4 chats took a replica down 4 times; the last time: out of memory"):
        texts(copies(Echo(die), Echo(die)))


def test_an_error_of_the_model_itself_is_nobodys_death():
    def refuse(keys: Sequence[str]) -> None:
        raise ModelError("too long")

    model = copies(Echo(refuse), Echo(refuse))
    with pytest.raises(ModelError, match=r"^too long$"):
        texts(model)
    assert not model.losses


# ------------------------------------------------------------------------------------------------ servers


def answering(requests: list[str], fail: Callable[[], bool] = lambda: False) -> httpx2.MockTransport:
    def handle(request: httpx2.Request) -> httpx2.Response:
        if fail():
            raise httpx2.ConnectError("refused")
        text = json.loads(request.content)["messages"][-1]["content"]
        requests.append(text)
        return httpx2.Response(200, json={"choices": [{"message": {"content": f"re: {text}"},
                                                       "finish_reason": "stop"}],
                                          "usage": {"prompt_tokens": 3, "completion_tokens": 2}})
    return httpx2.MockTransport(handle)


async def no_wait(seconds: float) -> None:
    """Retries at once."""


def server(at: int, transport: httpx2.MockTransport, answers: dict[str, Any]) -> PooledEndpoint:
    return PooledEndpoint("m", base_url=f"http://server{at}/v1", api_key="", attempts=2, transport=transport,
                          pause=no_wait, answers=answers)


def test_servers_share_the_work_and_where_one_fails_the_others_go_on_and_nothing_is_paid_twice():
    served: list[list[str]] = [[], []]
    shared: dict[str, Any] = {}
    down = iter([False] * 7)  # the first server answers seven requests and is gone
    model = EndpointReplicas([server(0, answering(served[0], lambda: next(down, True)), shared),
                              server(1, answering(served[1]), shared)], name="openai:m", part=5)
    assert texts(model) == [f"re: question {at}" for at in range(40)]
    assert len(served[0]) == 7 and Counter(served[0] + served[1]) == Counter(chat[0]["content"] for chat in CHATS)
    assert model.losses == {"http://server0/v1": 1}
    assert texts(model) == [f"re: question {at}" for at in range(40)]
    assert len(served[0]) + len(served[1]) == 40  # all of it was remembered


def test_all_servers_down_is_one_line_naming_the_last_fault():
    model = EndpointReplicas([server(at, answering([], lambda: True), {}) for at in range(2)], name="openai:m")
    with pytest.raises(ModelError, match=r"all 2 replicas are lost; the last said: .*refused"):
        texts(model, 4)


def test_several_addresses_after_the_model_are_a_pool_that_is_one_model_to_its_turns(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DIALOOM_KEY_TWO", "sk-two")
    model = load_model("openai:my-model@http://one:8000/v1,http://two:8000/v1")
    assert isinstance(model, EndpointReplicas) and isinstance(model.in_role("judge"), EndpointReplicas)
    assert [endpoint.url for endpoint in model.endpoints] == ["http://one:8000/v1", "http://two:8000/v1"]
    assert model.fingerprint == load_endpoints("my-model@http://three/v1,http://four/v1").fingerprint
    assert all(endpoint.attempts == 3 for endpoint in model.endpoints)
    assert [endpoint.role for endpoint in model.in_role("judge").endpoints] == ["judge", "judge"]
    for wrong in ("m@http://one/v1,two", "m@http://one/v1,http://one/v1"):
        with pytest.raises(ModelError, match="expected openai:<model>@"):
            load_model(f"openai:{wrong}")


# ------------------------------------------------------------------------------------------------ settings


def test_replicas_change_no_run_and_are_refused_where_they_cannot_be(monkeypatch: pytest.MonkeyPatch):
    assert PBTConfig(replicas=4).identity() == PBTConfig().identity()
    assert PBTConfig(replicas=4).place == Place(replicas=4) and PBTConfig(replicas=4).place.single == Place()
    with pytest.raises(ConfigError, match="replicas is 2 and device_map is auto"):
        load_config(PBTConfig, overrides={"replicas": 2, "device_map": "auto"})
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'dialoom\[ray\]'"):
        load_model("pocket", device=Place(replicas=2))


# ------------------------------------------------------------------------------------------------ Ray




class Killed:
    """A Ray worker whose process is killed, once, while it works on its second part."""

    def __init__(self, worker: Any, pid: int) -> None:
        self.worker, self.name, self.pid, self.parts = worker, worker.name, pid, 0

    def submit(self, method: str, *arguments: Any) -> Future[Any]:
        found = self.worker.submit(method, *arguments)
        self.parts += 1
        if self.parts == 2:
            os.kill(self.pid, signal.SIGKILL)
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self.worker, name)


@pytest.fixture(scope="module")
def ray() -> Any:
    """Two local Ray workers for the tests of this file."""
    found = pytest.importorskip("ray", reason="Ray is not installed; `pip install dialoom[ray]`")
    yield found
    found.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_ray_replicas_grow_the_trees_of_one_process(ray: Any, tmp_path: Path):
    settings = ["--limit", "6", "--max-new-tokens", "24"]
    assert main(["pbt", "trees", "--out", str(tmp_path / "one"), *settings]) == 0
    assert main(["pbt", "trees", "--out", str(tmp_path / "two"), "--replicas", "2", *settings]) == 0
    one, two = ({id: list(tree) for id, tree in read_trees(tmp_path / name / "trees.jsonl").items()}
                for name in ("one", "two"))
    assert len(one) == 12 and one == two
    assert main(["pbt", "pairs", "--out", str(tmp_path / "two"), *settings]) == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_replica_killed_in_the_middle_loses_nothing(ray: Any):
    alone = load_model("pocket-small", device="cpu")
    sampling = Sampling(1.0, max_new_tokens=24)
    chats: list[Chat] = [[{"role": "user", "content": f"What is the capital of country {at}?"}] for at in range(48)]
    keys = [f"turn {at}" for at in range(48)]
    expected = alone.chat(chats, sampling, keys)
    model = ray_replicas("pocket-small", Place("cpu", replicas=2), part=8)
    assert model.fingerprint == alone.fingerprint
    pids = [worker.actor.pid.remote().future().result() for worker in model.workers]
    model.workers[0] = Killed(model.workers[0], pids[0])
    found = model.chat(chats, sampling, keys)
    assert [reply.text for reply in found] == [reply.text for reply in expected]
    assert model.losses == {"replica 1 of 2": 1}
    again = model.workers[0].actor.pid.options(max_task_retries=-1).remote().future().result(timeout=120)
    assert again not in pids  # it was started anew
    assert [one.text for one in model.chat(chats[:4], sampling, keys[:4])] == [one.text for one in expected[:4]]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_replicas_that_work_in_another_folder_find_a_model_by_its_relative_path(ray: Any, tmp_path: Path,
                                                                                monkeypatch: pytest.MonkeyPatch):
    save_tiny(tmp_path / "base")
    if not ray.is_initialized():
        load_model("pocket-small", device=Place("cpu", replicas=2))
    assert ray.get(ray.remote(lambda: str(Path.cwd())).remote()) != str(tmp_path)
    monkeypatch.chdir(tmp_path)
    model = ray_replicas("hf:base", Place("cpu", replicas=2))
    assert model.name == "hf:base"
    alone = load_model("hf:base", device="cpu")
    assert model.fingerprint == alone.fingerprint
    sampling = Sampling(1.0, max_new_tokens=4)
    assert model.chat(CHATS[:3], sampling, KEYS[:3]) == alone.chat(CHATS[:3], sampling, KEYS[:3])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_model_that_no_replica_can_load_is_one_line(ray: Any):
    with pytest.raises(ModelError, match=r"a replica cannot load it: .*nowhere"):
        ray_replicas("hf:/nowhere/at/all", Place("cpu", replicas=2))
    with pytest.raises(ConfigError, match="give as many replicas at most"):
        ray_replicas("pocket-small", Place("cpu", replicas=4096))
