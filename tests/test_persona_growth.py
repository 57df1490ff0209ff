"""Growing personas: what a model says becomes a pool without near-duplicates; all is counted, and a kill survived.

The model here is a script of ours: a grammar of odd facts that answers in every shape models answer in, well-formed or
not, and mixes repeats, rewordings of the examples, fragments and chatter into what is new.
"""

import json
import math
import random

import numpy as np
import pytest

from dialoom.cli import main
from dialoom.embed import CachedEmbedder, Ngrams, cosine
from dialoom.errors import ConfigError, DataError, ModelError, StoreError
from dialoom.models.base import Completion, Sampling
from dialoom.models.scripted import ScriptedModel
from dialoom.pocket.world.personas import is_held_out, make_personas, read_personality, read_profile
from dialoom.recipes import personas as recipe
from dialoom.recipes.persona_check import (
    calibrate,
    check_files,
    diversity,
    leaks,
    read_thresholds,
)
from dialoom.recipes.persona_growth import (
    REPAIR,
    GrowthRules,
    grow_pool,
    parse_texts,
    read_reply,
    tidy,
    tidy_world,
)
from dialoom.recipes.run import RunFolder
from dialoom.scenarios import persona_seeds
from dialoom.scenarios.personas import Persona, from_world, read_personas, read_texts, write_personas, write_texts

VERBS = {"profile": ["paints", "sells", "mends", "breeds", "tests", "collects", "carves", "races", "counts", "builds"],
         "personality": ["Fears", "Mocks", "Adores", "Trusts", "Envies", "Worships", "Doubts", "Pities", "Avoids"]}
SYLLABLES = [start + end for start in ("b", "ch", "dr", "f", "gl", "k", "m", "pr", "s", "tw", "v", "z")
             for end in ("ab", "em", "ig", "oll", "um", "yn")]
SEEDS = {"profile": list(persona_seeds.PROFILES), "personality": list(persona_seeds.PERSONALITIES)}


def invent(kind, rng):
    """Seven things that one person does to things nobody has heard of."""
    subject = rng.choice(("He ", "She ")) if kind == "profile" else ""
    things = (" ".join("".join(rng.sample(SYLLABLES, 3)) for _ in range(2)) for _ in range(7))
    return " ".join(f"{subject}{verb} {thing}." for verb, thing in zip(rng.sample(VERBS[kind], 7), things, strict=True))


def reworded(text, rng):
    parts = text.removesuffix(".").split(". ")
    rng.shuffle(parts)
    return ". ".join(parts) + "."


def grammar(name="grammar", spoil=True):
    """A scripted model with a grammar in place of a mind; with `spoil` it misbehaves in the ways models do."""

    def respond(chat):
        rng = random.Random(json.dumps(chat))
        kind = "profile" if "A profile gives" in chat[0]["content"] else "personality"
        texts = [invent(kind, rng) for _ in range(8)]
        if not spoil:
            return json.dumps(texts)
        examples = [line.partition(". ")[2] for line in chat[1]["content"].splitlines() if line[:1].isdigit()]
        texts += [texts[0], examples[0], reworded(examples[-1], rng), "Too short.", "Here is one more. Fine. Yes."]
        rng.shuffle(texts)
        numbered = "\n".join(f"{at}) {text}" for at, text in enumerate(texts, 1))
        fenced = f"Sure!\n```json\n{json.dumps(texts, indent=1)}\n```"
        shapes = [json.dumps(texts), fenced, numbered, "\n\n".join(texts),
                  json.dumps(texts)[:-40], json.dumps({"items": [{"text": text} for text in texts]}), "I cannot.", ""]
        return rng.choice([*shapes[:2], "No."] if chat[-1]["content"] == REPAIR else shapes)

    return ScriptedModel(respond, name)


def rules(kind="profile", **given):
    settings = {"style": "free", "target": 120, "threshold": 0.5, "seed": 1, "sampling": Sampling(), "batch": 6}
    return GrowthRules(kind, **{**settings, **given})


class Counting(Ngrams):
    """Counts how often each text is encoded."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def encode(self, texts):
        self.asked += texts
        return super().encode(texts)


# ---------------------------------------------------------------------------------------------------- growing


@pytest.mark.parametrize(("kind", "target"), [("profile", 331), ("personality", 70)])
def test_pools_grow_from_the_seeds_to_the_published_size_without_a_near_duplicate(tmp_path, kind, target):
    threshold = calibrate(Ngrams(), SEEDS[kind]).value
    asked, embedder = rules(kind, target=target, threshold=threshold), Counting()
    pool = grow_pool(asked, SEEDS[kind], grammar(), embedder, tmp_path / "log")
    assert len(pool.texts) == len(set(pool.texts)) == target
    vectors = Ngrams().encode(pool.texts)
    likeness = cosine(vectors, vectors)[22:]  # the seeds are the user's, whatever they are
    likeness[np.arange(target - 22), np.arange(22, target)] = 0
    assert likeness.max() <= threshold + 1e-6
    found = recipe.report(pool, asked)
    assert found["stopped"] == "target"
    assert kind == "personality" or (found["repaired"] > 0 and found["unread"] > 0)  # that pool is full too soon
    assert {"near", "short", "meta"} <= set(found["refused"]) and found["repeated"] > 0
    assert found["said"] == found["kept"] + found["repeated"] + sum(found["refused"].values())
    assert len(embedder.asked) == len(set(embedder.asked)) == 22 + found["encoded"]


def test_a_pool_stops_when_hardly_anything_new_is_said(tmp_path):
    few = ScriptedModel(lambda chat: json.dumps([invent("personality", random.Random(at)) for at in range(8)]))
    pool = grow_pool(rules("personality", target=0, patience=3), SEEDS["personality"], few, Ngrams(), tmp_path / "log")
    assert [bool(row["kept"]) for row in pool.rounds] == [True, False, False, False]
    assert pool.stopped(rules(target=0, patience=3)) == "saturated"


def test_a_model_that_says_nothing_ends_growing_and_is_counted(tmp_path):
    for at, answer in enumerate(("", "No.", "[]", '["", "  "]')):
        mute = ScriptedModel(lambda chat, answer=answer: answer)
        pool = grow_pool(rules(patience=2), SEEDS["profile"], mute, Ngrams(), tmp_path / str(at))
        assert pool.texts == SEEDS["profile"] and [row["unread"] for row in pool.rounds] == [6, 6]


def test_rounds_are_limited(tmp_path):
    pool = grow_pool(rules(rounds=2, target=0), SEEDS["profile"], grammar(), Ngrams(), tmp_path / "log")
    assert len(pool.rounds) == 2 and pool.stopped(rules(rounds=2, target=0)) == "rounds"


class Killed(Exception):
    pass


@pytest.mark.parametrize("torn", [False, True])
def test_a_killed_run_goes_on_and_ends_the_same(tmp_path, torn):
    whole = grow_pool(rules(), SEEDS["profile"], grammar(), Ngrams(), tmp_path / "whole")

    def stop(pool):
        if len(pool.rounds) == 2:
            raise Killed

    with pytest.raises(Killed):
        grow_pool(rules(), SEEDS["profile"], grammar(), Ngrams(), tmp_path / "log", log=stop)
    if torn:
        with (tmp_path / "log").open("a") as file:
            file.write('{"kind":"profile","round":3,"kept":["She')
        with pytest.warns(UserWarning, match="torn"):
            after = grow_pool(rules(), SEEDS["profile"], grammar(), Ngrams(), tmp_path / "log")
    else:
        after = grow_pool(rules(), SEEDS["profile"], grammar(), Ngrams(), tmp_path / "log")
    assert after == whole and len(whole.rounds) > 2
    assert (tmp_path / "log").read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_log_begun_with_other_seeds_is_refused(tmp_path):
    grow_pool(rules(rounds=1), SEEDS["profile"], grammar(), Ngrams(), tmp_path / "log")
    with pytest.raises(StoreError, match="begun with another profile"):
        grow_pool(rules(rounds=1), SEEDS["profile"][1:], grammar(), Ngrams(), tmp_path / "log")
    with pytest.raises(DataError, match="no profile to begin with"):
        grow_pool(rules(), [], grammar(), Ngrams(), tmp_path / "empty")


# -------------------------------------------------------------------------------------------- reading replies


@pytest.mark.parametrize(("reply", "texts"), [
    ('["One.", "Two."]', ["One.", "Two."]),
    ('Sure:\n```json\n[\n "One.",\n "Two \\"2\\"."\n]\n```\nEnjoy!', ["One.", 'Two "2".']),
    ('{"profiles": ["One.", "Two."]}', ["One.", "Two."]),
    ('[{"id": "1", "profile": "One is long."}, ["Two."], 3, null]', ["One is long.", "Two."]),
    ('["One.", "Two.", "Thr', ["One.", "Two."]),
    ('["One.", "Two." "Three.", oops', ["One.", "Two.", "Three."]),
    ("1. One.\n2. **Two.**\n   Still two.\n\nThat is all!", ["One.", "Two.** Still two."]),
    ("- One.\n- Two.", ["One.", "Two."]),
    ("(1) One.\n(2) Two [sic].", ["One.", "Two [sic]."]),
    ("One.\nMore.\n\nTwo.", ["One. More.", "Two."]),
    ("Only one.", []), ("", []), ("[]", []), ("[oops", []), ('{"a": 1}', []), ("[" * 20_000, []),
])
def test_replies_are_read_in_every_shape_models_give_them(reply, texts):
    assert parse_texts(reply) == texts


def test_what_the_length_limit_cut_is_left_out():
    assert read_reply("free", Completion('["One.", "Tw', "length")) == ["One."]
    assert read_reply("free", Completion("1. One.\n2. Two.\n3. Thr", "length")) == ["One.", "Two."]
    assert read_reply("pocket", Completion("One.\n\nTw", "length")) == ["One."]
    assert read_reply("pocket", Completion("One.\n\nTwo.")) == ["One.", "Two."]


def test_free_texts_lose_repeated_sentences_and_are_refused_with_a_reason():
    long = "She keeps hens by the river. He says she bakes. She has four sons and a dog."
    assert tidy(f"{long} She keeps hens by the river.") == (long, "")
    assert tidy("She rows.")[1] == "short"
    assert tidy("Here are the profiles you asked for. They are new. I hope that you like them a lot.")[1] == "meta"
    assert tidy(" ".join(f"She has {at} nieces." for at in range(50)))[1] == "long"


def test_pockets_texts_keep_what_its_world_knows_and_what_contradicts_nothing():
    said = ("She keeps a cat. She lives by a lake. The home is near a forest. She has a nieces. He loves chess. "
            "The radio always plays jazz. She loves chess. She shares the house with a dog. She likes to eat soup.")
    kept = "She keeps a cat. She lives by a lake. The radio always plays jazz. She loves chess. She likes to eat soup."
    assert tidy_world(said, "profile") == (kept, "held out" if is_held_out(read_profile(kept)) else "")
    assert tidy_world("She keeps a cat. She rows. She keeps a dog.", "profile")[1] == "few facts"
    said = "She is calm and slow. She is lively and loud."
    assert tidy_world(said, "personality") == ("She is calm and slow.", "few traits")
    for person in make_personas(40, 3):
        assert tidy_world(person.profile, "profile") == (person.profile, "")
        assert tidy_world(person.personality, "personality") == (person.personality, "")
    for person in make_personas(20, 3, "eval"):
        assert tidy_world(person.profile, "profile")[1] == "held out"


# ------------------------------------------------------------------------------------ thresholds and diversity


@pytest.mark.parametrize("kind", ["profile", "personality"])
def test_a_threshold_is_calibrated_between_rewordings_and_different_people(kind):
    found = calibrate(Ngrams(), SEEDS[kind])
    assert found.embedding == "ngrams:3-5/2048" and found == calibrate(Ngrams(), SEEDS[kind])
    assert found.missed <= 0.02 and found.refused <= 0.02
    other = calibrate(Ngrams(2, 3), SEEDS[kind])
    assert other.value != found.value  # a cosine means something else in each embedding
    with pytest.raises(DataError, match="give --threshold"):
        calibrate(Ngrams(), ["One. Two.", "One only.", "A. B."])


def test_diversity_of_three_known_directions():
    rows = np.array([[1, 0], [0.6, 0.8], [0, 1]], dtype=np.float32)
    found = diversity(rows)
    assert found["mean_cosine"] == pytest.approx((0.6 + 0.8 + 0) / 3, abs=1e-6)
    assert found["max_cosine"] == pytest.approx(0.8, abs=1e-6)
    assert found["nearest_cosine"] == pytest.approx((0.6 + 0.8 + 0.8) / 3, abs=1e-6)
    assert math.isnan(diversity(rows[:1])["mean_cosine"])


# ------------------------------------------------------------------------------------------------------ leaks


def test_people_for_evaluation_that_training_has_are_named_once_with_their_copies():
    train = [Persona.of(profile, SEEDS["personality"][0]) for profile in SEEDS["profile"][:10]]
    same = Persona.of(SEEDS["profile"][3], SEEDS["personality"][5])
    near = Persona.of(reworded(SEEDS["profile"][4], random.Random(0)), SEEDS["personality"][5])
    again = Persona.of(SEEDS["profile"][3], SEEDS["personality"][6])
    fine = Persona.of(SEEDS["profile"][12], SEEDS["personality"][0])
    found = leaks(train, [same, near, again, fine], CachedEmbedder(Ngrams()), {"profile": 0.52})
    assert [(leak.evaluation, leak.training, leak.copies) for leak in found] == [
        (same.id, train[3].id, 2), (near.id, train[4].id, 1)]
    assert found[0].cosine == 1 and 0.52 < found[1].cosine < 1 and "and 1 more" in str(found[0])
    both = leaks(train, [same, fine], Ngrams(), {"profile": 0.52, "personality": 0.9})
    assert [(leak.part, leak.evaluation) for leak in both] == [("profile", same.id), ("personality", fine.id)]
    assert leaks(train, [], Ngrams(), {"profile": 0.52}) == []


def test_files_are_checked_with_the_threshold_stored_beside_them(tmp_path):
    write_texts(tmp_path / "profiles.jsonl", SEEDS["profile"][:12])
    write_texts(tmp_path / "eval.jsonl", [*SEEDS["profile"][12:], reworded(SEEDS["profile"][0], random.Random(1))])
    stored = {"profile": {"embedding": Ngrams().name, "value": 0.999}}
    said = []
    found = check_files(tmp_path / "profiles.jsonl", tmp_path / "eval.jsonl", log=said.append)
    assert len(found) == 1 and found[0].evaluation.endswith("eval.jsonl:11") and found[0].training.endswith(":1")
    (tmp_path / "threshold.json").write_text(json.dumps(stored))
    assert check_files(tmp_path / "profiles.jsonl", tmp_path / "eval.jsonl", log=said.append) == []
    assert len(check_files(tmp_path / "profiles.jsonl", tmp_path / "eval.jsonl", threshold=0.6, log=said.append)) == 1
    assert len(check_files(tmp_path / "profiles.jsonl", tmp_path / "eval.jsonl", embedding="ngrams:2-4",
                           log=said.append)) == 1  # what is stored holds for another embedding
    (tmp_path / "threshold.json").write_text("{")
    with pytest.raises(ConfigError, match=r"threshold\.json: cannot be read"):
        check_files(tmp_path / "profiles.jsonl", tmp_path / "eval.jsonl", log=said.append)


def test_the_command_names_each_leak_and_fails_on_it(tmp_path, capsys):
    people = [from_world(person) for person in make_personas(12, 1)]
    write_personas(tmp_path / "train.jsonl", people[:8])
    write_personas(tmp_path / "eval.jsonl", people[7:])
    with (tmp_path / "eval.jsonl").open("a") as file:
        file.write('{"id": "x", "facts"\n{"id": "y", "traits": ["Loud."], "facts": []}\n')
    arguments = ["personas", "check", str(tmp_path / "train.jsonl"), str(tmp_path / "eval.jsonl"), "--part", "profile"]
    assert main([*arguments, "--threshold", "0.99"]) == 2
    out, err = capsys.readouterr()
    assert f"eval.jsonl:1: its profile is the same as {tmp_path / 'train.jsonl'}:8" in out
    assert "eval.jsonl:6: not JSON" in out and "eval.jsonl:7: a persona without facts" in out
    assert "1 of its texts" in err
    write_personas(tmp_path / "eval.jsonl", people[8:])
    assert main([*arguments, "--threshold", "0.99"]) == 0
    write_texts(tmp_path / "eval.jsonl", SEEDS["profile"])
    assert main(arguments) == 2 and "no texts of one kind" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------- the recipe


def free_run(tmp_path, monkeypatch, **given):
    monkeypatch.setattr(recipe, "load_model", lambda spec, device: grammar(spec))
    config = recipe.PersonasConfig(model="openai:grammar", batch=8, **given)
    said = []
    with RunFolder(tmp_path / "run", "personas", config, log=said.append) as folder:
        recipe.run(config, folder, log=said.append)
        rows = folder.results()
    return said, rows


def test_a_run_writes_pools_personas_thresholds_and_their_diversity(tmp_path, monkeypatch):
    said, rows = free_run(tmp_path, monkeypatch, profiles=60, personalities=40, passes=5)
    run = tmp_path / "run"
    assert len(read_texts(run / "profiles.jsonl", "profile")) == 60
    assert len(read_texts(run / "personalities.jsonl", "personality")) == 40
    people = read_personas(run / "personas.jsonl")
    assert len(people) == 300 and {one.profile for one in people[:60]} == {one.profile for one in people}
    thresholds = read_thresholds(run)
    assert {kind: one.embedding for kind, one in thresholds.items()} == dict.fromkeys(SEEDS, "ngrams:3-5/2048")
    figures = {(row["subject"], row["metric"]): row["value"] for row in rows}
    assert figures["profiles", "size"] == 60 and figures["personalities", "size"] == 40
    assert figures["profiles", "max_cosine"] <= thresholds["profile"].value + 1e-6
    assert 0 < figures["profiles", "acceptance"] < 1
    before = (run / "personas.jsonl").read_bytes()
    monkeypatch.setattr(recipe, "load_model", lambda spec, device: pytest.fail("nothing is left to grow"))
    (run / "stages" / "personas.json").unlink()
    config = recipe.PersonasConfig(model="openai:grammar", batch=8, profiles=60, personalities=40, passes=5)
    with RunFolder(run, "personas", config, log=said.append) as folder:
        recipe.run(config, folder, log=said.append)
    assert (run / "personas.jsonl").read_bytes() == before


def test_bad_seed_lines_are_named_and_the_others_used(tmp_path, monkeypatch):
    lines = [json.dumps(text) for text in SEEDS["profile"]]
    lines[2] = f"{lines[2]} {lines[3]}"
    (tmp_path / "profile.jsonl").write_text("\n".join([*lines[:3], '{"facts": []}', '"cut', *lines[3:]]))
    said, _ = free_run(tmp_path, monkeypatch, profiles=30, personalities=30, passes=1,
                       profile_seeds=str(tmp_path / "profile.jsonl"))
    notes = [line for line in said if line.startswith("note: ")]
    assert [f"profile.jsonl:{line}: " in note for line, note in zip((4, 5, 6), notes, strict=True)] == [True] * 3
    assert "the same profile as" in notes[2]
    assert any(line.endswith("22 profiles, 3 bad lines left out") for line in said)


def test_settings_that_cannot_work_are_refused_before_any_growing(tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "load_model", lambda spec, device: pytest.fail("must not be loaded"))
    for at, (given, error) in enumerate([({"embedding": "st:none"}, ModelError), ({"embedding": "words"}, ConfigError),
                                         ({"profile_seeds": str(tmp_path / "nowhere")}, DataError)]):
        config = recipe.PersonasConfig(**given)
        with RunFolder(tmp_path / str(at), "personas", config, log=print) as folder, pytest.raises(error):
            recipe.run(config, folder)


def test_the_plan_says_what_growing_may_cost(capsys, tmp_path):
    assert main(["personas", "grow", "--dry-run", "--rounds", "3", "--batch", "4", "--out", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert "from 24 to 331, at most 3 rounds" in out and " 12 " in out and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_pocket_grows_people_of_its_world(tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["personas", "grow", "--out", str(run), "--device", "cpu", "--profiles", "60", "--personalities", "40",
                 "--passes", "4"]) == 0
    people = read_personas(run / "personas.jsonl")
    assert len(people) == 240 and "240" in capsys.readouterr().out
    for one in people:
        assert len(one.world.facts) >= 4 and len(one.world.traits) >= 3
        assert read_personality(one.personality) == one.world.traits
        assert not ({"pet", "hobby"} <= set(one.world.facts) and is_held_out(one.world.facts))
    assert (run / "report.html").is_file()
