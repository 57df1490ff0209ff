"""How actions are varied while dialogues are collected, and the one action that never varies.

Noise comes from each reply's key alone, so a dialogue that is collected again, in any batch, explores as it did before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from dialoom.errors import ConfigError
from dialoom.models.steering import corner, on_sphere

KINDS = ("uniform", "corners", "around", "added")  # of exploration


@dataclass(frozen=True)
class Exploration:
    """How actions are varied while dialogues are collected; the noise comes from each reply's key.

    Attributes:
        kind: "uniform": anywhere on the sphere, whatever the planner says; "corners": a corner drawn at random (see
            `corner`) plus noise, back on the sphere; "around": the planner's direction plus noise, back on the sphere;
            "added": noise alone is added, each number cut to 0.5 (around a clone).
        noise: standard deviation of each number; 0.1 as released, on directions of length 1 for "around".
        share: of replies that explore; the others are the planner's own.
        norm: radius of the sphere; None is the planner's own (without one, the length of an embedding). Unused by
            "added".
    """

    kind: Literal["uniform", "corners", "around", "added"] = "around"
    noise: float = 0.1
    norm: float | None = None
    share: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS or not self.noise >= 0 or not (self.norm is None or self.norm > 0):
            raise ConfigError(f"{self} cannot be meant; kind is one of {', '.join(KINDS)}, noise 0 or more, norm above "
                              "0 or None")

    def __call__(self, actions: Tensor, keys: Sequence[str], norm: float) -> Tensor:
        """(actions, action) varied ones; `norm` is the planner's."""
        if not keys:
            return actions
        found = self._varied(actions, keys, norm)
        explores = [_uniform(f"explores:{key}") < self.share for key in keys]
        return torch.where(torch.tensor(explores, device=actions.device)[:, None], found, actions)

    def _varied(self, actions: Tensor, keys: Sequence[str], norm: float) -> Tensor:
        size = actions.shape[1]
        noise = torch.stack([_normal(key, size) for key in keys]).to(actions)
        if self.kind == "added":
            return actions + (self.noise * noise).clamp(-0.5, 0.5)
        radius = norm if self.norm is None else self.norm
        if self.kind == "uniform":
            return on_sphere(noise, radius)
        if self.kind == "corners":
            sorts = torch.tensor([int(size * _uniform(f"corner:{key}")) for key in keys], device=actions.device)
            actions = corner(nn.functional.one_hot(sorts, size).to(actions), 1.0)
        return on_sphere(on_sphere(actions, 1.0) + self.noise * noise, radius)


@dataclass(frozen=True)
class Fixed:
    """One action, whatever the state: a constant prefix, to hold a planner against."""

    action: tuple[float, ...]

    def __call__(self, actions: Tensor, keys: Sequence[str], norm: float) -> Tensor:
        """(actions, action) of the same."""
        return actions.new_tensor(self.action).expand(len(actions), -1)


def _uniform(key: str) -> float:
    """A number in [0, 1) that depends on `key` alone."""
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=6).digest(), "big") / 2**48


def _normal(key: str, count: int) -> Tensor:
    """`count` normal numbers that depend on `key` alone, and are not the noise its tokens are drawn with."""
    seed = hashlib.blake2b(f"action:{key}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return torch.from_numpy(np.random.Generator(np.random.Philox(key=int.from_bytes(seed, "big"))).normal(size=count))
