"""The replay: states stand once, collectors share a file, a torn tail is cut, the order of writing changes nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dialoom.errors import ConfigError, DataError, StoreError
from dialoom.train.replay import HEADER, Episode, Replay

STATE, ACTION = 5, 3


def episode(key: str, rounds: int = 3, *, ended: bool = True) -> Episode:
    draws = np.random.default_rng(list(key.encode()))
    states = draws.integers(-50, 50, size=(rounds + (not ended), STATE)).astype(np.float32)  # exact in float16
    return Episode(key, states, draws.normal(size=(rounds, ACTION)).astype(np.float32),
                   draws.random(rounds).astype(np.float32))


def replay_of(path: Path, *keys: str, **settings: Any) -> Replay:
    replay = Replay(path, STATE, ACTION, **settings)
    replay.append([episode(key) for key in keys])
    return replay


def rows_in(path: Path, row: int = 2 * STATE + 4 * ACTION + 28) -> float:
    return (path.stat().st_size - HEADER) / row


def test_transitions_of_a_dialogue_that_ended_and_of_one_that_was_cut_off(tmp_path):
    whole, cut = episode("ended"), episode("cut off", 2, ended=False)
    for one, done in ((whole, [0, 0, 1]), (cut, [0, 0])):
        replay = Replay(tmp_path / f"{one.key}.replay", STATE, ACTION)
        assert replay.append([one]) == 1
        found = replay.transitions(range(len(replay)))
        assert found.states.tolist() == one.states[:len(done)].tolist()
        assert found.actions.tolist() == one.actions.tolist() and found.rewards.tolist() == one.rewards.tolist()
        assert found.done.tolist() == done
        going_on = [at for at, ended in enumerate(done) if not ended]
        assert found.next_states[going_on].tolist() == one.states[1:].tolist()


def test_a_state_stands_once_and_the_file_is_as_large_as_its_rows(tmp_path):
    path = tmp_path / "a.replay"
    replay_of(path, "a", "b")
    assert rows_in(path) == 6  # six states; six transitions kept as pairs would be twelve
    Replay(path, STATE, ACTION).append([episode("c", 2, ended=False)])
    assert rows_in(path) == 9


def test_a_replay_grows_past_any_first_size_and_forgets_nothing(tmp_path):
    replay = Replay(tmp_path / "a.replay", STATE, ACTION)
    for round_ in range(5):
        replay.append([episode(f"{round_}/{number}") for number in range(20)])
        assert len(replay) == 60 * (round_ + 1) and replay.episodes == 20 * (round_ + 1)
    assert "0/0" in replay and "4/19" in replay and "5/0" not in replay
    again = Replay(tmp_path / "a.replay", STATE, ACTION)
    assert again.fingerprint == replay.fingerprint and len(again) == 300


def test_a_dialogue_is_written_once_whoever_collects_it(tmp_path):
    path = tmp_path / "a.replay"
    one, other = Replay(path, STATE, ACTION), Replay(path, STATE, ACTION)
    assert one.append([episode("a"), episode("b")]) == 2
    assert other.append([episode("b"), episode("c")]) == 1
    assert len(one) == 6
    one.refresh()
    assert len(one) == len(other) == 9 and one.fingerprint == other.fingerprint


def test_several_processes_append_at_once(tmp_path):
    path = tmp_path / "a.replay"
    code = ("import sys; from pathlib import Path; from tests.test_replay import *\n"
            f"replay = Replay(Path({str(path)!r}), STATE, ACTION)\n"
            "for number in range(20): replay.append([episode(f'{sys.argv[1]}/{number}')])")
    running = [subprocess.Popen([sys.executable, "-c", code, name], cwd=Path(__file__).parent.parent) for name in "abc"]
    assert [process.wait() for process in running] == [0, 0, 0]
    told: list[str] = []
    assert Replay(path, STATE, ACTION, log=told.append).episodes == 60 and told == []


def test_who_wrote_first_changes_no_batch(tmp_path):
    forward = replay_of(tmp_path / "a.replay", "a", "b", "c")
    backward = replay_of(tmp_path / "b.replay", "c", "b", "a")
    assert forward.fingerprint == backward.fingerprint
    left, right = (replay.sample(64, seed=1, step=7) for replay in (forward, backward))
    assert left.states.tolist() == right.states.tolist() and left.rewards.tolist() == right.rewards.tolist()
    assert forward.sample(64, seed=1, step=8).states.tolist() != left.states.tolist()
    assert forward.sample(64, seed=2, step=7).states.tolist() != left.states.tolist()
    assert {tuple(row) for row in forward.sample(500, seed=0, step=0).actions.tolist()} == {
        tuple(row) for row in forward.transitions(range(9)).actions.tolist()}


@pytest.mark.parametrize("lost", [1, 40, 60, 149])  # one row is 50 bytes: within a row, after one, all but a byte
def test_a_torn_tail_is_ignored_by_readers_and_cut_by_the_next_writer_who_say_so(tmp_path, lost):
    path = tmp_path / "a.replay"
    replay_of(path, "a", "b")
    path.write_bytes(path.read_bytes()[:-lost])
    told: list[str] = []
    reader = Replay(path, STATE, ACTION, log=told.append)
    assert len(reader) == 3 and len(told) == 1 and "is ignored" in told[0]
    assert reader.append([episode("b"), episode("c")]) == 2
    assert "was cut off" in told[1] and len(told) == 2
    whole = replay_of(tmp_path / "b", "a", "b", "c")
    assert Replay(path, STATE, ACTION, log=told.append).fingerprint == whole.fingerprint
    assert len(told) == 2 and rows_in(path) == 9


def test_a_tail_of_zeros_after_a_power_cut_is_torn_too(tmp_path):
    path = tmp_path / "a.replay"
    replay_of(path, "a")
    with path.open("ab") as file:
        file.write(bytes(100))
    told: list[str] = []
    assert len(Replay(path, STATE, ACTION, log=told.append)) == 3 and "torn" in told[0]


def test_a_damaged_dialogue_is_left_out_and_told_and_can_be_written_again(tmp_path):
    path = tmp_path / "a.replay"
    replay_of(path, "a", "b", "c")
    data = bytearray(path.read_bytes())
    data[HEADER + 4 * 50 + 45] ^= 1  # in the second dialogue
    path.write_bytes(data)
    told: list[str] = []
    replay = Replay(path, STATE, ACTION, log=told.append)
    assert "rows 3 to 5 are damaged" in told[0] and len(told) == 1
    assert [key in replay for key in "abc"] == [True, False, True]
    assert replay.append([episode("b")]) == 1 and len(replay) == 9


def test_statistics_are_those_of_all_states_and_a_constant_number_divides_by_one(tmp_path):
    one = episode("a", 4, ended=False)
    one.states[:, 2] = 7
    replay = Replay(tmp_path / "a.replay", STATE, ACTION)
    replay.append([one, episode("b")])
    states = np.concatenate([one.states, episode("b").states])
    mean, std = replay.state_statistics()
    assert np.allclose(mean, states.mean(0)) and np.allclose(std, states.std(0))
    alone = Replay(tmp_path / "b.replay", STATE, ACTION)
    alone.append([one])
    assert alone.state_statistics()[1][2] == 1


def test_float32_keeps_states_exactly_and_float16_to_its_rounding(tmp_path):
    one = Episode("a", np.full((1, STATE), 1.2345678, np.float32), *(episode("a", 1).__dict__[name]
                                                                      for name in ("actions", "rewards")))
    for precision, error in (("float32", 0), ("float16", 5e-4)):
        replay = Replay(tmp_path / precision, STATE, ACTION, precision=precision)
        replay.append([one])
        assert np.abs(replay.transitions([0]).states / one.states - 1).max() <= error


@pytest.mark.parametrize(("states", "actions", "rewards", "says"), [
    ((5, STATE), (3, ACTION), 3, "do not fit"), ((3, STATE + 1), (3, ACTION), 3, "do not fit"),
    ((3, STATE), (3, ACTION), 2, "do not fit"), ((0, STATE), (0, ACTION), 0, "do not fit"),
])
def test_episodes_whose_shapes_do_not_fit_are_refused_by_key(tmp_path, states, actions, rewards, says):
    replay = Replay(tmp_path / "a.replay", STATE, ACTION)
    wrong = Episode("scene 7", *(np.zeros(shape, np.float32) for shape in (states, actions, rewards)))
    with pytest.raises(DataError, match=f"scene 7.*{says}"):
        replay.append([episode("a"), wrong])
    assert len(replay) == 0 and not replay.path.exists()


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e5])
def test_numbers_that_cannot_be_kept_are_refused(tmp_path, value):
    one = episode("a")
    one.states[1, 1] = value
    with pytest.raises(DataError, match=r"episode a.*not finite as float16"):
        Replay(tmp_path / "a.replay", STATE, ACTION).append([one])


def test_other_sizes_foreign_files_and_an_empty_replay_are_refused(tmp_path):
    path = tmp_path / "a.replay"
    with pytest.raises(DataError, match="is empty"):
        Replay(path, STATE, ACTION).sample(1, seed=0, step=0)
    replay_of(path, "a")
    with pytest.raises(ConfigError, match="state_size 5 -> 6"):
        Replay(path, STATE + 1, ACTION)
    for text in ("short", "long " * 100):
        (tmp_path / "b.replay").write_text(text)
        with pytest.raises(StoreError, match="is no replay"):
            Replay(tmp_path / "b.replay", STATE, ACTION)
        assert (tmp_path / "b.replay").read_text() == text
