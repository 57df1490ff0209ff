"""What IDEAS induces from real dialogues: which are usable, and the strategy behind each follow-up turn of a user.

`extract` asks a model, as the paper does. The surprising choice: `weigh` then asks the other way round. Of all
strategies that were named anywhere, it takes for each turn the one with which the model, playing the user, would most
likely have said this turn. A small model names strategies badly and yet tells well what a strategy would make it say.
Clusters and their names are in `ideas_clusters`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dialoom.dialogue import Chat, Dialogue, Turn, chat_view, content_id
from dialoom.files import read_answers
from dialoom.models.base import ChatModel, Sampling, ScoringModel
from dialoom.pocket.world.strategies import format_target, strategy_list
from dialoom.pocket.world.strategy_tables import BRIEFS
from dialoom.progress import quiet
from dialoom.recipes.ideas_strategies import Record, folded
from dialoom.scenarios.sharegpt import ASSISTANT, USER
from dialoom.store import append_row
from dialoom.text import decode_json, edit_ratio

ALIKE = 0.8
"""A dialogue in which two turns of its user have this edit ratio or more is dropped."""
REFUSALS = ("language model", "sorry", "apologi", "unknown error", "content filter")
"""Words of an answer that refuses or breaks off, case aside; own list, in English."""
MAX_WORDS = 20  # of a strategy: IDEAS' requirement
EXTRACTING = Sampling(temperature=0.0, max_new_tokens=200)
BATCH = 256  # turns asked before the answers are written down
POOL = 64  # strategies weighed for a turn: more than pocket names in a corpus of 80 dialogues that way

EXTRACT = (
    "You study how people steer a conversation with an assistant. You will read a conversation that ends with a "
    "message of the user. Work out why the user sent this last message, given everything before it, and name the "
    "strategy behind it: a plain phrase such as “ask for an example”, “doubt a claim” or “narrow the question down”. "
    "It must hold nothing of this conversation alone, no names and no topics, and have twenty words at most.\n"
    'Answer with one JSON object and nothing else: {"analysis": "why the user sent it", "strategy": "the phrase"}')
REPAIR = 'That cannot be used: {fault}. Write the JSON object again, only that, with "analysis" and "strategy".'
POCKET_EXTRACT = BRIEFS["extract"][0]

Log = Callable[[str, int, int], None]


# ------------------------------------------------------------------------------------------------ filter


def usable(dialogues: Sequence[Dialogue], *, alike: float = ALIKE,
           refusals: Sequence[str] = REFUSALS) -> tuple[list[Dialogue], Counter[str]]:
    """The dialogues one can learn from, and how many were dropped for which reason.

    Dropped are those whose user says almost the same twice (two turns with an edit ratio of `alike` or more), and those
    with an answer that is empty or holds one of the words in `refusals`, case aside.

    Source: IDEAS (arXiv 2404.11095), its filter of source dialogues, with the ratio as released.
    """
    kept: list[Dialogue] = []
    reasons: Counter[str] = Counter()
    words = [word.casefold() for word in refusals]
    for dialogue in dialogues:
        reason = _unusable(dialogue, alike, words)
        if reason:
            reasons[reason] += 1
        else:
            kept.append(dialogue)
    return kept, reasons


def _unusable(dialogue: Dialogue, alike: float, refusals: Sequence[str]) -> str:
    answers = [turn.text.casefold() for turn in dialogue.by(ASSISTANT)]
    if any(not answer.strip() for answer in answers):
        return "empty answer"
    if any(word in answer for answer in answers for word in refusals):
        return "refusal"
    said = [dialogue.scenario.opening, *(turn.text for turn in dialogue.by(USER))]
    if any(edit_ratio(said[one], other) >= alike for at, other in enumerate(said) for one in range(at)):
        return "repeating user"
    return ""


# ------------------------------------------------------------------------------------------------ asking


@dataclass(frozen=True)
class FollowUp:
    """A turn of a user after the opening, with everything before it."""

    dialogue: Dialogue
    turn: Turn

    @property
    def key(self) -> str:
        """Names history and turn by their texts: what is said alike is asked once."""
        return content_id("follow-up", transcript(self.dialogue), self.turn.text)


def follow_ups(dialogues: Iterable[Dialogue]) -> Iterator[FollowUp]:
    """Every turn of a user after the opening: of n pairs n - 1."""
    for dialogue in dialogues:
        for at, turn in enumerate(dialogue.turns):
            if turn.speaker == USER:
                yield FollowUp(Dialogue(dialogue.scenario, dialogue.turns[:at]), turn)


def transcript(dialogue: Dialogue) -> str:
    """A dialogue as text, a line for each turn, from the opening on."""
    lines = [f"User: {dialogue.scenario.opening}"]
    lines += [f"{'User' if turn.speaker == USER else 'Assistant'}: {turn.text}" for turn in dialogue.turns]
    return "\n".join(lines)


def extract(dialogues: Sequence[Dialogue], model: ChatModel, *, brief: str = EXTRACT, sampling: Sampling = EXTRACTING,
            draws: int = 1, seed: int = 0, out: Path | None = None,
            log: Log = quiet) -> tuple[list[Record], Counter[str]]:
    """Ask a model for the strategy behind each follow-up turn; it reads the whole history.

    Equal histories with equal turns are asked once. A reply that cannot be read is asked for once more, with what was
    wrong; then the turn is counted and has no record.

    Args:
        brief: system message; the reply is to be JSON with `analysis` and `strategy`.
        draws: records of each turn; more than one only makes sense above temperature 0, as a pool for `weigh`.
        out: JSON lines of what was asked; what stands there is not asked again, whoever stopped it.
    Returns: the records in the order of the turns, and counts: asked, cached, repaired, and each reason for no record.
    Source: IDEAS (arXiv 2404.11095), strategy extraction: full history, at most 20 words, temperature 0.
    """
    about = (model.fingerprint, brief, sampling.key(), seed)
    wanted = [(one, draw, content_id(one.key, draw, *about)) for one in follow_ups(dialogues) for draw in range(draws)]
    known = read_answers(out, ("strategy", "analysis", "repaired", "reason"))
    counts: Counter[str] = Counter()
    todo = list({key: one for one, _, key in wanted if key not in known}.items())
    counts["asked"], counts["cached"] = len(todo), len(wanted) - len(todo)
    for start in range(0, len(todo), BATCH):
        part = todo[start:start + BATCH]
        for row in _ask([_question(one, brief) for _, one in part], [key for key, _ in part], model, sampling):
            known[str(row["key"])] = row
            if out is not None:
                append_row(out, row)
        log("strategies named", start + len(part), len(todo))
    records: list[Record] = []
    for one, draw, key in wanted:
        row = known[key]
        counts["repaired"] += bool(row["repaired"] and row["strategy"])
        if not row["strategy"]:
            counts[str(row["reason"])] += 1
            continue
        name = content_id("record", one.dialogue.scenario.id, one.turn.id, draw)
        records.append(Record(name, one.dialogue.scenario.id, one.turn.id, str(row["strategy"]), str(row["analysis"])))
    return records, +counts


def _question(one: FollowUp, brief: str) -> Chat:
    text = transcript(one.dialogue.then(one.turn))
    return [{"role": "system", "content": brief}, {"role": "user", "content": text}]


def _ask(chats: Sequence[Chat], keys: Sequence[str], model: ChatModel, sampling: Sampling) -> list[dict[str, object]]:
    """One row for each chat, after one more try where the first reply cannot be read."""
    replies = [reply.text for reply in model.chat(chats, sampling, keys)]
    found = [read_extraction(reply) for reply in replies]
    bad = [at for at, (_, _, fault) in enumerate(found) if fault]
    again = [[*chats[at], {"role": "assistant", "content": replies[at] or "..."},
              {"role": "user", "content": REPAIR.format(fault=found[at][2])}] for at in bad]
    if again:
        repaired = model.chat(again, sampling, [content_id("repair", keys[at]) for at in bad])
        for at, reply in zip(bad, repaired, strict=True):
            found[at] = read_extraction(reply.text)
    return [{"key": key, "strategy": strategy, "analysis": analysis, "reason": fault, "repaired": at in bad}
            for at, (key, (strategy, analysis, fault)) in enumerate(zip(keys, found, strict=True))]


def read_extraction(text: str) -> tuple[str, str, str]:
    """(strategy, analysis, "") of an extractor's reply, or ("", "", what is wrong); text around the object may be."""
    start = text.find("{")
    try:
        value = decode_json(text, start)[0] if start >= 0 else None
    except ValueError:
        value = None
    if not isinstance(value, dict):
        return "", "", "not a JSON object"
    strategy, analysis = value.get("strategy"), value.get("analysis")
    plain = " ".join(strategy.split()).strip(" .\"'“”") if isinstance(strategy, str) else ""
    if not plain:
        return "", "", "no strategy"
    if len(plain.split()) > MAX_WORDS:
        return "", "", f"a strategy of more than {MAX_WORDS} words"
    return plain, " ".join(analysis.split()) if isinstance(analysis, str) else "", ""


# ------------------------------------------------------------------------------------------------ weighing


def weigh(dialogues: Sequence[Dialogue], records: Sequence[Record], model: ScoringModel, *, brief: str,
          pool: int = POOL, out: Path | None = None, log: Log = quiet) -> tuple[list[Record], Counter[str]]:
    """For each follow-up turn the strategy, of those that were named, from which a model would most likely say it.

    The model plays the user under the simulator's own prompt, and each strategy is weighed by the probability of the
    target that holds it and the turn as it was said: how well it fits the dialogue, times how well it explains the
    turn. Also turns whose extraction failed get one.

    Args:
        records: what `extract` found, of any number of draws.
        brief: the simulator's system message; `{strategies}` becomes the list of those weighed.
        pool: > 1; so many strategies at most, the most frequent ones.
        out: JSON lines of what was weighed; it is not weighed again.
    Returns: one record for each turn, and counts: weighed, cached, changed (other than the turn's first record); a
        turn of which the model gives nothing to read has none, counted as not weighed.
    Source: ours, Bayes' rule with the simulator of IDEAS (arXiv 2404.11095) as the likelihood.
    """
    named = pool_of(records, pool)
    first = {(record.dialogue, record.turn): record for record in reversed(records)}
    counts: Counter[str] = Counter()
    if not named:
        return [], counts
    system = brief.replace("{strategies}", strategy_list(named))
    about = content_id(model.fingerprint, system)
    known = read_answers(out, ("strategy",))
    found: list[Record] = []
    turns = list(follow_ups(dialogues))
    for count, one in enumerate(turns, 1):
        key = content_id(one.key, about)
        if key not in known:
            # each turn has options of its own, so each is a call; its rows are one batch
            weights = model.choose([chat_view(one.dialogue, USER, system)],
                                   [format_target(text, one.turn.text) for text in named])[0]
            if weights is None:
                counts["not weighed"] += 1
                continue
            known[key] = {"key": key, "strategy": named[max(range(len(named)), key=weights.__getitem__)],
                          "logprob": round(max(weights), 4)}
            counts["weighed"] += 1
            if out is not None:
                append_row(out, known[key])
            log("strategies weighed", count, len(turns))
        else:
            counts["cached"] += 1
        before = first.get((one.dialogue.scenario.id, one.turn.id))
        strategy = str(known[key]["strategy"])
        same = before is not None and before.strategy == strategy
        counts["changed"] += not same
        found.append(Record.of(one.dialogue, one.turn.id, strategy, before.analysis if before and same else ""))
    return found, +counts


def pool_of(records: Iterable[Record], size: int | None = None) -> list[str]:
    """The `size` most frequent strategies (None: all), of equals the earlier one; texts that fold alike are one."""
    spelling: dict[str, str] = {}
    counted = Counter(folded(spelling.setdefault(folded(record.strategy), record.strategy)) for record in records)
    return [spelling[key] for key, _ in counted.most_common(size)]
