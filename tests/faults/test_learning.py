"""What may go wrong while a model learns, speaks or is loaded: no number, no memory, no room, files that are torn."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import time
import warnings
from contextlib import contextmanager

import pytest
import torch

from dialoom.errors import ModelError, StoreError, TrainingError
from dialoom.models.base import Sampling
from dialoom.models.local import LocalModel
from dialoom.models.steering import Planner, Steering, UpMapping
from dialoom.recipes import ditto_loop as loop
from dialoom.recipes.ditto_config import SFTStage
from dialoom.recipes.ditto_write import reply_path
from dialoom.select import Pair
from dialoom.train import checkpoint
from dialoom.train.config import TrainConfig
from dialoom.train.dpo import dpo
from tests.faults.bomb import Bomb
from tests.tiny import tiny_model

CHAT = [{"role": "user", "content": "Which river?"}]


@contextmanager
def small_files(size):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    held = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, held)


def test_a_disk_that_really_is_full_is_one_line_for_checkpoints_and_models(tmp_path):
    tensors = {"a": torch.ones(50_000)}
    checkpoint.save(tmp_path, 1, tensors, tensors, {})
    with small_files(20_000):
        with pytest.raises(StoreError, match="step-00000002: cannot be written"):
            checkpoint.save(tmp_path, 2, tensors, tensors, {})
        with pytest.raises(StoreError, match="the model cannot be written"):
            tiny_model().save(tmp_path / "model")
    assert checkpoint.steps(tmp_path) == [1] and not list(tmp_path.glob(".*"))


def killed_while_saving(root, step, tensors, bomb, patience=None):
    """Save in a process that dies at the bomb's event, or is killed after so many seconds; whether it was killed."""
    child = os.fork()
    if child == 0:
        bomb.plant()
        checkpoint.save(root, step, tensors, tensors, {"step": step})
        os._exit(0)
    if patience is not None:
        time.sleep(patience)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_twenty_kills_while_a_checkpoint_is_saved_always_leave_a_whole_one(tmp_path):
    """Odd ones at one event of saving after the other, even ones from outside at any time."""
    rng, kills, tries, seconds = random.Random(1), 0, 0, 0.0
    saved = {step: {"a": torch.full((100_000,), float(step))} for step in range(1, 120)}
    good = []
    while kills < 20 and tries < 100:
        while len(good) < 2:
            good.append(max(good, default=0) + 1)
            begun = time.monotonic()
            checkpoint.save(tmp_path, good[-1], saved[good[-1]], saved[good[-1]], {"step": good[-1]})
            seconds = time.monotonic() - begun
        tries += 1
        step = good[-1] + tries % 3 // 2  # in two of three the newest once more, as after damage to it
        bomb, patience = (Bomb(tries // 2 % 14), None) if tries % 2 else (Bomb(), rng.uniform(0, seconds))
        kills += killed_while_saving(tmp_path, step, saved[step], bomb, patience)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one that is half removed is named
            found = checkpoint.load_newest(tmp_path)
        assert found is not None and found.step in {*good, step} and found.state == {"step": found.step}
        for tensors in (found.weights, found.optimizer):
            assert torch.equal(tensors["a"], saved[found.step]["a"])
        good = [one for one in checkpoint.steps(tmp_path) if checkpoint.load(tmp_path, one) is not None][-2:]
        checkpoint.prune(tmp_path, good)
        assert not list(tmp_path.glob(".*")) and checkpoint.steps(tmp_path) == good
    assert kills == 20


def writing():
    model = tiny_model()
    model.add_lora(4)
    return model, [reply_path(model, CHAT, text) for text in ("Oslo", "Rome", "Paris, I think")]


def test_a_style_that_gives_no_number_stops_with_its_texts_in_a_file(tmp_path, monkeypatch):
    model, paths = writing()
    real = loop.backward
    monkeypatch.setattr(loop, "backward", lambda *given, **more: (float("inf"), real(*given, **more)[1]))
    with pytest.raises(TrainingError, match=r"step 1: the loss is inf.*bad_batch\.json"):
        loop.fine_tune(model, paths, SFTStage(max_steps=2, batch=2), out=tmp_path, seed=0)
    report = json.loads((tmp_path / "bad_batch.json").read_text())
    assert report["step"] == 1 and len(report["texts"]) == 2 and "Which river?" in report["texts"][0]


def test_a_style_short_of_memory_is_learned_in_smaller_rows_to_the_same_weights(tmp_path, monkeypatch):
    def learned(out):
        model, paths = writing()
        torch.manual_seed(0)
        with loop.seeded(model.module, "same start"):
            loop.fine_tune(model, paths, SFTStage(max_steps=2, batch=3, stop_loss=0.0), out=out, seed=0, budget=200)
        return loop.adapter_state(model)

    torch.manual_seed(1)
    expected = learned(tmp_path / "whole")
    real = loop.backward

    def scarce(*given, budget, **more):
        if budget > 100:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*given, budget=budget, **more)

    monkeypatch.setattr(loop, "backward", scarce)
    torch.manual_seed(1)
    with pytest.warns(UserWarning, match="out of memory; going on with token_budget 100") as told:
        found = learned(tmp_path / "scarce")
    assert sum("out of memory" in str(one.message) for one in told) == 1
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, atol=1e-6), name


def test_generation_short_of_memory_says_so_and_says_the_same():
    model, sampling, keys = tiny_model("gpt_neox"), Sampling(max_new_tokens=8), [str(at) for at in range(6)]
    left = [1]

    def scarce(*_):
        if left[0]:
            left[0] -= 1
            raise torch.OutOfMemoryError("CUDA out of memory")

    expected = tiny_model("gpt_neox").chat([CHAT] * 6, sampling, keys)
    assert model.engine is not None
    hook = model.module.get_decoder().register_forward_pre_hook(scarce)
    with pytest.warns(UserWarning, match="out of memory; going on with batches of") as told:
        assert model.chat([CHAT] * 6, sampling, keys) == expected
    hook.remove()
    assert sum("out of memory" in str(one.message) for one in told) == 1


def test_a_torn_file_of_reference_log_probabilities_is_told_and_computed_again(tmp_path):
    pairs = [Pair(str(at), CHAT, f"Oslo {at}", f"Rome {at}") for at in range(3)]
    settings = TrainConfig(max_steps=1, batch_pairs=3)
    dpo(tiny_model(), pairs, settings, out=tmp_path)
    file = tmp_path / "reference.safetensors"
    before = file.read_bytes()
    file.write_bytes(before[:-5])
    with pytest.warns(UserWarning, match=r"reference\.safetensors: cannot be read .* computed again"):
        dpo(tiny_model(), pairs, settings, out=tmp_path)
    assert len(file.read_bytes()) == len(before)


def test_a_damaged_planner_is_refused_by_name_and_never_used(tmp_path):
    model, rng = tiny_model(), random.Random(1)
    whole = Steering(UpMapping.linear(model, 8), Planner.of(model, 8, hidden=(16,)))
    whole.save(tmp_path)
    refused = 0
    for file in (tmp_path / "steering.json", tmp_path / "steering.safetensors"):
        data = file.read_bytes()
        cuts = [data[:rng.randrange(len(data))] for _ in range(20)]
        flips = [data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1:]
                 for at in (rng.randrange(len(data)) for _ in range(60))]
        for damaged in (b"", b"[]", b"{}", b"[" * 5000, *cuts, *flips):
            file.write_bytes(damaged)
            try:
                assert Steering.load(tmp_path).fingerprint == whole.fingerprint  # a space of the JSON, say
            except StoreError as wrong:
                assert f"{tmp_path}: no planner can be read there" in str(wrong)
                refused += 1
        file.write_bytes(data)
    assert refused > 140


@pytest.mark.parametrize("part", ["model", "adapter"])
def test_torn_weights_of_a_model_or_an_adapter_are_named(part, tmp_path):
    tiny_model().save(tmp_path / "model")
    with_adapter = LocalModel.load(tmp_path / "model", device="cpu")
    with_adapter.add_lora(4)
    with_adapter.save(tmp_path / "adapter")
    file = next((tmp_path / part).glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(ModelError, match="cannot load"):
        LocalModel.load(tmp_path / "model", adapter=tmp_path / "adapter", device="cpu")
