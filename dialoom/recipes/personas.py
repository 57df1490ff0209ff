"""`dialoom personas grow`: pools of profiles and personalities, grown by a model out of seeds, and their combinations.

    threshold.json       the cosine above which two texts are the same again, with the embedding it holds for
    growth.jsonl         every round: what was kept, what was refused and why; a stopped run goes on from here
    profiles.jsonl       the pools, in the layout ALOE released: one JSON string a line
    personalities.jsonl
    personas.jsonl       each profile with some of the personalities, in our layout

How a pool grows is in `persona_growth`, how likeness is measured in `persona_check`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from dialoom.embed import CachedEmbedder, load_embedder
from dialoom.errors import ConfigError
from dialoom.evals.metrics import Row, rate
from dialoom.models.base import ChatModel, Sampling
from dialoom.models.load import load_model
from dialoom.models.placed import Placed
from dialoom.pocket.world import personas as world
from dialoom.progress import progress
from dialoom.recipes.persona_check import THRESHOLDS, Threshold, calibrate, diversity, read_thresholds, write_thresholds
from dialoom.recipes.persona_growth import GrowthRules, Pool, grow_pool, read_pool
from dialoom.recipes.planned import Role
from dialoom.recipes.run import RunFolder
from dialoom.scenarios import persona_seeds
from dialoom.scenarios.personas import KINDS, Kind, combine, read_texts, write_personas, write_texts
from dialoom.store import write_whole

Log = Callable[[str], None]

STAGES = ("threshold", "profiles", "personalities", "personas")
POOLS: dict[Kind, str] = {"profile": "profiles", "personality": "personalities"}
LOG_FILE = "growth.jsonl"
POCKET_SECONDS = 0.15  # of one request to pocket on one CPU core


class PersonasConfig(Placed):
    """Settings of growing personas; the defaults let pocket grow people of its own world."""

    model: str = "pocket"
    """The model that invents: pocket, hf:<name or path>[+<adapter>], openai:<model>, run:<folder>."""
    style: Literal["auto", "free", "pocket"] = "auto"
    """How it is asked: for free texts as a JSON list, or in pocket's words for people of pocket's closed world (auto:
    so for pocket and pocket-small)."""
    profile_seeds: str = ""
    """Profiles to begin with: JSON lines, strings or objects with facts. Empty: 22 of our own, or pocket's."""
    personality_seeds: str = ""
    """Personalities to begin with: JSON lines, strings or objects with traits. Empty: 22 of our own, or pocket's."""
    profiles: int = Field(331, ge=0)
    """Stop at this many profiles, seeds included; 0 means at saturation only."""
    personalities: int = Field(70, ge=0)
    """Stop at this many personalities, seeds included; 0 means at saturation only."""
    passes: int = Field(10, ge=1)
    """How many personas each profile gives, each with another personality."""
    embedding: str = "ngrams"
    """How likeness is measured: ngrams, ngrams:<low>-<high>, st:<sentence-transformers name>, hidden:<model>."""
    threshold: float | None = Field(None, ge=-1, le=1)
    """Refuse what has a greater cosine than this with a text of the pool; none: calibrated on the seeds."""
    examples: int = Field(4, ge=1)
    """Texts of the pool shown in one request."""
    count: int = Field(20, ge=1)
    """New texts asked for in one request; pocket writes as many as it likes."""
    batch: int = Field(32, ge=1)
    """Requests in one round."""
    rounds: int = Field(200, ge=1)
    """Stop after this many rounds."""
    saturation: float = Field(0.02, ge=0, le=1)
    """Stop once less than this share of what was said over `patience` rounds was kept."""
    patience: int = Field(5, ge=1)
    """Over how many rounds saturation is measured."""
    temperature: float = Field(1.0, ge=0)
    """Sampling temperature."""
    max_new_tokens: int = Field(300, ge=1)
    """Length limit of one reply."""
    seed: int = 1
    """Seeds the examples, the sampling and the combinations."""


PAPER = PersonasConfig(  # arXiv 2410.03642 with the values of the released code
    model="openai:gpt-4o", embedding="st:paraphrase-MiniLM-L6-v2", threshold=0.6, examples=5, count=20, batch=1,
    rounds=3000, saturation=0.0, patience=100, temperature=0.8, max_new_tokens=4000, personalities=71)
PRESETS = {"pocket": PersonasConfig(), "paper": PAPER}


def run(config: PersonasConfig, folder: RunFolder, stages: Sequence[str] = STAGES, log: Log = print) -> None:
    """Do the stages in `folder`; what was done before is loaded.

    Raises: ModelError, DataError, ConfigError: before growing, where the model, a file or the embedding is unusable.
    """
    texts = seeds(config, log)
    embedder = CachedEmbedder(load_embedder(config.embedding, device=config.device))
    thresholds = folder.stage("threshold", lambda: _calibrate(config, folder.path, texts, embedder, log),
                              lambda: read_thresholds(folder.path))
    for threshold in thresholds.values():
        if threshold.embedding != embedder.name:
            raise ConfigError(f"{folder.path / THRESHOLDS} is for {threshold.embedding}, but the embedding is now "
                              f"{embedder.name}; --fresh starts anew")
    todo = [kind for kind in KINDS if POOLS[kind] in stages]
    model = None if all(folder.has(POOLS[kind]) for kind in todo) else load_model(config.model, device=config.place)
    for kind in todo:
        rules = _rules(config, kind, thresholds[kind])
        folder.stage(POOLS[kind], partial(_grow, folder, rules, texts[kind], (model, embedder), log))
    if "personas" in stages:
        folder.stage("personas", lambda: _combine(config, folder, texts, embedder, log))


def style_of(config: PersonasConfig) -> Literal["free", "pocket"]:
    """How the model is asked."""
    if config.style != "auto":
        return config.style
    return "pocket" if config.model.startswith("pocket") else "free"


def seeds(config: PersonasConfig, log: Log = print) -> dict[Kind, list[str]]:
    """What growing begins with; bad lines of the user's files are told to `log` and left out."""
    own = style_of(config) == "free"
    found: dict[Kind, list[str]] = {
        "profile": list(persona_seeds.PROFILES if own else world.SEED_PROFILES),
        "personality": list(persona_seeds.PERSONALITIES if own else world.SEED_PERSONALITIES)}
    for kind, path in zip(KINDS, (config.profile_seeds, config.personality_seeds), strict=True):
        if path:
            bad: list[str] = []
            found[kind] = read_texts(path, kind, on_bad=bad.append)
            for message in bad:
                log(f"note: {message}")
            log(f"{path}: {len(found[kind])} {POOLS[kind]}, {len(bad)} bad lines left out")
    return found


def _calibrate(config: PersonasConfig, path: Path, texts: dict[Kind, list[str]], embedder: CachedEmbedder,
               log: Log) -> dict[str, Threshold]:
    """The threshold of each kind, written to its file."""
    found: dict[str, Threshold] = {}
    for kind in KINDS:
        given = config.threshold
        found[kind] = Threshold(embedder.name, given) if given is not None else calibrate(embedder, texts[kind])
        rates = "" if given is not None else (f", calibrated: misses {found[kind].missed:.1%} of rewordings, refuses "
                                              f"{found[kind].refused:.1%} of different seeds")
        log(f"{kind}: the same again above cosine {found[kind].value:g} by {embedder.name}{rates}")
    write_whole(path / THRESHOLDS, write_thresholds(found))
    return found


def _rules(config: PersonasConfig, kind: Kind, threshold: Threshold) -> GrowthRules:
    return GrowthRules(
        kind, style_of(config), target=getattr(config, POOLS[kind]), threshold=threshold.value, seed=config.seed,
        sampling=Sampling(temperature=config.temperature, max_new_tokens=config.max_new_tokens),
        examples=config.examples, count=config.count, batch=config.batch, rounds=config.rounds,
        saturation=config.saturation, patience=config.patience)


def _grow(folder: RunFolder, rules: GrowthRules, texts: list[str], parts: tuple[ChatModel | None, CachedEmbedder],
          log: Log) -> dict[str, Any]:
    """Grow one pool and write it; its report is kept in the stage's marker."""
    model, embedder = parts
    assert model is not None
    label = f"{POOLS[rules.kind]} by {model.name}"
    with progress(label, rules.target or None) as bar:
        pool = grow_pool(rules, texts, model, embedder, folder.path / LOG_FILE,
                         log=lambda pool: bar.reach(len(pool.texts), f"{label}, round {len(pool.rounds)}"))
    write_texts(folder.path / f"{POOLS[rules.kind]}.jsonl", pool.texts)
    found = report(pool, rules)
    log(describe(pool, rules))
    return found


def report(pool: Pool, rules: GrowthRules) -> dict[str, Any]:
    """What growing a pool took and gave, as plain JSON; counts add up to what was said."""
    refused = Counter[str]()
    for row in pool.rounds:
        refused.update({why: len(texts) for why, texts in row["refused"].items()})
    sums = {name: sum(row[name] for row in pool.rounds)
            for name in ("asked", "repaired", "unread", "said", "repeated", "tidied", "encoded")}
    kept = sum(len(row["kept"]) for row in pool.rounds)
    return {"kind": pool.kind, "size": len(pool.texts), "kept": kept, "rounds": len(pool.rounds),
            "stopped": pool.stopped(rules), **sums, "refused": dict(refused),
            "acceptance": [round(len(row["kept"]) / max(row["said"], 1), 4) for row in pool.rounds]}


def describe(pool: Pool, rules: GrowthRules) -> str:
    """The report as one line."""
    found = report(pool, rules)
    why = {"target": "as many as asked for", "saturated": "saturated", "rounds": "no more rounds"}[found["stopped"]]
    refused = ", ".join(f"{count} {name}" for name, count in sorted(found["refused"].items())) or "none"
    return (f"{POOLS[pool.kind]}: {found['size']} ({found['size'] - found['kept']} seeds) after {found['rounds']} "
            f"rounds, {why}; {found['said']} texts said, {found['kept']} kept, {found['repeated']} repeated, "
            f"refused: {refused}; {found['unread']} of {found['asked']} replies unread, {found['repaired']} repaired; "
            f"{found['encoded']} new texts encoded")


def _combine(config: PersonasConfig, folder: RunFolder, texts: dict[Kind, list[str]], embedder: CachedEmbedder,
             log: Log) -> dict[str, Any]:
    """Personas of the two pools, with the rows and the diversity of what was grown."""
    pools = {kind: read_pool(kind, texts[kind], folder.path / LOG_FILE) for kind in KINDS}
    people = combine(pools["profile"].texts, pools["personality"].texts, config.passes, seed=config.seed)
    write_personas(folder.path / "personas.jsonl", people)
    rows: list[Row] = []
    spread: dict[str, Any] = {}
    for kind, pool in pools.items():
        spread[kind] = diversity(embedder.encode(pool.texts))
        kept = sum(len(row["kept"]) for row in pool.rounds)
        said = sum(row["said"] for row in pool.rounds)
        rows.append(rate("personas", POOLS[kind], "acceptance", [1.0] * kept + [0.0] * (said - kept), config.seed))
        figures = {"size": float(len(pool.texts)), **spread[kind]}
        rows += [Row("personas", POOLS[kind], name, value, math.nan, math.nan, len(pool.texts), config.seed)
                 for name, value in figures.items()]
        log(f"{POOLS[kind]}: " + ", ".join(f"{name} {value:.3f}" for name, value in spread[kind].items()))
    folder.add_results(row.to_json() for row in rows)
    log(f"personas: {len(people)} ({len(pools['profile'].texts)} profiles, {config.passes} passes)")
    return {"personas": len(people), "diversity": spread}


def roles(config: PersonasConfig) -> list[Role]:
    """Who is asked by name, and how often at most."""
    return [Role("model", config.model, 2 * config.rounds * config.batch, 300 + 100 * config.examples,
                 config.max_new_tokens)]


def plan(config: PersonasConfig) -> list[dict[str, Any]]:
    """What a run would do at most, before it does it; how soon a pool is full or saturated, only growing tells."""
    texts = seeds(config, lambda line: None)
    calls = config.rounds * config.batch
    minutes = round(calls * POCKET_SECONDS / 60, 1) if config.model.startswith("pocket") else "unknown"
    how = f"{config.threshold:g}" if config.threshold is not None else "calibrated on the seeds"
    rows = [{"stage": "threshold", "what": f"{config.embedding}, {how}", "calls": 0, "tokens": 0, "minutes": 0.1}]
    for kind in KINDS:
        goal = getattr(config, POOLS[kind]) or "saturation"
        rows.append({"stage": POOLS[kind], "what": f"from {len(texts[kind])} to {goal}, at most {config.rounds} rounds",
                     "calls": calls, "tokens": calls * config.max_new_tokens, "minutes": minutes})
    rows.append({"stage": "personas", "what": f"{config.passes} of each profile", "calls": 0, "tokens": 0,
                 "minutes": 0.1})
    return rows
