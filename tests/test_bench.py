"""The benchmark: its rows, its files, that it goes on where it stopped; toy sizes, so no figure is looked at."""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace

import pytest

from bench import collect, measure, page, speed
from bench.grow import Generate, Grown, Ours, Work, chats, grow, identical, model, tree
from bench.measure import Said, Sayer
from bench.sampled import in_batches

SMALL = {"system": 12, "reply": 5}
ROW = {"work": "grow/16x6", "against": "naive", "ratio": 5.0625, "setting": "toy", "ours_s": 1.0, "theirs_s": 5.0625,
       "identical": 96, "compared": 96, "same": True, "peak_mb": 10.0, "their_peak_mb": 20.0}


def counting(prompts: Sequence[Sequence[int]], keys: Sequence[str]) -> Said:
    """Replies with the length of the prompt, twice; costs a second a prompt."""
    return Said([[len(ids)] * 2 for ids in prompts], float(len(prompts)), 1.0)


def by(sayer: Sayer, work: Work) -> Grown:
    """The work done in this process."""
    return grow(work, lambda prompts, keys: Said(sayer.say(prompts, work.reply, keys=keys), 1.0, 0.0))


def test_prompts_are_whole_histories():
    work = Work("w", "", (1, 2, 3), (((7,), (8, 8)), ((9,), (9,))), reply=2)
    done = grow(work, counting)
    assert done.replies == [[[4, 4], [5, 5]], [[7, 7], [8, 8]]]  # opening, user, reply, user
    assert done.cpu_s == 4 and done.peak_mb == 1
    assert (work.replies, work.tokens, work.dialogues, work.first(1).tokens) == (4, 8, 2, 4)


def test_children_go_on_from_their_own_parent():
    asked: list[Sequence[int]] = []

    def told(prompts: Sequence[Sequence[int]], keys: Sequence[str]) -> Said:
        start = len(asked)
        asked.extend(prompts)
        return Said([[100 + start + at] for at in range(len(prompts))], 0.0, 0.0)

    grow(replace(tree(400, 2, 2, system=1, reply=1), system=(9,)), told)
    assert asked == [[9, 5], [9, 6], [9, 5, 100, 5], [9, 5, 100, 6], [9, 6, 101, 5], [9, 6, 101, 6]]


@pytest.mark.parametrize("name", ["toy-llama", "toy-neox"])
def test_ours_says_the_tokens_of_generate(name):
    module = model(name)
    for work in (chats(400, 3, 2, user=(3, 6), **SMALL), tree(400, 2, **SMALL)):
        naive = by(Generate(module), work)
        assert identical(by(Ours(module), work), naive) == (work.replies, work.replies)
        assert identical(by(Generate(module, rows=0), work), naive) == (work.replies, work.replies)


@pytest.mark.parametrize("position", collect.POSITIONS)
def test_steered_scenes_in_lock_step_are_those_played_one_by_one(position):
    row = collect.compared(collect.model_of("toy"), position, collect.scenes_of(4), 6, log=[].append)
    assert (row["work"], row["identical"], row["compared"]) == (f"collect/{position}", 24, 24)
    assert speed.checked(row)["ratio"] == row["theirs_s"] / row["ours_s"]


def test_one_other_token_is_seen():
    done = grow(chats(400, 3, 2, user=(3, 6), **SMALL), counting)
    other = replace(done, replies=[done.replies[0], [[*done.replies[1][0][:-1], 0], *done.replies[1][1:]]])
    assert identical(done, other) == (5, 6)


def test_smaller_batches_and_reversed_order_come_back_in_order():
    prompts, keys = [[1] * size for size in (3, 1, 2)], ["a", "b", "c"]
    for size, backwards in ((1, False), (2, False), (2, True)):
        said = in_batches(counting, size, backwards)(prompts, keys)
        assert said.replies == [[3, 3], [1, 1], [2, 2]] and said.cpu_s == 3


def test_a_row_needs_its_keys_and_a_ratio():
    assert list(speed.checked({"ours_s": 1.0, **ROW}))[:4] == ["work", "against", "ratio", "setting"]
    for bad in ({**ROW, "ratio": 0.0}, {**ROW, "ratio": float("nan")}, {key: ROW[key] for key in ("work", "ratio")}):
        with pytest.raises(ValueError, match="a row needs work, against"):
            speed.checked(bad)


def test_the_json_is_a_list_of_the_rows(tmp_path):
    speed.write_json([ROW, {**ROW, "against": "batched"}], tmp_path / "deep" / "ratios.json")
    found = json.loads((tmp_path / "deep" / "ratios.json").read_text())
    assert [row["against"] for row in found] == ["naive", "batched"] and found[0]["ratio"] == 5.062


def test_the_table_says_every_row():
    lines = speed.table([ROW, {"work": "dpo/aloe", "against": "trl", "ratio": 12.0, "setting": "set"}]).splitlines()
    assert lines[1].split()[:6] == ["grow/16x6", "naive", "5.06", "1", "5.06", "96"]
    assert lines[2].split() == ["dpo/aloe", "trl", "12.00", "set"]


def test_a_group_that_failed_keeps_its_rows_and_is_tried_again(tmp_path, monkeypatch):
    calls = []

    def run(command, *, stdout, **_):
        calls.append(command[-2])
        stdout.write(json.dumps(ROW).encode() + b"\n{\"work\": \"torn")
        if len(calls) == 1:
            raise speed.subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(speed.subprocess, "run", run)
    for expected in (1, 2, 2):  # failed, measured again, found
        assert speed.measured("grow-x", tmp_path, quick=True) == [ROW]
        assert len(calls) == expected
    monkeypatch.setattr(speed, "state_of_code", iter(["now", "edited"]).__next__)
    assert speed.measured("grow-x", tmp_path, quick=True) == [ROW] and len(calls) == 3
    assert not (tmp_path / "quick-now" / "grow-x.jsonl").exists()  # measured on code that changed: not finished


def test_the_pages_tables_stand_between_their_markers():
    curve = {"work": "curve/turns", "against": "1", "ratio": 1.0, "setting": "s", "x": 4, "tokens": 3840, "ours_s": 4.0}
    text = page.PAGE.read_text(encoding="utf-8")
    for name, content in page.tables([ROW, curve], "a machine").items():
        text = page.between(text, name, content)
    assert "| `grow/16x6` | naive | **5.06** | 1 | 5.06 | 10 | 20 | 96 of 96 | toy |" in text
    assert "| replies, 16 dialogues | 4 | 3,840 | 4 | 960 |  |" in text
    assert "Measured on: a machine." in text
    with pytest.raises(ValueError, match="no markers"):
        page.between(text, "nowhere", "")


def test_a_worker_counts_its_own_seconds_and_says_when_it_dies():
    script = ("import sys; from bench.measure import serve\n"
              "class Busy:\n"
              "    def fresh(self): print('noise')\n"
              "    def say(self, prompts, new, **_):\n"
              "        if new == 13: sys.exit(3)\n"
              "        return [[sum(i * i for i in range(100_000)) % 7] * new for _ in prompts]\n"
              "serve(Busy)\n")
    with measure.Worker([sys.executable, "-c", script]) as worker:
        worker.fresh()
        said = worker.say([[1], [2]], 3)
        assert [len(reply) for reply in said.replies] == [3, 3] and 0 < said.cpu_s < 5
        with pytest.raises(RuntimeError, match="ended with 3"):
            worker.say([[1]], 13)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_whole_program_runs_on_toy_sizes(tmp_path):
    before = speed.RATIOS.read_bytes() if speed.RATIOS.exists() else None
    speed.main(["--quick", "--runs", str(tmp_path), "--only", "grow-toy-llama", "grow-toy-neox", "grow-sampled"])
    found = json.loads((tmp_path / "ratios.json").read_text())
    assert {(row["work"], row["against"]) for row in found} >= {
        ("grow/3x2", "naive"), ("grow/3x2", "batched"), ("grow/3x2", "no-cache"), ("grow/tree", "node-by-node"),
        ("grow/sampled", "reversed order")}
    assert all(row["same"] for row in found if "same" in row)
    assert (speed.RATIOS.read_bytes() if speed.RATIOS.exists() else None) == before
