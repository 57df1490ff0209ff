"""The live viewer's server: for this machine only, for whoever asked by its name, and only what is new."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dialoom.cli import main
from dialoom.dialogue import Turn
from dialoom.errors import ConfigError, StoreError
from dialoom.report.trees import _told
from dialoom.store import TreeLog, append_row, unframed, write_rows
from dialoom.view import Server, Watched, serve, view
from tests.test_report import debate, run_folder


@contextmanager
def serving(*folders: Path) -> Iterator[Server]:
    """A server on a free port, answering; its runs may be read again at once."""
    with serve(folders, port=0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def ask(server: Server, path: str, host: str | None = None, method: str = "GET") -> tuple[int, dict[str, str], str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    connection.putrequest(method, path, skip_host=True)
    connection.putheader("Host", host or server.address.removeprefix("http://").rstrip("/"))
    connection.endheaders()
    answer = connection.getresponse()
    told = answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read().decode()
    connection.close()
    return told


def news(watched: Watched, since: int) -> dict[str, Any]:
    """What is new, without waiting until reading is due again."""
    watched._due = 0.0
    told: dict[str, Any] = json.loads(watched.since(since))
    return told


def test_listens_on_the_loopback_only(tmp_path: Path) -> None:
    with serving(run_folder(tmp_path / "run")) as server:
        assert server.socket.getsockname()[0] == "127.0.0.1"
        own = socket.gethostbyname(socket.gethostname())
        if own != "127.0.0.1" and not own.startswith("127."):
            with pytest.raises(OSError), socket.create_connection((own, server.server_address[1]), timeout=1):
                pass


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "127.0.0.1:1", "localhost.evil.example:80", "", "a b"])
def test_answers_only_who_asked_by_its_name(tmp_path: Path, host: str) -> None:
    with serving(run_folder(tmp_path / "run", "SECRET")) as server:
        status, _, text = ask(server, "/data?run=0&since=-1", host or " ")
        assert status == 403 and "SECRET" not in text
        assert ask(server, "/", f"localhost:{server.server_address[1]}")[0] == 200


def test_page_and_data_come_with_headers_that_keep_others_out(tmp_path: Path) -> None:
    with serving(run_folder(tmp_path / "run")) as server:
        for path, kind in (("/", "text/html"), ("/data?run=0&since=-1", "application/json")):
            status, headers, _ = ask(server, path)
            assert status == 200 and headers["content-type"] == f"{kind}; charset=utf-8"
            assert headers["content-security-policy"].startswith("default-src 'none'; style-src 'sha256-")
            assert "connect-src 'self'" in headers["content-security-policy"]
            assert "frame-ancestors 'none'" in headers["content-security-policy"]
            assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"
            assert headers["cross-origin-resource-policy"] == "same-origin"
            assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize(("path", "status"), [("/trees.jsonl", 404), ("/../../etc/passwd", 404), ("/data", 500),
                                              ("/data?run=7&since=0", 500), ("/data?run=0&since=x", 500)])
def test_gives_no_file_and_no_traceback(tmp_path: Path, path: str, status: int) -> None:
    with serving(run_folder(tmp_path / "run")) as server:
        got, _, text = ask(server, path)
        assert got == status and "Traceback" not in text
        assert ask(server, "/", method="POST")[0] == 501


def test_tells_what_is_new_and_only_that(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    watched = Watched(folder, 1000)
    first = news(watched, -1)
    assert len(first["trees"]) == 2 and first["overview"]["counts"]["turns"] == 10 and first["reset"]
    assert news(watched, first["version"]) == {"version": first["version"], "reset": False, "overview": None,
                                               "trees": []}
    with TreeLog(folder / "trees.jsonl") as log:
        tree = log.trees()["q1"]
        log.add_turns(tree, [Turn("new", "q1e", "A", "And now?")])
    second = news(watched, first["version"])
    assert [tree["id"] for tree in second["trees"]] == ["q1"] and second["trees"][0]["turns"][-1][3] == "And now?"
    assert second["overview"]["counts"]["turns"] == 11
    append_row(folder / "metrics.jsonl", {"stage": "dpo", "step": 9, "loss": 0.5})
    third = news(watched, second["version"])
    assert not third["trees"] and third["overview"]["curves"][-1]["stage"] == "dpo"


def test_pairs_change_the_trees_they_are_of(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    watched = Watched(folder, 1000)
    known = news(watched, -1)["version"]
    write_rows(folder / "pairs.jsonl", [{"tree": "q1", "chosen_turn": "q1d", "rejected_turn": "q1e", "kind": "new"}])
    told = news(watched, known)["trees"]
    assert {tree["id"]: tree["pairs"] for tree in told} == {"q0": [], "q1": [[3, 4, "new", None, None]]}


def test_run_begun_anew_is_told_whole(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    watched = Watched(folder, 1000)
    known = news(watched, -1)["version"]
    shutil.rmtree(folder)
    with pytest.raises(StoreError, match="no such run folder"):
        news(watched, known)
    folder.mkdir()
    with TreeLog(folder / "trees.jsonl") as log:
        log.add_tree(debate("other"))
    told = news(watched, known)
    assert told["reset"] and [tree["id"] for tree in told["trees"]] == ["other"]
    assert news(watched, 99)["reset"], "a page that knows another server's version begins anew"


def test_reading_is_not_repeated_before_it_is_due(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    watched = Watched(folder, 1000)
    assert json.loads(watched.since(-1))["version"] == 1
    watched._due += 1000
    append_row(folder / "metrics.jsonl", {"stage": "dpo", "step": 9, "loss": 0.5})
    assert json.loads(watched.since(1))["version"] == 1


def test_a_poll_reads_what_was_added_and_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run_folder(tmp_path / "run", trees=20)
    lines, told = list[bytes](), list[str]()
    monkeypatch.setattr("dialoom.store.unframed", lambda line: (lines.append(line), unframed(line))[1])
    monkeypatch.setattr("dialoom.report.trees._told", lambda part, tree, *rest: (told.append(tree.id), _told(
        part, tree, *rest))[1])
    watched = Watched(folder, 1000)
    first = news(watched, -1)
    assert len(lines) >= 120 and len(told) == 20
    with TreeLog(folder / "trees.jsonl") as log:
        log.add_turns(log.trees()["q7"], [Turn("new", "q7e", "A", "And now?")])
    lines.clear()
    told.clear()
    second = news(watched, first["version"])
    assert [tree["id"] for tree in second["trees"]] == ["q7"] == told
    assert len(lines) == 1 and b"And now?" in lines[0]


def test_followed_run_is_told_as_one_read_at_once(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", trees=3)
    watched = Watched(folder, 1000)
    news(watched, -1)
    with TreeLog(folder / "trees.jsonl") as log:
        tree = log.trees()["q1"]
        turn = tree.add(Turn("new", "q1e", "A", "And now?"))
        log.add_turns(tree, [turn])
        turn.scores["value"] = 0.25
        log.add_scores(tree, [turn])
        log.skip("q2", None, "no verdict")
    followed, once = news(watched, -1), news(Watched(folder, 1000), -1)
    assert followed["trees"] == once["trees"] and followed["overview"] == once["overview"]


def test_half_a_line_at_the_end_of_a_log_is_a_run_that_goes_on(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    watched = Watched(folder, 1000)
    known = news(watched, -1)["version"]
    with (folder / "trees.jsonl").open("ab") as log:
        log.write(b'{"kind":"turn","tree":"q0","id":"ha')
    assert news(watched, known)["trees"] == []


def test_what_a_live_page_does_not_hold_is_told(tmp_path: Path) -> None:
    told = news(Watched(run_folder(tmp_path / "run", trees=5), 12), -1)
    assert len(told["trees"]) == 2 and told["overview"]["parts"][0]["trees"] == 5


def test_taken_port_and_wrong_number_of_runs_are_refused(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    with serving(folder) as server, pytest.raises(ConfigError, match=r"cannot listen there.*0 for any free"):
        serve([folder], port=server.server_address[1])
    for folders in ([], [folder] * 3):
        with pytest.raises(ConfigError, match="expected one, or two"):
            view(folders)


def test_command_writes_the_page_of_two_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [run_folder(tmp_path / name) for name in ("one", "other")]
    assert main(["view", *map(str, folders), "--html", str(tmp_path / "page.html")]) == 0
    assert "page.html" in capsys.readouterr().out
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    assert main(["view", str(tmp_path / "none")]) == 2
    assert "no such run folder" in capsys.readouterr().err
