"""What an IDEAS run measures: the arms' users and their funnels, the chat models, and what these forgot."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dialoom.dialogue import Dialogue, DialogueTree, Scenario
from dialoom.embed import Embedder, Ngrams
from dialoom.evals.alignment_roles import ASSISTANT, USER
from dialoom.evals.diversity import side_by_side
from dialoom.evals.follow_ups import Yardstick, context_by_model, context_by_rule, nearest_strategies, pocket_yardstick
from dialoom.evals.metrics import Row
from dialoom.evals.persuasion import recall
from dialoom.evals.quality import exact_judge, mean_row, quality
from dialoom.evals.rating import LOWEST, RatingJudge, mtbench, questions_as_conversations
from dialoom.models.base import ChatModel, Sampling
from dialoom.progress import progress
from dialoom.recipes.ideas_cast import Cast
from dialoom.recipes.ideas_config import IdeasConfig
from dialoom.recipes.ideas_deduce import LOST_AT, REJECTED, STEPS
from dialoom.recipes.ideas_simulator import labels_of
from dialoom.recipes.ideas_sources import is_pocket
from dialoom.recipes.ideas_strategies import Record, Strategies
from dialoom.scenarios.sharegpt import read_questions
from dialoom.scenarios.triviaqa import pocket_trivia
from dialoom.simulate import Speaker, speaking
from dialoom.store import TreeLog

RECALL_QUESTIONS = 150

Log = Callable[[str], None]


def yardstick_of(cast: Cast, corpus: Sequence[Dialogue], records: Sequence[Record],
                 strategies: Strategies) -> Yardstick:
    """How user turns are read: by pocket's rules, or by the nearest of the real turns and what `judge` says of each."""
    config = cast.config
    if is_pocket(config):
        return pocket_yardstick()
    labels, _ = labels_of(corpus, records, strategies)
    texts = {(dialogue.scenario.id, turn.id): turn.text for dialogue in corpus for turn in dialogue.by(USER)}
    embedder: Embedder = cast.embedder(config.embedding) if config.embedding.startswith("st:") else Ngrams()
    examples = [(texts[place], strategy) for place, strategy in labels.items()]
    context = context_by_rule if config.judge == "exact" else context_by_model(cast.model(config.judge, "judge"))
    return Yardstick(context, nearest_strategies(examples, embedder) if examples else None, strategies.high)


def diversity_rows(sets: Mapping[str, Sequence[Dialogue]], trees: Mapping[str, Sequence[DialogueTree]],
                   yardstick: Yardstick, seed: int) -> list[Row]:
    """How varied the users of the arms are, all cut to one number of turns; acceptance over all that was begun."""
    attempts = {arm: {tree.scenario.id: sum(turn.speaker == USER for turn in tree) for tree in some}
                for arm, some in trees.items()}
    return side_by_side(sets, yardstick, attempts=attempts, seed=seed)


def funnel_rows(trees: Mapping[str, Sequence[DialogueTree]], seed: int) -> list[Row]:
    """Of each arm's messages the share that came as far as each step, intervals over dialogues; and pairs made."""
    rows = []
    for arm, some in trees.items():
        lost = [[LOST_AT.get(str(turn.notes[REJECTED]), STEPS[1]) if REJECTED in turn.notes else ""
                 for turn in tree if turn.speaker == USER] for tree in some]
        for at, step in enumerate(STEPS[1:], 1):
            passed = [[float(not one or STEPS.index(one) > at) for one in messages] for messages in lost]
            rows.append(mean_row("deduction", arm, step, passed, seed))
    return rows


def chat_rows(cast: Cast, model: ChatModel, label: str, asked: Sequence[Scenario], *, out: Path, brief: str = "",
              log: Log = print) -> list[Row]:
    """How right a chat model's greedy answers are in held-out conversations, and how many facts it still knows.

    Its dialogues go into `out`, from where a killed evaluation goes on.
    """
    config = cast.config
    speaker = speaking(ASSISTANT, model, Sampling(0.0, max_new_tokens=config.max_new_tokens), brief or config.neutral)
    rated = None if config.judge == "exact" else RatingJudge(cast.model(config.judge, "judge"))
    rows: list[Row] = []
    with TreeLog(out / f"{label}.trees.jsonl") as sink, progress(f"conversations of {label}") as bar:
        def told(turn: str, done: int, total: int) -> None:
            bar.reach(done, f"conversations of {label}, {turn}")

        found = (quality(speaker, asked, exact_judge(), label=label, seed=config.seed, sink=sink, log=told)
                 if rated is None else quality(speaker, asked, rated, label=label, name="rating", lowest=LOWEST,
                                               seed=config.seed, sink=sink, log=told))
        rows += found.rows
        if found.unread:
            log(f"conversations of {label}: {found.unread} answers have no readable rating; left out of the means")
    if config.questions and rated is not None:
        rows += _questions(config, speaker, rated, label, out, log)
    if config.model.startswith("pocket"):
        facts = pocket_trivia(None, seed=config.seed)
        greedy = speaking("subject", model, Sampling(0.0, max_new_tokens=48), config.neutral)
        rows += recall(greedy, facts[::max(1, len(facts) // RECALL_QUESTIONS)], label=label, seed=config.seed).rows
    return rows


def _questions(config: IdeasConfig, speaker: Speaker, rated: RatingJudge, label: str, out: Path, log: Log) -> list[Row]:
    """Ratings of the answers to questions in MT-Bench's layout."""
    asked = questions_as_conversations(read_questions(config.questions, tell=log))
    with TreeLog(out / f"{label}.questions.jsonl") as sink, progress(f"questions to {label}"):
        found = mtbench(speaker, asked, rated, label=label, seed=config.seed, sink=sink)
    if found.unread:
        log(f"questions to {label}: {found.unread} answers have no readable rating; left out of the means")
    return found.rows
