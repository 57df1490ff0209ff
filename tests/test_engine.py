"""The generation engine: what it says is what `generate` says, in any batch, however much of a dialogue it has kept."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_model, tiny_module

from dialoom.errors import ModelError
from dialoom.models import decode
from dialoom.models.base import GREEDY, Sampling
from dialoom.models.engine import Engine, engine_for
from dialoom.models.kept import PrefixCache, shared_length

KINDS = [("llama", True), ("llama", False), ("qwen3", True), ("gpt_neox", True)]
GREEDILY = Sampling(temperature=0, max_new_tokens=12)
RANDOMLY = Sampling(temperature=1.0, max_new_tokens=12)
STOPS = frozenset(range(5, 60))


def tokens(count, seed=0):
    draw = random.Random(f"{seed}/{count}")
    return [draw.randrange(6, 390) for _ in range(count)]


SYSTEM = tokens(40)
PROMPTS = [SYSTEM + tokens(size, seed) for seed, size in enumerate((1, 9, 17, 4, 30, 9, 22, 3))]
KEYS = [f"key {at}" for at in range(len(PROMPTS))]


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: f"{kind[0]}-{'fused' if kind[1] else 'hosted'}")
def engine(request):
    kind, fused = request.param
    return engine_for(tiny_module(kind), 256, fused=fused)


def generated(module, prompt, count=12, embeddings=None):
    """What transformers says, greedily and without an end."""
    given = {"input_ids": torch.tensor([prompt])} if embeddings is None else {"inputs_embeds": embeddings}
    said = module.generate(**given, attention_mask=torch.ones(next(iter(given.values())).shape[:2], dtype=torch.long),
                           max_new_tokens=count, min_new_tokens=count, do_sample=False, eos_token_id=None,
                           pad_token_id=0)[0].tolist()
    return said[len(prompt):] if embeddings is None else said


def replies(engine, prompts, sampling=GREEDILY, stops=frozenset(), keys=KEYS, **more):
    return [list(drawn.ids) for drawn in engine.draw(prompts, keys[:len(prompts)], sampling, stops, **more)]


def test_dialogues_of_several_turns_are_those_of_generate_and_are_kept(engine):
    histories = [*PROMPTS, PROMPTS[0], [1]]
    keys = [str(at) for at in range(len(histories))]
    for turn in range(3):
        said = replies(engine, histories, keys=keys)
        assert said == [generated(engine.module, history) for history in histories]
        kept = [engine.cache.known((*history, *reply)) for history, reply in zip(histories, said, strict=True)]
        assert kept == [len(history) + 11 for history in histories]  # all but the token no step has read
        histories = [[*history, *reply, *tokens(3 + at, turn)] for at, (history, reply) in
                     enumerate(zip(histories, said, strict=True))]


def test_branches_of_one_parent_go_their_own_ways_from_what_is_kept(engine):
    stem = PROMPTS[2] + replies(engine, [PROMPTS[2]])[0]
    children = [[*stem, *tokens(4, at)] for at in range(5)]
    before = engine.row_steps
    said = replies(engine, children)
    assert said == [generated(engine.module, child) for child in children] and len({tuple(row) for row in said}) > 1
    assert engine.row_steps - before == 5 * 12


@pytest.mark.parametrize("sampling", [RANDOMLY, Sampling(0.7, top_p=0.9, max_new_tokens=9)])
def test_the_same_key_gives_the_same_tokens_in_any_batch_order_and_with_nothing_kept(engine, sampling):
    def fresh(**options):
        return Engine(engine.module, **options)

    prompts, keys = PROMPTS * 4, [f"{at}" for at in range(32)]
    together = fresh().draw(prompts, keys, sampling, STOPS)
    assert len({drawn.ids for drawn in together}) > 20 and len({len(drawn.ids) for drawn in together}) > 3
    assert all(drawn.ended == (drawn.ids[-1] in STOPS) for drawn in together)
    assert fresh().draw(prompts[::-1], keys[::-1], sampling, STOPS)[::-1] == together
    assert [fresh().draw([prompt], [key], sampling, STOPS)[0]
            for prompt, key in zip(prompts, keys, strict=True)] == together
    assert fresh(cache_bytes=0, batch_tokens=300).draw(prompts, keys, sampling, STOPS) == together
    again = fresh()
    again.draw(prompts, keys, sampling, STOPS)
    assert again.draw(prompts, keys, sampling, STOPS) == together  # every prompt is known by now


def test_waiting_rows_join_while_others_speak(engine):
    small = Engine(engine.module, batch_tokens=4 * 90)
    expected = Engine(engine.module).draw(PROMPTS * 8, [f"{at}" for at in range(64)], RANDOMLY, STOPS)
    assert small.draw(PROMPTS * 8, [f"{at}" for at in range(64)], RANDOMLY, STOPS) == expected
    assert small.row_steps == sum(len(drawn.ids) for drawn in expected)
    assert small.row_steps / small.steps > 0.85 * 4  # a batch of four rows or a few more is kept full


def test_what_many_prompts_begin_with_is_read_once(engine):
    fresh = Engine(engine.module)
    read = []
    original = fresh.cache.fill
    fresh.cache.fill = lambda node, states: (read.append(node.stop - node.start), original(node, states))
    fresh.draw([SYSTEM] * 8 + [[*SYSTEM, 7, 8]] * 8, [f"{at}" for at in range(16)], Sampling(max_new_tokens=1))
    assert sum(read) == len(SYSTEM) + 2
    read.clear()
    fresh.draw([[*SYSTEM, 7, 8]], ["again"], Sampling(max_new_tokens=1))
    assert sum(read) == 0


@pytest.mark.parametrize("size", [1, 7, 16])
def test_prompts_longer_than_one_pass_of_reading_are_read_in_several(engine, size):
    small = Engine(engine.module)
    small.read_tokens = size
    assert replies(small, PROMPTS) == replies(engine, PROMPTS)
    assert torch.allclose(small.states(PROMPTS[::-1]), engine.states(PROMPTS[::-1]), atol=2e-5)


def test_states_are_those_of_the_last_token_after_the_norm(engine):
    states = engine.states(PROMPTS)
    for prompt, state in zip(PROMPTS, states, strict=True):
        hidden = engine.module(torch.tensor([prompt]), output_hidden_states=True).hidden_states[-1]
        assert torch.allclose(hidden[0, -1], state, atol=2e-5)
    assert engine.states([]).shape[0] == 0


def test_options_are_weighed_as_in_a_plain_pass(engine):
    options = [[[7], [8, 9], [10, 11, 12]][:at % 3 + 1] for at in range(len(PROMPTS))]
    for prompt, said, found in zip(PROMPTS, options, engine.weigh(PROMPTS, options), strict=True):
        assert found == pytest.approx(decode.reply_logprobs(
            engine.module, [([*prompt, *option], len(prompt)) for option in said], torch.device("cpu")), abs=1e-4)


@pytest.mark.parametrize("position", ["start", "end"])
def test_soft_tokens_steer_one_reply_and_are_not_kept(engine, position):
    module = engine.module
    draw = torch.Generator().manual_seed(0)
    prefixes = [torch.randn(1 + at % 3, 48, generator=draw) if at % 2 else None for at in range(len(PROMPTS))]
    said = replies(engine, PROMPTS, prefixes=prefixes, position=position)
    for prompt, prefix, reply in zip(PROMPTS, prefixes, said, strict=True):
        embeddings = module.get_input_embeddings()(torch.tensor([prompt]))
        if prefix is not None:
            at = 1 if position == "start" else len(prompt)
            embeddings = torch.cat([embeddings[:, :at], prefix[None], embeddings[:, at:]], 1)
        assert reply == generated(module, prompt, embeddings=embeddings)
    assert replies(engine, PROMPTS) == [generated(module, prompt) for prompt in PROMPTS]


def test_a_changed_weight_or_adapter_is_noticed():
    model = tiny_model()
    chats = [[{"role": "user", "content": "The capital of Norway"}]]
    sampling = Sampling(temperature=0, max_new_tokens=20)

    def said():
        prompt = model.prompt_ids(chats[0])
        reply = model.chat(chats, sampling, ["a"])[0]
        expected = model.module.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)),
                                         max_new_tokens=20, do_sample=False, eos_token_id=5, pad_token_id=0)
        assert list(reply.tokens) == expected[0, len(prompt):].tolist()
        return reply.tokens

    first = said()
    model.add_lora(rank=4)
    assert said() == first
    with torch.no_grad():
        for name, parameter in model.module.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    trained = said()
    with model.without_adapter():
        assert said() == first != trained
    assert said() == trained
    model.merge()
    assert said() == trained


@pytest.mark.parametrize("fused", [True, False])
def test_a_step_of_an_optimiser_is_noticed(fused):
    model = tiny_model()
    chats = [[{"role": "user", "content": "The capital of Norway"}]]
    before, name = model.choose(chats, ["Oslo", "Rome"]), model.fingerprint
    ids = torch.tensor([model.reply_ids(chats[0], "Oslo")[0]])
    optimizer = torch.optim.AdamW(model.trainable(), lr=1e-3, fused=fused)  # the fused one leaves tensors' versions
    model.module(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    assert model.choose(chats, ["Oslo", "Rome"]) != before and model.fingerprint != name
    fresh = model.clone()
    assert model.choose(chats, ["Oslo", "Rome"]) == fresh.choose(chats, ["Oslo", "Rome"])


def test_short_of_memory_it_goes_on_with_smaller_batches(monkeypatch):
    module = tiny_module("gpt_neox")
    expected = Engine(module).draw(PROMPTS, KEYS, RANDOMLY)
    engine = Engine(module, batch_tokens=2000)
    original = module.forward

    def scarce(**given):
        if given["input_ids"].shape[1] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(**given)

    monkeypatch.setattr(module, "forward", scarce)
    assert engine.draw(PROMPTS, KEYS, RANDOMLY) == expected
    assert engine.batch_tokens < 2000 // 2
    monkeypatch.setattr(module, "forward", lambda **given: scarce(input_ids=torch.zeros(1, 9)))
    with pytest.raises(torch.OutOfMemoryError):
        engine.draw(PROMPTS, KEYS, RANDOMLY)


@pytest.mark.parametrize(("kind", "reason"), [("mistral", "window of 16 tokens"), ("mamba", "mamba has")])
def test_models_it_cannot_run_exactly_are_named_and_read_whole(kind, reason):
    with pytest.raises(ModelError, match=reason):
        engine_for(tiny_module(kind), 256)
    model = tiny_model(kind)
    chats = [[{"role": "user", "content": "The capital of Norway is " * count}] for count in (1, 3, 2)]
    with pytest.warns(UserWarning, match=reason):
        together = model.chat(chats, RANDOMLY, KEYS[:3])
    assert [model.chat([chat], RANDOMLY, [key])[0] for chat, key in zip(chats, KEYS, strict=False)] == together
    for chat, reply in zip(chats, model.chat(chats, GREEDILY, KEYS[:3]), strict=True):
        said = generated(model.module, model.prompt_ids(chat))
        assert list(reply.tokens) == (said[:said.index(5) + 1] if 5 in said else said)
    with pytest.raises(ModelError, match="soft tokens.*" + reason):
        model.chat(chats, GREEDY, KEYS[:3], prefixes=[torch.zeros(2, 48)] * 3)
    with pytest.raises(ModelError, match="no states"):
        model.states(chats)


def test_the_cache_stays_within_its_budget_and_forgets_the_oldest_first(engine):
    size = engine.shape.token_bytes
    small = Engine(engine.module, cache_bytes=200 * size)
    for at in range(6):
        replies(small, [SYSTEM + tokens(20, 100 + at)], keys=["a"])
        assert small.cache.bytes <= small.cache.limit
    assert small.cache.known(tuple(SYSTEM + tokens(20, 105))) == 60
    assert small.cache.known(tuple(SYSTEM + tokens(20, 100))) == 40  # of the first one, only what others share


def test_a_run_is_split_where_another_sequence_leaves_it():
    cache = PrefixCache(1 << 20)
    end = cache.insert((1, 2, 3, 4))
    states = torch.arange(8.0).view(1, 1, 4, 2), torch.arange(4.0).view(1, 1, 4, 1)
    cache.fill(end, states)
    other = cache.insert((1, 2, 9))
    assert [node.ids for node in end.path()] == [(1, 2), (3, 4)] and [n.ids for n in other.path()] == [(1, 2), (9,)]
    for part, whole in zip(zip(*(node.states for node in end.path()), strict=True), states, strict=True):
        assert torch.equal(torch.cat(part, 2), whole)
    assert cache.known((1, 2, 9)) == 2 and cache.known((1, 2, 3, 7)) == 3 and cache.bytes == 48


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12).map(tuple), min_size=1, max_size=12),
       st.integers(0, 40))
def test_whatever_was_inserted_is_found_whole_and_with_its_own_states(sequences, limit):
    cache = PrefixCache(1 << 20)
    ends = []
    for ids in sequences:
        end = cache.insert(ids)
        for node in end.path():
            if node.states is None:  # a token's state tells its whole past
                pasts = [hash(ids[:at + 1]) for at in range(node.start, node.stop)]
                cache.fill(node, (torch.tensor(pasts).view(1, 1, -1, 1), torch.tensor(pasts).view(1, 1, -1, 1)))
        ends.append((ids, end))
    for ids, end in ends:
        assert tuple(token for node in end.path() for token in node.ids) == ids and cache.known(ids) == len(ids)
        for part in zip(*(node.states for node in end.path()), strict=True):
            assert torch.cat(part, 2).flatten().tolist() == [hash(ids[:at + 1]) for at in range(len(ids))]
    assert cache.bytes == 16 * len({ids[:at + 1] for ids in sequences for at in range(len(ids))})
    cache.limit = 16 * limit
    cache.trim()
    assert cache.bytes <= cache.limit


@pytest.mark.parametrize(("left", "right"), [((), (1,)), ((1, 2, 3), (1, 2, 3, 4)), ((1, 2, 3), (1, 5, 3)),
                                             ((1,), (2,)), (tuple(range(50)), (*range(37), 0, *range(38, 50)))])
def test_the_shared_length_is_the_first_difference(left, right):
    expected = next((at for at, (a, b) in enumerate(zip(left, right, strict=False)) if a != b),
                    min(len(left), len(right)))
    assert shared_length(left, right) == shared_length(right, left) == expected
