"""Social scenes in Sotopia's layout, out of the user's own copy: who meets whom, where, and what each of them wants.

    environments  {"pk", "scenario", "agent_goals": [..., ...], "relationship": 0..5, "codename", "source"}
    characters    {"pk", "first_name", "last_name", "age", "occupation", "public_info", "secret", ...}
    combinations  {"pk", "env_id", "agent_ids": [..., ...]}

each as a JSON list, as JSON lines, or as an object of them by pk; the published files say env_id, agent_id and combo_id
for a pk. A scene's opening is what both have read; a goal, a background and what the relationship lets one know of the
other stand in a brief. The surprising choice: a part of the scene that is marked for one viewer moves into that one's
brief, and a mark that cannot be read spoils its row rather than show it to both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dialoom.dialogue import Scenario, content_id
from dialoom.errors import DataError
from dialoom.progress import quiet
from dialoom.scenarios.files import read_bytes
from dialoom.text import MAX_NESTING, UNUSABLE, decode_json, parse_json

ROLES = ("first", "second")
"""Keys of a scene's briefs, in the order of speaking."""
RELATIONSHIPS = ("strangers", "known by name", "acquaintances", "friends", "a couple", "family")
"""By their number in the files."""
FILES = {"environments": ("environments", "environment_profiles", "envs"),
         "characters": ("characters", "agent_profiles", "agents"),
         "combinations": ("combinations", "env_agent_combo_storages", "env_agent_combos", "combos")}
"""What a file of each kind may be called, before one of `ENDS`; the second is the published name."""
ENDS = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
LEAVES = "[leaves]"
BRIEF = ("You are {name}. This is about you:\n{background}\n\n{other}\n\nYour goal, which only you know: {goal}\n\n"
         "Talk with the other person as {name} would, in one or two sentences at a time. When you want to end the "
         f"conversation, close your words with {LEAVES}")
PRIVATE = "Only you know this about the scene: {text}"
UNKNOWN = "You do not know the other person."
KNOWN = "This is what you know of the other person:\n{background}"
TOLD = 20  # of one kind and file are told one by one, the rest is in the count

_PUBLIC = {"age": "Age", "gender": "Gender", "gender_pronoun": "Pronouns", "occupation": "Occupation",
           "public_info": "Known to others"}
_VALUES = ("big_five", "moral_values", "schwartz_personal_values")  # what personality_and_values is written from
_MARKED = re.compile(r"<([A-Za-z_]\w*+)([^<>]*+)>([^<]*)</\1\s*>")
_VIEWERS = re.compile(r"\bviewers?\s*=\s*[\"']?([^\"']*)")
_LEFT_OVER = re.compile(r"\bviewers?\s*=|<[^<>]*\bviewers?\b")
_BETWEEN = re.compile(r"[\s,]*")
Tell = Callable[[str], None]
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Character:
    """Somebody who can be met.

    Attributes:
        public: lines that acquaintances know.
        personality: what friends know besides; may be empty.
        private: lines that nobody else ever knows, the secret among them.
    """

    id: str
    name: str
    public: tuple[str, ...]
    personality: str
    private: tuple[str, ...]

    def seen(self, relationship: int) -> str:
        """What somebody in this relationship knows, a line each; "" for a stranger. The secret is never in it.

        Source: the visibility rules of Sotopia as DAT's release applies them.
        """
        lines = [f"Name: {self.name}"] if relationship >= 1 else []
        lines += self.public if relationship >= 2 else ()
        lines += [f"Personality: {self.personality}"] if relationship >= 3 and self.personality else []
        return "\n".join(lines)

    @property
    def background(self) -> str:
        """All there is, for the character itself and for judges."""
        return "\n".join([self.seen(len(RELATIONSHIPS) - 1), *self.private])


@dataclass(frozen=True)
class Environment:
    """A place, two goals and how the two who meet there know each other.

    Attributes:
        scene: what both have read.
        hidden: what only the first and only the second has read; "" for nothing.
        whole: all of it, for judges.
        relationship: the index of one of `RELATIONSHIPS`.
        about: codename and source, where the file has them.
    """

    id: str
    scene: str
    hidden: tuple[str, str]
    whole: str
    goals: tuple[str, str]
    relationship: int
    about: Mapping[str, str]


# ------------------------------------------------------------------------------------------------ loading


def load_sotopia(folder: str | Path, *, tell: Tell = quiet) -> list[Scenario]:
    """The scenes of a folder that holds one file of each kind, named as `FILES` says; see `read_sotopia`.

    Raises: DataError: if one is missing, or there are two of a kind.
    """
    found = files_in(folder)
    for kind, paths in found.items():
        if len(paths) != 1:
            there = f"found {' and '.join(path.name for path in paths)}" if paths else "found none"
            raise DataError(f"{folder}: expected one file of {kind}, named {' or '.join(FILES[kind])} (.json or "
                            f".jsonl, or these as .gz), {there}; put one of each kind there")
    return read_sotopia(*(paths[0] for paths in found.values()), tell=tell)


def files_in(folder: str | Path) -> dict[str, list[Path]]:
    """What a folder holds of each kind in `FILES`, in that order: one path each, if it is as it should be."""
    return {kind: [path for name in names for end in ENDS if (path := Path(folder) / f"{name}{end}").is_file()]
            for kind, names in FILES.items()}


def read_sotopia(environments: str | Path, characters: str | Path, combinations: str | Path, *,
                 tell: Tell = quiet) -> list[Scenario]:
    """The scenes of three files, one for each combination, in their order.

    Briefs stand under `ROLES`. Facts: `roles`, `measured` (the roles with a goal to be judged by: both), `may_leave`,
    `environment`, `relationship`, `scene` (all of it), `characters` (name, background, goal; in the order of speaking)
    and codename and source. A bad row costs nothing but itself and the combinations that name it.

    Args:
        tell: told of each bad row by file and line, and of their counts at the end.
    Raises: DataError: if a file cannot be read, or nothing usable is left in it.
    """
    places = _by_id(Path(environments), _environment, "environments", tell)
    people = _by_id(Path(characters), _character, "characters", tell)
    told, found = _Told(Path(combinations), tell), dict[str, Scenario]()
    for line, row in _rows(told):
        try:
            scenario = _combination(row, places, people)
            if scenario.id in found:
                raise DataError(f"pk {scenario.id!r:.40} was used before; give each combination a pk of its own")
        except DataError as wrong:
            told.add(line, str(wrong))
        else:
            found[scenario.id] = scenario
    told.end(len(found), "combinations")
    return list(found.values())


def _by_id(path: Path, make: Callable[[Row], Any], what: str, tell: Tell) -> dict[str, Any]:
    told, found = _Told(path, tell), dict[str, Any]()
    for line, row in _rows(told):
        try:
            one = make(row)
            if found.setdefault(one.id, one) != one:
                raise DataError(f"pk {one.id!r:.40} was used before for something else; the first one stays")
        except DataError as wrong:
            told.add(line, str(wrong))
    told.end(len(found), what)
    return found


# ------------------------------------------------------------------------------------------------ rows


def _environment(row: Row) -> Environment:
    goals = row.get("agent_goals")
    if not isinstance(goals, list) or len(goals) != 2:
        raise DataError(f"expected agent_goals to be two texts, found {goals!r:.40}")
    level = row.get("relationship")
    if isinstance(level, str) and level.strip().isdecimal():
        level = int(level)
    if not isinstance(level, int) or isinstance(level, bool) or not 0 <= level < len(RELATIONSHIPS):
        raise DataError(f"expected relationship to be a number from 0 to {len(RELATIONSHIPS) - 1}, found {level!r:.40}")
    scene, hidden, whole = _rendered(_text(row, "scenario"))
    if not scene:
        raise DataError("expected a scenario of which both can read something, found one that is private altogether")
    wanted = [_rendered(_text({"agent_goals": goal}, "agent_goals"))[2] for goal in goals]
    about = {name: text for name in ("codename", "source") if (text := _text(row, name, needed=False))}
    return Environment(_pk(row, "env_id"), scene, hidden, whole, (wanted[0], wanted[1]), level, about)


def _character(row: Row) -> Character:
    name = " ".join(part for field in ("first_name", "last_name") if (part := _text(row, field, needed=False)))
    if not name:
        raise DataError("expected first_name and last_name, found neither")
    public = [f"{label}: {text}" for field, label in _PUBLIC.items() if (text := _text(row, field, needed=False))]
    values = [text for field in _VALUES if (text := _text(row, field, needed=False))]
    personality = _text(row, "personality_and_values", needed=False) or "; ".join(values)
    private = [f"{label}: {text}" for field, label in (("decision_making_style", "Way of deciding"),
                                                       ("secret", "Secret")) if (text := _text(row, field, False))]
    return Character(_pk(row, "agent_id"), name, tuple(public), personality, tuple(private))


def _combination(row: Row, places: Mapping[str, Environment], people: Mapping[str, Character]) -> Scenario:
    ids = row.get("agent_ids")
    if not isinstance(ids, list) or len(ids) != 2:
        raise DataError(f"expected agent_ids to be two ids, found {ids!r:.40}")
    names = [_text({"agent_ids": one}, "agent_ids") for one in ids]
    if names[0] == names[1]:
        raise DataError(f"expected two different characters, found {names[0]!r:.40} twice")
    where = _text(row, "env_id")
    if where not in places:
        raise DataError(f"env_id {where!r:.40} is not among the {len(places)} usable environments")
    for name in names:
        if name not in people:
            raise DataError(f"character {name!r:.40} is not among the {len(people)} usable ones")
    id = _pk(row, "combo_id", needed=False) or content_id("sotopia", where, names)
    return _scenario(id, places[where], (people[names[0]], people[names[1]]))


def _scenario(id: str, place: Environment, cast: tuple[Character, Character]) -> Scenario:
    briefs = {}
    for at, role in enumerate(ROLES):
        own, seen = cast[at], cast[1 - at].seen(place.relationship)
        other = KNOWN.format(background=seen) if seen else UNKNOWN
        if place.hidden[at]:
            other += "\n\n" + PRIVATE.format(text=place.hidden[at])
        briefs[role] = BRIEF.format(name=own.name, background=own.background, other=other, goal=place.goals[at])
    characters = [{"name": one.name, "background": one.background, "goal": goal}
                  for one, goal in zip(cast, place.goals, strict=True)]
    facts = {**place.about, "roles": list(ROLES), "measured": list(ROLES), "may_leave": True, "environment": place.id,
             "relationship": RELATIONSHIPS[place.relationship], "scene": place.whole, "characters": characters}
    return Scenario(id, place.scene, briefs, facts)


def _rendered(text: str) -> tuple[str, tuple[str, str], str]:
    """A text without its marks: what all may read, what each of the two alone may, and all of it."""
    hidden: tuple[list[str], list[str]] = ([], [])

    def shown(found: re.Match[str]) -> str:
        viewers = _VIEWERS.search(found[2])
        if viewers is None and "viewer" in found[2].lower():
            raise DataError(f"a part for one viewer that cannot be read: {found[0]!a:.60}; write viewer='agent_0'")
        if viewers is None or viewers[1].strip() == "all":
            return found[3]
        for at in (0, 1):
            if f"agent_{at}" in viewers[1]:
                hidden[at].append(found[3].strip())
        return " "

    def unmarked(text: str, show: Callable[[re.Match[str]], str]) -> str:
        for _ in range(MAX_NESTING):
            before, text = text, _MARKED.sub(show, text)
            if text == before:
                break
        else:
            raise DataError(f"marks nested over {MAX_NESTING} deep: {text!a:.60}")
        if _LEFT_OVER.search(text):
            raise DataError(f"a part for one viewer that is not closed: {text!a:.60}; close it with its end tag")
        return " ".join(text.split())

    public = unmarked(text, shown)
    return public, (" ".join(hidden[0]), " ".join(hidden[1])), unmarked(text, lambda found: found[3])


def _pk(row: Row, published: str, needed: bool = True) -> str:
    """The key of a row, under either of its names."""
    return _text(row, published if row.get("pk") is None and row.get(published) is not None else "pk", needed)


def _text(row: Row, field: str, needed: bool = True) -> str:
    """The text of a field, a number or a list of texts as one; "" where there is none and none is needed."""
    value = row.get(field)
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        value = ", ".join(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = f"{value:g}" if isinstance(value, float) else str(value)
    if value is None or (isinstance(value, str) and not value.strip()):
        if needed:
            raise DataError(f"no {field}; expected text, found {', '.join(map(str, row)) or 'an empty object':.60}")
        return ""
    if not isinstance(value, str) or UNUSABLE.search(value):
        raise DataError(f"expected {field} to be text, found {value!a:.40}")
    return value.strip()


# ------------------------------------------------------------------------------------------------ files


class _Told:
    """Tells bad rows of one file by line, the first ones one by one, and at the end how many there were."""

    def __init__(self, path: Path, tell: Tell) -> None:
        self.path, self.tell, self.count = path, tell, 0
        self.first = ""

    def add(self, line: int, message: str) -> None:
        self.count += 1
        self.first = self.first or f"{self.path}:{line}: {message}"
        if self.count <= TOLD:
            self.tell(f"{self.path}:{line}: {message}")

    def end(self, found: int, what: str) -> None:
        """Raises DataError if nothing was found."""
        if not found:
            raise DataError(f"{self.path}: no {what} there that can be used ({self.first or 'the file is empty'}); "
                            "expected Sotopia's layout as JSON or JSON lines")
        if self.count:
            self.tell(f"{self.path}: {found} {what} read, {self.count} rows left out")


def _rows(told: _Told) -> Iterator[tuple[int, Row]]:
    """(line, object) of a list, of lines, or of an object by pk; what is no object is told and passed over."""
    try:
        data = read_bytes(told.path)
    except OSError as wrong:
        raise DataError(f"{told.path}: cannot be read ({wrong.strerror}); expected a JSON or JSON-lines file") from None
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{told.path}: expected UTF-8, found the start of a UTF-16 file; save it as UTF-8")
    text = data.decode("utf-8-sig", "surrogateescape")
    for line, value in _values(text, told):
        if isinstance(value, dict):
            yield line, value
        else:
            told.add(line, f"expected an object, found {value!a:.40}")


def _values(text: str, told: _Told) -> Iterator[tuple[int, Any]]:
    start = len(text) - len(text.lstrip())
    if text[start:start + 1] == "[":
        yield from _items(text, start + 1, told)
        return
    whole = _parsed(text)
    if isinstance(whole, dict):
        by_pk = bool(whole) and all(isinstance(value, dict) for value in whole.values())
        for key, value in whole.items() if by_pk else [("", whole)]:
            at = max(0, text.find(json.dumps(key, ensure_ascii=False))) if by_pk else start
            yield text.count("\n", 0, at) + 1, {"pk": key, **value} if by_pk else value
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            value = _parsed(line)
            if isinstance(value, DataError):
                told.add(number, str(value))
            else:
                yield number, value


def _parsed(text: str) -> Any:
    """The JSON value that a text is, or the DataError that says why it is none."""
    try:
        return parse_json(text)
    except ValueError as wrong:
        why = getattr(wrong, "msg", wrong)
        return DataError(f"expected a JSON object, found {text.strip()!a:.40} ({why})")


def _items(text: str, at: int, told: _Told) -> Iterator[tuple[int, Any]]:
    """The items of a list that begins before `at`, up to the place where it breaks off."""
    line, counted = 1, 0
    while True:
        between = _BETWEEN.match(text, at)
        at = between.end() if between else at
        line, counted = line + text.count("\n", counted, at), at
        if text[at:at + 1] == "]":
            if text[at + 1:].strip():
                told.add(line, f"expected the end of the file after the list, found {text[at + 1:at + 41].strip()!a}; "
                               "it is not read")
            return
        try:
            value, at = decode_json(text, at)
        except ValueError as wrong:
            why = "the list is not closed" if at >= len(text) else getattr(wrong, "msg", wrong)
            told.add(line, f"expected an item, found {text[at:at + 40]!a} ({why}); the file is broken from here on")
            return
        yield line, value
