"""What more processes, more requests in flight and larger logs cost: `python -m bench.scaling [--quick] [LOG ...]`.

Measures with pocket on this machine (wall-clock, the best of two rounds), fills the tables of docs/scaling.md, and
works out from them what 100 million dialogues would take. LOG: tree logs of real runs, whose bytes per turn are shown
as well. Quick runs print their rows and leave the page alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from bench.estimate import estimate
from bench.measure import ONE_THREAD, ROOT, Row
from bench.page import between, markdown
from bench.speed import say

PAGE = ROOT / "docs" / "scaling.md"
LATENCY = 0.2  # seconds the stub server takes for any request
IN_FLIGHT = (1, 4, 16, 64)
SPREAD = ("seconds", "CPU seconds, all processes", "times one, with a core for each")
TURNS = 16  # of a tree in the logs that are only measured for their size
REPLY = "I looked it up again and I am sure that the answer is still the same one. "  # about sixteen tokens


# ------------------------------------------------------------------------------------------------ dialogues


def dialogues(folder: Path, quick: bool) -> Iterator[Row]:
    """PBT's trees in this process, and over one and two replicas; a tree log of what was grown stays in `folder`."""
    from dialoom.models.base import ChatModel
    from dialoom.models.load import load_model
    from dialoom.models.place import Place
    from dialoom.recipes.pbt import grow_trees
    from dialoom.recipes.pbt_config import PBTConfig
    from dialoom.store import read_trees

    said: set[str] = set()
    for replicas in (0, 1, 2):
        place = Place("cpu", replicas=max(1, replicas))
        models: dict[str, ChatModel] = {}
        for spec in ("pocket", "pocket-small"):
            models[spec] = load_model(spec, device=place) if replicas != 1 else _one_actor(spec, place)
        config = PBTConfig(device="cpu", limit=4 if quick else 30)
        rounds = []
        for seed in (100, 1, 2):  # the first one warms up
            path = folder / f"trees-{replicas}-{seed}.jsonl"
            start, before = time.perf_counter(), _cpu(models)
            grow_trees(config.model_copy(update={"seed": seed}), models, path, lambda *_: None, lambda line: None)
            rounds.append((time.perf_counter() - start, _cpu(models) - before))
        trees = read_trees(folder / f"trees-{replicas}-1.jsonl")
        said.add(json.dumps(sorted((turn.id, turn.text) for tree in trees.values() for turn in tree)))
        turns = sum(map(len, trees.values()))
        yield {"work": "dialogues", "how": ("in the process itself", "1 Ray replica", "2 Ray replicas")[replicas],
               "seconds": round(min(rounds[1:])[0], 2), "cpu_seconds": round(min(cpu for _, cpu in rounds[1:]), 2),
               "per_second": round(turns / min(rounds[1:])[0], 1), "turns": turns, "same": len(said) == 1}


def _cpu(models: Mapping[str, Any]) -> float:
    """CPU seconds so far of this process and of the models' replicas."""
    import ray

    actors = [worker.actor for worker in getattr(models["pocket"], "workers", ())]
    spent = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
             for pid in (ray.get([actor.pid.remote() for actor in actors]) if actors else [])]
    return time.process_time() + sum(int(ticks) for both in spent for ticks in both) / os.sysconf("SC_CLK_TCK")


def _one_actor(spec: str, place: Any) -> Any:
    from dialoom.models.replicas import ray_replicas

    return ray_replicas(spec, place)


# ------------------------------------------------------------------------------------------------ training

TRAIN = """
import json, sys, time
from pathlib import Path
from dialoom.models.load import load_model
from dialoom.select import Pair
from dialoom.store import read_rows
from dialoom.train.config import TrainConfig
from dialoom.train.dpo import dpo, reference_logprobs
out, pairs, steps = Path(sys.argv[1]), [Pair.from_row(row, "") for row in read_rows(sys.argv[2])], int(sys.argv[3])
model = load_model("pocket", device="cpu")
settings = TrainConfig(batch_pairs=24, token_budget=1024, epochs=9, max_steps=2)
reference = reference_logprobs(model, pairs, settings)
dpo(model, pairs, settings, out=out / "warm", reference=reference)
start, cpu = time.perf_counter(), time.process_time()
done = dpo(model, pairs, settings.model_copy(update={"max_steps": steps}), out=out / "timed", reference=reference)
print(json.dumps({"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu,
                  "tokens": done.unique_tokens}))
"""


def training(folder: Path, quick: bool) -> Iterator[Row]:
    """DPO steps on pairs of what `dialogues` grew: one process, two that share batches, two that share layers."""
    from dialoom.recipes.debate import preference_pairs, score_tree, unique
    from dialoom.store import read_trees, write_rows

    trees = read_trees(folder / "trees-0-1.jsonl")
    for tree in trees.values():
        score_tree(tree, "own")
    pairs = unique([pair for tree in trees.values()
                    for pair in preference_pairs(tree, margin=0.5, equal_children=True, neutral="", dropped=Counter())])
    write_rows(folder / "pairs.jsonl", [pair.to_row() for pair in pairs])
    steps = 2 if quick else 8
    for how, count, sharded in (("one process", 1, "false"), ("two, data parallel", 2, "false"),
                                ("two, layers sharded (FSDP2)", 2, "true")):
        with tempfile.TemporaryDirectory() as out:
            found = min((_trained(count, sharded, out, folder / "pairs.jsonl", steps, round) for round in range(2)),
                        key=lambda one: float(one["seconds"]))
        yield {"work": "training", "how": how, "seconds": round(found["seconds"], 2), "steps": steps,
               "cpu_seconds": round(found["cpu_seconds"], 2), "per_second": round(found["tokens"] / found["seconds"])}


def _trained(count: int, sharded: str, out: str, pairs: Path, steps: int, round: int) -> dict[str, Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    env = {**ONE_THREAD, "ACCELERATE_USE_CPU": "true", "ACCELERATE_USE_FSDP": sharded, "GLOO_SOCKET_IFNAME": "lo"}
    if count > 1:
        env |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port}
    command = [sys.executable, "-c", TRAIN, f"{out}/{round}", str(pairs), str(steps)]
    running = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True,
                                env=env | ({"RANK": str(at), "LOCAL_RANK": str(at)} if count > 1 else {}))
               for at in range(count)]
    said = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise SystemExit("a training failed; see above")
    found: list[dict[str, Any]] = [json.loads(one.splitlines()[-1]) for one in said]
    return {**found[0], "cpu_seconds": sum(one["cpu_seconds"] for one in found)}


# ------------------------------------------------------------------------------------------------ endpoints


class _Stub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(LATENCY)
        body = json.dumps({"choices": [{"message": {"role": "assistant", "content": REPLY}, "finish_reason": "stop"}],
                           "usage": {"prompt_tokens": 500, "completion_tokens": 16}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    request_queue_size = 128


def endpoints(folder: Path, quick: bool) -> Iterator[Row]:
    """Requests a second at a server with a fixed latency, each answer written to a run's answers.jsonl."""
    from dialoom.models.base import Sampling
    from dialoom.models.endpoint import EndpointModel
    from dialoom.models.ledger import Ledger, recording

    server = _Server(("127.0.0.1", 0), _Stub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        for flying in IN_FLIGHT:
            count = flying * (2 if quick else 12)
            model = EndpointModel("stub", base_url=f"http://127.0.0.1:{server.server_port}/v1", api_key="",
                                  concurrency=flying)
            chats = [[{"role": "user", "content": f"{at}: {REPLY * 20}"}] for at in range(count)]
            before, start = time.process_time(), time.perf_counter()
            with recording(Ledger.of(folder / f"answers-{flying}")):
                model.chat(chats, Sampling(1.0), [f"{flying}/{at}" for at in range(count)])
            seconds = time.perf_counter() - start
            file = folder / f"answers-{flying}" / "answers.jsonl"
            yield {"work": "endpoint", "how": f"{flying} in flight", "seconds": round(seconds, 2),
                   "per_second": round(count / seconds, 1), "most": round(flying / LATENCY, 1),
                   "bytes": round(file.stat().st_size / count),
                   "cpu_ms": round(1000 * (time.process_time() - before) / count, 2)}
    finally:
        server.shutdown()
        server.server_close()


# ------------------------------------------------------------------------------------------------ logs


def logs(folder: Path, quick: bool) -> Iterator[Row]:
    """Writing, merging, opening and reading tree logs of two sizes, each in a process of its own for its memory."""
    for trees in ((50, 100) if quick else (1500, 6000)):
        place = folder / f"logs-{trees}"
        for work in ("write", "merge", "open", "read", "pairs"):
            command = [sys.executable, "-m", "bench.scaling", "--log-work", work, str(place), str(trees)]
            done = subprocess.run(command, cwd=ROOT, env=ONE_THREAD, stdout=subprocess.PIPE, text=True, check=True)
            yield {"work": f"log/{work}", "turns": trees * TURNS, **json.loads(done.stdout.splitlines()[-1])}


def log_work(work: str, folder: Path, trees: int) -> Row:
    """One thing done to a log: its seconds, the memory it took, and the bytes that lie on the disk."""
    from dialoom.recipes import shards
    from dialoom.select import Pair
    from dialoom.store import TreeLog, read_rows, read_trees

    merged = folder / "trees.jsonl"
    whole = {"merge": lambda: shards.merge(folder, lambda line: None), "open": lambda: TreeLog(merged),
             "read": lambda: read_trees(merged), "write": lambda: _shards(folder, trees),
             "pairs": lambda: [Pair.from_row(row, "") for row in read_rows(folder / "pairs.jsonl")]}[work]
    if work == "pairs":
        _pairs(folder, trees * TURNS)
    held, start, cpu = _memory(), time.perf_counter(), time.process_time()
    kept = whole()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    file = folder / "pairs.jsonl" if work == "pairs" else merged if merged.exists() else None
    size = file.stat().st_size if file else sum(path.stat().st_size for path in folder.rglob("trees.jsonl"))
    found = {"seconds": round(seconds, 2), "cpu_seconds": max(0.01, round(cpu, 2)),
             "memory": max(0, _memory() - held), "bytes": size}
    del kept
    return found


def _memory() -> int:
    """The most memory this process has held, in bytes; `getrusage` would count what its parent held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def _shards(folder: Path, trees: int) -> None:
    """Two finished shards with so many trees of `TURNS` turns each, judged and scored as PBT's are."""
    from dialoom.dialogue import DialogueTree, Scenario, Turn, content_id
    from dialoom.recipes.shards import shard_folder, shard_of
    from dialoom.store import TreeLog, write_whole

    for index in (1, 2):
        run, counts = shard_folder(folder, f"{index}/2"), Counter[str]()
        with TreeLog(run / "trees.jsonl") as log:
            for at in range(trees):
                scene = Scenario(f"question-{at}", "Which river flows through Vienna?", {},
                                 {"answer": "the Danube", "aliases": ["danube"], "distractors": ["the Rhine"]})
                if shard_of(scene.id, 2) != index:
                    continue
                tree, last = DialogueTree(scene, content_id("tree", at)), None
                for turn in range(TURNS):
                    id = content_id(at, turn)
                    tree.add(Turn(id, last, "one" if turn % 2 else "other", REPLY,
                                  {"brief": "resist", "answer": "danube"}, {"correct": 1.0}))
                    last = id if turn % 2 else last
                log.add_tree(tree)
                for turn in tree:
                    turn.scores["value"] = 1.5
                log.add_scores(tree, list(tree))
                counts.update(trees=1, turns=len(tree))
        write_whole(run / "stages" / "trees.json", json.dumps({"stage": "trees", "value": counts}))


def _pairs(folder: Path, count: int) -> None:
    from dialoom.dialogue import content_id
    from dialoom.select import Pair
    from dialoom.store import write_rows

    chat = [{"role": "user" if at % 2 else "assistant", "content": f"{REPLY}{at}"} for at in range(1, 6)]
    write_rows(folder / "pairs.jsonl", (Pair(content_id(at), chat, f"{REPLY}{at}", f"No. {REPLY}{at}", "accept",
                                             content_id(at // 4), 1.5, 0.5).to_row() for at in range(count)))


def of_runs(paths: Sequence[Path]) -> Iterator[Row]:
    """Bytes per turn of real logs, all records counted."""
    for path in paths:
        kinds: Counter[str] = Counter()
        with path.open("rb") as lines:
            for line in lines:
                kinds[str(json.loads(line).get("kind"))] += 1
        yield {"work": "log/run", "how": path.parent.name if path.parent.parent.name == "runs" else
               path.parent.parent.name.split("-")[0], "turns": kinds["turn"], "trees": kinds["tree"],
               "bytes": path.stat().st_size}


# ------------------------------------------------------------------------------------------------ the page


def tables(rows: Sequence[Row], machine: str) -> dict[str, str]:
    """What stands between the markers of docs/scaling.md."""
    def of(work: str) -> list[Row]:
        return [row for row in rows if row["work"] == work]

    def spread(work: str, first: int) -> list[list[str]]:
        """What a way gains over the `first`, had each of its processes a core of its own."""
        found = of(work)
        alone = found[first]["cpu_seconds"]
        return [[row["how"], f"{row['seconds']:.2f}", f"{row['cpu_seconds']:.2f}",
                 f"{(1 if at <= first else 2) * alone / row['cpu_seconds']:.2f}"] for at, row in enumerate(found)]

    logged = [row for row in rows if row["work"].startswith("log/") and row["work"] != "log/run"]
    return {
        "scaling-machine": f"Measured on: {machine}.",
        "scaling-dialogues": markdown(["dialogues", *SPREAD], spread("dialogues", 1)),
        "scaling-training": markdown(["training", *SPREAD], spread("training", 0)),
        "scaling-endpoint": markdown(
            ["requests", "requests/s", "the latency allows", "CPU a request, the server's included",
             "bytes in answers.jsonl"],
            [[row["how"], f"{row['per_second']:,}", f"{row['most']:,}", f"{row['cpu_ms']} ms", f"{row['bytes']}"]
             for row in of("endpoint")]),
        "scaling-log": markdown(
            ["work", "turns", "turns a CPU second", "memory a turn", "bytes a turn"],
            [[row["work"].removeprefix("log/"), f"{row['turns']:,}", f"{row['turns'] / row['cpu_seconds']:,.0f}",
              f"{row['memory'] / row['turns']:,.0f} B", f"{row['bytes'] / row['turns']:,.0f}"] for row in logged]),
        "scaling-runs": markdown(["log of", "trees", "turns", "bytes a turn"],
                                 [[row["how"], f"{row['trees']:,}", f"{row['turns']:,}",
                                   f"{row['bytes'] / row['turns']:,.0f}"] for row in of("log/run")]),
        "scaling-estimate": estimate(rows)}


def main() -> None:
    """Measure, print the rows, and fill the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("logs", nargs="*", type=Path, help="tree logs of real runs")
    parser.add_argument("--quick", action="store_true", help="toy sizes; the page is left alone")
    parser.add_argument("--rows", type=Path, default=ROOT / "runs" / "bench" / "scaling.json",
                        help="where the rows are kept; parts that stand there are not measured again")
    parser.add_argument("--log-work", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.log_work:
        work, folder, trees = given.log_work
        print(json.dumps(log_work(work, Path(folder), int(trees))))
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    held: dict[str, list[Row]] = json.loads(given.rows.read_text()) if given.rows.exists() and not given.quick else {}
    with tempfile.TemporaryDirectory() as name:
        for part in (dialogues, training, endpoints, logs):
            if part.__name__ in held:
                continue
            if part is training and not (Path(name) / "trees-0-1.jsonl").exists():
                list(dialogues(Path(name), given.quick))
            say(part.__name__)
            held[part.__name__] = [{**row, "load": round(os.getloadavg()[1], 1)}
                                   for row in part(Path(name), given.quick)]
            if not given.quick:
                given.rows.parent.mkdir(parents=True, exist_ok=True)
                given.rows.write_text(json.dumps(held, indent=1))
    rows = [row for part in held.values() for row in part] + list(of_runs(given.logs))
    loads = sorted(row["load"] for part in held.values() for row in part)
    found = tables(rows, f"{platform.machine()}, {os.cpu_count()} cores, load {loads[0]} to {loads[-1]}, that of other "
                         "work included; one thread a process")
    print(*(json.dumps(row) for row in rows), *found.values(), sep="\n")
    if not given.quick:
        text = PAGE.read_text(encoding="utf-8")
        for marker, content in found.items():
            text = between(text, marker, content)
        PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
