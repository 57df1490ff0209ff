"""Targets under atheris: inputs that reach new code are kept and changed further.

    python -m tests.fuzz.guided FOLDER SEED TARGET=INPUTS ...

writes `<target>.json` (inputs, seconds, defects), `<target>.log` and one file for each defect into FOLDER, and names
each target that is done. Half of the changes are those of `mutants`, the other half libFuzzer's. Each target has a
process of its own, since libFuzzer does not return; it is forked, since instrumenting our code takes ten seconds.
"""

from __future__ import annotations

import json
import logging
import os
import random
import sys
import time
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["dialoom"]):
    from .plain import Tried
    from .targets import TARGETS
from .mutants import mutant

SIZE = 20_000


def fuzz(name: str, inputs: int, seed: int, folder: Path) -> None:
    """Fuzz one target and write what came of it; does not return."""
    target, done, began = TARGETS[name], Tried(), time.process_time()
    corpus = folder / f"{name}-corpus"
    corpus.mkdir(parents=True)
    for at, data in enumerate(target.seeds):
        (corpus / str(at)).write_bytes(data)

    def change(data: bytes, size: int, drawn: int) -> bytes:
        rng = random.Random(drawn)
        return mutant((data, *target.seeds), rng, size) if rng.random() < 0.5 else atheris.Mutate(data, size)

    def one(data: bytes) -> None:
        done.one(target, data)
        if done.inputs == inputs:
            done.write(folder, name)
            figures = {"inputs": done.inputs, "seconds": time.process_time() - began, "found": list(done.found)}
            (folder / f"{name}.json").write_text(json.dumps(figures))

    atheris.Setup(
        [
            sys.argv[0],
            str(corpus),
            f"-atheris_runs={inputs}",
            f"-max_len={SIZE}",
            f"-seed={seed}",
            "-timeout=60",
            f"-artifact_prefix={folder}/{name}-",
        ],
        one,
        custom_mutator=change,
    )
    atheris.Fuzz()


def main(folder: Path, seed: int, shares: dict[str, int]) -> None:
    """One target after the other, each in a child process whose words go to its log."""
    warnings.simplefilter("ignore")
    logging.disable()
    for name, inputs in shares.items():
        child = os.fork()
        if not child:
            log = os.open(folder / f"{name}.log", os.O_CREAT | os.O_WRONLY, 0o644)
            os.dup2(log, 1)
            os.dup2(log, 2)
            fuzz(name, inputs, seed, folder)
        os.waitpid(child, 0)
        print(name, flush=True)


if __name__ == "__main__":
    main(
        Path(sys.argv[1]),
        int(sys.argv[2]),
        {name: int(inputs) for name, inputs in (share.split("=") for share in sys.argv[3:])},
    )
