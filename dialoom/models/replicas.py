"""One model in several copies: batches are fanned out to Ray actors, or to several servers, and put together again.

To whoever talks it is a model like any other. The surprising choice: a dialogue keeps to the copy it began with, which
still has its keys and values; idle copies take over from busy ones. A copy that is lost costs its part in flight: it is
asked again of another, under the same keys, so nothing changes in what is said. Ray is imported when it is needed.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from dialoom.dialogue import Chat, content_id
from dialoom.errors import ConfigError, EndpointError, ModelError
from dialoom.models.base import ChatModel, Completion, Sampling
from dialoom.models.endpoint import EndpointModel, load_endpoint
from dialoom.models.load import absolute
from dialoom.models.place import Place

PART = 128  # chats a local copy is given at once: what is said again if it is lost
ENDPOINT_PART = 32  # the same of a server: two rounds of the requests it takes at once
ENDPOINT_ATTEMPTS = 3  # of a request at one server, before the others are asked
LOSSES = 3  # times one part may take a copy down before it is held to be the part's fault
HOMES = 1_000_000  # dialogues whose copy is remembered
NO_RAY = "--replicas needs Ray; pip install 'dialoom[ray]', or leave --replicas out"


class Worker(Protocol):
    """One copy of the model."""

    name: str

    def submit(self, method: str, *arguments: Any) -> Future[Any]:
        """Begin `model.<method>(*arguments)`."""
        ...

    def is_lost(self, error: BaseException) -> bool:
        """Whether the copy is to blame for an error, so that another may do better."""
        ...

    def restart(self) -> Future[Any] | None:
        """Bring a lost copy back, done when it can be used; None: not before the next call."""
        ...


class Replicas:
    """A chat model, and one that weighs options, over copies of itself.

    Attributes:
        name: as the user wrote it.
        fingerprint: that of one copy, so turns are the same ones whatever the number of copies.
        workers: the copies.
        losses: how often each was lost, by its name.
    """

    def __init__(self, workers: Sequence[Worker], *, name: str, fingerprint: str, part: int = PART) -> None:
        """
        Args:
            part: most chats a copy is given at once.
        """
        self.workers, self.name, self.fingerprint, self.part = list(workers), name, fingerprint, part
        self.losses: Counter[str] = Counter()
        self._homes: dict[str, int] = {}

    def chat(self, chats: Sequence[Chat], sampling: Sampling, keys: Sequence[str]) -> list[Completion]:
        """Continue each chat with one assistant message; texts and order are those of a single copy."""
        if len(chats) != len(keys):
            raise ModelError(f"{self.name}: {len(chats)} chats came with {len(keys)} keys; give one key for each chat")
        return self._spread(chats, "chat", lambda part: ([chats[at] for at in part], sampling,
                                                         [keys[at] for at in part]))

    def choose(self, chats: Sequence[Chat], options: Sequence[str]) -> list[list[float] | None]:
        """Log-probability (nats, normalised over `options`) that each chat's reply begins with each option."""
        return self._spread(chats, "choose", lambda part: ([chats[at] for at in part], list(options)))

    def _spread(self, chats: Sequence[Chat], method: str, arguments: Callable[[list[int]], tuple[Any, ...]],
                ) -> list[Any]:
        call = _Call(self, self._queues(chats), method, arguments)
        found = call.run()
        return [found[at] for at in range(len(chats))]

    def _queues(self, chats: Sequence[Chat]) -> list[deque[list[int]]]:
        """The rows of each copy in parts; a new dialogue goes to the copy that has the fewest rows so far."""
        rows: list[list[int]] = [[] for _ in self.workers]
        if len(self._homes) > HOMES:
            self._homes.clear()
        for at, chat in enumerate(chats):
            dialogue = content_id(next((message["content"] for message in chat if message["role"] != "system"), ""))
            home = self._homes.setdefault(dialogue, min(range(len(rows)), key=lambda one: len(rows[one])))
            rows[home].append(at)
        return [deque(row[start:start + self.part] for start in range(0, len(row), self.part)) for row in rows]


@dataclass
class _Call:
    """One batch under way: what waits, what runs, what was found."""

    owner: Replicas
    queues: list[deque[list[int]]]
    method: str
    arguments: Callable[[list[int]], tuple[Any, ...]]
    found: dict[int, Any] = field(default_factory=dict)
    running: dict[Future[Any], tuple[int, list[int]]] = field(default_factory=dict)
    returning: dict[Future[Any], int] = field(default_factory=dict)
    gone: set[int] = field(default_factory=set)
    blame: Counter[int] = field(default_factory=Counter)  # by a part's first row

    def run(self) -> dict[int, Any]:
        """The result of every row. Raises what a copy raised, or ModelError if none is left."""
        last: BaseException | None = None
        while any(self.queues) or self.running:
            self._feed()
            if not self.running and not self.returning:
                raise ModelError(f"{self.owner.name}: all {len(self.owner.workers)} replicas are lost; the last said: "
                                 f"{' '.join(str(last).split())[:300]}") from None
            done, _ = wait([*self.running, *self.returning], return_when=FIRST_COMPLETED)
            for future in done:
                last = (self._came_back(future) if future in self.returning else self._finished(future)) or last
        return self.found

    def _feed(self) -> None:
        """Give every idle copy its next part, or one of the longest queue."""
        busy = {worker for worker, _ in self.running.values()} | set(self.returning.values()) | self.gone
        for worker in range(len(self.queues)):
            longest = max(self.queues, key=len)
            if worker in busy or not longest:
                continue
            part = self.queues[worker].popleft() if self.queues[worker] else longest.pop()
            future = self.owner.workers[worker].submit(self.method, *self.arguments(part))
            self.running[future] = (worker, part)

    def _finished(self, future: Future[Any]) -> BaseException | None:
        worker, part = self.running.pop(future)
        error = future.exception()
        if error is None:
            self.found.update(zip(part, future.result(), strict=True))
        elif self.owner.workers[worker].is_lost(error):
            self._lost(worker, part, error)
        else:
            raise error
        return error

    def _lost(self, worker: int, part: list[int], error: BaseException) -> None:
        """Give a lost copy's part to another and bring the copy back."""
        owner = self.owner
        owner.losses[owner.workers[worker].name] += 1
        self.blame[part[0]] += 1
        if self.blame[part[0]] > LOSSES:
            raise ModelError(f"{owner.name}: the same {len(part)} chats took a replica down {LOSSES + 1} times; the "
                             f"last time: {' '.join(str(error).split())[:300]}") from None
        others = [at for at in range(len(self.queues)) if at != worker and at not in self.gone] or [worker]
        self.queues[min(others, key=lambda at: len(self.queues[at]))].appendleft(part)
        self._bring_back(worker)

    def _bring_back(self, worker: int) -> None:
        future = self.owner.workers[worker].restart()
        if future is None:
            self.gone.add(worker)
        else:
            self.returning[future] = worker

    def _came_back(self, future: Future[Any]) -> BaseException | None:
        worker = self.returning.pop(future)
        error = future.exception()
        if error is not None:
            self.gone.add(worker)
        return error


# ------------------------------------------------------------------------------------------------ Ray


class _Actor:
    """What runs in a Ray actor: every model of a run that was asked for, loaded once."""

    def __init__(self, place: Place) -> None:
        self._place, self._held = place, dict[str, ChatModel]()

    def pid(self) -> int:
        return os.getpid()

    def fingerprint(self, spec: str) -> str:
        return self._model(spec).fingerprint

    def call(self, spec: str, method: str, *arguments: Any) -> Any:
        return getattr(self._model(spec), method)(*arguments)

    def _model(self, spec: str) -> ChatModel:
        from dialoom.models.load import load_model
        if spec not in self._held:
            self._held[spec] = load_model(spec, device=self._place)
        return self._held[spec]


class RayWorker:
    """A model in a Ray actor; models of one run share the actors, so each has a GPU of its own where there are any."""

    def __init__(self, actor: Any, spec: str, name: str) -> None:
        self.actor, self.spec, self.name = actor, spec, name

    def submit(self, method: str, *arguments: Any) -> Future[Any]:
        found: Future[Any] = self.actor.call.remote(self.spec, method, *arguments).future()
        return found

    def is_lost(self, error: BaseException) -> bool:
        from ray.exceptions import RayActorError, WorkerCrashedError
        return isinstance(error, RayActorError | WorkerCrashedError)

    def restart(self) -> Future[Any] | None:
        """Ray starts the process again; the first answer to this, however often it is asked, says that it is there."""
        found: Future[Any] = self.actor.pid.options(max_task_retries=-1).remote().future()
        return found


def ray_replicas(spec: str, place: Place, *, part: int = PART) -> Replicas:
    """Copies of a model in `place.replicas` Ray actors: on the cluster RAY_ADDRESS names, else on this machine.

    Args:
        spec: its folders must be there under the same paths on every machine of a cluster.
        place: of each copy; a GPU each where Ray knows of any and the device may be one. They are held until the
            process ends.
        part: most chats a copy is given at once.
    Raises:
        ConfigError: if Ray is not installed, or has not the GPUs or processors for so many.
        ModelError: if the model cannot be loaded.
    """
    count = place.replicas
    ray = _started(count)
    has = ray.cluster_resources()
    on_gpu = place.device not in ("cpu", "mps") and has.get("GPU", 0) > 0
    kind, least = ("GPU", "GPUs") if on_gpu else ("CPU", "processors")
    if has.get(kind, 0) < count:
        raise ConfigError(f"--replicas {count}: Ray has {has.get(kind, 0):g} {least}; give as many replicas at most")
    remote, shared = ray.remote(_Actor), content_id(os.getpid(), asdict(place))
    actors = [remote.options(name=f"dialoom-{shared}-{at}", get_if_exists=True, num_cpus=1, num_gpus=int(on_gpu),
                             max_restarts=-1, max_task_retries=0).remote(place.single) for at in range(count)]
    there = absolute(spec)
    try:
        fingerprints = ray.get([actor.fingerprint.remote(there) for actor in actors])
    except ray.exceptions.RayTaskError as error:
        raise ModelError(f"{spec}: a replica cannot load it: {error.cause}") from None
    except ray.exceptions.RayError as error:
        raise ModelError(f"{spec}: a replica died while loading it: {' '.join(str(error).split())[:300]}") from None
    if len(set(fingerprints)) > 1:
        raise ModelError(f"{spec}: the replicas hold different weights ({', '.join(sorted(set(fingerprints)))}); bring "
                         "all machines to the same version of it")
    workers = [RayWorker(actor, there, f"replica {at + 1} of {count}") for at, actor in enumerate(actors)]
    return Replicas(workers, name=spec, fingerprint=fingerprints[0], part=part)


def _started(count: int) -> Any:
    """The Ray module, connected."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Dialoom reports nothing to anybody
    try:
        import ray
    except ImportError:
        raise ConfigError(NO_RAY) from None
    if ray.is_initialized():
        return ray
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if not os.environ.get("RAY_ADDRESS"):
        settings |= {"num_cpus": max(count, os.cpu_count() or 1), "include_dashboard": False,
                     "_node_ip_address": "127.0.0.1"}
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM) if in_main else None
    try:
        ray.init(**settings)
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = os.environ.get("RAY_ADDRESS", "this machine")
        raise ConfigError(f"Ray cannot be started on {where}: {' '.join(str(error).split())[:300]}") from None
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)  # Ray puts its own there; ours ends a run in good order
    return ray


# ------------------------------------------------------------------------------------------------ servers


class PooledEndpoint(EndpointModel):
    """One of several servers of a model. Answers are remembered for all of them: what one gave, none is asked again."""

    @property
    def fingerprint(self) -> str:
        """Of the model's name alone: servers of a cluster are at other addresses every day."""
        return content_id("endpoints", self.model)


class EndpointWorker:
    """A model behind one of several servers. One that fails is left alone until the next call."""

    def __init__(self, model: EndpointModel) -> None:
        self.model, self.name = model, model.url
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="endpoint")

    def submit(self, method: str, *arguments: Any) -> Future[Any]:
        return self._thread.submit(getattr(self.model, method), *arguments)

    def is_lost(self, error: BaseException) -> bool:
        return isinstance(error, EndpointError)

    def restart(self) -> Future[Any] | None:
        return None


class EndpointReplicas(Replicas):
    """One model on several servers, which share the work; where one fails the others go on.

    Attributes:
        endpoints: the servers.
    """

    def __init__(self, endpoints: Sequence[EndpointModel], *, name: str, part: int = ENDPOINT_PART) -> None:
        self.endpoints = list(endpoints)
        super().__init__([EndpointWorker(endpoint) for endpoint in self.endpoints], name=name, part=part,
                         fingerprint=self.endpoints[0].fingerprint)

    def in_role(self, role: str) -> EndpointReplicas:
        """The same servers, asked and accounted for as something else."""
        return EndpointReplicas([endpoint.in_role(role) for endpoint in self.endpoints], name=self.name, part=self.part)


def load_endpoints(name: str) -> EndpointReplicas:
    """The model `<model>@<address>,<address>...`; each address as `load_endpoint` takes it.

    Raises: ModelError: if one of them is not an address, or is given twice.
    """
    model, _, rest = name.partition("@http")
    addresses = [address.strip() for address in f"http{rest}".split(",")]
    wrong = [address for address in addresses if not address.startswith(("http://", "https://"))]
    if wrong or len(set(addresses)) < len(addresses):
        raise ModelError(f"openai:{name}: {wrong[0] if wrong else 'one address'!r} is "
                         f"{'no web address' if wrong else 'given twice'}; expected "
                         "openai:<model>@http://one:8000/v1,http://other:8000/v1")
    endpoints = []
    for address in addresses:
        found, pooled = load_endpoint(f"{model}@{address}"), object.__new__(PooledEndpoint)
        vars(pooled).update(vars(found), attempts=min(found.attempts, ENDPOINT_ATTEMPTS))
        endpoints.append(pooled)
    return EndpointReplicas(endpoints, name=f"openai:{name}")
