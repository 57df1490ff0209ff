"""TD3+BC: a planner trained from a replay, without a model or a dialogue in reach.

Two critics learn what an action is worth, their targets the smaller of two slow copies' values; the actor learns to
choose by the first critic while it stays near the actions that were tried. Where actions live on a sphere, every one
that is computed here lies on it, those of the smoothed targets too. Batches and noise follow from (seed, step), so a
resumed training repeats the uninterrupted one bit by bit on a CPU.
"""

from __future__ import annotations

import copy
import hashlib
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dialoom import tracking
from dialoom.config import differences
from dialoom.errors import ConfigError, DataError, TrainingError
from dialoom.files import read_steps
from dialoom.models.steering import Normalizer, Planner, PlannerShape, on_sphere
from dialoom.store import append_row, write_rows
from dialoom.train import checkpoint
from dialoom.train.bad_batch import bad_batch
from dialoom.train.loop import Log
from dialoom.train.replay import Replay, Transitions
from dialoom.train.td3_config import TD3Config

MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def smooth(actions: Tensor, noise: Tensor, clip: float, norm: float | None) -> Tensor:
    """Target actions with noise on each number, cut to [-clip, clip], and back on the sphere. Source: TD3 eq. 14."""
    noisy = actions + noise.clamp(-clip, clip)
    return noisy if norm is None else on_sphere(noisy, norm)


def td_target(rewards: Tensor, done: Tensor, values: tuple[Tensor, Tensor], gamma: float) -> Tensor:
    """(batch,) targets of the critics: reward plus, unless done, the discounted smaller one of the next values.

    Source: arXiv 1802.09477 algorithm 1.
    """
    return rewards + (1 - done) * gamma * torch.minimum(*values)


def actor_loss(values: Tensor, actions: Tensor, tried: Tensor, alpha: float) -> Tensor:
    """The mean loss of a batch of the actor's actions.

    Args:
        values: (batch,) by the first critic.
        actions: (batch, action size) of the actor.
        tried: same shape, those of the replay.
        alpha: > 0: weight of the value, measured in its own mean size, against the mean squared distance; 0: the value
            alone.
    Source: arXiv 2106.06860 eq. 3-5.
    """
    if alpha == 0:
        return -values.mean()
    scale = alpha / values.abs().mean().detach().clamp_min(1e-8)
    return -scale * values.mean() + nn.functional.mse_loss(actions, tried)


def polyak(target: nn.Module, source: nn.Module, tau: float) -> None:
    """Move the target's weights toward the source's by the share `tau`, in place."""
    with torch.no_grad():
        for slow, fast in zip(target.parameters(), source.parameters(), strict=True):
            slow.lerp_(fast, tau)


class Critic(nn.Module):  # type: ignore[misc]  # torch is not followed
    """State and action to the value of all that follows.

    Args:
        widths: of its hidden layers; 0 is that of the state.
        mean, std: (state size,) of states, for normalising; None: 0 and 1.
    """

    def __init__(self, state_size: int, action_size: int, widths: tuple[int, int] = (256, 64), *,
                 mean: Tensor | None = None, std: Tensor | None = None) -> None:
        super().__init__()
        first, second = (width or state_size for width in widths)
        self.register_buffer("mean", torch.zeros(state_size) if mean is None else mean.clone())
        self.register_buffer("std", torch.ones(state_size) if std is None else std.clone())
        self.layers = nn.Sequential(nn.Linear(state_size + action_size, first), nn.SiLU(), nn.Linear(first, second),
                                    nn.SiLU(), nn.Linear(second, 1))

    def forward(self, states: Tensor, actions: Tensor) -> Tensor:
        """(batch,) values; an untrained critic's lie about 1/2, the middle of rewards from 0 to 1."""
        found: Tensor = self.layers(torch.cat([(states - self.mean) / self.std, actions], -1))
        return (found[..., 0] + 1) / 2


class _NoNumber(TrainingError):
    """What of an update is not finite, and its value."""

    def __init__(self, what: str, value: float, optimizer: torch.optim.Optimizer) -> None:
        self.what, self.value = what, value
        self.advice = f"look at rewards and states, or lower the rate (now {optimizer.param_groups[0]['lr']:g})"
        super().__init__(f"the {what} is {value}; {self.advice}")


class TD3:
    """Actor (a `Planner`), two critics and their targets; `update` makes one step.

    Args:
        norm: length of actions; None: they live on no sphere.
        output: how the planner ends where there is a norm: anywhere on the sphere, or drawn to its corners.
        mean, std: (state size,) statistics of states; None: 0 and 1.
        device: where it computes.
    """

    def __init__(self, state_size: int, action_size: int, config: TD3Config, *, norm: float | None = 1.0,
                 output: Literal["sphere", "corner"] = "sphere", mean: NDArray[np.float32] | None = None,
                 std: NDArray[np.float32] | None = None, device: str = "cpu") -> None:
        if norm is not None and not (norm > 0 and math.isfinite(norm)):
            raise ConfigError(f"an action norm of {norm} cannot be meant; expected a number above 0, or none")
        self.config, self.norm, self.device, self.step = config, norm, torch.device(device), 0
        about = {"mean": None if mean is None else torch.from_numpy(mean),
                 "std": None if std is None else torch.from_numpy(std)}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_number(config.seed, "weights"))
            hidden = tuple(width or state_size for width in config.actor_widths)
            shape = PlannerShape(state_size, action_size, hidden, output if norm else "linear", norm or 1.0)
            self.actor = Planner(shape, seed=_number(config.seed, "weights")).to(self.device)
            if mean is not None and std is not None:
                self.actor.normalizer = Normalizer.of(about["mean"], about["std"]).to(self.device)
            self.critics = nn.ModuleList(Critic(state_size, action_size, config.critic_widths, **about)
                                         for _ in range(2)).to(self.device)
        self.target_actor = copy.deepcopy(self.actor).requires_grad_(False)
        self.target_critics = copy.deepcopy(self.critics).requires_grad_(False)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=config.actor_lr)
        self.critic_optimizer = torch.optim.Adam(self.critics.parameters(), lr=config.critic_lr)

    def targets(self, batch: Transitions) -> Tensor:
        """(batch,) what the critics are to say of these steps, with the noise of the step to come."""
        with torch.no_grad():
            after = self._tensor(batch.next_states)
            actions = self.target_actor(after)
            draws = torch.Generator().manual_seed(_number(self.config.seed, self.step, "noise"))
            noise = self.config.policy_noise * torch.randn(actions.shape, generator=draws).to(self.device)
            actions = smooth(actions, noise, self.config.noise_clip, self.norm)
            first, second = (critic(after, actions) for critic in self.target_critics)
            return td_target(self._tensor(batch.rewards), self._tensor(batch.done), (first, second), self.config.gamma)

    def update(self, batch: Transitions) -> dict[str, float]:
        """Train the critics on a batch, and every `policy_delay` steps the actor and the targets; returns metrics.

        Raises: TrainingError: if a loss or gradient is not finite; the network it belongs to is then as it was.
        """
        states, tried = self._tensor(batch.states), self._tensor(batch.actions)
        targets = self.targets(batch)
        values = [critic(states, tried) for critic in self.critics]
        critic_loss = sum((nn.functional.mse_loss(value, targets) for value in values), torch.zeros(()).to(states))
        self._descend(self.critic_optimizer, critic_loss, "critics")
        self.step += 1
        row = {"critic_loss": float(critic_loss.detach()), "value": float(values[0].detach().mean())}
        if self.step % self.config.policy_delay == 0:
            actions = self.actor(states)
            self.critics.requires_grad_(False)
            loss = actor_loss(self.critics[0](states, actions), actions, tried, self.config.alpha)
            self.critics.requires_grad_(True)
            self._descend(self.actor_optimizer, loss, "actor")
            polyak(self.target_actor, self.actor, self.config.tau)
            polyak(self.target_critics, self.critics, self.config.tau)
            row["actor_loss"] = float(loss.detach())
        return row

    def act(self, states: NDArray[np.float32]) -> NDArray[np.float32]:
        """(batch, action size) actions of the actor as it stands."""
        with torch.no_grad():
            found: NDArray[np.float32] = self.actor(self._tensor(states)).cpu().numpy()
        return found

    def save(self, root: Path, identity: dict[str, Any]) -> None:
        """Write a checkpoint of everything that decides the next step: weights, targets, both Adams, the counter.

        Raises: StoreError: if it cannot be written.
        """
        weights = {f"{part}.{name}": tensor for part, module in self._parts().items()
                   for name, tensor in module.state_dict().items()}
        moments = {f"{key}/{name}": self._optimizer(name).state[parameter][key]
                   for name, parameter in self._trained().items()
                   if self._optimizer(name).state[parameter] for key in MOMENTS}
        checkpoint.save(root, self.step, weights, moments, {"identity": identity, "step": self.step})

    def restore(self, found: checkpoint.Checkpoint) -> None:
        """Take over a checkpoint of networks of these sizes."""
        for part, module in self._parts().items():
            module.load_state_dict({name.removeprefix(f"{part}."): tensor for name, tensor in found.weights.items()
                                    if name.startswith(f"{part}.")})
        for name, parameter in self._trained().items():
            if f"step/{name}" in found.optimizer:
                self._optimizer(name).state[parameter] = {
                    key: found.optimizer[f"{key}/{name}"].to("cpu" if key == "step" else self.device)
                    for key in MOMENTS}
        self.step = int(found.state["step"])

    def _parts(self) -> dict[str, nn.Module]:
        return {"actor": self.actor, "critics": self.critics, "target_actor": self.target_actor,
                "target_critics": self.target_critics}

    def _trained(self) -> dict[str, nn.Parameter]:
        return {f"{part}.{name}": parameter for part in ("actor", "critics")
                for name, parameter in self._parts()[part].named_parameters()}

    def _optimizer(self, name: str) -> torch.optim.Optimizer:
        return self.actor_optimizer if name.startswith("actor.") else self.critic_optimizer

    def _descend(self, optimizer: torch.optim.Optimizer, loss: Tensor, what: str) -> None:
        if not math.isfinite(value := float(loss.detach())):
            raise _NoNumber(f"loss of the {what}", value, optimizer)
        optimizer.zero_grad()
        loss.backward()
        norm = float(nn.utils.get_total_norm([one.grad for one in optimizer.param_groups[0]["params"]]))
        if not math.isfinite(norm):
            raise _NoNumber(f"gradient norm of the {what}", norm, optimizer)
        optimizer.step()

    def _tensor(self, values: NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(values).to(self.device)


def td3(replay: Replay, config: TD3Config, *, out: str | Path, norm: float | None = 1.0,
        output: Literal["sphere", "corner"] = "sphere", device: str = "cpu", log: Log | None = None) -> TD3:
    """Train a planner from a replay, or go on with the newest whole checkpoint in `out`.

    States are normalised by the replay's own statistics.

    Args:
        out: takes `metrics.jsonl` and `checkpoints/`, and `bad_batch.json` where a loss is no number.
        norm: length of the replay's actions; None: they live on no sphere.
        output: how the planner ends, see `TD3`.
        log: gets every row of the metrics.
    Raises:
        DataError: if the replay is empty, or its actions do not have that length.
        ConfigError: if `out` holds a training with other settings or data.
        TrainingError: if a loss or gradient is not finite, naming the step and its transitions.
    """
    out, mean_std = Path(out), replay.state_statistics()
    _check_norm(replay, norm)
    identity = {"config": config.identity(), "replay": replay.fingerprint, "norm": norm, "output": output}
    learner = TD3(replay.state_size, replay.action_size, config, norm=norm, output=output, mean=mean_std[0],
                  std=mean_std[1], device=device)
    found = checkpoint.load_newest(out / "checkpoints")
    if found is not None:
        changed = differences(found.state["identity"], identity)
        if changed:
            raise ConfigError(f"{out}: holds a training with other settings or data ({'; '.join(changed)}); "
                              "use another folder, or remove this one")
        learner.restore(found)
        _prune(out / "checkpoints")  # a kill may have come in there
    metrics = out / "metrics.jsonl"
    if metrics.exists():
        write_rows(metrics, read_steps(metrics, learner.step))
    while learner.step < config.steps:
        row = _updated(learner, replay, out)
        append_row(metrics, row)
        tracking.note(out, row)
        if log is not None:
            log(row)
        if learner.step == config.steps or (config.checkpoint_every and learner.step % config.checkpoint_every == 0):
            learner.save(out / "checkpoints", identity)
            _prune(out / "checkpoints")
    return learner


def _updated(learner: TD3, replay: Replay, out: Path) -> dict[str, float]:
    """The metrics of one update, with its step."""
    config, step = learner.config, learner.step
    drawn = replay.drawn(config.batch_size, seed=config.seed, step=step)
    try:
        row = learner.update(replay.transitions(drawn))
    except _NoNumber as wrong:
        raise bad_batch(out, step + 1, wrong.what, wrong.value, [f"transition {at}" for at in drawn],
                        advice=wrong.advice, checkpoints=checkpoint.steps(out / "checkpoints")) from None
    return {"step": learner.step, **row}


def _prune(root: Path) -> None:
    checkpoint.prune(root, checkpoint.steps(root)[-2:])


def _check_norm(replay: Replay, norm: float | None) -> None:
    if norm is None:
        return
    lengths = np.linalg.norm(replay.actions, axis=1)
    wrong = np.flatnonzero(np.abs(lengths - norm) > 1e-3 * norm)
    if len(wrong):
        raise DataError(f"{replay.path}: {len(wrong)} of {len(replay)} actions do not have length {norm:g} (transition "
                        f"{wrong[0]} has {lengths[wrong[0]]:g}); give the norm they were collected with, or none")


def _number(*what: object) -> int:
    return int.from_bytes(hashlib.blake2b(repr(what).encode(), digest_size=7).digest(), "big")
