"""TD3+BC held to hand-computed steps, to problems whose best policy is known, and to its own uninterrupted run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dialoom.errors import ConfigError, DataError, TrainingError
from dialoom.models.steering import Planner, PlannerShape
from dialoom.store import read_rows
from dialoom.train.checkpoint import load_newest
from dialoom.train.replay import Episode, Replay, Transitions
from dialoom.train.td3 import TD3, Critic, actor_loss, polyak, smooth, td3, td_target
from dialoom.train.td3_config import PAPER, TD3Config
from tests.tiny import files_in, half_removed

QUICK = TD3Config(steps=600, batch_size=128, critic_lr=3e-3, actor_lr=1e-3, tau=0.02, actor_widths=(32, 32),
                  critic_widths=(64, 32), gamma=0.9)


def config(**changes: Any) -> TD3Config:
    return TD3Config(**(QUICK.model_dump() | changes))


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


# Formulas


def test_the_target_takes_the_smaller_next_value_and_none_where_the_dialogue_ended():
    found = td_target(torch.tensor([0.5, 0.25, 1.0]), torch.tensor([0.0, 0.0, 1.0]),
                      (torch.tensor([2.0, 1.0, 9.0]), torch.tensor([1.0, 3.0, 9.0])), gamma=0.9)
    assert found.tolist() == pytest.approx([0.5 + 0.9, 0.25 + 0.9, 1.0])


def test_a_smoothed_action_is_clipped_noise_added_and_brought_back_to_the_sphere():
    actions, noise = torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.tensor([[9.0, 1.5], [-0.1, 0.0]])
    found = smooth(actions, noise, clip=0.5, norm=2.0)
    assert found[0].tolist() == pytest.approx([2 * 2.5 / 6.5 ** 0.5, 2 * 0.5 / 6.5 ** 0.5])  # (2.5, 0.5) to length 2
    assert found.norm(dim=-1).tolist() == pytest.approx([2.0, 2.0])
    assert smooth(actions, noise, clip=0.5, norm=None).flatten().tolist() == pytest.approx([2.5, 0.5, -0.1, 2.0])


def test_the_actors_loss_by_hand_with_and_without_the_clone_term():
    values, actions = torch.tensor([1.0, -3.0]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    tried = torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    # mean |value| 2, mean value -1, mean squared distance 1/4
    assert float(actor_loss(values, actions, tried, 2.5)) == pytest.approx(2.5 / 2 + 0.25)
    assert float(actor_loss(values, actions, tried, 0.0)) == pytest.approx(1.0)


def test_the_value_scale_carries_no_gradient():
    values = torch.tensor([2.0, 4.0], requires_grad=True)
    actor_loss(values, torch.zeros(2, 1), torch.zeros(2, 1), 3.0).backward()
    assert values.grad.tolist() == pytest.approx([-0.5, -0.5])  # -(3 / 3) / 2 each


def test_polyak_moves_by_its_share():
    slow, fast = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    slow.weight.data.fill_(1.0), fast.weight.data.fill_(3.0)
    polyak(slow, fast, 0.25)
    assert float(slow.weight.detach()) == 1.5 and float(fast.weight.detach()) == 3.0


# Networks


def test_networks_at_the_papers_sizes_have_the_papers_parameters():
    with torch.device("meta"):
        actor, critic = Planner(PlannerShape(4096, 64, (4096, 4096))), Critic(4096, 64, PAPER.critic_widths)
    counts = [sum(parameter.numel() for parameter in net.parameters()) / 1e6 for net in (actor, critic)]
    assert counts == pytest.approx([33.82, 18.09], abs=0.005)


def test_actions_lie_on_the_sphere_and_the_state_is_normalised():
    draws = np.random.default_rng(0)
    states = draws.normal(3, 10, size=(20, 6)).astype(np.float32)
    learner = TD3(6, 4, QUICK, norm=0.6, mean=states.mean(0), std=states.std(0))
    assert np.linalg.norm(learner.act(states), axis=1) == pytest.approx(0.6)
    plain = TD3(6, 4, QUICK, norm=0.6)
    assert learner.act(states) == pytest.approx(plain.act((states - states.mean(0)) / states.std(0)), abs=1e-5)
    assert np.ptp(np.linalg.norm(TD3(6, 4, QUICK, norm=None).act(states), axis=1)) > 1e-3


# One step


def batch_of(size: int = 8, seed: int = 0) -> Transitions:
    draws = np.random.default_rng(seed)
    states, after = (draws.normal(size=(size, 3)).astype(np.float32) for _ in range(2))
    return Transitions(states, unit(draws.normal(size=(size, 2))), draws.random(size).astype(np.float32), after,
                       (draws.random(size) < 0.5).astype(np.float32))


def test_targets_without_noise_are_the_formula_on_the_target_networks():
    learner, batch = TD3(3, 2, config(policy_noise=0.0)), batch_of()
    with torch.no_grad():
        for parameter in learner.critics.parameters():
            parameter.zero_()  # the trained critics have no say
        after = torch.from_numpy(batch.next_states)
        values = [critic(after, learner.target_actor(after)).numpy() for critic in learner.target_critics]
    expected = batch.rewards + (1 - batch.done) * 0.9 * np.minimum(*values)
    assert learner.targets(batch).numpy() == pytest.approx(expected)
    assert not np.array_equal(*values)


def test_noise_moves_targets_only_where_a_dialogue_goes_on_and_is_drawn_anew_each_step():
    learner, batch = TD3(3, 2, config(policy_noise=0.4)), batch_of()
    still, noisy = TD3(3, 2, config(policy_noise=0.0)).targets(batch), learner.targets(batch)
    changed = (still != noisy).numpy()
    assert changed.any() and not changed[batch.done == 1].any()
    assert learner.targets(batch).equal(noisy)
    learner.step += 1
    assert not learner.targets(batch).equal(noisy)


def weights(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten().clone() for parameter in module.parameters()])


def test_actor_and_targets_move_only_every_third_step_where_the_delay_is_three():
    learner = TD3(3, 2, config(policy_delay=3, tau=0.25))
    for step in range(1, 7):
        slow, fast, actor = (weights(part) for part in (learner.target_critics, learner.critics, learner.actor))
        row = learner.update(batch_of(seed=step))
        due = step % 3 == 0
        assert not weights(learner.critics).equal(fast)
        assert weights(learner.actor).equal(actor) is not due and ("actor_loss" in row) is due
        expected = 0.75 * slow + 0.25 * weights(learner.critics) if due else slow
        assert torch.allclose(weights(learner.target_critics), expected, atol=1e-6)


def test_the_actors_step_leaves_the_critics_alone():
    batch = batch_of()
    now, later = TD3(3, 2, config(policy_delay=1)), TD3(3, 2, config(policy_delay=9))
    now.update(batch), later.update(batch)
    assert weights(now.critics).equal(weights(later.critics))


def test_a_loss_that_is_no_number_stops_before_it_spoils_the_networks():
    learner, batch = TD3(3, 2, QUICK), batch_of()
    batch.rewards[0] = np.nan
    before = weights(learner.critics)
    with pytest.raises(TrainingError, match="critics is nan"):
        learner.update(batch)
    assert weights(learner.critics).equal(before)


def test_a_gradient_that_is_no_number_stops_before_it_spoils_the_networks():
    learner = TD3(3, 2, config(policy_delay=1))
    learner.actor.layers[0].weight.register_hook(lambda gradient: gradient * np.nan)
    before = weights(learner.actor)
    with pytest.raises(TrainingError, match="gradient norm of the actor is nan"):
        learner.update(batch_of())
    assert weights(learner.actor).equal(before)


def test_a_training_that_diverges_stops_names_its_transitions_and_keeps_the_last_good_checkpoint(tmp_path):
    replay, wild = bandit(tmp_path / "replay", 50), config(steps=9, batch_size=8, critic_lr=1e30, checkpoint_every=1)
    with pytest.raises(TrainingError, match=r"step 2: the loss of the critics is (inf|nan) on rows transition \d+, .*"
                                            r"bad_batch.json\); the last good checkpoint is step 1; .*lower the rate"):
        td3(replay, wild, out=tmp_path / "run")
    report = json.loads((tmp_path / "run" / "bad_batch.json").read_text())
    drawn = replay.drawn(8, seed=wild.seed, step=1)
    assert (report["step"], report["rows"]) == (2, [f"transition {at}" for at in drawn])
    assert load_newest(tmp_path / "run" / "checkpoints").step == 1
    assert [row["step"] for row in read_rows(tmp_path / "run" / "metrics.jsonl")] == [1]
    assert np.array_equal(replay.transitions(drawn).actions, replay.sample(8, seed=wild.seed, step=1).actions)


# Problems whose best policy is known


def bandit(path: Path, count: int = 400) -> Replay:
    """One round; the best direction is east or west as the state says. Tried directions lean north, worth 1/2."""
    draws = np.random.default_rng(5)
    replay = Replay(path, 3, 2)
    states = draws.normal(size=(count, 3)).astype(np.float32)
    actions = unit(draws.normal(size=(count, 2)) + np.array([0.0, 0.7]))
    replay.append([Episode(str(at), states[at:at + 1], actions[at:at + 1], bandit_reward(states, actions)[at:at + 1])
                   for at in range(count)])
    return replay


def bandit_reward(states: np.ndarray, actions: np.ndarray) -> np.ndarray:
    return (1 + np.sign(states[:, 0]) * actions[:, 0]) / 2


def bandit_score(learner: TD3) -> float:
    states = np.random.default_rng(6).normal(size=(400, 3)).astype(np.float32)
    return float(bandit_reward(states, learner.act(states)).mean())


@pytest.mark.parametrize("alpha", [0.0, 2.5])
def test_the_bandit_is_solved_and_no_constant_action_could(tmp_path, alpha):
    learner = td3(bandit(tmp_path / "replay"), config(alpha=alpha), out=tmp_path / "run")
    assert bandit_score(learner) > 0.9
    states = np.random.default_rng(6).normal(size=(400, 3))
    directions = [np.tile([np.cos(angle), np.sin(angle)], (400, 1)) for angle in np.linspace(0, 2 * np.pi, 24)]
    assert max(bandit_reward(states, one).mean() for one in directions) < 0.55


def test_cloning_alone_does_not_solve_the_bandit(tmp_path):
    learner = td3(bandit(tmp_path / "replay"), config(alpha=1e-6), out=tmp_path / "run")
    assert bandit_score(learner) < 0.6


def chain(path: Path, count: int = 500) -> Replay:
    """Two rounds: the first earns nothing but opens a door so far, and as far the second earns what it can."""
    draws = np.random.default_rng(7)
    replay = Replay(path, 3, 2)
    hints = np.sign(draws.normal(size=count)).astype(np.float32)
    actions = unit(draws.normal(size=(count, 2, 2)))
    opened = (1 + hints * actions[:, 0, 0]) / 2
    rewards = opened * (1 + actions[:, 1, 1]) / 2
    replay.append([Episode(str(at), np.array([[hints[at], 0, 0], [0, 1, opened[at]]], np.float32), actions[at],
                           np.array([0, rewards[at]], np.float32)) for at in range(count)])
    return replay


def test_the_chain_is_solved_through_a_round_that_earns_nothing_itself(tmp_path):
    learner = td3(chain(tmp_path / "replay"), config(steps=700, tau=0.05, actor_lr=3e-3), out=tmp_path / "run")
    first = learner.act(np.array([[1, 0, 0], [-1, 0, 0]], np.float32))
    last = learner.act(np.array([[0, 1, 1]], np.float32))
    assert first[0, 0] > 0.8 and first[1, 0] < -0.8 and last[0, 1] > 0.8
    short = td3(chain(tmp_path / "replay"), config(steps=300, gamma=0.0), out=tmp_path / "short")
    values = [float(net.critics[0](torch.tensor([[1.0, 0, 0]]), torch.tensor([[1.0, 0]])).detach())
              for net in (learner, short)]
    assert values[0] > 0.7 and abs(values[1]) < 0.1  # 0.9 is the most; without a future the door is worth nothing


# A training as a whole


def test_a_training_that_was_killed_ends_as_the_uninterrupted_one(tmp_path):
    replay, small = bandit(tmp_path / "replay", 50), config(steps=25, checkpoint_every=7)
    whole = td3(replay, small, out=tmp_path / "whole")

    def killed(row: dict[str, Any]) -> None:
        if row["step"] == 18:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        td3(replay, small, out=tmp_path / "killed", log=killed)
    told: list[int] = []
    reopened = Replay(tmp_path / "replay", 3, 2)
    again = td3(reopened, small, out=tmp_path / "killed", log=lambda row: told.append(row["step"]))
    assert told == list(range(15, 26))
    for part in ("actor", "critics", "target_actor", "target_critics"):
        assert weights(getattr(again, part)).equal(weights(getattr(whole, part)))
    assert read_rows(tmp_path / "killed" / "metrics.jsonl") == read_rows(tmp_path / "whole" / "metrics.jsonl")
    files = {file.suffix for file in (tmp_path / "whole" / "checkpoints").rglob("*") if file.is_file()}
    assert files == {".json", ".safetensors"}


def test_a_finished_training_is_only_loaded(tmp_path):
    replay, small = bandit(tmp_path / "replay", 50), config(steps=5)
    first = td3(replay, small, out=tmp_path / "run")
    told: list[Any] = []
    again = td3(replay, small, out=tmp_path / "run", log=told.append)
    assert told == [] and weights(again.actor).equal(weights(first.actor)) and again.step == 5


def test_what_a_kill_left_of_an_older_checkpoint_is_removed_by_the_next_run(tmp_path):
    replay, small = bandit(tmp_path / "replay", 50), config(steps=9, checkpoint_every=3)
    td3(replay, small, out=tmp_path / "run")
    held = half_removed(tmp_path / "run" / "checkpoints")
    td3(replay, small, out=tmp_path / "run")
    assert files_in(tmp_path / "run" / "checkpoints") == held


def test_the_seed_decides_everything_and_torchs_own_draws_nothing(tmp_path):
    replay = bandit(tmp_path / "replay", 50)
    found = []
    for at, seed in enumerate((0, 0, 1)):
        torch.manual_seed(at)
        found.append(weights(td3(replay, config(steps=6, seed=seed), out=tmp_path / str(at)).actor))
    assert found[0].equal(found[1]) and not found[0].equal(found[2])


def test_other_settings_data_or_norms_are_refused(tmp_path):
    replay, small = bandit(tmp_path / "replay", 50), config(steps=2)
    td3(replay, small, out=tmp_path / "run")
    with pytest.raises(ConfigError, match=r"alpha: 2\.5 -> 0\.0"):
        td3(replay, config(steps=2, alpha=0.0), out=tmp_path / "run")
    replay.append([Episode("new", np.zeros((1, 3)), np.array([[1.0, 0.0]]), np.ones(1))])
    with pytest.raises(ConfigError, match="replay"):
        td3(replay, small, out=tmp_path / "run")
    with pytest.raises(DataError, match="do not have length 2 "):
        td3(replay, small, out=tmp_path / "other", norm=2.0)
    with pytest.raises(ConfigError, match="action norm of 0"):
        TD3(3, 2, QUICK, norm=0.0)
    with pytest.raises(DataError, match="is empty"):
        td3(Replay(tmp_path / "none", 3, 2), small, out=tmp_path / "empty")
