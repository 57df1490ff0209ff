"""What must never happen: code out of data, files outside their folder, a key told, anybody else answered or asked."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tiny import save_tiny, tiny_tokenizer

from dialoom.config import Config
from dialoom.dialogue import DialogueTree, Scenario, Turn
from dialoom.errors import ModelError
from dialoom.models.ledger import AnswerFile, Tokens
from dialoom.models.load import load_model
from dialoom.models.template import ChatTemplate
from dialoom.recipes.ditto_train import file_name
from dialoom.recipes.run import default_folder
from dialoom.store import TreeLog

ROOT = Path(__file__).parent.parent
KEY = "sk-canary-2f9c41d7e8"
NASTY = ("../../x", "/etc/passwd", "..", ".", "", "a/../b", "a\x00b", "C:\\x", "~", "x" * 300, "é" * 300, "a\nb", "con")

# ------------------------------------------------------------------------------------------------ code out of data

MODULES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
CALLS = {
    "eval",
    "exec",
    "os.system",
    "os.popen",
    "torch.load",
    "torch.save",
    "yaml.load",
    "yaml.full_load",
    "yaml.unsafe_load",
    "np.save",
    "pd.read_pickle",
    "tempfile.mktemp",
}


def dangers(code: str) -> Iterator[str]:
    """What in a module's text could run code out of a file, or a text as a command; `line: what`."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            yield from (f"{node.lineno}: import {name}" for name in names if name.split(".")[0] in MODULES)
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in CALLS:
                yield f"{node.lineno}: {called}()"
            for given in node.keywords:
                value = ast.unparse(given.value)
                if (given.arg, value) in {
                    ("shell", "True"),
                    ("trust_remote_code", "True"),
                    ("allow_pickle", "True"),
                    ("use_safetensors", "False"),
                    ("weights_only", "False"),
                }:
                    yield f"{node.lineno}: {given.arg}={value}"
            if called.endswith(
                ("ForCausalLM.from_pretrained", "AutoModel.from_pretrained", "PeftModel.from_pretrained")
            ) and "use_safetensors" not in {given.arg for given in node.keywords}:
                yield f"{node.lineno}: {called} without use_safetensors"


@pytest.mark.parametrize("path", sorted((ROOT / "dialoom").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_unpickles_evaluates_or_calls_a_shell(path):
    assert list(dangers(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from joblib import load",
        "import torch\ntorch.load('x')",
        "eval('1')",
        "yaml.load(text)",
        "np.load('x', allow_pickle=True)",
        "subprocess.run('ls', shell=True)",
        "AutoModelForCausalLM.from_pretrained('x')",
        "AutoTokenizer.from_pretrained('x', trust_remote_code=True)",
    ],
)
def test_the_scan_sees_what_it_looks_for(code):
    assert list(dangers(code))


def test_code_that_comes_with_a_model_is_not_run(tmp_path):
    folder = save_tiny(tmp_path / "model")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').write('x')\nclass M: pass\nclass C: pass\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError):
        load_model(f"hf:{folder}")
    assert not (tmp_path / "ran").exists()


def test_weights_that_are_a_pickle_are_refused_unread(tmp_path):
    folder = save_tiny(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR.")
    with pytest.raises(ModelError, match="safetensors"):
        load_model(f"hf:{folder}")
    assert not (tmp_path / "ran").exists()


def test_a_chat_template_cannot_reach_python():
    for evil in ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ cycler.__init__.__globals__.os.system('x') }}"):
        with pytest.raises(ModelError, match=r"unsafe|refuses"):
            ChatTemplate(tiny_tokenizer(evil), "evil")


# ------------------------------------------------------------------------------------------------ files and folders


@pytest.mark.parametrize("name", NASTY)
def test_an_author_s_name_is_one_file_name_inside_its_folder(tmp_path, name):
    found = file_name(name)
    assert found not in ("", ".", "..") and "/" not in found and "\0" not in found
    (tmp_path / found).mkdir()
    assert [one.name for one in tmp_path.iterdir()] == [found]


def test_different_authors_have_different_files():
    assert len({file_name(name) for name in (*NASTY, "x" * 301, "a-b")}) == len(NASTY) + 2


@pytest.mark.parametrize("model", NASTY)
def test_a_model_s_name_does_not_lead_a_run_out_of_runs(model):
    class Own(Config):
        model: str = ""

    folder = default_folder("pbt", Own(model=model))
    assert folder.parts[0] == "runs" and len(folder.parts) == 2 and ".." not in folder.parts
    assert len(folder.name.encode()) < 255 and folder.name.isprintable()


@pytest.mark.parametrize("name", NASTY)
def test_ids_of_trees_and_turns_are_no_file_names(tmp_path, name):
    with TreeLog(tmp_path / "trees.jsonl") as log:
        tree = DialogueTree(Scenario(name, "?"), name or None)
        tree.add(Turn(name, None, name, "text"))
        log.add_tree(tree)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["trees.jsonl", "trees.jsonl.lock"]


def test_remembered_answers_are_for_their_owner_only(tmp_path):
    before = os.umask(0)
    try:
        ledger = AnswerFile(tmp_path / "new" / "answers.jsonl")
        ledger.add("id", "judge", "m", {"message": {"content": "x"}}, Tokens(1, 1))
        ledger.close()
    finally:
        os.umask(before)
    assert (tmp_path / "new" / "answers.jsonl").stat().st_mode & 0o077 == 0
    assert (tmp_path / "new").stat().st_mode & 0o077 == 0


def test_every_server_of_the_package_listens_on_the_loopback():
    for path in (ROOT / "dialoom").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "0.0.0.0" not in text and not re.search(r"(?:bind|HTTPServer|__init__)\(\(?[\"']{2}", text), path
        if "HTTPServer" in text:
            assert "127.0.0.1" in text and '"Host"' in text, path


# ------------------------------------------------------------------------------------------------ whole runs, watched


@contextmanager
def _stub() -> Iterator[str]:
    """A server that tells everybody's key in an error: first, every third time, and always for the model `broken`."""

    class Handler(BaseHTTPRequestHandler):
        count = 0

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            Handler.count += 1
            bad = body["model"] == "broken" or Handler.count % 3 == 1
            said = {"error": {"message": f"no: {self.headers['Authorization']}", "header": dict(self.headers)}}
            good = {"choices": [{"message": {"content": "It is Lima."}, "finish_reason": "stop"}]}
            data = json.dumps(said if bad else good).encode()
            self.send_response(401 if body["model"] == "broken" else 503 if bad else 200)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Retry-After", "0")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
        assert Handler.count >= 1


def _watched(where: Path, url: str, *words: str, **env: str) -> tuple[int, dict[str, list[object]]]:
    """Exit code and what the command did, after a search for the key in all it left behind."""
    (where / "home").mkdir(exist_ok=True)
    plain = {
        name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "HF_", "XDG_", "DIALOOM"))
    }
    own = {
        "HOME": str(where / "home"),
        "TMPDIR": str(where / "home"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": str(ROOT),
        "OPENAI_API_KEY": KEY,
        "OPENAI_BASE_URL": url,
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.watched", "did.json", *words],
        cwd=where,
        env=plain | own | env,
        capture_output=True,
        timeout=280,
    )
    told = {path: path.read_bytes() for path in where.rglob("*") if path.is_file()}
    told |= {Path("stdout"): done.stdout, Path("stderr"): done.stderr}
    assert [str(path) for path, data in told.items() if KEY.encode() in data] == []
    assert told[where / "did.json"], done.stderr[-2000:]
    return done.returncode, json.loads(told[where / "did.json"])


def _kept_to_itself(where: Path, did: dict[str, list[object]], url: str) -> None:
    outside = [path for path in did["written"] if not Path(str(path)).is_relative_to(where) and path != "/dev/null"]
    assert outside == [] and did["unpickled"] == []
    port = url.rpartition(":")[2].partition("/")[0]
    assert {str(at) for _, at in did["connected"]} <= {f"('127.0.0.1', {port})"}
    assert all(re.match(r"\('(git|uname|/sbin/ldconfig|gcc|cc)'", str(one)) for one in did["started"]), did["started"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_run_writes_into_its_folder_asks_its_endpoint_and_tells_nobody_its_key(tmp_path):
    with _stub() as url:
        code, did = _watched(
            tmp_path,
            url,
            "pbt",
            "--model",
            "pocket-small",
            "--partner",
            "pocket-small",
            "--limit",
            "6",
            "--eval-questions",
            "2",
            "--sft.max-steps",
            "2",
            "--dpo.max-steps",
            "2",
            "--extractor",
            "openai:judge",
            "--out",
            "run",
        )
    assert code == 0
    _kept_to_itself(tmp_path, did, url)
    assert did["connected"], "the endpoint was not asked, so nothing was shown"
    assert not [
        path for path in (tmp_path / "run").rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt")
    ]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("env", [{}, {"DIALOOM_TRACEBACK": "1"}], ids=["line", "traceback"])
def test_a_call_that_is_refused_with_the_key_in_the_answer_does_not_tell_it(tmp_path, env):
    with _stub() as url:
        code, did = _watched(tmp_path, url, "eval", "flipflop", "--model", "openai:broken", "--limit", "2", **env)
        _watched(tmp_path, url, "doctor")
    assert code == (1 if env else 2)
    _kept_to_itself(tmp_path, did, url)


# ------------------------------------------------------------------------------------------------ dependencies


def _pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {
        re.sub(r"[-_.]+", "-", name).lower(): version
        for name, _, version in (line.partition("==") for line in lines if line and not line.startswith("#"))
    }


def test_every_dependency_is_pinned_with_all_that_it_needs():
    def needs(name: str, extra: str = "") -> Iterator[str]:
        from packaging.requirements import Requirement

        for text in importlib.metadata.requires(name) or ():
            need = Requirement(text)
            if need.marker is None or need.marker.evaluate({"extra": extra}):
                yield re.sub(r"[-_.]+", "-", need.name).lower()

    todo, seen = [*needs("dialoom"), *needs("dialoom", "dev")], set()
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += needs(name)
    own = {name for name in seen if not name.startswith(("nvidia-", "triton", "cuda-"))}  # a CUDA build's own
    assert own - _pinned().keys() == set() and len(own) > 40


def test_what_is_installed_fits_together():
    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_no_pinned_version_has_a_known_advisory(tmp_path):
    if importlib.util.find_spec("pip_audit") is None:
        pytest.skip("pip-audit is not installed: no advisory was looked up (pip install pip-audit)")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip_audit",
            "--no-deps",
            "--disable-pip",
            "-r",
            str(ROOT / "constraints.txt"),
            "-f",
            "json",
            "--timeout",
            "10",
        ],
        capture_output=True,
        text=True,
    )
    if not done.stdout.startswith("{"):
        pytest.skip(f"the advisory service did not answer: {done.stderr.strip()[-200:]}")
    told = json.loads(done.stdout)["dependencies"]
    asked = [one for one in told if "skip_reason" not in one]
    if not asked:  # a mirror without advisories knows no package, which pip-audit calls no vulnerabilities
        pytest.skip(f"no advisory was looked up for any of {len(told)} packages: {told[0]['skip_reason']}")
    assert {one["name"]: one["vulns"] for one in asked if one["vulns"]} == {}
