"""Several processes train as one does: data parallel, and fully sharded.

Processes are on the CPU and speak gloo over loopback, everything by address: a machine whose own name does not resolve
runs this, too.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dialoom.store import read_rows
from dialoom.train.dpo import dpo
from tests.test_train import config, some_pairs
from tests.tiny import tiny_model

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.timeout(600)


def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT),
                         "GLOO_SOCKET_IFNAME": "lo", "HF_HUB_OFFLINE": "1", **more}


def run_two(script: str, *arguments: Any, **more: str) -> None:
    """Run a script in two processes that know of each other."""
    env = environment(WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port()), **more)
    both = [subprocess.Popen([sys.executable, "-c", script, *map(str, arguments)], cwd=ROOT, text=True,
                             env=env | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE)
            for rank in range(2)]
    said = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], "\n\n".join(said)[-6000:]


def metrics(folder: Path) -> list[dict[str, Any]]:
    return read_rows(folder / "metrics.jsonl")


SETTINGS = """
import sys
from pathlib import Path
from tests.test_train import config, dpo, some_pairs, tiny_model
def settings(**more):
    return config(max_steps=6, batch_pairs=5, token_budget=100, nll_weight=1.0, checkpoint_every=2, **more)
def watched(model):
    reply = model.chat([[{"role": "user", "content": "Which river flows through Vienna?"}]], Sampling(0.0), ["a"])[0]
    score = model.logprobs([model.reply_ids([{"role": "user", "content": "Rome?"}], "No.")])[0]
    return {"score": score, "length": len(reply.tokens)}
from dialoom.models.base import Sampling
"""
TRAIN = SETTINGS + """
out, kind, tune = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
model = tiny_model(kind)
dpo(model, some_pairs(), settings(tune=tune), out=out, validate=watched)
import os
if os.environ.get("RANK", "0") == "0":
    model.save(out / "model")
"""


def run_one(folder: Path, kind: str, tune: str) -> None:
    subprocess.run([sys.executable, "-c", TRAIN, str(folder), kind, tune], cwd=ROOT, env=environment(), check=True)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "tune", "sharded"), [
    ("llama", "full", ""), ("llama", "full", "true"), ("llama", "lora", "true"), ("gpt_neox", "full", "true")])
def test_two_processes_have_the_loss_curve_and_the_weights_of_one(kind: str, tune: str, sharded: str, tmp_path: Path):
    from safetensors.torch import load_file

    run_two(TRAIN, tmp_path / "two", kind, tune, ACCELERATE_USE_FSDP=sharded)
    run_one(tmp_path / "one", kind, tune)
    one, two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert len(one) == 6 + len([row for row in one if "eval_score" in row])
    for left, right in zip(one, two, strict=True):
        assert left == pytest.approx(right, rel=1e-3, abs=1e-4)
    name = "adapter_model.safetensors" if tune == "lora" else "model.safetensors"
    mine, theirs = (load_file(tmp_path / part / "model" / name) for part in ("one", "two"))
    assert mine.keys() == theirs.keys()
    for key in mine:
        assert (mine[key] - theirs[key]).abs().max() < 1e-3, key


RESUME = SETTINGS + """
out, steps = Path(sys.argv[1]), int(sys.argv[2])
import dialoom.train.loop as loop
advance = loop._Run.advance
def stop(run):
    if run.state.step >= steps:
        raise SystemExit(0)
    advance(run)
loop._Run.advance = stop
dpo(tiny_model(), some_pairs(), settings(), out=out)
"""


@pytest.mark.slow
def test_a_sharded_training_goes_on_from_its_checkpoint_and_one_process_can_take_it_over(tmp_path: Path):
    run_two(RESUME, tmp_path / "two", 4, ACCELERATE_USE_FSDP="true")
    assert [row["step"] for row in metrics(tmp_path / "two")] == [1, 2, 3, 4]
    run_two(RESUME, tmp_path / "two", 5, ACCELERATE_USE_FSDP="true")
    whole = config(max_steps=6, batch_pairs=5, token_budget=100, nll_weight=1.0, checkpoint_every=2)
    dpo(tiny_model(), some_pairs(), whole, out=tmp_path / "two")
    dpo(tiny_model(), some_pairs(), whole, out=tmp_path / "one")
    for left, right in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        assert left == pytest.approx(right, rel=1e-3, abs=1e-4)
