"""Settings of DITTO: the pocket run's defaults, and the paper's preset. No torch.

Every field takes effect: the loop reads nothing that is not here.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from dialoom.config import Config
from dialoom.models.placed import Placed

ABLATIONS = ("no-resampling", "moving-reference", "no-replay", "no-inter")


class SFTStage(Config):
    """The brief fine-tuning that makes the reference."""

    lr: float = Field(1e-3, gt=0)
    """Peak learning rate (3e-5 in the paper, for 7B parameters)."""
    batch: int = Field(4, ge=1)
    """Demonstrations in one optimiser step."""
    max_steps: int = Field(60, ge=1)
    """Optimiser steps at most; 30 in the paper."""
    warmup: float = Field(0.1, ge=0)
    """Steps of linear warm-up; a value below 1 is a share of `max_steps`."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """How the rate goes on after warm-up."""
    optimizer: Literal["adamw", "rmsprop"] = "adamw"
    """AdamW as in the paper, or RMSprop as the release in fact runs."""
    stop_loss: float = Field(0.6, ge=0)
    """Training ends once the loss (nats a token) is below this; 0: never. About 1.0 in the paper."""
    stop_over: Literal["epoch", "batch"] = "epoch"
    """What that loss is averaged over: an epoch's last steps, or (the release) the last step alone."""
    loss_on: Literal["all", "reply"] = "all"
    """Learn the prompt's tokens as well, as the release does, or the reply's only."""
    clip: float = Field(1.0, gt=0)
    """Largest gradient norm."""


class DPOStage(Config):
    """The iterated part: sample, draw pairs, step."""

    lr: float = Field(4e-4, gt=0)
    """Learning rate after warm-up (1e-6 in the paper, for 7B parameters)."""
    steps: int = Field(40, ge=1)
    """Optimiser steps; 40 in the paper."""
    warmup: float = Field(0.25, ge=0)
    """Steps of linear warm-up; a value below 1 is a share of `steps`."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """How the rate goes on after warm-up; constant in the paper."""
    optimizer: Literal["adamw", "rmsprop"] = "adamw"
    """As in `sft`."""
    resample_every: int = Field(10, ge=1)
    """K: steps between two samplings; 10 in the paper."""
    samples: int = Field(10, ge=1)
    """M: samples for each demonstration at each sampling; 10 in the paper."""
    temperature: float = Field(1.0, gt=0)
    """Sampling temperature; 1.0 in the paper."""
    beta: float = Field(0.2, gt=0)
    """KL weight of DPO; 0.05 in the paper."""
    loss: Literal["sigmoid", "hinge", "ipo"] = "sigmoid"
    """The pair loss; sigmoid in the paper."""
    nll_weight: float = Field(0.0, ge=0)
    """Weight of the winners' mean negative log-likelihood a token beside the pair loss; 0 in the paper."""
    expert: float = Field(0.7, ge=0, le=1)
    """Share of pairs demonstration > newest sample."""
    replay: float = Field(0.2, ge=0, le=1)
    """Share of pairs demonstration > older sample."""
    inter: float = Field(0.1, ge=0, le=1)
    """Share of pairs later sample > earlier sample (the release calls them noisy)."""
    pairs_per_demo: int = Field(4, ge=1)
    """Pairs of a step for each of its demonstrations; 3 in the release."""
    demo_batch: int = Field(8, ge=1)
    """Demonstrations of one step."""
    stratified: bool = True
    """Use every demonstration equally often; off: draw from all candidates at once, as the release does."""
    refill: bool = False
    """Where candidates of a kind are missing (no older sample yet), draw more of the other kinds instead."""
    drop_identical: bool = True
    """Leave out samples equal to the demonstration and pairs of equal samples, which carry no gradient."""
    resampling: bool = True
    """Sample from the policy every K steps; off: as many samples, all from the SFT policy before the first step."""
    reference: Literal["sft", "moving"] = "sft"
    """The frozen SFT policy, or the current policy at each sampling."""
    clip: float = Field(1.0, gt=0)
    """Largest gradient norm."""

    @model_validator(mode="after")
    def _some_pairs(self) -> DPOStage:
        if self.expert + self.replay + self.inter <= 0:
            raise ValueError("dpo.expert, dpo.replay and dpo.inter are all 0; at least one kind of pair is needed")
        return self


class DittoConfig(Placed):
    """A DITTO run; the defaults are the pocket run's."""

    not_identity: ClassVar[frozenset[str]] = Placed.not_identity | {
        "token_budget", "keep_checkpoints", "gradient_checkpointing"}

    model: str = "pocket"
    """The model to align: pocket, or hf:<name or path>."""
    demos: str = ""
    """Your demonstrations: a JSONL file (prompt, output, author, split) or a folder of text files; empty: the pocket
    world's authors."""
    layout: Literal["auto", "jsonl", "texts", "cmcc", "ccat50"] = "auto"
    """How `demos` is laid out; auto looks."""
    authors: tuple[str, ...] = ()
    """Only these authors."""
    max_authors: int = Field(10, ge=0)
    """At most this many authors, the first ones; 0: all. 10 in the paper."""
    train_demos: int = Field(7, ge=0)
    """At most this many demonstrations of an author are learned from; 0: all. 7 in the paper."""
    pool: tuple[Literal["zero_shot", "few_shot", "self_prompt", "sft", "spin"], ...] = (
        "zero_shot", "few_shot", "sft", "spin")
    """What DITTO meets in the round robin."""
    beside: tuple[Literal["zero_shot", "few_shot", "self_prompt", "sft", "sft_long", "spin", "briefed"], ...] = (
        "self_prompt", "sft_long", "briefed")
    """Judged against the pool without being in it; sft_long is SFT without its stop rule, briefed pocket under its own
    training brief, the ceiling."""
    rival: tuple[str, ...] = ()
    """Other models (such as openai:<model>), asked zero-shot and few-shot and judged beside the pool."""
    ablation: tuple[Literal["no-resampling", "moving-reference", "no-replay", "no-inter"], ...] = ()
    """The paper's ablations to train as well; they meet DITTO in a pool of their own."""
    growth: tuple[int, ...] = ()
    """DITTO on fewer demonstrations as well, such as 1 2 3 5, in a pool of their own."""
    labelled: int = Field(0, ge=0)
    """Also plain DPO on this many pairs of an author's samples, labelled by the judge; judged beside the pool."""
    labelled_from: Literal["base", "sft"] = "base"
    """Whose samples those are, and what they train."""
    judge: Literal["auto", "exact", "similarity", "model"] = "auto"
    """Who compares: pocket's exact rule, likeness to the author's own text by character n-grams, or a model. auto:
    exact for pocket's authors, similarity for others."""
    judge_model: str = ""
    """The model asked A or B by `judge: model`; empty: `model` itself."""
    embedding: str = "ngrams"
    """What `similarity` compares by: ngrams, st:<name> or hidden:<model>."""
    test_samples: int = Field(3, ge=1)
    """Texts each method writes on a test task; 3 in the paper."""
    max_new_tokens: int = Field(0, ge=0)
    """Length limit of a text; 0: twice the longest demonstration, at most 1024 (the paper's limit)."""
    sft: SFTStage = SFTStage()
    """The brief fine-tuning that makes the reference."""
    dpo: DPOStage = DPOStage()
    """The iterated part."""
    lora_rank: int = Field(16, ge=1)
    """Rank of the adapters; 16 in the paper, 32 in the release."""
    lora_alpha: float = Field(32.0, gt=0)
    """An adapter's output is scaled by alpha / rank; 32 in the paper, 64 in the release."""
    lora_dropout: float = Field(0.05, ge=0, lt=1)
    """Dropout before an adapter while it is fine-tuned; off in DPO."""
    lora_targets: tuple[str, ...] = ()
    """Names of the layers that get one; empty: all linear ones but the head."""
    token_budget: int = Field(4096, ge=1)
    """Tokens computed at once in training; bounds memory and changes no result."""
    bf16: bool = False
    """Multiply in bfloat16."""
    gradient_checkpointing: bool = False
    """Keep only what enters each layer and compute the rest again on the way back: less memory, a third more work."""
    keep_checkpoints: bool = False
    """Keep the adapter of every sampling, not only the last ones."""
    seed: int = 1
    """Decides adapters, order, pairs and every sample."""


PAPER = DittoConfig(  # arXiv 2406.00888 v1, table 5; the base model and the chat format are the release's
    model="hf:mistralai/Mistral-7B-Instruct-v0.2", beside=(), bf16=True, lora_rank=16, lora_alpha=32.0,
    lora_targets=("q_proj", "k_proj", "v_proj", "o_proj"),
    sft=SFTStage(lr=3e-5, batch=4, max_steps=30, warmup=0.1, stop_loss=1.0, stop_over="batch", loss_on="all"),
    dpo=DPOStage(lr=1e-6, steps=40, warmup=0.25, schedule="constant", resample_every=10, samples=10, beta=0.05,
                 pairs_per_demo=3, stratified=False, drop_identical=False))
PRESETS = {"pocket": DittoConfig(), "paper": PAPER}
