"""DAT: dialogue action tokens (arXiv 2406.11978). A small planner steers a frozen model toward a goal, turn by turn.

    clone    the model's own replies are collected, and a clone with an up-mapping is fitted to them (not for a PCA)
    upmap    how an action becomes a prefix: that mapping, a PCA of the embeddings, or another run's
    collect  training scenes are played under varied actions, into a replay
    train    TD3+BC on the replay; further passes collect with the planner so far and train a new one on all there is
    eval     held-out scenes: the planner beside the unsteered model, random and constant actions and the clone

The model's weights are never changed. What a scene is, and what is earned in it, is a `Side`.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dialoom.config import load_config
from dialoom.dialogue import Scenario, content_id
from dialoom.errors import ConfigError, DataError, ModelError
from dialoom.evals.metrics import Row, over_seeds
from dialoom.files import read_rows, read_steps, read_text, write_rows, write_whole
from dialoom.progress import progress
from dialoom.recipes.dat_config import PAPER, PRESETS, DatConfig
from dialoom.recipes.planned import Role
from dialoom.store import TreeLog

if TYPE_CHECKING:
    from dialoom.models.local import LocalModel
    from dialoom.models.steering import Steering
    from dialoom.recipes.dat_eval import Parts
    from dialoom.recipes.dat_side import Side
    from dialoom.recipes.run import RunFolder
    from dialoom.train.cloning import Reply
    from dialoom.train.replay import Replay

__all__ = ["ACTIONS", "PAPER", "PRESETS", "STAGES", "DatConfig", "act", "data_hash", "plan", "roles", "run", "side_of"]
STAGES = ("clone", "upmap", "collect", "train", "eval")
ACTIONS = ("sweep",)  # done to a finished run folder: `dialoom dat sweep RUN`
CLONE, MAPPING, PLANNER_FOLDER, REPLAY, CARD = "clone", "mapping", "planner", "replay.bin", "replay.json"
POCKET_SECONDS = 0.008  # a steered reply of pocket on one core of a small cloud machine, all reading included
HELD_OUT = 10  # every tenth prompt measures the clone's gap

Log = Callable[[str], None]


def run(config: DatConfig, folder: RunFolder, stages: Sequence[str] = STAGES, log: Log = print) -> None:
    """Do the given stages in `folder`; what is done is loaded, what was stopped in the middle goes on."""
    from dialoom.models.steering import Steering

    model = load_frozen(config)
    side, path = side_of(config, model), folder.path
    if "clone" in stages and config.mapping != "pca" and not config.upmap:
        replies = folder.stage("replies", lambda: _replies_stage(config, model, side, path),
                               lambda: _read_replies(path / "replies.jsonl"))
        folder.stage("clone", lambda: _clone_stage(config, model, replies, folder, log))
    if "upmap" not in stages:
        return
    norm = folder.stage("upmap", lambda: _upmap_stage(config, model, path, side.reach))["norm"]
    mapping = Steering.load(path / MAPPING)
    for turn in range(1, (config.passes if "train" in stages else 1) + 1):
        if "collect" in stages:
            steering = mapping if turn == 1 else Steering.load(_trained(path, turn - 1))
            folder.stage(f"collect-{turn}", partial(_collect_stage, config, model, steering, side, path, turn, norm))
        if "train" in stages:
            folder.stage(f"train-{turn}", partial(_train_stage, config, mapping, path, turn, norm))
    if "eval" in stages:
        _eval_stages(config, model, side, folder, norm, log)


def data_hash(config: DatConfig) -> str:
    """16 hex digits over the user's files, "" where there are none. Raises DataError if one cannot be read."""
    from dialoom.recipes.run import hash_data
    from dialoom.scenarios.sotopia import files_in

    files = [Path(path) for path in (config.clone.data, config.redteam.ordinary) if path]
    if config.data and config.scenes == "social":
        files += sorted(path for paths in files_in(config.data).values() for path in paths)
    elif config.data:
        files.append(Path(config.data))
    return content_id(*map(hash_data, files)) if files else ""


def check(spec: str) -> None:
    """Raises ModelError, before anything is computed or paid for, if a model's embeddings cannot be reached."""
    from dialoom.models.load import is_endpoint

    if is_endpoint(spec):
        raise ModelError(f"{spec} cannot be steered (its embeddings cannot be reached); give --model pocket or "
                         "hf:<name>, and the endpoint as --partner or --judge")


def load_frozen(config: DatConfig) -> LocalModel:
    """The model that is steered; raises ModelError for one behind a server, or whose attention does not allow it."""
    check(config.model)
    from dialoom.models.load import load_model
    from dialoom.models.local import LocalModel

    model = load_model(config.model, device=config.place.single)
    if not isinstance(model, LocalModel):
        raise ModelError(f"{config.model} cannot be steered (its embeddings cannot be reached); use pocket or "
                         "hf:<name>")
    model.states([])  # says why not
    for parameter in model.module.parameters():
        parameter.requires_grad_(False)
    return model


def side_of(config: DatConfig, model: LocalModel) -> Side:
    """The scenes of a run; with `scene`, one training scene, many times over, for training and evaluation alike.

    Raises: ConfigError: if there is no such scene.
    """
    if config.scenes == "redteam":
        from dialoom.recipes.dat_redteam import redteam_side
        side: Side = redteam_side(config, model)
    else:
        from dialoom.recipes.dat_social import social_side
        side = social_side(config, model)
    if config.scene < 0:
        return side
    known = side.scenes["train"]
    if config.scene >= len(known):
        raise ConfigError(f"--scene {config.scene}: there are {len(known)} training scenes; give 0 to {len(known) - 1}")
    counts = {"train": config.train_scenes, "valid": config.valid_scenes, "test": config.test_scenes}
    return replace(side, scenes={split: _again(known[config.scene], split, count) for split, count in counts.items()})


def _again(scene: Scenario, split: str, count: int) -> list[Scenario]:
    return [replace(scene, id=f"{scene.id}#{split}{at}") for at in range(count)]


# ------------------------------------------------------------------------------------------------ stages


def _replies_stage(config: DatConfig, model: LocalModel, side: Side, path: Path) -> list[list[Reply]]:
    from dialoom.recipes.dat_collect import replies_of
    from dialoom.train.cloning import read_replies

    if config.clone.data:
        found = [[one] for one in read_replies(config.clone.data, model)]
    else:
        with progress("unsteered dialogues and replies") as bar, TreeLog(path / "unsteered.jsonl") as sink:
            found = replies_of(config, model, side, sink, lambda label, done, total: bar.reach(done, label))
    write_rows(path / "replies.jsonl", [
        {"prompt": own[0].prompt, "replies": [one.reply for one in own],
         "texts": [model.tokenizer.decode(one.reply, skip_special_tokens=True) for one in own]} for own in found])
    return found


def _read_replies(path: Path) -> list[list[Reply]]:
    from dialoom.train.cloning import Reply

    found = []
    for line, row in enumerate(read_rows(path), 1):
        prompt, replies = row.get("prompt", ()), row.get("replies", ())
        some = [prompt, *replies] if isinstance(replies, list) else []
        if len(some) < 2 or not all(isinstance(ids, list) and ids and all(isinstance(one, int) for one in ids)
                                    for ids in some):
            raise DataError(f"{path}:{line}: expected prompt and replies as token ids, found {reprlib.repr(row)}; "
                            f"remove {path.parent / 'stages' / 'replies.json'}, and they are collected again")
        found.append([Reply(tuple(prompt), tuple(reply)) for reply in replies])
    return found


def _clone_stage(config: DatConfig, model: LocalModel, replies: list[list[Reply]], folder: RunFolder,
                 log: Log) -> dict[str, Any]:
    from dialoom.models.steering import state_width
    from dialoom.train.cloning import CloneConfig, self_clone
    from dialoom.train.coded import Coding, coded_clone

    kept = [own for at, own in enumerate(replies) if at % HELD_OUT]
    held_out = [one for own in replies[::HELD_OUT] for one in own]
    stage, out = config.clone, folder.path / CLONE
    hidden = tuple(width or state_width(model) for width in stage.hidden)
    with progress("self-cloning") as bar:
        def tell(label: str, done: int, total: int) -> None:
            bar.reach(done, f"{label}, of {total}")

        if config.mapping == "coded":
            coding = Coding(tokens=config.tokens, sorts=config.action, hidden=hidden,
                            position=config.position, steps=stage.steps, batch=stage.batch, each=stage.each,
                            lr=stage.lr, mapping_lr=stage.mapping_lr, plain=stage.plain, seed=config.seed)
            found, sorts = coded_clone(model, kept, coding, held_out=held_out, out=out, log=tell)
        else:
            plain = CloneConfig(tokens=config.tokens, action=config.action, hidden=hidden,
                                position=config.position, epochs=stage.epochs, lr=stage.lr, batch=stage.batch,
                                seed=config.seed)
            flat = [one for own in kept for one in own]
            found, sorts = self_clone(model, flat, plain, held_out=held_out, out=out, log=tell), []
    found.steering.save(out)
    gather_metrics(config, folder.path)
    log(f"clone: {found.after:.3f} nats a token on held-out prompts, the model itself {found.base:.3f}")
    rows = {"base_nats": found.base, "clone_nats": found.after, "gap": found.gap}
    folder.add_results([Row("clone", "self_clone", name, value, math.nan, math.nan, len(held_out),
                            config.seed).to_json() for name, value in rows.items()])
    return {**rows, "before": found.before, "sorts": sorts, "replies": sum(map(len, kept))}


def _upmap_stage(config: DatConfig, model: LocalModel, path: Path, reach: float) -> dict[str, Any]:
    from dialoom.models.steering import Steering, UpMapping, embedding_norm

    if config.upmap:
        _check_shared(config)
        steering = Steering.load(Path(config.upmap) / MAPPING)
    elif config.mapping == "pca":
        mapping = UpMapping.pca(model, config.action, tokens=config.tokens, repeated=config.repeated)
        steering = Steering(mapping, position=config.position)
    else:
        steering = Steering.load(path / CLONE)
    steering.save(path / MAPPING)
    norm = config.norm or {"pca": embedding_norm(model), "clone": 1.0, "coded": reach}[config.mapping]
    return {"norm": norm, "tokens": steering.mapping.tokens, "action": config.action, "mapping": config.mapping,
            "fingerprint": steering.fingerprint}


def _check_shared(config: DatConfig) -> None:
    """Raises ConfigError, naming the flags to give, if the run of `upmap` made its up-mapping with other settings."""
    from dialoom.recipes.run import recipe_of

    folder = Path(config.upmap)
    if (recipe := recipe_of(folder)) != "dat":
        raise ConfigError(f"--upmap {folder}: is a run of {recipe}, which has no up-mapping; give a run of dat")
    theirs = load_config(DatConfig, file=folder / "config.yaml")
    names = [name for name in ("mapping", "tokens", "action", "position", "repeated")
             if name != "repeated" or theirs.mapping == "pca"]
    values = {name: getattr(theirs, name) for name in names if getattr(theirs, name) != getattr(config, name)}
    if values:
        flags = " ".join(f"--{'' if value else 'no-'}{name}" if isinstance(value, bool) else f"--{name} {value}"
                         for name, value in values.items())
        ours = ", ".join(f"{name} {getattr(config, name)}" for name in values)
        raise ConfigError(f"--upmap {folder}: its up-mapping was not made for {ours}; give {flags}")


def _collect_stage(config: DatConfig, model: LocalModel, steering: Steering, side: Side, path: Path, turn: int,
                   norm: float) -> dict[str, int]:
    from dialoom.models.steering import Steering as Loaded
    from dialoom.recipes.dat_collect import explore

    replay, made_with = _replay(config, path, steering), Loaded.load(path / MAPPING).fingerprint
    write_whole(path / CARD, content_id(model.fingerprint, made_with) + "\n")
    with progress(f"dialogues, pass {turn}") as bar, TreeLog(path / "trees.jsonl") as sink:
        explore(config, model, steering, side, replay, turn, norm=norm, sink=sink,
                log=lambda label, done, total: bar.reach(done, label))
    for other in config.replays if turn == 1 else ():
        theirs, ours = (read_text(place / CARD) if (place / CARD).is_file() else "" for place in (Path(other), path))
        if theirs != ours:
            raise ConfigError(f"{other}: its replay was collected with another model or up-mapping; give its run this "
                              f"one's with --upmap {path}")
        replay.merge(_replay(config, Path(other), steering))
    return {"dialogues": replay.episodes, "transitions": len(replay)}


def _replay(config: DatConfig, path: Path, steering: Steering) -> Replay:
    from dialoom.train.replay import Replay

    part = steering.planner or steering.clone
    size = part.shape.state if part is not None else int(steering.mapping.weight.shape[2])
    return Replay(path / REPLAY, size, config.action)


def _trained(path: Path, turn: int) -> Path:
    return path / "td3" / f"pass-{turn}"


def _train_stage(config: DatConfig, mapping: Steering, path: Path, turn: int, norm: float) -> dict[str, float]:
    from dialoom.models.steering import Steering
    from dialoom.train.td3 import td3

    out, settings = _trained(path, turn), config.td3.model_copy(update={"seed": config.seed})
    with progress(f"TD3+BC, pass {turn}", settings.steps) as bar:
        learner = td3(_replay(config, path, mapping), settings, out=out, norm=norm, log=lambda row: bar.advance(),
                      output="corner" if config.mapping == "coded" else "sphere")
    steering = Steering(mapping.mapping, learner.actor.cpu(), mapping.clone, position=mapping.position)
    steering.save(out)
    if turn == config.passes:
        steering.save(path / PLANNER_FOLDER)
    gather_metrics(config, path)
    last: dict[str, float] = {}
    for row in read_steps(out / "metrics.jsonl"):  # also those of steps that were made before a kill
        last |= row
    return last


def gather_metrics(config: DatConfig, path: Path) -> None:
    """Write metrics.jsonl anew out of what every training noted, so a resumed one leaves no row twice."""
    noted = [("clone", "self_clone", path / CLONE)]
    noted += [(f"td3, pass {turn}", "planner", _trained(path, turn)) for turn in range(1, config.passes + 1)]
    noted += [(f"harden, {name}", "defender_hardened", path / "harden" / "work" / name) for name in ("sft", "dpo")]
    write_rows(path / "metrics.jsonl", [{"stage": stage, "subject": subject, **row} for stage, subject, place in noted
                                        for row in read_steps(place / "metrics.jsonl")])


# ------------------------------------------------------------------------------------------------ evaluation


def _eval_stages(config: DatConfig, model: LocalModel, side: Side, folder: RunFolder, norm: float, log: Log) -> None:
    from dialoom.models.steering import Steering
    from dialoom.recipes.dat_eval import PLANNER, UNSTEERED, Parts, best_constant, differences, file_name, subjects

    path = folder.path
    parts = Parts(model, Steering.load(path / PLANNER_FOLDER), norm)
    with progress("constant actions") as bar:
        tried = folder.stage("constant", lambda: best_constant(
            config, parts, side, lambda label, done, total: bar.reach(done, f"{label} of {total}")))
    parts = replace(parts, constant=tuple(tried["action"]))
    (path / "evals").mkdir(exist_ok=True)
    scores = {name: folder.stage(f"eval-{name}", partial(_eval_stage, name, config, parts, side, folder, log))
              for name in subjects(config)}
    rows = differences(side.name, side.metric, scores, config.seed)
    for label in side.others:
        found = {name: folder.stage(f"eval-{name}-{file_name(label)}",
                                    partial(_transfer_stage, name, label, config, parts, side, folder))
                 for name in (UNSTEERED, PLANNER)}
        rows += differences(f"{side.name}_against_{file_name(label)}", side.metric, found, config.seed)
    perplexity = {row["subject"]: row["value"] for row in folder.results()
                  if (row["eval"], row["metric"]) == ("language", "perplexity") and row["seed"] is not None}
    rows += [Row("language", name, "perplexity_ratio", value / perplexity[UNSTEERED], math.nan, math.nan,
                 len(side.scenes["test"]), config.seed) for name, value in perplexity.items() if name != UNSTEERED]
    folder.add_results(row.to_json() for row in rows)
    if config.harden:
        folder.add_results(folder.stage("harden", lambda: _harden_stage(config, parts, side, path, log)))
    folder.add_results(row.to_json() for row in
                       over_seeds(Row(**row) for row in folder.results() if row["seed"] is not None))


def _eval_stage(name: str, config: DatConfig, parts: Parts, side: Side, folder: RunFolder,
                log: Log) -> list[float | None]:
    from dialoom.recipes.dat_eval import measured

    with progress(f"held-out scenes, {name}") as bar:
        rows, scores = measured(name, config, parts, side, folder.path / "evals",
                                log=lambda label, done, total: bar.reach(done, label))
    folder.add_results(row.to_json() for row in rows)
    for row in (row for row in rows if row.metric in (side.metric, "perplexity")):
        log(f"{row.subject:12} {row.eval:10} {row.metric:10} {row.value:6.3f}  [{row.low:.3f}, {row.high:.3f}]")
    return _plain(scores)


def _harden_stage(config: DatConfig, parts: Parts, side: Side, path: Path, log: Log) -> list[dict[str, Any]]:
    from dialoom.recipes.dat_eval import PLANNER, UNSTEERED, subject
    from dialoom.recipes.dat_redteam import RedTeamSide, harden_stage

    assert isinstance(side, RedTeamSide)
    attackers = {name: side.speaker(subject(name, config, parts)) for name in (UNSTEERED, PLANNER)}
    rows = harden_stage(config, path, attackers=attackers, side=side, log=log)
    gather_metrics(config, path)
    return rows


def _plain(scores: Sequence[float]) -> list[float | None]:
    return [score if math.isfinite(score) else None for score in scores]


def _transfer_stage(name: str, label: str, config: DatConfig, parts: Parts, side: Side,
                    folder: RunFolder) -> list[float | None]:
    from dialoom.recipes.dat_eval import transferred

    with progress(f"against {label}, {name}"):
        rows, scores = transferred(name, config, parts, side, label, side.others[label](), folder.path / "evals")
    folder.add_results(row.to_json() for row in rows)
    return _plain(scores)


# ------------------------------------------------------------------------------------------------ what a run would do


def act(action: str, folder: Path, log: Log = print) -> None:
    """Do one of `ACTIONS` to a run folder."""
    from dialoom.recipes.dat_sweep import sweep

    assert action in ACTIONS
    sweep(folder, log)


def _turns(config: DatConfig) -> dict[str, int]:
    """Turns of the steered party at most, by stage."""
    train, test, trains = config.train_scenes * config.rounds, config.test_scenes * config.rounds, config.passes
    own = 0 if config.mapping == "pca" or config.clone.data or config.upmap else train
    return {"clone": own, "collect": train * config.episodes,
            "train": train * config.episodes * (trains - 1),
            "eval": test * (5 + 2 * len(config.transfer)) + config.constants * config.constant_scenes * config.rounds}


def roles(config: DatConfig) -> list[Role]:
    """Who is asked by name, and how often at most; the model that is steered is no endpoint."""
    check(config.model)
    turns, each = sum(_turns(config).values()), config.max_new_tokens
    scenes = turns if config.scenes == "redteam" else turns // config.rounds
    found = [Role("partner", config.partner, turns, 150 + 3 * each, each),
             Role("judge", config.judge, scenes, 400 + 2 * config.rounds * each, 400)]
    return found + [Role(spec, spec, 2 * config.test_scenes * config.rounds, 150 + 3 * each, each)
                    for spec in config.transfer]


def plan(config: DatConfig) -> list[dict[str, Any]]:
    """What a run would do, before it does it: replies of the steered model and of its partner, and time by stage.

    The time is what pocket takes on one CPU core; of another model's speed nothing is known before it runs.
    """
    check(config.model)
    turns = _turns(config)
    own = config.clone.prompts * config.clone.replies * (turns["clone"] > 0)
    steps = 0 if config.mapping == "pca" or config.upmap else config.clone.steps
    rows = [("clone", f"{own} replies of the model's own, {steps} steps", turns["clone"] + own, 0.005 * steps),
            ("upmap", f"{config.mapping}: {config.action} numbers to {config.tokens} tokens", 0, 0.0),
            ("collect", f"{config.train_scenes} scenes, {config.episodes} times", turns["collect"], 0.0),
            ("train", f"{config.passes} times {config.td3.steps} updates, with {config.passes - 1} collections between",
             turns["train"], config.passes * config.td3.steps / 10_000),
            ("eval", f"{config.test_scenes} held-out scenes, {config.constants} constant actions", turns["eval"], 0.0)]
    if config.harden:
        attacks = min(config.redteam.attacked, config.train_scenes) * config.redteam.attacks
        rows.append(("harden", f"{attacks} attacks, training the defender",
                     (attacks + 4 * config.test_scenes) * config.rounds, 0.7))
    pocket = config.model.startswith("pocket")
    return [{"stage": stage, "what": what, "replies": count, "tokens": count * config.max_new_tokens,
             "minutes": round(count * POCKET_SECONDS / 60 + extra, 1) if pocket else "unknown"}
            for stage, what, count, extra in rows]
