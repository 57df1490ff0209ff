"""The training loop: exact means, resume, checkpoints that survive, and losses that refuse to go on when they must."""

from __future__ import annotations

import itertools
import json
import math
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from dialoom.errors import ConfigError, StoreError, TrainingError
from dialoom.models.local import LocalModel
from dialoom.select import Example, Pair
from dialoom.store import read_rows
from dialoom.train import checkpoint, loop
from dialoom.train import dpo as dpo_module
from dialoom.train.config import TrainConfig
from dialoom.train.dpo import dpo, dpo_loss, reference_logprobs
from dialoom.train.loop import batches, fit, rate
from dialoom.train.pack import logprobs_flat
from dialoom.train.rows import Row, example_rows, pair_rows
from dialoom.train.sft import sft
from tests.tiny import files_in, half_removed, tiny_model

BASE = TrainConfig(epochs=2, batch_pairs=4, lr=1e-3, schedule="constant", warmup=0, token_budget=200)


def config(**changes: Any) -> TrainConfig:
    return TrainConfig(**(BASE.model_dump() | changes))


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def some_pairs(trees: int = 4) -> list[Pair]:
    found = []
    for tree in range(trees):
        chat = [user(f"What is the capital of place {tree}?")]
        for level in range(3):
            good, bad = "Paris, I am sure.", "Rome. " * (1 + (tree + level) % 3)
            found.append(Pair(f"{tree}-{level}", list(chat), good, bad, group=str(tree)))
            chat += [assistant(bad if level else good), user("No, the answer is not right.")]
    return found


def some_examples() -> list[Example]:
    chats = [[user(f"Which river, {at}?"), assistant("The Danube."), user("Sure?"), assistant("I am sure.")]
             for at in range(8)]
    return [Example(str(at), chat, (1, 3)) for at, chat in enumerate(chats)]


def weights(model: LocalModel) -> torch.Tensor:
    return torch.cat([parameter.detach().reshape(-1) for parameter in model.module.parameters()])


def metrics(out: Path) -> list[dict[str, Any]]:
    return read_rows(out / "metrics.jsonl")


class Stopped(Exception):
    """A kill, as far as the loop can tell."""


def stop_at(step: int) -> Any:
    def log(row: dict[str, Any]) -> None:
        if row["step"] == step:
            raise Stopped
    return log


# Losses


def test_dpo_loss_is_what_one_computes_by_hand():
    policy = torch.tensor([[-1.0, -2.0], [-4.0, -1.0]])
    reference = torch.tensor([[-2.0, -2.0], [-4.0, -3.0]])
    expected = [-math.log(1 / (1 + math.exp(-0.1 * 1.0))), -math.log(1 / (1 + math.exp(0.1 * 2.0)))]
    assert dpo_loss(policy, reference, 0.1).tolist() == pytest.approx(expected)
    assert dpo_loss(policy, policy, 0.5).tolist() == pytest.approx([math.log(2)] * 2)
    with pytest.raises(ValueError, match="expected"):
        dpo_loss(policy, reference[:1], 0.1)


def test_dpo_starts_at_log_two_and_learns_the_preference(tmp_path: Path):
    done = dpo(tiny_model(), some_pairs(), config(epochs=8), out=tmp_path)
    rows = metrics(tmp_path)
    assert done.steps == 24 == len(rows) and done.packed and done.unique_tokens < 0.6 * done.tokens
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-5) and abs(rows[0]["rewards/margins"]) < 1e-5
    assert rows[-1]["rewards/margins"] > 0.5 and rows[-1]["rewards/accuracies"] > 0.9
    assert rows[-1]["loss"] < 0.6 and rows[-1]["num_tokens"] == done.tokens
    assert {"epoch", "grad_norm", "learning_rate", "rewards/chosen", "rewards/rejected", "logps/chosen",
            "logps/rejected"} <= rows[-1].keys()


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("tune", ["full", "lora"])
def test_packed_and_flat_training_make_the_same_steps(kind: str, tune: str, tmp_path: Path):
    losses = []
    for packed in (True, False):
        out = tmp_path / str(packed)
        dpo(tiny_model(kind), some_pairs(), config(packed=packed, tune=tune, nll_weight=0.5), out=out)
        losses.append([(row["loss"], row["grad_norm"], row["logps/chosen"]) for row in metrics(out)])
    for packed_row, flat_row in zip(*losses, strict=True):
        assert packed_row == pytest.approx(flat_row, rel=1e-4)


def test_the_token_budget_changes_no_loss(tmp_path: Path):
    losses = []
    for budget in (1, 120, 10_000):
        out = tmp_path / str(budget)
        dpo(tiny_model(), some_pairs(), config(token_budget=budget, nll_weight=1.0), out=out)
        sft(tiny_model(), some_examples(), config(token_budget=budget), out=out / "sft")
        losses.append([(row["loss"], row["grad_norm"]) for row in metrics(out) + metrics(out / "sft")])
    for one, other, third in zip(*losses, strict=True):
        assert one == pytest.approx(other, rel=1e-4) and one == pytest.approx(third, rel=1e-4)


def test_the_likelihood_term_is_the_chosen_replys_mean_per_token(tmp_path: Path):
    model, pairs = tiny_model(), some_pairs(1)
    rows = pair_rows(model, pairs)
    with torch.no_grad():
        means = [(-logprobs_flat(model.module, row.paths)[0] / row.paths[0].targets).item() for row in rows]
    dpo(model, pairs, config(nll_weight=2.0, max_steps=1), out=tmp_path)
    row = metrics(tmp_path)[0]
    assert row["nll_loss"] == pytest.approx(sum(means) / len(means), rel=1e-4)
    assert row["loss"] == pytest.approx(math.log(2) + 2 * row["nll_loss"], rel=1e-4)


def test_sft_loss_is_the_mean_over_the_marked_tokens_with_their_end_tokens(tmp_path: Path):
    model = tiny_model()
    example = Example("a", [user("Hi"), assistant("I think so."), user("Why?"), assistant("Let us check.")], (1, 3))
    (row,) = example_rows(model, [example])
    (path,) = row.paths
    end = model.reply_ids([user("x")], "y")[0][-1]
    assert len(path.spans) == 2 and [path.ids[stop - 1] for _, stop in path.spans] == [end, end]
    assert model.tokenizer.decode(path.ids[slice(*path.spans[0])][:-1]) == "I think so."
    expected = 0.0
    for at in example.train_on:
        ids, start = model.reply_ids(example.chat[:at], example.chat[at]["content"])
        expected -= model.logprobs([(ids, start)])[0]
    sft(model, [example], config(max_steps=1), out=tmp_path)
    assert metrics(tmp_path)[0]["loss"] == pytest.approx(expected / path.targets, rel=1e-4)


def test_sft_learns_its_examples(tmp_path: Path):
    sft(tiny_model(), some_examples(), config(epochs=10, lr=3e-3), out=tmp_path)
    rows = metrics(tmp_path)
    assert rows[-1]["loss"] < 0.3 * rows[0]["loss"]


def test_a_template_that_rewrites_history_is_trained_on_what_was_read_at_each_turn():
    model = tiny_model()
    plain = model.reply_ids
    model.reply_ids = lambda chat, reply: plain(chat[-1:], reply)  # type: ignore[method-assign]
    (row,) = example_rows(model, some_examples()[:1])
    assert len(row.paths) == 2 and row.weight == sum(path.targets for path in row.paths)


def test_the_reference_is_computed_once_and_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    scored: list[int] = []
    real = dpo_module.score_paths

    def counting(module: Any, paths: Sequence[Any], **settings: Any) -> torch.Tensor:
        scored.append(len(paths))
        return real(module, paths, **settings)
    monkeypatch.setattr(dpo_module, "score_paths", counting)
    with pytest.raises(Stopped):
        dpo(tiny_model(), some_pairs(), config(checkpoint_every=1), out=tmp_path, log=stop_at(3))
    dpo(tiny_model(), some_pairs(), config(checkpoint_every=1), out=tmp_path)
    assert scored == [24]


def test_the_reference_may_be_another_model_or_its_stored_logprobs(tmp_path: Path):
    pairs, other = some_pairs(), tiny_model(seed=5)
    stored = reference_logprobs(other, pairs)
    rows = pair_rows(other, pairs)
    with torch.no_grad():
        flat = torch.stack([logprobs_flat(other.module, row.paths) for row in rows])
    torch.testing.assert_close(stored, flat, rtol=1e-5, atol=1e-4)
    dpo(tiny_model(), pairs, config(max_steps=2), out=tmp_path / "a", reference=other)
    dpo(tiny_model(), pairs, config(max_steps=2), out=tmp_path / "b", reference=stored)
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")
    assert abs(metrics(tmp_path / "a")[0]["rewards/margins"]) > 1e-3
    with pytest.raises(TrainingError, match="expected \\(12, 2\\)"):
        dpo(tiny_model(), pairs, config(), out=tmp_path / "c", reference=stored[:2])


def test_lora_trains_the_adapter_and_nothing_else(tmp_path: Path):
    model, before = tiny_model(), weights(tiny_model())
    dpo(model, some_pairs(), config(tune="lora", lora_rank=4), out=tmp_path)
    names = [name for name, parameter in model.module.named_parameters() if parameter.requires_grad]
    assert names and all("lora_" in name for name in names)
    with model.without_adapter():
        assert model.logprobs([([1, 7, 8, 9], 1)]) == pytest.approx(tiny_model().logprobs([([1, 7, 8, 9], 1)]))
    model.module = model.module.unload()
    assert torch.equal(weights(model), before)
    saved = checkpoint.load_newest(tmp_path / "checkpoints")
    assert saved is not None and set(saved.weights) == set(names)


def test_full_training_under_an_adapter_is_refused(tmp_path: Path):
    model = tiny_model()
    model.add_lora(4)
    with pytest.raises(ConfigError, match="merge it first"):
        sft(model, some_examples(), config(), out=tmp_path)


# What cannot be trained on


def test_nothing_to_train_on_is_said(tmp_path: Path):
    model = tiny_model()
    with pytest.raises(TrainingError, match="no rows"):
        sft(model, [], config(), out=tmp_path)
    with pytest.raises(TrainingError, match="no pairs"):
        dpo(model, [], config(), out=tmp_path)
    with pytest.raises(TrainingError, match="example x: no message is marked"):
        sft(model, [Example("x", [user("a"), assistant("b")], ())], config(), out=tmp_path)
    with pytest.raises(TrainingError, match="example x: train_on names message 0"):
        sft(model, [Example("x", [user("a"), assistant("b")], (0,))], config(), out=tmp_path)
    with pytest.raises(TrainingError, match="pair x: chosen and rejected are the same"):
        dpo(model, [Pair("x", [user("a")], "b", "b")], config(), out=tmp_path)


@pytest.mark.parametrize("lr", [1e-3, 1e30])
def test_a_loss_that_is_not_a_number_stops_with_step_and_rows(lr: float, tmp_path: Path):
    model = tiny_model()
    rows = pair_rows(model, some_pairs())
    bad = rows.index(next(row for row in rows if row.id == "2-1"))

    def objective(members: Sequence[int], logprobs: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return -logprobs.sum() * (math.nan if bad in members and lr < 1 else 1.0), {}
    with pytest.raises(TrainingError, match=r"step \d+: the (loss|gradient norm) is nan on rows .*bad_batch.json"):
        fit(model, rows, objective, config(lr=lr, epochs=6, checkpoint_every=1), out=tmp_path)
    report = json.loads((tmp_path / "bad_batch.json").read_text())
    assert lr > 1 or "2-1" in report["rows"]
    kept = checkpoint.load_newest(tmp_path / "checkpoints")
    assert [row["step"] for row in metrics(tmp_path)] == list(range(1, report["step"]))
    assert (kept.step if kept else 0) == report["step"] - 1
    assert all(math.isfinite(row["loss"]) for row in metrics(tmp_path))


def test_short_of_memory_the_budget_is_halved_and_the_loss_stays(tmp_path: Path):
    model = tiny_model()
    rows = pair_rows(model, some_pairs())

    def objective(members: Sequence[int], logprobs: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        if len(members) > most:
            raise MemoryError
        return -logprobs.sum(), {}
    most = 99
    fit(model, rows, objective, config(max_steps=1), out=tmp_path / "a")
    most = 1
    with pytest.warns(UserWarning, match="out of memory; going on with token_budget 50"):
        fit(tiny_model(), rows, objective, config(max_steps=1), out=tmp_path / "b")
    assert metrics(tmp_path / "a")[0] == pytest.approx(metrics(tmp_path / "b")[0] | {
        "unique_tokens": metrics(tmp_path / "a")[0]["unique_tokens"]}, rel=1e-4)
    most = 0
    with pytest.raises(MemoryError), pytest.warns(UserWarning, match="out of memory"):
        fit(tiny_model(), rows, objective, config(max_steps=1), out=tmp_path / "c")


# Going on after a stop


@pytest.mark.parametrize("changes", [{}, {"tune": "lora", "lora_rank": 4, "lora_dropout": 0.3},
                                     {"schedule": "cosine", "warmup": 0.3, "weight_decay": 0.1}])
def test_four_steps_and_four_more_are_bit_for_bit_eight(changes: dict[str, Any], tmp_path: Path):
    settings = config(max_steps=8, checkpoint_every=2, **changes)
    whole, parts = tiny_model(), tiny_model()
    dpo(whole, some_pairs(), settings, out=tmp_path / "whole")
    with pytest.raises(Stopped):
        dpo(parts, some_pairs(), settings, out=tmp_path / "parts", log=stop_at(5))
    parts = tiny_model()
    torch.manual_seed(99)
    done = dpo(parts, some_pairs(), settings, out=tmp_path / "parts")
    assert done.steps == 8
    assert torch.equal(weights(whole), weights(parts))
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")


def test_a_finished_training_is_only_loaded(tmp_path: Path):
    first, again = tiny_model(), tiny_model()
    done = sft(first, some_examples(), config(), out=tmp_path)
    rows = metrics(tmp_path)
    assert sft(again, some_examples(), config(), out=tmp_path) == done
    assert torch.equal(weights(first), weights(again)) and metrics(tmp_path) == rows


@pytest.mark.parametrize("damage", ["truncate", "empty", "flip", "no manifest"])
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(damage: str, tmp_path: Path):
    settings = config(max_steps=6, checkpoint_every=2)
    whole = tiny_model()
    sft(whole, some_examples(), settings, out=tmp_path)
    newest = checkpoint.folder_of(tmp_path / "checkpoints", 6)
    file = newest / checkpoint.WEIGHTS
    data = bytearray(file.read_bytes())
    if damage == "truncate":
        file.write_bytes(data[:-100])
    elif damage == "flip":
        data[-50] ^= 1
        file.write_bytes(data)
    elif damage == "no manifest":
        (newest / checkpoint.MANIFEST).unlink()
    else:
        for part in newest.iterdir():
            part.unlink()
    again = tiny_model()
    with pytest.warns(UserWarning, match="step-00000006: checkpoint is damaged"):
        sft(again, some_examples(), settings, out=tmp_path)
    assert torch.equal(weights(whole), weights(again))


def test_a_crash_while_saving_leaves_a_good_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings = config(max_steps=6, checkpoint_every=2)
    whole = tiny_model()
    sft(whole, some_examples(), settings, out=tmp_path / "whole")
    for place in ("save_file", "sync", "write_whole", "_hash"):
        out = tmp_path / place
        with pytest.raises(Stopped), monkeypatch.context() as patch:
            def log(row: dict[str, Any], patch: Any = patch, place: str = place) -> None:
                def crash(*_: Any, **__: Any) -> None:
                    raise Stopped
                if row["step"] == 4:
                    patch.setattr(checkpoint, place, crash)
            sft(tiny_model(), some_examples(), settings, out=out, log=log)
        assert checkpoint.steps(out / "checkpoints") == [2]
        again = tiny_model()
        sft(again, some_examples(), settings, out=out)
        assert torch.equal(weights(whole), weights(again))
        assert not list((out / "checkpoints").glob(".*"))


def test_what_a_kill_left_of_an_older_checkpoint_is_removed_by_the_next_run_though_training_was_over(tmp_path: Path):
    settings = config(max_steps=6, checkpoint_every=2)
    sft(tiny_model(), some_examples(), settings, out=tmp_path)
    held = half_removed(tmp_path / "checkpoints")
    sft(tiny_model(), some_examples(), settings, out=tmp_path)
    assert files_in(tmp_path / "checkpoints") == held


def test_a_full_disk_is_one_line_and_the_older_checkpoint_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")
    tensors = {"a": torch.ones(2)}
    checkpoint.save(tmp_path, 1, tensors, tensors, {})
    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(StoreError, match="No space left"):
        checkpoint.save(tmp_path, 2, tensors, tensors, {})
    assert checkpoint.steps(tmp_path) == [1]


def test_checkpoints_hold_no_pickle_and_only_the_last_two_and_the_best_stay(tmp_path: Path):
    scores = iter([1.0, 5.0, 2.0, 3.0, 4.0, 1.0])
    sft(tiny_model(), some_examples(), config(max_steps=6, checkpoint_every=1, eval_every=1), out=tmp_path,
        validate=lambda model: {"score": next(scores)})
    folder = tmp_path / "checkpoints"
    assert checkpoint.steps(folder) == [2, 5, 6]
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} == {".safetensors", ".json"}


def test_other_settings_or_data_in_the_same_folder_are_refused_with_the_difference(tmp_path: Path):
    sft(tiny_model(), some_examples(), config(), out=tmp_path)
    with pytest.raises(ConfigError, match=r"config\.lr: 0\.001 -> 0\.002"):
        sft(tiny_model(), some_examples(), config(lr=2e-3), out=tmp_path)
    with pytest.raises(ConfigError, match="rows: "):
        sft(tiny_model(), some_examples()[:-1], config(), out=tmp_path)
    with pytest.raises(ConfigError, match="model: "):
        sft(tiny_model(seed=1), some_examples(), config(), out=tmp_path)
    sft(tiny_model(), some_examples(), config(checkpoint_every=1), out=tmp_path)


# Validation


def test_the_best_validation_picks_the_weights_and_patience_ends_the_training(tmp_path: Path):
    seen: list[torch.Tensor] = []
    scores = [0.1, 0.7, 0.6, 0.5, 0.9]

    def validate(model: LocalModel) -> dict[str, float]:
        assert not model.module.training
        seen.append(weights(model).clone())
        return {"overall": scores[len(seen) - 1], "other": 1.0}
    model = tiny_model()
    settings = config(max_steps=10, eval_every=2, patience=2, watch="overall")
    done = sft(model, some_examples(), settings, out=tmp_path, validate=validate)
    assert (done.steps, done.best_step, done.best, done.stopped_early) == (8, 4, 0.7, True)
    assert torch.equal(weights(model), seen[1])
    assert [row["eval_overall"] for row in metrics(tmp_path) if "eval_overall" in row] == scores[:4]
    again = tiny_model()
    assert sft(again, some_examples(), settings, out=tmp_path, validate=validate) == done and len(seen) == 4
    assert torch.equal(weights(again), seen[1])


def test_a_metric_nobody_computes_is_refused_with_a_near_miss(tmp_path: Path):
    with pytest.raises(ConfigError, match="did you mean overall"):
        sft(tiny_model(), some_examples(), config(watch="overal"), out=tmp_path, validate=lambda _: {"overall": 1.0})


def test_what_validation_draws_does_not_change_the_training(tmp_path: Path):
    settings = config(tune="lora", lora_dropout=0.5)
    for name, draws in (("a", 0), ("b", 7)):
        dpo(tiny_model(), some_pairs(), settings, out=tmp_path / name,
            validate=lambda _, draws=draws: {"score": float(torch.rand(draws).numel() * 0)})
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")


# Order and rate


def test_batches_hold_every_row_once_keep_groups_together_and_follow_the_seed():
    rows = [Row(str(at), (), str(at % 7) if at < 21 else "", 1.0) for at in range(30)]
    cut = batches(rows, 5, seed=3, epoch=0)
    order = [at for batch in cut for at in batch]
    assert sorted(order) == list(range(30)) and [len(batch) for batch in cut] == [5] * 6
    groups = [rows[at].group or f"alone {at}" for at in order]
    assert sum(left != right for left, right in itertools.pairwise(groups)) == 7 + 9 - 1
    assert cut == batches(rows, 5, seed=3, epoch=0) != batches(rows, 5, seed=3, epoch=1)


def test_the_rate_warms_up_and_goes_to_zero_as_its_schedule_says():
    def rates(**changes: Any) -> list[float]:
        return [rate(config(lr=1.0, **changes), step, 10) for step in (0, 1, 2, 6, 9)]
    assert rates() == [1.0] * 5
    assert rates(warmup=2) == [0.5, 1.0, 1.0, 1.0, 1.0] == rates(warmup=0.2)
    assert rates(warmup=2, schedule="linear") == pytest.approx([0.5, 1.0, 1.0, 0.5, 0.125])
    assert rates(warmup=2, schedule="cosine")[3] == pytest.approx(0.5)
    assert rates(schedule="cosine") == sorted(rates(schedule="cosine"), reverse=True)


def test_bfloat16_is_near_the_exact_loss(tmp_path: Path):
    for bf16 in (False, True):
        dpo(tiny_model(), some_pairs(), config(bf16=bf16), out=tmp_path / str(bf16))
    exact, rough = metrics(tmp_path / "False"), metrics(tmp_path / "True")
    assert rough[0]["loss"] == pytest.approx(math.log(2), abs=1e-3)
    assert rough[-1]["logps/chosen"] == pytest.approx(exact[-1]["logps/chosen"], rel=0.05)


def test_recomputed_activations_give_the_same_steps(tmp_path: Path):
    for name in ("kept", "recomputed"):
        model = tiny_model()
        changes = {"gradient_checkpointing": name == "recomputed"}
        dpo(model, some_pairs(), config(tune="lora", lora_dropout=0.2, **changes), out=tmp_path / name)
        assert "forward" not in vars(model.module.get_base_model().model.layers[0])
    assert metrics(tmp_path / "kept") == metrics(tmp_path / "recomputed")


TWO_PROCESSES = """
import sys
from pathlib import Path
from tests.test_train import config, dpo, some_pairs, tiny_model
dpo(tiny_model(), some_pairs(), config(max_steps=4, token_budget=100, nll_weight=1.0), out=Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_two_processes_make_the_steps_of_one(tmp_path: Path):
    script = tmp_path / "train.py"
    script.write_text(TWO_PROCESSES)
    root = Path(__file__).parents[1]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # all by address: a machine whose own name does not resolve runs this, too
    env = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(root),
                        "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                        "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    both = [subprocess.Popen([sys.executable, str(script), str(tmp_path / "two")], cwd=root, text=True,
                             env=env | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE)
            for rank in range(2)]
    said = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    dpo(tiny_model(), some_pairs(), config(max_steps=4, token_budget=100, nll_weight=1.0), out=tmp_path / "one")
    for one, two in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        assert one == pytest.approx(two, rel=1e-4, abs=1e-5)


def test_steps_follow_from_rows_batch_and_epochs():
    assert config(epochs=3, batch_pairs=4).steps(9) == 9
    assert config(epochs=3, batch_pairs=4, max_steps=5).steps(9) == 5


def test_every_setting_has_a_help_text():
    assert all(field.description for field in TrainConfig.model_fields.values())
    assert loop.OUT_OF_MEMORY_TRIES == 3
