"""Speed and memory of preference training on dialogue trees, against TRL and the usual ways to compute the same step.

Every figure is one epoch over one tree with its optimiser step, in CPU seconds on one thread; ours is the second step
of a real `dpo()` call. Ours and the others take turns in one process on copies of one model. Memory is the peak above
what stood there before the epoch, each way in a process of its own.
"""

from __future__ import annotations

import copy
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from bench.measure import ONE_THREAD, ROOT, Row, forget_peak, memory_mb
from bench.shapes import EOS, MODELS, SHAPES, Shape, TokenModel, as_text, load_module, word_tokenizer
from dialoom.train.config import TrainConfig
from dialoom.train.dpo import dpo, dpo_loss, reference_logprobs
from dialoom.train.pack import TokenPath, bins, pack, unique_tokens

SITE = ROOT / "runs" / "bench" / "site-packages"  # by this name pickling knows its modules from our own
"""Where TRL lies, which is no dependency of ours. `datasets` works from a folder of this name only: what lies elsewhere
it takes for a user's own code and pickles it whole."""

BETA, RATE = 0.1, 1e-6
SEVERAL = 4  # pairs in one padded batch
NEW_SAMPLES = 7  # a step of DITTO, on average: 10 of each of 7 tasks every 10 steps
REPEATS = 2
AGAINST = {"aloe": ("trl", "trl-padded", "flat-best", "flat-padded"), "binary-2x6": ("trl", "trl-padded", "flat-best"),
           "pbt-depth6": ("dense-mask", "flat-best"), "pbt-own": ("flat-best",), "ditto-step": ("release-pattern",)}
Epoch = Callable[[], float]
"""Trains one epoch and returns its CPU seconds."""


# Ours


def settings(shape: Shape, *, packed: bool = True) -> TrainConfig:
    """The defaults, with the whole tree as one batch."""
    return TrainConfig(batch_pairs=len(shape.pairs), max_steps=2, lr=RATE, schedule="constant", warmup=0, beta=BETA,
                       checkpoint_every=0, packed=packed)


def ours(module: Any, shape: Shape, *, packed: bool = True) -> Epoch:
    """`dpo()` itself: from the log of its first step to that of its second.

    In DITTO samples keep coming: every tenth step 70 of them are scored by the reference, once, so 7 a step.
    """
    model, pairs, config = TokenModel(module, "bench"), shape.as_pairs(), settings(shape, packed=packed)
    reference = reference_logprobs(model, pairs, config)

    def epoch() -> float:
        marks: list[float] = []
        with tempfile.TemporaryDirectory() as folder:
            dpo(model, pairs, config, out=Path(folder), reference=reference,
                log=lambda _: marks.append(time.process_time()))
        seconds = marks[1] - marks[0]
        if shape.name == "ditto-step":
            start = time.process_time()
            reference_logprobs(model, pairs, config)
            distinct = len({(*prompt, *reply) for prompt, *replies in shape.pairs for reply in replies})
            seconds += (time.process_time() - start) * NEW_SAMPLES / distinct
        return seconds
    return epoch


def flat_budget(module: Any, shape: Shape) -> Epoch:
    """`dpo()` with `packed` off and the same token budget: what memory is held against."""
    return ours(module, shape, packed=False)


# The other ways


def stepped(module: Any, gradients: Callable[[], None]) -> Epoch:
    """An epoch out of what leaves the gradients of the mean loss: clipping and AdamW after it, as everywhere here."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=RATE, weight_decay=0.0, fused=True)

    def epoch() -> float:
        start = time.process_time()
        gradients()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return time.process_time() - start
    return epoch


def frozen(module: Any, shape: Shape) -> Tensor:
    """(pairs, 2) log-probabilities under the model as it is."""
    return reference_logprobs(TokenModel(module, "bench"), shape.as_pairs())


def padded(sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """(sequences, longest) ids and mask, padding on the right."""
    longest = max(map(len, sequences))
    ids = torch.tensor([[*one, *[0] * (longest - len(one))] for one in sequences])
    mask = torch.tensor([[1] * len(one) + [0] * (longest - len(one)) for one in sequences])
    return ids, mask


def full_logprobs(module: Any, pairs: Sequence[Any]) -> Tensor:
    """(pairs, 2) reply log-probabilities out of one padded batch, the LM head on every position."""
    sequences = [prompt + reply for prompt, *replies in pairs for reply in replies]
    ids, mask = padded(sequences)
    starts = torch.tensor([len(prompt) for prompt, *_ in pairs for _ in range(2)])
    scored = (torch.arange(1, ids.shape[1])[None] >= starts[:, None]) & mask[:, 1:].bool()
    logits = module(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
    logprobs = logits.float().log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
    return (logprobs * scored).sum(1).view(-1, 2)


def flat_padded(module: Any, shape: Shape) -> Epoch:
    """Batches of four pairs, padded to the longest, the LM head on every position."""
    reference = frozen(module, shape)

    def gradients() -> None:
        for at in range(0, len(shape.pairs), SEVERAL):
            policy = full_logprobs(module, shape.pairs[at:at + SEVERAL])
            (dpo_loss(policy, reference[at:at + SEVERAL], BETA).sum() / len(shape.pairs)).backward()
    return stepped(module, gradients)


def flat_best(module: Any, shape: Shape) -> Epoch:
    """A pair a batch, without padding, the LM head on replies only: the quickest flat way we know."""
    reference = frozen(module, shape)

    def score(prompt: Sequence[int], replies: Sequence[Sequence[int]]) -> Tensor:
        ids = torch.tensor([[*prompt, *reply] for reply in replies])
        kept = torch.arange(len(prompt) - 1, ids.shape[1] - 1)
        logits = module(input_ids=ids, use_cache=False, logits_to_keep=kept).logits
        targets = ids[:, len(prompt):]
        return -functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none").sum(1)

    def gradients() -> None:
        for at, (prompt, chosen, rejected) in enumerate(shape.pairs):
            together = len(chosen) == len(rejected)
            policy = score(prompt, (chosen, rejected)) if together else torch.cat(
                [score(prompt, (reply,)) for reply in (chosen, rejected)])
            (dpo_loss(policy[None], reference[at:at + 1], BETA).sum() / len(shape.pairs)).backward()
    return stepped(module, gradients)


def dense_mask(module: Any, shape: Shape) -> Epoch:
    """The whole tree as one row, too, but by SDPA with a dense boolean mask of who sees whom."""
    reference = frozen(module, shape)
    paths = token_paths(shape)

    def gradients() -> None:
        row = pack(paths)
        hidden = {"position_ids": row.positions[None], "attention_mask": row.tree.mask(torch.device("cpu"))[None, None]}
        logits = module(input_ids=row.ids[None], use_cache=False, logits_to_keep=row.predictors, **hidden).logits[0]
        scores = -functional.cross_entropy(logits, row.targets, reduction="none")[row.spread]
        policy = torch.zeros(row.paths).index_add(0, row.owner, scores).view(-1, 2)
        dpo_loss(policy, reference, BETA).mean().backward()
    return stepped(module, gradients)


def release_pattern(module: Any, shape: Shape) -> Epoch:
    """All sequences of the step as one padded batch, repeated ones again, through policy and reference, full logits."""
    reference = copy.deepcopy(module).eval()

    def gradients() -> None:
        with torch.no_grad():
            known = full_logprobs(reference, shape.pairs)
        dpo_loss(full_logprobs(module, shape.pairs), known, BETA).mean().backward()
    return stepped(module, gradients)


def trl(module: Any, shape: Shape) -> Epoch:
    """TRL's DPOTrainer at its quickest on a CPU: a pair a batch, so nothing is padded, and one step at the end."""
    return trl_epoch(module, shape, 1)


def trl_padded(module: Any, shape: Shape) -> Epoch:
    """The same with batches of four pairs, padded, a step after each."""
    return trl_epoch(module, shape, SEVERAL)


def trl_epoch(module: Any, shape: Shape, batch: int) -> Epoch:
    """The sum of the steps of an epoch of `trl_trainer`."""
    trainer, steps = trl_trainer(module, shape, batch)

    def epoch() -> float:
        steps.clear()
        trainer.train()
        return sum(steps)
    return epoch


def trl_trainer(module: Any, shape: Shape, batch: int) -> tuple[Any, list[float]]:
    """A trainer of one epoch and the list its steps' CPU seconds go to.

    No gradient checkpointing, the reference computed before. Padding-free is switched off by TRL 1.16 itself.
    """
    os.environ.update(HF_HUB_OFFLINE="1", TQDM_DISABLE="1")
    with_site()
    from datasets import Dataset, disable_progress_bars
    from transformers import PrinterCallback, TrainerCallback
    from trl import DPOConfig, DPOTrainer
    disable_progress_bars()
    steps: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.start = time.process_time()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            steps.append(time.process_time() - self.start)

    assert all(reply[-1] == EOS for _, *replies in shape.pairs for reply in replies)
    table = Dataset.from_list([{"prompt": as_text(prompt), "chosen": " " + as_text(chosen),
                                "rejected": " " + as_text(rejected)} for prompt, chosen, rejected in shape.pairs])
    folder = tempfile.mkdtemp(prefix="dialoom-bench-")
    args = DPOConfig(output_dir=folder, per_device_train_batch_size=batch, num_train_epochs=1, max_length=None,
                     gradient_accumulation_steps=len(shape.pairs) if batch == 1 else 1, gradient_checkpointing=False,
                     bf16=False, use_cpu=True, precompute_ref_log_probs=True, report_to=[],
                     save_strategy="no", logging_strategy="no", learning_rate=RATE, beta=BETA,
                     lr_scheduler_type="constant", disable_tqdm=True, dataloader_pin_memory=False,
                     optim="adamw_torch_fused")
    trainer = DPOTrainer(model=module, args=args, processing_class=word_tokenizer(module.config.vocab_size),
                         train_dataset=table, callbacks=[Clock()])
    trainer.remove_callback(PrinterCallback)
    assert all(tuple(row["prompt_ids"] + row[name + "_ids"]) == pair[0] + pair[at] for row, pair in zip(
        trainer.train_dataset, shape.pairs, strict=True) for at, name in ((1, "chosen"), (2, "rejected")))
    return trainer, steps


def with_site() -> bool:
    """Make TRL importable; False where it is not installed."""
    import importlib.util
    if SITE.is_dir() and str(SITE) not in sys.path:
        sys.path.append(str(SITE))
    return all(importlib.util.find_spec(name) for name in ("trl", "datasets"))


METHODS: dict[str, Callable[[Any, Shape], Epoch]] = {
    "ours": ours, "flat-budget": flat_budget, "trl": trl, "trl-padded": trl_padded, "flat-best": flat_best,
    "flat-padded": flat_padded, "dense-mask": dense_mask, "release-pattern": release_pattern}


def token_paths(shape: Shape) -> list[TokenPath]:
    """Both sequences of every pair, the reply scored."""
    return [TokenPath.of([*prompt, *reply], (len(prompt), len(prompt) + len(reply)))
            for prompt, *replies in shape.pairs for reply in replies]


# Measuring


def side_by_side(epochs: Sequence[Epoch]) -> list[float]:
    """The best of each way's repeats, which take turns after a warm-up."""
    for epoch in epochs:
        epoch()
    times = [[epoch() for epoch in epochs] for _ in range(REPEATS)]
    return [min(column) for column in zip(*times, strict=True)]


def peak_here(model: str, work: str, method: str) -> float:
    """MB that an epoch takes at its peak above what was there before it; for a process that did nothing else."""
    torch.set_num_threads(1)
    module = load_module(model)
    epoch = METHODS[method](module, SHAPES[work](module.config.vocab_size))
    gc.collect()
    forget_peak()
    before = memory_mb("VmRSS")
    epoch()
    return memory_mb("VmHWM") - before


def peak_mb(model: str, work: str, method: str) -> float | None:
    """`peak_here` in a process of its own; None where the system does not tell."""
    if not memory_mb("VmHWM"):
        return None
    done = subprocess.run([sys.executable, "-W", "ignore", "-m", "bench.dpo", model, work, method], cwd=ROOT,
                          capture_output=True, text=True, env=ONE_THREAD)
    if done.returncode:
        raise RuntimeError(f"the peak of {method} on {work} could not be measured (exit {done.returncode}): "
                           f"{done.stderr[-1000:]}")
    return float(json.loads(done.stdout.splitlines()[-1])["peak_mb"])


def rows(*, quick: bool, log: Callable[[str], None]) -> Iterator[Row]:
    """The training rows: `work`, `against`, `ratio` (theirs / ours), `setting`, and what they were made of."""
    torch.set_num_threads(1)
    has_trl = with_site()
    if not has_trl:
        log(f"dpo: TRL is not in {SITE}; the rows against it are left out (`make bench` installs it)")
    for model in ("pocket",) if quick else MODELS:
        module = load_module(model)
        speed = matmul_speed(module)
        for work in ("binary-2x6",) if quick else AGAINST:
            log(f"dpo/{work}, {model}")
            others = [name for name in AGAINST[work] if has_trl or not name.startswith("trl")]
            yield from rows_of(module, model, SHAPES[work](module.config.vocab_size), others, speed)


def rows_of(module: Any, model: str, shape: Shape, others: Sequence[str], speed: float) -> Iterator[Row]:
    """Ours against the others on one tree."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mine, *theirs = side_by_side([METHODS[name](copy.deepcopy(module), shape) for name in ("ours", *others)])
    peaks = {name: peak_mb(model, shape.name, name) for name in ("ours", "flat-budget", *others)}
    about = limits(module, shape, speed, mine)
    for name, seconds in zip(others, theirs, strict=True):
        yield {"work": f"dpo/{shape.name}", "against": name, "ratio": seconds / mine, "setting": setting(model, shape),
               "model": model, "ours_s": mine, "theirs_s": seconds, "peak_mb": peaks["ours"],
               "their_peak_mb": peaks[name], "flat_peak_mb": peaks["flat-budget"], **about}


def setting(model: str, shape: Shape) -> str:
    """Model, shape, tokens and sharing in one line."""
    return (f"{MODELS[model]}; {shape.about}, {len(shape.pairs)} pairs; {shape.flat_tokens} tokens, "
            f"{shape.unique_tokens} unique, R {shape.flat_tokens / shape.unique_tokens:.2f}")


# How far from the limit


def matmul_speed(module: Any, tokens: int = 2048) -> float:
    """Multiply-adds a second of bare matrix products of the model's own shapes."""
    shapes = [weight.shape for weight in matrices(module)]
    seconds, done = 0.0, 0
    for out, into in sorted(set(shapes)):
        left, right = torch.randn(tokens, into), torch.randn(into, out)
        left @ right
        best = min(timed(partial(torch.mm, left, right)) for _ in range(5))
        seconds += best * shapes.count((out, into))
        done += tokens * out * into * shapes.count((out, into))
    return done / seconds


def timed(what: Callable[[], Any], calls: int = 5) -> float:
    """CPU seconds of a call on the one thread there is, the mean of a few."""
    start = time.process_time()
    for _ in range(calls):
        what()
    return (time.process_time() - start) / calls


def matrices(module: Any) -> list[Tensor]:
    """Every linear layer's weight, the LM head last."""
    return [layer.weight for layer in module.modules() if isinstance(layer, torch.nn.Linear)]


def limits(module: Any, shape: Shape, speed: float, seconds: float) -> Row:
    """How often a token is shared, before and after the token budget cut the tree, and how near the matmul peak is.

    Counted are the multiply-adds of linear layers and attention, forward and (twice as many) backward.
    """
    paths = token_paths(shape)
    pairs = [paths[at:at + 2] for at in range(0, len(paths), 2)]
    cut = [[path for at in row for path in pairs[at]] for row in bins(pairs, settings(shape).token_budget)]
    split = sum(unique_tokens(row) for row in cut)
    *body, head = (weight.numel() for weight in matrices(module))
    config, done = module.config, 0
    for row in map(pack, cut):
        cells = sum((stop - start) * (2 * end - start - stop) / 2 for start, stop, end, _ in row.tree.segments)
        done += sum(body) * len(row.ids) + head * len(row.targets)
        done += 2 * cells * config.num_hidden_layers * config.num_attention_heads * config.head_dim
    return {"tokens": shape.flat_tokens, "unique_tokens": shape.unique_tokens,
            "limit": shape.flat_tokens / shape.unique_tokens, "unique_after_split": split,
            "limit_after_split": shape.flat_tokens / split, "matmul_share": 3 * done / seconds / speed}


if __name__ == "__main__":
    print(json.dumps({"peak_mb": peak_here(*sys.argv[1:])}))
