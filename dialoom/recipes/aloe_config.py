"""Settings of the ALOE recipe, and the paper's. No torch."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from dialoom.evals.alignment import TURNS
from dialoom.evals.alignment_roles import PLAY
from dialoom.models.placed import Placed
from dialoom.pocket.world.persona_tables import BRIEFS
from dialoom.recipes.aloe_dialogues import ALIKE
from dialoom.train.config import TrainConfig

RULE = "rule"
HINT = ("So much is known about the person you are talking with: {hint}\nLet your answer suit them in manner and in "
        "topics without ever saying that you know this. Talk like a person, at most three sentences.")
NEUTRAL = "You are chatting with somebody. Talk like a person, at most three sentences."
ARMS = ("sft_preferred", "sft_rejected", "dpo")


class AloeConfig(Placed):
    """Settings of one ALOE run; the defaults are the pocket run."""

    not_identity: ClassVar[frozenset[str]] = Placed.not_identity | {"batch"}

    model: str = "pocket"
    """The model that is trained: pocket, hf:<name or path>[+<adapter>], run:<folder>."""
    responder: str = ""
    """Who writes both replies of each turn; any model, endpoints included. Empty: `model` itself."""
    user: str = RULE
    """Who plays the users: rule (exact, for people of pocket's world) or a model."""
    inducer: str = RULE
    """Who says which facts and traits are out by now: rule, or a model."""
    judge: str = "exact"
    """Who prefers and who scores: exact (pocket's rule) or a model."""
    personas: str = ""
    """People to train on: JSON lines as `dialoom personas grow` writes them. Empty: people of pocket's world."""
    eval_personas: str = ""
    """People to evaluate on, in the same layouts. Empty: a part of `personas` that is held out."""
    conversations: str = ""
    """Dialogues made elsewhere, in ALOE's released layout, to train on instead of growing any."""
    train_count: int = Field(64, ge=1)
    """People to train on, a dialogue each (3,000 in the paper)."""
    eval_count: int = Field(40, ge=1)
    """Held-out people in each evaluation (100 in the paper)."""
    split: Literal["eval", "valid"] = "eval"
    """Evaluate on the held-out people, or on others that are for choosing settings."""
    turns: int = Field(TURNS, ge=2)
    """User messages in a dialogue; 10 in the paper."""
    batch: int = Field(256, ge=1)
    """Dialogues that grow at a time; bounds memory and changes no result."""
    embedding: str = "ngrams"
    """How the leak check and the rule inducer compare free texts: ngrams, st:<name>, hidden:<model>."""
    leak_threshold: float | None = Field(None, ge=-1, le=1)
    """Leave out training people whose profile has a greater cosine with one for evaluation; none: calibrated."""
    revealed_above: float = Field(ALIKE, ge=-1, le=1)
    """The rule inducer takes a fact in free words for told once a sentence of the user has this cosine with it."""
    temperature: float = Field(0.7, ge=0)
    """Sampling temperature of replies, in dialogues and evaluations."""
    user_temperature: float = Field(1.0, ge=0)
    """That of users, inducers and judges who are models."""
    max_new_tokens: int = Field(80, ge=1)
    """Length limit of a reply (300 in the paper)."""
    neutral: str = ""
    """System prompt of replies without a hint, of training and of evaluations; pocket's has none."""
    hint: str = BRIEFS["hinted"][3].replace("{persona}", "{hint}")
    """System prompt of replies with a hint, which takes {hint}: what the user has let out so far."""
    user_brief: str = PLAY
    """System prompt of users who are models; takes {profile} and {personality}."""
    margin: float = Field(1.0, ge=0)
    """Least difference of two replies' exact scores; a model's preference has no size."""
    sft: TrainConfig = TrainConfig(epochs=1, lr=3e-4, batch_pairs=24)
    """Supervised fine-tuning on preferred replies, and on rejected ones as a control."""
    dpo: TrainConfig = TrainConfig(epochs=1, lr=1e-4, batch_pairs=24, beta=0.1)
    """Direct preference optimisation along the branch that was taken."""
    dpo_from: Literal["sft", "base"] = "sft"
    """Where DPO starts, which is also its reference; base in the released code."""
    general: str = ""
    """General chats mixed into SFT: JSON lines with messages, or `pocket` for its pre-training text."""
    general_share: float = Field(0.0, ge=0, lt=1)
    """Share of SFT's rows that are general ones."""
    baselines: tuple[Literal["reminder", "self_critique", "few_shot"], ...] = (
        "reminder", "self_critique", "few_shot")
    """Prompt baselines to evaluate: the untrained model, asked better."""
    ceiling: str = BRIEFS["tailored"][0]
    """Brief of the `briefed` row, the stated ceiling; empty leaves the row out."""
    shift_at: int = Field(6, ge=0)
    """Also evaluate people whose personality is another from this turn on; 0: do not."""
    seed: int = 1
    """Draws people, branches, sampling and training."""

    @model_validator(mode="after")
    def _fits_together(self) -> AloeConfig:
        if self.sft.tune != self.dpo.tune:
            raise ValueError(f"sft.tune is {self.sft.tune} and dpo.tune is {self.dpo.tune}; one run tunes one way")
        if "{hint}" not in self.hint:
            raise ValueError(f"hint: expected a text with {{hint}} in it, got {self.hint!r:.60}")
        if self.general_share and not self.general:
            raise ValueError(f"general_share is {self.general_share:g} but general names no chats")
        if self.shift_at and not 2 <= self.shift_at <= self.turns:
            raise ValueError(f"shift_at: expected 0, or a turn from 2 to {self.turns}, got {self.shift_at}")
        return self


_PAPER_TRAINING = TrainConfig(epochs=1, lr=1e-5, batch_pairs=48, beta=0.9, bf16=True)
PAPER = AloeConfig(  # arXiv 2410.03642 with the effective values of the released scripts
    model="hf:meta-llama/Meta-Llama-3-8B-Instruct", responder="openai:gpt-4o-mini", user="openai:gpt-4o-mini",
    inducer="openai:gpt-4o-mini", judge="openai:gpt-4o-mini", train_count=3000, eval_count=100,
    embedding="st:paraphrase-MiniLM-L6-v2", leak_threshold=0.6, temperature=1.0, max_new_tokens=300, neutral=NEUTRAL,
    hint=HINT, margin=0.0, sft=_PAPER_TRAINING, dpo=_PAPER_TRAINING, dpo_from="base", ceiling="", shift_at=0)
PRESETS = {"pocket": AloeConfig(), "paper": PAPER}
