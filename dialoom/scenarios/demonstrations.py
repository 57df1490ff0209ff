"""Demonstrations: a few texts by one author, each with the task it answers; from files, folders and the pocket world.

    .jsonl           one row a line: {"author", "split", "prompt", "output"}; `prompt` is text or a list of messages
    texts            a folder of plain text and e-mail files (.eml), one text each; the tasks are made from them
    cmcc             the folder of the CMCC corpus: Emails/ and Essays/ with files such as S1E1C5.txt
    ccat50           the folder of Reuters 50/50: C50train/ and C50test/ with a folder for each author

Surprising choices: rows without `split` are shared out by their content, so a text never moves, and all texts on one
task go together, so no task is both learned and asked; and a text file that is not UTF-8 is read as Windows-1252 and
told of, since old e-mails are.
"""

from __future__ import annotations

import email
import email.errors
import email.policy
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from dialoom.config import near_miss
from dialoom.dialogue import Chat, Scenario, content_id
from dialoom.errors import ConfigError, DataError
from dialoom.pocket.world import styles
from dialoom.progress import quiet
from dialoom.scenarios.files import read_bytes
from dialoom.text import UNUSABLE, parse_json

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
LAYOUTS = ("jsonl", "texts", "cmcc", "ccat50")
WRITER = "writer"  # whose view of a task is the chat that is trained on, whoever writes
YOU = "you"  # the author of rows and files that name none
MAIL_NAME = ".eml"
TEXT_NAMES = (".txt", ".md", ".text", MAIL_NAME)
OPENING_WORDS = 8  # of a text without a subject line, given away in the task made from it
ALIASES = {"val": "validation", "valid": "validation", "dev": "validation"}

ABOUT = "Write an e-mail with the subject “{subject}”."
BEGINNING = "Write a text that begins with “{opening}”."
ARTICLE = "Write a news article of about 500 words whose first sentence is: {opening}"
ESSAY = "Write an essay of about 500 words on this question: {question}"
EMAIL = "Answer this question in an e-mail: {question}"
CMCC_QUESTIONS = {  # our wording of the corpus's six topics, by the letter in its file names
    "C": "How well does the Catholic Church serve people today, and should it change?",
    "G": "Should two people of the same sex be able to marry?",
    "I": "Was the war in Iraq right, and how should it end?",
    "M": "Should marijuana be legal?",
    "P": "How much privacy may be given up for security?",
    "S": "Are women and men treated unequally today, and what should be done about it?",
}

_CMCC_NAME = re.compile(r"S(\d+)([ES])\d+([CGIMPS])\d+\.txt", re.IGNORECASE)
_SENTENCE = re.compile(r"(?<!\b[A-Z])(?<!\b[A-Z][a-z])(?<!\bCorp)(?<!\bInc)(?<!\bLtd)[.!?][\"”']?\s+(?=[A-Z\"“])")
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Demonstration:
    """One text by an author.

    Attributes:
        prompt: the task as a chat that ends with a user message.
        where: file and line it came from.
    """

    author: str
    split: Split
    prompt: tuple[tuple[str, str], ...]
    output: str
    where: str

    @property
    def chat(self) -> Chat:
        """The task as messages."""
        return [{"role": role, "content": text} for role, text in self.prompt]

    @property
    def scenario(self) -> Scenario:
        """The task as a place for a dialogue tree; the author's own text is the fact `reference`.

        A system message becomes the writer's brief; what comes after the first user message is `before` in the facts.
        """
        rest = [message for message in self.prompt if message[0] != "system"]
        system = "\n".join(text for role, text in self.prompt if role == "system")
        facts: dict[str, Any] = {"author": self.author, "split": self.split, "reference": self.output}
        if len(rest) > 1:
            facts["before"] = [list(message) for message in rest[1:]]
        name = content_id("demonstration", self.author, self.split, self.prompt, self.output)
        return Scenario(name, rest[0][1], {WRITER: system} if system else {}, facts)


def load_demonstrations(path: str | Path, layout: str = "auto", *, tell: Tell = quiet) -> list[Demonstration]:
    """The demonstrations in a file or folder, authors in the order in which they appear.

    Args:
        layout: one of `LAYOUTS`; auto: a file is jsonl, a folder is known by what is in it.
        tell: told of what was read in an unusual way.
    Raises: DataError: naming file and line, with what was expected and the next step; all bad rows in one message.
    """
    path = Path(path)
    if layout not in ("auto", *LAYOUTS):
        raise ConfigError(f"layout {layout!r} is unknown; {near_miss(layout, ('auto', *LAYOUTS))}")
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; give a JSONL file, or a folder of text files")
    kind = layout if layout != "auto" else _layout(path)
    if (kind == "jsonl") == path.is_dir():
        raise DataError(f"{path}: the layout {kind} is a {'file' if kind == 'jsonl' else 'folder'}, this is not")
    readers = {"jsonl": _jsonl, "texts": _texts, "cmcc": _cmcc, "ccat50": _ccat50}
    found = list(readers[kind](path, tell))
    if not any(one.split == "train" for one in found):
        raise DataError(f"{path}: none of its {len(found)} texts is for training; give some rows the split train, "
                        "or leave split out")
    return found


def pocket_demonstrations(authors: Sequence[str] = (), seed: int = 0) -> list[Demonstration]:
    """Texts by the pocket world's authors, 7 for training, 3 for validation, 3 for test each.

    Args:
        authors: by name; none: all but those kept for tuning.
        seed: 0 is what ships; others draw other tasks and texts of the same authors.
    Raises: ConfigError: if there is no such author.
    """
    for name in authors:
        if name not in styles.AUTHORS:
            raise ConfigError(f"pocket has no author {name!r}; {near_miss(name, styles.AUTHORS)}")
    return [Demonstration(row["author"], _split_named(row["split"]), (("user", row["prompt"]),), row["output"],
                          f"pocket:{name}") for name in authors or styles.SHIPPED_AUTHORS
            for row in styles.demonstrations(name, seed)]


def _split_named(name: str) -> Split:
    split = ALIASES.get(name.strip().lower(), name.strip().lower())
    for one in SPLITS:
        if one == split:
            return one
    raise DataError(f"expected split to be train, validation or test, found {name!r:.40}")


def shared_out(rows: Sequence[Demonstration]) -> list[Demonstration]:
    """One author's rows with splits by a hash of their content: about a third of the tasks for test, three at most;
    then validation. All rows on one task have the same split.

    With one task there is nothing to hold out; with two, one is.
    """
    first: dict[tuple[tuple[str, str], ...], str] = {}
    for row in rows:
        name = content_id("split", row.prompt, row.output)
        first[row.prompt] = min(name, first.get(row.prompt, name))
    order = sorted(first, key=first.__getitem__)
    tests = min(3, len(order) // 3) or int(len(order) == 2)
    valid = min(3, (len(order) - tests) // 4)
    held: dict[tuple[tuple[str, str], ...], Split] = dict.fromkeys(order[:tests], "test")
    held |= dict.fromkeys(order[tests:tests + valid], "validation")
    return [replace(row, split=held.get(row.prompt, "train")) for row in rows]


# ------------------------------------------------------------------------------------------------ text


def read_text(path: Path, tell: Tell = quiet) -> str:
    """A text file's content, whatever its encoding: UTF-8 or UTF-16 by its mark, else Windows-1252, which is told.

    Raises: DataError: if it cannot be read or holds no text.
    """
    return _tidy(_decoded(_bytes(path), path, tell), path)


def read_email(path: Path, tell: Tell = quiet) -> tuple[str, str] | None:
    """Subject ("" if it has none) and text of an e-mail as mail programs save it (.eml); None: it holds no plain text.

    Raises: DataError: if it cannot be read, or its text is empty or no text.
    """
    raw = _bytes(path)
    try:
        message = email.message_from_bytes(raw, policy=email.policy.default)
        body = message.get_body(("plain",))
        if body is None:
            return None
        data, charset = body.get_payload(decode=True), body.get_content_charset()
        assert isinstance(data, bytes)
        text = data.decode(charset, "replace") if charset else _decoded(data, path, tell)
        subject = " ".join(str(message["subject"] or "").replace("\0", " ").split())
    except (LookupError, ValueError, TypeError, AttributeError, RecursionError, email.errors.MessageError) as wrong:
        raise DataError(f"{path}: no e-mail that can be read ({wrong}); save its text as .txt") from None
    return subject, _tidy(text.encode("utf-8", "replace").decode(), path)


def _decoded(data: bytes, path: Path, tell: Tell) -> str:
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", "replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as wrong:
        line = data.count(b"\n", 0, wrong.start) + 1
        tell(f"{path}:{line}: not UTF-8; the file is read as Windows-1252")
        return data.decode("cp1252", "replace")


def _bytes(path: Path) -> bytes:
    try:
        return read_bytes(path)
    except OSError as wrong:
        raise DataError(f"{path}: cannot be read ({wrong.strerror})") from None


def _tidy(text: str, path: Path) -> str:
    """The text with even line ends. Raises DataError if it is none."""
    if "\0" in text:
        raise DataError(f"{path}: holds NUL characters, so it is no text file; remove it or save it as text")
    if not text.strip():
        raise DataError(f"{path}: is empty; write a text into it or remove it")
    return "\n".join(line.rstrip() for line in text.replace("\r\n", "\n").replace("\r", "\n").strip().split("\n"))


def first_sentence(text: str) -> str:
    """The text up to the end of its first sentence, white space evened out."""
    plain = " ".join(text.split())
    found = _SENTENCE.search(plain)
    return plain[:found.end()].strip() if found else plain


def _layout(path: Path) -> str:
    if not path.is_dir():
        return "jsonl"
    names = {entry.name.lower() for entry in path.iterdir() if entry.is_dir()}
    if names & {"c50train", "c50test"}:
        return "ccat50"
    return "cmcc" if {"emails", "essays"} <= names else "texts"


def _folder(path: Path, name: str) -> Path | None:
    return next((entry for entry in path.iterdir() if entry.is_dir() and entry.name.lower() == name), None)


def _in_order(name: str) -> list[tuple[int, str]]:
    """Sorts names with numbers in them as a person would."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


# ------------------------------------------------------------------------------------------------ readers


def _jsonl(path: Path, tell: Tell) -> Iterator[Demonstration]:
    data = _bytes(path)
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{path}:1: expected UTF-8, found the start of a UTF-16 file; save it as UTF-8")
    bad: list[str] = []
    rows: dict[str, list[Demonstration]] = {}
    placed: dict[bool, dict[str, int]] = {True: {}, False: {}}  # has it a split? -> author -> first such line
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row, has_split = _row(line, f"{path}:{number}")
        except DataError as wrong:
            bad.append(f"{path}:{number}: {wrong}")
            continue
        rows.setdefault(row.author, []).append(row)
        placed[has_split].setdefault(row.author, number)
    if bad:
        more = f"; and {len(bad) - 5} more lines like these" if len(bad) > 5 else ""
        raise DataError("; ".join(bad[:5]) + more)
    if not rows:
        raise DataError(f"{path}: is empty; expected one object a line with prompt and output (author and split if "
                        "you wish)")
    for author, own in rows.items():
        if author in placed[True] and author in placed[False]:
            raise DataError(f"{path}:{placed[False][author]}: this row of {author} names no split, line "
                            f"{placed[True][author]} does; name it in all of an author's rows or in none")
        yield from shared_out(own) if author in placed[False] else own


def _row(line: bytes, where: str) -> tuple[Demonstration, bool]:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as wrong:
        raise DataError(f"byte {wrong.start + 1} is not UTF-8; save the whole file as UTF-8") from None
    try:
        row = parse_json(text)
    except ValueError as wrong:
        why = getattr(wrong, "msg", wrong)
        raise DataError(f"expected a JSON object, found {text.strip()!r:.40} ({why})") from None
    if not isinstance(row, dict):
        raise DataError(f"expected a JSON object with prompt and output, found {type(row).__name__}")
    for name in ("prompt", "output"):
        if name not in row:
            unknown = sorted(set(row) - {"author", "split", "prompt", "output"})
            raise DataError(f"no {name}; expected the keys prompt and output (author, split), "
                            f"found {', '.join(map(str, unknown)) or 'only ' + ', '.join(sorted(row))}")
    split = row.get("split")
    author = row.get("author", YOU)
    return Demonstration(_text(author if not isinstance(author, int) else str(author), "author"),
                         _split_named(_text(split, "split")) if split is not None else "train",
                         _prompt(row["prompt"]), _text(row["output"], "output"), where), split is not None


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"expected {name} to be text, found {'nothing' if not value else type(value).__name__}")
    if found := UNUSABLE.search(value):
        raise DataError(f"{name} holds the unusable character {found[0]!a}; remove it")
    return value.strip()


def _prompt(value: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, list):
        return (("user", _text(value, "prompt")),)
    found: list[tuple[str, str]] = []
    for message in value:
        if not isinstance(message, Mapping) or message.get("role") not in ("system", "user", "assistant"):
            raise DataError(f"expected messages with role system, user or assistant and content, found {message!r:.60}")
        found.append((message["role"], _text(message.get("content"), "content")))
    said = [role for role, _ in found if role != "system"]
    if not said or said[-1] != "user" or said[0] != "user" or any(one == two for one, two in pairwise(said)):
        raise DataError(f"expected user and assistant messages in turn, the last one the user's, found {said}")
    if any(role == "system" for role, _ in found[1:]):
        raise DataError("expected a system message at the beginning only")
    return tuple(found)


def _texts(path: Path, tell: Tell) -> Iterator[Demonstration]:
    """A folder of one author's files, or of a folder of files for each author."""
    folders = [path, *sorted(entry for entry in path.iterdir() if entry.is_dir())]
    count, others = 0, list[Path]()
    for folder in folders:
        entries = sorted((entry for entry in folder.iterdir() if not entry.name.startswith(".")),
                         key=lambda entry: _in_order(entry.name))
        files = [entry for entry in entries if entry.suffix.lower() in TEXT_NAMES and entry.is_file()]
        others += [entry for entry in entries if entry not in files and (folder != path or not entry.is_dir())]
        author = YOU if folder == path else folder.name
        found = [_from_file(author, file, tell) for file in files]
        rows = [row for row in found if row is not None]
        count += len(rows)
        yield from shared_out(rows)
    if not count:
        raise DataError(f"{path}: no text files there{_named(others)}; expected files ending in "
                        f"{', '.join(TEXT_NAMES)}")
    if others:
        tell(f"{path}: left out{_named(others)}; expected files ending in {', '.join(TEXT_NAMES)}, in this folder or "
             "in one for each author")


def _named(paths: Sequence[Path]) -> str:
    """The first names of what is not read, after a space."""
    more = f" and {len(paths) - 5} more" if len(paths) > 5 else ""
    return f" ({', '.join(path.name for path in paths[:5])}{more})" if paths else ""


def _from_file(author: str, path: Path, tell: Tell) -> Demonstration | None:
    """A text file's text; of an e-mail the plain text, None where there is none."""
    if path.suffix.lower() != MAIL_NAME:
        return _from_text(author, read_text(path, tell), str(path))
    mail = read_email(path, tell)
    if mail is None:
        tell(f"{path}: left out; the e-mail holds no plain text (HTML or attachments only); save its text as .txt")
        return None
    subject, text = mail
    return _from_text(author, f"Subject: {subject}\n{text}" if subject else text, str(path))


def _from_text(author: str, text: str, where: str) -> Demonstration:
    head, _, body = text.partition("\n")
    if head.lower().startswith("subject:") and head[8:].strip() and body.strip():
        return Demonstration(author, "train", (("user", ABOUT.format(subject=head[8:].strip())),), body.strip(), where)
    words = text.split()
    opening = " ".join(words[:OPENING_WORDS]) + (" …" if len(words) > OPENING_WORDS else "")
    return Demonstration(author, "train", (("user", BEGINNING.format(opening=opening)),), text, where)


def _cmcc(path: Path, tell: Tell) -> Iterator[Demonstration]:
    """Emails and essays of each participant, shared out 7, 2, 3 of 12 (about 60/20/20) in an order drawn once."""
    by_author: dict[str, list[Demonstration]] = {}
    for genre, words in (("emails", EMAIL), ("essays", ESSAY)):
        folder = _folder(path, genre)
        if folder is None:
            raise DataError(f"{path}: no folder {genre.title()}; expected CMCC's own folders Emails and Essays")
        inner = _folder(folder, "correlated") or folder
        for file in sorted(inner.glob("*.txt"), key=lambda file: _in_order(file.name)):
            named = _CMCC_NAME.fullmatch(file.name)
            if named is None:
                tell(f"{file}: left out; expected a name such as S1E1C5.txt (participant, genre, phase, topic, place)")
                continue
            question = words.format(question=CMCC_QUESTIONS[named[3].upper()])
            by_author.setdefault(f"S{named[1]}", []).append(Demonstration(
                f"S{named[1]}", "train", (("user", question),), read_text(file, tell), str(file)))
    if not by_author:
        raise DataError(f"{path}: no text of CMCC under Emails and Essays")
    for author in sorted(by_author, key=_in_order):
        rows = by_author[author]
        order = random.Random(f"cmcc/{author}").sample(range(len(rows)), len(rows))
        tests, valid = round(len(rows) * 0.25), round(len(rows) * 0.17)
        split: dict[int, Split] = dict.fromkeys(order[:tests], "test")
        split |= dict.fromkeys(order[tests:tests + valid], "validation")
        yield from (replace(row, split=split.get(at, "train")) for at, row in enumerate(rows))


def _ccat50(path: Path, tell: Tell) -> Iterator[Demonstration]:
    """Articles: of C50train four fifths to train on and then three for validation, of C50test three for test."""
    train, test = _folder(path, "c50train"), _folder(path, "c50test")
    if train is None or test is None:
        raise DataError(f"{path}: expected both folders of Reuters 50/50, C50train and C50test")
    for folder in sorted(entry for entry in train.iterdir() if entry.is_dir()):
        files = sorted(folder.glob("*.txt"), key=lambda file: _in_order(file.name))
        if not files:
            raise DataError(f"{folder}: no articles (*.txt) there")
        order = random.Random(f"ccat50/{folder.name}").sample(files, len(files))
        kept = round(len(files) * 0.8)
        parts: list[tuple[Split, Sequence[Path]]] = [("train", order[:kept]), ("validation", order[kept:][:3])]
        held = test / folder.name
        if held.is_dir():
            tests = sorted(held.glob("*.txt"), key=lambda file: _in_order(file.name))
            parts.append(("test", random.Random(f"ccat50/{folder.name}").sample(tests, min(3, len(tests)))))
        for split, chosen in parts:
            for file in chosen:
                text = " ".join(read_text(file, tell).split())
                task = ARTICLE.format(opening=first_sentence(text))
                yield Demonstration(folder.name, split, (("user", task),), text, str(file))
