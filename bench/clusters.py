"""Leader clustering of many strategies against the same rule as a loop: `python -m bench.clusters [--quick]`.

The vectors are made up: about as many groups as IDEAS counted clusters, 384 numbers each as sentence embeddings have.
The loop asks for one leader's cosines at a time and then goes through them from the highest on, as the rule is stated;
its search is a matrix product too, so what is measured is the work around it. Labels must be equal.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from bench.measure import Row
from dialoom.embed import Vectors, leader_clusters

COUNTS = (8_000, 20_000)
GROUPS, DIMENSIONS, THRESHOLD = 1_593, 384, 0.5  # groups and threshold of the paper's code
NOISE = 0.045  # of each number; two texts of a group then have a cosine of about 0.56, so many a group is parted
Log = Callable[[str], None]


def strategies(count: int, *, groups: int = GROUPS, dimensions: int = DIMENSIONS, seed: int = 0) -> Vectors:
    """Unit rows that lie around as many directions as there are groups."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(groups, dimensions))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    rows = centres[rng.integers(0, groups, count)] + rng.normal(size=(count, dimensions)) * NOISE
    unit: Vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return unit


def clusters_by_loop(embedded: Vectors, threshold: float) -> list[int]:
    """Each text's leader, found text by text."""
    leader_of, score = [-1] * len(embedded), [0.0] * len(embedded)
    for leader in range(len(embedded)):
        if leader_of[leader] >= 0:
            continue
        cosines: NDArray[np.float32] = embedded @ embedded[leader]
        nearest_first = np.argsort(-cosines)
        for item, cosine in zip(nearest_first.tolist(), cosines[nearest_first].tolist(), strict=True):
            if cosine <= threshold:
                break
            if leader_of[item] < 0 or score[item] < cosine:
                leader_of[item], score[item] = leader, cosine
    return leader_of


def rows(*, quick: bool, log: Log) -> Iterator[Row]:
    """A row for each number of strategies. Raises RuntimeError if the two ways give other labels."""
    for count in (400,) if quick else COUNTS:
        embedded = strategies(count, groups=min(GROUPS, count // 4))
        leader_clusters(embedded[:100], THRESHOLD)  # what a first call alone pays for
        ours, ours_s = timed(leader_clusters, embedded)
        theirs, theirs_s = timed(clusters_by_loop, embedded)
        same = sum(one == other for one, other in zip(ours, theirs, strict=True))
        if same < count:
            raise RuntimeError(f"{count:,} strategies: {count - same} labels differ from the loop's")
        log(f"clusters of {count:,}: {ours_s:.2f} s, by the loop {theirs_s:.2f} s")
        yield {"work": f"cluster/{count}", "against": "loop", "ratio": theirs_s / ours_s,
               "setting": f"{count:,} strategies of {embedded.shape[1]} numbers, {len(set(ours)):,} clusters",
               "ours_s": ours_s, "theirs_s": theirs_s, "identical": same, "compared": count, "same": True}


def timed(way: Callable[[Vectors, float], Sequence[int] | NDArray[np.int64]],
          embedded: Vectors) -> tuple[list[int], float]:
    """The labels it gives, and the CPU seconds of the quicker of two times."""
    seconds = []
    for _ in range(2):
        start = time.process_time()
        found = way(embedded, THRESHOLD)
        seconds.append(time.process_time() - start)
    return [int(label) for label in found], min(seconds)


def main(quick: bool = False) -> float:
    """Print a line for each number of strategies; returns the last ratio."""
    ratio = 0.0
    for row in rows(quick=quick, log=lambda line: print(line, file=sys.stderr)):
        ratio = row["ratio"]
        print(f"{row['setting']}: {ratio:.1f} times as fast as the loop, same labels")
    return ratio


if __name__ == "__main__":
    main("--quick" in sys.argv[1:])
