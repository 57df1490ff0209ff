"""Generation for many dialogues at once, each of whose tokens is computed once.

All rows in flight are one ragged batch. What a prompt shares with anything read or said before is taken from the kept
keys and values; of the rest, what several prompts share is read once. Finished rows leave and waiting ones join. A
prompt's last token is not read with it: it is the first step, so no logits are made while reading.
Noise is one number per (key, step): a request gives the same tokens in any batch, order or resume, to rounding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from dialoom.errors import ModelError
from dialoom.models.base import Sampling
from dialoom.models.decode import Drawn, Ids, is_out_of_memory, option_logprobs, pick, uniforms
from dialoom.models.exact import why_not_replaceable
from dialoom.models.forward import Forward, Fused, Hosted, can_fuse, weights_state
from dialoom.models.kept import Node, PrefixCache, Shape, shared_length
from dialoom.models.ragged import Reading, Rows

T = TypeVar("T")
Position = Literal["start", "end"]

CACHE_BYTES = 1 << 29  # kept between calls where the device is not a GPU
READ_TOKENS = {"cpu": 2048}  # in one pass of reading; 16,384 elsewhere
MAX_ROWS = 256
REFILL = 8  # waiting rows join when an eighth of the batch is free: reading a few prompts at once is cheaper
PROBE_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}  # nats a token
HALF_TOLERANCE = 0.2  # bfloat16 keeps 8 bits; a wrong mask is off by far more
COMMON_ROWS, COMMON_TOKENS = 4, 32  # least of both for a common beginning to stand apart
OUT_OF_MEMORY_TRIES = 3


@dataclass(eq=False)
class _Row:
    """A request under way.

    Attributes:
        read: ids that are read and kept.
        inputs: (tokens, width) embeddings that follow them and are not kept; None is the one token `last`.
    """

    at: int
    read: tuple[int, ...]
    last: int
    inputs: Tensor | None
    noise: np.ndarray[Any, np.dtype[np.float64]]
    said: list[int] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Tokens of the prompt, soft ones included."""
        return len(self.read) + (1 if self.inputs is None else len(self.inputs))


class Engine:
    """Draws replies, weighs options and reads states for one model, and keeps what it read.

    Attributes:
        cache: the kept keys and values.
        batch_tokens: tokens in flight at most: rows times their final length.
        steps, row_steps: decoding steps so far, and the rows in them; their ratio is the mean batch.
    """

    def __init__(self, module: Any, *, cache_bytes: int | None = None, batch_tokens: int | None = None,
                 fused: bool = True) -> None:
        """
        Args:
            module: a transformers causal LM or a PeftModel around one, in eval mode.
            cache_bytes: keys and values kept between calls; 0 keeps none. None is 512 MiB on a CPU, an eighth of a GPU.
            fused: take the fused pass where the architecture allows it.
        Raises: ModelError: if the model's attention cannot be replaced.
        """
        self.module = module
        self.device: torch.device = next(module.parameters()).device
        on_cpu = self.device.type == "cpu"
        self.batch_tokens = batch_tokens or (16_384 if on_cpu else 131_072)
        self.read_tokens = READ_TOKENS.get(self.device.type, 16_384)
        self.steps = self.row_steps = 0
        self._fuse = fused and can_fuse(module)
        self._forward: Forward = Hosted(module)
        self._state: tuple[object, ...] | None = None
        with torch.inference_mode():
            self.shape = _shape(self._forward, self.device)
        self._batch = Rows(self.shape, self.batch_tokens)
        self.cache = PrefixCache(_cache_bytes(self.device) if cache_bytes is None else cache_bytes)

    # What is asked of it

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def draw(self, prompts: Sequence[Ids], keys: Sequence[str], sampling: Sampling,
             stops: frozenset[int] = frozenset(), *, prefixes: Sequence[Tensor | None] | None = None,
             position: Position = "end") -> list[Drawn]:
        """Continue each prompt.

        Args:
            prompts: token ids, at least one each.
            keys: what each one's randomness comes from.
            stops: ids that end a reply; the ending id is part of the drawn ids.
            prefixes: for each prompt soft tokens, (tokens, width) embeddings, or None; no later prompt contains them.
            position: they stand after the first token ("start": nothing behind them is kept) or after the last ("end").
        """
        self._refresh()
        rows = [self._row(at, tuple(ids), key, sampling, prefixes[at] if prefixes else None, position)
                for at, (ids, key) in enumerate(zip(prompts, keys, strict=True))]
        self.cache.begin([row.read for row in rows])
        found: dict[int, Drawn] = {}
        self._sparing(lambda: self._draw([row for row in rows if row.at not in found], sampling, stops, found))
        return [found[at] for at in range(len(rows))]

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def states(self, prompts: Sequence[Ids]) -> Tensor:
        """(prompts, width) hidden state after the last norm at each prompt's last token, without the head."""
        return self._continued([tuple(ids[:-1]) for ids in prompts], [[ids[-1:]] for ids in prompts],
                               lambda _, inputs, at, reading: self._forward.hidden(inputs, at, reading))

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def weigh(self, prompts: Sequence[Ids], options: Sequence[Sequence[Ids]]) -> list[list[float]]:
        """Summed log-probabilities (nats) of token continuations, each prompt read once.

        Args:
            options: for each prompt, the id rows that may follow it, none empty.
        """
        def score(part: Sequence[int], inputs: Tensor, at: Tensor, reading: Reading) -> Tensor:
            logits = self._forward.logits(inputs, at, reading).float()
            wanted = torch.tensor([token for which in part for option in options[which] for token in option],
                                  device=self.device)
            return logits.gather(-1, wanted[:, None]).squeeze(-1) - logits.logsumexp(-1)

        scores = self._continued([tuple(ids[:-1]) for ids in prompts],
                                 [[[ids[-1], *option[:-1]] for option in said]
                                  for ids, said in zip(prompts, options, strict=True)], score)
        parts = iter(scores.double().split([len(option) for said in options for option in said]))
        return [[float(next(parts).sum()) for _ in said] for said in options]

    # Drawing

    def _row(self, at: int, ids: tuple[int, ...], key: str, sampling: Sampling, soft: Tensor | None,
             position: Position) -> _Row:
        noise = uniforms(key, sampling.max_new_tokens)
        if soft is None:
            return _Row(at, ids[:-1], ids[-1], None, noise)
        soft = soft.to(self.shape.dtype).to(self.device)
        if position == "end":
            return _Row(at, ids, ids[-1], soft, noise)
        rest = self._forward.embed(torch.tensor(ids[1:], dtype=torch.long, device=self.device))
        return _Row(at, ids[:1], ids[-1], torch.cat([soft, rest]), noise)

    def _draw(self, waiting: list[_Row], sampling: Sampling, stops: frozenset[int], found: dict[int, Drawn]) -> None:
        """Put what each row says into `found`."""
        waiting = sorted(waiting, key=lambda row: (row.size, row.read))  # long ones first, equal ones together
        room = waiting[-1].size + sampling.max_new_tokens if waiting else 0
        slots = min(len(waiting), MAX_ROWS, max(1, self.batch_tokens // max(1, room)))
        batch = self._batch
        self.cache.pinned = self._common(waiting) if batch.shares else None
        batch.open(slots, room, self.cache.pinned)
        active: list[_Row] = []
        while waiting or active:
            free = slots - len(active)
            joins = bool(waiting) and (not active or free >= max(1, slots // REFILL))
            if joins:
                fresh = [waiting.pop() for _ in range(min(free, len(waiting)))]
                self._join(fresh, batch)
                active += fresh
            logits = self._step(batch, active)
            if joins and bool(logits.isnan().any()):
                raise ModelError("the model's output is not a number (NaN): its weights are broken, or training "
                                 "diverged")
            noise = torch.tensor([row.noise[len(row.said)] for row in active], dtype=torch.float64, device=self.device)
            for row, token in zip(active, pick(logits, sampling, noise).tolist(), strict=True):
                row.said.append(token)
            for slot in reversed(range(len(active))):
                row = active[slot]
                if row.said[-1] in stops or len(row.said) == sampling.max_new_tokens:
                    found[row.at] = Drawn(tuple(row.said), row.said[-1] in stops)
                    self._keep(row, batch, slot)
                    batch.leave(slot)
                    active[slot] = active[-1]
                    active.pop()
        self.cache.pinned = None

    def _common(self, rows: Sequence[_Row]) -> Node | None:
        """The end of what all of these begin with, read; None if that is too little to stand apart."""
        if len(rows) < COMMON_ROWS:
            return None
        first, last = min(row.read for row in rows), max(row.read for row in rows)
        size = shared_length(first, last)  # what the two extremes share, all share
        if size < COMMON_TOKENS:
            return None
        end = self.cache.insert(first[:size])
        self._read([end])
        return end

    def _join(self, fresh: Sequence[_Row], batch: Rows) -> None:
        """Read what is new in these prompts and give each a row."""
        ends = [self.cache.insert(row.read) for row in fresh]
        self._read(ends)
        for row, end in zip(fresh, ends, strict=True):
            if row.inputs is not None and len(row.inputs) > 1:
                node = Node((), end, len(row.inputs) - 1)
                self._pass([node], row.inputs[:-1])
                end = node
            batch.join(end)
        self.cache.trim()

    def _step(self, batch: Rows, active: Sequence[_Row]) -> Tensor:
        """(rows, vocabulary) logits after one more token of each row."""
        batch.begin_step()
        inputs = torch.tensor([row.said[-1] if row.said else row.last for row in active], device=self.device)
        soft = [(slot, row.inputs[-1]) for slot, row in enumerate(active) if not row.said and row.inputs is not None]
        if soft:
            inputs = self._forward.embed(inputs).clone()
            for slot, embedding in soft:
                inputs[slot] = embedding
        logits = self._forward.logits(inputs, batch.lengths[:batch.count], batch)
        batch.end_step()
        self.steps += 1
        self.row_steps += len(active)
        return logits

    def _keep(self, row: _Row, batch: Rows, slot: int) -> None:
        """Keep prompt and reply of a finished row, but for the last token, which no step has read."""
        if row.inputs is not None or not self.cache.limit:
            return
        end = self.cache.insert((*row.read, row.last, *row.said[:-1]))
        for node in end.path():
            if node.states is None:
                self.cache.fill(node, batch.states(slot, node.start, node.stop))

    # Reading

    def _read(self, ends: Iterable[Node]) -> None:
        """Read every run on the paths to `ends` that was not read before: parents first, many runs in a pass."""
        unread = {id(node): node for end in ends for node in end.path() if node.states is None}
        waiting = sorted(unread.values(), key=lambda node: node.start)
        while waiting:
            ready: list[Node] = []
            size = 0
            for node in waiting:
                if node.parent is not self.cache.root and (node.parent is None or node.parent.states is None):
                    continue
                if node.stop - node.start > self.read_tokens:
                    node = self.cache.split(node, self.read_tokens)
                if ready and size + node.stop - node.start > self.read_tokens:
                    break
                ready.append(node)
                size += node.stop - node.start
            inputs = torch.tensor([token for node in ready for token in node.ids], device=self.device)
            self._pass(ready, inputs)
            waiting = [node for node in waiting if node.states is None]

    def _pass(self, nodes: Sequence[Node], inputs: Tensor) -> None:
        reading = Reading(nodes, self.shape)
        self._forward.read(inputs, _positions(nodes, self.device), reading)
        for node, states in zip(nodes, reading.states, strict=True):
            self.cache.fill(node, states) if node.ids else setattr(node, "states", states)

    def _continued(self, prompts: Sequence[tuple[int, ...]], tails: Sequence[Sequence[Ids]],
                   what: Callable[[Sequence[int], Tensor, Tensor, Reading], Tensor]) -> Tensor:
        """`what` of the tokens of some tails after each prompt, one after the other; the prompts are kept."""
        self._refresh()
        self.cache.begin(prompts)

        def read_all() -> Tensor:
            found = [torch.empty(0, device=self.device)] if not tails else []
            for part in _parts([sum(map(len, rows)) for rows in tails], self.read_tokens):
                ends = [self.cache.insert(prompts[at]) for at in part]
                self._read(ends)
                nodes = [Node((), end, len(tail)) for at, end in zip(part, ends, strict=True) for tail in tails[at]]
                inputs = torch.tensor([token for at in part for tail in tails[at] for token in tail],
                                      device=self.device)
                found.append(what(part, inputs, _positions(nodes, self.device), Reading(nodes, self.shape)))
                self.cache.trim()
            return torch.cat(found)

        return self._sparing(read_all)

    # Looking after itself

    def _sparing(self, run: Callable[[], T]) -> T:
        """`run`; short of memory it is tried again with smaller batches and nothing kept, three times at most."""
        for left in reversed(range(OUT_OF_MEMORY_TRIES + 1)):
            try:
                return run()
            except BaseException as error:
                self.cache.clear()  # a run broken off leaves tokens without states behind
                if is_out_of_memory(error) and left:
                    self.batch_tokens = max(1, self.batch_tokens // 2)
                    self.read_tokens = max(1, self.read_tokens // 2)
                self._batch = Rows(self.shape, self.batch_tokens)
                if not is_out_of_memory(error) or not left:
                    raise
        raise AssertionError("unreachable")

    def _refresh(self) -> None:
        """Forget what was computed with other weights."""
        state = weights_state(self.module)
        if state != self._state:
            self.cache.clear()
            self._forward = Fused(self.module) if self._fuse and can_fuse(self.module) else Hosted(self.module)
            self._state = state


def _parts(sizes: Sequence[int], limit: int) -> Iterator[list[int]]:
    """Indices in order, in groups whose sizes sum to `limit` at most (or of one)."""
    part: list[int] = []
    total = 0
    for at, size in enumerate(sizes):
        if part and total + size > limit:
            yield part
            part, total = [], 0
        part.append(at)
        total += size
    if part:
        yield part


def _positions(nodes: Sequence[Node], device: torch.device) -> Tensor:
    return torch.cat([torch.arange(node.start, node.stop) for node in nodes]).to(device)


def _cache_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory) // 8
    return CACHE_BYTES


def engine_for(module: Any, longest: float, **options: Any) -> Engine:
    """An engine for this model, once a probe has shown that it computes what the model computes.

    Args:
        longest: tokens in the longest sequence it will see.
        options: as for `Engine`.
    Raises: ModelError: naming what keeps this architecture from it.
    """
    reason = why_not_replaceable(module, longest)
    if reason is not None:
        raise ModelError(reason)
    kind = module.config.get_text_config().model_type
    stem, *tails = _probe(module.get_input_embeddings().num_embeddings)
    prompts, said = [[*stem, *tail] for tail in tails], [[stem]] * len(tails)
    try:
        engine = Engine(module, **options)
        try:
            with torch.inference_mode():
                plain = torch.tensor(option_logprobs(module, prompts, said, engine.device))
        except ModelError:  # not a number: the first reply will say so
            return engine
        found = torch.tensor(engine.weigh(prompts, said))
        engine.draw(prompts, [kind] * len(prompts), Sampling(max_new_tokens=2))
        engine.cache.clear()
    except (ModelError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise ModelError(f"{kind} cannot be run on ragged batches ({str(error).splitlines()[0]:.120})") from error
    worst = float((found - plain).abs().max()) / len(stem)
    if not worst <= PROBE_TOLERANCE.get(engine.shape.dtype, HALF_TOLERANCE):
        raise ModelError(f"{kind} gives other log-probabilities on ragged batches (by {worst:.2g} nats a token)")
    return engine


def _probe(vocabulary: int) -> list[list[int]]:
    found: list[list[int]] = np.random.default_rng(0).integers(0, vocabulary, size=(4, 6)).tolist()
    return found


class _Measure:
    """Attends to nothing and notes what it is given."""

    def __init__(self) -> None:
        self.shapes: dict[int, Shape] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        self.shapes[layer] = Shape(1, key.shape[1], key.shape[2], value.shape[2], key.dtype, key.device)
        return query.new_zeros(*query.shape[:2], value.shape[2])


def _shape(forward: Forward, device: torch.device) -> Shape:
    """What a token keeps, found out by reading one."""
    measure = _Measure()
    one = torch.zeros(1, dtype=torch.long, device=device)
    try:
        forward.hidden(one, one, measure)
    except (AssertionError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        said = " ".join(str(error).split())[:120] or type(error).__name__
        raise ModelError(f"its attention cannot be replaced ({said})") from error
    shapes = set(measure.shapes.values())
    if len(shapes) != 1 or set(measure.shapes) != set(range(len(measure.shapes))):
        raise ModelError(f"its {len(measure.shapes)} layers with attention do not keep the same for a token")
    return dataclasses.replace(shapes.pop(), layers=len(measure.shapes))
