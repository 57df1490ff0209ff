"""Several processes train as one does, by themselves and in a whole recipe: data parallel, and fully sharded.

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
from tests.tiny import save_tiny, tiny_model

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.timeout(600)


def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT),
                         "GLOO_SOCKET_IFNAME": "lo", "HF_HUB_OFFLINE": "1", **more}


def run_two(script: str, *arguments: Any, codes: tuple[int, int] = (0, 0), **more: str) -> list[str]:
    """Run a script in two processes that know of each other; returns what each wrote to stderr."""
    env = environment(WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port()), **more)
    both = [subprocess.Popen([sys.executable, "-c", script, *map(str, arguments)], cwd=ROOT, text=True,
                             env=env | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE)
            for rank in range(2)]
    said = [process.communicate()[1] for process in both]
    assert tuple(process.returncode for process in both) == codes, "\n\n".join(said)[-6000:]
    return said


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


def assert_same_weights(one: Path, two: Path) -> None:
    from safetensors.torch import load_file

    name = next(file.name for file in one.glob("*model.safetensors"))
    mine, theirs = load_file(one / name), load_file(two / name)
    assert mine.keys() == theirs.keys()
    for key in mine:
        assert (mine[key] - theirs[key]).abs().max() < 1e-3, key


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "tune", "sharded"), [
    ("llama", "full", ""), ("llama", "full", "true"), ("llama", "lora", "true"), ("gpt_neox", "full", "true")])
def test_two_processes_have_the_loss_curve_and_the_weights_of_one(kind: str, tune: str, sharded: str, tmp_path: Path):
    run_two(TRAIN, tmp_path / "two", kind, tune, ACCELERATE_USE_FSDP=sharded or "false")
    run_one(tmp_path / "one", kind, tune)
    one, two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert len(one) == 6 + len([row for row in one if "eval_score" in row])
    for left, right in zip(one, two, strict=True):
        assert left == pytest.approx(right, rel=1e-3, abs=1e-4)
    assert_same_weights(tmp_path / "one" / "model", tmp_path / "two" / "model")


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


# ---------------------------------------------------------------------------------------------- whole recipes

COMMAND = "import sys; from dialoom.cli import main; sys.exit(main(sys.argv[1:]))"


def recipe_file(tmp_path: Path) -> Path:
    import yaml

    stage = {"max_steps": 4, "batch_pairs": 8, "token_budget": 300, "lr": 1e-3}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({
        "device": "cpu", "model": f"hf:{save_tiny(tmp_path / 'llama')}", "speakers": ["pocket", "pocket-small"],
        "train_partner": False, "limit": 12, "eval_questions": 3, "max_new_tokens": 24, "sft": stage, "dpo": stage}))
    return path


def curve(folder: Path) -> list[dict[str, Any]]:
    """The figures of the metrics, without the share of pairs ranked right where no margin is more than rounding."""
    return [{name: value for name, value in row.items() if not isinstance(value, str)
             and (name != "rewards/accuracies" or abs(row["rewards/margins"]) > 1e-4)} for row in metrics(folder)]


@pytest.mark.slow
@pytest.mark.parametrize(("tune", "sharded"), [("full", ""), ("lora", "true")])
def test_a_whole_recipe_in_two_processes_is_that_of_one_and_only_the_first_writes(tune: str, sharded: str,
                                                                                  tmp_path: Path):
    settings = [str(recipe_file(tmp_path)), "--sft.tune", tune, "--dpo.tune", tune]
    said = run_two(COMMAND, "pbt", "-c", *settings, "--out", tmp_path / "two", ACCELERATE_USE_FSDP=sharded or "false",
                   FSDP_CPU_RAM_EFFICIENT_LOADING="true")  # as the launcher has it
    assert said[1] == ""
    subprocess.run([sys.executable, "-c", COMMAND, "pbt", "-c", *settings, "--out", str(tmp_path / "one")], cwd=ROOT,
                   env=environment(), check=True, capture_output=True)
    assert_same_run(tmp_path / "one", tmp_path / "two", "adapter" if tune == "lora" else "model")
    one = curve(tmp_path / "one")
    assert len(one) == 3 * (4 + 4 + len([row for row in one if "eval_overall" in row]) // 3)


def assert_same_run(one: Path, two: Path, trained: str) -> None:
    """The pairs, curves and weights of two runs, and what lies in their folders; nothing is left of sharing."""
    assert (one / "pairs.jsonl").read_text() == (two / "pairs.jsonl").read_text()
    for left, right in zip(curve(one), curve(two), strict=True):
        assert left == pytest.approx(right, rel=1e-3, abs=1e-4)
    assert_same_weights(one / trained, two / trained)
    assert not list(two.rglob("start"))
    listed = [{str(path.relative_to(run)) for path in run.rglob("*")} for run in (one, two)]
    assert listed[0] == listed[1]


@pytest.mark.slow
def test_the_launcher_itself_runs_an_aloe_recipe_in_two_processes_as_it_is_in_one(tmp_path: Path):
    import yaml

    stage = {"max_steps": 3, "batch_pairs": 4, "lr": 1e-3}
    settings = tmp_path / "aloe.yaml"
    settings.write_text(yaml.safe_dump({
        "device": "cpu", "model": f"hf:{save_tiny(tmp_path / 'llama')}", "responder": "pocket", "train_count": 4,
        "eval_count": 1, "turns": 2, "shift_at": 0, "baselines": [], "ceiling": "", "max_new_tokens": 24, "sft": stage,
        "dpo": stage}))
    launch = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", str(port())]
    for name, launcher in (("two", [*launch, "-m"]), ("one", [])):
        done = subprocess.run([sys.executable, "-m", *launcher, "dialoom", "aloe", "-c", str(settings), "--out",
                               str(tmp_path / name)], cwd=ROOT, env=environment(HF_HOME=str(tmp_path / "hub")),
                              text=True, capture_output=True)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("run folder:") == 1  # of the two, one speaks
    assert len(curve(tmp_path / "one")) >= 3 * 3  # sft_preferred, sft_rejected, dpo
    assert_same_run(tmp_path / "one", tmp_path / "two", "model")


LED = SETTINGS + """
from dialoom.train.launched import take_part
def lead():
    model = tiny_model()
    dpo(model, some_pairs(), settings(), out=Path(sys.argv[1]) / "first")
    dpo(model, some_pairs(), settings(), out=Path(sys.argv[1]) / "second", validate=watched)
    model.save(Path(sys.argv[1]) / "model")
if len(sys.argv) > 2:
    lead()
else:
    take_part(lead)
"""


@pytest.mark.slow
def test_weights_that_lie_nowhere_reach_the_others_through_the_folder_of_the_training(tmp_path: Path):
    run_two(LED, tmp_path / "two")
    subprocess.run([sys.executable, "-c", LED, str(tmp_path / "one"), "alone"], cwd=ROOT, env=environment(), check=True)
    for part in ("first", "second"):
        for left, right in zip(curve(tmp_path / "one" / part), curve(tmp_path / "two" / part), strict=True):
            assert left == pytest.approx(right, rel=1e-3, abs=1e-4)
    assert_same_weights(tmp_path / "one" / "model", tmp_path / "two" / "model")
    assert not (tmp_path / "two" / "first" / "start").exists()


@pytest.mark.slow
def test_the_others_end_quietly_where_the_first_cannot_begin_and_say_so_where_it_dies(tmp_path: Path):
    said = run_two(COMMAND, "pbt", "--model", "pokcet", "--out", tmp_path, codes=(2, 0))
    assert "pokcet" in said[0] and said[1] == ""
    said = run_two(COMMAND, "pbt", "--device-map", "auto", "--out", tmp_path, codes=(2, 0))
    assert "--device-map" in said[0]
    dies = COMMAND.replace("import sys;", "import os, sys; from dialoom import cli; "
                           "cli.make_app = lambda *_: os._exit(9);")
    said = run_two(dies, "doctor", codes=(9, 2))
    assert said[1].startswith("error: another process is gone") and said[1].count("\n") == 1


DIES = """
import os, sys
from dialoom import cli
import dialoom.train.loop as loop
advance = loop._Run.advance
def die(run):
    if run.accelerator.process_index == 1 and run.state.step == 2:
        os._exit(9)
    advance(run)
loop._Run.advance = die
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_process_that_dies_in_a_training_ends_the_run_in_one_line_and_the_same_command_goes_on(tmp_path: Path):
    command = ["pbt", "train", "-c", str(recipe_file(tmp_path)), "--out", str(tmp_path / "run")]
    said = run_two(DIES, *command, codes=(2, 9))
    assert "error: another process is gone" in said[0] and "Traceback" not in said[0]
    run_two(COMMAND, *command)
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()
