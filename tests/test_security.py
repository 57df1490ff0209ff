"""What must never happen: code out of data, files outside their folder, a key told, anybody else answered or asked."""

from __future__ import annotations

import gzip
import importlib.metadata
import importlib.util
import itertools
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
from dialoom.errors import DataError, ModelError
from dialoom.models.ledger import AnswerFile, Tokens
from dialoom.models.load import load_model
from dialoom.models.template import ChatTemplate
from dialoom.recipes.ditto_train import file_name
from dialoom.recipes.run import default_folder
from dialoom.scenarios.files import read_bytes
from dialoom.store import TreeLog
from tests.dangers import dangers

ROOT = Path(__file__).parent.parent
KEY = "sk-canary/2f9c41+d7e8"
NASTY = ("../../x", "/etc/passwd", "..", ".", "", "a/../b", "a\x00b", "C:\\x", "~", "x" * 300, "é" * 300, "a\nb", "con")

# ------------------------------------------------------------------------------------------------ code out of data

@pytest.mark.parametrize("path", sorted((ROOT / "dialoom").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_unpickles_evaluates_or_calls_a_shell(path):
    assert list(dangers(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from joblib import load",
        "from multiprocessing import pickle as p",
        "from os import *",
        "import torch\ntorch.load('x')",
        "from torch import load\nload('x')",
        "import torch as t\nt.load('x')",
        "import torch\nread = torch.load\nread('x')",
        "import torch\ngetattr(torch, 'load')('x')",
        "from os import system\nsystem('ls')",
        "import os\nrun = other = os.popen\nother('ls')",
        "eval('1')",
        "import builtins\nbuiltins.eval('1')",
        "from builtins import exec as run\nrun('1')",
        "compile('1', '', 'eval')",
        "import importlib\nimportlib.import_module('pickle')",
        "from importlib import import_module as get\nget('dill' if x else 'json').loads(b'')",
        "import importlib\nimportlib.import_module('torch').load('x')",
        "__import__('marshal').loads(b'')",
        "yaml.load(text)",
        "import yaml as y\ny.load_all(text)",
        "np.load('x', allow_pickle=True)",
        "np.load('x', allow_pickle=given)",
        "subprocess.run('ls', shell=True)",
        "from subprocess import run\nrun('ls', shell=yes)",
        "subprocess.run('ls', **options)",
        "AutoModelForCausalLM.from_pretrained('x', trust_remote_code=False)",
        "AutoTokenizer.from_pretrained('x', trust_remote_code=True)",
        "AutoTokenizer.from_pretrained('x')",
        "AutoConfig.from_pretrained('x', local_files_only=True)",
        "from transformers import AutoTokenizer as T\nT.from_pretrained('x')",
        "from transformers import AutoTokenizer\nread = AutoTokenizer.from_pretrained\nread('x')",
        "import transformers\ntransformers.pipeline('text-generation')",
        "AutoModelForCausalLM.from_config(config)",
        "own = {'trust_remote_code': True}",
        "own = dict(trust_remote_code=True)",
        "own['trust_remote_code'] = True",
        "own = {'local_files_only': True}\nAutoTokenizer.from_pretrained('x', **own)",
        "own = {'trust_remote_code': False}\nown = {}\nAutoTokenizer.from_pretrained('x', **own)",
        "AutoTokenizer.from_pretrained('x', **whatever)",
        "PeftModel.from_pretrained(model, 'x')",
        "LlamaForCausalLM.from_pretrained('x', use_safetensors=None)",
    ],
)
def test_the_scan_sees_what_it_looks_for(code):
    assert list(dangers(code))


@pytest.mark.parametrize(
    "code",
    [
        "import re\nre.compile('x')",
        "import torch\ntorch.compile(model)",
        "from safetensors.torch import load\nload(data)",
        "import json\njson.load(file)",
        "own = {'trust_remote_code': False}\nAutoTokenizer.from_pretrained('x', **own)",
        "AutoModelForCausalLM.from_pretrained('x', use_safetensors=True, **{'trust_remote_code': False})",
        "PreTrainedTokenizerFast.from_pretrained('x')",
        "subprocess.run(['ls'], shell=False)",
        "frames = {'shell': 'a snail lives in it'}",
    ],
)
def test_the_scan_does_not_cry_over_what_is_harmless(code):
    assert not list(dangers(code))


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


def _pickled_adapter(folder: Path, base: Path, payload: bytes) -> Path:
    """An adapter as PEFT saved it before safetensors."""
    model = load_model(f"hf:{base}", device="cpu")
    model.add_lora(rank=2)
    model.save(folder)
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(payload)
    return folder


def test_adapters_that_are_a_pickle_are_refused_unread(tmp_path, monkeypatch):
    base, payload = save_tiny(tmp_path / "base"), b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR."
    adapter = _pickled_adapter(tmp_path / "adapter", base, payload)
    both = save_tiny(tmp_path / "both")  # a model's folder in which an adapter lies, too
    for name in ("adapter_config.json", "adapter_model.bin"):
        (both / name).write_bytes((adapter / name).read_bytes())
    cached = tmp_path / "cache" / "models--some--adapter"  # as a name on the hub is kept
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    (cached / "snapshots").mkdir()
    adapter.rename(cached / "snapshots" / ("0" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("torch.load", lambda *_, **__: pytest.fail("a pickle was opened"))
    at = cached / "snapshots" / ("0" * 40)
    for spec in (f"hf:{base}+{at}", f"run:{at}", f"hf:{both}"):
        with pytest.raises(ModelError, match=r"no file named adapter_model\.safetensors.*saved again as safetensors"):
            load_model(spec, device="cpu")
    with pytest.raises(ModelError, match="cannot load"):
        load_model(f"hf:{base}+some/adapter", device="cpu")
    assert not (tmp_path / "ran").exists()


def test_an_adapter_is_read_from_where_the_hub_s_files_are_kept(tmp_path, monkeypatch):
    base = save_tiny(tmp_path / "base")
    model = load_model(f"hf:{base}", device="cpu")
    model.add_lora(rank=2)
    cached = tmp_path / "cache" / "models--some--adapter"
    model.save(cached / "snapshots" / ("0" * 40))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert load_model(f"hf:{base}+some/adapter", device="cpu").fingerprint == model.fingerprint


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


def test_a_small_packed_file_does_not_unpack_to_any_size(tmp_path, monkeypatch):
    packed = tmp_path / "q.json.gz"
    packed.write_bytes(gzip.compress(b" " * 5000))
    assert len(read_bytes(packed)) == 5000
    monkeypatch.setattr("dialoom.scenarios.files._UNPACKED", 4999)
    with pytest.raises(DataError, match="holds more than 4,999 bytes"):
        read_bytes(packed)


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
    """A server that tells everybody's key: in every second answer, in turn in five ways, and always to `broken`."""

    class Handler(BaseHTTPRequestHandler):
        count = 0
        ways = itertools.cycle(["busy", "reset", "cut", "page", "escaped"])

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            Handler.count += 1
            broken = body["model"] == "broken"
            way = "busy" if broken else next(Handler.ways) if Handler.count % 2 else ""
            key = self.headers["Authorization"]
            said = {"error": {"message": f"no: {key}", "header": dict(self.headers)}}
            good = {"choices": [{"message": {"content": f"It is Lima. {key if way else ''}"}, "finish_reason": "stop"}]}
            data = json.dumps(said if way == "busy" else good).replace("/", r"\/").encode()
            if way == "reset":
                self.close_connection = True
                return
            if way == "page":
                data = f"<html><body>{key} {key.replace('+', '&#43;')}</body></html>".encode()
            self.send_response(401 if broken else 503 if way == "busy" else 200)
            self.send_header("Content-Length", str(len(data) + 9 * (way == "cut")))
            self.send_header("Retry-After", "0")
            self.end_headers()
            self.wfile.write(data)
            self.close_connection = way == "cut"

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
    assert [str(path) for path, data in told.items() if b"canary" in data] == []  # nor a part of it, however escaped
    assert told[where / "did.json"], done.stderr[-2000:]
    did = json.loads(told[where / "did.json"])
    assert len(did["title"]) == 2 and words[0] in did["title"][0] and "canary" not in str(did["title"])
    return done.returncode, did


def _kept_to_itself(where: Path, did: dict[str, list[object]], url: str) -> None:
    outside = [path for path in did["written"] if not Path(str(path)).is_relative_to(where) and path != "/dev/null"]
    assert outside == [] and did["unpickled"] == []
    port = url.rpartition(":")[2].partition("/")[0]
    assert {str(at) for _, at in did["connected"]} <= {f"('127.0.0.1', {port})"}
    assert all(re.match(r"\('(git|uname|/sbin/ldconfig|gcc|cc)'", str(one)) for one in did["started"]), did["started"]


@pytest.mark.parametrize("read", ["pickle.loads(data)", "pickle.load(io.BytesIO(data))",
                                  "pickle.Unpickler(io.BytesIO(data)).load()"])
def test_the_watch_hears_of_a_pickle_that_names_no_class(read):
    code = (f"from tests import watched; watched.note_pickles(); import io, pickle; data = pickle.dumps([1]); "
            f"assert {read} == [1] and watched.seen['unpickled'], watched.seen")
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


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
@pytest.mark.parametrize("env", [
    {}, {"DIALOOM_TRACEBACK": "1"},
    {"DIALOOM_KEY_127_0_0_1": KEY, "OPENAI_API_KEY": "", "OPENAI_BASE_URL": "http://elsewhere.example/v1"},
], ids=["line", "traceback", "host"])
def test_a_call_that_is_refused_with_the_key_in_the_answer_does_not_tell_it(tmp_path, env):
    with _stub() as url:
        model = f"openai:broken@{url}" if "OPENAI_BASE_URL" in env else "openai:broken"
        code, did = _watched(tmp_path, url, "eval", "flipflop", "--model", model, "--limit", "2", **env)
        _watched(tmp_path, url, "doctor")
    assert code == (1 if "DIALOOM_TRACEBACK" in env else 2)
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
