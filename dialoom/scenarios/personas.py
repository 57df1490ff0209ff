"""Personas: people as a profile (facts) and a personality (traits), and the files they stand in.

`read_personas` and `read_texts` take JSON lines. A line holds JSON strings (the layout ALOE released; sometimes two on
one line) or an object, ours being

    {"id": "...", "facts": ["She keeps hens.", ...], "traits": ["Never hurries.", ...]}

The surprising choice: one bad line never costs a good one. Each bad one is named by file and line. Pocket's people
(`pocket.world.personas.Persona`, from closed tables) and these convert into each other: `from_world`, `Persona.world`.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dialoom.dialogue import content_id
from dialoom.errors import ConfigError, DataError
from dialoom.pocket.world import personas as world
from dialoom.scenarios.files import read_bytes
from dialoom.store import write_rows, write_whole
from dialoom.text import UNUSABLE, decode_json, parse_json

Kind = Literal["profile", "personality"]
KINDS: tuple[Kind, Kind] = ("profile", "personality")
OnBad = Callable[[str], None]

MAX_CHARACTERS = 5_000  # of one text: the longest released one has under 800
_PARTS = {"profile": "facts", "personality": "traits"}
_BORDER = re.compile(r"""(?<=[.!?])["')\]]*\s+(?=["'(\[]*[A-Z0-9])""")
_SHORTENED = re.compile(r"(?:^|\s)(?:[A-Z]|Dr|Mr|Mrs|Ms|St|Prof|No)\.$")
_TO_SHE = {"he": "she", "him": "her", "his": "her", "himself": "herself"}
_TO_HE = {"she": "he", "her": "his", "hers": "his", "herself": "himself"}
# "her" before a noun is "his", before anything else "him": what most often follows an object
_OWNED = re.compile(r"\s+(?!(?:and|or|but|in|on|at|to|of|for|from|with|without|by|as|if|when|while|so|than|that|the|a|"
                    r"an|is|was|too|not|up|out|off|down|more|because|until|after|before|often|easily)\b)\w")


@dataclass(frozen=True)
class Persona:
    """A person whom a user simulator can play.

    Attributes:
        id: unique in its file.
        facts: sentences of the profile; at least one.
        traits: sentences of the personality; at least one.
    """

    id: str
    facts: tuple[str, ...]
    traits: tuple[str, ...]

    @classmethod
    def of(cls, profile: str, personality: str) -> Persona:
        """A persona from its two texts, named by their content. Raises DataError if one of them says nothing."""
        facts, traits = sentences(profile), sentences(personality)
        if not facts or not traits:
            raise DataError(f"a persona without {'traits' if facts else 'facts'}; expected a sentence at least")
        return cls(content_id("persona", facts, traits), facts, traits)

    @property
    def profile(self) -> str:
        """The facts as one text."""
        return " ".join(self.facts)

    @property
    def personality(self) -> str:
        """The traits as one text."""
        return " ".join(self.traits)

    @property
    def text(self) -> str:
        """Profile and personality, as a user simulator's brief holds them."""
        return f"{self.profile} {self.personality}"

    @property
    def world(self) -> world.Persona:
        """What of it stands in the words of pocket's closed world; no fact and no trait where nothing does.

        The pronoun is the profile's.
        """
        found = world.read_persona(self.profile, "")
        return world.Persona(found.facts, world.read_personality(self.personality), found.pronoun)


def from_world(person: world.Persona) -> Persona:
    """A person of pocket's world under the same id; their `world` equals them, but for the wording."""
    return Persona(person.id, sentences(person.profile), sentences(person.personality))


def sentences(text: str) -> tuple[str, ...]:
    """The sentences of a text, white space evened out; a few abbreviations and initials end none."""
    found: list[list[str]] = []  # the parts of each
    for part in _BORDER.split(" ".join(text.split())):
        if found and _SHORTENED.search(found[-1][-1]):
            found[-1].append(part)
        elif part:
            found.append([part])
    return tuple(" ".join(parts) for parts in found)


def combine(profiles: Sequence[str], personalities: Sequence[str], passes: int, *, seed: int) -> list[Persona]:
    """`passes` personas of each profile, each with another personality, drawn by `seed` and the profile alone.

    Pronouns of the personality follow the profile. The same profiles in another order give the same people.

    Source: ALOE (arXiv 2410.03642): 331 profiles in 10 passes are its 3,310 personas.
    Raises: ConfigError: if there are fewer personalities than passes.
    """
    if not 1 <= passes <= len(personalities):
        raise ConfigError(f"{passes} passes over the profiles with {len(personalities)} personalities; expected at "
                          "least one pass and a personality of its own for each")
    drawn = [random.Random(f"{seed}:{profile}").sample(personalities, passes) for profile in profiles]
    said = [pronoun_of(profile) for profile in profiles]
    return [Persona.of(profile, with_pronoun(drawn[at][turn], said[at]))
            for turn in range(passes) for at, profile in enumerate(profiles)]


def pronoun_of(text: str) -> str:
    """"He" or "She", whichever a text says first; "" if neither."""
    found = re.search(r"\b(he|she)\b", text, re.IGNORECASE)
    return found[1].capitalize() if found else ""


def with_pronoun(text: str, pronoun: str) -> str:
    """A text about "He" or "She" turned to the other where `pronoun` is that; what uses neither stays as it is."""
    if not pronoun or pronoun_of(text) in ("", pronoun):
        return text
    turned = _TO_SHE if pronoun == "She" else _TO_HE

    def turn(found: re.Match[str]) -> str:
        word = turned[found[0].lower()]
        if found[0].lower() == "her" and not _OWNED.match(text, found.end()):
            word = "him"
        return word.capitalize() if found[0][0].isupper() else word

    return re.sub(rf"\b(?:{'|'.join(turned)})\b", turn, text, flags=re.IGNORECASE)


# ---------------------------------------------------------------------------------------------------- files


@dataclass(frozen=True)
class Entry:
    """What stands at one place of a file: `where` is `file:line`; a text that is not there is None.

    A plain string is `text`, since the released layouts tell its kind by the file's name only.
    """

    where: str
    id: str | None = None
    text: str | None = None
    profile: str | None = None
    personality: str | None = None


def read_entries(path: str | Path, *, on_bad: OnBad | None = None) -> list[Entry]:
    """Everything a file of personas, profiles or personalities holds, in its order; what it repeats stays.

    Args:
        on_bad: called with one message for each bad place, which is then skipped; None: bad ones are an error.
    Raises: DataError: if the file cannot be read, holds nothing usable, or is bad somewhere and `on_bad` is None.
    """
    path, found, bad = Path(path), [], _Bad(on_bad)
    for line, value in _values(path):
        try:
            found.append(_entry(value, f"{path}:{line}"))
        except DataError as problem:
            bad.add(f"{path}:{line}: {problem}")
    bad.check(path, len(found))
    return found


def read_texts(path: str | Path, kind: Kind, *, on_bad: OnBad | None = None) -> list[str]:
    """The profiles or the personalities of a file, each once. Same arguments and errors as `read_entries`."""
    bad, first = _Bad(on_bad), dict[str, str]()
    entries = read_entries(path, on_bad=bad.add)
    for entry in entries:
        text = entry.text or getattr(entry, kind)
        if text is None:
            bad.add(f"{entry.where}: no {kind}; expected a JSON string, or an object with {_PARTS[kind]}")
        elif text not in first:
            first[text] = entry.where
        elif entry.profile is None or entry.personality is None:  # whole personas share profiles and personalities
            bad.add(f"{entry.where}: the same {kind} as {first[text]}")
    bad.check(path, len(first))
    return list(first)


def read_personas(path: str | Path, *, on_bad: OnBad | None = None) -> list[Persona]:
    """The personas of a file, each once. Same arguments and errors as `read_entries`."""
    bad, first, found = _Bad(on_bad), dict[str, str](), []
    for entry in read_entries(path, on_bad=bad.add):
        try:
            if entry.text is not None:
                raise DataError("a plain string; expected an object with facts and traits")
            persona = Persona.of(entry.profile or "", entry.personality or "")
        except DataError as problem:
            bad.add(f"{entry.where}: {problem}")
            continue
        if entry.id:
            persona = Persona(entry.id, persona.facts, persona.traits)
        for name in dict.fromkeys((persona.id, persona.text)):
            if name in first:
                bad.add(f"{entry.where}: the same {'id' if name == persona.id else 'person'} as {first[name]}")
                break
        else:
            first.update(dict.fromkeys((persona.id, persona.text), entry.where))
            found.append(persona)
    bad.check(path, len(found))
    return found


def write_personas(path: str | Path, personas: Iterable[Persona]) -> None:
    """Write personas in our layout, the whole file at once."""
    write_rows(path, ({"id": one.id, "facts": one.facts, "traits": one.traits} for one in personas))


def write_texts(path: str | Path, texts: Iterable[str]) -> None:
    """Write profiles or personalities in the released layout, the whole file at once."""
    write_whole(path, "".join(f"{json.dumps(text, ensure_ascii=False)}\n" for text in texts))


class _Bad:
    """Bad places of a file: told to `on_bad` one by one, or (None) gathered for one error at the end."""

    def __init__(self, on_bad: OnBad | None) -> None:
        self.messages: list[str] = []
        self._on_bad = on_bad

    def add(self, message: str) -> None:
        self.messages.append(message)
        if self._on_bad:
            self._on_bad(message)

    def check(self, path: str | Path, usable: int) -> None:
        """Raise DataError where nothing is usable, or where bad places are an error."""
        wrong = self.messages[0] if self.messages else "it is empty"
        wrong += f" (and {len(self.messages) - 1} more)" if len(self.messages) > 1 else ""
        if not usable:
            raise DataError(f"{path}: nothing usable; {wrong}")
        if self.messages and self._on_bad is None:
            raise DataError(f"{wrong}; correct or remove it, or allow bad lines to be skipped")


def _values(path: Path) -> Iterator[tuple[int, Any]]:
    """(line, JSON value or the DataError in its place); several values may stand on one line."""
    try:
        lines = read_bytes(path).decode("utf-8-sig", "surrogateescape").split("\n")
    except OSError as wrong:
        raise DataError(f"{path}: cannot be read ({wrong.strerror}); expected a JSON-lines file") from None
    for number, line in enumerate(lines, 1):
        line, at = line.strip(), 0
        while at < len(line):
            try:
                value, at = decode_json(line, at)
            except ValueError as wrong:
                yield number, DataError(f"not JSON ({wrong}): {line[at:at + 60]}")
                break
            yield number, value
            while line[at:at + 1] in (" ", "\t", "\r", ","):
                at += 1


def _entry(value: Any, where: str) -> Entry:
    if isinstance(value, DataError):
        raise value
    if isinstance(value, str):
        return Entry(where, text=_text(value, "text"))
    if not isinstance(value, dict):
        raise DataError(f"expected a JSON string or object, found {type(value).__name__}")
    parts = {kind: _part(value, kind) for kind in KINDS}
    if all(part is None for part in parts.values()):
        if isinstance(value.get("text"), str):
            return Entry(where, text=_text(value["text"], "text"))
        raise DataError(f"an object without facts, traits or text; found the fields {', '.join(map(str, value))}")
    name = value.get("id")
    if name is not None and not (isinstance(name, str | int) and str(name) and not UNUSABLE.search(str(name))):
        raise DataError(f"id {name!a:.60}: expected text")
    return Entry(where, None if name is None else str(name), **parts)


def _part(value: dict[str, Any], kind: Kind) -> str | None:
    """Facts or traits of an object as one text: a list of sentences, or a text under the kind's own name."""
    found = value.get(_PARTS[kind], value.get(kind))
    if found is None:
        return None
    if isinstance(found, list):
        if not found:
            raise DataError(f"a persona without {_PARTS[kind]}")
        return " ".join(_text(one, _PARTS[kind]) for one in found)
    return _text(found, kind)


def _text(value: Any, name: str) -> str:
    """A text that can be used; one that was stored as a raw line of a JSON file loses its quotes."""
    if not isinstance(value, str):
        raise DataError(f"{name}: expected text, found {type(value).__name__}")
    text = value.strip()
    if len(text) > 1 and text[0] == text[-1] == '"':
        try:
            inner = parse_json(text)
        except ValueError:
            inner = None
        text = inner if isinstance(inner, str) else text
    text = " ".join(text.split())
    if not text:
        raise DataError(f"{name}: is empty")
    if len(text) > MAX_CHARACTERS or UNUSABLE.search(text):
        raise DataError(f"{name}: over {MAX_CHARACTERS:,} characters, or not text: {text!r:.60}")
    return text

