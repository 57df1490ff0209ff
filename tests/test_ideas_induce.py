"""IDEAS' induction: which dialogues are usable, the strategy behind each follow-up turn, clusters and their names."""

import json
import math

import numpy as np
import pytest

from dialoom.embed import Ngrams
from dialoom.errors import ConfigError, DataError
from dialoom.models.base import Sampling
from dialoom.models.scripted import ScriptedModel
from dialoom.pocket.world import strategies as world
from dialoom.recipes.ideas_clusters import (
    POCKET_ABSTRACT,
    Cut,
    abstract,
    adjusted_rand,
    clusters,
    groups,
    pick_threshold,
    read_name,
    strategy_embedder,
    sweep,
)
from dialoom.recipes.ideas_corpus import (
    SHIPPED,
    SHIPPED_COUNT,
    pocket_corpus,
    pocket_openings,
    pocket_topics,
    write_shipped,
)
from dialoom.recipes.ideas_induce import (
    POCKET_EXTRACT,
    extract,
    follow_ups,
    pool_of,
    read_extraction,
    transcript,
    usable,
    weigh,
)
from dialoom.recipes.ideas_strategies import Record, Strategies, read_records, write_records
from dialoom.scenarios.sharegpt import ASSISTANT, USER, dialogue_of, read_dialogues

BRIEF = "Choose one.\n{strategies}"


def dialogue(*texts, name="d"):
    """The user and the assistant in turn."""
    return dialogue_of(name, [((USER, ASSISTANT)[at % 2], text) for at, text in enumerate(texts)])


FOUR = dialogue("q0", "a0", "q1", "a1", "q2", "a2", "q3", "a3")


def reply(strategy, analysis="because"):
    return json.dumps({"analysis": analysis, "strategy": strategy})


def naming_by_turn(name="scripted"):
    """Calls the strategy of each turn after its last line."""
    return ScriptedModel(lambda chat: reply(f"ask like {chat[1]['content'].rsplit(' ', 1)[1]}"), name)


# ------------------------------------------------------------------------------------------------ filter


def test_turns_of_a_user_that_are_alike_by_four_fifths_drop_a_dialogue():
    exactly = dialogue("aaaab", "fine", "aaaac", "fine")
    below = dialogue("a" * 79 + "b" * 21, "fine", "a" * 79 + "c" * 21, "fine")
    kept, reasons = usable([exactly, below])
    assert kept == [below] and reasons == {"repeating user": 1}


@pytest.mark.parametrize("answer, reason", [("", "empty answer"), ("SORRY, no.", "refusal"),
                                            ("As a language model I pass.", "refusal")])
def test_an_answer_that_is_none_drops_a_dialogue(answer, reason):
    kept, reasons = usable([dialogue("tea?", "A drink.", "why so?", answer)])
    assert not kept and reasons == {reason: 1}


def test_one_turn_of_a_user_is_kept_and_words_are_the_callers():
    one = dialogue("tea?", "Sorry, tea is a drink.")
    assert usable([one], refusals=("cannot",)) == ([one], {})
    assert usable([dialogue("tea?")])[0]


# ------------------------------------------------------------------------------------------------ extraction


def test_four_pairs_give_three_records_with_the_full_history():
    model = naming_by_turn()
    records, counts = extract([FOUR], model)
    assert [one.strategy for one in records] == ["ask like q1", "ask like q2", "ask like q3"]
    assert [one.turn for one in records] == [FOUR.turns[at].id for at in (1, 3, 5)]
    assert [chat[1]["content"].count("User:") for chat in model.calls] == [2, 3, 4]  # histories of 1, 2 and 3 pairs
    assert model.calls[1][1]["content"] == "User: q0\nAssistant: a0\nUser: q1\nAssistant: a1\nUser: q2"
    assert counts == {"asked": 3}


def test_the_same_history_and_turn_is_asked_once():
    model = naming_by_turn()
    twin, other = dialogue("q0", "a0", "q1", name="twin"), dialogue("q0", "another", "q1", name="other")
    records, counts = extract([FOUR, twin, other], model)
    assert len(model.calls) == 4 and counts == {"asked": 4, "cached": 1}
    assert len({one.id for one in records}) == 5
    assert [one.strategy for one in records if one.dialogue == "twin"] == ["ask like q1"]


def test_what_was_asked_before_a_stop_is_not_asked_again(tmp_path):
    out = tmp_path / "asked.jsonl"
    extract([FOUR], naming_by_turn(), out=out)
    lines = out.read_text().splitlines()
    out.write_text("\n".join(lines[:2]) + "\n" + lines[2][:20])  # killed while writing the third
    model = naming_by_turn()
    with pytest.warns(match="torn"):
        records, counts = extract([FOUR], model, out=out)
    assert len(model.calls) == 1 and counts == {"asked": 1, "cached": 2}
    assert [one.strategy for one in records] == ["ask like q1", "ask like q2", "ask like q3"]
    assert extract([FOUR], naming_by_turn(), out=out)[0] == records
    other = naming_by_turn("another model")
    extract([FOUR], other, out=out)
    assert len(other.calls) == 3


def test_a_reply_that_cannot_be_read_is_asked_for_once_more_with_what_was_wrong():
    def respond(chat):
        if len(chat) == 2:
            return "I think it is doubt"
        return reply("doubt it") if chat[1]["content"].endswith("q1") else "still no"

    model = ScriptedModel(respond)
    records, counts = extract([FOUR], model)
    assert [one.strategy for one in records] == ["doubt it"]
    assert counts == {"asked": 3, "repaired": 1, "not a JSON object": 2}
    assert len(model.calls) == 6
    assert [message["role"] for message in model.calls[3]] == ["system", "user", "assistant", "user"]
    assert "not a JSON object" in model.calls[3][3]["content"]


@pytest.mark.parametrize("text, found", [
    (reply("ask why"), ("ask why", "because", "")),
    ('Sure!\n```json\n{"strategy": " “Ask\\nwhy.” ", "more": 1}\n```', ("Ask why", "", "")),
    ('{"analysis": "x"}', ("", "", "no strategy")),
    ('{"strategy": ["ask"]}', ("", "", "no strategy")),
    (reply("ask " * 21), ("", "", "a strategy of more than 20 words")),
    ('{"strategy": "ask', ("", "", "not a JSON object")),
    ("", ("", "", "not a JSON object")),
    ("[1]", ("", "", "not a JSON object")),
])
def test_a_reply_is_read_or_says_what_is_wrong(text, found):
    assert read_extraction(text) == found


def test_several_draws_are_several_records_of_a_turn():
    records, counts = extract([FOUR], naming_by_turn(), draws=2, sampling=Sampling(0.7))
    assert len(records) == len({one.id for one in records}) == 6 and counts == {"asked": 6}


# ------------------------------------------------------------------------------------------------ weighing


def weights_for(best):
    """A user's model that says each turn by one strategy only."""
    def choose(chat, options):
        return [8.0 if f"strategy: {best[option.rsplit(' ', 1)[1]]}\n" in option else 1.0 for option in options]
    return ScriptedModel(lambda chat: "", choose=choose)


def test_a_turn_gets_the_strategy_it_would_most_likely_be_said_by(tmp_path):
    records, _ = extract([FOUR], naming_by_turn())
    best = {"q1": "ask like q3", "q2": "ask like q2", "q3": "ask like q1"}
    model, out = weights_for(best), tmp_path / "weighed.jsonl"
    found, counts = weigh([FOUR], records, model, brief=BRIEF, out=out)
    assert [one.strategy for one in found] == list(best.values())
    assert [one.analysis for one in found] == ["", "because", ""]  # an analysis of another strategy explains nothing
    assert counts == {"weighed": 3, "changed": 2}
    assert model.calls[0][0]["content"] == "Choose one.\n- ask like q1\n- ask like q2\n- ask like q3"
    assert [message["role"] for message in model.calls[1]] == ["system", "user", "assistant", "user"]  # the user's view
    again = weights_for(best)
    assert weigh([FOUR], records, again, brief=BRIEF, out=out)[0] == found and not again.calls


def test_a_turn_whose_extraction_failed_gets_a_strategy_of_the_others():
    records, _ = extract([FOUR], naming_by_turn())
    model = weights_for(dict.fromkeys(("q1", "q2", "q3"), "ask like q1"))
    found, _ = weigh([FOUR], records[:1], model, brief=BRIEF)
    assert [one.strategy for one in found] == ["ask like q1"] * 3
    assert weigh([FOUR], [], weights_for({}), brief=BRIEF) == ([], {})


def test_the_pool_is_the_most_frequent_strategies_once_each():
    named = ["Ask why", "doubt", "ask  WHY", "list", "doubt", "doubt"]
    records = [Record(str(at), "d", "t", text) for at, text in enumerate(named)]
    assert pool_of(records, 64) == ["doubt", "Ask why", "list"] and pool_of(records, 1) == ["doubt"]
    assert pool_of(records) == pool_of(records, 64)


# ------------------------------------------------------------------------------------------------ clusters


class Angles:
    """Embeds a number of degrees as that direction."""

    name = "angles"

    def encode(self, texts):
        turned = np.radians([float(text) for text in texts])
        return np.stack([np.cos(turned), np.sin(turned)], axis=1).astype(np.float32)


def test_clusters_of_the_published_vector():
    labels = clusters(["0", "55", "30", "100", "75", "10"], Angles(), threshold=0.5)
    assert labels.tolist() == [0, 3, 0, 3, 3, 0]
    assert groups(["0", "55", "30", "100", "75", "10"], labels) == [["0", "30", "10"], ["55", "100", "75"]]


@pytest.mark.parametrize("method", ["leader", "agglomerative", "hdbscan"])
def test_every_method_finds_what_lies_apart_and_labels_by_place(method):
    texts = ["0", "90", "2", "92", "4", "180"]
    labels = clusters(texts, Angles(), threshold=0.9, method=method)
    assert labels.tolist() == [0, 1, 0, 1, 0, 5]
    assert clusters(["7"], Angles(), threshold=0.9, method=method).tolist() == [0]


def test_an_unknown_method_and_too_many_texts_for_all_pairs_are_refused():
    with pytest.raises(ConfigError, match="use leader, agglomerative or hdbscan"):
        clusters(["0"], Angles(), threshold=0.5, method="kmeans")
    with pytest.raises(ConfigError, match="use leader, which needs none"):
        clusters(["0"] * 20_001, Angles(), threshold=0.5, method="hdbscan")


def test_the_sweep_says_what_each_threshold_makes_and_the_best_silhouette_is_picked():
    texts = ["0", "1", "2", "90", "91", "180"]
    cuts = sweep(texts, Angles(), [-0.99, 0.5, 0.999999])  # the first: 180 leads the second cluster and takes 91
    assert [cut.clusters for cut in cuts] == [2, 3, 6]
    assert [round(cut.singletons, 3) for cut in cuts] == [0.0, 0.333, 1.0]
    assert cuts[2].silhouette is None and cuts[1].silhouette > cuts[0].silhouette
    assert pick_threshold(cuts) == 0.5


def test_equal_silhouettes_give_the_middle_threshold_and_none_an_error():
    cuts = [Cut(at / 10, 3, score, 0.0) for at, score in enumerate([None, 0.4, 0.7, 0.7, 0.7, 0.1])]
    assert pick_threshold(cuts) == 0.3
    with pytest.raises(DataError, match="none of 35 thresholds makes clusters"):
        pick_threshold(sweep(["0", "0"], Angles()))


def test_adjusted_rand_of_hand_computed_cases():
    assert adjusted_rand([5, 5, 0], ["a", "a", "b"]) == 1
    # pairs together in both 1, expected 2 * 2 / 6, mean of the sides 2: (1 - 2/3) / (2 - 2/3)
    assert math.isclose(adjusted_rand([0, 0, 0, 1], ["a", "a", "b", "b"]), (1 - 1) / (2.5 - 1), abs_tol=1e-12)
    assert math.isclose(adjusted_rand([0, 0, 1, 2], ["a", "a", "b", "b"]), (1 - 1 / 3) / (1.5 - 1 / 3))


# ------------------------------------------------------------------------------------------------ names


def test_names_that_collide_are_merged_and_the_mapping_is_explicit(tmp_path):
    names = {"ask why": "Higher: Ask for reasons", "doubt": "Challenge", "dig": "ask for  REASONS.",
             "seek": "“Challenges”"}
    model = ScriptedModel(lambda chat: names[chat[1]["content"].removeprefix("- ").split("\n")[0]])
    members = [["ask why", "ask the reason"], ["doubt"], ["dig"], ["seek"]]
    out = tmp_path / "names.jsonl"
    found = abstract(members, model, out=out, collision=0.6)
    assert found.high == ("Ask for reasons", "Challenge")
    assert found.parent == {"ask why": "Ask for reasons", "ask the reason": "Ask for reasons", "doubt": "Challenge",
                            "dig": "Ask for reasons", "seek": "Challenge"}
    assert len(model.calls) == 4  # a cluster of one is asked for too
    again = ScriptedModel(lambda chat: "never")
    assert abstract(members, again, out=out, collision=0.6) == found and not again.calls
    assert len(abstract(members, again, out=out, collision=0.999).high) == 3


def test_a_cluster_without_a_usable_name_goes_by_its_first_member():
    told = []
    found = abstract([["ask why", "dig"]], ScriptedModel(lambda chat: " : "), tell=told.append)
    assert found.high == ("ask why",) and found.of("dig") == "ask why" and "no usable name for 2" in told[0]


@pytest.mark.parametrize("text, name", [("Ask for reasons", "Ask for reasons"), ("Strategy: x: Ask.", "Ask"), ("", ""),
                                        ("They all ask.\n\n**Seek detail**\n", "Seek detail"), ("Name:", "")])
def test_the_name_is_what_follows_the_last_colon_of_the_last_line(text, name):
    assert read_name(text) == name


def test_strategies_read_back_and_map_whatever_the_case():
    found = Strategies.merged([["Ask why", "dig"], ["doubt"]], ["Reasons", "Challenge"])
    assert Strategies.from_json(found.to_json()) == found
    assert found.of("ask  WHY") == found.of("reasons") == "Reasons" and found.lows("Reasons") == ("Ask why", "dig")
    assert found.find("else") is None
    with pytest.raises(DataError, match="'else' belongs to none of the 2"):
        found.of("else")


@pytest.mark.parametrize("text, message", [
    ("{", "s.json: not JSON"), ("[]", "s.json: expected an object with high"),
    ('{"high": ["a"]}', "expected an object"),
    ('{"high": ["a"], "parent": {"b": "c"}}', "'c', which is not among the 1"),
    ('{"high": ["a", "a"], "parent": {}}', "'a' stands twice"),
])
def test_strategies_that_are_none_are_refused(text, message):
    with pytest.raises(DataError, match=message):
        Strategies.from_json(text, "s.json")


def test_records_read_back_and_others_are_named_by_line(tmp_path):
    records, _ = extract([FOUR], naming_by_turn())
    write_records(tmp_path / "r.jsonl", records)
    assert read_records(tmp_path / "r.jsonl") == records
    (tmp_path / "r.jsonl").write_text('{"id": 3}\n')
    with pytest.raises(DataError, match=r"r\.jsonl:1: expected the texts id, dialogue"):
        read_records(tmp_path / "r.jsonl")


# ------------------------------------------------------------------------------------------------ pocket's world


def test_held_out_topics_are_in_no_corpus_and_no_training_opening():
    train, test = pocket_topics("train"), pocket_topics("test")
    assert not set(train) & set(test) and len(test) * 3 == len(train)
    corpus = pocket_corpus(200, 1)
    assert {one.scenario.facts["topic"] for one in corpus} <= set(train)
    openings = pocket_openings(test, 20, 1)
    assert {one.scenario.facts["topic"] for one in openings} == set(test)
    assert len({one.scenario.id for one in openings}) == 20
    assert all(len(one.turns) == 1 for one in openings)


def test_the_corpus_is_what_the_filter_expects_and_its_classes_are_true():
    corpus = pocket_corpus(200, 2)
    kept, reasons = usable(corpus)
    faulty = [one for one in corpus if "fault" in one.scenario.facts]
    assert 2 < len(faulty) < 25 and {one.scenario.id for one in faulty}.isdisjoint(one.scenario.id for one in kept)
    assert len(kept) > 180 and set(reasons) == {"refusal", "repeating user"}
    for one in kept:
        said = [world.classify_instruction(turn.text) for turn in one.by(USER)]
        assert said == one.scenario.facts["classes"] and transcript(one).startswith("User: ")
    assert pocket_corpus(5, 2) == corpus[:5]


def test_the_shipped_corpus_is_what_its_command_makes(tmp_path):
    write_shipped(tmp_path / "made.jsonl")
    assert (tmp_path / "made.jsonl").read_bytes() == SHIPPED.read_bytes()
    told = []
    found = read_dialogues(SHIPPED, tell=told.append)
    assert len(found) == SHIPPED_COUNT and not told
    assert 0 < SHIPPED_COUNT - len(usable(found)[0]) < 10


def test_a_third_of_a_strategys_phrasings_share_no_content_word_and_still_fall_into_one_cluster():
    """By pocket's answer about each phrasing; by character n-grams nothing of the kind is seen."""
    phrasings, classes = list(world.PHRASINGS), [world.CLASS_OF[text] for text in world.PHRASINGS]
    by_answer = strategy_embedder("hidden:pocket", brief=POCKET_ABSTRACT)
    found = {}
    for name, embedder in (("answer", by_answer), ("ngrams", Ngrams())):
        threshold = pick_threshold(sweep(phrasings, embedder))
        found[name] = adjusted_rand(clusters(phrasings, embedder, threshold=threshold), classes)
    assert found["answer"] >= 0.9 and found["ngrams"] < 0.2


@pytest.mark.slow
def test_pocket_reads_the_strategies_of_its_corpus_and_their_clusters_are_the_true_ones():
    from dialoom.models.load import load_model
    from dialoom.recipes.ideas_simulator import POCKET_CHOOSE

    model = load_model("pocket")
    corpus, _ = usable(pocket_corpus(20, 11))
    truth = [name for one in corpus for name in one.scenario.facts["classes"]]
    asked, _ = extract(corpus, model, brief=POCKET_EXTRACT, sampling=Sampling(0.5, max_new_tokens=48), draws=4)
    records, _ = weigh(corpus, asked, model, brief=POCKET_CHOOSE)
    assert len(records) == len(truth) == len(list(follow_ups(corpus)))
    right = [world.CLASS_OF.get(one.strategy) == name for one, name in zip(records, truth, strict=True)]
    assert np.mean(right) > 0.8
    texts = list(dict.fromkeys(one.strategy for one in records))
    embedder = strategy_embedder("hidden:pocket", brief=POCKET_ABSTRACT)
    labels = clusters(texts, embedder, threshold=pick_threshold(sweep(pool_of(asked), embedder)))
    label_of = dict(zip(texts, labels.tolist(), strict=True))
    assert adjusted_rand([label_of[one.strategy] for one in records], truth) >= 0.8
    found = abstract(groups(texts, labels), model, brief=POCKET_ABSTRACT)
    assert np.mean([found.of(one.strategy) == world.HIGH_LEVEL[name] for one, name in
                    zip(records, truth, strict=True)]) > 0.8
