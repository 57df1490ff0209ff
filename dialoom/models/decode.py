"""Sampling from a causal LM: noise, the choice of a token, and the plain loop for models the engine cannot run.

The loop: left padding, equal prompts computed once, finished rows leave the batch. Noise is one uniform number per
(key, step), put through the inverse of the cumulative distribution: a request gets the same text in any batch, order or
resume.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from dialoom.errors import ModelError
from dialoom.models.base import Sampling

Ids = Sequence[int]

RUN = 64


class NotANumberError(ModelError):
    """The model's output is not a number."""

    def __init__(self) -> None:
        super().__init__("the model's output is not a number (NaN): its weights are broken, or training diverged")


@dataclass(frozen=True)
class Drawn:
    """Sampled ids of one reply; `ended` if the last of them is a stop token."""

    ids: tuple[int, ...]
    ended: bool


def uniforms(key: str, count: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """`count` numbers in [0, 1) that depend on `key` alone; the first n are the same for every count >= n."""
    seed = int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
    return np.random.Generator(np.random.Philox(key=seed)).random(count)


def pick(logits: Tensor, sampling: Sampling, noise: Tensor) -> Tensor:
    """The next token of each row.

    Args:
        logits: (batch, vocabulary), any float type.
        noise: (batch,) float64 in [0, 1); unused when greedy.
    Returns: (batch,) token ids on the device of `logits`.
    """
    if sampling.temperature == 0:
        return logits.float().argmax(-1)
    if logits.device.type == "mps":  # no float64 there
        return pick(logits.cpu(), sampling, noise.cpu()).to(logits.device)
    scaled = logits.float() / sampling.temperature
    if 0 < sampling.top_k < scaled.shape[-1]:
        least = scaled.topk(sampling.top_k).values[:, -1:]
        scaled = scaled.masked_fill(scaled < least, float("-inf"))
    weights = scaled.softmax(-1)
    return _inverted(_nucleus(weights, sampling.top_p) if sampling.top_p < 1 else weights, noise)


def _nucleus(weights: Tensor, top_p: float) -> Tensor:
    """The weights without those that come after `top_p` of the mass, the likeliest first."""
    size = 0
    before = weights.new_zeros(1, 1)
    while size < weights.shape[-1] and bool((before[:, -1] < top_p).any()):  # rarely more than once
        size = min(max(64, 8 * size), weights.shape[-1])
        top = weights.topk(size).values
        before = top.cumsum(-1) - top
    least = top.masked_fill(before >= top_p, 2.0).amin(-1, keepdim=True)
    return weights.masked_fill(weights < least, 0.0)


def _inverted(weights: Tensor, noise: Tensor) -> Tensor:
    """(batch,) where the running sum of each row of `weights` passes `noise` times its total.

    In two steps, a run of tokens and a token in it: a running sum over a whole vocabulary takes longer than all else.
    """
    size = -(-weights.shape[-1] // RUN)
    if weights.shape[-1] % RUN:
        weights = torch.nn.functional.pad(weights, (0, size * RUN - weights.shape[-1]))
    runs = weights.view(len(weights), size, RUN)
    mass = runs.sum(-1).double().cumsum(-1)
    wanted = noise[:, None] * mass[:, -1:]
    run = torch.searchsorted(mass, wanted, right=True).clamp_(max=size - 1)
    before = mass.gather(1, (run - 1).clamp(min=0)).masked_fill(run == 0, 0.0)
    within = runs.gather(1, run[..., None].expand(-1, 1, RUN)).squeeze(1).double().cumsum(-1)
    token = torch.searchsorted(within, wanted - before, right=True).squeeze(1)
    last = (within < within[:, -1:]).sum(-1)  # rounding must not lead to a token without weight
    return run.squeeze(1) * RUN + torch.minimum(token, last)


def padded_left(rows: Sequence[Ids], device: torch.device) -> tuple[Tensor, Tensor]:
    """(batch, longest) ids and mask of rows of unequal length, aligned at their ends."""
    longest = max(len(row) for row in rows)
    ids = np.zeros((len(rows), longest), dtype=np.int64)
    mask = np.zeros((len(rows), longest), dtype=np.int64)
    for at, row in enumerate(rows):
        ids[at, longest - len(row):] = row
        mask[at, longest - len(row):] = 1
    return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)


def positions(mask: Tensor) -> Tensor:
    """Position ids under a left-padding mask: 0 at the first real token of each row."""
    return (mask.cumsum(-1) - 1).clamp_(min=0)


def batches(prompts: Sequence[Ids], room: int, batch_tokens: int, *, even: bool = False) -> Iterator[list[int]]:
    """Indices of prompts in groups whose padded tokens, with `room` new ones a row, stay within `batch_tokens`.

    Longest first, so that a group pads little and memory is known from the first one; equal prompts are neighbours.

    Args:
        even: only prompts of one length together: recurrent layers would take padding for tokens.
    """
    order = sorted(range(len(prompts)), key=lambda at: (-len(prompts[at]), tuple(prompts[at])))
    group: list[int] = []
    for at in order:
        if group and ((len(group) + 1) * (len(prompts[group[0]]) + room) > batch_tokens
                      or (even and len(prompts[at]) != len(prompts[group[0]]))):
            yield group
            group = []
        group.append(at)
    if group:
        yield group


class RoomyLayer(DynamicLayer):  # type: ignore[misc]  # transformers carries no types
    """One layer's keys and values with room for the tokens to come: a step writes in place instead of copying all."""

    keys: Tensor
    values: Tensor

    def __init__(self, room: int) -> None:
        super().__init__()
        self._room = room
        self._stores: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append (batch, heads, new, size) states; returns all of them so far."""
        start = self.get_seq_length()
        stop = start + key_states.shape[-2]
        if not self._stores or stop > self._stores[0].shape[-2]:
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
            held = (self.keys, self.values) if start else ()
            self._stores = [new.new_empty(*new.shape[:-2], stop + self._room, new.shape[-1])
                            for new in (key_states, value_states)]
            for store, old in zip(self._stores, held, strict=False):
                store[..., :start, :] = old
        for store, new in zip(self._stores, (key_states, value_states), strict=True):
            store[..., start:stop, :] = new
        self.keys, self.values = (store[..., :stop, :] for store in self._stores)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the given rows, in this order; a row may be given several times."""
        length = self.get_seq_length()
        self._stores = [store[indices] for store in self._stores]
        self.keys, self.values = (store[..., :length, :] for store in self._stores)


def roomy_cache(config: Any, room: int) -> Any:
    """A cache for `config`'s layers; plain attention layers get room for `room` more tokens, others their own kind."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer(room) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def kept(module: Any, cache: Any) -> dict[str, Any]:
    """The cache under the name that this model gives it. Raises ModelError if it keeps its state otherwise."""
    base = module.get_base_model() if hasattr(module, "peft_config") else module
    names = inspect.signature(type(base).forward).parameters
    for name in ("past_key_values", "cache_params"):  # attention; recurrent layers only
        if name in names:
            return {name: cache}
    raise ModelError(f"{base.config.model_type} keeps what it has read in a way of its own; use a model with attention")


@dataclass
class Prefilled:
    """Distinct prompts run once: the cache over them and the logits after their last token."""

    logits: Tensor  # (distinct, vocabulary)
    cache: Any
    mask: Tensor | None  # (distinct, longest); None when no row is padded
    lengths: Tensor  # (distinct,) prompt lengths
    rows: list[int]  # for each prompt asked for, its distinct row

    def expand(self, index: Tensor) -> None:
        """Keep the given distinct rows, repeated as given, in this order."""
        for layer in self.cache.layers:
            (getattr(layer, "batch_select_indices", None) or layer.reorder_cache)(index)  # the latter: recurrent ones
        self.logits, self.lengths = self.logits[index], self.lengths[index]
        self.mask = self.mask[index] if self.mask is not None else None


def prefill(module: Any, prompts: Sequence[Ids], room: int, device: torch.device) -> Prefilled:
    """Run every distinct prompt once, with `room` for tokens after it; ModelError if the output is not a number."""
    distinct: dict[tuple[int, ...], int] = {}
    rows = [distinct.setdefault(tuple(prompt), len(distinct)) for prompt in prompts]
    ids, mask = padded_left(list(distinct), device)
    ragged = not bool(mask.all())
    cache = roomy_cache(module.config, room)
    logits = module(input_ids=ids, attention_mask=mask if ragged else None, position_ids=positions(mask),
                    **kept(module, cache), use_cache=True, logits_to_keep=1).logits[:, -1]
    if bool(logits.isnan().any()):
        raise NotANumberError
    return Prefilled(logits, cache, mask if ragged else None, mask.sum(-1), rows)


def draw(module: Any, prompts: Sequence[Ids], noise: Tensor, sampling: Sampling, stops: frozenset[int]) -> list[Drawn]:
    """Continue a batch of prompts, in order.

    Args:
        module: a transformers causal LM, in eval mode.
        noise: (batch, max_new_tokens) float64 on the model's device (on the host where that has no float64).
        stops: ids that end a reply; the ending id is part of the drawn ids.
    """
    device = next(module.parameters()).device
    state = prefill(module, prompts, sampling.max_new_tokens, device)
    state.expand(torch.tensor(state.rows, device=device))
    alive = list(range(len(prompts)))
    said: list[list[int]] = [[] for _ in prompts]
    mask = None if state.mask is None else torch.nn.functional.pad(state.mask, (0, sampling.max_new_tokens), value=1)
    length = max(map(len, prompts))
    for step in range(sampling.max_new_tokens):
        token = pick(state.logits, sampling, noise[:, step])
        going = []
        for row, (at, new) in enumerate(zip(alive, token.tolist(), strict=True)):
            said[at].append(new)
            if new not in stops:
                going.append(row)
        if not going or step + 1 == sampling.max_new_tokens:
            break
        if len(going) < len(alive):
            index = torch.tensor(going, device=device)
            state.expand(index)
            alive = [alive[row] for row in going]
            token, noise = token[index], noise[index.to(noise.device)]
            mask = mask[index] if mask is not None else None
        state.logits = module(input_ids=token[:, None], position_ids=(state.lengths + step)[:, None],
                              attention_mask=None if mask is None else mask[:, :length + step + 1],
                              **kept(module, state.cache), use_cache=True, logits_to_keep=1).logits[:, -1]
    return [Drawn(tuple(ids), ids[-1] in stops) for ids in said]


SPARING = "out of memory; going on with batches of {tokens} tokens, which changes no reply"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a batch failed for want of memory (torch's CPU allocator says so in words only)."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def option_logprobs(module: Any, prompts: Sequence[Ids], options: Sequence[Sequence[Ids]],
                    device: torch.device) -> list[list[float]]:
    """Summed log-probabilities (nats) of token continuations, each prompt run once.

    Args:
        options: for each prompt, the id rows that may follow it; as many for each prompt, none empty.
    """
    count, longest = len(options[0]), max(len(option) for row in options for option in row)
    state = prefill(module, prompts, longest, device)
    first = state.logits[torch.tensor(state.rows, device=device)].float().log_softmax(-1)
    begins = torch.tensor([[option[0] for option in row] for row in options], device=device)
    total = first.gather(-1, begins).cpu().double()
    if longest > 1:  # the first token is scored by the prompt's last logits, only the rest needs another pass
        state.expand(torch.tensor(state.rows, device=device).repeat_interleave(count))
        flat = [list(option) for row in options for option in row]
        ids = torch.tensor([option[:-1] + [0] * (longest - len(option)) for option in flat], device=device)
        targets = torch.tensor([option[1:] + [-1] * (longest - len(option)) for option in flat], device=device)
        mask = None if state.mask is None else torch.nn.functional.pad(state.mask, (0, longest - 1), value=1)
        at = state.lengths[:, None] + torch.arange(longest - 1, device=device)
        logits = module(input_ids=ids, attention_mask=mask, position_ids=at, **kept(module, state.cache),
                        use_cache=True).logits
        scores = _token_logprobs(logits, targets.clamp(min=0))
        total += scores.masked_fill(targets < 0, 0.0).cpu().double().sum(-1).view(-1, count)
    return [[float(value) for value in row] for row in total.tolist()]


def reply_logprobs(module: Any, rows: Sequence[tuple[Ids, int]], device: torch.device) -> list[float]:
    """Summed log-probability (nats) of `ids[start:]` given `ids[:start]`, one number a row; 1 <= start <= len(ids).

    Rows are aligned at their ends, so the language-model head sees the replies' positions only.
    """
    ids, mask = padded_left([ids for ids, _ in rows], device)
    longest = max(len(row) - start for row, start in rows)
    if longest == 0:
        return [0.0] * len(rows)
    logits = module(input_ids=ids, attention_mask=mask, position_ids=positions(mask), use_cache=False,
                    logits_to_keep=longest + 1).logits[:, :-1]
    scores = _token_logprobs(logits, ids[:, -longest:])
    counts = torch.tensor([len(row) - start for row, start in rows], device=device)
    inside = torch.arange(longest, 0, -1, device=device)[None] <= counts[:, None]
    return [float(value) for value in scores.masked_fill(~inside, 0.0).cpu().double().sum(-1).tolist()]


def _token_logprobs(logits: Tensor, targets: Tensor) -> Tensor:
    """(batch, length) log-probabilities of the targets, without a second array of the size of the logits in fp32."""
    logits = logits.float()
    return logits.gather(-1, targets[..., None]).squeeze(-1) - logits.logsumexp(-1)
