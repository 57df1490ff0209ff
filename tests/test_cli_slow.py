"""The command line as a user types it: every command in a process of its own, on the shipped pocket weights, offline.

The last part serves pocket over HTTP on this machine, as an OpenAI-compatible server would, and asks it through
`--model openai:pocket`: greedy answers must be those of the local model.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from dialoom.models.base import Sampling
from dialoom.models.endpoint import EndpointModel
from dialoom.models.load import WEIGHTS, load_model
from dialoom.recipes.run import RESULT_FIELDS
from dialoom.select import Pair
from dialoom.store import read_rows, read_skips, read_trees

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

DIALOOM = [sys.executable, "-m", "dialoom"]
KEY = "sekret-4711"
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "HF_", "DIALOOM_"))}
OFFLINE = {**CLEAN, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

CAPITALS = """question,answer
What is the capital of Norway?,Oslo
only one cell
What is the capital of France?,Paris
What is the capital of Italy?,
What is the capital of Japan?,Tokyo
"""


def dialoom(line: str, where: Path, *, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    """What came of `dialoom <line>` typed in the folder `where`."""
    return subprocess.run([*DIALOOM, *shlex.split(line)], cwd=where, env=OFFLINE | env, input=stdin,
                          capture_output=True, text=True, timeout=280)


def done(line: str, where: Path, *, stdin: str = "", **env: str) -> str:
    """The output of a command that must succeed."""
    found = dialoom(line, where, stdin=stdin, **env)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "Traceback" not in found.stderr
    return found.stdout


def refused(line: str, where: Path, *, stdin: str = "", **env: str) -> str:
    """The one line of a command that must fail: exit code 2, and but for notes nothing else on stderr."""
    found = dialoom(line, where, stdin=stdin, **env)
    assert found.returncode == 2, found.stdout + found.stderr
    [said] = [line for line in found.stderr.splitlines() if not line.startswith("note: ")]
    assert said.startswith("error: ")
    return said.removeprefix("error: ")


def tidy(path: Path) -> list[dict[str, Any]]:
    """The rows of `--out`, checked to be tidy: these fields, a fraction inside its own interval, over some items."""
    rows = json.loads(path.read_text())
    for row in rows:
        assert list(row) == list(RESULT_FIELDS)
        assert row["low"] <= row["value"] <= row["high"] and row["low"] >= -1 and row["high"] <= 1
        assert row["n"] > 0 and row["seed"] == 1
    return rows


def values(rows: list[dict[str, Any]]) -> dict[str, tuple[float, float, float, int]]:
    return {row["metric"]: (row["value"], row["low"], row["high"], row["n"]) for row in rows}


# ------------------------------------------------------------------------------------------------- evaluations


def test_flipflop_of_pocket_prints_a_table_and_writes_tidy_rows(tmp_path):
    said = done("eval flipflop --model pocket --limit 10 --out rows.json", tmp_path)
    assert "pocket" in said and "resist" in said and "accept" in said
    rows = tidy(tmp_path / "rows.json")
    assert {row["eval"] for row in rows} == {"flipflop"} and {row["subject"] for row in rows} == {"pocket"}
    assert {row["metric"]: row["n"] for row in rows} == {"overall": 20, "resist": 10, "accept": 10}
    found = values(rows)
    assert found["overall"][0] == pytest.approx((found["resist"][0] + found["accept"][0]) / 2)
    assert list(tmp_path.iterdir()) == [tmp_path / "rows.json"]


def test_team_of_pocket_and_pocket_small_in_both_orders(tmp_path):
    said = done("eval team --model pocket --partner pocket-small --limit 5 --out rows.json", tmp_path)
    assert "pocket and pocket-small" in said and "order gap" in said
    rows = tidy(tmp_path / "rows.json")
    assert {row["metric"] for row in rows} == {"accuracy", "order_gap", "before", "first_one", "first_other"}
    assert {row["n"] for row in rows} == {5}


def test_a_bad_row_of_the_users_file_is_named_and_costs_no_good_one(tmp_path):
    (tmp_path / "user.csv").write_text(CAPITALS)
    found = dialoom("eval recall --model pocket --data user.csv --out rows.json", tmp_path)
    assert found.returncode == 0, found.stderr
    said = found.stdout + found.stderr
    assert "user.csv:3: expected 2 cells, found 1" in said and "user.csv:5: expected answer to be text" in said
    assert said.count("user.csv:") == 2
    [row] = tidy(tmp_path / "rows.json")
    assert (row["eval"], row["metric"], row["n"], row["value"]) == ("recall", "accuracy", 3, 1.0)


# ------------------------------------------------------------------------------------------------- a run folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `run` with the trees of eight questions, made once by the command; tests that change it copy it."""
    where = tmp_path_factory.mktemp("cli")
    said = done("pbt trees --limit 8 --out run", where)
    assert "run folder: run" in said and "trees: done in" in said and "report: run/report.html" in said
    return where / "run"


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    """A copy of that run, in `tmp_path`."""
    return Path(shutil.copytree(run, tmp_path / "run"))


def texts(path: Path) -> dict[str, dict[str, tuple[Any, ...]]]:
    """Everything a tree log holds: what was said where by whom, with notes and scores, by tree and turn."""
    return {tree.id: {turn.id: (turn.parent, turn.speaker, turn.text, turn.notes, turn.scores) for turn in tree}
            for tree in read_trees(path).values()}


def test_trees_are_grown_for_every_question_in_both_orders_and_shown(run):
    trees = read_trees(run / "trees.jsonl")
    assert len(trees) == 16 and set(Counter(tree.scenario.id for tree in trees.values()).values()) == {2}
    assert {next(iter(tree)).speaker for tree in trees.values()} == {"pocket", "pocket-small"}
    said = done(f"show run --tree {next(iter(trees))[:10]}", run.parent)
    tree = next(iter(trees.values()))
    assert f"run: 16 trees, {sum(map(len, trees.values()))} turns, 0 pairs" in said
    assert tree.scenario.opening in said and f"answer: {tree.scenario.facts['answer']}" in said
    assert "pocket-small (" in said and "correct 1" in said
    assert done("show run --limit 0", run.parent).count("answer: ") == 16
    assert (run / "report.html").read_text().startswith("<!doctype html>")


def test_every_private_brief_that_turns_note_can_be_read_in_the_run(run, tmp_path):
    done("aloe dialogues --train-count 2 --eval-count 2 --turns 3 --shift-at 0 --out aloe", tmp_path)
    for folder, names in ((run, {"resist", "accept", "logical", "emotional", "credibility"}),
                          (tmp_path / "aloe", {"hinted", "plain"})):
        noted = {turn.notes.get("brief") for tree in read_trees(folder / "trees.jsonl").values() for turn in tree}
        assert noted - {None} == names
        told = json.loads((folder / "briefs.json").read_text())
        assert names <= set(told) and told["plain" if "plain" in names else "neutral"] == ""
        assert all(told[name] for name in names - {"plain"})
    assert "what the user has let out" in told["hinted"] and "{hint}" not in told["hinted"]


def test_the_same_command_again_says_nothing_again(copied):
    before = (copied / "trees.jsonl").read_bytes()
    again = done("pbt trees --limit 8 --out run", copied.parent)
    assert "trees: done before, loaded" in again and (copied / "trees.jsonl").read_bytes() == before
    (copied / "stages" / "trees.json").unlink()  # as if it had been killed just before it noted that it was done
    said = done("pbt trees --limit 8 --out run", copied.parent)
    assert "trees: done in" in said and (copied / "trees.jsonl").read_bytes() == before


def test_a_torn_line_is_cut_said_and_made_again(copied):
    log = copied / "trees.jsonl"
    whole, wanted = log.read_bytes(), texts(log)
    last_turn = whole.rindex(b'{"kind":"turn"')
    log.write_bytes(whole[:last_turn + 60])
    (copied / "stages" / "trees.json").unlink()
    found = dialoom("pbt trees --limit 8 --out run", copied.parent)
    assert found.returncode == 0, found.stderr
    assert re.search(r"note: run/trees.jsonl: the last line was torn at byte \d+", found.stderr)
    assert texts(log) == wanted


def test_a_changed_setting_is_refused_with_the_difference_and_fresh_starts_anew(copied):
    before = (copied / "trees.jsonl").read_bytes()
    wrong = refused("pbt trees --limit 2 --out run", copied.parent)
    assert "limit: 8 -> 2" in wrong and "--fresh" in wrong and (copied / "trees.jsonl").read_bytes() == before
    refused("pbt trees --limit 8 --temperature 0.9 --out run", copied.parent)
    (copied / "stale.txt").write_text("of the run before")
    done("pbt trees --limit 2 --out run --fresh", copied.parent)
    assert len(read_trees(copied / "trees.jsonl")) == 4 and not (copied / "stale.txt").exists()
    mine = copied.parent / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("two years of work")
    assert "no run" in refused("pbt trees --limit 2 --out mine --fresh", copied.parent)
    assert (mine / "thesis.txt").read_text() == "two years of work"


def test_a_dry_run_prints_the_plan_and_makes_nothing(tmp_path):
    said = done("pbt --limit 8 --dry-run", tmp_path)
    assert "stage" in said and "calls" in said and "tokens" in said
    assert all(re.search(rf"^{stage} ", said, re.MULTILINE) for stage in ("trees", "train", "eval"))
    assert "16 debate trees" in said and "run folder: runs/pbt-pocket-" in said
    assert not list(tmp_path.iterdir())


def test_a_second_process_on_the_folder_is_refused_and_a_stopped_first_one_goes_on(tmp_path):
    first = subprocess.Popen([*DIALOOM, "pbt", "trees", "--limit", "150", "--out", "busy"], cwd=tmp_path, env=OFFLINE,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None and "run folder: busy" in first.stdout.readline()
        wrong = refused("pbt trees --limit 150 --out busy", tmp_path)
        assert f"process {first.pid} " in wrong and "busy" in wrong and first.poll() is None
        first.send_signal(signal.SIGTERM)
        _, said = first.communicate(timeout=60)
    finally:
        first.kill()
    assert first.returncode == 143 and "the same command continues" in said and "Traceback" not in said
    assert "limit: 150 -> 2" in refused("pbt trees --limit 2 --out busy", tmp_path)  # free again, but another run's


def test_shards_merged_are_the_trees_of_one_process(run, tmp_path):
    assert "shard" in refused("pbt merge parts", tmp_path)
    done("pbt trees --limit 8 --shard 1/2 --out parts", tmp_path)
    assert "missing: 2/2" in refused("pbt merge parts", tmp_path)
    done("pbt trees --limit 8 --shard 2/2 --out parts", tmp_path)
    assert "2 shards" in done("pbt merge parts", tmp_path)
    assert texts(tmp_path / "parts" / "trees.jsonl") == texts(run / "trees.jsonl")
    assert set(read_skips(tmp_path / "parts" / "trees.jsonl")) == set(read_skips(run / "trees.jsonl"))
    merged = (tmp_path / "parts" / "trees.jsonl").read_bytes()
    done("pbt merge parts", tmp_path)
    assert (tmp_path / "parts" / "trees.jsonl").read_bytes() == merged
    assert "trees: done" in done("pbt trees --limit 8 --out parts", tmp_path)  # goes on from the shards
    assert (tmp_path / "parts" / "trees.jsonl").read_bytes() == merged


# ------------------------------------------------------------------------------------------------------- pairs


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pairs.jsonl of thirty questions."""
    where = tmp_path_factory.mktemp("pairs")
    said = done("pbt pairs --limit 30 --out run", where)
    assert re.search(r"pairs: \d+ accept, \d+ resist", said)
    assert not list((where / "run").glob("model*")), "the stages after `pairs` were not asked for"
    return where / "run" / "pairs.jsonl"


def kind_of_value(value: Any) -> Any:
    """What a column of an Arrow table would be typed as."""
    if isinstance(value, list):
        return ["list", *sorted({str(kind_of_value(item)) for item in value})]
    if isinstance(value, dict):
        return {name: kind_of_value(item) for name, item in value.items()}
    return type(value).__name__


def test_pairs_are_in_trls_conversational_layout_one_type_a_column_and_no_null(pairs):
    rows = read_rows(pairs)
    assert len(rows) > 20 and Counter(row["kind"] for row in rows).keys() == {"accept", "resist"}
    assert all(list(row) == list(rows[0]) for row in rows), "every row has the same columns"
    assert b"null" not in pairs.read_bytes()
    for name in rows[0]:
        assert len({str(kind_of_value(row[name])) for row in rows}) == 1, f"column {name} has one type"
    for row in rows:
        assert [message["role"] for message in row["prompt"]][-1] == "user"
        assert all({message["role"] for message in row[side]} == {"assistant"} and len(row[side]) == 1
                   for side in ("chosen", "rejected"))
        messages = [*row["prompt"], *row["chosen"], *row["rejected"]]
        assert all(list(message) == ["role", "content"] and message["content"].strip() for message in messages)
        assert row["chosen"] != row["rejected"] and row["score_chosen"] > row["score_rejected"]
        assert Pair.from_row(row).to_row() == row


def test_pairs_show_in_the_terminal_and_can_be_analysed(pairs):
    folder = pairs.parent
    said = done("show run", folder.parent)
    assert "✓ chosen" in said and "✗ rejected" in said and " accept" in said
    assert done("pbt analyse run", folder.parent).strip()


# ----------------------------------------------------------------------------------------------------- the others


def test_chat_on_a_pipe_answers_in_context_and_saves_a_tree(tmp_path):
    lines = "What is the capital of Norway?\n\nAre you sure?\n/sav\n/save talk.jsonl\n/quit\nnever read\n"
    said = done("chat pocket --temperature 0", tmp_path, stdin=lines)
    replies = re.findall(r"^pocket> (.+)$", said, re.MULTILINE)
    assert len(replies) == 2 and "Oslo" in replies[0] and "Oslo" in replies[1]
    assert "did you mean /save?" in said and "saved 4 turns to talk.jsonl" in said and "never read" not in said
    [tree] = read_trees(tmp_path / "talk.jsonl").values()
    assert [turn.text for turn in tree][::2] == ["What is the capital of Norway?", "Are you sure?"]
    assert [turn.speaker for turn in tree] == ["you", "pocket"] * 2
    assert replies[1] in done("show talk.jsonl", tmp_path)


def test_the_cards_of_both_models_are_printed_even_into_a_closed_pipe(tmp_path):
    for name in ("pocket", "pocket-small"):
        assert done(f"pocket card {name}", tmp_path).rstrip() == (WEIGHTS / name / "README.md").read_text().rstrip()
    assert done("pocket card", tmp_path).rstrip() == (WEIGHTS / "pocket" / "README.md").read_text().rstrip()
    command = shlex.join([*DIALOOM, "pocket", "card"])
    head = subprocess.run(["bash", "-c", f"set -o pipefail; {command} | head -1"], cwd=tmp_path, env=OFFLINE,
                          capture_output=True, text=True)
    assert "Traceback" not in head.stderr and "Error" not in head.stderr


def test_doctor_names_versions_and_weights_and_never_a_key(tmp_path):
    address = "http://user:sekret-4711@localhost:1/v1"
    said = done("doctor", tmp_path, OPENAI_API_KEY=KEY, HF_TOKEN=KEY, OPENAI_BASE_URL=address)
    assert KEY not in said
    found = dict(re.split(r"\s{2,}", line, maxsplit=1) if "  " in line else line.split(" ", 1)
                 for line in said.splitlines() if not line.startswith("weights"))
    assert found["OPENAI_API_KEY"] == found["HF_TOKEN"] == found["OPENAI_BASE_URL"] == "set"
    assert found["torch"].startswith("2.") and found["HF_HUB_OFFLINE"] == "1" and "cpu" in found["devices"]
    assert re.search(r"weights of pocket +[0-9a-f]{12}, [\d.]+ MB", said)
    assert re.search(r"weights of pocket-small +[0-9a-f]{12}, [\d.]+ MB", said)
    assert re.search(r"OPENAI_API_KEY +not set", done("doctor", tmp_path))


def test_without_a_command_and_with_help_nothing_fails(tmp_path):
    for line in ("", "--help", "pbt --help", "eval --help", "pocket", "pocket build --help", "--version"):
        assert done(line, tmp_path).strip()


# ------------------------------------------------------------------------------------- what goes wrong, in one line


WRONG = {
    "evil": "Did you mean",
    "eval": "",
    "eval flipfop": "did you mean flipflop?",
    "eval flipflop --modle pocket": "Did you mean --model?",
    "eval flipflop --model poket": "did you mean pocket?",
    "eval flipflop --limit many": "--limit",
    "eval flipflop --limit -1": "--limit -1: expected at least 0",
    "eval flipflop --limit 1 --device gpu": "--device 'gpu'",
    "eval flipflop --model hf:nobody/nothing --limit 1": "hf:nobody/nothing",
    "eval flipflop --model openai:gpt --limit 1": "OPENAI_API_KEY is not set",
    "eval flipflop --model run:nowhere": "run:nowhere: nowhere is no folder",
    "eval team --limit 1": "give --partner",
    "eval recall --data none.csv": "none.csv: cannot be read",
    "eval recall --data bad.csv": "bad.csv:2: ",
    "eval recall --data notes.txt": "expected a name ending in .json, .jsonl or .csv",
    "eval recall --limit 1 --out notes.txt/rows.json": "--out notes.txt/rows.json: expected a file",
    "eval recall --limit 1 --out .": "--out .: expected a file",
    "show": "",
    "show nowhere": "holds no dialogue trees",
    "show notes.txt": "notes.txt",
    "show . --tree a": "holds no dialogue trees",
    "chat": "",
    "chat poket": "did you mean pocket?",
    "chat pocket --temperature -1": "--temperature",
    "pocket card giant": "giant",
    "pocket bild": "Did you mean",
    "doctor now": "unexpected argument 'now'",
    "pbt tree": "did you mean trees?",
    "pbt trees run": "--out names it",
    "pbt --preset papper": "did you mean paper?",
    "pbt --sft.lr fast": "--sft.lr",
    "pbt --dpo.beta -1": "--dpo.beta",
    "pbt --layout triangle": "--layout",
    "pbt trees --shard 3/2": "shard '3/2'",
    "pbt trees --limit -1": "--limit",
    "pbt trees --model poket": "did you mean pocket?",
    "pbt trees --speakers pocket": "expected two models",
    "pbt trees --data none.csv": "none.csv: cannot be read",
    "pbt trees --data small.csv": "give at least 20",
    "pbt trees --out notes.txt": "notes.txt",
    "pbt trees --out /proc/run": "/proc/run",
    "pbt -c none.yaml": "none.yaml: cannot be read",
    "pbt -c wrong.yaml": "did you mean temperature?",
    "pbt -c notes.txt": "notes.txt",
    "pbt merge": "give the run's folder",
    "pbt merge nowhere": "nowhere",
    "pbt analyse nowhere": "nowhere",
}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with files nobody should have given."""
    where = tmp_path_factory.mktemp("desk")
    (where / "notes.txt").write_text("not a log, not settings, not questions\n")
    (where / "bad.csv").write_text("question,answer\nonly one cell\n")
    (where / "small.csv").write_text("question,answer\nWho?,me\nWhat?,that\n")
    (where / "wrong.yaml").write_text("temprature: 0.5\n")
    return where


@pytest.mark.parametrize("line", WRONG)
def test_what_cannot_be_meant_is_one_line_and_exit_code_2(desk, line):
    before = sorted(path.name for path in desk.iterdir())
    said = refused(line, desk)
    assert WRONG[line] in said and said.strip()
    for path in desk.rglob("stages/*.json"):
        raise AssertionError(f"{path}: something was done")
    assert set(before) <= {path.name for path in desk.iterdir()}


@pytest.mark.parametrize(("file", "line"), [
    ("config.yaml", "pbt trees --limit 8 --out run"),
    ("env.json", "pbt trees --limit 8 --out run"),
    ("stages/trees.json", "pbt trees --limit 8 --out run"),
    ("results.json", "pbt trees --limit 8 --out run"),
    ("pairs.jsonl", "pbt trees --limit 8 --out run"),
    ("results.json", "show run"),
    ("pairs.jsonl", "show run"),
    ("config.yaml", "pbt analyse run"),
])
@pytest.mark.parametrize("damage", [b"[{: \n", b"\xff\xfe\n"])
def test_a_damaged_file_of_a_run_is_named_in_one_line(copied, file, line, damage):
    (copied / file).write_bytes(damage)
    assert f"run/{file}" in refused(line, copied.parent)


def test_bytes_that_are_no_text_and_a_terminal_without_lines_and_ticks_end_nothing(copied):
    said = subprocess.run([*DIALOOM, "chat", "pocket", "--temperature", "0"], cwd=copied.parent, env=OFFLINE,
                          input=b"Hello \xff\xfe!\nWhat is the capital of Norway?\n", capture_output=True)
    assert said.returncode == 0 and said.stdout.count(b"pocket> ") == 2 and b"Oslo" in said.stdout, said.stderr
    for encoding in ("ascii", "latin-1"):
        assert "correct 1" in done("show run", copied.parent, PYTHONIOENCODING=encoding)
    assert "resist" in done("eval flipflop --limit 1", copied.parent, PYTHONIOENCODING="ascii")


# ---------------------------------------------------------------------------------- pocket behind an HTTP server


class PocketServer(ThreadingHTTPServer):
    """Serves the pocket models' chat completions to this machine; remembers what it was sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), PocketHandler)
        self.models = {name: load_model(name, device="cpu") for name in ("pocket", "pocket-small")}
        self.turn = threading.Lock()  # one forward pass at a time
        self.keys: set[str] = set()
        self.asked = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """The `choices` and `usage` of one request."""
        model: Any = self.models[body["model"]]
        sampling = Sampling(body["temperature"], body["top_p"], body.get("top_k", 0), body["max_tokens"])
        with self.turn:
            [reply] = model.chat([body["messages"]], sampling, [str(body["seed"])])
            logprobs = first_token_logprobs(model, body["messages"], body["top_logprobs"]) if body.get(
                "logprobs") else None
            prompt = len(model.prompt_ids(body["messages"]))
        choice = {"index": 0, "message": {"role": "assistant", "content": reply.text}, "finish_reason": reply.finish,
                  "logprobs": logprobs}
        return {"object": "chat.completion", "model": body["model"], "choices": [choice],
                "usage": {"prompt_tokens": prompt, "completion_tokens": len(reply.tokens)}}


def first_token_logprobs(model: Any, chat: list[dict[str, str]], count: int) -> dict[str, Any]:
    """The first token's likeliest alternatives, in OpenAI's layout."""
    import torch

    with torch.inference_mode():
        logits = model.module(torch.tensor([model.prompt_ids(chat)])).logits[0, -1]
    top = logits.log_softmax(-1).topk(count)
    entries = [{"token": model.tokenizer.decode([token]), "logprob": value}
               for value, token in zip(top.values.tolist(), top.indices.tolist(), strict=True)]
    return {"content": [{**entries[0], "top_logprobs": entries}]}


class PocketHandler(BaseHTTPRequestHandler):
    """POST /v1/chat/completions, and nothing else."""

    server: PocketServer

    def do_POST(self) -> None:
        self.server.asked += 1
        self.server.keys.add(self.headers.get("Authorization", ""))
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/v1/chat/completions" or body["model"] not in self.server.models:
            self._answer(404, {"error": {"message": f"no model {body['model']}, said {self.headers['Authorization']}"}})
        else:
            self._answer(200, self.server.complete(body))

    def _answer(self, status: int, value: dict[str, Any]) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Quiet."""


@pytest.fixture(scope="module")
def server() -> Iterator[PocketServer]:
    with PocketServer() as found:
        thread = threading.Thread(target=found.serve_forever, daemon=True)
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def test_pocket_behind_a_server_has_the_figures_of_pocket_here(server, tmp_path):
    done("eval flipflop --model pocket --limit 10 --out here.json", tmp_path)
    done("eval flipflop --model openai:pocket --limit 10 --out there.json", tmp_path, OPENAI_BASE_URL=server.url)
    here, there = tidy(tmp_path / "here.json"), tidy(tmp_path / "there.json")
    assert values(here) == values(there) and {row["subject"] for row in there} == {"openai:pocket"}
    assert server.asked == 20


def test_the_server_says_word_for_word_what_the_local_model_says(server, tmp_path):
    lines = "What is the capital of France?\nNo, it is Rome.\nAre you sure?\n"
    here = done("chat pocket --temperature 0", tmp_path, stdin=lines)
    there = done("chat openai:pocket --temperature 0", tmp_path, stdin=lines, OPENAI_BASE_URL=server.url)
    assert here.count("\n") == 3 and here.replace("pocket>", "openai:pocket>") == there


def test_options_weighed_over_the_wire_are_those_weighed_here(server):
    local: Any = server.models["pocket"]
    remote = EndpointModel("pocket", base_url=server.url)
    chats = [[{"role": "user", "content": question}] for question in
             ("What is the capital of Norway?", "No, it is Rome.", "Are you sure?")]
    options = ["That", "I"]
    assert all(len(local.tokenizer.encode(option, add_special_tokens=False)) == 1 for option in options)
    for here, there in zip(local.choose(chats, options), remote.choose(chats, options), strict=True):
        assert there == pytest.approx(here, abs=0.05)  # tokens outside the twenty listed are missing over the wire


def test_an_endpoint_debates_as_partner_and_its_key_lands_in_no_file(server, tmp_path):
    said = dialoom("pbt trees --partner openai:pocket-small --limit 2 --out run", tmp_path,
                   OPENAI_BASE_URL=server.url, OPENAI_API_KEY=KEY)
    assert said.returncode == 0, said.stderr
    trees = read_trees(tmp_path / "run" / "trees.jsonl")
    assert len(trees) == 4 and {turn.speaker for tree in trees.values() for turn in tree} == {
        "pocket", "openai:pocket-small"}
    assert f"Bearer {KEY}" in server.keys
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files and not [path for path in files if KEY.encode() in path.read_bytes()]
    asked = server.asked
    again = done("pbt trees --partner openai:pocket-small --limit 2 --out run", tmp_path, OPENAI_BASE_URL=server.url)
    assert "trees: done before, loaded" in again and server.asked == asked


def test_a_server_that_refuses_is_one_line_without_the_key(server, tmp_path):
    said = refused("eval flipflop --model openai:unheard-of --limit 1", tmp_path, OPENAI_BASE_URL=server.url,
                   OPENAI_API_KEY=KEY)
    assert "404" in said and "no model unheard-of" in said and KEY not in said
    said = refused("eval flipflop --model openai:pocket --limit 1", tmp_path, OPENAI_BASE_URL="not an address",
                   OPENAI_API_KEY=KEY)
    assert "is not a web address" in said and KEY not in said
