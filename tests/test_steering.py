"""Steering a frozen model: normalised states, principal directions, prefixes anywhere in any batch, self-cloning."""

import csv
import json

import pytest
import torch
from tiny import tiny_model

from dialoom.errors import ConfigError, DataError, ModelError, StoreError, TrainingError
from dialoom.models.base import ChatModel, Sampling
from dialoom.models.exploration import Exploration
from dialoom.models.load import load_model
from dialoom.models.scripted import ScriptedModel
from dialoom.models.steering import (
    Normalizer,
    Plan,
    Planner,
    PlannerShape,
    SteeredModel,
    Steering,
    UpMapping,
    embedding_components,
    embedding_norm,
    input_embeddings,
)
from dialoom.store import read_rows
from dialoom.train.cloning import (
    CloneConfig,
    Reply,
    mean_loss,
    own_replies,
    prompt_states,
    read_replies,
    reply_loss,
    self_clone,
)

SAMPLING = Sampling(temperature=0.8, max_new_tokens=12)
CHATS = [[{"role": "user", "content": "Which river flows " + "through Vienna and Paris " * at}] for at in range(5)]
COUNTRIES = ("France Norway Peru Japan Italy Spain Egypt Chile Kenya Cuba Austria Greece Poland Sweden Ireland "
             "Portugal Finland Denmark India China Brazil Canada Mexico Turkey")
KEYS = [f"key {at}" for at in range(len(CHATS))]


@pytest.fixture(scope="module", params=["llama", "gpt_neox"])
def model(request):
    return tiny_model(request.param)


def pca_steering(model, action=8, tokens=2, **options):
    return Steering(UpMapping.pca(model, action, tokens=tokens, **options), Planner.of(model, action, hidden=(16,)))


def texts(completions):
    return [one.text for one in completions]


def test_running_normalisation_is_that_of_all_states_however_they_came():
    rows = torch.randn(50, 6, dtype=torch.float64) * 5 + 100
    left, right = Normalizer(6), Normalizer(6)
    for part in rows[:20].split(7):
        left.add(part)
    right.add(rows[20:])
    both = left.merged(right)
    torch.testing.assert_close(both.mean, rows.mean(0))
    torch.testing.assert_close(both.variance, rows.var(0, correction=0))
    torch.testing.assert_close(both(rows).var(0, correction=0), torch.ones(6))
    torch.testing.assert_close(Normalizer(6).merged(right).variance, right.variance)


def test_fresh_or_constant_states_are_normalised_without_dividing_by_zero():
    assert torch.equal(Normalizer(2)(torch.tensor([[3.0, -4.0]])), torch.tensor([[3.0, -4.0]]))
    constant = Normalizer(2)
    constant.add(torch.tensor([[3.0, 1.0], [3.0, 5.0]]))
    assert torch.equal(constant(torch.tensor([[3.0, 5.0]])), torch.tensor([[0.0, 1.0]]))


def test_principal_directions_are_orthonormal_and_those_of_the_singular_values():
    rows = torch.randn(60, 7) * torch.tensor([9, 7, 5, 3, 2, 1, 0.5]) + 4
    found = embedding_components(rows, 4)
    torch.testing.assert_close(found @ found.T, torch.eye(4), atol=1e-5, rtol=0)
    expected = torch.linalg.svd(rows - rows.mean(0)).Vh[:4]
    torch.testing.assert_close((found * expected).sum(1).abs(), torch.ones(4), atol=1e-4, rtol=0)
    assert (found.gather(1, found.abs().argmax(1, keepdim=True)) > 0).all()


def test_one_row_is_repeated_or_each_token_has_rows_of_its_own_as_long_as_the_action(model):
    actions = torch.randn(3, 8)
    same = UpMapping.pca(model, 8, tokens=3)(actions)
    apart = UpMapping.pca(model, 8, tokens=3, repeated=False)(actions)
    assert same.shape == apart.shape == (3, 3, 48)
    assert torch.equal(same[:, 0], same[:, 2])
    torch.testing.assert_close(same[:, 0], actions @ embedding_components(input_embeddings(model), 8))
    torch.testing.assert_close(apart[:, 0], same[:, 0])
    torch.testing.assert_close((apart[:, 0] * apart[:, 1]).sum(-1), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(apart.norm(dim=-1), actions.norm(dim=-1, keepdim=True).expand(3, 3))
    with pytest.raises(ConfigError, match="fewer prefix tokens"):
        UpMapping.pca(model, 30, tokens=2, repeated=False)


def test_actions_have_the_length_of_an_embedding_unless_told_otherwise(model):
    states = torch.randn(9, 48)
    expected = input_embeddings(model).norm(dim=-1).mean()
    torch.testing.assert_close(Planner.of(model, 8)(states).norm(dim=-1), expected.expand(9))
    bounded = Planner(PlannerShape(48, 8, (16,), "tanh", 2.0))(states * 1000)
    assert (bounded.norm(dim=-1) <= 2.0 + 1e-5).all()
    assert bounded.norm(dim=-1).std() > 0
    with pytest.raises(ConfigError, match="norm is above 0"):
        PlannerShape(48, norm=0.0)


def test_a_prefix_of_no_tokens_gives_the_unsteered_text(model):
    steered = SteeredModel(model, pca_steering(model, tokens=0))
    assert texts(steered.chat(CHATS, SAMPLING, KEYS)) == texts(model.chat(CHATS, SAMPLING, KEYS))


@pytest.mark.parametrize("position", ["start", "end"])
def test_a_steered_chat_says_the_same_alone_and_among_others(model, position):
    steered = SteeredModel(model, pca_steering(model), position=position, exploration=Exploration(noise=0.3))
    assert isinstance(steered, ChatModel)
    together = steered.chat(CHATS, SAMPLING, KEYS)
    assert together != model.chat(CHATS, SAMPLING, KEYS)
    for chat, key, said in list(zip(CHATS, KEYS, together, strict=True))[::-1]:
        assert steered.chat([chat], SAMPLING, [key]) == [said]
    assert steered.chat([], SAMPLING, []) == []
    with pytest.raises(ModelError, match="5 chats came with 1 keys"):
        steered.chat(CHATS, SAMPLING, KEYS[:1])


def test_planned_actions_may_be_noted_or_replaced_before_they_are_said(model):
    steered = SteeredModel(model, pca_steering(model))
    plan = steered.plan(CHATS, KEYS)
    torch.testing.assert_close(plan.states, model.states(CHATS))
    assert steered.say(plan, CHATS, SAMPLING, KEYS) == steered.chat(CHATS, SAMPLING, KEYS)
    other = Plan(plan.states, -plan.actions)
    assert steered.say(other, CHATS, SAMPLING, KEYS) != steered.chat(CHATS, SAMPLING, KEYS)
    anywhere = SteeredModel(model, Steering(steered.steering.mapping), exploration=Exploration("uniform"))
    lengths = anywhere.plan(CHATS, KEYS).actions.norm(dim=-1)
    torch.testing.assert_close(lengths, torch.full((5,), embedding_norm(model)))


@pytest.mark.parametrize("position", ["start", "end"])
def test_the_prefix_stands_where_it_is_said_to(model, position):
    steering = pca_steering(model)
    steered = SteeredModel(model, steering, position=position)
    plan = steered.plan(CHATS, KEYS)
    prefixes = steering.prefixes(plan.states, plan.actions)
    greedy = steered.say(plan, CHATS, Sampling(temperature=0, max_new_tokens=6), KEYS)
    for chat, prefix, said in zip(CHATS, prefixes, greedy, strict=True):
        embed = model.module.get_input_embeddings()
        ids = model.prompt_ids(chat)
        cut = 1 if position == "start" else len(ids)
        with torch.no_grad():
            whole = torch.cat([embed(torch.tensor(ids[:cut])), prefix,
                               embed(torch.tensor([*ids[cut:], *said.tokens]))])
            expected = model.module(inputs_embeds=whole[None]).logits[0].argmax(-1)
        assert expected[len(ids) + 1:-1].tolist() == list(said.tokens)


@pytest.mark.parametrize("position", ["start", "end"])
def test_the_loss_of_cloning_is_that_of_each_reply_alone_and_weighs_what_is_drawn(model, position):
    replies = own_replies(model, CHATS, SAMPLING, KEYS)
    prefixes = torch.randn(len(replies), 2, 48)
    with torch.no_grad():
        total, count = reply_loss(model, replies, prefixes, position)
        alone = [reply_loss(model, [one], prefixes[[at]], position)[0] for at, one in enumerate(replies)]
        unsteered, _ = reply_loss(model, replies)
        one, cut = replies[2], 1 if position == "start" else len(replies[2].prompt)
        embed = model.module.get_input_embeddings()
        ids = torch.tensor([*one.prompt, *one.reply])
        whole = torch.cat([embed(ids[:cut]), prefixes[2], embed(ids[cut:])])
        logprobs = model.module(inputs_embeds=whole[None]).logits[0].log_softmax(-1)[len(one.prompt) + 1:-1]
    torch.testing.assert_close(total, torch.stack(alone).sum())
    torch.testing.assert_close(alone[2], -logprobs.gather(1, torch.tensor(one.reply)[:, None]).sum())
    assert count == sum(len(one.reply) for one in replies)
    expected = model.logprobs([([*one.prompt, *one.reply], len(one.prompt)) for one in replies])
    assert float(-unsteered) == pytest.approx(sum(expected), rel=1e-4)


def test_the_planner_adds_to_the_clone():
    model = tiny_model()
    mapping = UpMapping.linear(model, 8, tokens=2)
    clone = Planner.of(model, 8, hidden=(16,), output="silu", seed=1)
    planner = Planner.of(model, 8, hidden=(16,), norm=0.5, seed=2)
    states = model.states(CHATS)
    both = Steering(mapping, planner, clone)
    actions = both.plan(states)
    torch.testing.assert_close(actions, planner(states))
    torch.testing.assert_close(both.prefixes(states, actions), mapping(clone(states) + planner(states)))
    alone = Steering(mapping, clone=clone)
    assert not alone.plan(states).any()
    torch.testing.assert_close(alone.prefixes(states, alone.plan(states)), mapping(clone(states)))
    with pytest.raises(ConfigError, match="all must agree"):
        Steering(mapping, Planner.of(model, 9))


def test_exploration_comes_from_the_key_and_stays_on_the_sphere():
    actions = torch.nn.functional.normalize(torch.randn(40, 8), dim=-1) * 3
    keys = [f"turn {at}" for at in range(40)]
    for kind in ("around", "uniform"):
        varied = Exploration(kind, 0.1)(actions, keys, 3.0)
        torch.testing.assert_close(varied.norm(dim=-1), torch.full((40,), 3.0))
        torch.testing.assert_close(Exploration(kind, 0.1)(actions[7:8], keys[7:8], 3.0)[0], varied[7])
    assert torch.cosine_similarity(Exploration("around", 0.1)(actions, keys, 3.0), actions).min() > 0.8
    assert torch.cosine_similarity(Exploration("uniform")(actions, keys, 3.0), actions).mean().abs() < 0.3
    assert Exploration("uniform", norm=1.0)(actions, keys, 3.0).norm(dim=-1).max() < 1.001
    with pytest.raises(ConfigError, match="kind is one of"):
        Exploration("about")
    added = Exploration("added", 0.25)(actions, keys, 3.0) - actions
    assert added.abs().max() <= 0.5001 and added.std() == pytest.approx(0.25, abs=0.05)


def test_what_was_saved_comes_back_and_the_fingerprint_follows_everything(tmp_path):
    model = tiny_model()
    clone = Planner.of(model, 8, hidden=(16,), output="silu", seed=1)
    clone.normalizer.add(model.states(CHATS))
    steering = Steering(UpMapping.linear(model, 8), Planner.of(model, 8, hidden=(16,)), clone)
    steering.save(tmp_path)
    again = Steering.load(tmp_path)
    assert again.fingerprint == steering.fingerprint
    steered, same = SteeredModel(model, steering), SteeredModel(model, again)
    assert same.fingerprint == steered.fingerprint
    assert same.chat(CHATS, SAMPLING, KEYS) == steered.chat(CHATS, SAMPLING, KEYS)
    prints = {steered.fingerprint, SteeredModel(model, steering, position="end").fingerprint, model.fingerprint,
              SteeredModel(model, steering, exploration=Exploration()).fingerprint}
    with torch.no_grad():
        again.planner.layers[0].bias[0] += 1e-3
    assert len(prints | {same.fingerprint}) == 5
    fixed = pca_steering(model)
    fixed.save(tmp_path)
    assert Steering.load(tmp_path).fingerprint == fixed.fingerprint
    (tmp_path / "steering.json").write_text("{}")
    with pytest.raises(StoreError, match="no planner can be read"):
        Steering.load(tmp_path)


def test_models_that_cannot_be_steered_are_refused_in_clear_words():
    steering = pca_steering(tiny_model())
    with pytest.raises(ModelError, match=r"cannot be steered \(its embeddings cannot be reached\); use pocket"):
        SteeredModel(ScriptedModel(lambda chat: "no"), steering)
    with (pytest.warns(match="read whole"), pytest.raises(ModelError, match=r"cannot be steered: .*window of 16")):
        SteeredModel(tiny_model("mistral"), steering)
    with pytest.raises(ModelError, match=r"planner was made for \[7\]"):
        SteeredModel(tiny_model(), Steering(steering.mapping, Planner(PlannerShape(7, 8))))
    with pytest.raises(ConfigError, match="give start or end"):
        SteeredModel(tiny_model(), steering, position="mid")


def test_states_are_of_the_prompt_alone_and_cloning_leaves_the_model_as_it_was(model):
    replies = own_replies(model, CHATS, SAMPLING, KEYS)
    other = [Reply(one.prompt, (9, 9, 5)) for one in replies]
    assert torch.equal(prompt_states(model, replies), prompt_states(model, other))
    before, trained = model.fingerprint, len(model.trainable())
    cloned = self_clone(model, replies, CloneConfig(action=4, hidden=(8,), epochs=2, batch=3))
    assert model.fingerprint == before and len(model.trainable()) == trained
    assert all(parameter.grad is None for parameter in model.module.parameters())
    assert cloned.after == pytest.approx(mean_loss(model, replies, cloned.steering), rel=1e-4)
    with pytest.raises(TrainingError, match="no replies"):
        self_clone(model, [], CloneConfig())


def test_every_step_of_cloning_is_noted_and_a_cloning_that_begins_anew_leaves_no_row_twice(model, tmp_path):
    replies = own_replies(model, CHATS, SAMPLING, KEYS)
    config = CloneConfig(action=4, hidden=(8,), epochs=2, batch=3)
    quiet = self_clone(model, replies, config)
    for _ in range(2):
        cloned = self_clone(model, replies, config, out=tmp_path)
    assert cloned.steering.fingerprint == quiet.steering.fingerprint
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[0]["loss"] == pytest.approx(cloned.before, rel=0.5) and rows[0]["learning_rate"] == config.lr
    assert all(row["grad_norm"] > 0 for row in rows)


def test_cloning_that_diverges_stops_and_names_its_replies(model, tmp_path):
    replies = own_replies(model, CHATS, SAMPLING, KEYS)
    config = CloneConfig(action=4, hidden=(8,), epochs=3, batch=2, lr=1e30)
    with pytest.raises(TrainingError, match=r"step 2: the loss of cloning is (inf|nan) on rows reply \d, .*"
                                            r"bad_batch.json\); there is no checkpoint.*lower the rates \(now 1e\+30"):
        self_clone(model, replies, config, out=tmp_path)
    report = json.loads((tmp_path / "bad_batch.json").read_text())
    assert report["texts"] == [model.tokenizer.decode([*one.prompt, *one.reply]) for one in
                               (replies[int(name.removeprefix("reply "))] for name in report["rows"])]
    with pytest.raises(TrainingError, match=r"on rows reply \d, reply \d; there is no checkpoint"):
        self_clone(model, replies, config)


def test_replies_come_out_of_a_csv_and_bad_rows_are_named(tmp_path):
    model = tiny_model()
    path = tmp_path / "replies.csv"

    def write(rows):
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([["input", "target"], *rows])

    write([["<|begin|><|user|>Rome,\nor not?<|end|><|assistant|>", "It is \"Rome\"."]])
    found = read_replies(path, model)
    prompt = model.prompt_ids([{"role": "user", "content": "Rome,\nor not?"}])
    assert found == [Reply(tuple(prompt), (*model.template.encode('It is "Rome".'), model.template.end))]
    write([["a", "b"], ["c", ""]])
    with pytest.raises(DataError, match="csv:3: input or target is empty"):
        read_replies(path, model)
    write([["a " * 300, "b"]])
    with pytest.raises(DataError, match="exceed the context of 256"):
        read_replies(path, model)
    path.write_text("prompt,reply\n")
    with pytest.raises(DataError, match="needed are input and target"):
        read_replies(path, model)


@pytest.mark.parametrize("position", ["start", "end"])
def test_cloning_pocket_narrows_the_gap_on_prompts_it_was_not_trained_on(position):
    model = load_model("pocket")
    chats = [[{"role": "user", "content": f"What is the capital of {name}?"}] for name in COUNTRIES.split()]
    replies = own_replies(model, chats * 4, Sampling(max_new_tokens=24), [f"clone {at}" for at in range(96)])
    new = {tuple(model.prompt_ids(chat)) for chat in chats[:8]}
    held_out = [one for one in replies if one.prompt in new]
    train = [one for one in replies if one.prompt not in new]
    cloned = self_clone(model, train, CloneConfig(position=position, epochs=6), held_out=held_out)
    assert cloned.before - cloned.base > 0.01
    assert cloned.gap < 0.5 * (cloned.before - cloned.base)
    steered = SteeredModel(model, cloned.steering, position=position)
    assert all(one.text for one in steered.chat(chats, SAMPLING, [str(at) for at in range(len(chats))]))
