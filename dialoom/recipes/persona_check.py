"""How alike personas are: the threshold for "the same person again", the spread of a pool, leaks between two sets.

The surprising choice: a threshold is measured, not chosen, since a cosine means something else in each embedding. Texts
known to be of different people are the seeds; texts that are the same again are the seeds with a quarter of their
sentences exchanged and the rest in another order.
"""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from dialoom.dialogue import content_id
from dialoom.embed import CHUNK, CachedEmbedder, Embedder, cosine, load_embedder, nearest
from dialoom.errors import ConfigError, DataError
from dialoom.files import read_json
from dialoom.scenarios.personas import KINDS, Persona, read_entries, sentences

THRESHOLDS = "threshold.json"
REWORDINGS = 4  # of each text
EXCHANGED = 0.25  # of a text's sentences: with more of them new, it is somebody else


@dataclass(frozen=True)
class Threshold:
    """Above this cosine two texts are the same again; holds for this embedding only.

    Attributes:
        embedding: name of the embedder.
        value: in [-1, 1].
        missed: share of rewordings that are at or below it; None where the value was given.
        refused: share of pairs of different texts that are above it; None where the value was given.
    """

    embedding: str
    value: float
    missed: float | None = None
    refused: float | None = None


def calibrate(embedder: Embedder, texts: Sequence[str], *, seed: int = 0) -> Threshold:
    """The cosine that best tells rewordings of `texts` from their different ones: fewest errors of both kinds in sum.

    Raises: DataError: if there are fewer than three texts of two sentences or more.
    """
    parts = [found for found in map(sentences, dict.fromkeys(texts)) if len(found) > 1]
    if len(parts) < 3:
        raise DataError(f"{len(parts)} texts of two or more sentences are too few to calibrate on; give --threshold")
    rng = random.Random(f"calibrate:{seed}:{content_id(parts)}")
    reworded = [_reworded(at, parts, rng) for at in range(len(parts)) for _ in range(REWORDINGS)]
    vectors = embedder.encode([*(" ".join(found) for found in parts), *reworded])
    own, again = vectors[:len(parts)], vectors[len(parts):]
    different = np.sort(cosine(own, own)[np.triu_indices(len(own), 1)])
    same = np.sort((np.repeat(own, REWORDINGS, axis=0) * again).sum(axis=1))
    borders = np.unique(np.concatenate([different, same]))
    missed = np.searchsorted(same, borders, side="right") / len(same)
    refused = 1 - np.searchsorted(different, borders, side="right") / len(different)
    best = int((missed + refused).argmin())
    value = round(float(borders[best] + borders[min(best + 1, len(borders) - 1)]) / 2, 3)
    return Threshold(embedder.name, value, float((same <= value).mean()), float((different > value).mean()))


def _reworded(at: int, parts: Sequence[Sequence[str]], rng: random.Random) -> str:
    """A text with some of its sentences exchanged for another text's, in another order."""
    own, other = list(parts[at]), list(rng.choice([part for index, part in enumerate(parts) if index != at]))
    rng.shuffle(own)
    count = min(math.ceil(EXCHANGED * len(own)), len(own) - 1, len(other))
    return " ".join([*own[count:], *rng.sample(other, count)])


def diversity(vectors: np.ndarray[tuple[int, int], np.dtype[np.float32]]) -> dict[str, float]:
    """Spread of (n, d) unit rows: mean and largest cosine of two, and each one's cosine with its nearest on average."""
    count = len(vectors)
    if count < 2:
        return {"mean_cosine": math.nan, "max_cosine": math.nan, "nearest_cosine": math.nan}
    closest = np.empty(count)
    for start in range(0, count, CHUNK):
        block = cosine(vectors[start:start + CHUNK], vectors)
        block[np.arange(len(block)), np.arange(start, start + len(block))] = -np.inf
        closest[start:start + CHUNK] = block.max(axis=1)
    total = float(np.square(vectors.astype(np.float64).sum(axis=0)).sum())
    return {"mean_cosine": (total - count) / (count * (count - 1)), "max_cosine": float(closest.max()),
            "nearest_cosine": float(closest.mean())}


# ----------------------------------------------------------------------------------------------------- leaks


@dataclass(frozen=True)
class Leak:
    """A text for evaluation that training has as well, or nearly: where both stand, and their cosine."""

    part: str
    training: str
    evaluation: str
    cosine: float
    copies: int = 1

    def __str__(self) -> str:
        same = "is the same as" if self.cosine >= 1 else f"has cosine {self.cosine:.3f} with"
        more = f" (and {self.copies - 1} more with this {self.part})" if self.copies > 1 else ""
        return f"{self.evaluation}{more}: its {self.part} {same} {self.training}"


def leaks(training: Iterable[Persona], evaluation: Iterable[Persona], embedder: Embedder,
          thresholds: Mapping[str, float]) -> list[Leak]:
    """Which personas for evaluation are too near one for training, one leak for each distinct text; names are ids.

    Args:
        thresholds: for "profile", "personality" or both; a part without one is not looked at.
    """
    sides = [[(one.id, {"profile": one.profile, "personality": one.personality}) for one in side]
             for side in (training, evaluation)]
    return [leak for part, threshold in thresholds.items()
            for leak in _leaks(part, *([(name, texts[part]) for name, texts in side] for side in sides),
                               embedder=embedder, threshold=threshold)]


def _leaks(part: str, training: Iterable[tuple[str, str]], evaluation: Sequence[tuple[str, str]], *,
           embedder: Embedder, threshold: float) -> list[Leak]:
    """Leaks of one part, out of (name, text) of both sides."""
    first: dict[str, str] = {}
    for name, text in training:
        first.setdefault(text, name)
    copies = Counter(text for _, text in evaluation)
    asked: dict[str, str] = {}
    for name, text in evaluation:
        asked.setdefault(text, name)
    if not first or not asked:
        return []
    at, cosines = nearest(embedder.encode(list(asked)), embedder.encode(list(first)))
    names = list(first.values())
    return [Leak(part, names[at[row]], name, float(cosines[row]), copies[text])
            for row, (text, name) in enumerate(asked.items()) if cosines[row] > threshold or text in first]


def check_files(training: Path, evaluation: Path, *, embedding: str = "ngrams", threshold: float | None = None,
                parts: Sequence[str] = KINDS, device: str = "auto", log: Callable[[str], None] = print) -> list[Leak]:
    """Compare two files of personas, profiles or personalities; says what was compared, and each leak.

    Args:
        threshold: None: the one stored beside `training` for this embedding, else calibrated on its texts.
        parts: which parts of personas to compare. Files of plain strings are compared whole.
    Raises: DataError: if the files have nothing that could be compared.
    """
    sides = [read_entries(path, on_bad=lambda message: log(f"note: {message}")) for path in (training, evaluation)]
    embedder = CachedEmbedder(load_embedder(embedding, device=device))
    found: list[Leak] = []
    compared = 0
    for part in (*parts, "text"):
        both = [[(entry.where, text) for entry in side if (text := getattr(entry, part))] for side in sides]
        if not all(both):
            continue
        compared += 1
        limit = _threshold(training, part, threshold, embedder, [text for _, text in both[0]])
        new = _leaks(part, *both, embedder=embedder, threshold=limit.value)
        found += new
        log(f"{part}: {len({text for _, text in both[1]})} for evaluation, {len(new)} of them in training as well"
            f" (cosine over {limit.value:g} by {limit.embedding})")
        for leak in new:
            log(f"  {leak}")
    if not compared:
        raise DataError(f"{training} and {evaluation} hold no texts of one kind; expected both to be personas, or both "
                        "to be plain strings")
    return found


def _threshold(training: Path, part: str, given: float | None, embedder: Embedder, texts: Sequence[str]) -> Threshold:
    if given is not None:
        return Threshold(embedder.name, given)
    kind = part if part in KINDS else {"profiles": "profile", "personalities": "personality"}.get(training.stem, "")
    stored = read_thresholds(training.parent).get(kind)
    if stored is not None and stored.embedding == embedder.name:
        return stored
    return calibrate(embedder, texts)


def write_thresholds(thresholds: Mapping[str, Threshold]) -> str:
    """The content of `threshold.json`."""
    return json.dumps({kind: asdict(one) for kind, one in thresholds.items()}, indent=1) + "\n"


def read_thresholds(folder: Path) -> dict[str, Threshold]:
    """The thresholds stored in a folder by kind; none where there is no file. Raises ConfigError if it is damaged."""
    path, hint = folder / THRESHOLDS, "give --threshold, or remove the file"
    found = read_json(path, dict, default={}, error=ConfigError, hint=hint)
    try:
        thresholds = {kind: Threshold(**value) for kind, value in found.items()}
    except TypeError as wrong:
        raise ConfigError(f"{path}: cannot be read ({wrong}); {hint}") from None
    for kind, one in thresholds.items():
        if not isinstance(one.embedding, str) or type(one.value) not in (int, float) or not -1 <= one.value <= 1:
            raise ConfigError(f"{path}: {kind}: expected the name of an embedding and a cosine, found "
                              f"{one.embedding!r:.40} and {one.value!r:.40}; {hint}")
    return thresholds
