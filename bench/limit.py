"""How near a decoding step comes to what the machine allows: its matrix products, and one reading of keys and values.

Both rates are measured here, on the model's own shapes: one pass over all weights, and a sum over as much memory as the
step's keys and values take. What several rows share counts once.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch

from bench.grow import MODELS, REPLY, SYSTEM, Log, _words, model, worker
from bench.measure import Row, Worker

ROWS, CONTEXT = 16, 590  # dialogues in a step, tokens of each before the first of REPLY steps
ROUNDS, CALLS = 10, 6  # the quickest of so many rounds of so many calls


def rows(*, quick: bool, log: Log) -> Iterator[Row]:
    """The share of the bound that a step reaches, for each model."""
    for name in ("toy-llama",) if quick else ("llama-8m", "pocket"):
        module = model(name)
        with worker(name, "ours") as own, torch.inference_mode():
            ours = step_seconds(own, module.config.vocab_size)
            products, reading = product_seconds(module), reading_seconds(module.config)
        yield {"work": "grow/step", "against": "bound", "ratio": (products + reading) / ours, "model": name,
               "setting": f"{MODELS[name]}; {ROWS} rows at {CONTEXT}-{CONTEXT + REPLY} tokens, {SYSTEM} of them shared",
               "ours_s": ours, "theirs_s": products + reading, "products_s": products, "reading_s": reading}


def step_seconds(own: Worker, vocabulary: int) -> float:
    """CPU seconds of one of our decoding steps: a long reply less a reply of one token, the reading being the same."""
    say = partial(_words, random.Random(0), vocabulary)
    opening = say(SYSTEM)
    prompts = [opening + say(CONTEXT - SYSTEM) for _ in range(ROWS)]

    def seconds(new: int) -> float:
        own.fresh()
        return own.say(prompts, new).cpu_s

    return min(seconds(REPLY) - seconds(1) for _ in range(3)) / (REPLY - 1)


def product_seconds(module: Any) -> float:
    """The products of all linear layers of a step, head included, with the weights as they lie or turned."""
    weights = [layer.weight.t() for layer in module.modules() if isinstance(layer, torch.nn.Linear)]
    inputs = {len(weight): torch.randn(ROWS, len(weight)) for weight in weights}

    def multiply(lying: Sequence[torch.Tensor]) -> None:
        for weight in lying:
            inputs[len(weight)] @ weight

    return min(quickest(partial(multiply, lying)) for lying in (weights, [weight.contiguous() for weight in weights]))


def reading_seconds(config: Any) -> float:
    """Reading the distinct keys and values of all rows once, in the middle of the reply."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    tokens = SYSTEM + ROWS * (CONTEXT - SYSTEM + REPLY // 2)
    states = torch.randn(tokens * 2 * heads * size * config.num_hidden_layers)
    return quickest(states.sum)


def quickest(what: Callable[[], Any]) -> float:
    """CPU seconds of a call in the quickest round."""
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.process_time()
        for _ in range(CALLS):
            what()
        best = min(best, (time.process_time() - start) / CALLS)
    return best
