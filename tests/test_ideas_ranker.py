"""IDEAS' ranker: what it learns of which strategies follow which answers, and what it offers."""

import json
import random
from functools import cache

import numpy as np
import pytest

from dialoom.dialogue import Dialogue, Scenario, Turn
from dialoom.embed import Ngrams
from dialoom.errors import ConfigError, DataError, StoreError, TrainingError
from dialoom.pocket.world.strategies import fits, make_dialogue
from dialoom.pocket.world.strategy_tables import HIGH_LEVEL, TOPICS
from dialoom.recipes.ideas_ranker import Positive, Ranker, RankerConfig, measure, positives_of, quality
from dialoom.recipes.ideas_strategies import Record, Strategies

CLASSES = [name for name in HIGH_LEVEL if name != "definition"]  # which every dialogue begins with
HIGH = [HIGH_LEVEL[name] for name in CLASSES]
HELD_OUT = sorted(TOPICS)[::4]
QUICK = RankerConfig(epochs=60, decays=(0.1,))


@cache
def corpus(held_out: bool, count: int, seed: int) -> list[Positive]:
    """What follows what in dialogues of pocket's world."""
    rng = random.Random(seed)
    topics = HELD_OUT if held_out else sorted(set(TOPICS) - set(HELD_OUT))
    found = []
    for at in range(count):
        opening, exchanges = make_dialogue(rng.choice(topics), 3, rng)
        answers = [opening.answer, *(one.answer for one in exchanges)]
        found += [Positive(f"{seed}-{at}", answer, HIGH_LEVEL[one.strategy_class])
                  for answer, one in zip(answers, exchanges, strict=False)]
    return found


@cache
def trained() -> Ranker:
    return Ranker.fit(corpus(False, 120, 0), HIGH, Ngrams(dimensions=512), config=QUICK)


ANSWERS = list(dict.fromkeys(one.answer for one in corpus(True, 40, 1)))


class Coded:
    """A word's vector is its own axis: what a ranker can learn of it is plain."""

    name = "coded"
    words = ("cold", "warm", "new", "a", "b", "c", "d")

    def encode(self, texts):
        return np.array([[float(word == text.split()[0].lower()) for word in self.words] for text in texts],
                        dtype=np.float32)


def coded(pairs, strategies=("a", "b", "c", "d"), **settings):
    positives = [Positive(f"{at}", answer, strategy) for at, (answer, strategy) in enumerate(pairs)]
    return Ranker.fit(positives, strategies, Coded(), config=RankerConfig(**{"decays": (0.003,), **settings}))


# --- learning


def test_what_followed_is_told_from_what_did_not():
    scores = coded([("cold", "a"), ("warm", "b")] * 20).scores(["cold", "warm"])
    assert scores[0].argmax() == 0 and scores[1].argmax() == 1
    assert scores[0, 0] > 0.5 > scores[0, 1:].max()


def test_several_strategies_may_fit_one_answer():
    scores = coded([("cold", "a"), ("cold", "b"), ("warm", "c"), ("Cold ", "d")] * 10).scores(["cold"])
    assert scores[0, [0, 1, 3]].min() > 0.5 > scores[0, 2]


def test_it_learns_which_strategies_fit_answers_about_unseen_topics():
    test, seen = corpus(True, 40, 1), corpus(False, 120, 0)
    shuffled = random.Random(0).sample([one.strategy for one in seen], len(seen))
    mixed_up = [Positive(one.dialogue, one.answer, text) for one, text in zip(seen, shuffled, strict=True)]
    learned, ignorant = measure(trained(), test), measure(
        Ranker.fit(mixed_up, HIGH, Ngrams(dimensions=512), config=QUICK), test)
    assert learned.auc > 0.7 > 0.6 > ignorant.auc
    assert learned.recall[5] > 0.6 > 0.5 > ignorant.recall[5]  # by chance 5 of 15
    assert learned.recall[50] == 1.0
    apt = np.array([[fits(name, answer) for name in CLASSES] for answer in ANSWERS])
    assert quality(trained(), ANSWERS, apt).auc > 0.78


def test_a_probability_is_about_the_share_of_true_pairs():
    assert measure(trained(), corpus(True, 40, 1)).error < 0.12


def test_training_is_the_same_for_a_seed():
    one, other = (coded([("cold", "a"), ("warm", "b"), ("new", "c")] * 5) for _ in range(2))
    assert (one.scores(["cold", "warm"]) == other.scores(["cold", "warm"])).all()


def test_small_batches_learn_the_same_thing():
    ranker = coded([("cold", "a"), ("warm", "b"), ("new", "c")] * 12, batch=2, epochs=60)
    assert ranker.top(["cold", "warm", "new"], 1).tolist() == [[0], [1], [2]]


@pytest.mark.parametrize(("pairs", "strategies", "message"), [
    ([("cold", "a"), ("warm", "a")], ("a",), "got 1, 1 of them different; give two or more"),
    ([("cold", "a"), ("warm", "a")], ("a", "a"), "got 2, 1 of them different"),
    ([("cold", "a"), ("warm", "z")], ("a", "b"), "'z' is none of the 2 given"),
    ([("cold", "a")], ("a", "b"), "fewer than 2 dialogues"),
    ([], ("a", "b"), "fewer than 2 dialogues"),
])
def test_what_cannot_be_learned_from_is_refused(pairs, strategies, message):
    with pytest.raises(DataError, match=message):
        coded(pairs, strategies)


def test_vectors_that_are_no_numbers_stop_the_first_step_which_names_its_answers(tmp_path):
    class Broken(Coded):
        def encode(self, texts):
            return super().encode(texts) * np.nan
    positives = [Positive("1", "cold", "a"), Positive("2", "warm", "b")]
    with pytest.raises(TrainingError, match=r"step 1: the loss of the ranker is nan on rows answer \d \(all in .*bad_"
                                            r"batch.json\); .*look at the embedding's vectors"):
        Ranker.fit(positives, ("a", "b"), Broken(), out=tmp_path)
    report = json.loads((tmp_path / "bad_batch.json").read_text())
    assert report["texts"] == [("cold", "warm")[int(report["rows"][0].removeprefix("answer "))]]


def test_a_training_that_diverges_stops_instead_of_keeping_what_it_had():
    pairs = [("cold", "a"), ("warm", "b")] * 20
    with pytest.raises(TrainingError, match=r"step \d+: the .* of the ranker is (inf|nan) on rows answer"):
        coded(pairs, lr=1e200)


def test_positives_are_answers_and_the_high_level_strategy_of_the_turn_after():
    turns = (Turn("a0", None, "assistant", "A drink."), Turn("q1", "a0", "user", "Which?"),
             Turn("a1", "q1", "assistant", "Mint."), Turn("q2", "a1", "user", "Why?"))
    tea = Dialogue(Scenario("d", "What is tea?"), turns)
    asks = Dialogue(Scenario("e", ""), (Turn("q1", None, "user", "What is tea?"), Turn("q2", "q1", "user", "Which?")))
    records = [Record.of(tea, "q1", "want a case"), Record.of(tea, "q2", "new"),
               *(Record.of(asks, turn, "want a case") for turn in ("q1", "q2"))]
    found, left_out = positives_of([tea, asks], records, Strategies(("Ask for examples",),
                                                              {"want a case": "Ask for examples"}))
    assert found == [Positive("d", "A drink.", "Ask for examples")]
    assert left_out == {"strategy belongs to no high-level one": 1, "no answer before it": 2}


# --- figures, by hand


class Fixed(Ranker):
    """Gives the scores it is told."""

    def __init__(self, strategies, rows):
        self.strategies, self._rows = tuple(strategies), rows
        self.config, self.fallbacks = RankerConfig(), 0

    def scores(self, answers):
        return np.array([self._rows[answer] for answer in answers], dtype=float)


def test_auc_and_recall_by_hand():
    ranker = Fixed("abc", {"x": [0.9, 0.1, 0.4], "y": [0.2, 0.3, 0.8]})
    found = measure(ranker, [Positive("1", "x", "a"), Positive("1", "y", "b")], ks=(1, 2))
    assert found.auc == pytest.approx(6 / 8)  # 0.9 beats all four negatives, 0.3 two of them
    assert found.recall == {1: 0.5, 2: 1.0}
    assert found.answers == 2


def test_recall_counts_what_happened_more_than_once():
    ranker = Fixed("abc", {"x": [0.9, 0.1, 0.4]})
    found = measure(ranker, [*[Positive("1", "x", "a")] * 3, Positive("2", "x", "b")], ks=(1,))
    assert found.recall == {1: 0.75}


def test_calibration_error_by_hand():
    ranker = Fixed("ab", {"x": [0.85, 0.35]})
    assert measure(ranker, [Positive("1", "x", "a")]).error == pytest.approx(0.5 * 0.15 + 0.5 * 0.35)


def test_a_measure_needs_something_to_tell_apart():
    with pytest.raises(DataError, match="2 of 2 pairs of answer and strategy are apt"):
        measure(Fixed("ab", {"x": [0.1, 0.2]}), [Positive("1", "x", "a"), Positive("1", "x", "b")])


# --- offering


def test_the_best_are_those_of_brute_force():
    ranker = trained()
    alone = [[(ranker.scores([answer])[0, at], -at) for at in range(len(HIGH))] for answer in ANSWERS]
    expected = [[-at for _, at in sorted(row, reverse=True)[:5]] for row in alone]
    assert ranker.top(ANSWERS, 5).tolist() == expected
    assert ranker.top(ANSWERS, 50).shape == (len(ANSWERS), len(HIGH))


def test_scores_do_not_hang_on_the_batch():
    scores = trained().scores(ANSWERS * 2)
    assert scores.shape == (2 * len(ANSWERS), len(HIGH))
    assert ((scores >= 0) & (scores <= 1)).all()
    assert (scores[0] == trained().scores(ANSWERS[:1])[0]).all()
    assert trained().scores([]).shape == (0, len(HIGH))


def test_all_above_the_threshold_are_offered_in_random_order_and_cut():
    ranker = Fixed("abcde", {"x": [0.9, 0.5, 0.51, 0.7, 0.1]})
    found = ranker.select(["x"] * 60, keys=[str(at) for at in range(60)], size=2)
    assert {len(one) for one in found} == {2}
    assert {text for one in found for text in one} == {"a", "c", "d"}
    assert len({tuple(one) for one in found}) == 6
    assert ranker.fallbacks == 0
    assert found == ranker.select(["x"] * 60, keys=[str(at) for at in range(60)], size=2)
    assert set(ranker.select(["x"], keys=["0"], eta=0.05)[0]) == set("abcde")


def test_where_nothing_passes_fifty_random_ones_are_offered_and_it_is_counted():
    strategies = [f"s{at}" for at in range(80)]
    ranker = Fixed(strategies, {"x": [0.2] * 80})
    found = ranker.select(["x", "x"], keys=["0", "1"])
    assert [len(set(one)) for one in found] == [50, 50]
    assert set(found[0]) != set(found[1])
    assert ranker.fallbacks == 2


# --- files


def test_a_saved_ranker_scores_as_before(tmp_path):
    trained().save(tmp_path)
    again = Ranker.load(tmp_path, Ngrams(dimensions=512))
    assert (again.scores(ANSWERS) == trained().scores(ANSWERS)).all()
    assert again.strategies == trained().strategies and again.config == QUICK
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ranker.json", "ranker.safetensors"]


def test_a_ranker_of_another_embedding_is_refused(tmp_path):
    trained().save(tmp_path)
    with pytest.raises(ConfigError, match="trained on the embedding ngrams:3-5/512, not ngrams:3-5/2048"):
        Ranker.load(tmp_path, Ngrams())


@pytest.mark.parametrize("damage", ["missing", "torn", "short", "other"])
def test_a_ranker_that_cannot_be_read_is_named(tmp_path, damage):
    if damage != "missing":
        trained().save(tmp_path)
        card = json.loads((tmp_path / "ranker.json").read_text())
        del card["embedding" if damage == "short" else "config"]
        (tmp_path / "ranker.json").write_text(json.dumps(card))
    if damage == "torn":
        trained().save(tmp_path)
        (tmp_path / "ranker.safetensors").write_bytes(b"torn")
    if damage == "other":
        trained().save(tmp_path)
        card = json.loads((tmp_path / "ranker.json").read_text())
        (tmp_path / "ranker.json").write_text(json.dumps(card | {"strategies": ["a", "b"]}))
    with pytest.raises(StoreError, match="no ranker can be read there"):
        Ranker.load(tmp_path, Ngrams(dimensions=512))
