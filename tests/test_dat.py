"""DAT's parts by hand: actions, exploration, codes, what is earned, what is measured, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from dialoom.dialogue import Dialogue, Turn
from dialoom.errors import ConfigError, DataError, ModelError, TrainingError
from dialoom.files import read_rows
from dialoom.models.base import Sampling
from dialoom.models.exploration import Exploration, Fixed
from dialoom.models.load import load_model
from dialoom.models.steering import (
    Planner,
    PlannerShape,
    SteeredModel,
    Steering,
    UpMapping,
    corner,
    on_sphere,
)
from dialoom.recipes import dat
from dialoom.recipes.dat_collect import explore, exploring, taken, turns_of
from dialoom.recipes.dat_config import CloneStage, DatConfig
from dialoom.recipes.dat_eval import Parts, constants, differences, language, spread, subject, subjects
from dialoom.recipes.dat_social import social_side
from dialoom.store import TreeLog
from dialoom.train.cloning import Reply, frozen, reply_loss
from dialoom.train.coded import Coding, coded_clone, shared_loss, sorts_of
from dialoom.train.replay import Episode, Replay
from dialoom.train.td3 import TD3, td3
from dialoom.train.td3_config import TD3Config
from tests.tiny import tiny_model

SMALL = DatConfig(train_scenes=6, valid_scenes=4, test_scenes=4, action=4, tokens=2, constants=2, constant_scenes=2,
                  passes=2, transfer=(), td3=TD3Config(steps=4, batch_size=8),
                  clone=CloneStage(prompts=12, replies=3, steps=2, batch=4, each=2, epochs=1, hidden=(8,)))


@pytest.fixture(scope="module")
def pocket():
    return load_model("pocket")


# ------------------------------------------------------------------------------------------------ actions


def test_corners_have_the_length_of_an_action_add_up_to_nothing_and_are_equally_far_apart():
    found = corner(torch.eye(5), 1.2)
    assert found.norm(dim=-1).tolist() == pytest.approx([1.2] * 5)
    assert found.sum(0).abs().max() < 1e-6
    apart = torch.cdist(found, found)[~torch.eye(5, dtype=torch.bool)]
    assert float(apart.max() - apart.min()) < 1e-5


def test_a_corner_planner_emits_actions_of_its_length_near_the_corner_of_its_largest_number():
    planner = Planner(PlannerShape(6, 5, (16,), "corner", 1.2), seed=3).eval()
    states = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    actions = planner(states)
    raw = planner.layers(planner.normalizer(states))
    assert actions.norm(dim=-1).tolist() == pytest.approx([1.2] * 40, rel=1e-5)
    assert (actions @ corner(torch.eye(5), 1.2).T).argmax(1).equal(raw.argmax(1))


def test_exploring_corners_visits_all_of_them_and_only_its_share_of_replies_explores():
    keys = [f"reply {at}" for at in range(400)]
    own = corner(torch.eye(4), 2.0)[torch.zeros(400, dtype=torch.long)]
    found = Exploration("corners", 0.05, 2.0)(own, keys, 1.0)
    near = (found @ corner(torch.eye(4), 1.0).T / 2).max(1)
    assert near.values.min() > 0.9 and torch.bincount(near.indices).min() > 60
    assert found.norm(dim=-1).tolist() == pytest.approx([2.0] * 400, rel=1e-5)
    half = Exploration("corners", 0.05, 2.0, share=0.5)(own, keys, 1.0)
    kept = (half == own).all(1)
    assert 150 < int(kept.sum()) < 250 and half[~kept].equal(found[~kept])


@pytest.mark.parametrize("mapping", ["pca", "clone", "coded"])
def test_around_the_planner_so_far_noise_decides_how_far_actions_stray_under_every_mapping(mapping):
    own = on_sphere(torch.randn(300, 8, generator=torch.Generator().manual_seed(0)), 2.0)
    keys = [f"reply {at}" for at in range(300)]

    def varied(noise, turn=2):
        config = DatConfig(mapping=mapping, exploration="around", explore=1.0, noise=noise)
        return exploring(config, 2.0, turn)(own, keys, 1.0)

    cosines = [float(torch.cosine_similarity(varied(noise), own).mean()) for noise in (0.0, 0.05, 0.3)]
    assert cosines[0] == pytest.approx(1.0) and cosines[0] > cosines[1] > 0.95 > cosines[2] > 0.5
    assert varied(0.3).norm(dim=-1).tolist() == pytest.approx([2.0] * 300, rel=1e-5)
    assert abs(float(torch.cosine_similarity(varied(0.05, turn=1), own).mean())) < 0.1  # no planner to be around yet


def test_by_default_later_passes_explore_everywhere_in_half_of_their_turns():
    for mapping, kind in (("pca", "uniform"), ("clone", "uniform"), ("coded", "corners")):
        config = DatConfig(mapping=mapping)
        assert exploring(config, 0.8) == Exploration(kind, 0.1, 0.8, 1.0)
        assert exploring(config, 0.8, 2) == Exploration(kind, 0.1, 0.8, 0.5)


def test_a_later_pass_around_the_planner_is_collected_around_what_it_does(pocket, tmp_path):
    side = social_side(SMALL, pocket)
    steering = Steering(UpMapping.pca(pocket, 4, tokens=1), Planner.of(pocket, 4, hidden=(8,), norm=2.0),
                        position="end")
    near = {}
    for where in ("around", "everywhere"):
        config = SMALL.model_copy(update={"mapping": "pca", "exploration": where, "explore": 1.0, "noise": 0.05})
        replay = Replay(tmp_path / f"{where}.bin", 192, 4)
        with TreeLog(tmp_path / f"{where}.jsonl") as sink:
            explore(config, pocket, steering, side, replay, 2, norm=2.0, sink=sink)
        found = replay.transitions(range(len(replay)))
        own = steering.plan(torch.from_numpy(found.states))
        near[where] = torch.cosine_similarity(torch.from_numpy(found.actions), own)
    assert near["around"].min() > 0.9 > 0.5 > near["everywhere"].mean()


def test_a_fixed_action_is_the_same_in_every_state_and_part_of_the_fingerprint():
    model = tiny_model()
    steering = Steering(UpMapping.linear(model, 3, tokens=1))
    one, other = (SteeredModel(model, steering, exploration=Fixed(action))
                  for action in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)))
    chats = [[{"role": "user", "content": text}] for text in ("Hello.", "Is it Paris?")]
    assert one.plan(chats, ["a", "b"]).actions.tolist() == [[1.0, 0.0, 0.0]] * 2
    assert one.fingerprint != other.fingerprint


# ------------------------------------------------------------------------------------------------ codes


def test_replies_are_sorted_by_manner_and_not_by_what_their_state_foretells():
    draw = np.random.default_rng(0)
    topics, manners = draw.integers(6, size=1200), draw.integers(4, size=1200)
    replies = [[100 + topic, 200 + manner] for topic, manner in zip(topics, manners, strict=True)]
    states = torch.eye(6)[torch.from_numpy(topics)] + 0.01 * torch.randn(1200, 6)
    found = sorts_of(replies, states, 4).numpy()
    pure = sum(np.bincount(manners[found == sort]).max() for sort in range(4)) / 1200
    assert pure > 0.95
    blind = sorts_of(replies, torch.zeros(1200, 6), 4).numpy()
    assert sum(np.bincount(manners[blind == sort]).max() for sort in range(4)) / 1200 < pure


def test_too_few_replies_for_the_sorts_are_refused_with_what_to_do():
    with pytest.raises(TrainingError, match="smaller action"):
        sorts_of([[1, 2]] * 3, torch.zeros(3, 2), 4)


def own_words(model, prompts, endings):
    """Replies by hand: each prompt ends in every ending."""
    found = []
    for prompt in prompts:
        ids = tuple(model.prompt_ids([{"role": "user", "content": prompt}]))
        found.append([Reply(ids, (*model.template.encode(ending), model.template.end)) for ending in endings])
    return found


def test_prompts_read_once_give_the_loss_of_reading_them_for_every_reply():
    model = tiny_model()
    rows = [one for own in own_words(model, ["Hello.", "Which river flows there?"], ["Oslo", "I think so, yes."])
            for one in own]
    prefixes = torch.randn(4, 2, 48, generator=torch.Generator().manual_seed(1), requires_grad=True)
    with frozen(model):
        (one, count), (other, same) = shared_loss(model, rows, prefixes), reply_loss(model, rows, prefixes, "end")
        assert one.item() == pytest.approx(other.item(), rel=1e-4) and count == same
        gradients = [torch.autograd.grad(loss, prefixes)[0] for loss in (one, other)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("position", ["start", "end"])
def test_codes_steer_toward_their_own_sort_of_replies(pocket, position):
    prompts = [f"Market. The seller of a {item} says: I ask {price} coins." for price in (26, 28, 30)
               for item in ("lamp", "chair", "clock", "ring")]
    replies = own_words(pocket, prompts, ["Let us meet halfway.", "I admire your skill."])
    before = pocket.fingerprint
    config = Coding(tokens=2, sorts=2, hidden=(16,), position=position, steps=40, batch=6, each=2, mapping_lr=0.05,
                    plain=0.1, seed=0)
    found, sizes = coded_clone(pocket, replies, config)
    assert sizes == [12, 12] and pocket.fingerprint == before
    assert found.after < found.before
    states = pocket.states([[{"role": "user", "content": prompt}] for prompt in prompts[:4]]).float()
    losses = []
    for sort in range(2):
        with torch.no_grad(), frozen(pocket):
            prefixes = found.steering.prefixes(states, corner(torch.eye(2), 1.0)[[sort] * 4])
            losses.append([float(reply_loss(pocket, [own[which] for own in replies[:4]], prefixes, position)[0])
                           for which in range(2)])
    own = int(losses[0][0] > losses[0][1])  # which ending the first sort is
    assert losses[0][own] < 0.5 * losses[0][1 - own] and losses[1][1 - own] < 0.5 * losses[1][own]


def test_coded_cloning_that_diverges_stops_and_names_its_replies(tmp_path):
    model = tiny_model()
    replies = own_words(model, [f"Which river flows through {name}?" for name in ("Rome", "Oslo", "Paris",
                                                                                     "Lima", "Cairo", "Delhi")],
                        ["Oslo", "I think so"])
    config = Coding(tokens=1, sorts=2, hidden=(8,), steps=6, batch=3, each=2, lr=1e30, mapping_lr=1e30)
    with pytest.raises(TrainingError, match=r"step \d: the .* of cloning is (inf|nan) on rows prompt \d reply \d, .*"
                                            r"lower the rates \(now 1e\+30 and 1e\+30\)"):
        coded_clone(model, replies, config, out=tmp_path)
    report = json.loads((tmp_path / "bad_batch.json").read_text())
    assert len(report["texts"]) == len(report["rows"]) == 6 and all("Which river" in text for text in report["texts"])
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == list(range(1, report["step"]))


# ------------------------------------------------------------------------------------------------ a planted optimum


def test_a_corner_planner_learns_which_sort_each_state_needs(tmp_path):
    draw, right = np.random.default_rng(0), (2, 0, 3)
    corners, replay = corner(torch.eye(4), 1.0).numpy(), Replay(tmp_path / "replay.bin", 3, 4)
    moods = draw.integers(3, size=600)
    states = np.eye(3, dtype=np.float32)[moods] + 0.1 * draw.normal(size=(600, 3)).astype(np.float32)
    tried = draw.integers(4, size=600)
    replay.append([Episode(str(at), states[at:at + 1], corners[tried[at]:tried[at] + 1],
                           np.array([tried[at] == right[moods[at]]], np.float32)) for at in range(600)])
    config = TD3Config(steps=400, batch_size=128, actor_widths=(32, 32), critic_widths=(32, 32), critic_lr=3e-3,
                       policy_noise=0.05)
    learner = td3(replay, config, out=tmp_path / "td3", norm=1.0, output="corner")
    chosen = (learner.act(states) @ corners.T).argmax(1)
    assert np.mean(chosen == np.take(right, moods)) > 0.95
    assert isinstance(learner.actor, Planner)


def test_a_trained_actor_is_a_planner_that_comes_back_from_its_folder(tmp_path):
    model = tiny_model()
    learner = TD3(48, 3, TD3Config(steps=1), norm=1.5, output="corner", mean=np.full(48, 0.5, np.float32),
                  std=np.full(48, 2.0, np.float32))
    steering = Steering(UpMapping.linear(model, 3, tokens=1), learner.actor, position="end")
    steering.save(tmp_path)
    states = torch.randn(5, 48)
    assert Steering.load(tmp_path).plan(states).equal(steering.plan(states))
    assert learner.act(states.numpy()) == pytest.approx(steering.plan(states).detach().numpy())


def test_the_replays_of_several_collectors_are_put_together_once(tmp_path):
    def episode(key):
        return Episode(key, np.ones((2, 3), np.float32), np.ones((2, 2), np.float32), np.ones(2, np.float32))

    mine, theirs = (Replay(tmp_path / name, 3, 2) for name in ("mine.bin", "theirs.bin"))
    mine.append([episode("a")])
    theirs.append([episode("a"), episode("b")])
    assert mine.merge(theirs) == 1 and mine.merge(theirs) == 0
    assert (mine.episodes, len(mine)) == (2, 4)
    with pytest.raises(ConfigError, match="same model"):
        mine.merge(Replay(tmp_path / "other.bin", 4, 2))


# ------------------------------------------------------------------------------------------------ social scenes


def test_what_rounds_earn_adds_up_to_the_reward_of_the_scene(pocket):
    side = social_side(SMALL, pocket)
    played = side.play(side.speaker(pocket), side.partner, side.scenes["train"], seed=1, label="x")
    assert len(played) == 6
    for one in played:
        earned = side.earned(one)
        assert len(earned) == len(one.by("player")) and sum(earned) == pytest.approx(side.score(one))
    again = side.play(side.speaker(pocket), side.partner, side.scenes["train"], seed=1, label="x")
    assert [one.turns for one in again] == [one.turns for one in played]


def test_who_falls_silent_has_earned_nothing(pocket):
    side = social_side(SMALL, pocket)
    scene = replace(side.scenes["train"][0], facts={**side.scenes["train"][0].facts,
                                                    "role": side.scenes["train"][0].facts["roles"][0]})
    price = scene.facts["limit"]
    one = Dialogue(scene, (Turn("a", None, "player", "Please?"), Turn("b", "a", "partner", f"I say {price} coins.")))
    assert side.score(one) == 0 and side.earned(one) == [0.0]


def test_what_was_said_is_kept_to_the_letter_and_without_marks(pocket):
    side = social_side(SMALL, pocket)
    steered = SteeredModel(pocket, Steering(UpMapping.pca(pocket, 4, tokens=1), position="end"),
                           exploration=Exploration("uniform", norm=1.0))
    speaker = side.speaker(pocket)
    chats = [speaker.requests(Dialogue(replace(one, briefs={})), 0)[0].chat for one in side.scenes["train"]]
    said = steered.chat(chats * 4, Sampling(1.0, max_new_tokens=20), [str(at) for at in range(4 * len(chats))])
    words = [pocket.tokenizer.decode(one.tokens, skip_special_tokens=True) for one in said]
    assert [one.text for one in said] == [text.strip() for text in words]
    assert len({one.text[-1] for one in said if one.text}) > 1 and not any("<" in one.text for one in said)
    states = torch.cat([pocket.states([chat]) for chat in chats])  # one by one, and all at once from what was kept
    torch.testing.assert_close(states, pocket.states(chats), rtol=1e-3, atol=1e-3)


def test_the_splits_share_no_scene(pocket):
    scenes = social_side(SMALL, pocket).scenes
    ids = [one.id for split in scenes.values() for one in split]
    assert len(ids) == len(set(ids)) == 14
    assert {one.facts["split"] for one in scenes["test"]} == {"test"}


# ------------------------------------------------------------------------------------------------ measuring


def test_a_constant_action_has_no_spread_and_turns_that_agree():
    rows = {row.metric: row.value for row in spread([torch.tensor([[3.0, 4.0]] * 3)] * 2, label="x", seed=0)}
    assert rows == {"spread": pytest.approx(0.0), "turn_cosine": pytest.approx(1.0)}
    rows = {row.metric: row.value for row in spread([torch.tensor([[1.0, 0.0], [-1.0, 0.0]])], label="x", seed=0)}
    assert rows == {"spread": pytest.approx(1.0), "turn_cosine": pytest.approx(-1.0)}


def test_differences_are_paired_by_scene_and_leave_out_what_was_not_judged():
    rows = differences("social", "reward", {"unsteered": [0.0, 0.5, None], "planner": [0.5, 0.5, 1.0]}, seed=0)
    assert [(row.metric, row.value, row.n) for row in rows] == [("reward_minus_unsteered", 0.25, 2)]


def test_perplexity_is_that_of_the_frozen_model_in_the_chats_the_player_saw(pocket):
    side = social_side(SMALL, pocket)
    speaker = side.speaker(pocket)
    played = side.play(speaker, side.partner, side.scenes["valid"], seed=1, label="x")
    rows = [pocket.reply_ids(chat, turn.text) for one in played for turn, chat in turns_of(speaker, one)]
    nats = -sum(pocket.logprobs(rows)) / sum(len(ids) - start for ids, start in rows)
    found = {row.metric: row for row in language(pocket, speaker, played, label="x", seed=0)}
    assert found["perplexity"].value == pytest.approx(np.exp(nats), rel=1e-4)
    assert found["perplexity"].low <= found["perplexity"].value <= found["perplexity"].high
    assert 0 < found["distinct_1"].value < found["distinct_2"].value <= 1


def test_states_and_actions_are_planned_again_to_what_was_said_under(pocket):
    side = social_side(SMALL, pocket)
    steering = Steering(UpMapping.pca(pocket, 4, tokens=1), position="end")
    model = SteeredModel(pocket, steering, exploration=Exploration("uniform", norm=1.0))
    speaker = side.speaker(model)
    played = side.play(speaker, side.partner, side.scenes["valid"], seed=1, label="x")
    for one, steps in zip(played, taken(model, speaker, played, 1), strict=True):
        assert [turn.notes["action"] for turn in one.by("player")] == [
            pytest.approx(action.tolist(), abs=1e-3) for _, action in steps]
        for (turn, chat), (state, _) in zip(turns_of(speaker, one, 1), steps, strict=True):
            assert turn.speaker == "player"
            torch.testing.assert_close(pocket.states([chat])[0].float(), state, rtol=1e-2, atol=1e-2)


def test_scenes_in_sotopias_layout_are_steered_in_both_roles_and_parted_by_their_environments(pocket):
    config = DatConfig(data=str(Path(__file__).parent / "data" / "sotopia"), partner="pocket", judge="pocket", rounds=1,
                       max_new_tokens=4, transfer=())
    side = social_side(config, pocket)
    places = [{one.facts["environment"] for one in part} for part in side.scenes.values()]
    assert not (places[0] & places[1] or places[0] & places[2] or places[1] & places[2])
    scenes = side.scenes["train"][:1]
    played = side.play(side.speaker(pocket), side.partner, scenes, seed=1, label="x")
    assert [one.scenario.facts["role"] for one in played] == ["first", "second"]
    assert [side.earned(one) for one in played] == [None, None]  # pocket can give no seven numbers


# ------------------------------------------------------------------------------------------------ refusals


def test_a_model_whose_embeddings_cannot_be_reached_is_refused_before_anything_is_asked():
    for ask in (dat.plan, dat.roles, dat.load_frozen):
        with pytest.raises(ModelError, match="embeddings cannot be reached"):
            ask(DatConfig(model="openai:some-model"))


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(ValidationError, match="2 or more replies"):
        DatConfig(clone=CloneStage(replies=1))
    with pytest.raises(ValidationError, match="mapping is coded"):
        DatConfig(clone=CloneStage(data="replies.csv"))
    with pytest.raises(ValidationError, match="mapping is pca, so nothing is cloned"):
        DatConfig(mapping="pca", clone=CloneStage(data="replies.csv"))
    with pytest.raises(ValidationError, match="upmap uses the mapping of runs/one, so nothing is cloned"):
        DatConfig(mapping="clone", upmap="runs/one", clone=CloneStage(data="replies.csv"))
    with pytest.raises(ValidationError, match=r"exploration is around, but passes is 1.*--passes 2"):
        DatConfig(exploration="around", passes=1)
    with pytest.raises(ValidationError, match="only a red-team defender"):
        DatConfig(harden=True)


def test_scenes_of_ones_own_need_a_partner_and_a_judge_and_a_scene_must_be_there(pocket, tmp_path):
    with pytest.raises(ConfigError, match="--judge"):
        social_side(DatConfig(data=str(tmp_path), partner="pocket"), pocket)
    with pytest.raises(ConfigError, match="exact rule"):
        social_side(DatConfig(judge="pocket"), pocket)
    with pytest.raises(ConfigError, match="0 to 5"):
        dat.side_of(SMALL.model_copy(update={"scene": 6}), pocket)


def test_nothing_to_learn_from_is_said_so(pocket, tmp_path):
    side = replace(social_side(SMALL, pocket), earned=lambda dialogue: None)
    steering = Steering(UpMapping.pca(pocket, 4, tokens=1), position="end")
    with TreeLog(tmp_path / "trees.jsonl") as sink, pytest.raises(DataError, match="look at the judge"):
        explore(SMALL, pocket, steering, side, Replay(tmp_path / "r.bin", 192, 4), 1, norm=1.0, sink=sink)


def test_constant_actions_are_the_corners_or_points_of_the_sphere(pocket):
    assert np.allclose(np.linalg.norm(constants(SMALL, 1.2), axis=1), 1.2) and len(constants(SMALL, 1.2)) == 2
    other = SMALL.model_copy(update={"mapping": "pca"})
    assert np.allclose(np.linalg.norm(constants(other, 3.0), axis=1), 3.0)
    parts = Parts(pocket, Steering(UpMapping.pca(pocket, 4)), 1.0)
    assert subject("unsteered", other, parts) is pocket and "self_clone" not in subjects(other)


def test_the_plan_counts_replies_by_stage():
    rows = {row["stage"]: row for row in dat.plan(DatConfig(transfer=()))}
    assert list(rows)[:5] == list(dat.STAGES)
    assert rows["collect"]["replies"] == 1200 * DatConfig().episodes
