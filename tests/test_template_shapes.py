"""Chat templates in the shapes of the field, our own wording of each: what Dialoom makes of a chat, token by token."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from tiny import TEXT, tiny_module, tiny_tokenizer

from dialoom.models.base import GREEDY
from dialoom.models.local import LocalModel
from dialoom.models.template import ChatTemplate, fit
from dialoom.select import Example
from dialoom.train.rows import example_rows

CHATML = ("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
          "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
LLAMA3 = ("{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
          "{{ m.content | trim }}<|eot_id|>{% endfor %}"
          "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}")
IN_TURN = ("{% if messages[0].role == 'system' %}{% set brief, rest = messages[0].content, messages[1:] %}"
           "{% else %}{% set brief, rest = '', messages %}{% endif %}{% for m in rest %}"
           "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('user and assistant in turn!') }}"
           "{% endif %}{% endfor %}")
MISTRAL = (IN_TURN + "{{ bos_token }}{% for m in rest %}{% if m.role == 'user' %}[INST] "
           "{{ brief + '\n\n' if brief and loop.first else '' }}{{ m.content }} [/INST]"
           "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}")
MISTRAL_LAST = (IN_TURN + "{{ bos_token }}{% for m in rest %}{% if m.role == 'user' %}[INST] "
                "{{ brief + '\n\n' if brief and loop.last else '' }}{{ m.content }}[/INST]"
                "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}")
GEMMA = ("{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
         "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
         "{{ raise_exception('in turn') }}{% endif %}"
         "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
         "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}")
QWEN3 = ("{% set at = namespace(user=0) %}{% for m in messages %}{% if m.role == 'user' %}"
         "{% set at.user = loop.index0 %}{% endif %}{% endfor %}"
         "{% for m in messages %}<|im_start|>{{ m.role }}\n"
         "{% if m.role == 'assistant' and loop.index0 > at.user %}<think>\n\n</think>\n\n{% endif %}"
         "{{ m.content.split('</think>')[-1].lstrip('\n') }}<|im_end|>\n{% endfor %}"
         "{% if add_generation_prompt %}<|im_start|>assistant\n"
         "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}")
ALWAYS_THINKS = ("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}<|im_end|>\n"
                 "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}")
OLMO = ("{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}"
        "{{ eos_token if m.role == 'assistant' else '' }}{{ '' if m.role == 'assistant' and loop.last else '\n' }}"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}")
LLAMA2 = (IN_TURN + "{% for m in rest %}{% if m.role == 'user' %}{{ bos_token }}[INST] "
          "{% if brief and loop.first %}<<SYS>>\n{{ brief }}\n<</SYS>>\n\n{% endif %}{{ m.content | trim }} [/INST]"
          "{% else %} {{ m.content | trim }} {{ eos_token }}{% endif %}{% endfor %}")
VICUNA = ("{% for m in messages %}{% if m.role == 'system' %}{{ m.content }} "
          "{% elif m.role == 'user' %}USER: {{ m.content }} {% else %}ASSISTANT: {{ m.content }}{{ eos_token }}"
          "{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}")
ASKS_NOTHING = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"

IM, THINK = ("<|im_start|>", "<|im_end|>"), ("<think>", "</think>")
HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
# name -> (template, special tokens of its own, has a system role, strict, prefix-stable, are its words cut by spaces)
SHAPES: dict[str, tuple[str, tuple[str, ...], bool, bool, bool, bool]] = {
    "chatml": (CHATML, IM, True, False, True, False),
    "llama3": (LLAMA3, HEADERS, True, False, True, False),
    "mistral": (MISTRAL, (), True, True, True, True),
    "mistral, brief last": (MISTRAL_LAST, (), True, True, False, True),
    "gemma": (GEMMA, ("<start_of_turn>", "<end_of_turn>"), False, True, True, False),
    "qwen3": (QWEN3, (*IM, *THINK), True, False, False, False),
    "always thinks": (ALWAYS_THINKS, (*IM, *THINK), True, False, False, False),
    "olmo": (OLMO, (), True, False, True, False),
    "llama2": (LLAMA2, (), True, True, True, True),
    "vicuna": (VICUNA, (), True, False, True, True),
    "asks nothing": (ASKS_NOTHING, IM, True, False, True, False),
}
BOS, EOS = "<|begin|>", "<|end|>"


def say(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


BRIEFED = [say("system", "Be kind."), say("user", "Hi"), say("assistant", "Hello."), say("user", "Sure?")]
FIRST = [say("system", "Be kind."), say("assistant", "Hello."), say("user", "Sure?")]
TWICE = [say("user", "One"), say("user", "Two")]
AGAIN = [say("user", "Hi"), say("assistant", "Hello.")]
MIDDLE = [say("user", "Hi"), say("assistant", "Hello."), say("system", "Be brief."), say("user", "Sure?")]
GOLDEN: dict[str, dict[str, str]] = {
    "chatml": {
        "briefed": "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
                   "Hello.<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n",
        "first": "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\n"
                 "Sure?<|im_end|>\n<|im_start|>assistant\n",
        "twice": "<|im_start|>user\nOne<|im_end|>\n<|im_start|>user\nTwo<|im_end|>\n<|im_start|>assistant\n",
        "again": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>assistant\n",
        "trained": "Hello.<|im_end|>"},
    "llama3": {
        "briefed": f"{BOS}<|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|><|start_header_id|>user"
                   "<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|>"
                   "<|start_header_id|>user<|end_header_id|>\n\nSure?<|eot_id|><|start_header_id|>assistant"
                   "<|end_header_id|>\n\n",
        "first": f"{BOS}<|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|><|start_header_id|>assistant"
                 "<|end_header_id|>\n\nHello.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nSure?<|eot_id|>"
                 "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "twice": f"{BOS}<|start_header_id|>user<|end_header_id|>\n\nOne<|eot_id|><|start_header_id|>user"
                 "<|end_header_id|>\n\nTwo<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "again": f"{BOS}<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant"
                 "<|end_header_id|>\n\nHello.<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "trained": "Hello.<|eot_id|>"},
    "mistral": {
        "briefed": f"{BOS}[INST] Be kind.\n\nHi [/INST] Hello.{EOS}[INST] Sure? [/INST]",
        "first": f"{BOS}[INST] Be kind.\n\n... [/INST] Hello.{EOS}[INST] Sure? [/INST]",
        "twice": f"{BOS}[INST] One\nTwo [/INST]",
        "again": f"{BOS}[INST] Hi [/INST] Hello.{EOS}[INST] ... [/INST]",
        "middle": f"{BOS}[INST] Hi [/INST] Hello.{EOS}[INST] Be brief.\nSure? [/INST]",
        "trained": f"Hello.{EOS}"},
    "mistral, brief last": {
        "briefed": f"{BOS}[INST] Hi[/INST] Hello.{EOS}[INST] Be kind.\n\nSure?[/INST]",
        "first": f"{BOS}[INST] ...[/INST] Hello.{EOS}[INST] Be kind.\n\nSure?[/INST]",
        "twice": f"{BOS}[INST] One\nTwo[/INST]",
        "again": f"{BOS}[INST] Hi[/INST] Hello.{EOS}[INST] ...[/INST]",
        "trained": f"Hello.{EOS}"},
    "gemma": {
        "briefed": f"{BOS}<start_of_turn>user\nBe kind.\n\nHi<end_of_turn>\n<start_of_turn>model\nHello.<end_of_turn>\n"
                   "<start_of_turn>user\nSure?<end_of_turn>\n<start_of_turn>model\n",
        "first": f"{BOS}<start_of_turn>user\nBe kind.<end_of_turn>\n<start_of_turn>model\nHello.<end_of_turn>\n"
                 "<start_of_turn>user\nSure?<end_of_turn>\n<start_of_turn>model\n",
        "twice": f"{BOS}<start_of_turn>user\nOne\nTwo<end_of_turn>\n<start_of_turn>model\n",
        "again": f"{BOS}<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nHello.<end_of_turn>\n"
                 "<start_of_turn>user\n...<end_of_turn>\n<start_of_turn>model\n",
        "middle": f"{BOS}<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nHello.<end_of_turn>\n"
                  "<start_of_turn>user\nBe brief.\n\nSure?<end_of_turn>\n<start_of_turn>model\n",
        "trained": "Hello.<end_of_turn>"},
    "qwen3": {
        "briefed": "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
                   "Hello.<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        "first": "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\n"
                 "Sure?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        "twice": "<|im_start|>user\nOne<|im_end|>\n<|im_start|>user\nTwo<|im_end|>\n<|im_start|>assistant\n"
                 "<think>\n\n</think>\n\n",
        "trained": "Hello.<|im_end|>"},
    "always thinks": {
        "briefed": "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
                   "Hello.<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        "trained": "Hello.<|im_end|>"},
    "olmo": {
        "briefed": f"{BOS}<|system|>\nBe kind.\n<|user|>\nHi\n<|assistant|>\nHello.{EOS}\n<|user|>\nSure?\n"
                   "<|assistant|>\n",
        "first": f"{BOS}<|system|>\nBe kind.\n<|assistant|>\nHello.{EOS}\n<|user|>\nSure?\n<|assistant|>\n",
        "twice": f"{BOS}<|user|>\nOne\n<|user|>\nTwo\n<|assistant|>\n",
        "trained": f"Hello.{EOS}"},
    "llama2": {
        "briefed": f"{BOS}[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHi [/INST] Hello. {EOS}{BOS}[INST] Sure? [/INST]",
        "first": f"{BOS}[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\n... [/INST] Hello. {EOS}{BOS}[INST] Sure? [/INST]",
        "twice": f"{BOS}[INST] One\nTwo [/INST]",
        "again": f"{BOS}[INST] Hi [/INST] Hello. {EOS}{BOS}[INST] ... [/INST]",
        "middle": f"{BOS}[INST] Hi [/INST] Hello. {EOS}{BOS}[INST] Be brief.\nSure? [/INST]",
        "trained": f"Hello. {EOS}"},
    "vicuna": {
        "briefed": f"Be kind. USER: Hi ASSISTANT: Hello.{EOS}USER: Sure? ASSISTANT:",
        "first": f"Be kind. ASSISTANT: Hello.{EOS}USER: Sure? ASSISTANT:",
        "twice": "USER: One USER: Two ASSISTANT:",
        "trained": f"Hello.{EOS}"},
    "asks nothing": {
        "briefed": "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
                   "Hello.<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant",
        "trained": "\nHello.<|im_end|>"},
}
CHATS = {"briefed": BRIEFED, "first": FIRST, "twice": TWICE, "again": AGAIN, "middle": MIDDLE}


@cache
def spaced_tokenizer() -> str:
    """A tokenizer of the other kind: a word begins with its space, as in the first Llamas."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    tokenizer = Tokenizer(models.BPE(byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Metaspace()
    alphabet = [chr(code) for code in range(32, 127)] + ["\n"]
    trainer = trainers.BpeTrainer(vocab_size=384, special_tokens=["<|pad|>", BOS, EOS], show_progress=False,
                                  initial_alphabet=alphabet)
    tokenizer.train_from_iterator([TEXT + " Hello. Sure?"], trainer)
    return str(tokenizer.to_str())


def tokenizer_of(shape: str) -> Any:
    text, extra, *_, spaced = SHAPES[shape]
    if not spaced:
        return tiny_tokenizer(text, extra)
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(spaced_tokenizer()), bos_token=BOS,
                                        eos_token=EOS, pad_token="<|pad|>", clean_up_tokenization_spaces=False)
    tokenizer.chat_template = text
    return tokenizer


@cache
def template_of(shape: str) -> ChatTemplate:
    return ChatTemplate(tokenizer_of(shape), shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_what_a_shape_can_do_is_found_out(shape: str):
    template = template_of(shape)
    assert (template.has_system, template.strict, template.stable) == SHAPES[shape][2:5]


@pytest.mark.parametrize(("shape", "case"), [(shape, case) for shape, cases in GOLDEN.items() for case in cases
                                             if case != "trained"])
@pytest.mark.filterwarnings("ignore:.*chat template")
def test_a_chat_becomes_exactly_this_prompt(shape: str, case: str):
    template = template_of(shape)
    assert template.prompt(CHATS[case]) == template.encode(GOLDEN[shape][case])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("case", CHATS)
@pytest.mark.filterwarnings("ignore:.*chat template")
def test_trained_are_the_reply_and_its_end_token_after_exactly_what_was_read(shape: str, case: str):
    template = template_of(shape)
    ids, start = template.with_reply(CHATS[case], "Hello.")
    assert ids[:start] == template.prompt(CHATS[case])
    trained = template.tokenizer.decode(ids[start:])
    assert trained.removeprefix(" ") == GOLDEN[shape]["trained"]
    assert ids[-1] == template.end and template.end not in ids[start:-1]


@pytest.mark.parametrize("shape", ["mistral", "mistral, brief last", "llama2", "vicuna"])
@pytest.mark.filterwarnings("ignore:.*chat template")
def test_where_words_begin_with_their_space_the_trained_reply_begins_as_a_sampled_one_would(shape: str):
    template = template_of(shape)
    for chat in (CHATS["briefed"], CHATS["twice"]):
        ids, start = template.with_reply(chat, "Hello.")
        assert template.tokenizer.convert_ids_to_tokens(ids[start]).startswith("▁")


@pytest.mark.parametrize("shape", ["chatml", "llama3", "mistral", "gemma", "olmo", "llama2", "vicuna"])
@pytest.mark.filterwarnings("ignore:.*chat template")
def test_a_dialogue_is_one_row_with_all_its_replies_marked(shape: str):
    rows, texts = rows_of(shape)
    assert len(rows) == 1 and texts == [GOLDEN[shape]["trained"], GOLDEN[shape]["trained"]]


@pytest.mark.parametrize("shape", ["mistral, brief last", "qwen3", "always thinks"])
def test_a_template_that_rewrites_history_is_trained_on_what_was_read_at_each_turn(shape: str):
    rows, texts = rows_of(shape)
    template = template_of(shape)
    assert texts == [GOLDEN[shape]["trained"], GOLDEN[shape]["trained"]]
    assert [list(path.ids[:path.spans[0][0]]) for path in rows] == [template.prompt(BRIEFED[:2]),
                                                                    template.prompt(BRIEFED)]


def rows_of(shape: str) -> tuple[list[Any], list[str]]:
    """The token paths of a dialogue of two replies, and the trained texts in order."""
    model = LocalModel(tiny_module(), tokenizer_of(shape), name=shape)
    chat = [*BRIEFED, say("assistant", "Hello.")]
    row, = example_rows(model, [Example("one", chat, (2, 4))])
    decode = model.tokenizer.decode
    return list(row.paths), [decode(path.ids[start:stop]).removeprefix(" ") for path in row.paths
                             for start, stop in path.spans]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.filterwarnings("ignore:.*chat template")
def test_a_dialogue_says_the_same_with_kept_prefixes_as_read_anew_at_every_turn(shape: str):
    model = LocalModel(tiny_module(context=512), tokenizer_of(shape), name=shape)
    chats = [[say("system", "Be kind."), say("user", text)] for text in ("Hi", "Which river?")]
    for turn in range(3):
        replies = model.chat(chats, GREEDY, ["a", "b"])
        anew = LocalModel(model.module, model.tokenizer, name=shape).chat(chats, GREEDY, ["a", "b"])
        assert [one.tokens for one in replies] == [one.tokens for one in anew]
        chats = [[*chat, say("assistant", one.text), say("user", f"Why {turn}?")]
                 for chat, one in zip(chats, replies, strict=True)]


def test_a_rewritten_history_is_kept_as_far_as_it_is_the_same():
    model = LocalModel(tiny_module(context=512), tokenizer_of("qwen3"), name="qwen3")
    first = [say("system", "Be kind. " * 5), say("user", "Hi")]
    reply, = model.chat([first], GREEDY, ["a"])
    second = [*first, say("assistant", reply.text), say("user", "Sure?")]
    before, after = model.prompt_ids(first), model.prompt_ids(second)
    shared = next(at for at, (one, other) in enumerate(zip(before, after, strict=False)) if one != other)
    assert model.tokenizer.decode(before[shared:]).startswith("<think>")  # the block that the history has lost
    assert model.template.prompt(second) == after


def test_folding_is_said_once_and_in_words_that_say_what_was_done():
    template = ChatTemplate(tokenizer_of("gemma"), "gentle")
    with pytest.warns(UserWarning, match="gentle: its chat template has no system role"):
        template.prompt(BRIEFED)
    with pytest.warns(UserWarning, match="only in turn; neighbours of one role are merged") as told:
        template.prompt(TWICE)
        template.prompt(TWICE)
    assert len(told) == 1


@pytest.mark.parametrize("shape", ["mistral", "gemma", "olmo", "llama2"])
@pytest.mark.filterwarnings("ignore:.*chat template")
def test_role_marks_that_are_plain_text_open_no_turn_in_a_message(shape: str):
    template = template_of(shape)
    marks = {"mistral": "[INST]", "gemma": "<start_of_turn>", "olmo": "<|assistant|>", "llama2": "<<SYS>>"}
    text = template.tokenizer.decode(template.prompt([say("user", f"x {marks[shape]} y")]))
    plain = template.tokenizer.decode(template.prompt([say("user", "x y")]))
    assert text.count(marks[shape]) == plain.count(marks[shape])


def test_thinking_that_a_model_does_all_the_same_is_no_part_of_its_turn():
    template = template_of("qwen3")
    encode = template.encode
    assert template.spoken(encode("<think>hm</think>\n\nOslo.")) == encode("\n\nOslo.")
    assert template.spoken(encode("so</think>Oslo.")) == encode("Oslo.")
    assert template.spoken(encode("<think>and so on")) == []
    assert template.spoken(encode("Oslo.")) == encode("Oslo.")
    assert template_of("chatml").spoken([5, 6]) == [5, 6]


@pytest.mark.parametrize("shape", ["mistral", "gemma", "llama2"])
@pytest.mark.filterwarnings("ignore:.*chat template")
def test_a_long_chat_is_cut_at_turns_in_strict_templates_too(shape: str):
    template = template_of(shape)
    whole = template.prompt(BRIEFED)
    ids, cut = fit(template, BRIEFED, len(whole) - 1)
    assert cut and ids == template.prompt([BRIEFED[0], BRIEFED[3]])
