"""IDEAS: learn from real dialogues how people go on, then go on like them (arXiv 2404.11095).

    extract          which strategy is behind each follow-up turn of real users
    cluster          strategies that are alike
    abstract         one name for each cluster, and which strategies belong to it
    train-simulator  a user simulator that names a strategy of a list, then writes; a ranker that makes the list
    deduce           openings become dialogues: listed, written, checked, answered; two baselines beside it
    train-chat       chat models on the dialogues of each arm, at one budget
    eval             how varied the users are; how right the chat models are in held-out conversations
"""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dialoom.dialogue import Dialogue, DialogueTree, content_id
from dialoom.errors import ConfigError, DataError, ModelError, StoreError
from dialoom.evals.metrics import Row, over_seeds
from dialoom.files import read_steps
from dialoom.models.load import load_folder
from dialoom.progress import progress, quiet
from dialoom.recipes.ideas_cast import Cast
from dialoom.recipes.ideas_config import ARMS, PAPER, PRESETS, IdeasConfig
from dialoom.recipes.ideas_data import answer_tokens, equal_budget, examples_of
from dialoom.recipes.ideas_deduce import branch, deduce, first_pairs, plant, post_process
from dialoom.recipes.ideas_eval import chat_rows, diversity_rows, funnel_rows, yardstick_of
from dialoom.recipes.ideas_learn import (
    PLAIN_SIMULATOR,
    SIMULATOR,
    abstract_stage,
    cluster_stage,
    extract_stage,
    import_stage,
    ranker_of,
    ranker_stage,
    records_of,
    simulator_of,
    simulator_stage,
    strategies_of,
)
from dialoom.recipes.ideas_sources import Sources, is_pocket
from dialoom.recipes.ideas_verify import RULES
from dialoom.recipes.pbt import load_local
from dialoom.recipes.planned import Role
from dialoom.recipes.run import hash_data, value_of
from dialoom.scenarios.sharegpt import read_strategies, write_messages, write_openings, write_sharegpt
from dialoom.store import TreeLog, read_trees, write_rows, write_whole

if TYPE_CHECKING:
    from dialoom.models.local import LocalModel
    from dialoom.recipes.run import RunFolder

__all__ = ["ARMS", "PAPER", "PRESETS", "STAGES", "IdeasConfig", "data_hash", "plan", "run"]
STAGES = ("extract", "cluster", "abstract", "train-simulator", "deduce", "train-chat", "eval")
FILES = ("data", "strategies", "openings", "questions")
LEARNED = "ideas"  # the arm whose model lies in model/ and whose trees lie in trees.jsonl
POCKET_SECONDS = 0.01  # a reply of pocket on one core of a small cloud machine
POCKET_WEIGHING, POCKET_TARGET = 0.0025, 0.017  # seconds: one strategy weighed for a turn, one training target
POCKET_FOLLOW_UPS, POCKET_TURNS, POCKET_CLUSTERS, POCKET_TRIES = 3.4, 6, 15, 3  # of a dialogue; in all; of a message

Log = Callable[[str], None]


def data_hash(config: IdeasConfig) -> str:
    """16 hex digits over the user's files, "" where there are none. Raises DataError if one cannot be read."""
    named = {name: str(getattr(config, name)) for name in FILES}
    for name, path in named.items():
        if path and not Path(path).is_file():
            raise DataError(f"{path}: no such file, given as --{name}")
    return content_id(*(hash_data(path or None) for path in named.values())) if any(named.values()) else ""


# ------------------------------------------------------------------------------------------------ the run


def run(config: IdeasConfig, folder: RunFolder, stages: Sequence[str] = STAGES, log: Log = print) -> None:
    """Do the given stages in `folder`; what is done is loaded, what was stopped in the middle goes on.

    Raises: ConfigError, DataError, ModelError: before anything is computed, where settings do not go together.
    """
    check(config, stages)
    cast, path = Cast(config), folder.path
    folder.briefs({"brief": config.careful, **{f"evals/{label}/brief": config.neutral for label in subjects_of(config)},
                   "evals/briefed/brief": config.ceiling})
    sources = Sources(config, quiet if folder.has("extract") else log)
    folder.stage("extract", lambda: extract_stage(cast, sources, path, log))
    if "cluster" in stages and not config.strategies:
        folder.stage("cluster", lambda: _with_rows(folder, cluster_stage(cast, sources, path, log)))
    if "abstract" in stages:
        make = import_stage if config.strategies else abstract_stage
        folder.stage("abstract", lambda: make(cast, path, log))
    if "train-simulator" in stages:
        folder.stage("train-simulator", lambda: simulator_stage(cast, sources, path, SIMULATOR, log))
        if "plain_trained" in config.arms:
            folder.stage("train-plain-simulator", lambda: simulator_stage(cast, sources, path, PLAIN_SIMULATOR, log))
        if config.policy != "random":
            folder.stage("train-ranker", lambda: _with_rows(folder, ranker_stage(cast, sources, path, log)))
    if "deduce" in stages:
        _deduce_stages(cast, sources, folder, log)
    if "train-chat" in stages:
        for arm in config.arms:
            folder.stage(f"train-{arm}", partial(_train_stage, config, path, arm))
            gc.collect()
    if "eval" in stages:
        _eval_stages(cast, sources, folder, log)


def check(config: IdeasConfig, stages: Sequence[str] = STAGES) -> None:
    """Refuse what cannot be meant, before anything is computed or paid for."""
    if config.model.startswith("openai:") and {"train-chat", "eval"} & set(stages):
        raise ModelError(f"{config.model} cannot be trained (its weights are not here); give --model pocket or "
                         "hf:<name>, and the endpoint as --answerer, --verifier, --extractor, --abstractor or --judge")
    if config.asks_simulator and config.weighed:
        raise ModelError(f"{config.simulator} cannot weigh strategies (an endpoint shows no probabilities); give "
                         "--weighed 0")
    if config.asks_simulator and "plain_trained" in config.arms:
        raise ModelError(f"{config.simulator} cannot be trained, so there is no arm plain_trained; leave it out")
    if not is_pocket(config):
        for name, other in (("verifier", "rule or a model"), ("judge", "a model")):
            needed = name == "verifier" or "eval" in stages
            if needed and getattr(config, name) == "exact":
                raise ConfigError(f"--{name} exact knows pocket's world only; with dialogues of your own give {other}")
    if config.strategies:
        read_strategies(config.strategies)
    if config.questions and config.judge == "exact":
        raise ConfigError("--questions needs a model that rates the answers; give --judge")


def _with_rows(folder: RunFolder, found: tuple[dict[str, Any], list[Row]]) -> dict[str, Any]:
    folder.add_results(row.to_json() for row in found[1])
    return found[0]


# ------------------------------------------------------------------------------------------------ deduction


def log_of(path: Path, arm: str) -> Path:
    """Where the dialogues of an arm lie."""
    return path / "trees.jsonl" if arm == LEARNED else path / "arms" / arm / "trees.jsonl"


def _deduce_stages(cast: Cast, sources: Sources, folder: RunFolder, log: Log) -> None:
    config, path = cast.config, folder.path
    funnels: dict[str, dict[str, Any]] = {}
    for arm in config.arms:
        funnels[arm] = folder.stage(f"deduce-{arm}", partial(_deduce_stage, cast, sources, path, arm, log))
    write_whole(path / "funnel.json", json.dumps(funnels, indent=1))
    write_whole(path / "dropped.json", json.dumps(funnels[LEARNED]["reasons"] | funnels[LEARNED]["post"], indent=1))
    folder.stage("deduce", lambda: _budget_stage(config, sources, path, log))


def _deduce_stage(cast: Cast, sources: Sources, path: Path, arm: str, log: Log) -> dict[str, Any]:
    config = cast.config
    learned = PLAIN_SIMULATOR if arm == "plain_trained" else SIMULATOR
    simulator = None if arm == "plain" else simulator_of(cast, path, learned)
    team = cast.team(arm, strategies_of(path), simulator, ranker_of(cast, path) if arm == LEARNED else None)
    with TreeLog(log_of(path, arm)) as sink, progress(f"deduction, {arm}") as bar:
        held = sink.trees()
        trees = [held.get(tree.id, tree) for tree in (plant(one, config.seed, arm) for one in sources.openings)]
        funnel = deduce(trees, team, cast.limits, seed=config.seed, sink=sink, batch=config.batch,
                        log=lambda label, done, total: bar.reach(done, f"{label}, {arm}, dialogues done"))
    kept, lost = post_process([branch(tree) for tree in trees], config.refusals)
    told = " -> ".join(f"{count:,} {step}" for step, count in funnel.counts.items())
    log(f"deduce, {arm}: {told}; {len(kept)} of {len(trees)} dialogues kept")
    return {**funnel.to_json(), "dialogues": len(kept), "post": dict(lost)}


def _trees(path: Path, arm: str) -> list[DialogueTree]:
    return [tree for _, tree in sorted(read_trees(log_of(path, arm)).items())]


def _budget_stage(config: IdeasConfig, sources: Sources, path: Path, log: Log) -> dict[str, Any]:
    """Cut the arms' dialogues to one budget, and write those of each as data sets; the openings, too."""
    write_openings(path / "openings.jsonl", sources.openings)
    arms: dict[str, list[Dialogue]] = {}
    for name in config.arms:
        arms[name], _ = post_process([branch(tree) for tree in _trees(path, name)], config.refusals)
    tokens = answer_tokens(load_local(config.model, config.place), config.neutral)
    sets, budget = equal_budget(arms, tokens)
    for arm, some in sets.items():
        write_sharegpt(path / "data" / f"{arm}.json", some)
        write_messages(path / "data" / f"{arm}.jsonl", some)
    used = {arm: sum(sum(tokens(one)) for one in some) for arm, some in sets.items()}
    log(f"data: {len(sets[LEARNED])} dialogues an arm, target tokens " + ", ".join(
        f"{arm} {count:,}" for arm, count in used.items()))
    return {"budget": budget, "tokens": used,
            "pairs": {arm: {one.scenario.id: len(one.by("assistant")) for one in some} for arm, some in sets.items()}}


def data_sets(config: IdeasConfig, path: Path) -> dict[str, list[Dialogue]]:
    """The dialogues of each arm at one budget, in the same order. Raises StoreError if they cannot be put together."""
    value, found = value_of(path, "deduce"), dict[str, list[Dialogue]]()
    for arm in config.arms:
        held = {tree.scenario.id: branch(tree) for tree in _trees(path, arm)}
        try:
            found[arm] = [first_pairs(held[id], count) for id, count in value["pairs"][arm].items()]
        except (KeyError, TypeError, ValueError, AttributeError) as wrong:
            raise StoreError(f"{path / 'stages' / 'deduce.json'}: does not go with the dialogues of {arm} "
                             f"({wrong!r:.80}); remove it, and the same command makes it again") from None
    return found


# ------------------------------------------------------------------------------------------------ chat models


def _train_stage(config: IdeasConfig, path: Path, arm: str) -> dict[str, Any]:
    from dialoom.train.sft import sft

    examples = examples_of(data_sets(config, path)[arm], config.neutral)
    model = load_local(config.model, config.place)
    settings = config.sft.model_copy(update={"seed": config.seed})
    with progress(f"train on {arm}, {model.name}", settings.steps(len(examples))) as bar:
        sft(model, examples, settings, out=path / "work" / arm, log=lambda row: bar.advance())
    model.save(trained_folder(config, path, arm))
    gather_metrics(config, path)
    return {"examples": len(examples)}


def trained_folder(config: IdeasConfig, path: Path, arm: str) -> Path:
    """Where a chat model lies: that of IDEAS in `model/` or `adapter/`, the others in `arms/`."""
    kind = "adapter" if config.sft.tune == "lora" else "model"
    return path / kind if arm == LEARNED else path / "arms" / arm / kind


def load_trained(config: IdeasConfig, path: Path, arm: str) -> LocalModel:
    """A chat model this run trained."""
    return load_folder(trained_folder(config, path, arm), device=config.place, name=f"{config.model} ({arm})")


def gather_metrics(config: IdeasConfig, path: Path) -> None:
    """Write metrics.jsonl anew out of what every training noted, so a resumed one leaves no row twice."""
    rows: list[dict[str, Any]] = []
    for name in (SIMULATOR, PLAIN_SIMULATOR, *config.arms):
        noted = path / "work" / name / "metrics.jsonl"
        stage = "chat" if name in config.arms else "simulator"
        rows += [{"stage": stage, "subject": name, **row} for row in read_steps(noted)]
    write_rows(path / "metrics.jsonl", rows)


# ------------------------------------------------------------------------------------------------ evaluation


def subjects_of(config: IdeasConfig) -> list[str]:
    """The chat models that are evaluated: base, one for each arm, and the ceiling if there is one."""
    return ["base", *config.arms, *(["briefed"] if config.ceiling else [])]


def _eval_stages(cast: Cast, sources: Sources, folder: RunFolder, log: Log) -> None:
    config = cast.config
    folder.stage("eval-users", partial(_users_stage, cast, sources, folder))
    for label in subjects_of(config):
        folder.stage(f"eval-{label}", partial(_chat_stage, cast, sources, folder, label, log))
        gc.collect()
    rows = [Row(**{**row, **{key: math.nan for key in ("value", "low", "high") if row[key] is None}})
            for row in folder.results() if row["seed"] is not None]
    folder.add_results(row.to_json() for row in over_seeds(rows))


def _users_stage(cast: Cast, sources: Sources, folder: RunFolder) -> int:
    config, path = cast.config, folder.path
    trees: dict[str, list[DialogueTree]] = {arm: _trees(path, arm) for arm in config.arms}
    yardstick = yardstick_of(cast, sources.corpus, records_of(path), strategies_of(path))
    rows = diversity_rows(data_sets(config, path), trees, yardstick, config.seed) + funnel_rows(trees, config.seed)
    folder.add_results(row.to_json() for row in rows)
    return len(rows)


def _chat_stage(cast: Cast, sources: Sources, folder: RunFolder, label: str, log: Log) -> int:
    config = cast.config
    model = (load_trained(config, folder.path, label) if label in config.arms else
             load_local(config.model, config.place))
    rows = chat_rows(cast, model, label, sources.conversations, out=folder.path / "evals",
                     brief=config.ceiling if label == "briefed" else "", log=log)
    folder.add_results(row.to_json() for row in rows)
    for row in rows:
        if row.metric in ("quality", "score", "accuracy"):
            log(f"{row.subject:16} {row.eval:8} {row.metric:8} {row.value:7.3f}  [{row.low:.3f}, {row.high:.3f}]")
    return len(rows)


# ------------------------------------------------------------------------------------------------ the plan


def roles(config: IdeasConfig) -> list[Role]:
    """Who is asked by name, and how often at most; of a user's own dialogues the length is a guess."""
    tries = config.opening_count * (config.max_pairs - 1)  # an arm's messages, were each accepted at once
    most, arms = tries * (config.max_failures + 1), len(config.arms)
    read = round(config.corpus_count * POCKET_FOLLOW_UPS)
    tests = len(subjects_of(config)) * config.eval_count * POCKET_TURNS
    each, history = config.max_new_tokens, 300 + config.max_pairs * config.max_new_tokens
    plain = config.plain or config.simulator
    return [Role("extractor", config.extractor, read * config.extract_draws, history, 40),
            Role("abstractor", config.abstractor, 0 if config.strategies else read, 200, 40),
            Role("simulator", config.simulator, most * sum(arm in ("ideas", "random_strategy") for arm in config.arms),
                 history, each),
            Role("plain", plain, most * ("plain" in config.arms), history, each),
            Role("verifier", config.verifier, most * arms, history, each),
            Role("answerer", config.answerer, tries * arms, history, each),
            Role("judge", config.judge, tests * 2, 300 + 2 * each, 8)]


def plan(config: IdeasConfig) -> list[dict[str, Any]]:
    """What a run would do at most, before it does it. The time is what pocket takes on one CPU core."""
    check(config)
    arms, models = len(config.arms), len(subjects_of(config))
    turns, read = config.opening_count * (config.max_pairs - 1) * arms, config.corpus_count * POCKET_FOLLOW_UPS
    by_model = config.verifier not in RULES
    asked = turns * ((config.max_failures + 1) * (1 + by_model) + 1)
    tests = models * config.eval_count * POCKET_TURNS * (1 + (config.judge != "exact"))
    source = config.data or f"{config.corpus_count} dialogues of pocket's world"
    rows = [("extract", source, round(read * config.extract_draws), read * (0.02 + config.weighed * POCKET_WEIGHING)),
            ("cluster", config.strategies or config.embedding, 0, 1.0),
            ("abstract", config.strategies or config.abstractor, 0 if config.strategies else POCKET_CLUSTERS, 1.0),
            ("train-simulator", config.simulator, 0, read * POCKET_TARGET * config.simulator_sft.epochs),
            ("deduce", f"{config.opening_count} openings, {arms} arms", asked, turns * POCKET_SECONDS * POCKET_TRIES),
            ("train-chat", f"{config.model} on each arm", 0, 5.0 * arms),
            ("eval", f"{models} chat models, {config.eval_count} conversations", tests, tests * POCKET_SECONDS / 2)]
    roles = (config.model, config.simulator, config.plain, config.extractor, config.abstractor, config.verifier,
             config.answerer, config.judge)
    pocket = {"", "pocket", "pocket-small", "exact", "rule"}.issuperset(roles) and is_pocket(config)
    return [{"stage": stage, "what": what, "calls": calls, "tokens": calls * config.max_new_tokens,
             "minutes": round(seconds / 60, 1) if pocket else "unknown"} for stage, what, calls, seconds in rows]
