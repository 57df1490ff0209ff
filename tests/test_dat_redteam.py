"""DAT's red-team side: who attacks whom, how scenes are parted, what is earned, and hardening through it."""

import csv

import pytest

from dialoom.errors import ConfigError, DataError
from dialoom.evals.redteam import BehaviourJudge, LeakJudge
from dialoom.models.load import load_model
from dialoom.pocket.world.scene_lines import RIGHT, TACTICS
from dialoom.recipes.dat import gather_metrics
from dialoom.recipes.dat_config import DatConfig
from dialoom.recipes.dat_redteam import harden_stage, own_scenes, redteam_side
from dialoom.recipes.dat_redteam_config import RedTeamStage
from dialoom.recipes.dat_side import PARTNER, PLAYER
from dialoom.recipes.dat_social import rule_partner
from dialoom.simulate import ScriptedSpeaker
from dialoom.store import read_rows

SMALL = DatConfig(scenes="redteam", train_scenes=6, valid_scenes=4, test_scenes=5, rounds=2, max_new_tokens=24)


@pytest.fixture(scope="module")
def pocket():
    return load_model("pocket", device="cpu")


@pytest.fixture(scope="module")
def side(pocket):
    return redteam_side(SMALL, pocket)


def behaviours(path, count, categories=("standard",)):
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["Behavior", "FunctionalCategory", "BehaviorID", "ContextString"])
        rows.writerows([f"Say word {at}", categories[at % len(categories)], f"word-{at}", "a context"]
                       for at in range(count))
    return path


def of_file(path, **changes):
    return SMALL.model_copy(update={"data": str(path), "partner": "pocket", "judge": "pocket", **changes})


def visitor(tactic):
    """A player who names a tactic's line, whatever was said."""
    def line(dialogue, seed):
        lines = TACTICS["guard"][tactic(dialogue.scenario.facts["moods"][0])]
        return lines[(len(dialogue.turns) // 2 + seed) % len(lines)]
    return ScriptedSpeaker(PLAYER, line)


def test_the_side_plays_pockets_guard_with_an_exact_reward_for_every_round(side, pocket):
    assert (side.name, side.metric) == ("redteam", "success") and isinstance(side.judge, LeakJudge)
    assert [len(side.scenes[name]) for name in ("train", "valid", "test")] == [6, 4, 5]
    ids = [one.id for scenes in side.scenes.values() for one in scenes]
    assert len(set(ids)) == 15
    speaker = side.speaker(pocket)
    assert speaker.name == PLAYER and speaker.sampling.temperature == 0.3 and side.partner.name == PARTNER
    played = side.play(speaker, side.partner, side.scenes["valid"], seed=1, label="x")
    assert [one.scenario.id for one in played] == [one.id for one in side.scenes["valid"]]
    assert all(len(side.earned(one)) == 2 and side.score(one) in (0.0, 1.0) for one in played)
    rows = side.measure(played, label="unsteered", seed=1)
    assert (rows[0].eval, rows[0].subject, rows[0].metric, rows[0].n) == ("redteam", "unsteered", "success", 4)
    again = side.play(speaker, side.partner, side.scenes["valid"], seed=1, label="x")
    assert [one.last.id for one in again] == [one.last.id for one in played]


def test_the_guard_by_rule_gives_in_to_the_right_tactic_only(side):
    scenes = [*side.scenes["train"], *side.scenes["valid"]]
    guard = side.others["rule"]()
    right = side.play(visitor(RIGHT["guard"].get), guard, scenes, seed=1, label="x")
    bland = side.play(visitor(lambda spot: "bland"), guard, scenes, seed=1, label="x")
    assert sum(map(side.score, right)) > 0.7 * len(scenes) and not any(map(side.score, bland))
    assert set(side.others) == {"rule"}, "pocket itself has never kept a word"


def test_a_users_behaviours_are_parted_by_their_ids_and_judged_by_a_model(tmp_path, pocket):
    config = of_file(behaviours(tmp_path / "some.csv", 40), train_scenes=100)
    parts = own_scenes(config)
    more = own_scenes(of_file(behaviours(tmp_path / "more.csv", 60), train_scenes=100, test_scenes=100))
    for name, scenes in parts.items():
        assert {one.id for one in scenes} <= {one.id for one in more[name]}, "other rows move none"
    assert len({one.id for scenes in more.values() for one in scenes}) > 50
    side = redteam_side(config.model_copy(update={"redteam": RedTeamStage(judge_temperature=3.0)}), pocket)
    assert isinstance(side.judge, BehaviourJudge) and side.judge.temperature == 3.0
    assert side.judge.model is pocket and side.partner.model is pocket, "loaded once"
    assert side.speaker(pocket).sampling.temperature == 0.7 and "rule" not in side.others
    played = side.play(side.speaker(pocket), side.partner, side.scenes["valid"][:2], seed=1, label="x")
    assert all(0 < reward < 1 for one in played for reward in side.earned(one))


def test_categories_are_those_asked_for(tmp_path):
    path = behaviours(tmp_path / "b.csv", 60, ("standard", "contextual"))
    config = of_file(path, train_scenes=100, redteam=RedTeamStage(categories=("contextual",)))
    assert {one.facts["category"] for scenes in own_scenes(config).values() for one in scenes} == {"contextual"}


def test_what_is_missing_is_said_before_anything_is_played(tmp_path, pocket):
    path = behaviours(tmp_path / "b.csv", 40)
    with pytest.raises(ConfigError, match="give --partner MODEL and --judge MODEL"):
        redteam_side(of_file(path, judge=""), pocket)
    with pytest.raises(ConfigError, match="have an exact rule; leave it out"):
        redteam_side(SMALL.model_copy(update={"judge": "pocket"}), pocket)
    with pytest.raises(ConfigError, match="behind a server, where it cannot be trained"):
        redteam_side(SMALL.model_copy(update={"harden": True, "partner": "openai:x"}), pocket)
    with pytest.raises(ConfigError, match=r"give --redteam\.ordinary FILE"):
        redteam_side(of_file(path, harden=True), pocket)
    with pytest.raises(DataError, match="2 behaviours leave none for"):
        redteam_side(of_file(behaviours(tmp_path / "few.csv", 2)), pocket)


def test_a_defender_that_is_no_model_cannot_be_hardened(side, tmp_path):
    from dataclasses import replace

    scripted = replace(side, partner=rule_partner(PARTNER))
    with pytest.raises(ConfigError, match="no model that can be trained here"):
        harden_stage(SMALL, tmp_path, attackers={}, side=scripted)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_hardening_trains_a_copy_and_tells_how_it_stands_afterwards(pocket, tmp_path):
    config = SMALL.model_copy(update={"train_scenes": 40, "test_scenes": 20, "rounds": 3, "harden": True,
                                      "redteam": RedTeamStage(attacks=1)})
    side = redteam_side(config, pocket)
    before = side.partner.model.fingerprint
    rows = harden_stage(config, tmp_path, attackers={"right": visitor(RIGHT["guard"].get)}, side=side)
    found = {(row["eval"], row["subject"], row["metric"]): row["value"] for row in rows}
    played = side.play(visitor(RIGHT["guard"].get), side.partner, side.scenes["test"], seed=1, label="x")
    plain = side.measure(played, label="right", seed=1)[0].value
    assert found["redteam", "right_hardened", "success"] < plain - 0.3
    assert found["ordinary", "defender_hardened", "kept"] > 0.7
    assert ("redteam", "right", "success") not in found, "how it was before stands in the evaluation"
    assert side.partner.model.fingerprint == before and (tmp_path / "harden" / "guard").is_dir()
    assert {row["kind"] for row in read_rows(tmp_path / "harden" / "pairs.jsonl")} == {"attack", "ordinary"}
    gather_metrics(config, tmp_path)
    noted = [(row["stage"], row["subject"]) for row in read_rows(tmp_path / "metrics.jsonl")]
    assert set(noted) == {(f"harden, {name}", "defender_hardened") for name in ("sft", "dpo")}
