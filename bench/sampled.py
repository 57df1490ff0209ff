"""Sampling with a key a reply: the same tokens in any batch and order, and what it costs against greedy.

The same dialogues are drawn all at once, sixteen at a time, one by one, and all at once in reversed order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench.grow import MODELS, Grown, Log, Say, Work, asking, chats, grow, identical, model, worker
from bench.measure import Ids, Row, Said, Worker

DIALOGUES, TURNS = 64, 2


def rows(*, quick: bool, log: Log) -> Iterator[Row]:
    """How many replies are the same tokens however they are batched; then the price of sampling."""
    name = "toy-llama" if quick else "llama-8m"
    work = chats(model(name).config.vocab_size, 4 if quick else DIALOGUES, TURNS)
    own_setting = f"{MODELS[name]}; {work.about}"
    with worker(name, "ours") as own:
        whole = drawn(own, asking(own, work.reply, temperature=1.0), work)
        for label, size, backwards in (("batch of 16", 16, False), ("batch of 1", 1, False),
                                       ("reversed order", len(work.levels[0]), True)):
            other = drawn(own, in_batches(asking(own, work.reply, temperature=1.0), size, backwards), work)
            same, of = identical(whole, other)
            yield {"work": "grow/sampled", "against": label, "ratio": other.cpu_s / whole.cpu_s,
                   "setting": f"{own_setting}, temperature 1, all at once", "model": name, "ours_s": whole.cpu_s,
                   "theirs_s": other.cpu_s, "same": same == of, "identical": same, "compared": of}
        for about, sampling in (("temperature 1", {"temperature": 1.0}),
                                ("temperature 0.7, top-p 0.9", {"temperature": 0.7, "top_p": 0.9})):
            greedy, sample = (min(drawn(own, asking(own, work.reply, **given), work).cpu_s for _ in range(2))
                              for given in ({}, sampling))
            yield {"work": "grow/sampled", "against": "greedy", "ratio": greedy / sample, "model": name,
                   "setting": f"{own_setting}, {about}", "ours_s": sample, "theirs_s": greedy}


def drawn(own: Worker, say: Say, work: Work) -> Grown:
    """The work done by a fresh engine."""
    own.fresh()
    return grow(work, say)


def in_batches(say: Say, size: int, backwards: bool = False) -> Say:
    """`say` asked for `size` prompts at a time, the last ones first if `backwards`; answers in the given order."""
    def batched(prompts: Sequence[Ids], keys: Sequence[str]) -> Said:
        order = list(range(len(prompts)))[::-1 if backwards else 1]
        found: dict[int, list[int]] = {}
        seconds = peak = 0.0
        for start in range(0, len(order), size):
            part = order[start:start + size]
            said = say([prompts[at] for at in part], [keys[at] for at in part])
            found.update(zip(part, said.replies, strict=True))
            seconds, peak = seconds + said.cpu_s, max(peak, said.peak_mb)
        return Said([found[at] for at in range(len(prompts))], seconds, peak)
    return batched
