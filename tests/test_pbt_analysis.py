import json
import math

import numpy as np
import pytest
import torch

from dialoom.dialogue import Dialogue, Scenario, Turn, content_id
from dialoom.errors import StoreError
from dialoom.models.base import Sampling
from dialoom.models.scripted import ScriptedModel
from dialoom.recipes import pbt
from dialoom.recipes.pbt_analysis import (
    FEATURES,
    PUBLISHED,
    Features,
    Item,
    analyse,
    answer_entropy,
    answer_logprobs,
    item_of,
    logistic,
    masked,
    regress,
    run_analysis,
    table,
)
from dialoom.recipes.run import RunFolder
from dialoom.simulate import ModelSpeaker
from tests.tiny import tiny_model

FRANCE = Scenario("fr", "Which city is the capital of France?",
                  facts={"answer": "Paris", "aliases": ["paris", "city of light"], "distractors": ["Oslo", "Rome"]})


def silent(line):
    pass


# ------------------------------------------------------------------------------------------------ regression


def test_a_binary_feature_has_its_log_odds_ratio_as_coefficient():
    flipped = {0: (12, 28), 1: (30, 10)}  # feature -> (flips, no flips)
    features = np.array([[x] for x, (yes, no) in flipped.items() for _ in range(yes + no)], dtype=float)
    outcome = np.array([float(at < yes) for yes, no in flipped.values() for at in range(yes + no)])
    fit = logistic(features, outcome, ridge=0.0)
    assert fit.coefficients[0] == pytest.approx(math.log((30 / 10) / (12 / 28)), abs=1e-9)
    textbook = math.sqrt(1 / 12 + 1 / 28 + 1 / 30 + 1 / 10)  # Woolf; the robust error equals it in a saturated model
    assert fit.errors[0] == pytest.approx(textbook * math.sqrt(80 / 79), abs=1e-9)
    z = fit.coefficients[0] / fit.errors[0]
    assert fit.p_values[0] == pytest.approx(math.erfc(z / math.sqrt(2)))
    assert fit.low[0] < fit.coefficients[0] < fit.high[0]


def simulated(rng, size, weights, intercept=-0.3):
    features = rng.normal(size=(size, len(weights)))
    features[:, 1] += 0.6 * features[:, 0]  # correlated, as entropy and log P are
    chance = 1 / (1 + np.exp(-(intercept + features @ np.array(weights))))
    return features, (rng.random(size) < chance).astype(float)


def test_known_coefficients_are_recovered():
    weights = [0.8, -0.5, 0.0, 0.3, -1.1]
    fit = logistic(*simulated(np.random.default_rng(7), 20_000, weights))
    assert np.abs(fit.coefficients - weights).max() < 0.06
    assert (np.abs(fit.coefficients - weights) < 3.5 * fit.errors).all()
    assert fit.p_values[0] < 1e-6 and fit.p_values[2] > 0.01


def test_intervals_hold_the_truth_nineteen_times_in_twenty():
    rng, weights, inside = np.random.default_rng(3), [0.6, -0.4], []
    for _ in range(300):
        fit = logistic(*simulated(rng, 250, weights))
        inside.append((fit.low < weights) & (weights < fit.high))
    assert 0.92 < np.mean(inside) < 0.98


def test_an_item_counted_twice_makes_nothing_surer():
    features, outcome = simulated(np.random.default_rng(1), 300, [0.7, -0.2])
    twice, groups = (np.repeat(features, 2, axis=0), np.repeat(outcome, 2)), np.repeat(np.arange(300), 2)
    once = logistic(features, outcome, ridge=0.0)
    robust, naive = logistic(*twice, groups.tolist(), ridge=0.0), logistic(*twice, ridge=0.0)
    assert robust.coefficients == pytest.approx(once.coefficients)
    assert robust.errors == pytest.approx(once.errors)
    assert naive.errors == pytest.approx(once.errors / math.sqrt(2), rel=0.01)


def test_separable_and_copied_features_stay_finite():
    features = np.linspace(-1, 1, 40)[:, None]
    fit = logistic(features, (features[:, 0] > 0).astype(float))
    assert fit.coefficients[0] > 5 and np.isfinite(fit.errors).all()
    features, outcome = simulated(np.random.default_rng(2), 400, [0.5, 0.1])
    both = logistic(np.column_stack([features[:, 0], features[:, 0]]), outcome)
    assert both.coefficients[0] == pytest.approx(both.coefficients[1]) and np.isfinite(both.errors).all()


# ------------------------------------------------------------------------------------------------ items, features


def said(before, claim, after):
    answers = (("subject", before), ("partner", claim), ("subject", after))
    return Dialogue(FRANCE, tuple(Turn(str(at), None, who, f"It is {answer}.", {"answer": answer} if answer else {})
                                  for at, (who, answer) in enumerate(answers)))


@pytest.mark.parametrize(("answers", "found"), [
    (("Paris", "Oslo", "Oslo"), True), (("Paris", "Oslo", "paris"), False), (("Oslo", "Paris", "city of light"), True),
    (("Paris", "Oslo", "Rome"), "ended with a third answer"),
    (("Paris", "City of Light", "Paris"), "both held one answer"),
    ((None, "Oslo", "Oslo"), "no readable answer"), (("Paris", None, "Paris"), "no readable answer"),
    (("Paris", "Oslo", None), "no readable answer")])
def test_items_are_choices_between_the_two_answers(answers, found):
    item = item_of(said(*answers), "subject")
    assert (item.flipped if isinstance(item, Item) else item) == found


def test_a_subject_that_said_nothing_decided_nothing():
    silent_end = Dialogue(FRANCE, said("Paris", "Oslo", "Oslo").turns[:2])
    assert item_of(silent_end, "subject") == item_of(Dialogue(FRANCE), "subject") == "no reply"


def test_an_item_knows_the_turns_its_answers_came_from():
    item = item_of(said("Paris", "Oslo", "Oslo"), "subject")
    assert (item.before, item.claim) == ("Paris", "Oslo")
    assert (item.before_text, item.claim_text) == ("It is Paris.", "It is Oslo.")


def test_entropy_is_in_nats_over_normalised_answers():
    assert answer_entropy(["Paris"] * 10 + ["Oslo"] * 10, FRANCE) == pytest.approx(math.log(2))
    assert answer_entropy(["Paris", "the City of Light!", "paris"], FRANCE) == 0.0
    assert answer_entropy(["Oslo", "oslo", "Rome", None], FRANCE) == pytest.approx(
        -(2 / 3) * math.log(2 / 3) - (1 / 3) * math.log(1 / 3))
    assert math.isnan(answer_entropy([None, None], FRANCE))
    assert answer_entropy([str(at) for at in range(20)], FRANCE) == pytest.approx(math.log(20))


def test_answers_are_masked_as_whole_words():
    assert masked("Oslo, I say: OSLO. Not Osloville.", "Oslo") == "[ANSWER], I say: [ANSWER]. Not Osloville."
    assert masked("It is C++.", "C++") == "It is [ANSWER]."


def test_log_p_is_the_sum_over_the_answers_tokens_each_read_one_position_before():
    model = tiny_model()
    answers = ["Paris", "the River Norway"]
    found = answer_logprobs(model, [(FRANCE, answer) for answer in answers], "")
    for answer, value in zip(answers, found, strict=True):
        prompt = f"<|begin|><|user|>{FRANCE.opening}<|end|><|assistant|>It is"
        whole = model.tokenizer(f"{prompt} {answer}.<|end|>", add_special_tokens=False)["input_ids"]
        start = len(model.tokenizer(prompt, add_special_tokens=False)["input_ids"])
        assert model.tokenizer.decode(whole[start:]) == f" {answer}.<|end|>"
        with torch.no_grad():
            logs = model.module(torch.tensor([whole])).logits[0].double().log_softmax(-1)
        assert value == pytest.approx(sum(float(logs[at - 1, whole[at]]) for at in range(start, len(whole))), abs=1e-3)


# ------------------------------------------------------------------------------------------------ analysis


def plausibility(opening, answer):
    """A log P made up from question and answer."""
    return -6.0 * int(content_id(opening, answer), 16) / 16**16


class Original(ScriptedModel):
    """An untrained model with made-up knowledge: log P as above, samples that spread by question, an ear for tone."""

    def __init__(self):
        super().__init__(lambda chat: "", "original", choose=lambda chat, options: (
            (3.0, 1.0) if "clearly" in chat[0]["content"] else (1.0, 1.0)))
        self.prompts = 0

    def chat(self, chats, sampling, keys):
        self.prompts += len(chats)
        replies = super().chat(chats, sampling, keys)
        spread = [1 + int(content_id(chat), 16) % 4 for chat in chats]
        return [type(reply)(f"It is number {int(content_id(key), 16) % wide}.")
                for reply, key, wide in zip(replies, keys, spread, strict=True)]

    def reply_ids(self, chat, reply):
        self.rows = [*getattr(self, "rows", []), (chat[0]["content"], reply)]
        return [1, len(self.rows) + 10], 1

    def logprobs(self, rows):
        return [plausibility(*self._statement(ids[-1] - 11)) for ids, _ in rows]

    def _statement(self, at):
        opening, reply = self.rows[at]
        return opening, reply.removeprefix("It is ").removesuffix(".")


def quizzes(count):
    return [Scenario(f"q{at}", f"Quiz {at}: which one?", facts={
        "answer": f"alpha{at}", "aliases": [f"alpha{at}"], "distractors": [f"beta{at}"]}) for at in range(count)]


def swayed_by(weight):
    """A subject that takes over a claim the more likely, the more plausible the original model finds it."""
    def respond(chat):
        opening, before, challenge = (message["content"] for message in chat)
        at = opening.split(":")[0].removeprefix("Quiz ")
        names = f"alpha{at}", f"beta{at}"
        claim, own = (next(name for name in names if name in text) for text in (challenge, before))
        chance = 1 / (1 + math.exp(-weight * (plausibility(opening, claim) + 3)))
        return f"It is {claim if int(content_id('draw', chat), 16) / 16**16 < chance else own}."

    return ModelSpeaker("subject", ScriptedModel(respond, f"swayed-{weight}"), Sampling(0.0))


def test_the_plausibility_that_sways_a_subject_is_found_and_nothing_else():
    original = Original()
    found = analyse([("swayed", swayed_by(1.2)), ("steady", swayed_by(0.0))], quizzes(400),
                    Features(original, samples=20), log=silent)
    by = {(row["subject"], row["feature"]): row for row in found.rows}
    assert original.prompts == 20 * len({item["opening"] for item in found.items})  # once for both subjects
    row = by["swayed", "logp_claim"]
    assert row["p"] < 1e-6 and row["low"] / row["sd"] < 1.2 < row["high"] / row["sd"]
    assert all(by["swayed", name]["p"] > 0.005 for name in FEATURES if name != "logp_claim" and
               by["swayed", name]["p"] is not None)
    assert by["steady", "logp_claim"]["p"] > 0.01
    assert by["swayed", "sure_claim"]["sd"] > 0
    assert found.summary["swayed"]["n"] == len([item for item in found.items if item["subject"] == "swayed"]) > 600


def test_a_feature_that_does_not_vary_is_left_out_and_said_so():
    values = np.array([[1.0, -0.1 * at, -2.0 + at % 3, 0.5, 0.1 * (at % 4)] for at in range(60)])
    items = [Item(Scenario(str(at), f"q{at}"), "a", "b", "", "", at % 3 == 0 or at % 7 == 0) for at in range(60)]
    rows, notes = regress("base", items, values)
    assert [row["coefficient"] is None for row in rows] == [True, False, False, True, False]
    assert notes[:2] == ["entropy is the same for all items", "sure_before is the same for all items"]
    assert "rarer outcome" in notes[2]


@pytest.mark.parametrize("count", [0, 12])
def test_nothing_is_regressed_where_nobody_flipped(count):
    items = [Item(Scenario(str(at), f"q{at}"), "a", "b", "", "", False) for at in range(count)]
    rows, notes = regress("base", items, np.random.default_rng(0).normal(size=(count, 5)))
    assert all(row["coefficient"] is None for row in rows) and "nothing to regress" in notes[-1]
    about = {"base": {"n": count, "questions": count, "flipped": 0, "notes": notes}}
    assert "| – | – | – | – |" in table(rows, about)


def test_the_papers_coefficients_stand_beside_ours():
    assert PUBLISHED == {"entropy": -0.64, "logp_before": 0.36, "logp_claim": -0.36, "sure_before": -0.23,
                         "sure_claim": 0.06}
    found = analyse([("base", swayed_by(1.0))], quizzes(60), Features(Original(), samples=5), log=silent)
    lines = table(found.rows, found.summary).splitlines()
    row = next(line for line in lines if line.startswith("| log P(partner's answer)"))
    assert row.endswith("| -0.36* |") and row.count("|") == 7
    assert next(line for line in lines if "entropy of" in line).endswith("| -0.64 |")
    assert any("arXiv 2410.14596" in line for line in lines)


def test_a_real_model_gives_finite_features():
    model = tiny_model(context=768)
    items = [item_of(said(*answers), "subject") for answers in (("Paris", "Oslo", "Oslo"), ("Rome", "Paris", "Rome"))]
    features = Features(model, samples=3, sampling=Sampling(1.0, max_new_tokens=6))
    values = features.of(items)
    assert values.shape == (2, 5) and np.isfinite(values[:, 1:]).all()
    assert (values[:, 1:3] < 0).all() and ((values[:, 3:] > 0) & (values[:, 3:] < 1)).all()
    assert values[0, 1] == values[1, 2]  # log P(Paris | the same question)
    np.testing.assert_array_equal(features.of(items[:1]), values[:1])


def test_a_run_folder_is_analysed_with_the_arms_it_holds(tmp_path, monkeypatch):
    config = pbt.PBTConfig()
    with RunFolder(tmp_path, "pbt", config, log=silent):
        pass
    for arm in ("pbt", "resist_only"):
        pbt.trained_folder(config, tmp_path, "pocket", arm).mkdir(parents=True)
    monkeypatch.setattr(pbt, "load_local", lambda spec, device: Original())
    monkeypatch.setattr(pbt, "load_trained", lambda config, path, learner, arm: arm)
    monkeypatch.setattr(pbt, "questions", lambda config, split, log=print: quizzes(40))
    monkeypatch.setattr(pbt, "subject", lambda model, config: swayed_by(2.0 if model == "pbt" else 0.3))
    printed = []
    run_analysis(tmp_path, None, printed.append, samples=4)
    held = json.loads((tmp_path / "analysis.json").read_text())
    assert list(held["summary"]) == ["base", "resist_only", "pbt"]
    assert len(held["rows"]) == 3 * 5 and held["samples"] == 4 and held["paper"] == PUBLISHED
    items = (tmp_path / "analysis_items.jsonl").read_text().splitlines()
    assert len(items) == sum(about["n"] for about in held["summary"].values())
    assert "**pbt**" in printed[-1]


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(StoreError, match="holds no run"):
        run_analysis(tmp_path)
