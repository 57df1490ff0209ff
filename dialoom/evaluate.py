"""`dialoom eval`: one evaluation of any model, or of a file of dialogues, as a table and as tidy rows."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dialoom.config import near_miss
from dialoom.dialogue import Dialogue, Scenario
from dialoom.errors import ConfigError, DataError
from dialoom.evals import EVALS, run_eval
from dialoom.evals.follow_ups import Yardstick
from dialoom.evals.metrics import Row
from dialoom.models.base import ChatModel
from dialoom.models.load import in_role, load_model
from dialoom.models.place import Place
from dialoom.progress import progress
from dialoom.report.table import results_table
from dialoom.scenarios.triviaqa import load_trivia, pocket_trivia, with_distractors
from dialoom.store import write_whole

KNOWN_ONLY = ("recall",)  # asks for every fact; the others keep to those no fine-tuning set holds
NAMES = (*EVALS, "quality", "mtbench", "diversity", "social", "redteam")
CONVERSATIONS = 60  # of pocket's world, unless --limit says otherwise; as many red-team scenes
MOST_TURNS = 4000  # user turns of a file that diversity looks at, unless --limit says otherwise: at worst a minute


def run_named(name: str, model: str, *, partner: str = "", judge: str = "", data: str = "", strategies: str = "",
              planner: Path | None = None, limit: int = 0, seed: int = 1, brief: str = "", max_new_tokens: int = 48,
              device: str | Place = "auto", out: Path | None = None) -> None:
    """Evaluate and print the table; with `out` also write the rows there.

    Args:
        judge: the model that rates answers, or says which turns need their context.
        strategies: file of a strategy list, for `diversity`.
        planner: folder of what steers the model.
    """
    _refuse(name, partner=partner, judge=judge, data=data, planner=planner, out=out)
    if name == "diversity":
        found = diversity_rows(data, strategies=strategies, judge=judge, limit=limit, seed=seed, device=device)
    elif name == "social":
        if brief:
            raise ConfigError("--brief: whoever plays a social scene has the scene's own; leave it out")
        found = social_rows(model, planner=planner, partner=partner, judge=judge, data=data, limit=limit, seed=seed,
                            max_new_tokens=max_new_tokens, device=device)
    elif name == "redteam":
        found = redteam_rows(model, planner=planner, partner=partner, judge=judge, data=data, limit=limit, seed=seed,
                             brief=brief, max_new_tokens=max_new_tokens, device=device)
    elif name in EVALS:
        found = trivia_rows(name, model, planner=planner, partner=partner, data=data, limit=limit, seed=seed,
                            brief=brief, max_new_tokens=max_new_tokens, device=device)
    else:
        found = conversation_rows(name, model, planner=planner, judge=judge, data=data, limit=limit, seed=seed,
                                  brief=brief, max_new_tokens=max_new_tokens, device=device)
    rows = [row.to_json() for row in found]
    if out is not None:
        write_whole(out, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    print(results_table(rows, markdown=False).rstrip())


def _refuse(name: str, *, partner: str, judge: str, data: str, planner: Path | None, out: Path | None) -> None:
    """Raises ConfigError where something is missing or cannot be written, before anything is loaded."""
    if name not in NAMES:
        raise ConfigError(f"evaluation {name!r} is unknown; {near_miss(name, NAMES)}")
    if name == "team" and not partner:
        raise ConfigError("team needs a second model; give --partner")
    if name == "mtbench" and not data:
        raise ConfigError("mtbench needs questions in MT-Bench's layout; give --data FILE")
    if name == "diversity" and not data:
        raise ConfigError("diversity needs dialogues; give --data FILE")
    if name == "diversity" and planner:
        raise ConfigError(f"--planner {planner}: diversity looks at a file and asks no model; leave it out")
    if name == "redteam" and data and not (judge and partner):
        raise ConfigError("redteam with your own behaviours needs the model under test and one that judges its "
                          "replies; give --partner MODEL and --judge MODEL")
    if name == "redteam" and judge and not data:
        raise ConfigError("pocket's red-team scenes have an exact rule; leave --judge out, or give --data FILE")
    if data and not judge and name in ("quality", "mtbench"):
        raise ConfigError(f"{name} of your own questions needs a model that rates the answers; give --judge MODEL")
    if out is not None and (out.is_dir() or any(above.is_file() for above in out.parents)):
        raise ConfigError(f"--out {out}: expected a file that can be written, found a folder, or a file as its folder")


def subject_of(spec: str, planner: Path | None, device: str | Place) -> ChatModel:
    """The model under test, steered where there is a planner. Raises ModelError: if it cannot be by this one."""
    if planner is None:
        return load_model(spec, device=device)
    from dialoom.models.steering import load_steered

    return load_steered(spec, planner, device=device)


def label_of(spec: str, planner: Path | None) -> str:
    """How its rows name it."""
    return f"{spec}+planner" if planner else spec


def _note(message: str) -> None:
    print(f"note: {message}", file=sys.stderr)


# ------------------------------------------------------------------------------------------------ trivia


def trivia_rows(name: str, model: str, *, planner: Path | None, partner: str, data: str, limit: int, seed: int,
                brief: str, max_new_tokens: int, device: str | Place) -> list[Row]:
    """One of the evaluations that ask for facts."""
    asked = questions(name, data, limit, seed)
    subject = subject_of(model, planner, device)
    other = in_role(load_model(partner, device=device), "partner") if name == "team" else None
    with progress(f"{name} of {model}, {len(asked)} questions") as bar:
        return run_eval(name, subject, asked, brief=brief, seed=seed, partner=other, max_new_tokens=max_new_tokens,
                        log=lambda label, done, total: bar.reach(done, f"{name}, {label}, {total} replies"))


def questions(name: str, data: str = "", limit: int = 0, seed: int = 1) -> list[Scenario]:
    """The questions of an evaluation, each with a wrong answer: a user's file, or the pocket world's held-out facts."""
    if not data:
        found = pocket_trivia(None if name in KNOWN_ONLY else "test", seed=seed, phrasing="held_out")
    else:
        rows = load_trivia(data, on_bad=_note, on_note=_note)
        found = with_distractors(rows, seed)
        if not found:
            raise DataError(f"{data}: no question finds a wrong answer among the others' answers; give more questions")
    return found[:limit or None]


# ------------------------------------------------------------------------------------------------ conversations


def conversation_rows(name: str, model: str, *, planner: Path | None, judge: str, data: str, limit: int, seed: int,
                      brief: str, max_new_tokens: int, device: str | Place) -> list[Row]:
    """`quality` or `mtbench`: answers to fixed questions, one after the other, judged one by one."""
    from dialoom.evals.alignment_roles import ASSISTANT
    from dialoom.evals.quality import exact_judge, quality
    from dialoom.evals.rating import LOWEST, RatingJudge, mtbench
    from dialoom.models.base import Sampling
    from dialoom.simulate import speaking

    asked = conversations(name, data, limit, seed)
    greedy = Sampling(0.0, max_new_tokens=max_new_tokens)
    subject = speaking(ASSISTANT, subject_of(model, planner, device), greedy, brief)
    label = label_of(model, planner)
    with progress(f"{name} of {model}, {len(asked)} conversations") as bar:
        def log(label: str, done: int, total: int) -> None:
            bar.reach(done, f"{name}, {label}, {total} replies")
        if not judge:
            return quality(subject, asked, exact_judge(), label=label, seed=seed, log=log).rows
        rated = RatingJudge(in_role(load_model(judge, device=device), "judge"))
        found = (mtbench(subject, asked, rated, label=label, seed=seed, log=log) if name == "mtbench" else
                 quality(subject, asked, rated, label=label, name="rating", lowest=LOWEST, seed=seed, log=log))
    if found.unread:
        _note(f"{found.unread} answers have no readable rating by {judge}, asked twice; left out of the means")
    return found.rows


def conversations(name: str, data: str = "", limit: int = 0, seed: int = 1) -> list[Scenario]:
    """The conversations of `quality` or `mtbench`: a user's file, or the pocket world's on held-out topics."""
    from dialoom.evals.quality import conversations_of, pocket_conversations
    from dialoom.evals.rating import questions_as_conversations

    if not data:
        from dialoom.recipes.ideas_corpus import pocket_topics

        return pocket_conversations(pocket_topics("test"), limit or CONVERSATIONS, seed=seed)
    from dialoom.scenarios.sharegpt import read_dialogues, read_questions

    found = (questions_as_conversations(read_questions(data, tell=_note)) if name == "mtbench" else
             conversations_of(read_dialogues(data, tell=_note)))
    return found[:limit or None]


# ------------------------------------------------------------------------------------------------ scenes


def social_rows(model: str, *, planner: Path | None, partner: str, judge: str, data: str, limit: int, seed: int,
                max_new_tokens: int, device: str | Place) -> list[Row]:
    """How far `model` gets with its own goal in held-out scenes: pocket's, or those of a user's folder.

    They are the scenes that `dialoom dat` holds out, so that a planner of its is met with what it was not trained on.
    """
    from dialoom.recipes.dat_config import DatConfig
    from dialoom.recipes.dat_social import social_side

    subject, place = subject_of(model, planner, device), Place.of(device)
    config = DatConfig(model=model, partner=partner, judge=judge, data=data, transfer=(), seed=seed,
                       test_scenes=max(2, limit or CONVERSATIONS), max_new_tokens=max_new_tokens, device=place.device,
                       dtype=place.dtype, device_map=place.device_map, quantize=place.quantize)
    loaded: Any = getattr(subject, "model", subject) if planner else subject
    side, label = social_side(config, loaded), label_of(model, planner)
    scenes = side.scenes["test"]
    with progress(f"social of {label}, {len(scenes)} scenes") as bar:
        played = side.play(side.speaker(subject), side.partner, scenes, seed=seed, label=label,
                           log=lambda turn, done, total: bar.reach(done, f"social, {turn}, {total} replies"))
    return side.measure(played, label=label, seed=seed)



def redteam_rows(model: str, *, planner: Path | None, partner: str, judge: str, data: str, limit: int, seed: int,
                 brief: str, max_new_tokens: int, device: str | Place) -> list[Row]:
    """How often `model` brings `partner` to do what it should refuse: a user's behaviours, or pocket's code word."""
    from dialoom.dialogue import Brief
    from dialoom.evals.redteam import BehaviourJudge, LeakJudge, guard_scenes, redteam
    from dialoom.judge import Judge
    from dialoom.models.base import Sampling, ScoringModel
    from dialoom.recipes.pocket_guard import ATTACKER_TEMPERATURE, NAME, TEMPERATURE, load_guard
    from dialoom.scenarios.harmbench import read_behaviours
    from dialoom.simulate import NO_BRIEF, ModelSpeaker

    scenes = (read_behaviours(data, tell=_note)[:limit or None] if data else
              guard_scenes(limit or CONVERSATIONS, split="test", seed=seed))
    found: Judge = LeakJudge()
    if judge:
        asked = in_role(load_model(judge, device=device), "judge")
        if not isinstance(asked, ScoringModel):
            raise ConfigError(f"{judge} cannot weigh a yes against a no; give a local model, or an endpoint with "
                              "log-probabilities")
        found = BehaviourJudge(asked)
    is_own = partner not in ("", NAME)
    defender = in_role(load_model(partner, device=device), "partner") if is_own else load_guard(device)
    under = (Brief("brief", brief) if brief else NO_BRIEF,)
    label = label_of(model, planner)
    attacker = ModelSpeaker("attacker", subject_of(model, planner, device),
                            Sampling(TEMPERATURE if data else ATTACKER_TEMPERATURE, max_new_tokens=max_new_tokens),
                            lambda dialogue, seed: under)
    guard = ModelSpeaker("defender", defender, Sampling(TEMPERATURE, max_new_tokens=max_new_tokens))
    with progress(f"redteam of {partner or NAME} by {label}, {len(scenes)} scenes") as bar:
        result = redteam(attacker, guard, scenes, found, label=label, seed=seed,
                         log=lambda label, done, total: bar.reach(done, f"redteam, {label}, {total} replies"))
    return result.rows


# ------------------------------------------------------------------------------------------------ diversity


def diversity_rows(data: str, *, strategies: str = "", judge: str = "", limit: int = 0, seed: int = 1,
                   device: str | Place = "auto") -> list[Row]:
    """How varied the user turns of a file of dialogues are."""
    from dialoom.evals.diversity import diversity, turns_of
    from dialoom.scenarios.sharegpt import read_dialogues

    dialogues = read_dialogues(data, tell=_note)
    there = turns_of(dialogues)
    most = min(there, limit or MOST_TURNS)
    if most < there:
        _note(f"{most:,} of {there:,} user turns are looked at, the same for the same seed; --limit takes another "
              "number")
    yardstick = yardstick_for(dialogues, strategies=strategies, judge=judge, device=device)
    return diversity(dialogues, yardstick, label=Path(data).stem, turns=most, seed=seed)


def yardstick_for(dialogues: Sequence[Dialogue], *, strategies: str = "", judge: str = "",
                  device: str | Place = "auto") -> Yardstick:
    """Pocket's exact one where all openings are about its topics; else a list of strategies and a rule or model."""
    from dialoom.embed import Ngrams
    from dialoom.evals.follow_ups import context_by_model, context_by_rule, nearest_strategies, pocket_yardstick
    from dialoom.pocket.world.strategies import find_topic

    if not strategies and not judge and all(find_topic(one.scenario.opening) for one in dialogues):
        _note("all dialogues are about topics of pocket's world: strategies and context are read by its exact rules")
        return pocket_yardstick()
    context = context_by_model(in_role(load_model(judge, device=device), "judge")) if judge else context_by_rule
    if not strategies:
        return Yardstick(context)
    from dialoom.scenarios.sharegpt import read_strategies

    listed = tuple(read_strategies(strategies))
    return Yardstick(context, nearest_strategies([(text, text) for text in listed], Ngrams()), listed)
