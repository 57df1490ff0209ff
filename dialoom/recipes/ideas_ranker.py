"""The ranker of IDEAS: which strategies may follow an answer, as a probability for each.

A bi-encoder: frozen text vectors of the last answer and of the strategies, each through a small trained head, meet in
one space. Strategies are encoded once, an answer once a turn. The surprising choice: negatives are not drawn, they are
weights: with a bi-encoder all strategies are scored anyway, so the loss takes the expectation over in-batch, random and
hard negatives. Training needs torch for seconds; scoring is NumPy, rounded, so that no batch size decides a threshold.
"""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from dialoom.config import Config
from dialoom.dialogue import Dialogue, content_id
from dialoom.embed import DECIMALS, Embedder
from dialoom.errors import ConfigError, DataError, StoreError
from dialoom.evals.alignment_roles import USER
from dialoom.files import read_json
from dialoom.recipes.ideas_platt import platt, sigmoid
from dialoom.recipes.ideas_simulator import NO_ANSWER, labels_of
from dialoom.recipes.ideas_strategies import Record, Strategies
from dialoom.store import write_whole

HEADS, CARD = "ranker.safetensors", "ranker.json"
NEEDED = {"answer", "answer_bias", "bias", "strategies", "mean", "spread", "calibration"}
ROWS = 1024  # answers scored at once: bounds the memory, changes no score

Array = NDArray[np.float64]
Log = Callable[[str, int, int], None]


class RankerConfig(Config):
    """How the ranker's heads are trained, and what it lets through."""

    eta: float = Field(default=0.5, ge=0, le=1)
    """A strategy is offered after an answer if its probability is above this."""
    width: int = Field(default=64, ge=1)
    """Dimensions of the space in which answers and strategies meet."""
    decays: tuple[float, ...] = Field(default=(0.1, 0.3, 1.0), min_length=1)
    """Ridge penalties of the answer's head to try; the held-out part picks one."""
    epochs: int = Field(default=300, ge=1)
    """Passes over the answers at most; training stops before if the held-out part does not get better."""
    patience: int = Field(default=40, ge=1)
    """Stop after this many passes without a better held-out loss."""
    batch: int = Field(default=4096, ge=2)
    """Answers of one optimiser step; up to as many, every step sees all of them."""
    lr: float = Field(default=0.01, gt=0)
    """Adam's learning rate."""
    hard: int = Field(default=5, ge=0)
    """How many strategies nearest to the true one are hard negatives."""
    held_out: float = Field(default=0.2, gt=0, lt=1)
    """Share of the dialogues that decide on decay and passes and calibrate the probability."""


class Positive(NamedTuple):
    """What really happened: after this answer of a dialogue the user went on with this (high-level) strategy."""

    dialogue: str
    answer: str
    strategy: str


@dataclass(frozen=True)
class Quality:
    """How well a ranker tells what follows an answer.

    Attributes:
        answers: distinct answers asked about.
        auc: area under the ROC curve over all (answer, strategy) pairs; 0.5 is chance.
        recall: k -> share of what followed that is among the k best.
        error: mean gap between probability and frequency in ten bins (expected calibration error), positives and
            negatives weighing the same in sum.
    """

    answers: int
    auc: float
    recall: Mapping[int, float]
    error: float


def positives_of(dialogues: Sequence[Dialogue], records: Sequence[Record],
                 strategies: Strategies) -> tuple[list[Positive], Counter[str]]:
    """One positive for each record whose strategy maps to a high-level one and whose turn follows an answer.

    Returns: the positives, and how many records were left out by reason.
    """
    labels, left_out = labels_of(dialogues, records, strategies)
    found = []
    for dialogue in dialogues:
        for before, turn in zip((None, *dialogue.turns), dialogue.turns, strict=False):
            strategy = labels.get((dialogue.scenario.id, turn.id))
            if strategy is None:
                continue
            if before is None or before.speaker == USER:
                left_out[NO_ANSWER] += 1
            else:
                found.append(Positive(dialogue.scenario.id, before.text, strategy))
    return found, left_out


class Ranker:
    """Probabilities that a strategy follows an answer.

    A probability means: this pair of answer and strategy is one that happened and not one with a strategy drawn at
    random, if both were equally many. So above 0.5 stands what follows such an answer more often than chance.

    Attributes:
        strategies: the columns of `scores`.
        config: what the heads were trained with.
        fallbacks: how many answers `select` has found nothing for so far.
    """

    def __init__(self, strategies: Sequence[str], embedder: Embedder, heads: Mapping[str, Array],
                 config: RankerConfig) -> None:
        """`heads` are what `fit` trained; use `fit` or `load`."""
        self.strategies = tuple(strategies)
        self.config = config
        self.fallbacks = 0
        self._embedder = embedder
        self._heads = {name: np.asarray(value, dtype=np.float64) for name, value in heads.items()}

    @classmethod
    def fit(cls, positives: Sequence[Positive], strategies: Sequence[str], embedder: Embedder, *,
            config: RankerConfig | None = None, seed: int = 0, out: Path | None = None,
            log: Log = lambda label, done, total: None) -> Ranker:
        """Train both heads on what followed what; equal arguments give an equal ranker.

        Args:
            positives: their strategies all in `strategies`. A strategy that followed the same answer (case and white
                space aside) anywhere else is no negative for it.
            strategies: high-level ones, each once.
            out: takes `bad_batch.json` where a loss is no number; None: its answers are named in the error only.
        Raises:
            DataError: with fewer than two strategies or two dialogues, or a positive of an unknown strategy.
            TrainingError: if a loss or gradient is not finite, naming the step and its answers.
        """
        config = config or RankerConfig()
        data = _Data.of(positives, strategies)
        training = _Training(data, embedder.encode(data.answers).astype(np.float64),
                             embedder.encode(strategies).astype(np.float64), config, seed, out)
        trials = []
        for at, decay in enumerate(config.decays):
            log("training the ranker", at, len(config.decays) + 1)
            trials.append(training.trial(decay))
        log("training the ranker", len(config.decays), len(config.decays) + 1)
        return cls(strategies, embedder, training.final(min(trials, key=lambda one: one.loss)), config)

    def scores(self, answers: Sequence[str]) -> Array:
        """(answers, strategies) probabilities in 0..1; each distinct answer is encoded once."""
        distinct = list(dict.fromkeys(answers))
        rows: dict[str, Array] = {}
        for start in range(0, len(distinct), ROWS):
            part = distinct[start:start + ROWS]
            logits = _logits(self._heads, self._embedder.encode(part).astype(np.float64))
            rows.update(zip(part, np.round(sigmoid(logits), DECIMALS), strict=True))
        return np.stack([rows[text] for text in answers]) if rows else np.zeros((0, len(self.strategies)))

    def top(self, answers: Sequence[str], k: int) -> NDArray[np.int64]:
        """(answers, min(k, strategies)) indices of the best strategies, best first; of equal ones the first listed."""
        return np.argsort(-self.scores(answers), axis=1, kind="stable")[:, :k]

    def select(self, answers: Sequence[str], *, keys: Sequence[str], size: int = 50,
               eta: float | None = None) -> list[list[str]]:
        """The strategies to offer after each answer: all above `eta` in random order, the first `size` of them.

        Where none is above `eta`, `size` random ones; `fallbacks` counts these answers.

        Args:
            keys: one for each answer, seeding its draw; another key for another try.
            eta: in 0..1; None: the config's.
        Source: IDEAS (arXiv 2404.11095), where the ranker's label decides (eta 0.5) and `size` is 50.
        """
        eta = self.config.eta if eta is None else eta
        found = []
        for row, key in zip(self.scores(answers), keys, strict=True):
            passed = [self.strategies[at] for at in np.flatnonzero(row > eta)]
            self.fallbacks += not passed
            pool = passed or self.strategies
            found.append(random.Random(f"select:{key}").sample(pool, min(size, len(pool))))
        return found

    def save(self, folder: str | Path) -> None:
        """Write the heads as safetensors, strategies and settings as JSON."""
        from safetensors.numpy import save
        card = {"strategies": self.strategies, "embedding": self._embedder.name, "config": self.config.model_dump()}
        write_whole(Path(folder) / HEADS, save({name: np.ascontiguousarray(one) for name, one in self._heads.items()}))
        write_whole(Path(folder) / CARD, json.dumps(card, ensure_ascii=False, indent=1) + "\n")

    @classmethod
    def load(cls, folder: str | Path, embedder: Embedder) -> Ranker:
        """The ranker that was saved there.

        Raises:
            StoreError: if it cannot be read.
            ConfigError: if it was trained with another embedding.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load
        try:
            card = read_json(Path(folder) / CARD, dict)
            heads = load((Path(folder) / HEADS).read_bytes())
            name, strategies, config = card["embedding"], card["strategies"], RankerConfig(**card["config"])
            if len(heads["strategies"]) != len(strategies) or not set(heads) >= NEEDED:
                raise ValueError(f"{HEADS} does not go with {CARD}")
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as wrong:
            raise StoreError(f"{folder}: no ranker can be read there ({wrong}); train it again") from None
        if name != embedder.name:
            raise ConfigError(f"{folder}: this ranker was trained on the embedding {name}, not {embedder.name}; give "
                              "that one, or train a ranker anew")
        return cls(strategies, embedder, heads, config)


def measure(ranker: Ranker, positives: Sequence[Positive], *, ks: Sequence[int] = (5, 50)) -> Quality:
    """How well the ranker tells what followed the answers of held-out dialogues.

    Where several strategies are equally apt and one is taken, what can be reached is below 1: of 16 strategies 6 of
    which fit, no ranker by the answer alone is above an AUC of 0.83.

    Raises: DataError: if there is nothing to measure on, or a positive names a strategy unknown to the ranker.
    """
    data = _Data.of(positives, ranker.strategies, dialogues=1)
    counts, _ = data.weights()
    return quality(ranker, data.answers, counts > 0, ks=ks, counts=counts)


def quality(ranker: Ranker, answers: Sequence[str], apt: NDArray[np.bool_], *, ks: Sequence[int] = (5, 50),
            counts: Array | None = None) -> Quality:
    """How well the ranker tells which strategies are apt, where that is known.

    Args:
        apt: (answers, strategies) True where the strategy fits the answer.
        counts: (answers, strategies) how often each followed, for the recall; None: once where apt.
    Raises: DataError: if all pairs are apt, or none is.
    """
    from sklearn.metrics import roc_auc_score
    if apt.all() or not apt.any():
        raise DataError(f"{apt.sum()} of {apt.size} pairs of answer and strategy are apt: there is nothing to tell "
                        "apart; measure on more answers")
    scores = ranker.scores(answers)
    weights = apt.astype(np.float64) if counts is None else counts
    places = np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1, kind="stable")
    recall = {k: float((weights * (places < k)).sum() / weights.sum()) for k in ks}
    return Quality(len(answers), float(roc_auc_score(apt.ravel(), scores.ravel())), recall,
                   _calibration_error(scores.ravel(), apt.ravel()))


def _calibration_error(scores: Array, true: NDArray[np.bool_]) -> float:
    weights = np.where(true, 0.5 / max(1, true.sum()), 0.5 / max(1, (~true).sum()))
    bins = np.minimum((scores * 10).astype(np.int64), 9)
    gaps = np.bincount(bins, weights * (scores - true), 10)
    return float(np.abs(gaps).sum())


# ------------------------------------------------------------------------------------------------ training


@dataclass(frozen=True)
class _Data:
    """Positives by distinct answer.

    Attributes:
        answers: the distinct answers as first written.
        of_answer, of_strategy: for each positive the index of its answer and of its strategy.
        dialogues: for each positive its dialogue.
        strategies: how many there are.
    """

    answers: list[str]
    of_answer: NDArray[np.int64]
    of_strategy: NDArray[np.int64]
    dialogues: list[str]
    strategies: int

    @classmethod
    def of(cls, positives: Sequence[Positive], strategies: Sequence[str], *, dialogues: int = 2) -> _Data:
        column = {text: at for at, text in enumerate(strategies)}
        if len(column) < max(2, len(strategies)):
            raise DataError(f"a ranker tells strategies apart and got {len(strategies)}, {len(column)} of them "
                            "different; give two or more, each once, or use the policy random")
        if len({one.dialogue for one in positives}) < dialogues:
            raise DataError(f"{len(positives)} answers with what followed them, fewer than {dialogues} dialogues: too "
                            "little for a ranker; give more dialogues, or use the policy random")
        unknown = next((one for one in positives if one.strategy not in column), None)
        if unknown is not None:
            raise DataError(f"dialogue {unknown.dialogue}: its strategy {unknown.strategy!r} is none of the "
                            f"{len(column)} given; map strategies to high-level ones first")
        first: dict[str, str] = {}
        for one in positives:
            first.setdefault(_plain(one.answer), one.answer)
        row = {text: at for at, text in enumerate(first)}
        return cls(list(first.values()), np.array([row[_plain(one.answer)] for one in positives], dtype=np.int64),
                   np.array([column[one.strategy] for one in positives], dtype=np.int64),
                   [one.dialogue for one in positives], len(column))

    def held_out(self, share: float, seed: int) -> NDArray[np.bool_]:
        """Which positives are held out: those of a seeded share of the dialogues, of one at least and not of all."""
        order = sorted(set(self.dialogues), key=lambda name: content_id("held out", seed, name))
        chosen = set(order[:min(len(order) - 1, max(1, round(share * len(order))))])
        return np.array([name in chosen for name in self.dialogues])

    def weights(self, among: NDArray[np.bool_] | None = None, rows: NDArray[np.int64] | None = None, *,
                known: NDArray[np.bool_] | None = None) -> tuple[Array, Array]:
        """How often each strategy followed each answer, and weights of even negatives that sum to as much a row.

        Args:
            among: the positives that count; None: all.
            rows: indices of answers; None: all.
            known: the positives that are no negatives; None: all.
        """
        rows = np.arange(len(self.answers)) if rows is None else rows
        place = np.full(len(self.answers), -1)
        place[rows] = np.arange(len(rows))
        at = place[self.of_answer]
        counts, free = np.zeros((len(rows), self.strategies)), np.ones((len(rows), self.strategies))
        some, no_negatives = ((at >= 0) & (True if one is None else one) for one in (among, known))
        np.add.at(counts, (at[some], self.of_strategy[some]), 1.0)
        free[at[no_negatives], self.of_strategy[no_negatives]] = 0.0
        return counts, _spread(free, counts)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _spread(weights: Array, counts: Array) -> Array:
    """`weights` scaled to sum, row by row, to what `counts` do; rows without weight stay zero."""
    total = weights.sum(axis=1, keepdims=True)
    found: Array = weights * counts.sum(axis=1, keepdims=True) / np.where(total > 0, total, 1.0)
    return found


class _Trial(NamedTuple):
    """What a decay led to on the held-out part: the calibrated loss (nats), after how many passes, the calibration."""

    loss: float
    decay: float
    passes: int
    calibration: Array


class _Training:
    """Trainings of the heads on embedded texts.

    Texts are centred, since what all have in common tells nothing apart, and scaled by one number: an embedding's large
    dimensions are its telling ones.
    """

    def __init__(self, data: _Data, answers: Array, candidates: Array, config: RankerConfig, seed: int,
                 out: Path | None = None) -> None:
        self.data, self.config, self.seed, self.out = data, config, seed, out
        self.held_out = data.held_out(config.held_out, seed)
        self.mean, self.spread = answers.mean(axis=0), max(float(answers.std(axis=0).mean()), 1e-6)
        self.answers = (answers - self.mean) / self.spread
        centred = candidates - candidates.mean(axis=0)
        self.candidates = centred / max(float(centred.std()), 1e-6)
        self.near = _nearest(candidates, config.hard)

    def trial(self, decay: float) -> _Trial:
        """One training without the held-out part, stopped where that is told best."""
        import torch
        rows = np.unique(self.data.of_answer[self.held_out])
        rows = np.random.default_rng(self.seed).permutation(rows)[:self.config.batch]  # enough to tell
        checked = self._batch(rows, self.held_out, mixed=False)
        best, kept, passes = math.inf, dict[str, Array](), 0
        for number, heads in enumerate(self._passes(~self.held_out, decay), 1):
            with torch.no_grad():
                loss = self._finite("held-out loss", self._loss(heads, *checked), rows)
            if loss < best:
                best, kept, passes = loss, self._exported(heads), number
            elif number - passes >= self.config.patience:
                break
        counts, negatives = self.data.weights(self.held_out, rows)
        logits = _logits(kept, self.answers[rows] * self.spread + self.mean)
        slope, offset = platt(logits, counts, negatives)
        logits = slope * logits + offset
        loss = float((counts * np.logaddexp(0, -logits) + negatives * np.logaddexp(0, logits)).sum() / counts.sum())
        return _Trial(loss, decay, passes, np.array([slope, offset]))

    def final(self, trial: _Trial) -> dict[str, Array]:
        """The heads trained on everything, as long and with the decay as it was best, calibrated as then."""
        passes = islice(self._passes(np.ones_like(self.held_out), trial.decay), trial.passes - 1, None)
        return self._exported(next(passes)) | {"calibration": trial.calibration}

    def _passes(self, among: NDArray[np.bool_], decay: float) -> Iterator[dict[str, Any]]:
        """The heads after each pass over the positives `among`; always the same objects."""
        import torch
        seen = np.unique(self.data.of_answer[among])
        parts, self.steps = -(-len(seen) // self.config.batch), 0
        whole = self._batch(seen, among) if parts == 1 else None
        rng, weight = np.random.default_rng(self.seed), 0.5 * decay * self.answers.shape[1] / int(among.sum())
        heads = self._fresh(torch.Generator().manual_seed(self.seed))
        optimiser = torch.optim.Adam(heads.values(), lr=self.config.lr)
        for _ in range(self.config.epochs):
            for rows in (seen,) if whole else np.array_split(rng.permutation(seen), parts):
                self.steps += 1
                optimiser.zero_grad()
                loss = self._loss(heads, *(whole or self._batch(rows, among)))
                self._finite("loss", loss, rows)
                (loss + weight * heads["answer"].square().sum()).backward()
                self._finite("gradient", torch.nn.utils.get_total_norm([one.grad for one in heads.values()]), rows)
                optimiser.step()
            yield heads

    def _finite(self, what: str, value: Any, rows: NDArray[np.int64]) -> float:
        """The value as a number. Raises TrainingError, with this step's answers in a file, where it is none."""
        if math.isfinite(found := float(value.detach())):
            return found
        from dialoom.train.bad_batch import bad_batch
        raise bad_batch(self.out, self.steps, f"{what} of the ranker", found, [f"answer {row}" for row in rows],
                        advice=f"look at the embedding's vectors, or lower lr (now {self.config.lr:g})",
                        texts=[self.data.answers[row] for row in rows])

    def _fresh(self, generator: Any) -> dict[str, Any]:
        """Heads to train: random directions for the strategies, nearly nothing for the answers."""
        import torch
        width, size = self.config.width, self.answers.shape[1]

        def normal(scale: float) -> Any:
            drawn = torch.randn(size, width, generator=generator, dtype=torch.float64)
            return (drawn * scale / size ** 0.5).requires_grad_()

        return {"answer": normal(0.1), "strategy": normal(1.0),
                "answer_bias": torch.zeros(width, dtype=torch.float64, requires_grad=True),
                "bias": torch.zeros(1, dtype=torch.float64, requires_grad=True)}

    def _batch(self, rows: NDArray[np.int64], among: NDArray[np.bool_], mixed: bool = True) -> tuple[Any, Any, Any]:
        """Answers, weights of their positives and of their negatives.

        Negatives are all strategies alike, or (`mixed`) a third each of these, of what followed the batch's other
        answers, and of the strategies nearest to what followed. A third that is empty goes to all alike.
        """
        import torch
        counts, negatives = self.data.weights(among, rows, known=among if mixed else None)
        if mixed:
            free, near = negatives > 0, np.zeros_like(counts)
            row, column = np.nonzero(counts)
            np.add.at(near, (row[:, None], self.near[column]), counts[row, column][:, None])
            others = [_spread(free * one, counts) for one in (counts.sum(axis=0), near)]
            negatives = (negatives + sum(np.where(one.any(axis=1, keepdims=True), one, negatives)
                                         for one in others)) / 3
        return torch.from_numpy(self.answers[rows]), torch.from_numpy(counts), torch.from_numpy(negatives)

    def _strategies(self, heads: Mapping[str, Any]) -> Any:
        import torch
        return torch.nn.functional.normalize(torch.from_numpy(self.candidates) @ heads["strategy"], dim=1)

    def _loss(self, heads: Mapping[str, Any], answers: Any, positives: Any, negatives: Any) -> Any:
        """Mean binary cross-entropy (nats) of a positive and its negatives, which weigh as much together."""
        from torch.nn.functional import softplus
        logits = (answers @ heads["answer"] + heads["answer_bias"]) @ self._strategies(heads).T + heads["bias"]
        return (positives * softplus(-logits) + negatives * softplus(logits)).sum() / positives.sum()

    def _exported(self, heads: Mapping[str, Any]) -> dict[str, Array]:
        """What a ranker needs: the answer's head, and the strategies as they stand in the common space."""
        found = {name: one.detach().numpy().copy() for name, one in heads.items() if name != "strategy"}
        return found | {"strategies": self._strategies(heads).detach().numpy().copy(), "mean": self.mean,
                        "spread": np.array([self.spread]), "calibration": np.array([1.0, 0.0])}


def _logits(heads: Mapping[str, Array], answers: Array) -> Array:
    """(n, strategies) calibrated logits of (n, d) embedded answers.

    A strategy's vector is a direction; an answer's keeps its length, which is how much the answer tells.
    """
    found = (answers - heads["mean"]) / heads["spread"] @ heads["answer"] + heads["answer_bias"]
    slope, offset = heads["calibration"]
    logits: Array = slope * (found @ heads["strategies"].T + heads["bias"]) + offset
    return logits


def _nearest(vectors: Array, count: int) -> NDArray[np.int64]:
    """(n, min(count, n - 1)) the nearest others of each row."""
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -np.inf)
    return np.argsort(-cosines, axis=1, kind="stable")[:, :min(count, len(cosines) - 1)]
