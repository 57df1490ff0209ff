"""Our DPO and SFT against TRL's own trainers, step by step, on a tiny model; skipped where TRL is not installed.

TRL reads the file our pairs are written to, makes its own tokens out of it, and trains with its own loop: equal figures
and equal weights mean that layout, targets, loss, optimiser and metric names all agree. `pip install trl` (1.16 was
used) to run it; nothing else of the house needs it.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from dialoom.models.local import LocalModel
from dialoom.store import read_rows, write_rows
from dialoom.train.dpo import dpo
from dialoom.train.sft import sft
from tests.test_train import config, some_examples, some_pairs, weights
from tests.tiny import tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

trl = pytest.importorskip("trl", reason="TRL is not installed; `pip install trl` compares our training with its own")
datasets = pytest.importorskip("datasets")

STEPS = 4
RTOL = 1e-5  # float32 rounding of sums in another order, with room to spare
SAME = {"dpo": ("loss", "grad_norm", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies",
                "logps/chosen", "logps/rejected"),
        "sft": ("loss", "grad_norm")}


def table(folder: Path, rows: list[dict[str, Any]]) -> Any:
    """Rows as a user would load them: out of a file of JSON lines."""
    write_rows(folder / "rows.jsonl", rows)
    return datasets.load_dataset("json", data_files=str(folder / "rows.jsonl"), split="train",
                                 cache_dir=str(folder / "cache"))


def settings(kind: Any, out: Path, batch: int, **more: Any) -> Any:
    """TRL's settings for what `config()` means here: constant rate, AdamW without decay, whole batches in fp32."""
    return kind(output_dir=str(out / "trl"), per_device_train_batch_size=batch, max_steps=STEPS, learning_rate=1e-3,
                lr_scheduler_type="constant", warmup_steps=0, weight_decay=0.0, max_grad_norm=1.0, optim="adamw_torch",
                logging_steps=1, logging_first_step=True, save_strategy="no", report_to=[], use_cpu=True, bf16=False,
                gradient_checkpointing=False, max_length=None, disable_tqdm=True, dataloader_pin_memory=False,
                seed=0, **more)


def logged(trainer: Any) -> list[dict[str, float]]:
    """TRL's figures, one row a step."""
    return [row for row in trainer.state.log_history if "loss" in row]


def compare(ours: Path, theirs: list[dict[str, float]], model: LocalModel, module: Any, kind: str) -> None:
    rows = read_rows(ours / "metrics.jsonl")
    assert len(rows) == len(theirs) == STEPS
    for row, other in zip(rows, theirs, strict=True):
        for name in SAME[kind]:
            assert row[name] == pytest.approx(float(other[name]), rel=RTOL, abs=RTOL), (row["step"], name)
    trained = torch.cat([parameter.detach().reshape(-1) for parameter in module.parameters()])
    moved = (weights(tiny_model()) - weights(model)).norm()
    assert (trained - weights(model)).norm() < 10 * RTOL * moved


@pytest.mark.parametrize("packed", [True, False])
def test_dpo_makes_the_steps_of_trl_out_of_the_file_it_writes(tmp_path: Path, packed: bool):
    pairs = some_pairs()
    rows = [pair.to_row() for pair in pairs]
    data = table(tmp_path, rows)
    assert {"prompt", "chosen", "rejected", "id", "kind", "tree"} <= set(data.column_names)
    assert data[3]["prompt"] == rows[3]["prompt"] and data[3]["chosen"] == rows[3]["chosen"]
    model, reference = tiny_model(), tiny_model(seed=1)  # another reference, so that no first loss is log 2
    module = copy.deepcopy(model.module)
    trainer = trl.DPOTrainer(
        model=module, ref_model=copy.deepcopy(reference.module), train_dataset=data, processing_class=model.tokenizer,
        args=settings(trl.DPOConfig, tmp_path, len(pairs), beta=0.2, disable_dropout=True))
    trainer.train()
    dpo(model, pairs, config(max_steps=STEPS, batch_pairs=len(pairs), beta=0.2, packed=packed), out=tmp_path / "ours",
        reference=reference)
    compare(tmp_path / "ours", logged(trainer), model, module, "dpo")


def test_sft_on_the_last_reply_makes_the_steps_of_trl(tmp_path: Path):
    examples = [type(one)(one.id, one.chat, (len(one.chat) - 1,)) for one in some_examples()]
    data = table(tmp_path, [{"prompt": one.chat[:-1], "completion": one.chat[-1:]} for one in examples])
    model = tiny_model()
    module = copy.deepcopy(model.module)
    trainer = trl.SFTTrainer(model=module, train_dataset=data, processing_class=model.tokenizer,
                             args=settings(trl.SFTConfig, tmp_path, len(examples), completion_only_loss=True))
    trainer.train()
    sft(model, examples, config(max_steps=STEPS, batch_pairs=len(examples)), out=tmp_path / "ours")
    compare(tmp_path / "ours", logged(trainer), model, module, "sft")
