"""DITTO's sequence store and its pairs. Pairs are index tuples over the store; no tree, no torch.

The ranking is demonstration > newest sample > ... > oldest sample. Everything is keyed by the demonstration's index, so
several demonstrations of one prompt are all used. Each distinct token sequence stands once in the store.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dialoom.errors import TrainingError
from dialoom.recipes.ditto_config import DPOStage

if TYPE_CHECKING:
    from dialoom.train.pack import TokenPath

Kind = Literal["expert", "inter", "replay"]
KINDS: tuple[Kind, ...] = ("expert", "inter", "replay")  # the order within a batch


@dataclass(frozen=True)
class IndexPair:
    """Two sequences of the store, the first preferred.

    Attributes:
        demo: index of the demonstration whose prompt both answer.
        ranks: checkpoints (optimiser steps) the two were sampled at; None is the demonstration, above all.
    """

    kind: Kind
    demo: int
    chosen: int
    rejected: int
    ranks: tuple[int | None, int]


Pools = dict[Kind, list[list[IndexPair]]]
"""The pairs that may be drawn: kind -> for each demonstration its pairs."""


class SequenceStore:
    """Every distinct (prompt, completion) of one author under one id.

    Attributes:
        paths: token sequence of each id.
        reference: its log-probability (nats) under the reference, or None where it has not been computed.
        demos: the id of each demonstration.
        samples: checkpoint -> for each demonstration the ids of its samples, equal ones repeated.
    """

    def __init__(self, demos: Sequence[TokenPath]) -> None:
        """Raises TrainingError if there is no demonstration."""
        if not demos:
            raise TrainingError("there is no demonstration to learn from")
        self.paths: list[TokenPath] = []
        self.reference: list[float | None] = []
        self._ids: dict[tuple[bytes, tuple[tuple[int, int], ...]], int] = {}
        self.samples: dict[int, list[list[int]]] = {}
        self.demos = [self.add(path) for path in demos]

    def add(self, path: TokenPath) -> int:
        """The id of a sequence; a new one if it was not there."""
        key = (path.key, path.spans)
        if key not in self._ids:
            self._ids[key] = len(self.paths)
            self.paths.append(path)
            self.reference.append(None)
        return self._ids[key]

    def add_samples(self, checkpoint: int, samples: Sequence[Sequence[TokenPath]]) -> None:
        """What a checkpoint said for each demonstration's prompt."""
        if len(samples) != len(self.demos):
            raise TrainingError(f"samples for {len(samples)} demonstrations, expected {len(self.demos)}")
        self.samples[checkpoint] = [[self.add(path) for path in row] for row in samples]

    def without_reference(self) -> list[int]:
        """Ids whose reference log-probability is still to be computed."""
        return [at for at, value in enumerate(self.reference) if value is None]

    def forget_reference(self) -> None:
        """The reference has moved: what was computed under the old one no longer holds."""
        self.reference = [None] * len(self.paths)


def sampling_steps(settings: DPOStage) -> range:
    """The steps before which the policy is sampled."""
    return range(0, settings.steps, settings.resample_every) if settings.resampling else range(1)


def pair_counts(demos: int, settings: DPOStage) -> dict[Kind, int]:
    """How many pairs of each kind a step of `demos` demonstrations asks for (Python's rounding, half to even)."""
    size = settings.pairs_per_demo * demos
    return {kind: round(getattr(settings, kind) * size) for kind in KINDS}


def candidates(store: SequenceStore, settings: DPOStage, at_step: int | None = None) -> Pools:
    """Every pair that may be drawn: kind -> for each demonstration its pairs.

    Args:
        at_step: of what was sampled at or before this step; None: of everything.
    """
    steps = sorted(step for step in store.samples if at_step is None or step <= at_step)
    found: Pools = {kind: [[] for _ in store.demos] for kind in KINDS}
    for at, demo in enumerate(store.demos):
        for step in steps:
            kind: Kind = "expert" if step == steps[-1] else "replay"
            found[kind][at] += [IndexPair(kind, at, demo, sample, (None, step)) for sample in store.samples[step][at]]
        found["inter"][at] += [IndexPair("inter", at, later, earlier, (one, other))
                               for one in steps for other in steps if one > other
                               for later in store.samples[one][at] for earlier in store.samples[other][at]]
        if settings.drop_identical:
            for kind in KINDS:
                found[kind][at] = [pair for pair in found[kind][at] if pair.rejected not in (pair.chosen, demo)]
    return found


def draw_pairs(pools: Pools, demos: Sequence[int], settings: DPOStage,
               rng: random.Random) -> list[IndexPair]:
    """The pairs of one step over the given demonstrations, each candidate at most once; expert, inter, replay.

    Where a pool is too small the batch is smaller, or (`refill`) the other kinds give more, expert first.
    """
    wanted = pair_counts(len(demos), settings)
    sizes = {kind: sum(len(pools[kind][at]) for at in demos) for kind in KINDS}
    counts = {kind: min(wanted[kind], sizes[kind]) for kind in KINDS}
    if settings.refill:
        short = sum(wanted.values()) - sum(counts.values())
        for kind in ("expert", "replay", "inter"):
            more = min(short, sizes[kind] - counts[kind]) if wanted[kind] else 0
            counts[kind] += more
            short -= more
    return [pair for kind in KINDS for pair in _draw(pools[kind], demos, counts[kind], settings.stratified, rng)]


def _draw(pools: Sequence[Sequence[IndexPair]], demos: Sequence[int], count: int, stratified: bool,
          rng: random.Random) -> list[IndexPair]:
    if not stratified:
        return rng.sample([pair for at in demos for pair in pools[at]], count)
    shares = dict.fromkeys(demos, 0)
    while sum(shares.values()) < count:  # one round gives one pair to each demonstration that has any left
        having = [at for at in demos if shares[at] < len(pools[at])]
        for at in rng.sample(having, min(len(having), count - sum(shares.values()))):
            shares[at] += 1
    return [pair for at in demos for pair in rng.sample(pools[at], shares[at])]


def demo_batches(demos: int, size: int, steps: int, seed: object) -> list[list[int]]:
    """The demonstrations of each step: epoch after epoch in an order drawn from `seed`, each epoch cut every `size`."""
    found: list[list[int]] = []
    epoch = 0
    while len(found) < steps:
        order = random.Random(f"{seed}/demos/{epoch}").sample(range(demos), demos)
        found += [sorted(order[start:start + size]) for start in range(0, demos, size)]
        epoch += 1
    return found[:steps]


def drawn_pairs(store: SequenceStore, settings: DPOStage, seed: object, start: int = 0) -> Iterator[list[IndexPair]]:
    """The pairs of each step from `start` on; the store must hold what had been sampled by then.

    They follow from the store, the settings and the seed alone, so a resumed run draws the same ones. Without
    resampling no sample is ever older; where with it there would be older ones, `expert` pairs stand in for `replay`
    and `inter`, so that each step takes as many pairs either way.
    """
    batches = demo_batches(len(store.demos), settings.demo_batch, settings.steps, seed)
    sampled, pools = -1, Pools()
    for step in range(start, settings.steps):
        newest = max(at for at in sampling_steps(settings) if at <= step)
        if newest != sampled:
            sampled, pools = newest, candidates(store, settings, newest)
        refill = settings.refill or (not settings.resampling and step >= settings.resample_every)
        yield draw_pairs(pools, batches[step], settings.model_copy(update={"refill": refill}),
                         random.Random(f"{seed}/pairs/{step}"))
