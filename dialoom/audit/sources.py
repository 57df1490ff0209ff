"""What an audit reads: a run's folder, or anyone's file, as trees to lint and rows that are trained on.

    run          its trees.jsonl (or its arm's), and what its model learned from, as the recipe itself puts it together
    tree log     trees.jsonl, or an evaluation's
    pairs        prompt, chosen, rejected (TRL's layout, with or without a prompt of their own)
    completions  prompt, completion (TRL's prompt-completion layout)
    episodes     an evaluation's rows: opening, turns
    transcripts  ShareGPT, messages and what else `scenarios.sharegpt` reads

In a file the opening is somebody's turn like any other, since it is to be looked at; in a run it is the scenario's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dialoom.audit.findings import Hit
from dialoom.config import near_miss, read_yaml
from dialoom.dialogue import Chat, Dialogue, DialogueTree, Scenario, Turn, content_id
from dialoom.errors import ConfigError, DataError, DialoomError, StoreError
from dialoom.export.trained import GUARD
from dialoom.recipes.run import recipe_of
from dialoom.scenarios.files import rows_of
from dialoom.scenarios.sharegpt import ASSISTANT, USER, read_dialogues
from dialoom.select import Example, Pair
from dialoom.store import read_trees
from dialoom.text import UNUSABLE

MAIN = "trees.jsonl"
HARDEN = "harden"
"""Where a red-teaming run keeps the attacks its defender was hardened with, and the pairs; also this arm's name, beside
the one that export has for it."""
MILD = {"repeated role": "both are merged", "answer first": "before any question", "repeated id": "was used before",
        "no answer": "expected a question and an answer"}
"""What a reader of transcripts mends or leaves out without loss, with words of its message."""
_COUNTS = re.compile(r"(?:^|, )([a-zA-Z -]+): (\d+)(?=, |$)")


@dataclass(frozen=True)
class Material:
    """What is looked at.

    Attributes:
        kind: run, trees, pairs, completions, episodes or transcripts.
        recipe: of a run; "" of a file.
        model: whose template and tokenizer the rows are for; "" where nothing says so.
        trees: dialogues, each tree one.
        pairs, examples: what is trained on.
        cut: turns that were cut at the token limit, as their notes say.
        cut_at: the limit in tokens for turns that a model said; 0: not known.
        whole: examples are trained on with their prompts.
        batch, seed: pairs or dialogues of one optimiser step, and what their order is drawn from.
        unread, mended: what the reader left out or cut at, and what it changed; the first ones, and how many.
        several: rows whose reply has several messages.
        notes: what to know of how it was read.
    """

    path: Path
    kind: str
    trees: Sequence[DialogueTree] = ()
    pairs: Sequence[Pair] = ()
    examples: Sequence[Example] = ()
    recipe: str = ""
    model: str = ""
    cut: frozenset[str] = frozenset()
    cut_at: int = 0
    whole: bool = False
    batch: int = 0
    seed: int = 0
    unread: Sequence[Hit] = ()
    unread_count: int = 0
    mended: Sequence[Hit] = ()
    mended_count: int = 0
    several: Sequence[Hit] = ()
    notes: Sequence[str] = field(default=())

    @property
    def turns(self) -> int:
        """Of all trees."""
        return sum(map(len, self.trees))


def read_material(path: Path, *, arm: str = "", limit: int = 0) -> Material:
    """Read a run's folder or a file.

    Args:
        arm: another training set of a run than its main one.
        limit: at most so many trees, and so many pairs and examples each; 0: all.
    Raises:
        StoreError, DataError: if there is nothing to read.
        ConfigError: if the run has no such arm.
    """
    if not path.exists():
        raise StoreError(f"{path}: no such file or folder; give a run's folder, or a file of dialogues or pairs")
    is_run = path.is_dir() and ((path / "config.yaml").is_file() or (path / MAIN).is_file())
    if arm and not is_run:
        raise ConfigError(f"--arm {arm}: {path} is no run's folder; leave it out")
    found = _run(path, arm) if is_run else _file(path)
    if not limit:
        return found
    return replace(found, trees=found.trees[:limit], pairs=found.pairs[:limit], examples=found.examples[:limit])


# ------------------------------------------------------------------------------------------------ a run


def _run(path: Path, arm: str) -> Material:
    notes: list[str] = []
    settings = read_yaml(path / "config.yaml") if (path / "config.yaml").is_file() else {}
    recipe = recipe_of(path) if (path / "env.json").is_file() else ""
    if recipe == "dat" and arm in (HARDEN, GUARD):
        return _hardening(path / HARDEN, settings)
    log = path / "arms" / arm / MAIN if arm and (path / "arms" / arm / MAIN).is_file() else path / MAIN
    trees = list(read_trees(log, log=notes.append).values()) if log.is_file() else []
    pairs, examples = _trained(path, arm, notes)
    training = settings.get("dpo" if pairs else "sft") or {}
    training = training if isinstance(training, Mapping) else {}
    whole = recipe == "ditto" and (settings.get("sft") or {}).get("loss_on") == "all"
    cut = frozenset(turn.id for tree in trees for turn in tree if turn.notes.get("finish") == "length")
    return Material(path, "run", trees, pairs, examples, recipe, str(settings.get("model") or ""), cut,
                    int(settings.get("max_new_tokens") or 0), whole, int(training.get("batch_pairs") or 0),
                    int(settings.get("seed") or 0), notes=notes)


def _hardening(folder: Path, settings: Mapping[str, Any]) -> Material:
    """The attacks on a defender, and the pairs it was hardened with."""
    from dialoom.recipes.pocket_guard import NAME

    if not (folder / "pairs.jsonl").is_file():
        raise ConfigError(f"--arm {HARDEN}: {folder} holds no pairs; a run has them after `dialoom dat --scenes "
                          "redteam --harden`")
    notes: list[str] = []
    trees = list(read_trees(folder / "attacks.jsonl", log=notes.append).values())
    dpo, partner = (settings.get("redteam") or {}).get("dpo") or {}, str(settings.get("partner") or NAME)
    return replace(_pairs(folder / "pairs.jsonl"), path=folder, kind="run", trees=trees, recipe="dat",
                   model="pocket" if partner == NAME else partner,  # pocket's guard has pocket's template
                   cut_at=int(settings.get("max_new_tokens") or 0), batch=int(dpo.get("batch_pairs") or 0),
                   seed=int(settings.get("seed") or 0), notes=notes)


def _trained(path: Path, arm: str, notes: list[str]) -> tuple[Sequence[Pair], Sequence[Example]]:
    """What a run's model learns from, put together by the recipe's own code where it has a set of its own."""
    from dialoom.export.trained import Run, trained
    from dialoom.recipes.aloe_config import AloeConfig
    from dialoom.recipes.ideas_config import IdeasConfig

    try:
        run = Run.read(path)
        found = trained(run, arm)
        if isinstance(run.config, AloeConfig):
            from dialoom.recipes.aloe import training_set
            return found.pairs, training_set(run.config, path, "preferred")
        if isinstance(run.config, IdeasConfig):
            from dialoom.recipes.ideas import LEARNED, data_sets
            from dialoom.recipes.ideas_data import examples_of
            return found.pairs, examples_of(data_sets(run.config, path)[arm or LEARNED], run.config.neutral)
        return found.pairs, found.examples
    except ConfigError:
        raise
    except DialoomError as wrong:
        notes.append(f"no training rows: {wrong}")
    if not (path / "pairs.jsonl").is_file():
        return (), ()
    written = _pairs(path / "pairs.jsonl")
    notes += [f"{hit.where}: {hit.text}" for hit in written.unread]
    return written.pairs, ()


# ------------------------------------------------------------------------------------------------ a file


def _file(path: Path) -> Material:
    kind = _kind(path)
    if kind == "trees":
        notes: list[str] = []
        trees = list(read_trees(path, log=notes.append).values())
        cut = frozenset(turn.id for tree in trees for turn in tree if turn.notes.get("finish") == "length")
        return Material(path, kind, trees, cut=cut, notes=notes)
    readers = {"pairs": _pairs, "completions": _completions, "episodes": _episodes, "transcripts": _transcripts}
    return readers[kind](path)


def _kind(path: Path) -> str:
    """What a file holds, by the first object in it that can be read."""
    row = next((row for _, row in rows_of(path, lambda *_: None) if isinstance(row, dict)), {})
    if row.get("kind") == "tree" and "crc" in row:
        return "trees"
    if "chosen" in row and "rejected" in row:
        return "pairs"
    if isinstance(row.get("turns"), list) and "opening" in row:
        return "episodes"
    return "completions" if "prompt" in row and "completion" in row else "transcripts"


class _Unread:
    """What a reader left out: where, and why."""

    def __init__(self, path: Path) -> None:
        self.path, self.hits = path, list[Hit]()

    def bad(self, line: int, kind: str, message: str) -> None:
        self.hits.append(Hit(f"{self.path}:{line}", message))

    def add(self, where: str, why: Any) -> None:
        self.hits.append(Hit(where, str(why)))


def _pairs(path: Path) -> Material:
    unread, several, pairs = _Unread(path), list[Hit](), list[Pair]()
    for where, row in rows_of(path, unread.bad, ("chosen",)):
        try:
            if not isinstance(row, dict):
                raise DataError(f"expected an object, found {type(row).__name__}")
            row = _with_prompt(row)
            pairs.append(_usable(Pair.from_row(row, where)))
        except DialoomError as wrong:
            unread.add(where, wrong)
            continue
        sides = [row[side] for side in ("chosen", "rejected") if isinstance(row[side], list)]
        if any(len(side) > 1 for side in sides):
            several.append(Hit(pairs[-1].id, f"{max(map(len, sides))} messages"))
    if not pairs and not unread.hits:
        raise DataError(f"{path}: holds no pairs")
    chats = [[*pair.prompt, _reply(pair.chosen)] for pair in pairs] + [
        [*pair.prompt, _reply(pair.rejected)] for pair in pairs]
    return Material(path, "pairs", _trees(chats), pairs, unread=unread.hits, unread_count=len(unread.hits),
                    several=several)


def _usable(pair: Pair) -> Pair:
    """The pair. Raises DataError if a role is no text, or a text is one that no tokenizer takes."""
    wrong = next((one["role"] for one in pair.prompt if not isinstance(one["role"], str)), None)
    if wrong is not None:
        raise DataError(f"role {wrong!r:.40} is no text; expected system, user or assistant")
    for text in (pair.chosen, pair.rejected, *(one[name] for one in pair.prompt for name in ("role", "content"))):
        if UNUSABLE.search(text):
            raise DataError(f"{text!r:.60} holds NUL or half a character, which no tokenizer takes")
    return pair


def _with_prompt(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose prompt stands in both replies, with the prompt apart.

    Raises: DataError: if the two do not begin alike.
    """
    if "prompt" in row or not (isinstance(row.get("chosen"), list) and isinstance(row.get("rejected"), list)):
        return row
    chosen, rejected = row["chosen"], row["rejected"]
    if not chosen or not rejected or chosen[:-1] != rejected[:-1] or len(chosen) < 2:
        raise DataError(f"it has no prompt, and its chosen ({len(chosen)} messages) and rejected ({len(rejected)}) do "
                        "not share all but their last message")
    return {**row, "prompt": chosen[:-1], "chosen": chosen[-1:], "rejected": rejected[-1:]}


def _completions(path: Path) -> Material:
    unread, examples = _Unread(path), list[Example]()
    for where, row in rows_of(path, unread.bad, ("completion",)):
        try:
            pair = _usable(Pair.from_row({**row, "chosen": row["completion"], "rejected": "-"}, where))
        except (DialoomError, TypeError, KeyError) as wrong:
            unread.add(where, wrong)
            continue
        examples.append(Example.from_pair(pair))
    if not examples and not unread.hits:
        raise DataError(f"{path}: holds no prompts with completions")
    return Material(path, "completions", _trees([one.chat for one in examples]), (), examples, unread=unread.hits,
                    unread_count=len(unread.hits))


def _episodes(path: Path) -> Material:
    """Dialogues of an evaluation; its scenarios' openings are no turns, as in a run."""
    unread, trees = _Unread(path), list[DialogueTree]()
    for number, (where, row) in enumerate(rows_of(path, unread.bad, ("turns",))):
        try:
            tree = DialogueTree(Scenario(str(row["scenario"]), str(row["opening"])), f"{number}/{row['scenario']}")
            for at, said in enumerate(row["turns"]):
                tree.add(Turn(f"{at}", f"{at - 1}" if at else None, str(said["speaker"]), str(said["text"])))
            trees.append(tree)
        except (KeyError, TypeError):
            unread.add(where, "expected scenario, opening and turns of speaker and text")
    return Material(path, "episodes", trees, unread=unread.hits, unread_count=len(unread.hits))


def _transcripts(path: Path) -> Material:
    told: list[str] = []
    found = read_dialogues(path, pairs=1, tell=told.append)
    *lines, last = told or [""]
    counts = {kind: int(number) for kind, number in _COUNTS.findall(last.partition(" read; ")[2])}
    hits = [Hit(where, message) for where, _, message in (line.partition(": ") for line in lines)]
    mended = [hit for hit in hits if any(words in hit.text for words in MILD.values())]
    unread = [hit for hit in hits if hit not in mended]
    examples = []
    for one in found:
        chat = _chat(one)
        marked = tuple(at for at, message in enumerate(chat) if message["role"] == ASSISTANT)
        examples.append(Example(one.scenario.id, chat, marked, group=one.scenario.id))
    trees = [tree for one in found for tree in _trees([_chat(one)], one.scenario)]
    mild = sum(counts.get(kind, 0) for kind in MILD)
    return Material(path, "transcripts", trees, (), examples, unread=unread, unread_count=sum(counts.values()) - mild,
                    mended=mended, mended_count=mild)


def _chat(dialogue: Dialogue) -> Chat:
    brief = dialogue.scenario.briefs.get(ASSISTANT)
    said: Chat = [{"role": "system", "content": brief}] if brief else []
    said.append({"role": USER, "content": dialogue.scenario.opening})
    return [*said, *({"role": turn.speaker, "content": turn.text} for turn in dialogue.turns)]


def _reply(text: str) -> dict[str, str]:
    return {"role": ASSISTANT, "content": text}


def _trees(chats: Sequence[Chat], scenario: Scenario | None = None) -> list[DialogueTree]:
    """Chats as trees: those with the same first message share one, and in it what they have in common."""
    found: dict[str, DialogueTree] = {}
    for chat in chats:
        system = "\n".join(message["content"] for message in chat if message["role"] == "system")
        said = [message for message in chat if message["role"] != "system"]
        if not said:
            continue
        name = scenario.id if scenario else content_id("dialogue", system, said[0]["content"])
        scene = Scenario(name, "", {ASSISTANT: system} if system else {}, scenario.facts if scenario else {})
        tree = found.setdefault(name, DialogueTree(scene))
        parent: str | None = None
        for message in said:
            id = content_id(name, parent, message["role"], message["content"])
            if id not in tree:
                tree.add(Turn(id, parent, message["role"], message["content"]))
            parent = id
    return list(found.values())


def find_tree(trees: Sequence[DialogueTree], wanted: str) -> DialogueTree | None:
    """The tree whose id, or one of whose turns' ids, begins so; None if there is none.

    Raises: ConfigError: if several trees' ids begin so.
    """
    found = [tree for tree in trees if tree.id == wanted] or [tree for tree in trees if tree.id.startswith(wanted)]
    found = found or [tree for tree in trees if wanted in tree]
    if len(found) > 1:
        raise ConfigError(f"--open {wanted}: begins {len(found)} ids; give more of it")
    return found[0] if found else None


def no_such(wanted: str, names: Sequence[str]) -> ConfigError:
    """An error that names what is near."""
    hint = near_miss(wanted, names) if len(names) < 8 else f"such as {names[0]}"
    return ConfigError(f"--open {wanted}: nothing has an id that begins so; {hint}")
