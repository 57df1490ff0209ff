"""How the cost of generating grows: with dialogues, with turns, with branches. Ours alone, greedy, on one model.

A point's `ratio` is its tokens per CPU second over those of the curve's first point. For turns there is a second curve:
what decoding alone costs at that length of history, over what the whole turn cost; were earlier turns read again, it
would fall from turn to turn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench.grow import MODELS, Grown, Log, Work, asking, chats, grow, model, tree, worker
from bench.measure import Row, Worker

NAME = "llama-8m"
DIALOGUES, BRANCHES, TURNS = (1, 4, 16, 64, 256), (1, 2, 3, 4), (1, 2, 4, 8, 12, 16, 20, 24)
ONCE = 10_000  # tokens; a longer work is done once, a shorter one twice


def rows(*, quick: bool, log: Log) -> Iterator[Row]:
    """The points of all curves."""
    name = "toy-llama" if quick else NAME
    vocabulary = model(name).config.vocab_size
    with worker(name, "ours") as own:
        works = [chats(vocabulary, dialogues, 2) for dialogues in DIALOGUES[:2 if quick else None]]
        yield from curve("dialogues", name, [(work.dialogues, work) for work in works], own)
        depth = 2 if quick else 4
        yield from curve("branches", name, [(branches, tree(vocabulary, depth, branches))
                                            for branches in BRANCHES[:2 if quick else None]], own)
        yield from turns(name, chats(vocabulary, 2 if quick else 16, 2 if quick else TURNS[-1]), own)


def curve(what: str, name: str, points: Sequence[tuple[int, Work]], own: Worker) -> Iterator[Row]:
    """A row a point: the first is measured against itself."""
    first = 0.0
    for x, work in points:
        done = min((fresh(work, own) for _ in range(1 if work.tokens > ONCE else 2)), key=lambda one: one.cpu_s)
        rate = work.tokens / done.cpu_s
        first = first or rate
        yield point(what, x, f"{MODELS[name]}; {work.about}", rate / first,
                    {"against": f"{points[0][0]}", "ours_s": done.cpu_s, "tokens": work.tokens,
                     "peak_mb": done.peak_mb})


def point(what: str, x: int, setting: str, ratio: float, rest: Row) -> Row:
    """One point of a curve as a row."""
    return {"work": f"curve/{what}", "against": rest.pop("against"), "ratio": ratio, "setting": setting, "x": x, **rest}


def fresh(work: Work, own: Worker) -> Grown:
    """The work done by a fresh engine."""
    own.fresh()
    return grow(work, asking(own, work.reply))


def turns(name: str, work: Work, own: Worker) -> Iterator[Row]:
    """Up to each turn of one long run, and that turn against decoding alone."""
    done = fresh(work, own)
    histories = [list(work.system)] * work.dialogues
    about = f"{MODELS[name]}; {work.about}"
    first = 0.0
    for turn, (given, replies) in enumerate(zip(work.levels, done.replies, strict=True), 1):
        prompts = [ids + list(more) for ids, more in zip(histories, given, strict=True)]
        histories = [ids + reply for ids, reply in zip(prompts, replies, strict=True)]
        if turn not in TURNS:
            continue
        tokens, seconds = turn * work.dialogues * work.reply, sum(done.seconds[:turn])
        first = first or tokens / seconds
        yield point("turns", turn, about, tokens / seconds / first,
                    {"against": f"{TURNS[0]}", "ours_s": seconds, "tokens": tokens})
        alone = max(0.0, seconds_of(own, prompts, work.reply) - seconds_of(own, prompts, 1))
        yield point("turn-cost", turn, about, alone / done.seconds[turn - 1],
                    {"against": "decoding-alone", "ours_s": done.seconds[turn - 1], "theirs_s": alone})


def seconds_of(own: Worker, prompts: Sequence[Sequence[int]], new: int) -> float:
    """CPU seconds of a fresh engine that reads the prompts and says `new` tokens."""
    own.fresh()
    return own.say(prompts, new).cpu_s
