"""Checks of rows as training reads them: one row after another through the trainer's own code, no token is kept.

The surprising choice: what was trained on is read back. The trained tokens are decoded and held against the reply's
words, so a mask is not believed because the code that made it looks right.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

from dialoom.audit.findings import Tally
from dialoom.audit.tokens import Reader, places, squeezed
from dialoom.dialogue import Chat, content_id
from dialoom.errors import DialoomError
from dialoom.models.template import MARK, RENDERING
from dialoom.select import Example, Pair

if TYPE_CHECKING:
    from dialoom.audit.sources import Material
    from dialoom.models.local import LocalModel
    from dialoom.train.pack import TokenPath
    from dialoom.train.rows import Row

Item = Pair | Example
RENDERED_TWICE = 200  # rows whose prompt is compared with the whole chat rendered at once: rendering is what costs here
ROW_CHECKS = ("mask", "no_end", "bos_twice", "round_trip", "lost_message", "too_long", "role_mark", "roles_folded")


def token_row(reader: Reader, item: Item, material: Material) -> Row:
    """The row that training makes of a pair or an example.

    Raises: TrainingError, ModelError, DataError: what training would raise.
    """
    from dialoom.recipes.ditto_write import reply_path
    from dialoom.train.rows import Row, example_rows, pair_rows

    if material.recipe != "ditto":
        return pair_rows(reader, [item])[0] if isinstance(item, Pair) else example_rows(reader, [item])[0]
    model = cast("LocalModel", reader)   # DITTO has a loop of its own: cut texts without an end, and tasks trained on
    if isinstance(item, Pair):
        sides = ((item.chosen, item.notes.get("chosen_turn")), (item.rejected, item.notes.get("rejected_turn")))
        paths = tuple(reply_path(model, item.prompt, text, ended=turn not in material.cut) for text, turn in sides)
        return Row(item.id, paths, item.group, 1.0)
    path = reply_path(model, item.chat[:-1], item.chat[-1]["content"], whole=material.whole)
    return Row(item.id, (path,), item.group, float(path.targets))


def targets(item: Item) -> list[tuple[Chat, str]]:
    """(chat, reply) of every trained reply, in the order in which a row's spans have them."""
    if isinstance(item, Pair):
        return [(item.prompt, item.chosen), (item.prompt, item.rejected)]
    marked = [at for at in sorted(set(item.train_on)) if 0 <= at < len(item.chat)]
    return [(item.chat[:at], item.chat[at]["content"]) for at in marked if item.chat[at]["role"] == "assistant"]


def check_texts(items: Iterable[Item], tally: Tally) -> Iterator[Item]:
    """The checks that need no tokens; hands the items on."""
    seen: set[str] = set()
    ways: set[str] = set()
    for item in items:
        key = content_id(*((item.prompt, item.chosen, item.rejected) if isinstance(item, Pair) else
                           (item.chat, sorted(set(item.train_on)))))
        tally.look("duplicate_row", item.id, key in seen and _said(item))
        said = targets(item)
        empty = not said or any(not reply.strip() for _, reply in said)
        tally.look("no_trained_token", item.id, empty and ("a reply is empty" if said else "nothing is marked"))
        if isinstance(item, Pair):
            same = item.chosen.strip() == item.rejected.strip()
            tally.look("same_reply", item.id, same and f"both: {item.chosen}")
            turned = content_id(item.prompt, item.rejected, item.chosen)
            tally.look("both_ways", item.id, turned in ways and not same and _said(item))
            ways.add(key)
        seen.add(key)
        yield item


def _said(item: Item) -> str:
    return f"{item.chosen} | {item.rejected}" if isinstance(item, Pair) else str(item.chat[-1]["content"])


class RowChecks:
    """The checks of tokens, for one model; `look` takes one item after another."""

    def __init__(self, reader: Reader, material: Material, tally: Tally, *, max_length: int = 0) -> None:
        """
        Args:
            max_length: tokens of a row that another trainer would keep; 0: the model's context.
        """
        self.reader, self.material, self.tally = reader, material, tally
        self.template, self.tokenizer = reader.template, reader.tokenizer
        self.limit = max_length or reader.context
        self.totals = {"rows": 0, "tokens": 0, "trained": 0, "longest": 0}
        self._end = squeezed(self.tokenizer.decode([self.template.end], skip_special_tokens=False))
        self._look_at_template()

    def _look_at_template(self) -> None:
        tally, name, bos = self.tally, self.reader.name, self.tokenizer.bos_token_id
        tally.look("rewrites_history", name, not self.template.stable and "the template is not prefix-stable")
        asked = [{"role": "user", "content": MARK}]
        whole = self.tokenizer.apply_chat_template([*asked, {"role": "assistant", "content": f"{MARK} {MARK}"}],
                                                   tokenize=False, **RENDERING)
        tally.look("changes_text", name, str(whole).count(MARK) < 3 and str(whole))
        text = self.tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True, **RENDERING)
        again = list(self.tokenizer(text)["input_ids"])[:2]
        tally.look("adds_special", name, bos is not None and again == [bos, bos] and str(text)[:80])

    def look(self, item: Item) -> Row | None:
        """Check the row of one item; returns it, or None where training refuses it."""
        said = targets(item)
        if not said or any(not reply.strip() for _, reply in said):
            return None   # told by `check_texts`
        if isinstance(item, Pair) and item.chosen.strip() == item.rejected.strip():
            return None
        try:
            with warnings.catch_warnings():   # of folded roles and cut prompts, which are findings here
                warnings.simplefilter("ignore", UserWarning)
                row = token_row(self.reader, item, self.material)
        except DialoomError as wrong:
            self.tally.look("refused_row", item.id, str(wrong))
            return None
        self.tally.look("refused_row", item.id)
        spans = [(path, span) for path in row.paths for span in path.spans]
        found: dict[str, str] = {}
        if len(spans) != len(said):
            found["mask"] = f"{len(spans)} trained spans for {len(said)} marked replies"
        for number, ((path, span), (chat, reply)) in enumerate(zip(spans, said, strict=False)):
            is_rejected = isinstance(item, Pair) and number == 1
            for name, text in self._span(path, span, chat, reply):
                if not (is_rejected and name == "no_end"):   # not to stop is a reason to be rejected
                    found.setdefault(name, text)
        for name in ROW_CHECKS:
            if name != "bos_twice" or self._has_bos:
                self.tally.look(name, item.id, found.get(name))
        if isinstance(item, Pair):
            self._pair(item, row)
        self._prefix(item, row, said[0])
        self._count(row)
        return row

    @property
    def _has_bos(self) -> bool:
        bos = self.tokenizer.bos_token_id
        return bos is not None and bos != self.template.end

    def _count(self, row: Row) -> None:
        lengths = [len(path) for path in row.paths]
        self.totals["rows"] += 1
        self.totals["tokens"] += sum(lengths)
        self.totals["trained"] += sum(path.targets for path in row.paths)
        self.totals["longest"] = max(self.totals["longest"], *lengths)

    def _span(self, path: TokenPath, span: tuple[int, int], chat: Chat, reply: str) -> Iterator[tuple[str, str]]:
        """(check, what was seen) for each check that one trained reply does not pass."""
        ids = path.ids.tolist()
        start, stop = span
        wanted = self.template.defused(reply)
        if wanted != reply or any(self.template.defused(one["content"]) != one["content"] for one in chat):
            yield "role_mark", next(text for text in (reply, *(one["content"] for one in chat))
                                    if self.template.defused(text) != text)
        if self._is_folded(chat):
            yield "roles_folded", " ".join(message["role"] for message in chat)
        back = self._decoded(self.template.encode(wanted))
        if back.strip() != wanted.strip() or self._unknown(ids[start:stop]):
            yield "round_trip", f"{wanted} → {back}"
        words, ended = ids[start:stop], ids[stop - 1] == self.template.end
        if not ended:
            yield "no_end", f"the last trained token is {self._decoded(ids[stop - 1:stop])!r}"
        trained, expected = squeezed(self._decoded(words)), squeezed(back) + (self._end if ended else "")
        if trained != expected and not (self.material.whole and trained.endswith(expected)):
            yield "mask", f"trained: {self._decoded(words)!r}; the reply: {reply!r}"
        if ids[:2] == [self.tokenizer.bos_token_id] * 2:
            yield "bos_twice", self._decoded(ids[:6])
        yield from self._length(ids, span, chat)

    def _length(self, ids: Sequence[int], span: tuple[int, int], chat: Chat) -> Iterator[tuple[str, str]]:
        """Whether trained tokens stand beyond the limit, and whether all messages stand in the tokens."""
        whole = squeezed(self._decoded(ids if self.material.whole else ids[:span[0]]))
        said = [(one["role"], self.template.defused(one["content"])) for one in chat]
        found = places(whole, [(role, squeezed(text)) for role, text in said])
        if -1 in found:   # what the tokenizer cannot hold is told by `round_trip`
            back = [(role, squeezed(self._decoded(self.template.encode(text)))) for role, text in said]
            found = places(whole, back)
        lost = next((f"{role}: {text}" for (role, text), at in zip(said, found, strict=True) if at < 0), "")
        prompt = len(self.template.prompt(chat)) if lost or span[1] > self.limit else span[0]
        size = prompt + span[1] - span[0]
        if size > self.limit:
            beyond = min(span[1] - span[0], size - self.limit)
            yield "too_long", (f"{size} tokens, the limit is {self.limit}: of {span[1] - span[0]} trained ones "
                               f"{beyond} are lost where the start is kept"
                               + ("; here its oldest messages are left out" if prompt > span[0] else ""))
        elif lost:
            yield "lost_message", lost

    def _decoded(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))

    def _unknown(self, ids: Sequence[int]) -> bool:
        unknown = self.tokenizer.unk_token_id
        return unknown is not None and unknown != self.template.end and unknown in ids

    def _is_folded(self, chat: Chat) -> bool:
        roles = [message["role"] for message in chat]
        if "system" in roles and (not self.template.has_system or (self.template.strict and "system" in roles[1:])):
            return True
        rest = [role for role in roles if role != "system"]
        return self.template.strict and rest != [("user", "assistant")[at % 2] for at in range(len(rest))]

    def _pair(self, pair: Pair, row: Row) -> None:
        chosen, rejected = row.paths
        starts = [path.spans[0][0] for path in row.paths]
        prompts = [path.ids[:start].tolist() for path, start in zip(row.paths, starts, strict=True)]
        self.tally.look("prompt_mismatch", pair.id, prompts[0] != prompts[1] and
                        f"the prompts have {starts[0]} and {starts[1]} tokens")
        if chosen.key == rejected.key:   # training refuses them; DITTO's own loop is asked about here only
            self.tally.hit("same_reply", pair.id, f"as tokens: {pair.chosen} | {pair.rejected}")

    def _prefix(self, item: Item, row: Row, said: tuple[Chat, str]) -> None:
        if self.totals["rows"] >= RENDERED_TWICE:
            return
        chat, reply = ([{**message, "content": self.template.defused(message["content"])} for message in said[0]],
                       self.template.defused(said[1]))
        try:
            whole: Any = self.tokenizer.apply_chat_template([*chat, {"role": "assistant", "content": reply}],
                                                            tokenize=False, **RENDERING)
        except Exception:  # noqa: BLE001 - templates refuse roles with whatever error they like; told as roles_folded
            return
        prompt = self.template.prompt(said[0])
        ids = self.template.encode(str(whole))
        self.tally.look("generation_prefix", item.id, ids[:len(prompt)] != prompt and
                        f"asked with: …{self._decoded(prompt[-6:])!r}; rendered whole: {str(whole)[-160:]!r}")
