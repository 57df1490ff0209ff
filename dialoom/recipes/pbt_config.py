"""Settings of the PBT recipe, and the paper's. No torch."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from dialoom.models.placed import Placed
from dialoom.stances import CAREFUL, NEUTRAL
from dialoom.train.config import TrainConfig


class PBTConfig(Placed):
    """Settings of one PBT run; the defaults are the pocket run."""

    model: str = "pocket"
    """The model that is trained: pocket, hf:<name or path>[+<adapter>], run:<folder>."""
    partner: str = "pocket-small"
    """The other debater; any model, endpoints included."""
    speakers: tuple[str, ...] = ()
    """The two debaters A and B where neither is to be `model` (then `model` learns from all their replies)."""
    train_partner: bool = True
    """Also train the partner (on its own replies), for the team debate with both trained."""
    data: str = ""
    """Trivia questions: TriviaQA JSON or JSONL, or CSV with question,answer. Empty: the pocket world's facts."""
    pairs: str = ""
    """Preference pairs made elsewhere to train on instead of growing trees: rows of TRL's with a kind, or of PBT's."""
    limit: int = Field(0, ge=0)
    """Use at most this many training questions, and as many for each evaluation; 0 means all."""
    seed: int = 1
    """Seeds sampling, draws and training."""
    shard: str = ""
    """Grow only the i-th of n parts of the trees (i/n), beside other processes; a run without it merges the parts."""
    not_identity: ClassVar[frozenset[str]] = Placed.not_identity | {"shard"}
    layout: Literal["released", "figure"] = "released"
    """Tree layout: as the published code grows it (1, 2, 3, 2 children a level), or as the paper's figure draws it."""
    both_orders: bool = True
    """Grow each question's tree in both speaking orders, so that both debaters answer persuasion."""
    samples: int = Field(1, ge=1)
    """Trees per question and speaking order."""
    temperature: float = Field(0.7, ge=0)
    """Sampling temperature of the debates; 0.7 in the paper."""
    first_temperature: float = Field(1.2, ge=0)
    """That of the two independent first answers: pocket needs mistakes to correct (0.7 in the paper)."""
    max_new_tokens: int = Field(48, ge=1)
    """Length limit of one reply (80 in the paper)."""
    neutral: str = ""
    """System prompt of examples and evaluations in place of a stance; pocket's brief-less speech has none."""
    node_value: Literal["own", "both"] = "own"
    """Own term of a node: the speaker's own answer (the paper's formula) or both debaters' (the released code)."""
    margin: float = Field(0.5, ge=0, le=1)
    """Least relative difference of two siblings' values."""
    filters: Literal["none", "rule", "model"] = "rule"
    """Surface-form and confirmation filters of the published scripts: off, by rule, or by `filter_model`."""
    filter_model: str = ""
    """The model asked by `filters: model`; empty means `model` itself."""
    extractor: str = ""
    """A model asked for the final answer where the rule finds none; empty: such replies carry no verdict."""
    max_pairs: int = Field(0, ge=0)
    """At most this many pairs in each training set; 0 means as many as the balance gives."""
    eval_questions: int = Field(200, ge=1)
    """Held-out questions in each evaluation."""
    ceiling: str = CAREFUL
    """Brief of the `briefed` row, the stated ceiling; empty leaves the row out."""
    sft: TrainConfig = TrainConfig(epochs=1, lr=1e-4, batch_pairs=24)
    """Supervised fine-tuning on the preferred replies."""
    dpo: TrainConfig = TrainConfig(epochs=4, lr=2e-4, batch_pairs=24, beta=0.1)
    """Direct preference optimisation; rate and epochs were chosen on the validation questions."""
    reference: Literal["sft", "base"] = "sft"
    """What DPO stays near: the policy SFT left, or the model before it (as the released code most likely does)."""

    @model_validator(mode="after")
    def _trees_or_pairs(self) -> PBTConfig:
        if self.pairs and self.shard:
            raise ValueError(f"shard is {self.shard}, a part of the trees, but pairs is {self.pairs}: none are grown")
        return self

    @model_validator(mode="after")
    def _one_way_of_tuning(self) -> PBTConfig:
        if self.sft.tune != self.dpo.tune:
            raise ValueError(f"sft.tune is {self.sft.tune} and dpo.tune is {self.dpo.tune}; one run tunes one way")
        return self


PAPER = PBTConfig(  # arXiv 2410.14596 with the effective values of the released scripts
    model="hf:meta-llama/Llama-3.1-8B-Instruct", partner="hf:mistralai/Mistral-7B-Instruct-v0.2", train_partner=False,
    both_orders=False, temperature=0.7, first_temperature=0.7, max_new_tokens=80, neutral=NEUTRAL, filters="model",
    eval_questions=1000, ceiling="",
    sft=TrainConfig(max_steps=240, batch_pairs=80, lr=5e-4, warmup=100, tune="lora", lora_rank=16, lora_alpha=32,
                    lora_targets=("q_proj", "k_proj", "v_proj"), lora_dropout=0.05, bf16=True),
    dpo=TrainConfig(epochs=5, batch_pairs=35, lr=5e-4, warmup=100, tune="lora", lora_rank=16, lora_alpha=32,
                    lora_targets=("q_proj", "k_proj", "v_proj"), lora_dropout=0.05, beta=0.1, nll_weight=0.0,
                    bf16=True))
PRESETS = {"pocket": PBTConfig(), "paper": PAPER}
