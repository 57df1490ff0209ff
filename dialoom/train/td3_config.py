"""Settings of the planner's training. No torch, so that flags and `--help` stay quick."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from dialoom.config import Config


class TD3Config(Config):
    """How a planner is trained from a replay by TD3+BC; the defaults are sized for a CPU, `PAPER` for a large model."""

    not_identity: ClassVar[frozenset[str]] = frozenset({"checkpoint_every"})

    steps: int = Field(default=1000, ge=1)
    """Updates of the critics; the release's training command makes 750."""
    batch_size: int = Field(default=256, ge=1)
    """Transitions in an update; 1,024 in the release's command, 64 by its default."""
    alpha: float = Field(default=2.5, ge=0)
    """Weight of the value against staying near the collected actions; 0 drops that second term (plain TD3), as the
    release's commands do; 2.5 in TD3+BC."""
    gamma: float = Field(default=0.99, ge=0, le=1)
    """Discount of a round."""
    tau: float = Field(default=0.005, gt=0, le=1)
    """Share of the trained weights that enters the target networks at each update of the actor."""
    policy_noise: float = Field(default=0.2, ge=0)
    """Standard deviation of the noise on each number of a target action, in the action's own units."""
    noise_clip: float = Field(default=0.5, ge=0)
    """Largest such noise."""
    policy_delay: int = Field(default=2, ge=1)
    """Updates of the critics for one of the actor and the targets."""
    critic_lr: float = Field(default=1e-3, gt=0)
    """Adam's rate for the critics; 1e-5 in the release."""
    actor_lr: float = Field(default=3e-4, gt=0)
    """Adam's rate for the actor; 1e-6 in the release."""
    actor_widths: tuple[int, int] = (256, 256)
    """Hidden layers of the actor; 0: as wide as the state, as in the release."""
    critic_widths: tuple[int, int] = (256, 64)
    """Hidden layers of each critic; the release: 0 (as wide as the state) and 256."""
    seed: int = 0
    """Decides first weights, batches and noise."""
    checkpoint_every: int = Field(default=250, ge=0)
    """Updates between checkpoints to resume from; 0: only at the end."""


PAPER = TD3Config(steps=750, batch_size=1024, critic_lr=1e-5, actor_lr=1e-6, actor_widths=(0, 0),
                  critic_widths=(0, 256))  # the release's defaults and training command, with the BC term left on
