"""ALOE: infer who is talking and adapt, turn by turn (arXiv 2410.03642).

    personas   whom to train on and whom to measure on; nobody is both
    dialogues  simulated users talk; each message gets a reply with a hint and one without, and a judge
    sft        on preferred replies, and on rejected ones as a control: no hint in sight
    dpo        on the pairs, along the branch that was really taken
    eval       alignment levels over ten turns on held-out people, beside prompt baselines; recall and fluency
"""

from __future__ import annotations

import gc
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dialoom.dialogue import DialogueTree, content_id
from dialoom.errors import ConfigError, DataError, ModelError
from dialoom.evals.alignment_roles import EXAMPLES, persona_at, scenario_of
from dialoom.evals.metrics import Row, over_seeds
from dialoom.files import read_steps
from dialoom.models.load import load_folder
from dialoom.progress import progress
from dialoom.recipes.aloe_cast import Cast, replies
from dialoom.recipes.aloe_config import ARMS, PAPER, PRESETS, RULE, AloeConfig
from dialoom.recipes.aloe_data import POCKET, conversations, examples_of, general_examples, pairs_of, read_conversations
from dialoom.recipes.aloe_dialogues import HINTED, PLAIN, Tally, grow_dialogues, read_log, responder
from dialoom.recipes.aloe_eval import SHIFTED, evaluate_subject
from dialoom.recipes.aloe_people import apart, people
from dialoom.recipes.pbt import load_local
from dialoom.recipes.planned import Role
from dialoom.recipes.run import hash_data, value_of
from dialoom.scenarios.personas import Persona, read_personas, write_personas
from dialoom.select import Example, Pair
from dialoom.store import TreeLog, read_rows, write_rows, write_whole

if TYPE_CHECKING:
    from dialoom.models.local import LocalModel
    from dialoom.recipes.run import RunFolder

__all__ = ["ARMS", "PAPER", "PRESETS", "STAGES", "AloeConfig", "data_hash", "plan", "run"]
STAGES = ("personas", "dialogues", "sft", "dpo", "eval")
POCKET_SECONDS = 0.02  # a reply of pocket on one core of a small cloud machine
POCKET_TRAINING = 25.0  # seconds of one training
PEOPLE = {"train": "personas_train.jsonl", "eval": "personas_eval.jsonl"}

Log = Callable[[str], None]


def data_hash(config: AloeConfig) -> str:
    """16 hex digits over the user's files, "" where there are none. Raises DataError if one cannot be read."""
    named = {name: getattr(config, name) for name in ("personas", "eval_personas", "conversations", "general")}
    if named["general"] == POCKET:
        named["general"] = ""
    for name, path in named.items():
        if path and not Path(path).is_file():
            raise DataError(f"{path}: no such file; expected the JSON lines of --{name.replace('_', '-')}")
    return content_id(*(hash_data(path or None) for path in named.values())) if any(named.values()) else ""


# ------------------------------------------------------------------------------------------------ the run


def run(config: AloeConfig, folder: RunFolder, stages: Sequence[str] = STAGES, log: Log = print) -> None:
    """Do the given stages in `folder`; what is done is loaded, what was stopped in the middle goes on.

    Raises: ConfigError, DataError, ModelError: before anything is computed, where settings do not go together.
    """
    check(config, stages)
    path = folder.path
    folder.briefs(_briefs(config))
    folder.stage("personas", lambda: _personas_stage(config, path, log))
    if "dialogues" in stages:
        folder.stage("dialogues", lambda: _dialogues_stage(config, path, log))
    if "sft" in stages:
        for which in ("preferred", "rejected"):
            folder.stage(f"train-sft_{which}", partial(_sft_stage, config, path, which, log))
    if "dpo" in stages:
        folder.stage("train-dpo", lambda: _dpo_stage(config, path, log))
    if "eval" in stages:
        _eval_stages(config, folder, log)


def _briefs(config: AloeConfig) -> dict[str, str]:
    """What speakers are told privately, by the name their turns note; a hint differs from turn to turn."""
    told = {"brief": config.neutral, "persona": config.user_brief, "evals/briefed/brief": config.ceiling,
            "evals/few_shot/brief": "\n\n".join(part for part in (config.neutral, EXAMPLES) if part)}
    if config.conversations:  # who wrote those was told something else
        return told
    known = "(what the user has let out up to here, as the user's turns note)"
    return {**told, HINTED: config.hint.format(hint=known), PLAIN: config.neutral}


def check(config: AloeConfig, stages: Sequence[str] = STAGES) -> None:
    """Refuse what cannot be meant, before anything is computed or paid for."""
    if config.model.startswith("openai:") and {"sft", "dpo", "eval"} & set(stages):
        raise ModelError(f"{config.model} cannot be trained (its weights are not here); give --model pocket or "
                         "hf:<name>, and the endpoint as --responder, --user, --inducer or --judge")
    own_people = config.eval_personas or (config.personas and not config.conversations)
    if config.user == RULE and config.judge != "exact" and own_people:
        raise ConfigError("--user rule speaks for people of pocket's world only; name a model for people of your own")


def _personas_stage(config: AloeConfig, path: Path, log: Log) -> dict[str, Any]:
    train, test, dropped = people(config, log)
    write_personas(path / PEOPLE["train"], train)
    write_personas(path / PEOPLE["eval"], test)
    log(f"personas: {len(train)} to train on, {len(test)} to evaluate on"
        + "".join(f", {count} {reason}" for reason, count in dropped.items()))
    return {"train": len(train), "eval": len(test), "dropped": dropped}


def _dialogues_stage(config: AloeConfig, path: Path, log: Log) -> dict[str, Any]:
    tally = Tally()
    trees = (_imported if config.conversations else _grown)(config, path, tally, log)
    write_rows(path / "conversations.jsonl", conversations(trees))
    pairs = [pair for tree in trees for pair in pairs_of(tree, neutral=config.neutral, margin=config.margin)]
    write_rows(path / "pairs.jsonl", [pair.to_row() for pair in pairs])
    lost = tally.lost + Counter({} if config.conversations else _people_left_out(path))
    write_whole(path / "dropped.json", json.dumps(lost, indent=1))
    log(f"dialogues: {len(trees)}, {len(pairs)} pairs"
        + "".join(f", {count} {name}" for name, count in tally.to_json().items()))
    if not pairs:
        raise DataError("no pair came out of the dialogues: the two replies were never told apart; look at "
                        "dropped.json, and at the judge and the hint")
    return {"dialogues": len(trees), "pairs": len(pairs), **tally.to_json()}


def _people_left_out(path: Path) -> dict[str, int]:
    found: dict[str, int] = value_of(path, "personas")["dropped"]
    return found


def _grown(config: AloeConfig, path: Path, tally: Tally, log: Log) -> list[DialogueTree]:
    """The dialogues of the people to train on, grown into trees.jsonl."""
    cast = Cast(config)
    scenarios = [scenario_of(one) for one in read_personas(path / PEOPLE["train"])]
    model = cast.model(config.responder or config.model, "responder")
    speaker = responder(model, replies(config), config.hint, config.neutral)
    judges = [cast.inducer(), *([cast.judge()] if config.judge == "exact" else [])]
    with TreeLog(path / "trees.jsonl") as sink, progress("dialogues") as bar:
        held = sink.trees()
        ids = [content_id(config.seed, scenario.id) for scenario in scenarios]
        trees = [held.get(id) or DialogueTree(scene, id) for id, scene in zip(ids, scenarios, strict=True)]
        grow_dialogues(trees, cast.user(), speaker, judges, cast.comparer(), turns=config.turns, seed=config.seed,
                       sink=sink, batch=config.batch,
                       log=lambda label, done, total: bar.reach(done, f"{label}, {total} replies"))
    for tree in trees:
        tally.add(tree, config.turns)
    return trees


def _imported(config: AloeConfig, path: Path, tally: Tally, log: Log) -> list[DialogueTree]:
    """The dialogues of `conversations` without people for evaluation, put into trees.jsonl."""
    def bad(line: str) -> None:
        tally.lost["unusable or repeated line"] += 1
        log(line)

    trees = read_conversations(config.conversations, bad)
    talkers = [persona_at(tree.scenario, 1) for tree in trees]
    kept = {one.id for one in apart(config, talkers, read_personas(path / PEOPLE["eval"]), tally.lost, log)}
    trees = [tree for tree, one in zip(trees, talkers, strict=True) if one.id in kept]
    with TreeLog(path / "trees.jsonl") as sink:
        for tree in trees:
            sink.add_tree(tree)
    return trees


# ------------------------------------------------------------------------------------------------ training


def training_set(config: AloeConfig, path: Path, which: str, log: Log = lambda line: None) -> list[Example]:
    """The SFT examples of an arm, general chats mixed in by their share."""
    found: list[Example] = []
    for tree in read_log(path / "trees.jsonl"):
        pairs = pairs_of(tree, neutral=config.neutral, margin=config.margin)
        found += examples_of(tree, pairs, which, neutral=config.neutral)
    count = round(len(found) * config.general_share / (1 - config.general_share))
    return [*found, *general_examples(config.general, count, seed=config.seed, log=log)]


def _sft_stage(config: AloeConfig, path: Path, which: str, log: Log) -> dict[str, Any]:
    from dialoom.train.sft import sft

    examples, arm = training_set(config, path, which, log), f"sft_{which}"
    model = load_local(config.model, config.place)
    settings = config.sft.model_copy(update={"seed": config.seed})
    with progress(f"train {arm} of {model.name}", settings.steps(len(examples))) as bar:
        sft(model, examples, settings, out=path / "work" / arm, log=lambda row: bar.advance())
    model.save(trained_folder(config, path, arm))
    gather_metrics(path)
    return {"examples": len(examples), "targets": sum(len(one.train_on) for one in examples)}


def _dpo_stage(config: AloeConfig, path: Path, log: Log) -> dict[str, Any]:
    from dialoom.train.dpo import dpo

    pairs = [Pair.from_row(row, f"pairs.jsonl:{n}") for n, row in enumerate(read_rows(path / "pairs.jsonl"), 1)]
    model = load_trained(config, path, "sft_preferred") if config.dpo_from == "sft" else load_local(
        config.model, config.place)
    settings = config.dpo.model_copy(update={"seed": config.seed})
    with progress(f"train dpo of {model.name}", settings.steps(len(pairs))) as bar:
        dpo(model, pairs, settings, out=path / "work" / "dpo", log=lambda row: bar.advance())
    model.save(trained_folder(config, path, "dpo"))
    gather_metrics(path)
    return {"pairs": len(pairs)}


def trained_folder(config: AloeConfig, path: Path, arm: str) -> Path:
    """Where a trained model lies: the last one, DPO's, in `model/` or `adapter/`, the others in `arms/`."""
    kind = "adapter" if config.sft.tune == "lora" else "model"
    return path / kind if arm == "dpo" else path / "arms" / arm


def load_trained(config: AloeConfig, path: Path, arm: str) -> LocalModel:
    """A model this run trained."""
    return load_folder(trained_folder(config, path, arm), device=config.place, name=f"{config.model} ({arm})")


def gather_metrics(path: Path) -> None:
    """Write metrics.jsonl anew out of what every training noted, so a resumed one leaves no row twice."""
    rows: list[dict[str, Any]] = []
    for arm in ARMS:
        noted = path / "work" / arm / "metrics.jsonl"
        rows += [{"stage": arm.split("_")[0], "subject": arm, **row} for row in read_steps(noted)]
    write_rows(path / "metrics.jsonl", rows)


# ------------------------------------------------------------------------------------------------ evaluation


def subjects_of(config: AloeConfig) -> list[str]:
    """The subjects of the evaluation: base, prompt baselines, trained models, and the ceiling if there is one."""
    return ["base", *config.baselines, *ARMS, *(["briefed"] if config.ceiling else [])]


def _eval_stages(config: AloeConfig, folder: RunFolder, log: Log) -> None:
    cast, test = Cast(config), read_personas(folder.path / PEOPLE["eval"])
    for label in subjects_of(config):
        folder.stage(f"eval-{label}", partial(_eval_stage, cast, folder, label, test, log))
        gc.collect()
    rows = [Row(**{**row, **{key: math.nan for key in ("value", "low", "high") if row[key] is None}})
            for row in folder.results() if row["seed"] is not None]
    folder.add_results(row.to_json() for row in over_seeds(rows))


def _eval_stage(cast: Cast, folder: RunFolder, label: str, test: list[Persona], log: Log) -> int:
    config = cast.config
    model = load_trained(config, folder.path, label) if label in ARMS else load_local(config.model, config.place)
    rows = evaluate_subject(cast, model, label, test, out=folder.path / "evals", log=log)
    folder.add_results(row.to_json() for row in rows)
    for row in rows:
        if row.metric in ("avg", "ir", "n_ir", "accuracy", "perplexity"):
            log(f"{row.subject:14} {row.eval:16} {row.metric:10} {row.value:7.3f}  [{row.low:.3f}, {row.high:.3f}]")
    return len(rows)


# ------------------------------------------------------------------------------------------------ the plan


def roles(config: AloeConfig) -> list[Role]:
    """Who is asked by name, and how often at most; inducer and judge up to three times each."""
    talk = 0 if config.conversations else config.train_count * config.turns
    shifts = len(SHIFTED) if config.shift_at else 0
    tests = (len(subjects_of(config)) + shifts) * config.eval_count * config.turns
    each, history = config.max_new_tokens, 150 + config.turns * config.max_new_tokens
    return [Role("responder", config.responder or config.model, 2 * talk, history, each),
            Role("user", config.user, talk + tests, history, each),
            Role("inducer", config.inducer, 3 * talk, history, 60),
            Role("judge", config.judge, 3 * (talk + tests), 300 + 3 * each, 8)]


def plan(config: AloeConfig) -> list[dict[str, Any]]:
    """What a run would do at most, before it does it. The time is what pocket takes on one CPU core."""
    check(config)
    turns, model_calls = config.turns, sum(who not in (RULE, "exact") for who in (config.user, config.inducer))
    dialogues = 0 if config.conversations else config.train_count * turns
    per_reply = 1 + (config.user != RULE) + (config.judge != "exact")
    shifts = len(SHIFTED) if config.shift_at else 0
    tests = (len(subjects_of(config)) + ("self_critique" in config.baselines) + shifts) * config.eval_count * turns
    talk = dialogues * (2 + model_calls + (config.judge != "exact"))
    is_pocket = {config.model, config.responder or config.model} <= {"pocket", "pocket-small"} and not model_calls
    sources = config.conversations or f"{config.train_count} dialogues of {turns} turns"
    rows = [("personas", config.personas or "people of pocket's world", 0, 1.0),
            ("dialogues", sources, talk, talk * POCKET_SECONDS),
            ("sft", "preferred, and rejected as a control", 0, 2 * POCKET_TRAINING),
            ("dpo", f"from {config.dpo_from}", 0, POCKET_TRAINING),
            ("eval", f"{len(subjects_of(config))} subjects with {config.eval_count} held-out people",
             tests * per_reply, tests * POCKET_SECONDS)]
    return [{"stage": stage, "what": what, "calls": calls, "tokens": calls * config.max_new_tokens,
             "minutes": round(seconds / 60, 1) if is_pocket else "unknown"} for stage, what, calls, seconds in rows]


