"""Generation for many dialogues at once, each of whose tokens is computed once.

All rows in flight are one ragged batch. What a prompt shares with anything read or said before is taken from the kept
keys and values; of the rest, what several prompts share is read once. Finished rows leave and waiting ones join. A
prompt's last token is not read with it: it is the first step, so no logits are made while reading.
Noise is one number per (key, step): a request gives the same tokens in any batch, order or resume, to rounding.
"""

from __future__ import annotations

import bisect
import dataclasses
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from dialoom.errors import ModelError
from dialoom.models import decode
from dialoom.models.base import Sampling
from dialoom.models.decode import SPARING, Drawn, Ids, NotANumberError, is_out_of_memory, pick, uniforms
from dialoom.models.exact import is_same, why_not_replaceable
from dialoom.models.forward import Forward, Fused, Hosted, InPairs, can_fuse, weights_state
from dialoom.models.kept import Node, PrefixCache, Shape, shared_length
from dialoom.models.ragged import Reading, Rows

T = TypeVar("T")
Position = Literal["start", "end"]

CACHE_BYTES = 1 << 29, 1 << 31  # kept between calls where the device is not a GPU: a batch, within these bounds
BATCH_TOKENS = {"cpu": 32_768}  # in flight; 131,072 elsewhere
BATCH_BYTES = 1 << 31  # of their keys and values on a CPU
READ_TOKENS = {"cpu": 2048}  # in one pass of reading; 16,384 elsewhere
LOGITS = 1 << 26  # in one pass of weighing
MAX_ROWS = 256
REFILL = 8  # waiting rows join when an eighth of the batch is free: reading a few prompts at once is cheaper
COMMON_ROWS, COMMON_TOKENS = 4, 32  # least of both for a common beginning to stand apart
OUT_OF_MEMORY_TRIES = 3


@dataclass(eq=False)
class _Row:
    """A request under way.

    Attributes:
        read: ids that are read and kept.
        soft: (tokens, width) embeddings that follow them; they and `rest`, the ids behind them, are not kept.
        last: without soft tokens, the prompt's last id, which is the first step.
        first: with soft tokens, the embedding that is the first step.
    """

    at: int
    read: tuple[int, ...]
    soft: Tensor | None
    rest: tuple[int, ...]
    last: int
    noise: np.ndarray[Any, np.dtype[np.float64]]
    first: Tensor | None = None
    said: list[int] = field(default_factory=list)

    @property
    def fresh(self) -> int:
        """Tokens of the prompt that are not kept, soft ones included."""
        return 1 if self.soft is None else len(self.soft) + len(self.rest)

    @property
    def size(self) -> int:
        """Tokens of the prompt, soft ones included."""
        return len(self.read) + self.fresh


class Engine:
    """Draws replies, weighs options and reads states for one model, and keeps what it read.

    Attributes:
        cache: the kept keys and values.
        batch_tokens: tokens in flight at most: rows times their final length.
        steps, row_steps: decoding steps so far, and the rows in them; their ratio is the mean batch.
        heard: told of every drawn token as (index of the prompt, id); None: nobody listens.
    """

    def __init__(self, module: Any, *, cache_bytes: int | None = None, batch_tokens: int | None = None,
                 fused: bool = True) -> None:
        """
        Args:
            module: a transformers causal LM or a PeftModel around one, in eval mode.
            cache_bytes: keys and values kept between calls; 0 keeps none. None is an eighth of a GPU; elsewhere as
                much as a batch, but 512 MiB at least and 2 GiB at most.
            batch_tokens: None is 32,768 on a CPU, as far as 2 GiB hold them, else 131,072.
            fused: take the fused pass where the architecture allows it.
        Raises: ModelError: if the model's attention cannot be replaced.
        """
        self.module = module
        device: torch.device = next(module.parameters()).device
        self.batch_tokens = batch_tokens or BATCH_TOKENS.get(device.type, 131_072)
        self.read_tokens = READ_TOKENS.get(device.type, 16_384)
        self.steps = self.row_steps = 0
        self.heard: Callable[[int, int], None] | None = None
        self.cache = PrefixCache(0)
        self._fuse = fused
        self._state: tuple[object, ...] | None = None
        with torch.inference_mode():
            self._refresh()
        if batch_tokens is None and device.type == "cpu":  # large models keep more for a token
            self.batch_tokens = max(1, min(self.batch_tokens, BATCH_BYTES // self.shape.token_bytes))
        self.cache.limit = self._cache_bytes() if cache_bytes is None else cache_bytes

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
        found = self._continued([tuple(ids[:-1]) for ids in prompts], [[ids[-1:]] for ids in prompts],
                                lambda _, inputs, at, reading: self._forward.hidden(inputs, at, reading))
        with torch.inference_mode(False):  # something may be trained on them
            return found.clone()

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def weigh(self, prompts: Sequence[Ids], options: Sequence[Sequence[Ids]]) -> list[list[float]]:
        """Summed log-probabilities (nats) of token continuations, each prompt read once.

        Args:
            options: for each prompt, the id rows that may follow it, none empty.
        """
        vocabulary: int = self.module.config.get_text_config().vocab_size

        def score(part: Sequence[int], inputs: Tensor, at: Tensor, reading: Reading) -> Tensor:
            logits = self._forward.logits(inputs, at, reading).float()
            wanted = torch.tensor([token for which in part for option in options[which] for token in option],
                                  device=self.device)
            return (logits.gather(-1, wanted[:, None]).squeeze(-1) - logits.logsumexp(-1)).cpu()

        scores = self._continued([tuple(ids[:-1]) for ids in prompts],
                                 [[[ids[-1], *option[:-1]] for option in said]
                                  for ids, said in zip(prompts, options, strict=True)], score, LOGITS // vocabulary)
        parts = iter(scores.double().split([len(option) for said in options for option in said]))
        return [[float(next(parts).sum()) for _ in said] for said in options]

    # Drawing

    def _row(self, at: int, ids: tuple[int, ...], key: str, sampling: Sampling, soft: Tensor | None,
             position: Position) -> _Row:
        noise = uniforms(key, sampling.max_new_tokens)
        if soft is None or not len(soft):
            return _Row(at, ids[:-1], None, (), ids[-1], noise)
        width = self.module.get_input_embeddings().weight.shape[-1]
        if soft.dim() != 2 or soft.shape[1] != width:
            raise ModelError(f"soft tokens of shape {tuple(soft.shape)} do not fit the model; give (tokens, {width})")
        soft = soft.to(self.shape.dtype).to(self.device)
        cut = len(ids) if position == "end" else 1
        return _Row(at, ids[:cut], soft, ids[cut:], ids[-1], noise)

    def _draw(self, rows: Sequence[_Row], sampling: Sampling, stops: frozenset[int], found: dict[int, Drawn]) -> None:
        """Put what each row says into `found`."""
        for row in rows:
            row.said.clear()  # of a try that was broken off
        waiting = sorted(rows, key=lambda row: (row.size, row.read))  # long ones last, equal ones together
        self.cache.pinned = self._common(waiting) if self._batch.shares else None
        while waiting:
            room = waiting[-1].size + sampling.max_new_tokens
            slots = max(1, min(MAX_ROWS, self.batch_tokens // room))
            first = 0
            if slots < len(waiting):  # beside the longest ones, rows of less than half their length would waste room
                first = bisect.bisect_left(waiting, room / 2, key=lambda row: row.size + sampling.max_new_tokens)
            slots = min(slots, len(waiting) - first)
            self._batch.open(slots, room, self.cache.pinned)
            self._draw_alike(waiting[first:], slots, sampling, stops, found)
            del waiting[first:]
        self._batch.close()
        self.cache.pinned = None
        self.cache.trim()

    def _draw_alike(self, waiting: list[_Row], slots: int, sampling: Sampling, stops: frozenset[int],
                    found: dict[int, Drawn]) -> None:
        """Of rows that wait, the last first, always as many at once as there are slots."""
        batch = self._batch
        on_host = self.device.type == "mps"  # no float64 there
        active: list[_Row] = []
        while waiting or active:
            free = slots - len(active)
            joins = bool(waiting) and (not active or free >= max(1, slots // REFILL))
            if joins:
                fresh = [waiting.pop() for _ in range(min(free, len(waiting)))]
                self._join(fresh, batch)
                active += fresh
            logits = self._step(batch, active)
            if bool((logits if joins else logits[:, :1]).isnan().any()):  # a state that is no number spoils them all
                raise NotANumberError
            noise = torch.tensor([row.noise[len(row.said)] for row in active], dtype=torch.float64,
                                 device="cpu" if on_host else self.device)
            for row, token in zip(active, pick(logits, sampling, noise).tolist(), strict=True):
                row.said.append(token)
                if self.heard is not None:
                    self.heard(row.at, token)
            for slot in reversed(range(len(active))):
                row = active[slot]
                if row.said[-1] in stops or len(row.said) == sampling.max_new_tokens:
                    found[row.at] = Drawn(tuple(row.said), row.said[-1] in stops)
                    self._keep(row, batch, slot)
                    batch.leave(slot)
                    active[slot] = active[-1]
                    active.pop()

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
        self._read_soft(fresh, ends)
        for end in ends:
            batch.join(end)
        self.cache.trim()

    def _read_soft(self, rows: Sequence[_Row], ends: list[Node]) -> None:
        """Read what of these prompts is not kept, all but the last token; `ends` move to where it ends."""
        steered = [at for at, row in enumerate(rows) if row.soft is not None]
        for part in _parts([rows[at].fresh for at in steered], self.read_tokens):
            nodes: list[Node] = []
            inputs: list[Tensor] = []
            for at in (steered[which] for which in part):
                soft, rest = rows[at].soft, torch.tensor(rows[at].rest, dtype=torch.long, device=self.device)
                assert soft is not None
                given = torch.cat([soft, self._forward.embed(rest)])
                rows[at].first = given[-1].clone()
                if len(given) > 1:
                    ends[at] = Node((), ends[at], len(given) - 1)
                    nodes.append(ends[at])
                    inputs.append(given[:-1])
            if nodes:
                self._pass(nodes, torch.cat(inputs))

    def _step(self, batch: Rows, active: Sequence[_Row]) -> Tensor:
        """(rows, vocabulary) logits after one more token of each row."""
        batch.begin_step()
        inputs = torch.tensor([row.said[-1] if row.said else row.last for row in active], device=self.device)
        steered = [(slot, row.first) for slot, row in enumerate(active) if not row.said and row.first is not None]
        if steered:
            inputs = self._forward.embed(inputs).clone()
            for slot, embedding in steered:
                inputs[slot] = embedding
        logits = self._forward.logits(inputs, batch.lengths[:batch.count], batch)
        batch.end_step()
        self.steps += 1
        self.row_steps += len(active)
        return logits

    def _keep(self, row: _Row, batch: Rows, slot: int) -> None:
        """Keep prompt and reply of a finished row, but for the last token, which no step has read."""
        if row.soft is not None or not self.cache.limit:
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
                if ready and size + node.stop - node.start > self.read_tokens:
                    break
                if node.stop - node.start > self.read_tokens:
                    node = self.cache.split(node, self.read_tokens)  # its rest is read in a later pass
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
                   what: Callable[[Sequence[int], Tensor, Tensor, Reading], Tensor],
                   most: int = 1 << 30) -> Tensor:
        """`what` of the tokens of some tails after each prompt, one after the other; the prompts are kept.

        Args:
            most: tokens of tails in one pass, if that is fewer than `read_tokens`.
        """
        self._refresh()
        self.cache.begin(prompts)
        new = [len(ids) - shared_length(ids, before) for before, ids in zip([(), *prompts], prompts, strict=False)]

        def read_all() -> Tensor:
            found = [torch.empty(0)] if not tails else []
            limit = max(1, min(self.read_tokens, most))
            shares = [sum(map(len, rows)) / limit + size / self.batch_tokens
                      for rows, size in zip(tails, new, strict=True)]
            for part in _parts(shares, 1.0):
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
        """`run`; short of memory it is tried again with half the batch and nothing kept, told, three times at most."""
        for left in reversed(range(OUT_OF_MEMORY_TRIES + 1)):
            try:
                return run()
            except BaseException as error:
                self.cache.clear()  # a run broken off leaves tokens without states behind
                self._batch = Rows(self.shape)
                if not is_out_of_memory(error) or not left:
                    raise
            self.batch_tokens = max(1, self.batch_tokens // 2)
            warnings.warn(SPARING.format(tokens=self.batch_tokens), stacklevel=5)
            self.read_tokens = max(1, self.read_tokens // 2)
            self.cache.limit //= 2
        raise AssertionError("unreachable")

    def _cache_bytes(self) -> int:
        if self.device.type == "cuda":
            return int(torch.cuda.get_device_properties(self.device).total_memory) // 8
        least, most = CACHE_BYTES
        return min(most, max(least, self.batch_tokens * self.shape.token_bytes))

    def _refresh(self) -> None:
        """Forget what was computed with other weights."""
        state = weights_state(self.module)
        if state != self._state:
            self.cache.clear()
            fuses = self._fuse and can_fuse(self.module)
            self._forward: Forward = InPairs(Fused(self.module) if fuses else Hosted(self.module))
            self.device = next(self.module.parameters()).device
            self.shape = _shape(self._forward, self.device)
            self._batch = Rows(self.shape)
            self._state = state


def _parts(sizes: Sequence[float], limit: float) -> Iterator[list[int]]:
    """Indices in order, in groups whose sizes sum to `limit` at most (or of one)."""
    part: list[int] = []
    total = 0.0
    for at, size in enumerate(sizes):
        if part and total + size > limit:
            yield part
            part, total = [], 0.0
        part.append(at)
        total += size
    if part:
        yield part


def _positions(nodes: Sequence[Node], device: torch.device) -> Tensor:
    return torch.cat([torch.arange(node.start, node.stop) for node in nodes]).to(device)


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
    try:
        engine = Engine(module, **options)
        worst = _disagreement(engine)
        engine.cache.clear()
    except NotANumberError:  # the first reply will say so
        return engine
    except Exception as error:  # whatever an unknown architecture makes of it, plain batches remain
        said = " ".join(str(error).split())[:120] or type(error).__name__
        raise ModelError(f"{kind} cannot be run on ragged batches ({said})") from error
    if not is_same(worst, engine.shape.dtype):
        raise ModelError(f"{kind} gives other log-probabilities on ragged batches (by {worst:.2g} nats a token)")
    return engine


@torch.inference_mode()  # type: ignore[untyped-decorator]
def _disagreement(engine: Engine) -> float:
    """How far (nats a token) the model's own passes over a few random prompts, each alone, are from the engine's."""
    module, device = engine.module, engine.device
    draw = np.random.default_rng(0)
    stem, *tails = draw.integers(0, module.get_input_embeddings().weight.shape[0], size=(4, 6)).tolist()
    prompts = [[*stem, *tail[:2 * at + 2]] for at, tail in enumerate(tails)]
    plain = [decode.option_logprobs(module, [prompt], [[stem]], device)[0][0] for prompt in prompts]
    worst: float = max(abs(ours[0] - theirs) / len(stem)
                       for ours, theirs in zip(engine.weigh(prompts, [[stem]] * len(prompts)), plain, strict=True))
    greedy = Sampling(temperature=0.0, max_new_tokens=3)
    for prompt, drawn in zip(prompts, engine.draw(prompts, ["probe"] * len(prompts), greedy), strict=True):
        best = decode.draw(module, [prompt], torch.zeros(1, 3, device=device), greedy, frozenset())[0]
        same = shared_length(drawn.ids, best.ids)
        if same < len(best.ids):  # two tokens that are equally likely to rounding are no mistake
            ours, theirs = engine.weigh([prompt], [[drawn.ids[:same + 1], best.ids[:same + 1]]])[0]
            worst = max(worst, theirs - ours)
    return worst


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
