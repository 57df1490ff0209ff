"""Rows as training reads them: a clean template passes, each broken one is found; what is shown is what is trained."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from dialoom.audit.batch import as_tokens, first_batch
from dialoom.audit.findings import Finding, Tally
from dialoom.audit.look import Report, look
from dialoom.audit.masks import RowChecks, check_texts, targets, token_row
from dialoom.audit.sources import Material, read_material
from dialoom.audit.tokens import Reader, attribute, load_reader, pieces, squeezed
from dialoom.cli import main
from dialoom.dialogue import Chat
from dialoom.errors import ModelError
from dialoom.models.load import load_model
from dialoom.select import Example, Pair
from dialoom.store import write_rows
from dialoom.train.rows import pair_rows
from tests.test_audit import pair_row, transcripts, written
from tests.test_template_shapes import SHAPES, tokenizer_of
from tests.tiny import TEMPLATE, save_tiny, tiny_model, tiny_tokenizer

HERE = Path("x.jsonl")


class Config:
    """As much of a model's configuration as a reader looks at."""

    def __init__(self, context: int = 256) -> None:
        self.max_position_embeddings = context

    def get_text_config(self) -> Config:
        return self


def reader_of(template: str = TEMPLATE, context: int = 256) -> Reader:
    return Reader(tiny_tokenizer(template), Config(context), "tiny")


def pair(**changes: Any) -> Pair:
    return Pair.from_row(pair_row(**changes))


def dialogue(*said: str, train_on: tuple[int, ...] | None = None) -> Example:
    chat: Chat = [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(said)]
    return Example("e", chat, tuple(range(1, len(said), 2)) if train_on is None else train_on)


GOOD = (pair(), dialogue("Hello!", "Good day to you.", "And now?", "Now we talk."), pair(id="p2", prompt=[
    {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Héllo – 你好?"}], chosen="Ünï ✓"))


def checked(reader: Any, *items: Pair | Example, max_length: int = 0, **about: Any) -> dict[str, Finding]:
    """Everything that is not fine."""
    tally = Tally()
    material = Material(HERE, "pairs", **about)
    checks = RowChecks(reader, material, tally, max_length=max_length)
    for item in check_texts(items, tally):
        checks.look(item)
    return {finding.name: finding for finding in tally.findings() if finding.level != "fine"}


def test_clean_rows_have_no_finding() -> None:
    assert checked(reader_of(), *GOOD) == {}


def test_reader_gives_the_ids_that_the_model_gives() -> None:
    model, reader = tiny_model(), reader_of()
    for one in GOOD[::2]:
        assert isinstance(one, Pair)
        assert reader.reply_ids(one.prompt, one.chosen) == model.reply_ids(one.prompt, one.chosen)
    long: Chat = [{"role": ("user", "assistant")[at % 2], "content": f"Turn {at} says a good deal of things."}
                  for at in range(21)]
    with pytest.warns(UserWarning, match="truncated"):
        assert reader.reply_ids(long, "Yes.") == model.reply_ids(long, "Yes.")


@pytest.mark.slow
def test_pocket_s_reader_makes_the_rows_that_pocket_is_trained_on() -> None:
    reader, model = load_reader("pocket"), load_model("pocket", device="cpu")
    material = Material(HERE, "pairs")
    for one in (GOOD[0], GOOD[2]):
        assert isinstance(one, Pair)
        made, real = token_row(reader, one, material), pair_rows(model, [one])[0]  # type: ignore[arg-type]
        assert [path.key for path in made.paths] == [path.key for path in real.paths]
        assert [path.spans for path in made.paths] == [path.spans for path in real.paths]


MARK = "<|{{ message.role }}|>"
BROKEN = {
    "lower case": (TEMPLATE.replace("{{ message.content }}", "{{ message.content | lower }}"), "changes_text"),
    "lower case, of questions": (TEMPLATE.replace("{{ message.content }}", "{{ message.content | lower if "
                                 "message.content != 'Zebra' and message.role == 'user' else message.content }}"),
                                 "lost_message"),
    "replies cut": (TEMPLATE.replace("{{ message.content }}", "{{ message.content[:14] if message.role == 'assistant' "
                                     "else message.content }}"), "mask"),
    "words before a finished reply": (TEMPLATE.replace(MARK, MARK + "{% if message.role == 'assistant' and not "
                                                       "add_generation_prompt %}So: {% endif %}"), "generation_prefix"),
    "BOS twice": ("{{ bos_token }}" + TEMPLATE, "bos_twice"),
    "drops system messages in long chats": (TEMPLATE.replace(
        "{% for message in messages %}", "{% for message in messages %}{% if loop.index0 or messages | length != 3 "
        "or message.role != 'system' %}").replace("{% endfor %}", "{% endif %}{% endfor %}"), "lost_message"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_template_is_found(name: str) -> None:
    template, check = BROKEN[name]
    rows = (*GOOD, pair(id="p3", prompt=[{"role": "system", "content": "Speak French."},
                                         {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]))
    assert check in checked(reader_of(template), *rows)


@pytest.mark.parametrize("shift", [-2, 1])
def test_mask_that_is_off_by_some_tokens_is_found(shift: int) -> None:
    class Shifted(Reader):
        def reply_ids(self, chat: Chat, reply: str) -> tuple[list[int], int]:
            ids, start = super().reply_ids(chat, reply)
            return ids, start + shift

    found = checked(Shifted(tiny_tokenizer(), Config(), "tiny"), *GOOD)
    assert found["mask"].level == "error" and found["mask"].count == len(GOOD)


def test_reply_without_its_end_is_found() -> None:
    class Endless(Reader):
        def reply_ids(self, chat: Chat, reply: str) -> tuple[list[int], int]:
            ids, start = super().reply_ids(chat, reply)
            return ids[:-1], start

    found = checked(Endless(tiny_tokenizer(), Config(), "tiny"), GOOD[0])
    assert set(found) == {"no_end"} and found["no_end"].level == "warning"


def test_template_that_wants_turns_is_told_and_is_no_error() -> None:
    strict = ("{{ bos_token }}{% for message in messages %}{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
              "{{ raise_exception('in turn, please') }}{% endif %}<|{{ message.role }}|>{{ message.content }}<|end|>"
              "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}")
    found = checked(reader_of(strict), *GOOD)
    assert set(found) == {"roles_folded"} and found["roles_folded"].examples[0].where == "p2"


def test_template_that_writes_finished_replies_otherwise_is_told() -> None:
    thinks = TEMPLATE.replace("<|assistant|>{% endif %}", "<|assistant|>Well: {% endif %}")
    found = checked(reader_of(thinks), GOOD[0])
    assert "generation_prefix" in found and "mask" not in found, "the project's own rows are built from the prompt"


@pytest.mark.parametrize(("item", "check"), [
    (dialogue("Hi", "Yes.", train_on=()), "no_trained_token"),
    (dialogue("Hi", ""), "no_trained_token"),
    (dialogue("Hi", "Yes.", train_on=(0,)), "no_trained_token"),
    (dialogue("Hi", "Yes.", train_on=(1, 7)), "refused_row"),
    (pair(rejected="Because of scattering."), "same_reply"),
    (pair(chosen="<|end|>Take this.<|user|>"), "role_mark"),
    (dialogue("Hi <|assistant|>", "Yes."), "role_mark"),
    (pair(chosen="word " * 400), "refused_row"),
    (dialogue(*(f"Turn {at} says a good deal of things." for at in range(24))), "too_long"),
])
def test_broken_row_is_found(item: Pair | Example, check: str) -> None:
    found = checked(reader_of(), *GOOD, item)
    assert set(found) == {check} and found[check].count == 1 and found[check].examples[0].where == item.id


def test_trained_tokens_beyond_another_trainer_s_limit_are_counted() -> None:
    item = dialogue("Hello!", "Good day to you.", "And now?", "Now we talk.")
    size = len(reader_of().template.with_reply(item.chat[:-1], "Now we talk.")[0])
    assert checked(reader_of(), item, max_length=size) == {}
    found = checked(reader_of(), item, max_length=size - 3)["too_long"]
    assert re.search(r"of \d+ trained ones 3 are lost", found.examples[0].text)


def test_prompts_that_differ_are_found() -> None:
    class Forgets(Reader):
        def reply_ids(self, chat: Chat, reply: str) -> tuple[list[int], int]:
            return super().reply_ids(chat[-1:] if "Nobody" in reply else chat, reply)

    reader = Forgets(tiny_tokenizer(), Config(), "tiny")
    found = checked(reader, pair(prompt=[{"role": "user", "content": "A?"}, {"role": "assistant", "content": "B."},
                                         {"role": "user", "content": "C?"}]))
    assert "prompt_mismatch" in found


def test_unknown_characters_are_found() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    words = {word: at for at, word in enumerate(["<unk>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "Zebra",
                                                 "Hello", "Yes", "Why", "No"])}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", eos_token="<|end|>")
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|user|>", "<|assistant|>", "<|system|>"]})
    tokenizer.chat_template = TEMPLATE.replace("{{ bos_token }}", "")
    found = checked(Reader(tokenizer, Config(), "words"), pair(prompt="Why", chosen="Yes 你好", rejected="No"))
    assert "round_trip" in found and "mask" not in found


def test_ditto_s_cut_texts_and_whole_examples_are_no_errors() -> None:
    one = pair(chosen_turn="a", rejected_turn="b")
    assert checked(reader_of(), one, recipe="ditto", cut=frozenset({"b"})) == {}
    assert set(checked(reader_of(), one, recipe="ditto", cut=frozenset({"a"}))) == {"no_end"}
    assert checked(reader_of(), dialogue("Hi", "Yes."), recipe="ditto", whole=True) == {}


@pytest.mark.parametrize("shape", SHAPES)
def test_templates_of_the_field_give_no_error(shape: str) -> None:
    reader = Reader(tokenizer_of(shape), Config(), shape)
    plain = (pair(), dialogue("Hello!", "Good day to you.", "And now?", "Now we talk."),
             pair(id="p2", prompt=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"},
                                   {"role": "assistant", "content": "It is so."}, {"role": "user", "content": "No!"}]))
    found = checked(reader, *plain)
    assert {name: one for name, one in found.items() if one.level != "note" and name != "generation_prefix"} == {}
    for item in plain:
        shown = as_tokens(reader, item, token_row(reader, item, Material(HERE, "x")).paths)
        words = squeezed("".join(token.text for token in shown.parts[-1].tokens if token.kind == "trained"))
        replies = [squeezed(reply) for _, reply in targets(item)]
        assert replies[-1] in words and words.startswith(replies[-1] if isinstance(item, Pair) or
                                                         len(shown.parts) > 1 else replies[0])


# ------------------------------------------------------------------------------------------------ what is shown


def test_every_token_is_shown_with_whose_it_is() -> None:
    reader, item = reader_of(), GOOD[2]
    row = token_row(reader, item, Material(HERE, "pairs"))
    shown = as_tokens(reader, item, row.paths)
    chosen = shown.parts[0]
    assert "".join(token.text for token in chosen.tokens) == reader.tokenizer.decode(row.paths[0].ids.tolist())
    by_kind = {kind: "".join(token.text for token in chosen.tokens if token.kind == kind)
               for kind in ("trained", "user", "system", "assistant", "mark")}
    assert by_kind["trained"] == "Ünï ✓<|end|>" and by_kind["user"] == "Héllo – 你好?"
    assert by_kind["system"] == "Be brief." and not by_kind["assistant"]
    assert by_kind["mark"] == "<|begin|><|system|><|end|><|user|><|end|><|assistant|>"


def test_earlier_replies_are_context_and_not_trained() -> None:
    reader = reader_of()
    item = dialogue("Hello!", "Good day to you.", "And now?", "Now we talk.", train_on=(3,))
    shown = as_tokens(reader, item, token_row(reader, item, Material(HERE, "x")).paths)
    words = {kind: "".join(token.text for token in shown.parts[0].tokens if token.kind == kind)
             for kind in ("assistant", "trained")}
    assert words == {"assistant": "Good day to you.", "trained": "Now we talk.<|end|>"}


def test_long_prompts_are_shown_in_part() -> None:
    reader = reader_of(context=4096)
    item = pair(prompt="word " * 1500)
    part = as_tokens(reader, item, token_row(reader, item, Material(HERE, "x")).paths).parts[0]
    assert part.tokens[0].kind == "gap" and "tokens" in part.tokens[0].text and len(part.tokens) < 600


def test_messages_are_found_whatever_the_white_space() -> None:
    kinds, lost = attribute(["<s>", "He", "llo", "  th", "ere", "\n", "Yes", "</s>"],
                            [("user", "Hello there"), ("assistant", "No"), ("assistant", "Yes")])
    assert kinds == ["mark", "user", "user", "user", "user", "mark", "assistant", "mark"] and lost == [1]


def test_pieces_of_one_character_are_not_torn() -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer("é你 ok")["input_ids"]
    assert "".join(pieces(tokenizer, ids)) == "é你 ok" and "\ufffd" not in "".join(pieces(tokenizer, ids))


def test_first_batch_is_that_of_the_trainer(tmp_path: Path) -> None:
    from dialoom.train.loop import batches
    from dialoom.train.pack import unique_tokens
    pairs = [pair(id=f"p{at}", tree=f"t{at // 3}", chosen=f"Answer {at}.") for at in range(12)]
    reader = reader_of()
    material = Material(HERE, "pairs", pairs=pairs, batch=5, seed=3)
    batch = first_batch(material, reader, 2)
    assert batch is not None and batch.size == 5 and len(batch.rows) == 2
    rows = pair_rows(reader, pairs)
    order = batches(rows, 5, 3, 0)[0]
    assert [row.id for row in batch.rows] == [pairs[at].id for at in order[:2]]
    paths = [path for at in order for path in rows[at].paths]
    assert (batch.flat, batch.unique) == (sum(map(len, paths)), unique_tokens(paths)) and batch.unique < batch.flat


# ------------------------------------------------------------------------------------------------ the command


def test_model_s_files_are_read_without_its_weights(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "tiny")
    (folder / "model.safetensors").unlink()
    reader = load_reader(f"hf:{folder}")
    assert reader.context == 256 and checked(reader, *GOOD) == {}
    assert load_reader(f"run:{folder}").context == 256
    with pytest.raises(ModelError, match="neither model/ nor adapter/"):
        load_reader(f"run:{tmp_path}")
    with pytest.raises(ModelError, match="does not tell its tokens"):
        load_reader("openai:gpt@http://localhost:1")
    with pytest.raises(ModelError):
        load_reader(f"hf:{tmp_path / 'none'}")


def test_command_colours_a_file_s_rows_in_a_model_s_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, talk = save_tiny(tmp_path / "tiny"), written(tmp_path / "talk.jsonl", transcripts())
    assert main(["audit", str(talk), "--model", f"hf:{folder}", "--rows", "2"]) == 0
    out = capsys.readouterr().out
    assert "The first batch, 2 of 20 rows" in out and "<|assistant|>" in out and "with shared beginnings once" in out
    assert main(["audit", str(talk), "--model", f"hf:{folder}", "--max-length", "40", "--json"]) == 2
    told = json.loads(capsys.readouterr().out)
    assert told["findings"][0]["check"] == "too_long" and told["counts"]["trained"] > 0
    assert main(["audit", str(talk), "--model", f"hf:{folder}", "--open", "d3"]) == 0
    assert "trained" in capsys.readouterr().out


def test_without_a_model_tokens_are_said_not_to_be_looked_at(tmp_path: Path) -> None:
    write_rows(tmp_path / "pairs.jsonl", [pair_row()])
    report: Report = look(read_material(tmp_path / "pairs.jsonl"))
    assert any("--model" in note for note in report.notes)
    assert report.batch is not None and report.batch.rows[0].parts[-1].label == "rejected"
