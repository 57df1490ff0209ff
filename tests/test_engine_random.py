"""The generation engine under random calls: small caches, small batches, refills, soft tokens, calls broken off.

In float64, so that rounding never decides between two tokens.
"""

import random
from contextlib import contextmanager

import pytest
import torch
from tiny import tiny_module

from dialoom.errors import ModelError
from dialoom.models import decode
from dialoom.models.base import Sampling
from dialoom.models.engine import Engine

MODULES = {kind: tiny_module(kind, context=512).double() for kind in ("llama", "qwen3", "gpt_neox")}
KEYS = [f"key {at}" for at in range(40)]
RANDOMLY = Sampling(max_new_tokens=6)


def spoken(module, prompt, key, sampling, stops, soft=None, position="end"):
    """What the model says when every token is computed anew at every step."""
    embed = module.get_input_embeddings()
    given = embed(torch.tensor([prompt]))
    if soft is not None:
        at = 1 if position == "start" else len(prompt)
        given = torch.cat([given[:, :at], soft[None], given[:, at:]], 1)
    said = []
    for noise in torch.from_numpy(decode.uniforms(key, sampling.max_new_tokens)):
        said.append(int(decode.pick(module(inputs_embeds=given).logits[:, -1], sampling, noise[None])))
        if said[-1] in stops:
            break
        given = torch.cat([given, embed(torch.tensor([said[-1:]]))], 1)
    return tuple(said)


@contextmanager
def broken_off(module, at, error):
    """The `at`-th pass from here on raises `error`."""
    left = [at]

    def count(*_):
        left[0] -= 1
        if left[0] == 0:
            raise error

    hook = module.get_decoder().register_forward_pre_hook(count)
    try:
        yield
    finally:
        hook.remove()


def random_prompts(draw, pool, common, tokens):
    """Some of the pool: longer, cut, or no more than what all begin with."""
    found = []
    for _ in range(draw.randrange(1, 14)):
        prompt = draw.choice(pool)
        way = draw.random()
        if way < 0.2:
            prompt = prompt + tokens(draw.randrange(1, 9))
        elif way < 0.3:
            prompt = prompt[:draw.randrange(1, len(prompt) + 1)]
        found.append(common if way > 0.95 else prompt)
    return found


def run_at_random(seed):
    draw = random.Random(seed)
    module = MODULES[draw.choice(list(MODULES))]
    engine = Engine(module, fused=draw.random() < 0.5, batch_tokens=draw.choice([1, 60, 200, 400, 4000]))
    engine.cache.limit = draw.choice([0, 20, 100, 300, 1 << 20]) * engine.shape.token_bytes
    engine.read_tokens = draw.choice([1, 5, 17, 64, 2048])

    def tokens(count):
        return [draw.randrange(6, 6 + draw.choice([2, 380])) for _ in range(count)]

    common = tokens(draw.choice([3, 33, 50]))
    pool = [common + tokens(draw.randrange(12)) for _ in range(4)] + [tokens(draw.randrange(1, 20)), [7]]
    for call in range(3):
        sampling = Sampling(draw.choice([0, 0.7, 1.0]), draw.choice([0.9, 1.0]), max_new_tokens=draw.randrange(1, 9))
        stops = frozenset(draw.sample(range(5, 390), draw.choice([0, 60])))
        alike = [prompt for prompt in pool if prompt[:len(common)] == common]
        prompts = random_prompts(draw, draw.choice([pool, alike]), common, tokens)
        keys = [f"{seed}/{call}/{at // 2}" for at in range(len(prompts))]
        prefixes = [torch.randn(draw.randrange(1, 4), 48, dtype=torch.float64) if draw.random() < 0.3 else None
                    for _ in prompts] if draw.random() < 0.4 else [None] * len(prompts)
        position = draw.choice(["start", "end"])
        error = draw.choice([KeyboardInterrupt(), torch.OutOfMemoryError("CUDA out of memory")])
        try:
            with broken_off(module, draw.choice([0, draw.randrange(1, 12)]), error):
                drawn = engine.draw(prompts, keys, sampling, stops, prefixes=prefixes, position=position)
        except KeyboardInterrupt:
            continue
        finally:
            assert engine.cache.bytes <= engine.cache.limit
        with torch.inference_mode():
            assert [one.ids for one in drawn] == [
                spoken(module, prompt, key, sampling, stops, soft, position)
                for prompt, key, soft in zip(prompts, keys, prefixes, strict=True)]
        options = [[tokens(draw.randrange(1, 4)) for _ in range(draw.randrange(1, 4))] for _ in prompts]
        for prompt, said, found in zip(prompts, options, engine.weigh(prompts, options), strict=True):
            assert found == pytest.approx(decode.reply_logprobs(
                module, [([*prompt, *option], len(prompt)) for option in said], torch.device("cpu")), abs=1e-4)
        pool += [[*prompt, *one.ids] for prompt, one in zip(prompts, drawn, strict=True)][:5]


@pytest.mark.parametrize("seed", range(8))
def test_random_calls_say_what_the_model_says_alone(seed):
    run_at_random(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 200))
def test_many_random_calls_say_what_the_model_says_alone(seed):
    run_at_random(seed)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
@pytest.mark.parametrize("at", [1, 2, 4, 9])
def test_short_of_memory_in_the_middle_of_a_reply_nothing_is_said_twice(at, error):
    prompts = [[7 + which] * (3 + which) for which in range(12)]
    engine = Engine(MODULES["gpt_neox"], batch_tokens=60)
    expected = Engine(engine.module).draw(prompts, KEYS[:12], RANDOMLY)
    with broken_off(engine.module, at, error):
        assert engine.draw(prompts, KEYS[:12], RANDOMLY) == expected
    assert engine.batch_tokens == 30


def test_a_state_that_is_no_number_is_told_at_once_and_spoils_no_later_reply():
    module = MODULES["gpt_neox"]
    engine, passes = Engine(module), []
    prompts = [[7, 8, 9], [7, 8, 9, 10, 11], [30]]
    expected = engine.draw(prompts, KEYS[:3], RANDOMLY)

    def spoil(_, __, output):
        passes.append(1)
        if len(passes) == 3:
            output.last_hidden_state[0, 1] = float("nan")

    hook = module.get_decoder().register_forward_hook(spoil)
    with pytest.raises(ModelError, match="not a number"):
        engine.draw(prompts, KEYS[3:6], RANDOMLY)
    hook.remove()
    assert engine.draw(prompts, KEYS[:3], RANDOMLY) == expected


def test_a_long_prompt_does_not_make_the_short_ones_wait():
    prompts = [[9] * 150, *([10 + at, 7, 8] for at in range(36))]
    engine = Engine(MODULES["llama"], batch_tokens=4 * 160)
    assert engine.draw(prompts, KEYS[:37], RANDOMLY) == Engine(engine.module).draw(prompts, KEYS[:37], RANDOMLY)
    assert engine.steps == 2 * RANDOMLY.max_new_tokens  # the long one, then all others at once


def test_soft_tokens_that_do_not_fit_are_refused_and_none_at_all_change_nothing():
    engine = Engine(MODULES["llama"])
    plain = engine.draw([[7, 8]], KEYS[:1], RANDOMLY)
    assert engine.draw([[7, 8]], KEYS[:1], RANDOMLY, prefixes=[torch.zeros(0, 48)]) == plain
    for shape in [(2, 47), (48,), (1, 2, 48)]:
        with pytest.raises(ModelError, match=r"give \(tokens, 48\)"):
            engine.draw([[7, 8]], KEYS[:1], RANDOMLY, prefixes=[torch.zeros(shape)])


def test_states_can_be_trained_on_and_nothing_asked_is_nothing_answered():
    engine = Engine(MODULES["llama"])
    linear = torch.nn.Linear(48, 1, dtype=torch.float64)
    linear(engine.states([[7, 8], [9]])).sum().backward()
    assert linear.weight.grad.abs().sum() > 0
    assert engine.draw([], [], RANDOMLY) == engine.weigh([], []) == [] and len(engine.states([])) == 0


@pytest.mark.parametrize("fused", [True, False])
def test_a_model_can_be_trained_between_two_calls(fused):
    module = tiny_module("llama", context=512).double()
    engine = Engine(module, fused=fused)
    prompts = [[7, 8, 9], [7, 8, 9, 10, 11]]
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(3):
        drawn = engine.draw(prompts, KEYS[:2], RANDOMLY)
        assert [one.ids for one in drawn] == [spoken(module, prompt, key, RANDOMLY, frozenset())
                                              for prompt, key in zip(prompts, KEYS, strict=False)]
        ids = torch.tensor([[*prompts[1], *drawn[1].ids]])
        module(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
