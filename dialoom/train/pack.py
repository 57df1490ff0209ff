"""Packing: token sequences that share beginnings become one row in which every shared token stands once.

The packer sees token ids only. It sorts the sequences, merges what neighbours share and so finds whatever sharing there
is: debate trees, many replies to one prompt, dialogues that go on. Log-probabilities of packed and of flat sequences
agree to rounding; the flat way, one row per sequence, stays as the reference and for models that cannot be packed.
"""

from __future__ import annotations

import bisect
import operator
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dialoom.errors import DataError, DialoomError
from dialoom.models.exact import attention, is_same, why_not_replaceable
from dialoom.train.cross_entropy import target_logprobs
from dialoom.train.tree_attention import NAME, Segment, Tree

Ints = NDArray[np.int64]
Logprobs = Callable[[Any, Sequence["TokenPath"]], Tensor]
"""Gives (paths,) summed target log-probabilities of the paths under a model's module."""


@dataclass(frozen=True, eq=False)
class TokenPath:
    """A token sequence and which of its tokens are scored.

    Attributes:
        ids: the whole sequence.
        spans: half-open (start, stop) index pairs of the scored tokens, in order, none before index 1.
    """

    ids: Ints
    spans: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, ids: Sequence[int], *spans: tuple[int, int]) -> TokenPath:
        """Raises DataError if a span is empty, starts before index 1, or reaches beyond the sequence."""
        for start, stop in spans:
            if not 1 <= start < stop <= len(ids):
                raise DataError(f"span {start}:{stop} of a sequence of {len(ids)} tokens cannot be scored; "
                                "needed is 1 <= start < stop <= length")
        return cls(np.asarray(ids, dtype=np.int64), spans)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def targets(self) -> int:
        """How many tokens are scored."""
        return sum(stop - start for start, stop in self.spans)

    @property
    def key(self) -> bytes:
        """Sorts as the ids do; a sequence sorts before its continuations."""
        return self.ids.astype(">u4").tobytes()


@dataclass(frozen=True, eq=False)
class Packed:
    """Sequences as one row of unique tokens in depth-first order.

    Attributes:
        ids, positions: (tokens,) ids, and depths in tokens.
        tree: who sees whom.
        predictors: (targets,) the row, for each distinct scored token, of the token before it on its path.
        targets: (targets,) ids of the distinct scored tokens.
        spread, owner: (scored,) which target each path's each scored token is, and which path that is; path after path.
        paths: how many sequences.
    """

    ids: Tensor
    positions: Tensor
    tree: Tree
    predictors: Tensor
    targets: Tensor
    spread: Tensor
    owner: Tensor
    paths: int


def pack(paths: Sequence[TokenPath]) -> Packed:
    """Merge shared beginnings; the result does not depend on the order of `paths`, but for `owner`."""
    keys = [path.key for path in paths]
    order = sorted(range(len(paths)), key=keys.__getitem__)
    news: list[Ints] = []
    depths: list[Ints] = []
    scored: list[tuple[int, Ints, Ints]] = []
    shared_lengths: list[int] = []
    rows = np.empty(0, dtype=np.int64)  # rows of the current path's tokens
    size, before = 0, None
    for at in order:
        path = paths[at]
        shared = _shared(before.ids, path.ids) if before is not None else 0
        new = len(path) - shared
        rows = np.concatenate([rows[:shared], np.arange(size, size + new)])
        news.append(path.ids[shared:])
        depths.append(np.arange(shared, len(path)))
        shared_lengths.append(shared)
        scored += [(at, rows[start:stop], rows[start - 1:stop - 1]) for start, stop in path.spans]
        size, before = size + new, path
    scored.sort(key=operator.itemgetter(0))
    own = np.concatenate([span for _, span, _ in scored]) if scored else np.empty(0, dtype=np.int64)
    prior = np.concatenate([span for *_, span in scored]) if scored else own
    owner = np.repeat([at for at, *_ in scored], [len(span) for _, span, _ in scored]).astype(np.int64)
    distinct, first, spread = np.unique(own, return_index=True, return_inverse=True)
    ids = np.concatenate(news)
    segments = _segments(shared_lengths, [len(new) for new in news])
    return Packed(torch.from_numpy(ids), torch.from_numpy(np.concatenate(depths)), Tree(segments, size),
                  torch.from_numpy(prior[first]), torch.from_numpy(ids[distinct]),
                  torch.from_numpy(spread.astype(np.int64)), torch.from_numpy(owner), len(paths))


def _shared(left: Ints, right: Ints) -> int:
    """How many tokens two sequences begin with in common."""
    size = min(len(left), len(right))
    differs = left[:size] != right[:size]
    first = int(differs.argmax()) if size else 0
    return first if size and differs[first] else size


def _segments(shared_lengths: Sequence[int], new_lengths: Sequence[int]) -> tuple[Segment, ...]:
    """Cut the depth-first row into runs without a branch.

    Args:
        shared_lengths: for each sequence in sorted order, how many tokens it shares with the one before.
        new_lengths: how many it adds.
    """
    closed: list[Segment] = []
    path: list[tuple[int, int, int]] = []  # depth, first row and length of the segments on the current path
    size = 0
    for shared, new in zip(shared_lengths, new_lengths, strict=True):
        while path and path[-1][0] >= shared:
            depth, start, length = path.pop()
            closed.append(Segment(start, start + length, size, depth == 0))
        if path and path[-1][0] + path[-1][2] > shared:  # a branch within the segment: its rest ends here
            depth, start, length = path.pop()
            keep = shared - depth
            closed.append(Segment(start + keep, start + length, size, False))
            path.append((depth, start, keep))
        if path and sum(path[-1][1:]) == size and path[-1][0] + path[-1][2] == shared:  # goes on without a branch
            depth, start, length = path.pop()
            path.append((depth, start, length + new))
        elif new:
            path.append((shared, size, new))
        size += new
    closed += [Segment(start, start + length, size, depth == 0) for depth, start, length in path]
    return tuple(sorted(closed))


def unique_tokens(paths: Iterable[TokenPath]) -> int:
    """How many tokens the packed row of `paths` has."""
    ordered = sorted(paths, key=lambda path: path.key)
    return sum(len(path) - (_shared(ordered[at - 1].ids, path.ids) if at else 0) for at, path in enumerate(ordered))


class _Row:
    """The sorted sequences of one growing bin, and how many tokens they have packed."""

    def __init__(self) -> None:
        self.keys: list[bytes] = []
        self.ids: list[Ints] = []
        self.tokens = 0

    def add(self, group: Sequence[TokenPath], packed: bool) -> None:
        for path in group:
            key = path.key
            at = bisect.bisect(self.keys, key)
            shared = max((_shared(self.ids[near], path.ids) for near in (at - 1, at) if 0 <= near < len(self.ids)),
                         default=0)
            self.keys.insert(at, key)
            self.ids.insert(at, path.ids)
            self.tokens += len(path) - (shared if packed else 0)


def bins(groups: Sequence[Sequence[TokenPath]], budget: int, *, packed: bool = True) -> list[list[int]]:
    """Share out groups of sequences (a pair's two, say) into rows of at most `budget` tokens.

    Neighbours in token order stay together, so a tree too large for one row is split at its subtrees. A group larger
    than the budget gets a row of its own: groups are never torn.

    Args:
        packed: count shared tokens once; otherwise each sequence in full.
    Returns: indices into `groups`, a list for each row.
    """
    order = sorted(range(len(groups)), key=lambda at: groups[at][0].key if len(groups[at]) else b"")
    found: list[list[int]] = [[]]
    row = _Row()
    for at in order:
        row.add(groups[at], packed)
        if found[-1] and row.tokens > budget:
            row = _Row()
            row.add(groups[at], packed)
            found.append([])
        found[-1].append(at)
    return found if order else []


def packed_token_logprobs(module: Any, packed: Packed) -> Tensor:
    """(scored,) log-probability of every scored token of every path, path after path in token order."""
    device = next(module.parameters()).device
    with attention(module, NAME):
        logits = module(input_ids=packed.ids.to(device)[None], position_ids=packed.positions.to(device)[None],
                        use_cache=False, logits_to_keep=packed.predictors.to(device), tree=packed.tree).logits
    return target_logprobs(logits.flatten(0, 1), packed.targets.to(device))[packed.spread.to(device)]


def logprobs_packed(module: Any, paths: Sequence[TokenPath]) -> Tensor:
    """(paths,) summed target log-probabilities, all paths in one row that holds each shared token once."""
    packed = pack(paths)
    scores = packed_token_logprobs(module, packed)
    return scores.new_zeros(packed.paths).index_add(0, packed.owner.to(scores.device), scores)


def flat_token_logprobs(module: Any, path: TokenPath) -> Tensor:
    """(targets,) log-probability of the scored tokens of one sequence in a row of its own."""
    device = next(module.parameters()).device
    ids = torch.from_numpy(path.ids).to(device)
    index = torch.cat([torch.arange(start, stop) for start, stop in path.spans])
    # the index stays on the CPU: of a model spread over GPUs, the head lies elsewhere than the embedding
    logits = module(input_ids=ids[None], use_cache=False, logits_to_keep=index - 1).logits
    return target_logprobs(logits.flatten(0, 1), ids[index.to(device)])


def logprobs_flat(module: Any, paths: Sequence[TokenPath]) -> Tensor:
    """(paths,) summed target log-probabilities, one row per path: the reference for `logprobs_packed`."""
    return torch.stack([flat_token_logprobs(module, path).sum() for path in paths])


def packing_refused(module: Any, longest: int) -> str | None:
    """Why this model is not packed, by name; None if a probe of a small tree agrees with its flat rows, too."""
    reason = why_not_replaceable(module, longest, training=True)
    if reason is not None:
        return reason
    kind = module.config.get_text_config().model_type
    vocabulary = module.get_input_embeddings().num_embeddings
    draw = np.random.default_rng(0).integers(0, vocabulary, size=(4, 6))
    stem, left, right, other = draw.tolist()
    paths = [TokenPath.of([*stem, *left], (6, 12)), TokenPath.of([*stem, *right], (1, 12)),
             TokenPath.of([*stem, *right, *other], (12, 18)), TokenPath.of(other, (1, 6))]
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            off = (logprobs_packed(module, paths) - logprobs_flat(module, paths)).abs()
    except (TypeError, ValueError, RuntimeError, DialoomError) as wrong:
        return f"{kind} cannot run a packed row ({str(wrong).splitlines()[0]:.120})"
    finally:
        module.train(was_training)
    worst = float((off / torch.tensor([path.targets for path in paths], device=off.device)).max())
    if not is_same(worst, next(module.parameters()).dtype):
        return f"{kind} gives other log-probabilities packed than flat (by {worst:.2g} nats a token)"
    return None


def choose_logprobs(module: Any, longest: int, *, packed: bool = True) -> tuple[Logprobs, bool]:
    """`logprobs_packed` where wanted and exact for this model, else `logprobs_flat` (with a warning that says why).

    Returns: the function, and whether it packs.
    """
    reason = packing_refused(module, longest) if packed else None
    if reason is not None:
        warnings.warn(f"trained on flat rows, not packed ones: {reason}", stacklevel=2)
    is_packed = packed and reason is None
    return (logprobs_packed if is_packed else logprobs_flat), is_packed


def score_paths(module: Any, paths: Sequence[TokenPath], *, budget: int, packed: bool = True,
                bf16: bool = False) -> Tensor:
    """(paths,) summed target log-probabilities on the CPU, without gradients; each distinct path is computed once."""
    logprobs, packed = choose_logprobs(module, max(map(len, paths), default=0), packed=packed)
    names = [(path.key, path.spans) for path in paths]
    places = {name: at for at, name in enumerate(dict.fromkeys(names))}
    distinct = list(dict(zip(names, paths, strict=True)).values())
    scores = torch.empty(len(distinct))
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad(), torch.autocast(next(module.parameters()).device.type, torch.bfloat16, enabled=bf16):
            for row in bins([[path] for path in distinct], budget, packed=packed):
                scores[row] = logprobs(module, [distinct[at] for at in row]).float().cpu()
    finally:
        module.train(was_training)
    return scores[[places[name] for name in names]]
