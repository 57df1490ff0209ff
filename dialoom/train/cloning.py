"""Self-cloning: a clone and its up-mapping are fitted so that the steered model says what the model says unsteered.

The model stays frozen; its states are read once, from the prompts alone (the release read the reply as well). A planner
then acts as a residual over the clone. Source: DAT, arXiv 2406.11978.
"""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from dialoom import tracking
from dialoom.config import Config
from dialoom.dialogue import Chat
from dialoom.errors import DataError, ModelError, TrainingError
from dialoom.models.base import Sampling
from dialoom.models.decode import padded_left, positions
from dialoom.models.local import LocalModel
from dialoom.models.steering import Planner, Steering, UpMapping
from dialoom.store import append_row, write_rows
from dialoom.train.bad_batch import bad_batch
from dialoom.train.cross_entropy import target_logprobs


class CloneConfig(Config):
    """How a clone is fitted; the defaults are the pocket run's."""

    tokens: int = Field(default=2, ge=1)
    """Soft tokens of a prefix; 2 in DAT."""
    action: int = Field(default=64, ge=1)
    """Numbers in an action; 64 or 128 in DAT."""
    hidden: tuple[int, ...] = (256,)
    """Widths of the clone's layers; the model's own in DAT, then one of an action's."""
    position: Literal["start", "end"] = "start"
    """Where the prefix stands: after the first prompt token, as released, or after the last."""
    epochs: int = Field(default=10, ge=1)
    """Passes over the replies; 10 as released, 100 in its commands."""
    lr: float = Field(default=1e-3, gt=0)
    """AdamW's rate, which goes linearly to zero."""
    batch: int = Field(default=16, ge=1)
    """Replies in one step; 16 in DAT."""
    seed: int = 0
    """Decides weights and order."""


@dataclass(frozen=True)
class Reply:
    """What the unsteered model said: ids of the prompt, and of the reply with the token that ended it."""

    prompt: tuple[int, ...]
    reply: tuple[int, ...]


@dataclass(frozen=True)
class Cloned:
    """A fitted clone.

    Attributes:
        steering: the clone and its mapping, no planner yet.
        base: nats a token of the held-out replies (of all, where none were held out) under the unsteered model.
        before, after: the same under the clone before and after training.
    """

    steering: Steering
    base: float
    before: float
    after: float

    @property
    def gap(self) -> float:
        """Nats a token by which the clone is worse than the model itself."""
        return self.after - self.base


def own_replies(model: LocalModel, chats: Sequence[Chat], sampling: Sampling, keys: Sequence[str]) -> list[Reply]:
    """What the model itself says in these chats; empty replies are left out."""
    said = model.chat(chats, sampling, keys)
    return [Reply(tuple(model.prompt_ids(chat)), tuple(reply.tokens))
            for chat, reply in zip(chats, said, strict=True) if reply.tokens]


def read_replies(path: str | Path, model: LocalModel) -> list[Reply]:
    """Replies out of a CSV with columns `input` (the prompt as the template writes it) and `target` (the reply).

    Raises: DataError: naming file and line, where a column or text is missing or a row exceeds the model's context.
    """
    found = []
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            if not {"input", "target"} <= set(rows.fieldnames or ()):
                raise DataError(f"{path}:1: columns are {list(rows.fieldnames or ())}; needed are input and target")
            for row in rows:
                if not row["input"] or not row["target"]:
                    raise DataError(f"{path}:{rows.line_num}: input or target is empty; fill it or drop the row")
                reply = Reply(tuple(model.template.encode(row["input"])),
                              (*model.template.encode(row["target"]), model.template.end))
                if len(reply.prompt) + len(reply.reply) > model.context:
                    raise DataError(f"{path}:{rows.line_num}: {len(reply.prompt)} and {len(reply.reply)} tokens exceed "
                                    f"the context of {model.context}; drop the row")
                found.append(reply)
    except (OSError, UnicodeDecodeError, csv.Error) as wrong:
        raise DataError(f"{path}: cannot be read ({wrong}); give a CSV in UTF-8") from None
    return found


def prompt_states(model: LocalModel, replies: Sequence[Reply]) -> Tensor:
    """(replies, width) float32 states at the ends of the prompts; what was replied plays no part.

    Raises: ModelError: if the model cannot be steered.
    """
    model.states([])  # says why not, if there is no engine
    if (engine := model.engine) is None or not replies:
        raise ModelError(f"{model.name}: {len(replies)} replies give no states to clone from; collect some first")
    engine.cache.clear()  # so that not even rounding depends on what was read before, as after a kill
    found: Tensor = engine.states([reply.prompt for reply in replies]).float().cpu()
    return found


def reply_loss(model: LocalModel, replies: Sequence[Reply], prefixes: Tensor | None = None,
               position: str = "start") -> tuple[Tensor, int]:
    """Summed cross-entropy (nats) of one batch of replies, and of how many tokens.

    Args:
        prefixes: (replies, tokens, width) soft tokens, which gradients reach; None: unsteered.
    """
    soft = 0 if prefixes is None else prefixes.shape[1]
    cuts = [1 if position == "start" else len(one.prompt) for one in replies]
    rows = [[*one.prompt[:cut], *[one.prompt[0]] * soft, *one.prompt[cut:], *one.reply[:-1]]
            for one, cut in zip(replies, cuts, strict=True)]
    longest = max(len(one.reply) for one in replies)
    ids, mask = padded_left(rows, model.device)
    inputs = model.module.get_input_embeddings()(ids)
    if prefixes is not None and soft:
        first = torch.tensor([ids.shape[1] - len(row) + cut for row, cut in zip(rows, cuts, strict=True)])
        at = (first[:, None] + torch.arange(soft)).to(model.device)
        inputs = inputs.index_put((torch.arange(len(rows), device=model.device)[:, None], at), prefixes.to(inputs))
    logits = model.module(inputs_embeds=inputs, attention_mask=mask, position_ids=positions(mask), use_cache=False,
                          logits_to_keep=longest).logits
    said = torch.tensor([[False] * (longest - len(one.reply)) + [True] * len(one.reply) for one in replies])
    targets = torch.tensor([token for one in replies for token in one.reply], device=model.device)
    return -target_logprobs(logits[said.to(model.device)], targets).sum(), len(targets)


def mean_loss(model: LocalModel, replies: Sequence[Reply], steering: Steering | None = None,
              position: str = "start", states: Tensor | None = None) -> float:
    """Nats a token of replies under the model, or under what steers it.

    Args:
        states: those of the prompts, if they were read already.
    """
    if steering is not None and states is None:
        states = prompt_states(model, replies)
    total, count = 0.0, 0
    with torch.no_grad():
        for part in _alike(replies, 64):
            prefixes = None
            if steering is not None and states is not None:
                prefixes = steering.prefixes(states[part], steering.plan(states[part]))
            loss, tokens = reply_loss(model, [replies[at] for at in part], prefixes, position)
            total, count = total + float(loss), count + tokens
    return total / count


def self_clone(model: LocalModel, replies: Sequence[Reply], config: CloneConfig, *,
               held_out: Sequence[Reply] = (), out: Path | None = None,
               log: Callable[[str, int, int], None] = lambda *_: None) -> Cloned:
    """Fit a clone of the model to what it said. The model is not changed.

    Args:
        held_out: replies to other prompts, on which the gap is measured; without them it is that of the training.
        out: takes `metrics.jsonl`, and `bad_batch.json` where a loss is no number; None: nothing is written.
        log: called as (label, done, total) after each epoch.
    Raises:
        ModelError: if the model cannot be steered.
        TrainingError: if there is nothing to train on, or a loss or gradient is not finite (naming step and replies).
    """
    if not replies:
        raise TrainingError("there are no replies to clone; collect some, or give a CSV with rows")
    steering = Steering(UpMapping.linear(model, config.action, tokens=config.tokens, seed=config.seed),
                        clone=Planner.of(model, config.action, hidden=(*config.hidden, config.action), output="silu",
                                         norm=1.0, seed=config.seed), position=config.position)
    states, measured = prompt_states(model, replies), held_out or replies
    seen = prompt_states(model, held_out) if held_out else states
    assert steering.clone is not None
    steering.clone.normalizer.add(states)
    with frozen(model):
        base = mean_loss(model, measured)
        before = mean_loss(model, measured, steering, config.position, seen)
        _fit(model, steering, replies, states, config, out, log)
        after = mean_loss(model, measured, steering, config.position, seen)
    return Cloned(steering.eval(), base, before, after)


def _fit(model: LocalModel, steering: Steering, replies: Sequence[Reply], states: Tensor, config: CloneConfig,
         out: Path | None, log: Callable[[str, int, int], None]) -> None:
    optimizer = torch.optim.AdamW(steering.parameters(), lr=config.lr)
    order = random.Random(f"clone:{config.seed}")
    parts = _alike(replies, config.batch)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, config.epochs * len(parts))
    descent = Descent(model, optimizer, schedule, out)
    for epoch in range(config.epochs):
        for part in order.sample(parts, len(parts)):
            prefixes = steering.prefixes(states[part], steering.plan(states[part]))
            rows = [replies[at] for at in part]
            loss, tokens = reply_loss(model, rows, prefixes, config.position)
            descent.step(loss / tokens, [f"reply {at}" for at in part], rows)
        log("self-cloning", epoch + 1, config.epochs)


class Descent:
    """The steps of a cloning, each a row of `out`/metrics.jsonl; a loss that is no number ends it.

    Attributes:
        steps: made so far.
    """

    def __init__(self, model: LocalModel, optimizer: torch.optim.Optimizer,
                 schedule: torch.optim.lr_scheduler.LRScheduler, out: Path | None) -> None:
        self.model, self.optimizer, self.schedule, self.out, self.steps = model, optimizer, schedule, out, 0
        if out is not None:
            write_rows(out / "metrics.jsonl", ())  # a cloning that was stopped begins anew

    def step(self, loss: Tensor, names: Sequence[str], replies: Sequence[Reply]) -> None:
        """Descend on the mean loss (nats a token) of a batch of replies.

        Raises: TrainingError: if it or its gradient is not finite; the weights are then as they were.
        """
        value, groups = float(loss.detach()), self.optimizer.param_groups
        rate = groups[-1]["lr"]
        if not math.isfinite(value):
            raise self._not_finite("loss", value, names, replies)
        self.optimizer.zero_grad()
        loss.backward()
        norm = float(torch.nn.utils.get_total_norm([one.grad for group in groups for one in group["params"]
                                                    if one.grad is not None]))
        if not math.isfinite(norm):
            raise self._not_finite("gradient norm", norm, names, replies)
        self.optimizer.step()
        self.schedule.step()
        self.steps += 1
        if self.out is not None:
            row = {"step": self.steps, "loss": value, "grad_norm": norm, "learning_rate": rate}
            append_row(self.out / "metrics.jsonl", row)
            tracking.note(self.out, row)

    def _not_finite(self, what: str, value: float, names: Sequence[str], replies: Sequence[Reply]) -> TrainingError:
        rates = " and ".join(f"{group['initial_lr']:g}" for group in self.optimizer.param_groups)
        return bad_batch(self.out, self.steps + 1, f"{what} of cloning", value, names,
                         advice=f"look at these replies, or lower the rates (now {rates})",
                         texts=[self.model.tokenizer.decode([*one.prompt, *one.reply]) for one in replies])


def _alike(replies: Sequence[Reply], size: int) -> list[list[int]]:
    """Indices in groups of about one length, so that little is padded."""
    order = sorted(range(len(replies)), key=lambda at: (len(replies[at].prompt) + len(replies[at].reply), at))
    return [order[start:start + size] for start in range(0, len(order), size)]


@contextmanager
def frozen(model: LocalModel) -> Iterator[None]:
    """No gradients of the model's weights, no dropout; both as before afterwards."""
    trained, was_training = model.trainable(), model.module.training
    for parameter in trained:
        parameter.requires_grad_(False)
    model.module.eval()
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        model.module.train(was_training)
