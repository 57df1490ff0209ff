"""Trivia questions as scenarios: TriviaQA's own files, plain tables, and the facts of the pocket world.

`load_trivia` reads three formats by the file's extension:

    .json   the official download: {"Data": [{"Question", "QuestionId", "Answer": {"Value", "Aliases", ...}}, ...]}
    .jsonl  one row a line: {"question", "question_id", "answer": {"value", "aliases", ...}}, or "answer": "text"
    .csv    a header with question,answer and, if wished, question_id, claim, aliases, distractors (split at "|")

The surprising choice: one bad row never costs a good one. Rows are read one by one, even out of a truncated JSON
document, and every bad one is named by file and line with what was expected and what was found.
"""

from __future__ import annotations

import csv
import io
import random
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from dialoom.dialogue import Scenario, content_id
from dialoom.errors import ConfigError, DataError
from dialoom.pocket.world.facts import HELD_OUT_QUESTIONS, QUESTIONS, distractors, load_facts
from dialoom.scenarios.files import plain_suffix, read_bytes
from dialoom.text import UNUSABLE, decode_json, normalize_answer

MAX_CHARACTERS = 10_000  # of one text: far above any trivia question, so a longer one is a broken row
NO_GOLD = "<unk>"  # stands for the withheld answers in TriviaQA's test split
POCKET_DISTRACTORS = 3

_SPACE = re.compile(r"[ \t\r\n]*")
_Row = tuple[int, Any]  # line number and the row's value, or the DataError that stands for it


def load_trivia(
    path: str | Path,
    *,
    on_bad: Callable[[str], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> list[Scenario]:
    """The questions of one file, in its order.

    `facts` holds `answer` (as written), `aliases` (all right answers, normalised) and, where the file has them,
    `distractors` (wrong ones). Rows without an id are named by their content.

    Args:
        on_bad: called with one message per row that cannot be used, which is then skipped; None: bad rows are an error.
        on_note: called when ids repeat and had to be told apart; None: a warning.
    Raises: DataError: if the file cannot be read, has no usable row, or has bad rows and `on_bad` is None.
    """
    path = Path(path)
    scenarios: dict[str, Scenario] = {}
    copies: Counter[str] = Counter()
    bad: list[str] = []
    renamed: list[str] = []
    for line, row in _rows(path):
        try:
            scenario = _scenario(row)
        except DataError as problem:
            bad.append(f"{path}:{line}: {problem}")
            if on_bad:
                on_bad(bad[-1])
            continue
        id = scenario.id
        while id in scenarios:
            copies[scenario.id] += 1
            id = f"{scenario.id}#{copies[scenario.id] + 1}"
        if id != scenario.id:
            renamed.append(f"{path}:{line}: id {scenario.id!r} was used before; this row is now {id!r}")
        scenarios[id] = Scenario(id, scenario.opening, facts=scenario.facts)
    if not scenarios:
        raise DataError(f"{path}: no usable question; " + (_summary(bad) if bad else "the file has no rows"))
    if bad and not on_bad:
        raise DataError(f"{_summary(bad)}; correct or remove them, or allow bad rows to be skipped")
    if renamed:
        (on_note or _warn)(_summary(renamed))
    return list(scenarios.values())


def pocket_trivia(
    split: str | None, *, seed: int, phrasing: Literal["train", "held_out"] = "train"
) -> list[Scenario]:
    """One question about every fact of the pocket world in `split` (None: all), phrased and ordered by `seed`.

    The id tells fact and phrasing; `facts` also holds the `fact` id, its `relation` and wrong answers as `distractors`.

    Raises: ConfigError: if `split` or `phrasing` is unknown.
    """
    if split not in (None, "train", "valid", "test"):
        raise ConfigError(f"split {split!r} is unknown; use train, valid, test, or None for all")
    if phrasing not in ("train", "held_out"):
        raise ConfigError(f"phrasing {phrasing!r} is unknown; use train or held_out")
    questions = QUESTIONS if phrasing == "train" else HELD_OUT_QUESTIONS
    scenarios = []
    for fact in load_facts():
        if split is not None and fact.split != split:
            continue
        rng = random.Random(f"{seed}:{fact.id}")
        index = rng.randrange(len(questions[fact.relation]))
        facts = {
            "answer": fact.answer,
            "aliases": _normalised([fact.answer, *fact.aliases]),
            "distractors": distractors(fact, rng, POCKET_DISTRACTORS),
            "fact": fact.id,
            "relation": fact.relation,
        }
        opening = questions[fact.relation][index].format(subject=fact.subject)
        scenarios.append(Scenario(f"{fact.id}/{phrasing}-{index}", opening, facts=facts))
    random.Random(seed).shuffle(scenarios)
    return scenarios


def alternatives(scenarios: Sequence[Scenario], seed: int) -> dict[str, str]:
    """Scenario id -> one plausible wrong answer, the same for any order of the same scenarios.

    One of the scenario's own `distractors` where it has some. Else the answer of another scenario, as near as there is
    in kind (number or not), capital letter and length (digits of a number, words otherwise); never a form of the right
    answer, and not a text that stands in the question. A scenario for which none is left is missing from the result.
    """
    pool: dict[tuple[bool, bool, int], dict[str, Scenario]] = {}
    for scenario in sorted(scenarios, key=lambda one: one.id):
        pool.setdefault(_shape(scenario.facts["answer"]), {}).setdefault(
            normalize_answer(scenario.facts["answer"]), scenario
        )
    ordered = {shape: [found for _, found in sorted(group.items())] for shape, group in pool.items()}
    chosen = {scenario.id: _alternative(scenario, ordered, seed) for scenario in scenarios}
    return {id: answer for id, answer in chosen.items() if answer is not None}


def with_distractors(scenarios: Sequence[Scenario], seed: int) -> list[Scenario]:
    """The scenarios that have or find a wrong answer (see `alternatives`), each with `distractors` in its facts."""
    wrong = alternatives(scenarios, seed)
    return [replace(one, facts={**one.facts, "distractors": one.facts.get("distractors") or [wrong[one.id]]})
            for one in scenarios if one.id in wrong]


def _alternative(
    scenario: Scenario, pool: Mapping[tuple[bool, bool, int], Sequence[Scenario]], seed: int
) -> str | None:
    """The nearest fitting wrong answer, drawn by seed and scenario id among equally near ones."""
    rng = random.Random(f"{seed}:{scenario.id}")
    own = scenario.facts.get("distractors")
    if own:
        return str(rng.choice(own))
    gold = set(scenario.facts["aliases"])
    question = f" {normalize_answer(scenario.opening)} "
    digits, capital, size = _shape(scenario.facts["answer"])
    near = sorted(pool, key=lambda shape: (shape[0] != digits, shape[1] != capital, abs(shape[2] - size), shape))
    for group in (pool[shape] for shape in near):
        start = rng.randrange(len(group))
        for step in range(len(group)):
            other = group[(start + step) % len(group)]
            answer = normalize_answer(other.facts["answer"])
            if answer and gold.isdisjoint(other.facts["aliases"]) and f" {answer} " not in question:
                return str(other.facts["answer"])
    return None


def _shape(answer: str) -> tuple[bool, bool, int]:
    """What makes two answers look alike: is it a number, does it start with a capital, how many digits or words."""
    words = normalize_answer(answer).split()
    digits = "".join(words)
    if digits.isdecimal():
        return True, False, len(digits)
    return False, answer.lstrip("\"'(‘“")[:1].isupper(), len(words)


# Rows to scenarios


def _scenario(row: Any) -> Scenario:
    """One row as a scenario. Raises DataError with what was expected and found, without the place."""
    if isinstance(row, DataError):
        raise row
    if not isinstance(row, dict):
        raise DataError(f"expected an object with question and answer, found {_shown(row)}")
    question = _text(_field(row, "question"), "question")
    answer, aliases = _answer(row)
    gold = _normalised([answer, *aliases])
    if not gold:
        raise DataError(f"expected an answer, found {_shown(answer)}, of which nothing is left once normalised")
    facts: dict[str, Any] = {"answer": answer, "aliases": gold}
    wrong = _texts(_field(row, "distractors"), "distractors")
    claim = [_text(_field(row, "claim"), "claim")] if _field(row, "claim") else []
    for one in (*wrong, *claim):
        if normalize_answer(one) in gold:
            raise DataError(f"expected wrong answers as distractors or claim, found {_shown(one)}, a right one")
    if wrong or claim:
        facts["distractors"] = wrong or claim
    if claim:
        facts["claim"] = claim[0]
    return Scenario(_id(row) or f"question-{content_id(question, answer)}", question, facts=facts)


def _answer(row: Mapping[str, Any]) -> tuple[str, list[str]]:
    """The answer as written and its other forms, from a nested answer object or from flat columns."""
    held = _field(row, "answer")
    if not isinstance(held, dict):
        return _gold(held), _texts(_field(row, "aliases"), "aliases")
    aliases = _texts(_field(held, "aliases"), "aliases")
    return _gold(_field(held, "value")), aliases + _texts(_field(held, "normalized_aliases"), "normalized_aliases")


def _gold(value: Any) -> str:
    """The answer's text. Raises DataError where the file withholds it."""
    answer = _text(value, "answer")
    if answer == NO_GOLD:
        raise DataError(f"expected an answer, found {NO_GOLD}, as in TriviaQA's test split; use the validation split")
    return answer


def _field(row: Mapping[str, Any], name: str) -> Any:
    """The value under `name`, or under its spelling in the official files (`QuestionId` for `question_id`)."""
    return row[name] if name in row else row.get(name.title().replace("_", ""))


def _id(row: Mapping[str, Any]) -> str:
    """The row's own id, "" where it has none."""
    id = _field(row, "question_id")
    if id is None or id == "":
        return ""
    if isinstance(id, int) and not isinstance(id, bool):
        return str(id)
    return _text(id, "question_id")


def _text(value: Any, name: str) -> str:
    """A text that can be shown to a model. Raises DataError otherwise."""
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"expected {name} to be text, found {'nothing' if value is None else _shown(value)}")
    if len(value) > MAX_CHARACTERS:
        raise DataError(f"expected {name} to have at most {MAX_CHARACTERS:,} characters, found {len(value):,}")
    if found := UNUSABLE.search(value):
        what = "a NUL character" if found[0] == "\0" else "a byte or escape that is not UTF-8"
        raise DataError(f"expected {name} to be clean text, found {what} in {_shown(value)}")
    return value.strip()


def _texts(value: Any, name: str) -> list[str]:
    """A list of texts, empty for None."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise DataError(f"expected {name} to be a list of texts, found {_shown(value)}")
    return [_text(one, name) for one in value]


def _normalised(answers: Sequence[str]) -> list[str]:
    """The answers in comparable form, each once, without those of which nothing is left."""
    return [one for one in dict.fromkeys(normalize_answer(answer) for answer in answers) if one]


def _shown(value: Any) -> str:
    """A value short enough for a message, with nothing in it that a terminal would obey."""
    text = ascii(value) if isinstance(value, (str, int, float, bool, list)) or value is None else type(value).__name__
    return text if len(text) <= 60 else f"{text[:57]}..."


def _summary(messages: Sequence[str]) -> str:
    """Up to five messages and how many more there are."""
    more = f"; and {len(messages) - 5:,} more like these" if len(messages) > 5 else ""
    return "; ".join(messages[:5]) + more


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=3)


# Files to rows


def _rows(path: Path) -> Iterator[_Row]:
    """The rows of a file with their line numbers; a DataError in place of a row that cannot be read."""
    readers = {".json": _json_rows, ".jsonl": _jsonl_rows, ".csv": _csv_rows}
    reader = readers.get(plain_suffix(path))
    if reader is None:
        raise DataError(f"{path}: expected a name ending in .json, .jsonl or .csv, found {path.suffix or 'none'!r}")
    try:
        data = read_bytes(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); name an existing trivia file") from error
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{path}: expected UTF-8, found the start of a UTF-16 file; save it as UTF-8")
    # A wrong byte becomes a lone surrogate, which `_text` refuses: it then spoils its own row only.
    text = data.decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    if not text.strip():
        raise DataError(f"{path}: expected trivia questions, found an empty file")
    try:
        yield from reader(text)
    except DataError as problem:
        raise DataError(f"{path}: {problem}") from None


def _parsed(text: str, at: int) -> tuple[Any, int]:
    """The JSON value at `at` and where it ends; a DataError in place of a value that is none."""
    try:
        return decode_json(text, at)
    except ValueError as error:
        found = _shown(text[at : at + 40])
        return DataError(f"expected JSON, found {found} ({getattr(error, 'msg', error)})"), at


def _jsonl_rows(text: str) -> Iterator[_Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.strip(" \t\r")
        if line:
            row, end = _parsed(line, 0)
            if end and end < len(line):
                row = DataError(f"expected one object a line, found {_shown(line[end : end + 40])} after it")
            yield number, row


def _json_rows(text: str) -> Iterator[_Row]:
    """The items of the official document's "Data" list, or of a bare list; up to the place where it breaks off."""
    at, line, counted = _past_space(text, _data_start(text)), 1, 0
    while not text.startswith("]", at):
        line, counted = line + text.count("\n", counted, at), at
        row, end = _parsed(text, at)
        if isinstance(row, DataError):
            yield line, DataError(f"{row}; the file is broken from here on")
            return
        yield line, row
        at = _past_space(text, end)
        if text[at : at + 1] not in (",", "]"):
            line += text.count("\n", counted, at)
            found = _shown(text[at : at + 40]) if at < len(text) else "the end of the file"
            yield line, DataError(f"expected a comma or the end of the list, found {found}; the file is broken here")
            return
        if text[at] == ",":
            at = _past_space(text, at + 1)


def _data_start(text: str) -> int:
    """Where the first item of the list of questions is. Raises DataError if there is no such list."""
    at = _past_space(text, 0)
    if text[at : at + 1] == "[":
        return at + 1
    keys = []
    opened = "{"
    while text[at : at + 1] == opened:
        key, at = _parsed(text, _past_space(text, at + 1))
        at = _past_space(text, at)
        if not isinstance(key, str) or text[at : at + 1] != ":":
            break
        at = _past_space(text, at + 1)
        if key == "Data" and text[at : at + 1] == "[":
            return at + 1
        keys.append(key)
        value, at = _parsed(text, at)
        if isinstance(value, DataError):
            break
        at, opened = _past_space(text, at), ","
    found = f"the keys {', '.join(map(_shown, keys[:8]))}" if keys else _shown(text[:40])
    raise DataError(f'expected {{"Data": [...]}}, found {found}; name a file with one row a line .jsonl')


def _past_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _csv_rows(text: str) -> Iterator[_Row]:
    lines = list(io.StringIO(text, newline=""))
    columns: list[str] = []
    at = 0
    while at < len(lines):
        # A reader for each row: after a quote that never closes, reading goes on at the next line, not at the end.
        reader = csv.reader((lines[index] for index in range(at, len(lines))), strict=True)
        line = at + 1
        try:
            cells = next(reader)
        except csv.Error as error:
            at += 1
            yield line, DataError(f"expected a CSV row, found {_shown(lines[line - 1].strip())} ({error})")
            continue
        at += reader.line_num
        if not any(cell.strip() for cell in cells):
            continue
        if columns:
            yield line, _csv_row(columns, cells)
        else:
            columns = _csv_columns(cells)


def _csv_columns(cells: Sequence[str]) -> list[str]:
    """The header's names. Raises DataError unless question and answer are among them, once each."""
    columns = [cell.strip().lower() for cell in cells]
    if columns.count("question") != 1 or columns.count("answer") != 1:
        raise DataError(
            f"expected a header question,answer[,aliases][,distractors][,question_id], found {_shown(','.join(cells))}"
        )
    return columns


def _csv_row(columns: Sequence[str], cells: Sequence[str]) -> dict[str, Any] | DataError:
    if len(cells) != len(columns):
        return DataError(f"expected {len(columns)} cells, found {len(cells)}; put quotes around a cell with a comma")
    row: dict[str, Any] = dict(zip(columns, cells, strict=True))
    for name in {"aliases", "distractors"} & row.keys():
        row[name] = [one for one in row[name].split("|") if one.strip()]
    return row
