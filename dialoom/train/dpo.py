"""Direct preference optimisation over packed trees; the reference is named and computed once.

It is the policy as it enters (so the SFT policy, where SFT came before), unless another is given.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional

from dialoom.errors import TrainingError
from dialoom.select import Pair
from dialoom.store import write_whole
from dialoom.train.config import TrainConfig
from dialoom.train.loop import Fitted, Log, Objective, Validate, fit
from dialoom.train.pack import score_paths
from dialoom.train.rows import Row, TrainableModel, digest, pair_rows


def dpo_loss(policy: Tensor, reference: Tensor, beta: float) -> Tensor:
    """DPO loss of a batch of pairs.

    Pulls the chosen reply's log-ratio to the reference above the rejected one's.

    Args:
        policy: (batch, 2) summed target log-probabilities in nats, chosen first.
        reference: same shape, from the frozen model; carries no gradient.
        beta: > 0; larger keeps the policy nearer the reference.
    Returns: (batch,) losses; log 2 where policy == reference.
    Raises: ValueError: if the shapes differ.
    Source: arXiv 2305.18290 eq. 7; the loss of PBT, ALOE and DITTO.
    """
    if policy.shape != reference.shape or policy.shape[-1:] != (2,):
        raise ValueError(f"policy has shape {tuple(policy.shape)}, reference {tuple(reference.shape)}; "
                         "expected (batch, 2) for both")
    ratios = policy - reference
    return -functional.logsigmoid(beta * (ratios[:, 0] - ratios[:, 1]))


def reference_logprobs(model: TrainableModel, pairs: Sequence[Pair], config: TrainConfig | None = None) -> Tensor:
    """(pairs, 2) summed log-probabilities of the replies under `model`, chosen first; each distinct one once.

    Args:
        config: its token_budget, packed and bf16 hold here, too; None is the defaults.
    """
    return _scored(model, pair_rows(model, pairs), config or TrainConfig())


def dpo(model: TrainableModel, pairs: Sequence[Pair], config: TrainConfig, *, out: Path,
        reference: TrainableModel | Tensor | None = None, log: Log | None = None,
        validate: Validate | None = None) -> Fitted:
    """Train `model` in place to prefer the chosen replies.

    Where `config.nll_weight` is not 0, the chosen reply's mean negative log-likelihood per token is added to each
    pair's loss with that weight: not in the papers, and named in the report.

    Args:
        out, log, validate: as in `loop.fit`; `out` also takes the reference's log-probabilities.
        reference: a model, or its `reference_logprobs` of these pairs; None is `model` as it enters.
    Raises: TrainingError: if there is nothing to train on, or a loss is not finite.
    """
    rows = pair_rows(model, pairs)
    if not rows:
        raise TrainingError("there are no pairs to train on; look at what selection left out")
    if isinstance(reference, Tensor):
        stored = reference.detach().float().cpu()
        if stored.shape != (len(rows), 2):
            raise TrainingError(f"reference has shape {tuple(stored.shape)}; expected ({len(rows)}, 2), a row per pair")
    else:
        stored = _stored(Path(out) / "reference.safetensors", reference or model, pairs, rows, config)
    return fit(model, rows, dpo_objective(rows, stored, config), config, out=out, log=log, validate=validate)


def dpo_objective(rows: Sequence[Row], reference: Tensor, config: TrainConfig) -> Objective:
    """The DPO loss as the loop wants it, with TRL's metric names.

    Args:
        reference: (rows, 2), chosen first.
    """
    lengths = torch.tensor([[path.targets for path in row.paths] for row in rows], dtype=torch.float32)
    return partial(_objective, reference, lengths, config)


def _objective(reference: Tensor, lengths: Tensor, config: TrainConfig, members: Sequence[int], logprobs: Tensor,
               ) -> tuple[Tensor, dict[str, Tensor]]:
    policy = logprobs.view(-1, 2)
    frozen = reference[list(members)].to(policy.device)
    losses = dpo_loss(policy, frozen, config.beta)
    rewards = config.beta * (policy.detach() - frozen)
    margins = rewards[:, 0] - rewards[:, 1]
    metrics = {"rewards/chosen": rewards[:, 0].sum(), "rewards/rejected": rewards[:, 1].sum(),
               "rewards/margins": margins.sum(), "rewards/accuracies": (margins > 0).float().sum(),
               "logps/chosen": policy[:, 0].sum(), "logps/rejected": policy[:, 1].sum()}
    if config.nll_weight:
        nll = -policy[:, 0] / lengths[list(members), 0].to(policy.device)
        losses = losses + config.nll_weight * nll
        metrics["nll_loss"] = nll.sum()
    return losses.sum(), metrics


def _scored(model: TrainableModel, rows: Sequence[Row], config: TrainConfig) -> Tensor:
    paths = [path for row in rows for path in row.paths]
    return score_paths(model.module, paths, budget=config.token_budget, packed=config.packed,
                       bf16=config.bf16).view(-1, 2)


def _stored(path: Path, reference: TrainableModel, pairs: Sequence[Pair], rows: Sequence[Row],
            config: TrainConfig) -> Tensor:
    """The reference's log-probabilities out of `path`, or computed and written there."""
    about = {"reference": reference.fingerprint, "rows": digest(rows), "bf16": str(config.bf16)}
    if path.exists():
        try:
            with safe_open(path, "pt") as file:
                if file.metadata() == about:
                    found: Tensor = file.get_tensor("logprobs")
                    return found
        except (OSError, SafetensorError) as wrong:
            warnings.warn(f"{path}: cannot be read ({wrong}); the reference is computed again", stacklevel=3)
    # another model may cut the same chat into other tokens
    logprobs = _scored(reference, pair_rows(reference, pairs), config)
    write_whole(path, save({"logprobs": logprobs}, about))
    return logprobs
