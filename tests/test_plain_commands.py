"""The plain commands on models of all kinds: one way to say where local ones lie, and endpoints accounted by role."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from fault_proxy import stub

from dialoom.cli import main
from dialoom.models.local import LocalModel
from dialoom.models.place import Place

PRICES = ["--prices", "talker=1/2", "rater=10/20"]


def says(body: dict[str, Any]) -> str:
    return "[[5]] 5" if body["model"] == "rater" else "I think it is Oslo."


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setenv("DIALOOM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OPENAI_API_KEY", "")
    with stub(says) as (address, asked):
        monkeypatch.setenv("OPENAI_BASE_URL", address)
        yield asked


def usage(path: Path) -> dict[str, tuple[str, int]]:
    rows = json.loads(path.read_text())["rows"]
    assert all(row["dollars"] > 0 for row in rows)
    return {row["role"]: (row["model"], row["answers"]) for row in rows}


def test_a_scorecard_accounts_for_the_subject_and_the_judge(server: Any, tmp_path: Path, capsys: Any):
    out = tmp_path / "card.md"
    command = ["scorecard", "openai:talker", "--evals", "recall", "chat", "--judge", "openai:rater",
               "--limit", "2", "--out", str(out)]
    assert main([*command, *PRICES, "--budget", "0.000001"]) == 3
    assert main([*command, *PRICES]) == 0
    told = capsys.readouterr()
    found = usage(tmp_path / "card.usage.json")
    assert set(found) == {"model", "judge"} and found["judge"][0] == "rater"
    assert sum(answers for _, answers in found.values()) == sum(server.values())
    assert "judge: rater" in told.err and out.exists()


def test_a_chat_accounts_for_both_who_answer(server: Any, tmp_path: Path, capsys: Any, monkeypatch: Any):
    monkeypatch.setattr("sys.stdin", io.StringIO(f"Hello\n/both\nAnd now?\n/save {tmp_path / 'talk.jsonl'}\n"))
    assert main(["chat", "openai:talker", "--beside", "openai:rater", *PRICES]) == 0
    assert usage(tmp_path / "talk.usage.json") == {"model": ("talker", 2), "beside": ("rater", 1)}
    assert "beside: rater, 1 answers" in capsys.readouterr().err
    assert sum(server.values()) == 3


def test_an_evaluation_leaves_what_it_cost_beside_its_rows(server: Any, tmp_path: Path):
    out = tmp_path / "rows.json"
    assert main(["eval", "recall", "--model", "openai:talker", "--limit", "3", "--out", str(out), *PRICES]) == 0
    assert usage(tmp_path / "rows.usage.json") == {"model": ("talker", 3)}
    assert main(["eval", "recall", "--model", "pocket", "--limit", "1", "--out", str(tmp_path / "own.json")]) == 0
    assert not (tmp_path / "own.usage.json").exists()


def test_an_audit_accounts_for_its_judge_and_stops_at_its_budget(server: Any, tmp_path: Path, capsys: Any):
    rows = [{"id": str(at), "conversations": [{"from": who, "value": f"{said} {at}"} for who, said in (
        ("human", "Hello, number"), ("gpt", "Hello"), ("human", "Thank you"), ("gpt", "Good-bye"))]} for at in range(3)]
    (tmp_path / "said.json").write_text(json.dumps(rows))
    command = ["audit", str(tmp_path / "said.json"), "--judge", "openai:rater", *PRICES]
    assert main([*command, "--budget", "0.000001"]) == 3 and not server
    assert main([*command, "--extra", '{"reasoning_effort": "low"}']) == 0
    assert f"judge: rater, {sum(server.values())} answers" in capsys.readouterr().err and server


@pytest.mark.parametrize("command", [["eval", "recall", "--model", "pocket", "--limit", "1"],
                                     ["scorecard", "pocket", "--evals", "recall", "--limit", "1"], ["chat", "pocket"]])
def test_local_models_are_loaded_as_the_flags_say(command: list[str], monkeypatch: Any, capsys: Any):
    seen: list[Place] = []
    load = LocalModel.load.__func__  # type: ignore[attr-defined]

    def noted(cls: Any, path: Any, *, device: Any, **more: Any) -> LocalModel:
        seen.append(device)
        return load(cls, path, device=device, **more)

    monkeypatch.setattr(LocalModel, "load", classmethod(noted))
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n"))
    assert main([*command, "--device", "cpu", "--dtype", "float32"]) == 0
    assert seen and set(seen) == {Place("cpu", "float32")}
    for wrong in (["--device", "tpu"], ["--dtype", "bf16"], ["--device-map", "auto", "--replicas", "2"],
                  ["--replicas", "0"]):
        assert main([*command, *wrong]) == 2, wrong
        assert "error: " in capsys.readouterr().err
