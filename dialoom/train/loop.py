"""The training loop every loss shares, under accelerate: batches, exact accumulation, schedule, metrics, checkpoints.

A batch is cut into rows of a token budget and its gradients are summed over them, so loss and update are the mean over
the whole batch however it was cut. Every random choice is made from (seed, step), so nothing but counters needs to be
stored and a resumed run repeats the uninterrupted one bit by bit on a CPU. Batches are filled tree by tree: pairs that
share tokens are computed together, at the price of batches that are less mixed than independent draws.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from dialoom import tracking
from dialoom.config import differences, near_miss
from dialoom.errors import ConfigError, TrainingError
from dialoom.files import read_json, read_steps
from dialoom.models.decode import is_out_of_memory
from dialoom.models.exact import attention
from dialoom.store import append_row, write_rows
from dialoom.train import checkpoint, launched, sharded
from dialoom.train.activations import recomputed
from dialoom.train.bad_batch import bad_batch
from dialoom.train.config import TrainConfig
from dialoom.train.pack import bins, choose_logprobs, unique_tokens
from dialoom.train.rows import Row, TrainableModel, digest
from dialoom.train.tree_attention import NAME

Log = Callable[[dict[str, Any]], None]
Validate = Callable[[Any], Mapping[str, float]]

OUT_OF_MEMORY_TRIES = 3  # times the token budget is halved before a batch is given up


class Objective(Protocol):
    """A loss. Under `accelerate launch` it is told to the other processes, so it is a function of a module, or a
    `functools.partial` of one.
    """

    def __call__(self, members: Sequence[int], logprobs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and metrics, each summed over some rows.

        Args:
            members: which rows.
            logprobs: summed target log-probabilities of their paths, row after row.
        """
        ...


@dataclass(frozen=True)
class Fitted:
    """How a training went.

    Attributes:
        steps: optimiser steps made.
        best_step, best: where the watched metric was highest, and its value; None without validation.
        stopped_early: whether patience ran out.
        tokens, unique_tokens: computed by flat rows, and by the packed ones.
        unsplit_tokens: what packed rows would compute if no token budget cut a batch into several.
        packed: whether shared tokens were computed once.
    """

    steps: int
    best_step: int | None
    best: float | None
    stopped_early: bool
    tokens: int
    unique_tokens: int
    unsplit_tokens: int
    packed: bool


@dataclass
class _State:
    """What a checkpoint must know besides tensors."""

    budget: int
    step: int = 0
    tokens: int = 0
    unique_tokens: int = 0
    unsplit_tokens: int = 0
    best_step: int | None = None
    best: float | None = None
    worse: int = 0  # validations since the best one
    stopped_early: bool = False


def fit(model: TrainableModel, rows: Sequence[Row], objective: Objective, config: TrainConfig, *, out: Path,
        log: Log | None = None, validate: Validate | None = None) -> Fitted:
    """Train `model` in place and leave it with its best weights (without validation: its last ones).

    Called again with the same arguments it goes on from the newest whole checkpoint in `out`, or, where training was
    finished, only loads the result.

    Args:
        model: as it was when training first began; an adapter is added to it if the settings want one.
        out: takes `metrics.jsonl` and `checkpoints/`.
        log: gets every row of the metrics.
        validate: metrics of the model as it stands; `config.watch` names the one that picks the best checkpoint.
    Raises:
        TrainingError: if there is nothing to train on, or a loss or gradient is not finite (naming step and rows).
        ConfigError: if `out` holds a training with other settings or data.
    """
    if not rows:
        raise TrainingError("there are no rows to train on; look at what selection left out")
    launched.announce(model, rows, objective, config, out=Path(out), validated=validate is not None)
    run = _Run(model, rows, objective, config, Path(out), log, validate)
    run.resume()
    run.module.train()
    try:
        with recomputed(run.module, config.gradient_checkpointing):
            while run.state.step < run.total and not run.state.stopped_early:
                run.advance()
    finally:
        run.module.eval()
    run.load_best()
    run.end()
    state = run.state
    return Fitted(state.step, state.best_step, state.best, state.stopped_early, state.tokens, state.unique_tokens,
                  state.unsplit_tokens, run.packed)


def batches(rows: Sequence[Row], size: int, seed: int, epoch: int) -> list[list[int]]:
    """The batches of an epoch: groups in an order drawn from (seed, epoch), one after the other, cut every `size`."""
    groups: dict[object, list[int]] = {}
    for at, row in enumerate(rows):
        groups.setdefault(row.group or at, []).append(at)
    shuffled = list(groups.values())
    random.Random(f"{seed}/{epoch}").shuffle(shuffled)
    order = [at for group in shuffled for at in group]
    return [order[start:start + size] for start in range(0, len(order), size)]


def rate(config: TrainConfig, step: int, total: int) -> float:
    """Learning rate of the step after `step` steps out of `total`."""
    warmup = config.warmup if config.warmup >= 1 else round(config.warmup * total)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    if config.schedule == "linear":
        return config.lr * (1 - done)
    return config.lr * (0.5 + 0.5 * math.cos(math.pi * done)) if config.schedule == "cosine" else config.lr


def choose_parameters(model: TrainableModel, config: TrainConfig) -> dict[str, Tensor]:
    """Make exactly those parameters trainable that `config.tune` means, adding an adapter if there is none.

    Raises: ConfigError: if all weights are to be trained under an adapter, or of a quantised model.
    """
    has_adapter = hasattr(model.module, "peft_config")
    if config.tune == "lora" and not has_adapter:
        with _seeded(model.module, config.seed, "adapter"):
            model.add_lora(config.lora_rank, config.lora_alpha, config.lora_dropout, config.lora_targets or None)
    elif config.tune == "full" and getattr(model.module, "is_quantized", False):
        raise ConfigError(f"tune: full, but {model.name} is quantised, of which only an adapter can be trained; "
                          "use tune: lora")
    elif config.tune == "full" and has_adapter:
        raise ConfigError(f"tune: full, but {model.name} carries an adapter; merge it first, or use tune: lora")
    for name, parameter in model.module.named_parameters():
        parameter.requires_grad_(config.tune == "full" or "lora_" in name)
    return {name: parameter for name, parameter in model.module.named_parameters() if parameter.requires_grad}


@contextlib.contextmanager
def _seeded(module: Any, *what: object) -> Any:
    """Torch's random numbers follow from `what` inside, and go on outside as if nothing had been."""
    device = next(module.parameters()).device
    name = hashlib.blake2b(repr(what).encode(), digest_size=7).digest()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int.from_bytes(name, "big"))
        yield


class _Run:
    """One training under way: `resume`, then `advance` until done, then `load_best`."""

    def __init__(self, model: TrainableModel, rows: Sequence[Row], objective: Objective, config: TrainConfig,
                 out: Path, log: Log | None, validate: Validate | None) -> None:
        self.model, self.rows, self.objective, self.config = model, rows, objective, config
        self.out, self.log, self.validate = out, log, validate
        self.identity = {"config": config.identity(), "rows": digest(rows), "model": model.fingerprint}
        self.parameters = choose_parameters(model, config)
        self.module = model.module
        self.device = next(self.module.parameters()).device
        self.accelerator = Accelerator(cpu=self.device.type == "cpu", mixed_precision="no")
        self.sharded = None
        if sharded.is_asked_for(self.accelerator.num_processes):
            self.sharded = sharded.Sharded(self.module, self.device)
            self.module, self.parameters = self.sharded.module, self.sharded.parameters
        self.optimizer = torch.optim.AdamW(
            sharded.by_kind(self.parameters.values(), config.weight_decay), lr=config.lr,
            fused=self.device.type in ("cpu", "cuda") and self.sharded is None)
        longest = max(len(path) for row in rows for path in row.paths)
        self.logprobs, self.packed = choose_logprobs(self.module, longest, packed=config.packed)
        self.per_epoch = math.ceil(len(rows) / config.batch_pairs)
        self.total = config.steps(len(rows))
        self.state = _State(config.token_budget)
        self._epoch: tuple[int, list[list[int]]] = (-1, [])

    @property
    def checkpoints(self) -> Path:
        return self.out / "checkpoints"

    # Going on

    def resume(self) -> None:
        """Take over the newest whole checkpoint; drop the metrics that came after it, and what it had outlived."""
        found = checkpoint.load_newest(self.checkpoints)
        metrics = self.out / "metrics.jsonl"
        if found is not None:
            changed = differences(found.state["identity"], self.identity)
            if changed:
                raise ConfigError(f"{self.out}: holds a training with other settings or data ({'; '.join(changed)}); "
                                  "use another folder, or remove this one")
            self.state = _State(**found.state["state"])
            self._set_weights(found.weights)
            for name, parameter in self.parameters.items():
                step = found.optimizer[f"step/{name}"]
                # a step that is not fused counts on the CPU
                self.optimizer.state[parameter] = {"step": step if self.sharded else step.to(self.device)} | {
                    key: sharded.like(found.optimizer[f"{key}/{name}"], parameter) for key in ("exp_avg", "exp_avg_sq")}
            self._prune()
        if metrics.exists() and self.accelerator.is_main_process:
            write_rows(metrics, read_steps(metrics, self.state.step))

    def load_best(self) -> None:
        """Give the model the weights of its best validation."""
        best = self.state.best_step
        if best is None or best == self.state.step:
            return
        found = checkpoint.load(self.checkpoints, best)
        if found is None:
            warnings.warn(f"{checkpoint.folder_of(self.checkpoints, best)}: the best checkpoint is damaged; the model "
                          "keeps its last weights", stacklevel=3)
        else:
            self._set_weights(found.weights)

    def end(self) -> None:
        """Leave the model with the trained weights where it was, if a copy of it was trained."""
        if self.sharded is not None:
            self.sharded.give_back()
            self.sharded.original.to(self.device)

    def _set_weights(self, weights: checkpoint.Tensors) -> None:
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(sharded.like(weights[name], parameter))

    def _save(self) -> None:
        if not self.accelerator.is_main_process and self.sharded is None:
            return
        optimizer = {f"{key}/{name}": sharded.whole(tensor) for name, parameter in self.parameters.items()
                     for key, tensor in self.optimizer.state[parameter].items()}
        weights = {name: sharded.whole(parameter.detach()) for name, parameter in self.parameters.items()}
        if not self.accelerator.is_main_process:
            return
        random_state = {"seed": self.config.seed, "next_step": self.state.step}
        state = {"identity": self.identity, "state": asdict(self.state), "random": random_state}
        checkpoint.save(self.checkpoints, self.state.step, weights, optimizer, state)
        self._prune()

    def _prune(self) -> None:
        """Keep the last two checkpoints and the best ones they name; also on resuming, for a kill may come in here."""
        if not self.accelerator.is_main_process:
            return
        keep = set(checkpoint.steps(self.checkpoints)[-2:])
        checkpoint.prune(self.checkpoints, keep | {best for step in keep for best in self._best_of(step)})

    def _best_of(self, step: int) -> list[int]:
        """The best step a kept checkpoint would go back to."""
        try:
            return [read_json(checkpoint.folder_of(self.checkpoints, step) / checkpoint.STATE)["state"]["best_step"]]
        except (OSError, KeyError, TypeError):
            return []

    # One step

    def advance(self) -> None:
        """One optimiser step, with the validation and the checkpoint that are due after it."""
        row = self._step()
        self._write(row)
        state, config = self.state, self.config
        is_last = state.step == self.total
        validated = self.validate is not None and (is_last or state.step % (config.eval_every or self.per_epoch) == 0)
        if validated:
            self._validate()
        due = config.checkpoint_every and state.step % config.checkpoint_every == 0
        if validated or due or is_last:
            self._save()

    def _step(self) -> dict[str, Any]:
        state, config = self.state, self.config
        epoch, index = divmod(state.step, self.per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, batches(self.rows, config.batch_pairs, config.seed, epoch))
        batch = self._epoch[1][index]
        learning_rate = rate(config, state.step, self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        sums = self._gradients(batch)
        norm = (sharded.clip(self.parameters, config.clip) if self.sharded else
                float(self.accelerator.clip_grad_norm_(self.parameters.values(), config.clip)))
        if not math.isfinite(norm):
            raise self._not_finite("gradient norm", norm, batch)
        self.optimizer.step()
        self.optimizer.zero_grad()
        state.step += 1
        weight = sum(self.rows[at].weight for at in batch)
        return {"step": state.step, "epoch": round(state.step / self.per_epoch, 6),
                **{name: value / weight for name, value in sums.items()}, "grad_norm": norm,
                "learning_rate": learning_rate, "num_tokens": state.tokens, "unique_tokens": state.unique_tokens,
                "unsplit_tokens": state.unsplit_tokens}

    def _gradients(self, batch: Sequence[int]) -> dict[str, float]:
        """Leave the batch's mean gradient on the parameters and return its sums; short of memory, in smaller rows."""
        for left in reversed(range(OUT_OF_MEMORY_TRIES + 1)):
            try:
                return self._accumulate(batch)
            except (MemoryError, RuntimeError) as wrong:
                if not is_out_of_memory(wrong) or not left or self.accelerator.num_processes > 1:
                    raise
            self.optimizer.zero_grad()
            self.state.budget = max(1, self.state.budget // 2)
            warnings.warn(f"step {self.state.step + 1}: out of memory; going on with token_budget "
                          f"{self.state.budget}, which changes no result", stacklevel=4)
        raise AssertionError("unreachable")

    def _accumulate(self, batch: Sequence[int]) -> dict[str, float]:
        weight = sum(self.rows[at].weight for at in batch)
        cut = bins([self.rows[at].paths for at in batch], self.state.budget, packed=self.packed)
        sums: dict[str, float] = {}
        tokens = unique = 0
        count = self.accelerator.num_processes
        rounds = -(-len(cut) // count) * count if self.sharded else len(cut)
        for number in range(rounds):
            idle = number >= len(cut)  # where layers are sharded all processes must pass through them equally often
            members = [batch[place] for place in (min(cut, key=len) if idle else cut[number])]
            paths = [path for at in members for path in self.rows[at].paths]
            tokens += 0 if idle else sum(map(len, paths))
            unique += 0 if idle else unique_tokens(paths)
            if number % count != self.accelerator.process_index:
                continue
            switched = attention(self.module, NAME) if self.packed else contextlib.nullcontext()
            with _seeded(self.module, self.config.seed, self.state.step, number), switched:
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bf16):
                    logprobs = self.logprobs(self.module, paths)
                loss, metrics = self.objective(members, logprobs)
                if not math.isfinite(value := float(loss.detach())):
                    raise self._not_finite("loss", value, members)
                self.accelerator.backward(loss * (0 if idle else 1) / weight)
            for name, part in ({} if idle else {"loss": loss, **metrics}).items():
                sums[name] = sums.get(name, 0.0) + float(part.detach())
        self.state.tokens += tokens
        self.state.unique_tokens += unique
        self.state.unsplit_tokens += unique_tokens(path for at in batch for path in self.rows[at].paths)
        return self._reduced(sums) if self.accelerator.num_processes > 1 else sums

    def _reduced(self, sums: dict[str, float]) -> dict[str, float]:
        """Add up gradients and metrics over processes; one may have had no rows at all in a small batch."""
        for parameter in self.parameters.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if not sharded.is_shard(parameter):  # shards were summed on the way back
                parameter.grad = self.accelerator.reduce(parameter.grad, "sum")
        gathered: list[Any] = [None] * self.accelerator.num_processes
        torch.distributed.all_gather_object(gathered, sums)
        return {name: sum(part.get(name, 0.0) for part in gathered) for found in gathered for name in found}

    def _not_finite(self, what: str, value: float, members: Sequence[int]) -> TrainingError:
        return bad_batch(self.out, self.state.step + 1, what, value, [self.rows[at].id for at in members],
                         advice=f"look at these rows, or lower lr (now {self.config.lr:g})",
                         checkpoints=checkpoint.steps(self.checkpoints))

    # What comes after a step

    def _validate(self) -> None:
        assert self.validate is not None
        state, watch = self.state, self.config.watch
        self.module.eval()
        with self.sharded.whole_model() if self.sharded else contextlib.nullcontext():
            metrics = {name: float(value) for name, value in self.validate(self.model).items()}
        metrics = broadcast_object_list([metrics])[0]  # the main process's, so that all agree on when to stop
        self.module.train()
        if watch not in metrics:
            raise ConfigError(f"watch: {watch!r} is not among the validation's metrics; {near_miss(watch, metrics)}")
        self._write({"step": state.step, "epoch": round(state.step / self.per_epoch, 6),
                     **{f"eval_{name}": value for name, value in metrics.items()}})
        if state.best is None or metrics[watch] > state.best:
            state.best, state.best_step, state.worse = metrics[watch], state.step, 0
        else:
            state.worse += 1
            state.stopped_early = bool(self.config.patience) and state.worse >= self.config.patience

    def _write(self, row: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            append_row(self.out / "metrics.jsonl", row)
            tracking.note(self.out, row)
            if self.log is not None:
                self.log(row)
