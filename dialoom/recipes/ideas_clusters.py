"""Strategies that mean the same: clusters of them, the threshold, and a name for each cluster.

The surprising choice: a strategy is embedded by what a model answers when it is asked to name the strategy more
generally (`strategy_embedder`). Phrasings without a word in common then lie together, where a bare text's embedding
sees words only. The threshold is picked by the silhouette over a sweep of all strategies that were named, also those
that no turn kept: a few phrasings of each are too few to see where clusters end. No label is looked at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dialoom.dialogue import Chat, content_id
from dialoom.embed import CachedEmbedder, Embedder, Ngrams, Vectors, leader_clusters, load_embedder
from dialoom.errors import ConfigError, DataError
from dialoom.files import read_answers
from dialoom.models.base import ChatModel, Sampling
from dialoom.pocket.world.strategies import strategy_list
from dialoom.pocket.world.strategy_tables import BRIEFS
from dialoom.progress import quiet
from dialoom.recipes.ideas_strategies import COLLISION, Strategies, folded
from dialoom.store import append_row

Method = Literal["leader", "agglomerative", "hdbscan"]
Labels = NDArray[np.int64]
Tell = Callable[[str], None]

THRESHOLDS = tuple(round(0.3 + 0.02 * step, 2) for step in range(35))
"""Cosines of a sweep: 0.30 to 0.98."""
SILHOUETTE_SAMPLE = 2000  # texts: the score of all takes a matrix of all pairs
MOST_ROWS = 20_000  # of a method that needs all pairs: 1.6 GB in single precision
ANSWER_TOKENS = 12  # of the answer a strategy is embedded by: names of strategies are shorter
SHOWN = 30  # members of a cluster that its name is made from

ABSTRACT = ("Each line below is a strategy that somebody used to go on with a conversation. Name the one more general "
            "strategy of which all of them are special cases. Answer with that name only, a phrase of a few words.")
POCKET_ABSTRACT = BRIEFS["abstract"][1]
ABSTRACTING = Sampling(temperature=0.0, max_new_tokens=24)


def abstraction_chat(members: Sequence[str], brief: str) -> Chat:
    """The question for one name for some strategies."""
    return [{"role": "system", "content": brief}, {"role": "user", "content": strategy_list(members[:SHOWN])}]


def strategy_embedder(spec: str, *, brief: str = ABSTRACT, device: str = "auto") -> Embedder:
    """An embedder for strategies; texts that were encoded before are not encoded again.

    Args:
        spec: as `load_embedder` takes it; `hidden:<model>` embeds a strategy by the model's own answer under `brief`,
            not by the bare text.
    Raises: as `load_embedder`.
    """
    if not spec.startswith("hidden:"):
        return CachedEmbedder(load_embedder(spec, device=device))
    from dialoom.models.hidden import HiddenStates
    model = HiddenStates.load(spec.removeprefix("hidden:"), device=device).model
    return CachedEmbedder(HiddenStates(model, frame=lambda text: abstraction_chat([text], brief), answer=ANSWER_TOKENS))


# ------------------------------------------------------------------------------------------------ clusters


def clusters(texts: Sequence[str], embedder: Embedder, *, threshold: float, method: Method = "leader") -> Labels:
    """(texts,) cluster labels: equal for what belongs together.

    Args:
        threshold: in [-1, 1), the embedder's cosine. leader: a text's with its leader is above it. agglomerative: the
            mean one of two clusters that are joined is. hdbscan: clusters nearer than this are not split.
        method: `leader` as in the paper, labels are the leaders' places; the others are scikit-learn's, labels are the
            places of first members, and need all pairs. What hdbscan calls noise is a cluster of its own.
    Raises: ConfigError: for an unknown method, or more texts than all pairs allow.
    """
    return _clusters(embedder.encode(texts), threshold, method)


def _clusters(embedded: Vectors, threshold: float, method: Method) -> Labels:
    if method == "leader":
        return leader_clusters(embedded, threshold)
    if method not in ("agglomerative", "hdbscan"):
        raise ConfigError(f"clustering {method!r} is unknown; use leader, agglomerative or hdbscan")
    if len(embedded) > MOST_ROWS:
        raise ConfigError(f"{method} clustering of {len(embedded):,} texts needs all pairs of them, expected "
                          f"{MOST_ROWS:,} at most; use leader, which needs none")
    if len(embedded) < 2:
        return np.zeros(len(embedded), dtype=np.int64)
    from sklearn.cluster import HDBSCAN, AgglomerativeClustering
    if method == "agglomerative":
        found = AgglomerativeClustering(n_clusters=None, metric="cosine", linkage="average",
                                        distance_threshold=1 - threshold).fit_predict(embedded)
    else:
        found = HDBSCAN(min_cluster_size=2, cluster_selection_epsilon=float(np.sqrt(2 - 2 * threshold)), copy=True,
                        allow_single_cluster=True).fit_predict(embedded.astype(np.float64))
    first: dict[int, int] = {}
    return np.array([at if label < 0 else first.setdefault(int(label), at) for at, label in enumerate(found)],
                    dtype=np.int64)


def groups(texts: Sequence[str], labels: Sequence[int] | Labels) -> list[list[str]]:
    """The clusters as lists of distinct texts, the first mentioned first."""
    found: dict[int, dict[str, str]] = {}
    for text, label in zip(texts, labels, strict=True):
        found.setdefault(int(label), {}).setdefault(folded(text), text)
    return [list(members.values()) for members in found.values()]


@dataclass(frozen=True)
class Cut:
    """What one threshold makes of some texts.

    Attributes:
        clusters: how many.
        silhouette: mean over texts in [-1, 1], by cosine; None where all are in one cluster or each in its own.
        singletons: share of the clusters that hold one text.
    """

    threshold: float
    clusters: int
    silhouette: float | None
    singletons: float


def sweep(texts: Sequence[str], embedder: Embedder, thresholds: Sequence[float] = THRESHOLDS, *,
          method: Method = "leader") -> list[Cut]:
    """What each threshold makes of the texts; they are encoded once. Repeated texts would flatter the silhouette."""
    embedded = embedder.encode(texts)
    return [_cut(embedded, threshold, method) for threshold in thresholds]


def _cut(embedded: Vectors, threshold: float, method: Method) -> Cut:
    labels = _clusters(embedded, threshold, method)
    sizes = Counter(labels.tolist())
    score = None
    if 1 < len(sizes) < len(labels):
        from sklearn.metrics import silhouette_score
        some = np.arange(len(labels))
        if len(some) > SILHOUETTE_SAMPLE:
            some = np.random.default_rng(0).choice(some, SILHOUETTE_SAMPLE, replace=False)
        if 1 < len(set(labels[some].tolist())) < len(some):
            score = float(silhouette_score(embedded[some], labels[some], metric="cosine"))
    return Cut(threshold, len(sizes), score, sum(size == 1 for size in sizes.values()) / max(1, len(sizes)))


def pick_threshold(cuts: Sequence[Cut]) -> float:
    """The threshold with the best silhouette, of equal ones the middle one.

    Raises: DataError: if no threshold splits the texts into some clusters with more than one text.
    """
    scored = [cut for cut in cuts if cut.silhouette is not None]
    if not scored:
        raise DataError(f"none of {len(cuts)} thresholds makes clusters of these strategies (all are one, or each is "
                        "its own); give a threshold, or more source dialogues")
    best = max(cut.silhouette for cut in scored if cut.silhouette is not None)
    ties = [cut.threshold for cut in scored if cut.silhouette == best]
    return ties[len(ties) // 2]


def adjusted_rand(labels: Sequence[Hashable] | Labels, truth: Sequence[Hashable]) -> float:
    """How well clusters agree with true classes: 1 the same, about 0 by chance. For evaluation, not for choosing.

    Source: Hubert and Arabie (1985), as scikit-learn computes it.
    """
    from sklearn.metrics import adjusted_rand_score
    codes = [np.unique([str(one) for one in side], return_inverse=True)[1] for side in (labels, truth)]
    return float(adjusted_rand_score(codes[1], codes[0]))


# ------------------------------------------------------------------------------------------------ names


def abstract(members: Sequence[Sequence[str]], model: ChatModel, *, brief: str = ABSTRACT,
             sampling: Sampling = ABSTRACTING, embedder: Embedder | None = None, collision: float = COLLISION,
             out: Path | None = None, tell: Tell = quiet) -> Strategies:
    """Ask a model for one high-level strategy for each cluster; names that collide are merged.

    A cluster whose name cannot be used keeps its first member as the name, and that is told.

    Args:
        members: the strategies of each cluster, as `groups` gives them; singletons are asked for too.
        embedder: finds names that say the same; None: n-grams, for names that differ in wording only. Not that of
            `strategy_embedder`: under it all names are near each other, so `collision` would merge different ones.
        out: JSON lines of what was asked; it is not asked again.
    Source: IDEAS (arXiv 2404.11095), abstraction; the text after the last colon counts.
    """
    known = read_answers(out, ("name",))
    keys = [content_id("abstract", model.fingerprint, brief, sampling.key(), list(group)) for group in members]
    todo = [at for at, key in enumerate(keys) if key not in known]
    replies = model.chat([abstraction_chat(members[at], brief) for at in todo], sampling,
                         [keys[at] for at in todo]) if todo else []
    for at, reply in zip(todo, replies, strict=True):
        known[keys[at]] = {"key": keys[at], "members": list(members[at]), "name": read_name(reply.text)}
        if out is not None:
            append_row(out, known[keys[at]])
    names = []
    for key, group in zip(keys, members, strict=True):
        name = str(known[key]["name"])
        if not name:
            tell(f"no usable name for {len(group)} strategies; they go by the first of them, {group[0]!r:.60}")
        names.append(name or group[0])
    return Strategies.merged(members, names, embedder or Ngrams(), collision)


def read_name(text: str) -> str:
    """The name in an abstractor's reply: its last line that is not empty, after the last colon; "" if none is left."""
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].rpartition(":")[2].strip(" \t.-*\"'“”") if lines else ""
