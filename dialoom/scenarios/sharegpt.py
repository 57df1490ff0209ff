"""Dialogues between people and assistants, and what IDEAS makes of them, in the layouts in which they are passed on.

    dialogues    {"conversations": [{"from": "human", "value": ...}, {"from": "gpt", ...}]}, {"messages": [{"role",
                 "content"}]} and near relatives, as a JSON list or as JSON lines
    openings     {"topic", "message": [{"role", "content"}, {"role", "content"}]}
    extractions  a dialogue whose last turn is the user's and reads 【instructional strategy】S【instruction】Q
    clusters     [[S, ...], ...]
    abstractions {"original instructional strategies": [S, ...], "High-level instructional strategy": S}
    strategies   [S, ...];  questions  {"question_id", "category", "turns", "reference"} (MT-Bench)

The surprising choice: a dialogue goes on as far as it is good. An empty turn or an unknown role cuts it there, a row
that cannot be read costs nothing but itself; everything of the kind is told with file and line, and counted.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from dialoom.dialogue import Dialogue, Scenario, Turn, content_id
from dialoom.errors import DataError
from dialoom.progress import quiet
from dialoom.scenarios.files import json_values
from dialoom.store import write_rows, write_whole
from dialoom.text import UNUSABLE

USER, ASSISTANT = "user", "assistant"
ROLES = {"human": USER, "user": USER, "prompter": USER, "gpt": ASSISTANT, "chatgpt": ASSISTANT, "assistant": ASSISTANT,
         "bot": ASSISTANT, "model": ASSISTANT, "system": "system"}
LISTS = ("conversations", "conversation", "coversation", "messages", "message", "items", "data")  # one is misspelt
NAMES = ("id", "idx", "question_id", "prompt_id")
KEPT = ("topic", "source", "licence", "license")  # fields of a row that become facts and are written again
STRATEGY_MARK, INSTRUCTION_MARK = "【instructional strategy】", "【instruction】"
MEMBERS, NAME = "original instructional strategies", "High-level instructional strategy"
TOLD = 20  # of one kind and file are told one by one, the rest is in the count

Tell = Callable[[str], None]


class Extracted(NamedTuple):
    """A dialogue up to a turn of its user, and the strategy behind that turn."""

    dialogue: Dialogue
    strategy: str


@dataclass(frozen=True)
class Question:
    """The user turns of one conversation of MT-Bench's kind; two, or eight.

    Attributes:
        reference: right answers to the first turns; may be empty.
    """

    id: str
    category: str
    turns: tuple[str, ...]
    reference: tuple[str, ...] = ()


def dialogue_of(id: str, said: Sequence[tuple[str, str]], facts: Mapping[str, Any] | None = None,
                brief: str = "") -> Dialogue:
    """A dialogue from what was said in it.

    Args:
        said: (speaker, text), the user first; that text is the scenario's opening.
        brief: the assistant's, private.
    Raises: DataError: if the user does not open it.
    """
    if not said or said[0][0] != USER:
        raise DataError(f"dialogue {id!r}: expected the user to open it, found {said[0][0] if said else 'no turn'}")
    scenario = Scenario(id, said[0][1], {ASSISTANT: brief} if brief else {}, dict(facts or {}))
    turns: list[Turn] = []
    for speaker, text in said[1:]:
        parent = turns[-1].id if turns else None
        turns.append(Turn(content_id("source", id, parent, speaker, text), parent, speaker, text))
    return Dialogue(scenario, tuple(turns))


# ------------------------------------------------------------------------------------------------ what is bad


class _Told:
    """Tells bad places by file and line, the first of each kind, and at the end how many there were."""

    def __init__(self, path: Path, tell: Tell) -> None:
        self.path, self.tell, self.counts = path, tell, Counter[str]()

    def add(self, line: int, kind: str, message: str) -> None:
        self.counts[kind] += 1
        if self.counts[kind] <= TOLD:
            self.tell(f"{self.path}:{line}: {message}")

    def end(self, found: int, what: str) -> None:
        """Raises DataError if nothing was found."""
        counted = ", ".join(f"{kind}: {count}" for kind, count in self.counts.items())
        if not found:
            raise DataError(f"{self.path}: no {what} there that can be used ({counted or 'the file is empty'}); "
                            f"expected one of the layouts of docs/ideas.md")
        if counted:
            self.tell(f"{self.path}: {found} {what} read; {counted}")


def _values(path: Path, told: _Told) -> Iterator[tuple[int, Any]]:
    return json_values(path, told.add, LISTS)


# ------------------------------------------------------------------------------------------------ dialogues


def read_dialogues(path: str | Path, *, pairs: int = 2, tell: Tell = quiet) -> list[Dialogue]:
    """The dialogues of a file, in its order: the opening question, then "assistant" and "user" in turn.

    Neighbours of one role are merged, turns before the first of a user are left out, a system message becomes the
    assistant's brief. An empty turn, one of an unknown role and one that is not text cut the dialogue; a dialogue
    without an answer is left out, one with fewer than `pairs` questions and answers is kept. Ids that repeat are told
    apart.

    Args:
        tell: told of each of these by file and line, and of their counts at the end.
    Raises: DataError: if the file cannot be read or holds no dialogue.
    """
    told, found = _Told(Path(path), tell), dict[str, Dialogue]()
    for line, value in _values(Path(path), told):
        dialogue = _dialogue(value, line, told)
        if dialogue is None:
            continue
        if len(dialogue.turns) < 2 * pairs - 1:
            told.add(line, "no follow-up", "a dialogue of one question: nothing shows how its user would go on")
        name, copies = dialogue.scenario.id, 1
        while dialogue.scenario.id in found:
            copies += 1
            dialogue = replace(dialogue, scenario=replace(dialogue.scenario, id=f"{name}#{copies}"))
        if copies > 1:
            told.add(line, "repeated id", f"id {name!r} was used before; this dialogue is {dialogue.scenario.id!r}")
        found[dialogue.scenario.id] = dialogue
    told.end(len(found), "dialogues")
    return list(found.values())


def read_openings(path: str | Path, *, tell: Tell = quiet) -> list[Dialogue]:
    """First questions with their answers; of longer dialogues the first pair. As `read_dialogues` otherwise."""
    return [replace(one, turns=one.turns[:1]) for one in read_dialogues(path, pairs=1, tell=tell)]


def _dialogue(value: Any, line: int, told: _Told) -> Dialogue | None:
    """One row as a dialogue; None, and told, if it is none."""
    rows: Any = next((value[name] for name in LISTS if name in value), None) if isinstance(value, dict) else value
    if isinstance(value, dict) and isinstance(rows, list) and rows is value.get("data"):  # texts in turn: UltraChat's
        rows = [{"role": (USER, ASSISTANT)[at % 2], "content": one} for at, one in enumerate(value["data"])]
    if not isinstance(rows, list):
        told.add(line, "no dialogue", f"expected an object with one of {', '.join(LISTS)}, found "
                                      f"{', '.join(map(str, value))[:60] if isinstance(value, dict) else value!r:.40}")
        return None
    said, brief = _said(rows, line, told)
    if len(said) < 2:
        told.add(line, "no answer", f"a dialogue of {len(said)} turn{'s' * (len(said) != 1)}, expected a question and "
                                    "an answer at least; it is left out")
        return None
    about = value if isinstance(value, dict) else {}
    named = next((about[name] for name in NAMES if isinstance(about.get(name), int) or _is_text(about.get(name))), None)
    facts = {name: about[name] for name in KEPT if about.get(name) == "" or _is_text(about.get(name))}
    return dialogue_of(str(named) if named is not None else content_id("dialogue", said), said, facts, brief)


def _is_text(value: Any) -> bool:
    """Whether a value is text that says something and can be stored."""
    return isinstance(value, str) and bool(value.strip()) and not UNUSABLE.search(value)


def _said(rows: Sequence[Any], line: int, told: _Told) -> tuple[list[tuple[str, str]], str]:
    """(speaker, text) of the turns up to the first bad one, and the system message."""
    said: list[tuple[str, str]] = []
    brief = ""
    for number, row in enumerate(rows, 1):
        kind, found = _turn(row)
        if kind:
            told.add(line, kind, f"turn {number}: {found}; the dialogue is cut before it")
            break
        speaker, text = found
        if speaker == "system":
            brief = "\n".join(part for part in (brief, text) if part)
        elif said and said[-1][0] == speaker:
            told.add(line, "repeated role", f"turn {number} is the {speaker}'s, like the one before; both are merged")
            said[-1] = (speaker, f"{said[-1][1]}\n{text}")
        elif said or speaker == USER:
            said.append((speaker, text))
        else:
            told.add(line, "answer first", f"turn {number} is the assistant's, before any question; it is left out")
    return said, brief


def _turn(row: Any) -> tuple[str, Any]:
    """("", (speaker, text)) of one turn, or (kind, what is wrong with it)."""
    if not isinstance(row, Mapping):
        return "not a turn", f"expected an object, found {type(row).__name__}"
    role = next((row[name] for name in ("from", "role", "speaker") if name in row), None)
    speaker = ROLES.get(role.strip().lower()) if isinstance(role, str) else None
    if speaker is None:
        return "unknown role", f"role {role!r:.40} is none of {', '.join(ROLES)}"
    text = next((row[name] for name in ("value", "content", "text", "markdown") if name in row), None)
    if isinstance(text, list):  # parts, as chat services write them
        parts = [part.get("text") for part in text if isinstance(part, Mapping)]
        text = "\n".join(part for part in parts if isinstance(part, str))
    if text is None or (isinstance(text, str) and not text.strip()):
        return ("", (speaker, "")) if speaker == "system" else ("empty turn", "it is empty")
    if not isinstance(text, str) or UNUSABLE.search(text):
        return "not text", f"expected text, found {text!r:.40}"
    return "", (speaker, text.strip())


def _spoken(dialogue: Dialogue) -> list[tuple[str, str]]:
    return [(USER, dialogue.scenario.opening), *((turn.speaker, turn.text) for turn in dialogue.turns)]


def _about(dialogue: Dialogue) -> dict[str, Any]:
    facts = dialogue.scenario.facts
    return {"id": dialogue.scenario.id, "topic": "", **{name: facts[name] for name in KEPT if name in facts}}


def _sharegpt(said: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"from": "human" if speaker == USER else "gpt", "value": text} for speaker, text in said]


def _messages(dialogue: Dialogue) -> list[dict[str, str]]:
    brief = dialogue.scenario.briefs.get(ASSISTANT)
    return [*([{"role": "system", "content": brief}] if brief else []),
            *({"role": USER if speaker == USER else ASSISTANT, "content": text} for speaker, text in _spoken(dialogue))]


def write_sharegpt(path: str | Path, dialogues: Iterable[Dialogue]) -> None:
    """Write `{id, topic, conversations}`: a JSON list where the file is named .json, else JSON lines."""
    rows = [{**_about(one), "conversations": _sharegpt(_spoken(one))} for one in dialogues]
    if Path(path).suffix == ".json":
        write_whole(path, json.dumps(rows, ensure_ascii=False, indent=1) + "\n")
    else:
        write_rows(path, rows)


def write_messages(path: str | Path, dialogues: Iterable[Dialogue]) -> None:
    """Write JSON lines `{id, topic, messages}`, the assistant's brief as a system message."""
    write_rows(path, ({**_about(one), "messages": _messages(one)} for one in dialogues))


def write_openings(path: str | Path, openings: Iterable[Dialogue]) -> None:
    """Write the first pairs of dialogues as JSON lines `{topic, message, question_id}`."""
    firsts = (replace(one, turns=one.turns[:1]) for one in openings)
    write_rows(path, ({"topic": one.scenario.facts.get("topic", ""), "message": _messages(one),
                       "question_id": one.scenario.id} for one in firsts))


# ------------------------------------------------------------------------------------------------ strategies


def read_strategies(path: str | Path, *, tell: Tell = quiet) -> list[str]:
    """The strategies of a JSON list, each once but for case and white space.

    Raises: DataError: if the file cannot be read, or fewer than two are left: with one there is nothing to choose.
    """
    path, found = Path(path), dict[str, str]()
    told = _Told(path, tell)
    for line, value in _values(path, told):
        if not _is_text(value):
            told.add(line, "not a strategy", f"expected a strategy as text, found {value!r:.40}")
        elif (key := " ".join(value.casefold().split())) in found:
            told.add(line, "repeated", f"the strategy {value!r:.60} stands there twice")
        else:
            found[key] = " ".join(value.split())
    told.end(len(found), "strategies")
    if len(found) < 2:
        raise DataError(f"{path}: a list of one strategy ({next(iter(found.values()))!r:.60}) leaves a simulator "
                        "nothing to choose; give two at least")
    return list(found.values())


def write_strategies(path: str | Path, strategies: Sequence[str]) -> None:
    """Write strategies as a JSON list."""
    write_whole(path, json.dumps(list(strategies), ensure_ascii=False, indent=1) + "\n")


def read_extractions(path: str | Path, *, tell: Tell = quiet) -> list[Extracted]:
    """Follow-up turns with their strategies, out of the released layout; arguments and errors as read_dialogues."""
    path, found = Path(path), list[Extracted]()
    told = _Told(path, tell)
    for line, value in _values(path, told):
        dialogue = _dialogue(value, line, told)
        if dialogue is None:
            continue
        last = dialogue.last
        head, mark, instruction = last.text.removeprefix(STRATEGY_MARK).partition(INSTRUCTION_MARK)
        is_marked = last.speaker == USER and last.text.startswith(STRATEGY_MARK) and mark
        if not is_marked or not head.strip() or not instruction.strip():
            told.add(line, "no strategy", f"expected the last turn to be the user's and to read {STRATEGY_MARK}..."
                                          f"{INSTRUCTION_MARK}..., found {last.text!r:.60}")
            continue
        said = [*_spoken(dialogue)[:-1], (USER, instruction.strip())]
        scene = dialogue.scenario
        found.append(Extracted(dialogue_of(scene.id, said, scene.facts, scene.briefs.get(ASSISTANT, "")),
                               " ".join(head.split())))
    told.end(len(found), "extractions")
    return found


def write_extractions(path: str | Path, extracted: Iterable[Extracted]) -> None:
    """Write follow-up turns with their strategies in the released layout: `{idx, conversations}`, a line each."""
    rows = []
    for dialogue, strategy in extracted:
        *before, (_, instruction) = _spoken(dialogue)
        marked = f"{STRATEGY_MARK}{strategy}{INSTRUCTION_MARK}{instruction}"
        rows.append({"idx": dialogue.scenario.id, "conversations": _sharegpt([*before, (USER, marked)])})
    write_rows(path, rows)


def read_clusters(path: str | Path, *, tell: Tell = quiet) -> list[list[str]]:
    """Lists of strategies that belong together. Raises DataError if there is none."""
    path = Path(path)
    told, found = _Told(path, tell), []
    for line, value in _values(path, told):
        if isinstance(value, list) and value and all(map(_is_text, value)):
            found.append([str(one) for one in value])
        else:
            told.add(line, "not a cluster", f"expected a list of strategies, found {value!r:.40}")
    told.end(len(found), "clusters")
    return found


def write_clusters(path: str | Path, clusters: Iterable[Sequence[str]]) -> None:
    """Write clusters as a JSON list of lists."""
    write_whole(path, json.dumps([list(one) for one in clusters], ensure_ascii=False, indent=1) + "\n")


def read_abstractions(path: str | Path, *, tell: Tell = quiet) -> list[tuple[list[str], str]]:
    """(strategies, their high-level strategy) of each line. Raises DataError if there is none."""
    path = Path(path)
    told, found = _Told(path, tell), []
    for line, value in _values(path, told):
        members, name = (value.get(MEMBERS), value.get(NAME)) if isinstance(value, dict) else (None, None)
        if isinstance(members, list) and members and all(map(_is_text, members)) and _is_text(name):
            found.append(([str(one) for one in members], str(name).strip()))
        else:
            told.add(line, "no abstraction", f"expected an object with {MEMBERS!r} and {NAME!r}, found {value!r:.40}")
    told.end(len(found), "abstractions")
    return found


def write_abstractions(path: str | Path, abstractions: Iterable[tuple[Sequence[str], str]]) -> None:
    """Write JSON lines of strategies and their high-level one, in the released layout."""
    write_rows(path, ({MEMBERS: list(members), NAME: name} for members, name in abstractions))


# ------------------------------------------------------------------------------------------------ questions


def read_questions(path: str | Path, *, tell: Tell = quiet) -> list[Question]:
    """Questions in MT-Bench's layout, of any number of turns. Raises DataError if there is none."""
    path, found = Path(path), list[Question]()
    told = _Told(path, tell)
    for line, value in _values(path, told):
        turns = value.get("turns") if isinstance(value, dict) else None
        if not isinstance(turns, list) or not turns or not all(map(_is_text, turns)):
            told.add(line, "no question", f"expected an object with turns, a list of texts, found {value!r:.60}")
            continue
        reference = value.get("reference") or []
        reference = [reference] if isinstance(reference, str) else reference
        if not isinstance(reference, list) or not all(one == "" or _is_text(one) for one in reference):
            told.add(line, "no reference", f"expected reference to be a list of texts, found {reference!r:.60}; "
                                           "the question is used without")
            reference = []
        named, category = value.get("question_id", value.get("id")), value.get("category")
        name = str(named) if isinstance(named, int) or _is_text(named) else content_id("question", turns)
        found.append(Question(name, category if _is_text(category) else "", tuple(turns), tuple(reference)))
    told.end(len(found), "questions")
    return found
