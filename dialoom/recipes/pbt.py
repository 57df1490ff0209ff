"""PBT: persuasion-balanced training (arXiv 2410.14596). Two models debate trivia, one learns when to give in.

    trees   both debaters talk under private stances; every turn is branched
    pairs   sibling replies become accept and resist pairs, scored over what came after them
    train   SFT, then DPO with the SFT policy as reference, on balanced / accept-only / resist-only sets of one size
    eval    flip-flop, "are you sure?", recall, misinformation, team debate; the base and a briefed base beside them
"""

from __future__ import annotations

import gc
import itertools
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dialoom.dialogue import Dialogue, DialogueTree, Scenario, content_id
from dialoom.errors import DataError, ModelError
from dialoom.evals.metrics import Row, over_seeds
from dialoom.files import read_json, read_steps
from dialoom.models.base import ChatModel, Sampling
from dialoom.models.load import in_role
from dialoom.models.place import Place
from dialoom.progress import progress, quiet
from dialoom.recipes import shards
from dialoom.recipes.pbt_config import PAPER, PRESETS, PBTConfig
from dialoom.recipes.pbt_pairs import arm_pairs, cut_pairs, debaters, debating, import_pairs, speaker_names
from dialoom.recipes.planned import Role
from dialoom.scenarios.triviaqa import load_trivia, pocket_trivia, with_distractors
from dialoom.select import Example, Pair
from dialoom.simulate import ModelSpeaker, grow, own_first, speaking
from dialoom.stances import STANCES
from dialoom.store import TreeLog, read_rows, read_trees, write_rows, write_whole

if TYPE_CHECKING:
    from dialoom.models.local import LocalModel
    from dialoom.recipes.run import RunFolder

__all__ = ["ACTIONS", "ARMS", "PAPER", "PRESETS", "STAGES", "PBTConfig", "act", "plan", "run"]
STAGES = ("trees", "pairs", "train", "eval")
ACTIONS = ("analyse", "merge")  # done to a finished run folder: `dialoom pbt analyse RUN`
ARMS = {"pbt": "overall", "accept_only": "accept", "resist_only": "resist"}
"""Training sets, and what picks the best checkpoint: validation items of the kinds the set itself holds."""
SUBJECT = "subject"
POCKET_SECONDS = 0.0025  # a reply of pocket on one core of a small cloud machine, all reading included
WEAK_BASE = 0.2  # below this share of right answers there is little to defend and little to learn

Log = Callable[[str], None]


# ------------------------------------------------------------------------------------------------ questions


def questions(config: PBTConfig, split: str, log: Log = quiet) -> list[Scenario]:
    """The trivia questions of a split: "train", "valid" or "test"; for evaluation in phrasings training never sees.

    A user's file is split 70/15/15 by a hash of the question's id, so a question never moves.

    Args:
        log: told of rows that cannot be used.
    """
    if not config.data:
        found = pocket_trivia(split, seed=config.seed, phrasing="train" if split == "train" else "held_out")
    else:
        rows = load_trivia(config.data, on_bad=log, on_note=log)
        found = [row for row in with_distractors(rows, config.seed) if _split(row.id) == split]
        if len(found) < 2:
            raise DataError(f"{config.data}: {len(rows)} usable questions leave {len(found)} for the {split} split; "
                            "give at least 20")
    limit = config.limit or len(found)
    return found[:limit] if split == "train" else found[:min(limit, config.eval_questions)]


def _split(question_id: str) -> str:
    share = int(content_id("pbt split", question_id), 16) / 16**16
    return "train" if share < 0.7 else "valid" if share < 0.85 else "test"


# ------------------------------------------------------------------------------------------------ trees


def grow_trees(config: PBTConfig, models: dict[str, ChatModel], path: Path, progress: Callable[[str, int, int], None],
               log: Log = print) -> None:
    """Grow (or go on growing) every debate tree of the training questions into the log at `path`."""
    from dialoom.answers import AnswerJudge
    from dialoom.evals.persuasion import agreed
    from dialoom.recipes.debate import stances_at

    judge = AnswerJudge(model=in_role(models[config.extractor], "extractor") if config.extractor else None)
    specs, names = debaters(config), speaker_names(config)
    first, later = ([ModelSpeaker(name, in_role(models[spec], role),
                                  Sampling(heat, max_new_tokens=config.max_new_tokens),
                                  stances_at(config.layout, config.neutral), own_first)
                     for name, spec, role in zip(names, specs, debating(config), strict=True)]
                    for heat in (config.first_temperature, config.temperature))
    asked = shards.part_of(questions(config, "train", log), config.shard)
    with TreeLog(path) as sink:
        for order in ([*first, *later], [*first[::-1], *later[::-1]])[:2 if config.both_orders else 1]:
            for sample in range(config.samples):
                ids = [content_id(config.seed, scenario.id, order[0].name, sample) for scenario in asked]
                held = sink.trees()
                trees = [held.get(id) or DialogueTree(scenario, id) for id, scenario in zip(ids, asked, strict=True)]
                grow(trees, order, max_turns=4, seed=config.seed + 1000 * sample, judges=[judge], sink=sink,
                     expand=lambda tree, turn: not agreed(tree, turn), log=progress)


# ------------------------------------------------------------------------------------------------ training


def train_arm(config: PBTConfig, model: LocalModel, pairs: Sequence[Pair], out: Path, label: str) -> None:
    """SFT on the preferred replies, then DPO against the SFT policy; the best step by validation flip-flop is kept.

    A one-sided arm is validated on its own side only: it has no data of the other one.
    """
    from dialoom.evals.persuasion import flipflop
    from dialoom.train.dpo import dpo, reference_logprobs
    from dialoom.train.sft import sft

    validation = questions(config, "valid")[:60]

    def validate(current: Any) -> dict[str, float]:
        result = flipflop(subject(current, config), validation, label=label, seed=config.seed)
        return {row.metric: row.value for row in result.rows}

    seeded, examples = {"seed": config.seed}, [Example.from_pair(pair) for pair in pairs]
    reference = reference_logprobs(model, pairs, config.dpo) if config.reference == "base" else None
    total = config.sft.steps(len(examples)) + config.dpo.steps(len(pairs))
    with progress(f"train {label} of {model.name}", total) as bar:
        sft(model, examples, config.sft.model_copy(update=seeded), out=out / "sft", log=lambda row: bar.advance())
        watching = config.dpo.model_copy(update={**seeded, "watch": ARMS[label]})
        dpo(model, pairs, watching, out=out / "dpo", reference=reference, log=lambda row: bar.advance(),
            validate=validate)


# ------------------------------------------------------------------------------------------------ evaluation


def subject(model: ChatModel, config: PBTConfig, brief: str = "", name: str = SUBJECT,
            temperature: float = 0.0) -> ModelSpeaker:
    """A model under evaluation, greedy unless told otherwise, under the neutral prompt or the given brief."""
    sampling = Sampling(temperature, max_new_tokens=config.max_new_tokens)
    return speaking(name, model, sampling, brief or config.neutral)


def evaluate_subject(config: PBTConfig, model: ChatModel, label: str, brief: str = "",
                     log: Log = print) -> tuple[list[Row], list[tuple[str, Dialogue]]]:
    """Every greedy single-model evaluation of one subject on the held-out questions, and the dialogues behind it."""
    from dialoom.evals import persuasion

    speaker, held_out = subject(model, config, brief), questions(config, "test")
    everything = held_out if config.data else pocket_trivia(None, seed=config.seed)
    rows, dialogues = [], []
    for name, asked in (("flipflop", held_out), ("are_you_sure", held_out), ("misinformation", held_out),
                        ("recall", everything[:config.limit or None])):
        with progress(f"{name} of {label}") as bar:
            result = getattr(persuasion, name)(speaker, asked, label=label, seed=config.seed,
                                               log=lambda turn, done, total, bar=bar: bar.reach(done, turn))
        rows += result.rows
        dialogues += [(name, dialogue) for dialogue in result.dialogues]
        if result.unread:
            log(f"{name}, {label}: {result.unread} of {len(result.dialogues)} last replies hold no readable answer")
    return rows, dialogues


def evaluate_team(config: PBTConfig, one: ChatModel, other: ChatModel, label: str, brief: str = "") -> list[Row]:
    """The team debate of two models (under `brief`, if given) on the held-out questions, in both orders."""
    from dialoom.evals.persuasion import team

    members = subject(one, config, brief, "one"), subject(other, config, brief, "other")
    return team(*members, questions(config, "test"), label=label, seed=config.seed).rows


# ------------------------------------------------------------------------------------------------ the run


def run(config: PBTConfig, folder: RunFolder, stages: Sequence[str] = STAGES, log: Log = print) -> None:
    """Do the given stages in `folder`; what is done is loaded, what was stopped in the middle goes on."""
    path = folder.path
    stages = ("trees",) if config.shard else stages
    if {"train", "eval"} & set(stages):
        check_trainable(config.model)
    if not config.pairs:
        folder.briefs({**STANCES, "neutral": config.neutral})
    if "trees" in stages and not config.pairs:
        folder.stage("trees", lambda: _trees_stage(config, path, log))
    if "pairs" in stages:
        folder.stage("pairs", lambda: _pairs_stage(config, path, log))
    if "train" in stages:
        for learner, arm in jobs(config):
            name = f"train-{arm}-{learner_name(learner)}"
            folder.stage(name, partial(_train_stage, config, folder, learner, arm, log))
    if "eval" in stages:
        _eval_stages(config, folder, log)


def data_hash(config: PBTConfig) -> str:
    """16 hex digits over the user's files, "" where there are none. Raises DataError if one cannot be read."""
    from dialoom.recipes.run import hash_data
    from dialoom.scenarios.files import files_of

    asked = hash_data(config.data or None)
    return content_id(asked, *map(hash_data, files_of(config.pairs))) if config.pairs else asked


def check_trainable(spec: str) -> None:
    """Raises ModelError, before anything is computed or paid for, if a model's weights are not at hand."""
    if spec.startswith("openai:"):
        raise ModelError(f"{spec} cannot be trained (its weights are not here); give --model pocket or hf:<name>, "
                         "and the endpoint as --partner or among --speakers")


def act(action: str, folder: Path, log: Log = print) -> None:
    """Do one of `ACTIONS` to a run folder."""
    from dialoom.recipes.pbt_analysis import run_analysis

    if action == "merge":
        shards.merge(folder, log)
    else:
        run_analysis(folder, log=log)


def learner_name(spec: str) -> str:
    """A model spec as part of a file name."""
    return "".join(letter if letter.isalnum() or letter in "-._" else "-" for letter in spec)


def jobs(config: PBTConfig) -> list[tuple[str, str]]:
    """What is trained: (model spec, arm); the partner is trained on the balanced set only."""
    partner = [(config.partner, "pbt")] if trains_partner(config) else []
    return [(config.model, arm) for arm in ARMS] + partner


def trains_partner(config: PBTConfig) -> bool:
    """Whether the partner is trained as well: asked for, a debater, another model, and not an endpoint."""
    return (config.train_partner and config.partner != config.model and config.partner in debaters(config)
            and not config.partner.startswith("openai:"))


def load_local(spec: str, device: str | Place) -> LocalModel:
    """A model whose weights are at hand; raises ModelError for an endpoint."""
    from dialoom.models.load import load_model
    from dialoom.models.local import LocalModel

    check_trainable(spec)
    model = load_model(spec, device=Place.of(device).single)
    assert isinstance(model, LocalModel)
    return model


def _trees_stage(config: PBTConfig, path: Path, log: Log) -> dict[str, Any]:
    from dialoom.models.load import POCKETS, WEIGHTS, load_model, weights_hash

    models = {spec: load_model(spec, device=config.place) for spec in {*debaters(config), config.extractor} - {""}}
    env = read_json(path / "env.json", dict)
    hashes = {spec: weights_hash(WEIGHTS / spec) if spec in POCKETS else model.fingerprint[:12]
              for spec, model in models.items()}
    env["model_hash"] = ", ".join(f"{spec} {found}" for spec, found in sorted(hashes.items()))
    write_whole(path / "env.json", json.dumps(env, indent=1))
    known = _base_recall(config, models.get(config.model) or load_model(config.model, device=config.place))
    if known < WEAK_BASE:
        note = (f"{config.model} answers {known:.0%} of these questions by itself. There is little for it to defend, "
                "so expect little; use easier questions or a stronger model.")
        log(f"note: {note}")
        write_whole(path / "notes.json", json.dumps([note]))
    if shards.shard_folders(path):
        shards.merge(path, log)
    else:
        with progress("debates") as bar:
            grow_trees(config, models, path / "trees.jsonl",
                       lambda label, done, total: bar.reach(done, f"{label}, {total} replies"), log)
    trees = read_trees(path / "trees.jsonl")
    return {"trees": len(trees), "turns": sum(len(tree) for tree in trees.values()), "base_recall": known}


def _base_recall(config: PBTConfig, model: ChatModel) -> float:
    """How much of (a sample of) the training questions the model that will be trained answers right by itself."""
    from dialoom.evals.persuasion import recall

    asked = questions(config, "train")[:100]
    return recall(subject(model, config), asked, label="base", seed=config.seed).rows[0].value


def _pairs_stage(config: PBTConfig, path: Path, log: Log) -> dict[str, Any]:
    from dialoom.models.load import load_model

    if config.pairs:
        asked = [one.opening for split in ("valid", "test") for one in questions(config, split)]
        return dict(Counter(pair.kind for pair in import_pairs(config, path, asked, log)))
    spec = config.filter_model or config.model
    model = in_role(load_model(spec, device=config.place), "filter_model") if config.filters == "model" else None
    pairs = cut_pairs(config, path, model)
    kinds = Counter(pair.kind for pair in pairs)
    log(f"pairs: {kinds['accept']} accept, {kinds['resist']} resist")
    return dict(kinds)


def _train_stage(config: PBTConfig, folder: RunFolder, learner: str, arm: str, log: Log) -> dict[str, Any]:
    pairs = [Pair.from_row(row, f"pairs.jsonl:{n}") for n, row in enumerate(read_rows(folder.path / "pairs.jsonl"), 1)]
    chosen = arm_pairs(config, pairs, learner)[arm]
    model, out = load_local(learner, config.place), trained_folder(config, folder.path, learner, arm)
    work = folder.path / "work" / f"{arm}-{learner_name(learner)}"
    log(f"train {arm} of {learner}: {len(chosen)} pairs")
    train_arm(config, model, chosen, work, arm)
    model.save(out)
    gather_metrics(config, folder.path)
    return {"pairs": len(chosen), "folder": str(out.relative_to(folder.path))}


def gather_metrics(config: PBTConfig, path: Path) -> None:
    """Write metrics.jsonl anew out of what every training noted, so a resumed one leaves no row twice."""
    rows: list[dict[str, Any]] = []
    for learner, arm in jobs(config):
        for stage in ("sft", "dpo"):
            noted = path / "work" / f"{arm}-{learner_name(learner)}" / stage / "metrics.jsonl"
            label = arm if learner == config.model else f"{arm}, {learner}"
            rows += [{"stage": stage, "subject": label, **row} for row in read_steps(noted)]
    write_rows(path / "metrics.jsonl", rows)


def trained_folder(config: PBTConfig, path: Path, learner: str, arm: str) -> Path:
    """Where a trained model lies: the main model's balanced one in `model/` or `adapter/`, the others in `arms/`."""
    if learner == config.model and arm == "pbt":
        return path / ("adapter" if config.dpo.tune == "lora" else "model")
    return path / "arms" / f"{arm}-{learner_name(learner)}"


def load_trained(config: PBTConfig, path: Path, learner: str, arm: str) -> LocalModel:
    """A model this run trained."""
    from dialoom.models.load import load_folder

    return load_folder(trained_folder(config, path, learner, arm), device=config.place, name=f"{learner} ({arm})")


def _eval_stages(config: PBTConfig, folder: RunFolder, log: Log) -> None:
    subjects = [("base", None, ""), *((arm, arm, "") for arm in ("accept_only", "resist_only", "pbt"))]
    subjects += [("briefed", None, config.ceiling)] if config.ceiling else []
    for label, arm, brief in subjects:
        folder.stage(f"eval-{label}", partial(_eval_stage, config, folder, label, arm, brief, log))
        gc.collect()
    folder.stage("eval-sampled", partial(_sampled_stage, config, folder, subjects))
    if trains_partner(config):
        folder.stage("eval-team", lambda: _team_stage(config, folder))
    rows = [Row(**row) for row in folder.results() if row["seed"] is not None]
    folder.add_results(row.to_json() for row in over_seeds(rows))


def _eval_stage(config: PBTConfig, folder: RunFolder, label: str, arm: str | None, brief: str, log: Log) -> int:
    model = load_trained(config, folder.path, config.model, arm) if arm else load_local(config.model, config.place)
    rows, dialogues = evaluate_subject(config, model, label, brief, log)
    folder.add_results(row.to_json() for row in rows)
    transcripts = [_transcript(name, label, dialogue) for name, dialogue in dialogues]
    (folder.path / "evals").mkdir(exist_ok=True)
    write_rows(folder.path / "evals" / f"{label}.jsonl", transcripts)
    for row in rows:
        log(f"{row.subject:12} {row.eval:14} {row.metric:10} {row.value:6.1%}  [{row.low:.1%}, {row.high:.1%}]")
    return len(rows)


def _sampled_stage(config: PBTConfig, folder: RunFolder, subjects: Sequence[tuple[str, str | None, str]]) -> int:
    """"Are you sure?" once more with sampled replies: a greedy model may hide how much of its mass a doubt moves."""
    from dialoom.evals.persuasion import are_you_sure

    rows: list[Row] = []
    for label, arm, brief in subjects:
        model = load_trained(config, folder.path, config.model, arm) if arm else load_local(config.model, config.place)
        speaker = subject(model, config, brief, temperature=config.temperature)
        with progress(f"are_you_sure, sampled, of {label}"):
            found = are_you_sure(speaker, questions(config, "test"), label=label, seed=config.seed).rows
        rows += [replace(row, eval="are_you_sure_sampled") for row in found]
    folder.add_results(row.to_json() for row in rows)
    return len(rows)


def _transcript(eval_name: str, label: str, dialogue: Dialogue) -> dict[str, Any]:
    return {"eval": eval_name, "subject": label, "scenario": dialogue.scenario.id, "opening": dialogue.scenario.opening,
            "answer": dialogue.scenario.facts["answer"],
            "turns": [{"speaker": turn.speaker, "text": turn.text, "answer": turn.notes.get("answer"), **turn.scores}
                      for turn in dialogue.turns]}


def _team_stage(config: PBTConfig, folder: RunFolder) -> int:
    base, weak = (load_local(spec, config.place) for spec in (config.model, config.partner))
    strong_trained = load_trained(config, folder.path, config.model, "pbt")
    weak_trained = load_trained(config, folder.path, config.partner, "pbt")
    count = 0
    teams = [("none", base, weak, ""), (learner_name(config.model), strong_trained, weak, ""),
             ("both", strong_trained, weak_trained, "")]
    teams += [("briefed", base, weak, config.ceiling)] if config.ceiling else []
    for label, one, other, brief in teams:
        with progress(f"team debate, {label}"):
            rows = evaluate_team(config, one, other, label, brief)
        folder.add_results(row.to_json() for row in rows)
        count += len(rows)
    return count


def roles(config: PBTConfig) -> list[Role]:
    """Who is asked by name, and how often at most; the model that is trained is no endpoint but in the debates."""
    from dialoom.recipes.debate import LAYOUTS

    children = [len(stances) for stances in LAYOUTS[config.layout][1:]]
    sizes = list(itertools.accumulate(children, int.__mul__, initial=1))  # replies by level
    asked = [] if config.pairs else shards.part_of(questions(config, "train"), config.shard)
    trees, each, said = len(asked) * config.samples, config.max_new_tokens, (sum(sizes[::2]), sum(sizes[1::2]))
    shares = [sum(said) * trees] * 2 if config.both_orders else [trees * count for count in said]
    found = [Role(name, spec, calls, 150 + 2 * each, each)
             for name, spec, calls in zip(debating(config), debaters(config), shares, strict=True)]
    total, filtered = sum(shares), config.filters == "model"
    return [*found, Role("model", config.model, min(100, len(asked)), 150, each),
            Role("extractor", config.extractor, total, 150 + each, 40),
            Role("filter_model", config.filter_model if filtered else "", 3 * total // 2 * filtered, 100 + 2 * each, 8)]


def plan(config: PBTConfig) -> list[dict[str, Any]]:
    """What a run would do, before it does it: model calls, new tokens and time by stage.

    Calls and tokens are the most there can be (debates end where the two agree). The time is what pocket takes on one
    CPU core; of another model's speed nothing is known before it runs.
    """
    check_trainable(config.model)
    asked = 0 if config.pairs else len(questions(config, "train"))
    held_out = len(questions(config, "test"))
    known = held_out if config.data else min(config.limit or 545, 545)
    trees = asked * config.samples * (2 if config.both_orders else 1)
    talk = trees * (21 if config.layout == "released" else 10)
    subjects, arms = 4 + bool(config.ceiling), len(jobs(config))
    tests = subjects * (held_out * (2 + 3 + 3 + 5) + known) + (4 * 8 * held_out if trains_partner(config) else 0)
    rows = [("trees", f"{trees} debate trees, and what {config.model} knows by itself", talk + min(asked, 100)),
            ("pairs", config.pairs or f"accept and resist pairs, filters: {config.filters}",
             3 * talk // 2 if config.filters == "model" else 0),
            ("train", ", ".join(f"{arm} of {model}" for model, arm in jobs(config)),
             arms * (config.dpo.epochs + 1) * 2 * min(60, held_out)),
            ("eval", f"{subjects} subjects on {held_out} held-out questions, and the teams", tests)]
    is_pocket = all(spec.startswith("pocket") for spec in debaters(config))
    training = {"train": 0.5 * arms * min(1.0, (asked or 288) / 288)}  # minutes besides validation; pocket has 288
    return [{"stage": stage, "what": what, "calls": calls, "tokens": calls * config.max_new_tokens,
             "minutes": round(calls * POCKET_SECONDS / 60 + training.get(stage, 0), 1) if is_pocket else "unknown"}
            for stage, what, calls in rows]
