"""DITTO's two trainings on one adapter: brief fine-tuning, then DPO on pairs that change as the policy does.

Why not `train.loop.fit`: there the rows are fixed, here every K steps new samples come in. A step computes each of its
distinct sequences once (packed) and hands their log-probabilities to a loss over index pairs; the reference's are kept
in the store. Every random choice is made from (seed, step), so a checkpoint holds weights, optimiser and counters.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from dialoom import tracking
from dialoom.errors import ConfigError, TrainingError
from dialoom.files import read_steps
from dialoom.models.decode import is_out_of_memory
from dialoom.models.exact import attention
from dialoom.models.local import LocalModel
from dialoom.recipes.ditto_config import DPOStage, SFTStage
from dialoom.recipes.ditto_pairs import (
    KINDS,
    IndexPair,
    SequenceStore,
    demo_batches,
    drawn_pairs,
    sampling_steps,
)
from dialoom.store import append_row, write_rows
from dialoom.train import checkpoint
from dialoom.train.bad_batch import bad_batch
from dialoom.train.dpo import dpo_loss
from dialoom.train.loop import OUT_OF_MEMORY_TRIES
from dialoom.train.pack import TokenPath, bins, choose_logprobs, score_paths
from dialoom.train.tree_attention import NAME

State = dict[str, Tensor]
Metrics = dict[str, Any]


# ------------------------------------------------------------------------------------------------ adapters


def adapter_parameters(model: LocalModel) -> dict[str, torch.nn.Parameter]:
    """The adapter's tensors by name."""
    return {name: parameter for name, parameter in model.module.named_parameters() if "lora_" in name}


def adapter_state(model: LocalModel) -> State:
    """A copy of the adapter: with it, many adapters share one base."""
    return {name: parameter.detach().clone() for name, parameter in adapter_parameters(model).items()}


def set_adapter_state(model: LocalModel, state: State) -> None:
    """Put a kept adapter onto the base."""
    with torch.no_grad():
        for name, parameter in adapter_parameters(model).items():
            parameter.copy_(state[name])


@contextlib.contextmanager
def wearing(model: LocalModel, state: State) -> Iterator[None]:
    """The model under another adapter for a while."""
    own = adapter_state(model)
    set_adapter_state(model, state)
    try:
        yield
    finally:
        set_adapter_state(model, own)


@contextlib.contextmanager
def seeded(module: Any, *what: object) -> Iterator[None]:
    """Torch's random numbers follow from `what` inside, and go on outside as if nothing had been."""
    device = next(module.parameters()).device
    name = hashlib.blake2b(repr(what).encode(), digest_size=7).digest()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int.from_bytes(name, "big"))
        yield


# ------------------------------------------------------------------------------------------------ losses


def pair_losses(policy: Tensor, reference: Tensor, beta: float, kind: str) -> Tensor:
    """(pairs,) losses of (pairs, 2) log-probabilities, chosen first.

    Source: sigmoid: arXiv 2305.18290 eq. 7; hinge: arXiv 2305.10425; ipo: arXiv 2310.12036 eq. 17.
    """
    if kind == "sigmoid":
        return dpo_loss(policy, reference, beta)
    ratios = policy - reference
    delta = ratios[:, 0] - ratios[:, 1]
    return functional.relu(1 - beta * delta) if kind == "hinge" else (delta - 1 / (2 * beta)) ** 2


def pair_loss(pairs: Sequence[IndexPair], store: SequenceStore, settings: DPOStage,
              ) -> tuple[list[int], Callable[[Tensor], tuple[Tensor, Metrics]]]:
    """The distinct sequences of a batch of pairs, and its mean loss as a function of their log-probabilities."""
    reference = store.reference
    lengths = torch.tensor([float(store.paths[pair.chosen].targets) for pair in pairs])
    ids = sorted({at for pair in pairs for at in (pair.chosen, pair.rejected)})
    place = {at: row for row, at in enumerate(ids)}
    index = torch.tensor([[place[pair.chosen], place[pair.rejected]] for pair in pairs])
    frozen = torch.tensor([reference[at] for at in ids])[index]
    kinds = [pair.kind for pair in pairs]

    def loss(logprobs: Tensor) -> tuple[Tensor, Metrics]:
        policy, kept = logprobs[index.to(logprobs.device)], frozen.to(logprobs.device)
        mean = pair_losses(policy, kept, settings.beta, settings.loss).mean()
        if settings.nll_weight:
            mean = mean - settings.nll_weight * (policy[:, 0] / lengths.to(policy.device)).mean()
        rewards = settings.beta * (policy.detach() - kept).cpu()
        margins = rewards[:, 0] - rewards[:, 1]
        found: Metrics = {"rewards/chosen": float(rewards[:, 0].mean()),
                          "rewards/rejected": float(rewards[:, 1].mean()), "rewards/margins": float(margins.mean()),
                          "rewards/accuracies": float((margins > 0).float().mean())}
        for kind in KINDS:
            here = margins[[at for at, one in enumerate(kinds) if one == kind]]
            if len(here):
                found |= {f"margins/{kind}": float(here.mean()), f"pairs/{kind}": len(here)}
        return mean, found
    return ids, loss


def backward(model: LocalModel, paths: Sequence[TokenPath], loss: Callable[[Tensor], tuple[Tensor, Metrics]], *,
             budget: int, logprobs: Any, packed: bool, bf16: bool = False) -> tuple[float, Metrics]:
    """Add the gradient of `loss` of the paths' log-probabilities to the parameters; exact in rows of any budget.

    Paths that do not fit one row are run twice: once without gradients for the loss's slope at each log-probability,
    then row by row for the gradient of the log-probabilities times these slopes.

    Args:
        loss: of (paths,) summed log-probabilities, with metrics.
        budget: tokens of one row.
    """
    device = model.device.type

    def forward(part: Sequence[TokenPath]) -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            return logprobs(model.module, part)

    rows = bins([[path] for path in paths], budget, packed=packed)
    with attention(model.module, NAME) if packed else contextlib.nullcontext():
        if len(rows) == 1:
            value, found = loss(forward(paths))
            value.backward()
            return float(value.detach()), found
        whole = torch.empty(len(paths), device=model.device)
        with torch.no_grad():
            for row in rows:
                whole[row] = forward([paths[at] for at in row]).float()
        slopes = whole.requires_grad_()
        value, found = loss(slopes)
        value.backward()
        assert slopes.grad is not None
        for row in rows:
            (forward([paths[at] for at in row]) * slopes.grad[row]).sum().backward()
    return float(value.detach()), found


# ------------------------------------------------------------------------------------------------ one training


class Training:
    """One adapter under training: its optimiser, steps, metrics and checkpoints.

    Attributes:
        step: optimiser steps made.
        state: what else a checkpoint keeps (plain JSON).
    """

    def __init__(self, model: LocalModel, out: Path, *, optimizer: str, lr: float, clip: float, longest: int,
                 budget: int, bf16: bool, identity: Metrics, keep_all: bool = False) -> None:
        self.model, self.out, self.clip, self.lr, self.keep_all = model, out, clip, lr, keep_all
        self.budget, self.bf16, self.identity = budget, bf16, identity
        self.parameters = adapter_parameters(model)
        if not self.parameters:
            raise TrainingError(f"{model.name} has no adapter to train")
        for name, parameter in model.module.named_parameters():
            parameter.requires_grad_(name in self.parameters)
        kinds = {"adamw": torch.optim.AdamW, "rmsprop": torch.optim.RMSprop}
        self.optimizer = kinds[optimizer](self.parameters.values(), lr=lr, weight_decay=0.0)
        self.logprobs, self.packed = choose_logprobs(model.module, longest)
        self.step, self.state = 0, {}  # type: int, Metrics

    def resume(self) -> bool:
        """Go on from the newest whole checkpoint; False if there is none.

        Raises: ConfigError: if it was made with other settings or data.
        """
        found = checkpoint.load_newest(self.out / "checkpoints")
        if found is not None:
            if found.state["identity"] != self.identity:
                raise ConfigError(f"{self.out}: holds a training with other settings or data; use another folder")
            self.step, self.state = found.step, found.state["state"]
            set_adapter_state(self.model, found.weights)
            for key, tensor in found.optimizer.items():
                kind, _, name = key.partition("/")
                self.optimizer.state[self.parameters[name]][kind] = tensor if kind == "step" else tensor.to(
                    self.model.device)
            self._prune()
        metrics = self.out / "metrics.jsonl"
        if metrics.exists():
            write_rows(metrics, read_steps(metrics, self.step))
        return found is not None

    def save(self) -> None:
        """Write a checkpoint of this step; the one before it stays."""
        kept = {f"{key}/{name}": torch.as_tensor(value) for name, parameter in self.parameters.items()
                for key, value in self.optimizer.state[parameter].items()}
        state = {"identity": self.identity, "state": self.state}
        checkpoint.save(self.out / "checkpoints", self.step, adapter_state(self.model), kept, state)
        self._prune()

    def discard(self) -> None:
        """Remove the checkpoints and metrics of a training that cannot go on."""
        checkpoint.prune(self.out / "checkpoints", ())
        (self.out / "metrics.jsonl").unlink(missing_ok=True)

    def _prune(self) -> None:
        """Remove older checkpoints; also on resuming, for a kill may come in here."""
        root = self.out / "checkpoints"
        checkpoint.prune(root, checkpoint.steps(root)[0 if self.keep_all else -2:])

    def descend(self, paths: Sequence[TokenPath], loss: Callable[[Tensor], tuple[Tensor, Metrics]],
                rate: float) -> Metrics:
        """One optimiser step. Raises TrainingError if loss or gradient is not finite."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        value, found = self._gradients(paths, loss)
        norm = float(torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), self.clip))
        if not (math.isfinite(value) and math.isfinite(norm)):
            what, wrong = ("gradient norm", norm) if math.isfinite(value) else ("loss", value)
            raise bad_batch(self.out, self.step + 1, what, wrong, [f"text {at}" for at in range(len(paths))],
                            texts=[self.model.tokenizer.decode(path.ids) for path in paths],
                            checkpoints=checkpoint.steps(self.out / "checkpoints"),
                            advice=f"look at its texts, or lower lr (now {self.lr:g})")
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return {"step": self.step, "loss": value, **found, "grad_norm": norm, "learning_rate": rate}

    def _gradients(self, paths: Sequence[TokenPath], loss: Callable[[Tensor], tuple[Tensor, Metrics]],
                   ) -> tuple[float, Metrics]:
        """`backward` of a batch; short of memory, in smaller rows."""
        for left in reversed(range(OUT_OF_MEMORY_TRIES + 1)):
            try:
                with seeded(self.model.module, self.identity, self.step):
                    return backward(self.model, paths, loss, budget=self.budget, logprobs=self.logprobs,
                                    packed=self.packed, bf16=self.bf16)
            except (MemoryError, RuntimeError) as wrong:
                if not is_out_of_memory(wrong) or not left:
                    raise
            self.optimizer.zero_grad()
            self.budget = max(1, self.budget // 2)
            warnings.warn(f"step {self.step + 1}: out of memory; going on with token_budget {self.budget}, which "
                          "changes no result", stacklevel=4)
        raise AssertionError("unreachable")

    def note(self, row: Metrics) -> None:
        """Add a row to the metrics."""
        append_row(self.out / "metrics.jsonl", row)
        tracking.note(self.out, row)


def rate_at(step: int, total: int, lr: float, warmup: float, schedule: str) -> float:
    """Learning rate of the step after `step` steps: linear warm-up, then constant or a cosine to zero."""
    first = warmup if warmup >= 1 else round(warmup * total)
    if step < first:
        return lr * (step + 1) / first
    return lr * (0.5 + 0.5 * math.cos(math.pi * (step - first) / max(1, total - first))) if schedule == "cosine" else lr


def fine_tune(model: LocalModel, paths: Sequence[TokenPath], settings: SFTStage, *, out: Path, seed: int,
              budget: int = 4096, bf16: bool = False, log: Callable[[Metrics], None] = lambda row: None) -> int:
    """SFT of the adapter on whole demonstrations until the loss target; returns the steps made.

    The loss is nats a token; the target is asked of its mean over an epoch's last steps (or the last step alone).
    """
    run = Training(model, out, optimizer=settings.optimizer, lr=settings.lr, clip=settings.clip,
                   longest=max(map(len, paths)), budget=budget, bf16=bf16,
                   identity={"sft": settings.values(), "seed": seed, "paths": _digest(paths)})
    run.resume()
    losses: list[float] = run.state.setdefault("losses", [])
    batches = demo_batches(len(paths), settings.batch, settings.max_steps, seed)
    window = math.ceil(len(paths) / settings.batch) if settings.stop_over == "epoch" else 1
    model.module.train()
    try:
        while run.step < settings.max_steps and not _below(losses, window, settings.stop_loss):
            batch = [paths[at] for at in batches[run.step]]
            tokens = sum(path.targets for path in batch)
            row = run.descend(batch, lambda logprobs, tokens=tokens: (-logprobs.sum() / tokens, {}),  # type: ignore[misc]
                              rate_at(run.step, settings.max_steps, settings.lr, settings.warmup, settings.schedule))
            losses.append(row["loss"])
            run.note(row)
            log(row)
    finally:
        model.module.eval()
    run.save()
    return run.step


def _below(losses: Sequence[float], window: int, target: float) -> bool:
    return len(losses) >= window and sum(losses[-window:]) / window < target


def _digest(paths: Sequence[TokenPath]) -> str:
    found = hashlib.blake2b(digest_size=8)
    for path in paths:
        found.update(path.key + repr(path.spans).encode())
    return found.hexdigest()


class Voices(Protocol):
    """Who samples, and how what was said becomes tokens; the loop knows no trees."""

    def say(self, step: int) -> list[list[str]]:
        """Samples of the model as it now is: for each demonstration the keys of its samples."""
        ...

    def path(self, demo: int, key: str) -> TokenPath:
        """A sample's tokens after its demonstration's prompt, scored on the reply."""
        ...

    def watch(self, step: int, keys: Sequence[Sequence[str]]) -> Metrics:
        """What else is to be noted of a checkpoint and its samples."""
        ...


def align(model: LocalModel, demos: Sequence[TokenPath], settings: DPOStage, voices: Voices, *, out: Path, seed: int,
          budget: int = 4096, bf16: bool = False, keep_all: bool = False,
          log: Callable[[Metrics], None] = lambda row: None) -> tuple[SequenceStore, dict[int, list[list[str]]]]:
    """DITTO's loop on the adapter the model wears: the SFT policy, and so the reference. Trains it in place.

    A checkpoint is written before each sampling and at the end, so a stopped run asks for no sample twice. The trained
    policy is sampled once more, for the metrics only. Where one of the samples that it trained on was lost from the log
    since, training begins anew: only the policy of that step can say it again.

    Args:
        demos: the demonstrations' sequences, prompt and reply, scored on the reply.
        keep_all: keep the checkpoint of every sampling, not the last two only.
    Returns: the store with all that was said, each with its reference log-probability; and step -> the samples' keys.
    """
    start, store = adapter_state(model), SequenceStore(demos)
    reference, moving = start, settings.reference == "moving"
    model.module.eval()  # dropout is off in DPO

    def training() -> Training:
        return Training(model, out, optimizer=settings.optimizer, lr=settings.lr, clip=settings.clip,
                        longest=model.context, budget=budget, bf16=bf16, keep_all=keep_all,
                        identity={"dpo": settings.values(), "seed": seed, "demos": _digest(demos)})
    run = training()
    run.resume()
    try:  # what was sampled before the checkpoint
        before = {int(step): _paths(voices, keys) for step, keys in run.state.get("said", {}).items()}
    except KeyError as lost:
        warnings.warn(f"{out}: sample {lost} was lost from the log; training begins anew and says it again",
                      stacklevel=2)
        run.discard()
        set_adapter_state(model, start)
        run, before = training(), {}
    said: dict[str, list[list[str]]] = run.state.setdefault("said", {})
    for made_at, paths in before.items():
        store.add_samples(made_at, paths)
    for at, value in enumerate(run.state.get("reference", ())):  # as computed then: other batches round otherwise
        store.reference[at] = value
    score_reference(model, store, reference, budget=budget, bf16=bf16)
    draws = drawn_pairs(store, settings, seed, run.step)
    while True:
        last = run.step == settings.steps
        due = (last or run.step in sampling_steps(settings)) and str(run.step) not in said
        if due or (not last and run.step % settings.resample_every == 0):
            run.state["reference"] = list(store.reference)
            run.save()
        if due:
            if moving and not last:
                reference = adapter_state(model)
                store.forget_reference()
            log(_sample(run, store, voices, reference, start if moving else None))
        if last:
            break
        ids, loss = pair_loss(next(draws), store, settings)
        row = run.descend([store.paths[at] for at in ids], loss,
                          rate_at(run.step, settings.steps, settings.lr, settings.warmup, settings.schedule))
        run.note(row)
        log(row)
    run.save()
    return store, {int(step): keys for step, keys in said.items()}


def _sample(run: Training, store: SequenceStore, voices: Voices, reference: State, start: State | None) -> Metrics:
    """Let the policy speak as it is: into the run's state, the store and the metrics; returns what was noted."""
    said = voices.say(run.step)
    run.state["said"][str(run.step)] = said
    store.add_samples(run.step, _paths(voices, said))
    score_reference(run.model, store, reference, budget=run.budget, bf16=run.bf16)
    noted = {"step": run.step, **sample_metrics(run.model, store, start, budget=run.budget, bf16=run.bf16),
             **voices.watch(run.step, said)}
    run.note(noted)
    return noted


def _paths(voices: Voices, keys: Sequence[Sequence[str]]) -> list[list[TokenPath]]:
    return [[voices.path(demo, key) for key in row] for demo, row in enumerate(keys)]


def fit_pairs(model: LocalModel, paths: Sequence[TokenPath], settings: DPOStage, *, out: Path, seed: int, batch: int,
              budget: int = 4096, bf16: bool = False, log: Callable[[Metrics], None] = lambda row: None) -> None:
    """Plain DPO on fixed pairs (the hand-labelled baseline); the reference is the adapter as it enters.

    Args:
        paths: chosen and rejected in turn.
        batch: pairs in one optimiser step.
    """
    store = SequenceStore(paths[:1])
    ids = [store.add(path) for path in paths]
    pairs = [IndexPair("expert", 0, chosen, rejected, (None, 0))
             for chosen, rejected in zip(ids[::2], ids[1::2], strict=True)]
    model.module.eval()
    run = Training(model, out, optimizer=settings.optimizer, lr=settings.lr, clip=settings.clip,
                   longest=model.context, budget=budget, bf16=bf16,
                   identity={"dpo": settings.values(), "seed": seed, "pairs": _digest(paths)})
    score_reference(model, store, adapter_state(model), budget=budget, bf16=bf16)
    run.resume()
    batches = demo_batches(len(pairs), batch, settings.steps, seed)
    while run.step < settings.steps:
        chosen, loss = pair_loss([pairs[at] for at in batches[run.step]], store, settings)
        row = run.descend([store.paths[at] for at in chosen], loss,
                          rate_at(run.step, settings.steps, settings.lr, settings.warmup, settings.schedule))
        run.note(row)
        log(row)
    run.save()


def score_reference(model: LocalModel, store: SequenceStore, reference: State, *, budget: int, bf16: bool) -> None:
    """Fill in the reference log-probabilities that are missing, each distinct sequence once."""
    missing = store.without_reference()
    if missing:
        with wearing(model, reference):
            found = score_paths(model.module, [store.paths[at] for at in missing], budget=budget, bf16=bf16)
        for at, value in zip(missing, found.tolist(), strict=True):
            store.reference[at] = value


def sample_metrics(model: LocalModel, store: SequenceStore, start: State | None, *, budget: int,
                   bf16: bool) -> Metrics:
    """Of the newest samples: KL to the SFT policy (nats a sample, as they are the policy's own) and length in tokens.

    Args:
        start: the SFT policy's adapter; None: it is the reference, so what the store holds is taken. A reference that
            moves has just come to where the policy is, so it says nothing of the way.
    """
    ids = [at for row in store.samples[max(store.samples)] for at in row]
    if not ids:
        return {}
    paths = [store.paths[at] for at in ids]
    policy = score_paths(model.module, paths, budget=budget, bf16=bf16)
    if start is None:
        frozen = torch.tensor([store.reference[at] for at in ids])
    else:
        with wearing(model, start):
            frozen = score_paths(model.module, paths, budget=budget, bf16=bf16)
    return {"kl": float((policy - frozen).mean()), "sample_tokens": sum(path.targets for path in paths) / len(paths)}
