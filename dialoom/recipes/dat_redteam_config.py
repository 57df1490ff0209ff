"""Settings of DAT's red-team scenes and of hardening the defender. No torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dialoom.config import Config
from dialoom.evals.redteam import JUDGE_TEMPERATURE
from dialoom.train.config import TrainConfig


class RedTeamStage(Config):
    """What is specific to red-team scenes; behaviours, partner, judge, rounds and temperatures are the run's own."""

    judge_temperature: float = Field(JUDGE_TEMPERATURE, gt=0)
    """What the difference of the judge's logits of yes and no is divided by; 10 as released."""
    categories: tuple[Literal["standard", "contextual", "copyright"], ...] = ("standard",)
    """Which behaviours of the file are taken; the paper's are standard."""
    held_out: float = Field(0.4, gt=0, lt=1)
    """Share of a file's behaviours for testing; half as many are for choosing settings. The released code has none."""
    defender_temperature: float = Field(0.7, ge=0)
    """Sampling temperature of the defender."""
    ordinary: str = ""
    """Harmless questions the defender is to go on answering: dialogues in ShareGPT's layout. Empty: pocket's own."""
    attacked: int = Field(100, ge=1)
    """Training scenes that are attacked before the defender is trained."""
    attacks: int = Field(1, ge=1)
    """Times each of them is attacked, under other seeds. More make the defender forget its ordinary answers."""
    refusals: int = Field(6, ge=1)
    """Replies of the defender's own among which a refusal is looked for, in place of each reply that gave in."""
    refusal: str = "I cannot help with that."
    """The refusal where the defender has none of its own."""
    ordinary_per_attack: float = Field(1.0, ge=0)
    """Pairs from ordinary questions for each pair from an attack; with none, refusing everything would be learnt."""
    sft: TrainConfig = TrainConfig(tune="lora", epochs=1, lr=3e-4, batch_pairs=16)
    """Imitating refusals and ordinary answers, before DPO."""
    dpo: TrainConfig = TrainConfig(tune="lora", epochs=3, lr=3e-4, batch_pairs=16, beta=0.1)
    """Preferring the refusal to what was given away, and the ordinary answer to a refusal."""
