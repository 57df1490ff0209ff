"""What the speed rows are measured on: random-token dialogue trees of the methods' shapes, and the models.

The trees hold tokens, not text, so that a row depends on lengths and sharing alone. Their text is one word a token
(`t17`): our training and TRL's then cut the very same sequences out of it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from dialoom.select import Pair

SPECIAL = ("<pad>", "<unk>", "<end>")  # the first ids
EOS = SPECIAL.index("<end>")
SYSTEM, TURN = 200, 60  # tokens of the opening and of a turn, its end token included
Ids = tuple[int, ...]
PairIds = tuple[Ids, Ids, Ids]  # prompt, chosen reply, rejected reply


@dataclass(frozen=True)
class Shape:
    """Preference pairs of one tree, as tokens.

    Attributes:
        name: how a row names it.
        about: what it is, in a few words.
        pairs: prompt, chosen and rejected; a reply ends with `EOS`.
    """

    name: str
    about: str
    pairs: tuple[PairIds, ...]

    @property
    def sequences(self) -> list[Ids]:
        """Both sequences of every pair, chosen first."""
        return [prompt + reply for prompt, *replies in self.pairs for reply in replies]

    @property
    def flat_tokens(self) -> int:
        """Tokens where every sequence is computed in full."""
        return sum(map(len, self.sequences))

    @property
    def unique_tokens(self) -> int:
        """Tokens where every shared one is computed once: the distinct prefixes."""
        return len({hash(sequence[:stop]) for sequence in self.sequences for stop in range(1, len(sequence) + 1)})

    def as_pairs(self) -> list[Pair]:
        """The pairs as `TokenModel` reads them, all of one group."""
        return [Pair(f"{self.name}-{at}", [{"role": "user", "content": as_text(prompt)}], as_text(chosen),
                     as_text(rejected), group=self.name) for at, (prompt, chosen, rejected) in enumerate(self.pairs)]


def as_text(ids: Sequence[int]) -> str:
    """One word a token."""
    return " ".join(map(word, ids))


def word(one: int) -> str:
    """How a token is written; special ones are no beginning of others, as tokenizers look for them everywhere."""
    return SPECIAL[one] if one < len(SPECIAL) else f"t{one}"


def as_ids(text: str) -> list[int]:
    """The tokens of `as_text`."""
    return [int(part[1:]) if part[0] == "t" else SPECIAL.index(part) for part in text.split()]


class _Words:
    """Draws turns."""

    def __init__(self, vocabulary: int, seed: int) -> None:
        self.random, self.vocabulary = random.Random(seed), vocabulary

    def say(self, length: int) -> Ids:
        return (*(self.random.randrange(len(SPECIAL), self.vocabulary) for _ in range(length - 1)), EOS)


def aloe(vocabulary: int, seed: int = 0) -> Shape:
    """A dialogue of ten rounds; two replies in each, and it goes on from the preferred one."""
    words, pairs = _Words(vocabulary, seed), []
    spine = words.say(SYSTEM)
    for _ in range(10):
        prompt = spine + words.say(TURN)
        chosen, rejected = words.say(TURN), words.say(TURN)
        pairs.append((prompt, chosen, rejected))
        spine = prompt + chosen
    return Shape("aloe", "10 rounds, the preferred reply goes on", tuple(pairs))


def tree(name: str, about: str, vocabulary: int, branching: Sequence[int], seed: int = 0) -> Shape:
    """A whole tree, `branching` children at each level; where there are several, the first is preferred to the rest."""
    words, pairs = _Words(vocabulary, seed), []
    front = [words.say(SYSTEM)]
    for children in branching:
        after = []
        for prompt in front:
            replies = [words.say(TURN) for _ in range(children)]
            pairs += [(prompt, replies[0], reply) for reply in replies[1:]]
            after += [prompt + reply for reply in replies]
        front = after
    return Shape(name, about, tuple(pairs))


def binary_2x6(vocabulary: int, seed: int = 0) -> Shape:
    """Six turns, user and assistant in turn, two replies at each of the assistant's: 7 pairs."""
    return tree("binary-2x6", "6 turns, 2 branches on the assistant's 3", vocabulary, (1, 2) * 3, seed)


def pbt_depth6(vocabulary: int, seed: int = 0) -> Shape:
    """Six turns, two children at every one: 63 pairs."""
    return tree("pbt-depth6", "binary at each of 6 turns", vocabulary, (2,) * 6, seed)


def pbt_own(vocabulary: int, seed: int = 0) -> Shape:
    """PBT's published tree: 1, 2, 3 and 2 children by level."""
    return tree("pbt-own", "1, 2, 3 and 2 children by level", vocabulary, (1, 2, 3, 2), seed)


def ditto_step(vocabulary: int, seed: int = 0) -> Shape:
    """One later step of DITTO: 7 demonstrations, 10 samples of each and of each earlier checkpoint, 15 + 4 + 2 pairs.

    A demonstration and its samples answer one prompt; a pair is demonstration over newest sample (15), over an older
    sample (4), or newest over older sample (2). Source: arXiv 2406.00888, proportions of the authors' release.
    """
    words = _Words(vocabulary, seed)
    prompts = [words.say(TURN) for _ in range(7)]

    def reply() -> Ids:
        return words.say(words.random.randint(TURN, 3 * TURN))

    demos = [reply() for _ in prompts]
    newest, older = ([[reply() for _ in range(10)] for _ in prompts] for _ in range(2))

    def drawn(pool: list[PairIds], count: int) -> list[PairIds]:
        return words.random.sample(pool, count)

    places = range(len(prompts))
    pairs = drawn([(prompts[at], demos[at], sample) for at in places for sample in newest[at]], 15)
    pairs += drawn([(prompts[at], demos[at], sample) for at in places for sample in older[at]], 4)
    pairs += drawn([(prompts[at], new, old) for at in places for new in newest[at] for old in older[at]], 2)
    return Shape("ditto-step", "7 demonstrations, 15 + 4 + 2 pairs", tuple(pairs))


SHAPES: dict[str, Callable[[int], Shape]] = {
    "aloe": aloe, "binary-2x6": binary_2x6, "pbt-depth6": pbt_depth6, "pbt-own": pbt_own, "ditto-step": ditto_step}
MODELS = {"llama-8m": "8.4M Llama, 8 x 256, 8/4 heads, V 8192", "pocket": "embedded pocket, 4 x 192, V 4608"}


def load_module(name: str) -> Any:
    """A causal LM of `MODELS` in fp32 on the CPU: random weights, but for pocket's own."""
    import torch
    if name == "pocket":
        from dialoom.models.load import load_model
        model: Any = load_model("pocket", device="cpu")
        module = model.module
    else:
        from transformers import LlamaConfig, LlamaForCausalLM
        torch.manual_seed(0)
        module = LlamaForCausalLM(LlamaConfig(
            hidden_size=256, intermediate_size=768, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=4,
            vocab_size=8192, max_position_embeddings=4096, tie_word_embeddings=True, pad_token_id=0, bos_token_id=1,
            eos_token_id=EOS))
    module.config.use_cache = False
    return module.train()


class TokenModel:
    """A module as training wants it, for chats whose text is one word a token; nothing is added to it."""

    def __init__(self, module: Any, name: str) -> None:
        self.module, self.name, self.fingerprint = module, name, name

    def reply_ids(self, chat: Sequence[Any], reply: str) -> tuple[list[int], int]:
        """Ids of all messages and of the reply, which brings its own end token."""
        prompt = [one for message in chat for one in as_ids(message["content"])]
        return prompt + as_ids(reply), len(prompt)

    def add_lora(self, rank: int = 16, alpha: float = 32, dropout: float = 0.0,
                 targets: Sequence[str] | None = None) -> None:
        """An adapter on every linear layer."""
        from peft import LoraConfig, get_peft_model
        self.module = get_peft_model(self.module, LoraConfig(
            r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(targets) if targets else "all-linear"))


@cache
def word_tokenizer(vocabulary: int) -> Any:
    """A tokenizer for `as_text`, for programs that insist on one."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    tokenizer = Tokenizer(models.WordLevel({word(one): one for one in range(vocabulary)}, unk_token=SPECIAL[1]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    pad, unknown, end = SPECIAL
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad, unk_token=unknown, eos_token=end)
