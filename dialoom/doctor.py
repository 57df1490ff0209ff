"""`dialoom doctor`: what a bug report needs and what goes wrong most. Says whether a key is set, never what it is."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

from dialoom.models.load import POCKETS, WEIGHTS
from dialoom.recipes.run import revision, versions

KEYS = ("OPENAI_API_KEY", "OPENAI_BASE_URL", "HF_TOKEN")
PLAIN = ("HF_HOME", "HF_HUB_OFFLINE", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "NO_COLOR")


def examine() -> Iterator[tuple[str, str]]:
    """Name and finding, one after the other; imports torch on the way."""
    yield from versions().items()
    yield "revision", revision() or "not a checkout"
    yield "platform", platform.platform()
    yield from _machine()
    yield from _devices()
    for name in KEYS:
        yield name, "set" if os.environ.get(name) else "not set"
    for name in PLAIN:
        yield name, os.environ.get(name, "not set")
    for name in POCKETS:
        yield f"weights of {name}", _weights(WEIGHTS / name)


def _machine() -> Iterator[tuple[str, str]]:
    yield "processors", str(os.cpu_count())
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        yield "memory", f"{memory / 2**30:.1f} GiB"
    except (ValueError, OSError):
        yield "memory", "unknown"
    yield "free disk here", f"{shutil.disk_usage(Path.cwd()).free / 2**30:.1f} GiB"


def _devices() -> Iterator[tuple[str, str]]:
    try:
        import torch
    except ImportError as wrong:
        yield "devices", f"torch cannot be imported ({wrong}); install it with `pip install torch`"
        return
    yield "torch threads", str(torch.get_num_threads())
    found = [f"cuda:{number} {torch.cuda.get_device_name(number)}" for number in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append("mps")
    yield "devices", ", ".join([*found, "cpu"])


def _weights(folder: Path) -> str:
    file = folder / "model.safetensors"
    if not file.is_file():
        return f"missing ({folder}); build them with `dialoom pocket build`"
    from dialoom.models.load import weights_hash

    return f"{weights_hash(folder)}, {file.stat().st_size / 1e6:.1f} MB"
