"""kill -9 at moments spread over a build of a tiny pocket: each is built again and has to end with the same weights.

    python -m tests.faults.builds --kills 12

Every build is a fork of this process. Whatever a kill leaves under the model's name has to be whole already.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a fork keeps no threads

from tests.faults.bomb import Bomb
from tests.faults.kills import fork

NAME = "pocket-small"


def build(out: Path) -> None:
    """Twice, so that a model is replaced, too."""
    from dialoom.recipes import pocket

    config = pocket.PocketConfig(name=NAME, hidden=32, layers=1, heads=2, intermediate=32, steps=4, batch_tokens=1024,
                                 checkpoint_every=1)
    for _ in range(2):
        pocket.build(config, out, lambda line: None)


def files(folder: Path) -> dict[str, bytes]:
    """What a model's folder holds, by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def prepare(bomb: Bomb) -> None:
    """A tokenizer that need not be trained, and what is done to the disk watched."""
    from transformers import AutoTokenizer

    from dialoom.models.load import WEIGHTS
    from dialoom.recipes import pocket

    pocket.train_tokenizer = lambda seed, vocabulary: AutoTokenizer.from_pretrained(WEIGHTS / "pocket")
    bomb.plant()


def main() -> int:
    """Print what came of the kills; 1 if anything was."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=12)
    kills = parser.parse_args().kills
    import dialoom.recipes.pocket  # noqa: F401 - so that forks find it

    where, wrong, kinds = Path(tempfile.mkdtemp(prefix="builds-")), [], Counter[str]()
    assert fork(build, where / "whole", prepare, Bomb()) == 0, (where / "whole.log").read_text()
    whole, events = files(where / "whole" / NAME), json.loads((where / "whole.events").read_text())
    for number in range(kills):
        at, out = (2 * number + 1) * len(events) // (2 * kills), where / str(number)
        assert fork(build, out, prepare, Bomb(at)) == -signal.SIGKILL
        kinds[events[at][0]] += 1
        if (out / NAME).exists() and files(out / NAME) != whole:
            wrong.append(f"kill {at}: left half a model")
        if fork(build, out, prepare, Bomb()) or files(out / NAME) != whole:
            wrong.append(f"kill {at}: ended otherwise: {(where / f'{number}.log').read_text()[-1000:]}")
        wrong += [f"kill {at}: {path} was left" for path in out.rglob("*.tmp")]
    print(json.dumps({"kills": kinds.total(), "kinds": dict(kinds), "wrong": wrong}, indent=1))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
