"""The log of trees: what it keeps through torn lines, bit flips, kills, full disks and a second writer."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest

from dialoom.dialogue import DialogueTree, Scenario, Turn, content_id
from dialoom.errors import DataError, StoreError
from dialoom.store import (
    FollowedLog,
    Skip,
    StoreWarning,
    TreeLog,
    append_row,
    framed,
    read_rows,
    read_skips,
    read_trees,
    write_rows,
    write_whole,
)


def quiet(_: str) -> None:
    pass


def sample_tree(name: str = "q1", turns: int = 4) -> DialogueTree:
    """A chain with a side branch under the first turn."""
    tree = DialogueTree(Scenario(name, f"Question {name}?", {"A": "be brief"}, {"gold": ["x"]}))
    parent = None
    for depth in range(turns):
        speaker = "AB"[depth % 2]
        turn = tree.add(Turn(content_id(name, depth), parent, speaker, f"text {depth} é\u2028\n", {"model": "m"}))
        if depth == 1:
            tree.add(Turn(content_id(name, depth, "side"), parent, speaker, "other", scores={"right": 1.0}))
        parent = turn.id
    return tree


def write_log(path: Path, names: tuple[str, ...] = ("q1", "q2")) -> dict[str, DialogueTree]:
    trees = {name: sample_tree(name) for name in names}
    with TreeLog(path) as log:
        for tree in trees.values():
            log.add_tree(DialogueTree(tree.scenario))
            log.add_turns(tree, tree)
    return trees


def contents(trees: dict[str, DialogueTree]) -> dict[str, object]:
    return {tree.id: (tree.scenario, {turn.id: turn for turn in tree}) for tree in trees.values()}


# ------------------------------------------------------------------------------------------ round trips


def test_what_is_logged_is_what_is_replayed(tmp_path):
    trees = write_log(tmp_path / "trees.jsonl")
    assert contents(read_trees(tmp_path / "trees.jsonl")) == contents(trees)
    with TreeLog(tmp_path / "trees.jsonl") as log:
        assert contents(log.trees()) == contents(trees)


def test_add_tree_logs_the_turns_it_already_has(tmp_path):
    tree = sample_tree()
    with TreeLog(tmp_path / "t.jsonl") as log:
        log.add_tree(tree)
        assert contents(log.trees()) == contents({tree.id: tree})


def test_a_tree_logged_again_adds_only_the_turns_that_are_new(tmp_path):
    tree = sample_tree()
    with TreeLog(tmp_path / "t.jsonl") as log:
        log.add_tree(DialogueTree(tree.scenario))
        log.add_turns(tree, list(tree)[:2])
    with TreeLog(tmp_path / "t.jsonl") as log:
        log.add_tree(tree)
        log.add_tree(tree)
        assert contents(log.trees()) == contents({tree.id: tree})
    assert len((tmp_path / "t.jsonl").read_bytes().split(b"\n")) == 1 + len(tree) + 1


def test_a_score_updates_the_scores_and_notes_of_its_turn(tmp_path):
    trees = write_log(tmp_path / "t.jsonl", ("q1",))
    first = next(iter(trees["q1"]))
    with TreeLog(tmp_path / "t.jsonl") as log:
        first.scores = {"right": 0.0, "value": 2.0}
        first.notes["answer"] = "x"
        log.add_scores(trees["q1"], [first])
        first.scores["right"] = 1.0
        log.add_scores(trees["q1"], [first])
    turn = read_trees(tmp_path / "t.jsonl")["q1"][first.id]
    assert turn.scores == {"right": 1.0, "value": 2.0}
    assert turn.notes == {"model": "m", "answer": "x"}


def test_a_skip_is_logged_once_and_needs_no_turn_in_the_log(tmp_path):
    write_log(tmp_path / "t.jsonl", ("q1",))
    for _ in range(2):
        with TreeLog(tmp_path / "t.jsonl") as log:
            log.skip("q1", None, "no answer")
            log.skip("q1", "abc", "cut at the length limit")
    skips = [Skip("q1", None, "no answer"), Skip("q1", "abc", "cut at the length limit")]
    assert read_skips(tmp_path / "t.jsonl") == skips


def test_every_line_is_json_whose_last_field_is_the_crc(tmp_path):
    write_log(tmp_path / "t.jsonl")
    for line in (tmp_path / "t.jsonl").read_bytes().split(b"\n")[:-1]:
        assert list(json.loads(line))[-1] == "crc"


def test_lone_surrogates_survive(tmp_path):
    tree = DialogueTree(Scenario("q", "bad \ud800 text"))
    with TreeLog(tmp_path / "t.jsonl") as log:
        log.add_tree(tree)
        assert log.trees()["q"].scenario.opening == "bad \ud800 text"


def test_repeats_unknown_parents_and_unknown_trees_are_refused_on_write(tmp_path):
    tree = sample_tree()
    first = next(iter(tree))
    with TreeLog(tmp_path / "t.jsonl") as log:
        with pytest.raises(DataError, match="add_tree first"):
            log.add_turns(tree, [first])
        log.add_tree(DialogueTree(tree.scenario))
        with pytest.raises(DataError, match="another scenario"):
            log.add_tree(DialogueTree(Scenario("q1", "another question")))
        with pytest.raises(DataError, match="parents before children"):
            log.add_turns(tree, tree.leaves())
        with pytest.raises(DataError, match="log the turn first"):
            log.add_scores(tree, [first])
        log.add_turns(tree, [first])
        with pytest.raises(DataError, match="must be unique"):
            log.add_turns(tree, [first])
        assert len(log.trees()[tree.id]) == 1


@pytest.mark.parametrize("note", [float("nan"), {1, 2}, object()])
def test_a_record_that_is_not_plain_json_is_refused_and_nothing_is_written(tmp_path, note):
    tree = DialogueTree(Scenario("q", "?"))
    with TreeLog(tmp_path / "t.jsonl") as log:
        log.add_tree(tree)
        size = log.path.stat().st_size
        with pytest.raises(DataError, match="plain JSON"):
            log.add_turns(tree, [Turn("1", None, "A", "hi", {"x": note})])
        assert log.path.stat().st_size == size


# ---------------------------------------------------------------------------------------------- damage


def test_a_last_line_torn_at_any_byte_is_cut_and_the_rest_kept(tmp_path):
    path = tmp_path / "t.jsonl"
    trees = write_log(path)
    whole = path.read_bytes()
    last = len(whole) - len(whole.rstrip(b"\n").rsplit(b"\n", 1)[1]) - 1
    lost = list(trees["q2"])[-1]
    for end in range(last + 1, len(whole)):
        path.write_bytes(whole[:end])
        said: list[str] = []
        with TreeLog(path, log=said.append) as log:
            assert lost.id not in log.trees()["q2"]
            assert sum(map(len, log.trees().values())) == sum(map(len, trees.values())) - 1
            log.add_turns(trees["q2"], [lost])
        assert f"byte {last} " in said[0] and str(path) in said[0]
        assert path.read_bytes() == whole


def test_a_reader_ignores_a_torn_line_and_leaves_the_file_alone(tmp_path):
    path = tmp_path / "t.jsonl"
    write_log(path)
    path.write_bytes(path.read_bytes()[:-3])
    before = path.read_bytes()
    with pytest.warns(StoreWarning, match="torn at byte"):
        assert set(read_trees(path)) == {"q1", "q2"}
    assert path.read_bytes() == before


def test_single_bit_flips_never_give_a_wrong_record_and_the_log_heals(tmp_path):
    path, rng = tmp_path / "t.jsonl", random.Random(0)
    trees = write_log(path)
    whole, right = path.read_bytes(), contents(trees)
    for _ in range(200):
        data = bytearray(whole)
        at = rng.randrange(len(data))
        data[at] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(data))
        with TreeLog(path, log=quiet) as log:
            found = log.trees()
            for tree in found.values():
                assert tree.scenario == trees[tree.id].scenario
                assert all(turn == trees[tree.id][turn.id] for turn in tree)
            assert contents(found) != right
            for tree in trees.values():
                if tree.id not in found:
                    log.add_tree(DialogueTree(tree.scenario))
                have = found.get(tree.id, ())
                log.add_turns(tree, [turn for turn in tree if turn.id not in have])
        assert contents(read_trees(path)) == right  # read_trees warns, and so fails here, if anything were still wrong


def test_a_bad_line_in_the_middle_is_quarantined_with_the_turns_below_it(tmp_path):
    path = tmp_path / "t.jsonl"
    write_log(path, ("q1",))
    lines = path.read_bytes().split(b"\n")
    assert b'"text 1' in lines[2]
    lines[2] = lines[2].replace(b"text 1", b"text 9")
    path.write_bytes(b"\n".join(lines))
    with pytest.warns(StoreWarning, match=r":3 \(byte \d+\) fails its checksum; 3 records went to t.jsonl.bad"):
        log = TreeLog(path)
    with log:
        assert [turn.text for turn in log.trees()["q1"]] == ["text 0 é\u2028\n", "other"]
    assert (tmp_path / "t.jsonl.bad").read_bytes() == b"\n".join([lines[2], *lines[4:]])
    with TreeLog(path, log=lambda message: pytest.fail(message)):
        pass


def test_a_record_of_a_kind_from_the_future_is_refused_not_thrown_away(tmp_path):
    path = tmp_path / "t.jsonl"
    write_log(path)
    body = b'{"kind":"hologram"}'
    path.write_bytes(path.read_bytes() + body[:-1] + b',"crc":"%08x"}\n' % zlib.crc32(body))
    before = path.read_bytes()
    with pytest.raises(StoreError, match="unknown kind 'hologram'"):
        TreeLog(path)
    assert path.read_bytes() == before


def test_a_missing_log_is_a_store_error(tmp_path):
    with pytest.raises(StoreError, match="cannot read a tree log"):
        read_trees(tmp_path / "none.jsonl")


# ------------------------------------------------------------------------------------ writers and kills


def test_a_second_writer_is_refused_by_name_of_the_first(tmp_path):
    path = tmp_path / "t.jsonl"
    with TreeLog(path), pytest.raises(StoreError, match=f"process {os.getpid()} is writing it"):
        TreeLog(path)
    with TreeLog(path):  # and freed on closing
        pass


WRITER = """
import sys
from dialoom.dialogue import DialogueTree, Scenario, Turn, content_id
from dialoom.store import TreeLog
made = 0
with TreeLog(sys.argv[1], log=print) as log:
    known = log.trees()
    for number in range(int(sys.argv[2])):
        tree = known.get(f"q{number}")
        if tree is None:
            tree = DialogueTree(Scenario(f"q{number}", "?"))
            log.add_tree(tree)
        parent = None
        for depth in range(5):
            turns = [Turn(content_id(number, depth, k), parent, "AB"[depth % 2], f"{depth} " * 100) for k in range(2)]
            new = [tree.add(turn) for turn in turns if turn.id not in tree]
            log.add_turns(tree, new)
            made += len(new)
            parent = turns[0].id
"""


def test_a_writer_killed_at_random_moments_ends_with_the_log_of_an_undisturbed_one(tmp_path):
    path, rng = tmp_path / "t.jsonl", random.Random(1)
    command = [sys.executable, "-c", WRITER, str(path), "1500"]
    kills = 0
    while True:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        if kills < 6:
            while not path.exists() and process.poll() is None:
                time.sleep(0.01)
            try:
                process.wait(timeout=rng.uniform(0.0, 0.15))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                kills += 1
        if process.wait() == 0:
            break
    assert kills
    lines = path.read_bytes().split(b"\n")[:-1]
    trees = read_trees(path)
    assert len(trees) == 1500 and all(len(tree) == 10 for tree in trees.values())
    assert len(lines) == len(set(lines)) == 1500 * 11


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="choose another folder"):
        TreeLog(tmp_path / "file" / "t.jsonl")
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)  # folder modes do not bind root
    try:
        with pytest.raises(StoreError, match="choose another folder"):
            TreeLog(locked / "t.jsonl")
    finally:
        if root:
            os.seteuid(0)


@pytest.fixture
def small_disk():
    """Files may grow to 8,000 bytes only; a write past that fails as on a full disk, after a short write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8000, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_stops_cleanly_and_the_run_continues_once_there_is_room(tmp_path, small_disk):
    path, tree = tmp_path / "t.jsonl", DialogueTree(Scenario("q", "?"))
    turns = [Turn(str(number), None, "A", "x" * 300) for number in range(60)]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with TreeLog(path) as log:
        log.add_tree(tree)
        log.add_turns(tree, turns[:10])
        small_disk()
        with pytest.raises(StoreError, match="run the same command to continue"):
            log.add_turns(tree, turns[10:])
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with TreeLog(path, log=lambda message: pytest.fail(message)) as log:  # the half batch was taken back
        assert len(log.trees()["q"]) == 10
        log.add_turns(tree, turns[10:])
        assert len(log.trees()["q"]) == 60


# -------------------------------------------------------------------------------------------- whole files


def test_rows_come_back_and_a_failed_write_leaves_the_old_file(tmp_path, small_disk):
    path = tmp_path / "pairs.jsonl"
    rows = [{"n": number, "text": "ü\u2028"} for number in range(3)]
    write_rows(path, rows)
    assert read_rows(path) == rows
    small_disk()
    with pytest.raises(StoreError):
        write_whole(path, b"y" * 20000)
    assert read_rows(path) == rows and list(tmp_path.iterdir()) == [path]


def test_an_appended_row_follows_a_cut_of_the_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_row(path, {"step": 1})
    append_row(path, {"step": 2})
    path.write_bytes(path.read_bytes()[:-4])
    said: list[str] = []
    assert read_rows(path, log=said.append) == [{"step": 1}] and ":2: the last line was torn" in said[0]
    append_row(path, {"step": 2})
    assert read_rows(path) == [{"step": 1}, {"step": 2}]
    path.write_bytes(b"torn from the start")
    append_row(path, {"step": 1})
    assert read_rows(path) == [{"step": 1}]


def test_a_row_that_is_no_json_object_is_named_by_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n\nnope\n')
    with pytest.raises(DataError, match=r"rows\.jsonl:3: not JSON"):
        read_rows(path)
    path.write_text("[1]\n")
    with pytest.raises(DataError, match="expected a JSON object, found list"):
        read_rows(path)
    with pytest.raises(StoreError, match="cannot be read"):
        read_rows(tmp_path / "none.jsonl")


def test_followed_log_reads_on_and_equals_one_read_at_once(tmp_path):
    path = tmp_path / "trees.jsonl"
    with TreeLog(path) as log:
        log.add_tree(_followed_tree("a"))
        followed = FollowedLog(path)
        followed.read()
        before = dict(followed.changes)
        log.add_tree(_followed_tree("b"))
        log.skip("a", "a1", "too long")
    followed.read()
    assert followed.trees.keys() == {"a", "b"} and followed.skips == read_skips(path)
    assert [list(tree) for tree in followed.trees.values()] == [list(tree) for tree in read_trees(path).values()]
    assert followed.changes["a"] == before["a"] + 1 and "b" not in before


def test_followed_log_leaves_half_a_line_for_later(tmp_path):
    path, told = tmp_path / "trees.jsonl", []
    with TreeLog(path) as log:
        log.add_tree(_followed_tree("a"))
    line = framed({"kind": "skip", "tree": "a", "turn": None, "reason": "x"}, "here")
    with path.open("ab") as file:
        file.write(line[:20])
    followed = FollowedLog(path)
    followed.read(log=told.append)
    assert "torn" in told[0] and not followed.skips
    with path.open("ab") as file:
        file.write(line[20:])
    followed.read(log=told.append)
    assert len(told) == 1 and [skip.reason for skip in followed.skips] == ["x"]


def test_followed_log_that_was_repaired_or_begun_anew_is_read_from_its_start(tmp_path):
    path, told = tmp_path / "trees.jsonl", []
    with TreeLog(path) as log:
        log.add_tree(_followed_tree("a"))
        log.add_tree(_followed_tree("b"))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:1], lines[1].replace(b"said", b"sold"), *lines[2:]]))
    followed = FollowedLog(path)
    followed.read(log=told.append)
    assert "fails its checksum" in told[0] and len(followed.trees["a"]) == 0
    with TreeLog(path, log=told.append) as log:   # repairs, and says the turn again
        log.add_tree(_followed_tree("a"))
    followed.read(log=told.append)
    assert len(followed.trees["a"]) == 1 and len(told) == 2
    path.unlink()
    with TreeLog(path) as log:
        log.add_tree(_followed_tree("c"))
    followed.read()
    assert followed.trees.keys() == {"c"}
    path.unlink()
    with pytest.raises(StoreError, match="cannot read a tree log"):
        followed.read()


def _followed_tree(name):
    tree = DialogueTree(Scenario(name, "Who?"))
    tree.add(Turn(f"{name}1", None, "A", "I said so."))
    return tree
