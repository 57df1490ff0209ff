"""Supervised fine-tuning on dialogues: imitate the marked assistant messages, read everything else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from dialoom.select import Example
from dialoom.train.config import TrainConfig
from dialoom.train.loop import Fitted, Log, Validate, fit
from dialoom.train.rows import TrainableModel, example_rows


def sft(model: TrainableModel, examples: Sequence[Example], config: TrainConfig, *, out: Path, log: Log | None = None,
        validate: Validate | None = None) -> Fitted:
    """Fine-tune `model` in place; each dialogue is read once, whatever the number of its marked messages.

    The loss is the mean negative log-likelihood (nats) of the batch's trained tokens, end tokens included.

    Args:
        out, log, validate: as in `loop.fit`.
    Raises: TrainingError: if there is nothing to train on, or a loss is not finite.
    """
    return fit(model, example_rows(model, examples), _nll, config, out=out, log=log, validate=validate)


def _nll(members: Sequence[int], logprobs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    return -logprobs.sum(), {}
