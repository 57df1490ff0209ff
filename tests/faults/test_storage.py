"""Disks that are full, read-only or slow to remember, files that are damaged, and folders that are taken."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dialoom.dialogue import DialogueTree, Scenario, Turn
from dialoom.errors import StoreError
from dialoom.recipes.run import RunFolder
from dialoom.store import SYNC_RECORDS, TreeLog, read_trees
from tests.faults.compare import contents, difference
from tests.faults.runs import personas_config
from tests.faults.server import Forks

QUICK = ("ditto", "personas")
ALL = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in ("pbt", "aloe", "ideas"))]


def same(expected: Path, found: Path) -> bool:
    told = difference(expected, found)
    assert told.none, told
    return True


# ------------------------------------------------------------------------------------------------ no room


@pytest.mark.parametrize("name", ALL)
def test_a_file_that_cannot_grow_stops_the_run_in_one_line_and_it_goes_on_later(name, forks, whole, tmp_path):
    sizes = [path.stat().st_size for path in whole(name).rglob("*") if path.is_file()]
    for limit in (max(sizes) // 9, max(sizes) // 2):
        out = tmp_path / f"{name}-{limit}"
        status, said = forks.run(name, out, f"small_files:{limit}")
        assert status == 2 and "make room" in said and "Traceback" not in said, said
        assert forks.run(name, out)[0] == 0
        assert same(whole(name), out)


@pytest.mark.parametrize("name", ALL)
def test_a_full_disk_stops_the_run_in_one_line_and_it_goes_on_once_there_is_room(name, forks, whole, small_disk):
    used = sum(path.stat().st_size for path in whole(name).rglob("*") if path.is_file())
    for share in (0.2, 0.7):
        disk = small_disk(f"size={int(used * share) // 4096 * 4096 + 4096}")
        status, said = forks.run(name, disk / "run")
        assert status == 2 and "No space left on device" in said and "Traceback" not in said, said
        small_disk("size=64m")
        assert forks.run(name, disk / "run")[0] == 0
        assert same(whole(name), disk / "run")
        shutil.rmtree(disk / "run")


def test_a_read_only_disk_is_refused_before_any_model_is_asked(forks, whole, small_disk, tmp_path):
    disk, asked = small_disk("size=8m"), tmp_path / "asked"
    shutil.copytree(whole("personas"), disk / "run")
    (disk / "run" / "stages" / "profiles.json").unlink()
    (disk / "run" / "growth.jsonl").unlink()
    shutil.copytree(disk / "run", tmp_path / "control")
    before = contents(disk / "run")
    small_disk("ro")
    for folder in ("run", "new"):
        status, said = forks.run("personas", disk / folder, f"counted:{asked}")
        assert status == 2 and "Read-only file system" in said and "Traceback" not in said, said
    with pytest.raises(StoreError, match="choose another folder"):
        TreeLog(disk / "new" / "trees.jsonl")
    assert contents(disk / "run") == before and not asked.exists()
    forks.run("personas", tmp_path / "control", f"counted:{asked}")
    assert asked.stat().st_size > 0  # there was something left to ask, had the disk let it


def test_a_folder_without_permission_is_refused_before_any_model_is_asked(forks, tmp_path):
    for folder in (tmp_path, *tmp_path.parents):  # so that the folder itself is what is refused
        if not folder.stat().st_mode & 0o001 and folder.is_relative_to(tmp_path.parents[2]):
            folder.chmod(folder.stat().st_mode | 0o011)
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    status, said = forks.run("personas", closed / "run", "nobody")
    assert status == 2 and "Permission denied" in said and "choose another" in said
    assert not list(closed.iterdir())


# ------------------------------------------------------------------------------------------------ power


def test_a_power_cut_loses_at_most_a_hundred_records_and_they_are_made_again(tmp_path, monkeypatch):
    path, tree = tmp_path / "trees.jsonl", DialogueTree(Scenario("q", "?"))
    on_disk = [0]
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (real(handle), on_disk.append(os.fstat(handle).st_size))[0])
    with TreeLog(path) as log:
        log.add_tree(tree)
        for number in range(330):
            log.add_turns(tree, [tree.add(Turn(str(number), None, "A", "x" * (number % 50)))])
        written, synced = path.read_bytes(), on_disk[-1]
    rows_lost = written[synced:].count(b"\n")
    assert 0 < rows_lost <= SYNC_RECORDS
    path.write_bytes(written[:synced + 7])  # what was not synced is gone, but for some of a line
    with TreeLog(path, log=lambda line: None) as log:
        held = log.trees()["q"]
        assert len(held) == 330 - rows_lost
        log.add_turns(tree, [turn for turn in tree if turn.id not in held])
    assert [turn.id for turn in read_trees(path)["q"]] == [turn.id for turn in tree]


def test_a_finished_run_whose_log_lost_its_end_says_it_again(forks, whole, tmp_path):
    out = shutil.copytree(whole("ditto"), tmp_path / "run")
    data = (out / "trees.jsonl").read_bytes()
    (out / "trees.jsonl").write_bytes(data[:len(data) // 2])
    assert forks.run("ditto", out)[0] == 0
    assert same(whole("ditto"), out)


# ------------------------------------------------------------------------------------------------ damage


@pytest.mark.parametrize("name", [*ALL[:1], *ALL[2:]])
def test_flipped_bits_in_the_log_of_a_finished_run_are_found_and_made_again(name, forks, whole, tmp_path):
    rng = random.Random(3)
    for trial in range(2):
        out = shutil.copytree(whole(name), tmp_path / f"{name}-{trial}")
        data = bytearray((out / "trees.jsonl").read_bytes())
        for _ in range(3):
            data[rng.randrange(len(data) // 2)] ^= 1 << rng.randrange(8)
        (out / "trees.jsonl").write_bytes(data)
        status, said = forks.run(name, out)
        assert status == 0, said
        (out / "trees.jsonl.bad").unlink()  # what was damaged is kept beside
        assert same(whole(name), out)


@pytest.mark.parametrize("tail", [b'{"kind":"turn","tree', b"\0" * 512, b"\xff\xfe garbage"])
def test_a_torn_or_garbage_last_line_is_cut_and_costs_nothing(tail, forks, whole, tmp_path):
    out = shutil.copytree(whole("ditto"), tmp_path / "run")
    with (out / "trees.jsonl").open("ab") as file:
        file.write(tail)
    assert forks.run("ditto", out)[0] == 0
    assert same(whole("ditto"), out)


def test_garbage_in_the_middle_of_a_log_is_set_aside_and_costs_nothing(forks, whole, tmp_path):
    out = shutil.copytree(whole("ditto"), tmp_path / "run")
    lines = (out / "trees.jsonl").read_bytes().split(b"\n")
    lines[len(lines) // 2:len(lines) // 2] = [b"garbage \xff", b"", b'{"kind":"turn"}']
    (out / "trees.jsonl").write_bytes(b"\n".join(lines))
    assert forks.run("ditto", out)[0] == 0
    assert (out / "trees.jsonl.bad").read_bytes() == b'garbage \xff\n\n{"kind":"turn"}\n'
    (out / "trees.jsonl.bad").unlink()
    assert same(whole("ditto"), out)


DOUBLES = ("checkpoint.json", "learned.json")  # written by the doubles of training and models, not by Dialoom
DAMAGES = {"empty": lambda data: b"", "half": lambda data: data[:len(data) // 2],
           "garbage": lambda data: b"\x93\x00 not this", "other": lambda data: b'{"a": [1]}\n'}


@pytest.mark.parametrize("name", ALL)
def test_a_damaged_file_of_a_run_is_told_or_made_again_and_never_a_traceback(name, forks, whole, tmp_path):
    """Some files in turn; then the last stages are done again, which read what the first ones wrote.

    A file that nothing reads any more may stay as it is: then it alone differs.
    """
    rng, wrong = random.Random(name), []
    files = [path for path in contents(whole(name)) if not path.endswith(DOUBLES)] + ["env.json"]
    order = sorted((whole(name) / "stages").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    for file in rng.sample(files, min(len(files), 6 if name in QUICK else 8)):
        damage = rng.choice(sorted(DAMAGES))
        out = tmp_path / "run"
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(whole(name), out)
        for marker in order[len(order) // 2:]:
            (out / "stages" / marker.name).unlink()
        if (out / file).exists():
            (out / file).write_bytes(DAMAGES[damage]((out / file).read_bytes()))
        status, said = forks.run(name, out)
        told = difference(whole(name), out) if status == 0 else None
        if told and (told.none or told.files == [file]):
            continue
        named = str(out) if file in ("config.yaml", "env.json") else Path(file).name
        if status not in (0, 2) or "Traceback" in said or named not in said:
            wrong.append((file, damage, status, said[-700:], told))
    assert not wrong, wrong


def undone(whole: Path, out: Path, share: float) -> Path:
    """A copy of a run whose stages, but for the first share of them, are to be done again over what they wrote."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(whole, out)
    order = sorted((whole / "stages").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    for marker in order[int(len(order) * share):]:
        (out / "stages" / marker.name).unlink()
    return out


def opened(name: str, forks: Forks, whole: Path, out: Path, share: float) -> set[str]:
    """The files of a run that it opens when it does stages again; no other one can change anything."""
    log = out.parent / f"opened-{share}"
    assert forks.run(name, undone(whole, out, share), "small", f"opened:{log}")[0] == 0
    inside = [Path(line) for line in log.read_text().splitlines() if line.startswith(f"{out}/")]
    return {str(path.relative_to(out)) for path in inside} & {*contents(whole), "env.json"}


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", ["ditto", "personas", "pbt", "aloe", "ideas"])
def test_every_file_that_a_run_opens_damaged_in_every_way_is_told_or_made_again(name, forks, tmp_path):
    """As above, with every file and every damage: the last stages are done again, and all where only that opens it."""
    whole, out = tmp_path / "whole" / name, tmp_path / "run" / name
    assert forks.run(name, whole, "small")[0] == 0
    late = opened(name, forks, whole, out, 0.5)
    cases = [(file, 0.5) for file in sorted(late)]
    cases += [(file, 0.0) for file in sorted(opened(name, forks, whole, out, 0.0) - late)]
    wrong, count = [], 0
    for file, share in cases:
        for damage, damaged in {**DAMAGES, "list": lambda data: b"[]\n"}.items():
            undone(whole, out, share)
            if file.endswith(DOUBLES) or not (out / file).exists():
                continue
            (out / file).write_bytes(damaged((whole / file).read_bytes()))
            status, said = forks.run(name, out, "small")
            told = difference(whole, out) if status == 0 else None
            named = (str(out) if file in ("config.yaml", "env.json") else Path(file).name) in said
            count += 1
            if "Traceback" in said or status not in (0, 2) or not (
                    named or (told is not None and set(told.files) <= {file, f"{file}.bad"})):
                wrong.append((file, damage, share, status, said[-500:], told))
    assert not wrong, wrong
    assert count >= 20


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_damaged_file_of_a_real_run_is_told_or_made_again():
    done = subprocess.run([sys.executable, "-m", "tests.faults.damages", "--most", "12"], capture_output=True,
                          text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    found = json.loads(done.stdout)["runs"]
    assert set(found) == {"ditto", "ideas", "dat"}
    assert all(sum(told.values()) >= 8 and told["refused"] for told in found.values()), found


def test_a_draft_that_a_kill_left_is_removed_and_another_run_s_is_not(tmp_path):
    with RunFolder(tmp_path, "personas", personas_config(), log=lambda line: None):
        pass
    (tmp_path / "inner").mkdir()
    for folder in (tmp_path, tmp_path / "inner", tmp_path / "shard"):
        folder.mkdir(exist_ok=True)
        (folder / ".results.json.123.tmp").write_text("half")
    (tmp_path / "shard" / ".lock").touch()
    with RunFolder(tmp_path, "personas", personas_config(), log=lambda line: None):
        assert [path.parent.name for path in tmp_path.rglob(".*.tmp")] == ["shard"]


# ------------------------------------------------------------------------------------------------ two at once


def test_a_second_process_on_a_folder_is_refused_by_the_first_one_s_number(forks, whole, tmp_path):
    out = tmp_path / "run"
    first = forks.start("personas", out, "slow:0.1")
    while not (out / "growth.jsonl").exists():
        time.sleep(0.02)
    with pytest.raises(StoreError, match=f"process {first} is writing it"):
        RunFolder(out, "personas", personas_config())
    assert forks.wait(first) == 0
    assert same(whole("personas"), out)


def test_the_lock_of_a_process_that_was_killed_is_free(tmp_path):
    held = os.fork()
    if held == 0:
        TreeLog(tmp_path / "trees.jsonl")
        (tmp_path / "there").touch()
        time.sleep(60)
        os._exit(0)
    while not (tmp_path / "there").exists():
        time.sleep(0.01)
    with pytest.raises(StoreError, match=f"process {held} "):
        TreeLog(tmp_path / "trees.jsonl")
    os.kill(held, 9)
    os.waitpid(held, 0)
    TreeLog(tmp_path / "trees.jsonl").close()
