"""Settings of one training, shared by every loss. No torch, so that flags and `--help` stay quick."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from pydantic import Field

from dialoom.config import Config


class TrainConfig(Config):
    """How a model is trained; the defaults are the pocket run's."""

    not_identity: ClassVar[frozenset[str]] = frozenset({"checkpoint_every", "gradient_checkpointing"})

    epochs: int = Field(default=3, ge=1)
    """Passes over the data."""
    max_steps: int = Field(default=0, ge=0)
    """Optimiser steps, whatever `epochs` says; 0 leaves it to `epochs`."""
    batch_pairs: int = Field(default=35, ge=1)
    """Pairs (or dialogues, in SFT) whose mean loss makes one optimiser step; PBT: 35 in DPO, 80 in SFT."""
    token_budget: int = Field(default=4096, ge=1)
    """Tokens computed at once, shared ones counted once; bounds memory and changes no result."""
    lr: float = Field(default=1e-4, gt=0)
    """Peak learning rate; PBT's LoRA run: 5e-4."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """How the rate goes to zero after warm-up (constant: it does not)."""
    warmup: float = Field(default=0.05, ge=0)
    """Steps of linear warm-up; a value below 1 is a share of all steps."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decay, on matrices only."""
    clip: float = Field(default=1.0, gt=0)
    """Largest gradient norm."""
    beta: float = Field(default=0.1, gt=0)
    """KL weight of DPO: 0.1 in PBT, 0.9 in ALOE, 0.05 in DITTO."""
    nll_weight: float = Field(default=0.0, ge=0)
    """Weight of the chosen reply's mean negative log-likelihood in DPO; 0 in the papers, so other values deviate."""
    tune: Literal["full", "lora"] = "full"
    """Train all weights, or a low-rank adapter."""
    lora_rank: int = Field(default=16, ge=1)
    """Rank of a new adapter; 16 in PBT."""
    lora_alpha: float = Field(default=32.0, gt=0)
    """The adapter's output is scaled by alpha / rank; 32 in PBT."""
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout before the adapter; 0.05 in PBT."""
    lora_targets: tuple[str, ...] = ()
    """Names of the layers that get one; empty: all linear ones but the head. PBT: q_proj k_proj v_proj."""
    packed: bool = True
    """Compute shared beginnings once; off: one row for each sequence."""
    bf16: bool = False
    """Multiply in bfloat16, keep weights and optimiser as they are."""
    gradient_checkpointing: bool = False
    """Keep only what enters each layer and compute the rest again on the way back: less memory, a third more work."""
    seed: int = 0
    """Decides order, dropout and a new adapter's weights."""
    eval_every: int = Field(default=0, ge=0)
    """Steps between validations; 0: at the end of each epoch."""
    watch: str = "score"
    """Which of the validation's metrics picks the best checkpoint; higher is better."""
    patience: int = Field(default=0, ge=0)
    """Stop after this many validations without a better one; 0: never."""
    checkpoint_every: int = Field(default=50, ge=0)
    """Steps between checkpoints to resume from; 0: only with a validation and at the end."""

    def steps(self, rows: int) -> int:
        """Optimiser steps a training on `rows` pairs or dialogues takes."""
        return self.max_steps or self.epochs * math.ceil(rows / self.batch_pairs)
