"""The long run: `python -m tests.fuzz --inputs 100000` prints figures by target and ends with 1 if anything broke.

Coverage-guided where atheris is installed, by `mutants` alone elsewhere or with --plain. What broke lies in --out.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .plain import tried
from .targets import TARGETS


def main() -> int:
    """Fuzz every target with its share of the inputs; heavy ones get a third of a light one's."""
    asked = _asked()
    names = asked.targets or list(TARGETS)
    weights = {name: 1 if TARGETS[name].heavy else 3 for name in names}
    guided = not asked.plain and importlib.util.find_spec("atheris") is not None
    print(
        f"{asked.inputs:,} inputs, {'coverage-guided (atheris)' if guided else 'mutants only'}, seed {asked.seed}, "
        f"{time.strftime('%Y-%m-%d')}\n\n{'target':<16}{'inputs':>10}{'branches':>10}{'CPU s':>8}{'broke':>7}",
        flush=True,
    )
    total = {"inputs": 0, "seconds": 0.0, "found": 0}
    shares = {name: -(-asked.inputs * weights[name] // sum(weights.values())) for name in names}
    folder = asked.out / time.strftime("%Y%m%d-%H%M%S")
    folder.mkdir(parents=True)
    for name, row in _guided(shares, asked.seed, folder) if guided else _plain(shares, asked.seed, folder):
        print(
            f"{name:<16}{row['inputs']:>10,}{row['branches']:>10}{row['seconds']:>8.0f}{len(row['found']):>7}",
            flush=True,
        )
        for told in row["found"]:
            print(f"    {told}", flush=True)
        total = {key: value + (len(row[key]) if key == "found" else row[key]) for key, value in total.items()}
    print(f"{'in all':<16}{total['inputs']:>10,}{'':>10}{total['seconds']:>8.0f}{total['found']:>7}")
    return int(total["found"] > 0)


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000, help="in all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--targets", nargs="*", choices=list(TARGETS), help="only these")
    parser.add_argument("--plain", action="store_true", help="without atheris")
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"), help="where inputs are put that broke something")
    return parser.parse_args()


Rows = Iterator[tuple[str, dict[str, Any]]]


def _plain(shares: Mapping[str, int], seed: int, folder: Path) -> Rows:
    for name, inputs in shares.items():
        began = time.process_time()
        done = tried(TARGETS[name], inputs, seed)
        done.write(folder, name)
        yield (
            name,
            {"inputs": done.inputs, "branches": "", "seconds": time.process_time() - began, "found": list(done.found)},
        )


def _guided(shares: Mapping[str, int], seed: int, folder: Path) -> Rows:
    command = [
        sys.executable,
        "-m",
        "tests.fuzz.guided",
        str(folder),
        str(seed),
        *(f"{name}={inputs}" for name, inputs in shares.items()),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        for line in process.stdout or ():
            figures, log = folder / f"{line.strip()}.json", folder / f"{line.strip()}.log"
            reached = re.findall(r"cov: (\d+)", log.read_text(encoding="utf-8", errors="replace"))
            if figures.exists():
                yield line.strip(), {**json.loads(figures.read_text()), "branches": reached[-1] if reached else ""}
            else:  # killed by a hang in C code or by memory; libFuzzer left its input in the folder
                yield line.strip(), {"inputs": 0, "branches": "", "seconds": 0.0, "found": [f"was killed, see {log}"]}


if __name__ == "__main__":
    sys.exit(main())
