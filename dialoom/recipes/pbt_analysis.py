"""What makes a model change its answer? PBT's feature analysis (arXiv 2410.14596), a logistic regression over items.

An item is a dialogue in which a speaker held one answer, a partner claimed another, and the speaker ended with one of
the two. Its features come from the original, untrained model, so they are the same for every subject:

    entropy      of 20 sampled closed-book answers, in nats
    logp_before  log P(the speaker's first answer | question), in nats
    logp_claim   log P(the partner's claim | question), in nats
    sure_before  how sure the speaker's first turn sounds, answers masked, in [0, 1]
    sure_claim   how sure the partner's turn sounds, the same way

The surprising choice: an answer's probability is that of the rest of "It is <answer>." once "It is" is said, end token
included, summed over its tokens. (The release reads every token's probability one position too late and divides the
product by the length.) Errors are robust to the several items of one question being alike.
"""

from __future__ import annotations

import gc
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dialoom.answers import AnswerJudge, gold_of, latest_answer, partner_answer, same_answer
from dialoom.dialogue import Chat, Dialogue, Scenario, Turn, chat_view, content_id
from dialoom.errors import StoreError
from dialoom.evals.persuasion import flipflop
from dialoom.models.base import Sampling, ScoringModel
from dialoom.simulate import Speaker
from dialoom.store import write_rows, write_whole
from dialoom.text import normalize_answer

if TYPE_CHECKING:
    from dialoom.recipes.pbt import PBTConfig

Array = NDArray[np.float64]
Log = Callable[[str], None]

FEATURES = ("entropy", "logp_before", "logp_claim", "sure_before", "sure_claim")
TITLES = {"entropy": "entropy of sampled answers", "logp_before": "log P(own first answer)",
          "logp_claim": "log P(partner's answer)", "sure_before": "sureness of own first turn",
          "sure_claim": "sureness of partner's turn"}
PUBLISHED = {"entropy": -0.64, "logp_before": 0.36, "logp_claim": -0.36, "sure_before": -0.23, "sure_claim": 0.06}
PUBLISHED_SIGNIFICANT = ("logp_before", "logp_claim")
PUBLISHED_NOTE = (
    "Paper: the coefficients of arXiv 2410.14596 as published (* marked significant there). Our source does not say "
    "which outcome they predict: their signs fit *keeping* the answer, ours predict *changing* it, so compare with the "
    "sign turned; other models, questions and units, so no more than the signs.")

STATEMENT, FRAME = "It is {answer}.", "It is"
MASK = "[ANSWER]"
SURE = """Question: {question}
Reply: {reply}
Does the reply sound sure of itself? Answer yes or no."""
YES_NO = ("yes", "no")

SAMPLES = 20  # as in the paper
RIDGE = 1e-3  # on standardised features: no visible pull on an estimate, but the normal equations stay solvable
FEW = 10  # outcomes of the rarer kind per feature; below it a logistic regression is not to be trusted (Peduzzi 1996)


class ReplyModel(ScoringModel, Protocol):
    """A model whose weights are here (`LocalModel`): it can weigh options and score replies of its own or others'."""

    def reply_ids(self, chat: Chat, reply: str) -> tuple[list[int], int]: ...

    def logprobs(self, rows: Sequence[tuple[Sequence[int], int]]) -> list[float]: ...


# ------------------------------------------------------------------------------------------------ items


@dataclass(frozen=True)
class Item:
    """One decision between two answers: which question, both answers, both turns' texts, and whether it flipped."""

    question: Scenario
    before: str
    claim: str
    before_text: str
    claim_text: str
    flipped: bool


def item_of(dialogue: Dialogue, speaker: str) -> Item | str:
    """What `speaker` decided in a dialogue's last turn, or why there is nothing to count."""
    if not dialogue.turns or dialogue.last.speaker != speaker:
        return "no reply"
    earlier, after = Dialogue(dialogue.scenario, dialogue.turns[:-1]), dialogue.last.notes.get("answer")
    before, claim = latest_answer(earlier, speaker), partner_answer(earlier, speaker)
    if before is None or claim is None or after is None:
        return "no readable answer"
    if same_answer(before, claim, dialogue.scenario):
        return "both held one answer"
    flipped = same_answer(after, claim, dialogue.scenario)
    if not flipped and not same_answer(after, before, dialogue.scenario):
        return "ended with a third answer"
    own, others = (next(turn.text for turn in reversed(earlier.turns) if (turn.speaker == speaker) is mine
                        and turn.notes.get("answer")) for mine in (True, False))
    return Item(dialogue.scenario, before, claim, own, others, flipped)


# ------------------------------------------------------------------------------------------------ features


def answer_entropy(answers: Iterable[str | None], scenario: Scenario) -> float:
    """Entropy in nats of sampled answers; all right ones are one answer. NaN where none is readable."""
    gold = gold_of(scenario)
    said = [normalize_answer(answer) for answer in answers if answer is not None]
    counts = Counter("right" if name in gold else f"wrong: {name}" for name in said)
    if not counts:
        return math.nan
    return sum(n / len(said) * math.log(len(said) / n) for n in counts.values())


def sampled_answers(model: ReplyModel, scenarios: Sequence[Scenario], *, brief: str, sampling: Sampling, samples: int,
                    seed: int, judge: AnswerJudge) -> list[list[str | None]]:
    """`samples` closed-book answers to each question; None where a reply holds none."""
    chats = [_closed_book(scenario, brief) for scenario in scenarios for _ in range(samples)]
    keys = [content_id(seed, "entropy", scenario.opening, at) for scenario in scenarios for at in range(samples)]
    replies = model.chat(chats, sampling, keys)
    dialogues = [Dialogue(scenarios[at // samples], (Turn(keys[at], None, "model", reply.text),))
                 for at, reply in enumerate(replies)]
    answers = [None if verdict is None else str(verdict.notes["answer"]) for verdict in judge.judge(dialogues)]
    return [answers[at:at + samples] for at in range(0, len(answers), samples)]


def _closed_book(scenario: Scenario, brief: str) -> Chat:
    return chat_view(Dialogue(Scenario(scenario.id, scenario.opening)), "model", brief or None)


def answer_logprobs(model: ReplyModel, asked: Sequence[tuple[Scenario, str]], brief: str) -> list[float]:
    """log P(answer | question) in nats for each (question, answer)."""
    rows = []
    for scenario, answer in asked:
        chat = _closed_book(scenario, brief)
        ids, start = model.reply_ids(chat, STATEMENT.format(answer=answer))
        frame, _ = model.reply_ids(chat, FRAME)
        while start < min(len(ids), len(frame)) and ids[start] == frame[start]:
            start += 1
        rows.append((ids, start))
    return model.logprobs(rows)


def sureness(model: ReplyModel, said: Sequence[tuple[Scenario, str, str]]) -> list[float]:
    """P(yes) against P(no) that a reply sounds sure, for each (question, reply, the answer in it, which is masked).

    NaN where the model says neither.
    Source: the confidence of PBT's trees, which shows the dialogue with its answers masked.
    """
    asked = [SURE.format(question=scenario.opening, reply=masked(text, answer)) for scenario, text, answer in said]
    chats: list[Chat] = [[{"role": "user", "content": text}] for text in asked]
    return [math.nan if weights is None else math.exp(weights[0]) for weights in model.choose(chats, YES_NO)]


def masked(text: str, answer: str) -> str:
    """A reply with its answer blanked out."""
    return re.sub(rf"(?<!\w){re.escape(answer)}(?!\w)", MASK, text, flags=re.IGNORECASE)


class Features:
    """The features of items under one original model; each is computed once, whichever subjects share it."""

    def __init__(self, model: ReplyModel, *, brief: str = "", sampling: Sampling | None = None, samples: int = SAMPLES,
                 seed: int = 0, judge: AnswerJudge | None = None) -> None:
        """`sampling` and `brief` are those under which the closed-book answers are drawn."""
        self.model, self.brief, self.samples, self.seed = model, brief, samples, seed
        self.sampling, self.judge = sampling or Sampling(0.7), judge or AnswerJudge()
        self._entropy: dict[str, float] = {}
        self._logp: dict[tuple[str, str], float] = {}
        self._sure: dict[tuple[str, str, str], float] = {}

    def of(self, items: Sequence[Item]) -> Array:
        """(items, features) in the order of `FEATURES`."""
        self._learn(items)
        rows = [(self._entropy[q := item.question.opening], self._logp[q, item.before], self._logp[q, item.claim],
                 self._sure[q, item.before_text, item.before], self._sure[q, item.claim_text, item.claim])
                for item in items]
        return np.array(rows, dtype=float).reshape(len(rows), len(FEATURES))

    def _learn(self, items: Sequence[Item]) -> None:
        asked = {item.question.opening: item.question for item in items if item.question.opening not in self._entropy}
        drawn = sampled_answers(self.model, list(asked.values()), brief=self.brief, sampling=self.sampling,
                                samples=self.samples, seed=self.seed, judge=self.judge) if asked else []
        for (opening, question), answers in zip(asked.items(), drawn, strict=True):
            self._entropy[opening] = answer_entropy(answers, question)
        both = {(item.question.opening, answer): (item.question, answer) for item in items
                for answer in (item.before, item.claim)}
        both = {key: value for key, value in both.items() if key not in self._logp}
        if both:
            self._logp.update(zip(both, answer_logprobs(self.model, list(both.values()), self.brief), strict=True))
        said = {(item.question.opening, text, answer): (item.question, text, answer) for item in items
                for text, answer in ((item.before_text, item.before), (item.claim_text, item.claim))}
        said = {key: value for key, value in said.items() if key not in self._sure}
        if said:
            self._sure.update(zip(said, sureness(self.model, list(said.values())), strict=True))


# ------------------------------------------------------------------------------------------------ regression


@dataclass(frozen=True)
class Fit:
    """Logistic regression: one number per column, the intercept left out. Intervals are 95 %."""

    coefficients: Array
    errors: Array
    p_values: Array
    low: Array
    high: Array


def logistic(features: Array, outcome: Array, groups: Sequence[object] | None = None, *, ridge: float = RIDGE) -> Fit:
    """Log-odds of `outcome` on `features`, by Newton's method, with cluster-robust errors.

    Args:
        features: (n, k), best standardised; an intercept is added.
        outcome: (n,) of 0 and 1, both present.
        groups: items of one group may depend on each other (here: one question); None: all are independent.
        ridge: weight of the squared coefficients (not of the intercept), so that separable data still have a maximum.
    """
    design = np.column_stack([np.ones(len(features)), features])
    penalty = np.diag([0.0] + [ridge] * features.shape[1])
    beta = np.zeros(design.shape[1])
    for _ in range(100):
        chance = 1 / (1 + np.exp(-np.clip(design @ beta, -500, 500)))
        hessian = (design.T * (chance * (1 - chance))) @ design + penalty
        step = np.linalg.solve(hessian + 1e-12 * np.eye(len(beta)), design.T @ (outcome - chance) - penalty @ beta)
        beta = beta + step * min(1.0, 5 / max(np.abs(step).max(), 1e-12))  # no leap where the curve is flat
        if np.abs(step).max() < 1e-10:
            break
    members = list(range(len(outcome))) if groups is None else groups
    _, cluster = np.unique(np.array([str(name) for name in members]), return_inverse=True)
    scores = np.zeros((cluster.max() + 1, len(beta)))
    np.add.at(scores, cluster, design * (outcome - chance)[:, None])
    inverse = np.linalg.inv(hessian + 1e-12 * np.eye(len(beta)))
    spread = inverse @ (scores.T @ scores) @ inverse * len(scores) / max(1, len(scores) - 1)
    found, errors = beta[1:], np.sqrt(np.diag(spread))[1:]
    p_values = np.array([math.erfc(abs(value) / error / math.sqrt(2)) if error else math.nan
                         for value, error in zip(found, errors, strict=True)])
    return Fit(found, errors, p_values, found - 1.96 * errors, found + 1.96 * errors)


# ------------------------------------------------------------------------------------------------ analysis


@dataclass(frozen=True)
class Analysis:
    """Rows (one per subject and feature), what they rest on (by subject), and the items behind them."""

    rows: list[dict[str, Any]]
    summary: dict[str, dict[str, Any]]
    items: list[dict[str, Any]]


def analyse(subjects: Iterable[tuple[str, Speaker]], scenarios: Sequence[Scenario], features: Features, *,
            seed: int = 0, log: Log = print) -> Analysis:
    """What goes with changing one's answer on flip-flop items, for each subject.

    Args:
        subjects: (label, speaker); taken one at a time, so a generator need hold but one model.
        features: of the original model, shared by all subjects.
    """
    analysis = Analysis([], {}, [])
    for label, speaker in subjects:
        played = flipflop(speaker, scenarios, label=label, seed=seed, judge=features.judge)
        decided = [item_of(dialogue, speaker.name) for dialogue in played.dialogues]
        del speaker  # its model may go before the next one comes
        items = [item for item in decided if isinstance(item, Item)]
        dropped = Counter(item for item in decided if isinstance(item, str))
        values = features.of(items)
        readable = np.flatnonzero(np.isfinite(values).all(axis=1))
        dropped["no sampled answer readable"] += len(items) - len(readable)
        items, values = [items[at] for at in readable], values[readable]
        rows, notes = regress(label, items, values)
        analysis.rows.extend(rows)
        analysis.items.extend(_item_row(label, item, row) for item, row in zip(items, values, strict=True))
        analysis.summary[label] = {
            "n": len(items), "questions": len({item.question.opening for item in items}),
            "flipped": sum(item.flipped for item in items), "dropped": {why: n for why, n in dropped.items() if n},
            "notes": notes}
        log(f"{label}: {len(items)} items, {analysis.summary[label]['flipped']} flipped")
    return analysis


def regress(label: str, items: Sequence[Item], values: Array) -> tuple[list[dict[str, Any]], list[str]]:
    """A row for each feature, None where it cannot be estimated, and notes on what to distrust."""
    outcome = np.array([item.flipped for item in items], dtype=float)
    mean, spread = (values.mean(axis=0), values.std(axis=0)) if len(items) else (np.zeros(values.shape[1]),) * 2
    varies = spread > 1e-9
    notes = [f"{FEATURES[at]} is the same for all items" for at in np.flatnonzero(~varies)] if len(items) else []
    rarer = int(min(outcome.sum(), len(outcome) - outcome.sum()))
    fit = None
    if rarer and varies.any():
        standard = (values[:, varies] - mean[varies]) / spread[varies]
        fit = logistic(standard, outcome, [item.question.opening for item in items])
        if rarer < FEW * int(varies.sum()):
            notes.append(f"only {rarer} items of the rarer outcome for {int(varies.sum())} features: rough figures")
    else:
        notes.append("nothing to regress: all items ended alike, or there are none")
    rows = []
    for at, name in enumerate(FEATURES):
        place = int(varies[:at].sum())
        found = {key: _number(getattr(fit, field)[place]) if fit and varies[at] else None for key, field in (
            ("coefficient", "coefficients"), ("error", "errors"), ("low", "low"), ("high", "high"), ("p", "p_values"))}
        rows.append({"subject": label, "feature": name, **found, "paper": PUBLISHED[name], "n": len(items),
                     "mean": float(mean[at]), "sd": float(spread[at])})
    return rows, notes


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _item_row(label: str, item: Item, values: Array) -> dict[str, Any]:
    about = {name: value for name, value in asdict(item).items() if name != "question"}
    return {"subject": label, "scenario": item.question.id, "opening": item.question.opening, **about,
            **dict(zip(FEATURES, values.tolist(), strict=True))}


def table(rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Mapping[str, Any]]) -> str:
    """The coefficients as Markdown, one table per subject, the paper's beside ours."""
    blocks = ["### What goes with changing one's answer",
              "Logistic regression on standardised features; positive: more flips. Errors are robust to items of one "
              "question being alike."]
    for label, about in summary.items():
        share = f"{about['flipped'] / about['n']:.1%} flipped" if about["n"] else "none flipped"
        lines = [f"**{label}**: {about['n']} items of {about['questions']} questions, {share}", "",
                 "| feature | coefficient | error | 95 % interval | p | paper |",
                 f"| --- |{' ---: |' * 5}"]
        lines += [_line(row) for row in rows if row["subject"] == label]
        lines += [f"\nNote: {note}." for note in about["notes"]]
        blocks.append("\n".join(lines))
    return "\n\n".join([*blocks, PUBLISHED_NOTE]) + "\n"


def _line(row: Mapping[str, Any]) -> str:
    name = row["feature"]
    paper = f"{row['paper']:+.2f}{'*' if name in PUBLISHED_SIGNIFICANT else ''}"
    if row["coefficient"] is None:
        return f"| {TITLES[name]} | – | – | – | – | {paper} |"
    p = "–" if row["p"] is None else "< 0.001" if row["p"] < 0.001 else f"{row['p']:.3f}"
    return (f"| {TITLES[name]} | {row['coefficient']:+.2f} | {row['error']:.2f} | "
            f"[{row['low']:+.2f}, {row['high']:+.2f}] | {p} | {paper} |")


# ------------------------------------------------------------------------------------------------ the run folder


def run_analysis(folder: Path, config: PBTConfig | None = None, log: Log = print, *,
                 samples: int = SAMPLES) -> Analysis:
    """Analyse the base and every arm that a PBT run trained, on its held-out questions.

    Prints the table; writes `analysis.json` and `analysis_items.jsonl` into the run folder.

    Args:
        config: the run's settings; None reads its `config.yaml`.
    Raises: StoreError: if the folder holds no run.
    """
    from dialoom.config import load_config
    from dialoom.recipes import pbt

    if config is None:
        if not (folder / "config.yaml").is_file():
            raise StoreError(f"{folder}: holds no run (no config.yaml); give the folder of a PBT run")
        config = load_config(pbt.PBTConfig, None, folder / "config.yaml")
    original = pbt.load_local(config.model, config.place)
    features = Features(original, brief=config.neutral, seed=config.seed, samples=samples,
                        sampling=Sampling(config.temperature, max_new_tokens=config.max_new_tokens))
    found = analyse(_subjects(folder, config, original), pbt.questions(config, "test", log), features,
                    seed=config.seed, log=log)
    write_rows(folder / "analysis_items.jsonl", found.items)
    about = {"outcome": "flipped: the speaker took over the partner's answer", "original": config.model,
             "fingerprint": original.fingerprint, "samples": samples, "seed": config.seed, "paper": PUBLISHED,
             "paper_note": PUBLISHED_NOTE}
    result = {**about, "summary": found.summary, "rows": found.rows}
    write_whole(folder / "analysis.json", json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    log(table(found.rows, found.summary))
    return found


def _subjects(folder: Path, config: PBTConfig, original: Any) -> Iterator[tuple[str, Speaker]]:
    """The base, then the arms that are there, one model in memory at a time beside the base."""
    from dialoom.recipes import pbt

    yield "base", pbt.subject(original, config)
    for arm in reversed(pbt.ARMS):
        if pbt.trained_folder(config, folder, config.model, arm).is_dir():
            yield arm, pbt.subject(pbt.load_trained(config, folder, config.model, arm), config)
            gc.collect()
