"""Texts as unit vectors, and what is decided by their cosines: near-duplicates and clusters. No torch.

The surprising choice: a decision never hangs on the last bits of a matrix product, which change with the size of a
batch. Two texts' cosine is their vectors' product in double precision, rounded to `DECIMALS`. The fast float32 product
finds the few comparisons that are near enough to be in doubt, and only those are computed that way.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dialoom.errors import ConfigError, ModelError

Vectors = NDArray[np.float32]

EMBEDDERS = "ngrams, ngrams:<low>-<high>, st:<sentence-transformers name>, hidden:<model>"
DECIMALS = 6  # float32 vectors hold no more
SLACK = 1e-4  # no float32 product of unit vectors of a few thousand numbers is wrong by as much
CHUNK = 512  # texts whose n-grams are counted at once: bounds the memory, changes no vector
LEADERS = 64  # likely leaders whose cosines with all texts are computed at once: changes no label


class Embedder(Protocol):
    """Anything that turns texts into vectors."""

    @property
    def name(self) -> str:
        """Tells kind and settings. Thresholds belong to a name: a cosine of one embedding means nothing in another."""
        ...

    def encode(self, texts: Sequence[str]) -> Vectors:
        """(texts, dimensions) rows of length 1, in order; a text's row does not depend on the other texts."""
        ...


def load_embedder(spec: str = "ngrams", *, device: str = "auto") -> Embedder:
    """The embedder that `spec` names.

    Args:
        spec: `ngrams`, `ngrams:<low>-<high>`, `st:<name>` (a sentence-transformers model) or `hidden:<model>` (any
            local model as `--model` takes it).
        device: where a neural one computes; `ngrams` takes no notice of it.
    Raises:
        ConfigError: if nothing of that name exists.
        ModelError: if its package or its model is not there.
    """
    kind, colon, rest = spec.partition(":")
    if kind == "ngrams" and (found := re.fullmatch(r"(?::(\d+)-(\d+))?", colon + rest)):
        return Ngrams(int(found[1]), int(found[2])) if rest else Ngrams()
    if kind == "st" and rest:
        return SentenceTransformer(rest, device=device)
    if kind == "hidden" and rest:
        from dialoom.models.hidden import HiddenStates

        return HiddenStates.load(rest, device=device)
    raise ConfigError(f"unknown embedding {spec!r}; embeddings are {EMBEDDERS}")


# --------------------------------------------------------------------------------------------- character n-grams


class Ngrams:
    """Counts of a text's character n-grams, hashed into a fixed number of signed buckets; nothing is fitted.

    Case and white space are evened out. A count weighs 1 + log(count). Equal on every machine.
    """

    def __init__(self, low: int = 3, high: int = 5, dimensions: int = 2048) -> None:
        """N-grams of `low` to `high` characters, a word's border being one. Raises ConfigError out of range."""
        if not 1 <= low <= high <= 16 or dimensions < 1:
            raise ConfigError(f"n-grams of {low} to {high} characters in {dimensions} buckets: expected "
                              "1 <= low <= high <= 16 and a bucket at least")
        self.low, self.high, self.dimensions = low, high, dimensions

    @property
    def name(self) -> str:
        """Such as `ngrams:3-5/2048`."""
        return f"ngrams:{self.low}-{self.high}/{self.dimensions}"

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Unit rows; a text too short for any n-gram gets the first axis."""
        found = np.zeros((len(texts), self.dimensions), dtype=np.float32)
        for start in range(0, len(texts), CHUNK):
            found[start:start + CHUNK] = self._rows(texts[start:start + CHUNK])
        return found

    def _rows(self, texts: Sequence[str]) -> NDArray[np.float64]:
        padded = [f" {' '.join(text.casefold().split())} " for text in texts]
        marks = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint64)
        lengths = np.array([len(text) for text in padded])
        owner = np.repeat(np.arange(len(texts)), lengths)
        room = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(marks))  # characters left, this one included
        owners, hashes = [], []
        rolling = np.zeros(len(marks), dtype=np.uint64)
        for size in range(1, self.high + 1):
            rolling = rolling[:len(marks) - size + 1] * _PRIME + marks[size - 1:]
            if size >= self.low:
                inside = room[:len(rolling)] >= size
                owners.append(owner[:len(rolling)][inside])
                hashes.append(_mixed(rolling[inside] ^ _SALTS[size]))
        return self._weighed(np.concatenate(owners), np.concatenate(hashes), len(texts))

    def _weighed(self, owners: NDArray[np.int64], hashes: NDArray[np.uint64], count: int) -> NDArray[np.float64]:
        order = np.lexsort((hashes, owners))
        owners, hashes = owners[order], hashes[order]
        first = np.flatnonzero(np.r_[True, (owners[1:] != owners[:-1]) | (hashes[1:] != hashes[:-1])][:len(owners)])
        weights = 1 + np.log(np.diff(np.r_[first, len(owners)]))
        owners, hashes = owners[first], hashes[first]
        buckets = (hashes >> np.uint64(1)) % np.uint64(self.dimensions)
        signs = np.where(hashes & np.uint64(1), 1.0, -1.0)
        places = owners * self.dimensions + buckets.astype(np.int64)
        rows = np.bincount(places, weights * signs, count * self.dimensions).reshape(count, self.dimensions)
        return _unit(rows)


_PRIME = np.uint64(1_099_511_628_211)
_SALTS = np.arange(17, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)  # tells n-grams of unequal length apart


def _mixed(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Every bit of the result depends on every bit of the hash. Source: the finaliser of splitmix64."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hashes ^ (hashes >> np.uint64(31))


def _unit(rows: NDArray[Any]) -> NDArray[np.float64]:
    """Rows of length 1; an empty row becomes the first axis."""
    rows = np.array(rows, dtype=np.float64)
    lengths = np.sqrt((rows * rows).sum(axis=1))
    rows[lengths == 0, 0] = 1.0
    return rows / np.where(lengths == 0, 1.0, lengths)[:, None]


# ------------------------------------------------------------------------------------------------------ others


class SentenceTransformer:
    """A model of the sentence-transformers package, by its name or folder."""

    def __init__(self, model: str, *, device: str = "auto") -> None:
        """Raises ModelError if the package or the model is not there."""
        try:
            import sentence_transformers
        except ImportError:
            raise ModelError(f"st:{model} needs a package that is not installed; `pip install sentence-transformers`, "
                             "or take the embedding ngrams") from None
        try:
            self._model = sentence_transformers.SentenceTransformer(
                model, device=None if device == "auto" else device, trust_remote_code=False,
                model_kwargs={"use_safetensors": True})
        except (OSError, ValueError, RuntimeError) as wrong:
            raise ModelError(f"st:{model} cannot be loaded ({' '.join(str(wrong).split()):.200}); give a folder or the "
                             "name of a sentence-transformers model") from None
        self.name = f"st:{model}"

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Unit rows."""
        if not texts:
            return np.zeros((0, 1), dtype=np.float32)
        rows = self._model.encode(list(texts), convert_to_numpy=True, show_progress_bar=False)
        return _unit(rows).astype(np.float32)


class CachedEmbedder:
    """Any embedder, asked for each distinct text once.

    Attributes:
        encoded: distinct texts encoded so far.
        calls: how often the embedder was called.
    """

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._rows: dict[str, Vectors] = {}
        self.calls = 0

    @property
    def name(self) -> str:
        """The embedder's own."""
        return self._embedder.name

    @property
    def encoded(self) -> int:
        return len(self._rows)

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Unit rows; the texts that were never asked for are one call."""
        new = [text for text in dict.fromkeys(texts) if text not in self._rows]
        if new:
            self.calls += 1
            self._rows.update(zip(new, self._embedder.encode(new), strict=True))
        return np.stack([self._rows[text] for text in texts]) if texts else self._embedder.encode([])


# ------------------------------------------------------------------------------------------------- similarity


def cosine(left: Vectors, right: Vectors) -> Vectors:
    """(n, m) cosines of (n, d) and (m, d) unit rows: one matrix product."""
    return left @ right.T


def nearest(queries: Vectors, pool: Vectors) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """For each of (n, d) unit rows the index of the nearest of (m, d) others, m > 0, and the cosine with it."""
    at, cosines = np.zeros(len(queries), dtype=np.int64), np.zeros(len(queries))
    for start in range(0, len(queries), CHUNK):
        part = slice(start, start + CHUNK)
        at[part] = cosine(queries[part], pool).argmax(axis=1)
        cosines[part] = _exact(queries[part], pool[at[part]])
    return at, cosines


def _exact(left: Vectors, right: Vectors) -> NDArray[np.float64]:
    """(n,) cosines of rows taken two by two, in double precision, rounded."""
    products: NDArray[np.float64] = (left.astype(np.float64) * right).sum(axis=1)
    return np.round(products, DECIMALS)


def _above(rough: Vectors, left: Vectors, right: Vectors, threshold: float) -> NDArray[np.bool_]:
    """Which cosines exceed the threshold, where `rough` are the products of `left` and `right`."""
    found = np.asarray(rough > threshold)
    rows, columns = np.nonzero(np.abs(rough - threshold) <= SLACK)
    for part in range(0, len(rows), CHUNK):
        at = slice(part, part + CHUNK)
        found[rows[at], columns[at]] = _exact(left[rows[at]], right[columns[at]]) > threshold
    return found


def greedy_distinct(embedded: Vectors, kept: Vectors, threshold: float) -> NDArray[np.bool_]:
    """Which candidates join a pool: those whose cosine with all of it is at most the threshold, one after the other.

    A candidate that joins counts for the later ones, so cutting the same candidates into other batches, each compared
    with what was kept before, lets the same ones in.

    Args:
        embedded: (n, d) unit rows of the candidates, in order.
        kept: (m, d) unit rows of the pool; m may be 0.
        threshold: in [-1, 1].
    Returns: (n,) True where the candidate joins.
    Source: the pool filter of ALOE (arXiv 2410.03642), with one matrix product for the batch.
    """
    pool = np.concatenate([kept, embedded]) if len(kept) else embedded
    near = _above(cosine(embedded, pool), embedded, pool, threshold)
    before = len(kept)
    joins = np.asarray(~near[:, :before].any(axis=1))
    for at in np.flatnonzero(joins):
        joins[at] = not (near[at, before:before + at] & joins[:at]).any()
    return joins


def leader_clusters(embedded: Vectors, threshold: float) -> NDArray[np.int64]:
    """Greedy leader clustering: the first text without a cluster leads one, and takes all that are nearer to it.

    In order, each text that has no cluster yet becomes a leader. It takes every text whose cosine with it is above the
    threshold and above that with its leader so far; equal ones stay. A text may change its leader, a leader never does.
    The order matters: the same texts in another order may fall into other clusters.

    Args:
        embedded: (n, d) unit rows.
        threshold: in [-1, 1); the cosine must be above it.
    Returns: (n,) the index of each text's leader.
    Source: IDEAS (arXiv 2404.11095), threshold 0.5.
    """
    leader_of = np.full(len(embedded), -1, dtype=np.int64)
    score = np.full(len(embedded), -np.inf, dtype=np.float32)
    for leader, rough in _leaders(embedded, leader_of):
        takes = _takes(embedded, leader, rough, (leader_of, score), threshold)
        takes[leader] = True
        score[takes], leader_of[takes] = rough[takes], leader
        score[leader] = np.inf
    return leader_of


def _leaders(embedded: Vectors, leader_of: NDArray[np.int64]) -> Iterator[tuple[int, Vectors]]:
    """Each leader in turn with its cosines to all; the caller fills `leader_of` in between.

    The next texts without a cluster are multiplied together; those that found a leader meanwhile are dropped.
    """
    start, block = 0, 1
    while len(ahead := start + np.flatnonzero(leader_of[start:] < 0)[:block]):
        led = 0
        for row, rough in zip(ahead, cosine(embedded[ahead], embedded), strict=True):
            if leader_of[row] < 0:
                led += 1
                yield int(row), rough
        start = int(ahead[-1]) + 1
        block = min(LEADERS, 2 * led)  # where clusters are large, few of those multiplied together come to lead


def _takes(embedded: Vectors, leader: int, rough: Vectors, state: tuple[NDArray[np.int64], Vectors],
           threshold: float) -> NDArray[np.bool_]:
    """Which texts a new leader takes, given each text's leader so far and its rough cosine with that."""
    leader_of, score = state
    takes = np.asarray((rough > threshold) & (rough > score))
    doubtful = np.flatnonzero((rough > threshold - SLACK) & (rough > score - 2 * SLACK)
                              & ((rough < threshold + SLACK) | (rough < score + 2 * SLACK)))
    if len(doubtful):
        now = _exact(embedded[doubtful], embedded[[leader]])
        led = leader_of[doubtful] >= 0
        held = np.where(led, _exact(embedded[doubtful], embedded[leader_of[doubtful]]), -np.inf)
        takes[doubtful] = (now > threshold) & (now > held)
    return takes
