"""What an IDEAS run learns before it deduces: strategies out of real dialogues, the simulator, the ranker."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dialoom.dialogue import Dialogue
from dialoom.embed import Embedder, nearest
from dialoom.errors import DataError, ModelError
from dialoom.evals.alignment_roles import USER
from dialoom.evals.metrics import Row
from dialoom.files import read_text
from dialoom.models.base import ChatModel, Sampling, ScoringModel
from dialoom.models.load import load_folder
from dialoom.pocket.world.strategies import CLASS_OF
from dialoom.progress import progress
from dialoom.recipes.ideas_cast import Cast
from dialoom.recipes.ideas_clusters import Cut, Labels, abstract, adjusted_rand, clusters, groups, pick_threshold, sweep
from dialoom.recipes.ideas_config import IdeasConfig
from dialoom.recipes.ideas_induce import extract, follow_ups, weigh
from dialoom.recipes.ideas_ranker import Ranker, measure, positives_of
from dialoom.recipes.ideas_simulator import plain_examples, target_examples
from dialoom.recipes.ideas_sources import Sources, is_pocket
from dialoom.recipes.ideas_strategies import Record, Strategies, folded, read_records, write_records
from dialoom.recipes.pbt import load_local
from dialoom.scenarios.sharegpt import (
    Extracted,
    read_clusters,
    read_strategies,
    write_abstractions,
    write_clusters,
    write_extractions,
    write_strategies,
)
from dialoom.select import Example
from dialoom.store import write_whole

if TYPE_CHECKING:
    from dialoom.models.local import LocalModel

RECORDS, CLUSTERS, STRATEGIES = "records.jsonl", "clusters.json", "strategies.json"
SIMULATOR, PLAIN_SIMULATOR = "simulator", "plain_simulator"
EXTRACTION_TOKENS = 200  # an analysis of some sentences and a phrase
HELD_OUT = 5  # of the source dialogues one in so many measures the ranker, which is not trained on it

Log = Callable[[str], None]


# ------------------------------------------------------------------------------------------------ induction


def extract_stage(cast: Cast, sources: Sources, path: Path, log: Log) -> dict[str, Any]:
    """A strategy for each follow-up turn of the source dialogues, into records.jsonl."""
    config, corpus = cast.config, sources.corpus
    sampling = Sampling(config.extract_temperature, max_new_tokens=EXTRACTION_TOKENS)
    work = path / "work"
    with progress("extract") as bar:
        def told(label: str, done: int, total: int) -> None:
            bar.reach(done, label)

        extractor = cast.model(config.extractor, "extractor")
        records, counts = extract(corpus, extractor, brief=config.extract, sampling=sampling,
                                  draws=config.extract_draws, seed=config.seed, out=work / "extracted.jsonl", log=told)
        if config.weighed:
            judge = cast.model(config.simulator, "simulator")
            if not isinstance(judge, ScoringModel):
                raise ModelError(f"{config.simulator} cannot weigh strategies (it shows no probabilities); give "
                                 "--weighed 0")
            records, more = weigh(corpus, records, judge, brief=config.choose, pool=config.weighed,
                                  out=work / "weighed.jsonl", log=told)
            counts += more
    write_records(path / RECORDS, records)
    named = {(record.dialogue, record.turn): record.strategy for record in records}
    write_extractions(path / "extractions.jsonl", [
        Extracted(one.dialogue.then(one.turn), named[place]) for one in follow_ups(corpus)
        if (place := (one.dialogue.scenario.id, one.turn.id)) in named])
    log(f"extract: {len(records)} strategies, {len({one.strategy for one in records})} different, in {len(corpus)} "
        "dialogues" + "".join(f", {count} {reason}" for reason, count in (sources.lost + counts).items()))
    if not records:
        raise DataError(f"no strategy could be read from {len(corpus)} dialogues by {config.extractor}: "
                        f"{dict(counts)}; give another --extractor")
    return {"dialogues": len(corpus), "records": len(records), "counts": dict(counts), "dropped": dict(sources.lost)}


def records_of(path: Path) -> list[Record]:
    """The strategies that were read from real turns."""
    return read_records(path / RECORDS)


def cluster_stage(cast: Cast, sources: Sources, path: Path, log: Log) -> tuple[dict[str, Any], list[Row]]:
    """Clusters of the different strategies, into clusters.json; into sweep.json what the threshold was picked from."""
    config, records = cast.config, records_of(path)
    texts = [one for some in groups([record.strategy for record in records], [0] * len(records)) for one in some]
    labels, threshold, cuts = _clustered(texts, cast.strategy_embedder(), config)
    found = groups(texts, labels)
    write_clusters(path / CLUSTERS, found)
    write_whole(path / "sweep.json", json.dumps([asdict(cut) for cut in cuts], indent=1))
    log(f"cluster: {len(texts)} strategies in {len(found)} clusters, threshold {threshold:g}")
    rows: list[Row] = []
    if is_pocket(config):
        turns = [(record.strategy, _true_class(sources.corpus, record)) for record in records]
        rows = _rand_rows(texts, labels, turns, "default", config)
        if config.embedding != "ngrams":
            beside, _, _ = _clustered(texts, cast.embedder("ngrams"), config)
            rows += _rand_rows(texts, beside, turns, "ngrams", config)
    for row in rows:
        log(f"clusters, {row.subject}: {row.metric} {row.value:.3f}")
    return {"strategies": len(texts), "clusters": len(found), "threshold": threshold}, rows


def _clustered(texts: Sequence[str], embedder: Embedder, config: IdeasConfig) -> tuple[Labels, float, list[Cut]]:
    """Labels, and the threshold with the sweep that it came from; a threshold that was given is all that is swept."""
    if config.threshold is not None:
        cuts, threshold = sweep(texts, embedder, [config.threshold], method=config.cluster), config.threshold
    else:
        cuts = sweep(texts, embedder, method=config.cluster)
        threshold = pick_threshold(cuts)
    return clusters(texts, embedder, threshold=threshold, method=config.cluster), threshold, cuts


def _rand_rows(texts: Sequence[str], labels: Labels, turns: Sequence[tuple[str, str]], subject: str,
               config: IdeasConfig) -> list[Row]:
    """How well clusters agree with the true strategies of pocket's grammar: over the phrasings of the grammar among the
    texts, and over all turns, where it counts, too, whether a turn was given a strategy of the right kind.

    Args:
        turns: the strategy that was read from each real turn, and the true one.
    """
    known = [at for at, text in enumerate(texts) if text in CLASS_OF]
    label_of = {folded(text): int(label) for text, label in zip(texts, labels, strict=True)}
    values = {"adjusted_rand": adjusted_rand([int(labels[at]) for at in known], [CLASS_OF[texts[at]] for at in known]),
              "adjusted_rand_turns": adjusted_rand([label_of[folded(text)] for text, _ in turns],
                                                   [true for _, true in turns]),
              "clusters": float(len(set(labels.tolist())))}
    return [Row("clusters", subject, metric, value, np.nan, np.nan, len(texts), config.seed)
            for metric, value in values.items()]


def _true_class(corpus: Sequence[Dialogue], record: Record) -> str:
    """What the grammar wrote a real turn by."""
    dialogue = next(one for one in corpus if one.scenario.id == record.dialogue)
    at = [turn.id for turn in dialogue.by(USER)].index(record.turn)
    return str(dialogue.scenario.facts["classes"][at])


def abstract_stage(cast: Cast, path: Path, log: Log) -> dict[str, Any]:
    """One name for each cluster, into strategies.json, which holds what belongs to each of them as well."""
    config, members = cast.config, read_clusters(path / CLUSTERS)
    found = abstract(members, cast.model(config.abstractor, "abstractor"), brief=config.abstract,
                     out=path / "work" / "abstracted.jsonl", tell=log)
    return keep_strategies(found, path, log)


def import_stage(cast: Cast, path: Path, log: Log) -> dict[str, Any]:
    """The user's own list instead of an induced one; each extracted strategy belongs to the nearest in it."""
    high = tuple(read_strategies(cast.config.strategies))
    lows = list(dict.fromkeys(record.strategy for record in records_of(path)))
    embedder = cast.strategy_embedder()
    at, _ = nearest(embedder.encode(lows), embedder.encode(high))
    parent = {text: text for text in high} | {low: high[one] for low, one in zip(lows, at, strict=True)}
    return keep_strategies(Strategies(high, parent), path, log)


def keep_strategies(found: Strategies, path: Path, log: Log) -> dict[str, Any]:
    """Write what was found, for us and as a plain list."""
    write_whole(path / STRATEGIES, found.to_json())
    write_strategies(path / "strategy_list.json", found.high)
    write_abstractions(path / "abstractions.jsonl", [(found.lows(high), high) for high in found.high])
    log(f"strategies: {len(found.high)}, {', '.join(found.high[:5])}, ...")
    return {"strategies": len(found.high), "low": len(found.parent)}


def strategies_of(path: Path) -> Strategies:
    """The strategies of a run."""
    return Strategies.from_json(read_text(path / STRATEGIES), str(path / STRATEGIES))


# ------------------------------------------------------------------------------------------------ simulator, ranker


def targets(config: IdeasConfig, corpus: Sequence[Dialogue], records: Sequence[Record], strategies: Strategies,
            model: LocalModel) -> tuple[list[Example], Counter[str]]:
    """What the simulator learns; the dialogues take the sizes of their lists of candidates in turn."""
    found, lost, sizes = list[Example](), Counter[str](), config.train_candidates
    for at, size in enumerate(sizes):
        part = corpus[at::len(sizes)]
        ids = {dialogue.scenario.id for dialogue in part}
        some, left_out = target_examples(part, [one for one in records if one.dialogue in ids], strategies, size=size,
                                         seed=config.seed, brief=config.choose, model=model)
        found, lost = found + some, lost + left_out
    return found, lost


def simulator_stage(cast: Cast, sources: Sources, path: Path, name: str, log: Log) -> dict[str, Any]:
    """Train a simulator, where its weights are at hand; one that is an endpoint is asked as it is.

    Args:
        name: `SIMULATOR`, or `PLAIN_SIMULATOR`, which learns the same turns without a word of strategies.
    """
    from dialoom.train.sft import sft

    config = cast.config
    if config.asks_simulator:
        log(f"{name}: {config.simulator} is asked as it is")
        return {"examples": 0}
    model, records, strategies = load_local(config.simulator, config.place), records_of(path), strategies_of(path)
    if name == SIMULATOR:
        examples, lost = targets(config, sources.corpus, records, strategies, model)
    else:
        examples, lost = plain_examples(sources.corpus, records, strategies, brief=config.curious, model=model)
    settings = config.simulator_sft.model_copy(update={"seed": config.seed})
    with progress(f"train the {name.replace('_', ' ')}, {model.name}", settings.steps(len(examples))) as bar:
        sft(model, examples, settings, out=path / "work" / name, log=lambda row: bar.advance())
    model.save(path / name)
    return {"examples": len(examples), "dropped": dict(lost)}


def simulator_of(cast: Cast, path: Path, name: str = SIMULATOR) -> ChatModel:
    """A simulator of a run: one it trained, or an endpoint."""
    config = cast.config
    if config.asks_simulator:
        return cast.model(config.simulator, "simulator")
    return load_folder(path / name, device=config.place, name=f"{config.simulator} ({name})")


def ranker_stage(cast: Cast, sources: Sources, path: Path, log: Log) -> tuple[dict[str, Any], list[Row]]:
    """Train the ranker on most of the source dialogues, and measure it on the others."""
    config, strategies = cast.config, strategies_of(path)
    records = records_of(path)
    held_out = sources.corpus[HELD_OUT - 1::HELD_OUT]
    known = {one.scenario.id for one in held_out}
    learned = [one for one in sources.corpus if one.scenario.id not in known]
    positives, _ = positives_of(learned, records, strategies)
    ranker = Ranker.fit(positives, strategies.high, cast.embedder(config.ranker_embedding), config=config.ranker,
                        seed=config.seed, out=path / "ranker")
    ranker.save(path / "ranker")
    unseen, _ = positives_of(held_out, records, strategies)
    if not unseen:
        return {"positives": len(positives)}, []
    found = measure(ranker, unseen)
    log(f"ranker: AUC {found.auc:.3f} on {found.answers} answers it has not seen")
    values = {"auc": found.auc, **{f"recall_{k}": value for k, value in found.recall.items()}}
    rows = [Row("ranker", "ranker", metric, value, np.nan, np.nan, found.answers, config.seed)
            for metric, value in values.items()]
    return {"positives": len(positives), **values}, rows


def ranker_of(cast: Cast, path: Path) -> Ranker | None:
    """The ranker of a run; None where its policy needs none."""
    if cast.config.policy == "random":
        return None
    return Ranker.load(path / "ranker", cast.embedder(cast.config.ranker_embedding))
