"""DITTO: align a model to a person from fewer than ten demonstrations (arXiv 2406.00888).

    train   for each author: SFT on the demonstrations; from there DPO on demonstration > newest sample > older sample,
            sampled anew every K steps, with the SFT policy as reference. Baselines and ablations the same way
    write   every method writes on held-out tasks
    eval    round robin of the methods, likeness to the author, held-out perplexity before and after
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dialoom.config import near_miss
from dialoom.dialogue import content_id
from dialoom.errors import ConfigError, DataError
from dialoom.evals.metrics import Row, over_seeds
from dialoom.files import read_steps
from dialoom.progress import quiet
from dialoom.recipes.ditto_config import PAPER, PRESETS, DittoConfig
from dialoom.recipes.ditto_pairs import sampling_steps
from dialoom.recipes.pbt import check_trainable, load_local
from dialoom.recipes.planned import Role
from dialoom.scenarios.demonstrations import LAYOUTS, Demonstration, load_demonstrations, pocket_demonstrations
from dialoom.store import TreeLog, read_rows, write_rows, write_whole

if TYPE_CHECKING:
    from dialoom.models.local import LocalModel
    from dialoom.recipes.ditto_train import Author, Session
    from dialoom.recipes.run import RunFolder

__all__ = ["PAPER", "PRESETS", "STAGES", "DittoConfig", "authors_of", "data_hash", "plan", "run"]
STAGES = ("train", "write", "eval")
SURFACE = ("pocket is a teaching model of 3 M parameters that knows a handful of topics. From your own texts it picks "
           "up surface style at most (greetings, punctuation, favourite words), and what it writes will make little "
           "sense. For real use align a real model: --model hf:<name>.")
POCKET_STEP = 0.8  # seconds of a DPO step of 7 demonstrations on one core of a small cloud machine
POCKET_TEXT = 0.02  # seconds of a text
Log = Callable[[str], None]


# ------------------------------------------------------------------------------------------------ demonstrations


def authors_of(config: DittoConfig, log: Log = quiet) -> list[Author]:
    """The authors of a run with their demonstrations, training ones cut to `train_demos`.

    Raises: ConfigError: if a wanted author is not there. DataError: from reading; or if an author has none to train on.
    """
    from dialoom.recipes.ditto_train import Author

    if config.layout not in ("auto", *LAYOUTS):
        raise ConfigError(f"layout: {near_miss(config.layout, LAYOUTS)}")
    rows = load_demonstrations(config.demos, config.layout, tell=log) if config.demos else pocket_demonstrations(
        config.authors)
    by_name: dict[str, dict[str, Demonstration]] = {}
    for row in rows:
        own = by_name.setdefault(row.author, {})
        if row.scenario.id in own:
            log(f"{row.where}: the same text on the same task stands at {own[row.scenario.id].where}; used once")
        own.setdefault(row.scenario.id, row)
    for name in config.authors:
        if name not in by_name:
            raise ConfigError(f"--authors {name}: not among the authors; {near_miss(name, by_name)}")
    names = list(config.authors or by_name)[:config.max_authors or None]
    found = []
    for name in names:
        train = [row for row in by_name[name].values() if row.split == "train"][:config.train_demos or None]
        if not train:
            raise DataError(f"{config.demos}: {name} has no demonstration to train on; give some the split train")
        held = [row for row in by_name[name].values() if row.split != "train"]
        found.append(Author(name, (*train, *held)))
    return found


def fitting(author: Author, model: LocalModel, log: Log) -> Author:
    """The author without texts that the model cannot read whole.

    Raises: DataError: if none is left to train on.
    """
    from dialoom.recipes.ditto_train import Author

    kept = []
    for demo in author.demos:
        ids, _ = model.template.with_reply(demo.chat, demo.output)
        if len(ids) > model.context:
            log(f"{demo.where}: task and text have {len(ids)} tokens, {model.name} reads {model.context}; left out, "
                "shorten or split it")
        else:
            kept.append(demo)
    if not any(demo.split == "train" for demo in kept):
        raise DataError(f"{author.name}: no demonstration to train on fits the {model.context} tokens {model.name} "
                        "reads; shorten them, or take a model with a longer context")
    return Author(author.name, tuple(kept))


def new_tokens(config: DittoConfig, authors: Sequence[Author], model: LocalModel, log: Log) -> int:
    """The length limit of a text: as set, or twice the longest demonstration, within 1024 and the model's context."""
    from dialoom.recipes.ditto_train import LONGEST

    longest, most = 0, 0
    for author in authors:
        for demo in author.demos:
            ids, start = model.template.with_reply(demo.chat, demo.output)
            longest, most = max(longest, len(ids) - start), max(most, start)
    limit = config.max_new_tokens or min(2 * longest, LONGEST)
    if config.max_new_tokens and config.max_new_tokens < longest:
        log(f"--max-new-tokens {limit}: the longest text has {longest} tokens, so samples are cut before its end")
    return max(1, min(limit, model.context - most - 1))


def data_hash(config: DittoConfig) -> str:
    """16 hex digits over the user's demonstrations, "" where there are none."""
    if not config.demos:
        return ""
    return content_id(*((row.author, row.split, row.prompt, row.output)
                        for row in load_demonstrations(config.demos, config.layout)))


# ------------------------------------------------------------------------------------------------ the run


def run(config: DittoConfig, folder: RunFolder, stages: Sequence[str] = STAGES, log: Log = print) -> None:
    """Do the given stages in `folder`; what is done is loaded, what was stopped in the middle goes on."""
    from dialoom.recipes.ditto_train import Session

    check_trainable(config.model)
    _check(config)
    authors = authors_of(config, log)
    model = load_local(config.model, config.place)
    authors = [fitting(author, model, log) for author in authors]
    limit = new_tokens(config, authors, model, log)
    _say_what_is_missing(config, folder.path, authors, model, limit, log)
    with TreeLog(folder.path / "trees.jsonl") as trees:
        session = Session(config, folder.path, model, trees, limit, log)
        if "train" in stages:
            _train(session, folder, authors)
        tested = [author for author in authors if author.split("test")]
        if tested and "write" in stages:
            _write(session, folder, tested)
        if tested and "eval" in stages:
            _evaluate(session, folder, tested, log)
    if "train" in stages:
        _say_how_to_talk(folder.path, authors, log)


def _check(config: DittoConfig) -> None:
    """Refuse what cannot be meant, before anything is computed."""
    if config.demos and config.judge == "exact":
        raise ConfigError("--judge exact knows pocket's own authors only; use similarity or model for your texts")
    if config.judge_model and config.judge != "model":
        raise ConfigError(f"--judge-model {config.judge_model}: asked with --judge model only, and --judge is "
                          f"{config.judge}; give --judge model, or leave --judge-model out")
    if any(count < 1 for count in config.growth):
        raise ConfigError(f"--growth {' '.join(map(str, config.growth))}: expected numbers of demonstrations from 1 on")


def _say_what_is_missing(config: DittoConfig, path: Path, authors: Sequence[Author], model: LocalModel, limit: int,
                         log: Log) -> None:
    from dialoom.recipes.ditto_eval import shown_by

    notes = [SURFACE] if config.demos and config.model.startswith("pocket") else []
    for author in authors:
        count = len(author.split("train"))
        if count == 1:
            notes.append(f"{author.name} has one demonstration: expect its words to be repeated; give three or more.")
        if not author.split("test"):
            notes.append(f"Nothing of {author.name} is held out, so nothing is measured; give texts on at least two "
                         "tasks, or rows with the split test.")
        tried = {demo.prompt for demo in author.split("train")} & {demo.prompt for demo in author.split("test")}
        if tried:
            notes.append(f"{author.name}: tasks of the split test that other texts train on as well: {len(tried)}.")
        for method in (name for name in ("few_shot", "self_prompt") if name in (*config.pool, *config.beside)):
            shown = len(shown_by(method, author, model, limit))
            if author.split("test") and shown < count:
                notes.append(f"{author.name}: {method} shows the last {shown} of {count} demonstrations; more do not "
                             f"fit whole into the {model.context} tokens {model.name} reads.")
    for note in notes:
        log(f"note: {note}")
    if notes:
        write_whole(path / "notes.json", json.dumps(notes, indent=1, ensure_ascii=False))


def _train(session: Session, folder: RunFolder, authors: Sequence[Author]) -> None:
    from dialoom.recipes.ditto_train import arms_of, file_name, rule_of, train_arm

    comparer = rule_of(session.config)
    for author in authors:
        for arm in arms_of(session.config, author):
            folder.stage(f"train-{file_name(author.name)}-{arm}", partial(train_arm, session, author, arm, comparer))
        if not folder.has(f"adapter-{file_name(author.name)}"):
            session.wear(author, "ditto")
            folder.stage(f"adapter-{file_name(author.name)}",
                         partial(_save_adapter, session, _chat_folder(folder.path, author, authors)))
    _gather(session, authors)


def _save_adapter(session: Session, out: Path) -> str:
    """Keep the adapter the model wears in PEFT's layout, as `dialoom chat` and others read it."""
    session.model.save(out)
    return str(out.relative_to(session.path))


def _chat_folder(path: Path, author: Author, authors: Sequence[Author]) -> Path:
    from dialoom.recipes.ditto_train import file_name

    return path / "adapter" if len(authors) == 1 else path / "authors" / file_name(author.name) / "adapter"


def _say_how_to_talk(path: Path, authors: Sequence[Author], log: Log) -> None:
    for author in authors[:3]:
        log(f"talk as {author.name}: dialoom chat {_chat_folder(path, author, authors).parent}")


def _gather(session: Session, authors: Sequence[Author]) -> None:
    """metrics.jsonl (means over authors at each step) and pairs.jsonl out of what every training noted."""
    from dialoom.recipes.ditto_train import SFT_ARMS, arms_of, file_name

    sums: dict[tuple[str, str, int], Counter[str]] = {}
    counts: dict[tuple[str, str, int], Counter[str]] = {}
    pairs: list[dict[str, Any]] = []
    for author in authors:
        work = session.path / "work" / file_name(author.name)
        for arm in arms_of(session.config, author):
            for row in read_steps(work / arm / "metrics.jsonl"):
                key = ("sft" if arm in SFT_ARMS else "dpo", arm, row.pop("step"))
                sums.setdefault(key, Counter()).update(row)
                counts.setdefault(key, Counter()).update(dict.fromkeys(row, 1))
        pairs += read_rows(work / "ditto" / "pairs.jsonl")
    write_rows(session.path / "pairs.jsonl", pairs)
    write_rows(session.path / "metrics.jsonl", [
        {"stage": key[0], "subject": key[1], "step": key[2],
         **{name: total / counts[key][name] for name, total in found.items()}} for key, found in sums.items()])


def _write(session: Session, folder: RunFolder, authors: Sequence[Author]) -> None:
    from dialoom.models.load import Models
    from dialoom.recipes.ditto_eval import held_out_likelihood, write_held_out
    from dialoom.recipes.ditto_train import file_name

    load = partial(Models(session.config.place).get, role="rival")
    for author in authors:
        written = folder.stage(f"write-{file_name(author.name)}", partial(write_held_out, session, author, load))
        folder.stage(f"likelihood-{file_name(author.name)}", partial(held_out_likelihood, session, author, written))


def _evaluate(session: Session, folder: RunFolder, authors: Sequence[Author], log: Log) -> None:
    from dialoom.recipes.ditto_eval import evaluate, likelihood_rows
    from dialoom.recipes.ditto_train import file_name

    def done(stage: str) -> dict[str, Any]:
        return {author.name: folder.stage(f"{stage}-{file_name(author.name)}", dict) for author in authors}

    def judged() -> int:
        rows = [*evaluate(session, authors, done("write")), *likelihood_rows(done("likelihood"), session.config.seed)]
        folder.add_results(row.to_json() for row in rows)
        return len(rows)

    folder.stage("eval", judged)
    rows = [Row(**{**row, **{key: math.nan for key in ("value", "low", "high") if row[key] is None}})
            for row in folder.results() if row["seed"] is not None]
    folder.add_results(row.to_json() for row in over_seeds(rows))
    _say_before_and_after(rows, log)


def _say_before_and_after(rows: Sequence[Row], log: Log) -> None:
    """Likeness and perplexity on held-out texts, in one line each."""
    found = {(row.eval, row.subject, row.metric): row.value for row in rows}
    nearness = [f"{name} {found['similarity', name, 'cosine']:.3f}" for name in ("zero_shot", "sft", "ditto")
                if ("similarity", name, "cosine") in found]
    surprise = [f"{name} {found['held_out', name, 'perplexity']:.2f}" for name in ("base", "sft", "ditto")]
    log(f"likeness to the author's held-out texts (cosine of character n-grams): {', '.join(nearness)}")
    log(f"perplexity of the author's held-out texts: {', '.join(surprise)}")


# ------------------------------------------------------------------------------------------------ the plan


def roles(config: DittoConfig) -> list[Role]:
    """Who is asked by name, and how often at most; lengths of texts are a guess where --max-new-tokens names none."""
    from dialoom.recipes.ditto_eval import outsiders
    from dialoom.recipes.ditto_train import LONGEST, arms_of, label_copies

    authors, text = authors_of(config), config.max_new_tokens or LONGEST
    tasks = sum(len(author.split("test")) for author in authors)
    told = sum(label_copies(config, author)[1] for author in authors) if config.labelled else 0
    methods = {*config.pool, *outsiders(config), *(arm for author in authors for arm in arms_of(config, author))}
    meetings = math.comb(len(methods), 2) * config.test_samples * tasks
    asked = 2 * config.test_samples * tasks  # zero-shot and few-shot
    rivals = [Role("rival", spec, asked, 200 + 4 * text, text) for spec in config.rival]
    judge = config.judge_model if config.judge == "model" else ""
    return [*rivals, Role("judge", judge, 2 * (meetings + told), 300 + 5 * text, 8)]  # in both orders


def plan(config: DittoConfig) -> list[dict[str, Any]]:
    """What a run would do, before it does it. The time is what pocket takes on one CPU core."""
    from dialoom.recipes.ditto_eval import outsiders
    from dialoom.recipes.ditto_train import SFT_ARMS, arm_settings, arms_of

    check_trainable(config.model)
    _check(config)
    authors = authors_of(config)
    samples = steps = texts = 0
    names: dict[str, None] = {}
    for author in authors:
        for arm in arms_of(config, author):
            names[arm] = None
            if arm in SFT_ARMS or arm.startswith("dpo_"):
                continue
            settings = arm_settings(config, arm)
            each = len(sampling_steps(settings)) * settings.samples + min(settings.samples, config.dpo.samples)
            samples += each * len(author.split("train"))
            steps += settings.steps
        methods = len({*config.pool, *outsiders(config), *names})
        texts += methods * config.test_samples * len(author.split("test"))
    rows = [("train", f"{', '.join(names)} of {len(authors)} authors: {steps} DPO steps", samples,
             samples * POCKET_TEXT + steps * POCKET_STEP),
            ("write", "texts on held-out tasks", texts, texts * POCKET_TEXT),
            ("eval", f"round robin of {', '.join((*config.pool, 'ditto'))}", 0, 1.0)]
    return [{"stage": stage, "what": what, "texts": count,
             "minutes": round(seconds / 60, 1) if config.model.startswith("pocket") else "unknown"}
            for stage, what, count, seconds in rows]
