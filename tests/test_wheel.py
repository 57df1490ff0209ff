"""The package as others get it: what is in the wheel, how large it is, and that it runs from any folder."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LARGEST = 12_000_000  # bytes; 8.3 million on 21 November 2026, of which the embedded weights are 7.7
COMES_WITH = {"markupsafe"}  # part of a dependency's own interface: Jinja2's
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def canonical(name: str) -> str:
    """A distribution's name as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", re.split(r"[ <>=!~;\[]", name)[0]).lower()


def test_whatever_the_package_imports_is_among_its_dependencies():
    extras = [line for name, lines in PROJECT["optional-dependencies"].items() if name != "dev" for line in lines]
    declared = {canonical(line) for line in [*PROJECT["dependencies"], *extras]}
    where = importlib.metadata.packages_distributions()
    roots: dict[str, str] = {}
    for path in (ROOT / "dialoom").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else \
                [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            roots |= {name.split(".")[0]: str(path.relative_to(ROOT)) for name in names}
    foreign = {root: path for root, path in roots.items() if root not in (*sys.stdlib_module_names, "dialoom")}
    missing = {root: path for root, path in foreign.items()
               if not {canonical(name) for name in where.get(root, [root])} & declared}
    assert len(foreign) > 10 and missing.keys() <= COMES_WITH, missing


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)], cwd=ROOT, check=True,
                   capture_output=True, timeout=120)
    [found] = folder.glob("*.whl")
    return found


@pytest.mark.slow
def test_the_wheel_holds_the_weights_and_nothing_that_is_not_needed(wheel):
    with zipfile.ZipFile(wheel) as held:
        names = held.namelist()
    print(f"{wheel.name}: {wheel.stat().st_size:,} bytes, {len(names)} files")
    assert wheel.stat().st_size < LARGEST
    assert {name.split("/")[0] for name in names} == {"dialoom", f"dialoom-{PROJECT['version']}.dist-info"}
    for name in ("pocket", "pocket-small"):
        assert f"dialoom/pocket/weights/{name}/model.safetensors" in names
    assert any(name.startswith("dialoom/report/static/") for name in names)
    needless = re.compile(r"(^|/)(tests?|runs|web|node_modules|bench|docs)/|\.work/|\.pyc$")
    assert not [name for name in names if needless.search(name)]
    assert {"LICENSE", "NOTICE"} <= {Path(name).name for name in names}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_installed_wheel_runs_from_another_folder(wheel, tmp_path):
    """Its dependencies are borrowed from this environment: they come from the network otherwise."""
    place, desk = tmp_path / "venv", tmp_path / "desk"
    desk.mkdir()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    python = place / "bin" / "python"
    subprocess.run([sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--python", str(python),
                    "install", "--no-deps", "--no-index", str(wheel)], check=True, timeout=120)
    [packages] = place.glob("lib/python*/site-packages")
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")

    def said(*words: str) -> str:
        clean = {"PATH": "/usr/bin:/bin", "HOME": str(desk), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(words, cwd=desk, env=clean, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert Path(said(str(python), "-c", "import dialoom; print(dialoom.__file__)").strip()).is_relative_to(place)
    dialoom = str(place / "bin" / "dialoom")
    assert said(dialoom, "--version").strip() == PROJECT["version"]
    assert said(dialoom, "pocket", "card").startswith(("#", "---"))
    said(dialoom, "pbt", "trees", "--limit", "2", "--out", "run")
    said(dialoom, "view", "run", "--html", "run.html")
    assert (desk / "run" / "trees.jsonl").stat().st_size and (desk / "run.html").stat().st_size > 50_000
